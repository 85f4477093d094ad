"""Documents, partition keys and their hashes, and physical partitions with budgets.

A partition is a range of effective partition keys (version 2) with a budget of RU/s. A request is admitted if any
budget of the second is left; its charge is deducted afterwards, also from later seconds.
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

from hotplate.bench.cosmos_emulator.messages import HttpError, Request, Substatus, parse_json
from hotplate.stores.cosmos.url import PARTITION_RU, Throughput

HEADER = b"x-ms-documentdb-partitionkey"

# https://learn.microsoft.com/azure/cosmos-db/concepts-limits, with large partition keys.
MAX_KEY_BYTES = 2048
# Version 2 clears the two highest of 128 bits.
V2_SPAN = 1 << 126


def key_property(definition: object) -> str:
    """Return the property of a container's `partitionKey`; a version that is not given counts as 2."""
    match definition:
        case {"paths": [str(path)], **rest} if re.fullmatch(r"/\w+", path):
            if rest.get("kind", "Hash") == "Hash" and rest.get("version", 2) == 2:
                return path[1:]
    raise HttpError(400, "the emulator supports a partitionKey of kind Hash, version 2, and one path")


def key_of(request: Request) -> bytes:
    """Return the encoded key of a request's header."""
    values = parse_json(request.headers.get(HEADER, b"null"), "x-ms-documentdb-partitionkey")
    if not isinstance(values, list) or len(values) != 1:
        raise HttpError(400, "the header x-ms-documentdb-partitionkey must be a list of one value")
    return encode(values[0])


def encode(value: object) -> bytes:
    """Encode a partition key as Cosmos DB does for its hash: a byte for the type, and the value.

    SDKs send an empty object for an item without its partition key. Raises 400 for a string of more than MAX_KEY_BYTES,
    and for other objects and lists.
    """
    if isinstance(value, str):
        encoded = value.encode()
        if len(encoded) > MAX_KEY_BYTES:
            raise HttpError(400, f"a partition key has at most {MAX_KEY_BYTES} bytes")
        return b"\x08%b\xff" % encoded
    if value == {}:  # of an item without the property
        return b"\x00"
    if value is None or isinstance(value, bool):
        return {None: b"\x01", False: b"\x02", True: b"\x03"}[value]
    if isinstance(value, int | float):
        return b"\x05" + struct.pack("<d", value)
    raise HttpError(400, "a partition key is a string, a number, a boolean or null")


def effective_key(value: object) -> str:
    """Return the hexadecimal effective partition key, as in SDKs."""
    return hash_of(encode(value))


def hash_of(key: bytes) -> str:
    """Return the effective partition key of an encoded key."""
    low, high = mmh3.hash64(key, signed=False)
    return f"{(high << 64 | low) & (V2_SPAN - 1):032X}"


@dataclass(slots=True)
class Budget:
    """Request units of one partition and region; times are seconds, of a clock that may be set back."""

    rate: float = 0.0
    _second: int = -1
    _used_ru: float = 0.0

    def provision(self, rate: float) -> None:
        """Change the rate; debts beyond the old rate remain."""
        owed = max(0.0, self._used_ru - self.rate)
        self.rate = rate
        self._used_ru = min(self._used_ru - owed, rate) + owed

    def wait_ms(self, now: float) -> int:
        """Return 0 if a request is admitted at *now*, else the milliseconds to wait."""
        self._refill(now)
        missing = self._used_ru - self.rate
        if missing < 0:
            return 0
        seconds = floor(missing / self.rate) if self.rate else 0
        return max(1, ceil((self._second + 1 + seconds - now) * 1000))

    def charge(self, now: float, charge_ru: float) -> None:
        """Deduct a charge, perhaps beyond the budget."""
        self._refill(now)
        self._used_ru += charge_ru

    def _refill(self, now: float) -> None:
        """Give back `rate` RU for each second that has begun since the last call; a debt is carried over."""
        second = floor(now)
        if second > self._second >= 0:
            self._used_ru = max(0.0, self._used_ru - self.rate * (second - self._second))
        self._second = second


