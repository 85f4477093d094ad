"""The parent process of a service: holds the sockets, and starts and replaces the workers and the admin process.

Even a single worker needs a parent: cutting a file kills processes that map it. The parent has no event loop or
threads, so it can fork at any time.
"""

import asyncio
import faulthandler
import gc
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import uvloop

from hotplate.serve.access.auth import is_loopback
from hotplate.serve.connections.fast_lane import LANE_MISSING, lane_state
from hotplate.serve.connections.listeners import raise_descriptor_limit, reserve, within_memory
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.log_once import LOG_EVERY_S, LogOnce
from hotplate.serve.processes.admin import run_admin
from hotplate.serve.processes.context import ProcessContext, create_context
from hotplate.serve.processes.health import Child, Health, HealthListener
from hotplate.serve.processes.worker import STOPS, WATCHED, run_worker
from hotplate.serve.settings import ServiceSettings
from hotplate.stores.folders import room_bytes

log = logging.getLogger(__name__)

# A worker that has reported and lived this long did not fail at its start.
HEALTHY_S = 5.0
# Time after the drain before a worker is killed.
KILL_AFTER_S = 5.0
TICK_S = 1.0
# Silence after which a child is replaced; the second if another worker can answer.
STUCK_S = 30.0
STUCK_BESIDE_OTHERS_S = 6.0
# Pause after a failed system call.
FAILED_PAUSE_S = 0.5


class Addresses(NamedTuple):
    """URLs of a service."""

    service: str
    admin: str
    health: str


@dataclass(frozen=True, slots=True)
class _Listeners:
    workers: socket.socket
    admin: socket.socket
    health: socket.socket


def serve(settings: ServiceSettings, announce: Callable[[Addresses], None]) -> None:
    """Run a service: check its settings, reserve its addresses, and supervise its processes until a signal.

    The processes are workers, which answer requests, and the admin process. Returns after SIGTERM, SIGHUP or SIGINT.
    *announce* is called with the addresses when the first worker answers. Raises CannotListen, ServiceMisused for
    invalid settings or files, and StoreMisused for an invalid store URL or a missing package.
    """
    settings = replace(settings, limits=within_memory(settings.limits, settings.workers, room_bytes()))
    raise_descriptor_limit()

    context = create_context(settings)
    listeners = _reserve_addresses(settings)
    admin_is_local = is_loopback(listeners.admin.getsockname()[0])
    addresses = Addresses(
        _url(settings.scheme, settings.host, listeners.workers),
        _url("http" if admin_is_local else settings.scheme, settings.admin_host, listeners.admin),
        _url("http", settings.health_host, listeners.health),
    )

    context.stderr.replace_stderr()
    logging.getLogger().addHandler(context.log)
    if lane_state(off=settings.no_fast_lane) == "missing":
        log.warning("%s", LANE_MISSING)
    _Supervisor(context, listeners, addresses, announce).run()


def _reserve_addresses(settings: ServiceSettings) -> _Listeners:
    """Bind the sockets of the workers, the admin process and health probes; raises CannotListen.

    Each of the last two listens before another is bound, because the system lets two sockets bind one address as long
    as neither listens. Raises ServiceMisused for an admin address that other machines reach and that needs no key.
    """
    admin = reserve(settings.admin_host, settings.admin_port, "admin-")
    if not is_loopback(admin.getsockname()[0]) and settings.keys is None and settings.oidc_issuer is None:
        raise ServiceMisused(
            f"{settings.admin_host} can be reached from other machines: give --keys FILE with a key for operators "
            "(hotplate keys create --scope admin makes one), or --admin-host an address of loopback, as 127.0.0.1"
        )
    admin.listen()
    health = reserve(settings.health_host, settings.health_port, "health-")
    health.listen()
    return _Listeners(reserve(settings.host, settings.port), admin, health)


