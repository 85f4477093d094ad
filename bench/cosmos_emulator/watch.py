"""What happens each second: expired items are swept, autoscale is measured, and the emulator looks at itself."""

import heapq
import logging

from bench.cosmos_emulator.account import Account, Container, expiry
from bench.cosmos_emulator.documents import Document

log = logging.getLogger(__name__)

SATURATED_SHARE = 0.9
"""A single thread that worked so much of a second was itself the limit of what was measured in it."""


class Watch:
    """Remembers the second before; lives as long as the emulator."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._admitted_ru = dict[tuple[str, str], float]()
        self._was_saturated = False
        self.saturated_s = 0.0
        self.autoscale_ru = dict[str, float]()

    def tick(self, elapsed_s: float, cpu_s: float) -> None:
        """Do what is due; *elapsed_s* passed since the last tick, *cpu_s* of it the process worked."""
        for container in self._account.containers():
            sweep(self._account, container)
        for offer in list(self._account.offers.values()):
            container = offer.container
            used = self._busiest_ru(container) / elapsed_s
            if offer.throughput.autoscale:
                top = offer.throughput.ru
                self.autoscale_ru[container.rid] = min(max(used, top / 10), top)
        self._look_at_itself(elapsed_s, cpu_s)

    def _busiest_ru(self, container: Container) -> float:
        """Return what the container would have used, had all partitions used as much as the busiest."""
        busiest = 0.0
        for partition in container.partitions.all:
            key = container.rid, partition.id
            busiest = max(busiest, partition.admitted_ru - self._admitted_ru.get(key, 0.0))
            self._admitted_ru[key] = partition.admitted_ru
        return busiest * len(container.partitions.all)

    def _look_at_itself(self, elapsed_s: float, cpu_s: float) -> None:
        is_saturated = cpu_s >= SATURATED_SHARE * elapsed_s
        if is_saturated:
            self.saturated_s += elapsed_s
        if is_saturated and not self._was_saturated:
            log.warning("the emulator itself is the limit: it used %.0f%% of its core", 100 * cpu_s / elapsed_s)
        self._was_saturated = is_saturated


def sweep(account: Account, container: Container) -> None:
    """Delete what has expired, on the throughput that its partition has left, as the service does.

    https://learn.microsoft.com/azure/cosmos-db/nosql/time-to-live
    """
    now = account.clock()
    later = list[tuple[float, int, Document]]()
    while container.expiring and container.expiring[0][0] <= now:
        entry = heapq.heappop(container.expiring)
        document = entry[2]
        if document.body is None or expiry(container, document) > now:
            continue  # deleted, or written again: that write has an entry of its own
        charge_ru = account.charges.delete(document.size, document.terms)
        if document.partition.budgets[0].left_ru(now) <= 0:
            later.append(entry)
            continue
        document.partition.charge_write(now, charge_ru)
        container.documents.remove(document)
    for entry in later:
        heapq.heappush(container.expiring, entry)
