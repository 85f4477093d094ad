"""What a publish will take, before anything is written: the real one runs over a simulated store in virtual time."""

import asyncio
import selectors
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from stores.catalogue import Catalogue, DraftRef, ReleaseRef
from stores.manifest import Manifest
from stores.memory import MemoryStore
from stores.store import Estimate, Plan, ProvisionedStore, RoomChecked, Row, Simulation, Slot, Store

T = TypeVar("T")

CheckRoom = Callable[[DraftRef, Plan], Awaitable[None]]

# How many rows are handed from one event loop to the other at once.
SCAN_ROWS = 1000


async def estimate(store: Store, publish: Callable[[Store], Awaitable[Manifest]], *, live: bool) -> Estimate:
    """Run *publish* against a simulation of *store*, and return what it took; nothing is written.

    *publish* runs in a thread, on an event loop of its own; what it raises is raised here: StoreFull, as by `create`,
    for what cannot fit.
    """
    simulation: Simulation
    if isinstance(store, ProvisionedStore):
        simulation = await store.simulate()
    else:
        simulation = _Recording(store, await store.catalogue(), asyncio.get_running_loop())
    loop = VirtualLoop()

    async def run() -> Estimate:
        began = loop.time()
        simulated = simulation.open(loop.time)
        manifest = await publish(simulated)
        seconds = loop.time() - began
        await simulated.close()
        key, value = manifest.key_row
        plan = Plan(manifest.rows + 1, manifest.bytes + len(key) + len(value))
        return simulation.estimate(plan, seconds, live=live)

    running = asyncio.create_task(asyncio.to_thread(loop.run, run()))
    try:
        return await asyncio.shield(running)
    except BaseException:
        loop.cancel()  # nothing happens if it has ended
        raise
    finally:
        with suppress(Exception, asyncio.CancelledError):  # raised above, or cancelled by ourselves
            await running


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when nothing is left to do, and stands still while threads work for it."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        self._main: asyncio.Task[Any] | None = None
        self._cancelled = False
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual time."""
        return self._virtual.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]  # noqa: ANN401 -- the base class says so
        """Run *func* in a thread; no time passes until it is done."""
        self._virtual.threads += 1
        working: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        working.add_done_callback(self._thread_done)
        return working

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* to its end in the calling thread, and close the loop."""

        async def main() -> T:
            self._main = asyncio.current_task()
            if self._cancelled:
                work.close()
                raise asyncio.CancelledError
            return await work

        with asyncio.Runner(loop_factory=lambda: self) as runner:
            return runner.run(main())

    def cancel(self) -> None:
        """Cancel what `run` runs, from another thread."""
        self._cancelled = True
        with suppress(RuntimeError):  # closed since then
            self.call_soon_threadsafe(lambda: self._main and self._main.cancel())

    def _thread_done(self, _working: asyncio.Future[Any]) -> None:
        self._virtual.threads -= 1


class _VirtualSelector(selectors.SelectSelector):
    """Waits for threads only: the time that a loop would have waited has passed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> Any:  # noqa: ANN401 -- what the base class gives is private
        if self.threads and (timeout is None or timeout > 0):
            return super().select(None)
        if timeout:
            self.now_s += timeout
        return super().select(0)


class ReaderOfLoop:
    """A reader that lives on another event loop than its caller: the source of a copy, read in virtual time."""

    def __init__(self, reader: Store, home: asyncio.AbstractEventLoop) -> None:
        self._reader = reader
        self._home = home
        self.batch = reader.batch

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        return await _on_loop(self._home, self._reader.get_many(release, keys, timeout_s=timeout_s))

    async def catalogue(self) -> Catalogue:
        return await _on_loop(self._home, self._reader.catalogue())

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        rows = self._reader.scan(release)

        async def take() -> list[Row]:
            taken = list[Row]()
            async for row in rows:
                taken.append(row)
                if len(taken) == SCAN_ROWS:
                    break
            return taken

        while taken := await _on_loop(self._home, take()):
            for row in taken:
                yield row


async def _on_loop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Await *work* on another thread's loop; no virtual time passes here until then."""
    result = asyncio.run_coroutine_threadsafe(work, loop).result
    return await asyncio.get_running_loop().run_in_executor(None, result)


class Spool:
    """Rows in a private temporary file, because a release may not fit into memory; by space and key."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE rows (space, key, value, PRIMARY KEY (space, key)) WITHOUT ROWID")
        self._database.execute("BEGIN")  # never committed: nothing of it is to be kept

    def get(self, space: str, key: str) -> bytes | None:
        """Return a value; None if there is none."""
        found = self._database.execute("SELECT value FROM rows WHERE (space, key) = (?, ?)", (space, key.encode()))
        row = found.fetchone()
        return None if row is None else row[0]

    def put(self, space: str, rows: Sequence[tuple[str, bytes]]) -> None:
        """Write rows, in the place of those of the same key."""
        self._database.executemany(
            "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", ((space, key.encode(), value) for key, value in rows)
        )

    def scan(self, space: str) -> Iterator[tuple[str, bytes]]:
        """Yield the rows of a space in ascending order of key bytes."""
        found = self._database.execute("SELECT key, value FROM rows WHERE space = ? ORDER BY key", (space,))
        return ((key.decode(), value) for key, value in found)

    def drop(self, space: str) -> None:
        """Forget all rows of a space."""
        self._database.execute("DELETE FROM rows WHERE space = ?", (space,))


class _Recording(Simulation):
    """The simulation of a store that is not paid for by what it does: rows, bytes, and whether they fit."""

    def __init__(self, store: Store, catalogue: Catalogue, home: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._catalogue = catalogue
        self._home = home

    def open(self, clock: Callable[[], float]) -> Store:
        began = clock()
        return _RecordingStore(
            self._catalogue, lambda: self._catalogue.now + clock() - began, self._check_room, self._store.batch
        )

    def estimate(self, plan: Plan, seconds: float, *, live: bool) -> Estimate:
        del seconds, live
        return Estimate(plan.rows, plan.payload_bytes, fits=True if isinstance(self._store, RoomChecked) else None)

    async def _check_room(self, draft: DraftRef, plan: Plan) -> None:
        if isinstance(self._store, RoomChecked):
            await _on_loop(self._home, self._store.check_room(draft, plan))


class _RecordingStore(MemoryStore):
    """A memory store whose rows are in a spool, with room for what the recorded store has room for."""

    def __init__(self, catalogue: Catalogue, clock: Callable[[], float], check_room: CheckRoom, batch: int) -> None:
        super().__init__(clock, catalogue)
        self.batch = batch
        self._check_room = check_room
        self._spool = Spool()

    def get(self, release: ReleaseRef, key: str) -> bytes | None:
        self._find(release)
        return self._spool.get(release.incarnation, key)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        await self._check_room(draft, plan)
        await super().create(draft, plan)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await super().put(draft, (), part)  # checks that it may be written
        self._spool.put(draft.incarnation, rows)

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        self._find(release)
        for key, value in self._spool.scan(release.incarnation):
            yield Row(key, value)
