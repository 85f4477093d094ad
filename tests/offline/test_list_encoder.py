"""Thousands of lists encoded at once: the bytes are those of each list encoded item by item."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.offline import list_encoder
from hotplate.offline.list_encoder import ListEncoder, RankedLists
from hotplate.stores.encoding import NO_OFFSET, Item, encode
from hotplate.stores.errors import StoreMisused
from hotplate.stores.store import Row
from tests.support.property import explored

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
catalogues = st.lists(st.tuples(texts, st.none() | texts), min_size=1, max_size=6)
scores = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(10**18), 10**18).map(float)
    | st.floats(-1e3, 1e3).map(lambda score: round(score, 6))
)


def ranked(lists: list[list[tuple[int, float]]]) -> RankedLists:
    """Name owners by their place, and lay the lists one after another."""
    flat = [item for each in lists for item in each]
    return RankedLists(
        owners=[f"{place:04}" for place in range(len(lists))],
        lengths=np.array([len(each) for each in lists], dtype=np.int64),
        items=np.array([number for number, _ in flat], dtype=np.uint32),
        scores=np.array([score for _, score in flat], dtype=np.float64),
    )


def item(identifier: str, title: str | None, score: float) -> Item:
    return Item(id=identifier, score=score) if title is None else Item(id=identifier, score=score, title=title)


@explored(100, 1_000, catalogue=catalogues, data=st.data())
def test_a_batch_has_the_bytes_of_its_lists_encoded_item_by_item(
    catalogue: list[tuple[str, str | None]], data: st.DataObject
) -> None:
    numbers = st.integers(0, len(catalogue) - 1)
    lists = data.draw(st.lists(st.lists(st.tuples(numbers, scores), max_size=13), max_size=5))
    encoder = ListEncoder([identifier for identifier, _ in catalogue], [title for _, title in catalogue])
    assert encoder.rows("user:", ranked(lists)) == [
        Row(f"user:{place:04}", encode(item(*catalogue[number], score) for number, score in each))
        for place, each in enumerate(lists)
    ]


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 8), st.integers(1, 20))
def test_batches_are_all_lists_in_order_and_small(lengths: list[int], most: int, items: int) -> None:
    lists = ranked([[(place, rank / 7) for rank in range(length)] for place, length in enumerate(lengths)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_encoder, "_ITEMS_AT_ONCE", items)
        batches = list(lists.batches(most))
    assert [owner for batch in batches for owner in batch.owners] == lists.owners
    for name in ("lengths", "items", "scores"):
        parts = [getattr(batch, name) for batch in batches]
        assert np.array_equal(np.concatenate([*parts, []]), getattr(lists, name))
    for batch in batches:
        assert batch.lengths.sum() == len(batch.items) == len(batch.scores)
        assert len(batch.owners) <= most
        assert len(batch.items) <= items or len(batch.owners) == 1


def test_an_offset_that_four_digits_cannot_say_is_none() -> None:
    title = "x" * 6_600
    bodies = [row.value for row in ListEncoder(["a"], [title]).rows("user:", ranked([[(0, 1.0)] * 9, [(0, 1.0)] * 12]))]
    assert bodies == [encode([item("a", title, 1.0)] * length) for length in (9, 12)]
    assert bodies[0][:4] > NO_OFFSET == bodies[1][:4]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_json_cannot_say_is_refused_in_a_batch(score: float) -> None:
    with pytest.raises(StoreMisused, match="finite"):
        ListEncoder(["a"], [None]).rows("user:", ranked([[(0, 1.0), (0, score)]]))
