"""What only the embedded store can suffer: cut files, full disks, stuck locks, many handles in one process."""

import asyncio
import fcntl
import shutil
from pathlib import Path
from typing import Any

import lmdb
import pytest

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.errors import NotSent, ReleaseNotFound, StoreMisused
from hotplate.stores.file import draft as file_draft
from hotplate.stores.file import store as file_store
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.lifecycle import prune
from hotplate.stores.store import Plan, Row
from hotplate.stores.urls import redacted
from tests.support.clock import FakeClock
from tests.support.stores import allow_erasure, publish, published_rows, ref_of

ROWS = [Row("popular:", b"{}"), *(Row(f"user:{n:06}", b"x" * 500) for n in range(5000))]


async def published(store: LmdbStore) -> ReleaseRef:
    return await ref_of(store, await publish(store, ROWS[:50]))


async def test_foreign_files_are_not_pruned(store: LmdbStore) -> None:
    release = await published(store)
    (store.folder / "releases" / "README.txt").write_text("not ours")
    (store.folder / "releases" / "folder.mdb").mkdir()
    assert await store.incarnations() == [release.incarnation]
    assert await prune(store) == []


def is_first(value: bytes | None) -> bool:
    return value is not None and value.endswith(b"x" * 500)


async def test_mapping_of_a_pruned_release_is_released(store: LmdbStore, clock: FakeClock) -> None:
    reader = LmdbStore(store.folder, clock)
    for _ in range(3):
        assert is_first(reader.get(await ref_of(reader, await publish(store, ROWS[:5])), "user:000001"))
    clock.now += 10_000
    assert len(await prune(store)) == 1
    await reader.catalogue()
    async with asyncio.timeout(60):
        while Path("/proc/self/maps").read_text().count(f"{store.folder}/releases/") != 2:
            await asyncio.sleep(0.01)
    await reader.close()


async def test_mapped_release_stays_readable_after_erase_and_loss_of_its_store(store: LmdbStore) -> None:
    release = await published(store)
    reader = LmdbStore(store.folder)
    assert is_first(reader.get(release, "user:000001"))
    await store.erase(release, allow_erasure)
    assert is_first(reader.get(release, "user:000001"))
    shutil.rmtree(store.folder)
    assert (await reader.catalogue()).generation == 0
    assert is_first(reader.get(release, "user:000001"))
    await reader.close()


async def test_release_pruned_while_it_is_opened_is_not_found(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = await published(store)
    await store.close()  # unmaps it
    open_map = lmdb.open

    def open_later(path: str, **options: Any) -> lmdb.Environment:  # noqa: ANN401 -- LMDB's
        Path(path).unlink()
        return open_map(path, **options)

    monkeypatch.setattr(lmdb, "open", open_later)
    with pytest.raises(ReleaseNotFound, match="was the release pruned"):
        await store.get_many(release, ["user:000001"])


async def test_more_rows_than_planned_are_written(store: LmdbStore) -> None:
    assert len(await published_rows(store, await publish(store, ROWS[:400], 1, plan=Plan(1, 1)))) == 400


async def test_a_draft_is_written_under_a_limit_of_address_space(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_draft, "MAP_BYTES", 1 << 50)  # no process has as much
    assert len(await published_rows(store, await publish(store, ROWS[:400], 1, plan=Plan(1, 1)))) == 400


async def test_a_stuck_lock_is_an_error_and_not_a_hang(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_store, "LOCK_TIMEOUT_S", 0.05)
    await published(store)
    with (store.folder / "catalogue.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(NotSent, match=r"catalogue\.lock was held for 0\.05 s; is a process stuck\?$"):
            await publish(store, ROWS[:2])


@pytest.mark.parametrize(
    "url", ["file://relative/path", "nosuch://host", "", "/plain/path", "ftp://user:secret@host/x?key=secret"]
)
def test_invalid_url_is_an_error_without_secrets(url: str) -> None:
    with pytest.raises(StoreMisused) as caught:
        connect(url)
    assert "secret" not in str(caught.value)
    assert redacted("redis://user:secret@host:1/0?password=secret") == "redis://host:1/0"
