"""What a worker does: one event loop with a reader and a server, from its start to a graceful end."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from hotplate.serve.access.auth import Guard
from hotplate.serve.access.tls import Certificate
from hotplate.serve.api.app import Dispatcher
from hotplate.serve.connections.lane import Lane
from hotplate.serve.connections.server import Server
from hotplate.serve.deny_list import DenyListFile
from hotplate.serve.events.route import EventsHandler
from hotplate.serve.events.writer import EventWriter
from hotplate.serve.metrics import CANARY, LIVE, OTHER_RELEASE, Metrics, Role
from hotplate.serve.processes.access_log import open_access_log
from hotplate.serve.processes.kept_lists import KeptLists
from hotplate.serve.processes.log_stream import LogStream
from hotplate.serve.processes.shared_log import SharedLog
from hotplate.serve.processes.signals import WATCHED
from hotplate.serve.processes.states import STARTING, Reporter, SharedStates, WorkerState
from hotplate.serve.reader import NotReady, TieredReader, open_reader
from hotplate.serve.releases.scrubber import Scrubber
from hotplate.serve.settings import Settings
from hotplate.serve.telemetry.span_queue import SpanQueue, open_span_queue
from hotplate.serve.telemetry.spans import Tracer
from hotplate.serve.tiers import loop_time
from hotplate.serve.watched import WatchedFiles, following
from hotplate.stores.connect import connect

log = logging.getLogger(__name__)

BACKLOG = 1024
# How long a stopping worker lets idle keep-alive clients come once more, to be answered with `Connection: close`.
LINGER_S = 0.5
# How long a worker waits for a release before it listens, as long as another answers.
PATIENCE_S, PATIENCE_POLL_S = 10.0, 0.1
# How long a worker whose parent was killed goes on answering what it accepted; it listens no more.
ORPHAN_DRAIN_S = 0.5
# How long a worker that has answered everything waits for its last spans to be sent.
FLUSH_S = 2.0


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a process of the service gets from its parent."""

    settings: Settings
    guard: Guard
    certificate: Certificate | None
    deny_list: DenyListFile
    metrics: Metrics
    states: SharedStates
    kept: KeptLists
    log: SharedLog
    stderr: LogStream
    url: str
    """Where the workers answer."""
    started_at: float
    """When the service started, as Unix time."""
    log_secret: bytes
    """The secret with which users are hashed in the access log."""

    def use_slot(self, worker: int) -> None:
        """Count and log as worker number *worker* from now on."""
        self.metrics.use_slot(worker)
        self.log.use_slot(worker)

    @property
    def watched(self) -> list[WatchedFiles]:
        """The files that are loaded again when they change."""
        certificate = [self.certificate.watched] if self.certificate else []
        return [*self.guard.watched, *certificate, *self.deny_list.watched]


class _Stop:
    """Whether a worker is to stop, and how: takes the signals of the running loop, and the end of the parent."""

    def __init__(self, lifeline: int) -> None:
        self.requested, self.at_once = asyncio.Event(), asyncio.Event()
        self.orphaned = False
        self._lifeline = lifeline
        loop = asyncio.get_running_loop()
        loop.add_reader(lifeline, self._end_alone)
        loop.add_signal_handler(signal.SIGTERM, self.requested.set)
        loop.add_signal_handler(signal.SIGINT, self.request_at_once)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # a terminal's, for all processes: the parent passes it on
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)  # one that has come is taken now

    def request_at_once(self, _: object = None) -> None:
        """Stop without the delay in which others would notice."""
        self.at_once.set()
        self.requested.set()

    def _end_alone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._lifeline)
        self.orphaned = True
        self.request_at_once()


