"""The counters of all workers, and what each of them says of itself, as Prometheus text."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hotplate.serve.metrics import (
    BUCKETS_S,
    CANARY,
    CHARGE_CELLS,
    CLICK,
    HISTOGRAM_CELLS,
    IMPRESSION,
    LIVE,
    LOOKUP_OUTCOMES,
    LOOKUPS,
    REQUESTS,
    SCRUB_DAMAGED,
    SCRUB_SECONDS,
    SCRUBBED_ROWS,
    THROTTLED,
    Metrics,
)
from hotplate.serve.processes.states import DEGRADED, NOT_READY, REPORT_S, SILENT_S, TierState, WorkerState

WORKER_STORE = ("worker", "store")
# Where /proc/PID/stat has them, counted after the name of the process.
_MAJOR_FAULTS = 9


class Exposition(Collector):
    """Renders the shared counters, and the states of all workers, as Prometheus text."""

    def __init__(self, metrics: Metrics, states: Callable[[], Sequence[WorkerState | None]]) -> None:
        """Take the counters, and what returns the workers' states by number, None for one that has none."""
        self._metrics = metrics
        self._states = states
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
        cached = CounterMetricFamily(
            "hotplate_cache_requests",
            "Lookups in a store's cache: found, answered by a read that was on its way, or read.",
            labels=("store", "outcome"),
        )
        counts = {labels: self._metrics.total(cell)[0] for labels, cell in self._metrics.cached.items()}
        with_a_cache = {store for (store, _), count in counts.items() if count}
        for labels, count in counts.items():
            if labels[0] in with_a_cache:
                cached.add_metric(labels, count)
        yield cached
        yield self._canary()
        shed = CounterMetricFamily(
            "hotplate_shed", "Requests and connections refused or cut to serve others in time.", labels=("reason",)
        )
        for reason, cell in self._metrics.shed.items():
            shed.add_metric((reason,), self._metrics.total(cell)[0])
        yield shed
        yield from self._scrub()
        yield from self._attempts()
        yield from self._events()
        spans = CounterMetricFamily("hotplate_telemetry_spans", "Spans by what became of them.", labels=("outcome",))
        for outcome, cell in self._metrics.spans.items():
            spans.add_metric((outcome,), self._metrics.total(cell)[0])
        yield spans
        lines = CounterMetricFamily(
            "hotplate_log_lines_dropped", "Lines of workers' logs that were dropped, as they were not read in time."
        )
        lines.add_metric((), self._metrics.total(self._metrics.dropped_lines)[0])
        yield lines
        states = self._states()
        yield from _worker_families(states)
        yield from _process_families(states)
        yield from _tier_families(states)

    def _canary(self) -> Metric:
        """Return how the canary and the live release do, of the stores that have had one."""
        lookups = CounterMetricFamily(
            "hotplate_canary_lookups",
            "Users' lists looked up while a store has a canary.",
            labels=("store", "role", "outcome"),
        )
        counts = {labels: self._metrics.total(cell)[0] for labels, cell in self._metrics.canary.items()}
        with_a_canary = {store for (store, _, _), count in counts.items() if count}
        for labels, count in counts.items():
            if labels[0] in with_a_canary:
                lookups.add_metric(labels, count)
        return lookups

    def _scrub(self) -> Iterator[Metric]:
        """Yield the results of reading in the background, for each store that was read."""
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
        responses = CounterMetricFamily(
            "hotplate_store_charged_responses", "Responses of a store that cost RU.", labels=("store",)
        )
        throttled = CounterMetricFamily(
            "hotplate_store_throttled", "Attempts that a store refused for now, each one.", labels=("store",)
        )
        failures = CounterMetricFamily(
            "hotplate_store_failures", "Attempts that failed otherwise, tried again or not.", labels=("store", "kind")
        )
        counted = {
            (store, what): self._metrics.total(cell)[0] for (store, what), cell in self._metrics.attempts.items()
        }
        charged = {store: self._metrics.total(cell, CHARGE_CELLS) for store, cell in self._metrics.charges.items()}
        reporting = {store for (store, _), total in counted.items() if total}
        reporting |= {store for store, (*counts, _) in charged.items() if any(counts)}
        for (store, what), total in counted.items():
            if store not in reporting:
                continue
            if what == THROTTLED:
                throttled.add_metric((store,), total)
            else:
                failures.add_metric((store, what), total)
        for store, (*counts, ru) in charged.items():
            if store in reporting:
                units.add_metric((store,), ru)
                responses.add_metric((store,), sum(counts))
        yield from (units, responses, throttled, failures)

    def _events(self) -> Iterator[Metric]:
        """Yield what was reported, by what became of it, and of what is durable what was shown and chosen where."""
        events = CounterMetricFamily("hotplate_events", "Events reported.", labels=("type", "outcome"))
        for labels, cell in self._metrics.events.items():
            events.add_metric(labels, self._metrics.total(cell)[0])
        listed = {
            IMPRESSION: CounterMetricFamily(
                "hotplate_impressions", "Items shown, by their place in the list.", labels=("role", "position")
            ),
            CLICK: CounterMetricFamily(
                "hotplate_clicks", "Items chosen, by their place in the list.", labels=("role", "position")
            ),
        }
        for (kind, *where), cell in self._metrics.listed.items():
            if count := self._metrics.total(cell)[0]:
                listed[kind].add_metric(where, count)
        yield from (events, *listed.values())

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


