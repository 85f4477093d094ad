"""The emulated service without a network: authentication and routing.

Signatures: https://learn.microsoft.com/rest/api/cosmos-db/access-control-on-cosmosdb-resources.
"""

import base64
import binascii
import hmac
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

import orjson

from hotplate.bench.cosmos_emulator import items, queries, resources
from hotplate.bench.cosmos_emulator.faults import ERRORS, RESETS, Faults
from hotplate.bench.cosmos_emulator.items import RequestContext, context_of
from hotplate.bench.cosmos_emulator.messages import HttpError, HttpResponse, Request, Substatus
from hotplate.bench.cosmos_emulator.resources import EmulatedAccount
from hotplate.bench.errors import BenchMisused

log = logging.getLogger(__name__)

MAX_CLOCK_SKEW_S = 15 * 60

QUERY = b"application/query+json"
SHAPES = ("dbs", "dbs/colls", "dbs/colls/docs", "dbs/colls/pkranges", "offers")
NOUNS = {"dbs": "database", "colls": "container", "docs": "item", "offers": "offer", "pkranges": "range", "": "account"}
VERBS = {"GET": "read", "PUT": "replace", "DELETE": "delete"}
READS = ("read ", "list ", "query ", "plan ")
NOT_EMULATED = {
    "batch item": "transactional batches and bulk requests are not emulated; send one request an item",
    "plan item": "this query is not emulated: only SELECT * with properties equal to or IN parameters or texts is",
}

ITEM_OPERATIONS: dict[str, Callable[[RequestContext, str], HttpResponse]] = {
    "read item": items.read,
    "query items": lambda context, _: queries.query(context),
    "list items": lambda context, _: queries.feed(context),
    **{f"{verb} item": partial(items.write, verb=verb) for verb in ("create", "upsert", "replace", "delete")},
}


class Authenticator:
    """Verifies signatures of requests."""

    def __init__(self, key: str) -> None:
        try:
            secret = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if not secret:
            raise BenchMisused("the account's key is empty or not base64") from None
        self._signer = hmac.new(secret, digestmod="sha256")

    def check(self, request: Request, resource_type: str, link: str, operation: str, now: float) -> None:  # noqa: ARG002 -- the key allows every operation
        """Verify the signature of a request with the account's master key.

        It is an HMAC of method, type and *link* of the resource, and date. Raises 401 for an invalid signature or date,
        403 for a date too far from *now* (seconds since 1970).
        """
        date = request.header(b"x-ms-date") or request.header(b"date")
        if abs(_seconds_of(date) - now) > MAX_CLOCK_SKEW_S:
            raise HttpError(
                403,
                f"The authorization token is not valid at the current time: {date[:40]} is not within "
                f"{MAX_CLOCK_SKEW_S // 60} minutes of the server's clock, {formatdate(now, usegmt=True)}",
            )

        verb = request.method.lower()
        date = date.lower()
        signer = self._signer.copy()
        signer.update(f"{verb}\n{resource_type}\n{link}\n{date}\n\n".encode())
        signature = base64.b64encode(signer.digest()).decode()

        if unquote(request.header(b"authorization")) == f"type=master&ver=1.0&sig={signature}":
            return

        raise HttpError(401, f"another key or another text was signed than {resource_type} {link[:100]} at {date[:40]}")


