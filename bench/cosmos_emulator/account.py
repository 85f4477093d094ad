"""The account: its databases, containers and offers, and the settings that they share."""

import heapq
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

from hotplate.bench.cosmos_emulator.documents import (
    ContainerDocuments,
    Document,
    IndexingPolicy,
    UniqueKeys,
    resource_id,
)
from hotplate.bench.cosmos_emulator.http import HttpError, Substatus, bad_request
from hotplate.bench.cosmos_emulator.partitions import EmulatedThroughput, PartitionKeyDefinition, Partitions
from hotplate.stores.cosmos.charges import Charges

T = TypeVar("T")

NEVER = float("inf")
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
        self.unique_keys = UniqueKeys(None)
        self.default_ttl: int | None = None
        self.etag = ""
        self.ts = 0
        # A heap of when documents expire, each with the id of its object, as documents cannot be compared; outdated
        # entries are skipped when they come up.
        self.expiring = list[tuple[float, int, Document]]()

    def effective_key_of(self, document: Document) -> str:
        """Return the effective partition key of a document."""
        return self.definition.effective(self.definition.of_item(document.parsed()))

    def expiry(self, document: Document) -> float:
        """Return when a document expires, in seconds of the account's clock."""
        ttl = self.default_ttl if document.ttl is None else document.ttl
        return NEVER if self.default_ttl is None or ttl is None or ttl == -1 else float(document.ts + ttl)

    def schedule_expiry(self, document: Document) -> None:
        """Note when a document that was written expires."""
        expires_at = self.expiry(document)
        if expires_at != NEVER:
            heapq.heappush(self.expiring, (expires_at, id(document), document))

    def reschedule_expiry(self) -> None:
        """Compute again when each document expires: the default time to live has changed."""
        self.expiring = []
        for document in self.documents.after():
            self.schedule_expiry(document)

    def delete_expired(self, charges: Charges, now: float) -> None:
        """Delete what has expired, on the throughput that its partition has left, as the service does.

        https://learn.microsoft.com/azure/cosmos-db/nosql/time-to-live
        """
        postponed = list[tuple[float, int, Document]]()
        while self.expiring and self.expiring[0][0] <= now:
            entry = heapq.heappop(self.expiring)
            document = entry[2]
            if document.body is None or self.expiry(document) > now:
                continue  # deleted, or written again: that write has an entry of its own
            if document.partition.budgets[0].left_ru(now) <= 0:
                postponed.append(entry)
                continue
            document.partition.charge_write(now, charges.delete(document.size, document.terms))
            self.documents.remove(document)
        for entry in postponed:
            heapq.heappush(self.expiring, entry)

    def to_json(self) -> dict[str, Any]:
        """Return the resource as the service describes it."""
        resource: dict[str, Any] = {
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
        if self.unique_keys.paths:
            resource["uniqueKeyPolicy"] = self.unique_keys.resource
        if self.default_ttl is not None:
            resource["defaultTtl"] = self.default_ttl
        return resource


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

    _next_etag: Callable[[], int] = field(default_factory=lambda: itertools.count(1).__next__)

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


def check_ttl(ttl: object, name: str) -> None:
    """Refuse what is not a time to live."""
    if ttl is not None and (type(ttl) is not int or (ttl < 1 and ttl != -1) or ttl >= 1 << 31):
        raise bad_request(f"{name} must be a positive number of seconds, or -1")
