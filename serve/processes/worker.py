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
from typing import TYPE_CHECKING, Self

from hotplate.base.timing import loop_time
from hotplate.serve.api.app import Dispatcher
from hotplate.serve.api.events import EventsHandler
from hotplate.serve.connections.listeners import Acceptor
from hotplate.serve.connections.server import HttpServer, server_of
from hotplate.serve.consumed.sender import ConsumedSender
from hotplate.serve.errors import NotReady
from hotplate.serve.events.writer import EventWriter
from hotplate.serve.lists.reader import FIRST_READ_S, TieredReader
from hotplate.serve.metrics import DROPPED_LINES, LIVE, OTHER_RELEASE, ReleaseRole
from hotplate.serve.processes.context import ProcessContext
from hotplate.serve.processes.readiness import Status, WorkerReadiness
from hotplate.serve.processes.states import ProcessState, Reporter
from hotplate.serve.releases.live_counts import ReleaseCounter
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.tasks import background
from hotplate.serve.telemetry.access_log import AccessLog
from hotplate.serve.tiers.tier import tiers_of
from hotplate.serve.watched import catch_up, follow

if TYPE_CHECKING:
    from hotplate.serve.telemetry.tracing import Tracer

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


class ShutdownSignals:
    """Signals that stop a child process, and the death of its parent."""

    def __init__(self, lifeline: int, on_interrupt: Callable[[Self], None] = lambda _: None) -> None:
        """*lifeline* is a pipe that becomes readable when the parent process dies; *on_interrupt* handles SIGINT."""
        self.requested = asyncio.Event()
        """Set when the process is to stop."""

        self.at_once = asyncio.Event()
        """Set when it is to stop without a delay in which it accepts connections."""

        self.orphaned = False
        """Whether the parent is dead."""

        self._lifeline = lifeline
        loop = asyncio.get_running_loop()
        loop.add_reader(lifeline, self._end_alone)
        loop.add_signal_handler(signal.SIGTERM, self.requested.set)
        # A terminal sends these to all processes; the parent handles them.
        loop.add_signal_handler(signal.SIGINT, on_interrupt, self)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

    def request_at_once(self, _: object = None) -> None:
        """Stop without a delay."""
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
    announce: Callable[[], None],
) -> None:
    """Run a worker process: answer requests from the stores until SIGTERM or SIGINT, then finish those accepted.

    *number* is the worker's, from 0: its row in shared memory. *listener* is the bound socket that all workers share,
    and *announce* is called once this one accepts connections. *lifeline* is a pipe that becomes readable when the
    parent process dies; then the worker ends within ORPHAN_DRAIN_S. If the task that follows new releases fails, the
    worker stops and raises its exception, and another worker replaces it.
    """
    settings = context.settings
    stop = ShutdownSignals(lifeline, on_interrupt=ShutdownSignals.request_at_once)

    async with AsyncExitStack() as stack:
        tracer = _create_tracer(settings, stack, stop)
        reader = await _open_reader(context, stack, stop)
        await catch_up(context.watched)  # files of keys, certificates and deny-lists that changed before this fork
        await stack.enter_async_context(background(follow(context.watched)))
        dispatcher = _create_dispatcher(context, reader, tracer, stack)
        server = server_of(dispatcher, settings.limits, fast_lane=not settings.no_fast_lane)

        # Reports for the parent and the admin process, in shared memory.
        listening = asyncio.Event()
        reporter = Reporter(reader.tiers, partial(_own_state, context, dispatcher.readiness, server, listening))
        share = partial(_share, context, number, reader)
        await stack.enter_async_context(background(reporter.run(share)))
        if settings.probation_s:  # the admin process judges new releases by these counts
            counter = ReleaseCounter(context.comparisons, reader.tiers)
            await stack.enter_async_context(background(counter.run()))

        if not await _wait_until_ready_or_stopped(reader, context, number, stop):
            return

        acceptor = server.listen(
            listener,
            BACKLOG,
            certificate=context.certificate,
            has_most=lambda waited: context.balance.has_most(number, len(server.open), waited=waited),
        )
        listening.set()
        share(reporter.state())
        announce()
        _tune_interpreter()

        await stop.requested.wait()
        dispatcher.readiness.drain()
        share(reporter.state())
        await _stop_accepting(context, number, acceptor, stop)
        await _drain(settings, server, stop)

        for task in reader.following:
            if task.done():
                task.result()  # raises the defect that has ended it


def _tune_interpreter() -> None:
    """Keep pauses of the event loop short."""
    gc.collect()
    gc.freeze()  # full collections skip objects that live as long as the worker
    sys.setswitchinterval(SWITCH_S)


def _own_state(
    context: ProcessContext, readiness: WorkerReadiness, server: HttpServer, listening: asyncio.Event
) -> dict[str, object]:
    """Return the fields of the worker's state that are not of its stores; *listening* once it takes connections."""
    status, findings = readiness.check()
    certificate = context.certificate
    sharing = context.sharing
    return {
        "status": status if listening.is_set() else Status.STARTING,
        "connections": len(server.open),
        "findings": list(findings),
        "certificate_expires_at": certificate.expires_at if certificate else None,
        "consumed_lag_s": None if sharing is None else sharing.lag_s,
    }


def _share(context: ProcessContext, number: int, reader: TieredReader, state: ProcessState) -> None:
    """Write the *state* of a worker, by its number, to shared memory, and what else the worker shares.

    That is the number of its connections, of lost log lines, and the popular lists of the first live release, for
    workers that are started while no store can be read.
    """
    context.states.write(number, state)
    context.balance.update(number, state.connections)
    context.metrics.count_in(DROPPED_LINES, number=context.stderr.take_dropped())
    first_live = reader.first_live
    if first_live is not None:
        context.kept.keep(number, first_live)


