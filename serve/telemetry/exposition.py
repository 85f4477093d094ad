"""The counters of all workers at one moment, and these and what each worker says of itself as Prometheus text.

The console's figures and the metrics of OpenTelemetry are made of the same snapshot.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from prometheus_client import generate_latest
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
    SCRUB_DAMAGED,
    SCRUB_SECONDS,
    SCRUBBED_ROWS,
    THROTTLED,
    Metrics,
)
from hotplate.serve.states import DEGRADED, NOT_READY, REPORT_S, SILENT_S, TierState, WorkerState

# Where /proc/PID/stat has them, counted after the name of the process.
_MAJOR_FAULTS = 9

Labels = tuple[str, ...]
# One number by labels, or of a histogram its buckets and then the sum.
CountsByLabels = dict[Labels, list[float]]
States = Sequence[WorkerState | None]

# Of each family its labels, and what it says.
_FAMILIES = {
    "hotplate_http_request_duration_seconds": ("route method code", "Time to answer a request."),
    "hotplate_store_operation_duration_seconds": ("store op outcome", "Time of one call of a store."),
    "hotplate_lookups": ("source outcome", "Lists looked up."),
    "hotplate_store_corrupt": ("store", "Values that were read and are damaged."),
    "hotplate_cache_requests": (
        "store outcome", "Lookups in a store's cache: found, answered by a read that was on its way, or read.",
    ),
    "hotplate_canary_lookups": ("store role outcome", "Users' lists looked up while a store has a canary."),
    "hotplate_canary_read_duration_seconds": ("store role", "Time of one read while a store has a canary."),
    "hotplate_shed": ("reason", "Requests and connections refused or cut to serve others in time."),
    "hotplate_scrub_rows": ("store", "Rows read in the background."),
    "hotplate_scrub_damaged": ("store", "Damaged values that the last pass over a release found."),
    "hotplate_scrub_pass_seconds": ("store", "Time of the last pass over a release."),
    "hotplate_store_request_units": ("store", "RU that a store charged."),
    "hotplate_store_charged_responses": ("store", "Responses of a store that cost RU."),
    "hotplate_store_throttled": ("store", "Attempts that a store refused for now, each one."),
    "hotplate_store_failures": ("store kind", "Attempts that failed otherwise, tried again or not."),
    "hotplate_events": ("type outcome", "Events reported."),
    "hotplate_impressions": ("role position", "Items shown, by their place in the list."),
    "hotplate_clicks": ("role position", "Items chosen, by their place in the list."),
    "hotplate_telemetry_spans": ("outcome", "Spans by what became of them."),
    "hotplate_log_lines_dropped": (
        "", "Lines of workers' logs that were dropped, as they were not read in time.",
    ),
    "hotplate_worker_up": ("worker", "1 for a worker that reported just now."),
    "hotplate_degraded": ("worker", "1 while a worker answers from less than all stores, or not at all."),
    "hotplate_worker_start_time_seconds": ("worker", "When a worker started, as Unix time."),
    "hotplate_worker_loop_lag_seconds": ("worker", "How late a worker's event loop was, at worst."),
    "hotplate_worker_connections": ("worker", "Open connections of clients."),
    "hotplate_worker_unusable_files": (
        "worker",
        "Keys, certificate, deny-list: how many cannot be used as their files are now, so the former ones hold.",
    ),
    "hotplate_certificate_expiry_timestamp_seconds": (
        "worker", "When the certificate that a worker shows expires, as Unix time.",
    ),
    "hotplate_release_lookups": ("worker release outcome", "Lists looked up in a release."),
    "hotplate_worker_open_fds": ("worker", "Open file descriptors of a worker."),
    "hotplate_worker_max_fds": ("worker", "How many it may have open."),
    "hotplate_worker_major_page_faults": (
        "worker", "How often a worker stood still for a page that was read from a disk.",
    ),
    "hotplate_release_info": ("worker store release role", "1 for a release that is served."),
    "hotplate_release_age_seconds": ("worker store", "Time since the served release was written."),
    "hotplate_breaker_open": ("worker store", "1 while a store gets no requests because it keeps failing."),
    "hotplate_canary_stopped": (
        "worker store", "1 for a worker that uses a store's canary no more, as it is worse than the live release.",
    ),
    "hotplate_catalogue_age_seconds": (
        "worker store", "Time since a store's catalogue was last read and known to be what is followed.",
    ),
    "hotplate_cache_bytes": ("worker store", "What a worker's cache of a store takes."),
}  # fmt: skip


class Snapshot(NamedTuple):
    """What all workers of a service have counted together, by the labels that stand behind each field."""

    requests: CountsByLabels  # route, method, code: a histogram, if it has counted anything
    calls: CountsByLabels  # store, operation, outcome: a histogram
    charges: CountsByLabels  # store: a histogram
    lookups: CountsByLabels  # source, outcome
    corrupt: CountsByLabels  # store
    cached: CountsByLabels  # store, outcome
    canary: CountsByLabels  # store, role, outcome
    canary_reads: CountsByLabels  # store, role: a histogram
    shed: CountsByLabels  # reason
    scrub: CountsByLabels  # store, what
    attempts: CountsByLabels  # store, what
    events: CountsByLabels  # type, outcome
    listed: CountsByLabels  # type, role, position
    spans: CountsByLabels  # outcome
    dropped_lines: CountsByLabels  # no label

    def since(self, before: "Snapshot") -> "Snapshot":
        """Return what was counted since an earlier snapshot."""
        return Snapshot(*map(growth, self, before))


def growth(now: CountsByLabels, before: CountsByLabels) -> CountsByLabels:
    """Return what was counted between two moments; a series that is new, or began again, counts from nothing."""
    nothing = [0.0]
    return {
        labels: [max(0.0, a - b) for a, b in zip(counts, before.get(labels, nothing * len(counts)), strict=True)]
        for labels, counts in now.items()
    }


def take_snapshot(metrics: Metrics) -> Snapshot:
    """Add up the counters of all workers."""

    def read(cells: Iterable[tuple[str | Labels, int]]) -> CountsByLabels:
        return {(key,) if isinstance(key, str) else key: metrics.total(cell) for key, cell in cells}

    return Snapshot(
        requests=dict(metrics.requests()),
        calls={labels: metrics.total(cell, HISTOGRAM_CELLS) for labels, cell in metrics.store.items()},
        charges={(tier,): metrics.total(cell, CHARGE_CELLS) for tier, cell in metrics.charges.items()},
        lookups=read(LOOKUPS.items()),
        corrupt=read(metrics.corrupt.items()),
        cached=read(metrics.cached.items()),
        canary=read(metrics.canary.items()),
        canary_reads={labels: metrics.total(cell, HISTOGRAM_CELLS) for labels, cell in metrics.canary_reads.items()},
        shed=read(metrics.shed.items()),
        scrub=read(metrics.scrub.items()),
        attempts=read(metrics.attempts.items()),
        events=read(metrics.events.items()),
        listed=read(metrics.listed.items()),
        spans=read(metrics.spans.items()),
        dropped_lines={(): metrics.total(metrics.dropped_lines)},
    )


class Exposition(Collector):
    """Renders the shared counters, and the states of all workers, as Prometheus text."""

    def __init__(self, metrics: Metrics, states: Callable[[], States]) -> None:
        """Take the counters, and what returns the workers' states by number, None for one that has none."""
        self._metrics = metrics
        self._states = states

    def text(self) -> bytes:
        """Render everything."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Yield each family with the series that have counted anything."""
        counted, states = take_snapshot(self._metrics), self._states()
        yield _histogram("hotplate_http_request_duration_seconds", counted.requests)
        yield _histogram("hotplate_store_operation_duration_seconds", counted.calls)
        yield _counter("hotplate_lookups", counted.lookups)
        yield _counter("hotplate_store_corrupt", counted.corrupt)
        yield _counter("hotplate_cache_requests", _of_stores(counted.cached, _active(counted.cached)))
        yield _counter("hotplate_canary_lookups", _of_stores(counted.canary, _active(counted.canary)))
        yield _histogram("hotplate_canary_read_duration_seconds", counted.canary_reads)
        yield _counter("hotplate_shed", counted.shed)
        yield from _scrub_families(counted)
        yield from _attempt_families(counted)
        yield _counter("hotplate_events", counted.events)
        for name, kind in (("hotplate_impressions", IMPRESSION), ("hotplate_clicks", CLICK)):
            yield _counter(
                name, {key[1:]: count for key, count in counted.listed.items() if key[0] == kind and count[0]}
            )
        yield _counter("hotplate_telemetry_spans", counted.spans)
        yield _counter("hotplate_log_lines_dropped", counted.dropped_lines)
        yield from _worker_families(states)
        yield from _process_families(states)
        yield from _tier_families(states)