@lru_cache(256)
def _seconds_of(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        raise HttpError(401, "x-ms-date must be a date as in RFC 1123") from None


@dataclass(frozen=True, slots=True)
class ResourceRoute:
    """A parsed path, with the signed resource type and link."""

    resource_type: str  # empty for the account
    link: str
    names: tuple[str, ...]
    is_feed: bool


@lru_cache(16384)
def route_of(path: str) -> ResourceRoute:
    """Parse a path, as `dbs/shop/colls/lists/docs/u%3A1`: alternately types and names of resources.

    A path that ends with a type is a feed of such resources; ranges of keys (`pkranges`) are only read as a feed. The
    route's link is the part of the path that a request's signature covers: that of an offer is its id in lower case.
    Raises 400 for a path that is not UTF-8, 404 for resources that are not emulated.
    """
    try:
        segments = [unquote(segment, errors="strict") for segment in path.strip("/").split("/")]
    except UnicodeDecodeError:
        raise HttpError(400, "the path is not UTF-8") from None
    if segments == [""]:  # the account
        return ResourceRoute("", "", (), is_feed=False)

    is_feed = len(segments) % 2 == 1
    types = segments[0::2]
    names = tuple(segments[1::2])
    if "/".join(types) not in SHAPES or "" in segments or (types[-1] == "pkranges" and not is_feed):
        raise HttpError(404, f"this emulation has no resource at {'/'.join(types)[:100]}")

    link = "/".join(segments[:-1] if is_feed else segments)
    if types[-1] == "offers":
        link = "" if is_feed else names[0].lower()
    return ResourceRoute(types[-1], link, names, is_feed)


def operation_of(request: Request, route: ResourceRoute) -> str:
    """Return the name of a request's operation for metrics and faults, as `read item`.

    The method decides, but a POST to a feed is a create unless its headers make it an upsert, a query, a query's plan
    or a batch.
    """
    noun = NOUNS[route.resource_type]
    if not route.is_feed:
        return f"{VERBS.get(request.method, 'other')} {noun}"

    # A feed is all resources of a type, such as the items of a container.
    if request.method != "POST":
        return f"{'list' if request.method == 'GET' else request.method.lower()} {noun}s"

    is_query = request.headers.get(b"content-type", b"").lower().startswith(QUERY)
    if is_query or request.flag(b"x-ms-documentdb-isquery") or request.flag(b"x-ms-documentdb-query"):
        return f"query {noun}s"
    if request.flag(b"x-ms-cosmos-is-batch-request"):
        return "batch item"
    if request.flag(b"x-ms-cosmos-is-query-plan-request"):
        return "plan item"
    return f"{'upsert' if request.flag(b'x-ms-documentdb-is-upsert') else 'create'} {noun}"


@dataclass(slots=True)
class Service:
    """Answers requests."""

    account: EmulatedAccount
    authenticator: Authenticator
    faults: Faults = field(default_factory=Faults)
    # By operation and status.
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    charges_ru: defaultdict[tuple[str, int], float] = field(default_factory=lambda: defaultdict(float))
    latency: Callable[[], float] | None = None  # delay of the data plane's responses

    _activities: int = 0

    def answer(self, request: Request) -> HttpResponse:
        """Answer any request, and count it by operation and status with its charge.

        Requests for items get the assumed latency, as the delay of their response. Never raises: HttpErrors become
        responses, other errors are logged and become a 500.
        """
        operation = "unreadable"
        try:
            route = route_of(request.path)
            operation = operation_of(request, route)
            response = self._run_with_faults(request, route, operation)
        except HttpError as error:
            response = error.response()
        except Exception:
            log.exception("a request failed; this is a defect of the emulation")
            response = HttpError(500, "the emulation failed; see its log").response()

        if self.latency is not None and operation in ITEM_OPERATIONS:
            response.delay_s += self.latency()
        self.requests[operation, response.status] += 1
        self.charges_ru[operation, response.status] += response.charge_ru

        self._activities += 1
        response.headers["x-ms-activity-id"] = f"00000000-0000-0000-0000-{self._activities:012x}"
        response.headers["date"] = _http_date(int(self.account.clock()))
        return response

    def _run_with_faults(self, request: Request, route: ResourceRoute, operation: str) -> HttpResponse:
        """Answer a request like `_run`, with the injected faults that affect it: errors, resets and delays.

        The first error or reset replaces the response. Otherwise faults may delay it; an error response, too.
        """
        now = self.account.clock()
        faults = self.faults.affecting(request, operation, now)
        for fault in faults:
            if fault.kind in RESETS:
                return HttpResponse(503, reset=True)
            if fault.kind in ERRORS:
                raise fault.error()

        try:
            response = self._run(request, route, operation)
        except HttpError as error:
            response = error.response()
        response.delay_s = sum(fault.delay_s(response) for fault in faults)
        return response

    def _run(self, request: Request, route: ResourceRoute, operation: str) -> HttpResponse:
        """Answer an authenticated request, for an item, the account or another resource; raises HttpError.

        Faults are not injected here. Regions other than the first, the write region, only accept reads.
        """
        now = self.account.clock()
        self.authenticator.check(request, route.resource_type, route.link, operation, now)
        if request.region and not operation.startswith(READS):
            message = "The requested operation cannot be performed at this region: it is not the write region"
            raise HttpError(403, message, Substatus.WRITE_FORBIDDEN)

        # `docs` is the type of items in a path.
        run_on_item = ITEM_OPERATIONS.get(operation)
        if route.resource_type == "docs" and run_on_item is not None:
            database_name, container_name, *item_ids = route.names  # one id, or none for a feed
            container = self.account.container(database_name, container_name, is_owner=True)
            context = context_of(self.account, container, request, now)
            return run_on_item(context, item_ids[0] if item_ids else "")
        if operation == "read account":
            return _read_account(self.account, request)
        return _manage(self.account, request, operation, route.names)


_http_date = lru_cache(1)(partial(formatdate, usegmt=True))


def _read_account(account: EmulatedAccount, request: Request) -> HttpResponse:
    """Answer a read of the account: its regions with their URLs, and its consistency.

    The URLs have the host by which the client has reached this region, and the ports of the regions.
    """
    host = request.header(b"host") or f"127.0.0.1:{account.regions[request.region][1]}"
    name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    regions = list[dict[str, str]]()
    for number, (region, port) in enumerate(account.regions):
        netloc = host if number == request.region else f"{name}:{port}"
        regions.append({"name": region, "databaseAccountEndpoint": f"{request.scheme}://{netloc}/"})

    properties = {
        "id": "hotplate-emulation",
        "writableLocations": regions[:1],
        "readableLocations": regions,
        "enableMultipleWriteLocations": False,
        "userConsistencyPolicy": {"defaultConsistencyLevel": account.consistency},
        "queryEngineConfiguration": '{"maxSqlQueryInputLength":524288}',
    }
    return HttpResponse(200, orjson.dumps(properties))


def _manage(account: EmulatedAccount, request: Request, operation: str, names: tuple[str, ...]) -> HttpResponse:
    """Answer a request for a database, a container or an offer (the resource with a container's throughput).

    *operation* is a verb and a noun, as `create database`, and *names* are those in the path. Raises HttpError.
    """
    charges = account.charges
    verb = operation.partition(" ")[0]
    if verb in ("list", "query"):
        return _list(account, request, operation, names)

    if operation not in resources.OPERATIONS:
        message = NOT_EMULATED.get(operation, f"this emulation does not support {request.method[:20]} there")
        raise HttpError(405, message)

    resource = resources.OPERATIONS[operation](account, request, *names)
    if verb == "delete":
        return HttpResponse(204, charge_ru=charges.metadata_write)
    body = orjson.dumps(resource.to_json())
    if verb == "create":
        return HttpResponse(201, body, charge_ru=charges.metadata_write)
    return HttpResponse(200, body, charge_ru=charges.metadata_read)


def _list(account: EmulatedAccount, request: Request, operation: str, names: tuple[str, ...]) -> HttpResponse:
    """Answer a list or a query of databases, containers, offers or ranges of keys.

    *operation* is a verb and a noun, as `list databases`, and *names* are those in the path, of the database and the
    container. Only ranges of keys, one for each physical partition, have an etag: if they have not changed since the
    request's, the response is a 304, which ends the paging of SDKs.
    """
    verb, _, noun = operation.partition(" ")
    charge_ru = account.charges.metadata_read
    headers = dict[str, str]()
    listed: Iterable[Any]
    match noun:
        case "databases":
            name = "Databases"
            listed = account.databases.values()
        case "containers":
            name = "DocumentCollections"
            listed = account.database(*names, is_owner=True).containers.values()
        case "offers":
            name = "Offers"
            listed = [container.offer for container in account.containers()]
        case _:
            name = "PartitionKeyRanges"
            partitions = account.container(*names, is_owner=True).partitions
            listed = partitions.all
            headers["etag"] = partitions.etag
            if request.header(b"if-none-match") == partitions.etag:
                return HttpResponse(304, headers=headers, charge_ru=charge_ru)

    resources = [resource.to_json() for resource in listed]
    if verb == "query":
        conditions = queries.parse_query(request)
        resources = [resource for resource in resources if queries.meets(resource, conditions)]
    headers["x-ms-item-count"] = str(len(resources))
    content = {"_rid": "", name: resources, "_count": len(resources)}
    return HttpResponse(200, orjson.dumps(content), headers, charge_ru)
