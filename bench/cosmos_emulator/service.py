"""The emulated service without a network: it routes a request to its operation and always returns a response."""

import logging
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache, partial
from urllib.parse import unquote

import orjson

from hotplate.bench.cosmos_emulator import items, queries, resources
from hotplate.bench.cosmos_emulator.account import EmulatedAccount
from hotplate.bench.cosmos_emulator.auth import Authenticator
from hotplate.bench.cosmos_emulator.faults import Faults, Latency
from hotplate.bench.cosmos_emulator.http import HttpError, HttpResponse, Request, Substatus, bad_request, error_response
from hotplate.bench.cosmos_emulator.items import RequestContext, context_of

log = logging.getLogger(__name__)

# Longer paths are parsed each time, so memory stays bounded.
MAX_CACHED_PATH_CHARS = 512
ACTIVITY_ID = re.compile(rb"[0-9A-Za-z-]{1,64}")
QUERY = b"application/query+json"
SHAPES = ("dbs", "dbs/colls", "dbs/colls/docs", "dbs/colls/pkranges", "offers")
NOUNS = {"dbs": "database", "colls": "container", "docs": "item", "offers": "offer", "pkranges": "range", "": "account"}
VERBS = {"GET": "read", "PUT": "replace", "DELETE": "delete"}
READS = ("read ", "list ", "query ", "plan ")

ITEM_OPERATIONS: dict[str, Callable[[RequestContext, str], HttpResponse]] = {
    "read item": items.read,
    "batch items": lambda context, _: items.batch(context),
    "query items": lambda context, _: queries.query(context),
    "plan query": lambda context, _: queries.query_plan(context),
    "list items": lambda context, _: queries.feed(context),
    **{f"{verb} item": partial(items.write, operation=operation) for verb, operation in items.WRITES.items()},
}


@dataclass(frozen=True, slots=True)
class ResourceRoute:
    """A path, parsed: the names in it, and the resource type and the link that are signed."""

    resource_type: str
    """The type of the resource, or of the feed; empty for the account."""

    link: str
    names: tuple[str, ...]
    is_feed: bool


def route_of(path: str) -> ResourceRoute:
    """Parse a path as it was sent; 404 if no resource can be there."""
    return _cached_route(path) if len(path) <= MAX_CACHED_PATH_CHARS else _parse_route(path)


def _parse_route(path: str) -> ResourceRoute:
    try:
        segments = [unquote(segment, errors="strict") for segment in path.strip("/").split("/")]
    except UnicodeDecodeError:
        raise bad_request("the path is not UTF-8") from None
    if segments == [""]:
        return ResourceRoute("", "", (), is_feed=False)
    is_feed = len(segments) % 2 == 1
    types, names = segments[0::2], tuple(segments[1::2])
    shape = "/".join(types)
    if shape not in SHAPES or "" in segments:
        raise HttpError(404, f"this emulation has no resource there: {shape[:100]}")
    if types[-1] == "pkranges" and not is_feed:
        raise bad_request("single partition key ranges cannot be read; read the feed")
    link = "/".join(segments[:-1] if is_feed else segments)
    if types[-1] == "offers":
        link = "" if is_feed else names[0].lower()
    return ResourceRoute(types[-1], link, names, is_feed)


_cached_route = lru_cache(16384)(_parse_route)


def operation_of(request: Request, route: ResourceRoute) -> str:
    """Name the operation of a request, as metrics and faults name it."""
    noun = NOUNS[route.resource_type]
    if not route.is_feed:
        return f"{VERBS.get(request.method, 'other')} {noun}"
    if request.method != "POST":
        return f"{'list' if request.method == 'GET' else request.method.lower()} {noun}s"
    if request.flag(b"x-ms-cosmos-is-query-plan-request"):
        return "plan query"
    is_query = request.headers.get(b"content-type", b"").lower().startswith(QUERY)
    if is_query or request.flag(b"x-ms-documentdb-isquery") or request.flag(b"x-ms-documentdb-query"):
        return f"query {noun}s"
    if request.flag(b"x-ms-cosmos-is-batch-request"):
        return "batch items"
    return f"{'upsert' if request.flag(b'x-ms-documentdb-is-upsert') else 'create'} {noun}"


