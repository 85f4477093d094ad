"""Items by requests that are put together and signed here: point reads and writes, one attempt each.

If a region is unhealthy, a read is tried once more in another one. If only an idle connection had
been closed, the read is tried once more in the same region. If the service refuses a token, the request is tried once
more with a new one. All other retries are the store's.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from hotplate.stores.cosmos.errors import (
    CHARGE_HEADER,
    DEADLINE_S,
    SESSION_NOT_AVAILABLE,
    ContainerMissing,
    CosmosThrottled,
    CosmosUnavailable,
    MalformedResponse,
    charge_in,
    date_in,
    error_for,
    error_response,
    is_absent,
    item_in,
    no_response,
    object_in,
)
from hotplate.stores.cosmos.regions import Account, Region, Regions
from hotplate.stores.cosmos.requests import (
    Credential,
    KeySigner,
    RequestBuilder,
    Signer,
    TokenSigner,
    checked,
    default_credential,
    partition_key_header,
)
from hotplate.stores.cosmos.url import Address
from hotplate.stores.errors import StoreError, StoreMisused
from hotplate.stores.http1 import ConnectionPool, RequestFailed, Response, Transport
from hotplate.stores.store import Observer, TracedCall, traced_call

# At most, to one server: enough for 2,500 reads/s from a continent away, at 50 ms each.
CONNECTIONS = 128

# With less time left no other region is tried.
MIN_TIMEOUT_S = 0.001

# A read that its caller cuts off after this share of its time is as late as one that had all of it.
CUT_OFF_SHARE = 0.5

# Attributes of a traced read, by https://opentelemetry.io/docs/specs/semconv/db/cosmosdb/.
CHARGE = "azure.cosmosdb.operation.request_charge"
REGIONS = "azure.cosmosdb.operation.contacted_regions"

JSON = b"content-type: application/json\r\nprefer: return=minimal\r\n"
DEFAULT_PORTS = {"https": 443, "http": 80}

# Makes the connections to the server of a URL like `https://HOST:PORT`.
MakeTransport = Callable[[str], Transport]


CosmosItem = dict[str, Any]


class VersionedItem(NamedTuple):
    """An item as it is now: None if there is none; its etag, and the service's clock in seconds."""

    item: CosmosItem | None
    etag: str
    now: float


class ItemWritten(NamedTuple):
    """The result of a write: not done where its condition did not hold (409, 412)."""

    done: bool
    charge_ru: float


