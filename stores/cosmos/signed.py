"""Point reads and writes of items by signed requests, with failover between the account's regions.

A point read takes 28.4 µs of CPU, by azure-cosmos 864 (`tools/test_lookups.py`), which would halve the lists a second
of a publish at 10,000 RU/s.

A write is one attempt. After a transient error a read has a second one, in another region if possible.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import urlsplit

import orjson

from hotplate.base.http1 import ConnectionPool, RequestFailed, Response, Transport
from hotplate.base.proxies import proxy_for
from hotplate.base.timing import loop_time
from hotplate.stores.concurrency import Lifetime
from hotplate.stores.cosmos import errors
from hotplate.stores.cosmos.errors import DEADLINE_S, ContainerMissing, CosmosThrottled, CosmosUnavailable
from hotplate.stores.cosmos.items import CosmosItem
from hotplate.stores.cosmos.regions import AccountProperties, AccountRegions, Region, properties_in
from hotplate.stores.cosmos.requests import KeySigner, RequestBuilder, Signer, TokenSigner, default_credential
from hotplate.stores.cosmos.url import Address
from hotplate.stores.errors import StoreError, StoreMisused
from hotplate.stores.store import Observer, TracedCall, traced_call

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

T = TypeVar("T")

# Connections to one server: enough for 2,500 reads/s at 50 ms.
CONNECTIONS = 128

# Minimum time left for a second attempt.
MIN_ATTEMPT_S = 0.001

# A timeout after this time contradicts the known regions.
LONG_WAIT_S = 1.0

# Attributes of a traced read: https://opentelemetry.io/docs/specs/semconv/db/cosmosdb/
CHARGE = "azure.cosmosdb.operation.request_charge"
REGIONS = "azure.cosmosdb.operation.contacted_regions"

JSON = b"content-type: application/json\r\nprefer: return=minimal\r\n"
# Statuses of a read: of an item, or of its absence.
READ = (200, 404)

MakeTransport = Callable[[str], Transport]
"""Returns a transport to a server at `https://HOST:PORT`, not connected yet."""


class VersionedItem(NamedTuple):
    """An item, if any, its etag, and the service's clock in seconds."""

    item: CosmosItem | None
    etag: str
    now: float
    charge_ru: float


class NearestItem(NamedTuple):
    """An item as the nearest region has it, if any."""

    item: CosmosItem | None
    from_write_region: bool
    """False if unknown. Another region may lag."""

    charge_ru: float


class WriteResult(NamedTuple):
    """Outcome of a write that depends on what is stored."""

    applied: bool
    """False if an item to create exists, or one to replace or delete is gone or has another version."""

    charge_ru: float


class ItemRequest(NamedTuple):
    """A request about an item, or without a name about the account; *headers* are whole lines."""

    verb: bytes
    container: str = ""
    name: str = ""
    headers: bytes = b""
    body: bytes = b""


