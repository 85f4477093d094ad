"""Rehearsals of a publish: how many rows and bytes a release takes in a store, without writing to it."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from hotplate.stores.catalogue import Catalogue, DraftRef
from hotplate.stores.erasure import NOBODY
from hotplate.stores.erasure_log import ErasureLog, erased_from
from hotplate.stores.errors import AccessDenied
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.folders import temporary_folder
from hotplate.stores.manifest import Manifest
from hotplate.stores.store import Plan, Store


@asynccontextmanager
async def stand_in_for(store: Store) -> AsyncIterator[Store]:
    """Yield a stand-in for *store*, to which a release is published instead.

    The stand-in is a store in a temporary folder, with the catalogue and the erased users of *store*. Creating a draft
    there raises StoreFull if the release does not fit into *store*, as far as its user may see that.
    """
    with temporary_folder("rehearsal") as folder:
        catalogue = await store.catalogue()
        stand_in = _StandIn(folder, store, catalogue.now - time.time())
        try:
            if catalogue.generation:
                entry, records = ErasureLog(NOBODY).changes_for(await erased_from(store))
                await stand_in.swap(Catalogue(), replace(catalogue, erased=entry), records)
            yield stand_in
        finally:
            await stand_in.close()


def plan_of(manifest: Manifest) -> Plan:
    """Return the rows and bytes of a written release, including its manifest."""
    key, value = manifest.key_row
    rows = manifest.rows + 1  # the manifest is a row, too
    return Plan(rows, manifest.bytes + len(key) + len(value))


class _StandIn(LmdbStore):
    """Files with the catalogue and the free space of another store."""

    def __init__(self, folder: Path, store: Store, ahead_s: float) -> None:
        """*ahead_s* is the clock of *store* minus ours."""
        super().__init__(folder, lambda: time.time() + ahead_s)
        self._store = store

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        with suppress(AccessDenied):  # the check needs rights that a publish does not
            await self._store.check_room(draft, plan)
        await super().create(draft, plan)
