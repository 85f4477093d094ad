"""Point reads and writes of items by signed requests, with failover between the account's regions.

A point read takes 30 to 45 µs of CPU, through azure-cosmos 700 or more, which halves the lists a second of a publish at
10,000 RU/s and leaves a fourth at 100,000.

A write is one attempt. After a transient error a read has a second one: in another region if possible. Regions follow
the rules of the SDKs: the account, which lists them, is read every five minutes, or sooner after an unexpected
response; an unhealthy region is avoided, and tried by single reads.
"""

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import orjson

from hotplate.stores.cosmos.errors import (
    DEADLINE_S,
    SESSION_NOT_AVAILABLE,
    TRANSIENT,
    ContainerMissing,
    CosmosThrottled,
    CosmosUnavailable,
    ErrorKind,
    ErrorResponse,
    MalformedResponse,
    charge_in,
    date_in,
    error_for,
    error_response,
    item_in,
    no_response,
    object_in,
    store_closed,
)
from hotplate.stores.cosmos.requests import Credential, KeySigner, RequestBuilder, TokenSigner, default_credential
from hotplate.stores.cosmos.url import Address
from hotplate.stores.errors import StoreError, StoreMisused
from hotplate.stores.http1 import ConnectionPool, RequestFailed, Response, Transport
from hotplate.stores.shared_call import SharedCall
from hotplate.stores.store import Observer, TracedCall, traced_call

T = TypeVar("T")

log = logging.getLogger(__name__)

# Connections to one server: enough for 2,500 reads/s at 50 ms.
CONNECTIONS = 128
# Minimum time for a second attempt.
MIN_ATTEMPT_S = 0.001

# Consecutive failures that make a region unhealthy; one failed connect suffices.
MAX_FAILURES = 3
# Time between single reads that try an unhealthy region.
TRIAL_PAUSE_S = 5.0
# Shorter waits say nothing about a region.
MIN_WAIT_S = 0.02
# A request that timed out after this time contradicts the cached regions.
LONG_WAIT_S = 1.0
# A read cancelled after this share of its time counts as timed out.
CANCELLED_SHARE = 0.5
# Regular and minimum intervals between reads of the account.
REFRESH_INTERVAL_S = 300.0
MIN_REFRESH_INTERVAL_S = 5.0

# Account consistency levels with session tokens.
SESSION_CONSISTENCIES = ("Strong", "BoundedStaleness", "Session")

# Attributes of a traced read: https://opentelemetry.io/docs/specs/semconv/db/cosmosdb/
CHARGE = "azure.cosmosdb.operation.request_charge"
REGIONS = "azure.cosmosdb.operation.contacted_regions"

JSON = b"content-type: application/json\r\nprefer: return=minimal\r\n"
# Statuses of a read: of an item, or of its absence.
FOUND = (200, 404)
DEFAULT_PORTS = {"https": 443, "http": 80}

# Connects to a server at `https://HOST:PORT`.
MakeTransport = Callable[[str], Transport]

CosmosItem = dict[str, Any]


class VersionedItem(NamedTuple):
    """An item, if any, its etag, and the service's clock in seconds."""

    item: CosmosItem | None
    etag: str
    now: float


class ItemWritten(NamedTuple):
    """A conditional write; not `done` after a 404, 409 or 412."""

    done: bool
    charge_ru: float


class Account(NamedTuple):
    """Properties of the account."""

    multiple_write_regions: bool
    regions: tuple[str, ...]
    """Readable regions in the order of lookups."""


@dataclass(slots=True, eq=False)
class Region:
    """One server of the account."""

    url: str
    requests: RequestBuilder
    transport: Transport
    name: str = ""
    failures: int = 0
    """Consecutive failures; unhealthy from MAX_FAILURES."""

    failed_at: float = float("-inf")
    """Time of the last failure that was counted (loop clock)."""

    try_at: float = 0.0
    """Time of the next trial while unhealthy."""

    @property
    def is_healthy(self) -> bool:
        return self.failures < MAX_FAILURES


