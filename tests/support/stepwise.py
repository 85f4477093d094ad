"""Processes over one store that take their steps when a test lets them: each primitive waits before and after.

An erase, which is many steps of the store, waits between these, too.

A process is a task of the real code with a handle of its own on the store. Whoever drives it lets its next primitive
begin, or its reply arrive, or lets either get lost, or ends it for ever. Time stands still but for `advance`.
"""

import asyncio
import selectors
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, Self, TypeVar

from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.store import CheckCatalogue, Plan, Reader, ReadResult, RecordChange, Row, Store

T = TypeVar("T")

# The process that erases in a task, and the task.
_ERASING = ContextVar["tuple[Process, asyncio.Task[Any]] | None"]("erasing", default=None)
_SLEEP = asyncio.sleep

# What the store's clock said when the loop's said nought.
EPOCH_S = 1_790_000_000.0


# How long the network may take, in real time, before time passes all the same.
PATIENCE_S = 20.0

# While the real store works, timers below SHORT_S are pauses between its polls, of which PAUSE_S is enough; above, they
# are deadlines, and real.
SHORT_S, PAUSE_S = 0.25, 0.002


class StepwiseLoop(asyncio.SelectorEventLoop):
    """An event loop that returns when nothing is left to do at this time; real I/O is waited for while `working`.

    While a connection is being opened, no time passes: a deadline that came by a jump in time would be a failure of the
    network which no test asked for, and which the same history has not the next time.
    """

    def __init__(self) -> None:
        self.working = 0
        """How many primitives are under way in the real store."""
        self.now_s = 1_000.0
        self.next_in_s: float | None = None
        """In how many seconds the next timer is due, as of when the loop had nothing left to do."""
        super().__init__(_StepwiseSelector(self))

    def time(self) -> float:
        return self.now_s

    def settle(self) -> None:
        """Do all that can be done now."""
        self.run_forever()

    def advance(self, seconds: float) -> None:
        """Let time pass, and run the due timers."""
        until = self.now_s + seconds
        self.settle()
        while self.next_in_s is not None and self.now_s + self.next_in_s <= until:
            self.now_s += self.next_in_s
            self.settle()
        self.now_s = until
        self.settle()

    def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run what waits for nothing but the real store."""
        self.working += 1
        try:
            return self.run_until_complete(work)
        finally:
            self.working -= 1


class _StepwiseSelector(selectors.SelectSelector):
    def __init__(self, loop: StepwiseLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:  # noqa: ANN401 -- what the base class gives is private
        opening = any(key.events & selectors.EVENT_WRITE for key in self.get_map().values())
        if timeout != 0 and opening and (events := super().select(PATIENCE_S)):
            return events
        if self._loop.working:
            events = super().select(PAUSE_S if timeout and timeout < SHORT_S else timeout)
            if timeout and not events:
                self._loop.now_s += timeout
            return events
        if timeout is None or timeout > 0:
            self._loop.next_in_s = timeout
            self._loop.stop()
        return super().select(0) if len(self.get_map()) > 1 else []  # beside the loop's own pipe


class Watch(Protocol):
    """Is shown what processes do to the store, at the moment that it is done."""

    def claimed(self, process: "Process", draft: DraftRef) -> None: ...
    def put(self, process: "Process", draft: DraftRef) -> None: ...
    def erasing(self, process: "Process", release: ReleaseRef) -> None: ...
    def swapped(self, process: "Process", old: Catalogue, new: Catalogue) -> None: ...


class Process:
    """A process with a handle on the store; ends with its last task, or when it is killed."""

    def __init__(self, loop: StepwiseLoop, store: Store, watch: Watch) -> None:
        self.loop = loop
        self.watch = watch
        self.handle = store
        self.store = Stepped(self, store)
        self.free = False
        """Whether it runs without waiting to be let go."""
        self.killed = False
        self.has_read = True
        """Whether it has read the catalogue since the store was last restored."""
        self.tasks = list[asyncio.Task[Any]]()
        self._gates = list[asyncio.Future[None]]()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        self.tasks.append(self.loop.create_task(work))
        self.loop.settle()

    @property
    def is_waiting(self) -> bool:
        """Whether a primitive, or its reply, waits to be let go."""
        return any(not gate.done() for gate in self._gates)

    def step(self, *, last: bool = False, lost: bool = False) -> None:
        """Let a primitive begin or its reply arrive: the first one that waits, or the last; or let it be lost."""
        gate = self._gates.pop(-1 if last else 0)
        if lost:
            gate.set_exception(StoreUnavailable("the network went away"))
        else:
            gate.set_result(None)
        self.loop.settle()

    def run(self, seconds: float, *beside: "Process") -> None:
        """Let this process and *others* run for some time."""
        running = (self, *beside)
        for process in running:
            process.free = True
            while process._gates:
                process.step()
        self.loop.advance(seconds)
        for process in running:
            process.free = False

    def run_to_end(self) -> None:
        """Let this process run until its tasks are done, whatever time that takes."""
        while not all(task.done() for task in self.tasks):
            self.run(1.0)

    def ended(self) -> list[BaseException | None]:
        """Take out the finished tasks, and return their errors."""
        done = [task for task in self.tasks if task.done()]
        self.tasks = [task for task in self.tasks if not task.done()]
        return [asyncio.CancelledError() if task.cancelled() else task.exception() for task in done]

    def kill(self) -> None:
        """End it for ever: nothing that it still does reaches the store."""
        self.killed = True
        for task in self.tasks:
            task.cancel()
        self.loop.settle()
        for gate in self._gates:
            gate.cancel()
        self.loop.settle()
        assert all(isinstance(error, StoreError | asyncio.CancelledError | None) for error in self.ended())
        assert not self.tasks

    async def pause(self) -> None:
        """Wait for permission to continue; raises the fault of a lost call."""
        if self.killed:
            raise asyncio.CancelledError
        if self.free:
            return
        gate = self.loop.create_future()
        self._gates.append(gate)
        try:
            await gate
        finally:
            if gate in self._gates:
                self._gates.remove(gate)


class UntilChanged(float):
    """A pause between two polls, which ends with a change."""

    changed: asyncio.Event

    @classmethod
    def of(cls, changed: asyncio.Event) -> Self:
        pause = cls()
        pause.changed = changed
        return pause


async def sleep(delay: float, result: T | None = None) -> T | None:
    """Sleep as usual; but a pause between polls ends with a change, and an erase between two batches asks first."""
    if isinstance(delay, UntilChanged):
        await delay.changed.wait()
        return result
    if (erasing := _ERASING.get()) is None or asyncio.current_task() is not erasing[1]:
        return await _SLEEP(delay, result)
    process, _ = erasing
    process.loop.working -= 1
    try:
        await process.pause()
    finally:
        process.loop.working += 1
    return result


class Stepped(Store):
    """A process's handle on the store; each primitive waits before it is done, and before its reply arrives."""

    def __init__(self, process: Process, store: Store) -> None:
        self.batch = store.batch
        self.coalesce = store.coalesce
        self.reads: Reader = store
        """Where the catalogue and rows are read: the store itself, or a replica of it."""
        self.changed = asyncio.Event()
        """Set when there is something new where the catalogue is read."""
        self.poll_s = UntilChanged.of(self.changed)
        self._process = process
        self._store = store

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        del timeout_s
        return await self._do(lambda: self.reads.get_many(release, keys))

    async def catalogue(self) -> Catalogue:
        async def read() -> Catalogue:
            self._process.has_read = True
            return replace(await self.reads.catalogue(), now=EPOCH_S + self._process.loop.time())

        return await self._do(read)

    async def poll(self) -> Catalogue:
        self.changed.clear()
        return await self.catalogue()

    async def close(self) -> None:
        """Left to whoever opened the store."""

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        claimed = partial(self._process.watch.claimed, self._process, draft)
        await self._do(lambda: self._store.create(draft, plan), claimed)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        was_put = partial(self._process.watch.put, self._process, draft)
        await self._do(lambda: self._store.put(draft, rows, part), was_put)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        return await self._do(lambda: self._store.resume_point(draft, part))

    async def seal(self, draft: DraftRef) -> None:
        await self._do(lambda: self._store.seal(draft))

    async def is_sealed(self, release: ReleaseRef) -> bool:
        return await self._do(lambda: self._store.is_sealed(release))

    async def scan(self, release: ReleaseRef) -> AsyncGenerator[Row]:
        rows = self._store.scan(release)
        while (row := await self._do(lambda: anext(rows, None))) is not None:
            yield row

    async def prepare(self, release: ReleaseRef) -> None:
        await self._do(lambda: self._store.prepare(release))

    async def swap(self, old: Catalogue | bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        watch = self._process.watch

        def swapped() -> None:
            if isinstance(old, Catalogue):
                watch.swapped(self._process, old, new)

        await self._do(lambda: self._store.swap(old, new, records), swapped)

    async def records(self, names: Sequence[str]) -> list[bytes | None]:
        return await self._do(lambda: self._store.records(names))

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        def checked(catalogue: Catalogue) -> None:
            check(catalogue)
            self._process.watch.erasing(self._process, release)

        async def erase() -> None:
            task = asyncio.current_task()
            assert task is not None
            before = _ERASING.set((self._process, task))
            try:
                await self._store.erase(release, checked)
            finally:
                _ERASING.reset(before)

        await self._do(erase)

    async def incarnations(self) -> list[str]:
        return await self._do(self._store.incarnations)

    async def _do(self, primitive: Callable[[], Awaitable[T]], done: Callable[[], None] = lambda: None) -> T:
        await self._process.pause()
        try:
            self._process.loop.working += 1
            try:
                reply = await primitive()
                done()
            finally:
                self._process.loop.working -= 1
        except StoreError:
            await self._process.pause()
            raise
        await self._process.pause()
        return reply
