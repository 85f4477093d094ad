"""What things cost: prices with a source, a date and a region each, from one file.

`prices.toml` next to this module is that file; users put their own in its place.
"""

import datetime as dt
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hotplate.bench.errors import BenchMisused

OURS = Path(__file__).with_name("prices.toml")
# How reliable a price is: by the word in the file, and as people read it; and how far off it may well be, if the file
# does not say: list prices differ by region and day, what others quote by what they left out.
BASES = {"listed": "a list price", "quoted": "QUOTED BY OTHERS, NOT CHECKED", "assumed": "ASSUMED, NO PRICE WAS FOUND"}
WITHIN = {"listed": 0.1, "quoted": 0.2, "assumed": 0.5}
DAYS_A_MONTH = 365.25 / 12
# A twelfth of 8,760, as Azure's own estimates have it.
HOURS_A_MONTH = 730


class PricesUnreadable(BenchMisused):
    """The file of prices is missing, or something in it is; the sentence names both."""


@dataclass(frozen=True, slots=True)
class Price:
    """One price in USD, and its basis: `listed` by Microsoft, `quoted` by a third party, or `assumed`."""

    usd: float
    per: str
    region: str
    date: str
    """YYYY, YYYY-MM or YYYY-MM-DD, and words after it."""

    source: str
    basis: str
    within: float
    """By which share of it the true price may well be lower or higher: another region, or another day."""

    @property
    def provenance(self) -> str:
        """Where it comes from, in one line."""
        return f"{BASES[self.basis]}: {self.region}, {self.date}, ±{self.within:.0%}, {self.source}"

    def age(self, today: dt.date) -> str:
        """Say how old it is; nothing if its date is not one."""
        found = re.match(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?", self.date)
        if found is None:
            return ""
        year, month, day = (int(part or 1) for part in found.groups())
        months = (today - dt.date(year, month, day)).days / DAYS_A_MONTH
        return f"{months / 12:.1f} years old" if months >= 12 else f"{max(0, round(months))} months old"

    def moved(self, direction: int) -> "Price":
        """Return it as high (1), or as low (-1), as it may well be."""
        return replace(self, usd=self.usd * (1 + direction * self.within))


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
    """All prices; lives as long as what is calculated with it."""

    ru_hour: Price
    autoscale_factor: Price
    serverless_million_ru: Price
    storage_gb_month: Price
    cpu_hour: Price
    redis_gb_hour: Price
    redis: tuple[Size, ...]
    """From the smallest to the largest."""

    def by_name(self) -> dict[str, Price]:
        """Return the prices but those of sizes of Redis."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "redis"}

    def ru_hours(self, ru_hours: float, *, autoscale: bool = False, regions: int = 1) -> float:
        """Return USD for RU/s by the hour: 400 RU/s for 2 hours are 800."""
        return ru_hours / 100 * self.ru_hour.usd * (self.autoscale_factor.usd if autoscale else 1) * regions

    def moved(self, direction: int) -> "Prices":
        """Return all prices as high (1), or as low (-1), as they may well be."""
        sizes = tuple(replace(size, hour=size.hour.moved(direction)) for size in self.redis)
        return replace(self, redis=sizes, **{name: each.moved(direction) for name, each in self.by_name().items()})


def load(path: Path = OURS) -> Prices:
    """Read a file of prices; PricesUnreadable names the file and what is wrong with it."""
    try:
        tables = tomllib.loads(path.read_text())
        per_gb = _price(tables["redis_gb_hour"], "redis_gb_hour")
        sizes = [_size(each, per_gb, tables.get("redis_quoted", {})) for each in tables["redis"]]
        prices = {each.name: _price(tables[each.name], each.name) for each in fields(Prices) if each.name != "redis"}
        return Prices(**prices, redis=tuple(sorted(sizes, key=lambda size: size.gb)))
    except OSError as error:
        raise PricesUnreadable(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise PricesUnreadable(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise PricesUnreadable(f"{path}: {error}") from error


def _price(found: Mapping[str, Any], name: str) -> Price:
    try:
        per, region, day, source, basis = (str(found[each]) for each in ("per", "region", "date", "source", "basis"))
        usd = float(found["usd"])
    except KeyError as error:
        raise ValueError(f"{name} has no {error.args[0]}") from error
    if basis not in BASES:
        raise ValueError(f"basis of {name} is {basis!r}, and must be {', '.join(BASES)}")
    price = Price(usd, per, region, day, source, basis, float(found.get("within", WITHIN[basis])))
    if not price.usd >= 0:
        raise ValueError(f"{name} is {price.usd}, and a price is 0 or more")
    if not 0 <= price.within < 1:
        raise ValueError(f"within of {name} is {price.within:g}, and is a share of the price, less than 1")
    if not price.date or not price.source:
        raise ValueError(f"{name} needs a date and a source")
    price.age(dt.date.max)  # ValueError for a day that does not exist
    return price


def _size(found: Mapping[str, Any], per_gb: Price, quoted: Mapping[str, Any]) -> Size:
    """Read one size; one without a price takes the assumed price of its GB, marked as assumed."""
    name, gb = str(found["name"]), float(found["gb"])
    if gb <= 0:
        raise ValueError(f"redis {name} must have more than 0 GB")
    per = f"node of {name} for an hour"
    if "usd" in found:
        hour = _price({"per": per, **quoted, **found}, name)
    else:
        hour = replace(per_gb, usd=gb * per_gb.usd, per=f"{per}: {gb:g} GB at {per_gb.usd:g}")
    return Size(name, gb, int(found["vcpus"]), int(found["shards"]), float(found["gets_s"]), hour)