class SignedClient:
    """Reads and writes items of one database; for one event loop.

    Raises ContainerMissing, CosmosThrottled, StoreClosed or CosmosUnavailable, of kind `malformed` for an invalid
    response.
    """

    def __init__(
        self,
        address: Address,
        observer: Observer | None = None,
        *,
        credential: "AsyncTokenCredential | None" = None,
        clock: Callable[[], float] = time.time,
        make_transport: MakeTransport | None = None,
    ) -> None:
        """*credential* defaults to azure-identity's; *clock* dates requests."""
        self._where = address.shown
        self._scheme = urlsplit(address.endpoint).scheme
        self._lifetime = Lifetime(address.shown)
        self._observer = observer
        self._signer: Signer
        if address.key is None:
            self._signer = TokenSigner(address, credential or default_credential(), clock, observer)
        else:
            self._signer = KeySigner(address)
        connect = make_transport or _connects(address)

        def open_region(url: str) -> Region:
            host = url.partition("://")[2].removesuffix(":443")
            return Region(RequestBuilder(host, address.database, self._signer, clock), connect(url))

        self._account = AccountRegions(address, open_region, self._read_account)
        self._consistency = f"x-ms-consistency-level: {address.consistency}\r\n".encode()
        self._sessions = dict[str, dict[bytes, bytes]]()
        """Session tokens of writes, `RANGE:PROGRESS`, by container and partition key range."""

    async def read(self, container: str, name: str, timeout_s: float) -> CosmosItem | None:
        """Read one item in the nearest region; None if absent."""
        return (await self.read_nearest(container, name, timeout_s)).item

    async def read_nearest(self, container: str, name: str, timeout_s: float) -> NearestItem:
        """Read like `read`; also return whether the write region answered.

        A 429 is followed by a second attempt in the same region, after the pause that it asks for. A transient error is
        followed by one in another region, or in the same one if the account has no other. Without time for it, the
        first error is raised. A region whose answer was still missing at half of the time counts as failed, too, if the
        caller is cancelled.
        """
        account = self._account
        began_s = loop_time()
        deadline_s = began_s + timeout_s
        if began_s >= account.refresh_at:
            await account.ensure_known(deadline_s)
            began_s = loop_time()

        region = account.nearest(began_s)
        try:
            return await self._read_in(region, container, name, deadline_s)
        except (CosmosThrottled, CosmosUnavailable) as error:
            second_region, pause_s = self._second_attempt(region, error, began_s)
            if second_region is None or loop_time() + pause_s > deadline_s - MIN_ATTEMPT_S:
                raise
        except asyncio.CancelledError:
            half_time_s = began_s + (deadline_s - began_s) / 2
            if loop_time() >= half_time_s:  # a caller that gives up earlier says nothing about the region
                account.failed(region, "timeout", began_s)
            raise

        await asyncio.sleep(pause_s)
        return await self._read_in(second_region, container, name, deadline_s)

    def _second_attempt(
        self, region: Region, error: CosmosThrottled | CosmosUnavailable, began_s: float
    ) -> tuple[Region | None, float]:
        """Return where to repeat a read that failed in *region*, and the pause before.

        The region is None if a second attempt would fail, too. Records the failure of *region*.
        """
        if isinstance(error, CosmosThrottled):
            return region, error.retry_after_s
        return self._account.failed(region, error.kind, began_s), 0.0

    @property
    def has_second_region(self) -> bool:
        """Whether `read_elsewhere` can be tried."""
        return len(self._account.readable) > 1

    async def read_elsewhere(self, container: str, name: str, timeout_s: float) -> CosmosItem | None:
        """Read like `read`, once, in the region after the nearest one."""
        now = loop_time()
        region = self._account.second(now)
        if region is None:
            raise CosmosUnavailable(f"{self._where} has no other region to read", "unavailable")
        return (await self._read_in(region, container, name, now + timeout_s)).item

    async def _read_in(self, region: Region, container: str, name: str, deadline_s: float) -> NearestItem:
        """Read an item in a region by one attempt until *deadline_s* (loop time).

        A traced call adds its headers, such as `traceparent`. A success ends the region's count of failures.
        """
        call = traced_call.get()
        headers = self._consistency if call is None else self._consistency + call.headers
        request = ItemRequest(b"GET", container, name, headers)

        def parse(response: Response, charge_ru: float) -> NearestItem:
            return NearestItem(_item(response, name), region is self._account.write, charge_ru)

        nearest = await self._send(region, request, deadline_s, expected=READ, parse=parse)
        if region.failures:
            self._account.succeeded(region)
        return nearest

    async def read_fresh(self, container: str, name: str) -> VersionedItem:
        """Read an item with its etag from the write region.

        If the account allows session tokens, those of this process's writes are sent, one for each range of keys: a
        replica that lacks these writes does not answer.
        """
        deadline_s = loop_time() + DEADLINE_S
        await self._account.ensure_known(deadline_s)

        headers = b""
        if self._account.has_sessions:
            headers = b"x-ms-consistency-level: Session\r\n"
            if tokens := self._sessions.get(container):
                tokens_by_range = [b"%b:%b" % token_of_range for token_of_range in tokens.items()]
                headers += b"x-ms-session-token: %b\r\n" % b",".join(tokens_by_range)

        request = ItemRequest(b"GET", container, name, headers)
        return await self._send(
            self._account.write, request, deadline_s, expected=READ, parse=partial(_versioned, name)
        )

    def has_written(self, container: str) -> bool:
        """Return whether this process has written to a container; `read_fresh` then reads its writes."""
        return container in self._sessions

    async def create(self, container: str, item: CosmosItem) -> WriteResult:
        """Create an item, unless there is one with its id."""
        request = ItemRequest(b"POST", container, item["id"], JSON, orjson.dumps(item))
        return await self._write(request, expected=(201, 409))

    async def replace(self, container: str, item: CosmosItem, etag: str) -> WriteResult:
        """Replace an item if its version is *etag*."""
        if not etag.isprintable():
            raise StoreMisused(f"{etag[:80]!r} is not an etag")
        headers = JSON + b"if-match: %b\r\n" % etag.encode()
        request = ItemRequest(b"PUT", container, item["id"], headers, orjson.dumps(item))
        return await self._write(request, expected=(200, 404, 412))

    async def delete(self, container: str, name: str) -> WriteResult:
        """Delete an item, if there is one."""
        return await self._write(ItemRequest(b"DELETE", container, name), expected=(204, 404))

    async def _write(self, request: ItemRequest, *, expected: tuple[int, ...]) -> WriteResult:
        """Send a write to the write region; return whether it was applied, and its charge.

        *expected* are statuses that are no errors: the first one means that the write was applied, the others that its
        condition was not met. The session tokens of the response are kept for `read_fresh`.
        """

        def parse(response: Response, charge_ru: float) -> WriteResult:
            tokens = self._sessions.setdefault(request.container, {})
            header = response.header(b"x-ms-session-token")  # RANGE:PROGRESS, …
            for token_of_range in header.split(b",") if header else ():
                key_range, _, token = token_of_range.partition(b":")
                tokens[key_range] = token
            return WriteResult(response.status == expected[0], charge_ru)

        deadline_s = loop_time() + DEADLINE_S
        await self._account.ensure_known(deadline_s)
        return await self._send(self._account.write, request, deadline_s, expected=expected, parse=parse)

    async def account(self) -> AccountRegions:
        """Read the account; callers share one request."""
        return await self._account.read()

    async def known_account(self) -> AccountRegions:
        """Return the account as it was read in the last minutes."""
        await self._account.ensure_known(loop_time() + DEADLINE_S)
        return self._account

    def check_open(self) -> None:
        """Raise StoreClosed after `close`."""
        self._lifetime.check()

    async def close(self) -> None:
        """Close all connections."""
        self._lifetime.end()
        await self._account.close()
        await self._signer.close()

    async def _read_account(self, region: Region) -> AccountProperties:
        """Read the account in a region."""

        def parse(response: Response, _charge_ru: float) -> AccountProperties:
            return properties_in(response, self._scheme)

        deadline_s = loop_time() + DEADLINE_S
        return await self._send(region, ItemRequest(b"GET"), deadline_s, expected=(200,), parse=parse)

    async def _send(
        self,
        region: Region,
        request: ItemRequest,
        deadline_s: float,
        *,
        expected: tuple[int, ...],
        parse: Callable[[Response, float], T],
    ) -> T:
        """Send a request in one attempt until *deadline_s* (loop time).

        Returns the result of *parse*, called with the response and its charge, if the status is *expected*. *parse* may
        raise ValueError for a malformed response. Raises StoreError, which is counted.
        """
        self._lifetime.check()
        try:
            response = await self._exchange(region, request, deadline_s)
            charge_ru = errors.charge_in(response)
            self._observe(response, charge_ru, request, region)
            self._check_status(response, request, expected)
            return parse(response, charge_ru)
        except ValueError as malformed:
            sentence = f"{self._where} sent a malformed response: {errors.first_line(str(malformed))}"
            raise errors.count(CosmosUnavailable(sentence, "malformed"), self._observer) from malformed
        except StoreError as error:
            errors.count(error, self._observer)
            raise

    async def _exchange(self, region: Region, request: ItemRequest, deadline_s: float) -> Response:
        """Send a request, and return the response, whatever its status. Raises CosmosUnavailable without one.

        A request that was refused for its key was not processed. It is sent again if the key was rotated.
        """
        await self._signer.prepare(deadline_s)
        version = self._signer.version
        response = await self._response(region, _message(request, region), deadline_s)
        if response.status == 401 and await self._signer.has_replaced(version):
            response = await self._response(region, _message(request, region), deadline_s)
        return response

    async def _response(self, region: Region, message: bytes, deadline_s: float) -> Response:
        """Send a message, and return the response. Raises CosmosUnavailable without one."""
        timeout_s = deadline_s - loop_time()
        try:
            return await region.transport.request(message, timeout_s)
        except RequestFailed as failure:
            # A short timeout is the caller's choice, and says nothing about the region.
            is_short_timeout = failure.kind == "timeout" and timeout_s < LONG_WAIT_S
            if not is_short_timeout:
                self._account.refresh_early()
            raise errors.no_response(failure, self._where) from failure

    def _observe(self, response: Response, charge_ru: float, request: ItemRequest, region: Region) -> None:
        """Count the charge of a response, and describe it to the traced call."""
        if self._observer is not None:
            self._observer.charged(charge_ru)
        if request.name and (call := traced_call.get()) is not None:
            _describe(call, region.name, response.status, charge_ru)

    def _check_status(self, response: Response, request: ItemRequest, expected: tuple[int, ...]) -> None:
        """Raise the StoreError for a response, unless its status is *expected*.

        An expected 404 says that the item is absent, unless a substatus says that something else is missing.
        """
        is_expected = response.status in expected
        if is_expected and response.status != 404:
            return
        refusal = errors.refusal_in(response)
        if not (is_expected and refusal.is_absent_item):
            raise self._refused(refusal, request.container)

    def _refused(self, refusal: errors.Refusal, container: str) -> StoreError:
        """Return the error for a refusal by the service.

        After errors that contradict what is known, session tokens are forgotten, and the regions are read again soon.
        """
        where = f"{self._where}/{container}" if refusal.status == 404 else self._where
        error = errors.error_for(refusal, where)
        if isinstance(error, ContainerMissing) or refusal.substatus == errors.SESSION_NOT_AVAILABLE:
            self._sessions.pop(container, None)  # a failover may have lost writes
        if isinstance(error, CosmosUnavailable) and error.kind == "unavailable":
            self._account.refresh_early()
        return error


