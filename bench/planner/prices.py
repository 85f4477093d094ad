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
from urllib.parse import urlencode
from urllib.request import build_opener

import msgspec
from msgspec import Meta

from hotplate.bench.errors import BenchFailed, BenchMisused

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
# Of the parts of Azure's list that have our prices.
FILTERS = (
    "serviceName eq 'Azure Cosmos DB'",
    "serviceName eq 'Virtual Machines' and armSkuName eq 'Standard_D4s_v5'",
    "serviceName eq 'Redis Cache' and contains(productName,'Managed Redis')",
)
REDIS_PRODUCT = "Azure Managed Redis - Balanced"
HEAD = "# Azure's retail prices"
TIMEOUT_S = 60.0
PAGES = 50
PAGE_BYTES = 4_000_000
MOST = 1e12  # of any number in the file
# A price that Azure's list is not asked for: it is of sizes of Redis without one.
NOT_ASKED = "redis_gb_hour"
ESSENTIAL_PRICES = ("ru_hour", "autoscale_factor", "storage_gb_month", "cpu_hour")


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
    """Product and meter in Azure's list; that of a node of Redis is named by its size."""

    meter_units: Positive = 1.0
    """Units of the price in one of the meter, as vCPUs of a machine."""

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


# The prices that a file may have: those of ours.
_NAMES = [name for name, table in tomllib.loads(OURS.read_text()).items() if "amount" in table]
PriceFile = msgspec.defstruct(
    "PriceFile",
    [
        ("currency", str),
        *((name, Price) if name in ESSENTIAL_PRICES else (name, Price, None) for name in _NAMES),
        # Keys for the prices of all sizes of Redis.
        ("redis_quoted", dict[str, Any], {}),
        ("redis", tuple[dict[str, Any], ...], ()),
    ],
    kw_only=True,
    forbid_unknown_fields=True,
)
"""The tables of a file of prices."""


