"""A `file://` store that the code before format 2 wrote: two releases, json and then zstd, and a draft."""

import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from stores.catalogue import LEASE_S, ReleaseId, State
from stores.compression import load_decode, read_ids
from stores.errors import ReleaseCorrupt
from stores.file.store import LmdbStore, damaged_files
from stores.lifecycle import prune, publish, rollback
from stores.store import Plan, Row
from stores.verification import load_manifest, verify
from tests.support.clock import FakeClock
from tests.support.stores import batches

JSON, ZSTD = ReleaseId("20261120T193404Z-d3db"), ReleaseId("20261120T193405Z-8eda")
WRITTEN_AT = 1795203246.0
LISTS = {JSON: ["a", "b", "c"], ZSTD: ["d", "b", "c"]}
ROWS = [Row("popular:", b'{"id":"p","score":1}'), Row("user:1", b'{"id":"new","score":1}')]


@pytest.fixture
async def store(tmp_path: Path, clock: FakeClock) -> AsyncIterator[LmdbStore]:
    with tarfile.open(Path(__file__).parents[1] / "format_1" / "file.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    clock.now = WRITTEN_AT + 2 * LEASE_S
    opened = LmdbStore(tmp_path / "format_1", clock)
    yield opened
    await opened.close()


async def items(store: LmdbStore, release: ReleaseId) -> list[str]:
    """Read the list of user 1."""
    ref = (await store.catalogue()).find(release).ref
    decode = await load_decode(store, ref, await load_manifest(store, ref))
    value = store.get(ref, "user:1")
    assert value is not None
    return read_ids(Row("user:1", value), decode)


async def test_releases_of_format_1_are_read_and_verified(store: LmdbStore) -> None:
    found = await store.catalogue()
    assert found.live == ZSTD
    assert damaged_files(store.folder) == []
    for release, expected in LISTS.items():
        ref = found.find(release).ref
        assert ref.incarnation == release
        assert await items(store, release) == expected
        assert (await verify(store, ref)).counts["user"] == 3
        await store.warm(ref)


async def test_a_publish_migrates_the_catalogue_and_releases_of_format_1_live_on(
    store: LmdbStore, clock: FakeClock
) -> None:
    new = (await publish(store, batches(ROWS), plan=Plan(2, 100), about={})).manifest.release
    record = orjson.loads((store.folder / "catalogue.json").read_bytes())
    assert record["format"] == 2
    assert "releases" not in record, "code of format 1 must not understand it"
    names = {path.name for path in (store.folder / "releases").iterdir()}
    assert f"{new}.mdb" not in names
    await prune(store)
    assert await rollback(store) == ZSTD
    assert await items(store, ZSTD) == LISTS[ZSTD]
    assert await verify(store, (await store.catalogue()).find(ZSTD).ref)
    clock.now += 10_000
    assert set(await prune(store, keep=0)) == {new, JSON}
    assert [(entry.id, entry.state) for entry in (await store.catalogue()).releases] == [(ZSTD, State.LIVE)]
    assert [path.name for path in (store.folder / "releases").iterdir()] == [f"{ZSTD}.mdb"]


async def test_damage_to_a_release_of_format_1_is_found_by_its_rows(store: LmdbStore) -> None:
    path = store.folder / "releases" / f"{JSON}.mdb"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"score":0.9', b'"score":0.7'))
    with pytest.raises(ReleaseCorrupt):
        await verify(store, (await store.catalogue()).find(JSON).ref)
