"""Item attributes of a release: found by id as they were published, on every store; a damaged table is never served."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplate.stores import attributes
from hotplate.stores.attributes import ABOUT, ItemAttributes, encode_attributes, piece_keys
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import encode_id
from hotplate.stores.errors import ReleaseCorrupt, StoreMisused
from hotplate.stores.store import ReadResult, Row
from hotplate.stores.verification import read_servable
from tests.support.memory_store import MemoryStore
from tests.support.stores import OpenStore, on_every_store, publish, ref_of

IDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=1, unique=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
ITEMS = [f"i{n}" for n in range(5_000)]
COLUMNS: dict[str, Any] = {
    "price": [n / 4 for n in range(5_000)],
    "category": [None if n % 3 else f"c{n % 7}" for n in range(5_000)],
}


def table_of(ids: list[str], columns: dict[str, Any]) -> ItemAttributes:
    rows, about = encode_attributes(ids, columns)
    assert [row.key for row in rows] == piece_keys(about[ABOUT]["pieces"])
    return ItemAttributes(b"".join(row.value for row in rows))


def value_of(table: ItemAttributes, name: str, item: str) -> object:
    value = table.columns[name].value(table.row_of(encode_id(item)))
    return None if isinstance(value, float) and math.isnan(value) else value


@settings(max_examples=50)
@given(ids=IDS, data=st.data())
def test_each_item_has_the_values_that_were_published(ids: list[str], data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.none() | st.floats(allow_nan=False), min_size=len(ids), max_size=len(ids)))
    texts = data.draw(st.lists(st.none() | TEXTS, min_size=len(ids), max_size=len(ids)))
    columns: dict[str, list[Any]] = {"number": numbers, "text": texts}
    table = table_of(ids[1:], {name: values[1:] for name, values in columns.items()})
    assert table.row_of(encode_id(ids[0])) == -1
    for name, values in columns.items():
        assert [value_of(table, name, item) for item in ids] == [None, *values[1:]]


def test_too_large_table_and_repeated_items_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreMisused, match="two rows"):
        encode_attributes(["a", "b", "a"], {"price": [1.0, 2.0, 3.0]})
    monkeypatch.setattr(attributes, "MAX_BYTES", 1_000)
    with pytest.raises(StoreMisused, match="leave out columns"):
        encode_attributes(ITEMS, COLUMNS)


@on_every_store
async def test_a_release_is_served_with_its_attributes_or_not_at_all(open_store: OpenStore) -> None:
    store = open_store()
    rows, about = encode_attributes(ITEMS, COLUMNS)
    assert len(rows) == about[ABOUT]["pieces"] > 1
    lists = [Row("popular:", b'{"id":"i1"}'), Row("user:1", b'{"id":"i2"}')]
    whole = await publish(store, [*lists, *rows], about=about)
    servable = await read_servable(store, await ref_of(store, whole))
    assert servable.attributes is not None
    assert {name: value_of(servable.attributes, name, "i4998") for name in COLUMNS} == {
        "price": 1249.5,
        "category": "c0",
    }
    with pytest.raises(ReleaseCorrupt, match="meta:attributes/000000"):
        await publish(store, [*lists, *rows[1:]], about=about)
    assert (await store.catalogue()).live == whole
    without = await publish(store, lists)
    assert (await read_servable(store, await ref_of(store, without))).attributes is None


async def test_attributes_are_read_at_most_16_pieces_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "PIECE_BYTES", 1_000)
    rows, about = encode_attributes(ITEMS, COLUMNS)
    store = MemoryStore()
    read = list[int]()
    release_ref = await ref_of(store, await publish(store, [Row("popular:", b'{"id":"i1"}'), *rows], about=about))

    async def counted(release: ReleaseRef, keys: Sequence[str], **_: object) -> list[ReadResult]:
        read.append(sum(key in piece_keys(len(rows)) for key in keys))
        return [store.get(release, key) for key in keys]

    monkeypatch.setattr(store, "get_many", counted)
    assert (await read_servable(store, release_ref)).attributes is not None
    assert sum(read) == len(rows) > max(read) == 16
