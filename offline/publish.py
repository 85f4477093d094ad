"""Publishing lists as a release: the next ones are computed in a thread while the last ones are being written."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from offline.threads import DaemonThreads
from stores import lifecycle
from stores.catalogue import ReleaseId
from stores.lifecycle import WriteResult
from stores.store import Plan, Row, Store

Progress = Callable[[int, int], None]


class ListSource(Protocol):
    """Lists that can be published: those of a model, or imported ones."""

    def plan(self) -> Plan:
        """Return how many rows there are at most, and about how many bytes they take."""
        ...

    def about(self) -> dict[str, Any]:
        """Return what the manifest says of the release's origin."""
        ...

    def batches(self) -> Iterator[list[Row]]:
        """Yield all rows, of bodies, in ascending order of key bytes, a few thousand at a time."""
        ...


async def publish(
    source: ListSource,
    store: Store,
    *,
    encoding: str = "json",
    live: bool = True,
    resume: ReleaseId | None = None,
    on_progress: Progress = lambda _done, _total: None,
) -> WriteResult:
    """
    Write all lists of *source* as one release of *store*, and make it live unless *live* is false.

    With *resume*, continue that draft, which must be of the same lists and encoding. *on_progress* is called with
    (lists written, lists in all). Raises StoreError as `stores.lifecycle.publish` does.
    """
    return await lifecycle.publish(
        store,
        prefetched(source.batches()),
        plan=source.plan(),
        about=source.about(),
        encoding=encoding,
        live=live,
        resume=resume,
        on_progress=on_progress,
    )


async def prefetched(batches: Iterator[list[Row]]) -> AsyncIterator[list[Row]]:
    """Yield *batches*; the next is computed in a thread meanwhile, which is left behind where it is not wanted."""
    threads, loop = DaemonThreads(), asyncio.get_running_loop()

    def compute() -> list[Row] | None:
        return next(batches, None)

    upcoming = loop.run_in_executor(threads, compute)
    try:
        while (rows := await upcoming) is not None:
            upcoming = loop.run_in_executor(threads, compute)
            yield rows
    finally:
        upcoming.cancel()
