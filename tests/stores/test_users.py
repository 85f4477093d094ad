"""Erased users stay erased, whatever goes live, is copied, put back or rebuilt."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import users
from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseId, State
from hotplate.stores.erasure import MAX_ERASED, ErasedUsers
from hotplate.stores.erasure_log import ErasureLog, erased_from, read_log
from hotplate.stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreMisused
from hotplate.stores.file.backup import backup, restore
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.rebuild import rebuild, survey
from hotplate.stores.store import Reader, Row, Store
from hotplate.stores.transfer import copy
from hotplate.stores.users import erase_users, find_users
from hotplate.stores.verification import verify
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list
from tests.support.stores import OpenStore, on_every_store, publish, ref_of
from tests.support.virtual import virtual

ROWS = [Row("popular:", a_list("p1")), *(Row(f"user:{number}", a_list("a", "b")) for number in range(8))]


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[LmdbStore]:
    store = LmdbStore(tmp_path / "store")
    yield store
    await store.close()


async def published(store: Store) -> ReleaseId:
    return await publish(store, ROWS)


async def is_erased(store: Store, user: str) -> bool:
    return (await erased_from(store)).covers(f"user:{user}")


@on_every_store
async def test_record_forgets_the_missing_rows_of_pruned_releases(open_store: OpenStore) -> None:
    store = open_store()
    for user in range(4):
        release = await ref_of(store, await published(store))
        await life.prune(store, keep=0, grace_s=0.0)
        await erase_users(store, [str(user)])
    missing_by_release = (await read_log(store)).users.missing_by_release
    assert {name: len(missing.key_hashes) for name, missing in missing_by_release.items()} == {release.incarnation: 1}
    assert [await is_erased(store, str(user)) for user in range(5)] == [True] * 4 + [False]
    await verify(store, release)


@virtual
async def test_erasure_pauses_after_lost_races_and_gives_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    await published(store)
    lost_at_s = list[float]()

    async def lose(*_: object) -> None:
        lost_at_s.append(asyncio.get_running_loop().time())
        raise ReleaseConflict("another process changed the catalogue first")

    monkeypatch.setattr(store, "swap", lose)
    with pytest.raises(ReleaseConflict, match="try again when it is quieter"):
        await erase_users(store, ["1"])
    assert len(lost_at_s) == life.SWAP_ATTEMPTS
    assert len(set(lost_at_s)) == life.SWAP_ATTEMPTS


@on_every_store
async def test_copy_leaves_out_erased_users_and_verifies(open_store: OpenStore) -> None:
    store = open_store()
    target = MemoryStore()
    release = await published(store)
    await erase_users(store, ["7"])
    await copy(store, target, release)
    assert await is_erased(target, "7")
    assert not (await find_users(target, ["7"])).holding
    await verify(target, await ref_of(target, release))
    again = await copy(store, target, release)
    assert (again.rows, again.repaired) == (0, False)


async def test_copy_of_an_existing_release_applies_erasures() -> None:
    store = MemoryStore()
    target = MemoryStore()
    release = await published(store)
    await copy(store, target, release)
    await erase_users(target, ["6"])
    await erase_users(store, ["7"])
    await copy(store, target, release)
    assert await is_erased(target, "7")
    assert (await erase_users(target, ["7"])).deleted == 1
    await verify(target, await ref_of(target, release))


class Erasing(MemoryStore):
    """A target during the first put of which a user is erased from the source."""

    source: Store
    erasures = 0

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        if not self.erasures:
            self.erasures += 1
            await erase_users(self.source, ["7"])
        await super().put(draft, rows, part)


@on_every_store
async def test_user_erased_during_a_copy_is_erased_in_the_target(open_store: OpenStore) -> None:
    target = Erasing()
    target.source = open_store()
    release = await published(target.source)
    await copy(target.source, target, release)
    assert await is_erased(target, "7")
    await verify(target, await ref_of(target, release))


async def test_a_restore_over_a_store_keeps_its_erased_users(folder: LmdbStore, tmp_path: Path) -> None:
    await published(folder)
    await backup(folder, tmp_path / "before")
    await erase_users(folder, ["7"])
    await restore(tmp_path / "before", folder, over=True)
    assert await is_erased(folder, "7")
    await backup(folder, tmp_path / "after")
    await restore(tmp_path / "after", other := LmdbStore(tmp_path / "other"))
    assert await is_erased(other, "7")
    await erase_users(other, ["6"])
    await restore(tmp_path / "after", other, over=True)
    assert [user for user in "567" if await is_erased(other, user)] == ["6", "7"]
    for entry in (await other.catalogue()).releases:
        await verify(other, entry.ref)
    await other.close()


async def test_erasing_twice_changes_nothing_and_too_many_are_refused() -> None:
    store = MemoryStore()
    with pytest.raises(ReleaseNotFound, match="nothing was ever published"):
        await erase_users(store, ["7"])
    await published(store)
    await erase_users(store, ["7"])
    before = await store.catalogue()
    await erase_users(store, ["7"])
    assert (await store.catalogue()).version == before.version
    with pytest.raises(StoreMisused, match=f"{MAX_ERASED:,}"):
        ErasedUsers().with_users(str(number) for number in range(MAX_ERASED + 1)).check_bounds()


async def test_find_names_releases_and_drafts(folder: LmdbStore) -> None:
    release = await published(folder)
    assert (await find_users(folder, ["7", "nobody"])).holding == {release: ("7",)}
    await erase_users(folder, ["7"])
    locations = await find_users(folder, ["7"])
    assert (locations.erased, locations.holding) == (("7",), {release: ("7",)})  # until its file is pruned
    assert Catalogue().erased is None
    assert (await folder.catalogue()).find(release).state is State.LIVE


async def test_user_is_erased_although_the_file_of_a_release_was_cut(folder: LmdbStore) -> None:
    damaged = await published(folder)
    path = folder.folder / "releases" / f"{(await ref_of(folder, damaged)).incarnation}.mdb"
    await folder.close()  # a mapped file that is cut ends its reader
    os.truncate(path, path.stat().st_size // 2)
    intact = await published(folder)
    erasure = await erase_users(folder, ["7", "nobody"])
    assert erasure.erased == ("7", "nobody")
    assert erasure.holding == {damaged: ("7", "nobody"), intact: ("7",)}
    await verify(folder, await ref_of(folder, intact))


async def test_prune_during_an_erasure_keeps_records_named_later(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    await published(store)

    async def pruned_at_once(of: Reader) -> ErasureLog:
        monkeypatch.undo()
        log = await read_log(of)
        await publish(store, ROWS)
        await life.prune(store, grace_s=0.0)
        return log

    monkeypatch.setattr(users, "read_log", pruned_at_once)
    await erase_users(store, ["7"])
    assert await is_erased(store, "7")


async def test_rebuild_with_damaged_records_is_refused(folder: LmdbStore) -> None:
    await published(folder)
    await erase_users(folder, ["7"])
    (folder.folder / "records" / "erased.json").write_bytes(b"damaged")
    (folder.folder / "catalogue.json").write_bytes(b"{}")
    await assert_rebuilt_by_force(folder)


async def assert_rebuilt_by_force(folder: LmdbStore) -> None:
    surveyed = await survey(folder)
    with pytest.raises(ReleaseCorrupt, match=r"record of erased users cannot be read.*--force"):
        await rebuild(folder, surveyed, surveyed.only())
    assert (await rebuild(folder, surveyed, surveyed.only(), force=True)).live == surveyed.only()


async def test_prune_during_a_restore_keeps_records_named_later(folder: LmdbStore, tmp_path: Path) -> None:
    await published(folder)
    await erase_users(folder, ["7"])
    await backup(folder, tmp_path / "backup")
    other = LmdbStore(tmp_path / "other")
    await published(other)
    await erase_users(other, ["6"])

    def pruned(_done: int, _total: int) -> None:
        prunes.append(asyncio.run_coroutine_threadsafe(life.prune(other, grace_s=0.0), loop))

    loop = asyncio.get_running_loop()
    prunes = list[Future[list[ReleaseId]]]()
    await restore(tmp_path / "backup", other, pruned, over=True)
    await asyncio.gather(*map(asyncio.wrap_future, prunes), return_exceptions=True)
    assert [user for user in "567" if await is_erased(other, user)] == ["6", "7"]
    await other.close()
