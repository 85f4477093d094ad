"""Files that are not in memory: warming and populating."""

import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.file import release as release_module
from hotplate.stores.file.release import ReleaseFile
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.folders import SHARE_OF_ROOM, room_bytes
from hotplate.stores.store import Row
from tests.support.page_cache import PAGE, absent_pages, evict
from tests.support.stores import publish, ref_of

USERS = 3000
# Every hundredth list is too large for a page of other lists.
SIZES = [9000 if n % 100 == 0 else 300 for n in range(USERS)]
KEYS = [f"user:{n:06}" for n in range(USERS)]
ROWS = [
    Row("popular:", b'[{"id":"p"}]'),
    *(Row(key, b'[{"id":"%s"}]' % (b"x" * size)) for key, size in zip(KEYS, SIZES, strict=True)),
]


class Published(NamedTuple):
    """A store with a release, in a handle that has mapped nothing, and what its lists are."""

    store: LmdbStore
    ref: ReleaseRef
    path: Path
    values: list[bytes]


@pytest.fixture
async def cold(tmp_path: Path) -> AsyncIterator[Published]:
    """Publish a release and drop its pages from memory."""
    writer = LmdbStore(tmp_path)
    ref = await ref_of(writer, await publish(writer, ROWS))
    values = await writer.get_many(ref, KEYS)
    await writer.close()
    path = tmp_path / "releases" / f"{ref.incarnation}.mdb"
    evict(path)
    store = LmdbStore(tmp_path)
    yield Published(store, ref, path, [value for value in values if isinstance(value, bytes)])
    await store.close()


def read_all(cold: Published) -> None:
    """Read every list at once."""
    for key, value in zip(KEYS, cold.values, strict=True):
        assert cold.store.get(cold.ref, key) == value


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


async def test_file_opened_while_being_unmapped_is_mapped_again(cold: Published) -> None:
    for _ in range(20):
        file = ReleaseFile.open(cold.path)
        file.close()
        again = ReleaseFile.open(cold.path)
        assert again.read(KEYS[5].encode()) == cold.values[5]
        again.close()
    await again.closed()
    assert str(cold.path) not in Path("/proc/self/maps").read_text()


async def test_a_warmed_file_is_in_memory(cold: Published) -> None:
    assert absent_pages(cold.path)
    evict(cold.path)
    await cold.store.warm(cold.ref)
    assert absent_pages(cold.path) == 0
    before = faults()
    read_all(cold)
    assert faults() == before


async def test_file_larger_than_memory_is_not_populated(
    cold: Published, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(release_module, "room_bytes", lambda: 0.0)
    await cold.store.warm(cold.ref)
    assert "fit into memory" in caplog.text
    assert absent_pages(cold.path) > cold.path.stat().st_size / PAGE / 2
    read_all(cold)


def test_available_memory_counts_machine_cgroup_and_files(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    groups = tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    inner = groups / "pod" / "container"
    inner.mkdir(parents=True)
    assert room_bytes(proc, groups) == float("inf")
    (proc / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable:   2000 kB\n")
    assert room_bytes(proc, groups) == 2000 * 1024 * SHARE_OF_ROOM
    (proc / "self" / "cgroup").write_text("4:memory:/old name\n0::/pod/container\n")
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("1000000\n")
    (inner.parent / "memory.current").write_text("900000\n")
    (inner.parent / "memory.stat").write_text("anon 400000\nactive_file 100000\ninactive_file 200000\n")
    assert room_bytes(proc, groups) == 400_000 * SHARE_OF_ROOM


def mapped_bytes() -> int:
    """Return how many bytes of mapped files count as memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))


async def mapped_by_a_scan(store: LmdbStore, ref: ReleaseRef) -> int:
    before = mapped_bytes()
    async for _ in store.scan(ref):
        pass
    return mapped_bytes() - before


async def test_a_scan_drops_the_pages_that_it_read(cold: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_module, "SCANNED_BYTES", 100_000)
    whole = cold.path.stat().st_size
    assert await mapped_by_a_scan(cold.store, cold.ref) < whole // 2
    read_all(cold)