class SignedClient:
    """Reads and writes items of one database. Lives as long as its store, on one event loop.

    Each method makes one attempt and raises StoreError: ContainerMissing if the container is not there,
    CosmosThrottled for 429, CosmosUnavailable for what another attempt may mend. A response that is cut short or makes
    no sense is `malformed`, never data. Nothing is opened before the first call.
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
        """Take where the account is and who counts.

        *credential* replaces the one that azure-identity finds, and is used only if the address has
        no key; *clock* (seconds) is for dates, *make_transport* for another network.
        """
        self._where = address.shown
        self._observer = observer
        self._clock = clock
        self._signer: Signer = (
            TokenSigner(address, credential or default_credential(), clock)
            if address.key is None
            else KeySigner(address.key, address.shown)
        )
        self._sessions = SessionTokens()
        self._containers = f"dbs/{address.database}/colls/"
        transport_of = make_transport or _tcp_transport(address)

        def connect(url: str) -> Region:
            builder = RequestBuilder(_host(url), address.database, address.consistency, self._signer, clock)
            return Region(url, builder, transport_of(url))

        self._regions = Regions(address.shown, connect(address.endpoint), address.region, connect, self._read_account)

    async def read(self, container: str, name: str, timeout_s: float) -> CosmosItem | None:
        """Point-read one item from the nearest region that responds; None if there is none."""
        return (await self._read_nearest(container, name, timeout_s))[0]

    async def read_nearest(self, container: str, name: str, timeout_s: float) -> tuple[CosmosItem | None, bool]:
        """Read as `read` does, and return also whether the region that responded is the one that takes writes."""
        item, region = await self._read_nearest(container, name, timeout_s)
        return item, region is self._regions.write

    async def _read_nearest(self, container: str, name: str, timeout_s: float) -> tuple[CosmosItem | None, Region]:
        """Read in the nearest region, and if that is sick in another; return also who responded."""
        loop = asyncio.get_running_loop()
        began_s, regions = loop.time(), self._regions
        due_s = began_s + timeout_s
        if began_s >= regions.refresh_at or self._signer.needs_token():
            await self._prepare(timeout_s)
            began_s = loop.time()
        region = regions.nearest()
        try:
            return await self._read_in(region, container, name, due_s), region
        except CosmosUnavailable as error:
            other = regions.failed(region, error.kind, began_s)
            if other is None or loop.time() > due_s - MIN_TIMEOUT_S:
                raise
        except asyncio.CancelledError:
            if loop.time() - began_s >= (due_s - began_s) * CUT_OFF_SHARE:
                regions.failed(region, "timeout", began_s)
            raise
        return await self._read_in(other, container, name, due_s), other

    async def _read_in(self, region: Region, container: str, name: str, due_s: float) -> CosmosItem | None:
        call = traced_call.get()
        build = partial(region.requests.point_read, container, name, b"" if call is None else call.headers)
        response = await self._send(region, build, due_s, reconnect=True)
        if call is not None:
            _note_response(call, region.name, response)
        try:
            if response.status == 200:
                item = item_in(response, name)
            elif is_absent(response):
                item = None
            else:
                raise self._refusal(response, container)
            self._charge(response)
        except MalformedResponse as error:
            raise self._malformed(error) from error
        if region.failures:
            self._regions.succeeded(region)
        return item

    async def read_fresh(self, container: str, name: str) -> VersionedItem:
        """Read an item with its version as publishers do: from the region that takes writes, with what we wrote."""
        await self._prepare(DEADLINE_S)
        headers = b""
        if self._regions.has_sessions:
            headers = b"x-ms-consistency-level: Session\r\n"
            if token := self._sessions.token(container):
                headers += b"x-ms-session-token: %b\r\n" % token
        response, _ = await self._call("GET", container, name, (200,), headers=headers)
        with self._parsing():
            return _versioned(response, name)

    async def create(self, container: str, item: CosmosItem) -> ItemWritten:
        """Write an item; not done if its id is taken."""
        body = orjson.dumps(item)
        response, ru = await self._call("POST", container, item["id"], (201, 409), headers=JSON, body=body)
        return ItemWritten(response.status == 201, ru)

    async def replace(self, container: str, item: CosmosItem, etag: str) -> ItemWritten:
        """Put an item in the place of the version *etag*; not done if that is no longer the one."""
        if not etag.isprintable():
            raise StoreMisused(f"{etag[:80]!r} cannot be the version of an item")
        headers, body = JSON + b"if-match: %b\r\n" % etag.encode(), orjson.dumps(item)
        response, ru = await self._call("PUT", container, item["id"], (200, 412), headers=headers, body=body)
        return ItemWritten(response.status == 200, ru)

    async def delete(self, container: str, name: str) -> ItemWritten:
        """Delete an item; not done if there is none."""
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
        """Return the response of the region that takes writes, if its status is *expected* or 404, and its charge."""
        await self._prepare(DEADLINE_S)
        region, link = self._regions.write, f"{self._containers}{checked(container)}"
        path = f"{link}/docs/"
        if verb != "POST":
            path, link = f"{link}/docs/{name}/", f"{link}/docs/{name}"
        sent = partition_key_header(name) + headers
        build = partial(region.requests.build, verb, "docs", link, path, headers=sent, body=body)
        due_s = asyncio.get_running_loop().time() + DEADLINE_S
        try:
            response = await self._send(region, build, due_s, reconnect=verb == "GET")
        except CosmosUnavailable:
            self._regions.doubt()
            raise
        with self._parsing():
            if response.status in expected or (verb != "POST" and is_absent(response)):
                self._sessions.record(container, response.header(b"x-ms-session-token"))
                return response, self._charge(response)
        raise self._refusal(response, container)

    async def account(self) -> Account:
        """Read what the account says of itself."""
        return await self._regions.refresh()

    def forget_session(self, container: str) -> None:
        """Forget what was written to a container that is gone: another of its name counts again."""
        self._sessions.forget(container)

    async def close(self) -> None:
        """Give back connections; closing twice does nothing."""
        await self._regions.close()
        await self._signer.close()

    async def _prepare(self, timeout_s: float) -> None:
        """Know the account, and have what requests are signed with; raises StoreError."""
        now = asyncio.get_running_loop().time()
        if not self._regions.is_known:
            await self._regions.refresh(timeout_s)
        elif now >= self._regions.refresh_at:
            self._regions.refresh_soon()
        if self._signer.needs_token():
            await self._acquire_token(now + timeout_s)

    async def _acquire_token(self, due_s: float) -> None:
        try:
            async with asyncio.timeout_at(due_s):
                await self._signer.acquire_token()
        except TimeoutError:
            late = CosmosUnavailable(f"{self._where}: Entra ID gave no token in time", "timeout")
            raise self._failed(late) from None
        except CosmosUnavailable as error:
            raise self._failed(error) from None

    async def _read_account(self, region: Region) -> dict[str, Any]:
        due_s = asyncio.get_running_loop().time() + DEADLINE_S
        if self._signer.needs_token():
            await self._acquire_token(due_s)
        response = await self._send(region, partial(region.requests.build, "GET", "", "", ""), due_s, reconnect=True)
        if response.status != 200:
            raise self._refusal(response, "")
        with self._parsing():
            return object_in(response)

    async def _send(
        self, region: Region, build: Callable[[], bytes], due_s: float, *, reconnect: bool, renew: bool = True
    ) -> Response:
        """Send what *build* makes, and once more, with *reconnect*, if an idle connection had ended."""
        left_s = due_s - asyncio.get_running_loop().time()
        try:
            response = await region.transport.request(build(), left_s)
        except RequestFailed as failure:
            error = self._failed(no_response(failure, self._where))
            if not failure.stale or not reconnect:
                raise error from failure
            return await self._send(region, build, due_s, reconnect=False, renew=renew)
        if response.status == 401 and renew and await self._renew_token(region, response, due_s):
            return await self._send(region, build, due_s, reconnect=False, renew=False)
        return response

    async def _renew_token(self, region: Region, refused: Response, due_s: float) -> bool:
        """Get another token in the place of one that was refused; False if there is none, or none in time."""
        renewed = False
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due_s):
                renewed = await self._signer.renew_token()
        if renewed:
            self._refusal(refused, "")  # counted, as it is not the response that the caller sees
            region.requests.sign_again()
        return renewed

    def _charge(self, response: Response) -> float:
        ru = charge_in(response)
        if self._observer is not None:
            self._observer.charged(ru)
        return ru

    def _failed(self, error: StoreError) -> StoreError:
        if self._observer is not None and isinstance(error, CosmosUnavailable | CosmosThrottled):
            self._observer.failed(error.kind)
        return error

    @contextmanager
    def _parsing(self) -> Iterator[None]:
        try:
            yield
        except MalformedResponse as error:
            raise self._malformed(error) from error

    def _malformed(self, cause: MalformedResponse) -> StoreError:
        return self._failed(CosmosUnavailable(f"{self._where} sent {cause}", "malformed"))

    def _refusal(self, response: Response, container: str) -> StoreError:
        """Return what a refusal means; where the region is the wrong one, or the container is gone, act on it."""
        try:
            self._charge(response)
            error = error_for(error_response(response, self._clock()), self._where, self._signer.advice)
        except MalformedResponse as malformed:
            return self._malformed(malformed)
        if isinstance(error, ContainerMissing):
            self._sessions.forget(container)
        elif isinstance(error, CosmosUnavailable) and error.kind == "unavailable":
            self._regions.doubt()
            if response.header(b"x-ms-substatus") == b"%d" % SESSION_NOT_AVAILABLE:
                self._sessions.forget(container)  # as after a failover that lost what was written last
        return self._failed(error)


class SessionTokens:
    """Session tokens of what this process has written, by container and range, so its own reads can see it.

    They look like `RANGE:VERSION#LSN`, with more if there are several regions. Lives as long as its client.
    """

    def __init__(self) -> None:
        self._seen = dict[str, dict[bytes, bytes]]()

    def record(self, container: str, token: bytes | None) -> None:
        """Keep the token of a response; of one range the furthest counts, as responses overtake each other."""
        seen = self._seen.setdefault(container, {})
        for part in token.split(b",") if token else ():
            of_range, _, progress = part.partition(b":")
            if of_range not in seen or _order(progress) >= _order(seen[of_range]):
                seen[of_range] = progress

    def token(self, container: str) -> bytes:
        """Return what to send along; empty if nothing was written."""
        return b",".join(b"%b:%b" % one for one in self._seen.get(container, {}).items())

    def forget(self, container: str) -> None:
        """Forget a container that is gone: another of its name counts again."""
        self._seen.pop(container, None)


def _order(progress: bytes) -> tuple[int, int]:
    version, _, lsn = progress.partition(b"#")
    lsn = lsn.partition(b"#")[0]
    try:
        return int(version), int(lsn or b"0")
    except ValueError:
        return -1, 0


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


def _host(url: str) -> str:
    """Return what the header `Host` says."""
    parts = urlsplit(url)
    return parts.netloc if parts.port != DEFAULT_PORTS[parts.scheme] else parts.netloc.rpartition(":")[0]


def _tcp_transport(address: Address) -> MakeTransport:
    """Connect to servers by TCP, and to those of https by TLS that is verified."""
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
        return ConnectionPool(
            parts.hostname or "", port, size=CONNECTIONS, tls=context if parts.scheme == "https" else None
        )

    return make_transport


def _note_response(call: TracedCall, region: str, response: Response) -> None:
    """Add what one response says, of a region that is called so."""
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
