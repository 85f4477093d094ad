"""Prometheus text of the shared counters and of the workers' states."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from hotplate.serve.metric import Labels, Metric
from hotplate.serve.metrics import LOOKUP_OUTCOMES, TABLE, CountsByLabels, Metrics
from hotplate.serve.processes.readiness import Status
from hotplate.serve.processes.states import REPORT_S, SILENT_S, ProcessState, TierState, status_now
from hotplate.serve.releases.comparison import TierComparisons

# Field of /proc/PID/stat, counted after the process name.
_MAJOR_FAULTS = 9

States = Sequence[ProcessState | None]
# Totals of all workers.
Snapshot = Mapping[Metric, CountsByLabels]
Values = Iterable[tuple[Labels, float | None]]


def take_snapshot(metrics: Metrics) -> Snapshot:
    """Add up the counters of all workers."""
    return {row: metrics.counted(row) for row in TABLE}


class Observed(NamedTuple):
    """What is known of a service at a moment."""

    states: States
    """By the numbers of the workers."""
    probations: Sequence[TierComparisons]
    """Of the tiers."""


class StateMetric(NamedTuple):
    """A metric that is not counted, but read from the states of workers or from comparisons of releases."""

    name: str
    help: str
    labels: str
    read: Callable[[Observed], Values]
    kind: Literal["counter", "gauge"] = "gauge"


def _of_workers(
    read: Callable[[ProcessState], Values], *, without_state: float | None = None
) -> Callable[[Observed], Values]:
    """Return a function that reads values of each worker; *without_state* is that of one that has not reported."""

    def read_all(observed: Observed) -> Values:
        for number, state in enumerate(observed.states):
            values = [((), without_state)] if state is None else read(state)
            yield from (((str(number), *labels), value) for labels, value in values)

    return read_all


def _of_worker(
    read: Callable[[ProcessState], float | None], *, without_state: float | None = None
) -> Callable[[Observed], Values]:
    return _of_workers(lambda state: [((), read(state))], without_state=without_state)


def _of_tiers(read: Callable[[TierState, ProcessState], float | None]) -> Callable[[Observed], Values]:
    return _of_workers(lambda state: [((tier.tier,), read(tier, state)) for tier in state.tiers])


def _of_probations(read: Callable[[TierComparisons], float]) -> Callable[[Observed], Values]:
    return lambda observed: [((probation.tier,), read(probation)) for probation in observed.probations]


def _age_s(at: float | None) -> float | None:
    return None if at is None else max(0.0, time.time() - at)


def _is_degraded(state: ProcessState) -> bool:
    return status_now(state) in {Status.DEGRADED, Status.NOT_READY, Status.SILENT}


def _lookups(state: ProcessState, *, are_named: bool) -> Values:
    """Yield the labels, release, perhaps the name of a list, and outcome, and the number of lists."""
    for release, lists in state.lookups.items():
        for name, counts in lists.items():
            if bool(name) is are_named:
                labels = (release, name) if are_named else (release,)
                yield from (((*labels, outcome), count) for outcome, count in zip(LOOKUP_OUTCOMES, counts, strict=True))


def _releases(state: ProcessState) -> Values:
    """Yield the labels, store, release and role, and 1 for each release that is served."""
    for tier in state.tiers:
        for role, release in tier.served.items():
            yield (tier.tier, release, role), 1


def _process(read: Callable[[Path], float]) -> Callable[[Observed], Values]:

    def value(state: ProcessState) -> float | None:
        try:
            return read(Path(f"/proc/{state.pid}"))
        except OSError:
            return None

    return _of_worker(value)


def _max_fds(process: Path) -> float:
    limit = (process / "limits").read_text().partition("Max open files")[2].split()[0]
    return float("inf") if limit == "unlimited" else float(limit)


def _major_faults(process: Path) -> float:
    return float((process / "stat").read_text().rpartition(")")[2].split()[_MAJOR_FAULTS])


# fmt: off
STATE_TABLE = (
    StateMetric("hotplate_worker_up", "1 if the worker reported recently.",
                "worker",
                _of_worker(lambda state: status_now(state) is not Status.SILENT, without_state=0)),
    StateMetric("hotplate_degraded", "1 while a worker answers from only some of its stores, or not at all.",
                "worker",
                _of_worker(_is_degraded, without_state=1)),
    StateMetric("hotplate_worker_start_time_seconds", "Start of a worker, as Unix time.",
                "worker",
                _of_worker(lambda state: state.started_at)),
    StateMetric("hotplate_worker_loop_lag_seconds", "Maximum delay of a worker's event loop since its last report.",
                "worker",
                _of_worker(lambda state: max(state.lag_s, state.silent_s - 2 * REPORT_S))),
    StateMetric("hotplate_worker_connections", "Open client connections.",
                "worker",
                _of_worker(lambda state: state.connections)),
    StateMetric("hotplate_worker_unusable_files",
                "Files (keys, certificate, deny-list) whose previous version is in use because the current one is "
                "invalid.",
                "worker",
                _of_worker(lambda state: sum(finding.source == "file" for finding in state.findings))),
    StateMetric("hotplate_certificate_expiry_timestamp_seconds", "Expiry of the TLS certificate, as Unix time.",
                "worker",
                _of_worker(lambda state: state.certificate_expires_at)),
    StateMetric("hotplate_consumed_lag_seconds",
                "Time since all consumed items of other services were received, and all own ones sent.",
                "worker",
                _of_worker(lambda state: state.consumed_lag_s)),
    StateMetric("hotplate_release_lookups", "Lists looked up in a release.",
                "worker release outcome",
                _of_workers(partial(_lookups, are_named=False)), "counter"),
    StateMetric("hotplate_list_lookups", "Lists looked up by the name of a list.",
                "worker release list outcome",
                _of_workers(partial(_lookups, are_named=True)), "counter"),
    StateMetric("hotplate_worker_open_fds", "Open file descriptors of a worker.",
                "worker",
                _process(lambda process: len([*(process / "fd").iterdir()]))),
    StateMetric("hotplate_worker_max_fds", "Limit of open file descriptors.",
                "worker",
                _process(_max_fds)),
    StateMetric("hotplate_worker_major_page_faults", "Page faults of a worker that waited for a disk.",
                "worker",
                _process(_major_faults), "counter"),
    StateMetric("hotplate_release_info", "1 for a release that is served.",
                "worker store release role",
                _of_workers(_releases)),
    StateMetric("hotplate_release_age_seconds", "Time since the served release was written.",
                "worker store",
                _of_tiers(lambda tier, _: _age_s(tier.written_at))),
    StateMetric("hotplate_learnt_age_seconds", "Time since the newest event that the served release learnt from.",
                "worker store",
                _of_tiers(lambda tier, _: _age_s(tier.learnt_until))),
    StateMetric("hotplate_breaker_open", "1 while the circuit breaker of a store is open.",
                "worker store",
                _of_tiers(lambda tier, _: tier.breaker_open)),
    StateMetric("hotplate_canary_stopped",
                "1 if a worker stopped serving a release to its share of the users: it is worse than the live one.",
                "worker store",
                _of_tiers(lambda tier, _: tier.is_canary_stopped)),
    StateMetric("hotplate_catalogue_age_seconds", "Time since the catalogue of a store was last confirmed.",
                "worker store",
                _of_tiers(lambda tier, state: tier.catalogue_age_s
                                          + (state.silent_s if state.silent_s > SILENT_S else 0.0))),
    StateMetric("hotplate_cache_bytes", "Size of a worker's cache of a store.",
                "worker store",
                _of_tiers(lambda tier, _: tier.cache_bytes)),
    StateMetric("hotplate_probation", "1 while the live release is on probation.",
                "store",
                _of_probations(lambda probation: probation.running is not None)),
    StateMetric("hotplate_releases_withdrawn", "Releases that this service withdrew on probation.",
                "store",
                _of_probations(lambda probation: probation.withdrawn), "counter"),
    StateMetric("hotplate_withdrawal_blocked",
                "1 if the live release is worse than the one before, and this service cannot withdraw it.",
                "store",
                _of_probations(lambda probation: probation.is_withdrawal_blocked)),
)
# fmt: on


class Exposition(Collector):
    """Renders counters and states as Prometheus text."""

    def __init__(
        self,
        metrics: Metrics,
        states: Callable[[], States],
        probations: Callable[[], Sequence[TierComparisons]] = tuple,
    ) -> None:
        """*states* returns the workers' states by number, *probations* those of the tiers."""
        self._metrics = metrics
        self._states = states
        self._probations = probations

    def text(self) -> bytes:
        """Render all metrics."""
        return generate_latest(self)

    def collect(self) -> Iterator[Family]:
        """Yield the metrics of the service in the form of prometheus_client, with their values at this moment.

        They are those that workers count; those of the state of each process, with its number as label "worker"; and
        those of new releases on probation, which are compared with the releases before, with the store as label.
        """
        totals = take_snapshot(self._metrics)
        for metric in TABLE:
            if metric.shown != "none":
                yield _family(metric, _shown_series(metric, totals))

        observed = Observed(self._states(), self._probations())
        for state_metric in STATE_TABLE:
            yield _family_of_state(state_metric, observed)


