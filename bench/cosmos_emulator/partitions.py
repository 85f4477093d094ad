"""Where an item lies: partition keys, the hashes that place them, and physical partitions with their budgets.

A partition is an even range of effective partition keys, and has a budget of request units for each second. A request
is admitted if any of the second's budget is left. Its whole charge is taken afterwards, and if it exceeds the rest, the
next seconds have less. So over time exactly the provisioned rate is admitted. The caller passes the time.

Keys are hashed by version 2, as SDKs create containers; a test compares the hashes with those of the Python SDK.
"""

import struct
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import mmh3

from hotplate.bench.cosmos_emulator.http import HttpError, Substatus, bad_request, parse_json

HEADER = b"x-ms-documentdb-partitionkey"

# https://learn.microsoft.com/azure/cosmos-db/concepts-limits, with large partition keys.
MAX_KEY_BYTES = 2048

# Version 2 clears the two highest bits of its 128: effective keys lie between 00… and 3F….
V2_SPAN = 1 << 126


class Undefined:
    """The type of `UNDEFINED`, the value of a property that an item does not have."""


UNDEFINED = Undefined()
KeyValue = str | int | float | bool | Undefined | None


# How the values are encoded that are one byte long.
SINGLES: dict[object, bytes] = {UNDEFINED: b"\x00", None: b"\x01", False: b"\x02", True: b"\x03"}


class PartitionKeyDefinition:
    """The `partitionKey` of a container, checked; it never changes."""

    __slots__ = ("_segments", "resource")

    def __init__(self, resource: object) -> None:
        if not isinstance(resource, dict):
            raise bad_request("a container needs a partitionKey")
        paths = resource.get("paths")
        if resource.get("kind", "Hash") != "Hash" or not isinstance(paths, list) or len(paths) != 1:
            raise bad_request("partitionKey must be of kind Hash with one path; hierarchical keys are not emulated")
        if resource.get("version") != 2:
            raise bad_request("partitionKey.version must be 2; hashes of version 1 are not emulated")
        if not isinstance(paths[0], str) or not paths[0].startswith("/") or not paths[0].strip("/"):
            raise bad_request("a path of a partition key begins with / and names a property")
        self._segments = tuple(segment.strip('"') for segment in paths[0].strip("/").split("/"))
        self.resource = {"paths": paths, "kind": "Hash", "version": 2}

    def of_item(self, item: Mapping[str, Any]) -> KeyValue:
        """Return the value of the key in an item."""
        value: Any = item
        for segment in self._segments:
            if not isinstance(value, dict) or segment not in value:
                return UNDEFINED
            value = value[segment]
        return self._checked(value)

    def of_header(self, header: bytes | None) -> KeyValue:
        """Return the value that a request's header carries as a JSON list of one."""
        if header is None:
            raise bad_request("the header x-ms-documentdb-partitionkey is missing")
        values = parse_json(header, "x-ms-documentdb-partitionkey")
        if not isinstance(values, list) or len(values) > 1:
            raise bad_request("x-ms-documentdb-partitionkey must be a list of one value")
        if not values or values[0] == {}:
            return UNDEFINED
        return self._checked(values[0])

    def _checked(self, value: object) -> KeyValue:
        if isinstance(value, str):
            if len(value.encode()) > MAX_KEY_BYTES:
                raise bad_request(f"a partition key has at most {MAX_KEY_BYTES} bytes")
            return value
        if value is None or isinstance(value, bool | int | float):
            return value
        raise bad_request("a partition key is a string, a number, a boolean or null")


def encode(value: KeyValue) -> bytes:
    """Return the bytes that are hashed; they also identify the key, for equal keys have equal bytes."""
    if isinstance(value, str):
        return b"\x08%b\xff" % value.encode()
    if isinstance(value, bool | Undefined | None):
        return SINGLES[value]
    return b"\x05" + struct.pack("<d", value)


def effective_key(value: KeyValue) -> str:
    """Return the effective partition key in hexadecimal, as SDKs compute it; partitions are ranges of these."""
    low, high = mmh3.hash64(encode(value), signed=False)
    return f"{(high << 64 | low) & (V2_SPAN - 1):032X}"


def boundary(part: int, parts: int) -> str:
    """Return the lower bound of the *part*-th of *parts* even ranges of effective partition keys."""
    if part == 0:
        return ""
    return "FF" if part == parts else f"{V2_SPAN * part // parts:032X}"


PARTITION_RU = 10_000
INITIAL_PARTITION_RU = 6_000


@dataclass(frozen=True, slots=True)
class EmulatedThroughput:
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
        self._roll(now)
        missing = self._used_ru - self.rate
        if missing < 0:
            return 0
        seconds = floor(missing / self.rate) if self.rate else 0
        return max(1, ceil((self._second + 1 + seconds - now) * 1000))

    def charge(self, now: float, charge_ru: float) -> None:
        """Take the charge of a request, whether or not so much is left."""
        self._roll(now)
        self._used_ru += charge_ru

    def left_ru(self, now: float) -> float:
        """Return what may still be spent in this second."""
        self._roll(now)
        return max(0.0, self.rate - self._used_ru)

    def _roll(self, now: float) -> None:
        """Close the seconds before that of *now*: what is owed is paid by what they had."""
        second = floor(now)
        if second <= self._second:
            return
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
                Substatus.REQUEST_RATE_TOO_LARGE,
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

    def __init__(self, throughput: EmulatedThroughput, regions: int) -> None:
        self._regions = regions
        parts = throughput.initial_partitions
        edges = [boundary(part, parts) for part in range(parts + 1)]
        self._replace([Partition(str(part), edges[part], edges[part + 1], (), 1) for part in range(parts)], parts)
        self.provision(throughput)

    def _replace(self, partitions: list[Partition], next_id: int) -> None:
        self.all = partitions
        self.next_id = next_id
        self._minima = [partition.minimum for partition in partitions]

    def of(self, effective_key: str) -> Partition:
        """Return the partition that holds an effective partition key."""
        return self.all[bisect_right(self._minima, effective_key) - 1]

    def with_id(self, range_id: str) -> Partition:
        """Return the partition of a partition key range; 410 if it has split, or never was."""
        found = next((partition for partition in self.all if partition.id == range_id), None)
        if found is None:
            raise HttpError(
                410,
                f"partition key range {range_id} is gone; read the ranges again",
                Substatus.PARTITION_KEY_RANGE_GONE,
            )
        return found

    def provision(self, throughput: EmulatedThroughput) -> None:
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
            middle = boundary(place * 2 + 1, len(self.all) * 2)
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
