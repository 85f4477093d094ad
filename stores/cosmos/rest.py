"""The data plane over the wire protocol: requests that are put together and signed here, one attempt each.

If a region is unhealthy, a read is tried once more in another one. If only an idle connection had been closed, the read
is tried once more in the same region. If the service refuses the token of a request, the request is tried once more
with a new token. All other retries are the store's (`hotplate.stores.cosmos.retry`).
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

import orjson

from hotplate.stores.cosmos.errors import (
    CHARGE_HEADER,
    SESSION_NOT_AVAILABLE,
    ContainerMissing,
    CosmosUnavailable,
    MalformedResponse,
    ResponseTranslator,
    date_in,
    is_absent,
    item_in,
)
from hotplate.stores.cosmos.items import Account, CosmosItem, ItemWritten, VersionedItem
from hotplate.stores.cosmos.requests import (
    DEADLINE_S,
    AccountEndpoint,
    Credential,
    KeySigner,
    RequestBuilder,
    Signer,
    TokenSigner,
    default_credential,
    partition_key_header,
)
from hotplate.stores.cosmos.topology import AccountTopology, Region
from hotplate.stores.cosmos.url import Address
from hotplate.stores.errors import StoreError, StoreMisused
from hotplate.stores.http1 import ConnectionPool, Response, Transport
from hotplate.stores.store import Observer, TracedCall, traced_call

# At most, to one endpoint: enough for 2,500 reads/s from a continent away, at 50 ms each.
CONNECTIONS = 128

# With less time left no other region is tried.
MIN_TIMEOUT_S = 0.001

# A read that its caller cuts off after this share of its time is as late as one that had all of it.
CUT_OFF_SHARE = 0.5

# When a region that lacks what we wrote has lost it, as in a failover, and is not just behind.
SESSION_LOST_S = 10.0

# Attributes of a traced read, by https://opentelemetry.io/docs/specs/semconv/db/cosmosdb/.
CHARGE = "azure.cosmosdb.operation.request_charge"
REGIONS = "azure.cosmosdb.operation.contacted_regions"

JSON = b"content-type: application/json\r\nprefer: return=minimal\r\n"
UPSERT = JSON + b"x-ms-documentdb-is-upsert: True\r\n"
DEFAULT_PORTS = {"https": 443, "http": 80}

# Makes the connections to the server of a URL like `https://HOST:PORT`.
MakeTransport = Callable[[str], Transport]


class RestClient:
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
        self._signer = _signer(address, credential, clock)
        self._translator = ResponseTranslator(address.shown, observer, clock, unauthorized_advice=self._signer.advice)
        self._sessions = SessionTokens()
        self._containers = f"dbs/{address.database}/colls/"
        transport_of = make_transport or _tcp_transport(address)

        def connect(url: str) -> AccountEndpoint:
            requests = RequestBuilder(_host(url), address.database, address.consistency, self._signer, clock)
            return AccountEndpoint(url, requests, transport_of(url), self._signer, self._translator)

        self._topology = AccountTopology(connect(address.endpoint), address.region, connect, self._translator)

    async def read(self, container: str, name: str, timeout_s: float, *, fresh: bool = False) -> CosmosItem | None:
        """Point-read one item from the nearest region that responds; None if there is none.

        *fresh* is for publishers: it sees what this client wrote, from the region that takes writes.
        """
        if fresh:
            response = await self._read_fresh(container, name, timeout_s)
            return None if response.status == 404 else self._translator.parse(lambda: item_in(response, name))
        return (await self._read_nearest(container, name, timeout_s))[0]

    async def read_nearest(self, container: str, name: str, timeout_s: float) -> tuple[CosmosItem | None, bool]:
        """Read as `read` does, and return also whether the region that responded is the one that takes writes."""
        item, region = await self._read_nearest(container, name, timeout_s)
        return item, region.endpoint is self._topology.write_endpoint

    async def _read_nearest(self, container: str, name: str, timeout_s: float) -> tuple[CosmosItem | None, Region]:
        """Read in the nearest region, and if that is sick in another; return also who responded."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        due_s, region = began_s + timeout_s, self._topology.nearest
        if region is None or self._signer.needs_token():
            region = await self._topology.nearest_region(timeout_s)
            await region.endpoint.ensure_token(due_s - loop.time())
            began_s = loop.time()
        try:
            return await self._read_in(region, container, name, due_s), region
        except CosmosUnavailable as error:
            other = self._topology.fail_over(region, error.kind, began_s)
            if other is None or loop.time() > due_s - MIN_TIMEOUT_S:
                raise
        except asyncio.CancelledError:
            if loop.time() - began_s >= (due_s - began_s) * CUT_OFF_SHARE:
                self._topology.fail_over(region, "timeout", began_s)
            raise
        return await self._read_in(other, container, name, due_s), other

    async def _read_in(self, region: Region, container: str, name: str, due_s: float) -> CosmosItem | None:
        endpoint, call = region.endpoint, traced_call.get()
        build = partial(endpoint.requests.point_read, container, name, b"" if call is None else call.headers)
        response = await endpoint.send(build, due_s, retry_stale=True)
        if response.status == 401 and await endpoint.renew_token(response, due_s):
            response = await endpoint.send(build, due_s)
        if call is not None:
            _note_response(call, region.name, response)
        try:
            if response.status == 200:
                self._translator.charge(response)
                item = item_in(response, name)
            elif is_absent(response):
                self._translator.charge(response)
                item = None
            else:
                raise self._error(response, container)
        except MalformedResponse as error:
            raise self._translator.malformed(error) from error
        if region.failures:
            self._topology.record_success(region)
        return item

    async def read_versioned(self, container: str, name: str) -> VersionedItem:
        """Read an item with its version, as `read` does when fresh."""
        response = await self._read_fresh(container, name, DEADLINE_S)
        return self._translator.parse(lambda: _versioned(response, name))

    async def _read_fresh(self, container: str, name: str, timeout_s: float) -> Response:
        """Return the response to a read that sees what this client wrote: the item, or that there is none."""
        await self._topology.nearest_region(timeout_s)
        headers = partition_key_header(name)
        if self._topology.has_sessions:
            headers += b"x-ms-consistency-level: Session\r\n"
            if token := self._sessions.token(container):
                headers += b"x-ms-session-token: %b\r\n" % token
        link = f"{self._containers}{container}/docs/{name}"
        response = await self._topology.write_endpoint.request(
            "GET", "docs", link, f"{link}/", headers=headers, timeout_s=timeout_s
        )
        if response.status == 200 or self._translator.parse(lambda: is_absent(response)):
            self._translator.parse(lambda: self._translator.charge(response))
            self._sessions.accept(container)
            return response
        raise self._error(response, container)

    async def create(self, container: str, item: CosmosItem) -> ItemWritten:
        """Write an item; not done if its id is taken."""
        return await self._write("POST", container, item, JSON, failing=409)

    async def upsert(self, container: str, item: CosmosItem) -> ItemWritten:
        return await self._write("POST", container, item, UPSERT)

    async def replace(self, container: str, item: CosmosItem, etag: str) -> ItemWritten:
        """Put an item in the place of the version *etag*; not done if that is no longer the one."""
        if not etag.isprintable():
            raise StoreMisused(f"{etag[:80]!r} cannot be the version of an item")
        return await self._write("PUT", container, item, JSON + b"if-match: %b\r\n" % etag.encode(), failing=412)

    async def _write(
        self, verb: str, container: str, item: CosmosItem, headers: bytes, failing: int | None = None
    ) -> ItemWritten:
        """Write an item; *failing* is the status that says that its condition does not hold."""
        await self._topology.nearest_region(DEADLINE_S)
        owner, name = f"{self._containers}{container}", item["id"]
        link, path = (owner, f"{owner}/docs/") if verb == "POST" else (f"{owner}/docs/{name}", f"{owner}/docs/{name}/")
        try:
            response = await self._topology.write_endpoint.request(
                verb, "docs", link, path, headers=partition_key_header(name) + headers, body=orjson.dumps(item)
            )
        except CosmosUnavailable:
            self._topology.schedule_refresh()
            raise
        done = response.status in (200, 201)
        absent = verb == "PUT" and self._translator.parse(lambda: is_absent(response))
        if done or response.status == failing or absent:
            self._sessions.record(container, response.header(b"x-ms-session-token"))
            return ItemWritten(done, self._translator.parse(lambda: self._translator.charge(response)))
        raise self._error(response, container)

    async def account(self) -> Account:
        """Read what the account says of itself."""
        return await self._topology.refresh()

    def forget_session(self, container: str) -> None:
        """Forget what was written to a container that is gone: another of its name counts again."""
        self._sessions.forget(container)

    async def close(self) -> None:
        """Give back connections; closing twice does nothing."""
        await self._topology.close()
        await self._signer.close()

    def _error(self, response: Response, container: str) -> StoreError:
        """Return what a refusal means; where the region is the wrong one, or the container is gone, act on it."""
        error = self._translator.error(response)
        if isinstance(error, ContainerMissing):
            self._sessions.forget(container)
        elif isinstance(error, CosmosUnavailable) and error.kind == "unavailable":
            self._topology.schedule_refresh()
            if response.header(b"x-ms-substatus") == b"%d" % SESSION_NOT_AVAILABLE:
                self._sessions.refuse(container, asyncio.get_running_loop().time())
        return error


