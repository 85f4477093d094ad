"""Damaged files: intact rows are served, damaged ones are errors, and every changed byte is detected."""

import asyncio
import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hotplate.stores.catalogue import DraftRef, ReleaseId
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.file.checksums import BLOCK_BYTES
from hotplate.stores.file.release import ReleaseFile
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Plan, Row, Store
from tests.support.soak import SEED, in_soak, scaled
from tests.support.virtual import virtual

DRAFT = DraftRef(ReleaseId("20261120T064200Z-aaaa"), "0123456789ab", "writer")
RELEASE = DRAFT.release
PAGE = 4096
KEYS = [f"user:{n:06}" for n in range(2000)]


async def sealed(folder: Path, keys: list[str] = KEYS, large: int = 0) -> Path:
    """Write a release of small values, and *large* values with separate pages; return its file."""
    store = LmdbStore(folder)
    rows = [Row(key, key.encode() * (800 if n < large else 8)) for n, key in enumerate(keys)]
    await store.create(DRAFT, Plan(len(rows), 100_000))
    await store.put(DRAFT, rows)
    await store.seal(DRAFT)
    await store.close()
    return folder / "releases" / f"{DRAFT.incarnation}.mdb"


def flip(path: Path, offset: int, change: int = 0xFF) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ change]))


def spoil_page_of(path: Path, key: str) -> None:
    """Make the page that holds *key* one of no known kind."""
    flags = path.read_bytes().index(key.encode()) // PAGE * PAGE + 10
    flip(path, flags)
    flip(path, flags + 1)


@pytest.mark.parametrize("warmings", [0, 2], ids=["not warmed", "warmed"])
async def test_damaged_page_fails_only_its_own_keys(
    store: LmdbStore, caplog: pytest.LogCaptureFixture, warmings: int
) -> None:
    spoil_page_of(await sealed(store.folder, large=20), KEYS[1000])
    for _ in range(warmings):
        await store.warm(RELEASE)
    assert caplog.text.count("is damaged in 1 blocks") == bool(warmings)
    for _ in range(2):
        results = await store.get_many(RELEASE, KEYS)
        failed = [key for key, result in zip(KEYS, results, strict=True) if isinstance(result, ReleaseCorrupt)]
        assert KEYS[1000] in failed
        assert len(failed) < (1000 if warmings else 100)
        for n, (key, result) in enumerate(zip(KEYS, results, strict=True)):
            assert key in failed or result == key.encode() * (800 if n < 20 else 8)
    assert await store.get_many(RELEASE, ["a", "user:", "user:999999"]) == [None, None, None]
    with pytest.raises(ReleaseCorrupt, match=r"user:001000.*hotplate releases verify"):
        store.get(RELEASE, KEYS[1000])
    assert store.get(RELEASE, KEYS[1999]) == KEYS[1999].encode() * 8


@virtual
async def test_damage_found_before_warming_ended_is_remembered(tmp_path: Path) -> None:
    path = await sealed(tmp_path)
    flip(path, path.read_bytes().rindex(KEYS[1000].encode()))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await ReleaseFile.open(path).warm(pause_s=3600.0)
    store = LmdbStore(tmp_path)
    assert isinstance((await store.get_many(RELEASE, [KEYS[1000]]))[0], ReleaseCorrupt)
    await store.close()


async def test_unreadable_disk_block_fails_only_its_own_keys(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await sealed(store.folder, large=20)
    bad = path.read_bytes().index(KEYS[10].encode() * 800) // BLOCK_BYTES
    read = os.pread

    def pread(file: int, size: int, place: int) -> bytes:
        if place // BLOCK_BYTES <= bad <= (place + size - 1) // BLOCK_BYTES and size <= BLOCK_BYTES:
            raise OSError(errno.EIO, "Input/output error")
        return read(file, size, place)

    monkeypatch.setattr(os, "pread", pread)
    await store.warm(RELEASE)
    results = await store.get_many(RELEASE, KEYS)
    failed = [key for key, result in zip(KEYS, results, strict=True) if isinstance(result, ReleaseCorrupt)]
    assert KEYS[10] in failed
    assert len(failed) < 1000


async def test_damaged_page_read_by_one_thread_fails_no_other_thread(tmp_path: Path) -> None:
    spoil_page_of(await sealed(tmp_path), KEYS[1000])
    ended = threading.Event()

    def spoil() -> None:
        store = LmdbStore(tmp_path)
        while not ended.is_set():
            with pytest.raises(ReleaseCorrupt):
                store.get(RELEASE, KEYS[1000])
        asyncio.run(store.close())

    def read() -> set[bytes | None]:
        """Open the file, read it and close it, many times."""
        values = set[bytes | None]()
        for _ in range(40):
            store = LmdbStore(tmp_path)
            values |= {store.get(RELEASE, key) for key in (*KEYS[:64] * 10, "user:999999")}
            asyncio.run(store.close())
        return values

    with ThreadPoolExecutor(8) as threads:
        spoiling = [threads.submit(spoil) for _ in range(2)]
        reading = [threads.submit(read) for _ in range(6)]
        try:
            assert [future.result() for future in reading] == [{*(key.encode() * 8 for key in KEYS[:64]), None}] * 6
        finally:
            ended.set()
        assert [future.result() for future in spoiling] == [None, None]


async def test_scan_and_check_locate_damage(store: LmdbStore) -> None:
    path = await sealed(store.folder)
    flip(path, path.read_bytes().index(b"user:001000") + 20)
    with pytest.raises(ReleaseCorrupt, match=r"0123456789ab\.mdb is damaged between bytes \d+ .*repair.*publish again"):
        await store.check_integrity(RELEASE)
    with pytest.raises(ReleaseCorrupt, match="damaged between"):
        async for _ in store.scan(RELEASE):
            pass


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("large", "changes"), [(20, 200), in_soak(2, scaled(8_000))])
async def test_any_changed_byte_is_detected(tmp_path: Path, large: int, changes: int) -> None:
    path = await sealed(tmp_path, large=large)
    draw = random.Random(SEED)
    size = path.stat().st_size
    store: Store = LmdbStore(tmp_path)
    await store.check_integrity(RELEASE)
    headers = [page + draw.randrange(40) for page in range(0, size - 40, PAGE)]
    for offset in (*headers, *(draw.randrange(size) for _ in range(changes))):
        change = 1 << draw.randrange(8) if draw.random() < 0.5 else draw.randrange(1, 256)
        flip(path, offset, change)
        for reader in (store, LmdbStore(tmp_path)):
            assert await is_damaged(reader), f"byte {offset} of {size}, changed by {change:#x}"
        flip(path, offset, change)
    await store.check_integrity(RELEASE)


