"""What a sweep costs on a real account, told before anything is made there."""

import time
from dataclasses import dataclass
from math import ceil

from bench.errors import BenchMisused
from bench.ru.ground import Ground
from bench.ru.scenarios import BESIDE_RU, autoscale_of
from bench.ru.sweep import Course
from stores.prices import Prices

TRIALS = 8
BETWEEN_S = 1.0
"""What a search takes: so many trials, and between two of them the wait for the next second."""

EFFECTS = 10
HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Cost:
    """Containers with their RU/s, how long they are there, and in how many hours of the clock."""

    manual_ru: int
    autoscale_ru: int
    minutes: int
    hours: int
    regions: int
    usd: float
    source: str

    @property
    def told(self) -> list[str]:
        """Say it, a line each."""
        autoscale = f" and {self.autoscale_ru:,} RU/s autoscale" if self.autoscale_ru else ""
        made = f"containers of its own with {self.manual_ru:,} RU/s{autoscale} in {self.regions} region(s)"
        return [
            f"{made}, for some {self.minutes} minutes, then dropped; nothing else is read or changed",
            f"{self.usd:.2f} USD: an hour of the clock is billed at its highest RU/s, and this touches {self.hours}",
            f"price: {self.source}",
        ]


def cost_of(way: Course, prices: Prices) -> Cost:
    """Ask the account for its regions, and work out what a sweep costs there. Raises BenchMisused, StoreError."""
    if way.address is None:
        raise BenchMisused("an emulator costs nothing")
    account = Ground(way.address, own=False).account()
    if account.multiple_write_regions:
        raise BenchMisused(
            "the account has several regions that are written; a sweep's figures would not be those of one"
        )
    return cost(way, len(account.regions), prices, time.time())


def cost(way: Course, regions: int, prices: Prices, now: float) -> Cost:
    """Work it out for a sweep that begins *now*, in seconds since 1970."""
    searches = len(way.levels) * (way.extent.duration_s + BETWEEN_S)
    if way.effects:
        searches += EFFECTS * (max(1.0, way.extent.duration_s // 2) + BETWEEN_S)
    took_s = searches * TRIALS
    hours = int((now + took_s) // HOUR_S - now // HOUR_S) + 1
    manual_ru = way.levels[-1] + (BESIDE_RU if way.effects else 0)
    autoscale_ru = autoscale_of(way.effects_ru).ru if way.effects else 0
    usd = prices.ru_hours(manual_ru * hours, regions=regions)
    usd += prices.ru_hours(autoscale_ru * hours, autoscale=True, regions=regions)
    return Cost(manual_ru, autoscale_ru, ceil(took_s / 60), hours, regions, usd, prices.ru_hour.told)
