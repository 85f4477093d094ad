"""Manifests and the sums that hold a release together."""

from collections import Counter
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.encoding import HEADER_BYTES, MANIFEST, NO_OFFSET, Checksum
from hotplate.stores.errors import ReleaseCorrupt, StoreMisused, WrittenByNewer
from hotplate.stores.manifest import MAX_POPULAR_BYTES, Manifest, Tally, compare, describe, read_manifest
from hotplate.stores.store import Row

ID = ReleaseId("20261120T064200Z-aaaa")
rows = st.lists(
    st.builds(
        Row, st.sampled_from(["user:", "item:", "popular:"]).flatmap(lambda kind: st.just(kind + "x")), st.binary()
    )
)


def tally(*parts: list[Row]) -> Tally:
    total = Tally()
    for part in parts:
        total.add(part)
    return total


def manifest(*content: Row) -> Manifest:
    return describe(ID, tally([Row("popular:", b"{}"), *content]), created_at=1.5, encoding="json", about={"k": 1})


KINDS = ["item", "meta", "popular", "user", "item@a", "popular@a", "user@B-1_c"]
keys = st.builds("{}:{}".format, st.sampled_from(KINDS), st.text(max_size=9))


@given(st.lists(st.builds(Row, keys, st.binary()), max_size=30))
def test_rows_of_any_kinds_in_any_order_are_counted_by_kind(content: list[Row]) -> None:
    half = len(content) // 2
    sums = tally(content[:half])
    sums.merge(tally([*content[half:], Row("meta:manifest", b"{}")]))
    counted = [Row(key, value) for key, value in content if key != "meta:manifest"]
    assert sums.counts == Counter(key.partition(":")[0] for key, _ in counted)
    assert sums.bytes == sum(len(key.encode()) + len(value) for key, value in counted)
    assert sorted(sums.popular) == sorted(key for key, _ in counted if key.startswith("popular"))
    raw = [(key.encode(), value) for key, value in counted]
    digests = [xxh3_128_intdigest(len(key).to_bytes(4, "big") + key + value) for key, value in raw]
    assert sums.digest == sum(digests) % (1 << 128)
    lists = [key for key, _ in counted if key.startswith(("item", "user"))]
    assert sums.drawn == sorted((xxh3_64_intdigest(key.encode()), key) for key in lists)


def test_manifest_round_trips() -> None:
    written = manifest(Row("user:1", b"x"), Row("popular:France", b"{}"))
    assert read_manifest(ID, written.key_row.value) == written
    assert written.segments == ("France",)
    assert written.key_row.value[12:].startswith(b'{"format":2,')
    assert b"named" not in written.key_row.value
    compare(
        written, tally([Row("popular:France", b"{}"), Row("user:1", b"x"), Row("popular:", b"{}"), written.key_row])
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 4}, "upgrade hotplate"),
        ({"format": 1}, "has format 1, which this hotplate reads no more"),
        ({"encoding": "zstd-19"}, "upgrade"),
        ({"counts": None}, "cannot be read"),
        ({"about": {"gates": 7}}, "cannot be read"),
    ],
)
def test_a_foreign_manifest_is_refused_with_a_reason(change: dict[str, object], sentence: str) -> None:
    fields = orjson.loads(manifest().key_row.value[HEADER_BYTES:]) | change
    with pytest.raises((ReleaseCorrupt, WrittenByNewer), match=sentence):
        read_manifest(ID, Checksum(ID).seal(MANIFEST, NO_OFFSET + orjson.dumps(fields)))


def test_age_of_a_release_is_that_of_its_oldest_list() -> None:
    rows = [Row("popular:", b"{}"), Row("popular@basket:", b"{}")]
    basket = {"learnt_until": "2026-11-01T00:00:00+00:00", "rules": {"diversity": {}}}
    about = {"learnt_until": "2026-11-02T00:00:00+00:00", "rules": {"explore": {}}, "lists": {"basket": basket}}
    manifest = describe(ID, tally(rows), created_at=0, encoding="json", about=about)
    assert manifest.learnt_until == datetime(2026, 11, 1, tzinfo=UTC).timestamp()
    assert manifest.rules == ("diversity", "explore")


@pytest.mark.parametrize("about", [{}, {"learnt_until": None}, {"learnt_until": "yesterday"}, {"learnt_until": 7}])
def test_a_manifest_without_a_readable_time_has_no_age(about: dict[str, object]) -> None:
    manifest = describe(ID, tally([Row("popular:", b"{}")]), created_at=0, encoding="json", about=about)
    assert manifest.learnt_until is None
    assert manifest.rules == ()


def test_an_origin_with_invalid_gates_is_refused() -> None:
    with pytest.raises(StoreMisused, match=r"the origin of release .* is invalid: .*\$\.gates"):
        describe(ID, tally([Row("popular:", b"{}")]), created_at=0, encoding="json", about={"gates": 7})


@pytest.mark.parametrize("value", [None, 7, [1], {"a": {"b": "c"}}])
def test_fields_of_an_origin_that_others_wrote_otherwise_are_left_out(value: object) -> None:
    about = {"model": value, "rules": value, "params": value, "notes": value, "list_length": "ten", "rows": 1.5}
    manifest = describe(ID, tally([Row("popular:", b"{}")]), created_at=0, encoding="json", about=about)
    assert read_manifest(ID, manifest.key_row.value).about == about
    assert manifest.rules == ()


def test_a_release_without_a_popular_list_or_with_too_many_is_refused() -> None:
    with pytest.raises(ReleaseCorrupt, match="no popular list"):
        describe(ID, tally([Row("user:1", b"x")]), created_at=0, encoding="json", about={})
    many = [Row(f"popular:{n}", b"x") for n in range(1001)]
    with pytest.raises(ReleaseCorrupt, match="fewer segments"):
        describe(ID, tally([Row("popular:", b"x"), *many]), created_at=0, encoding="json", about={})
    with pytest.raises(ReleaseCorrupt, match="fewer segments"):
        describe(ID, tally([Row("popular:", b"x" * (MAX_POPULAR_BYTES + 1))]), created_at=0, encoding="json", about={})
