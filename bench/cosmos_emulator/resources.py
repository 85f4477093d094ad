"""Databases, containers, offers and partition-key ranges over the wire: never limited, charged by an assumption."""

from collections.abc import Sequence
from typing import Any

import orjson

from bench.cosmos_emulator.account import Account, Container, Database, Offer
from bench.cosmos_emulator.errors import OWNER_NOT_FOUND, Refused, bad
from bench.cosmos_emulator.indexing import Policy
from bench.cosmos_emulator.items import object_of
from bench.cosmos_emulator.messages import Answer, Request
from bench.cosmos_emulator.partition_keys import Definition
from bench.cosmos_emulator.partitions import Partitions
from bench.cosmos_emulator.queries import selected, told
from bench.cosmos_emulator.throughput import (
    AUTOSCALE_HEADER,
    OFFER_HEADER,
    asked_at_birth,
    asked_of_offer,
)

MOST_NAME_CHARS = 255
NOT_EMULATED = (
    "computedProperties", "vectorEmbeddingPolicy", "fullTextPolicy", "changeFeedPolicy", "analyticalStorageTtl",
    "clientEncryptionPolicy", "materializedViewDefinition",
)  # fmt: skip


def database_of(account: Account, name: str, *, owner: bool = False) -> Database:
    """Find a database; 404, whose substatus tells an owner that is gone from a resource that is."""
    found = account.databases.get(name)
    if found is None:
        raise Refused(404, "Resource Not Found: there is no such database", OWNER_NOT_FOUND if owner else 0)
    return found


def container_of(account: Account, database: str, name: str, *, owner: bool = True) -> Container:
    """Find a container."""
    found = database_of(account, database, owner=True).containers.get(name)
    if found is None:
        raise Refused(404, "Resource Not Found: there is no such container", OWNER_NOT_FOUND if owner else 0)
    return found


def create_database(account: Account, request: Request) -> Answer:
    """Make a database; throughput that its containers would share is refused."""
    name = _name(object_of(request.body))
    if OFFER_HEADER in request.headers or AUTOSCALE_HEADER in request.headers:
        raise bad("throughput of a whole database is not emulated: give each container its own")
    if name in account.databases:
        raise Refused(409, "Entity with the specified id already exists in the system.")
    made = Database(name, account.number(), account.etag(), int(account.clock()))
    account.databases[name] = made
    return _one(account, made.told(), 201)


def read_database(account: Account, _request: Request, name: str) -> Answer:
    """Read a database."""
    return _one(account, database_of(account, name).told())


def delete_database(account: Account, request: Request, name: str) -> Answer:
    """Delete a database with all that it holds."""
    for container in list(database_of(account, name).containers.values()):
        delete_container(account, request, name, container.name)
    del account.databases[name]
    return Answer(204, charge_ru=account.charges.metadata_write)


def list_databases(account: Account, request: Request) -> Answer:
    """List databases, or those that a query selects."""
    return _many(account, request, "Databases", "", [database.told() for database in account.databases.values()])


def create_container(account: Account, request: Request, database_name: str) -> Answer:
    """Make a container and its offer."""
    database = database_of(account, database_name, owner=True)
    given = object_of(request.body)
    name = _name(given)
    if name in database.containers:
        raise Refused(409, "Entity with the specified id already exists in the system.")
    for unknown in NOT_EMULATED:
        if given.get(unknown):
            raise bad(f"{unknown} is not emulated")
    unique = given.get("uniqueKeyPolicy")
    if isinstance(unique, dict) and unique.get("uniqueKeys"):
        raise bad("unique keys are not emulated")
    definition = Definition(given.get("partitionKey"))
    throughput = asked_at_birth(request.headers)
    partitions = Partitions(throughput, definition.version, len(account.regions), burst=account.burst)
    made = Container(database, name, account.number(), definition, partitions)
    _configure(account, made, given)
    account.offer(made, throughput)
    database.containers[name] = made
    return _one(account, made.told(), 201, made)


def read_container(account: Account, _request: Request, database: str, name: str) -> Answer:
    """Read a container."""
    found = container_of(account, database, name, owner=False)
    return _one(account, found.told(), container=found)


def replace_container(account: Account, request: Request, database: str, name: str) -> Answer:
    """Change a container's indexing policy and time to live."""
    found = container_of(account, database, name, owner=False)
    given = object_of(request.body)
    if given.get("id") != name:
        raise bad("the id of a container cannot be changed")
    if "partitionKey" in given and Definition(given["partitionKey"]).told != found.definition.told:
        raise bad("the partition key of a container cannot be changed")
    _configure(account, found, given)
    return _one(account, found.told(), container=found)


