"""Lists as bytes: what goes in comes out, and a cut is a prefix of whole items."""

import math
from collections.abc import Callable

import orjson
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from stores.encoding import Item, ItemEncoder, cut, decode, encode
from stores.errors import StoreMisused
from tests.support.soak import SEED, scaled

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
scores = st.floats(-1e6, 1e6).map(lambda score: round(score, 6))
items = st.builds(lambda id, score, title: Item(id=id, score=score, title=title), texts, scores, texts) | st.builds(  # noqa: A006 -- the field's own name
    lambda id, score: Item(id=id, score=score),  # noqa: A006 -- as above
    texts,
    scores,
)
lists = st.lists(items, max_size=30)


@given(lists)
def test_decode_undoes_encode(content: list[Item]) -> None:
    assert decode(encode(content)) == content


@given(lists, st.integers(1, 40))
def test_a_cut_is_the_first_n_items(content: list[Item], n: int) -> None:
    assert decode(cut(encode(content), n)) == content[:n]


@given(lists)
def test_the_fast_encoder_agrees_with_the_plain_one(content: list[Item]) -> None:
    encoder = ItemEncoder([item["id"] for item in content], [item.get("title") for item in content])
    assert encoder.encode(range(len(content)), [item["score"] for item in content]) == encode(content)


def test_a_line_is_one_item_whatever_its_title_holds() -> None:
    value = encode([Item(id="a,\nb", score=1, title='"},\n{"'), Item(id="c", score=0.5)])
    assert value.split(b",\n") == [orjson.dumps(item) for item in decode(value)]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_json_cannot_say_is_refused(score: float) -> None:
    with pytest.raises(StoreMisused, match="finite"):
        encode([Item(id="a", score=score)])
    with pytest.raises(StoreMisused, match="finite"):
        ItemEncoder(["a"], [None]).encode([0], [score])


def test_items_and_scores_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ItemEncoder(["a", "b"], [None, None]).encode([0, 1], [1.0])


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "property_test",
    [test_decode_undoes_encode, test_a_cut_is_the_first_n_items, test_the_fast_encoder_agrees_with_the_plain_one],
)
def test_thousands_of_examples_of_encoding(property_test: Callable[[], None]) -> None:
    deeper = settings(max_examples=scaled(2_000), deadline=None, database=None)
    seed(SEED)(deeper(property_test))()
