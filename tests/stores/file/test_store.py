"""What only the embedded store can suffer: cut files, full disks, stuck locks, many handles in one process."""

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import connect, default_url
from hotplate.stores.errors import CatalogueUnreadable, ReleaseCorrupt, StoreFull, StoreMisused, StoreUnavailable
from hotplate.stores.file import catalogue as catalogue_file
from hotplate.stores.file.draft import file_bytes
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.lifecycle import prune, publish
from hotplate.stores.memory import MemoryStore
from hotplate.stores.store import Plan, Row
from hotplate.stores.urls import redacted
from tests.support.clock import FakeClock
from tests.support.stores import as_bodies, batches, ref_of

ROWS = [Row("popular:", b"{}"), *(Row(f"user:{n:06}", b"x" * 500) for n in range(5000))]
PLAN = Plan(len(ROWS), 3_000_000)


async def published(folder: Path) -> tuple[LmdbStore, ReleaseRef, Path]:
    store = LmdbStore(folder)
    manifest = (await publish(store, batches([*ROWS[:50]]), plan=PLAN, about={})).manifest
    release = await ref_of(store, manifest.release)
    return store, release, folder / "releases" / f"{release.incarnation}.mdb"


async def test_what_is_no_file_of_a_release_is_not_pruned(tmp_path: Path) -> None:
    store, release, path = await published(tmp_path / "store")
    (path.parent / "README.txt").write_text("not ours")
    (path.parent / "folder.mdb").mkdir()
    assert await store.incarnations() == [release.incarnation]
    assert await prune(store) == []
    await store.close()


def is_first(value: bytes | None) -> bool:
    return value is not None and value.endswith(b"x" * 500)


@pytest.mark.parametrize("left", [0, 100, 5000, -1])
async def test_a_cut_file_is_refused_at_open_and_kills_no_process(tmp_path: Path, left: int) -> None:
    store, release, path = await published(tmp_path)
    await store.close()
    os.truncate(path, left if left >= 0 else path.stat().st_size - 1)
    with pytest.raises(ReleaseCorrupt, match=r"cut|not a release file"):
        store.get(release, "user:000001")
    await store.close()


async def test_a_mapped_release_stays_readable_after_it_is_erased_until_the_catalogue_is_read(tmp_path: Path) -> None:
    store, release, _ = await published(tmp_path)
    reader = LmdbStore(tmp_path)
    assert is_first(reader.get(release, "user:000001"))
    await store.erase(release)
    assert is_first(reader.get(release, "user:000001"))
    await store.close()
    await reader.close()


async def test_the_map_of_a_pruned_release_is_given_back(tmp_path: Path) -> None:
    clock = FakeClock()
    store, reader = LmdbStore(tmp_path, clock), LmdbStore(tmp_path, clock)
    for _ in range(3):
        manifest = (await publish(store, batches(ROWS[:5]), plan=PLAN, about={})).manifest
        assert is_first(reader.get(await ref_of(reader, manifest.release), "user:000001"))
    clock.now += 10_000
    assert len(await prune(store)) == 1
    await reader.catalogue()
    async with asyncio.timeout(60):
        while Path("/proc/self/maps").read_text().count(f"{tmp_path}/releases/") != 2:
            await asyncio.sleep(0.01)
    await store.close()
    await reader.close()


async def test_a_release_that_is_mapped_is_read_on_when_its_store_has_vanished(tmp_path: Path) -> None:
    store, release, _ = await published(tmp_path / "store")
    reader = LmdbStore(tmp_path / "store")
    assert is_first(reader.get(release, "user:000001"))
    shutil.rmtree(tmp_path / "store")
    assert (await reader.catalogue()).generation == 0
    assert is_first(reader.get(release, "user:000001"))
    await store.close()
    await reader.close()


async def test_a_full_disk_is_refused_beforehand_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    store = LmdbStore(tmp_path)
    with pytest.raises(StoreFull, match=r"needs about 4 MB .* and 1 MB are free"):
        await publish(store, batches(ROWS), plan=PLAN, about={})
    assert (await store.catalogue()).releases == ()


