"""Metrics of one store: attempts and charges."""

from bisect import bisect_left

from hotplate.serve.metrics import (
    BUCKETS_RU,
    CHARGED,
    CHARGED_RU,
    CHARGES,
    FAILED,
    FAILURES,
    OTHER,
    THROTTLED,
    THROTTLES,
    TOKEN_FAILURES,
    Metrics,
)
from hotplate.stores.store import TOKEN


class StoreObserver:
    """Counts attempts and charges of a store; see `hotplate.stores.store.Observer`."""

    def __init__(self, tier: str, metrics: Metrics) -> None:
        self._tier = tier
        self._metrics = metrics

    def charged(self, ru: float) -> None:
        """Count the charge of a response."""
        if not ru:  # a 429 and an error cost nothing
            return
        histogram = self._metrics.cells[CHARGES][self._tier,]
        self._metrics.count(histogram + bisect_left(BUCKETS_RU, ru))
        self._metrics.count(histogram + CHARGES.cells - 1, ru)
        self._metrics.count_in(CHARGED_RU, self._tier, number=ru)
        self._metrics.count_in(CHARGED, self._tier)

    def failed(self, kind: str) -> None:
        """Count a failed or throttled attempt, or a missing token; unknown failures count as other."""
        if kind == THROTTLED:
            self._metrics.count_in(THROTTLES, self._tier)
        elif kind == TOKEN:
            self._metrics.count_in(TOKEN_FAILURES, self._tier)
        else:
            self._metrics.count_in(FAILED, self._tier, kind if kind in FAILURES else OTHER)
