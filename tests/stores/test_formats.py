"""What hotplate 0.3.0 wrote is read; formats that this one does not know are refused by their number.

`written_by_0.3.0.tar.xz` holds what 0.3.0 wrote: three stores of files, their backups, the keys of the same stores in
Redis, and a model. Each store has two releases, `first` and `second`, and is one of

    plain         both were live
    canary        the second is a canary
    experiment    the second is arm B of an experiment; user 2 was erased before it began, user 4 after
"""

import json
import tarfile
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import msgspec
import orjson
import pytest
from redis import Redis

from hotplate.offline import model_folder
from hotplate.serve.lists.filters import rejected_by
from hotplate.stores.attributes import ItemAttributes
from hotplate.stores.catalogue import Catalogue, DraftRef, Erased, ReleaseId
from hotplate.stores.catalogue_record import FORMAT, dump, parse
from hotplate.stores.connect import connect
from hotplate.stores.encoding import MANIFEST, NO_OFFSET, Checksum, encode_id
from hotplate.stores.erasure_log import ID, SNAPSHOT, erased_from, read_log
from hotplate.stores.errors import CatalogueUnreadable, WrittenByNewer
from hotplate.stores.factors import read_description
from hotplate.stores.file.backup import backup, restore
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.lifecycle import abort, activate
from hotplate.stores.rebuild import survey
from hotplate.stores.store import Plan, Row, Store, read_one
from hotplate.stores.users import erase_users
from hotplate.stores.verification import load_manifest, verify
from tests.support.memory_store import MemoryStore
from tests.support.redis_server import RedisServer
from tests.support.stores import publish

WRITTEN = Path(__file__).with_name("written_by_0.3.0.tar.xz")
KINDS = ("plain", "canary", "experiment")
ERASED = {"plain": set[str](), "canary": set[str](), "experiment": {"2", "4"}}
A = ReleaseId("a")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with tarfile.open(WRITTEN) as archive:
        archive.extractall(tmp_path / "written", filter="data")
    return tmp_path / "written"


async def check_written(store: Store, kind: str) -> None:
    """Read all of a store that 0.3.0 wrote, and change it."""
    catalogue = await store.catalogue()
    first, second = sorted(catalogue.committed, key=lambda entry: entry.created_at)
    assert catalogue.live_ref == (second if kind == "plain" else first).ref
    assert (catalogue.canary is not None) == (kind != "plain")
    assert (catalogue.running is not None) == (kind == "experiment")
    assert await store.records(["absent"]) == [None]

    erased = await erased_from(store)
    assert {user for user in "12345" if erased.covers(f"user:{user}")} == ERASED[kind]
    assert erased.lost == 0
    for entry, name in ((first, "first"), (second, "second")):
        manifest = await load_manifest(store, entry.ref)
        assert manifest.counts == {"popular": 1, "user": 4}
        await verify(store, entry.ref)
        value = await read_one(store, entry.ref, "user:1")
        assert value is not None
        assert f"{name}-1" in str(value) or manifest.encoding != "plain"

    await erase_users(store, ["1"])
    assert (await erased_from(store)).covers("user:1")
    assert (await read_log(store)).damage is None
    if catalogue.canary is not None:
        await abort(store)
    await activate(store, second.id)
    await verify(store, second.ref)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_store_of_files_written_by_0_3_is_read_and_changed(written: Path, kind: str) -> None:
    store = LmdbStore(written / "stores" / kind)
    await check_written(store, kind)
    await store.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_backup_written_by_0_3_is_restored(written: Path, tmp_path: Path, kind: str) -> None:
    store = LmdbStore(tmp_path / "restored")
    await restore(written / "backups" / kind, store)
    catalogue = await store.catalogue()
    erased = await erased_from(store)
    assert {user for user in "12345" if erased.covers(f"user:{user}")} == ERASED[kind]
    for entry in catalogue.committed:
        await verify(store, entry.ref)
    await store.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_store_in_redis_written_by_0_3_is_read_and_changed(
    written: Path, redis_server: RedisServer, kind: str
) -> None:
    with Redis(port=redis_server.port) as client:
        for key, (type_, value) in json.loads((written / "redis.json").read_text()).items():
            if not key.startswith((f"{kind}:", f"{{{kind}}}:")):
                continue
            if type_ == "string":
                client.set(key, b64decode(value))
            elif type_ == "list":
                client.rpush(key, *map(b64decode, value))
            elif type_ == "set":
                client.sadd(key, *map(b64decode, value))
            else:
                client.hset(key, mapping={b64decode(name): b64decode(field) for name, field in value.items()})
    store = connect(redis_server.url(prefix=kind))
    await check_written(store, kind)
    await store.close()


