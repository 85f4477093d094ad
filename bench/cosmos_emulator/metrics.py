"""Counts of requests, charges and throttled requests, as Prometheus text; and what is measured once a second."""

import logging
import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bench.cosmos_emulator.account import Account, Container

log = logging.getLogger(__name__)

PREFIX = "hotplate_cosmos_emulator"
STATM = Path("/proc/self/statm")
# A single thread that worked for so much of a second limited itself what was measured in it.
SATURATED_SHARE = 0.9


class Counts:
    """Requests and their charges by operation and status; lives as long as the emulator."""

    def __init__(self) -> None:
        self.requests = dict[tuple[str, int], int]()
        self.charges_ru = dict[tuple[str, int], float]()

    def count(self, operation: str, status: int, charge_ru: float) -> None:
        """Count one response."""
        key = operation, status
        self.requests[key] = self.requests.get(key, 0) + 1
        self.charges_ru[key] = self.charges_ru.get(key, 0.0) + charge_ru


class Monitor:
    """Runs once a second: deletes expired items, measures autoscale and saturation; lives as long as the emulator."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._admitted_ru = dict[tuple[str, str], float]()
        self._was_saturated = False
        self.saturated_s = 0.0
        self.autoscale_ru = dict[str, float]()  # by the container's resource id

    def tick(self, elapsed_s: float, cpu_s: float) -> None:
        """Do what is due; *elapsed_s* passed since the last tick, in which the process used *cpu_s* of CPU."""
        now = self._account.clock()
        for container in self._account.containers():
            container.delete_expired(self._account.charges, now)
        for offer in list(self._account.offers.values()):
            used = self._used_ru(offer.container) / elapsed_s
            if offer.throughput.autoscale:
                maximum = offer.throughput.ru
                self.autoscale_ru[offer.container.rid] = min(max(used, maximum / 10), maximum)
        is_saturated = cpu_s >= SATURATED_SHARE * elapsed_s
        if is_saturated:
            self.saturated_s += elapsed_s
        if is_saturated and not self._was_saturated:
            log.warning("the emulator itself is the limit: it used %.0f%% of its core", 100 * cpu_s / elapsed_s)
        self._was_saturated = is_saturated

    def _used_ru(self, container: Container) -> float:
        """Return what the container would have used, had all partitions used as much as the busiest."""
        busiest = 0.0
        for partition in container.partitions.all:
            key = container.rid, partition.id
            busiest = max(busiest, partition.admitted_ru - self._admitted_ru.get(key, 0.0))
            self._admitted_ru[key] = partition.admitted_ru
        return busiest * len(container.partitions.all)


class Metrics(Collector):
    """Renders the metrics of one emulator; lives as long as it."""

    def __init__(self, account: Account, counts: Counts, monitor: Monitor) -> None:
        self._account = account
        self._counts = counts
        self._monitor = monitor
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Render everything."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Announce nothing: the registry holds this collector only."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield each family."""
        labels = ("operation", "status")
        requests = CounterMetricFamily(f"{PREFIX}_requests", "Responses of the emulation.", labels=labels)
        charges = CounterMetricFamily(f"{PREFIX}_request_units", "RU charged.", labels=labels)
        for (operation, status), number in self._counts.requests.items():
            requests.add_metric((operation, str(status)), number)
            charges.add_metric((operation, str(status)), self._counts.charges_ru[operation, status])
        yield requests
        yield charges
        yield from self._containers()
        limit = CounterMetricFamily(f"{PREFIX}_saturated_seconds", "Seconds in which the emulator was the limit.")
        limit.add_metric((), self._monitor.saturated_s)
        yield limit
        yield from _process()

    def _containers(self) -> Iterator[Metric]:
        by_partition = ("container", "partition")
        admitted = CounterMetricFamily(f"{PREFIX}_partition_request_units", "RU admitted.", labels=by_partition)
        throttled = CounterMetricFamily(f"{PREFIX}_partition_throttled", "Responses of 429.", labels=by_partition)
        share = GaugeMetricFamily(f"{PREFIX}_partition_throughput", "RU/s of a partition.", labels=by_partition)
        documents = GaugeMetricFamily(f"{PREFIX}_documents", "Items.", labels=("container",))
        stored = GaugeMetricFamily(f"{PREFIX}_stored_bytes", "Bytes of items, as charged.", labels=("container",))
        scaled = GaugeMetricFamily(f"{PREFIX}_autoscale_throughput", "RU/s billed if autoscale.", labels=("container",))
        for container in self._account.containers():
            name = label_of(container)
            for partition in container.partitions.all:
                admitted.add_metric((name, partition.id), partition.admitted_ru)
                throttled.add_metric((name, partition.id), partition.throttled)
                share.add_metric((name, partition.id), partition.budgets[0].rate)
            documents.add_metric((name,), len(container.documents))
            stored.add_metric((name,), container.documents.stored_bytes)
            if container.rid in self._monitor.autoscale_ru:
                scaled.add_metric((name,), self._monitor.autoscale_ru[container.rid])
        yield from (admitted, throttled, share, documents, stored, scaled)


def _process() -> Iterator[Metric]:
    """Yield what the process uses, by the names that Prometheus clients use everywhere."""
    cpu = CounterMetricFamily("process_cpu_seconds", "CPU time of the emulator.")
    cpu.add_metric((), time.process_time())
    yield cpu
    if STATM.exists():
        resident = GaugeMetricFamily("process_resident_memory_bytes", "Resident memory of the emulator.")
        resident.add_metric((), int(STATM.read_text().split()[1]) * resource.getpagesize())
        yield resident


def label_of(container: Container) -> str:
    """Name a container in a label: its database and itself."""
    return f"{container.database.name}/{container.name}"
