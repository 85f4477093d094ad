"""The emulation without a network: a request in, an answer out, whatever the request is."""

import logging
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate

import orjson

from bench.cosmos_emulator import batches, items, queries, resources
from bench.cosmos_emulator.account import Account
from bench.cosmos_emulator.auth import Keeper
from bench.cosmos_emulator.counts import Counts
from bench.cosmos_emulator.errors import CODES, WRITE_FORBIDDEN, Refused
from bench.cosmos_emulator.faults import Faults
from bench.cosmos_emulator.messages import Answer, Request
from bench.cosmos_emulator.permissions import permit
from bench.cosmos_emulator.routes import Route, route_of
from bench.cosmos_emulator.turn import Turn, turn_for

log = logging.getLogger(__name__)

ACTIVITY_ID = re.compile(rb"[0-9A-Za-z-]{1,64}")
QUERY = "application/query+json"
NAMED = {"dbs": "database", "colls": "container", "docs": "item", "offers": "offer", "pkranges": "range", "": "account"}
VERBS = {"GET": "read", "PUT": "replace", "DELETE": "delete", "PATCH": "patch"}

ITEM_OPERATIONS: dict[str, Callable[[Turn, str], Answer]] = {
    "read item": items.read,
    "create item": lambda turn, _: items.create(turn),
    "upsert item": lambda turn, _: items.upsert(turn),
    "replace item": items.replace,
    "delete item": items.delete,
    "patch item": items.patch,
    "batch items": lambda turn, _: batches.batch(turn),
    "query items": lambda turn, _: queries.query(turn),
    "plan query": lambda turn, _: queries.plan_only(turn),
    "list items": lambda turn, _: queries.feed(turn),
}
RESOURCE_OPERATIONS: dict[str, Callable[..., Answer]] = {
    "create database": resources.create_database,
    "read database": resources.read_database,
    "delete database": resources.delete_database,
    "list databases": resources.list_databases,
    "query databases": resources.list_databases,
    "create container": resources.create_container,
    "read container": resources.read_container,
    "replace container": resources.replace_container,
    "delete container": resources.delete_container,
    "list containers": resources.list_containers,
    "query containers": resources.list_containers,
    "list ranges": resources.list_ranges,
    "list offers": resources.list_offers,
    "query offers": resources.list_offers,
    "read offer": resources.read_offer,
    "replace offer": resources.replace_offer,
}


