"""Packed key lists: small, complete, and found by range."""

from hypothesis import given
from hypothesis import strategies as st

from hotplate.stores.keys import KeySpan, bounds, merged, pack, unpack
from tests.support.property import explored

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@explored(100, 2_000, batch=st.lists(keys, min_size=1))
def test_what_was_packed_comes_back_with_its_bounds(batch: list[str]) -> None:
    packed = pack(batch)
    assert unpack(packed) == batch
    assert bounds(packed) == (min(batch, key=str.encode), max(batch, key=str.encode))


async def merged_keys(batches: list[list[str]]) -> list[list[str]]:
    async def fetch(span: KeySpan) -> bytes:
        return pack(batches[span.place])

    spans = [KeySpan(min(batch), max(batch), "a", index) for index, batch in enumerate(batches)]
    return [found async for found in merged(spans, fetch)]


@given(st.lists(st.lists(keys, min_size=1, max_size=5), max_size=20))
async def test_merged_keys_are_complete_and_ascend_without_repetition(batches: list[list[str]]) -> None:
    found = [key for some in await merged_keys(batches) for key in some]
    assert found == sorted({key for batch in batches for key in batch}, key=str.encode)


async def test_of_interleaved_parts_about_a_batch_is_merged_at_a_time() -> None:
    parts = [[f"{n:05}" for n in range(part, 8_000, 8)] for part in range(8)]
    batches = [part[start : start + 100] for part in parts for start in range(0, len(part), 100)]
    found = await merged_keys(batches)
    assert max(map(len, found)) <= 8 * 100
    assert [key for some in found for key in some] == [f"{n:05}" for n in range(8_000)]


async def test_a_list_that_is_gone_is_left_out() -> None:
    async def fetch(span: KeySpan) -> bytes | None:
        return None if span.place == 0 else pack(["b"])

    found = [some async for some in merged([KeySpan("a", "a", "s", 0), KeySpan("b", "b", "s", 1)], fetch)]
    assert found == [["b"]]
