"""The account: databases, containers and offers, and the settings that they share."""

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from bench.cosmos_emulator.documents import Document, Documents
from bench.cosmos_emulator.indexing import Policy
from bench.cosmos_emulator.partition_keys import Definition
from bench.cosmos_emulator.partitions import Partitions
from bench.cosmos_emulator.rids import container_rid, database_rid, offer_rid
from stores.cosmos.charges import Charges
from stores.cosmos.throughput import Throughput, minimum_ru

NEVER = float("inf")
STRONG = ("Strong", "BoundedStaleness")
CONSISTENCIES = ("Strong", "BoundedStaleness", "Session", "ConsistentPrefix", "Eventual")
"""From the strongest to the weakest: a request may ask for less than its account's, never for more."""


@dataclass(slots=True)
class Offer:
    """The throughput of one container, as `/offers` tells it."""

    rid: str
    container: "Container"
    throughput: Throughput
    highest_ru: int
    etag: str
    ts: int

    @property
    def minimum_ru(self) -> int:
        """Return the least throughput that it can be replaced by."""
        stored = self.container.documents.stored_bytes
        return minimum_ru(self.highest_ru, stored, autoscale=self.throughput.autoscale)

    def told(self) -> dict[str, Any]:
        """Return it as the service answers it."""
        minimum = {"offerMinimumThroughputParameters": {"minThroughput": self.minimum_ru}}
        content = {**self.throughput.content(), **minimum}
        return {
            "resource": self.container.link,
            "offerType": "Invalid",
            "offerResourceId": self.container.rid,
            "offerVersion": "V2",
            "content": content,
            "id": self.rid,
            "_rid": self.rid,
            "_self": f"offers/{self.rid}/",
            "_etag": self.etag,
            "_ts": self.ts,
        }


class Container:
    """One container; it lives until it is deleted, and another of its name is another container."""

    def __init__(
        self, database: "Database", name: str, number: int, definition: Definition, partitions: Partitions
    ) -> None:
        self.database = database
        self.name = name
        self.number = number
        self.rid = container_rid(database.number, number)
        self.link = f"dbs/{database.rid}/colls/{self.rid}/"
        self.named_link = f"dbs/{quote(database.name)}/colls/{quote(name)}"
        self.definition = definition
        self.partitions = partitions
        self.documents = Documents()
        self.policy = Policy(None)
        self.default_ttl: int | None = None
        self.etag = ""
        self.ts = 0
        self.expiring = list[tuple[float, int, Document]]()
        """A heap of when documents expire; stale entries are recognised when they come up."""

    def watch_expiry(self) -> None:
        """Find out anew when documents expire: the time to live of all has changed."""
        known = ((expiry(self, document), document.serial, document) for document in self.documents.after())
        self.expiring = [entry for entry in known if entry[0] != NEVER]
        heapq.heapify(self.expiring)

    def told(self) -> dict[str, Any]:
        """Return it as the service answers it."""
        told: dict[str, Any] = {
            "id": self.name,
            "indexingPolicy": self.policy.told,
            "partitionKey": self.definition.told,
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
            "_docs": "docs/",
            "_sprocs": "sprocs/",
            "_triggers": "triggers/",
            "_udfs": "udfs/",
            "_conflicts": "conflicts/",
        }
        if self.default_ttl is not None:
            told["defaultTtl"] = self.default_ttl
        return told


def expiry(container: Container, document: Document) -> float:
    """Return when a document expires, in seconds of the account's clock."""
    ttl = container.default_ttl if document.ttl is None else document.ttl
    return NEVER if container.default_ttl is None or ttl is None or ttl == -1 else float(document.ts + ttl)


class Database:
    """One database and its containers by name."""

    def __init__(self, name: str, number: int, etag: str, ts: int) -> None:
        self.name = name
        self.number = number
        self.rid = database_rid(number)
        self.etag = etag
        self.ts = ts
        self.containers = dict[str, Container]()

    def told(self) -> dict[str, Any]:
        """Return it as the service answers it."""
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
class Account:
    """Everything there is; it lives as long as the emulator."""

    charges: Charges
    regions: tuple[tuple[str, int], ...]
    """Names and ports, the region that is written first."""

    consistency: str = "Session"
    burst: bool = False
    clock: Callable[[], float] = time.time
    databases: dict[str, Database] = field(default_factory=dict)
    offers: dict[str, Offer] = field(default_factory=dict)
    _counts: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _etags: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def number(self) -> int:
        """Return a number that no resource had before."""
        return next(self._counts)

    def etag(self) -> str:
        """Return an etag that nothing had before, with its quotation marks."""
        count = next(self._etags)
        return f'"{count >> 32:08x}-0000-0000-0000-{count & 0xFFFFFFFF:012x}"'

    def offer(self, container: Container, throughput: Throughput) -> Offer:
        """Make the offer of a new container."""
        rid = offer_rid(self.number())
        made = Offer(rid, container, throughput, throughput.ru, self.etag(), int(self.clock()))
        self.offers[rid] = made
        return made

    def offer_of(self, container: Container) -> Offer:
        """Find the offer of a container."""
        return next(offer for offer in self.offers.values() if offer.container is container)

    def containers(self) -> list[Container]:
        """Return all containers of all databases."""
        return [container for database in self.databases.values() for container in database.containers.values()]
