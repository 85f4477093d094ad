"""Packed key lists: small, complete, and found by range."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stores.keys import Span, bounds, overlapping, pack, unpack

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.lists(keys, min_size=1))
def test_what_was_packed_comes_back_with_its_bounds(batch: list[str]) -> None:
    packed = pack(batch)
    assert unpack(packed) == batch
    assert bounds(packed) == (min(batch, key=str.encode), max(batch, key=str.encode))


def test_a_thousand_ordinary_keys_take_two_or_three_bytes_each() -> None:
    assert len(pack([f"user:{n:08}" for n in range(1000)])) < 3000


@given(st.lists(st.lists(keys, min_size=1, max_size=5), max_size=20))
def test_groups_are_ascending_and_complete_and_only_what_overlaps_is_together(batches: list[list[str]]) -> None:
    spans = [Span(min(batch), max(batch), "a", place) for place, batch in enumerate(batches)]
    groups = list(overlapping(spans))
    assert sorted(span for group in groups for span in group) == sorted(spans)
    for before, after in pairwise(groups):
        assert max(span.last for span in before) < min(span.first for span in after)


def test_batches_in_order_are_unpacked_one_by_one() -> None:
    spans = [Span(f"{n:03}0", f"{n:03}9", "a", n) for n in range(50)]
    assert [len(group) for group in overlapping(reversed(spans))] == [1] * 50