async def work(
    inherited: Inheritance,
    number: int,
    listener: socket.socket,
    lifeline: int,
    announce: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was accepted and return.

    After SIGTERM it goes on accepting for a while, though it is not ready; after SIGINT it does not. When the parent,
    which holds *lifeline* open, is gone, all ends within ORPHAN_DRAIN_S. It listens once it has tried to read its
    stores, and has a release to serve or no other worker answers; then *announce* is called. The first worker also
    reads what is served in the background, where the settings say so.
    """
    settings, guard, certificate = inherited.settings, inherited.guard, inherited.certificate
    inherited.use_slot(number)
    reader = _open_reader(inherited)
    spans = open_span_queue(settings.telemetry, inherited.metrics.count_spans)
    writer = EventWriter(settings.events) if settings.events else None
    dispatcher = _dispatcher(inherited, reader, spans, writer)
    handlers = dispatcher.handlers
    server = Server(dispatcher, settings.limits)
    dispatcher.gate = server.admit
    if not settings.no_fast_lane:
        server.lane = Lane(dispatcher)
    dispatcher.claim = server.claim if guard.knows_clients else None
    stop = _Stop(lifeline)
    reporter = Reporter(reader.tiers, lambda: certificate.expires_at if certificate else None)
    reporter.status = lambda: STARTING
    reporter.warnings, reporter.watched = lambda: handlers.warnings, handlers.watched
    write = partial(_write, inherited, number, reader)
    async with (
        _flushing(spans, lambda: ORPHAN_DRAIN_S if stop.orphaned else FLUSH_S),
        reader,
        following(handlers.watched),
        reporting(reporter, write),
        _writing(writer),
        _scrubbing(settings, reader, rows_per_s=settings.scrub_rows_per_s if number == 0 else 0.0),
    ):
        for task in reader.following:
            task.add_done_callback(stop.request_at_once)  # it ends only by a defect: better replaced than stale
        stopping = asyncio.create_task(stop.requested.wait())
        preparing = asyncio.create_task(_prepared(reader, inherited.states, number))
        await asyncio.wait((stopping, preparing), return_when=asyncio.FIRST_COMPLETED)
        preparing.cancel()
        if stop.requested.is_set():
            return  # no client has connected yet
        listening = server.listen(listener, BACKLOG, certificate.context if certificate else None)
        reporter.status = lambda: handlers.status
        reporter.connections = lambda: len(server.registry)
        write(reporter.state())
        if announce is not None:
            announce()
        gc.collect()
        gc.freeze()  # what is here now stays: full collections need not walk it
        await stopping

        dispatcher.drain()
        write(reporter.state())
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.at_once.wait(), settings.drain_delay_s)
        listening.close()
        if stop.orphaned:
            log.warning("the parent of this worker is gone; it ends, too")
        else:
            await _linger(server, settings.drain_s)
        server.pre_shutdown()
        await server.shutdown(min(settings.drain_s, ORPHAN_DRAIN_S) if stop.orphaned else settings.drain_s)
        for task in reader.following:
            if task.done():
                task.result()


def _open_reader(inherited: Inheritance) -> TieredReader:
    """Open the stores, with what the settings say of reading them."""
    settings = inherited.settings
    reader = open_reader(
        settings.stores,
        budget_s=settings.budget_s,
        metrics=inherited.metrics,
        deny_list=inherited.deny_list,
        cache_bytes=settings.cache_mb << 20,
        fold_in=settings.fold_in,
    )
    reader.warm = True
    reader.kept = inherited.kept.last()
    for tier in reader.tiers:
        tier.follower.lock_memory = settings.lock_memory
    return reader


def _write(inherited: Inheritance, number: int, reader: TieredReader, state: WorkerState) -> None:
    """Write once a second what a worker says of itself, whose keys it has seen, its log, and its popular lists."""
    inherited.states.write(number, state)
    inherited.guard.uses.record()
    inherited.metrics.count_dropped_lines(inherited.stderr.report_dropped())
    if (first := reader.first_served) is not None:
        inherited.kept.keep(*first)


def _dispatcher(
    inherited: Inheritance, reader: TieredReader, spans: SpanQueue | None, writer: EventWriter | None
) -> Dispatcher:
    """Make what answers requests, with what looks at each of them on the way."""
    settings, tracer = inherited.settings, None
    if settings.telemetry is not None and spans is not None:
        tracer = Tracer(settings.telemetry.sampling, spans.add, settings.scheme)
    dispatcher = Dispatcher(
        reader,
        inherited.guard,
        cors_origins=settings.cors_origins,
        access_log=open_access_log(settings, inherited.log_secret, inherited.stderr.write),
        events=EventsHandler(writer, partial(_role_of, reader), inherited.metrics) if writer else None,
        tracer=tracer,
    )
    dispatcher.handlers.watched, dispatcher.handlers.writer = inherited.watched, writer
    return dispatcher


async def _prepared(reader: TieredReader, states: SharedStates, number: int) -> None:
    """Wait until the stores were tried, and there is a release or no other worker that answers; PATIENCE_S at most."""
    await reader.wait_until_attempted()
    deadline = loop_time() + PATIENCE_S
    while loop_time() < deadline and states.is_another_answering(number):
        with suppress(NotReady):
            await reader.wait_until_ready(PATIENCE_POLL_S)
            return


def _role_of(reader: TieredReader, release: str) -> Role:
    """Return what a release is for this worker."""
    followers = [tier.follower for tier in reader.tiers]
    if any(one.served is not None and one.served.id == release for one in followers):
        return LIVE
    is_canary = any(one.canary is not None and one.canary.served.id == release for one in followers)
    return CANARY if is_canary else OTHER_RELEASE


@asynccontextmanager
async def _writing(writer: EventWriter | None) -> AsyncIterator[None]:
    """Write the events that still wait when the block ends."""
    try:
        yield
    finally:
        if writer is not None:
            await writer.close()


@asynccontextmanager
async def _flushing(spans: SpanQueue | None, within_s: Callable[[], float]) -> AsyncIterator[None]:
    """Send the last spans when the block has ended."""
    try:
        yield
    finally:
        if spans is not None:
            await asyncio.to_thread(spans.close, within_s())


@asynccontextmanager
async def reporting(reporter: Reporter, write: Callable[[WorkerState], None]) -> AsyncIterator[None]:
    """Write the state of this process time and again until the block ends."""
    task = asyncio.create_task(reporter.run(write))
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


async def _linger(server: Server, drain_s: float) -> None:
    """Wait until every keep-alive client has closed as requested, LINGER_S at most, and until the lane has answered."""
    now, registry = asyncio.get_running_loop().time, server.registry
    started = now()
    while (len(registry) and now() < started + LINGER_S) or (registry.awaiting and now() < started + drain_s):  # noqa: ASYNC110 -- there is no event for the end of the last connection
        await asyncio.sleep(0.01)
