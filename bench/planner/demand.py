"""What a cache answers, and what the hottest users and partitions get, by a Zipf law.

The hit rate is Che's approximation for keys by a Zipf law, independent requests and least recently used eviction. A key
stays for a characteristic time T, counted in requests, with sum(1 - exp(-p T)) = entries; the hit rate is the sum of
p (1 - exp(-p T)). H. Che, Y. Tung, Z. Wang, "Hierarchical Web caching systems: modeling, design and experimental
results", IEEE JSAC 20(7), 2002.
"""

from functools import lru_cache
from math import erfc, exp, expm1, inf, log, sqrt
from typing import NamedTuple

# Ranks that are computed one by one; beyond them, keys are grouped whose probabilities differ by about GROUP_WIDTH.
EXACT_RANKS = 1_000
GROUP_WIDTH = 1.01
BISECTIONS = 60
# How the mean of the largest of some normal values is integrated: so many standard deviations to each side, in steps.
WIDTH = 8.0
INTEGRAL_STEPS = 400
SQRT_2 = sqrt(2)


class CacheHits(NamedTuple):
    """What a cache answers: a share of all requests, and a share of those for the hottest key."""

    hit_rate: float
    hottest_hit_rate: float


@lru_cache(64)
def popularity(keys: int, exponent: float) -> tuple[tuple[int, float], ...]:
    """Return groups of (number of keys, probability of each), from the hottest on; exact for the first thousand."""
    groups = [(1, rank**-exponent) for rank in range(1, min(keys, EXACT_RANKS) + 1)]
    low = EXACT_RANKS + 1
    while low <= keys:
        high = min(keys, int(low * GROUP_WIDTH))
        groups.append((high - low + 1, _zipf_integral(low - 0.5, high + 0.5, exponent) / (high - low + 1)))
        low = high + 1
    total = sum(count * weight for count, weight in groups)
    return tuple((count, weight / total) for count, weight in groups)


def hottest_share(keys: int, exponent: float) -> float:
    """Return the share of all requests that goes to the hottest key."""
    return popularity(keys, exponent)[0][1]


@lru_cache(256)
def cache_hits(keys: int, exponent: float, entries: int) -> CacheHits:
    """Return what a cache of *entries* out of *keys* answers."""
    if entries <= 0:
        return CacheHits(0.0, 0.0)
    if entries >= keys:
        return CacheHits(1.0, 1.0)
    groups, stay = popularity(keys, exponent), characteristic_time(keys, exponent, entries)
    hit_rate = sum(count * chance * -expm1(-chance * stay) for count, chance in groups)
    return CacheHits(hit_rate, 1 - exp(-groups[0][1] * stay))


@lru_cache(256)
def characteristic_time(keys: int, exponent: float, entries: int) -> float:
    """Return for how many requests a key stays in a cache of *entries*, fewer than there are *keys*; 0 without one."""
    if entries <= 0:
        return 0.0
    if entries >= keys:
        return inf
    groups = popularity(keys, exponent)
    low, high = 0.0, float(entries)
    while _entries_held(groups, high) < entries:
        low, high = high, high * 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _entries_held(groups, middle) < entries else (low, middle)
    return high


def _entries_held(groups: tuple[tuple[int, float], ...], time: float) -> float:
    return sum(count * -expm1(-chance * time) for count, chance in groups)


def _zipf_integral(low: float, high: float, exponent: float) -> float:
    if abs(exponent - 1) < 1e-9:
        return log(high / low)
    return float((high ** (1 - exponent) - low ** (1 - exponent)) / (1 - exponent))


@lru_cache(256)
def fullest_zipf_share(keys: int, exponent: float, partitions: int, entries: int = 0) -> float:
    """Return the share of requests that the fullest of *partitions* gets, by a Zipf law, behind a cache of *entries*.

    The hash of a key places it, and is not known beforehand: this is the mean over all places. The
    hottest key is counted as it is, and what all others add to a partition as normal with their variance, by one
    integral; it is within 3 % of the mean of random placements.
    """
    groups = popularity(keys, exponent)
    stay = characteristic_time(keys, exponent, entries)
    missed = [(count, chance * exp(-chance * stay)) for count, chance in groups]
    total = sum(count * chance for count, chance in missed)
    if partitions == 1 or total <= 0:
        return 1 / partitions
    hottest = max(chance for _, chance in missed) / total
    variance = sum(count * (chance / total) ** 2 for count, chance in missed) - hottest**2
    if variance <= 0:
        return (1 + hottest * (partitions - 1)) / partitions
    # The load of partition j, times partitions, is 1 - hottest + spread * (Z_j - mean of all Z), with Z_j independent
    # and normal, and hottest * partitions more for the first one.
    spread = sqrt(variance * partitions)
    return (1 - hottest + spread * _mean_of_largest(hottest * partitions / spread, partitions)) / partitions


def _mean_of_largest(ahead: float, count: int) -> float:
    """Return the mean of the largest of *count* standard normal values, of which one is *ahead* of the others."""
    low, high = -WIDTH, ahead + WIDTH
    step = (high - low) / INTEGRAL_STEPS
    below = (_normal(x - ahead) * _normal(x) ** (count - 1) for x in (low + step * n for n in range(INTEGRAL_STEPS)))
    return high - step * (sum(below) + 0.5)  # by the trapezoidal rule, from 0 at the low end to 1 at the high one


def _normal(x: float) -> float:
    return 0.5 * erfc(-x / SQRT_2)
