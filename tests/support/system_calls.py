"""Two processes whose system calls go on one at a time, in each order: for tests of what they leave on the disk.

A process is a thread with the real code. It waits before each call that others may see the effect of, until the test
lets it go on. It may be killed there: then no call of it has an effect any more, and its locks end.
"""

import fcntl
import io
import mmap
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

# How long a thread may take from one call to the next, on a machine however busy.
DEADLINE_S = 60.0

# Names and sizes of these files of a store are looked at.
_LOOKED_AT = (".json", ".new", ".reserve", ".former", ".draft", ".lock", ".mdb")

_current = threading.local()


class Killed(BaseException):
    """Ends a process between two calls."""


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run what never waits for an event loop."""
    try:
        work.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    raise AssertionError("it waits for an event loop")


class Process:
    """Does some work; *outcomes* are what each piece of it returned, or its error."""

    def __init__(self, work: Sequence[Callable[[], object]]) -> None:
        self.outcomes = list[object]()
        self.calls = list[str]()
        self.waits_for_lock = self.killed = self.ended = False
        self.locks = set[int]()
        self.may_go_on = threading.Lock()
        self.may_go_on.acquire()
        self._work = work

    def run(self) -> None:
        """Do the work, in a thread of this process."""
        try:
            for work in self._work:
                try:
                    self.outcomes.append(work())
                except Exception as error:  # noqa: BLE001 -- the test judges it
                    self.outcomes.append(error)
        except Killed:
            self.outcomes.append(Killed())  # without a traceback, which would keep files open
        self.ended = True
        for descriptor in list(self.locks):
            os.close(descriptor)


@dataclass
class Schedule:
    """Which process goes on at each call, and what happens to it; *choices* are made first, then the first of each."""

    choices: list[int] = field(default_factory=list)
    options: list[int] = field(default_factory=list)
    """How many there were at each choice."""

    def choose(self, options: int) -> int:
        """Return which of this many options is next."""
        if len(self.options) == len(self.choices):
            self.choices.append(0)
        self.options.append(options)
        return self.choices[len(self.options) - 1]

    def following(self) -> "Schedule | None":
        """Return the next schedule, depth first; None after the last."""
        for place in reversed(range(len(self.options))):
            if self.choices[place] + 1 < self.options[place]:
                return Schedule([*self.choices[:place], self.choices[place] + 1])
        return None


def schedules() -> Iterator[Schedule]:
    """Yield schedules until each has been run; the body of the loop runs the one that it is given."""
    schedule: Schedule | None = Schedule()
    while schedule is not None:
        yield schedule
        schedule = schedule.following()


class _Run:
    """Lets one of some processes go on at a time; decides at each call of theirs, in the thread that makes it."""

    def __init__(self, schedule: Schedule, processes: list[Process], switches: int | None, kills: int) -> None:
        self._schedule = schedule
        self._processes = processes
        self._switches = switches
        self._kills = kills

    def start(self) -> None:
        first, *later = self._processes
        threads = [threading.Thread(target=self._run, args=(process,), daemon=True) for process in later]
        for thread in threads:
            thread.start()
        going = self._processes[self._schedule.choose(len(self._processes))]
        going.may_go_on.release()
        self._run(first)
        for thread in threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    def before(self, process: Process, call: str) -> None:
        """Choose the process that continues, and a kill; return once *process* continues."""
        if process.killed:
            raise Killed
        process.calls.append(call)
        self._go_on(process)
        if process.killed:
            raise Killed

    def unlocked(self, process: Process, descriptor: int) -> None:
        """Let others try again that wait for a lock."""
        if descriptor in process.locks:
            process.locks.discard(descriptor)
            for waiting in self._processes:
                waiting.waits_for_lock = False

    def _run(self, process: Process) -> None:
        assert process.may_go_on.acquire(timeout=DEADLINE_S)
        _current.run = self
        _current.process = process
        try:
            process.run()
        finally:
            del _current.run, _current.process
        for ended in self._processes:
            ended.waits_for_lock = False
        self._go_on(process)

    def _go_on(self, process: Process) -> None:
        living = [other for other in self._processes if not other.ended]
        able = [other for other in living if not other.waits_for_lock] or living
        if not able:
            return
        if process not in able:
            going = able[self._schedule.choose(len(able))]
        elif self._switches == 0:
            going = process
        else:
            going = [process, *(other for other in able if other is not process)][self._schedule.choose(len(able))]
            if self._switches is not None and going is not process:
                self._switches -= 1
        going.killed = self._schedule.choose(1 + (self._kills > 0)) == 1
        self._kills -= going.killed
        if going is not process:
            going.may_go_on.release()
            if not process.ended:
                assert process.may_go_on.acquire(timeout=DEADLINE_S)


def run(
    schedule: Schedule,
    *works: Sequence[Callable[[], object]],
    switches: int | None = None,
    kills: int = 0,
) -> list[Process]:
    """Run processes to their end, by a schedule, and return them.

    A process is left for another at most *switches* times before it ends or waits for a lock; None is no limit. Up to
    *kills* of them are killed, each at any call.
    """
    processes = [Process(work) for work in works]
    _Run(schedule, processes, switches, kills).start()
    return processes


def patch_calls(patch: pytest.MonkeyPatch) -> None:
    """Let processes wait before each system call of the file store, until the test ends."""
    for name in ("unlink", "ftruncate", "rename", "posix_fallocate"):
        patch.setattr(os, name, _stepped(name, getattr(os, name)))
    patch.setattr(os, "fsync", _stepped("fsync", lambda _: None))  # nothing cuts the power
    _patch_files(patch)
    _patch_writes(patch)
    _patch_locks(patch)

    async def to_thread(work: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 -- as asyncio's
        return work(*arguments)

    patch.setattr("asyncio.to_thread", to_thread)


def _stepped(name: str, call: Callable[..., T]) -> Callable[..., T]:
    def stepped(*arguments: Any, **named: Any) -> T:  # noqa: ANN401 -- whatever the call takes
        _before(name)
        return call(*arguments, **named)

    return stepped


def _patch_files(patch: pytest.MonkeyPatch) -> None:
    system_open = os.open
    system_stat = os.stat
    file_open = io.open

    def stat(path: Any, **named: Any) -> os.stat_result:  # noqa: ANN401 -- as `os.stat` has it
        if str(path).endswith(_LOOKED_AT):
            _before("stat")
        return system_stat(path, **named)

    def open_(path: Any, flags: int, *arguments: Any, **named: Any) -> int:  # noqa: ANN401 -- as `os.open` has it
        if flags & os.O_CREAT:
            _before("open")
        return system_open(path, flags, *arguments, **named)

    def open_file(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 -- as `io.open` has it
        if "b" in mode:
            _before("open")
        return file_open(file, mode, *arguments, **named)

    patch.setattr(os, "stat", stat)
    patch.setattr(os, "open", open_)
    patch.setattr(io, "open", open_file)


def _patch_writes(patch: pytest.MonkeyPatch) -> None:
    write_at = os.pwrite

    def pwrite(descriptor: int, data: bytes, start: int) -> int:
        _before("pwrite")
        half = len(data) // 2 if len(data) >= mmap.PAGESIZE else 0
        if half:
            write_at(descriptor, data[:half], start)
            _before("the rest of pwrite")  # others may see some pages of a write, and not all
        return half + write_at(descriptor, data[half:], start + half)

    patch.setattr(os, "pwrite", pwrite)


def _patch_locks(patch: pytest.MonkeyPatch) -> None:
    system_flock = fcntl.flock
    system_close = os.close
    time_sleep = time.sleep

    def flock(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_UN:
            _unlocked(descriptor)
            system_flock(descriptor, operation)
        else:
            _before("flock")
            system_flock(descriptor, operation)
            if process := _process():
                process.locks.add(descriptor)

    def close(descriptor: int) -> None:
        _unlocked(descriptor)
        system_close(descriptor)

    def sleep(seconds: float) -> None:
        if process := _process():
            process.waits_for_lock = True
        else:
            time_sleep(seconds)

    patch.setattr(fcntl, "flock", flock)
    patch.setattr(os, "close", close)
    patch.setattr(time, "sleep", sleep)


def _process() -> Process | None:
    """Return the process that the caller is a part of."""
    return getattr(_current, "process", None)


def _before(call: str) -> None:
    if process := _process():
        _current.run.before(process, call)


def _unlocked(descriptor: int) -> None:
    if process := _process():
        _current.run.unlocked(process, descriptor)
