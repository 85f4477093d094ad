"""The processes of a service: a parent that holds the port and replaces dead workers, and what a worker does.

A worker is one event loop with a reader and a server, from start to a graceful end.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import uvloop

from serve.app import Dispatcher, Server
from serve.metrics import Metrics
from serve.reader import open_reader
from serve.settings import Settings
from serve.tiers import tier_names
from stores.connect import connect
from stores.throttle import Backoff

log = logging.getLogger(__name__)

BACKLOG = 1024
# How long a stopping worker lets idle keep-alive clients come once more, to be answered with `Connection: close`.
LINGER_S = 0.5
# How often a worker checks whether its parent still lives.
PARENT_POLL_S = 1.0
# A worker that lived for so long did not die of its start.
HEALTHY_S = 5.0
# The first and the longest pause before a worker that died of its start is replaced.
RESTART_S = (0.1, 5.0)
# How much longer than its drain a worker is waited for before it is killed.
KILL_AFTER_S = 5.0
WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}


class PortInUse(OSError):
    """Somebody listens on the port already."""


@dataclass(slots=True)
class _Worker:
    number: int
    started: float


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; *announce* is called once with the URL, when the first worker answers there.

    Raises PortInUse, or StoreMisused for a store that cannot be opened.
    """
    for url in settings.stores:
        connect(url)  # a wrong URL is better known here than in every worker
    listener = reserve(settings.host, settings.port)
    port = listener.getsockname()[1]
    metrics = Metrics(settings.workers, tier_names(settings.stores))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    announce_here = partial(announce, f"http://{host}:{port}")
    if settings.workers == 1:
        _run(work(settings, listener, metrics, announce=announce_here))
    else:
        _Supervisor(settings, listener, metrics, announce_here).run()


def reserve(host: str, port: int) -> socket.socket:
    """Bind a socket whose port further workers of this service can share (SO_REUSEPORT); it does not listen yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if port:
            with socket.socket(family) as alone:  # without SO_REUSEPORT, so that another service's port is not shared
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind((host, port))
        return _bind(family, host, port)
    except OSError as error:
        raise PortInUse(
            f"{host} port {port} cannot be listened on: {error.strerror}; choose another with --port"
        ) from error


def _bind(family: int, host: str, port: int) -> socket.socket:
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    return listener


def _run(worker: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(worker)


class _Supervisor:
    """Lives as long as the service; forks before it ever has a loop or a thread, so that forking is safe."""

    def __init__(self, settings: Settings, held: socket.socket, metrics: Metrics, announce: Callable[[], None]) -> None:
        self._settings = settings
        self._held = held
        self._metrics = metrics
        self._announce: Callable[[], None] | None = announce
        self._workers = dict[int, _Worker]()
        self._due = dict.fromkeys(range(settings.workers), 0.0)
        self._backoffs = [Backoff(*RESTART_S) for _ in range(settings.workers)]

    def run(self) -> None:
        """Keep every worker running until SIGTERM or SIGINT, then stop them."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        gc.freeze()  # shared with the workers, page by page, as long as none of them writes to it
        while True:
            for number, due in list(self._due.items()):
                if due <= time.monotonic():
                    self._start(number)
            pause_s = max(0.0, min([1.0, *(due - time.monotonic() for due in self._due.values())]))
            caught = signal.sigtimedwait(WATCHED, pause_s)
            if caught is not None and caught.si_signo != signal.SIGCHLD:
                break
            self._replace_dead()
        self._stop()

    def _start(self, number: int) -> None:
        host, port = self._held.getsockname()[:2]
        listener = _bind(self._held.family, host, port)
        parent = os.getpid()
        announce, self._announce = self._announce, None  # the first worker's to say, once
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
                self._metrics.use_slot(number)
                _run(work(self._settings, listener, self._metrics, parent=parent, announce=announce))
                code = 0
            except BaseException:  # whatever it is, it must not go on as a second parent
                log.exception("worker %d failed", number)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        listener.close()
        del self._due[number]
        self._workers[pid] = _Worker(number, time.monotonic())

    def _replace_dead(self) -> None:
        for worker, code in self._ended():
            backoff, pause_s = self._backoffs[worker.number], 0.0
            if time.monotonic() - worker.started < HEALTHY_S:
                pause_s = backoff.next_s()
            else:
                backoff.reset()
            self._due[worker.number] = time.monotonic() + pause_s
            log.warning("worker %d ended with %d; another starts in %.1f s", worker.number, code, pause_s)

    def _ended(self) -> Iterator[tuple[_Worker, int]]:
        """Yield every worker that ended since the last call, with its exit code (a signal is negative)."""
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield self._workers.pop(pid), os.waitstatus_to_exitcode(status)

    def _stop(self) -> None:
        """Pass the stop on, wait for the drain, and kill what does not end."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.drain_s + KILL_AFTER_S
        while self._workers and time.monotonic() < deadline:
            caught = signal.sigtimedwait(WATCHED, 0.5)
            if caught is not None and caught.si_signo != signal.SIGCHLD:
                break  # the second signal: stop at once
            for worker, code in self._ended():
                log.info("worker %d ended with %d", worker.number, code)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._workers:
            os.kill(pid, number)


async def work(
    settings: Settings,
    listener: socket.socket,
    metrics: Metrics,
    *,
    parent: int | None = None,
    announce: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until *parent* is gone; then finish what was accepted and return.

    *announce* is called once this worker listens and has read its stores for the first time.
    """
    reader = open_reader(settings.stores, budget_s=settings.budget_s, metrics=metrics)
    dispatcher = Dispatcher(reader)
    server = Server(dispatcher)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with reader:
        for task in reader.following:
            task.add_done_callback(lambda _: stop.set())  # it ends only by a defect: better replaced than stale
        listening = await loop.create_server(server, sock=listener, backlog=BACKLOG)
        if announce is not None:
            await reader.wait_until_attempted()
            announce()
        gc.collect()
        gc.freeze()  # what is here now stays: full collections need not walk it
        await _wait_for(stop, parent)

        dispatcher.drain()
        await asyncio.sleep(0)  # connections that were complete before the stop are taken in
        listening.close()
        await _linger(server)
        server.pre_shutdown()
        await server.shutdown(settings.drain_s)
        for task in reader.following:
            if task.done():
                task.result()


async def _wait_for(stop: asyncio.Event, parent: int | None) -> None:
    """Wait until *stop* is set, or until this process is no child of *parent* any more."""
    if parent is None:
        await stop.wait()
    while parent == os.getppid() and not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), PARENT_POLL_S)


async def _linger(server: Server) -> None:
    """Wait until every keep-alive client has closed as requested, LINGER_S at most."""
    deadline = asyncio.get_running_loop().time() + LINGER_S
    while server.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 -- aiohttp has no event for the end of its last connection
        await asyncio.sleep(0.01)
