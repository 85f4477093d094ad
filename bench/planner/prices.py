"""Prices with source, date and region, from a TOML file or Azure's price list, whose API needs no account.

Meters are found by product and meter; missing ones are reported.
https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices
"""

import datetime as dt
import json
import re
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.stores.errors import did_you_mean

OURS = Path(__file__).with_name("prices.toml")
# Reliability of a price, and default error bound.
BASES = {
    "listed": "a list price",
    "quoted": "QUOTED BY OTHERS, NOT CHECKED",
    "assumed": "ASSUMED, NO PRICE WAS FOUND",
}
DEFAULT_WITHIN = {"listed": 0.1, "quoted": 0.2, "assumed": 0.5}
DAYS_A_MONTH = 365.25 / 12
HOURS_A_MONTH = 730  # as in Azure's estimates
RETAIL = "https://prices.azure.com/api/retail/prices"
COSMOS_FILTER = "serviceName eq 'Azure Cosmos DB'"
MACHINES_FILTER = "serviceName eq 'Virtual Machines' and armSkuName eq 'Standard_D4s_v5'"
REDIS_FILTER = "serviceName eq 'Redis Cache' and contains(productName,'Managed Redis')"
MACHINE_CPUS = 4
OTHER_MACHINES = re.compile("Windows|Spot|Low Priority")  # machines other than Linux at full price
AUTOSCALE_FACTOR = 1.5
HEAD = "# Azure's retail prices"
DEADLINE_S = 60.0  # for all requests
PAGES = 50
PAGE_BYTES = 4_000_000


class Meter(NamedTuple):
    """A price of Cosmos DB in Azure's list: by the names of product and meter; *per* is what it is paid for."""

    product: str
    meter: str
    per: str


METERS = {
    "ru_hour": Meter("Azure Cosmos DB", "100 RU/s", "100 RU/s provisioned for an hour, in each region"),
    "autoscale": Meter("Azure Cosmos DB autoscale", "100 RU/s", "100 RU/s of autoscale for an hour, in each region"),
    "serverless_million_ru": Meter("Azure Cosmos DB serverless", "1M RUs", "1,000,000 RU that were used"),
    "storage_gb_month": Meter("Azure Cosmos DB", "Data Stored", "GB of items for a month, in each region"),
}
ESSENTIAL_PRICES = ("ru_hour", "storage_gb_month", "cpu_hour")


class PricesUnreadable(BenchMisused):
    """The file of prices is missing or invalid."""


@dataclass(frozen=True, slots=True)
class Price:
    """A price in its file's currency; its basis is `listed`, `quoted` by a third party, or `assumed`."""

    amount: float
    per: str
    region: str
    date: dt.date
    source: str
    basis: str
    within: float
    """Relative error bound."""

    @property
    def provenance(self) -> str:
        """Basis, region, date, error bound and source."""
        return f"{BASES[self.basis]}: {self.region}, {self.date}, ±{self.within:.0%}, {self.source}"

    def age(self, today: dt.date) -> str:
        """Format the age in months or years."""
        months = (today - self.date).days / DAYS_A_MONTH
        return f"{months / 12:.1f} years old" if months >= 12 else f"{max(0, round(months))} months old"

    def moved(self, direction: int) -> "Price":
        """Return the upper (1) or lower (-1) bound."""
        return replace(self, amount=self.amount * (1 + direction * self.within))


@dataclass(frozen=True, slots=True)
class RedisSize:
    """A size of Azure Managed Redis; `node_hour` is the price of a node for an hour."""

    name: str
    gb: float
    vcpus: int
    shards: int
    gets_per_s: float
    node_hour: Price