def _counter(name: str, counts: CountsByLabels) -> Metric:
    labels, text = _FAMILIES[name]
    family = CounterMetricFamily(name, text, labels=labels.split())
    for values, (count,) in counts.items():
        family.add_metric(values, count)
    return family


def _gauge(name: str, values: Mapping[Labels, float | None]) -> Metric:
    """Return a gauge with the series whose value is known."""
    labels, text = _FAMILIES[name]
    family = GaugeMetricFamily(name, text, labels=labels.split())
    for each, value in values.items():
        if value is not None:
            family.add_metric(each, value)
    return family


def _histogram(name: str, counts: CountsByLabels) -> Metric:
    labels, text = _FAMILIES[name]
    family, bounds = HistogramMetricFamily(name, text, labels=labels.split()), [*map(str, BUCKETS_S), "+Inf"]
    for values, (*buckets, seconds) in counts.items():
        if any(buckets):
            family.add_metric(values, list(zip(bounds, accumulate(buckets), strict=True)), seconds)
    return family


def _active(counts: CountsByLabels) -> set[str]:
    """Return the stores that have counted anything."""
    return {store for (store, *_), (count,) in counts.items() if count}


def _of_stores(counts: CountsByLabels, stores: set[str]) -> CountsByLabels:
    return {labels: count for labels, count in counts.items() if labels[0] in stores}


