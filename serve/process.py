"""The processes of a service: a parent that holds the port and replaces dead workers, and what a worker does.

A worker is one event loop with a reader and a server, from start to a graceful end. One alone has a parent, too: what
kills a process that maps files, as a file that was cut under the map does, must not end the service.
"""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvloop

from serve.app import Dispatcher
from serve.auth import Guard, guard_of
from serve.cors import Cors
from serve.deny_list import DenyListFile
from serve.front import Server
from serve.listener import raise_descriptor_limit
from serve.metrics import Metrics
from serve.oidc import verifier_of
from serve.reader import NotReady, TieredReader, open_reader
from serve.scrubber import Scrubber
from serve.settings import Settings
from serve.tiers import tier_names
from serve.tls import Certificate, certificate_of
from serve.watched import following
from stores.connect import connect
from stores.errors import StoreError
from stores.file.store import damaged_files, open_url
from stores.throttle import Backoff
from stores.urls import scheme_of

log = logging.getLogger(__name__)

BACKLOG = 1024
# How long a stopping worker lets idle keep-alive clients come once more, to be answered with `Connection: close`.
LINGER_S = 0.5
# How long a worker that replaces one of several waits for a release before it listens, as others answer meanwhile.
PATIENCE_S = 10.0
# How long a worker whose parent was killed goes on answering what it accepted; it listens no more.
ORPHAN_DRAIN_S = 0.5
# How long a port is waited for that workers of a parent which was killed just now still hold.
PORT_WAIT_S = 1.5
PORT_POLL_S = 0.02
# A worker that lived for so long did not die of its start.
HEALTHY_S = 5.0
# The first and the longest pause before a worker that died of its start is replaced.
RESTART_S = (0.1, 5.0)
# How much longer than its drain a worker is waited for before it is killed.
KILL_AFTER_S = 5.0
WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
# What ends a process that reads a mapped file which was cut or is damaged.
FATAL = {-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT}


class CannotListen(OSError):
    """The address cannot be listened on; the text says why, and what to do."""


