"""What things cost: prices with a source, a date and a region each, from one file.

`prices.toml` next to this module is that file; users put their own in its place.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchMisused

OURS = Path(__file__).with_name("prices.toml")
LISTED = "a list price"
# How reliable a price is: by the word in the file, and as people read it.
BASES = {"listed": LISTED, "quoted": "QUOTED BY OTHERS, NOT CHECKED", "assumed": "ASSUMED, NO PRICE WAS FOUND"}
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
    source: str
    basis: str

    @property
    def provenance(self) -> str:
        """Where it comes from, in one line."""
        return f"{BASES[self.basis]}: {self.region}, {self.date}, {self.source}"


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

    def ru_hours(self, ru_hours: float, *, autoscale: bool = False, regions: int = 1) -> float:
        """Return USD for RU/s by the hour: 400 RU/s for 2 hours are 800."""
        return ru_hours / 100 * self.ru_hour.usd * (self.autoscale_factor.usd if autoscale else 1) * regions

    def serverless_ru(self, ru: float) -> float:
        """Return USD for RU that were used without any being provisioned."""
        return ru / 1e6 * self.serverless_million_ru.usd


def load(path: Path = OURS) -> Prices:
    """Read a file of prices; PricesUnreadable names the file and what is wrong with it."""
    try:
        tables = tomllib.loads(path.read_text())
        per_gb = _price(tables, "redis_gb_hour")
        sizes = [_size(each, per_gb, tables.get("redis_quoted", {})) for each in tables["redis"]]
        names = ("ru_hour", "autoscale_factor", "serverless_million_ru", "storage_gb_month", "cpu_hour")
        return Prices(
            **{name: _price(tables, name) for name in names},
            redis_gb_hour=per_gb,
            redis=tuple(sorted(sizes, key=lambda size: size.gb)),
        )
    except OSError as error:
        raise PricesUnreadable(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise PricesUnreadable(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise PricesUnreadable(f"{path}: {error}") from error


def _price(tables: Mapping[str, Any], name: str) -> Price:
    fields = tables[name]
    try:
        return _checked(
            Price(float(fields["usd"]), *(str(fields[each]) for each in ("per", "region", "date", "source", "basis"))),
            name,
        )
    except KeyError as error:
        raise ValueError(f"{name} has no {error.args[0]}") from error


def _size(fields: Mapping[str, Any], per_gb: Price, quoted: Mapping[str, Any]) -> Size:
    """Read one size; one without a price takes the assumed price of its GB, marked as assumed."""
    name, gb = str(fields["name"]), float(fields["gb"])
    if gb <= 0:
        raise ValueError(f"redis {name} must have more than 0 GB")
    if "usd" in fields:
        region, date, source = (str(fields.get(each, quoted.get(each, ""))) for each in ("region", "date", "source"))
        hour = Price(float(fields["usd"]), f"node of {name} for an hour", region, date, source, str(fields["basis"]))
    else:
        per = f"node of {name} for an hour: {gb:g} GB at {per_gb.usd:g}"
        hour = Price(gb * per_gb.usd, per, per_gb.region, per_gb.date, per_gb.source, "assumed")
    return Size(name, gb, int(fields["vcpus"]), int(fields["shards"]), float(fields["gets_s"]), _checked(hour, name))


def _checked(price: Price, name: str) -> Price:
    if price.basis not in BASES:
        raise ValueError(f"basis of {name} is {price.basis!r}, and must be {', '.join(BASES)}")
    if not price.usd >= 0:
        raise ValueError(f"{name} is {price.usd}, and a price is 0 or more")
    if not price.date or not price.source:
        raise ValueError(f"{name} needs a date and a source")
    return price
