"""The processes of a service: a parent that holds the ports, and the workers and the admin process that it replaces.

A worker that is alone has a parent, too: what kills a process that maps files, as a file that was cut under the map
does, must not end the service. The parent has neither a loop nor threads, so it can fork at any time. It waits for
signals and for probes, and once a second it looks after what it holds.
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
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import uvloop

from hotplate.serve.access.auth import guard_of, is_loopback
from hotplate.serve.access.oidc import verifier_of
from hotplate.serve.access.tls import Certificate, certificate_of
from hotplate.serve.api.cors import Cors
from hotplate.serve.connections.adapter import check_aiohttp
from hotplate.serve.connections.limits import within_memory
from hotplate.serve.connections.listeners import raise_descriptor_limit, reserve
from hotplate.serve.deny_list import DenyListFile
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.fold_in import load_numpy
from hotplate.serve.metrics import Metrics
from hotplate.serve.processes.admin import run_admin
from hotplate.serve.processes.health import Health, HealthListener, Heartbeats
from hotplate.serve.processes.kept_lists import KeptLists
from hotplate.serve.processes.logs import LogStream, SharedLog, SharedLogHandler
from hotplate.serve.processes.worker import STOPS, WATCHED, ProcessContext, work
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.states import SharedStates
from hotplate.serve.telemetry.access_log import read_secret
from hotplate.serve.telemetry.settings import TelemetrySettings
from hotplate.serve.tiers import tier_names
from hotplate.stores.connect import connect
from hotplate.stores.errors import StoreError
from hotplate.stores.event_log import LogSegment
from hotplate.stores.extras import extra_installed
from hotplate.stores.file.memory import room_bytes
from hotplate.stores.file.store import check_live_lockable, damaged_files, open_url
from hotplate.stores.throttle import Backoff
from hotplate.stores.urls import scheme_of

log = logging.getLogger(__name__)

# A worker that lived for so long did not die of its start.
HEALTHY_S = 5.0
# The first and the longest pause before a worker that died of its start is replaced.
RESTART_S = (0.1, 5.0)
# How much longer than its drain a worker is waited for before it is killed.
KILL_AFTER_S = 5.0
STDERR = 2
# How often the parent looks after its children and the files that it watches.
TICK_S = 1.0
# A child that has reported nothing for this long is stuck, and replaced: a worker sooner if another one answers.
STUCK_S = 30.0
STUCK_BESIDE_OTHERS_S = 6.0
# How long a child that is stuck has to log its stack.
STACK_S = 2.0
# How long the parent waits after a system call that failed, and how often it logs the same failure.
FAILED_PAUSE_S = 0.5
LOG_EVERY_S = 60.0
# What ends a process that reads a mapped file which was cut or is damaged.
FATAL = {-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT}


@dataclass(slots=True)
class _Child:
    number: int
    started: float


class Addresses(NamedTuple):
    """Where a service can be reached, as URLs."""

    service: str
    admin: str
    health: str


@dataclass(frozen=True, slots=True)
class _Listeners:
    """The sockets that the parent holds; all workers accept on that of *workers*."""

    workers: socket.socket
    admin: socket.socket
    health: socket.socket


def serve(settings: ServiceSettings, announce: Callable[[Addresses], None]) -> None:
    """Serve until SIGTERM, SIGHUP or SIGINT.

    *announce* is called once, when the first worker answers. Raises CannotListen, StoreMisused for a store or a
    deny-list that cannot be opened and if numpy is missing to fold in, or ServiceMisused for settings that cannot be.
    """
    check_aiohttp()
    Cors(settings.cors_origins)
    deny_list = DenyListFile(settings.deny_list)
    for url in (*settings.stores, *([settings.admin_store] if settings.admin_store else [])):
        connect(url)  # a wrong URL is better known here than in every worker
    if settings.fold_in:
        load_numpy()  # once for all workers
    if settings.events:
        _make_writable(settings.events)
    if settings.lock_memory:
        _check_lockable(settings.stores)
    if settings.telemetry is not None:
        _load_exporters(settings.telemetry)
    settings = replace(settings, limits=within_memory(settings.limits, settings.workers, room_bytes()))
    cpus = cpus_of_workers(settings)
    raise_descriptor_limit()
    guard = guard_of(settings, verifier_of(settings.oidc_issuer, settings.oidc_audience))
    certificate = certificate_of(settings)
    listener = reserve(settings.host, settings.port)
    admin = reserve(settings.admin_host, settings.admin_port, "admin-")
    if not is_loopback(admin.getsockname()[0]) and settings.keys is None and settings.oidc_issuer is None:
        raise ServiceMisused(
            f"{settings.admin_host} can be reached from other machines: give --keys FILE to say who is an operator "
            "(hotplate keys create --scope admin makes one), or --admin-host an address of loopback, as 127.0.0.1"
        )
    admin.listen()
    health = reserve(settings.health_host, settings.health_port, "health-")
    admin_certificate = None if is_loopback(admin.getsockname()[0]) else certificate
    addresses = Addresses(
        _url(settings.host, listener, certificate),
        _url(settings.admin_host, admin, admin_certificate),
        _url(settings.health_host, health, None),
    )
    context = ProcessContext(
        settings,
        guard,
        certificate,
        deny_list,
        Metrics(settings.workers, tier_names(settings.stores)),
        SharedStates(settings.workers, len(settings.stores)),
        KeptLists(settings.workers),
        SharedLog(settings.workers + 2),  # the workers', the admin process's and the parent's
        LogStream(STDERR),
        addresses.service,
        read_secret(settings.access_log_key),
    )
    context.stderr.take_over(logging.getLogger(), sys.stderr)
    logging.getLogger().addHandler(SharedLogHandler(context.log))
    _Supervisor(context, _Listeners(listener, admin, health), cpus, partial(announce, addresses)).run()


def _load_exporters(settings: TelemetrySettings) -> None:
    """Load the exporters of telemetry here, so all processes share their code, and what is wrong is known now."""
    with extra_installed("telemetry"):
        from hotplate.serve.telemetry.export import exporters_for  # noqa: PLC0415 -- an extra

    exporters_for(settings)


def cpus_of_workers(settings: ServiceSettings) -> list[set[int]]:
    """Return the CPU of each worker, of those that this process may use; nothing if they are not pinned.

    Raises ServiceMisused for more pinned workers than CPUs, and if a process cannot be pinned at all.
    """
    if not settings.pin_workers:
        return []
    if not hasattr(os, "sched_getaffinity"):
        raise ServiceMisused("--pin-workers needs Linux; leave it out")
    usable = sorted(os.sched_getaffinity(0))
    if settings.workers > len(usable):
        raise ServiceMisused(
            f"--pin-workers needs a CPU for each of {settings.workers} workers, and only {len(usable)} can be used; "
            f"give at most --workers {len(usable)}"
        )
    return [{cpu} for cpu in usable[: settings.workers]]


def _url(host: str, listener: socket.socket, certificate: Certificate | None) -> str:
    scheme, host = "http" if certificate is None else "https", f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


def _make_writable(events: Path) -> None:
    """Make the folder of events; ServiceMisused if nothing can be written to it, or files cannot be locked there."""
    try:
        events.mkdir(parents=True, exist_ok=True)
        LogSegment(events).close()
    except OSError as error:
        raise ServiceMisused(
            f"events cannot be written to {events}: {error.strerror}; name another folder with --events"
        ) from error


def _check_lockable(stores: Sequence[str]) -> None:
    """Look whether what is live can be locked in memory; what goes live later is served unlocked if it cannot."""
    folders = [open_url(url).folder for url in stores if scheme_of(url) == "file"]
    if not folders:
        raise ServiceMisused("--lock-memory is for file:// stores, and none is served; leave it out")
    for folder in folders:
        check_live_lockable(folder)


def _run(child: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(child)


class _SignalQueue:
    """The signals that the parent has caught, as what a selector can wait for; lives as long as the parent."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        """Block the signals, and let *selector* see those that `waiting` lets through."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in WATCHED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP is with nohup
                signal.signal(number, lambda _, __: None)  # so its number is written to the queue
        selector.register(self._reading, selectors.EVENT_READ)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let signals through until the block ends."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)

    def caught(self) -> list[signal.Signals]:
        """Return the signals that were caught since the last call, in their order."""
        try:
            return [signal.Signals(number) for number in self._reading.recv(4096)]
        except BlockingIOError:
            return []

    def leave(self) -> None:
        """Forget the parent's signals in a child, which must not write into its queue; they stay blocked."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._reading.close()
        self._writing.close()


class _Supervisor:
    """Lives as long as the service; forks before it ever has a loop or a thread, so forking is safe.

    Its children have numbers: the workers from 0 on, and after them the admin process.
    """

    def __init__(
        self,
        context: ProcessContext,
        listeners: _Listeners,
        cpus: Sequence[set[int]],
        announce: Callable[[], None],
    ) -> None:
        self._context = context
        self._settings = settings = context.settings
        self._listeners = listeners
        self._cpus = cpus
        self._announce: Callable[[], None] | None = announce
        self._admin_number = settings.workers
        self._children = dict[int, _Child]()
        self._due = dict.fromkeys((self._admin_number, *range(settings.workers)), 0.0)
        self._backoffs = [Backoff(*RESTART_S) for _ in self._due]
        self._cut = set[Path]()
        self._aborted: tuple[int, float] | None = None
        self._tick_due = self._log_due = 0.0
        # It is never written to: if its writing end is gone, so is this process, however it ended.
        self._lifeline, self._lifeline_held = os.pipe()
        selector = selectors.PollSelector()  # unlike epoll's it is nothing that children would share
        self._selector = selector
        self._signals = _SignalQueue(selector)
        self._heartbeats = Heartbeats(context.states)
        self._health = Health(context.states, self._heartbeats)
        self._health_listener = HealthListener(listeners.health, selector, self._health.routes)

    def run(self) -> None:
        """Keep every child running until SIGTERM, SIGHUP or SIGINT, then stop them."""
        gc.freeze()  # shared with the children, page by page, until one of them writes to it
        stop: signal.Signals | None = None
        while stop is None:
            try:
                stop = self._take_turn()
            except OSError as error:  # whatever is short, the children that run are better than none
                self._report_failure(f"the parent of the workers: {error}")
                time.sleep(FAILED_PAUSE_S)
        self._stop(stop)

    def _take_turn(self) -> signal.Signals | None:
        """Start the children that are due, wait, and bury the dead; return the signal that ends the service."""
        now = time.monotonic()
        for number, due in list(self._due.items()):
            if due <= now:
                self._start(number)
        stop = self._wait(min(self._tick_due, *self._due.values(), now + TICK_S))
        self._replace_dead()
        if stop is None and time.monotonic() >= self._tick_due:
            self._tick_due = time.monotonic() + TICK_S
            self._tick()
        return stop

    def _report_failure(self, sentence: str) -> None:
        if time.monotonic() >= self._log_due:
            self._log_due = time.monotonic() + LOG_EVERY_S
            log.error("%s; tried again until it succeeds", sentence)

    def _tick(self) -> None:
        """Look after the children, the log and the files."""
        self._heartbeats.check()
        self._end_stuck()
        self._context.stderr.report_dropped()
        for each in self._context.watched:
            each.poll()  # a new worker begins with what the others use, though the file may be broken by then

    def _wait(self, until: float) -> signal.Signals | None:
        """Answer probes until a signal comes, or until then by the clock; return the signal if it is to stop."""
        timeout_s = max(0.0, min(until, self._health_listener.next_deadline) - time.monotonic())
        with self._signals.waiting():
            ready = self._selector.select(timeout_s)
        for key, _ in ready:
            if key.data is not None:
                key.data()
        self._health_listener.close_late()
        return next((caught for caught in self._signals.caught() if caught in STOPS), None)

    def _start(self, number: int) -> None:
        is_admin = number == self._admin_number
        listener = self._listeners.admin if is_admin else self._listeners.workers
        self._heartbeats.started(number)
        try:
            pid = os.fork()
        except OSError as error:
            self._due[number] = time.monotonic() + self._backoffs[number].next_s()
            self._report_failure(f"{self._name(number)} cannot be started: {error.strerror}")
            return
        announce = None
        if not is_admin:
            announce, self._announce = self._announce, None  # the first worker's to say, once
        if pid == 0:
            code = 1
            try:
                self._leave(keep_admin=is_admin)
                faulthandler.enable()  # one that is aborted, or reads a file that was cut, logs where it was
                if self._cpus and not is_admin:
                    os.sched_setaffinity(0, self._cpus[number])
                _name_process(self._name(number))
                if is_admin:
                    _run(run_admin(self._context, listener, self._lifeline))
                else:
                    _run(work(self._context, number, listener, self._lifeline, announce))
                code = 0
            except BaseException:  # whatever it is, it must not go on as a second parent
                log.exception("%s failed", self._name(number))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                self._context.stderr.flush()
                os._exit(code)
        del self._due[number]
        self._children[pid] = _Child(number, time.monotonic())

    def _leave(self, *, keep_admin: bool) -> None:
        """Let go in a child of what is the parent's."""
        os.close(self._lifeline_held)
        self._signals.leave()
        self._context.stderr.forget()
        self._health_listener.leave()
        (self._listeners.workers if keep_admin else self._listeners.admin).close()

    def _name(self, number: int) -> str:
        return "admin process" if number == self._admin_number else f"worker {number}"

    def _replace_dead(self) -> None:
        for child, code in self._ended():
            backoff, pause_s = self._backoffs[child.number], 0.0
            if time.monotonic() - child.started < HEALTHY_S:
                pause_s = backoff.next_s()
            else:
                backoff.reset()
            self._due[child.number] = time.monotonic() + pause_s
            log.warning("%s ended with %d; another starts in %.1f s", self._name(child.number), code, pause_s)
            if code in FATAL:
                self._report_cut_files()

    def _end_stuck(self) -> None:
        """End a child that has said nothing for too long, so another takes its place.

        That is one at a time, and one worker until its successor has spoken: if all are stuck, they wait for the same
        thing, and perhaps it comes.
        """
        if self._aborted is not None:
            pid, at = self._aborted
            if pid not in self._children:
                self._aborted = None
            elif time.monotonic() - at > STACK_S:
                os.kill(pid, signal.SIGKILL)
            return
        pids = {child.number: pid for pid, child in self._children.items()}
        stuck = [number for number in pids if self._heartbeats.silent_s(number) > self._patience_s(number)]
        workers = pids.keys() - {self._admin_number}
        begun = {number for number in workers if not self._heartbeats.has_spoken(number)}
        if len(workers) < self._settings.workers or begun.difference(stuck):
            stuck = [number for number in stuck if number == self._admin_number]
        if not stuck:
            return
        number = max(stuck, key=self._heartbeats.silent_s)
        pid = pids[number]
        log.error(
            "%s (process %d) has said nothing for %.0f s and is ended; its stack follows",
            self._name(number),
            pid,
            self._heartbeats.silent_s(number),
        )
        self._aborted = pid, time.monotonic()
        os.kill(pid, signal.SIGABRT)
        os.kill(pid, signal.SIGCONT)  # one that was stopped takes the other signal only then

    def _patience_s(self, number: int) -> float:
        is_needed = number == self._admin_number or not self._context.states.is_another_answering(number)
        return STUCK_S if is_needed else min(STUCK_S, STUCK_BESIDE_OTHERS_S)

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

    def _ended(self) -> Iterator[tuple[_Child, int]]:
        """Yield every child that ended since the last call, with its exit code (a signal is negative).

        As the first process of a container it is also given children that it did not start, and buries them.
        """
        with suppress(ChildProcessError):  # there are none any more
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                child = self._children.pop(pid, None)
                if child is None:
                    continue
                self._context.states.clear(child.number)
                yield child, os.waitstatus_to_exitcode(status)

    def _stop(self, caught_first: signal.Signals) -> None:
        """Pass the stop on, wait for the drain, and kill what does not end; the admin process outlives the workers."""
        self._health.draining = True
        self._listeners.workers.close()  # the workers close theirs, each when it stops accepting
        at_once = caught_first is signal.SIGINT
        self._signal(signal.SIGINT if at_once else signal.SIGTERM, workers=True)
        delay_s = 0.0 if at_once else self._settings.drain_delay_s
        deadline = time.monotonic() + delay_s + self._settings.drain_s + KILL_AFTER_S
        while self._children and time.monotonic() < deadline:
            if all(child.number == self._admin_number for child in self._children.values()):
                self._signal(signal.SIGTERM, workers=False)
            if self._wait(min(deadline, time.monotonic() + TICK_S)) is not None:
                break  # the second signal: stop at once
            for child, code in self._ended():
                log.info("%s ended with %d", self._name(child.number), code)
        for workers in (True, False):
            self._signal(signal.SIGKILL, workers=workers)

    def _signal(self, number: signal.Signals, *, workers: bool) -> None:
        """Signal the workers, or else the admin process."""
        for pid, child in self._children.items():
            if workers == (child.number != self._admin_number):
                os.kill(pid, number)


def _name_process(name: str) -> None:
    """Let `ps` and `top` show which child a process is; of the name, 15 characters."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"hp {name}")
