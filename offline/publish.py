"""Publishing a model: the next lists are computed in a thread while the last ones are being written."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from time import perf_counter
from typing import Any

from offline.lists import Lists, ListSettings
from offline.model import ENGINE, Model
from stores import release
from stores.manifest import Manifest
from stores.store import Plan, Row, Store

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What a publish did: *plan* is what it asked room for, *manifest* what the release says of itself."""

    manifest: Manifest
    plan: Plan
    live: bool
    seconds: float


async def publish(
    model: Model,
    store: Store,
    settings: ListSettings,
    *,
    live: bool = True,
    on_progress: Progress | None = None,
) -> PublishReport:
    """
    Write all lists of *model* as one release of *store*, and make it live unless told otherwise.

    *on_progress* is called with (lists written, lists in all). Raises StoreError as `stores.release.publish` does.
    """
    started = perf_counter()
    lists = Lists(model, settings)
    plan = lists.plan()
    manifest = await release.publish(
        store,
        _counted(_overlapped(lists.batches()), lists.total, on_progress or (lambda _done, _total: None)),
        plan=plan,
        about=_about(model, settings),
        live=live,
    )
    return PublishReport(manifest, plan, live, perf_counter() - started)


async def _overlapped(batches: Iterator[list[Row]]) -> AsyncIterator[list[Row]]:
    def compute() -> list[Row] | None:
        return next(batches, None)

    upcoming = asyncio.create_task(asyncio.to_thread(compute))
    try:
        while (rows := await upcoming) is not None:
            upcoming = asyncio.create_task(asyncio.to_thread(compute))
            yield rows
    finally:
        await asyncio.gather(upcoming, return_exceptions=True)  # a thread cannot be cancelled, only waited for


async def _counted(batches: AsyncIterator[list[Row]], total: int, tell: Progress) -> AsyncIterator[list[Row]]:
    done = 0
    async for rows in batches:
        yield rows
        done += len(rows)
        tell(done, total)


def _about(model: Model, settings: ListSettings) -> dict[str, Any]:
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
