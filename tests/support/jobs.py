"""One change to a store in a process of its own, which can be killed or stopped at any instant.

The processes are forked by a server that has everything imported, so that each takes milliseconds.
"""

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from stores import lifecycle as life
from stores.catalogue import ReleaseId
from stores.connect import connect
from stores.errors import StoreError
from stores.lifecycle import WriteResult
from stores.store import Plan, Row, Store
from stores.transfer import copy, repair
from tests.support.service import a_list
from tests.support.stores import batches

# `stage` is a publish without activation; `resume`, that of a draft.
Kind = Literal["publish", "stage", "resume", "activate", "rollback", "prune", "copy", "repair"]

USERS, BATCH = 2_000, 100

NONE = ReleaseId("")

# How long a job waits after it has said that it begins: until whoever is to interrupt it has heard that.
LEAD_S = 0.002

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__, "stores.redis.store"])


@lru_cache(maxsize=32)
def rows_of(mark: str) -> list[Row]:
    """Return the rows of a release that nobody else has: an item's id is `MARK.OWNER.RANK`, its owner a user's id."""
    users = [f"{n:04}" for n in range(USERS)]
    return [
        Row("popular:", a_list(*(f"{mark}.popular.{rank}" for rank in range(3)))),
        *(Row(f"user:{user}", a_list(*(f"{mark}.{user}.{rank}" for rank in range(3)))) for user in users),
    ]


@dataclass(frozen=True, slots=True)
class Change:
    """What a job does to a store."""

    kind: Kind
    mark: str = ""
    """Of the rows that are published."""

    release: ReleaseId = NONE
    """The draft to be resumed, or the release to be activated, copied or repaired."""

    async def make(
        self, store: Store, source: Store, on_progress: Callable[[int, int], None] = lambda _done, _total: None
    ) -> WriteResult | None:
        """Change *store*, with *source* to copy from; return what was written, where something is to be."""
        match self.kind:
            case "publish" | "stage" | "resume":
                rows = rows_of(self.mark)
                return await life.publish(
                    store,
                    batches(rows, BATCH),
                    plan=Plan(len(rows), sum(len(key) + len(value) for key, value in rows)),
                    about={"mark": self.mark},
                    live=self.kind != "stage",
                    resume=self.release or None,
                    on_progress=on_progress,
                )
            case "copy":
                return await copy(source, store, self.release, on_progress=on_progress)
            case "repair":
                return await repair(store, source, self.release, on_progress=on_progress)
            case "activate":
                await life.activate(store, self.release)
            case "rollback":
                await life.rollback(store)
            case "prune":
                await life.prune(store, keep=1, grace_s=0)
        return None


class Job:
    """A process that makes a change to the store at *url*; lives until it has ended or was killed."""

    def __init__(self, change: Change, url: str, source_url: str) -> None:
        self._channel, theirs = _context.Pipe(duplex=False)
        self.process = _context.Process(target=_run, args=(change, url, source_url, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.change = change
        self.wrote = 0
        """How many rows it has reported as written."""

        self.outcome = ""
        """`done`, or the sentence of what it failed of; empty where it was killed before its end."""

        self.seconds = 0.0
        """How long it took, where it came to its end."""

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    async def interrupt(self, number: signal.Signals, wait: Callable[[], None]) -> None:
        """Send a signal once the change has begun and *wait*, called in a thread, has returned."""

        def send() -> None:
            assert self._channel.recv() == ("begun", 0)
            wait()
            self.send_signal(number)

        await asyncio.to_thread(send)

    async def interrupt_after(self, number: signal.Signals, rows: int) -> None:
        """Send a signal once so many rows are reported as written, or once it has ended."""

        def wait() -> None:
            while self.wrote < rows and self._receive():
                pass

        await self.interrupt(number, wait)

    def send_signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    async def is_stopped(self) -> bool:
        """Return whether it has stopped, as it was sent the signal to, and not ended before."""
        stat = Path(f"/proc/{self.pid}/stat")
        with suppress(FileNotFoundError, ProcessLookupError):
            while (state := stat.read_text().rpartition(")")[2].split()[0]) not in "TZX":
                await asyncio.sleep(0.0001)
            return state == "T"
        return False

    async def end(self) -> None:
        """Wait for its end, and for what it reported until then."""

        def wait() -> None:
            while self._receive():
                pass
            self.process.join()

        await asyncio.to_thread(wait)
        assert self.process.exitcode in (0, -signal.SIGKILL), self.process.exitcode

    def _receive(self) -> bool:
        try:
            kind, value = self._channel.recv()
        except EOFError:
            return False
        if kind == "wrote":
            self.wrote = value
        elif kind == "done":
            self.outcome, self.seconds = kind, value
        elif kind == "failed":
            self.outcome = value
        return True


def _run(change: Change, url: str, source_url: str, channel: Connection) -> None:
    asyncio.run(_make(change, url, source_url, channel))


async def _make(change: Change, url: str, source_url: str, channel: Connection) -> None:
    store, source = connect(url), connect(source_url)
    for opened in (store, source):
        await opened.catalogue()
    rows_of(change.mark)
    channel.send(("begun", 0))
    await asyncio.sleep(LEAD_S)
    began = time.perf_counter()
    try:
        await change.make(store, source, lambda done, _: channel.send(("wrote", done)))
    except StoreError as error:
        channel.send(("failed", f"{type(error).__name__}: {error}"))
    else:
        channel.send(("done", time.perf_counter() - began))
    await store.close()
    await source.close()
