"""What a publish would come to: every list is computed and encoded as it would be, and nothing is written."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from offline.lists import ListSettings, ModelLists
from offline.model import Model
from offline.publish import Progress, prefetched, with_progress
from stores.catalogue import ReleaseId
from stores.compression import compress
from stores.forecast import Forecast
from stores.foreseeing import foresee_rows as foresee_in
from stores.manifest import Manifest, Tally, describe
from stores.store import Plan, Row, Store

FORETOLD = ReleaseId("20000101T000000Z-0000")
"""Stands for the id of a release that is never made; all are of this length."""


async def foresee(
    model: Model, store: Store, settings: ListSettings, *, encoding: str, live: bool, keep: int, on_progress: Progress
) -> Forecast:
    """Say what `offline.publish.publish` and a prune afterwards would come to. Raises as `Foreseen.foresee` does."""
    lists = ModelLists(model, settings)
    return await foresee_rows(
        lists.batches(),
        store,
        plan=lists.plan(),
        about=lists.about(),
        encoding=encoding,
        live=live,
        keep=keep,
        on_progress=on_progress,
    )


async def foresee_rows(
    batches: Iterator[list[Row]],
    store: Store,
    *,
    plan: Plan,
    about: dict[str, Any],
    encoding: str,
    live: bool,
    keep: int,
    on_progress: Progress,
) -> Forecast:
    """Say what publishing rows, which come in ascending order of key bytes, would come to."""
    rows: AsyncIterator[list[Row]] = prefetched(batches)
    if encoding == "zstd":
        rows = (await compress(rows, plan)).batches

    def finish(tally: Tally) -> Manifest:
        return describe(FORETOLD, tally, created_at=float(int(time.time())), encoding=encoding, about=about)

    return await foresee_in(store, FORETOLD, with_progress(rows, plan.rows, on_progress), finish, live=live, keep=keep)
