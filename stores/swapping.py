"""Changing a store's catalogue: a pure function, applied by compare-and-set until no rival comes first."""

import asyncio
import random
import secrets
from collections.abc import Callable

from stores import catalogue as changes
from stores.catalogue import Catalogue, ReleaseId
from stores.errors import ReleaseConflict
from stores.store import Store

SWAP_ATTEMPTS = 50


async def change(store: Store, change: Callable[[Catalogue], Catalogue]) -> Catalogue:
    """Apply a pure function to the catalogue by compare-and-set; a lost race is tried again on what won it."""
    for attempt in range(SWAP_ATTEMPTS):
        old = await store.catalogue()
        new = change(old)
        if new == old:
            return old
        new = changes.succeed(old, new, token=secrets.token_hex(8), store_id=secrets.token_hex(8))
        try:
            await store.swap(old, new)
        except ReleaseConflict:
            await asyncio.sleep(random.uniform(0, min(0.001 * 2**attempt, 0.1)))  # noqa: S311 -- spreads rivals, guards nothing
            continue
        return new
    raise ReleaseConflict(f"the catalogue changed {SWAP_ATTEMPTS} times under our hands; try again when it is quieter")


async def drop(store: Store, release: ReleaseId) -> None:
    """Erase a release that the catalogue calls `dropping`, and take it out of the record."""
    await store.erase(release)
    await change(store, lambda found: changes.forget(found, release))
