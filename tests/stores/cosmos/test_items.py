"""Rows as items of Cosmos DB: nothing is lost on the way there and back, and no two names are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.cosmos.items import MAX_ITEM_BYTES, container_of, item_bytes, name_of, to_item, value_of
from hotplate.stores.cosmos.release_state import METAS, ROWS, STATE
from hotplate.stores.cosmos.requests import NAME
from hotplate.stores.encoding import KINDS, MAX_ID_BYTES
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreFull, StoreMisused

ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_ID_BYTES).filter(
    lambda text: len(text.encode()) <= MAX_ID_BYTES
)
keys = st.builds("{}:{}".format, st.sampled_from(KINDS), ids)
values = st.binary(max_size=2000) | st.text(max_size=500).map(lambda text: text.encode("utf-8", "surrogatepass"))


@given(values)
def test_every_value_round_trips(value: bytes) -> None:
    item = to_item("user.MQ", value)
    assert value_of(item) == value
    assert item_bytes(item) <= item_bytes({"id": "user.MQ", "b": ""}) + (len(value) + 2) // 3 * 4


@given(keys, keys)
def test_item_names_are_distinct_and_need_no_escaping(key: str, other: str) -> None:
    assert (name_of(key) == name_of(other)) == (key == other)
    assert NAME.fullmatch(name_of(key))
    assert len(name_of(key)) < 1023


@given(keys, st.integers(1, 10**9))
def test_row_names_do_not_collide_with_control_items(key: str, number: int) -> None:
    assert name_of(key) not in {STATE, f"{ROWS}-{number}", f"{METAS}-{number}"}


@pytest.mark.parametrize("odd", ["", "user", "film:1", "meta.x:1"])
def test_key_of_unknown_kind_has_no_name(odd: str) -> None:
    with pytest.raises(StoreMisused):
        name_of(odd)


@pytest.mark.parametrize("odd", ["", "a/b", "..", "-x", "a b", "é", "a\n", "x" * 201])
def test_malformed_release_id_has_no_container(odd: str) -> None:
    with pytest.raises(ReleaseNotFound):
        container_of(ReleaseRef(ReleaseId(odd), odd))


def test_too_large_row_is_refused_with_its_size() -> None:
    with pytest.raises(StoreFull, match=f"{MAX_ITEM_BYTES:,} at most"):
        item_bytes(to_item("user.MQ", b"\xff" * MAX_ITEM_BYTES))


@pytest.mark.parametrize("foreign", [{}, {"t": 7}, {"b": "???"}, {"b": None}, {"b": 7}])
def test_foreign_item_is_not_a_row(foreign: dict[str, object]) -> None:
    with pytest.raises(ReleaseCorrupt, match=r"'user\.MQ' was not written by hotplate"):
        value_of({"id": "user.MQ", **foreign})
