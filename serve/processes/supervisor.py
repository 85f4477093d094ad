"""The processes of a service: a parent that holds the ports, and the workers and the admin process that it replaces.

A worker that is alone has a parent, too: what kills a process that maps files, as a file that was cut under the map
does, must not end the service. The parent has neither a loop nor threads, so that it can fork at any time.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvloop

from serve.access.auth import guard_of, is_loopback
from serve.access.oidc import verifier_of
from serve.access.tls import Certificate, certificate_of
from serve.api.cors import Cors
from serve.connections.acceptor import raise_descriptor_limit
from serve.connections.listeners import reserve, share
from serve.deny_list import DenyListFile
from serve.errors import ServiceMisused
from serve.metrics import Metrics
from serve.processes.access_log import read_secret
from serve.processes.admin import administer
from serve.processes.states import SharedStates
from serve.processes.worker import PATIENCE_S, WATCHED, Inheritance, work
from serve.settings import Settings
from serve.telemetry.settings import TelemetrySettings
from serve.tiers import tier_names
from stores.connect import connect
from stores.errors import StoreError
from stores.file.store import check_live_lockable, damaged_files, open_url
from stores.throttle import Backoff
from stores.urls import extra_installed, scheme_of

log = logging.getLogger(__name__)

# A worker that lived for so long did not die of its start.
HEALTHY_S = 5.0
# The first and the longest pause before a worker that died of its start is replaced.
RESTART_S = (0.1, 5.0)
# How much longer than its drain a worker is waited for before it is killed.
KILL_AFTER_S = 5.0
# What ends a process that reads a mapped file which was cut or is damaged.
FATAL = {-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT}


@dataclass(slots=True)
class _Child:
    number: int
    started: float


def serve(settings: Settings, announce: Callable[[str, str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    *announce* is called once, when the first worker answers, with its URL and that of the admin listener. Raises
    CannotListen, StoreMisused for a store or a deny-list that cannot be opened, or ServiceMisused for settings that
    cannot be.
    """
    Cors(settings.cors_origins)
    deny_list = DenyListFile(settings.deny_list)
    for url in (*settings.stores, *([settings.admin_store] if settings.admin_store else [])):
        connect(url)  # a wrong URL is better known here than in every worker
    if settings.lock_memory:
        _check_lockable(settings.stores)
    if settings.telemetry is not None:
        _load_exporters(settings.telemetry)
    cpus = cpus_of_workers(settings)
    raise_descriptor_limit()
    guard = guard_of(settings, verifier_of(settings.oidc_issuer, settings.oidc_audience))
    certificate = certificate_of(settings)
    listener = reserve(settings.host, settings.port)
    admin = reserve(settings.admin_host, settings.admin_port, "admin-", shared=False)
    if not is_loopback(admin.getsockname()[0]) and settings.keys is None and settings.oidc_issuer is None:
        raise ServiceMisused(
            f"{settings.admin_host} can be reached from other machines: give --keys FILE to say who is an operator "
            "(hotplate keys create --scope admin makes one), or --admin-host an address of loopback, as 127.0.0.1"
        )
    admin.listen()
    admin_certificate = None if is_loopback(admin.getsockname()[0]) else certificate
    urls = _url(settings.host, listener, certificate), _url(settings.admin_host, admin, admin_certificate)
    inherited = Inheritance(
        settings,
        guard,
        certificate,
        deny_list,
        Metrics(settings.workers, tier_names(settings.stores)),
        SharedStates(settings.workers, len(settings.stores)),
        read_secret(settings.access_log_key),
    )
    _Supervisor(inherited, listener, admin, cpus, partial(announce, *urls)).run()


def _load_exporters(settings: TelemetrySettings) -> None:
    """Load the exporters of telemetry here, so that all processes share their code, and what is wrong is known now."""
    with extra_installed("telemetry"):
        from serve.telemetry.sdk.exporters import exporters_for  # noqa: PLC0415 -- an extra

    exporters_for(settings)


def cpus_of_workers(settings: Settings) -> list[set[int]]:
    """Return the CPU of each worker, of those that this process may use; nothing where they are not pinned.

    Raises ServiceMisused for more pinned workers than CPUs, and where a process cannot be pinned at all.
    """
    if not settings.pin_workers:
        return []
    if not hasattr(os, "sched_getaffinity"):
        raise ServiceMisused("--pin-workers needs Linux; leave it out")
    usable = sorted(os.sched_getaffinity(0))
    if settings.workers > len(usable):
        raise ServiceMisused(
            f"--pin-workers gives each worker a CPU of its own, and there are {len(usable)} for {settings.workers} "
            f"workers; give at most --workers {len(usable)}"
        )
    return [{cpu} for cpu in usable[: settings.workers]]


