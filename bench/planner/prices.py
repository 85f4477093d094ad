"""Prices with source, date and region, from a TOML file or Azure's price list, whose API needs no account.

Meters are found by product and meter; missing ones are reported.
https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices
"""

import datetime as dt
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

import msgspec
from msgspec import Meta

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.stores.errors import did_you_mean

OURS = Path(__file__).with_name("prices.toml")
# Reliability of a price, and default error bound.
BASES = {
    "listed": "a list price",
    "quoted": "QUOTED BY OTHERS, NOT CHECKED",
    "assumed": "ASSUMED, NO PRICE WAS FOUND",
}
USUAL_BOUNDS = {"listed": 0.1, "quoted": 0.2, "assumed": 0.5}
HOURS_A_MONTH = 730  # as in Azure's estimates
RETAIL = "https://prices.azure.com/api/retail/prices"
COSMOS_FILTER = "serviceName eq 'Azure Cosmos DB'"
MACHINES_FILTER = "serviceName eq 'Virtual Machines' and armSkuName eq 'Standard_D4s_v5'"
REDIS_FILTER = "serviceName eq 'Redis Cache' and contains(productName,'Managed Redis')"
MACHINE = "vCPU for an hour: a quarter of a Standard_D4s_v5"
MACHINE_CPUS = 4
OTHER_MACHINES = re.compile("Windows|Spot|Low Priority")  # machines other than Linux at full price
AUTOSCALE_FACTOR = 1.5
HEAD = "# Azure's retail prices"
TIMEOUT_S = 60.0
PAGES = 50
PAGE_BYTES = 4_000_000
MOST = 1e12  # of any number in the file


# A price that Azure's list is not asked for: it is of sizes of Redis without one.
NOT_ASKED = ("redis_gb_hour",)
ESSENTIAL_PRICES = ("ru_hour", "storage_gb_month", "cpu_hour")


class PricesUnreadable(BenchMisused):
    """The file of prices is missing or invalid."""