class SignedClient:
    """Reads and writes items of one database, on one event loop.

    Raises ContainerMissing, CosmosThrottled or CosmosUnavailable, of kind `malformed` for an invalid response.
    """

    def __init__(
        self,
        address: Address,
        observer: Observer | None = None,
        *,
        credential: Credential | None = None,
        clock: Callable[[], float] = time.time,
        make_transport: MakeTransport | None = None,
    ) -> None:
        """*credential* defaults to azure-identity's; *clock* dates requests."""
        self._address = address
        self._observer = observer
        self._clock = clock
        self._tokens: TokenSigner | None = None
        if address.key is None:
            self._tokens = TokenSigner(address, credential or default_credential(), clock)
        self._signer = self._tokens or KeySigner(address.key or "", address.shown)
        self._consistency = f"x-ms-consistency-level: {address.consistency}\r\n".encode()
        self._sessions = dict[str, dict[bytes, bytes]]()
        """Session tokens of writes, `RANGE:PROGRESS`, by container and partition key range."""

        self._make_transport = make_transport or _tcp_transport(address)
        self._regions = Regions(address, self._connect, self._read_account)

    async def read(self, container: str, name: str, timeout_s: float) -> CosmosItem | None:
        """Read one item from the nearest healthy region; None if absent."""
        return (await self.read_nearest(container, name, timeout_s))[0]

    async def read_nearest(self, container: str, name: str, timeout_s: float) -> tuple[CosmosItem | None, bool]:
        """Read like `read`; also return whether the write region responded."""
        loop, regions = asyncio.get_running_loop(), self._regions
        began_s = loop.time()
        due_s = began_s + timeout_s
        if began_s >= regions.refresh_at or (self._tokens is not None and self._tokens.needs_token()):
            await self._prepare(due_s)
            began_s = loop.time()
        region = regions.nearest(began_s)
        try:
            return await self._read_in(region, container, name, due_s), region is regions.write
        except (CosmosUnavailable, CosmosThrottled) as error:
            other = region if error.kind == "throttled" else regions.failed(region, error.kind, began_s)
            pause_s = error.retry_after_s if other is region else 0.0
            if other is None or loop.time() + pause_s > due_s - MIN_ATTEMPT_S:
                raise
        except asyncio.CancelledError:
            if loop.time() - began_s >= (due_s - began_s) * CANCELLED_SHARE:
                regions.failed(region, "timeout", began_s)
            raise
        await asyncio.sleep(pause_s)
        return await self._read_in(other, container, name, due_s), other is regions.write

    async def _read_in(self, region: Region, container: str, name: str, due_s: float) -> CosmosItem | None:
        call = traced_call.get()
        headers = self._consistency if call is None else self._consistency + call.headers
        message = region.requests.item(b"GET", container, name, headers)
        parse = partial(_item_or_none, name)
        item = await self._send(region, message, due_s, container=container, expected=FOUND, parse=parse)
        if region.failures:
            self._regions.succeeded(region)
        return item

    async def read_fresh(self, container: str, name: str) -> VersionedItem:
        """Read an item from the write region; with sessions, sees this process's writes."""
        await self._prepare(due_s := asyncio.get_running_loop().time() + DEADLINE_S)
        headers = b""
        if self._regions.has_sessions:
            headers = b"x-ms-consistency-level: Session\r\n"
            if seen := self._sessions.get(container):
                headers += b"x-ms-session-token: %b\r\n" % b",".join(b"%b:%b" % one for one in seen.items())
        region, parse = self._regions.write, partial(_versioned, name)
        message = region.requests.item(b"GET", container, name, headers)
        return await self._send(region, message, due_s, container=container, expected=FOUND, parse=parse)

    async def create(self, container: str, item: CosmosItem) -> ItemWritten:
        return await self._write(b"POST", container, item["id"], (201, 409), headers=JSON, body=orjson.dumps(item))

    async def replace(self, container: str, item: CosmosItem, etag: str) -> ItemWritten:
        """Replace an item if its version is *etag*."""
        if not etag.isprintable():
            raise StoreMisused(f"{etag[:80]!r} is not an etag")
        headers, body = JSON + b"if-match: %b\r\n" % etag.encode(), orjson.dumps(item)
        return await self._write(b"PUT", container, item["id"], (200, 404, 412), headers=headers, body=body)

    async def delete(self, container: str, name: str) -> ItemWritten:
        return await self._write(b"DELETE", container, name, (204, 404))

    async def _write(
        self,
        verb: bytes,
        container: str,
        name: str,
        expected: tuple[int, ...],
        *,
        headers: bytes = b"",
        body: bytes = b"",
    ) -> ItemWritten:
        """Send a write to the write region; the first of *expected* means done."""
        await self._prepare(due_s := asyncio.get_running_loop().time() + DEADLINE_S)
        region = self._regions.write
        message = region.requests.item(verb, container, name, headers, body)

        def written(response: Response) -> ItemWritten:
            token = response.header(b"x-ms-session-token")
            seen = self._sessions.setdefault(container, {})
            seen.update(one.partition(b":")[::2] for one in (token.split(b",") if token else ()))
            return ItemWritten(response.status == expected[0], charge_in(response))

        return await self._send(region, message, due_s, container=container, expected=expected, parse=written)

    async def account(self) -> Account:
        return await self._regions.refresh()

    async def close(self) -> None:
        await self._regions.close()
        if self._tokens is not None:
            await self._tokens.close()

    def _connect(self, url: str) -> Region:
        parts = urlsplit(url)
        host = parts.netloc if parts.port != DEFAULT_PORTS[parts.scheme] else parts.netloc.rpartition(":")[0]
        requests = RequestBuilder(host, self._address.database, self._signer, self._clock)
        return Region(url, requests, self._make_transport(url))

    async def _prepare(self, due_s: float) -> None:
        """Have a token and a list of regions, which is refreshed in the background if due."""
        now = asyncio.get_running_loop().time()
        if not self._regions.readable:
            await self._regions.refresh(due_s)
        elif now >= self._regions.refresh_at:
            self._regions.refresh_soon()
        await self._acquire_token(due_s)

    async def _acquire_token(self, due_s: float) -> None:
        if self._tokens is None or not self._tokens.needs_token():
            return
        try:
            async with asyncio.timeout_at(due_s):
                await self._tokens.acquire_token()
        except TimeoutError:
            late = CosmosUnavailable(f"{self._address.shown}: Entra ID gave no token in time", "timeout")
            raise self._failed(late) from None
        except CosmosUnavailable as error:
            raise self._failed(error) from None

    async def _read_account(self, region: Region) -> dict[str, Any]:
        due_s = asyncio.get_running_loop().time() + DEADLINE_S
        await self._acquire_token(due_s)
        message = region.requests.build(b"GET", b"", b"", b"")
        return await self._send(region, message, due_s, container="", expected=(200,), parse=object_in)

    async def _send(
        self,
        region: Region,
        message: bytes,
        due_s: float,
        *,
        container: str,
        expected: tuple[int, ...],
        parse: Callable[[Response], T],
    ) -> T:
        """Send a request; parse a response of an *expected* status, where a 404 is about an item."""
        where, timeout_s = self._address.shown, due_s - asyncio.get_running_loop().time()
        try:
            response = await region.transport.request(message, timeout_s)
            charge_ru = charge_in(response)
            if self._observer is not None:
                self._observer.charged(charge_ru)
            if (call := traced_call.get()) is not None:
                _note_response(call, region.name, response.status, charge_ru)
            if response.status in expected and (response.status != 404 or not error_response(response).substatus):
                return parse(response)
            refused = error_response(response)
        except RequestFailed as error:
            if error.kind != "timeout" or timeout_s >= LONG_WAIT_S:
                self._regions.refresh_early()
            raise self._failed(no_response(error, where)) from error
        except MalformedResponse as error:
            raise self._failed(CosmosUnavailable(f"{where} sent {error}", "malformed")) from error
        raise self._failed(self._refusal(refused, container))

    def _refusal(self, refused: ErrorResponse, container: str) -> StoreError:
        error = error_for(refused, self._address.shown)
        if isinstance(error, ContainerMissing) or refused.substatus == SESSION_NOT_AVAILABLE:
            self._sessions.pop(container, None)  # a failover may have lost writes
        if isinstance(error, CosmosUnavailable):
            if error.kind == "unauthorized" and self._tokens is not None:
                self._tokens.refused()
            elif error.kind == "unavailable":
                self._regions.refresh_early()
        return error

    def _failed(self, error: StoreError) -> StoreError:
        if self._observer is not None and isinstance(error, CosmosUnavailable | CosmosThrottled):
            self._observer.failed(error.kind)
        return error


