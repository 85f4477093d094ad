"""Physical partitions: even ranges of effective partition keys, each with a budget of request units for each second.

A request is admitted while anything is left of the second, and its whole charge is taken afterwards; what it took too
much is missing in the next seconds, so over time exactly the provisioned rate is admitted. The caller passes the
time.
"""

from bisect import bisect_right
from dataclasses import dataclass
from math import ceil, floor

from hotplate.bench.cosmos_emulator.errors import PARTITION_KEY_RANGE_GONE, REQUEST_RATE_TOO_LARGE, HttpError
from hotplate.bench.cosmos_emulator.partition_keys import boundary

PARTITION_RU, INITIAL_PARTITION_RU = 10_000, 6_000


@dataclass(frozen=True, slots=True)
class Throughput:
    """RU/s of one container: manual, or the top of an autoscale range that begins at a tenth of it.

    https://learn.microsoft.com/azure/cosmos-db/concepts-limits has the values, and
    https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices the partitions.
    """

    ru: int
    autoscale: bool = False

    @property
    def step(self) -> int:
        """Return what it is a multiple of."""
        return 1_000 if self.autoscale else 100

    @property
    def least(self) -> int:
        """Return the lowest value of its kind."""
        return 1_000 if self.autoscale else 400

    @property
    def initial_partitions(self) -> int:
        """Return how many physical partitions a new container of this throughput has."""
        return ceil(self.ru / (PARTITION_RU if self.autoscale else INITIAL_PARTITION_RU))

    def minimum(self, highest_ru: int, stored_bytes: int) -> int:
        """Return what it cannot be lowered below: by the highest value it ever had, and by what is stored."""
        share, ru_per_gb = (10, 10) if self.autoscale else (100, 1)
        needed = max(self.least, highest_ru / share, stored_bytes / 1000**3 * ru_per_gb)
        return ceil(needed / self.step) * self.step

    def to_json(self) -> dict[str, object]:
        """Return it as the content of an offer."""
        if self.autoscale:
            return {"offerThroughput": self.ru // 10, "offerAutopilotSettings": {"maxThroughput": self.ru}}
        return {"offerThroughput": self.ru, "offerIsRUPerMinuteThroughputEnabled": False}


class Budget:
    """The request units of one partition in one region; times are seconds of any clock that does not go back."""

    __slots__ = ("_second", "_used_ru", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._second = -1
        self._used_ru = 0.0

    def provision(self, rate: float) -> None:
        """Change the rate; what was admitted by the old one is spent, and not owed by the new one."""
        owed = max(0.0, self._used_ru - self.rate)
        self.rate = rate
        self._used_ru = min(self._used_ru - owed, rate) + owed

    def wait_ms(self, now: float) -> int:
        """Return 0 if a request may run at *now*, else the milliseconds until a second with something left."""
        second = floor(now)
        if second > self._second:
            self._roll(second)
        missing = self._used_ru - self.rate
        if missing < 0:
            return 0
        seconds = floor(missing / self.rate) if self.rate else 0
        return max(1, ceil((self._second + 1 + seconds - now) * 1000))

    def charge(self, now: float, charge_ru: float) -> None:
        """Take the charge of a request, whether or not so much is left."""
        second = floor(now)
        if second > self._second:
            self._roll(second)
        self._used_ru += charge_ru

    def left_ru(self, now: float) -> float:
        """Return what may still be spent in this second."""
        if floor(now) > self._second:
            self._roll(floor(now))
        return max(0.0, self.rate - self._used_ru)

    def _roll(self, second: int) -> None:
        """Close the seconds before *second*: what is owed is paid by what they had."""
        if self._second >= 0:
            self._used_ru = max(0.0, self._used_ru - self.rate * (second - self._second))
        self._second = second


class Partition:
    """One physical partition, which serves one partition key range; it lives until it splits."""

    __slots__ = ("admitted_ru", "budgets", "id", "lsn", "maximum", "minimum", "parents", "throttled")

    def __init__(self, range_id: str, minimum: str, maximum: str, parents: tuple[str, ...], lsn: int) -> None:
        self.id = range_id
        self.minimum = minimum
        self.maximum = maximum
        self.parents = parents
        self.lsn = lsn
        self.budgets: list[Budget] = []  # one for each region
        self.admitted_ru = 0.0
        self.throttled = 0

    @property
    def session_token(self) -> str:
        """Return the session token after the last write."""
        return f"{self.id}:-1#{self.lsn}"

    def admit(self, now: float, region: int) -> None:
        """Raise 429 if this second's request units are spent."""
        wait_ms = self.budgets[region].wait_ms(now)
        if wait_ms:
            self.throttled += 1
            raise HttpError(
                429,
                "Request rate is large. More Request Units may be needed, so no changes were made.",
                REQUEST_RATE_TOO_LARGE,
                headers={"x-ms-retry-after-ms": str(wait_ms)},
            )

    def charge_read(self, now: float, region: int, charge_ru: float) -> None:
        """Charge a read to the region that served it."""
        self.admitted_ru += charge_ru
        self.budgets[region].charge(now, charge_ru)

    def charge_write(self, now: float, charge_ru: float) -> None:
        """Charge a write to every region: each applies it."""
        self.admitted_ru += charge_ru
        for budget in self.budgets:
            budget.charge(now, charge_ru)


class Partitions:
    """All partitions of one container, in the order of their ranges."""

    def __init__(self, throughput: Throughput, version: int, regions: int) -> None:
        self._version = version
        self._regions = regions
        parts = throughput.initial_partitions
        edges = [boundary(part, parts, version) for part in range(parts + 1)]
        self._replace([Partition(str(part), edges[part], edges[part + 1], (), 1) for part in range(parts)], parts)
        self.provision(throughput)

    def _replace(self, partitions: list[Partition], next_id: int) -> None:
        self.all = partitions
        self.next_id = next_id
        self._minima = [partition.minimum for partition in partitions]
        self._by_id = {partition.id: partition for partition in partitions}

    def of(self, effective_key: str) -> Partition:
        """Return the partition that holds an effective partition key."""
        return self.all[bisect_right(self._minima, effective_key) - 1]

    def with_id(self, range_id: str) -> Partition:
        """Return the partition of a partition key range; 410 if it has split, or never was."""
        found = self._by_id.get(range_id)
        if found is None:
            raise HttpError(
                410, f"partition key range {range_id} is gone; read the ranges again", PARTITION_KEY_RANGE_GONE
            )
        return found

    def provision(self, throughput: Throughput) -> None:
        """Share *throughput* evenly; partitions split if they cannot carry it, here at once, in Azure in hours."""
        while len(self.all) * PARTITION_RU < throughput.ru:
            self._split_all()
        rate = throughput.ru / len(self.all)
        for partition in self.all:
            if not partition.budgets:
                partition.budgets = [Budget(rate) for _ in range(self._regions)]
            for budget in partition.budgets:
                budget.provision(rate)

    def _split_all(self) -> None:
        halves = list[Partition]()
        for place, parent in enumerate(self.all):
            middle = boundary(place * 2 + 1, len(self.all) * 2, self._version)
            for minimum, maximum in ((parent.minimum, middle), (middle, parent.maximum)):
                range_id = str(self.next_id + len(halves))
                halves.append(Partition(range_id, minimum, maximum, (*parent.parents, parent.id), parent.lsn))
        self._replace(halves, self.next_id + len(halves))

    @property
    def etag(self) -> str:
        """Return the etag of the ranges, which changes with each split."""
        return f'"{self.next_id}"'

    def to_json(self, container_rid: str) -> list[dict[str, object]]:
        """Return the partition key ranges as the service describes them."""
        return [
            {
                "_rid": container_rid,
                "id": partition.id,
                "minInclusive": partition.minimum,
                "maxExclusive": partition.maximum,
                "ridPrefix": int(partition.id),
                "throughputFraction": 1 / len(self.all),
                "status": "online",
                "parents": list(partition.parents),
                "_etag": self.etag,
            }
            for partition in self.all
        ]