Amount = Annotated[float, Meta(ge=0, lt=MOST)]
Positive = Annotated[float, Meta(gt=0, lt=MOST)]
Count = Annotated[int, Meta(gt=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A price in its file's currency; its basis is `listed`, `quoted` by a third party, or `assumed`."""

    amount: Amount
    per: str
    region: str
    date: dt.date
    source: Annotated[str, Meta(min_length=1)]
    basis: Literal["listed", "quoted", "assumed"]
    within: Annotated[float, Meta(ge=0, lt=1)] | None = None
    """Relative error bound; None for the usual one of the basis."""

    meter: tuple[str, str] | None = None
    """Product and meter of a price of Cosmos DB in Azure's list."""

    @property
    def error_bound(self) -> float:
        """By which share of it the true price may be lower or higher."""
        return USUAL_BOUNDS[self.basis] if self.within is None else self.within

    @property
    def provenance(self) -> str:
        """Basis, region, date, error bound and source."""
        return f"{BASES[self.basis]}: {self.region}, {self.date}, ±{self.error_bound:.0%}, {self.source}"

    def moved(self, direction: int) -> "Price":
        """Return the upper (1) or lower (-1) bound."""
        return replace(self, amount=self.amount * (1 + direction * self.error_bound))


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSize:
    """A size of Azure Managed Redis; `node_hour` is the price of a node for an hour."""

    name: str
    gb: Positive
    vcpus: Count
    shards: Count
    gets_s: Positive
    """GETs a second."""

    node_hour: Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """The prices of a file by name, such as "ru_hour", and the sizes of Redis in ascending order."""

    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")]
    named: Mapping[str, Price]
    redis: tuple[RedisSize, ...] = ()

    def __getitem__(self, name: str) -> Price:
        """Return a price. Raises KeyError if the file has none."""
        return self.named[name]

    def ru_hours(self, ru_hours: float, *, autoscale: bool = False, regions: int = 1) -> float:
        """Return the cost of RU/s-hours: 400 RU/s for 2 hours are 800."""
        return ru_hours / 100 * self["ru_hour"].amount * (self["autoscale_factor"].amount if autoscale else 1) * regions

    def ru_month(self, ru: float, *, autoscale: bool = False, regions: int = 1) -> float:
        """Return the cost of RU/s for a month."""
        return self.ru_hours(ru * HOURS_A_MONTH, autoscale=autoscale, regions=regions)

    def moved(self, direction: int) -> "Prices":
        """Return upper (1) or lower (-1) bounds."""
        sizes = tuple(replace(size, node_hour=size.node_hour.moved(direction)) for size in self.redis)
        moved = {name: price.moved(direction) for name, price in self.named.items()}
        return replace(self, named=moved, redis=sizes)


# In the file, keys for all sizes of Redis.
REDIS_QUOTED = "redis_quoted"


def load(path: Path = OURS) -> Prices:
    """Read a file of prices. Raises PricesUnreadable."""
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PricesUnreadable(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise PricesUnreadable(f"{path}: {error.args[0]} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise PricesUnreadable(f"{path}: {error}") from error


def parse(text: str) -> Prices:
    """Return the prices in the text of a TOML file, with the sizes of Redis sorted by memory.

    A price is a table, as [ru_hour]; each [[redis]] is a size of Redis, and [redis_quoted] has keys for all of them.
    Raises KeyError, TypeError or ValueError for a missing or invalid one.
    """
    tables = tomllib.loads(text)
    known = tomllib.loads(OURS.read_text(encoding="utf-8"))
    for name in tables:
        if name not in known:
            raise ValueError(f"the table {name!r} is not known; {did_you_mean(name, known) or 'leave it out'}")

    not_prices = ("currency", "redis", REDIS_QUOTED)
    named = {name: _price(name, table) for name, table in tables.items() if name not in not_prices}
    for name in (*ESSENTIAL_PRICES, "autoscale_factor"):
        _ = named[name]
    sizes = [size | {"node_hour": _price_of_node(size, tables)} for size in tables.get("redis", ())]
    prices = msgspec.convert({"currency": tables["currency"], "named": named, "redis": sizes}, Prices)
    if len({size.name for size in prices.redis}) < len(sizes):
        raise ValueError("two sizes of Redis have the same name")
    return replace(prices, redis=tuple(sorted(prices.redis, key=lambda size: size.gb)))


def _price(name: str, table: object) -> Price:
    """Return the price in a table. Raises ValueError with its *name* for an invalid one."""
    try:
        return msgspec.convert(table, Price)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from error


def _price_of_node(size: Mapping[str, Any], tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the price of a node of a size of Redis for an hour, as a table: its own, or that of its GB."""
    per = f"node of {size['name']} for an hour"
    if "amount" in size:
        return {"per": per, **tables.get(REDIS_QUOTED, {}), **size}
    if "redis_gb_hour" not in tables:
        raise ValueError(f"redis {size['name']} has no amount, and there is no redis_gb_hour")
    of_gb = tables["redis_gb_hour"]
    per = f"{per}: {size['gb']:g} GB at {of_gb['amount']:g}"
    return {**of_gb, "amount": size["gb"] * of_gb["amount"], "per": per}


class ListedPrice(msgspec.Struct, frozen=True, rename="camel"):
    """An entry of Azure's price list; it applies from `tier_minimum_units` on, 0 but for discounts."""

    product_name: str
    meter_name: str
    sku_name: str
    retail_price: float
    tier_minimum_units: float | None = None


class PricePage(msgspec.Struct, frozen=True, rename="pascal"):
    """A page of Azure's price list."""

    billing_currency: str
    items: tuple[ListedPrice, ...]
    next_page_link: str | None = None


def write_prices(region: str, currency: str, path: Path, today: dt.date) -> list[str]:
    """Write Azure's prices to *path*; return the names of missing ones.

    Raises BenchMisused instead of overwriting another file.
    """
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(HEAD):
        raise BenchMisused(
            f"--prices: {path} exists and is not from Azure's price list; name another file, or remove it"
        )
    text, missing = fetch_prices(region, currency, today, RETAIL)
    path.write_text(text, encoding="utf-8")
    return missing


def fetch_prices(region: str, currency: str, today: dt.date, url: str) -> tuple[str, list[str]]:
    """Return the text of a price file with prices of Azure's list at *url*, and the names of those that it lacks.

    Raises BenchMisused for an invalid region or currency, BenchFailed if a request fails or an essential price is
    missing.
    """
    _check_region(region, currency)

    entries = list[list[ListedPrice]]()
    for products in (COSMOS_FILTER, MACHINES_FILTER, REDIS_FILTER):
        condition = f"{products} and armRegionName eq '{region}' and priceType eq 'Consumption'"
        entries.append(list(_listed_prices(url, condition, currency)))
    cosmos, machines, redis = entries

    ours = load()
    prices = {
        name: _agreed_price(entry for entry in cosmos if (entry.product_name, entry.meter_name) == price.meter)
        for name, price in ours.named.items()
        if price.meter is not None
    }
    linux_machines = [
        listed for listed in machines if not OTHER_MACHINES.search(f"{listed.product_name} {listed.sku_name}")
    ]
    prices["cpu_hour"] = _agreed_price(linux_machines)
    balanced = [entry for entry in redis if "Balanced" in entry.product_name]
    node_prices = {
        size.name: _agreed_price(entry for entry in balanced if entry.sku_name == size.name) for size in ours.redis
    }

    missing = [name for name, price in {**prices, **node_prices}.items() if price is None]
    missing += [name for name in ours.named if name not in {*prices, *NOT_ASKED}]
    essential = [name for name in ESSENTIAL_PRICES if name in missing]
    if essential:
        raise BenchFailed(
            f"Azure's price list has no {', '.join(essential)} for {region} in {currency}: is that its name?"
        )
    return _format_prices(ours, prices, node_prices, region=region, currency=currency, today=today), missing


def _check_region(region: str, currency: str) -> None:
    if not re.fullmatch(r"[a-z0-9]{2,40}", region):
        raise BenchMisused(f"--prices-from-azure: {region!r} is not a region's name, such as westeurope")
    if not re.fullmatch(r"[A-Z]{3}", currency):
        raise BenchMisused(f"--prices-from-azure: {currency!r} is not a currency, such as EUR")


def _agreed_price(entries: Iterable[ListedPrice]) -> float | None:
    """Return the price in which all entries agree, besides free ones and discounts; None without such a price."""
    prices = {entry.retail_price for entry in entries if entry.retail_price > 0 and not entry.tier_minimum_units}
    return prices.pop() if len(prices) == 1 else None


def _listed_prices(url: str, condition: str, currency: str) -> Iterator[ListedPrice]:
    """Yield the entries of Azure's price list at *url* that meet a *condition* in OData, of all its pages.

    Raises BenchFailed for prices in another currency, too many pages, or a page on another host.
    """
    query = urlencode({"currencyCode": f"'{currency}'", "$filter": condition})
    page_url = f"{url}?{query}"
    for _ in range(PAGES):
        page = _read_page(page_url)
        if page.billing_currency != currency:
            raise BenchFailed(f"{url}: prices are in {page.billing_currency[:20]}, not in {currency}")
        yield from page.items

        if not page.next_page_link:
            return
        page_url = page.next_page_link
        if _host(page_url) != _host(url):
            raise BenchFailed(f"{url}: the next page is on another host, {urlsplit(page_url).netloc[:80]}")
    raise BenchFailed(f"{url}: more than {PAGES} pages for {condition}")


def _host(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 -- as urllib's
        """Refuse redirects to other hosts."""


def _read_page(url: str) -> PricePage:
    """Return a page of Azure's price list. Raises BenchFailed for another answer, or one of more than PAGE_BYTES."""
    shown = url.partition("?")[0]
    try:
        with build_opener(_NoRedirect).open(url, timeout=TIMEOUT_S) as answer:
            return msgspec.json.decode(answer.read(PAGE_BYTES), type=PricePage)
    except HTTPError as error:
        raise BenchFailed(f"{shown}: status {error.code}") from error
    except OSError as error:
        raise BenchFailed(f"{shown}: {error}") from error
    except ValueError as error:
        raise BenchFailed(f"{shown}: the answer is not a page of prices: {error}") from error


def _format_prices(
    ours: Prices,
    prices: dict[str, float | None],
    node_prices: Mapping[str, float | None],
    *,
    region: str,
    currency: str,
    today: dt.date,
) -> str:
    """Return a file of prices as TOML, without those that are None.

    A vCPU costs a share of the price of a machine. Autoscale is written as a factor of the price of manual RU/s.

    ours         our prices, which say what a price is for, and what a size of Redis has
    prices       by name: "autoscale_factor" is that of autoscale, and "cpu_hour" that of a machine with `MACHINE_CPUS`
    node_prices  of a node of Redis for an hour, by the name of its size
    """
    factor = AUTOSCALE_FACTOR
    if prices["autoscale_factor"] and prices["ru_hour"]:
        factor = round(prices["autoscale_factor"] / prices["ru_hour"], 6)
    machine = prices["cpu_hour"] or 0
    amounts = prices | {"cpu_hour": machine / MACHINE_CPUS, "autoscale_factor": factor}

    origin = {"region": region, "date": str(today), "source": RETAIL, "basis": "listed", "within": 0}
    tables = [f'{HEAD} of {today}, by hotplate plan --prices-from-azure {region} {currency}\ncurrency = "{currency}"\n']
    for name, price in ours.named.items():
        amount = amounts.get(name)
        if amount is not None:
            per = f"{MACHINE} at {machine:g}" if name == "cpu_hour" else price.per
            tables.append(_format_table(f"[{name}]", {"amount": amount, "per": per, **origin}))

    for size in ours.redis:
        node_hour = node_prices[size.name]
        if node_hour is not None:
            kept = {key: getattr(size, key) for key in ("name", "gb", "vcpus", "shards", "gets_s")}
            tables.append(_format_table("[[redis]]", {**kept, "amount": node_hour}))
    return "\n".join([*tables, _format_table(f"[{REDIS_QUOTED}]", origin)])  # the origin of all sizes of Redis


def _format_table(heading: str, values: Mapping[str, object]) -> str:
    """Return a table of TOML; texts and numbers are written as in JSON."""
    return "\n".join([heading, *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""])
