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
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from hotplate.stores.cosmos.errors import (
    CHARGE_HEADER,
    DEADLINE_S,
    SESSION_NOT_AVAILABLE,
    TRANSIENT,
    ContainerMissing,
    CosmosThrottled,
    CosmosUnavailable,
    ErrorKind,
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
from hotplate.stores.cosmos.requests import (
    Credential,
    KeySigner,
    RequestBuilder,
    TokenSigner,
    default_credential,
)
from hotplate.stores.cosmos.url import Address
from hotplate.stores.errors import StoreError, StoreMisused
from hotplate.stores.http1 import ConnectionPool, RequestFailed, Response, Transport
from hotplate.stores.shared_call import SharedCall
from hotplate.stores.store import Observer, TracedCall, traced_call
from hotplate.stores.throttle import Backoff

log = logging.getLogger(__name__)

# Connections to one server: enough for 2,500 reads/s at 50 ms.
CONNECTIONS = 128
# Minimum time for a second attempt.
MIN_ATTEMPT_S = 0.001

# Consecutive failures that make a region unhealthy; one failed connect suffices.
MAX_FAILURES = 3
# Shorter waits say nothing about a region.
MIN_WAIT_S = 0.02
# A read cancelled after this share of its time counts as timed out.
CANCELLED_SHARE = 0.5
# Regular and minimum intervals between reads of the account.
REFRESH_INTERVAL_S = 300.0
MIN_REFRESH_INTERVAL_S = 5.0
# First and longest delay before a trial of an unhealthy region.
TRIAL_PAUSE_S = (1.0, 60.0)

# Account consistency levels with session tokens.
SESSION_CONSISTENCIES = ("Strong", "BoundedStaleness", "Session")
LISTS = ("writableLocations", "readableLocations")

# Attributes of a traced read: https://opentelemetry.io/docs/specs/semconv/db/cosmosdb/
CHARGE = "azure.cosmosdb.operation.request_charge"
REGIONS = "azure.cosmosdb.operation.contacted_regions"

JSON = b"content-type: application/json\r\nprefer: return=minimal\r\n"
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
    """A conditional write; not `done` after a 409 or 412."""

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
    late_at: float = float("-inf")
    """Time of the last counted timeout (loop clock)."""

    try_at: float | None = None
    """Time of the next trial of an unhealthy region; None if healthy."""

    pauses: Backoff = field(default_factory=lambda: Backoff(*TRIAL_PAUSE_S))


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
        self._sessions = SessionTokens()
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
        message = region.requests.point_read(container, name, b"" if call is None else call.headers)
        try:
            response = await region.transport.request(message, due_s - asyncio.get_running_loop().time())
            if call is not None:
                _note_response(call, region.name, response)
            if response.status != 200 and not _is_absent(response):
                raise self._refusal(response, container)
            item = item_in(response, name) if response.status == 200 else None
            self._charge(response)
        except (RequestFailed, MalformedResponse) as error:
            raise self._translated(error) from error
        if region.failures:
            self._regions.succeeded(region)
        return item

    async def read_fresh(self, container: str, name: str) -> VersionedItem:
        """Read an item from the write region; with sessions, sees this process's writes."""
        headers = b""
        if self._regions.has_sessions:
            headers = b"x-ms-consistency-level: Session\r\n"
            if token := self._sessions.token(container):
                headers += b"x-ms-session-token: %b\r\n" % token
        response, _ = await self._call("GET", container, name, (200,), headers=headers)
        try:
            return _versioned(response, name)
        except MalformedResponse as error:
            raise self._translated(error) from error

    async def create(self, container: str, item: CosmosItem) -> ItemWritten:
        body = orjson.dumps(item)
        response, ru = await self._call("POST", container, item["id"], (201, 409), headers=JSON, body=body)
        return ItemWritten(response.status == 201, ru)

    async def replace(self, container: str, item: CosmosItem, etag: str) -> ItemWritten:
        """Replace an item if its version is *etag*."""
        if not etag.isprintable():
            raise StoreMisused(f"{etag[:80]!r} is not an etag")
        headers, body = JSON + b"if-match: %b\r\n" % etag.encode(), orjson.dumps(item)
        response, ru = await self._call("PUT", container, item["id"], (200, 412), headers=headers, body=body)
        return ItemWritten(response.status == 200, ru)

    async def delete(self, container: str, name: str) -> ItemWritten:
        response, ru = await self._call("DELETE", container, name, (204,))
        return ItemWritten(response.status == 204, ru)

    async def _call(
        self,
        verb: str,
        container: str,
        name: str,
        expected: tuple[int, ...],
        *,
        headers: bytes = b"",
        body: bytes = b"",
    ) -> tuple[Response, float]:
        """Send a request to the write region; return the response, *expected* or a 404, and its charge."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + DEADLINE_S
        await self._prepare(due_s)
        region = self._regions.write
        message = region.requests.item(verb, container, name, headers=headers, body=body)
        try:
            response = await region.transport.request(message, due_s - loop.time())
            if response.status not in expected and (verb == "POST" or not _is_absent(response)):
                raise self._refusal(response, container)
            self._sessions.record(container, response.header(b"x-ms-session-token"))
            return response, self._charge(response)
        except (RequestFailed, MalformedResponse) as error:
            self._regions.refresh_early()
            raise self._translated(error) from error

    async def account(self) -> Account:
        return await self._regions.refresh()

    def forget_session(self, container: str) -> None:
        """Drop the session tokens of a deleted container."""
        self._sessions.forget(container)

    async def close(self) -> None:
        await self._regions.close()
        if self._tokens is not None:
            await self._tokens.close()

    def _connect(self, url: str) -> Region:
        parts = urlsplit(url)
        host = parts.netloc if parts.port != DEFAULT_PORTS[parts.scheme] else parts.netloc.rpartition(":")[0]
        address = self._address
        builder = RequestBuilder(host, address.database, address.consistency, self._signer, self._clock)
        return Region(url, builder, self._make_transport(url))

    async def _prepare(self, due_s: float) -> None:
        now = asyncio.get_running_loop().time()
        if not self._regions.is_known:
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
        loop = asyncio.get_running_loop()
        due_s = loop.time() + DEADLINE_S
        await self._acquire_token(due_s)
        try:
            message = region.requests.build("GET", "", "", "")
            response = await region.transport.request(message, due_s - loop.time())
            if response.status != 200:
                raise self._refusal(response, "")
            return object_in(response)
        except (RequestFailed, MalformedResponse) as error:
            raise self._translated(error) from error

    def _charge(self, response: Response) -> float:
        ru = charge_in(response)
        if self._observer is not None:
            self._observer.charged(ru)
        return ru

    def _failed(self, error: StoreError) -> StoreError:
        if self._observer is not None and isinstance(error, CosmosUnavailable | CosmosThrottled):
            self._observer.failed(error.kind)
        return error

    def _translated(self, error: RequestFailed | MalformedResponse) -> StoreError:
        where = self._address.shown
        if isinstance(error, RequestFailed):
            return self._failed(no_response(error, where))
        return self._failed(CosmosUnavailable(f"{where} sent {error}", "malformed"))

    def _refusal(self, response: Response, container: str) -> StoreError:
        try:
            self._charge(response)
            error = error_for(error_response(response, self._clock()), self._address.shown, self._signer.advice)
        except MalformedResponse as malformed:
            return self._translated(malformed)
        if isinstance(error, ContainerMissing):
            self._sessions.forget(container)
        elif isinstance(error, CosmosUnavailable) and error.kind == "unauthorized":
            if self._tokens is not None:
                self._tokens.refused()
        elif isinstance(error, CosmosUnavailable) and error.kind == "unavailable":
            self._regions.refresh_early()
            if response.header(b"x-ms-substatus") == b"%d" % SESSION_NOT_AVAILABLE:
                self._sessions.forget(container)  # a failover may have lost writes
        return self._failed(error)


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
        self._account = connect(address.endpoint)
        self._connect = connect
        self._read_account = read_account
        self._known = {address.endpoint: self._account}
        self._readable = list[Region]()
        self._refreshing = SharedCall(self._refresh, store_closed)
        self._refreshed_at = float("-inf")
        self.write = self._account
        self.has_sessions = False
        self.refresh_at = float("-inf")
        """Time of the next read of the account (loop clock)."""

    @property
    def is_known(self) -> bool:
        return bool(self._readable)

    def nearest(self, now: float) -> Region:
        """Return the region for the next lookup."""
        for region in self._readable:
            if region.try_at is None:
                return region
            if now >= region.try_at:
                region.try_at = now + region.pauses.next_s()  # if this trial fails
                return region
        return self._readable[0] if self._readable else self._account

    def succeeded(self, region: Region) -> None:
        """Record a success after a failure."""
        region.failures = 0
        if region.try_at is not None:
            region.try_at = None
            first = next(one for one in (*self._readable, region) if one.try_at is None)
            log.warning("%s: %s can be read again; reading from %s", self._where, region.name, first.name)

    def failed(self, region: Region, kind: ErrorKind, began_at: float) -> Region | None:
        """Record a failed read; return the region for a second attempt, if any.

        Overlapping timeouts count once, because this process may have paused.
        """
        now = asyncio.get_running_loop().time()
        if kind == "timeout":
            if now - began_at < MIN_WAIT_S or began_at < region.late_at:
                return None
            region.late_at = now
        elif kind != "malformed" and kind not in TRANSIENT:
            return None
        region.failures += 1
        others = [one for one in self._readable if one is not region]
        healthy = next((one for one in others if one.try_at is None), None)
        if healthy is not None and region.try_at is None and (region.failures >= MAX_FAILURES or kind == "connect"):
            region.pauses.reset()
            region.try_at = now + region.pauses.next_s()
            log.warning("%s: %s cannot be read (%s); reading from %s", self._where, region.name, kind, healthy.name)
            self.refresh_early()
        if kind == "malformed":
            return healthy  # the server would repeat it
        return healthy or next(iter(others), region)

    def refresh_early(self) -> None:
        """Read the account soon, after a response that contradicts cached regions."""
        self.refresh_at = min(self.refresh_at, self._refreshed_at + MIN_REFRESH_INTERVAL_S)

    def refresh_soon(self) -> None:
        if self.is_known:
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
        interval_s = MIN_REFRESH_INTERVAL_S
        try:
            account = await self._read_and_apply()
            interval_s = REFRESH_INTERVAL_S * random.uniform(0.9, 1.1)  # noqa: S311 -- spreads workers
            return account
        finally:
            self._refreshed_at = asyncio.get_running_loop().time()
            self.refresh_at = self._refreshed_at + interval_s

    async def _read_and_apply(self) -> Account:
        """Read the account from its server or a region."""
        failed: StoreError | None = None
        for region in dict.fromkeys([self._account, *self._readable]):
            try:
                reported = await self._read_account(region)
                writable, readable = (_locations(reported.get(each), self._account.url) for each in LISTS)
            except MalformedResponse as error:
                failed = failed or CosmosUnavailable(f"{self._where} sent {error}", "malformed")
            except StoreError as error:
                failed = failed or error
            else:
                policy = reported.get("userConsistencyPolicy")
                level = policy.get("defaultConsistencyLevel") if isinstance(policy, dict) else None
                self.has_sessions = level in SESSION_CONSISTENCIES
                await self._apply(next(iter(writable.values())), readable)
                multiple = reported.get("enableMultipleWriteLocations") is True or len(writable) > 1
                return Account(multiple, tuple(each.name for each in self._readable))
        raise failed or CosmosUnavailable(f"{self._where} cannot be reached", "connect")

    async def _apply(self, write: str, readable: dict[str, str]) -> None:
        before = [region.name for region in self._readable]
        names = sorted(readable, key=lambda name: name != self._preferred)
        for url in (write, *readable.values()):
            if url not in self._known:
                self._known[url] = self._connect(url)
        self._readable = [self._known[readable[name]] for name in names]
        for name, region in zip(names, self._readable, strict=True):
            region.name = name
        self.write = self._known[write]
        if before and before != names:
            log.warning("%s: its regions are now %s", self._where, ", ".join(names))
        for url in self._known.keys() - {self._account.url, write, *readable.values()}:
            await self._known.pop(url).transport.close()


def _locations(reported: object, account: str) -> dict[str, str]:
    if not isinstance(reported, list) or not reported:
        raise MalformedResponse("an account without regions")
    found = dict[str, str]()
    for one in reported:
        match one:
            case {"name": str(name), "databaseAccountEndpoint": str(url)}:
                found[name] = _server(url, secure=account.startswith("https:"))
            case _:
                raise MalformedResponse("a region without name or endpoint")
    return found


def _server(url: str, *, secure: bool) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise MalformedResponse("a region with an invalid endpoint") from None
    if not host or parts.scheme not in DEFAULT_PORTS or (secure and parts.scheme != "https"):
        raise MalformedResponse("a region with an untrusted endpoint")
    bracketed = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{bracketed}:{port or DEFAULT_PORTS[parts.scheme]}"


class SessionTokens:
    """Session tokens of this process's writes, by container and partition key range.

    Form: `RANGE:VERSION#LSN`, with more fields for several regions.
    """

    def __init__(self) -> None:
        self._seen = dict[str, dict[bytes, bytes]]()

    def record(self, container: str, token: bytes | None) -> None:
        """Keep the highest token of each range; responses may be out of order."""
        seen = self._seen.setdefault(container, {})
        for part in token.split(b",") if token else ():
            of_range, _, progress = part.partition(b":")
            if of_range not in seen or _order(progress) >= _order(seen[of_range]):
                seen[of_range] = progress

    def token(self, container: str) -> bytes:
        """Return the token to send; empty before a write."""
        return b",".join(b"%b:%b" % one for one in self._seen.get(container, {}).items())

    def forget(self, container: str) -> None:
        self._seen.pop(container, None)


def _order(progress: bytes) -> tuple[int, int]:
    version, _, lsn = progress.partition(b"#")
    try:
        return int(version), int(lsn.partition(b"#")[0] or b"0")
    except ValueError:
        return -1, 0


def _is_absent(response: Response) -> bool:
    """Return whether an item, not its container, is absent. Raises MalformedResponse."""
    return response.status == 404 and error_response(response, 0.0).substatus == 0


def _versioned(response: Response, name: str) -> VersionedItem:
    now = date_in(response)
    if now is None:
        raise MalformedResponse("no date")
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
        context = ssl.create_default_context()
        if address.ca is not None:
            try:
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


def _note_response(call: TracedCall, region: str, response: Response) -> None:
    attributes = call.attributes
    attributes["db.response.status_code"] = str(response.status)
    regions = attributes.get(REGIONS, ())
    if isinstance(regions, tuple) and region not in regions:
        attributes[REGIONS] = (*regions, region)
    sub_status = response.header(b"x-ms-substatus")
    if sub_status is not None and sub_status[:9].isdigit():
        attributes["azure.cosmosdb.response.sub_status_code"] = int(sub_status[:9])
    charged = attributes.get(CHARGE, 0.0)
    with suppress(ValueError):
        if isinstance(charged, float):
            attributes[CHARGE] = charged + float(response.header(CHARGE_HEADER) or 0)