def _url(host: str, listener: socket.socket, certificate: Certificate | None) -> str:
    scheme, host = "http" if certificate is None else "https", f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


def _check_lockable(stores: Sequence[str]) -> None:
    """Look whether what is live can be locked in memory; what goes live later is served unlocked where it cannot."""
    folders = [open_url(url).folder for url in stores if scheme_of(url) == "file"]
    if not folders:
        raise ServiceMisused("--lock-memory is for file:// stores, and none is served; leave it out")
    for folder in folders:
        check_live_lockable(folder)


def _run(child: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(child)


class _Supervisor:
    """Lives as long as the service; forks before it ever has a loop or a thread, so that forking is safe.

    Its children have numbers: the workers from 0 on, and after them the admin process.
    """

    def __init__(
        self,
        inherited: Inheritance,
        held: socket.socket,
        admin: socket.socket,
        cpus: Sequence[set[int]],
        announce: Callable[[], None],
    ) -> None:
        self._inherited = inherited
        self._settings = settings = inherited.settings
        self._held = held
        self._admin = admin
        self._cpus = cpus
        self._announce: Callable[[], None] | None = announce
        self._admin_number = settings.workers
        self._children = dict[int, _Child]()
        self._due = dict.fromkeys((self._admin_number, *range(settings.workers)), 0.0)
        self._backoffs = [Backoff(*RESTART_S) for _ in self._due]
        self._cut = set[Path]()
        self._started = set[int]()
        # Nobody writes to it: where its writing end is gone, so is this process, however it ended.
        self._lifeline, self._lifeline_held = os.pipe()

    def run(self) -> None:
        """Keep every child running until SIGTERM or SIGINT, then stop them."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        gc.freeze()  # shared with the children, page by page, as long as none of them writes to it
        while True:
            for number, due in list(self._due.items()):
                if due <= time.monotonic():
                    self._start(number)
            pause_s = max(0.0, min([1.0, *(due - time.monotonic() for due in self._due.values())]))
            caught = signal.sigtimedwait(WATCHED, pause_s)
            if caught is not None and caught.si_signo != signal.SIGCHLD:
                break
            self._replace_dead()
            for each in self._inherited.watched:
                each.poll()  # a new worker begins with what the others use, though the file may be broken by then
        self._stop(signal.Signals(caught.si_signo))

    def _start(self, number: int) -> None:
        is_admin = number == self._admin_number
        listener = self._admin if is_admin else share(self._held)
        announce = None
        if not is_admin:
            announce, self._announce = self._announce, None  # the first worker's to say, once
        patience_s = PATIENCE_S if number in self._started and self._settings.workers > 1 else 0.0
        self._started.add(number)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(self._lifeline_held)
                self._held.close()
                if self._cpus and not is_admin:
                    os.sched_setaffinity(0, self._cpus[number])
                _name_process(self._name(number))
                if is_admin:
                    _run(administer(self._inherited, listener, self._lifeline))
                else:
                    self._admin.close()
                    _run(work(self._inherited, number, listener, self._lifeline, announce, patience_s=patience_s))
                code = 0
            except BaseException:  # whatever it is, it must not go on as a second parent
                log.exception("%s failed", self._name(number))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if not is_admin:
            listener.close()
        del self._due[number]
        self._children[pid] = _Child(number, time.monotonic())

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
                if child.number != self._admin_number:
                    self._inherited.states.clear(child.number)
                yield child, os.waitstatus_to_exitcode(status)

    def _stop(self, caught_first: signal.Signals) -> None:
        """Pass the stop on, wait for the drain, and kill what does not end; the admin process outlives the workers."""
        self._signal(caught_first, workers=True)
        delay_s = self._settings.drain_delay_s if caught_first is signal.SIGTERM else 0.0
        deadline = time.monotonic() + delay_s + self._settings.drain_s + KILL_AFTER_S
        while self._children and time.monotonic() < deadline:
            if all(child.number == self._admin_number for child in self._children.values()):
                self._signal(signal.SIGTERM, workers=False)
            caught = signal.sigtimedwait(WATCHED, 0.5)
            if caught is not None and caught.si_signo != signal.SIGCHLD:
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