@dataclass(slots=True)
class _Worker:
    number: int
    started: float


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; *announce* is called once with the URL, when the first worker answers there.

    Raises CannotListen, StoreMisused for a store or a deny-list that cannot be opened, or ServiceMisused for settings
    that cannot be.
    """
    Cors(settings.cors_origins)
    deny_list = DenyListFile(settings.deny_list)
    for url in settings.stores:
        connect(url)  # a wrong URL is better known here than in every worker
    raise_descriptor_limit()
    guard = guard_of(settings, verifier_of(settings.oidc_issuer, settings.oidc_audience))
    certificate = certificate_of(settings)
    listener = reserve(settings.host, settings.port)
    port = listener.getsockname()[1]
    metrics = Metrics(settings.workers, tier_names(settings.stores))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    announce_here = partial(announce, f"{'http' if certificate is None else 'https'}://{host}:{port}")
    supervisor = _Supervisor(
        settings, guard, listener, metrics, announce_here, deny_list=deny_list, certificate=certificate
    )
    supervisor.run()


def reserve(host: str, port: int) -> socket.socket:
    """Bind a socket whose port further workers of this service can share (SO_REUSEPORT); it does not listen yet.

    Raises CannotListen, for a port in use once it has been for PORT_WAIT_S.
    """
    deadline = time.monotonic() + PORT_WAIT_S
    while True:
        try:
            return _reserve(host, port)
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE or time.monotonic() > deadline:
                raise CannotListen(_why_not(error, host, port)) from error
        time.sleep(PORT_POLL_S)


def _reserve(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port:
        with socket.socket(family) as alone:  # without SO_REUSEPORT, so that another service's port is not shared
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
    return _bind(family, host, port)


def _why_not(error: OSError | UnicodeError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"the host {host!r} cannot be resolved; give --host an address of this machine, as 127.0.0.1 or 0.0.0.0"
    start = f"{host} port {port} cannot be listened on: {error.strerror}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"{start}; choose another with --port"
        case errno.EADDRNOTAVAIL:
            return f"{start}; give --host an address of this machine, as 127.0.0.1 or 0.0.0.0"
        case errno.EACCES:
            return f"{start}; choose a port from 1024 on with --port, or grant the right to bind this one"
    return f"{start}; check --host and --port"


def _bind(family: int, host: str, port: int) -> socket.socket:
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


def _run(worker: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(worker)


class _Supervisor:
    """Lives as long as the service; forks before it ever has a loop or a thread, so that forking is safe."""

    def __init__(
        self,
        settings: Settings,
        guard: Guard,
        held: socket.socket,
        metrics: Metrics,
        announce: Callable[[], None],
        *,
        deny_list: DenyListFile,
        certificate: Certificate | None,
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._certificate = certificate
        self._held = held
        self._metrics = metrics
        self._deny_list = deny_list
        self._announce: Callable[[], None] | None = announce
        self._workers = dict[int, _Worker]()
        self._due = dict.fromkeys(range(settings.workers), 0.0)
        self._backoffs = [Backoff(*RESTART_S) for _ in range(settings.workers)]
        self._cut = set[Path]()
        self._started = set[int]()
        # Nobody writes to it: where its writing end is gone, so is this process, however it ended.
        self._lifeline, self._lifeline_held = os.pipe()

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
            self._deny_list.refresh()  # what a new worker holds on to where the file is broken by then
        self._stop()

    def _start(self, number: int) -> None:
        host, port = self._held.getsockname()[:2]
        listener = _bind(self._held.family, host, port)
        announce, self._announce = self._announce, None  # the first worker's to say, once
        patience_s = PATIENCE_S if number in self._started and self._settings.workers > 1 else 0.0
        self._started.add(number)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(self._lifeline_held)
                self._held.close()
                self._metrics.use_slot(number)
                _run(
                    work(
                        self._settings,
                        self._guard,
                        listener,
                        self._metrics,
                        self._lifeline,
                        certificate=self._certificate,
                        announce=announce,
                        deny_list=self._deny_list,
                        patience_s=patience_s,
                        scrubs=number == 0,
                    )
                )
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
            if code in FATAL:
                self._report_cut_files()

    def _report_cut_files(self) -> None:
        """Say which files of releases are not whole, each once: a worker refuses them when it starts."""
        for url in self._settings.stores:
            if scheme_of(url) == "file":
                try:
                    cut = set(damaged_files(open_url(url).folder)) - self._cut
                except (OSError, StoreError):
                    log.exception("the files of %s cannot be checked", url)
                    continue
                for path in sorted(cut):
                    log.error("%s is not whole any more, and is not read again; restore it, or publish again", path)
                self._cut |= cut

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
    guard: Guard,
    listener: socket.socket,
    metrics: Metrics,
    lifeline: int,
    *,
    certificate: Certificate | None = None,
    announce: Callable[[], None] | None = None,
    deny_list: DenyListFile | None = None,
    patience_s: float = 0.0,
    scrubs: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was accepted and return.

    The same at once, within ORPHAN_DRAIN_S, when *lifeline*, the reading end of a pipe that the parent holds open, has
    ended. It listens once it has tried to read its stores, and, for *patience_s* at most, has a release to serve; then
    *announce* is called. One that *scrubs* also reads what is served in the background, where the settings say so.
    """
    reader = open_reader(settings.stores, budget_s=settings.budget_s, metrics=metrics, deny_list=deny_list)
    reader.warm = True
    dispatcher = Dispatcher(reader, guard, cors_origins=settings.cors_origins)
    dispatcher.handlers.watched = [*guard.watched, *([certificate.watched] if certificate else [])]
    server = Server(dispatcher, settings.limits)
    stop, orphaned = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def end_alone() -> None:
        loop.remove_reader(lifeline)
        orphaned.set()
        stop.set()

    loop.add_reader(lifeline, end_alone)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)  # the parent blocks them; one that came meanwhile is taken now
    scrub_rows_per_s = settings.scrub_rows_per_s if scrubs else 0.0
    async with (
        reader,
        following(dispatcher.handlers.watched),
        _watching(reader.deny_list),
        _scrubbing(settings, reader, rows_per_s=scrub_rows_per_s),
    ):
        for task in reader.following:
            task.add_done_callback(lambda _: stop.set())  # it ends only by a defect: better replaced than stale
        stopping = asyncio.create_task(stop.wait())
        preparing = asyncio.create_task(_prepared(reader, patience_s))
        await asyncio.wait((stopping, preparing), return_when=asyncio.FIRST_COMPLETED)
        preparing.cancel()
        listening = server.listen(listener, BACKLOG, certificate.context if certificate else None)
        if announce is not None:
            announce()
        gc.collect()
        gc.freeze()  # what is here now stays: full collections need not walk it
        await stopping

        dispatcher.drain()
        await asyncio.sleep(0)  # connections that were complete before the stop are taken in
        listening.close()
        if orphaned.is_set():
            log.warning("the parent of this worker is gone; it ends, too")
        else:
            await _linger(server)
        server.pre_shutdown()
        await server.shutdown(min(settings.drain_s, ORPHAN_DRAIN_S) if orphaned.is_set() else settings.drain_s)
        for task in reader.following:
            if task.done():
                task.result()


async def _prepared(reader: TieredReader, patience_s: float) -> None:
    await reader.wait_until_attempted()
    with suppress(NotReady):
        await reader.wait_until_ready(patience_s)


@asynccontextmanager
async def _watching(deny_list: DenyListFile) -> AsyncIterator[None]:
    """Read the deny-list whenever its file changes, until the block ends."""
    task = asyncio.create_task(deny_list.watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _scrubbing(settings: Settings, reader: TieredReader, *, rows_per_s: float) -> AsyncIterator[None]:
    """Read what is served in the background until the block ends; at 0 rows a second nothing is read."""
    if rows_per_s == 0:
        yield
        return
    names = (tier.name for tier in reader.tiers)
    stores = {name: connect(url) for name, url in zip(names, settings.stores, strict=True)}
    task = asyncio.create_task(Scrubber(reader.tiers, stores, reader.metrics, rows_per_s).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _linger(server: Server) -> None:
    """Wait until every keep-alive client has closed as requested, LINGER_S at most."""
    deadline = asyncio.get_running_loop().time() + LINGER_S
    while server.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 -- aiohttp has no event for the end of its last connection
        await asyncio.sleep(0.01)
