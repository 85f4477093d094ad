"""Databases, containers, offers and partition key ranges: never limited, and charged by an assumption."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson

from bench.cosmos_emulator.account import Account, Container, Database, Offer, check_ttl
from bench.cosmos_emulator.errors import HttpError, bad_request
from bench.cosmos_emulator.http import Request, Response, parse_json, parse_object
from bench.cosmos_emulator.indexing import IndexingPolicy
from bench.cosmos_emulator.items import ALREADY_EXISTS
from bench.cosmos_emulator.partition_keys import PartitionKeyDefinition
from bench.cosmos_emulator.partitions import Partitions
from bench.cosmos_emulator.queries import parse_query, select
from stores.cosmos.url import (
    AUTOSCALE_MIN,
    AUTOSCALE_STEP,
    DEFAULT_RU,
    MANUAL_MIN,
    MANUAL_STEP,
    MAX_RU,
    Throughput,
)

OFFER_HEADER = b"x-ms-offer-throughput"
AUTOSCALE_HEADER = b"x-ms-cosmos-offer-autopilot-settings"
MAX_ID_CHARS = 255
SHARED_THROUGHPUT = "throughput of a whole database is not emulated: give each container its own"
NOT_EMULATED = (
    "computedProperties", "vectorEmbeddingPolicy", "fullTextPolicy", "changeFeedPolicy", "analyticalStorageTtl",
    "clientEncryptionPolicy", "materializedViewDefinition",
)  # fmt: skip


def throughput_of(manual: object, autoscale: object) -> Throughput:
    """Return a valid throughput: that of autoscale settings where there are some, else the manual one."""
    if autoscale is not None:
        ru = autoscale.get("maxThroughput") if isinstance(autoscale, dict) else None
        if type(ru) is not int or not AUTOSCALE_MIN <= ru <= MAX_RU or ru % AUTOSCALE_STEP:
            raise bad_request(f"maxThroughput must be {AUTOSCALE_MIN} … {MAX_RU} RU/s in steps of {AUTOSCALE_STEP}")
        return Throughput(ru, autoscale=True)
    if type(manual) is not int or not MANUAL_MIN <= manual <= MAX_RU or manual % MANUAL_STEP:
        raise bad_request(f"throughput must be {MANUAL_MIN} … {MAX_RU} RU/s in steps of {MANUAL_STEP}")
    return Throughput(manual)


def create_database(account: Account, resource: Mapping[str, Any]) -> Database:
    """Create a database."""
    name = _checked_id(resource)
    if name in account.databases:
        raise HttpError(409, ALREADY_EXISTS)
    database = Database(name, account.next_number(), account.next_etag(), int(account.clock()))
    account.databases[name] = database
    return database


def create_container(
    account: Account, database: Database, resource: Mapping[str, Any], manual: object, autoscale: object
) -> Container:
    """Create a container and its offer; the default throughput is for where neither kind is requested."""
    name = _checked_id(resource)
    if name in database.containers:
        raise HttpError(409, ALREADY_EXISTS)
    for unknown in NOT_EMULATED:
        if resource.get(unknown):
            raise bad_request(f"{unknown} is not emulated")
    unique = resource.get("uniqueKeyPolicy")
    if isinstance(unique, dict) and unique.get("uniqueKeys"):
        raise bad_request("unique keys are not emulated")
    definition = PartitionKeyDefinition(resource.get("partitionKey"))
    is_default = manual is None and autoscale is None
    throughput = Throughput(DEFAULT_RU) if is_default else throughput_of(manual, autoscale)
    partitions = Partitions(throughput, definition.version, len(account.regions), burst=account.burst)
    container = Container(database, name, account.next_number(), definition, partitions)
    _configure(account, container, resource)
    account.add_offer(container, throughput)
    database.containers[name] = container
    return container


def replace_container(account: Account, container: Container, resource: Mapping[str, Any]) -> None:
    """Change a container's indexing policy and time to live."""
    if resource.get("id") != container.name:
        raise bad_request("the id of a container cannot be changed")
    key = resource.get("partitionKey", container.definition.resource)
    if PartitionKeyDefinition(key).resource != container.definition.resource:
        raise bad_request("the partition key of a container cannot be changed")
    _configure(account, container, resource)


def delete_database(account: Account, database: Database) -> None:
    """Delete a database with its containers."""
    for container in list(database.containers.values()):
        delete_container(account, container)
    del account.databases[database.name]


def delete_container(account: Account, container: Container) -> None:
    """Delete a container with its items and its offer."""
    del account.offers[account.offer_of(container).rid]
    del container.database.containers[container.name]


def replace_throughput(account: Account, offer: Offer, throughput: Throughput) -> None:
    """Change a container's throughput, within what its partitions and its history allow."""
    if throughput.autoscale != offer.throughput.autoscale:
        raise bad_request("migrating between manual and autoscale throughput is not emulated")
    if throughput.ru < offer.minimum_ru:
        raise bad_request(f"The offer should have valid throughput values of at least {offer.minimum_ru}.")
    container = offer.container
    container.partitions.provision(throughput)
    for document in container.documents.after():
        if document.partition not in container.partitions.all:
            value = container.definition.of_item(document.parsed())
            document.partition = container.partitions.of(container.definition.effective(value))
    offer.throughput = throughput
    offer.highest_ru = max(offer.highest_ru, throughput.ru)
    offer.etag, offer.ts = account.next_etag(), int(account.clock())