@pytest.mark.parametrize("size", [10, 100, 300, 560, 600, 1200, 1500, 2000, 2100, 2500, 5000])
async def test_the_estimated_size_of_a_file_suffices_and_is_not_far_off(tmp_path: Path, size: int) -> None:
    async def at_once() -> AsyncIterator[list[Row]]:
        yield as_bodies(rows)

    store = LmdbStore(tmp_path)
    rows = [Row("popular:", b"{}"), *(Row(f"user:{n:06}", b"x" * size) for n in range(5000))]
    manifest = (await publish(store, at_once(), plan=PLAN, about={})).manifest
    incarnation = (await ref_of(store, manifest.release)).incarnation
    found = (tmp_path / "releases" / f"{incarnation}.mdb").stat().st_size
    assert found <= file_bytes(len(rows), manifest.bytes) <= 1.6 * found
    await store.close()


async def test_more_rows_than_planned_are_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.stores.file.draft.FIRST_MAP_BYTES", 1 << 16)
    store = LmdbStore(tmp_path)
    manifest = (await publish(store, batches(ROWS[:400]), plan=Plan(1, 1), about={})).manifest
    assert manifest.counts["user"] == 399
    await store.close()


async def test_a_stuck_lock_is_an_error_and_not_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_file, "LOCK_TIMEOUT_S", 0.05)
    store, _, _ = await published(tmp_path)
    with (tmp_path / "catalogue.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreUnavailable, match="held"):
            await publish(store, batches(ROWS[:2]), plan=PLAN, about={})
    await store.close()


async def test_an_unreadable_catalogue_is_an_error_and_not_an_empty_store(tmp_path: Path) -> None:
    store, _, _ = await published(tmp_path)
    (tmp_path / "catalogue.json").write_text("{")
    with pytest.raises(CatalogueUnreadable, match=r"catalogue\.json"):
        await store.catalogue()
    await store.close()


async def test_a_copy_of_the_folder_by_hard_links_keeps_the_catalogue_that_it_had(tmp_path: Path) -> None:
    store, _, _ = await published(tmp_path / "store")
    copy = tmp_path / "copy.json"
    copy.hardlink_to(tmp_path / "store" / "catalogue.json")
    copied = copy.read_bytes()
    for _ in range(2):
        await publish(store, batches(ROWS[:2]), plan=PLAN, about={})
    assert copy.read_bytes() == copied
    await store.close()


async def test_a_key_that_is_no_text_is_absent_and_fails_no_other(tmp_path: Path) -> None:
    store, release, _ = await published(tmp_path)
    (found,) = await asyncio.gather(store.get_many(release, ["user:\ud800", "user:000001"]), return_exceptions=True)
    assert isinstance(found, list), found
    absent, value = found
    assert absent is None
    assert isinstance(value, bytes)
    assert is_first(value)
    assert store.get(release, "user:\ud800") is None
    await store.close()


async def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot be"):
        await publish(LmdbStore(tmp_path / "file" / "store"), batches(ROWS[:2]), plan=PLAN, about={})


async def test_many_publishers_at_once_all_succeed(tmp_path: Path) -> None:
    stores = [LmdbStore(tmp_path) for _ in range(6)]
    results = await asyncio.gather(*(publish(store, batches(ROWS[:9]), plan=PLAN, about={}) for store in stores))
    found = await stores[0].catalogue()
    assert {entry.id for entry in found.releases} == {result.manifest.release for result in results}
    for store in stores:
        await store.close()


def test_urls_choose_the_store() -> None:
    assert isinstance(connect("memory://"), MemoryStore)
    store = connect("file:///tmp/x")
    assert isinstance(store, LmdbStore)
    assert store.folder == Path("/tmp/x")
    assert default_url().startswith("file:///")


@pytest.mark.parametrize(
    "url", ["file://relative/path", "nosuch://host", "", "/plain/path", "ftp://user:secret@host/x?key=secret"]
)
def test_a_wrong_url_is_a_sentence_without_secrets(url: str) -> None:
    with pytest.raises(StoreMisused) as caught:
        connect(url)
    assert "secret" not in str(caught.value)
    assert redacted("redis://user:secret@host:1/0?password=secret") == "redis://host:1/0"
