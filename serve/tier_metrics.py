"""Metrics of one tier: attempts and charges of its store, and what a canary is judged by."""

from hotplate.serve.metrics import (
    CANARY,
    CANARY_LOOKUPS,
    CLICKS,
    HISTOGRAM_CELLS,
    IMPRESSIONS,
    LIVE,
    LOOKUP_OUTCOMES,
    POSITIONS,
    Metrics,
    ReleaseRole,
)
from hotplate.serve.releases.canary import BothCounts, ReleaseCounts


class StoreObserver:
    """Counts attempts and charges of a store."""

    def __init__(self, tier: str, metrics: Metrics) -> None:
        self._tier = tier
        self._metrics = metrics

    def charged(self, ru: float) -> None:
        """See `hotplate.stores.store.Observer`."""
        if ru:  # a 429 and an error cost nothing
            self._metrics.observe_charge(self._tier, ru)

    def failed(self, kind: str) -> None:
        """See `hotplate.stores.store.Observer`."""
        self._metrics.count_attempt(self._tier, kind)


class TierMetrics:
    """The histogram of reads of one tier, and the sums of the counts by which its canary is judged."""

    def __init__(self, tier: str, metrics: Metrics) -> None:
        self._tier = tier
        self._metrics = metrics
        self.read_cell = metrics.store[tier, "get", "ok"]
        """The histogram of reads of a local store."""

    def canary_counts(self) -> BothCounts:
        """Return the counts of both roles during a canary, of all workers."""
        return BothCounts(live=self._role_counts(LIVE), canary=self._role_counts(CANARY))

    def _role_counts(self, role: ReleaseRole) -> ReleaseCounts:
        """Return the counts of the live release or the canary, by *role*, over all workers.

        Lookups and reads are those of this tier, one of the stores; shown lists and clicks are those of all, because
        events do not name a store. A list was shown if the item at its first position was.
        """
        metrics = self._metrics
        lookups = metrics.cells[CANARY_LOOKUPS]
        hit, miss, error = (metrics.total(lookups[self._tier, role, outcome])[0] for outcome in LOOKUP_OUTCOMES)
        *reads, _sum_s = metrics.total(metrics.canary_reads[self._tier, role], HISTOGRAM_CELLS)
        first_position = POSITIONS[0]
        (shown,) = metrics.total(metrics.cells[IMPRESSIONS][role, first_position])
        clicks_by_position = metrics.total(metrics.cells[CLICKS][role, first_position], len(POSITIONS))
        return ReleaseCounts(
            hit=hit, miss=miss, error=error, reads=tuple(reads), shown=shown, clicks=sum(clicks_by_position)
        )
