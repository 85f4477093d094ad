"""The account: databases, containers, offers and partition key ranges.

Requests for them are never limited, and charged by an assumption. A resource id (`_rid`) is 4 bytes of a database, then
4 of a container with the highest bit set, then 8 of the item, as the service's are.

https://learn.microsoft.com/azure/cosmos-db/index-policy: each indexed value is a term that a write is charged for.
Assumed, as the page does not say: system properties are not terms.
"""

import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar
from urllib.parse import quote

import orjson

from hotplate.bench.cosmos_emulator.http import (
    HttpError,
    HttpResponse,
    Request,
    Substatus,
    parse_json,
    parse_object,
)
from hotplate.bench.cosmos_emulator.partitions import (
    ContainerDocuments,
    EmulatedThroughput,
    Partitions,
    key_property_of,
)
from hotplate.stores.cosmos.charges import Charges

T = TypeVar("T")

OFFER_HEADER = b"x-ms-offer-throughput"
AUTOSCALE_HEADER = b"x-ms-cosmos-offer-autopilot-settings"
DEFAULT_RU = 400
MAX_RU = 1_000_000
MAX_ID_CHARS = 255
ALREADY_EXISTS = "Entity with the specified id already exists in the system."
SHARED_THROUGHPUT = "throughput of a whole database is not emulated: give each container its own"
NOT_EMULATED = (
    "defaultTtl", "uniqueKeyPolicy", "computedProperties", "vectorEmbeddingPolicy", "fullTextPolicy",
    "changeFeedPolicy", "analyticalStorageTtl", "clientEncryptionPolicy", "materializedViewDefinition",
)  # fmt: skip
# From the strongest to the weakest: a request may relax its account's level, never strengthen it.
CONSISTENCIES = ("Strong", "BoundedStaleness", "Session", "ConsistentPrefix", "Eventual")
EVERYTHING = [{"path": "/*"}]
EXCLUDED = [{"path": '/"_etag"/?'}]


def indexes_of(policy: object) -> bool:
    """Return whether an indexing policy indexes everything; 400 for one that indexes a part."""
    if policy is None:
        return True
    if not isinstance(policy, dict):
        raise HttpError(400, "indexingPolicy must be an object")
    included, excluded = policy.get("includedPaths") or [], policy.get("excludedPaths") or []
    match str(policy.get("indexingMode", "consistent")).lower():
        case "none" if not included:
            return False
        case "consistent" if included in ([], EVERYTHING) and excluded in ([], EXCLUDED):
            return True
    raise HttpError(400, "the emulator indexes everything, by default, or nothing, with indexingMode none")


