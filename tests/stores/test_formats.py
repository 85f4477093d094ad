"""Records of each released format are read, and earlier versions refuse those that they would misread.

Of a record of this version with an experiment or a refused release, which has format 4, earlier checkouts say

    3670814a    the catalogue at here has format 4 and this hotplate reads 2; upgrade hotplate
    dc36bc97    the catalogue at here has format 4 and this hotplate reads 3; upgrade hotplate

Their `store rebuild` then refuses, too. In format 2, 3670814a called an experiment of dc36bc97 damaged, and each of the
two a refused release of the other.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import orjson
import pytest

from hotplate.serve.filters import Rejected
from hotplate.stores import transitions as changes
from hotplate.stores.attributes import ItemAttributes
from hotplate.stores.catalogue import Catalogue, DraftRef, Erased, ReleaseId
from hotplate.stores.catalogue_record import FORMAT, dump, parse
from hotplate.stores.doctor import survey
from hotplate.stores.encoding import MANIFEST, NO_OFFSET, Checksum, encode_id
from hotplate.stores.erasure_log import ID, KEY, parse_first_format
from hotplate.stores.errors import CatalogueUnreadable, WrittenByNewer
from hotplate.stores.event_log import segments
from hotplate.stores.factors import read_description
from hotplate.stores.file.backup import backup, restore
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.manifest import read_manifest
from hotplate.stores.store import Plan, Row
from tests.support.stores import publish

# By the checkout that wrote them.
RECORDS = {
    "3670814a canary": (
        b'{"format":2,"store_id":"s","generation":4,"token":"t","live":"a","canary":{"release":"b","percent":5.0,"s'
        b'alt":"b"},"entries":[{"id":"a","incarnation":"of-a","state":"live","created_at":100.0,"writer":"writer","'
        b'superseded_at":null,"lease_until":null,"refused_by":[],"canary_stopped":""},{"id":"b","incarnation":"of-b'
        b'","state":"ready","created_at":100.0,"writer":"writer","superseded_at":null,"lease_until":null,"refused_b'
        b'y":[],"canary_stopped":""}],"checksum":"ac73b5b81d2e572c","refusals":null}'
    ),
    "3670814a refused": (
        b'{"format":2,"store_id":"s","generation":4,"token":"t","live":"a","canary":null,"entries":[{"id":"a","inca'
        b'rnation":"of-a","state":"live","created_at":100.0,"writer":"writer","superseded_at":null,"lease_until":nu'
        b'll,"refused_by":[],"canary_stopped":""},{"id":"b","incarnation":"of-b","state":"ready","created_at":100.0'
        b',"writer":"writer","superseded_at":null,"lease_until":null,"refused_by":["ndcg"],"canary_stopped":""}],"c'
        b'hecksum":"a05901d6c7611eaa","refusals":"14c862c8cc9d09c2"}'
    ),
    "dc36bc97 canary": (
        b'{"format":2,"store_id":"s","generation":4,"token":"t","live":"a","canary":{"release":"b","percent":5.0,"s'
        b'alt":"b"},"entries":[{"id":"a","incarnation":"of-a","state":"live","created_at":100.0,"writer":"writer","'
        b'superseded_at":null,"lease_until":null,"refused_by":[],"live_since":100.0},{"id":"b","incarnation":"of-b"'
        b',"state":"ready","created_at":100.0,"writer":"writer","superseded_at":null,"lease_until":null,"refused_by'
        b'":[],"live_since":null}],"checksum":"ac73b5b81d2e572c"}'
    ),
    "dc36bc97 refused": (
        b'{"format":2,"store_id":"s","generation":4,"token":"t","live":"a","canary":null,"entries":[{"id":"a","inca'
        b'rnation":"of-a","state":"live","created_at":100.0,"writer":"writer","superseded_at":null,"lease_until":nu'
        b'll,"refused_by":[],"live_since":100.0},{"id":"b","incarnation":"of-b","state":"ready","created_at":100.0,'
        b'"writer":"writer","superseded_at":null,"lease_until":null,"refused_by":["ndcg"],"live_since":null}],"chec'
        b'ksum":"2f139c15fab3291e"}'
    ),
    "dc36bc97 experiment": (
        b'{"format":2,"store_id":"s","generation":4,"token":"t","live":"a","canary":{"release":"b","percent":5.0,"s'
        b'alt":"b"},"entries":[{"id":"a","incarnation":"of-a","state":"live","created_at":100.0,"writer":"writer","'
        b'superseded_at":null,"lease_until":null,"refused_by":[],"live_since":100.0},{"id":"b","incarnation":"of-b"'
        b',"state":"ready","created_at":100.0,"writer":"writer","superseded_at":null,"lease_until":null,"refused_by'
        b'":[],"live_since":null}],"checksum":"f5609e06718e90cc","experiment":{"salt":"b","percent":5.0,"started_at'
        b'":100.0,"ends_at":1209700.0,"previous":"","ended_at":null}}'
    ),
    "dc36bc97 erased": (
        b'{"format":3,"store_id":"s","generation":4,"token":"t","live":"a","canary":{"release":"b","percent":5.0,"s'
        b'alt":"b"},"entries":[{"id":"a","incarnation":"of-a","state":"live","created_at":100.0,"writer":"writer","'
        b'superseded_at":null,"lease_until":null,"refused_by":[],"live_since":100.0},{"id":"b","incarnation":"of-b"'
        b',"state":"ready","created_at":100.0,"writer":"writer","superseded_at":null,"lease_until":null,"refused_by'
        b'":[],"live_since":null}],"checksum":"ca6d8cc0c6401ba7","erased":{"incarnation":"e","count":2}}'
    ),
    "dc36bc97 erased-experiment": (
        b'{"format":3,"store_id":"s","generation":4,"token":"t","live":"a","canary":{"release":"b","percent":5.0,"s'
        b'alt":"b"},"entries":[{"id":"a","incarnation":"of-a","state":"live","created_at":100.0,"writer":"writer","'
        b'superseded_at":null,"lease_until":null,"refused_by":[],"live_since":100.0},{"id":"b","incarnation":"of-b"'
        b',"state":"ready","created_at":100.0,"writer":"writer","superseded_at":null,"lease_until":null,"refused_by'
        b'":[],"live_since":null}],"checksum":"8cdefd39d38b1858","erased":{"incarnation":"e","count":2},"experiment'
        b'":{"salt":"b","percent":5.0,"started_at":100.0,"ends_at":1209700.0,"previous":"","ended_at":null}}'
    ),
}


A, B = ReleaseId("a"), ReleaseId("b")


def expected(kind: str) -> Catalogue:
    """Return the catalogue that was written as one of RECORDS."""
    catalogue = Catalogue(store_id="s", generation=4, token="t", now=100.0)
    for release in (A, B):
        draft = DraftRef(release, f"of-{release}", "writer")
        catalogue = changes.commit(
            changes.begin(catalogue, draft), draft, ("ndcg",) if (release, kind) == (B, "refused") else ()
        )
        catalogue = changes.activate(catalogue, A) if release == A else catalogue
    if kind != "refused":
        catalogue = changes.start_canary(catalogue, B, 5.0, 14 if "experiment" in kind else None)
    return replace(catalogue, erased=Erased("e", 2)) if "erased" in kind else catalogue


@pytest.mark.parametrize("name", RECORDS)
def test_records_of_earlier_versions_are_read(name: str) -> None:
    catalogue = parse(RECORDS[name], now=100.0, where="here")
    assert catalogue == expected(name.partition(" ")[2])
    assert parse(dump(catalogue), now=100.0, where="here") == catalogue


@pytest.mark.parametrize("name", RECORDS)
def test_changed_record_of_an_earlier_version_is_damage(name: str) -> None:
    for old, new in ((b'"percent":5.0', b'"percent":6.0'), (b'"ndcg"', b'"ndcq"'), (b'"count":2', b'"count":3')):
        changed = RECORDS[name].replace(old, new)
        if changed != RECORDS[name]:
            with pytest.raises(CatalogueUnreadable, match="damaged"):
                parse(changed, now=0.0, where="here")


def test_refusals_of_a_wrong_type_make_a_record_unreadable() -> None:
    changed = RECORDS["3670814a refused"].replace(b'"canary_stopped":""', b'"canary_stopped":null')
    with pytest.raises(CatalogueUnreadable, match="cannot be read"):
        parse(changed, now=0.0, where="here")


@pytest.mark.parametrize(
    ("kind", "format_"), [("canary", 2), ("refused", 4), ("experiment", 4), ("erased", 3), ("erased-experiment", 4)]
)
def test_a_catalogue_has_the_oldest_format_that_expresses_it(kind: str, format_: int) -> None:
    assert orjson.loads(dump(expected(kind)))["format"] == format_


def test_a_catalogue_of_a_newer_format_is_refused_and_not_rebuilt() -> None:
    newer = orjson.dumps({"format": FORMAT + 1, "releases": {"in": "another form"}})
    with pytest.raises(CatalogueUnreadable, match="upgrade hotplate, services before publishers") as caught:
        parse(newer, now=0.0, where="here")
    assert caught.value.record is None, "`store rebuild` would replace it"


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
    rejected = Rejected(ItemAttributes(FIRST_ATTRIBUTES), where)
    assert [item for item in ("i1", "i2", "i3") if encode_id(item) not in rejected] == expected.split()


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


def read_newer_manifest() -> None:
    body = Checksum(A).seal(MANIFEST, NO_OFFSET + b'{"format":9}')
    read_manifest(A, body)


def read_newer_record_of_erased_users() -> None:
    parse_first_format(Checksum(ID).seal(KEY, NO_OFFSET + b'{"format":9,"users":{}}'))


def read_newer_factors() -> None:
    read_description(b'{"format":9,"engine":"other"}')


def read_newer_attributes() -> None:
    ItemAttributes(msgspec.msgpack.encode({"format": 9, "rows": []}))


@pytest.mark.parametrize(
    "read", [read_newer_manifest, read_newer_record_of_erased_users, read_newer_factors, read_newer_attributes]
)
def test_other_records_of_a_newer_format_ask_for_an_upgrade(read: Callable[[], None]) -> None:
    with pytest.raises(WrittenByNewer, match="upgrade hotplate"):
        read()


def test_events_of_a_newer_format_ask_for_an_upgrade(tmp_path: Path) -> None:
    (tmp_path / "20261120T064200Z-00000000-00000000.events2.zst").touch()
    with pytest.raises(WrittenByNewer, match="upgrade hotplate"):
        segments(tmp_path)