@dataclass(slots=True)
class Service:
    """Answers requests, one after the other; lives as long as the emulator."""

    account: Account
    keeper: Keeper
    faults: Faults = field(default_factory=Faults)
    counts: Counts = field(default_factory=Counts)
    _second: int = -1
    _date: str = ""

    def answer(self, request: Request) -> Answer:
        """Answer a request; never raises."""
        operation = "unreadable"
        try:
            route = route_of(request.path)
            operation = operation_of(request, route)
            do = self._faulty if self.faults.active else self._do
            answer = do(request, route, operation)
        except Refused as refusal:
            answer = refused(refusal)
        except RecursionError:
            answer = refused(Refused(400, "the request nests too deeply"))
        except Exception:
            log.exception("a request failed; this is a defect of the emulation")
            answer = refused(Refused(500, "the emulation failed; its log says where"))
        self.counts.count(operation, answer.status, answer.charge_ru)
        answer.headers["x-ms-activity-id"] = activity_id(request)
        answer.headers["date"] = self._dated()
        return answer

    def _dated(self) -> str:
        second = int(self.account.clock())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True)
        return self._date

    def _faulty(self, request: Request, route: Route, operation: str) -> Answer:
        now = self.account.clock()
        answer = self.faults.before(request, operation, now)
        if answer is None:
            try:
                answer = self._do(request, route, operation)
            except Refused as refusal:
                answer = refused(refusal)
            answer.delay_s = self.faults.delay_s(request, operation, answer, now)
        return answer

    def _do(self, request: Request, route: Route, operation: str) -> Answer:
        now = self.account.clock()
        roles = self.keeper.check(request, route.kind, route.link, now)
        if roles is not None:
            permit(roles, operation, request)
        if request.region and not _reads(operation):
            raise Refused(
                403,
                "The requested operation cannot be performed at this region: it is not the one for writes",
                WRITE_FORBIDDEN,
            )
        if route.kind == "docs":
            return self._item(request, route, operation, now)
        return self._resource(request, route, operation)

    def _item(self, request: Request, route: Route, operation: str, now: float) -> Answer:
        do = ITEM_OPERATIONS.get(operation)
        if do is None:
            raise _no_method(request)
        container = resources.container_of(self.account, route.names[0], route.names[1])
        return do(turn_for(self.account, container, request, now), "" if route.is_feed else route.names[2])

    def _resource(self, request: Request, route: Route, operation: str) -> Answer:
        if operation == "read account":
            return self._account(request)
        do = RESOURCE_OPERATIONS.get(operation)
        if do is None:
            raise _no_method(request)
        return do(self.account, request, *route.names)

    def _account(self, request: Request) -> Answer:
        """Describe the account; the region that was asked is at the host and port that the caller reached it by."""
        host = request.text(b"host") or f"127.0.0.1:{self.account.regions[request.region][1]}"
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        regions = [
            {
                "name": region,
                "databaseAccountEndpoint": f"{request.scheme}://{host if n == request.region else f'{name}:{port}'}/",
            }
            for n, (region, port) in enumerate(self.account.regions)
        ]
        told = {
            "_self": "",
            "id": "hotplate-emulation",
            "_rid": "hotplate-emulation",
            "media": "//media/",
            "addresses": "//addresses/",
            "_dbs": "//dbs/",
            "writableLocations": regions[:1],
            "readableLocations": regions,
            "enableMultipleWriteLocations": False,
            "userReplicationPolicy": {"asyncReplication": False, "minReplicaSetSize": 1, "maxReplicasetSize": 1},
            "userConsistencyPolicy": {"defaultConsistencyLevel": self.account.consistency},
            "systemReplicationPolicy": {"minReplicaSetSize": 1, "maxReplicasetSize": 1},
            "readPolicy": {"primaryReadCoefficient": 1, "secondaryReadCoefficient": 1},
            "queryEngineConfiguration": '{"maxSqlQueryInputLength":524288,"enableSpatialIndexing":false}',
        }
        return Answer(200, orjson.dumps(told), charge_ru=0.0)


def operation_of(request: Request, route: Route) -> str:
    """Name what a request wants, as metrics and faults name it."""
    noun = NAMED[route.kind]
    if not route.is_feed or request.method != "POST":
        if route.is_feed:
            return f"list {noun}s" if request.method == "GET" else f"{request.method.lower()} {noun}s"
        return f"{VERBS.get(request.method, 'other')} {noun}"
    headers = request.headers
    if request.says(b"x-ms-cosmos-is-query-plan-request"):
        return "plan query"
    is_query = headers.get(b"content-type", b"").lower().startswith(QUERY.encode())
    if is_query or request.says(b"x-ms-documentdb-isquery") or request.says(b"x-ms-documentdb-query"):
        return f"query {noun}s"
    if request.says(b"x-ms-cosmos-is-batch-request"):
        return "batch items"
    return f"{'upsert' if request.says(b'x-ms-documentdb-is-upsert') else 'create'} {noun}"


def _reads(operation: str) -> bool:
    return operation.startswith(("read ", "list ", "query ", "plan "))


def activity_id(request: Request) -> str:
    """Take the caller's activity id, or make one; what is odd is not echoed."""
    given = request.headers.get(b"x-ms-activity-id", b"")
    return given.decode() if ACTIVITY_ID.fullmatch(given) else str(uuid.uuid4())


def refused(refusal: Refused) -> Answer:
    """Make the answer of a refusal."""
    code = CODES.get(refusal.status, "Error")
    body = orjson.dumps({"code": code, "message": refusal.message, **refusal.details})
    headers = {**refusal.headers, "x-ms-substatus": str(refusal.substatus)}
    return Answer(refusal.status, body, headers, refusal.charge_ru)


def _no_method(request: Request) -> Refused:
    return Refused(405, f"this emulation does not answer {request.method[:20]} there")
