"""Databases, containers, offers and partition key ranges: never limited, and charged by an assumption."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from hotplate.bench.cosmos_emulator.account import Container, Database, EmulatedAccount, EmulatedOffer
from hotplate.bench.cosmos_emulator.documents import IndexingPolicy, resource_id
from hotplate.bench.cosmos_emulator.http import (
    HttpError,
    HttpResponse,
    Request,
    bad_request,
    method_not_allowed,
    parse_json,
    parse_object,
)
from hotplate.bench.cosmos_emulator.items import ALREADY_EXISTS
from hotplate.bench.cosmos_emulator.partitions import EmulatedThroughput, PartitionKeyDefinition, Partitions
from hotplate.bench.cosmos_emulator.queries import parse_query, select

OFFER_HEADER = b"x-ms-offer-throughput"
AUTOSCALE_HEADER = b"x-ms-cosmos-offer-autopilot-settings"
DEFAULT_RU = 400
MAX_RU = 1_000_000
MAX_ID_CHARS = 255
SHARED_THROUGHPUT = "throughput of a whole database is not emulated: give each container its own"
NOT_EMULATED = (
    "defaultTtl", "uniqueKeyPolicy", "computedProperties", "vectorEmbeddingPolicy", "fullTextPolicy",
    "changeFeedPolicy", "analyticalStorageTtl", "clientEncryptionPolicy", "materializedViewDefinition",
)  # fmt: skip


def throughput_of(manual: object, autoscale: object) -> EmulatedThroughput:
    """Return a valid throughput: that of autoscale settings if there are some, else the manual one."""
    name, ru = "throughput", manual
    if autoscale is not None:
        name, ru = "maxThroughput", autoscale.get("maxThroughput") if isinstance(autoscale, dict) else None
    found = EmulatedThroughput(ru if type(ru) is int else 0, autoscale=autoscale is not None)
    if not found.least <= found.ru <= MAX_RU or found.ru % found.step:
        raise bad_request(f"{name} must be {found.least} … {MAX_RU} RU/s in steps of {found.step}")
    return found


def create_database(account: EmulatedAccount, resource: Mapping[str, Any]) -> Database:
    """Create a database."""
    name = _checked_id(resource)
    if name in account.databases:
        raise HttpError(409, ALREADY_EXISTS)
    database = Database(name, account.next_number(), *account.next_stamp())
    account.databases[name] = database
    return database


def create_container(
    account: EmulatedAccount, database: Database, resource: Mapping[str, Any], manual: object, autoscale: object
) -> Container:
    """Create a container and its offer; the default throughput is for requests of neither kind."""
    name = _checked_id(resource)
    if name in database.containers:
        raise HttpError(409, ALREADY_EXISTS)
    definition = PartitionKeyDefinition(resource.get("partitionKey"))
    is_default = manual is None and autoscale is None
    throughput = EmulatedThroughput(DEFAULT_RU) if is_default else throughput_of(manual, autoscale)
    partitions = Partitions(throughput, len(account.regions))
    container = Container(database, name, account.next_number(), definition, partitions)
    _configure(account, container, resource)
    rid = resource_id(account.next_number().to_bytes(3, "big"))
    container.offer = EmulatedOffer(rid, container, throughput, throughput.ru, *account.next_stamp())
    account.offers[rid] = container.offer
    database.containers[name] = container
    return container


def replace_container(account: EmulatedAccount, container: Container, resource: Mapping[str, Any]) -> Container:
    """Change a container's indexing policy."""
    if resource.get("id") != container.name:
        raise bad_request("the id of a container cannot be changed")
    key = resource.get("partitionKey", container.definition.resource)
    if PartitionKeyDefinition(key).resource != container.definition.resource:
        raise bad_request("the partition key of a container cannot be changed")
    _configure(account, container, resource)
    return container


def delete_database(account: EmulatedAccount, database: Database) -> Database:
    """Delete a database with its containers."""
    for container in list(database.containers.values()):
        delete_container(account, container)
    return account.databases.pop(database.name)


def delete_container(account: EmulatedAccount, container: Container) -> Container:
    """Delete a container with its items and its offer."""
    del account.offers[container.offer.rid]
    return container.database.containers.pop(container.name)


def replace_throughput(account: EmulatedAccount, offer: EmulatedOffer, throughput: EmulatedThroughput) -> EmulatedOffer:
    """Change a container's throughput, within what its partitions and its history allow."""
    if throughput.autoscale != offer.throughput.autoscale:
        raise bad_request("migrating between manual and autoscale throughput is not emulated")
    if throughput.ru < offer.minimum_ru:
        raise bad_request(f"The offer should have valid throughput values of at least {offer.minimum_ru}.")
    container = offer.container
    container.partitions.provision(throughput)
    for document in container.documents.after():
        if document.partition not in container.partitions.all:
            document.partition = container.partitions.of(container.effective_key_of(document))
    offer.throughput = throughput
    offer.highest_ru = max(offer.highest_ru, throughput.ru)
    offer.etag, offer.ts = account.next_stamp()
    return offer


