"""Encoding `zstd`: values round-trip, damage is an error, and the service gives the same answers."""

import random
from base64 import b64encode
from collections.abc import Sequence

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from hotplate.base.recommendations import Item
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.releases.follower import Follower
from hotplate.stores import publication
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.compression import (
    MAX_LIST_BYTES,
    Encoder,
    decompressor,
    encode_rows,
    load_decode,
    train,
)
from hotplate.stores.encoding import (
    CHECKSUM_BYTES,
    DICTIONARY,
    HEADER_BYTES,
    NO_OFFSET,
    OFFSET_BYTES,
    Checksum,
    body_of,
    encode,
    is_empty,
)
from hotplate.stores.errors import ReleaseCorrupt, StoreMisused
from hotplate.stores.manifest import MAX_POPULAR_BYTES
from hotplate.stores.store import Plan, Row, Store
from hotplate.stores.verification import load_manifest
from tests.support.lane import Pair, exchange
from tests.support.memory_store import MemoryStore
from tests.support.property import explored
from tests.support.service import a_list
from tests.support.stores import as_bodies, batches, ref_of


def lists(count: int, seed: int = 1) -> list[bytes]:
    draw = random.Random(seed)
    return [
        encode(Item(id=str(draw.randrange(2_000)), score=round(draw.random(), 6), title="A title") for _ in range(10))[
            OFFSET_BYTES:
        ]
        for _ in range(count)
    ]


def rows_of(count: int) -> list[Row]:
    popular, *personal = lists(count + 1)
    return [Row("popular:", popular), *(Row(f"user:{n:05}", value) for n, value in enumerate(personal))]


async def publish_compressed(store: Store, rows: Sequence[Row]) -> ReleaseId:
    plan = Plan(len(rows), sum(len(row.value) for row in rows))
    result = await publication.publish_release(store, batches(rows, 500), plan=plan, encoding="zstd")
    assert result.rows == len(rows) + 1
    return result.manifest.release


CHECKSUM = Checksum("20261120T064200Z-7f3a")
DICTIONARIES = (b"", train(lists(1_000)))


@explored(100, 5_000, value=st.binary(max_size=2_000), dictionary=st.sampled_from(DICTIONARIES))
def test_any_value_round_trips(value: bytes, dictionary: bytes) -> None:
    (row,) = Encoder(CHECKSUM, dictionary).rows([Row("user:1", body_of(value))])
    assert decompressor(dictionary)(row.value[HEADER_BYTES:]) == value
    body = CHECKSUM.open("user:1", row.value)
    assert body[:OFFSET_BYTES] == body_of(value)[:OFFSET_BYTES]
    assert is_empty(body) == (not value)


async def test_the_same_rows_give_the_same_bytes_a_fifth_of_the_size() -> None:
    rows = rows_of(1_000)
    store = MemoryStore()
    first, second = [await publish_compressed(store, rows) for _ in range(2)]
    refs = [await ref_of(store, release) for release in (first, second)]
    manifest_of_first, other = [await load_manifest(store, ref) for ref in refs]
    assert (manifest_of_first.bytes, manifest_of_first.counts, manifest_of_first.encoding) == (
        other.bytes,
        {"meta": 1, "popular": 1, "user": 1_000},
        "zstd",
    )
    assert manifest_of_first.bytes < sum(len(row.value) for row in rows) / 2
    keys = [row.key for row in rows[:50]]
    bodies = list[list[bytes]]()
    for ref, manifest in zip(refs, (manifest_of_first, other), strict=True):
        decode = await load_decode(store, ref, manifest)
        results = await store.get_many(ref, keys)
        values = [(key, result) for key, result in zip(keys, results, strict=True) if isinstance(result, bytes)]
        assert [decode(key, value)[OFFSET_BYTES:] for key, value in values] == [row.value for row in rows[:50]]
        bodies.append([value[CHECKSUM_BYTES:] for _, value in values])
    assert bodies[0] == bodies[1]


async def test_reserved_space_is_close_to_needed_space() -> None:
    rows = rows_of(2_000)
    store = MemoryStore()
    plan = Plan(len(rows), sum(len(row.key) + len(row.value) for row in rows))
    manifest = (await publication.publish_release(store, batches(rows, 500), plan=plan, encoding="zstd")).manifest
    encoded = await encode_rows(batches(rows, 500), plan, "zstd", CHECKSUM)
    assert encoded.plan.rows == manifest.rows
    assert encoded.plan.payload_bytes == pytest.approx(manifest.bytes, rel=0.2)


