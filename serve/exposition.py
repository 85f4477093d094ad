"""The counters of all workers as Prometheus text, rendered by whichever worker gets the scrape."""

import time
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serve.metrics import (
    BUCKETS_S,
    HISTOGRAM_CELLS,
    LOOKUPS,
    REQUEST_UNITS,
    REQUESTS,
    SCRUB_DAMAGED,
    SCRUB_SECONDS,
    SCRUBBED_ROWS,
    THROTTLED,
    Metrics,
)
from serve.tiers import Tier


class Exposition(Collector):
    """Renders the counters, and what the answering worker serves, as Prometheus text."""

    def __init__(self, metrics: Metrics, tiers: Sequence[Tier]) -> None:
        self._metrics = metrics
        self._tiers = tiers
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Render everything."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: the registry is ours alone."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield each family with the series that have counted anything."""
        yield self._histogram(
            "hotplate_http_request_duration_seconds", "Time to answer a request.", ("route", "method", "code"), REQUESTS
        )
        yield self._histogram(
            "hotplate_store_operation_duration_seconds",
            "Time of one call of a store.",
            ("store", "op", "outcome"),
            self._metrics.store,
        )
        lookups = CounterMetricFamily("hotplate_lookups", "Lists looked up.", labels=("source", "outcome"))
        for labels, cell in LOOKUPS.items():
            lookups.add_metric(labels, self._metrics.total(cell)[0])
        yield lookups
        corrupt = CounterMetricFamily(
            "hotplate_store_corrupt", "Values that were read and are damaged.", labels=("store",)
        )
        for tier, cell in self._metrics.corrupt.items():
            corrupt.add_metric((tier,), self._metrics.total(cell)[0])
        yield corrupt
        shed = CounterMetricFamily(
            "hotplate_shed", "Requests and connections refused or cut so that others are served.", labels=("reason",)
        )
        for reason, cell in self._metrics.shed.items():
            shed.add_metric((reason,), self._metrics.total(cell)[0])
        yield shed
        yield from self._scrub()
        yield from self._attempts()
        yield from self._release()

    def _scrub(self) -> Iterator[Metric]:
        """Yield what reading in the background came to, of the stores of which anything was read."""
        rows = CounterMetricFamily("hotplate_scrub_rows", "Rows read in the background.", labels=("store",))
        damaged = GaugeMetricFamily(
            "hotplate_scrub_damaged", "Damaged values that the last pass over a release found.", labels=("store",)
        )
        seconds = GaugeMetricFamily(
            "hotplate_scrub_pass_seconds", "Time of the last pass over a release.", labels=("store",)
        )
        cells = {labels: self._metrics.total(cell)[0] for labels, cell in self._metrics.scrub.items()}
        for (store, what), read in cells.items():
            if what == SCRUBBED_ROWS and read:
                rows.add_metric((store,), read)
                damaged.add_metric((store,), cells[store, SCRUB_DAMAGED])
                seconds.add_metric((store,), cells[store, SCRUB_SECONDS])
        yield from (rows, damaged, seconds)

    def _attempts(self) -> Iterator[Metric]:
        """Yield what the attempts of stores came to, once any worker's store has reported one to its observer."""
        units = CounterMetricFamily("hotplate_store_request_units", "RU that a store charged.", labels=("store",))
        throttled = CounterMetricFamily(
            "hotplate_store_throttled", "Attempts that a store refused for now, each one.", labels=("store",)
        )
        failures = CounterMetricFamily(
            "hotplate_store_failures", "Attempts that failed otherwise, tried again or not.", labels=("store", "kind")
        )
        counted = {
            (store, what): self._metrics.total(cell)[0] for (store, what), cell in self._metrics.attempts.items()
        }
        reporting = {store for (store, _), total in counted.items() if total}
        for (store, what), total in counted.items():
            if store not in reporting:
                continue
            if what == REQUEST_UNITS:
                units.add_metric((store,), total)
            elif what == THROTTLED:
                throttled.add_metric((store,), total)
            else:
                failures.add_metric((store, what), total)
        yield from (units, throttled, failures)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], cells: dict[tuple[str, str, str], int]
    ) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, text, labels=labels)
        for values, cell in cells.items():
            *counts, seconds = self._metrics.total(cell, HISTOGRAM_CELLS)
            if any(counts):
                bounds = [*map(str, BUCKETS_S), "+Inf"]
                cumulative = [sum(counts[: n + 1]) for n in range(len(counts))]
                family.add_metric(values, list(zip(bounds, cumulative, strict=True)), seconds)
        return family

    def _release(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "hotplate_release_info", "1 for a release that is served.", labels=("store", "release")
        )
        age = GaugeMetricFamily(
            "hotplate_release_age_seconds", "Time since the served release was written.", labels=("store",)
        )
        breaker = GaugeMetricFamily(
            "hotplate_breaker_open", "1 while a store gets no requests because it keeps failing.", labels=("store",)
        )
        degraded = GaugeMetricFamily("hotplate_degraded", "1 while answers come from less than all stores.")
        for tier in self._tiers:
            breaker.add_metric((tier.name,), tier.breaker.is_open)
            served = tier.follower.served
            if served is not None:
                info.add_metric((tier.name, served.id), 1)
                age.add_metric((tier.name,), max(0.0, time.time() - served.manifest.created_at))
        degraded.add_metric((), any(tier.error for tier in self._tiers))
        yield from (info, age, breaker, degraded)