def _shown_series(metric: Metric, totals: Snapshot) -> CountsByLabels:
    """Return the series of a metric that are shown: values, by the values of the metric's labels.

    `metric.shown` is "all", "counted" (series that are not zero), or the name of a group of metrics. The first label
    of these is the store: all series of a store are shown if any metric of the group has counted something of it.
    """
    if metric.shown == "all":
        return totals[metric]
    if metric.shown == "counted":
        return {labels: counts for labels, counts in totals[metric].items() if any(counts)}

    active_stores = set[str]()
    for member in TABLE:
        if member.shown == metric.shown:
            active_stores.update(labels[0] for labels, counts in totals[member].items() if any(counts))
    return {labels: counts for labels, counts in totals[metric].items() if labels[0] in active_stores}


def _family_of_state(metric: StateMetric, observed: Observed) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels.split())
    for labels, value in metric.read(observed):
        if value is not None:
            family.add_metric(labels, value)
    return family


def _family(metric: Metric, series: CountsByLabels) -> Family:
    """Return a metric and its values as prometheus_client has them: a histogram if it has buckets, else a counter.

    *series* has numbers by the values of the labels: one for a counter; for a histogram, the number of observations in
    each bucket, then the sum of the observed values.
    """
    names = [*metric.labels]
    if not metric.buckets:
        counter = CounterMetricFamily(metric.name, metric.help, labels=names)
        for labels, (count,) in series.items():
            counter.add_metric(labels, count)
        return counter

    histogram = HistogramMetricFamily(metric.name, metric.help, labels=names)
    bounds = [*map(str, metric.buckets), "+Inf"]
    for labels, (*bucket_counts, value_sum) in series.items():
        cumulative_counts = accumulate(bucket_counts)  # Prometheus counts an observation in all larger buckets, too
        histogram.add_metric(labels, list(zip(bounds, cumulative_counts, strict=True)), value_sum)
    return histogram
