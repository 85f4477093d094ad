"""One worker process: a reader, a follower and a server on one event loop, from start to a graceful end."""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

from serve.exposition import Exposition
from serve.handlers import Handlers
from serve.lookup import Lookup
from serve.metrics import Metrics
from serve.routes import Routes
from serve.server import Server
from serve.settings import Settings
from serve.tiers import StoreObserver, Tier
from stores.connect import connect

log = logging.getLogger(__name__)

BACKLOG = 1024
LINGER_S = 0.5
"""How long a stopping worker lets idle keep-alive clients come once more, to be told `Connection: close`."""

PARENT_POLL_S = 1.0
LOOK_S = 2.0
"""How long the announcement waits for stores that do not answer."""


async def work(
    settings: Settings,
    listener: socket.socket,
    metrics: Metrics,
    *,
    parent: int | None = None,
    announce: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until *parent* is gone; then finish what was accepted and return.

    *announce* is called once this worker listens and has asked the store for the first time.
    """
    tiers = [
        Tier(name, connect(url, StoreObserver(name, metrics)), metrics)
        for name, url in zip(settings.tiers, settings.stores, strict=True)
    ]
    handlers = Handlers(Lookup(tiers, metrics, settings.budget_s), tiers, Exposition(metrics, tiers))
    server = Server(Routes(handlers), metrics)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    following = [asyncio.create_task(tier.follower.run()) for tier in tiers]
    for task in following:
        task.add_done_callback(lambda _: stop.set())  # it ends only by a defect: better replaced than stale
    listening = await loop.create_server(server, sock=listener, backlog=BACKLOG)
    if announce is not None:
        await asyncio.wait([asyncio.ensure_future(tier.follower.looked.wait()) for tier in tiers], timeout=LOOK_S)
        announce()
    gc.collect()
    gc.freeze()  # what is here now stays: full collections need not walk it

    while parent is not None and parent == os.getppid() and not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), PARENT_POLL_S)
    if parent is None:
        await stop.wait()

    handlers.draining = server.draining = True
    await asyncio.sleep(0)  # connections that were complete before the stop are taken in
    listening.close()
    await _linger(server)
    server.pre_shutdown()
    await server.shutdown(settings.drain_s)
    failures = [task.exception() for task in following if task.done() and not task.cancelled()]
    for task in following:
        task.cancel()
    for tier in tiers:
        await tier.close()
    for failure in failures:
        if failure is not None:
            raise failure


async def _linger(server: Server) -> None:
    """Wait until every keep-alive client has been told to close, LINGER_S at most."""
    deadline = asyncio.get_running_loop().time() + LINGER_S
    while server.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 -- aiohttp tells nobody when its last connection ends
        await asyncio.sleep(0.01)
