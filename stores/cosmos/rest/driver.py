"""Cosmos DB over the wire: requests that are put together and signed here, on kept connections, one attempt each.

A read that meets a sick region is tried once more in another, or in the same where all that failed was a connection
that had idled for long; any request is tried once more with another token where the service refuses the one it had.
Nothing else is tried twice here: when and how often is for the store to say.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

import orjson

from stores.cosmos.answers import Malformed, date_of, is_absent, item_of
from stores.cosmos.driver import DEADLINE_S, Account, Item, Look, Offer, Wrote
from stores.cosmos.errors import ContainerMissing, CosmosUnavailable
from stores.cosmos.rest.endpoint import Endpoint, Judge
from stores.cosmos.rest.regions import Region, Regions
from stores.cosmos.rest.requests import Requests, keyed
from stores.cosmos.rest.resources import Resources
from stores.cosmos.rest.sessions import Sessions
from stores.cosmos.signing import KeySigner, Signer
from stores.cosmos.throughput import Throughput
from stores.cosmos.token import Credential, TokenSigner, default_credential
from stores.cosmos.url import Address
from stores.errors import StoreError, StoreMisused
from stores.http1 import ConnectionPool, Response, Transport
from stores.store import Observer

CONNECTIONS = 128
"""At most, to one endpoint: enough for 2,500 reads/s from a continent away, at 50 ms each."""

LEAST_S = 0.001
"""With less time left no other region is asked."""

JSON = b"content-type: application/json\r\nprefer: return=minimal\r\n"
UPSERT = JSON + b"x-ms-documentdb-is-upsert: True\r\n"

DEFAULT_PORTS = {"https": 443, "http": 80}

Carry = Callable[[str], Transport]
"""Makes the way to the server of a URL like `https://HOST:PORT`."""


class RestDriver:
    """See `Driver`; lives as long as its store, on one event loop."""

    def __init__(
        self,
        address: Address,
        meter: Observer,
        *,
        credential: Credential | None = None,
        clock: Callable[[], float] = time.time,
        carry: Carry | None = None,
    ) -> None:
        """Take where the account is and who counts.

        *credential* is in the place of the one that azure-identity finds by itself, and asked only where the address
        has no key; *clock* (seconds) is for dates, *carry* for another network.
        """
        self._signer = _signer_of(address, credential, clock)
        self._judge = Judge(address.shown, meter, self._signer, clock)
        self._sessions = Sessions()
        self._containers = f"dbs/{address.database}/colls/"
        carried = carry or _by_tcp(address)

        def reach(url: str) -> Endpoint:
            requests = Requests(_host(url), address.database, address.consistency, self._signer, clock)
            return Endpoint(url, requests, carried(url), self._signer, self._judge)

        self._regions = Regions(reach(address.endpoint), address.region, reach, self._judge)
        self._resources = Resources(address.database, self._regions, self._judge)

    async def read(self, container: str, name: str, timeout_s: float, *, fresh: bool = False) -> Item | None:
        if fresh:
            answer = await self._fresh(container, name, timeout_s)
            return None if answer.status == 404 else self._judge.understood(lambda: item_of(answer, name))
        loop = asyncio.get_running_loop()
        due_s = loop.time() + timeout_s
        region = self._regions.near
        if region is None or self._signer.lacks():
            region = await self._regions.known(timeout_s)
            await region.endpoint.ready(due_s - loop.time())
        try:
            return await self._read(region, container, name, due_s)
        except CosmosUnavailable as error:
            other = self._regions.instead(region, error.kind)
            if other is None or loop.time() > due_s - LEAST_S:
                raise
        return await self._read(other, container, name, due_s)

    async def _read(self, region: Region, container: str, name: str, due_s: float) -> Item | None:
        """Read in one region."""
        endpoint = region.endpoint
        make = partial(endpoint.requests.read, container, name)
        answer = await endpoint.send(make, due_s, again=True)
        if answer.status == 401 and await endpoint.renewed(answer, due_s):
            answer = await endpoint.send(make, due_s)
        try:
            if answer.status == 200:
                self._judge.charge(answer)
                item = item_of(answer, name)
            elif is_absent(answer):
                self._judge.charge(answer)
                item = None
            else:
                raise self._refused(answer, container)
        except Malformed as error:
            raise self._judge.nonsense(error) from error
        if region.strikes:
            self._regions.answered(region)
        return item

    async def look(self, container: str, name: str) -> Look:
        answer = await self._fresh(container, name, DEADLINE_S)
        return self._judge.understood(lambda: _look_of(answer, name))

    async def _fresh(self, container: str, name: str, timeout_s: float) -> Response:
        """Return the answer to a read that sees what this driver wrote: the item, or that there is none."""
        await self._regions.known(timeout_s)
        headers = keyed(name)
        if self._regions.session:
            headers += b"x-ms-consistency-level: Session\r\n"
            if token := self._sessions.token(container):
                headers += b"x-ms-session-token: %b\r\n" % token
        link = f"{self._containers}{container}/docs/{name}"
        answer = await self._regions.written.ask("GET", "docs", link, f"{link}/", headers=headers, timeout_s=timeout_s)
        if answer.status == 200 or self._judge.understood(lambda: is_absent(answer)):
            self._judge.understood(lambda: self._judge.charge(answer))
            return answer
        raise self._refused(answer, container)

    async def create(self, container: str, item: Item) -> Wrote:
        return await self._write("POST", container, item, JSON, failing=409)

    async def upsert(self, container: str, item: Item) -> Wrote:
        return await self._write("POST", container, item, UPSERT)

    async def replace(self, container: str, item: Item, etag: str) -> Wrote:
        if not etag.isprintable():
            raise StoreMisused(f"{etag[:80]!r} cannot be the version of an item")
        return await self._write("PUT", container, item, JSON + b"if-match: %b\r\n" % etag.encode(), failing=412)

    async def _write(self, verb: str, container: str, item: Item, headers: bytes, failing: int | None = None) -> Wrote:
        """Write an item; *failing* is the status that says that its condition does not hold."""
        await self._regions.known(DEADLINE_S)
        owner, name = f"{self._containers}{container}", item["id"]
        link, path = (owner, f"{owner}/docs/") if verb == "POST" else (f"{owner}/docs/{name}", f"{owner}/docs/{name}/")
        try:
            answer = await self._regions.written.ask(
                verb, "docs", link, path, headers=keyed(name) + headers, body=orjson.dumps(item)
            )
        except CosmosUnavailable:
            self._regions.doubt()
            raise
        done = answer.status in (200, 201)
        if done or answer.status == failing or (verb == "PUT" and self._judge.understood(lambda: is_absent(answer))):
            self._sessions.note(container, answer.header(b"x-ms-session-token"))
            return Wrote(done, self._judge.understood(lambda: self._judge.charge(answer)))
        raise self._refused(answer, container)

    async def account(self) -> Account:
        return await self._regions.learn()

    async def create_database(self) -> bool:
        return await self._resources.create_database()

    async def create_container(self, container: str, throughput: Throughput | None) -> bool:
        return await self._resources.create_container(container, throughput)

    async def delete_container(self, container: str) -> None:
        await self._resources.delete_container(container)
        self._sessions.forget(container)

    async def offer(self, container: str) -> Offer | None:
        return await self._resources.offer(container)

    async def scale(self, container: str, throughput: Throughput) -> None:
        await self._resources.scale(container, throughput)

    async def close(self) -> None:
        await self._regions.close()
        await self._signer.close()

    def _refused(self, answer: Response, container: str) -> StoreError:
        """Return what a refusal means; where the region is not the one for it, or the container is gone, act on it."""
        error = self._judge.refused(answer)
        if isinstance(error, ContainerMissing):
            self._sessions.forget(container)
        elif isinstance(error, CosmosUnavailable) and error.kind == "unavailable":
            self._regions.doubt()
        return error


def _look_of(answer: Response, name: str) -> Look:
    now = date_of(answer)
    if now is None:
        raise Malformed("no date")
    if answer.status == 404:
        return Look(None, "", now)
    item = item_of(answer, name)
    etag = item.get("_etag")
    if not isinstance(etag, str):
        raise Malformed("an item without etag")
    return Look(item, etag, now)


def _host(url: str) -> str:
    """Return what the header `Host` says."""
    parts = urlsplit(url)
    return parts.netloc if parts.port != DEFAULT_PORTS[parts.scheme] else parts.netloc.rpartition(":")[0]


def _signer_of(address: Address, credential: Credential | None, clock: Callable[[], float]) -> Signer:
    if address.key is not None:
        return KeySigner(address.key, address.shown)
    return TokenSigner(address, credential or default_credential(), clock)


def _by_tcp(address: Address) -> Carry:
    """Reach servers by TCP, and those of https by TLS that is verified."""
    context = None
    if address.endpoint.startswith("https:"):
        context = ssl.create_default_context()
        if address.ca is not None:
            try:
                context.load_verify_locations(address.ca)
            except OSError as error:  # SSLError is one
                raise StoreMisused(
                    f"the file {address.ca}, which should certify {address.shown}, is none: {error}"
                ) from error

    def carry(url: str) -> Transport:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        return ConnectionPool(
            parts.hostname or "", port, size=CONNECTIONS, tls=context if parts.scheme == "https" else None
        )

    return carry
