"""Metrics of one store: attempts and charges."""

from hotplate.serve.metrics import Metrics


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