@dataclass(slots=True, eq=False)
class Partition:
    """One physical partition, until it splits."""

    id: str
    minimum: str
    maximum: str
    budgets: list[Budget]  # by region
    parents: tuple[str, ...] = ()
    lsn: int = 1
    admitted_ru: float = 0.0

    @property
    def session_token(self) -> str:
        """Return the session token of the last write."""
        return f"{self.id}:-1#{self.lsn}"

    def to_json(self) -> dict[str, Any]:
        """Return the range of keys in the service's format."""
        parents = list(self.parents)
        return {"id": self.id, "minInclusive": self.minimum, "maxExclusive": self.maximum, "parents": parents}

    def admit(self, now: float, region: int) -> None:
        """Raise 429 if this second's budget is spent."""
        wait_ms = self.budgets[region].wait_ms(now)
        if wait_ms:
            message = "Request rate is large. More Request Units may be needed, so no changes were made."
            headers = {"x-ms-retry-after-ms": str(wait_ms)}
            raise HttpError(429, message, Substatus.REQUEST_RATE_TOO_LARGE, headers=headers)

    def charge(self, now: float, charge_ru: float, region: int | None = None) -> None:
        """Charge a read to its region, a write to all."""
        self.admitted_ru += charge_ru
        for budget in self.budgets if region is None else (self.budgets[region],):
            budget.charge(now, charge_ru)


class Partitions:
    """A container's partitions in order."""

    def __init__(self, throughput: Throughput, regions: int) -> None:
        self._regions = regions
        self._next_id = 0
        self._replace_all([None] * throughput.initial_partitions)
        self.provision(throughput)

    def _replace_all(self, parents: Sequence[Partition | None]) -> None:
        """Replace all partitions by new ones with equal ranges of hashes, as many as *parents*.

        *parents* are the partitions that were split, one for each new partition; None for a container's first ones.
        Each new partition has a budget of RU/s for each region.
        """
        # In hexadecimal digits; the empty string is before, and "FF" after all hashes.
        boundaries = [f"{V2_SPAN * number // len(parents):032X}" for number in range(1, len(parents))]
        self._minima = ["", *boundaries]

        self.all = list[Partition]()
        for minimum, maximum, parent in zip(self._minima, [*boundaries, "FF"], parents, strict=True):
            budgets = [Budget() for _ in range(self._regions)]
            partition = Partition(str(self._next_id), minimum, maximum, budgets)
            if parent is not None:
                partition.parents = (*parent.parents, parent.id)
                partition.lsn = parent.lsn
            self.all.append(partition)
            self._next_id += 1

    def of(self, key: bytes) -> Partition:
        """Return an encoded key's partition."""
        return self.all[bisect_right(self._minima, hash_of(key)) - 1]

    def with_id(self, range_id: str) -> Partition:
        """Return a partition; 410 for an unknown id, which may have split."""
        for partition in self.all:
            if partition.id == range_id:
                return partition
        message = f"partition key range {range_id} is gone; read the ranges again"
        raise HttpError(410, message, Substatus.PARTITION_KEY_RANGE_GONE)

    def provision(self, throughput: Throughput) -> None:
        """Share *throughput* evenly; partitions split at once (in Azure it takes hours)."""
        while len(self.all) * PARTITION_RU < throughput.ru:
            self._replace_all([parent for parent in self.all for _ in range(2)])
        for partition in self.all:
            for budget in partition.budgets:
                budget.provision(throughput.ru / len(self.all))

    @property
    def etag(self) -> str:
        """Return the etag of the ranges."""
        return f'"{self._next_id}"'


@dataclass(slots=True)
class Document:
    """One stored item; writes replace it."""

    id: str
    key: bytes
    serial: int
    partition: Partition
    body: bytes  # system properties last
    size: int  # charged bytes
    terms: frozenset[tuple[str, object]]  # charged, indexed values
    etag: str

    def parsed(self) -> dict[str, Any]:
        """Return the item with system properties."""
        item: dict[str, Any] = orjson.loads(self.body)
        return item


SERIAL = attrgetter("serial")


class ContainerDocuments:
    """A container's documents, by id and key and in creation order."""

    def __init__(self) -> None:
        self._by_key = dict[tuple[str, bytes], Document]()
        self._ordered = list[Document]()
        self.next_serial = count(1).__next__

    def get(self, item_id: str, key: bytes) -> Document | None:
        """Find a document."""
        return self._by_key.get((item_id, key))

    def after(self, serial: int = 0) -> Iterator[Document]:
        """Yield documents with a higher serial; do not modify them while iterating."""
        for place in range(bisect_right(self._ordered, serial, key=SERIAL), len(self._ordered)):
            yield self._ordered[place]

    def put(self, document: Document) -> None:
        """Store a document with a new serial, or replace the one with its id, key and serial."""
        old = self.get(document.id, document.key)
        if old is None:
            self._ordered.append(document)
        else:
            self._ordered[bisect_left(self._ordered, document.serial, key=SERIAL)] = document
        self._by_key[document.id, document.key] = document

    def remove(self, document: Document) -> None:
        """Delete a document."""
        del self._by_key[document.id, document.key]
        del self._ordered[bisect_left(self._ordered, document.serial, key=SERIAL)]
