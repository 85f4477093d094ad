"""Lists and lists of keys as bytes: what goes in comes out, and a cut is a prefix of whole items."""

import math
from collections.abc import Sequence

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hotplate.base.recommendations import Item
from hotplate.stores.encoding import (
    HEADER_BYTES,
    NO_OFFSET,
    OFFSET_BYTES,
    PACKED_AT_ONCE,
    Checksum,
    KeySpan,
    body_of,
    bounds,
    cut,
    decode,
    encode,
    is_empty,
    merge_packed_keys,
    pack,
    unpack,
)
from hotplate.stores.errors import ReleaseCorrupt, StoreMisused
from tests.support.property import explored

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
scores = st.floats(-1e6, 1e6).map(lambda score: round(score, 6))
items = st.builds(lambda id, score, title: Item(id=id, score=score, title=title), texts, scores, texts) | st.builds(  # noqa: A006 -- the field's own name
    lambda id, score: Item(id=id, score=score),  # noqa: A006 -- as above
    texts,
    scores,
)
lists = st.lists(items, max_size=30)


@explored(100, 2_000, content=lists, n=st.integers(1, 40))
def test_a_cut_is_the_first_n_items(content: list[Item], n: int) -> None:
    body = encode(content)
    for offset in (body[:OFFSET_BYTES], NO_OFFSET):
        assert decode(cut(offset + body[OFFSET_BYTES:], n)) == content[:n]


@explored(40, 2_000, content=lists)
def test_a_body_is_a_list_behind_the_length_of_its_first_ten_items(content: list[Item]) -> None:
    lines = [orjson.dumps(item) for item in content]
    value = b",\n".join(lines)
    usual = b",\n".join(lines[:10])
    assert encode(content) == body_of(value) == b"%04x" % len(usual) + value


@given(texts, st.binary(max_size=300), st.data())
def test_any_changed_byte_another_key_or_another_release_is_found(
    key: str, payload: bytes, data: st.DataObject
) -> None:
    checksum = Checksum("20261120T064200Z-aaaa")
    body = b"002a" + payload
    value = checksum.seal(key, body)
    assert value.isascii() == payload.isascii()
    assert len(value) == HEADER_BYTES + len(payload)
    assert checksum.open(key, value) == body
    place = data.draw(st.integers(0, len(value) - 1))
    flipped = bytearray(value)
    flipped[place] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(flipped), value[:place], value + b"x"):
        with pytest.raises(ReleaseCorrupt, match="damaged"):
            checksum.open(key, damaged)
    for other_key, other in ((key + "x", checksum), (key, Checksum("20261120T064200Z-bbbb"))):
        with pytest.raises(ReleaseCorrupt, match="another key"):
            other.open(other_key, value)


def test_cut_beyond_four_digits_is_found_item_by_item() -> None:
    content = [Item(id=str(n), score=1.0, title="x" * 10_000) for n in range(12)]
    body = encode(content)
    assert body[:OFFSET_BYTES] == NO_OFFSET
    assert decode(cut(body, 10)) == content[:10]
    assert is_empty(encode([]))
    assert cut(NO_OFFSET, 10) == b""


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_non_finite_score_is_refused(score: float) -> None:
    with pytest.raises(StoreMisused, match="finite"):
        encode([Item(id="a", score=score)])


keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@explored(100, 2_000, batch=st.lists(keys, min_size=1))
def test_packed_keys_round_trip_with_bounds(batch: list[str]) -> None:
    packed = pack(batch)
    assert unpack(packed) == batch
    assert bounds(packed) == (min(batch, key=str.encode), max(batch, key=str.encode))


async def merged_keys(batches: list[list[str]]) -> list[list[str]]:
    async def fetch(spans: Sequence[KeySpan]) -> list[bytes]:
        assert len(spans) <= PACKED_AT_ONCE
        return [pack(batches[span.place]) for span in spans]

    spans = [KeySpan(min(batch), max(batch), "a", index) for index, batch in enumerate(batches)]
    return [keys async for keys in merge_packed_keys(spans, fetch)]


@given(st.lists(st.lists(keys, min_size=1, max_size=5), max_size=20))
@example([[f"{place:03}"] for place in range(PACKED_AT_ONCE + 1)])
async def test_merged_keys_are_complete_and_ascend_without_repetition(batches: list[list[str]]) -> None:
    merged_list = [key for some in await merged_keys(batches) for key in some]
    assert merged_list == sorted({key for batch in batches for key in batch}, key=str.encode)
