"""Rows as items of Cosmos DB: nothing is lost on the way there and back, and no two names are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.cosmos.requests import NAME
from hotplate.stores.cosmos.rows import (
    MAX_ITEM_BYTES,
    METAS,
    ROWS,
    STATE,
    container_of,
    item_bytes,
    name_of,
    to_item,
    value_of,
)
from hotplate.stores.encoding import KINDS, MAX_ID_BYTES
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreFull, StoreMisused

ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_ID_BYTES).filter(
    lambda text: len(text.encode()) <= MAX_ID_BYTES
)
keys = st.builds("{}:{}".format, st.sampled_from(KINDS), ids)
values = st.binary(max_size=2000) | st.text(max_size=500).map(lambda text: text.encode("utf-8", "surrogatepass"))


@given(values)
def test_every_value_comes_back_as_it_was(value: bytes) -> None:
    item = to_item("user.MQ", value)
    assert value_of(item) == value
    assert item_bytes(item) <= item_bytes({"id": "user.MQ", "b": ""}) + (len(value) + 2) // 3 * 4


@given(keys, keys)
def test_names_are_as_different_as_keys_and_need_no_escaping(one: str, other: str) -> None:
    assert (name_of(one) == name_of(other)) == (one == other)
    assert NAME.fullmatch(name_of(one))
    assert len(name_of(one)) < 1023


@given(keys, st.integers(1, 10**9))
def test_no_row_has_the_name_of_anything_else(key: str, number: int) -> None:
    assert name_of(key) not in {STATE, f"{ROWS}-{number}", f"{METAS}-{number}"}


@pytest.mark.parametrize("odd", ["", "user", "film:1", "meta.x:1"])
def test_a_key_of_no_known_kind_has_no_name(odd: str) -> None:
    with pytest.raises(StoreMisused):
        name_of(odd)


@pytest.mark.parametrize("odd", ["", "a/b", "..", "-x", "a b", "é", "a\n", "x" * 201])
def test_an_odd_release_id_is_no_container(odd: str) -> None:
    with pytest.raises(ReleaseNotFound):
        container_of(ReleaseRef(ReleaseId(odd), odd))


def test_what_no_item_can_hold_is_refused_with_its_size() -> None:
    with pytest.raises(StoreFull, match=f"{MAX_ITEM_BYTES:,} at most"):
        item_bytes(to_item("user.MQ", b"\xff" * MAX_ITEM_BYTES))


@pytest.mark.parametrize("foreign", [{}, {"t": 7}, {"b": "???"}, {"b": None}, {"b": 7}])
def test_an_item_of_another_program_is_no_row(foreign: dict[str, object]) -> None:
    with pytest.raises(ReleaseCorrupt, match=r"'user\.MQ' was not written by hotplate"):
        value_of({"id": "user.MQ", **foreign})