@dataclass(frozen=True, slots=True)
class Prices:
    """All prices of a file; None if missing."""

    currency: str
    ru_hour: Price
    autoscale_factor: Price
    storage_gb_month: Price
    cpu_hour: Price
    serverless_million_ru: Price | None
    redis_gb_hour: Price | None
    disk_gb_month: Price | None
    redis: tuple[RedisSize, ...]
    """In ascending order."""

    def by_name(self) -> dict[str, Price]:
        """Return present prices, without sizes of Redis."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Price)}

    def ru_hours(self, ru_hours: float, *, autoscale: bool = False, regions: int = 1) -> float:
        """Return the cost of RU/s-hours: 400 RU/s for 2 hours are 800."""
        return ru_hours / 100 * self.ru_hour.amount * (self.autoscale_factor.amount if autoscale else 1) * regions

    def ru_month(self, ru: float, *, autoscale: bool = False, regions: int = 1) -> float:
        """Return the cost of RU/s for a month."""
        return self.ru_hours(ru * HOURS_A_MONTH, autoscale=autoscale, regions=regions)

    def moved(self, direction: int) -> "Prices":
        """Return upper (1) or lower (-1) bounds."""
        sizes = tuple(replace(size, node_hour=size.node_hour.moved(direction)) for size in self.redis)
        moved: dict[str, Any] = {name: price.moved(direction) for name, price in self.by_name().items()}
        return replace(self, redis=sizes, **moved)


REQUIRED_PRICES = ("ru_hour", "autoscale_factor", "storage_gb_month", "cpu_hour")
OPTIONAL_PRICES = ("serverless_million_ru", "redis_gb_hour", "disk_gb_month")
_TABLES = ("currency", *REQUIRED_PRICES, *OPTIONAL_PRICES, "redis", "redis_quoted")


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
    for name in tables:
        if name not in _TABLES:
            raise ValueError(f"the table {name!r} is not known; {did_you_mean(name, _TABLES) or 'leave it out'}")
    currency = tables["currency"]
    if not isinstance(currency, str) or not re.fullmatch("[A-Z]{3}", currency):
        raise ValueError(f"currency is {currency!r}, and must be three letters, as USD or EUR")

    prices: dict[str, Any] = {name: _read_price(tables[name], name) for name in REQUIRED_PRICES}
    for name in OPTIONAL_PRICES:
        prices[name] = _read_price(tables[name], name) if name in tables else None

    price_per_gb = prices["redis_gb_hour"]
    defaults = tables.get("redis_quoted", {})
    sizes = [_read_redis_size(table, price_per_gb, defaults) for table in tables.get("redis", ())]
    if len({size.name for size in sizes}) < len(sizes):
        raise ValueError("two sizes of Redis have the same name")
    return Prices(currency, **prices, redis=tuple(sorted(sizes, key=lambda size: size.gb)))


def _read_price(table: Mapping[str, Any], name: str) -> Price:
    """Return the price in a table of the prices file, such as [ru_hour]; *name* is for messages.

    Keys are the fields of Price; `within`, the relative error bound, has a default by `basis`. Raises TypeError or
    ValueError for missing or invalid ones.
    """
    try:
        price = Price(
            amount=float(table["amount"]),
            per=str(table["per"]),
            region=str(table["region"]),
            date=table["date"],
            source=str(table["source"]),
            basis=str(table["basis"]),
            within=float(table.get("within", DEFAULT_WITHIN.get(str(table["basis"]), 0.0))),
        )
    except KeyError as error:
        raise ValueError(f"{name} has no {error.args[0]}") from error
    _check_price(price, name)
    return price


def _check_price(price: Price, name: str) -> None:
    """Raise TypeError or ValueError for an invalid field of a price; *name* is that of its table, for the message.

    `basis` says how the price is known, as "listed"; `within` is its relative error bound.
    """
    if price.basis not in BASES:
        raise ValueError(f"basis of {name} is {price.basis!r}, and must be {', '.join(BASES)}")
    if not isinstance(price.date, dt.date) or isinstance(price.date, dt.datetime):
        raise TypeError(f"date of {name} is {price.date!r}, and must be a TOML date, as 2026-11-20 without quotes")
    if not 0 <= price.amount < float("inf"):
        raise ValueError(f"amount of {name} is {price.amount:g}, and must be 0 or more")
    if not 0 <= price.within < 1:
        raise ValueError(f"within of {name} is {price.within:g}, and is a share of the price, less than 1")
    if not price.source:
        raise ValueError(f"{name} needs a source")


def _read_redis_size(table: Mapping[str, Any], price_per_gb: Price | None, defaults: Mapping[str, Any]) -> RedisSize:
    """Return a size of Azure Managed Redis from its table in the prices file.

    price_per_gb  of a GB for an hour, for a table without `amount`; None if the file has none
    defaults      keys of a price, such as source and date, that the table need not have

    Raises KeyError, TypeError or ValueError for an invalid table.
    """
    name = str(table["name"])
    gb = _positive(table, "gb", name)

    per = f"node of {name} for an hour"
    if "amount" in table:
        node_hour = _read_price({"per": per, **defaults, **table}, name)
    elif price_per_gb is None:
        raise ValueError(f"redis {name} has no amount, and there is no redis_gb_hour")
    else:
        per = f"{per}: {gb:g} GB at {price_per_gb.amount:g}"
        node_hour = replace(price_per_gb, amount=gb * price_per_gb.amount, per=per)

    return RedisSize(
        name=name,
        gb=gb,
        vcpus=int(_positive(table, "vcpus", name)),
        shards=int(_positive(table, "shards", name)),
        gets_per_s=_positive(table, "gets_s", name),
        node_hour=node_hour,
    )


def _positive(table: Mapping[str, Any], key: str, name: str) -> float:
    """Return a number of a size of Redis. Raises KeyError, TypeError or ValueError for a missing or invalid one."""
    number = float(table[key])
    if not 0 < number < float("inf"):
        raise ValueError(f"{key} of redis {name} is {number:g}, and must be more than 0")
    return number


@dataclass(frozen=True, slots=True)
class ListedPrice:
    """An entry of Azure's price list; it applies from *least_units* on, 0 but for discounts."""

    product: str
    meter: str
    sku: str
    price: float
    least_units: float


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

    deadline_s = time.monotonic() + DEADLINE_S
    entries = list[list[ListedPrice]]()
    for products in (COSMOS_FILTER, MACHINES_FILTER, REDIS_FILTER):
        condition = f"{products} and armRegionName eq '{region}' and priceType eq 'Consumption'"
        entries.append(list(_listed_prices(url, condition, currency, deadline_s)))
    cosmos, machines, redis = entries

    prices = _select_cosmos_prices(cosmos)
    linux_machines = [listed for listed in machines if not OTHER_MACHINES.search(f"{listed.product} {listed.sku}")]
    prices["cpu_hour"] = _agreed_price(linux_machines)
    node_prices = _select_redis_prices(redis)

    missing = [name for name, price in {**prices, **node_prices}.items() if price is None]
    essential = [name for name in ESSENTIAL_PRICES if name in missing]
    if essential:
        raise BenchFailed(
            f"Azure's price list has no {', '.join(essential)} for {region} in {currency}: is that its name?"
        )
    return _format_prices(prices, node_prices, region=region, currency=currency, today=today), missing