def _configure(account: EmulatedAccount, container: Container, resource: Mapping[str, Any]) -> None:
    """Take the settings that can change; nothing has changed if one is refused."""
    for unknown in NOT_EMULATED:
        if resource.get(unknown):
            raise bad_request(f"{unknown} is not emulated")
    container.policy = IndexingPolicy(resource.get("indexingPolicy"))
    container.etag, container.ts = account.next_stamp()


def _checked_id(resource: Mapping[str, Any]) -> str:
    name = resource.get("id")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID_CHARS or set(name) & set("/\\#?") or name[-1] == " ":
        raise bad_request(f"an id has 1 to {MAX_ID_CHARS} characters, without / \\ # ? and without a space at its end")
    return name


def _post_database(account: EmulatedAccount, request: Request) -> Database:
    if OFFER_HEADER in request.headers or AUTOSCALE_HEADER in request.headers:
        raise bad_request(SHARED_THROUGHPUT)
    return create_database(account, parse_object(request.body))


def _post_container(account: EmulatedAccount, request: Request, database: str) -> Container:
    owner = account.database(database, is_owner=True)
    manual, autoscale = (request.headers.get(name) for name in (OFFER_HEADER, AUTOSCALE_HEADER))
    ru = int(manual) if manual and manual.isdigit() and len(manual) < 10 else manual
    settings = parse_json(autoscale, AUTOSCALE_HEADER.decode()) if autoscale else None
    return create_container(account, owner, parse_object(request.body), ru, settings)


def _put_container(account: EmulatedAccount, request: Request, database: str, name: str) -> Container:
    return replace_container(account, account.container(database, name), parse_object(request.body))


def _put_offer(account: EmulatedAccount, request: Request, rid: str) -> EmulatedOffer:
    offer, content = account.offer(rid), parse_object(request.body).get("content")
    if not isinstance(content, dict):
        raise bad_request("an offer needs a content with offerThroughput or offerAutopilotSettings")
    throughput = throughput_of(content.get("offerThroughput"), content.get("offerAutopilotSettings"))
    return replace_throughput(account, offer, throughput)


# By the names that metrics and faults give operations; each takes the account, the request and the names of the path.
OPERATIONS: dict[str, Callable[..., Database | Container | EmulatedOffer]] = {
    "create database": _post_database,
    "read database": lambda account, _request, name: account.database(name),
    "delete database": lambda account, _request, name: delete_database(account, account.database(name)),
    "create container": _post_container,
    "read container": lambda account, _request, *names: account.container(*names),
    "replace container": _put_container,
    "delete container": lambda account, _request, *names: delete_container(account, account.container(*names)),
    "read offer": lambda account, _request, rid: account.offer(rid),
    "replace offer": _put_offer,
}


# By the nouns of operations; each takes the account and the names of the path.
FEEDS: dict[str, Callable[..., tuple[str, str, Mapping[str, Database | Container | EmulatedOffer]]]] = {
    "databases": lambda account: ("Databases", "", account.databases),
    "containers": lambda account, name: (
        "DocumentCollections",
        account.database(name, is_owner=True).rid,
        account.database(name).containers,
    ),
    "offers": lambda account: ("Offers", "", account.offers),
}


def run(account: EmulatedAccount, request: Request, operation: str, names: Sequence[str]) -> HttpResponse:
    """Run an operation; 405 if its name is unknown."""
    verb, _, noun = operation.partition(" ")
    if operation == "list ranges":
        return _list_ranges(account, request, *names)
    if verb in ("list", "query") and noun in FEEDS:
        name, rid, feed = FEEDS[noun](account, *names)
        results: Sequence[Any] = [resource.to_json() for resource in feed.values()]
        if verb == "query":
            results = select(parse_query(request.body), results)
        return _feed(account, name, rid, results)
    if operation not in OPERATIONS:
        raise method_not_allowed(request)
    resource, charges = OPERATIONS[operation](account, request, *names), account.charges
    if verb == "delete":
        return HttpResponse(204, charge_ru=charges.metadata_write)
    headers = {"etag": resource.etag}
    if isinstance(resource, Container):
        owner = resource.named_link.rpartition("/colls/")[0]
        headers |= {"x-ms-alt-content-path": owner, "x-ms-content-path": resource.database.rid}
    status, charge_ru = (201, charges.metadata_write) if verb == "create" else (200, charges.metadata_read)
    return HttpResponse(status, orjson.dumps(resource.to_json()), headers, charge_ru)


def _list_ranges(account: EmulatedAccount, request: Request, database: str, name: str) -> HttpResponse:
    """List the partition key ranges; 304 for a caller that has them: SDKs page on until they get it."""
    container = account.container(database, name, is_owner=True)
    etag = container.partitions.etag
    if request.header(b"if-none-match") == etag:
        return HttpResponse(304, headers={"etag": etag}, charge_ru=account.charges.metadata_read)
    ranges = container.partitions.to_json(container.rid)
    return _feed(account, "PartitionKeyRanges", container.rid, ranges, etag=etag)


def _feed(account: EmulatedAccount, name: str, rid: str, results: Sequence[Any], **headers: str) -> HttpResponse:
    body = orjson.dumps({"_rid": rid, name: results, "_count": len(results)})
    return HttpResponse(200, body, {**headers, "x-ms-item-count": str(len(results))}, account.charges.metadata_read)
