"""The account: databases, containers, offers and partition key ranges.

Requests for them are never throttled; their charges are assumed. A resource id (`_rid`) has 4 bytes of the database, 4
of the container with the highest bit set, and 8 of the item. A write is charged for each indexed value, a term, but not
for system properties: https://learn.microsoft.com/azure/cosmos-db/index-policy
"""

import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar
from urllib.parse import quote

from hotplate.bench.cosmos_emulator.messages import HttpError, Request, Substatus, parse_json
from hotplate.bench.cosmos_emulator.partitions import ContainerDocuments, Partitions, key_property
from hotplate.stores.cosmos.charges import Charges
from hotplate.stores.cosmos.url import AUTOSCALE_STEP, MANUAL_MIN, MANUAL_STEP, MAX_RU, Throughput, minimum_ru

T = TypeVar("T")

OFFER_HEADER = b"x-ms-offer-throughput"
AUTOSCALE_HEADER = b"x-ms-cosmos-offer-autopilot-settings"
MAX_ID_CHARS = 255
ALREADY_EXISTS = "Entity with the specified id already exists in the system."
SHARED_THROUGHPUT = "throughput of a database is not emulated: give each container its own"
EMULATED = {"id", "partitionKey", "indexingPolicy"}
# From strongest to weakest: a request may only relax the account's.
CONSISTENCIES = ("Strong", "BoundedStaleness", "Session", "ConsistentPrefix", "Eventual")
EVERYTHING = [{"path": "/*"}]
EXCLUDED = [{"path": '/"_etag"/?'}]


def indexes_of(policy: object) -> bool:
    """Return whether an indexing policy, the JSON of a container, indexes all properties (true) or none (false).

    Raises 400 for a policy that indexes some properties only.
    """
    properties = policy if isinstance(policy, dict) else {}
    included = properties.get("includedPaths")
    excluded = properties.get("excludedPaths")
    match str(properties.get("indexingMode") or "consistent").lower():
        case "none" if not included:
            return False
        case "consistent" if included in (None, [], EVERYTHING) and excluded in (None, [], EXCLUDED):
            return True
    raise HttpError(400, "the emulator indexes everything, by default, or nothing, with indexingMode none")