class Regions:
    """The account's regions and their health."""

    def __init__(
        self,
        address: Address,
        connect: Callable[[str], Region],
        read_account: Callable[[Region], Awaitable[dict[str, Any]]],
    ) -> None:
        """*connect* opens a region by URL; *read_account* reads the account from a region."""
        self._where, self._preferred = address.shown, address.region
        self._account = self.write = connect(address.endpoint)
        self._connect = connect
        self._read_account = read_account
        self._known = {address.endpoint: self._account}
        self._refreshing = SharedCall(self._refresh, store_closed)
        self.readable = list[Region]()
        """In the order of lookups; empty before the first read of the account."""

        self.has_sessions = False
        self.refresh_at = float("-inf")
        """Time of the next read of the account (loop clock)."""

    def nearest(self, now: float) -> Region:
        """Return the region for the next lookup."""
        for region in self.readable:
            if region.is_healthy:
                return region
            if now >= region.try_at:
                region.try_at = now + TRIAL_PAUSE_S  # if this trial fails
                return region
        return self.readable[0] if self.readable else self._account

    def succeeded(self, region: Region) -> None:
        """Record a success after a failure."""
        recovered, region.failures = not region.is_healthy, 0
        if recovered and len(self.readable) > 1:
            first = next((one for one in self.readable if one.is_healthy), region)
            log.warning("%s: %s can be read again; reading from %s", self._where, region.name, first.name)

    def failed(self, region: Region, kind: ErrorKind, began_at: float) -> Region | None:
        """Record a failed read; return the region for a second attempt, if any.

        Overlapping failures count once, because this process may have paused.
        """
        now = asyncio.get_running_loop().time()
        if kind == "timeout":
            if now - began_at < MIN_WAIT_S:
                return None
        elif kind not in TRANSIENT:
            return None
        others = sorted((one for one in self.readable if one is not region), key=lambda one: not one.is_healthy)
        if began_at >= region.failed_at:
            was_healthy, region.failed_at = region.is_healthy, now
            region.failures = MAX_FAILURES if kind == "connect" else region.failures + 1
            if was_healthy and not region.is_healthy and others:
                region.try_at = now + TRIAL_PAUSE_S
                names = region.name, kind, others[0].name
                log.warning("%s: %s cannot be read (%s); reading from %s", self._where, *names)
                self.refresh_early()
        return next(iter(others), region)

    def refresh_early(self) -> None:
        """Read the account soon, after a response that contradicts cached regions."""
        self.refresh_at = min(self.refresh_at, asyncio.get_running_loop().time() + MIN_REFRESH_INTERVAL_S)

    def refresh_soon(self) -> None:
        """Start reading the account in the background."""
        self.refresh_at = asyncio.get_running_loop().time() + MIN_REFRESH_INTERVAL_S
        self._refreshing.start()

    async def refresh(self, due_s: float | None = None) -> Account:
        """Read the account; callers share one request. Raises StoreError."""
        try:
            async with asyncio.timeout_at(due_s):
                return await self._refreshing.result()
        except TimeoutError:
            raise CosmosUnavailable(f"{self._where} did not list its regions in time", "timeout") from None

    async def close(self) -> None:
        await self._refreshing.close()
        for region in self._known.values():
            await region.transport.close()

    async def _refresh(self) -> Account:
        """Read the account from its server or a region."""
        interval_s, failed = MIN_REFRESH_INTERVAL_S, None
        try:
            for region in dict.fromkeys([self._account, *self.readable]):
                try:
                    account = await self._apply(await self._read_account(region))
                except StoreError as error:
                    failed = failed or error
                else:
                    interval_s = REFRESH_INTERVAL_S * random.uniform(0.9, 1.1)  # noqa: S311 -- spreads workers
                    return account
            raise failed or store_closed()
        finally:
            self.refresh_at = asyncio.get_running_loop().time() + interval_s

    async def _apply(self, reported: dict[str, Any]) -> Account:
        """Use the regions that the account lists, *preferred* first."""
        writable, readable = (self._servers(reported.get(f"{each}Locations")) for each in ("writable", "readable"))
        before, names = [one.name for one in self.readable], sorted(readable, key=lambda name: name != self._preferred)
        write = next(iter(writable.values()))
        for url in (write, *readable.values()):
            if url not in self._known:
                self._known[url] = self._connect(url)
        self.write, self.readable = self._known[write], [self._known[readable[name]] for name in names]
        for name, region in zip(names, self.readable, strict=True):
            region.name = name
        policy = reported.get("userConsistencyPolicy")
        self.has_sessions = isinstance(policy, dict) and policy.get("defaultConsistencyLevel") in SESSION_CONSISTENCIES
        if before and before != names:
            log.warning("%s: its regions are now %s", self._where, ", ".join(names))
        for url in self._known.keys() - {self._account.url, write, *readable.values()}:
            await self._known.pop(url).transport.close()
        multiple = reported.get("enableMultipleWriteLocations") is True or len(writable) > 1
        return Account(multiple, tuple(names))

    def _servers(self, reported: object) -> dict[str, str]:
        """Return the URLs of listed regions by name; an account of https has none in the clear."""
        found = dict[str, str]()
        try:
            for one in reported if isinstance(reported, list) else ():
                parts = urlsplit(one["databaseAccountEndpoint"])
                host, port = parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme]
                if host and (parts.scheme == "https" or self._account.url.startswith("http:")):
                    bracketed = f"[{host}]" if ":" in host else host
                    found[str(one["name"])] = f"{parts.scheme}://{bracketed}:{port}"
        except (AttributeError, KeyError, TypeError, ValueError):
            found.clear()
        if not found:
            raise CosmosUnavailable(f"{self._where} sent an account without valid regions", "malformed")
        return found


