"""An account while it is measured: its containers, dropped at the end, their items, and requests for these.

Requests are signed beforehand, as a signature is good for 15 minutes.
"""

import asyncio
import itertools
import secrets
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hotplate.bench.cosmos_emulator.partitions import V2_SPAN, effective_key
from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.loadgen.load import send_one
from hotplate.stores.cosmos.charges import KB
from hotplate.stores.cosmos.control import AccountContainers
from hotplate.stores.cosmos.items import Account
from hotplate.stores.cosmos.requests import DEADLINE_S, KeySigner, RequestBuilder
from hotplate.stores.cosmos.rest import RestClient
from hotplate.stores.cosmos.url import KEY, Address, Throughput
from hotplate.stores.errors import StoreError, StoreThrottled
from hotplate.stores.http1 import Response

# How the name of every container begins that a sweep creates, and so of all that it ever changes or drops.
PREFIX = "hotplate-bench-"
# An item has so much besides its id and its padding: names, quotes and system properties.
OVERHEAD_BYTES = 223
WRITERS = 16
SCALED_WITHIN_S = 120.0
POLL_S = 0.5
DROP_TRIES = 5
# The header of a response that has its charge in RU.
CHARGE = "x-ms-request-charge"
UPSERT = b"content-type: application/json\r\nprefer: return=minimal\r\nx-ms-documentdb-is-upsert: True\r\n"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SandboxItems:
    """Items of one size for a container of *parts* partitions, whose ids lie in these one after the other."""

    size_kb: int
    count: int
    parts: int

    @property
    def size(self) -> int:
        """Bytes of each as stored, with its system properties."""
        return self.size_kb * KB

    @property
    def ids(self) -> tuple[str, ...]:
        """Their ids, which are their partition keys, too."""
        held: list[list[str]] = [[] for _ in range(self.parts)]
        names = (f"{self.size_kb}k-{number:08d}" for number in itertools.count())
        while min(map(len, held)) * self.parts < self.count:
            name = next(names)
            held[partition_of(name, self.parts)].append(name)
        return tuple(itertools.islice(itertools.chain.from_iterable(zip(*held, strict=False)), self.count))

    def bodies(self) -> Iterator[dict[str, Any]]:
        """Yield their bodies."""
        for name in self.ids:
            yield {"id": name, "pad": "x" * (self.size - OVERHEAD_BYTES - len(name))}


def partition_of(name: str, parts: int) -> int:
    """Return which of *parts* even partitions holds the item whose id and partition key are *name*."""
    return int(effective_key(name, 2), 16) * parts // V2_SPAN


@dataclass(frozen=True, slots=True)
class SignedRequests:
    """Requests made beforehand, sent one after the other; see `hotplate.bench.loadgen.load.Requests`."""

    requests: tuple[bytes, ...]

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """Yield requests over and over; host and headers are in them."""
        del host, headers
        return itertools.cycle(self.requests)


def builder(address: Address) -> RequestBuilder:
    """Return what signs requests; BenchMisused, which says what to do, if the account has no key."""
    if address.key is None:
        raise BenchMisused(
            f"to create and drop a container of its own this needs the key of {address.shown}; give it as "
            f"{KEY} or in a file as {KEY}_FILE"
        )
    signer = KeySigner(address.key, address.shown)
    return RequestBuilder(urlsplit(address.endpoint).netloc, address.database, "Eventual", signer, time.time)


def reads_in_turn(signed: RequestBuilder, container: str, items: SandboxItems) -> SignedRequests:
    """Make requests that read the items one after the other: no partition and no key gets more of them."""
    return SignedRequests(tuple(signed.point_read(container, name) for name in items.ids))


class AccountSandbox:
    """An account while it is measured; `sandbox` opens one and drops its containers."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.ca = address.ca
        self.url = address.endpoint
        self._created = list[str]()

    def send(self, request: bytes) -> Response:
        """Send one request as it is. Raises BenchFailed if nothing answers."""
        return send_one(self.url, request, DEADLINE_S, self.ca)

    def account(self) -> Account:
        """Read the properties of the account."""
        return self._run(lambda client, _: client.account())

    def create(self, throughput: Throughput) -> str:
        """Create a container of our own, and return its name."""
        name = f"{PREFIX}{secrets.token_hex(4)}"
        self._created.append(name)  # before the request: an answer that is lost leaves a container, too
        if not self._run(lambda _, containers: containers.create_container(name, throughput)):
            self._created.remove(name)
            raise BenchFailed(f"{self.address.shown} has a container {name} already; nothing was touched, try again")
        return name

    def scale(self, container: str, throughput: Throughput) -> None:
        """Change the throughput of a container, and wait until the change is done."""
        self._run(lambda _, containers: _scale(containers, container, throughput))

    def fill(self, container: str, items: SandboxItems) -> None:
        """Write *items*, as fast as the container's throughput lets them in."""
        self._run(lambda client, _: _fill(client, container, items))

    def drop(self) -> None:
        """Drop all containers that were created. Raises BenchFailed, naming them, where some cannot be."""
        self._created = [name for name in self._created if not self._dropped(name)]
        if self._created:
            raise BenchFailed(
                f"of {self.address.shown} these containers could not be dropped, and cost money until you drop them: "
                f"{', '.join(self._created)}"
            )

    def _dropped(self, name: str) -> bool:
        for attempt in range(DROP_TRIES):
            try:
                self._run(lambda _, containers: containers.delete_container(name))
            except StoreError:
                time.sleep(POLL_S * 2**attempt)
            else:
                return True
        return False

    def _run(self, operation: Callable[[RestClient, AccountContainers], Awaitable[T]]) -> T:
        """Run an operation over connections that are closed again; StoreError if the account refuses it."""

        async def run() -> T:
            client = RestClient(self.address)
            try:
                return await operation(client, AccountContainers(self.address, client))
            finally:
                await client.close()

        return asyncio.run(run())


@contextmanager
def sandbox(address: Address) -> Iterator[AccountSandbox]:
    """Open an account, and drop what was created there when the block ends, also by an error, Ctrl-C or SIGTERM."""
    opened = AccountSandbox(address)
    with _signals({signal.SIGTERM: _interrupt}):
        try:
            yield opened
        finally:
            with _signals({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}):
                opened.drop()  # takes seconds, and leaves nothing that costs money


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _signals(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """Handle signals so until the block ends; in the main thread only, as signals are its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _scale(containers: AccountContainers, container: str, throughput: Throughput) -> None:
    await containers.scale(container, throughput)
    until = time.monotonic() + SCALED_WITHIN_S
    while time.monotonic() < until:
        offer = await containers.offer(container)
        if offer is not None and not offer.pending and offer.throughput == throughput:
            return
        await asyncio.sleep(POLL_S)
    raise BenchFailed(f"{container} was not scaled to {throughput.ru:,} RU/s within {SCALED_WITHIN_S:g} s")


async def _fill(client: RestClient, container: str, items: SandboxItems) -> None:
    bodies = items.bodies()

    async def write() -> None:
        for body in bodies:
            while True:
                try:
                    await client.upsert(container, body)
                    break
                except StoreThrottled as throttled:
                    await asyncio.sleep(throttled.retry_after_s)

    await asyncio.gather(*(write() for _ in range(WRITERS)))
