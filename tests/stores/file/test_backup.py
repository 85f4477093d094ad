"""Backups are consistent under changes, complete or absent; restored data are followed at once."""

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest

from hotplate.stores.catalogue import DRAFT_GRACE_S, GRACE_S, LEASE_S, ReleaseId, State, follows
from hotplate.stores.doctor import examine
from hotplate.stores.erasure_log import erased_from
from hotplate.stores.errors import (
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreFull,
    StoreMisused,
    StoreUnavailable,
)
from hotplate.stores.file.backup import READ_CHUNK, backup, restore
from hotplate.stores.file.catalogue_file import CatalogueFile
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.lifecycle import abort, activate, prune, rollback, start_canary
from hotplate.stores.publication import begin
from hotplate.stores.rebuild import rebuild, survey
from hotplate.stores.store import Row
from hotplate.stores.users import erase_users
from hotplate.stores.verification import verify
from tests.support.clock import FakeClock
from tests.support.small_disk import small_disk
from tests.support.stores import publish, published_rows, ref_of
from tests.support.system_calls import patch_calls, run, schedules

T = TypeVar("T")


def rows(word: str) -> list[Row]:
    return [Row("popular:", b"{}"), *(Row(f"user:{n:03}", word.encode() * 20) for n in range(199))]


async def published(store: LmdbStore, word: str, *, live: bool = True) -> ReleaseId:
    return await publish(store, rows(word), 50, live=live)


async def states(store: LmdbStore) -> dict[ReleaseId, str]:
    return {entry.id: entry.state.value for entry in (await store.catalogue()).releases}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backups" / "monday"


async def verified(folder: Path) -> LmdbStore:
    """Open a store of which every release adds up."""
    store = LmdbStore(folder)
    for entry in (await store.catalogue()).releases:
        await verify(store, entry.ref)
    return store


async def test_backup_is_a_store_of_complete_releases(store: LmdbStore, target: Path) -> None:
    first = await published(store, "first")
    second = await published(store, "second")
    third = await published(store, "third", live=False)
    await begin(store, ReleaseId("20261120T064200Z-aaaa"))
    progress = list[tuple[int, int]]()
    target.mkdir(parents=True)
    result = await backup(store, target, lambda *done: progress.append(done))
    assert (result.live, result.releases) == (second, (first, second, third))
    assert progress[-1] == (result.copied_bytes, result.copied_bytes)
    catalogue = await verified(target)
    assert await states(catalogue) == {first: "superseded", second: "live", third: "ready"}
    assert await published_rows(catalogue, second) == rows("second")
    await activate(catalogue, third)
    assert await rollback(catalogue) == second
    assert await rollback(catalogue) == first
    await catalogue.close()
    assert [path.name for path in target.parent.iterdir()] == ["monday"]


async def test_backup_during_publishes_and_prunes_is_consistent(store: LmdbStore, target: Path) -> None:
    lists = {await published(store, "0"): "0"}
    backups = 0

    async def churn() -> None:
        while len(lists) < 12 or backups < 2:
            number = str(len(lists))
            lists[await published(store, number)] = number
            await prune(store, keep=0, grace_s=0.0)

    churning = asyncio.create_task(churn())
    while not churning.done():
        await backup(store, target.with_name(f"{backups}"))
        backups += 1
    await churning
    for folder in target.parent.iterdir():
        catalogue = await verified(folder)
        live = (await catalogue.catalogue()).live
        assert live is not None
        assert await published_rows(catalogue, live) == rows(lists[live])
        await catalogue.close()


async def test_failed_backup_leaves_nothing_behind(store: LmdbStore, target: Path) -> None:
    with pytest.raises(ReleaseNotFound, match="holds no store"):
        await backup(store, target)
    release = await ref_of(store, await published(store, "first"))
    path = store.folder / "releases" / f"{release.incarnation}.mdb"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"first", b"farst"))
    with pytest.raises(ReleaseCorrupt, match="damaged between bytes") as error:
        await backup(store, target)
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(ReleaseNotFound, match=release.incarnation):
        await backup(store, target)
    assert list(target.parent.iterdir()) == []


