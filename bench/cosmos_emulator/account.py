"""The account: its databases, containers and offers, and the settings that they share."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

from hotplate.bench.cosmos_emulator.documents import ContainerDocuments, Document, IndexingPolicy, resource_id
from hotplate.bench.cosmos_emulator.http import HttpError, Substatus
from hotplate.bench.cosmos_emulator.partitions import (
    EmulatedThroughput,
    PartitionKeyDefinition,
    Partitions,
    effective_key,
)
from hotplate.stores.cosmos.charges import Charges

T = TypeVar("T")

MAX_READ_SIZES = 10_000
# Levels whose reads are charged double.
STRONG = ("Strong", "BoundedStaleness")
# From the strongest to the weakest: a request may relax its account's level, never strengthen it.
CONSISTENCIES = ("Strong", "BoundedStaleness", "Session", "ConsistentPrefix", "Eventual")


@dataclass(slots=True)
class EmulatedOffer:
    """The throughput of one container, as a resource of its own."""

    rid: str
    container: "Container"
    throughput: EmulatedThroughput
    highest_ru: int
    etag: str
    ts: int

    @property
    def minimum_ru(self) -> int:
        """Return the lowest throughput that it can be replaced by."""
        return self.throughput.minimum(self.highest_ru, self.container.documents.stored_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the resource as the service describes it."""
        minimum = {"offerMinimumThroughputParameters": {"minThroughput": self.minimum_ru}}
        return {
            "resource": self.container.link,
            "offerType": "Invalid",
            "offerResourceId": self.container.rid,
            "offerVersion": "V2",
            "content": {**self.throughput.to_json(), **minimum},
            "id": self.rid,
            "_rid": self.rid,
            "_self": f"offers/{self.rid}/",
            "_etag": self.etag,
            "_ts": self.ts,
        }


class Container:
    """One container; it lives until it is deleted, and another of its name is another container."""

    def __init__(
        self, database: "Database", name: str, number: int, definition: PartitionKeyDefinition, partitions: Partitions
    ) -> None:
        self.database = database
        self.name = name
        self.offer: EmulatedOffer
        self.rid_bytes = database.rid_bytes + (number | 1 << 31).to_bytes(4, "big")
        self.rid = resource_id(self.rid_bytes)
        self.link = f"dbs/{database.rid}/colls/{self.rid}/"
        self.named_link = f"dbs/{quote(database.name)}/colls/{quote(name)}"
        self.definition = definition
        self.partitions = partitions
        self.documents = ContainerDocuments()
        self.policy = IndexingPolicy(None)
        self.etag = ""
        self.ts = 0

    def effective_key_of(self, document: Document) -> str:
        """Return the effective partition key of a document."""
        return effective_key(self.definition.of_item(document.parsed()))

    def to_json(self) -> dict[str, Any]:
        """Return the resource as the service describes it."""
        return {
            "id": self.name,
            "indexingPolicy": self.policy.resource,
            "partitionKey": self.definition.resource,
            "conflictResolutionPolicy": {
                "mode": "LastWriterWins",
                "conflictResolutionPath": "/_ts",
                "conflictResolutionProcedure": "",
            },
            "geospatialConfig": {"type": "Geography"},
            "_rid": self.rid,
            "_ts": self.ts,
            "_self": self.link,
            "_etag": self.etag,
            **{f"_{feed}": f"{feed}/" for feed in ("docs", "sprocs", "triggers", "udfs", "conflicts")},
        }


class Database:
    """One database and its containers by name."""

    def __init__(self, name: str, number: int, etag: str, ts: int) -> None:
        self.name = name
        self.rid_bytes = number.to_bytes(4, "big")
        self.rid = resource_id(self.rid_bytes)
        self.etag = etag
        self.ts = ts
        self.containers = dict[str, Container]()

    def to_json(self) -> dict[str, Any]:
        """Return the resource as the service describes it."""
        return {
            "id": self.name,
            "_rid": self.rid,
            "_self": f"dbs/{self.rid}/",
            "_etag": self.etag,
            "_colls": "colls/",
            "_users": "users/",
            "_ts": self.ts,
        }


@dataclass(slots=True)
class EmulatedAccount:
    """All resources; lives as long as the emulator."""

    charges: Charges
    regions: tuple[tuple[str, int], ...]
    """Names and ports, the write region first."""

    consistency: str = "Session"
    clock: Callable[[], float] = time.time
    databases: dict[str, Database] = field(default_factory=dict)
    offers: dict[str, EmulatedOffer] = field(default_factory=dict)
    next_number: Callable[[], int] = field(default_factory=lambda: itertools.count(1).__next__)
    """Returns a number that no resource had before."""

    _read_ru: dict[tuple[int, bool], float] = field(default_factory=dict)
    _next_etag: Callable[[], int] = field(default_factory=lambda: itertools.count(1).__next__)

    def read_ru(self, size: int, *, strong: bool) -> float:
        """Return the charge of a point read; sizes repeat, and a look-up is quicker than the formula."""
        found = self._read_ru.get((size, strong))
        if found is None:
            if len(self._read_ru) >= MAX_READ_SIZES:
                self._read_ru.clear()
            found = self._read_ru[size, strong] = self.charges.read(size, strong=strong)
        return found

    def next_etag(self) -> str:
        """Return an etag that nothing had before, with its quotation marks."""
        count = self._next_etag()
        return f'"{count >> 32:08x}-0000-0000-0000-{count & 0xFFFFFFFF:012x}"'

    def next_stamp(self) -> tuple[str, int]:
        """Return the etag and the time of a resource that is written now."""
        return self.next_etag(), int(self.clock())

    def database(self, name: str, *, is_owner: bool = False) -> Database:
        """Find a database; 404, whose substatus says whether the resource or its owner is missing."""
        return _find(self.databases, name, "database", is_owner=is_owner)

    def container(self, database: str, name: str, *, is_owner: bool = False) -> Container:
        """Find a container; 404 as for databases."""
        return _find(self.database(database, is_owner=True).containers, name, "container", is_owner=is_owner)

    def offer(self, rid: str) -> EmulatedOffer:
        """Find an offer; 404 as for databases."""
        return _find(self.offers, rid, "offer")

    def containers(self) -> list[Container]:
        """Return all containers of all databases."""
        return [container for database in self.databases.values() for container in database.containers.values()]


def _find(resources: Mapping[str, T], name: str, noun: str, *, is_owner: bool = False) -> T:
    if name not in resources:
        substatus = Substatus.OWNER_RESOURCE_NOT_FOUND if is_owner else 0
        raise HttpError(404, f"Resource Not Found: there is no such {noun}", substatus)
    return resources[name]
