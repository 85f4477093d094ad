"""What things cost: prices with a source, a date and a region each, from one file.

`prices.toml` next to this module is the default; `bench/azure_prices.py` writes such a file from Azure's price list.
"""

import datetime as dt
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hotplate.bench.errors import BenchMisused

OURS = Path(__file__).with_name("prices.toml")
# How reliable a price is, and how far off it may be if the file does not say: list prices differ by region and day.
BASES = {"listed": "a list price", "quoted": "QUOTED BY OTHERS, NOT CHECKED", "assumed": "ASSUMED, NO PRICE WAS FOUND"}
WITHIN = {"listed": 0.1, "quoted": 0.2, "assumed": 0.5}
DAYS_A_MONTH = 365.25 / 12
# A twelfth of 8,760, as Azure's own estimates have it.
HOURS_A_MONTH = 730


class PricesUnreadable(BenchMisused):
    """The file of prices is missing, or something in it is wrong; the sentence names both."""


@dataclass(frozen=True, slots=True)
class Price:
    """One price in the currency of its file, and its basis: `listed`, `quoted` by a third party, or `assumed`."""

    amount: float
    per: str
    region: str
    date: dt.date
    source: str
    basis: str
    within: float
    """By which share the true price may be lower or higher: another region, or another day."""

    @property
    def provenance(self) -> str:
        """Its origin in one line."""
        return f"{BASES[self.basis]}: {self.region}, {self.date}, ±{self.within:.0%}, {self.source}"

    def age(self, today: dt.date) -> str:
        """Say how old it is."""
        months = (today - self.date).days / DAYS_A_MONTH
        return f"{months / 12:.1f} years old" if months >= 12 else f"{max(0, round(months))} months old"

    def moved(self, direction: int) -> "Price":
        """Return it as high (1), or as low (-1), as it may be."""
        return replace(self, amount=self.amount * (1 + direction * self.within))


@dataclass(frozen=True, slots=True)
class Size:
    """One size of a managed Redis; `hour` is the price of one node and hour."""

    name: str
    gb: float
    vcpus: int
    shards: int
    gets_s: float
    hour: Price


@dataclass(frozen=True, slots=True)
class Prices:
    """All prices of one file; None is a price that the file lacks."""

    currency: str
    ru_hour: Price
    autoscale_factor: Price
    storage_gb_month: Price
    cpu_hour: Price
    serverless_million_ru: Price | None
    redis_gb_hour: Price | None
    redis: tuple[Size, ...]
    """From the smallest to the largest."""

    def by_name(self) -> dict[str, Price]:
        """Return the prices that there are, but those of sizes of Redis."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: price for name, price in found.items() if isinstance(price, Price)}

    def ru_hours(self, ru_hours: float, *, autoscale: bool = False, regions: int = 1) -> float:
        """Return the cost of RU/s by the hour: 400 RU/s for 2 hours are 800."""
        return ru_hours / 100 * self.ru_hour.amount * (self.autoscale_factor.amount if autoscale else 1) * regions

    def moved(self, direction: int) -> "Prices":
        """Return all prices as high (1), or as low (-1), as they may be."""
        sizes = tuple(replace(size, hour=size.hour.moved(direction)) for size in self.redis)
        moved: dict[str, Any] = {name: each.moved(direction) for name, each in self.by_name().items()}
        return replace(self, redis=sizes, **moved)


REQUIRED = ("ru_hour", "autoscale_factor", "storage_gb_month", "cpu_hour")
OPTIONAL = ("serverless_million_ru", "redis_gb_hour")


def load(path: Path = OURS) -> Prices:
    """Read a file of prices; PricesUnreadable names the file and what is wrong with it."""
    try:
        return parse(path.read_text())
    except OSError as error:
        raise PricesUnreadable(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise PricesUnreadable(f"{path}: {error.args[0]} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise PricesUnreadable(f"{path}: {error}") from error


def parse(text: str) -> Prices:
    """Read the text of a file of prices. Raises KeyError, TypeError or ValueError."""
    tables = tomllib.loads(text)
    currency = tables["currency"]
    if not isinstance(currency, str) or len(currency) != 3 or not currency.isalpha() or not currency.isupper():
        raise ValueError(f"currency is {currency!r}, and must be three letters, as USD or EUR")
    prices: dict[str, Any] = {name: _price(tables[name], name) for name in REQUIRED}
    prices |= {name: _price(tables[name], name) if name in tables else None for name in OPTIONAL}
    sizes = [_size(each, prices["redis_gb_hour"], tables.get("redis_quoted", {})) for each in tables.get("redis", ())]
    return Prices(currency, **prices, redis=tuple(sorted(sizes, key=lambda size: size.gb)))


def _price(found: Mapping[str, Any], name: str) -> Price:
    try:
        per, region, source, basis = (str(found[each]) for each in ("per", "region", "source", "basis"))
        day, amount = found["date"], float(found["amount"])
    except KeyError as error:
        raise ValueError(f"{name} has no {error.args[0]}") from error
    if basis not in BASES:
        raise ValueError(f"basis of {name} is {basis!r}, and must be {', '.join(BASES)}")
    if not isinstance(day, dt.date) or isinstance(day, dt.datetime):
        raise TypeError(f"date of {name} is {day!r}, and must be a TOML date, as 2026-11-20 without quotes")
    price = Price(amount, per, region, day, source, basis, float(found.get("within", WITHIN[basis])))
    if not 0 <= price.amount < float("inf"):
        raise ValueError(f"amount of {name} is {price.amount:g}, and must be 0 or more")
    if not 0 <= price.within < 1:
        raise ValueError(f"within of {name} is {price.within:g}, and is a share of the price, less than 1")
    if not price.source:
        raise ValueError(f"{name} needs a source")
    return price


def _size(found: Mapping[str, Any], per_gb: Price | None, quoted: Mapping[str, Any]) -> Size:
    """Read one size; one without a price takes the price of its GB, which is an assumption."""
    name, gb = str(found["name"]), float(found["gb"])
    if gb <= 0:
        raise ValueError(f"redis {name} must have more than 0 GB")
    per = f"node of {name} for an hour"
    if "amount" in found:
        hour = _price({"per": per, **quoted, **found}, name)
    elif per_gb is None:
        raise ValueError(f"redis {name} has no amount, and there is no redis_gb_hour")
    else:
        hour = replace(per_gb, amount=gb * per_gb.amount, per=f"{per}: {gb:g} GB at {per_gb.amount:g}")
    return Size(name, gb, int(found["vcpus"]), int(found["shards"]), float(found["gets_s"]), hour)