async def test_full_backup_disk_is_refused_with_the_sizes(
    store: LmdbStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await published(store, "first")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(StoreFull, match=r"needs about 0 MB in .*0 MB are free"):
        await backup(store, target)
    assert list(target.parent.iterdir()) == []


async def test_backup_into_an_empty_folder_keeps_its_mode(store: LmdbStore, target: Path) -> None:
    await published(store, "first")
    target.mkdir(mode=0o700, parents=True)

    def fail(*_: int) -> None:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        await backup(store, target, fail)
    assert target.stat().st_mode & 0o777 == 0o700
    await backup(store, target)
    assert target.stat().st_mode & 0o777 == 0o700


async def test_backup_into_a_mount_point_is_refused_before_the_copy(
    store: LmdbStore, target: Path, tmp_path: Path
) -> None:
    await published(store, "first")
    progress = list[tuple[int, int]]()
    with small_disk(tmp_path / "disk", 4_000_000) as disk:
        with pytest.raises(StoreMisused, match="if it is a mount point, name a folder in it"):
            await backup(store, disk, lambda *done: progress.append(done))
        assert progress == []
        await backup(store, disk / "monday")
    target.mkdir(parents=True)
    (tmp_path / "link").symlink_to(target)
    await backup(store, tmp_path / "link")
    await (await verified(target)).close()


async def test_read_error_of_a_backup_names_the_file_that_was_read(
    store: LmdbStore, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = await ref_of(store, await published(store, "first"))
    path = store.folder / "releases" / f"{release.incarnation}.mdb"
    read = os.pread

    def pread(file: int, size: int, place: int) -> bytes:
        if size == READ_CHUNK:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(file, size, place)

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(StoreUnavailable, match=rf"^{path} cannot be used: .*Input/output error"):
        await backup(store, target)


KILLED = """
import asyncio, sys
from pathlib import Path
from hotplate.stores.file.backup import backup
from hotplate.stores.file.store import LmdbStore

def on_progress(done, total):
    print(done, flush=True)
    sys.stdin.readline()

asyncio.run(backup(LmdbStore(Path(sys.argv[1])), Path(sys.argv[2]), on_progress))
"""


async def test_killed_backup_is_absent_and_the_next_one_removes_its_leftovers(store: LmdbStore, target: Path) -> None:
    await published(store, "first")
    processes = [
        subprocess.Popen(  # noqa: ASYNC220 -- starting a process may block here
            [sys.executable, "-c", KILLED, str(store.folder), str(target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline()
    dead, living = processes
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    assert not target.exists()
    assert len(list(target.parent.iterdir())) == 2
    other = target.with_name("tuesday")
    await backup(store, other)
    assert len(list(target.parent.glob(".hotplate-backup-*"))) == 1, "whose owner lives"
    with pytest.raises(StoreMisused, match="name a folder that is new, or empty"):
        await backup(store, other)
    await backup(store, target)
    living.communicate(b"\n" * 9)
    assert sorted(path.name for path in target.parent.iterdir()) == ["monday", "tuesday"]
    await (await verified(target)).close()


async def test_leftovers_of_a_killed_restore_are_named_and_pruned(store: LmdbStore, target: Path) -> None:
    await published(store, "first")
    await backup(store, target)
    left = store.folder / "releases" / "restored-1-0123abcd"
    (left / "releases").mkdir(parents=True)
    (left / ".lock").touch()
    (left / "releases" / "a.mdb").write_bytes(b"lists of users")
    assert any(left.name in finding.sentence for finding in await examine(store))
    assert await prune(store, grace_s=0) == [f"unknown-{left.name}"]
    assert not left.exists()


async def test_backup_is_restored_into_an_empty_folder(store: LmdbStore, target: Path, tmp_path: Path) -> None:
    first = await published(store, "first")
    second = await published(store, "second")
    await backup(store, target)
    elsewhere = LmdbStore(tmp_path / "elsewhere")
    result = await restore(target, elsewhere)
    assert result.live == second
    catalogue = await verified(elsewhere.folder)
    assert await states(catalogue) == {first: "superseded", second: "live"}
    assert (await catalogue.catalogue()).store_id == (await store.catalogue()).store_id
    assert sorted(path.name for path in elsewhere.folder.iterdir() if path.name[0] == ".") == []
    await catalogue.close()
    with pytest.raises(ReleaseConflict, match="or give --over"):
        await restore(target, elsewhere)
    with pytest.raises(ReleaseNotFound, match="holds no store"):
        await restore(tmp_path / "nowhere", elsewhere, over=True)


async def test_backup_restored_over_a_store_in_use_is_followed(
    store: LmdbStore, target: Path, clock: FakeClock
) -> None:
    first = await published(store, "first")
    second = await published(store, "second")
    await backup(store, target)
    third = await published(store, "third")
    draft = await begin(store, ReleaseId("20261120T064200Z-aaaa"))
    worker = LmdbStore(store.folder, clock)
    seen = await worker.poll()
    assert seen.live == third
    value = worker.get(await ref_of(worker, third), "user:001")

    result = await restore(target, store, over=True)
    assert result.live == second
    catalogue = await worker.poll()
    assert follows(catalogue, seen)
    assert catalogue.live == second
    assert await states(store) == {
        draft.id: "draft", third: "withdrawn", first: "superseded", second: "live",
    }  # fmt: skip
    assert sorted(entry.id for entry in catalogue.distinct) == sorted([draft.id, first, second, third])
    assert worker.get(await ref_of(worker, third), "user:001") == value
    assert await published_rows(worker, second) == rows("second")
    assert await rollback(store) == first
    await activate(store, second)
    clock.now += LEASE_S + DRAFT_GRACE_S
    assert sorted(await prune(store)) == sorted([draft.id, first, second, third])
    assert await states(store) == {first: "superseded", second: "live"}
    assert await published_rows(store, second) == rows("second")
    await worker.close()


async def test_damaged_backup_is_reported_and_not_restored(store: LmdbStore, target: Path) -> None:
    release = await ref_of(store, await published(store, "first"))
    await backup(store, target)
    path = target / "releases" / f"{release.incarnation}.mdb"
    path.write_bytes(path.read_bytes().replace(b"first", b"farst"))
    elsewhere = LmdbStore(store.folder.with_name("elsewhere"), store.clock)
    with pytest.raises(ReleaseCorrupt) as error:
        await restore(target, elsewhere)
    assert str(error.value).startswith(f"{path} is damaged between bytes"), error.value
    assert list(elsewhere.folder.rglob("*")) == [elsewhere.folder / "releases"]


async def test_canary_aborted_since_the_backup_is_not_restored(store: LmdbStore, target: Path) -> None:
    first = await published(store, "first")
    second = await published(store, "second", live=False)
    await start_canary(store, second, 50)
    await backup(store, target)
    await abort(store)
    await restore(target, store, over=True)
    catalogue = await store.catalogue()
    assert (catalogue.live, catalogue.canary) == (first, None)
    assert catalogue.find(second).state is State.READY
    assert [entry.state for entry in catalogue.releases] == [State.WITHDRAWN, State.WITHDRAWN, State.LIVE, State.READY]


async def test_releases_that_leave_service_by_a_long_restore_keep_their_grace(
    store: LmdbStore, target: Path, clock: FakeClock
) -> None:
    first = await published(store, "first")
    second = await published(store, "second")
    await backup(store, target)
    await rollback(store)
    clock.now += 2 * GRACE_S
    await start_canary(store, second, 50)

    def copy_for_long(_done: int, _total: int) -> None:
        clock.now += GRACE_S

    await restore(target, store, copy_for_long, over=True)
    assert await prune(store) == []
    clock.now += GRACE_S
    assert await prune(store) == [second, first]


async def test_restore_over_a_damaged_catalogue_is_followed_at_once(store: LmdbStore, target: Path) -> None:
    first = await published(store, "first")
    await backup(store, target)
    await published(store, "second")
    seen = await store.catalogue()
    (store.folder / "catalogue.json").write_text("{")
    await restore(target, store, over=True)
    assert follows(await store.catalogue(), seen)
    assert await published_rows(store, first) == rows("first")


async def test_restore_of_a_lost_catalogue_is_followed_at_once(store: LmdbStore, target: Path) -> None:
    await published(store, "first")
    await backup(store, target)
    await erase_users(store, ["1"])
    await erase_users(store, ["2"])
    seen = await store.catalogue()
    (store.folder / "catalogue.json").unlink()
    await restore(target, store)
    assert follows(await store.catalogue(), seen)


async def test_restore_interrupted_before_its_last_step_changes_no_readable_data(
    store: LmdbStore, target: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await published(store, "first")
    await backup(store, target)
    second = await published(store, "second")
    before = await store.catalogue()

    def end(*_: object) -> None:
        raise StoreFull("ended")

    with monkeypatch.context() as patch:
        patch.setattr("hotplate.stores.file.catalogue_file.dump", end)
        with pytest.raises(StoreFull, match="ended"):
            await restore(target, store, over=True)
    assert await store.catalogue() == before
    assert await published_rows(store, second) == rows("second")
    assert len(await store.incarnations()) == 3
    clock.now += 10_000
    await prune(store)
    assert set(await store.incarnations()) == {entry.incarnation for entry in before.releases}
    assert not list(store.folder.glob("releases/restored-*"))
    await restore(target, store, over=True)
    assert await published_rows(store, first) == rows("first")
    await verify(store, await ref_of(store, first))


async def test_releases_on_a_separate_disk_are_restored_there(store: LmdbStore, target: Path, tmp_path: Path) -> None:
    await published(store, "first")
    await backup(store, target)
    disk = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        (folder / "releases").symlink_to(disk)
        await restore(target, restored := LmdbStore(folder))
        await (await verified(folder)).close()
        await restored.close()
    finally:
        shutil.rmtree(disk)


async def test_restore_does_not_drop_releases_of_a_lost_catalogue(store: LmdbStore, target: Path) -> None:
    await published(store, "first")
    await backup(store, target)
    second = await published(store, "second")
    catalogue = store.folder / "catalogue.json"
    for damage in (lambda: catalogue.write_text("{"), catalogue.unlink):
        damage()
        with pytest.raises(ReleaseConflict, match=rf"holds {second}, which the backup lacks, but .*store rebuild"):
            await restore(target, store)
    rebuilt = await rebuild(store, await survey(store), second)
    assert await prune(store, grace_s=0) == []
    assert await published_rows(store, second) == rows("second")
    assert len(rebuilt.releases) == 2


async def test_restore_killed_at_any_step_shows_no_erased_user_and_can_be_repeated(
    store: LmdbStore, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = await publish(store)
    await erase_users(store, ["1"])
    await backup(store, target)
    patch_calls(monkeypatch)
    folder = tmp_path / "elsewhere"
    rebuilt = 0
    for number, schedule in enumerate(schedules()):
        restored = LmdbStore(folder)
        restoring = [lambda at=restored: asyncio.run(restore(target, at))]
        (process,) = await asyncio.get_running_loop().run_in_executor(None, partial(run, schedule, restoring, kills=1))
        catalogue = CatalogueFile(folder).read(0.0)
        if catalogue.generation == 0 and number % 2 == 0:  # after every other kill, the restore is repeated
            with suppress(ReleaseNotFound):  # no file was moved yet
                await rebuild(restored, await survey(restored), release)
                rebuilt += 1
        if not (await restored.catalogue()).generation:
            assert process.killed
            await restore(target, restored)
        assert (await erased_from(restored)).covers_user("1"), process.calls
        assert await published_rows(restored, release)
        await restored.close()
        shutil.rmtree(folder, ignore_errors=True)
    assert rebuilt > 2