def test_a_damaged_value_is_an_error_and_never_a_crash() -> None:
    (row,) = Encoder(CHECKSUM, DICTIONARIES[1]).rows([Row("user:1", body_of(lists(1)[0]))])
    payload = row.value[HEADER_BYTES:]
    decompress = decompressor(DICTIONARIES[1])
    draw = random.Random(3)
    for value in (b"\x00", b"{}", payload[:-1], payload + b"x", payload * 2, payload[4:]):
        with pytest.raises(ReleaseCorrupt):
            decompress(value)
    for _ in range(2_000):
        flipped = bytearray(payload)
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        try:
            decompress(bytes(flipped))
        except ReleaseCorrupt:
            continue


def test_decompression_bomb_is_refused_before_expanding() -> None:
    decompress = decompressor(b"")
    with pytest.raises(ReleaseCorrupt, match="at most"):
        decompress(zstandard.ZstdCompressor().compress(b"\x00" * (MAX_LIST_BYTES + 1)))
    with pytest.raises(ReleaseCorrupt, match="unknown size"):
        decompress(zstandard.ZstdCompressor(write_content_size=False).compress(b"\x00" * (MAX_LIST_BYTES + 1)))
    assert len(decompress(zstandard.ZstdCompressor().compress(b"\x00" * MAX_LIST_BYTES))) == MAX_LIST_BYTES


@pytest.mark.parametrize("dictionary", [None, b""])
def test_too_large_value_is_not_published(dictionary: bytes | None) -> None:
    with pytest.raises(StoreMisused, match="the list of 'user:1' has"):
        Encoder(CHECKSUM, dictionary).rows([Row("user:1", b"0000" + b"x" * (MAX_LIST_BYTES + 1))])
    with pytest.raises(StoreMisused, match="fewer segments"):
        Encoder(CHECKSUM, dictionary).rows(
            [Row(f"popular:{n}", b"0000" + b"x" * (MAX_POPULAR_BYTES // 4)) for n in range(5)]
        )


@given(st.lists(st.tuples(st.sampled_from(["user:", "item:", "popular:", "meta:"]), st.binary(max_size=900))))
def test_a_stored_value_is_the_checksum_of_key_and_body_and_the_body(values: list[tuple[str, bytes]]) -> None:
    rows = [Row(f"{kind}{n}", b"{" + value) for n, (kind, value) in enumerate(values)]
    seed = xxh3_64_intdigest(b"20261120T064200Z-7f3a")
    expected = list[Row]()
    for key, value in rows:
        end = 0 if key.startswith("meta:") else len(b",\n".join(value.split(b",\n")[:10]))
        body = b"%04x" % end + value
        expected.append(Row(key, b64encode(xxh3_64_digest(key.encode() + body, seed)[:6]) + body))
    assert Encoder(CHECKSUM, None).rows(as_bodies(rows)) == expected


async def test_a_release_whose_dictionary_is_lost_or_damaged_is_not_followed() -> None:
    store = MemoryStore()
    first = await publish_compressed(store, rows_of(500))
    follower = Follower(store)
    await follower.refresh()
    for damaged in (None, b"nonsense", DICTIONARIES[1][:100]):
        second = await publish_compressed(store, rows_of(500))
        stored = store.find(await ref_of(store, second)).rows
        if damaged is None:
            del stored[DICTIONARY]
        else:
            stored[DICTIONARY] = Checksum(second).seal(DICTIONARY, NO_OFFSET + damaged)
        await follower.refresh()
        assert follower.live is not None
        assert follower.live.id == first
        assert "dictionary" in str(follower.last_error)


async def test_compressed_release_gives_same_responses_on_and_off_the_lane() -> None:
    rows = [Row("item:i", a_list("j", "k")), Row("popular:", a_list("p", "q")), Row("popular:fr", a_list("f"))]
    rows += rows_of(300)[1:]
    paths = [f"/v1/recommendations/{n:05}?n={n % 12 + 1}" for n in range(40)]
    paths += ["/v1/recommendations/nobody", "/v1/recommendations/nobody?segment=fr", "/v1/similar/i", "/v1/popular"]
    requests = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths]
    body = b'{"users":["00001","x","00002"]}'
    requests.append(b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    answers = list[list[bytes]]()
    for encoding in ("json", "zstd"):
        store = MemoryStore()
        plan = Plan(len(rows), 1000)
        done = await publication.publish_release(store, batches(rows, 500), plan=plan, encoding=encoding)
        async with Pair(TieredReader({"store": store})) as pair:
            for request in requests:
                await pair.check(request)
            received = [(await exchange(pair.lane, (request,))).partition(b"\r\n\r\n") for request in requests]
        assert {head.split()[1] for head, _, _ in received} == {b"200"}
        answers.append([body.replace(done.manifest.release.encode(), b"") for _, _, body in received])
    assert answers[0] == answers[1]
