"""What a worker does: one event loop with a reader and a server, from its start to a graceful end."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hotplate.serve.access.auth import Guard
from hotplate.serve.access.tls import Certificate
from hotplate.serve.api.app import Dispatcher
from hotplate.serve.api.events import EventsHandler
from hotplate.serve.connections.lane import Lane
from hotplate.serve.connections.listeners import Acceptor
from hotplate.serve.connections.server import HttpServer
from hotplate.serve.deny_list import DenyListFile
from hotplate.serve.events.writer import EventWriter
from hotplate.serve.metrics import CANARY, DROPPED_LINES, LIVE, OTHER_RELEASE, Metrics, ReleaseRole
from hotplate.serve.processes.logs import LogStream, SharedLog
from hotplate.serve.reader import NotReady, TieredReader, log_defect, open_reader
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.states import STARTING, KeptLists, Reporter, SharedStates, WorkerState
from hotplate.serve.telemetry.access_log import AccessLog
from hotplate.serve.telemetry.spans import Tracer
from hotplate.serve.tiers import loop_time
from hotplate.serve.watched import WatchedFiles, following

if TYPE_CHECKING:
    from hotplate.serve.telemetry.export import SpanQueue

log = logging.getLogger(__name__)

# What ends a service; a terminal that goes away sends SIGHUP to all of its processes.
STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# The signals that are blocked around a fork. A child takes them once it has its own handlers.
WATCHED = {signal.SIGCHLD, *STOPS}
BACKLOG = 1024
# How long a worker waits for a release before it listens, as long as another answers, and how often it looks.
READY_TIMEOUT_S = 10.0
PATIENCE_POLL_S = 0.1
# How long a worker whose parent was killed goes on answering what it accepted; it listens no more.
ORPHAN_DRAIN_S = 0.5
# How long a worker that has answered everything waits for its last spans to be sent.
FLUSH_S = 2.0


@dataclass(frozen=True, slots=True)
class ProcessContext:
    """What a process of the service gets from its parent."""

    settings: ServiceSettings
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
    log_secret: bytes
    """The secret with which users are hashed in the access log."""

    @property
    def watched(self) -> list[WatchedFiles]:
        """The files that are loaded again when they change."""
        certificate = [self.certificate.watched] if self.certificate else []
        return [*self.guard.watched, *certificate, *self.deny_list.watched]


class _ShutdownSignals:
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


async def run_worker(
    context: ProcessContext,
    number: int,
    listener: socket.socket,
    lifeline: int,
    announce: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was accepted and return.

    After SIGTERM it goes on accepting for a while, though it is not ready; after SIGINT it does not. When the parent,
    which holds *lifeline* open, is gone, all ends within ORPHAN_DRAIN_S. It listens once it has tried to read its
    stores, and has a release to serve or no other worker answers; then *announce* is called.
    """
    settings, certificate = context.settings, context.certificate
    context.metrics.use_slot(number)
    reader = _open_reader(context)
    spans = _span_queue(context)
    writer = EventWriter(settings.events) if settings.events else None
    dispatcher = _dispatcher(context, reader, spans, writer)
    server = HttpServer(dispatcher, settings.limits, None if settings.no_fast_lane else Lane(dispatcher))
    stop = _ShutdownSignals(lifeline)
    reporter = Reporter(reader.tiers, lambda: certificate.expires_at if certificate else None)
    reporter.status = lambda: STARTING
    reporter.findings = lambda: dispatcher.handlers.findings
    write = partial(_write, context, number, reader)
    async with AsyncExitStack() as stack:
        if spans is not None:
            stack.push_async_callback(_flush, spans, stop)
        await stack.enter_async_context(reader)
        await stack.enter_async_context(following(context.watched))
        await stack.enter_async_context(background(reporter.run(write)))
        if writer is not None:
            stack.push_async_callback(writer.close)
        for task in reader.following:
            task.add_done_callback(stop.request_at_once)  # it ends only by a defect: better replaced than stale
        if not await _is_prepared(reader, context.states, number, stop):
            return  # no client has connected yet

        def has_most(count: int, waited: bool) -> bool:  # noqa: FBT001 -- a callback
            return context.states.has_most_connections(number, count, waited=waited)

        listening = server.listen(listener, BACKLOG, certificate, has_most)
        reporter.status = lambda: dispatcher.handlers.status
        reporter.connections = lambda: len(server.registry)
        write(reporter.state())
        if announce is not None:
            announce()
        gc.collect()
        gc.freeze()  # what is here now stays: full collections need not walk it
        await stop.requested.wait()
        dispatcher.drain()
        write(reporter.state())
        await _drain(settings, server, listening, stop, partial(context.states.stop_accepting, number))
        for task in filter(asyncio.Task.done, reader.following):
            task.result()


