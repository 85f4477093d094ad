"""The emulator's own pages, below `/__emulation`: faults and metrics.

They need no key, because the emulator listens on loopback by default.
"""

import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hotplate.bench.cosmos_emulator.account import Container
from hotplate.bench.cosmos_emulator.http import (
    HttpError,
    HttpResponse,
    Request,
    error_response,
    parse_json,
)
from hotplate.bench.cosmos_emulator.service import Service

PREFIX = "/__emulation"
STATM = Path("/proc/self/statm")
TEXT = "text/plain; version=0.0.4; charset=utf-8"


class EmulatorMetrics(Collector):
    """The metrics of one emulator."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yield each family; what the process uses goes by the names that Prometheus clients use everywhere."""
        counts, containers = self._service.counts, self._service.account.containers()
        partitions = [
            ((label_of(container), partition.id), partition)
            for container in containers
            for partition in container.partitions.all
        ]
        requests = [((operation, str(status)), number) for (operation, status), number in counts.requests.items()]
        charges = [((operation, str(status)), ru) for (operation, status), ru in counts.charges_ru.items()]
        yield _family(Counter, "requests", "Responses of the emulation.", requests, "operation", "status")
        yield _family(Counter, "request_units", "RU charged.", charges, "operation", "status")
        admitted = [(labels, partition.admitted_ru) for labels, partition in partitions]
        yield _family(Counter, "partition_request_units", "RU admitted.", admitted, "container", "partition")
        throttled = [(labels, partition.throttled) for labels, partition in partitions]
        yield _family(Counter, "partition_throttled", "Responses of 429.", throttled, "container", "partition")
        rates = [(labels, partition.budgets[0].rate) for labels, partition in partitions]
        yield _family(Gauge, "partition_throughput", "RU/s of a partition.", rates, "container", "partition")
        stored = [((label_of(container),), container.documents.stored_bytes) for container in containers]
        yield _family(Gauge, "stored_bytes", "Bytes of items, as charged.", stored, "container")
        yield Counter("process_cpu_seconds", "CPU time of the emulator.", time.process_time())
        if STATM.exists():
            resident = int(STATM.read_text().split()[1]) * resource.getpagesize()
            yield Gauge("process_resident_memory_bytes", "Resident memory of the emulator.", resident)


Samples = Iterable[tuple[Sequence[str], float]]


def _family(kind: type[Counter | Gauge], name: str, text: str, samples: Samples, *labels: str) -> Metric:
    family = kind(f"hotplate_cosmos_emulator_{name}", text, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def label_of(container: Container) -> str:
    """Name a container in a label: its database and itself."""
    return f"{container.database.name}/{container.name}"


class Admin:
    """Answers what begins with the prefix, and passes all else on."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._metrics = EmulatorMetrics(service)

    def answer(self, request: Request) -> HttpResponse:
        """Return the response to a request; never raises."""
        if not request.path.startswith(PREFIX):
            return self._service.answer(request)
        try:
            return self._page(request)
        except HttpError as error:
            return error_response(error)

    def _page(self, request: Request) -> HttpResponse:
        service, now = self._service, self._service.account.clock()
        match request.method, request.path.removeprefix(PREFIX).strip("/"):
            case "GET", "metrics":
                return HttpResponse(200, generate_latest(self._metrics), content_type=TEXT)
            case "GET", "faults":
                return HttpResponse(200, service.faults.to_json())
            case "PUT", "faults":
                service.faults.replace(parse_json(request.body), now)
                return HttpResponse(200, service.faults.to_json())
            case "DELETE", "faults":
                service.faults.replace([], now)
                return HttpResponse(204)
        raise HttpError(404, f"there are {PREFIX}/metrics and {PREFIX}/faults")