def _only(counts: CountsByLabels, what: str) -> CountsByLabels:
    """Return the series with *what* as their second label, without it."""
    return {(store,): count for (store, other), count in counts.items() if other == what}


def _scrub_families(counted: Snapshot) -> Iterator[Metric]:
    """Yield the results of reading in the background, for each store that was read."""
    read = _of_stores(counted.scrub, _active(_only(counted.scrub, SCRUBBED_ROWS)))
    yield _counter("hotplate_scrub_rows", _only(read, SCRUBBED_ROWS))
    yield _gauge("hotplate_scrub_damaged", {key: value for key, (value,) in _only(read, SCRUB_DAMAGED).items()})
    yield _gauge("hotplate_scrub_pass_seconds", {key: value for key, (value,) in _only(read, SCRUB_SECONDS).items()})


def _attempt_families(counted: Snapshot) -> Iterator[Metric]:
    """Yield what the attempts of stores came to, once any worker's store has reported one to its observer."""
    reporting = _active(counted.attempts) | {store for (store,), counts in counted.charges.items() if any(counts)}
    charges, attempts = _of_stores(counted.charges, reporting), _of_stores(counted.attempts, reporting)
    yield _counter("hotplate_store_request_units", {key: [ru] for key, (*_, ru) in charges.items()})
    yield _counter("hotplate_store_charged_responses", {key: [sum(counts)] for key, (*counts, _) in charges.items()})
    yield _counter("hotplate_store_throttled", _only(attempts, THROTTLED))
    failures = {key: count for key, count in attempts.items() if key[1] != THROTTLED}
    yield _counter("hotplate_store_failures", failures)


