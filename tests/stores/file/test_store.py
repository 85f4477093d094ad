"""What only the embedded store can suffer: cut files, full disks, stuck locks, many handles in one process."""

import asyncio
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import pytest

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.doctor import examine
from hotplate.stores.errors import CatalogueUnreadable, NotSent, ReleaseNotFound, StoreMisused
from hotplate.stores.file import catalogue_file
from hotplate.stores.file import draft as file_draft
from hotplate.stores.file import release as file_release
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.lifecycle import prune
from hotplate.stores.store import Level, LocalRows, Plan, Row
from tests.support.clock import FakeClock
from tests.support.small_disk import small_disk
from tests.support.stores import FIRST, allow_erasure, draft_of, lists_of, publish, published_rows, ref_of, release_ref
from tests.support.waiting import until_true

ROWS = [Row("popular:", b"{}"), *lists_of(5000, b"x" * 500)]


async def published(store: LmdbStore) -> ReleaseRef:
    return await ref_of(store, await publish(store, ROWS[:50]))


async def test_foreign_files_are_not_pruned(store: LmdbStore) -> None:
    release = await published(store)
    (store.folder / "releases" / "README.txt").write_text("not ours")
    (store.folder / "releases" / "folder.mdb").mkdir()
    assert await store.incarnations() == [release.incarnation]
    assert await prune(store) == []


async def test_catalogue_has_the_time_of_each_read_and_is_checked_after_each_change(
    store: LmdbStore, clock: FakeClock
) -> None:
    await published(store)
    first = await store.catalogue()
    clock.now += 5
    second = await store.catalogue()
    assert (second, second.now) == (first, first.now + 5)

    path = store.folder / "catalogue.json"
    record = path.read_bytes()
    path.write_bytes(record.replace(b'"generation": ', b'"generation": 1'))
    with pytest.raises(CatalogueUnreadable, match="checksum"):
        await store.catalogue()
    path.write_bytes(record)
    assert await store.catalogue() == first


def is_first(value: bytes | None) -> bool:
    return value is not None and value.endswith(b"x" * 500)


async def test_mapping_of_a_pruned_release_is_released(store: LmdbStore, clock: FakeClock) -> None:
    reader = LmdbStore(store.folder, clock)
    for _ in range(3):
        assert is_first(reader.get(await ref_of(reader, await publish(store, ROWS[:5])), "user:000001"))
    clock.now += 10_000
    assert len(await prune(store)) == 1
    await reader.catalogue()
    await until_true(lambda: Path("/proc/self/maps").read_text().count(f"{store.folder}/releases/") == 2)
    await reader.close()


def open_files(folder: Path) -> int:
    """Return how many files of releases this process has open, or has mapped."""
    opened = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    mapped = Path("/proc/self/maps").read_text().splitlines()
    return sum(f"{folder}/releases/" in name for name in (*opened, *mapped))


async def test_publishes_without_a_prune_keep_few_files_open(store: LmdbStore) -> None:
    reader = LmdbStore(store.folder)
    for _ in range(30):
        live = await ref_of(reader, await publish(store, ROWS[:5]))
        assert is_first(reader.get(live, "user:000001"))
    assert len(await store.incarnations()) == 30
    await until_true(lambda: open_files(store.folder) <= 40)
    await reader.close()


async def test_read_during_the_closing_of_its_file_ends_or_is_refused(store: LmdbStore) -> None:
    release = await ref_of(store, await publish(store, [ROWS[0], Row("user:000001", b"x" * 3_000_000)]))
    for _ in range(20):
        reader = LmdbStore(store.folder)
        await store.close()  # leaves the reader as the last user
        rows = reader.rows_of(release)
        closed = threading.Event()

        def read_until_refused(read: LocalRows = rows, closed: threading.Event = closed) -> type:
            while True:
                is_last = closed.is_set()
                try:
                    value = read.read(b"user:000001")
                except Exception as error:  # noqa: BLE001 -- its type is asserted
                    return type(error)
                assert value is not None
                assert value.endswith(b"x" * 3_000_000)
                assert not is_last

        with ThreadPoolExecutor(2) as threads:
            reading = [threads.submit(read_until_refused) for _ in range(2)]
            await reader.close()
            closed.set()
            assert [future.result() for future in reading] == [ReleaseNotFound] * 2


async def test_scan_goes_on_after_its_handle_has_closed_the_file(store: LmdbStore) -> None:
    release = await published(store)
    scan = store.scan(release)
    rows = [await anext(scan)]
    await store.close()
    rows += [row async for row in scan]
    assert len(rows) == 51


async def test_scan_lets_other_tasks_run(store: LmdbStore) -> None:
    release = await ref_of(store, await publish(store, ROWS[:2000]))
    await store.check_integrity(release)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    before = [turns async for _ in store.scan(release)]
    counting.cancel()
    assert before[-1] - before[0] >= 3


