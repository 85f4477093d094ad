"""A worker process: one event loop with a reader and a server."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from hotplate.serve.api.app import Dispatcher
from hotplate.serve.api.events import EventsHandler
from hotplate.serve.connections.fast_lane import lane_of
from hotplate.serve.connections.listeners import Acceptor
from hotplate.serve.connections.server import HttpServer
from hotplate.serve.encoded_lists import NotReady
from hotplate.serve.events import EventWriter
from hotplate.serve.metrics import CANARY, DROPPED_LINES, LIVE, OTHER_RELEASE, ReleaseRole
from hotplate.serve.processes.context import ProcessContext, ServiceMemory
from hotplate.serve.reader import TieredReader
from hotplate.serve.releases.probation import ReleaseCounter
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.shared_consumed import ConsumedSender, stream_url
from hotplate.serve.states import STARTING, ProcessState, Reporter, SharedStates, short
from hotplate.serve.tasks import background
from hotplate.serve.telemetry.access_log import AccessLog
from hotplate.serve.telemetry.spans import Tracer
from hotplate.serve.tiers import loop_time
from hotplate.serve.watched import catch_up, follow

if TYPE_CHECKING:
    from hotplate.serve.telemetry.export import SpanQueue

log = logging.getLogger(__name__)

# Signals that stop the service; a closed terminal sends SIGHUP.
STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# Blocked around a fork, until the child has its own handlers.
WATCHED = {signal.SIGCHLD, *STOPS}
BACKLOG = 1024
# How long a worker waits for a release while another one answers, and poll interval.
READY_TIMEOUT_S = 10.0
PATIENCE_POLL_S = 0.1
# Time for requests and spans if the parent was killed.
ORPHAN_DRAIN_S = 0.5
# Time to send the last spans.
FLUSH_S = 2.0
# How long a thread that loads a release or a file may keep the event loop waiting; Python's default is ten times this.
SWITCH_S = 0.0005


class _ShutdownSignals:
    def __init__(self, lifeline: int) -> None:
        self.requested = asyncio.Event()
        self.at_once = asyncio.Event()
        self.orphaned = False
        self._lifeline = lifeline
        loop = asyncio.get_running_loop()
        loop.add_reader(lifeline, self._end_alone)
        loop.add_signal_handler(signal.SIGTERM, self.requested.set)
        loop.add_signal_handler(signal.SIGINT, self.request_at_once)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # a terminal sends it to all; the parent handles it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

    def request_at_once(self, _: object = None) -> None:
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
    """Serve until SIGTERM or SIGINT, then finish accepted requests; *announce* is called once it listens.

    If the parent, which holds *lifeline* open, is gone, it ends within ORPHAN_DRAIN_S.
    """
    settings = context.settings
    certificate = context.certificate
    sharing = context.memory.sharing
    context.memory.metrics.use_slot(number)
    stop = _ShutdownSignals(lifeline)
    listening: Acceptor | None = None
    async with AsyncExitStack() as stack:
        reader, dispatcher = await _opened(context, stack, stop)
        server = HttpServer(dispatcher, settings.limits, None if settings.no_fast_lane else lane_of(dispatcher))
        handlers = dispatcher.handlers

        def complete(state: ProcessState) -> ProcessState:
            return msgspec.structs.replace(
                state,
                status=STARTING if listening is None else handlers.status,
                connections=len(server.registry),
                findings=short(handlers.findings),
                certificate_expires_at=certificate.expires_at if certificate else None,
                consumed_lag_s=None if sharing is None else sharing.lag_s,
            )

        reporter = Reporter(reader.tiers, complete)
        write = partial(_write, context, number, reader)
        await stack.enter_async_context(background(reporter.run(write)))
        if settings.probation_s:
            counter = ReleaseCounter(context.memory.releases, number, reader.tiers, context.memory.metrics)
            await stack.enter_async_context(background(counter.run()))
        if not await _is_prepared(reader, context.memory, number, stop):
            return
        has_most = partial(context.memory.balance.has_most, number)
        listening = server.listen(listener, BACKLOG, certificate, has_most)
        write(reporter.state())
        if announce is not None:
            announce()
        gc.collect()
        gc.freeze()  # full collections skip objects that live as long as the worker
        sys.setswitchinterval(SWITCH_S)
        await stop.requested.wait()
        dispatcher.drain()
        write(reporter.state())
        await _drain(settings, server, listening, stop, partial(context.memory.balance.leave, number))
        for task in filter(asyncio.Task.done, reader.following):
            task.result()


async def _opened(
    context: ProcessContext, stack: AsyncExitStack, stop: _ShutdownSignals
) -> tuple[TieredReader, Dispatcher]:
    settings = context.settings
    reader = TieredReader(
        settings.stores,
        budget_s=settings.budget_s,
        metrics=context.memory.metrics,
        deny_list=context.deny_list,
        cache_bytes=settings.cache_mb << 20,
        fold_in=settings.fold_in,
        kept=context.memory.kept.last(),
        warm=True,
    )
    tracer = None
    telemetry = settings.telemetry
    if telemetry is not None and telemetry.traces:
        from hotplate.serve.telemetry.export import SpanQueue  # noqa: PLC0415 -- an extra

        spans = SpanQueue(telemetry)
        stack.push_async_callback(_flush, spans, stop)
        tracer = Tracer(telemetry.sampling, spans.add, settings.scheme)
    await stack.enter_async_context(reader)
    await catch_up(context.watched)
    await stack.enter_async_context(background(follow(context.watched)))
    access_log = events = None
    if settings.access_log_share:
        access_log = AccessLog(
            settings.access_log_share,
            users=settings.access_log_users,
            secret=context.log_secret,
            write=context.stderr.write,
        )
    if settings.events:
        sender = _sender(context, reader)
        if sender is not None:
            stack.push_async_callback(sender.close)
        writer = EventWriter(settings.events)
        stack.push_async_callback(writer.close)
        events = EventsHandler(
            writer,
            partial(_role_of, reader),
            context.memory.metrics,
            settings.cors_origins,
            context.memory.consumed,
            sender=sender,
            with_keys=context.guard.knows_clients,
        )
    for task in reader.following:
        task.add_done_callback(stop.request_at_once)  # only a defect ends it; a new worker is better than stale lists
    return reader, Dispatcher(
        reader,
        context.guard,
        consumed=context.memory.consumed,
        cors_origins=settings.cors_origins,
        access_log=access_log,
        events=events,
        tracer=tracer,
        watched=context.watched,
    )


def _sender(context: ProcessContext, reader: TieredReader) -> ConsumedSender | None:
    memory = context.memory
    url = stream_url(context.settings)
    if url is None or memory.consumed is None or memory.sharing is None:
        return None
    return ConsumedSender(
        url, consumed=memory.consumed, state=memory.sharing, metrics=memory.metrics, is_erased=reader.is_erased
    )


def _role_of(reader: TieredReader, release: str) -> ReleaseRole:
    followers = [tier.follower for tier in reader.tiers]
    if any(follower.served is not None and follower.served.id == release for follower in followers):
        return LIVE
    is_canary = any(follower.canary is not None and follower.canary.served.id == release for follower in followers)
    return CANARY if is_canary else OTHER_RELEASE


def _write(context: ProcessContext, number: int, reader: TieredReader, state: ProcessState) -> None:
    context.memory.states.write(number, state)
    context.memory.balance.update(number, state.connections)
    context.memory.metrics.count_in(DROPPED_LINES, number=context.stderr.take_dropped())
    first_served = reader.first_served
    if first_served is not None:
        tier, served = first_served
        context.memory.kept.keep(number, tier, served)


async def _is_prepared(reader: TieredReader, memory: ServiceMemory, number: int, stop: _ShutdownSignals) -> bool:
    """Return False if the worker is stopped before it may listen."""

    async def prepare() -> None:
        if memory.sharing is not None:
            await memory.sharing.wait_until_started()
        await prepared(reader, memory.states, number)

    stopping = asyncio.create_task(stop.requested.wait())
    preparing = asyncio.create_task(prepare())
    await asyncio.wait((stopping, preparing), return_when=asyncio.FIRST_COMPLETED)
    for task in (stopping, preparing):
        task.cancel()
    return not stop.requested.is_set()


async def prepared(reader: TieredReader, states: SharedStates, number: int) -> None:
    """Wait up to READY_TIMEOUT_S until there is a release or no other worker answers."""
    await reader.wait_until_attempted()
    deadline = loop_time() + READY_TIMEOUT_S
    while loop_time() < deadline and states.is_another_answering(number):
        with suppress(NotReady):
            await reader.wait_until_ready(PATIENCE_POLL_S)
            return


async def _drain(
    settings: ServiceSettings,
    server: HttpServer,
    listening: Acceptor,
    stop: _ShutdownSignals,
    stop_accepting: Callable[[], None],
) -> None:
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


async def _flush(spans: "SpanQueue", stop: _ShutdownSignals) -> None:
    await asyncio.to_thread(spans.close, ORPHAN_DRAIN_S if stop.orphaned else FLUSH_S)
