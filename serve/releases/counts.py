"""Counts of the releases that are compared: of a canary and the live release by role, and of each live release."""

from collections.abc import Callable
from operator import add, sub
from typing import NamedTuple

import msgspec

from hotplate.serve.metrics import (
    BUCKETS_S,
    CANARY,
    CANARY_LOOKUPS,
    CLICKS,
    HISTOGRAM_CELLS,
    IMPRESSIONS,
    LIVE,
    LOOKUP_OUTCOMES,
    OPERATIONS,
    POSITIONS,
    Metrics,
    ReleaseRole,
)
from hotplate.stores.catalogue import ReleaseRef

NO_READS = (0.0,) * (len(BUCKETS_S) + 1)


class ReleaseCounts(NamedTuple):
    """Lookups by outcome, lists shown, clicks, and reads by bucket."""

    hit: float = 0
    miss: float = 0
    error: float = 0
    shown: float = 0
    clicks: float = 0
    reads: tuple[float, ...] = NO_READS

    @property
    def lookups(self) -> float:
        """All lookups."""
        return self.hit + self.miss + self.error

    def plus(self, other: "ReleaseCounts") -> "ReleaseCounts":
        """Return the sum of both."""
        return self._combined(add, other)

    def since(self, before: "ReleaseCounts") -> "ReleaseCounts":
        """Return the difference to *before*."""
        return self._combined(sub, before)

    def _combined(self, operation: Callable[[float, float], float], other: "ReleaseCounts") -> "ReleaseCounts":
        *numbers, reads = self
        *other_numbers, other_reads = other
        combined_reads = tuple(map(operation, reads, other_reads))
        return ReleaseCounts._make([*map(operation, numbers, other_numbers), combined_reads])


class BothCounts(NamedTuple):
    """Counts of the live release and the canary in all workers."""

    live: ReleaseCounts = ReleaseCounts()
    canary: ReleaseCounts = ReleaseCounts()

    def since(self, before: "BothCounts") -> "BothCounts":
        """Return the difference to *before*."""
        return BothCounts(self.live.since(before.live), self.canary.since(before.canary))


def canary_counts(tier: str, metrics: Metrics) -> BothCounts:
    """Return the counts of both roles during a canary, of all workers."""
    return BothCounts(
        live=_role_counts(tier, metrics, LIVE),
        canary=_role_counts(tier, metrics, CANARY),
    )


def _role_counts(tier: str, metrics: Metrics, role: ReleaseRole) -> ReleaseCounts:
    """Return the counts of the live release or the canary, by *role*, over all workers.

    Lookups and reads are those of this tier, one of the stores; shown lists and clicks are those of all, because events
    do not name a store. A list was shown if the item at its first position was.
    """
    lookups = metrics.cells[CANARY_LOOKUPS]
    hit, miss, error = (metrics.total(lookups[tier, role, outcome])[0] for outcome in LOOKUP_OUTCOMES)
    *reads, _sum_s = metrics.total(metrics.canary_reads[tier, role], HISTOGRAM_CELLS)
    first_position = POSITIONS[0]
    (shown,) = metrics.total(metrics.cells[IMPRESSIONS][role, first_position])
    clicks_by_position = metrics.total(metrics.cells[CLICKS][role, first_position], len(POSITIONS))
    return ReleaseCounts(
        hit=hit,
        miss=miss,
        error=error,
        shown=shown,
        clicks=sum(clicks_by_position),
        reads=tuple(reads),
    )


def live_reads(tier: str, metrics: Metrics) -> tuple[float, ...]:
    """Return how often the live release of a tier was read in this worker, by buckets of the time: without the canary.

    Metrics are cells of an array. A histogram has a cell for each bucket, then one for the sum of the values.
    """
    first_cells = [metrics.store[tier, operation, "ok"] for operation in OPERATIONS]
    first_cells.append(metrics.canary_reads[tier, CANARY])
    histograms = [metrics.own_cells[first : first + HISTOGRAM_CELLS - 1] for first in first_cells]
    reads = [max(0.0, sum(calls) - canary) for *calls, canary in zip(*histograms, strict=True)]
    return tuple(reads)


class CountedRelease(msgspec.Struct):
    """What a worker has counted of a release that is or was live in a tier."""

    release: ReleaseRef
    since: float
    """When it became live here, by the monotonic clock."""

    counts: ReleaseCounts = ReleaseCounts()
    """Misses are lists that the release before has, errors damaged values, both only counted on probation."""