def delete_container(account: Account, _request: Request, database: str, name: str) -> Answer:
    """Delete a container with its items and its offer."""
    found = container_of(account, database, name, owner=False)
    del account.offers[account.offer_of(found).rid]
    del found.database.containers[name]
    return Answer(204, charge_ru=account.charges.metadata_write)


def list_containers(account: Account, request: Request, database: str) -> Answer:
    """List the containers of a database, or those that a query selects."""
    owner = database_of(account, database, owner=True)
    found = [container.told() for container in owner.containers.values()]
    return _many(account, request, "DocumentCollections", owner.rid, found)


def list_ranges(account: Account, request: Request, database: str, name: str) -> Answer:
    """List the partition-key ranges; 304 to who has them: SDKs ask on until they hear it."""
    found = container_of(account, database, name)
    etag = f'"{found.partitions.generation}"'
    if request.text(b"if-none-match") == etag:
        return Answer(304, headers={"etag": etag}, charge_ru=account.charges.metadata_read)
    ranges = found.partitions.described(found.rid)
    body = orjson.dumps({"_rid": found.rid, "PartitionKeyRanges": ranges, "_count": len(ranges)})
    headers = {"etag": etag, "x-ms-item-count": str(len(ranges))}
    return Answer(200, body, headers, account.charges.metadata_read)


def list_offers(account: Account, request: Request) -> Answer:
    """List offers, or those that a query selects."""
    return _many(account, request, "Offers", "", [offer.told() for offer in account.offers.values()])


def read_offer(account: Account, _request: Request, rid: str) -> Answer:
    """Read an offer."""
    return _one(account, _offer(account, rid).told())


def replace_offer(account: Account, request: Request, rid: str) -> Answer:
    """Change a container's throughput, within what its partitions and its history allow."""
    offer = _offer(account, rid)
    asked = asked_of_offer(object_of(request.body).get("content"))
    if asked.autoscale != offer.throughput.autoscale:
        raise bad("migrating between manual and autoscale throughput is not emulated")
    if asked.ru < offer.minimum_ru:
        raise bad(f"The offer should have valid throughput values of at least {offer.minimum_ru}.")
    container = offer.container
    container.partitions.provision(asked)
    for document in container.documents.after():
        if document.partition not in container.partitions.all:
            value = container.definition.of_item(document.parsed())
            document.partition = container.partitions.of(container.definition.effective(value))
    offer.throughput = asked
    offer.highest_ru = max(offer.highest_ru, asked.ru)
    offer.etag, offer.ts = account.etag(), int(account.clock())
    return _one(account, offer.told())


def _offer(account: Account, rid: str) -> Offer:
    found = account.offers.get(rid)
    if found is None:
        raise Refused(404, "Resource Not Found: there is no such offer")
    return found


def _configure(account: Account, container: Container, given: dict[str, Any]) -> None:
    """Take the settings that can change; nothing has changed where one is refused."""
    policy = Policy(given.get("indexingPolicy"))
    ttl = given.get("defaultTtl")
    if ttl is not None and (type(ttl) is not int or (ttl < 1 and ttl != -1) or ttl >= 1 << 31):
        raise bad("defaultTtl must be a positive number of seconds, or -1")
    if ttl is not None and policy.mode == "none":
        raise bad(
            "time to live cannot be on where indexingMode is none: the service needs its index to find what expired"
        )
    container.policy = policy
    container.etag, container.ts = account.etag(), int(account.clock())
    if container.default_ttl != ttl:
        container.default_ttl = ttl
        container.watch_expiry()


def _name(given: dict[str, Any]) -> str:
    name = given.get("id")
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= MOST_NAME_CHARS
        or set(name) & set("/\\#?")
        or name[-1] == " "
    ):
        raise bad(f"an id has 1 to {MOST_NAME_CHARS} characters, none of / \\ # ?, and no space at its end")
    return name


def _one(account: Account, resource: dict[str, Any], status: int = 200, container: Container | None = None) -> Answer:
    charge_ru = account.charges.metadata_write if status == 201 else account.charges.metadata_read
    headers = {"etag": resource["_etag"]}
    if container is not None:
        owner = container.named_link.rpartition("/colls/")[0]
        headers |= {"x-ms-alt-content-path": owner, "x-ms-content-path": container.database.rid}
    return Answer(status, orjson.dumps(resource), headers, charge_ru)


def _many(account: Account, request: Request, name: str, rid: str, resources: Sequence[dict[str, Any]]) -> Answer:
    results: Sequence[Any] = resources
    if request.method == "POST":
        results = selected(*told(request.body), resources)
    body = orjson.dumps({"_rid": rid, name: results, "_count": len(results)})
    return Answer(200, body, {"x-ms-item-count": str(len(results))}, account.charges.metadata_read)