def _known(states: States) -> dict[Labels, WorkerState]:
    """Return the states that there are, by the label of their worker."""
    return {(str(number),): state for number, state in enumerate(states) if state is not None}


def _worker_families(states: States) -> Iterator[Metric]:
    """Yield what is so of each worker as a whole; one that is silent is not up, and degrades the service."""
    known = _known(states)
    up = {key for key, state in known.items() if state.silent_s < SILENT_S}
    degraded = {key for key, state in known.items() if key not in up or state.status in (DEGRADED, NOT_READY)}
    lag_s = {key: max(state.lag_s, state.silent_s - 2 * REPORT_S) for key, state in known.items()}
    expiry = {key: state.certificate_expires_at for key, state in known.items()}
    lookups = {
        (*key, release, outcome): [float(count)]
        for key, state in known.items()
        for release, counts in state.lookups.items()
        for outcome, count in zip(LOOKUP_OUTCOMES, counts, strict=True)
    }
    all_workers = [(str(number),) for number in range(len(states))]
    yield _gauge("hotplate_worker_up", {key: key in up for key in all_workers})
    yield _gauge("hotplate_degraded", {key: key not in known or key in degraded for key in all_workers})
    yield _gauge("hotplate_worker_start_time_seconds", {key: state.started_at for key, state in known.items()})
    yield _gauge("hotplate_worker_loop_lag_seconds", lag_s)
    yield _gauge("hotplate_worker_connections", {key: state.connections for key, state in known.items()})
    yield _gauge("hotplate_worker_unusable_files", {key: state.unusable_files for key, state in known.items()})
    yield _gauge("hotplate_certificate_expiry_timestamp_seconds", expiry)
    yield _counter("hotplate_release_lookups", lookups)


def _process_families(states: States) -> Iterator[Metric]:
    """Yield what the system knows of each worker, which costs the worker itself nothing."""
    used, limit, faults = dict[Labels, float](), dict[Labels, float](), CountsByLabels()
    for key, state in _known(states).items():
        process = Path(f"/proc/{state.pid}")
        try:
            count = sum(1 for _ in (process / "fd").iterdir())
            limits = (process / "limits").read_text().partition("Max open files")[2].split()
            after_name = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended, or the system has no /proc
        used[key] = count
        limit[key] = float("inf") if limits[0] == "unlimited" else float(limits[0])
        faults[key] = [float(after_name[_MAJOR_FAULTS])]
    yield _gauge("hotplate_worker_open_fds", used)
    yield _gauge("hotplate_worker_max_fds", limit)
    yield _counter("hotplate_worker_major_page_faults", faults)


def _tier_families(states: States) -> Iterator[Metric]:
    """Yield what each worker serves of each store, and how it stands with the store."""
    now, info = time.time(), dict[Labels, float]()
    age_s, catalogue_age_s = dict[Labels, float | None](), dict[Labels, float]()
    tiers: dict[Labels, TierState] = {}
    for worker, state in _known(states).items():
        for tier in state.tiers:
            key = (*worker, tier.tier)
            tiers[key] = tier
            catalogue_age_s[key] = tier.catalogue_age_s + (state.silent_s if state.silent_s > SILENT_S else 0.0)
            if tier.canary is not None:
                info[*key, tier.canary, CANARY] = 1
            if tier.release is not None:
                info[*key, tier.release, LIVE] = 1
            age_s[key] = None if tier.written_at is None else max(0.0, now - tier.written_at)
    yield _gauge("hotplate_release_info", info)
    yield _gauge("hotplate_release_age_seconds", age_s)
    yield _gauge("hotplate_breaker_open", {key: tier.breaker_open for key, tier in tiers.items()})
    yield _gauge("hotplate_canary_stopped", {key: tier.canary_stopped for key, tier in tiers.items()})
    yield _gauge("hotplate_catalogue_age_seconds", catalogue_age_s)
    yield _gauge("hotplate_cache_bytes", {key: tier.cache_bytes for key, tier in tiers.items()})
