"""What a sweep stands on: an account and the containers of its own there, all dropped at the end, whatever happens."""

import asyncio
import secrets
import signal
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from bench.errors import BenchFailed
from bench.process import free_port, serving
from bench.ru.items import Items
from stores.cosmos.driver import Account
from stores.cosmos.rest.driver import RestDriver
from stores.cosmos.throughput import Throughput
from stores.cosmos.url import Address, parse
from stores.errors import StoreError, StoreThrottled

PREFIX = "hotplate-bench-"
"""How the name of every container begins that a sweep makes, and so of all that it ever changes or drops."""

WRITERS = 16
SCALED_WITHIN_S = 120.0
ASK_AGAIN_S = 0.5
DROP_TRIES = 5
SATURATED = "hotplate_cosmos_emulator_saturated_seconds_total"

T = TypeVar("T")


@dataclass(slots=True)
class Spent:
    """What asking came to, see `stores.store.Observer`; lives as long as its driver."""

    ru: float = 0.0
    failures: int = 0

    def charged(self, ru: float) -> None:
        """See `Observer`."""
        self.ru += ru

    def failed(self, kind: str) -> None:
        """See `Observer`."""
        del kind
        self.failures += 1


class Ground:
    """An account while it is measured; `grounded` makes one and clears it up."""

    def __init__(self, address: Address, *, own: bool) -> None:
        self.address = address
        self.own = own
        """Whether it is an emulator that was started for this."""

        self.ca = address.ca
        self.url = address.endpoint
        self._made = list[str]()

    def tls(self) -> ssl.SSLContext | None:
        """Make what a connection is encrypted with; None for plain http."""
        return ssl.create_default_context(cafile=self.ca) if self.url.startswith("https:") else None

    def saturated_s(self) -> float | None:
        """Ask our own emulator for how long it was itself the limit; None where it is not ours."""
        if not self.own:
            return None
        with urllib.request.urlopen(f"{self.url}/__emulation/metrics", timeout=10) as answer:  # noqa: S310 -- loopback
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(SATURATED))

    def account(self) -> Account:
        """Ask the account about itself."""
        return self._do(lambda driver: driver.account())

    def make_database(self) -> None:
        """Make the database; for our own emulator only, as a real account's is there or is none of ours."""
        self._do(lambda driver: driver.create_database())

    def make(self, throughput: Throughput) -> str:
        """Make a container of our own, and return its name."""
        name = f"{PREFIX}{secrets.token_hex(4)}"
        self._made.append(name)  # before it is asked for: an answer that is lost leaves a container, too
        if not self._do(lambda driver: driver.create_container(name, throughput)):
            self._made.remove(name)
            raise BenchFailed(f"{self.address.shown} has a container {name} already; nothing was touched, try again")
        return name

    def scale(self, container: str, throughput: Throughput) -> None:
        """Change what a container may spend, and wait until it may."""
        self._do(lambda driver: _scale(driver, container, throughput))

    def fill(self, container: str, items: Items) -> None:
        """Write *items*, as fast as the container's throughput lets them in."""
        self._do(lambda driver: _fill(driver, container, items))

    def drop(self) -> None:
        """Drop all containers that were made. Raises BenchFailed, naming them, where some cannot be."""
        left = [name for name in self._made if not self._dropped(name)]
        self._made = left
        if left:
            raise BenchFailed(
                f"of {self.address.shown} these containers could not be dropped, and cost money until you drop them: "
                f"{', '.join(left)}"
            )

    def _dropped(self, name: str) -> bool:
        for attempt in range(DROP_TRIES):
            try:
                self._do(lambda driver: driver.delete_container(name))
            except StoreError:
                time.sleep(ASK_AGAIN_S * 2**attempt)
            else:
                return True
        return False

    def _do(self, ask: Callable[[RestDriver], Awaitable[T]]) -> T:
        """Ask the account for something, over connections that are closed again; BenchFailed where it will not."""

        async def asked() -> T:
            driver = RestDriver(self.address, Spent())
            try:
                return await ask(driver)
            finally:
                await driver.close()

        return asyncio.run(asked())


@contextmanager
def grounded(address: Address, *, own: bool = False) -> Iterator[Ground]:
    """Hand out an account, and drop what was made there when the block ends, also by an error, Ctrl-C or SIGTERM."""
    ground = Ground(address, own=own)
    with _terminated_as_interrupted():
        try:
            if own:
                ground.make_database()
            yield ground
        finally:
            with _undisturbed():
                ground.drop()


@contextmanager
def own_emulator(*options: str) -> Iterator[Ground]:
    """Start an emulator as a process of its own, on the first core, and stand on it until the block ends."""
    port = free_port()
    command = [sys.executable, "-m", "hotplate", "cosmos-emulator", "--port", str(port), "--json", *options]
    with (
        serving(command, port, "/__emulation/metrics"),
        grounded(parse(f"cosmos+http://127.0.0.1:{port}/bench", {}), own=True) as ground,
    ):
        yield ground


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """End the block by KeyboardInterrupt where the process is told to end, so that it can clear up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM away until the block ends: it takes seconds, and leaves nothing that costs money."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _scale(driver: RestDriver, container: str, throughput: Throughput) -> None:
    await driver.scale(container, throughput)
    until = time.monotonic() + SCALED_WITHIN_S
    while time.monotonic() < until:
        offer = await driver.offer(container)
        if offer is not None and not offer.pending and offer.throughput == throughput:
            return
        await asyncio.sleep(ASK_AGAIN_S)
    raise BenchFailed(f"{container} was not scaled to {throughput.ru:,} RU/s within {SCALED_WITHIN_S:g} s")


async def _fill(driver: RestDriver, container: str, items: Items) -> None:
    bodies = items.bodies()

    async def write() -> None:
        for body in bodies:
            while True:
                try:
                    await driver.upsert(container, body)
                    break
                except StoreThrottled as throttled:
                    await asyncio.sleep(throttled.retry_after_s)

    await asyncio.gather(*(write() for _ in range(WRITERS)))