class Counts:
    """Requests and their charges by operation and status; lives as long as the emulator."""

    def __init__(self) -> None:
        self.requests = defaultdict[tuple[str, int], int](int)
        self.charges_ru = defaultdict[tuple[str, int], float](float)

    def count(self, operation: str, status: int, charge_ru: float) -> None:
        """Count one response."""
        self.requests[operation, status] += 1
        self.charges_ru[operation, status] += charge_ru


@dataclass(slots=True)
class Service:
    """Answers requests, one after the other; lives as long as the emulator."""

    account: EmulatedAccount
    authenticator: Authenticator
    faults: Faults = field(default_factory=Faults)
    counts: Counts = field(default_factory=Counts)
    latency: Latency | None = None
    """Delays the responses of the data plane, refusals included; None answers at once."""

    _second: int = -1
    _date: str = ""
    _activities: int = 0

    def answer(self, request: Request) -> HttpResponse:
        """Return the response to a request; never raises."""
        operation = "unreadable"
        try:
            route = route_of(request.path)
            operation = operation_of(request, route)
            run = self._run_with_faults if self.faults.active else self._run
            response = run(request, route, operation)
        except HttpError as error:
            response = error_response(error)
        except RecursionError:
            response = error_response(bad_request("the request nests too deeply"))
        except Exception:
            log.exception("a request failed; this is a defect of the emulation")
            response = error_response(HttpError(500, "the emulation failed; see its log"))
        if self.latency is not None and operation in ITEM_OPERATIONS:
            response.delay_s += self.latency.delay_s()
        self.counts.count(operation, response.status, response.charge_ru)
        response.headers["x-ms-activity-id"] = self._activity_id(request.headers.get(b"x-ms-activity-id"))
        response.headers["date"] = self._http_date()
        return response

    def _activity_id(self, given: bytes | None) -> str:
        if given is not None and ACTIVITY_ID.fullmatch(given):
            return given.decode()
        self._activities += 1
        return f"00000000-0000-0000-0000-{self._activities:012x}"

    def _http_date(self) -> str:
        second = int(self.account.clock())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True)
        return self._date

    def _run_with_faults(self, request: Request, route: ResourceRoute, operation: str) -> HttpResponse:
        now = self.account.clock()
        response = self.faults.before(request, operation, now)
        if response is None:
            try:
                response = self._run(request, route, operation)
            except HttpError as error:
                response = error_response(error)
            response.delay_s = self.faults.delay_s(request, operation, response, now)
        return response

    def _run(self, request: Request, route: ResourceRoute, operation: str) -> HttpResponse:
        now = self.account.clock()
        self.authenticator.check(request, route.resource_type, route.link, operation, now)
        if request.region and not operation.startswith(READS):
            message = "The requested operation cannot be performed at this region: it is not the write region"
            raise HttpError(403, message, Substatus.WRITE_FORBIDDEN)
        if operation == "read account":
            return self._read_account(request)
        if route.resource_type == "docs" and (run := ITEM_OPERATIONS.get(operation)) is not None:
            container = self.account.container(route.names[0], route.names[1], is_owner=True)
            context = context_of(self.account, container, request, now)
            return run(context, "" if route.is_feed else route.names[2])
        return resources.run(self.account, request, operation, route.names)

    def _read_account(self, request: Request) -> HttpResponse:
        """Describe the account; the region of the request is at the host and port that the caller reached it by."""
        host = request.header(b"host") or f"127.0.0.1:{self.account.regions[request.region][1]}"
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        regions = [
            {
                "name": region,
                "databaseAccountEndpoint": f"{request.scheme}://{host if n == request.region else f'{name}:{port}'}/",
            }
            for n, (region, port) in enumerate(self.account.regions)
        ]
        replicas = {"minReplicaSetSize": 1, "maxReplicasetSize": 1}
        account = {
            "_self": "",
            **dict.fromkeys(("id", "_rid"), "hotplate-emulation"),
            **{name: f"//{name.strip('_')}/" for name in ("media", "addresses", "_dbs")},
            "writableLocations": regions[:1],
            "readableLocations": regions,
            "enableMultipleWriteLocations": False,
            "userReplicationPolicy": {"asyncReplication": False, **replicas},
            "userConsistencyPolicy": {"defaultConsistencyLevel": self.account.consistency},
            "systemReplicationPolicy": replicas,
            "readPolicy": {"primaryReadCoefficient": 1, "secondaryReadCoefficient": 1},
            "queryEngineConfiguration": '{"maxSqlQueryInputLength":524288,"enableSpatialIndexing":false}',
        }
        return HttpResponse(200, orjson.dumps(account))
