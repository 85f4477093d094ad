"""Before a release is served it is seen that it can be: no verb makes live what nobody can read."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from hotplate.serve.releases.follower import Follower
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.errors import ReleaseConflict, ReleaseCorrupt, StoreUnavailable
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Row, Slot, Store
from hotplate.stores.verification import load_manifest
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list
from tests.support.stores import publish as publish_rows
from tests.support.stores import ref_of
from tests.support.virtual import virtual

ROWS = [
    Row("popular:", a_list("p")),
    Row("popular:s", a_list("s")),
    *(Row(f"user:{n:04}", a_list(str(n))) for n in range(1000)),
]

Verb = Callable[..., Awaitable[object]]


async def publish(store: Store, *, live: bool = True) -> ReleaseId:
    return await publish_rows(store, ROWS, live=live)


verbs = pytest.mark.parametrize(
    "verb",
    [
        pytest.param(life.activate, id="activate"),
        pytest.param(lambda store, _, **options: life.rollback(store, **options), id="roll back"),
        pytest.param(partial(life.start_canary, percent=5), id="show"),
    ],
)


async def two_releases(store: Store) -> tuple[ReleaseId, ReleaseId]:
    """Publish one release and make another live after it; return what is to be served, and what is."""
    return await publish(store), await publish(store)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_the_head(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[24] ^= 0xFF
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


@verbs
@pytest.mark.parametrize("spoil", [cut, empty, flip_the_head, remove])
async def test_unreadable_file_is_not_made_live_and_later_workers_still_serve(
    tmp_path: Path, verb: Verb, spoil: Callable[[Path], None]
) -> None:
    store = LmdbStore(tmp_path)
    target, live = await two_releases(store)
    path = tmp_path / "releases" / f"{(await ref_of(store, target)).incarnation}.mdb"
    await store.close()
    spoil(path)
    store, before = LmdbStore(tmp_path), await store.catalogue()
    with pytest.raises(ReleaseCorrupt, match=r"cannot be served, and nothing was changed: .*--force overrides this"):
        await verb(store, target)
    assert await store.catalogue() == before
    await store.close()
    later = LmdbStore(tmp_path)
    served = await Follower(later).refresh()
    assert served is not None
    assert served.id == live
    await later.close()


async def test_canary_ended_while_its_share_is_changed_is_not_restarted() -> None:
    class EndedMeanwhile(MemoryStore):
        async def prepare(self, release: ReleaseRef) -> None:
            await super().prepare(release)
            if (await self.catalogue()).canary is not None:
                await life.abort(self)

    store = EndedMeanwhile()
    target, _ = await two_releases(store)
    await life.start_canary(store, target, 5)
    with pytest.raises(ReleaseConflict, match="is not the canary any more"):
        await life.start_canary(store, target, 50)
    assert (await store.catalogue()).canary is None


async def test_release_pruned_during_inspection_is_not_reported_as_damaged() -> None:
    class PrunedMeanwhile(MemoryStore):
        async def get_many(
            self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
        ) -> list[Slot]:
            await life.prune(self, grace_s=0.0, keep=0)
            return await super().get_many(release, keys, timeout_s=timeout_s)

    store = PrunedMeanwhile()
    target, live = await two_releases(store)
    with pytest.raises(ReleaseConflict, match=f"release {target} was pruned meanwhile"):
        await life.activate(store, target)
    assert (await store.catalogue()).live == live


@verbs
@pytest.mark.parametrize("lost", ["meta:manifest", "popular:", "user:"])
async def test_release_without_manifest_popular_list_or_most_rows_must_be_forced(verb: Verb, lost: str) -> None:
    store = MemoryStore()
    target, live = await two_releases(store)
    rows = store.find(await ref_of(store, target)).rows
    for key in list(rows):
        if key == lost or (key.startswith(lost) and not key.endswith(("1", "2", "3"))):
            del rows[key]
    with pytest.raises(ReleaseCorrupt, match="cannot be served"):
        await verb(store, target)
    assert ((await store.catalogue()).live, (await store.catalogue()).canary) == (live, None)
    await verb(store, target, force=True)
    found = await store.catalogue()
    assert target in (found.live, found.canary and found.canary.release)


@verbs
@pytest.mark.parametrize("is_lost", [False, True])
async def test_one_bad_row_of_the_sample_is_said_and_the_release_goes_live(
    caplog: pytest.LogCaptureFixture, verb: Verb, *, is_lost: bool
) -> None:
    store = MemoryStore()
    target, _ = await two_releases(store)
    ref = await ref_of(store, target)
    key, rows = (await load_manifest(store, ref)).sample[0], store.find(ref).rows
    rows[key] = rows[key][:-1] + b"~"
    if is_lost:
        del rows[key]
    with caplog.at_level(logging.WARNING):
        await verb(store, target)
    assert f"release {target} can be served, but is damaged: '{key}'" in caplog.text
    found = await store.catalogue()
    assert target in (found.live, found.canary and found.canary.release)


@virtual
async def test_unresponsive_store_is_awaited_30_seconds_without_changes() -> None:
    class Slow(MemoryStore):
        async def get_many(
            self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
        ) -> list[Slot]:
            await asyncio.sleep(1e6)
            return await super().get_many(release, keys, timeout_s=timeout_s)

    store = MemoryStore()
    target, live = await two_releases(store)
    store.__class__ = Slow
    with pytest.raises(StoreUnavailable, match="could not be read within 30 s"):
        await life.activate(store, target)
    assert (await store.catalogue()).live == live
