"""A full disk: said in a sentence with the numbers, the draft's space given back, and every swap goes on working."""

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hotplate.stores.catalogue import DRAFT_GRACE_S, LEASE_S, ReleaseId, State
from hotplate.stores.erasure_log import erased_from
from hotplate.stores.errors import StoreError, StoreFull, StoreUnavailable
from hotplate.stores.file.catalogue_file import RESERVED_BYTES
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.lifecycle import activate, prune, rollback
from hotplate.stores.publication import begin
from hotplate.stores.store import Plan, Row
from hotplate.stores.users import erase_users, find_users
from hotplate.stores.verification import verify
from tests.support.clock import FakeClock
from tests.support.small_disk import small_disk
from tests.support.stores import lists_of, publish

DISK_BYTES = 4_000_000
SMALL = [Row("popular:", b"{}"), *lists_of(1000, b"x" * 500)]
LARGE = [Row("popular:", b"{}"), *lists_of(10_000, b"x" * 500)]
UNDERSTATED = Plan(10, 5000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", DISK_BYTES) as place:
        yield place


@pytest.fixture
async def store(disk: Path, clock: FakeClock) -> AsyncIterator[LmdbStore]:
    opened = LmdbStore(disk, clock)
    yield opened
    await opened.close()


def free(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


def fill(disk: Path) -> Path:
    """Take all that is free, to the last page."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert free(disk) == 0
    return filler


async def test_full_disk_error_states_the_sizes_and_leaves_no_files(disk: Path, store: LmdbStore) -> None:
    first = await publish(store, SMALL, 100, plan=UNDERSTATED)
    before = free(disk)
    for rows in (100, 2000):
        with pytest.raises(
            StoreFull, match=r"needs about \d MB in \S+, of which \d MB were written, and \d MB are free"
        ):
            await publish(store, LARGE, rows, plan=UNDERSTATED)
        assert free(disk) >= before - 65_536
        assert [entry.id for entry in (await store.catalogue()).releases] == [first]
    await publish(store, SMALL, 100, plan=UNDERSTATED)


async def test_on_a_full_disk_activate_rollback_begin_and_prune_work(
    disk: Path, store: LmdbStore, clock: FakeClock
) -> None:
    first, second, third = [await publish(store, SMALL, 100, plan=UNDERSTATED) for _ in range(3)]
    filler = fill(disk)
    for _ in range(3):
        assert await rollback(store) == second
        await activate(store, third)
        with pytest.raises(StoreFull, match=r"and 0 MB are free"):
            await publish(store, SMALL, 100, plan=UNDERSTATED)
    clock.now += LEASE_S + 10_000
    assert await prune(store) == [first]
    filler.unlink()
    catalogue = await store.catalogue()
    assert {entry.id: entry.state for entry in catalogue.releases} == {second: State.SUPERSEDED, third: State.LIVE}
    assert catalogue.live_ref is not None
    assert await verify(store, catalogue.live_ref)


async def test_users_are_erased_on_a_full_disk_and_its_reserve_is_allocated_again(disk: Path, store: LmdbStore) -> None:
    await publish(store, SMALL, 100, plan=UNDERSTATED)
    filler = fill(disk)
    for user in range(20):
        assert (await erase_users(store, [f"{user:06}"])).erased == (f"{user:06}",)
        fill(disk)
    await erase_users(store, [f"{user:06}" for user in range(20, 120)])
    assert (await erased_from(store)).count == 120

    filler.unlink()
    live = await publish(store, SMALL, 100, plan=UNDERSTATED)
    assert (await find_users(store, ["000001"])).holding.get(live) is None
    fill(disk)
    for user in range(200, 220):
        await erase_users(store, [f"{user:06}"])


async def test_reserved_catalogue_space_is_taken_again_when_available(disk: Path, store: LmdbStore) -> None:
    first, second = [await publish(store, SMALL, 100, plan=UNDERSTATED) for _ in range(2)]
    reserve = disk / "catalogue.reserve"
    reserve.unlink()
    fill(disk)
    with pytest.raises(StoreFull, match=r"no space left to write \S+(catalogue|log)\.json"):
        await rollback(store)
    assert (await store.catalogue()).live == second
    (disk / "filler").unlink()
    assert await rollback(store) == first
    assert reserve.stat().st_blocks * 512 == RESERVED_BYTES
    fill(disk)
    await activate(store, second)
    await store.close()


async def test_catalogue_grows_and_is_pruned_on_a_full_disk(disk: Path, store: LmdbStore, clock: FakeClock) -> None:
    live = await publish(store, SMALL, 100, plan=UNDERSTATED)
    for number in range(60):
        fill(disk)
        await begin(store, ReleaseId(f"release-{number}"))
    fill(disk)
    clock.now += LEASE_S + DRAFT_GRACE_S
    assert len(await prune(store)) == 60
    assert [entry.id for entry in (await store.catalogue()).releases] == [live]


async def test_disk_error_while_flushing_ends_the_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LmdbStore(tmp_path)
    fsync = os.fsync

    def fail_once(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".draft":
            monkeypatch.undo()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(StoreError, match="check the disk, and publish again") as raised:
        await publish(store, SMALL)
    assert not isinstance(raised.value, StoreUnavailable), "a draft to be continued"
    assert not list((tmp_path / "releases").iterdir())
    assert (await store.catalogue()).releases == ()
    await publish(store, SMALL)


async def test_disk_error_at_any_look_at_a_file_is_an_error_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LmdbStore(tmp_path)
    stat = os.stat
    looks = 0
    failing = 0

    def stat_or_fail(path: Any, **named: Any) -> os.stat_result:  # noqa: ANN401 -- as `os.stat` has it
        nonlocal looks
        if str(path).endswith((".draft", ".mdb")):
            looks += 1
            if looks == failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return stat(path, **named)

    monkeypatch.setattr(os, "stat", stat_or_fail)
    await publish(store, SMALL[:5])
    assert looks > 10
    for failing in range(1, looks + 1):
        looks = 0
        with suppress(StoreError):
            await publish(store, SMALL[:5])
        looks = failing
        assert await publish(store, SMALL[:5])
    await store.close()
