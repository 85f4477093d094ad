"""Where items are stored: documents, their partition keys and hashes, and physical partitions with their budgets.

A partition is an even range of effective partition keys, and has a budget of request units for each second. A request
is admitted if any of the second's budget is left. Its whole charge is taken afterwards, and what exceeds the rest is
missing in the next seconds, so over time exactly the provisioned rate is admitted. The caller passes the time.

Keys are hashed by version 2, as SDKs create containers; a test compares the hashes with those of the Python SDK.
"""

import re
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil, floor
from operator import attrgetter
from typing import Any

import mmh3
import orjson

from hotplate.bench.cosmos_emulator.http import HttpError, Request, Substatus, parse_json

HEADER = b"x-ms-documentdb-partitionkey"

# https://learn.microsoft.com/azure/cosmos-db/concepts-limits, with large partition keys.
MAX_KEY_BYTES = 2048
PARTITION_RU = 10_000
INITIAL_PARTITION_RU = 6_000

# Version 2 clears the two highest bits of its 128: effective keys lie between 00… and 3F….
V2_SPAN = 1 << 126


def key_property(definition: object) -> str:
    """Return the property that is the partition key, from the `partitionKey` of a container."""
    match definition:
        case {"paths": [str(path)], "version": 2, **rest} if re.fullmatch(r"/\w+", path):
            if rest.get("kind", "Hash") == "Hash":
                return path[1:]
    raise HttpError(400, "the emulator supports a partitionKey of kind Hash, version 2, and one path to a property")


def key_of(request: Request) -> bytes:
    """Return the encoded key that a request's header carries as a JSON list of one."""
    values = parse_json(request.headers.get(HEADER, b"null"), "x-ms-documentdb-partitionkey")
    if not isinstance(values, list) or len(values) != 1:
        raise HttpError(400, "the header x-ms-documentdb-partitionkey must be a list of one value")
    return encode(values[0])


def encode(value: object) -> bytes:
    """Return the bytes of a key that are hashed; they also identify it, for equal keys have equal bytes."""
    if isinstance(value, str):
        encoded = value.encode()
        if len(encoded) > MAX_KEY_BYTES:
            raise HttpError(400, f"a partition key has at most {MAX_KEY_BYTES} bytes")
        return b"\x08%b\xff" % encoded
    if value is None or isinstance(value, bool):
        return {None: b"\x01", False: b"\x02", True: b"\x03"}[value]
    if isinstance(value, int | float):
        return b"\x05" + struct.pack("<d", value)
    raise HttpError(400, "a partition key is a string, a number, a boolean or null")


def effective_key(value: object) -> str:
    """Return the effective partition key in hexadecimal, as SDKs compute it; partitions are ranges of these."""
    return hash_of(encode(value))


