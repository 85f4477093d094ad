"""One worker process: a reader, a follower and a server on one event loop, from start to a graceful end."""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from serve.following import Follower
from serve.handlers import Handlers
from serve.lookup import Lookup
from serve.metrics import Exposition, Metrics
from serve.routes import Routes
from serve.server import Server
from serve.settings import Settings
from stores.connect import connect

log = logging.getLogger(__name__)

BACKLOG = 1024
LINGER_S = 0.5
"""How long a stopping worker lets idle keep-alive clients come once more, to be told `Connection: close`."""

PARENT_POLL_S = 1.0


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
    reader = connect(settings.store)
    follower = Follower(reader)
    tier = urlsplit(settings.store).scheme
    lookup = Lookup(reader, follower, metrics, settings.deadline_s)
    handlers = Handlers(lookup, follower, Exposition(metrics, follower, tier), tier)
    server = Server(Routes(handlers), metrics)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    following = asyncio.create_task(follower.run())
    following.add_done_callback(lambda _: stop.set())  # it ends only by a defect: better replaced than stale
    listening = await loop.create_server(server, sock=listener, backlog=BACKLOG)
    if announce is not None:
        await follower.looked.wait()
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
    failure = following.exception() if following.done() and not following.cancelled() else None
    following.cancel()
    await reader.close()
    if failure is not None:
        raise failure


async def _linger(server: Server) -> None:
    """Wait until every keep-alive client has been told to close, LINGER_S at most."""
    deadline = asyncio.get_running_loop().time() + LINGER_S
    while server.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 -- aiohttp tells nobody when its last connection ends
        await asyncio.sleep(0.01)
