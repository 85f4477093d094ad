"""What was asked, charged and refused, as Prometheus text: by operation and status, and by partition."""

import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bench.cosmos_emulator.account import Account, Container
from bench.cosmos_emulator.counts import Counts
from bench.cosmos_emulator.watch import Watch

PREFIX = "hotplate_cosmos_emulator"
STATM = Path("/proc/self/statm")


class Exposition(Collector):
    """Renders the counts of one emulator."""

    def __init__(self, account: Account, counts: Counts, watch: Watch) -> None:
        self._account = account
        self._counts = counts
        self._watch = watch
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @property
    def saturated_s(self) -> float:
        """Return for how long the emulator itself was the limit."""
        return self._watch.saturated_s

    def text(self) -> bytes:
        """Render everything."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: the registry is ours alone."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield each family."""
        labels = ("operation", "status")
        requests = CounterMetricFamily(f"{PREFIX}_requests", "Answers of the emulation.", labels=labels)
        charges = CounterMetricFamily(f"{PREFIX}_request_units", "RU charged.", labels=labels)
        for (operation, status), number in self._counts.requests.items():
            requests.add_metric((operation, str(status)), number)
            charges.add_metric((operation, str(status)), self._counts.charges_ru[operation, status])
        yield requests
        yield charges
        yield from self._containers()
        limit = CounterMetricFamily(f"{PREFIX}_saturated_seconds", "Seconds in which the emulator was the limit.")
        limit.add_metric((), self._watch.saturated_s)
        yield limit
        yield from _process()

    def _containers(self) -> Iterator[Metric]:
        by_partition = ("container", "partition")
        admitted = CounterMetricFamily(f"{PREFIX}_partition_request_units", "RU admitted.", labels=by_partition)
        refused = CounterMetricFamily(f"{PREFIX}_partition_throttled", "Answers of 429.", labels=by_partition)
        share = GaugeMetricFamily(f"{PREFIX}_partition_throughput", "RU/s of a partition.", labels=by_partition)
        documents = GaugeMetricFamily(f"{PREFIX}_documents", "Items.", labels=("container",))
        stored = GaugeMetricFamily(f"{PREFIX}_stored_bytes", "Bytes of items, as charged.", labels=("container",))
        scaled = GaugeMetricFamily(f"{PREFIX}_autoscale_throughput", "RU/s billed if autoscale.", labels=("container",))
        for container in self._account.containers():
            name = label_of(container)
            for partition in container.partitions.all:
                admitted.add_metric((name, partition.id), partition.admitted_ru)
                refused.add_metric((name, partition.id), partition.throttled)
                share.add_metric((name, partition.id), partition.budgets[0].rate)
            documents.add_metric((name,), len(container.documents))
            stored.add_metric((name,), container.documents.stored_bytes)
            if container.rid in self._watch.autoscale_ru:
                scaled.add_metric((name,), self._watch.autoscale_ru[container.rid])
        yield from (admitted, refused, share, documents, stored, scaled)


def _process() -> Iterator[Metric]:
    """Tell what the emulator itself takes, by the names that Prometheus clients give that everywhere."""
    worked = CounterMetricFamily("process_cpu_seconds", "CPU time of the emulator.")
    worked.add_metric((), time.process_time())
    yield worked
    if STATM.exists():
        resident = GaugeMetricFamily("process_resident_memory_bytes", "Memory that the emulator has in use.")
        resident.add_metric((), int(STATM.read_text().split()[1]) * resource.getpagesize())
        yield resident


def label_of(container: Container) -> str:
    """Name a container in a label: its database and itself."""
    return f"{container.database.name}/{container.name}"