async def _open_reader(context: ProcessContext, stack: AsyncExitStack, stop: ShutdownSignals) -> TieredReader:
    """Open the stores; *stack* closes them when the worker ends.

    Tasks of the reader follow new releases. If one fails, *stop* ends the worker.
    """
    settings = context.settings
    reader = TieredReader(
        tiers_of(settings.stores),
        budget_s=settings.budget_s,
        metrics=context.metrics,
        deny_list=context.deny_list,
        cache_bytes=settings.cache_mb << 20,
        fold_in=settings.fold_in,
        kept=context.kept.last(),
        warm=True,
        comparisons=context.comparisons,
    )
    await stack.enter_async_context(reader)
    for task in reader.following:
        # These tasks, which follow new releases, end only by a defect; a new worker is better than stale lists.
        task.add_done_callback(stop.request_at_once)
    return reader


def _create_dispatcher(
    context: ProcessContext, reader: TieredReader, tracer: "Tracer | None", stack: AsyncExitStack
) -> Dispatcher:
    """Create the dispatcher, which answers requests, with the access log and the events that the settings ask for.

    *stack* closes the files of events, and the connection to Redis, when the worker ends.
    """
    settings = context.settings

    access_log = None
    if settings.access_log_share:
        access_log = AccessLog(
            settings.access_log_share,
            users=settings.access_log_users,
            secret=context.log_secret,
            write=context.stderr.write,
        )

    events = None
    if settings.events:
        # Shares items that users have consumed with other services; None unless the settings ask for that.
        sender = None
        if context.sharing is not None:
            sender = ConsumedSender(context.sharing, context.metrics)
            stack.push_async_callback(sender.close)
        writer = EventWriter(settings.events)
        stack.push_async_callback(writer.close)
        events = EventsHandler(
            writer,
            partial(_role_of_release, reader),
            context.metrics,
            settings.cors_origins,
            context.consumed,
            sender=sender,
            with_keys=context.guard.knows_clients,
        )

    return Dispatcher(
        reader,
        context.guard,
        consumed=context.consumed,
        cors_origins=settings.cors_origins,
        access_log=access_log,
        events=events,
        tracer=tracer,
        watched=context.watched,
    )


def _create_tracer(settings: ServiceSettings, stack: AsyncExitStack, stop: ShutdownSignals) -> "Tracer | None":
    """Create the tracer, None without OpenTelemetry; *stack* sends the last spans when the worker ends."""
    telemetry = settings.telemetry
    if telemetry is None or not telemetry.traces:
        return None
    from hotplate.serve.telemetry.export import exporters_for  # noqa: PLC0415 -- an extra
    from hotplate.serve.telemetry.tracing import Tracer  # noqa: PLC0415 -- an extra

    tracer = Tracer(telemetry, exporters_for(telemetry).spans(), settings.scheme)
    stack.push_async_callback(_flush, tracer, stop)
    return tracer


def _role_of_release(reader: TieredReader, release: str) -> ReleaseRole:
    roles = {served.role for tier in reader.tiers for served in tier.follower.releases if served.id == release}
    if len(roles) > 1:  # live in a tier that is ahead of another one
        return LIVE
    return roles.pop() if roles else OTHER_RELEASE


async def _wait_until_ready_or_stopped(
    reader: TieredReader, context: ProcessContext, number: int, stop: ShutdownSignals
) -> bool:
    """Wait until the worker may listen, or is requested to stop; return whether it may listen."""
    stop_task = asyncio.create_task(stop.requested.wait())
    ready_task = asyncio.create_task(_wait_until_ready(reader, context, number))
    done, pending = await asyncio.wait((stop_task, ready_task), return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if ready_task in done:
        ready_task.result()  # raises a defect
    return not stop.requested.is_set()


async def _wait_until_ready(reader: TieredReader, context: ProcessContext, number: int) -> None:
    """Wait up to READY_TIMEOUT_S until there is a release or no other worker answers.

    If services share consumed items, it first waits until the admin process has received them, or cannot.
    """
    if context.sharing is not None:
        await context.sharing.wait_until_started()
    await reader.wait_until_attempted(FIRST_READ_S)
    deadline = loop_time() + READY_TIMEOUT_S
    while loop_time() < deadline and context.states.is_another_answering(number):
        with suppress(NotReady):
            await reader.wait_until_ready(PATIENCE_POLL_S)
            return


async def _stop_accepting(context: ProcessContext, number: int, acceptor: Acceptor, stop: ShutdownSignals) -> None:
    """Go on for `settings.drain_delay_s` seconds, then accept no more connections.

    A load balancer stops sending requests during the delay, which SIGINT and a dead parent end at once. Then the other
    workers ignore this one, *number*, when they divide new connections evenly.
    """
    with suppress(TimeoutError):  # the delay has passed
        await asyncio.wait_for(stop.at_once.wait(), context.settings.drain_delay_s)
    acceptor.close()
    context.balance.leave(number)


async def _drain(settings: ServiceSettings, server: HttpServer, stop: ShutdownSignals) -> None:
    """Finish requests and close connections, in `settings.drain_s` seconds."""
    if stop.orphaned:  # requests get only the time of the close
        log.warning("the parent of this worker is gone; it ends, too")
        ends_at = loop_time() + min(settings.drain_s, ORPHAN_DRAIN_S)
    else:
        ends_at = loop_time() + settings.drain_s
        await server.drain(ends_at - loop_time())
    await server.close(ends_at - loop_time())


async def _flush(tracer: "Tracer", stop: ShutdownSignals) -> None:
    await asyncio.to_thread(tracer.close, ORPHAN_DRAIN_S if stop.orphaned else FLUSH_S)