def _check_region(region: str, currency: str) -> None:
    if not re.fullmatch(r"[a-z0-9]{2,40}", region):
        raise BenchMisused(f"--prices-from-azure: {region!r} is not a region's name, such as westeurope")
    if not re.fullmatch(r"[A-Z]{3}", currency):
        raise BenchMisused(f"--prices-from-azure: {currency!r} is not a currency, such as EUR")


def _select_cosmos_prices(entries: Sequence[ListedPrice]) -> dict[str, float | None]:
    """Return the price of each of METERS by its name, None if *entries* do not have it."""
    prices = dict[str, float | None]()
    for name, meter in METERS.items():
        of_meter = [entry for entry in entries if (entry.product, entry.meter) == (meter.product, meter.meter)]
        prices[name] = _agreed_price(of_meter)
    return prices


def _select_redis_prices(entries: Sequence[ListedPrice]) -> dict[str, float | None]:
    """Return the price of a node of each size in our prices file by its name, None if *entries* do not have it."""
    balanced = [entry for entry in entries if "Balanced" in entry.product]
    names = [size["name"] for size in _our_redis_sizes()]
    return {name: _agreed_price(entry for entry in balanced if entry.sku == name) for name in names}


def _agreed_price(entries: Iterable[ListedPrice]) -> float | None:
    """Return the price in which all entries agree, besides free ones and discounts; None without such a price."""
    prices = {entry.price for entry in entries if entry.price > 0 and not entry.least_units}
    return prices.pop() if len(prices) == 1 else None


def _listed_prices(url: str, condition: str, currency: str, deadline_s: float) -> Iterator[ListedPrice]:
    """Yield the entries of Azure's price list at *url* that meet a *condition* in OData, of all its pages.

    Reading ends at *deadline_s*, a monotonic time. Raises BenchFailed for prices in another currency, too many pages,
    or a page on another host.
    """
    query = urlencode({"currencyCode": f"'{currency}'", "$filter": condition})
    page_url = f"{url}?{query}"
    for _ in range(PAGES):
        page = _read_page(page_url, deadline_s)
        if page.get("BillingCurrency") != currency:
            raise BenchFailed(f"{url}: prices are in {str(page.get('BillingCurrency'))[:20]}, not in {currency}")
        yield from (_parse_entry(entry, url) for entry in page["Items"])

        page_url = str(page.get("NextPageLink") or "")
        if not page_url:
            return
        if _host(page_url) != _host(url):
            raise BenchFailed(f"{url}: the next page is on another host, {urlsplit(page_url).netloc[:80]}")
    raise BenchFailed(f"{url}: more than {PAGES} pages for {condition}")


