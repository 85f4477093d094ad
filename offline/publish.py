"""Publishing lists as a release: the next ones are computed in a thread while the last ones are being written."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from stores import lifecycle
from stores.catalogue import ReleaseId
from stores.compression import compress
from stores.manifest import Manifest
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
        """Yield all rows in ascending order of key bytes, a few thousand at a time."""
        ...


@dataclass(frozen=True, slots=True)
class PublishReport:
    """
    What a publish did: *plan* is what it reserved room for, *manifest* what the release says of itself.

    *skipped* rows had been written by the run that this one continued.
    """

    manifest: Manifest
    plan: Plan
    live: bool
    seconds: float
    skipped: int


async def publish(
    source: ListSource,
    store: Store,
    *,
    encoding: str = "json",
    live: bool = True,
    resume: ReleaseId | None = None,
    on_progress: Progress | None = None,
) -> PublishReport:
    """
    Write all lists of *source* as one release of *store*, and make it live unless *live* is false.

    With *resume*, continue that draft, which must be of the same lists and encoding. *on_progress* is called with
    (lists written, lists in all). Raises StoreError as `stores.lifecycle.publish` does.
    """
    started = perf_counter()
    plan = source.plan()
    rows, stored_plan = await encoded(source.batches(), plan, encoding)
    if on_progress is not None:
        rows = with_progress(rows, plan.rows, on_progress)
    result = await lifecycle.publish(
        store, rows, plan=stored_plan, about=source.about(), encoding=encoding, live=live, resume=resume
    )
    return PublishReport(result.manifest, stored_plan, live, perf_counter() - started, result.skipped)


async def encoded(batches: Iterator[list[Row]], plan: Plan, encoding: str) -> tuple[AsyncIterator[list[Row]], Plan]:
    """Return the rows as *encoding* stores them, each batch computed while the one before is used, and their plan."""
    rows = prefetched(batches)
    if encoding != "zstd":
        return rows, plan
    compressed = await compress(rows, plan)
    return compressed.batches, compressed.plan


async def prefetched(batches: Iterator[list[Row]]) -> AsyncIterator[list[Row]]:
    """Yield *batches*; the next is computed in a thread meanwhile."""

    def compute() -> list[Row] | None:
        return next(batches, None)

    upcoming = asyncio.create_task(asyncio.to_thread(compute))
    try:
        while (rows := await upcoming) is not None:
            upcoming = asyncio.create_task(asyncio.to_thread(compute))
            yield rows
    finally:
        await asyncio.gather(upcoming, return_exceptions=True)  # a thread cannot be cancelled, only waited for


async def with_progress(
    batches: AsyncIterator[list[Row]], total: int, on_progress: Progress
) -> AsyncIterator[list[Row]]:
    """Yield *batches*, and report how many of *total* lists are done each time that the next is wanted."""
    done = 0
    async for rows in batches:
        yield rows
        done += len(rows)
        on_progress(min(done, total), total)  # a dictionary is a row, but not a list
