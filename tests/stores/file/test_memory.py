"""Files that are not in memory: what is warmed, locked and populated, and reads that would wait for the disk."""

import asyncio
import os
import random
import resource
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import NotInMemory, ReleaseCorrupt, StoreMisused, StoreUnavailable
from hotplate.stores.file import memory
from hotplate.stores.file import release as release_module
from hotplate.stores.file.memory import check_lockable, room_bytes
from hotplate.stores.file.pages import PagedFile
from hotplate.stores.file.release import ReleaseFile
from hotplate.stores.file.store import LmdbStore, check_live_lockable
from hotplate.stores.store import Row
from tests.support.page_cache import PAGE, absent_pages, evict
from tests.support.soak import SEED
from tests.support.stores import publish, ref_of

USERS = 3000
# Every hundredth list is too large for a page of other lists.
SIZES = [9000 if n % 100 == 0 else 300 for n in range(USERS)]
KEYS = [f"user:{n:06}" for n in range(USERS)]
ROWS = [
    Row("popular:", b'[{"id":"p"}]'),
    *(Row(key, b'[{"id":"%s"}]' % (b"x" * size)) for key, size in zip(KEYS, SIZES, strict=True)),
]


class Published:
    """A store with a release, in a handle that has mapped nothing, and what its lists are."""

    def __init__(self, store: LmdbStore, ref: ReleaseRef, path: Path, values: list[bytes]) -> None:
        self.store, self.ref, self.path, self.values = store, ref, path, values

    def careful(self) -> ReleaseFile:
        """Have the file read with care; `close` what is returned."""
        file = ReleaseFile.open(self.path)
        file.read_with_care()
        return file


@pytest.fixture
async def cold(tmp_path: Path) -> AsyncIterator[Published]:
    """Publish a release, none of which is in memory."""
    writer = LmdbStore(tmp_path)
    ref = await ref_of(writer, await publish(writer, ROWS))
    values = await writer.get_many(ref, KEYS)
    await writer.close()
    path = tmp_path / "releases" / f"{ref.incarnation}.mdb"
    evict(path)
    store = LmdbStore(tmp_path)
    yield Published(store, ref, path, [value for value in values if isinstance(value, bytes)])
    await store.close()


@pytest.fixture
async def careful(cold: Published) -> AsyncIterator[ReleaseFile]:
    """Have the file read with care."""
    file = cold.careful()
    yield file
    file.close()


def read_all(cold: Published) -> None:
    """Read every list at once."""
    for key, value in zip(KEYS, cold.values, strict=True):
        assert cold.store.get(cold.ref, key) == value


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


@pytest.mark.usefixtures("careful")
async def test_what_is_not_in_memory_is_refused_at_once_and_read_from_the_disk_by_a_thread(cold: Published) -> None:
    store = cold.store
    before = faults()
    with pytest.raises(NotInMemory):
        store.get(cold.ref, KEYS[7])
    assert await store.get_many(cold.ref, [KEYS[7]]) == [cold.values[7]]
    assert store.get(cold.ref, KEYS[7]) == cold.values[7]
    assert faults() == before


@pytest.mark.usefixtures("careful")
async def test_reads_with_care_find_what_lmdb_finds(cold: Published) -> None:
    store, draw = cold.store, random.Random(SEED)
    wanted: list[tuple[str, bytes | None]] = list(zip(KEYS, cold.values, strict=True))
    wanted += [(key + "x", None) for key in KEYS] + [("a", None), ("user:", None), ("zzz", None)]
    draw.shuffle(wanted)
    for start in range(0, len(wanted), 7):
        some = wanted[start : start + 7]
        assert await store.get_many(cold.ref, [key for key, _ in some]) == [value for _, value in some]
    for key, value in wanted:
        assert store.get(cold.ref, key) == value