class SessionTokens:
    """Session tokens of what this process has written, by container and range, so its own reads can see it.

    They look like `RANGE:VERSION#LSN`, with more if there are several regions. Lives as long as its client.
    """

    def __init__(self) -> None:
        self._seen = dict[str, dict[bytes, bytes]]()
        self._refused_since = dict[str, float]()

    def record(self, container: str, token: bytes | None) -> None:
        """Keep the token of a write's response; of one range the furthest counts, as responses overtake each other."""
        if token is None:
            return
        seen = self._seen.setdefault(container, {})
        for part in token.split(b","):
            of_range, _, progress = part.partition(b":")
            if of_range not in seen or _order(progress) >= _order(seen[of_range]):
                seen[of_range] = progress

    def token(self, container: str) -> bytes:
        """Return what to send along; empty if nothing was written."""
        return b",".join(b"%b:%b" % one for one in self._seen.get(container, {}).items())

    def refuse(self, container: str, now: float) -> None:
        """Note that the write region lacks what was written; what it lacks for SESSION_LOST_S was lost, and forgotten.

        A failover to a region that was behind may lose the last writes. Then this process cannot read them either.
        """
        if now - self._refused_since.setdefault(container, now) >= SESSION_LOST_S:
            self.forget(container)

    def accept(self, container: str) -> None:
        """Note that the write region has what was written."""
        self._refused_since.pop(container, None)

    def forget(self, container: str) -> None:
        """Forget a container that is gone: another of its name counts again."""
        self._seen.pop(container, None)
        self._refused_since.pop(container, None)


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


def _signer(address: Address, credential: Credential | None, clock: Callable[[], float]) -> Signer:
    if address.key is not None:
        return KeySigner(address.key, address.shown)
    return TokenSigner(address, credential or default_credential(), clock)


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