def load(path: Path = OURS) -> Prices:
    """Read a file of prices. Raises PricesUnreadable."""
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PricesUnreadable(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise PricesUnreadable(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise PricesUnreadable(f"{path}: {error}") from error


def parse(text: str) -> Prices:
    """Return the prices in the text of a TOML file, with the sizes of Redis sorted by memory.

    A price is a table, as [ru_hour]; each [[redis]] is a size of Redis, and [redis_quoted] has keys for all of them.
    Raises KeyError, TypeError or ValueError for a missing or invalid one.
    """
    tables = tomllib.loads(text)
    msgspec.convert(tables, PriceFile)  # raises it, with the name of the table
    named = {name: tables[name] for name in _NAMES if name in tables}
    sizes = [size | {"node_hour": _price_of_node(size, tables)} for size in tables.get("redis", ())]
    prices = msgspec.convert({"currency": tables["currency"], "named": named, "redis": sizes}, Prices)
    if len({size.name for size in prices.redis}) < len(sizes):
        raise ValueError("two sizes of Redis have the same name")
    return replace(prices, redis=tuple(sorted(prices.redis, key=lambda size: size.gb)))


def _price_of_node(size: Mapping[str, Any], tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the price of a node of a size of Redis for an hour, as a table: its own, or that of its GB.

    *tables* are those of the file.
    """
    origin = {"per": f"node of {size['name']} for an hour", "meter": (REDIS_PRODUCT, size["name"])}
    if "amount" in size:
        return {**origin, **tables.get("redis_quoted", {}), **size}
    if "redis_gb_hour" not in tables:
        raise ValueError(f"redis {size['name']} has no amount, and there is no redis_gb_hour")
    of_gb = tables["redis_gb_hour"]["amount"]
    per = f"{origin['per']}: {size['gb']:g} GB at {of_gb:g}"
    return {**tables["redis_gb_hour"], **origin, "amount": size["gb"] * of_gb, "per": per}


class ListedPrice(msgspec.Struct, frozen=True, rename="camel"):
    """An entry of Azure's price list; it applies from `tier_minimum_units` on, 0 but for discounts."""

    product_name: str
    meter_name: str
    sku_name: str
    retail_price: float
    tier_minimum_units: float | None = None

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """The product with the meter, and with the size."""
        return (self.product_name, self.meter_name), (self.product_name, self.sku_name)


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
    place = f"armRegionName eq '{region}' and priceType eq 'Consumption'"
    listed = [entry for products in FILTERS for entry in _listed_prices(url, f"{products} and {place}", currency)]

    ours = load()
    asked = {**ours.named, **{size.name: size.node_hour for size in ours.redis}}
    agreed = {name: _agreed_price(price, listed) for name, price in asked.items()}
    amounts = {name: amount for name, amount in agreed.items() if amount is not None}
    essential = [name for name in ESSENTIAL_PRICES if name not in amounts]
    if essential:
        raise BenchFailed(
            f"Azure's price list has no {', '.join(essential)} for {region} in {currency}: is that its name?"
        )
    amounts["autoscale_factor"] = round(amounts["autoscale_factor"] / amounts["ru_hour"], 6)

    origin = {"region": region, "date": str(today), "source": RETAIL, "basis": "listed", "within": 0}
    head = f'{HEAD} of {today}, by hotplate plan --prices-from-azure {region} {currency}\ncurrency = "{currency}"\n'
    text = "\n".join([head, *_tables(ours, amounts, origin)])
    return text, [name for name in asked if name not in amounts and name != NOT_ASKED]


def _check_region(region: str, currency: str) -> None:
    if not re.fullmatch(r"[a-z0-9]{2,40}", region):
        raise BenchMisused(f"--prices-from-azure: {region!r} is not a region's name, such as westeurope")
    if not re.fullmatch(r"[A-Z]{3}", currency):
        raise BenchMisused(f"--prices-from-azure: {currency!r} is not a currency, such as EUR")


def _agreed_price(price: Price, listed: Iterable[ListedPrice]) -> float | None:
    """Return the price in which all entries of its meter agree, besides free ones and discounts; None without one."""
    entries = [entry for entry in listed if price.meter in entry.names]
    prices = {entry.retail_price for entry in entries if entry.retail_price > 0 and not entry.tier_minimum_units}
    return prices.pop() / price.meter_units if len(prices) == 1 else None


def _listed_prices(url: str, condition: str, currency: str) -> Iterator[ListedPrice]:
    """Yield the entries of Azure's price list at *url* that meet a *condition* in OData, of all its pages.

    Raises BenchFailed for prices in another currency, or too many pages.
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
    raise BenchFailed(f"{url}: more than {PAGES} pages for {condition}")


def _read_page(url: str) -> PricePage:
    """Return a page of Azure's price list. Raises BenchFailed for another answer, or one of more than PAGE_BYTES."""
    shown = url.partition("?")[0]
    try:
        with build_opener().open(url, timeout=TIMEOUT_S) as answer:
            return msgspec.json.decode(answer.read(PAGE_BYTES), type=PricePage)
    except HTTPError as error:
        raise BenchFailed(f"{shown}: status {error.code}") from error
    except OSError as error:
        raise BenchFailed(f"{shown}: {error}") from error
    except ValueError as error:
        raise BenchFailed(f"{shown}: the answer is not a page of prices: {error}") from error


def _tables(ours: Prices, amounts: Mapping[str, float], origin: Mapping[str, object]) -> Iterator[str]:
    """Yield the tables of a file of prices as TOML, of those with an amount.

    *ours* says what a price is for, and what a size of Redis has; *origin* has the keys that all have in common.
    """
    for name, price in ours.named.items():
        if name in amounts:
            yield _format_table(f"[{name}]", {"amount": amounts[name], "per": price.per, **origin})
    for size in ours.redis:
        if size.name in amounts:
            kept = {key: getattr(size, key) for key in ("name", "gb", "vcpus", "shards", "gets_s")}
            yield _format_table("[[redis]]", {**kept, "amount": amounts[size.name]})
    yield _format_table("[redis_quoted]", origin)


def _format_table(heading: str, values: Mapping[str, object]) -> str:
    """Return a table of TOML; texts and numbers are written as in JSON."""
    return "\n".join([heading, *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""])