def test_a_model_written_by_0_3_is_read(written: Path) -> None:
    loaded = model_folder.load(written / "model")
    assert len(loaded.users(0, 8).ids) == 8


@pytest.mark.parametrize(
    ("format_", "advice"),
    [
        *((number, rf"has format {number}, which .* publish into a new store") for number in (1, 3)),
        (FORMAT + 1, "upgrade hotplate, services before publishers"),
    ],
)
def test_a_catalogue_of_a_format_that_is_not_read_is_refused_and_not_rebuilt(format_: int, advice: str) -> None:
    record = orjson.dumps({"format": format_, "releases": {"in": "another form"}})
    with pytest.raises(CatalogueUnreadable, match=advice) as caught:
        parse(record, now=0.0, where="here")
    assert "rebuild" not in str(caught.value)
    assert caught.value.record is None, "`store rebuild` would replace it"


@pytest.mark.parametrize(("erased", "format_"), [(None, 2), (Erased(2, 1, "t"), 4)])
def test_a_catalogue_has_the_oldest_format_that_expresses_it(erased: Erased | None, format_: int) -> None:
    catalogue = Catalogue(store_id="s", generation=1, token="t", erased=erased)
    record = dump(catalogue)
    assert orjson.loads(record)["format"] == format_
    assert parse(record, now=0.0, where="here") == catalogue


async def test_a_restore_over_a_catalogue_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    source = LmdbStore(tmp_path / "source")
    target = LmdbStore(tmp_path / "target")
    await publish(source)
    await publish(target)
    await backup(source, tmp_path / "backup")
    path = tmp_path / "target" / "catalogue.json"
    newer = orjson.dumps(orjson.loads(path.read_bytes()) | {"format": FORMAT + 1})
    path.write_bytes(newer)
    with pytest.raises(CatalogueUnreadable, match="upgrade hotplate"):
        await restore(tmp_path / "backup", target, over=True)
    assert path.read_bytes() == newer
    await source.close()
    await target.close()


# Written by c02528d0: sellers 1750000000000000001, 1750000000000000002 and 5.
FIRST_ATTRIBUTES = (
    b"\x83\xa6hashes\xc4\x18|\xf2p\xf3PF/\x1b\x04\xde\x91!\xa8\x0e\xd39\xf7\xd7\ti\x82\xc10\x90\xa7columns\x91\x83\xa4name"
    b"\xa6seller\xa6values\xc4\x18\x00\xefd\xba?I\xb8C\x00\x00\x00\x00\x00\x00\x14@\x00\xefd\xba?I\xb8C\xa5texts\xc0\xa6format\x01"
)


@pytest.mark.parametrize(
    ("where", "expected"),
    [("seller:1750000000000000001", "i1 i2"), ("seller:005", "i3"), ("seller!:5", "i1 i2"), ("seller:5.0", "i3")],
)
def test_attributes_of_the_first_format_are_filtered_as_before(where: str, expected: str) -> None:
    rejected = rejected_by(ItemAttributes(FIRST_ATTRIBUTES), where)
    assert [item for item in ("i1", "i2", "i3") if not rejected(encode_id(item))] == expected.split()


async def test_rebuild_keeps_releases_of_a_newer_format(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    await publish(store)
    release = ReleaseId("newer")
    draft = DraftRef(ReleaseId("newer"), "e" * 12, "writer")
    manifest = Row(MANIFEST, Checksum(release).seal(MANIFEST, NO_OFFSET + b'{"format":9,"release":"newer"}'))
    await store.create(draft, Plan(1, 100))
    await store.put(draft, [manifest])
    await store.seal(draft)
    (tmp_path / "catalogue.json").unlink()
    with pytest.raises(WrittenByNewer, match="release newer was written by a newer hotplate"):
        await survey(store)
    await store.close()


async def test_a_record_of_erased_users_of_a_newer_format_asks_for_an_upgrade() -> None:
    store = MemoryStore()
    store.beside[SNAPSHOT] = Checksum(ID).seal(SNAPSHOT, NO_OFFSET + b'{"format":9,"users":{}}')
    with pytest.raises(WrittenByNewer, match="upgrade hotplate"):
        await read_log(store)


def read_newer_factors() -> None:
    read_description(b'{"format":9,"engine":"other"}')


def read_newer_attributes() -> None:
    ItemAttributes(msgspec.msgpack.encode({"format": 9, "rows": []}))


@pytest.mark.parametrize("read", [read_newer_factors, read_newer_attributes])
def test_other_records_of_a_newer_format_ask_for_an_upgrade(read: Callable[[], None]) -> None:
    with pytest.raises(WrittenByNewer, match="upgrade hotplate"):
        read()