def _worker_families(states: Sequence[WorkerState | None]) -> Iterator[Metric]:
    """Yield what is so of each worker as a whole; one that is silent is not up, and degrades the service."""
    up = GaugeMetricFamily("hotplate_worker_up", "1 for a worker that reported just now.", labels=("worker",))
    degraded = GaugeMetricFamily(
        "hotplate_degraded", "1 while a worker answers from less than all stores, or not at all.", labels=("worker",)
    )
    started = GaugeMetricFamily(
        "hotplate_worker_start_time_seconds", "When a worker started, as Unix time.", labels=("worker",)
    )
    lag = GaugeMetricFamily(
        "hotplate_worker_loop_lag_seconds", "How late a worker's event loop was, at worst.", labels=("worker",)
    )
    connections = GaugeMetricFamily("hotplate_worker_connections", "Open connections of clients.", labels=("worker",))
    unusable = GaugeMetricFamily(
        "hotplate_worker_unusable_files",
        "Keys, certificate, deny-list: how many cannot be used as their files are now, so the former ones hold.",
        labels=("worker",),
    )
    expiry = GaugeMetricFamily(
        "hotplate_certificate_expiry_timestamp_seconds",
        "When the certificate that a worker shows expires, as Unix time.",
        labels=("worker",),
    )
    lookups = CounterMetricFamily(
        "hotplate_release_lookups", "Lists looked up in a release.", labels=("worker", "release", "outcome")
    )
    for number, state in enumerate(states):
        worker = (str(number),)
        is_up = state is not None and state.silent_s < SILENT_S
        up.add_metric(worker, is_up)
        degraded.add_metric(worker, state is None or not is_up or state.status in (DEGRADED, NOT_READY))
        if state is None:
            continue
        started.add_metric(worker, state.started_at)
        lag.add_metric(worker, max(state.lag_s, state.silent_s - 2 * REPORT_S))
        connections.add_metric(worker, state.connections)
        unusable.add_metric(worker, state.unusable_files)
        if state.certificate_expires_at is not None:
            expiry.add_metric(worker, state.certificate_expires_at)
        for release, counts in state.lookups.items():
            for outcome, count in zip(LOOKUP_OUTCOMES, counts, strict=True):
                lookups.add_metric((*worker, release, outcome), count)
    yield from (up, degraded, started, lag, connections, unusable, expiry, lookups)


def _process_families(states: Sequence[WorkerState | None]) -> Iterator[Metric]:
    """Yield what the system knows of each worker, which costs the worker itself nothing."""
    used = GaugeMetricFamily("hotplate_worker_open_fds", "Open file descriptors of a worker.", labels=("worker",))
    limit = GaugeMetricFamily("hotplate_worker_max_fds", "How many it may have open.", labels=("worker",))
    faults = CounterMetricFamily(
        "hotplate_worker_major_page_faults",
        "How often a worker stood still for a page that was read from a disk.",
        labels=("worker",),
    )
    for number, state in enumerate(states):
        if state is None:
            continue
        process = Path(f"/proc/{state.pid}")
        try:
            count = sum(1 for _ in (process / "fd").iterdir())
            limits = (process / "limits").read_text().partition("Max open files")[2].split()
            after_name = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended, or the system has no /proc
        used.add_metric((str(number),), count)
        limit.add_metric((str(number),), float("inf") if limits[0] == "unlimited" else float(limits[0]))
        faults.add_metric((str(number),), int(after_name[_MAJOR_FAULTS]))
    yield from (used, limit, faults)


def _tier_families(states: Sequence[WorkerState | None]) -> Iterator[Metric]:
    """Yield what each worker serves of each store, and how it stands with the store."""
    info = GaugeMetricFamily(
        "hotplate_release_info", "1 for a release that is served.", labels=(*WORKER_STORE, "release", "role")
    )
    stopped = GaugeMetricFamily(
        "hotplate_canary_stopped",
        "1 for a worker that uses a store's canary no more, as it is worse than the live release.",
        labels=WORKER_STORE,
    )
    age = GaugeMetricFamily(
        "hotplate_release_age_seconds", "Time since the served release was written.", labels=WORKER_STORE
    )
    breaker = GaugeMetricFamily(
        "hotplate_breaker_open", "1 while a store gets no requests because it keeps failing.", labels=WORKER_STORE
    )
    catalogue = GaugeMetricFamily(
        "hotplate_catalogue_age_seconds",
        "Time since a store's catalogue was last read and known to be what is followed.",
        labels=WORKER_STORE,
    )
    cache = GaugeMetricFamily("hotplate_cache_bytes", "What a worker's cache of a store takes.", labels=WORKER_STORE)
    now = time.time()
    for number, tier, silent_s in _tiers(states):
        labels = (number, tier.tier)
        if tier.cache_bytes is not None:
            cache.add_metric(labels, tier.cache_bytes)
        breaker.add_metric(labels, tier.breaker_open)
        stopped.add_metric(labels, tier.canary_stopped is not None)
        if tier.canary is not None:
            info.add_metric((*labels, tier.canary, CANARY), 1)
        catalogue.add_metric(labels, tier.catalogue_age_s + (silent_s if silent_s > SILENT_S else 0.0))
        if tier.release is not None and tier.written_at is not None:
            info.add_metric((*labels, tier.release, LIVE), 1)
            age.add_metric(labels, max(0.0, now - tier.written_at))
    yield from (info, age, breaker, stopped, catalogue, cache)


def _tiers(states: Sequence[WorkerState | None]) -> Iterator[tuple[str, TierState, float]]:
    """Yield each tier of each worker, with the worker's number, and for how long that has said nothing."""
    for number, state in enumerate(states):
        if state is not None:
            for tier in state.tiers:
                yield str(number), tier, state.silent_s
