"""How much an in-process cache of so many lists spares the store, where some users come more often than others.

Keys by a Zipf law, requests independent of each other, least recently used out first: Che's approximation. A key stays
for a characteristic time T, counted in requests, with sum(1 - exp(-p T)) = entries; the hit rate is the sum of
p (1 - exp(-p T)). H. Che, Y. Tung, Z. Wang, "Hierarchical Web caching systems: modeling, design and experimental
results", IEEE JSAC 20(7), 2002.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import exp, expm1, log

EXACT = 1_000
WIDER = 1.01  # beyond the exact ranks, keys are taken together whose chances differ by about so much
STEPS = 60


@dataclass(frozen=True, slots=True)
class Cached:
    """What a cache does: the part of all requests that it answers, and of those for the hottest key."""

    hit_rate: float
    hottest: float


@lru_cache(64)
def popularity(keys: int, exponent: float) -> tuple[tuple[int, float], ...]:
    """Give how many keys have which chance of being asked for, from the hottest on; exact for the first thousand."""
    groups = [(1, rank**-exponent) for rank in range(1, min(keys, EXACT) + 1)]
    low = EXACT + 1
    while low <= keys:
        high = min(keys, int(low * WIDER))
        groups.append((high - low + 1, _integral(low - 0.5, high + 0.5, exponent) / (high - low + 1)))
        low = high + 1
    total = sum(count * weight for count, weight in groups)
    return tuple((count, weight / total) for count, weight in groups)


def hottest_share(keys: int, exponent: float) -> float:
    """Give the part of all requests that asks for the hottest key."""
    return popularity(keys, exponent)[0][1]


@lru_cache(256)
def che(keys: int, exponent: float, entries: int) -> Cached:
    """Say what a cache of *entries* keeps from the store."""
    if entries <= 0:
        return Cached(0.0, 0.0)
    if entries >= keys:
        return Cached(1.0, 1.0)
    groups = popularity(keys, exponent)
    low, high = 0.0, float(entries)
    while _held(groups, high) < entries:
        low, high = high, high * 2
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _held(groups, middle) < entries else (low, middle)
    hit_rate = sum(count * chance * -expm1(-chance * high) for count, chance in groups)
    return Cached(hit_rate, 1 - exp(-groups[0][1] * high))


def _held(groups: tuple[tuple[int, float], ...], time: float) -> float:
    return sum(count * -expm1(-chance * time) for count, chance in groups)


def _integral(low: float, high: float, exponent: float) -> float:
    if abs(exponent - 1) < 1e-9:
        return log(high / low)
    return float((high ** (1 - exponent) - low ** (1 - exponent)) / (1 - exponent))
