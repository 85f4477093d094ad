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
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

from hotplate.bench.errors import BenchFailed, BenchMisused

OURS = Path(__file__).with_name("prices.toml")
# Reliability of a price, and default error bound.
BASES = {"listed": "a list price", "quoted": "QUOTED BY OTHERS, NOT CHECKED", "assumed": "ASSUMED, NO PRICE WAS FOUND"}
WITHIN = {"listed": 0.1, "quoted": 0.2, "assumed": 0.5}
DAYS_A_MONTH = 365.25 / 12
HOURS_A_MONTH = 730  # as in Azure's estimates
RETAIL = "https://prices.azure.com/api/retail/prices"
COSMOS = "serviceName eq 'Azure Cosmos DB'"
MACHINES = "serviceName eq 'Virtual Machines' and armSkuName eq 'Standard_D4s_v5'"
REDIS = "serviceName eq 'Redis Cache' and contains(productName,'Managed Redis')"
MACHINE_CPUS = 4
OTHERS = re.compile("Windows|Spot|Low Priority")  # machines other than Linux at full price
AUTOSCALE_FACTOR = 1.5
HEAD = "# Azure's retail prices"
DEADLINE_S = 60.0  # for all requests
PAGES = 50
PAGE_BYTES = 4_000_000
# Cosmos DB prices: product, meter and unit.
METERS = {
    "ru_hour": ("Azure Cosmos DB", "100 RU/s", "100 RU/s provisioned for an hour, in each region"),
    "autoscale": ("Azure Cosmos DB autoscale", "100 RU/s", "100 RU/s of autoscale for an hour, in each region"),
    "serverless_million_ru": ("Azure Cosmos DB serverless", "1M RUs", "1,000,000 RU that were used"),
    "storage_gb_month": ("Azure Cosmos DB", "Data Stored", "GB of items for a month, in each region"),
}
MUST_HAVE = ("ru_hour", "storage_gb_month", "cpu_hour")


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
    """A size of Azure Managed Redis; `hour` is the price of a node and hour."""

    name: str
    gb: float
    vcpus: int
    shards: int
    gets_per_s: float
    hour: Price


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
        sizes = tuple(replace(size, hour=size.hour.moved(direction)) for size in self.redis)
        moved: dict[str, Any] = {name: price.moved(direction) for name, price in self.by_name().items()}
        return replace(self, redis=sizes, **moved)


REQUIRED = ("ru_hour", "autoscale_factor", "storage_gb_month", "cpu_hour")
OPTIONAL = ("serverless_million_ru", "redis_gb_hour", "disk_gb_month")