@pytest.mark.parametrize("read", ["get_many", "scan", "warm"])
async def test_file_that_is_being_unmapped_is_awaited_without_blocking_the_loop(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    release = await published(store)
    await store.close()
    reader = LmdbStore(store.folder)
    await reader.get_many(release, ["user:000001"])
    may_end = threading.Event()
    ended_in_time = list[bool]()
    monkeypatch.setattr(file_release, "release_map", lambda *_: ended_in_time.append(may_end.wait(10)))
    closing = asyncio.create_task(reader.close())
    await asyncio.sleep(0)

    async def reopen() -> None:
        other = LmdbStore(store.folder)
        if read == "scan":
            assert len([row async for row in other.scan(release)]) == 51
        else:
            await getattr(other, read)(release, *([["user:000001"]] if read == "get_many" else []))
        monkeypatch.undo()
        await other.close()

    reopening = asyncio.create_task(reopen())
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.gather(closing, reopening)
    assert ended_in_time == [True]


async def test_file_that_is_being_unmapped_delays_no_other_file(
    store: LmdbStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = await published(store)
    publisher = LmdbStore(tmp_path / "other")
    other_release = await published(publisher)
    await publisher.close()
    other = LmdbStore(publisher.folder)
    assert is_first(store.get(release, "user:000001"))
    may_end = threading.Event()
    monkeypatch.setattr(file_release, "release_map", lambda *_: may_end.wait(10))
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)

    again = LmdbStore(store.folder)
    with ThreadPoolExecutor(2) as pool:
        reopening = pool.submit(again.get, release, "user:000001")
        await asyncio.sleep(0.05)  # it waits for the end of the unmapping
        reading = pool.submit(other.get, other_release, "user:000001")
        try:
            assert is_first(reading.result(5))
            assert not reopening.done()
        finally:
            may_end.set()
        assert is_first(reopening.result())
    await closing
    await again.close()
    await other.close()


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


async def test_rows_in_any_order_are_written(store: LmdbStore) -> None:
    draft = draft_of(FIRST)
    await store.create(draft, Plan(4, 1000))
    keys = ["user:1", "user:4", "user:2", "user:3"]
    await store.put(draft, [Row(key, key.encode()) for key in keys])
    await store.seal(draft)
    assert [row.key async for row in store.scan(release_ref(FIRST))] == sorted(keys)


async def test_more_rows_than_planned_are_written(store: LmdbStore) -> None:
    assert len(await published_rows(store, await publish(store, ROWS[:400], 1, plan=Plan(1, 1)))) == 400


async def test_a_draft_is_written_under_a_limit_of_address_space(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_draft, "MAP_BYTES", 1 << 50)  # no process has as much
    assert len(await published_rows(store, await publish(store, ROWS[:400], 1, plan=Plan(1, 1)))) == 400


async def test_read_only_mount_is_named_by_the_doctor(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4_000_000) as disk:
        store = LmdbStore(disk)
        release = await published(store)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)  # noqa: ASYNC221 -- it may block here
        sentences = {finding.subject: finding.sentence for finding in await store.examine()}
        assert sentences["may read"] == "yes"
        assert "to publish, mount its file system for writing" in sentences["may publish"]
        assert is_first(store.get(release, "user:000001"))
        await store.close()


async def test_folder_with_disk_errors_is_a_finding_of_the_doctor(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await published(store)
    list_folder = os.scandir

    def fail(path: Any) -> Any:  # noqa: ANN401 -- as `os.scandir` has it
        if Path(path) == store.folder / "releases":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", fail)
    findings = await examine(store)
    assert any("Input/output error" in finding.sentence for finding in findings if finding.level is Level.ERROR)


SEALER = """
import asyncio, sys
from pathlib import Path
from hotplate.stores.catalogue import DraftRef
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Plan, Row

async def main():
    store, draft = LmdbStore(Path(sys.argv[1])), DraftRef(*sys.argv[2:])
    await store.create(draft, Plan(10, 1000))
    await store.put(draft, [Row("user:000001", b"list")])
    await store.seal(draft)

asyncio.run(main())
"""


async def test_release_has_the_format_that_is_read_whatever_lmdb_prefers(store: LmdbStore) -> None:
    command = [sys.executable, "-c", SEALER, str(store.folder), *draft_of(FIRST)]
    environment = {**os.environ, "LMDB_DEFAULT_LIB_VERSION": "1"}
    await asyncio.to_thread(subprocess.run, command, env=environment, check=True)
    assert await store.get_many(release_ref(FIRST), ["user:000001"]) == [b"list"]


async def test_a_stuck_lock_is_an_error_and_not_a_hang(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_file, "LOCK_TIMEOUT_S", 0.05)
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
