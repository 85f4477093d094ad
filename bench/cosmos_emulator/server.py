"""The emulator as a process: listeners for its regions, a tick each second, and an end when it is told."""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import uvloop

from bench.cosmos_emulator.account import CONSISTENCIES, Account
from bench.cosmos_emulator.admin import Admin
from bench.cosmos_emulator.auth import Keeper
from bench.cosmos_emulator.errors import EmulatorMisused
from bench.cosmos_emulator.management import Management
from bench.cosmos_emulator.metrics import Exposition
from bench.cosmos_emulator.service import Service
from bench.cosmos_emulator.settings import REGIONS, Settings
from bench.cosmos_emulator.tls import context_for
from bench.cosmos_emulator.tokens import Issuer
from bench.cosmos_emulator.watch import Watch
from bench.cosmos_emulator.wire import Connection
from stores.cosmos.charges import OURS, load

log = logging.getLogger(__name__)

TICK_S = 1.0
EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 -- what is told, not what is bound


@dataclass(slots=True)
class Running:
    """An emulator that listens."""

    service: Service
    scheme: str
    host: str
    ports: tuple[int, ...] = ()
    alive: set[Connection] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        """Return the URL of the region that is written, on loopback where the host is all addresses."""
        host = "127.0.0.1" if self.host in EVERYWHERE else self.host
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.ports[0]}/"


@asynccontextmanager
async def running(settings: Settings, clock: Callable[[], float] = time.time) -> AsyncIterator[Running]:
    """Listen until the block ends."""
    if settings.consistency not in CONSISTENCIES:
        raise EmulatorMisused(f"no such consistency: {settings.consistency}; there are {', '.join(CONSISTENCIES)}")
    context = context_for(settings)
    scheme = "http" if context is None else "https"
    wanted = [settings.port] if settings.second_port is None else [settings.port, settings.second_port]
    service = _service(settings, wanted, clock)
    account = service.account
    watch = Watch(account)
    admin = Admin(service, Exposition(account, service.counts, watch), Management(service))
    made = Running(service, scheme, settings.host)
    loop = asyncio.get_running_loop()
    listeners = list[asyncio.Server]()
    ticking = loop.create_task(_tick(made, watch))
    try:
        for region, port in enumerate(wanted):
            listeners.append(
                await loop.create_server(
                    lambda region=region: Connection(admin.answer, made.alive, region, scheme),
                    settings.host,
                    port,
                    ssl=context,
                )
            )
        made.ports = tuple(listener.sockets[0].getsockname()[1] for listener in listeners)
        account.regions = tuple(zip(REGIONS, made.ports, strict=False))
        yield made
    finally:
        for listener in listeners:
            listener.close()
        for connection in list(made.alive):
            connection.reset()
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking


def _service(settings: Settings, ports: list[int], clock: Callable[[], float]) -> Service:
    account = Account(
        load(settings.charges or OURS),
        tuple(zip(REGIONS, ports, strict=False)),
        settings.consistency,
        burst=settings.burst,
        clock=clock,
    )
    service = Service(account, Keeper(settings.key, Issuer() if settings.entra else None))
    if settings.faults is not None:
        service.faults.read(settings.faults, clock())
    return service


async def _tick(made: Running, watch: Watch) -> None:
    loop = asyncio.get_running_loop()
    before, worked = loop.time(), time.process_time()
    while True:
        await asyncio.sleep(TICK_S)
        now, working = loop.time(), time.process_time()
        watch.tick(now - before, working - worked)
        before, worked = now, working
        for connection in list(made.alive):
            connection.close_idle(now)


def serve(settings: Settings, ready: Callable[[Running], None]) -> None:
    """Run an emulator until SIGINT or SIGTERM; *ready* is called once it listens."""
    uvloop.run(_serve(settings, ready))


async def _serve(settings: Settings, ready: Callable[[Running], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with running(settings) as made:
        ready(made)
        await stopped.wait()
