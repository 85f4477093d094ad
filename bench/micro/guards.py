"""What keys, rates, the access log, the deny-list and the limits of connections add to a GET.

The same GETs in this process, from the bytes of a request to those of its response, over connections in memory: with
nothing of all that, with one of it, and with all.
"""

import asyncio
import gc
import os
import tempfile
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, redirect_stderr
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from bench.lists import Shape
from bench.micro.publishing import publish_to
from bench.micro.rounds import (
    HEADERS,
    Effort,
    Figure,
    Goal,
    Outcome,
    Sample,
    Stopwatch,
    at_most,
    cpu_difference,
    path_of,
)
from bench.process import on_core
from serve.access.auth import Guard
from serve.access.keys import create
from serve.api.app import Dispatcher
from serve.connections.connection import Connection
from serve.connections.server import Server
from serve.deny_list import DenyListFile
from serve.processes.access_log import AccessLog
from serve.reader import open_reader

SERVED = Shape(1_000, items=20, title_chars=17)
# So many GETs are a pass, of which a round has some: a pass of each variant in turn, so that all have the same luck.
GETS, CONNECTIONS = 5_000, 16
# What all guards together may add to a GET, in µs of CPU.
GUARDS_US = 2
# A client's rate that one process does not reach; how much is logged; how many items and users are denied.
RATE, WORKERS, LOGGED_SHARE, DENIED = 1e6, 2, 0.01, 5_000


class Client(asyncio.Transport):
    """The other end of a connection: sends the next request once one was answered; lives as long as its variant."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._requests: Iterator[bytes] = iter(())
        self._done = loop.create_future()
        protocol.connection_made(self)

    def send(self, requests: Iterator[bytes]) -> "asyncio.Future[None]":
        """Send what is left of *requests*, which other clients take from, too."""
        self._requests, self._done = requests, self._loop.create_future()
        self._send_next()
        return self._done

    def _send_next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._done.set_result(None)
        else:
            self._protocol.data_received(request)

    def write(self, data: Any) -> None:  # noqa: ANN401 -- as asyncio has it
        """Take a response; each comes in one piece."""
        if not data.startswith(b"HTTP/1.1 200 "):
            self._done.set_exception(RuntimeError(f"a GET was answered with {bytes(data[:100])!r}"))
            return
        self._loop.call_soon(self._send_next)

    def is_closing(self) -> bool:
        """Never."""
        return False


class Unlimited(web.Server):
    """aiohttp's own server before the same dispatcher, as connections without limits would be served."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__(self._answer, access_log=None, auto_decompress=False)
        self._dispatcher = dispatcher

    def _answer(self, request: web.BaseRequest) -> Awaitable[web.Response]:
        path, _, query = request.raw_path.partition("?")
        return self._dispatcher.answer(request, path, query)


class Variant:
    """A service with some of the guards, and its clients."""

    def __init__(self, dispatcher: Dispatcher, *, limits: bool) -> None:
        loop = asyncio.get_running_loop()
        server = Server(dispatcher) if limits else Unlimited(dispatcher)
        self._clients = [
            Client(loop, Connection(server, "127.0.0.1", "") if isinstance(server, Server) else server())
            for _ in range(CONNECTIONS)
        ]

    async def answer(self, requests: list[bytes], watch: Stopwatch) -> None:
        """Answer *requests*, and add the time that it took."""
        shared = iter(requests)
        with watch.running():
            await asyncio.gather(*[client.send(shared) for client in self._clients])


def measure(effort: Effort) -> list[Outcome]:
    """Serve the same GETs with some and with all of the guards, in turn."""
    with tempfile.TemporaryDirectory() as folder, on_core(0):
        publish_to(f"file://{folder}/store", SERVED, SERVED.values())
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            taken = uvloop.run(_rounds(Path(folder), effort))

    def added(what: str, to: str, variant: str, goal: Goal | None = None) -> Figure:
        return cpu_difference(f"GET in process, what {what}", taken[variant], taken[to], goal=goal)

    return [
        Figure("GET in process, with all guards: CPU", "µs/request", [one.cpu_us_per_op for one in taken["all"]]),
        added("a key with a rate adds", "limits", "key"),
        added("the access log of a hundredth adds", "limits", "log"),
        added(f"a deny-list of {DENIED:,} items and users adds", "limits", "denied"),
        added("these three add together", "limits", "all", at_most(GUARDS_US)),
        added("the limits of connections add to aiohttp's own", "none", "limits"),
        added("the limits and these three add together", "none", "all", at_most(GUARDS_US)),
    ]


async def _rounds(folder: Path, effort: Effort) -> dict[str, list[Sample]]:
    """Return a sample of each variant for each round."""
    key = create(folder / "keys.json", "web", ["read"], RATE).key
    (folder / "denied").write_text("".join(f"item:x{number}\nuser:x{number}\n" for number in range(DENIED)))
    headers = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "x", **HEADERS, "X-API-Key": key}.items())
    requests = [f"GET {path_of(n % SERVED.users)} HTTP/1.1\r\n{headers}\r\n".encode() for n in range(GETS)]
    async with AsyncExitStack() as stack:

        async def variant(
            *, limits: bool = True, key: bool = False, log: bool = False, denied: bool = False
        ) -> Variant:
            deny_list = DenyListFile(folder / "denied") if denied else None
            reader = await stack.enter_async_context(open_reader([f"file://{folder}/store"], deny_list=deny_list))
            await reader.wait_until_ready(10)
            guard = Guard(folder / "keys.json", workers=WORKERS, anonymous=frozenset()) if key else None
            access_log = AccessLog(LOGGED_SHARE, float("inf")) if log else None
            return Variant(Dispatcher(reader, guard, access_log=access_log), limits=limits)

        variants = {
            "none": await variant(limits=False),
            "limits": await variant(),
            "key": await variant(key=True),
            "log": await variant(log=True),
            "denied": await variant(denied=True),
            "all": await variant(key=True, log=True, denied=True),
        }
        for each in variants.values():
            await each.answer(requests, Stopwatch())  # warms up, and is not kept
        gc.collect()
        gc.freeze()
        try:
            taken: dict[str, list[Sample]] = {name: [] for name in variants}
            for _ in range(effort.rounds):
                watches = {name: Stopwatch() for name in variants}
                passes = 0
                while passes == 0 or watches["all"].wall_s < effort.round_s:
                    passes += 1
                    for name, each in variants.items():
                        await each.answer(requests, watches[name])
                for name, total in watches.items():
                    taken[name].append(total.sample(passes * GETS))
        finally:
            gc.unfreeze()
    return taken