def _message(request: ItemRequest, region: Region) -> bytes:
    """Return the signed request to a region."""
    if not request.name:
        return region.requests.build(request.verb, b"", b"", b"")
    return region.requests.item(*request)


def _describe(call: TracedCall, region: str, status: int, charge_ru: float) -> None:
    """Add a response to the attributes of a traced call of the store, which may consist of several requests.

    These are the last status, the regions that answered, in order, and the sum of the request units.
    """
    regions = call.attributes.get(REGIONS)
    earlier_regions = regions if isinstance(regions, tuple) else ()
    charge = call.attributes.get(CHARGE)
    earlier_ru = charge if isinstance(charge, float) else 0.0
    call.attributes |= {
        "db.response.status_code": str(status),
        REGIONS: tuple(dict.fromkeys([*earlier_regions, region])),
        CHARGE: earlier_ru + charge_ru,
    }


def _item(response: Response, name: str) -> CosmosItem | None:
    """Return the item in a response to a read; None if it is absent. Raises ValueError."""
    return errors.item_in(response, name) if response.status == 200 else None


def _versioned(name: str, response: Response, charge_ru: float) -> VersionedItem:
    """Parse a response to a read: the item (None if it is absent), its etag and the service's time.

    Raises ValueError if the response has no valid date, or an item without etag.
    """
    now = parsedate_to_datetime((response.header(b"date") or b"").decode("latin-1")).timestamp()
    item = _item(response, name)
    etag = "" if item is None else item.get("_etag")
    if not isinstance(etag, str):
        raise ValueError("an item without etag")  # noqa: TRY004 -- malformed, like invalid JSON
    return VersionedItem(item, etag, now, charge_ru)


def _connects(address: Address) -> MakeTransport:
    """Return a function that opens pools of connections, through a proxy if the environment names one.

    StoreMisused if the address's certificates cannot be used.
    """
    tls = None
    if address.endpoint.startswith("https:"):
        try:
            tls = ssl.create_default_context(cafile=address.ca)
        except OSError as error:  # SSLError is one
            raise StoreMisused(
                f"the file {address.ca}, which should certify {address.shown}, cannot be used: {error}"
            ) from error

    def connect(url: str) -> Transport:
        parts = urlsplit(url)
        try:
            proxy = proxy_for(url)
        except ValueError as error:
            raise StoreMisused(str(error)) from error
        return ConnectionPool(parts.hostname or "", parts.port or 443, size=CONNECTIONS, tls=tls, proxy=proxy)

    return connect