def _url(scheme: str, host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _Signals:
    """Signals end the parent's wait through a socket."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in WATCHED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, lambda *_: None)
        selector.register(self._reading, selectors.EVENT_READ, lambda: None)

    def caught_stop(self) -> signal.Signals | None:
        with suppress(BlockingIOError):
            return next((signal.Signals(number) for number in self._reading.recv(4096) if number in STOPS), None)
        return None

    def leave(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._reading.close()
        self._writing.close()


def _one_byte_pipe() -> int:
    """Return the reading end of a pipe with one byte."""
    reading, writing = os.pipe()
    os.write(writing, b"1")
    os.close(writing)
    return reading


class _Supervisor:
    def __init__(
        self,
        context: ProcessContext,
        listeners: _Listeners,
        addresses: Addresses,
        announce: Callable[[Addresses], None],
    ) -> None:
        self._context = context
        self._settings = settings = context.settings
        self._listeners = listeners
        self._addresses = addresses
        self._announce = announce
        self._unannounced = _one_byte_pipe()
        self._workers = [Child(number, f"worker {number}") for number in range(settings.workers)]
        self._admin = Child(settings.workers, "admin process")
        self._children = [self._admin, *self._workers]
        self._tick_due = 0.0
        self._failing = LogOnce(again_s=LOG_EVERY_S)
        # Becomes readable when this process is gone.
        self._lifeline, self._lifeline_held = os.pipe()
        self._selector = selectors.PollSelector()  # children would share an epoll
        self._signals = _Signals(self._selector)
        self._health = Health(context.states, self._workers, self._admin)
        self._probes = HealthListener(listeners.health, self._selector, self._health.routes)

    def run(self) -> None:
        gc.freeze()  # keeps pages shared with the children
        stop: signal.Signals | None = None
        while stop is None:
            try:
                stop = self._supervise_once()
            except OSError as error:  # no failed system call may end the service
                self._report_failure("the parent of the workers", error)
                time.sleep(FAILED_PAUSE_S)
        self._stop(stop)
        for number in STOPS:  # further ones; at its exit, Python would restore handlers that end the process
            signal.signal(number, signal.SIG_IGN)
        self._signals.leave()  # children that were killed still send SIGCHLD

    def _supervise_once(self) -> signal.Signals | None:
        """Start child processes that are due, wait for an event, and plan restarts of children that have ended.

        An event is a health probe, a signal, the next start of a child, or a tick. In each tick, every TICK_S, a child
        that has stopped reporting is ended. Returns the signal if one requests to stop.
        """
        for child in self._children:
            if not child.pid and child.due <= time.monotonic():
                self._fork_child(child)

        next_starts = [child.due for child in self._children if not child.pid]
        self._answer_probes(until=min([self._tick_due, *next_starts]))

        stop = self._signals.caught_stop()
        for child, code in self._reap_ended_children():
            self._plan_restart(child, code)

        if stop is None and time.monotonic() >= self._tick_due:
            self._tick_due = time.monotonic() + TICK_S
            self._health.look()
            self._end_silent_child()
            self._context.stderr.flush()
        return stop

    def _report_failure(self, subject: str, error: OSError) -> None:
        if self._failing.met(error.errno):
            log.error("%s: %s; tried again until it succeeds", subject, error.strerror or error)

    def _answer_probes(self, until: float) -> None:
        """Wait until a time, a signal or a probe, and answer the probe."""
        for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
            key.data()

    def _fork_child(self, child: Child) -> None:
        """Start a child process, a worker or the admin process; if that fails, plan another attempt after a pause."""
        # The child inherits the blocked signals, and unblocks them when it has handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        try:
            pid = os.fork()
            if pid == 0:
                self._run_child(child)  # does not return
        except OSError as error:
            child.due = time.monotonic() + child.backoff.next_s()
            self._report_failure(f"{child.name} cannot be started", error)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

        child.begin(pid)

    def _run_child(self, child: Child) -> NoReturn:
        """Do the work of *child*, a worker or the admin process, in the forked process, then exit.

        The exit code is 1 after an exception, which is logged.
        """
        code = 1
        try:
            self._close_parents_files(keep_admin=child is self._admin)
            faulthandler.enable()  # logs the stack when the child is aborted or reads a cut file
            with suppress(OSError):  # the name in `ps` and `top`
                Path("/proc/self/comm").write_text(f"hp {child.name}")

            context = self._context.in_slot(child.number)  # it counts in its own slot of the metrics
            if child is self._admin:
                work = run_admin(context, self._addresses.service, self._listeners.admin, self._lifeline)
            else:
                work = run_worker(context, child.number, self._listeners.workers, self._lifeline, self._announce_once)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(work)
            code = 0
        except BaseException:  # never return into the parent's loop
            log.exception("%s failed", child.name)
        finally:
            for stream in (sys.stdout, sys.stderr, self._context.stderr):
                stream.flush()
            os._exit(code)

    def _announce_once(self) -> None:
        """Announce the service in the first worker that answers, which takes the byte from the pipe of all workers."""
        if os.read(self._unannounced, 1):
            self._announce(self._addresses)

    def _close_parents_files(self, *, keep_admin: bool) -> None:
        os.close(self._lifeline_held)
        self._signals.leave()
        self._context.stderr.forget()
        self._probes.leave()
        if keep_admin:
            self._listeners.workers.close()
        else:
            self._listeners.admin.close()

    def _plan_restart(self, child: Child, code: int) -> None:
        pause_s = 0.0
        if child.reported_at and time.monotonic() - child.started >= HEALTHY_S:
            child.backoff.reset()
        else:
            pause_s = child.backoff.next_s()
        child.due = time.monotonic() + pause_s
        log.warning("%s ended with %d; another starts in %.1f s", child.name, code, pause_s)

    def _end_silent_child(self) -> None:
        """Abort the child process that has not reported for longest, if that is too long; kill it if it was aborted.

        SIGABRT makes a child log its stack and end. A suspended process does not handle it and is killed in a later
        tick; SIGCONT is not sent, because the process would accept connections before it handles the signal. At most
        one child ends in each tick, and no worker while another one starts, because all may wait for the same resource.
        """
        silent = self._silent_children()
        aborted = next((child for child in silent if child.is_aborted), None)  # in an earlier tick
        if aborted is not None:
            os.kill(aborted.pid, signal.SIGKILL)
            return

        child = max(silent, key=lambda child: child.silent_s, default=None)
        if child is None:
            return

        child.is_aborted = True
        log.error(
            "%s (process %d) has said nothing for %.0f s and is ended; its stack follows unless it is stopped",
            child.name,
            child.pid,
            child.silent_s,
        )
        os.kill(child.pid, signal.SIGABRT)

    def _silent_children(self) -> list[Child]:
        """Return the child processes that have not reported for too long, and may be ended.

        While a worker starts, within its time for that, no worker may be ended: only the admin process.
        """
        silent = [child for child in self._children if child.pid and child.silent_s > self._patience_s(child)]
        if any(worker.is_starting and worker not in silent for worker in self._workers):
            return [child for child in silent if child is self._admin]
        return silent

    def _patience_s(self, child: Child) -> float:
        """Return after how many seconds of silence a child is replaced."""
        is_needed = child is self._admin or not self._context.states.is_another_answering(child.number)
        return STUCK_S if is_needed else min(STUCK_S, STUCK_BESIDE_OTHERS_S)

    def _reap_ended_children(self) -> Iterator[tuple[Child, int]]:
        """Yield ended children and exit codes; as process 1 of a container, also reap orphans."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                for child in self._children:
                    if child.pid == pid:
                        child.pid = 0
                        self._forget(child)
                        yield child, os.waitstatus_to_exitcode(status)

    def _forget(self, child: Child) -> None:
        """Delete the state of a process that has ended; its counters stay."""
        self._context.states.clear(child.number)
        if child is not self._admin:
            self._context.balance.leave(child.number)

    def _stop(self, caught: signal.Signals) -> None:
        """Stop the workers, then the admin process, and kill those that have not ended in time.

        Workers answer for a delay, in which load balancers stop sending requests, then finish those that they have.
        SIGINT, Ctrl-C on a terminal, skips the delay. *caught* is the signal that requested the stop.
        """
        self._health.drain()
        self._listeners.workers.close()  # each worker closes its copy when it stops accepting

        if caught is signal.SIGINT:
            delay_s = 0.0
            self._send_signal(self._workers, signal.SIGINT)
        else:
            delay_s = self._settings.drain_delay_s
            self._send_signal(self._workers, signal.SIGTERM)
        deadline = time.monotonic() + delay_s + self._settings.drain_s + KILL_AFTER_S

        while any(child.pid for child in self._children) and time.monotonic() < deadline:
            if not any(worker.pid for worker in self._workers):  # in each turn, in case it had no handler yet
                self._send_signal([self._admin], signal.SIGTERM)

            self._answer_probes(until=min(deadline, time.monotonic() + TICK_S))
            if self._signals.caught_stop() is not None:
                break  # a second signal stops at once
            for child, code in self._reap_ended_children():
                log.info("%s ended with %d", child.name, code)

        self._send_signal([*self._workers, self._admin], signal.SIGKILL)  # those that still run

    def _send_signal(self, children: Sequence[Child], number: signal.Signals) -> None:
        for child in children:
            if child.pid:
                os.kill(child.pid, number)