def terms_of(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield an item's terms: values with their paths."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from terms_of(part, f"{path}/{name}")
    elif isinstance(value, list):
        for part in value:
            yield from terms_of(part, f"{path}/[]")
    else:
        yield path, (type(value).__name__, value)


def resource_id(raw: bytes) -> str:
    """Encode a resource id."""
    return b64encode(raw, b"+-").decode()


@dataclass(slots=True)
class EmulatedOffer:
    """Throughput of one container as a resource."""

    rid: str
    container: "Container"
    throughput: Throughput
    highest_ru: int

    @property
    def minimum_ru(self) -> int:
        """Return the lowest accepted throughput; few bytes do not raise it."""
        return minimum_ru(self.highest_ru, 0, autoscale=self.throughput.autoscale)

    def to_json(self) -> dict[str, Any]:
        """Return the offer, the resource with a container's throughput in RU/s, in Azure's format.

        SDKs tell autoscale from manual throughput by the content "offerAutopilotSettings".
        """
        ru = self.throughput.ru
        content: dict[str, Any] = {"offerThroughput": ru, "offerIsRUPerMinuteThroughputEnabled": False}
        if self.throughput.autoscale:  # scales between a tenth of the maximum and the maximum
            content = {"offerThroughput": ru // 10, "offerAutopilotSettings": {"maxThroughput": ru}}
        content["offerMinimumThroughputParameters"] = {"minThroughput": self.minimum_ru}

        return {
            "resource": self.container.link,
            "offerVersion": "V2",
            "content": content,
            "id": self.rid,
            "_rid": self.rid,
            "_self": f"offers/{self.rid}/",
        }


class Container:
    """One container; a recreated one has another resource id."""

    def __init__(
        self, account: "EmulatedAccount", database: "Database", resource: Mapping[str, Any], throughput: Throughput
    ) -> None:
        """Check the *resource* of a request to create a container; raises 400 and 409."""
        self.name = _checked_id(resource, database.containers)
        for name, value in resource.items():
            if value and name not in EMULATED:
                raise HttpError(400, f"{name} is not emulated")
        self.key_property = key_property(resource.get("partitionKey"))
        self.is_indexed = indexes_of(resource.get("indexingPolicy"))
        self.database = database
        self.rid_bytes = database.rid_bytes + (account.next_number() | 1 << 31).to_bytes(4, "big")
        self.rid = resource_id(self.rid_bytes)
        self.link = f"dbs/{database.rid}/colls/{self.rid}/"
        self.named_link = f"dbs/{quote(database.name)}/colls/{quote(self.name)}"
        self.partitions = Partitions(throughput, len(account.regions))
        self.documents = ContainerDocuments()
        rid = resource_id(account.next_number().to_bytes(3, "big"))
        self.offer = EmulatedOffer(rid, self, throughput, throughput.ru)

    def to_json(self) -> dict[str, Any]:
        """Return the container in the service's format."""
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
            "_self": self.link,
        }


class Database:
    """One database and its containers."""

    def __init__(self, account: "EmulatedAccount", resource: Mapping[str, Any]) -> None:
        self.name = _checked_id(resource, account.databases)
        self.rid_bytes = account.next_number().to_bytes(4, "big")
        self.rid = resource_id(self.rid_bytes)
        self.containers = dict[str, Container]()

    def to_json(self) -> dict[str, Any]:
        """Return the service's JSON."""
        return {"id": self.name, "_rid": self.rid, "_self": f"dbs/{self.rid}/", "_colls": "colls/"}


def _checked_id(resource: Mapping[str, Any], present: Mapping[str, object]) -> str:
    name = resource.get("id")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID_CHARS or set(name) & set("/\\#?") or name[-1] == " ":
        raise HttpError(400, f"an id has 1 to {MAX_ID_CHARS} characters, without / \\ # ? and a space at its end")
    if name in present:
        raise HttpError(409, ALREADY_EXISTS)
    return name


@dataclass(slots=True)
class EmulatedAccount:
    """All resources of one emulator."""

    charges: Charges
    regions: tuple[tuple[str, int], ...]  # names and ports, the write region first
    consistency: str = "Session"
    clock: Callable[[], float] = time.time
    databases: dict[str, Database] = field(default_factory=dict)
    next_number: Callable[[], int] = field(default_factory=lambda: count(1).__next__)  # of resources and etags

    def next_etag(self) -> str:
        """Return a new etag, with quotation marks."""
        return f'"00000000-0000-0000-0000-{self.next_number():012x}"'

    def database(self, name: str, *, is_owner: bool = False) -> Database:
        """Find a database; 404 with the substatus of a missing resource or, with *is_owner*, owner."""
        return _find(self.databases, name, is_owner=is_owner)

    def container(self, database: str, name: str, *, is_owner: bool = False) -> Container:
        """Find a container; 404 like `database`."""
        return _find(self.database(database, is_owner=True).containers, name, is_owner=is_owner)

    def containers(self) -> list[Container]:
        """Return all containers."""
        return [container for database in self.databases.values() for container in database.containers.values()]

    def offer(self, rid: str) -> EmulatedOffer:
        """Find an offer; 404 like `database`."""
        return _find({container.offer.rid: container.offer for container in self.containers()}, rid)


def _find(resources: Mapping[str, T], name: str, *, is_owner: bool = False) -> T:
    if name not in resources:
        substatus = Substatus.OWNER_RESOURCE_NOT_FOUND if is_owner else 0
        raise HttpError(404, f"Resource Not Found: there is no {name[:40]}", substatus)
    return resources[name]


def throughput_of(manual: object, autoscale: object) -> Throughput:
    """Parse a throughput in RU/s: `{"maxThroughput": ru}` of *autoscale* or, if that is None, the number *manual*.

    Raises 400 for a throughput that Azure does not offer, also if both are None.
    """
    name = "throughput"
    ru = manual
    if autoscale is not None:
        name = "maxThroughput"
        ru = autoscale.get("maxThroughput") if isinstance(autoscale, dict) else None

    is_autoscale = autoscale is not None
    step = AUTOSCALE_STEP if is_autoscale else MANUAL_STEP
    least = minimum_ru(0, 0, autoscale=is_autoscale)
    if type(ru) is not int or not least <= ru <= MAX_RU or ru % step:
        raise HttpError(400, f"{name} must be {least} … {MAX_RU} RU/s in steps of {step}")
    return Throughput(ru, autoscale=is_autoscale)


def create_database(account: EmulatedAccount, resource: Mapping[str, Any]) -> Database:
    """Create a database."""
    database = Database(account, resource)
    account.databases[database.name] = database
    return database


def create_container(
    account: EmulatedAccount, database: Database, resource: Mapping[str, Any], manual: object, autoscale: object
) -> Container:
    """Create a container and its offer, by default with the lowest throughput."""
    is_default = manual is None and autoscale is None
    throughput = Throughput(MANUAL_MIN) if is_default else throughput_of(manual, autoscale)
    container = Container(account, database, resource, throughput)
    database.containers[container.name] = container
    return container


def replace_throughput(offer: EmulatedOffer, throughput: Throughput) -> EmulatedOffer:
    """Change a container's throughput (RU/s), and return its offer, the resource that holds it.

    More RU/s may split partitions, so documents are assigned to the new ones. Raises 400 below the offer's minimum, and
    for a change between manual and autoscale.
    """
    if throughput.autoscale != offer.throughput.autoscale:
        raise HttpError(400, "migrating between manual and autoscale throughput is not emulated")
    if throughput.ru < offer.minimum_ru:
        raise HttpError(400, f"The offer should have valid throughput values of at least {offer.minimum_ru}.")

    container = offer.container
    container.partitions.provision(throughput)
    # Partitions that were split are no longer among them.
    for document in container.documents.after():
        if document.partition not in container.partitions.all:
            document.partition = container.partitions.of(document.key)

    offer.throughput = throughput
    offer.highest_ru = max(offer.highest_ru, throughput.ru)
    return offer


def _post_database(account: EmulatedAccount, request: Request) -> Database:
    if OFFER_HEADER in request.headers or AUTOSCALE_HEADER in request.headers:
        raise HttpError(400, SHARED_THROUGHPUT)
    return create_database(account, request.object())


def _post_container(account: EmulatedAccount, request: Request, database: str) -> Container:
    """Create a container with the throughput that headers name: manual RU/s, settings of autoscale, or neither."""
    owner = account.database(database, is_owner=True)
    manual = request.header(OFFER_HEADER)
    manual_ru: int | str | None = manual or None  # a text other than a number is refused with the others
    if manual.isdecimal() and len(manual) < 10:
        manual_ru = int(manual)
    autoscale = parse_json(request.headers.get(AUTOSCALE_HEADER, b"null"), AUTOSCALE_HEADER.decode())
    return create_container(account, owner, request.object(), manual_ru, autoscale)


def _put_offer(account: EmulatedAccount, request: Request, rid: str) -> EmulatedOffer:
    """Replace the throughput of the container of the offer with the resource id *rid*; raises HttpError 400."""
    offer = account.offer(rid)
    content = request.object().get("content")
    if not isinstance(content, dict):
        raise HttpError(400, "an offer needs a content with offerThroughput or offerAutopilotSettings")
    throughput = throughput_of(content.get("offerThroughput"), content.get("offerAutopilotSettings"))
    return replace_throughput(offer, throughput)


# Called with account, request and names in the path.
OPERATIONS: dict[str, Callable[..., Database | Container | EmulatedOffer]] = {
    "create database": _post_database,
    "read database": lambda account, _request, name: account.database(name),
    "delete database": lambda account, _request, name: account.databases.pop(account.database(name).name),
    "create container": _post_container,
    "read container": lambda account, _request, *names: account.container(*names),
    "delete container": lambda account, _request, *names: account.container(*names).database.containers.pop(names[1]),
    "read offer": lambda account, _request, rid: account.offer(rid),
    "replace offer": _put_offer,
}