async def _is_prepared(reader: TieredReader, states: SharedStates, number: int, stop: _ShutdownSignals) -> bool:
    """Wait until the worker may listen; False if it is to stop before."""
    stopping = asyncio.create_task(stop.requested.wait())
    preparing = asyncio.create_task(_prepared(reader, states, number))
    await asyncio.wait((stopping, preparing), return_when=asyncio.FIRST_COMPLETED)
    for task in (stopping, preparing):
        task.cancel()
    return not stop.requested.is_set()


async def _drain(
    settings: ServiceSettings,
    server: HttpServer,
    listening: Acceptor,
    stop: _ShutdownSignals,
    stop_accepting: Callable[[], None],
) -> None:
    """Accept until others have noticed the stop, then finish what was accepted."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.at_once.wait(), settings.drain_delay_s)
    listening.close()
    stop_accepting()
    ends_at = loop_time() + (min(settings.drain_s, ORPHAN_DRAIN_S) if stop.orphaned else settings.drain_s)
    if stop.orphaned:
        log.warning("the parent of this worker is gone; it ends, too")
    else:
        await server.drain(ends_at - loop_time())
    await server.close(ends_at - loop_time())


def _open_reader(context: ProcessContext) -> TieredReader:
    settings = context.settings
    reader = open_reader(
        settings.stores,
        budget_s=settings.budget_s,
        metrics=context.metrics,
        deny_list=context.deny_list,
        cache_bytes=settings.cache_mb << 20,
        fold_in=settings.fold_in,
        kept=context.kept.last(),
    )
    reader.warm = True
    return reader


def _span_queue(context: ProcessContext) -> "SpanQueue | None":
    """Begin to send this worker's spans; None if there are no traces."""
    telemetry = context.settings.telemetry
    if telemetry is None or not telemetry.traces:
        return None
    from hotplate.serve.telemetry.export import SpanQueue  # noqa: PLC0415 -- an extra

    return SpanQueue(telemetry, context.metrics.count_spans)


def _access_log(context: ProcessContext) -> AccessLog | None:
    """Return the access log that the settings request; None if they request none, so it costs nothing."""
    settings = context.settings
    if settings.access_log_share == 0 and settings.slow_request_ms is None:
        return None
    return AccessLog(
        settings.access_log_share,
        float("inf") if settings.slow_request_ms is None else settings.slow_request_ms / 1000,
        users=settings.access_log_users,
        secret=context.log_secret,
        write=context.stderr.write,
    )


def _write(context: ProcessContext, number: int, reader: TieredReader, state: WorkerState) -> None:
    """Write once a second a worker's state and its popular lists, and count the lines that its log lost."""
    context.states.write(number, state)
    context.metrics.count_in(DROPPED_LINES, number=context.stderr.report_dropped())
    if (first := reader.first_served) is not None:
        context.kept.keep(number, *first)


def _dispatcher(
    context: ProcessContext, reader: TieredReader, spans: "SpanQueue | None", writer: EventWriter | None
) -> Dispatcher:
    """Make what answers requests, with what looks at each of them on the way."""
    settings, tracer = context.settings, None
    if settings.telemetry is not None and spans is not None:
        tracer = Tracer(settings.telemetry.sampling, spans.add, settings.scheme)
    return Dispatcher(
        reader,
        context.guard,
        cors_origins=settings.cors_origins,
        access_log=_access_log(context),
        events=EventsHandler(
            writer,
            partial(_role_of, reader),
            context.metrics,
            settings.cors_origins,
            with_keys=context.guard.knows_clients,
        )
        if writer
        else None,
        tracer=tracer,
        watched=context.watched,
    )


async def _prepared(reader: TieredReader, states: SharedStates, number: int) -> None:
    """Wait until the stores were tried, and there is a release or no other worker that answers; PATIENCE_S at most."""
    await reader.wait_until_attempted()
    deadline = loop_time() + READY_TIMEOUT_S
    while loop_time() < deadline and states.is_another_answering(number):
        with suppress(NotReady):
            await reader.wait_until_ready(PATIENCE_POLL_S)
            return


def _role_of(reader: TieredReader, release: str) -> ReleaseRole:
    """Return what a release is for this worker."""
    followers = [tier.follower for tier in reader.tiers]
    if any(one.served is not None and one.served.id == release for one in followers):
        return LIVE
    is_canary = any(one.canary is not None and one.canary.served.id == release for one in followers)
    return CANARY if is_canary else OTHER_RELEASE


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do what has no end of its own until the block ends."""
    task = asyncio.create_task(work)
    task.add_done_callback(partial(log_defect, "work in the background has ended"))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _flush(spans: "SpanQueue", stop: _ShutdownSignals) -> None:
    await asyncio.to_thread(spans.close, ORPHAN_DRAIN_S if stop.orphaned else FLUSH_S)