def load(path: Path = OURS) -> Prices:
    """Read a file of prices. Raises PricesUnreadable."""
    try:
        return parse(path.read_text())
    except OSError as error:
        raise PricesUnreadable(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise PricesUnreadable(f"{path}: {error.args[0]} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise PricesUnreadable(f"{path}: {error}") from error


def parse(text: str) -> Prices:
    """Parse a file of prices, sizes of Redis in ascending order. Raises KeyError, TypeError or ValueError."""
    tables = tomllib.loads(text)
    currency = tables["currency"]
    if not isinstance(currency, str) or len(currency) != 3 or not currency.isalpha() or not currency.isupper():
        raise ValueError(f"currency is {currency!r}, and must be three letters, as USD or EUR")
    prices: dict[str, Any] = {name: _price(tables[name], name) for name in REQUIRED}
    prices |= {name: _price(tables[name], name) if name in tables else None for name in OPTIONAL}
    per_gb = prices["redis_gb_hour"]
    quoted = tables.get("redis_quoted", {})
    sizes = [_size(table, per_gb, quoted) for table in tables.get("redis", ())]
    return Prices(currency, **prices, redis=tuple(sorted(sizes, key=lambda size: size.gb)))


def _price(table: Mapping[str, Any], name: str) -> Price:
    """Return the price of a table of the file. Raises TypeError or ValueError that names it."""
    try:
        per, region, source, basis = (str(table[key]) for key in ("per", "region", "source", "basis"))
        day = table["date"]
        amount = float(table["amount"])
    except KeyError as error:
        raise ValueError(f"{name} has no {error.args[0]}") from error
    if basis not in BASES:
        raise ValueError(f"basis of {name} is {basis!r}, and must be {', '.join(BASES)}")
    if not isinstance(day, dt.date) or isinstance(day, dt.datetime):
        raise TypeError(f"date of {name} is {day!r}, and must be a TOML date, as 2026-11-20 without quotes")
    within = float(table.get("within", WITHIN[basis]))
    price = Price(amount=amount, per=per, region=region, date=day, source=source, basis=basis, within=within)
    if not 0 <= price.amount < float("inf"):
        raise ValueError(f"amount of {name} is {price.amount:g}, and must be 0 or more")
    if not 0 <= price.within < 1:
        raise ValueError(f"within of {name} is {price.within:g}, and is a share of the price, less than 1")
    if not price.source:
        raise ValueError(f"{name} needs a source")
    return price


def _size(table: Mapping[str, Any], per_gb: Price | None, quoted: Mapping[str, Any]) -> RedisSize:
    """Return a size of Redis, an instance with GB, vCPUs, shards and a price, from its table of a prices file.

    per_gb  the price of a GB and hour, for a size without a price; None if the file has none
    quoted  source, date and basis of all sizes, as far as their tables have none

    Raises KeyError, TypeError or ValueError for an invalid table.
    """
    name = str(table["name"])
    gb = float(table["gb"])
    if gb <= 0:
        raise ValueError(f"redis {name} must have more than 0 GB")
    per = f"node of {name} for an hour"
    if "amount" in table:
        hour = _price({"per": per, **quoted, **table}, name)
    elif per_gb is None:
        raise ValueError(f"redis {name} has no amount, and there is no redis_gb_hour")
    else:
        hour = replace(per_gb, amount=gb * per_gb.amount, per=f"{per}: {gb:g} GB at {per_gb.amount:g}")
    return RedisSize(
        name=name,
        gb=gb,
        vcpus=int(table["vcpus"]),
        shards=int(table["shards"]),
        gets_per_s=float(table["gets_s"]),
        hour=hour,
    )


@dataclass(frozen=True, slots=True)
class Item:
    """An entry of Azure's price list."""

    product: str
    meter: str
    sku: str
    price: float
    tier: float


def write_prices(region: str, currency: str, path: Path, today: dt.date) -> list[str]:
    """Write Azure's prices to *path*; return the names of missing ones.

    Raises BenchMisused instead of overwriting another file.
    """
    if path.exists() and not path.read_text(errors="replace").startswith(HEAD):
        raise BenchMisused(
            f"--prices: {path} exists and is not from Azure's price list; name another file, or remove it"
        )
    text, missing = fetch_prices(region, currency, today, RETAIL)
    path.write_text(text)
    return missing


def fetch_prices(region: str, currency: str, today: dt.date, url: str) -> tuple[str, list[str]]:
    """Return the text of a price file, and the names of missing prices.

    Raises BenchMisused for an invalid region or currency, BenchFailed if the request fails or an essential price is
    missing.
    """
    if not re.fullmatch(r"[a-z0-9]{2,40}", region):
        raise BenchMisused(f"--prices-from-azure: {region!r} is not a region's name, such as westeurope")
    if not re.fullmatch(r"[A-Z]{3}", currency):
        raise BenchMisused(f"--prices-from-azure: {currency!r} is not a currency, such as EUR")
    deadline_s = time.monotonic() + DEADLINE_S
    where = f"armRegionName eq '{region}' and priceType eq 'Consumption'"
    cosmos, machines, redis = (
        list(_items(url, f"{service} and {where}", currency, deadline_s)) for service in (COSMOS, MACHINES, REDIS)
    )
    prices = {
        name: _only(item for item in cosmos if (item.product, item.meter) == (product, meter))
        for name, (product, meter, _) in METERS.items()
    }
    prices["cpu_hour"] = _only(item for item in machines if not OTHERS.search(f"{item.product} {item.sku}"))
    balanced = [item for item in redis if "Balanced" in item.product]
    sizes = {size["name"]: _only(item for item in balanced if item.sku == size["name"]) for size in _redis_sizes()}
    missing = [name for name, price in {**prices, **sizes}.items() if price is None]
    if lacking := [name for name in MUST_HAVE if name in missing]:
        raise BenchFailed(
            f"Azure's price list has no {', '.join(lacking)} for {region} in {currency}: is that its name?"
        )
    return _to_toml(prices, sizes, f"{region} {currency}", today), missing


def _only(items: Iterable[Item]) -> float | None:
    """Return the price that all items agree on, without free ones and those of higher tiers; None if they do not."""
    prices = {item.price for item in items if item.price > 0 and not item.tier}
    return prices.pop() if len(prices) == 1 else None


def _items(url: str, condition: str, currency: str, deadline_s: float) -> Iterator[Item]:
    """Yield the entries that meet a *condition* in OData, of all pages, until a monotonic time in seconds.

    Raises BenchFailed for prices in another currency, too many pages, or a page on another host.
    """
    query = urlencode({"currencyCode": f"'{currency}'", "$filter": condition})
    following = f"{url}?{query}"
    for _ in range(PAGES):
        page = _page(following, deadline_s)
        if page.get("BillingCurrency") != currency:
            raise BenchFailed(f"{url}: prices are in {str(page.get('BillingCurrency'))[:20]}, not in {currency}")
        yield from (_item(entry, url) for entry in page["Items"])
        following = str(page.get("NextPageLink") or "")
        if not following:
            return
        if _host(following) != _host(url):
            raise BenchFailed(f"{url}: the next page is on another host, {urlsplit(following).netloc[:80]}")
    raise BenchFailed(f"{url}: more than {PAGES} pages for {condition}")


def _item(entry: Any, url: str) -> Item:  # noqa: ANN401 -- JSON
    try:
        product, meter, sku = (str(entry[name]) for name in ("productName", "meterName", "skuName"))
        return Item(product, meter, sku, float(entry["retailPrice"]), float(entry.get("tierMinimumUnits") or 0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BenchFailed(f"{url}: the answer is not a page of prices: {error!r}") from error


def _host(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 -- as urllib's
        """Refuse redirects to other hosts."""


def _page(url: str, deadline_s: float) -> dict[str, Any]:
    """Return a page of the list, bounded in bytes and by a monotonic time in seconds. Raises BenchFailed."""
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


def _redis_sizes() -> Sequence[Mapping[str, Any]]:
    sizes: Sequence[Mapping[str, Any]] = tomllib.loads(OURS.read_text())["redis"]
    return sizes


def _to_toml(prices: Mapping[str, float | None], sizes: Mapping[str, float | None], where: str, today: dt.date) -> str:
    """Return a file of prices.

    prices  amounts by the names of METERS, and of a machine as `cpu_hour`; None is left out
    sizes   prices of a node and hour, by the name of a size of Redis
    where   region and currency
    """
    region, currency = where.split()
    origin = f'region = "{region}"\ndate = {today}\nsource = "{RETAIL}"\nbasis = "listed"\nwithin = 0\n'
    tables = {name: (prices[name], per) for name, (_, _, per) in METERS.items() if name != "autoscale"}
    machine = prices["cpu_hour"] or 0
    tables["cpu_hour"] = machine / MACHINE_CPUS, f"vCPU for an hour: a quarter of a Standard_D4s_v5 at {machine:g}"
    ru_hour = prices["ru_hour"]
    autoscale = prices["autoscale"]
    factor = round(autoscale / ru_hour, 6) if autoscale and ru_hour else AUTOSCALE_FACTOR
    tables["autoscale_factor"] = factor, "price of an autoscale RU/s by that of a manual one"
    lines = [f"{HEAD} of {today}, by hotplate plan --prices-from-azure {where}", f'currency = "{currency}"', ""]
    for name, (amount, per) in tables.items():
        if amount is not None:
            lines += [f"[{name}]", f"amount = {amount:.10g}", f'per = "{per}"', origin]
    for size in _redis_sizes():
        if (price := sizes[size["name"]]) is not None:
            lines += ["[[redis]]", f'name = "{size["name"]}"', f"amount = {price:.10g}", 'basis = "listed"']
            lines += [*(f"{name} = {size[name]}" for name in ("gb", "vcpus", "shards", "gets_s")), ""]
    return "\n".join([*lines, "[redis_quoted]", origin])
