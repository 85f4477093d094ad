"""Counts of the releases that are compared, over all workers: by their roles beside each other, and of live ones."""

from typing import NamedTuple

from hotplate.serve.metric import Metric
from hotplate.serve.metrics import (
    BUCKETS_S,
    CLICKS,
    HISTOGRAM_CELLS,
    IMPRESSIONS,
    LOOKUP_OUTCOMES,
    OPERATIONS,
    POSITIONS,
    PROBATION_LOOKUPS,
    ROLE_LOOKUPS,
    ROLES,
    Metrics,
    ReleaseRole,
)

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

    def since(self, before: "ReleaseCounts") -> "ReleaseCounts":
        """Return what was counted since *before*."""
        *numbers, reads = self
        *numbers_before, reads_before = before
        return ReleaseCounts._make([*map(_growth, numbers, numbers_before), tuple(map(_growth, reads, reads_before))])


def _growth(now: float, before: float) -> float:
    """Return the difference of two counts; 0 for reads of which fewer are left (`live_counts`)."""
    return max(0.0, now - before)


class BothCounts(NamedTuple):
    """Counts of a release that is judged, and of what it is compared with, in all workers."""

    reference: ReleaseCounts = ReleaseCounts()
    judged: ReleaseCounts = ReleaseCounts()

    def since(self, before: "BothCounts") -> "BothCounts":
        """Return the difference to *before*."""
        return BothCounts(self.reference.since(before.reference), self.judged.since(before.judged))


def counts_by_role(tier: str, metrics: Metrics) -> BothCounts:
    """Return the counts of both releases that share the users, of all workers: of the live one as the reference."""
    return BothCounts(*(_role_counts(tier, metrics, role) for role in ROLES))


def _role_counts(tier: str, metrics: Metrics, role: ReleaseRole) -> ReleaseCounts:
    """Return the counts of the release with a *role*, over all workers.

    Lookups and reads are those of this tier, one of the stores; shown lists and clicks are those of all, because events
    do not name a store. A list was shown if the item at its first position was.
    """
    first_position = POSITIONS[0]
    (shown,) = metrics.total(metrics.cells[IMPRESSIONS][role, first_position])
    clicks_by_position = metrics.total(metrics.cells[CLICKS][role, first_position], len(POSITIONS))
    return _lookup_counts(metrics, ROLE_LOOKUPS, tier, role)._replace(
        shown=shown,
        clicks=sum(clicks_by_position),
        reads=_reads(metrics, metrics.role_reads[tier, role]),
    )


def live_counts(tier: str, metrics: Metrics) -> ReleaseCounts:
    """Return the counts of the releases that are or were live in a tier, over all workers.

    Misses are lists that the release before has, errors damaged values. Lookups count from the first second of a live
    release on, and lost lists only on probation (`ReleaseCounter`). Reads are those of the store that succeeded, but
    for all of the other role's: if some of these fail, fewer are left.
    """
    all_reads = [_reads(metrics, metrics.store[tier, operation, "ok"]) for operation in OPERATIONS]
    _, other_role = ROLES
    other_reads = _reads(metrics, metrics.role_reads[tier, other_role])
    reads = tuple(max(0.0, sum(calls) - other) for *calls, other in zip(*all_reads, other_reads, strict=True))
    return _lookup_counts(metrics, PROBATION_LOOKUPS, tier)._replace(reads=reads)


def _lookup_counts(metrics: Metrics, row: Metric, *labels: str) -> ReleaseCounts:
    """Return the lookups of a metric by outcome, its last label."""
    cells = metrics.cells[row]
    hit, miss, error = (metrics.total(cells[*labels, outcome])[0] for outcome in LOOKUP_OUTCOMES)
    return ReleaseCounts(hit, miss, error)


def _reads(metrics: Metrics, first_cell: int) -> tuple[float, ...]:
    """Return the buckets of a histogram of reads: a cell for each, before the one for the sum of the values."""
    return tuple(metrics.total(first_cell, HISTOGRAM_CELLS - 1))