async def test_a_thread_that_had_to_wait_for_the_disk_reads_with_care_until_all_is_in_memory_for_a_while(
    cold: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = faults()
    assert cold.store.get(cold.ref, KEYS[0]) == cold.values[0]
    if faults() == before:
        pytest.skip("this system reads pages of a map from the disk without a major fault")
    cold.store._observe_faults()
    with pytest.raises(NotInMemory):
        read_all(cold)
    cold.store._observe_faults()
    monkeypatch.setattr(release_module, "CALM_S", -1.0)
    cold.store._observe_faults()
    read_all(cold)


async def test_damaged_pages_fail_their_own_keys_only_when_they_are_read_from_the_disk(cold: Published) -> None:
    data = bytearray(cold.path.read_bytes())
    spoilt = next(key for key in KEYS[1400:] if data.count(key.encode()) == 1)
    page = data.index(spoilt.encode()) // PAGE * PAGE
    data[page + 10 : page + 12] = b"\xff\xff"  # of no known kind
    cold.path.write_bytes(data)
    evict(cold.path)
    file = cold.careful()
    slots = await cold.store.get_many(cold.ref, KEYS)
    damaged = {key for key, slot in zip(KEYS, slots, strict=True) if isinstance(slot, ReleaseCorrupt)}
    assert spoilt in damaged
    assert len(damaged) < 100
    for key, slot, value in zip(KEYS, slots, cold.values, strict=True):
        assert key in damaged or slot == value
    with pytest.raises(ReleaseCorrupt, match="hotplate releases verify"):
        cold.store.get(cold.ref, spoilt)
    file.close()


@pytest.mark.usefixtures("careful")
async def test_a_file_that_is_gone_is_read_on_from_the_disk(cold: Published) -> None:
    assert await cold.store.get_many(cold.ref, [KEYS[1]]) == [cold.values[1]]
    cold.path.unlink()
    assert await cold.store.get_many(cold.ref, KEYS[:50]) == cold.values[:50]


async def test_a_file_is_unmapped_after_the_last_read_of_its_thread(cold: Published) -> None:
    for number in range(20):
        evict(cold.path)
        store, file = LmdbStore(cold.path.parent.parent), cold.careful()
        reads = [asyncio.create_task(store.get_many(cold.ref, [key])) for key in KEYS[number::37]]
        await asyncio.sleep(0)
        file.close()
        await store.close()
        assert [slot for (slot,) in await asyncio.gather(*reads)] == cold.values[number::37]
        await file.closed()
        assert str(cold.path) not in Path("/proc/self/maps").read_text()


async def test_a_file_that_is_opened_while_it_is_unmapped_is_mapped_anew(cold: Published) -> None:
    for _ in range(20):
        file = ReleaseFile.open(cold.path)
        file.close()
        again = ReleaseFile.open(cold.path)
        assert again.read(KEYS[5].encode()) == cold.values[5]
        again.close()
    await again.closed()


@pytest.mark.usefixtures("careful")
async def test_a_disk_that_is_late_costs_only_what_is_on_it(cold: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    assert await cold.store.get_many(cold.ref, [KEYS[3]]) == [cold.values[3]]

    monkeypatch.setattr(PagedFile, "get", lambda *_: stuck.wait(30))
    monkeypatch.setattr(release_module, "FEW_KEYS", 0)  # no second look, which a quick disk makes in time
    late = await cold.store.get_many(cold.ref, [KEYS[-1], KEYS[-200]], timeout_s=0.01)
    assert [type(slot) for slot in late] == [StoreUnavailable, StoreUnavailable]
    assert cold.store.get(cold.ref, KEYS[3]) == cold.values[3]
    stuck.set()


async def test_a_warmed_file_is_in_memory_and_in_the_page_table(cold: Published) -> None:
    assert absent_pages(cold.path)
    evict(cold.path)
    await cold.store.warm(cold.ref)
    assert absent_pages(cold.path) == 0
    mapped = _of_map(cold.path, "Rss")
    assert mapped >= cold.path.stat().st_size * 0.95
    before = faults()
    read_all(cold)
    assert faults() == before


async def test_what_cannot_stay_in_memory_is_not_read_and_then_read_with_care(
    cold: Published, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "room_bytes", lambda: 0.0)
    await cold.store.warm(cold.ref)
    await cold.store.prepare(cold.ref)
    assert "fit into memory" in caplog.text
    with pytest.raises(NotInMemory):
        read_all(cold)
    assert absent_pages(cold.path) > cold.path.stat().st_size / PAGE / 2


async def test_a_warming_that_is_given_up_leaves_the_rest_to_be_read_with_care(cold: Published) -> None:
    warming = asyncio.create_task(cold.store.warm(cold.ref))
    await asyncio.sleep(0)
    warming.cancel()
    await asyncio.gather(warming, return_exceptions=True)
    file = ReleaseFile.open(cold.path)
    assert file._careful
    file.close()


async def test_only_the_release_that_was_locked_last_is_locked_and_until_it_is_closed(cold: Published) -> None:
    folder = cold.path.parent.parent
    second = await ref_of(cold.store, await publish(cold.store, ROWS))
    try:
        await cold.store.lock(cold.ref)
    except StoreUnavailable as error:
        pytest.skip(str(error))
    await cold.store.warm(cold.ref)
    assert _of_map(cold.path, "Locked") >= cold.path.stat().st_size * 0.95
    await cold.store.lock(second)
    await cold.store.warm(second)
    assert _of_map(cold.path, "Locked") == 0
    assert _of_map(folder / "releases" / f"{second.incarnation}.mdb", "Locked") > 0
    await cold.store.close()
    assert "VmLck:\t       0 kB" in Path("/proc/self/status").read_text()


async def test_what_cannot_be_locked_is_said_with_what_is_needed(
    cold: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_may_lock_all", lambda _: False)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65_536, 65_536))
    with pytest.raises(StoreMisused, match=r"has 2 MB, and a process may lock 0 MB here.*ulimit -l.*--lock-memory out"):
        check_live_lockable(cold.path.parent.parent)
    with pytest.raises(StoreUnavailable, match="RLIMIT_MEMLOCK"):
        await cold.store.lock(cold.ref)
    monkeypatch.setattr(memory, "_may_lock_all", lambda _: True)
    check_live_lockable(cold.path.parent.parent)
    check_live_lockable(cold.path.parent)  # nothing is live there yet


def test_room_is_what_the_machine_and_the_cgroup_have_left_files_included(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    inner = groups / "pod" / "container"
    inner.mkdir(parents=True)
    assert room_bytes(proc, groups) == float("inf")
    (proc / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable:   2000 kB\n")
    assert room_bytes(proc, groups) == 2000 * 1024 * memory.SHARE_OF_ROOM
    (proc / "self" / "cgroup").write_text("4:memory:/old\n0::/pod/container\n")
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("1000000\n")
    (inner.parent / "memory.current").write_text("900000\n")
    (inner.parent / "memory.stat").write_text("anon 400000\nactive_file 100000\ninactive_file 200000\n")
    assert room_bytes(proc, groups) == 400_000 * memory.SHARE_OF_ROOM
    with pytest.raises(StoreUnavailable, match=r"release x has 2 MB, which cannot be kept in 1 MB of memory"):
        check_lockable(2_000_000, "release x", proc, groups)


def test_only_who_has_the_capability_may_lock_more_than_the_limit(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    for mask, expected in (("0000000000000000", False), ("0000000000004000", True)):
        (tmp_path / "self" / "status").write_text(f"Name:\tx\nCapEff:\t{mask}\n")
        assert memory._may_lock_all(tmp_path) is expected


def test_reads_wait_where_a_system_cannot_say_what_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4096)
    file = os.open(path, os.O_RDONLY)

    def refuse(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "preadv", refuse)
    assert not PagedFile(file, SimpleNamespace()).can_look  # type: ignore[arg-type]  # nothing is read of it
    os.close(file)


def _of_map(path: Path, what: str) -> int:
    """Add up a figure of /proc/self/smaps, in bytes, over the parts of a file's map."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            here = line.endswith(str(path))
        elif here and line.startswith(f"{what}:"):
            found += int(line.split()[1]) * 1024
    return found


def mapped_bytes() -> int:
    """Return how many bytes of mapped files count as memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))


async def mapped_by_a_scan(store: LmdbStore, ref: ReleaseRef) -> int:
    before = mapped_bytes()
    async for _ in store.scan(ref):
        pass
    return mapped_bytes() - before


async def test_a_scan_lets_go_of_what_it_has_read_unless_it_was_brought_into_memory_to_be_served(
    cold: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_module, "SCANNED_BYTES", 100_000)
    whole = cold.path.stat().st_size
    assert await mapped_by_a_scan(cold.store, cold.ref) < whole // 2
    await cold.store.warm(cold.ref)
    before = mapped_bytes()
    assert await mapped_by_a_scan(cold.store, cold.ref) >= 0
    assert mapped_bytes() >= before
    read_all(cold)