def terms_of(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of an item with their paths: the terms of which each is charged for once if it is indexed."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else (("[]", one) for one in value)
        for name, part in inner:
            yield from terms_of(part, f"{path}/{name}")
    else:
        yield path, (type(value).__name__, value)


def resource_id(raw: bytes) -> str:
    """Return the resource id for some bytes."""
    return b64encode(raw, b"+-").decode()


@dataclass(slots=True)
class EmulatedOffer:
    """The throughput of one container, as a resource."""

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
    """One container. After it is deleted, another of its name is another container."""

    def __init__(
        self, account: "EmulatedAccount", database: "Database", resource: Mapping[str, Any], given: EmulatedThroughput
    ) -> None:
        self.name = _checked_id(resource, database.containers)
        for unknown in NOT_EMULATED:
            if resource.get(unknown):
                raise HttpError(400, f"{unknown} is not emulated")
        self.key_property = key_property_of(resource.get("partitionKey"))
        self.is_indexed = indexes_of(resource.get("indexingPolicy"))
        self.database = database
        self.rid_bytes = database.rid_bytes + (account.next_number() | 1 << 31).to_bytes(4, "big")
        self.rid = resource_id(self.rid_bytes)
        self.link = f"dbs/{database.rid}/colls/{self.rid}/"
        self.named_link = f"dbs/{quote(database.name)}/colls/{quote(self.name)}"
        self.partitions = Partitions(given, len(account.regions))
        self.documents = ContainerDocuments()
        self.etag, self.ts = account.next_stamp()
        rid = resource_id(account.next_number().to_bytes(3, "big"))
        self.offer = EmulatedOffer(rid, self, given, given.ru, *account.next_stamp())

    def to_json(self) -> dict[str, Any]:
        """Return the resource as the service describes it."""
        return {
            "id": self.name,
            "indexingPolicy": {
                "indexingMode": "consistent" if self.is_indexed else "none",
                "automatic": self.is_indexed,
                "includedPaths": EVERYTHING if self.is_indexed else [],
                "excludedPaths": EXCLUDED if self.is_indexed else [],
            },
            "partitionKey": {"paths": [f"/{self.key_property}"], "kind": "Hash", "version": 2},
            "_rid": self.rid,
            "_ts": self.ts,
            "_self": self.link,
            "_etag": self.etag,
            "_docs": "docs/",
        }


class Database:
    """One database and its containers by name."""

    def __init__(self, account: "EmulatedAccount", resource: Mapping[str, Any]) -> None:
        self.name = _checked_id(resource, account.databases)
        self.rid_bytes = account.next_number().to_bytes(4, "big")
        self.rid = resource_id(self.rid_bytes)
        self.etag, self.ts = account.next_stamp()
        self.containers = dict[str, Container]()

    def to_json(self) -> dict[str, Any]:
        """Return the resource as the service describes it."""
        return {
            "id": self.name,
            "_rid": self.rid,
            "_self": f"dbs/{self.rid}/",
            "_etag": self.etag,
            "_colls": "colls/",
            "_ts": self.ts,
        }


def _checked_id(resource: Mapping[str, Any], present: Mapping[str, object]) -> str:
    name = resource.get("id")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID_CHARS or set(name) & set("/\\#?") or name[-1] == " ":
        raise HttpError(
            400, f"an id has 1 to {MAX_ID_CHARS} characters, without / \\ # ? and without a space at its end"
        )
    if name in present:
        raise HttpError(409, ALREADY_EXISTS)
    return name


@dataclass(slots=True)
class EmulatedAccount:
    """All resources of one emulator."""

    charges: Charges
    regions: tuple[tuple[str, int], ...]
    """Names and ports, the write region first."""

    consistency: str = "Session"
    clock: Callable[[], float] = time.time
    databases: dict[str, Database] = field(default_factory=dict)
    next_number: Callable[[], int] = field(default_factory=lambda: count(1).__next__)
    """Returns a number that no resource had before."""

    read_ru: Callable[..., float] = field(init=False)
    """Returns the charge of a point read; sizes repeat, and a look-up is quicker than the formula."""

    _next_etag: Callable[[], int] = field(default_factory=lambda: count(1).__next__)

    def __post_init__(self) -> None:
        self.read_ru = lru_cache(10_000)(self.charges.read)

    def next_etag(self) -> str:
        """Return an etag that nothing had before, with its quotation marks."""
        number = self._next_etag()
        return f'"{number >> 32:08x}-0000-0000-0000-{number & 0xFFFFFFFF:012x}"'

    def next_stamp(self) -> tuple[str, int]:
        """Return the etag and the time of a resource that is written now."""
        return self.next_etag(), int(self.clock())

    def database(self, name: str, *, is_owner: bool = False) -> Database:
        """Find a database; 404, whose substatus says whether the resource or its owner is missing."""
        return _find(self.databases, name, "database", is_owner=is_owner)

    def container(self, database: str, name: str, *, is_owner: bool = False) -> Container:
        """Find a container; 404 as for databases."""
        return _find(self.database(database, is_owner=True).containers, name, "container", is_owner=is_owner)

    def containers(self) -> list[Container]:
        """Return all containers of all databases."""
        return [container for database in self.databases.values() for container in database.containers.values()]

    def offers(self) -> dict[str, EmulatedOffer]:
        """Return the offers of all containers by their id."""
        return {container.offer.rid: container.offer for container in self.containers()}


def _find(resources: Mapping[str, T], name: str, noun: str, *, is_owner: bool = False) -> T:
    if name not in resources:
        substatus = Substatus.OWNER_RESOURCE_NOT_FOUND if is_owner else 0
        raise HttpError(404, f"Resource Not Found: there is no such {noun}", substatus)
    return resources[name]


def throughput_of(manual: object, autoscale: object) -> EmulatedThroughput:
    """Return a valid throughput: that of autoscale settings if there are some, else the manual one."""
    name, ru = "throughput", manual
    if autoscale is not None:
        name, ru = "maxThroughput", autoscale.get("maxThroughput") if isinstance(autoscale, dict) else None
    found = EmulatedThroughput(ru if type(ru) is int else 0, autoscale=autoscale is not None)
    if not found.least <= found.ru <= MAX_RU or found.ru % found.step:
        raise HttpError(400, f"{name} must be {found.least} … {MAX_RU} RU/s in steps of {found.step}")
    return found


def create_database(account: EmulatedAccount, resource: Mapping[str, Any]) -> Database:
    """Create a database."""
    database = Database(account, resource)
    account.databases[database.name] = database
    return database


def create_container(
    account: EmulatedAccount, database: Database, resource: Mapping[str, Any], manual: object, autoscale: object
) -> Container:
    """Create a container and its offer; the default throughput is for requests of neither kind."""
    is_default = manual is None and autoscale is None
    throughput = EmulatedThroughput(DEFAULT_RU) if is_default else throughput_of(manual, autoscale)
    container = Container(account, database, resource, throughput)
    database.containers[container.name] = container
    return container


def replace_throughput(account: EmulatedAccount, offer: EmulatedOffer, throughput: EmulatedThroughput) -> EmulatedOffer:
    """Change a container's throughput, within what its partitions and its history allow."""
    if throughput.autoscale != offer.throughput.autoscale:
        raise HttpError(400, "migrating between manual and autoscale throughput is not emulated")
    if throughput.ru < offer.minimum_ru:
        raise HttpError(400, f"The offer should have valid throughput values of at least {offer.minimum_ru}.")
    container = offer.container
    container.partitions.provision(throughput)
    for document in container.documents.after():
        if document.partition not in container.partitions.all:
            document.partition = container.partitions.of(document.key)
    offer.throughput = throughput
    offer.highest_ru = max(offer.highest_ru, throughput.ru)
    offer.etag, offer.ts = account.next_stamp()
    return offer


def _post_database(account: EmulatedAccount, request: Request) -> Database:
    if OFFER_HEADER in request.headers or AUTOSCALE_HEADER in request.headers:
        raise HttpError(400, SHARED_THROUGHPUT)
    return create_database(account, parse_object(request.body))


def _post_container(account: EmulatedAccount, request: Request, database: str) -> Container:
    owner = account.database(database, is_owner=True)
    manual, autoscale = (request.headers.get(name) for name in (OFFER_HEADER, AUTOSCALE_HEADER))
    ru = int(manual) if manual and manual.isdigit() and len(manual) < 10 else manual
    settings = parse_json(autoscale, AUTOSCALE_HEADER.decode()) if autoscale else None
    return create_container(account, owner, parse_object(request.body), ru, settings)


def _delete_container(account: EmulatedAccount, _request: object, *names: str) -> Container:
    container = account.container(*names)
    return container.database.containers.pop(container.name)


def _put_offer(account: EmulatedAccount, request: Request, rid: str) -> EmulatedOffer:
    offer, content = _find(account.offers(), rid, "offer"), parse_object(request.body).get("content")
    if not isinstance(content, dict):
        raise HttpError(400, "an offer needs a content with offerThroughput or offerAutopilotSettings")
    throughput = throughput_of(content.get("offerThroughput"), content.get("offerAutopilotSettings"))
    return replace_throughput(account, offer, throughput)


# By the names that metrics and faults give operations; each takes the account, the request and the names of the path.
OPERATIONS: dict[str, Callable[..., Database | Container | EmulatedOffer]] = {
    "create database": _post_database,
    "read database": lambda account, _request, name: account.database(name),
    "delete database": lambda account, _request, name: account.databases.pop(account.database(name).name),
    "create container": _post_container,
    "read container": lambda account, _request, *names: account.container(*names),
    "delete container": _delete_container,
    "read offer": lambda account, _request, rid: _find(account.offers(), rid, "offer"),
    "replace offer": _put_offer,
}


# By the nouns of operations: the name of the feed and its resources, from the account and the names of the path.
FEEDS: dict[str, Callable[..., tuple[str, Iterable[Database | Container | EmulatedOffer]]]] = {
    "databases": lambda account: ("Databases", account.databases.values()),
    "containers": lambda account, name: (
        "DocumentCollections",
        account.database(name, is_owner=True).containers.values(),
    ),
    "offers": lambda account: ("Offers", account.offers().values()),
}


def list_ranges(account: EmulatedAccount, request: Request, database: str, name: str) -> HttpResponse:
    """List the partition key ranges; 304 for a caller that has them: SDKs page on until they get it."""
    container = account.container(database, name, is_owner=True)
    etag = container.partitions.etag
    if request.header(b"if-none-match") == etag:
        return HttpResponse(304, headers={"etag": etag}, charge_ru=account.charges.metadata_read)
    ranges = container.partitions.to_json(container.rid)
    return feed_of(account, "PartitionKeyRanges", ranges, etag=etag)


def feed_of(account: EmulatedAccount, name: str, results: Sequence[Any], **headers: str) -> HttpResponse:
    """Return resources as a feed of one page."""
    body = orjson.dumps({"_rid": "", name: results, "_count": len(results)})
    return HttpResponse(200, body, {**headers, "x-ms-item-count": str(len(results))}, account.charges.metadata_read)