def _item_or_none(name: str, response: Response) -> CosmosItem | None:
    return item_in(response, name) if response.status == 200 else None


def _versioned(name: str, response: Response) -> VersionedItem:
    now = date_in(response)
    if response.status == 404:
        return VersionedItem(None, "", now)
    item = item_in(response, name)
    etag = item.get("_etag")
    if not isinstance(etag, str):
        raise MalformedResponse("an item without etag")
    return VersionedItem(item, etag, now)


def _tcp_transport(address: Address) -> MakeTransport:
    context = None
    if address.endpoint.startswith("https:"):
        try:
            context = ssl.create_default_context()
            if address.ca is not None:
                context.load_verify_locations(address.ca)
        except OSError as error:  # SSLError is one
            raise StoreMisused(
                f"the file {address.ca}, which should certify {address.shown}, cannot be used: {error}"
            ) from error

    def make_transport(url: str) -> Transport:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        tls = context if parts.scheme == "https" else None
        return ConnectionPool(parts.hostname or "", port, size=CONNECTIONS, tls=tls)

    return make_transport


def _note_response(call: TracedCall, region: str, status: int, charge_ru: float) -> None:
    attributes = call.attributes
    attributes["db.response.status_code"] = str(status)
    regions, charged = attributes.get(REGIONS, ()), attributes.get(CHARGE, 0.0)
    if isinstance(regions, tuple) and region not in regions:
        attributes[REGIONS] = (*regions, region)
    if isinstance(charged, float):
        attributes[CHARGE] = charged + charge_ru
