"""Estimating a publish before it writes: it runs into a stand-in store in a temporary folder."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.errors import StoreFull
from hotplate.stores.file.catalogue import CatalogueFile
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.folders import temporary_folder
from hotplate.stores.manifest import Manifest
from hotplate.stores.store import BATCH_ROWS, Diagnosed, Estimate, Plan, ProvisionedStore, PublishCounts, Row, Store


async def estimate(store: Store, publish: Callable[[Store], Awaitable[Manifest]], *, live: bool) -> Estimate:
    """Run *publish* into a stand-in for *store*, with its catalogue, and return what it would take.

    Raises StoreFull if it cannot fit.
    """
    if isinstance(store, ProvisionedStore):
        found, error = await store.try_catalogue()
    else:
        found, error = await store.catalogue(), ""
    with temporary_folder("estimate") as folder:
        stand_in = _StandIn(folder, store, found)
        try:
            manifest = await publish(stand_in)
        finally:
            await stand_in.close()
    key, value = manifest.key_row
    plan = Plan(manifest.rows + 1, manifest.bytes + len(key) + len(value))
    if not isinstance(store, ProvisionedStore):
        return Estimate(plan.rows, plan.payload_bytes, fits=True if isinstance(store, Diagnosed) else None)
    stand_in.counts.checked = len(manifest.sample) + len(manifest.segments)
    made = store.estimate(plan, stand_in.counts, first=not found.generation, live=live)
    if not error:
        return made
    note = f"assumed: nothing was published there before; it could not be read: {error}"
    return replace(made, notes=(note, *made.notes))


class _StandIn(LmdbStore):
    """Files with the catalogue and the free space of another store, which count what is written."""

    def __init__(self, folder: Path, store: Store, catalogue: Catalogue) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        super().__init__(folder, lambda: catalogue.now + clock() - began)
        if catalogue.generation:
            CatalogueFile(folder).replace(catalogue)
        self.batch = store.batch
        self.counts = PublishCounts(erased=0)
        self._store = store

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        if isinstance(self._store, Diagnosed):
            await self._store.check_room(draft, plan)
        with self._in_scratch():
            await super().create(draft, plan)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        with self._in_scratch():
            await super().put(draft, rows, part)
        if isinstance(self._store, ProvisionedStore):
            self.counts.sizes.update(map(self._store.row_bytes, rows))
            self.counts.batches += -(-len(rows) // BATCH_ROWS)

    async def erase(self, release: ReleaseRef) -> None:
        self.counts.erased += 1
        await super().erase(release)

    @contextmanager
    def _in_scratch(self) -> Iterator[None]:
        try:
            yield
        except StoreFull as error:
            raise StoreFull(
                f"a dry run writes the release into a temporary folder: {error}. Or set TMPDIR to a folder with more "
                f"room"
            ) from error
