"""Publishing a model: the next lists are computed in a thread while the last ones are being written."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from time import perf_counter
from typing import Any

from offline.lists import Lists, ListSettings
from offline.model import ENGINE, Model
from stores import lifecycle
from stores.catalogue import ReleaseId
from stores.compression import compress
from stores.manifest import Manifest
from stores.store import Plan, Row, Store

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PublishReport:
    """
    What a publish did: *plan* is what it asked room for, *manifest* what the release says of itself.

    *skipped* rows had been written by the run that this one continued.
    """

    manifest: Manifest
    plan: Plan
    live: bool
    seconds: float
    skipped: int


async def publish(
    model: Model,
    store: Store,
    settings: ListSettings,
    *,
    encoding: str = "json",
    live: bool = True,
    resume: ReleaseId | None = None,
    on_progress: Progress | None = None,
) -> PublishReport:
    """
    Write all lists of *model* as one release of *store*, and make it live unless told otherwise.

    With *resume*, go on with that draft of the same model and settings. *on_progress* is called with (lists written,
    lists in all). Raises StoreError as `stores.lifecycle.publish` does.
    """
    lists = Lists(model, settings)
    return await publish_rows(
        lists.batches(),
        store,
        plan=lists.plan(),
        about=about_of(model, settings),
        encoding=encoding,
        live=live,
        resume=resume,
        on_progress=on_progress,
    )


async def publish_rows(
    batches: Iterator[list[Row]],
    store: Store,
    *,
    plan: Plan,
    about: dict[str, Any],
    encoding: str,
    live: bool,
    resume: ReleaseId | None,
    on_progress: Progress | None,
) -> PublishReport:
    """Write rows, which come in ascending order of key bytes, as `publish` does; the next are made meanwhile."""
    started = perf_counter()
    lists = plan.rows
    rows: AsyncIterator[list[Row]] = overlapped(batches)
    if encoding == "zstd":
        compressed = await compress(rows, plan)
        rows, plan = compressed.batches, compressed.plan
    rows = counted(rows, lists, on_progress or (lambda _done, _total: None))
    result = await lifecycle.publish(store, rows, plan=plan, about=about, encoding=encoding, live=live, resume=resume)
    return PublishReport(result.manifest, plan, live, perf_counter() - started, result.skipped)


async def overlapped(batches: Iterator[list[Row]]) -> AsyncIterator[list[Row]]:
    """Yield *batches*; the next is made in a thread meanwhile."""

    def compute() -> list[Row] | None:
        return next(batches, None)

    upcoming = asyncio.create_task(asyncio.to_thread(compute))
    try:
        while (rows := await upcoming) is not None:
            upcoming = asyncio.create_task(asyncio.to_thread(compute))
            yield rows
    finally:
        await asyncio.gather(upcoming, return_exceptions=True)  # a thread cannot be cancelled, only waited for


async def counted(batches: AsyncIterator[list[Row]], total: int, tell: Progress) -> AsyncIterator[list[Row]]:
    """Yield *batches*, and tell how many lists were asked for before each next one."""
    done = 0
    async for rows in batches:
        yield rows
        done += len(rows)
        tell(min(done, total), total)  # a dictionary is a row, and no list


def about_of(model: Model, settings: ListSettings) -> dict[str, Any]:
    """Return what the manifest says of the release's origin."""
    return {
        "hotplate": version("hotplate"),
        "engine": ENGINE,
        "trained_at": model.created_at.isoformat(),
        "data": model.data.get("fingerprint"),
        "params": asdict(model.params),
        "metrics": model.metrics,
        "list_length": settings.length,
        "keep_seen": settings.keep_seen,
    }
