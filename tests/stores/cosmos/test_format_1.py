"""What the releases of format 1 left in an account of Cosmos DB is read, verified, rolled back to, and migrated.

`format_1/cosmos.json` has all items that hotplate of commit df3b589 wrote: a release as json that was superseded by one
as zstd, and a draft whose writer is gone.
"""

import asyncio
from pathlib import Path

import orjson
import pytest

from stores import lifecycle as life
from stores.catalogue import Catalogue, ReleaseId, State
from stores.compression import load_decode
from stores.cosmos.items import CATALOGUE, CONTROL
from stores.cosmos.store import CosmosStore
from stores.encoding import OFFSET_BYTES, Item, encode
from stores.errors import ReleaseConflict, ReleaseNotFound
from stores.store import Plan, Row
from stores.verification import load_manifest, verify
from tests.support.cosmos_simulation import SimulatedAccount, batches, with_simulation

WRITTEN = Path(__file__).parents[1] / "format_1" / "cosmos.json"
FIRST, LIVE, DRAFT = (
    ReleaseId(id_) for id_ in ("20261120T195008Z-8019", "20260921T143010Z-a5ca", "20260921T141400Z-0bad")
)


async def filled(account: SimulatedAccount) -> CosmosStore:
    """Return a store with the items of format 1."""
    store = account.store()
    await store._containers.create_database()
    for container, items in orjson.loads(WRITTEN.read_bytes()).items():
        await store._containers.create_container(container, None)
        for item in items:
            assert (await store._items.create(container, item)).done
    return store


def a_list(user: object, release: str) -> bytes:
    items = [Item(id=f"{user}-{release}-{n}", score=round(1 / (n + 1), 3), title="T") for n in range(12)]
    return encode(items)[OFFSET_BYTES:]


async def served(store: CosmosStore, release: ReleaseId, keys: list[str]) -> list[bytes]:
    ref = (await store.catalogue()).find(release).ref
    decode = await load_decode(store, ref, await load_manifest(store, ref))
    slots = await store.get_many(ref, keys)
    return [decode(key, slot)[OFFSET_BYTES:] for key, slot in zip(keys, slots, strict=True) if isinstance(slot, bytes)]


def states(found: Catalogue) -> dict[str, str]:
    return {entry.id: entry.state for entry in found.releases}


def test_it_is_read_verified_and_rolled_back_to() -> None:
    async def work(account: SimulatedAccount) -> None:
        store = await filled(account)
        found = await store.catalogue()
        assert states(found) == {FIRST: State.SUPERSEDED, LIVE: State.LIVE, DRAFT: State.DRAFT}
        for release, name in ((FIRST, "one"), (LIVE, "two")):
            assert await served(store, release, ["user:3", "item:a/b"]) == [a_list(3, name), a_list("i", name)]
            assert (await verify(store, found.find(release).ref)).about == {"of": name}
        assert await life.rollback(store) == FIRST
        assert (await anext(aiter(account.store().changes()))).live == FIRST

    with_simulation(work)


def test_the_next_publish_migrates_the_catalogue_and_prunes_what_is_over() -> None:
    async def work(account: SimulatedAccount) -> None:
        store = await filled(account)
        rows = [Row("popular:", a_list("p", "new")), Row("user:3", a_list(3, "new"))]
        with pytest.raises(ReleaseConflict, match="begun by an older hotplate, in format 1; publish again"):
            await life.publish(store, batches(rows), plan=Plan(2, 1000), about={}, resume=DRAFT)
        new = (await life.publish(store, batches(rows), plan=Plan(2, 1000), about={})).manifest.release
        written, _, _ = await store._items.read_versioned(CONTROL, CATALOGUE)
        assert written is not None
        assert written["catalogue"]["format"] == 2
        assert "releases" not in written["catalogue"]
        found = await account.store().catalogue()
        assert states(found) == {
            FIRST: State.SUPERSEDED,
            LIVE: State.SUPERSEDED,
            DRAFT: State.DROPPING,
            new: State.LIVE,
        }
        assert found.find(LIVE).incarnation == LIVE
        assert found.find(new).incarnation != new
        gone = found.releases[0].ref
        await asyncio.sleep(2000)  # the grace of both is over
        assert sorted(await life.prune(store)) == sorted([FIRST, DRAFT])
        with pytest.raises(ReleaseNotFound):
            await store.get_many(gone, ["user:3"])
        assert await served(store, LIVE, ["user:3"]) == [a_list(3, "two")]
        assert await served(store, new, ["user:3"]) == [a_list(3, "new")]
        assert await life.rollback(store) == LIVE
        assert sorted(await store.incarnations()) == sorted([LIVE, found.find(new).incarnation])

    with_simulation(work)