async def is_damaged(store: Store) -> bool:
    try:
        await store.check_integrity(RELEASE)
    except ReleaseCorrupt:
        return True
    return False


def flip_in_key(path: Path, change: int) -> None:
    flip(path, path.read_bytes().index(b"user:000500") + 5, change)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        pytest.param(
            lambda path: flip_in_key(path, 0xCF), r"after the key b'user:\\xff00500'", id="a key that is no text"
        ),
        pytest.param(
            lambda path: flip_in_key(path, 8),
            r"after the key b'user:800500' .*b'user:000501' follows",
            id="keys out of order",
        ),
        pytest.param(lambda path: spoil_page_of(path, KEYS[1000]), r"is damaged.*b'user:000", id="a spoiled page"),
    ],
)
async def test_scan_stops_at_damage_after_the_checksums_were_read(
    store: LmdbStore, harm: Callable[[Path], None], message: str
) -> None:
    path = await sealed(store.folder)
    scan = store.scan(RELEASE)
    await anext(scan)
    harm(path)
    with pytest.raises(ReleaseCorrupt, match=message):
        async for _ in scan:
            pass


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda path: os.truncate(path, 0), id="emptied"),
        pytest.param(lambda path: os.truncate(path, 100), id="cut to 100 bytes"),
        pytest.param(lambda path: os.truncate(path, path.stat().st_size // 2), id="cut by half"),
        pytest.param(lambda path: os.truncate(path, path.stat().st_size // PAGE * PAGE), id="cut to its pages"),
        pytest.param(lambda path: os.truncate(path, path.stat().st_size - 1), id="cut by one byte"),
        pytest.param(lambda path: os.truncate(path, path.stat().st_size + PAGE), id="longer"),
        pytest.param(lambda path: path.write_bytes(b"x" * 100_000), id="another file"),
        pytest.param(lambda path: flip(path, 40), id="a damaged first page"),
    ],
)
async def test_files_that_must_not_be_mapped_are_refused(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    harm(await sealed(tmp_path))
    with pytest.raises(ReleaseCorrupt):
        LmdbStore(tmp_path).get(RELEASE, KEYS[0])


async def test_damaged_checksums_do_not_stop_serving_intact_rows(store: LmdbStore) -> None:
    path = await sealed(store.folder)
    flip(path, path.stat().st_size - 3)
    assert store.get(RELEASE, KEYS[7]) == KEYS[7].encode() * 8
    with pytest.raises(ReleaseCorrupt, match="the checksums at the end"):
        await store.check_integrity(RELEASE)


READER = """
import asyncio, random, sys
from pathlib import Path
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.file.store import LmdbStore

async def main(folder, release, changes, seed):
    path, draw = folder / "releases" / f"{release.incarnation}.mdb", random.Random(seed)
    keys, data = [f"user:{n:06}" for n in range(0, 2000, 4)], path.read_bytes()
    for _ in range(changes):
        page = draw.randrange(len(data) // 4096) * 4096
        offset = page + draw.randrange(64 if draw.random() < 0.7 else 4096)
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes([data[offset] ^ draw.randrange(1, 256)]))
        print(offset, flush=True)
        store = LmdbStore(folder)
        try:
            await store.warm(release)
            await store.get_many(release, keys)
        except ReleaseCorrupt:
            pass  # the first pages, without which nothing is mapped
        await store.close()
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data[offset : offset + 1])

asyncio.run(main(Path(sys.argv[1]), ReleaseRef(*sys.argv[2:4]), *map(int, sys.argv[4:])))
"""


@pytest.mark.parametrize("changes", [30, in_soak(scaled(150))])
async def test_reading_a_damaged_warmed_file_crashes_no_process(tmp_path: Path, changes: int) -> None:
    await sealed(tmp_path, large=20)
    reader = [sys.executable, "-c", READER, str(tmp_path), *RELEASE, str(changes), str(SEED)]
    done = await asyncio.to_thread(subprocess.run, reader, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"byte {done.stdout.split()[-1]}: {done.stderr}"
