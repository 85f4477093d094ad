"""Databases, containers and throughput as Azure Resource Manager tells and changes them: other JSON, the same account.

https://learn.microsoft.com/rest/api/cosmos-db-resource-provider/sql-resources
"""

from dataclasses import dataclass
from typing import Any

import orjson

from bench.cosmos_emulator import resources
from bench.cosmos_emulator.account import Account
from bench.cosmos_emulator.errors import Refused, bad
from bench.cosmos_emulator.items import object_of
from bench.cosmos_emulator.messages import Request
from bench.cosmos_emulator.throughput import AUTOSCALE_HEADER, OFFER_HEADER

TYPE = "Microsoft.DocumentDB/databaseAccounts/sqlDatabases"


@dataclass(frozen=True, slots=True)
class Place:
    """What a path of ARM names below the account: a database, one of its containers, or that container's throughput."""

    id: str
    """The path itself, which is how ARM identifies a resource."""

    database: str
    container: str | None = None
    is_throughput: bool = False

    @property
    def noun(self) -> str:
        """Name it as metrics, faults and permissions do."""
        return "throughput" if self.is_throughput else "database" if self.container is None else "container"


def read(account: Account, place: Place) -> bytes:
    """Describe a resource; 404 where it is not there."""
    if place.container is None:
        database = resources.database_of(account, place.database)
        return _told(place, TYPE, database.told())
    container = resources.container_of(account, place.database, place.container, owner=False)
    if not place.is_throughput:
        return _told(place, f"{TYPE}/containers", container.told())
    offer = account.offer_of(container)
    told: dict[str, Any] = {"minimumThroughput": str(offer.minimum_ru)}
    if offer.throughput.autoscale:
        told |= {"throughput": offer.throughput.ru // 10, "autoscaleSettings": {"maxThroughput": offer.throughput.ru}}
    else:
        told |= {"throughput": offer.throughput.ru}
    return _told(place, f"{TYPE}/containers/throughputSettings", told)


def put(account: Account, place: Place, body: bytes) -> None:
    """Make or change a resource."""
    wanted, options = _asked(body)
    if place.is_throughput:
        _scale(account, place, wanted)
    elif place.container is None:
        if options:
            raise bad("throughput of a whole database is not emulated: give each container its own")
        if place.database not in account.databases:
            resources.create_database(account, _request(wanted))
    elif place.container in resources.database_of(account, place.database, owner=True).containers:
        resources.replace_container(account, _request(wanted), place.database, place.container)
    else:
        resources.create_container(account, _request(wanted, options), place.database)


def delete(account: Account, place: Place) -> bool:
    """Delete a resource; False where it was not there."""
    try:
        if place.container is None:
            resources.delete_database(account, _request({}), place.database)
        else:
            resources.delete_container(account, _request({}), place.database, place.container)
    except Refused as refusal:
        if refusal.status == 404:
            return False
        raise
    return True


def _scale(account: Account, place: Place, wanted: dict[str, Any]) -> None:
    container = resources.container_of(account, place.database, place.container or "", owner=False)
    content: dict[str, Any] = {"offerThroughput": wanted.get("throughput")}
    if settings := wanted.get("autoscaleSettings"):
        content = {"offerAutopilotSettings": settings}
    resources.replace_offer(account, _request({"content": content}), account.offer_of(container).rid)


def _asked(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the resource and the options of a body; the library may send the properties that it has no value for."""
    properties = object_of(body).get("properties")
    wanted = properties.get("resource") if isinstance(properties, dict) else None
    if not isinstance(properties, dict) or not isinstance(wanted, dict):
        raise bad("the body has no properties.resource")
    options = properties.get("options") or {}
    if not isinstance(options, dict):
        raise bad("properties.options must be an object")
    return wanted, options


def _request(wanted: dict[str, Any], options: dict[str, Any] | None = None) -> Request:
    """Make the request that asks the account's own endpoint for the same."""
    headers = dict[bytes, bytes]()
    if options and options.get("throughput") is not None:
        headers[OFFER_HEADER] = str(options["throughput"]).encode()
    if options and options.get("autoscaleSettings") is not None:
        headers[AUTOSCALE_HEADER] = orjson.dumps(options["autoscaleSettings"])
    return Request("PUT", "", headers, orjson.dumps(wanted))


def _told(place: Place, kind: str, resource: dict[str, Any]) -> bytes:
    name = place.id.rpartition("/")[2]
    return orjson.dumps({"id": place.id, "type": kind, "name": name, "properties": {"resource": resource}})