def _parse_entry(entry: Any, url: str) -> ListedPrice:  # noqa: ANN401 -- JSON
    """Return an entry of Azure's price list, a JSON object. Raises BenchFailed for any other value."""
    try:
        return ListedPrice(
            product=str(entry["productName"]),
            meter=str(entry["meterName"]),
            sku=str(entry["skuName"]),
            price=float(entry["retailPrice"]),
            least_units=float(entry.get("tierMinimumUnits") or 0),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BenchFailed(f"{url}: the answer is not a page of prices: {error!r}") from error


def _host(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 -- as urllib's
        """Refuse redirects to other hosts."""


def _read_page(url: str, deadline_s: float) -> dict[str, Any]:
    """Return a page of Azure's price list: JSON with "Items", a list.

    Raises BenchFailed for another answer, one of more than `PAGE_BYTES`, and if reading lasts until *deadline_s*, a
    monotonic time.
    """
    shown = url.partition("?")[0]
    body = b""
    try:
        with build_opener(_NoRedirect).open(url, timeout=max(0.1, deadline_s - time.monotonic())) as answer:
            while part := answer.read1(65_536):
                body += part
                if len(body) > PAGE_BYTES or time.monotonic() > deadline_s:
                    raise BenchFailed(
                        f"{shown}: an answer of more than {PAGE_BYTES:,} bytes, or all of {DEADLINE_S:g} s"
                    )
        page = json.loads(body)
    except HTTPError as error:
        raise BenchFailed(f"{shown}: status {error.code}") from error
    except (OSError, ValueError) as error:
        raise BenchFailed(f"{shown}: {error}") from error
    if not isinstance(page, dict) or not isinstance(page.get("Items"), list):
        raise BenchFailed(f"{shown}: the answer is not a page of prices")
    return page


def _our_redis_sizes() -> Sequence[Mapping[str, Any]]:
    """Return the tables of Redis sizes in our prices file."""
    sizes: Sequence[Mapping[str, Any]] = tomllib.loads(OURS.read_text(encoding="utf-8"))["redis"]
    return sizes


class _Tariff(NamedTuple):
    """A table of the file of prices: its name, the price, and what the price is for."""

    name: str
    amount: float
    per: str


def _tariffs(prices: Mapping[str, float | None]) -> Iterator[_Tariff]:
    """Yield the tables of a file of prices, except those of Redis: name, amount and unit of each price that is known.

    A vCPU costs a share of the price of a machine. Autoscale is written as a factor of the price of manual RU/s.
    """
    for name, meter in METERS.items():
        amount = prices[name]
        if amount is not None and name != "autoscale":
            yield _Tariff(name, amount, meter.per)

    machine = prices["cpu_hour"] or 0
    per = f"vCPU for an hour: a quarter of a Standard_D4s_v5 at {machine:g}"
    yield _Tariff("cpu_hour", machine / MACHINE_CPUS, per)

    factor = AUTOSCALE_FACTOR
    if prices["autoscale"] and prices["ru_hour"]:
        factor = round(prices["autoscale"] / prices["ru_hour"], 6)
    yield _Tariff("autoscale_factor", factor, "price of an autoscale RU/s by that of a manual one")


def _format_prices(
    prices: Mapping[str, float | None],
    node_prices: Mapping[str, float | None],
    *,
    region: str,
    currency: str,
    today: dt.date,
) -> str:
    """Return a file of prices as TOML, without those that are None.

    prices       by the names of METERS, and that of a machine with `MACHINE_CPUS` as "cpu_hour"
    node_prices  of a node of Redis for an hour, by the name of its size
    """
    command = f"hotplate plan --prices-from-azure {region} {currency}"
    origin = f'region = "{region}"\ndate = {today}\nsource = "{RETAIL}"\nbasis = "listed"\nwithin = 0\n'
    lines = [f"{HEAD} of {today}, by {command}", f'currency = "{currency}"', ""]
    for tariff in _tariffs(prices):
        lines += [f"[{tariff.name}]", f"amount = {tariff.amount:.10g}", f'per = "{tariff.per}"', origin]

    for size in _our_redis_sizes():
        price = node_prices[size["name"]]
        if price is not None:
            lines += ["[[redis]]", f'name = "{size["name"]}"', f"amount = {price:.10g}", 'basis = "listed"']
            lines += [*(f"{key} = {size[key]}" for key in ("gb", "vcpus", "shards", "gets_s")), ""]
    lines += ["[redis_quoted]", origin]  # the origin of all sizes of Redis
    return "\n".join(lines)