def _configure(account: Account, container: Container, resource: Mapping[str, Any]) -> None:
    """Take the settings that can change; nothing has changed where one is refused."""
    policy = IndexingPolicy(resource.get("indexingPolicy"))
    ttl = resource.get("defaultTtl")
    check_ttl(ttl, "defaultTtl")
    if ttl is not None and policy.mode == "none":
        raise bad_request(
            "time to live cannot be on where indexingMode is none: the service needs its index to find what expired"
        )
    container.policy = policy
    container.etag, container.ts = account.next_etag(), int(account.clock())
    if container.default_ttl != ttl:
        container.default_ttl = ttl
        container.reschedule_expiry()


def _checked_id(resource: Mapping[str, Any]) -> str:
    name = resource.get("id")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID_CHARS or set(name) & set("/\\#?") or name[-1] == " ":
        raise bad_request(f"an id has 1 to {MAX_ID_CHARS} characters, none of / \\ # ?, and no space at its end")
    return name


def _post_database(account: Account, request: Request) -> Response:
    if OFFER_HEADER in request.headers or AUTOSCALE_HEADER in request.headers:
        raise bad_request(SHARED_THROUGHPUT)
    return _one(account, create_database(account, parse_object(request.body)), 201)


def _post_container(account: Account, request: Request, database: str) -> Response:
    owner = account.database(database, is_owner=True)
    manual, autoscale = (request.headers.get(name) for name in (OFFER_HEADER, AUTOSCALE_HEADER))
    ru = int(manual) if manual and manual.isdigit() and len(manual) < 10 else manual
    settings = parse_json(autoscale, AUTOSCALE_HEADER.decode()) if autoscale else None
    return _one(account, create_container(account, owner, parse_object(request.body), ru, settings), 201)


def _put_container(account: Account, request: Request, database: str, name: str) -> Response:
    container = account.container(database, name)
    replace_container(account, container, parse_object(request.body))
    return _one(account, container)


def _delete_database(account: Account, _request: Request, name: str) -> Response:
    delete_database(account, account.database(name))
    return Response(204, charge_ru=account.charges.metadata_write)


def _delete_container(account: Account, _request: Request, database: str, name: str) -> Response:
    delete_container(account, account.container(database, name))
    return Response(204, charge_ru=account.charges.metadata_write)


def _list_databases(account: Account, request: Request) -> Response:
    return _many(account, request, "Databases", "", account.databases.values())


def _list_containers(account: Account, request: Request, database: str) -> Response:
    owner = account.database(database, is_owner=True)
    return _many(account, request, "DocumentCollections", owner.rid, owner.containers.values())


def _list_ranges(account: Account, request: Request, database: str, name: str) -> Response:
    """List the partition key ranges; 304 for a caller that has them: SDKs page on until they get it."""
    container = account.container(database, name, is_owner=True)
    etag, charge_ru = container.partitions.etag, account.charges.metadata_read
    if request.header(b"if-none-match") == etag:
        return Response(304, headers={"etag": etag}, charge_ru=charge_ru)
    ranges = container.partitions.to_json(container.rid)
    body = orjson.dumps({"_rid": container.rid, "PartitionKeyRanges": ranges, "_count": len(ranges)})
    return Response(200, body, {"etag": etag, "x-ms-item-count": str(len(ranges))}, charge_ru)


def _list_offers(account: Account, request: Request) -> Response:
    return _many(account, request, "Offers", "", account.offers.values())


def _put_offer(account: Account, request: Request, rid: str) -> Response:
    offer = _offer(account, rid)
    content = parse_object(request.body).get("content")
    if not isinstance(content, dict):
        raise bad_request("an offer needs a content with offerThroughput or offerAutopilotSettings")
    throughput = throughput_of(content.get("offerThroughput"), content.get("offerAutopilotSettings"))
    replace_throughput(account, offer, throughput)
    return _one(account, offer)


def _offer(account: Account, rid: str) -> Offer:
    found = account.offers.get(rid)
    if found is None:
        raise HttpError(404, "Resource Not Found: there is no such offer")
    return found


# By the names that metrics and faults give operations; each takes the account, the request and the names of the path.
OPERATIONS: dict[str, Callable[..., Response]] = {
    "create database": _post_database,
    "read database": lambda account, _request, name: _one(account, account.database(name)),
    "delete database": _delete_database,
    "list databases": _list_databases,
    "query databases": _list_databases,
    "create container": _post_container,
    "read container": lambda account, _request, database, name: _one(account, account.container(database, name)),
    "replace container": _put_container,
    "delete container": _delete_container,
    "list containers": _list_containers,
    "query containers": _list_containers,
    "list ranges": _list_ranges,
    "list offers": _list_offers,
    "query offers": _list_offers,
    "read offer": lambda account, _request, rid: _one(account, _offer(account, rid)),
    "replace offer": _put_offer,
}


def _one(account: Account, resource: Database | Container | Offer, status: int = 200) -> Response:
    charge_ru = account.charges.metadata_write if status == 201 else account.charges.metadata_read
    headers = {"etag": resource.etag}
    if isinstance(resource, Container):
        owner = resource.named_link.rpartition("/colls/")[0]
        headers |= {"x-ms-alt-content-path": owner, "x-ms-content-path": resource.database.rid}
    return Response(status, orjson.dumps(resource.to_json()), headers, charge_ru)


def _many(
    account: Account, request: Request, name: str, rid: str, resources: Iterable[Database | Container | Offer]
) -> Response:
    results: Sequence[Any] = [resource.to_json() for resource in resources]
    if request.method == "POST":
        results = select(*parse_query(request.body), results)
    body = orjson.dumps({"_rid": rid, name: results, "_count": len(results)})
    return Response(200, body, {"x-ms-item-count": str(len(results))}, account.charges.metadata_read)
