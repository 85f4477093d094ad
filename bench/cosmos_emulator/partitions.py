"""Physical partitions: even shares of the hash's range and of the throughput, which split when more is asked for."""

from bisect import bisect_right

from bench.cosmos_emulator.errors import RANGE_GONE, THROTTLED, Refused
from bench.cosmos_emulator.hashing import boundary
from bench.cosmos_emulator.limiter import Budget
from stores.cosmos.throughput import Throughput


class Partition:
    """One physical partition; it lives until it splits."""

    __slots__ = ("admitted_ru", "budgets", "id", "lsn", "maximum", "minimum", "parents", "throttled")

    def __init__(self, name: str, minimum: str, maximum: str, parents: tuple[str, ...], lsn: int) -> None:
        self.id = name
        self.minimum = minimum
        self.maximum = maximum
        self.parents = parents
        self.lsn = lsn
        self.budgets: list[Budget] = []
        self.admitted_ru = 0.0
        self.throttled = 0

    def admit(self, now: float, region: int) -> None:
        """Refuse with 429 where this second's request units are spent."""
        wait_ms = self.budgets[region].wait_ms(now)
        if wait_ms:
            raise self.throttle(wait_ms)

    def throttle(self, wait_ms: int) -> Refused:
        """Count a refusal, and make it."""
        self.throttled += 1
        return Refused(
            429,
            "Request rate is large. More Request Units may be needed, so no changes were made.",
            THROTTLED,
            headers={"x-ms-retry-after-ms": str(wait_ms)},
        )

    def charge_read(self, now: float, region: int, charge_ru: float) -> None:
        """Take a read's charge from the region that served it."""
        self.admitted_ru += charge_ru
        self.budgets[region].charge(now, charge_ru)

    def charge_write(self, now: float, charge_ru: float) -> None:
        """Take a write's charge from every region: each applies it."""
        self.admitted_ru += charge_ru
        for budget in self.budgets:
            budget.charge(now, charge_ru)


class Partitions:
    """All partitions of one container, in the order of their ranges."""

    def __init__(self, throughput: Throughput, version: int, regions: int, *, burst: bool) -> None:
        self._version = version
        self._regions = regions
        self._burst = burst
        parts = throughput.initial_partitions
        edges = [boundary(part, parts, version) for part in range(parts + 1)]
        self.all = [Partition(str(part), edges[part], edges[part + 1], (), 1) for part in range(parts)]
        self._born = parts
        self._index()
        self.provision(throughput)

    def _index(self) -> None:
        self._minima = [partition.minimum for partition in self.all]
        self._by_id = {partition.id: partition for partition in self.all}
        self.generation = self._born

    def of(self, effective_key: str) -> Partition:
        """Return the partition that holds an effective partition key."""
        return self.all[bisect_right(self._minima, effective_key) - 1]

    def named(self, range_id: str) -> Partition:
        """Return the partition of a range id; 410 where it has split, or never was."""
        found = self._by_id.get(range_id)
        if found is None:
            raise Refused(410, f"partition key range {range_id} is gone; read the ranges again", RANGE_GONE)
        return found

    def provision(self, throughput: Throughput) -> None:
        """Share *throughput* evenly; partitions split where they cannot carry it, here at once, in Azure in hours."""
        while len(self.all) < throughput.partitions_needed:
            self._split_all()
        rate = throughput.ru / len(self.all)
        for partition in self.all:
            if not partition.budgets:
                partition.budgets = [Budget(rate, burst=self._burst) for _ in range(self._regions)]
            for budget in partition.budgets:
                budget.provision(rate)

    def _split_all(self) -> None:
        halves = list[Partition]()
        for place, parent in enumerate(self.all):
            parts = len(self.all) * 2
            middle = boundary(place * 2 + 1, parts, self._version)
            for minimum, maximum in ((parent.minimum, middle), (middle, parent.maximum)):
                parents = (*parent.parents, parent.id)
                halves.append(Partition(str(self._born), minimum, maximum, parents, parent.lsn))
                self._born += 1
        self.all = halves
        self._index()

    def described(self, container_rid: str) -> list[dict[str, object]]:
        """Return the ranges as `pkranges` answers them."""
        share = 1 / len(self.all)
        return [
            {
                "_rid": container_rid,
                "id": partition.id,
                "minInclusive": partition.minimum,
                "maxExclusive": partition.maximum,
                "ridPrefix": int(partition.id),
                "throughputFraction": share,
                "status": "online",
                "parents": list(partition.parents),
                "_etag": f'"{self.generation}"',
            }
            for partition in self.all
        ]