def hash_of(key: bytes) -> str:
    """Return the effective partition key of an encoded key."""
    low, high = mmh3.hash64(key, signed=False)
    return f"{(high << 64 | low) & (V2_SPAN - 1):032X}"


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

    def minimum(self, highest_ru: int = 0, stored_bytes: int = 0) -> int:
        """Return what it cannot be lowered below: by the highest value it ever had, and by what is stored."""
        least, share, ru_per_gb = (1_000, 10, 10) if self.autoscale else (400, 100, 1)
        needed = max(least, highest_ru / share, stored_bytes / 1000**3 * ru_per_gb)
        return ceil(needed / self.step) * self.step

    def to_json(self) -> dict[str, object]:
        """Return it as the content of an offer."""
        if self.autoscale:
            return {"offerThroughput": self.ru // 10, "offerAutopilotSettings": {"maxThroughput": self.ru}}
        return {"offerThroughput": self.ru, "offerIsRUPerMinuteThroughputEnabled": False}


@dataclass(slots=True)
class Budget:
    """The request units of one partition in one region; times are seconds of any clock that does not go back."""

    rate: float = 0.0
    _second: int = -1
    _used_ru: float = 0.0

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

    def _roll(self, now: float) -> None:
        """Close the seconds before that of *now*: what is owed is paid by what they had."""
        second = floor(now)
        if second <= self._second:
            return
        if self._second >= 0:
            self._used_ru = max(0.0, self._used_ru - self.rate * (second - self._second))
        self._second = second


@dataclass(slots=True, eq=False)
class Partition:
    """One physical partition, which serves one partition key range until it splits."""

    id: str
    minimum: str
    maximum: str
    budgets: list[Budget]  # of each region
    parents: tuple[str, ...] = ()
    lsn: int = 1
    admitted_ru: float = 0.0
    throttled: int = 0

    @property
    def session_token(self) -> str:
        """Return the session token after the last write."""
        return f"{self.id}:-1#{self.lsn}"

    def admit(self, now: float, region: int) -> None:
        """Raise 429 if this second's request units are spent."""
        wait_ms = self.budgets[region].wait_ms(now)
        if wait_ms:
            self.throttled += 1
            message = "Request rate is large. More Request Units may be needed, so no changes were made."
            headers = {"x-ms-retry-after-ms": str(wait_ms)}
            raise HttpError(429, message, Substatus.REQUEST_RATE_TOO_LARGE, headers=headers)

    def charge(self, now: float, charge_ru: float, region: int | None = None) -> None:
        """Charge a read to the region that served it, and a write to every region: each applies it."""
        self.admitted_ru += charge_ru
        for budget in self.budgets if region is None else (self.budgets[region],):
            budget.charge(now, charge_ru)


class Partitions:
    """All partitions of one container, in the order of their ranges."""

    def __init__(self, throughput: EmulatedThroughput, regions: int) -> None:
        self._regions = regions
        self._next_id = 0
        parts = ceil(throughput.ru / (PARTITION_RU if throughput.autoscale else INITIAL_PARTITION_RU))
        self._replace([None] * parts)
        self.provision(throughput)

    def _replace(self, parents: Sequence[Partition | None]) -> None:
        """Have as many even partitions as there are *parents*, each with its parent if it has one."""
        inner = [f"{V2_SPAN * part // len(parents):032X}" for part in range(1, len(parents))]
        self._minima = ["", *inner]
        self.all = list[Partition]()
        for minimum, maximum, parent in zip(self._minima, [*inner, "FF"], parents, strict=True):
            made = Partition(str(self._next_id), minimum, maximum, [Budget() for _ in range(self._regions)])
            if parent is not None:
                made.parents, made.lsn = (*parent.parents, parent.id), parent.lsn
            self.all.append(made)
            self._next_id += 1

    def of(self, key: bytes) -> Partition:
        """Return the partition of an encoded key."""
        return self.all[bisect_right(self._minima, hash_of(key)) - 1]

    def with_id(self, range_id: str) -> Partition:
        """Return the partition of a partition key range; 410 if it has split, or never was."""
        for partition in self.all:
            if partition.id == range_id:
                return partition
        message = f"partition key range {range_id} is gone; read the ranges again"
        raise HttpError(410, message, Substatus.PARTITION_KEY_RANGE_GONE)

    def provision(self, throughput: EmulatedThroughput) -> None:
        """Share *throughput* evenly; partitions split if they cannot carry it, here at once, in Azure in hours."""
        while len(self.all) * PARTITION_RU < throughput.ru:
            self._replace([parent for parent in self.all for _ in range(2)])
        for partition in self.all:
            for budget in partition.budgets:
                budget.provision(throughput.ru / len(self.all))

    @property
    def etag(self) -> str:
        """Return the etag of the ranges, which changes with each split."""
        return f'"{self._next_id}"'

    def to_json(self, container_rid: str) -> list[dict[str, object]]:
        """Return the partition key ranges as the service describes them."""
        return [
            {
                "_rid": container_rid,
                "id": partition.id,
                "minInclusive": partition.minimum,
                "maxExclusive": partition.maximum,
                "parents": list(partition.parents),
                "_etag": self.etag,
            }
            for partition in self.all
        ]


@dataclass(slots=True)
class Document:
    """One item as it is stored; a write puts another one in its place."""

    id: str
    key: bytes
    serial: int  # orders the documents of a container
    partition: Partition
    body: bytes  # as it is returned: system properties come last
    size: int  # bytes that are charged for
    terms: frozenset[tuple[str, object]]  # indexed values that are charged for
    etag: str

    def parsed(self) -> dict[str, Any]:
        """Parse the whole item, system properties included."""
        item: dict[str, Any] = orjson.loads(self.body)
        return item


SERIAL = attrgetter("serial")


class ContainerDocuments:
    """All documents of one container, by id and partition key, and in the order of their creation."""

    def __init__(self) -> None:
        self._by_key = dict[tuple[str, bytes], Document]()
        self._ordered = list[Document]()
        self.next_serial = count(1).__next__
        self.stored_bytes = 0

    def __len__(self) -> int:
        return len(self._ordered)

    def get(self, item_id: str, key: bytes) -> Document | None:
        """Find a document."""
        return self._by_key.get((item_id, key))

    def after(self, serial: int = 0) -> Iterator[Document]:
        """Yield the documents with a higher serial, in order; put and remove nothing before the end."""
        for place in range(bisect_right(self._ordered, serial, key=SERIAL), len(self._ordered)):
            yield self._ordered[place]

    def put(self, document: Document) -> None:
        """Store a document; one of the same id and key must have the same serial, and is replaced."""
        old = self.get(document.id, document.key)
        place = bisect_left(self._ordered, document.serial, key=SERIAL)
        if old is None:
            self._ordered.insert(place, document)
        else:
            self._ordered[place] = document
            self.stored_bytes -= old.size
        self._by_key[document.id, document.key] = document
        self.stored_bytes += document.size

    def remove(self, document: Document) -> None:
        """Delete a document."""
        del self._by_key[document.id, document.key]
        del self._ordered[bisect_left(self._ordered, document.serial, key=SERIAL)]
        self.stored_bytes -= document.size
