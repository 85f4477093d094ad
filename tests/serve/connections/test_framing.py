"""Costs by piece: small chunks, empty lines and small values of JSON are bounded, as their bytes are."""

import json
import tracemalloc
from itertools import pairwise
from unittest.mock import Mock, create_autospec

import pytest
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.api.parameters import parse_batch
from hotplate.serve.api.schemas import MAX_USERS
from hotplate.serve.connections.framing import MAX_BODY_BYTES, MAX_CHUNKS, Body, MalformedBody, TooManyChunks
from hotplate.serve.embedded import Lists
from hotplate.serve.problems import Problem
from tests.support.lane import Pair, connected, sent_to

GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
LINE = b"POST /v1/recommendations HTTP/1.1\r\nHost: a\r\n"
HEAD = LINE + b"Transfer-Encoding: chunked\r\n\r\n"


def batch(size: int) -> bytes:
    """Return a batch of this many bytes."""
    return b'{"users":["1"]}'.ljust(size)


def chunked(body: bytes, chunk_bytes: int) -> bytes:
    starts = range(0, len(body), chunk_bytes)
    chunks = [body[start : start + chunk_bytes] for start in starts]
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@pytest.mark.parametrize("part_bytes", [100, 5_000, 1 << 20])
async def test_body_in_too_many_chunks_is_refused_and_counted(pair: Pair, part_bytes: int) -> None:
    sent = HEAD + chunked(batch(MAX_CHUNKS + 10), 1)
    for server in (pair.lane, pair.plain):
        _, transport = connected(server)
        for start in range(0, len(sent), part_bytes):
            transport.feed(sent[start : start + part_bytes])
        answer = await transport.answers()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"urn:hotplate:problem:too-many-chunks" in answer
        assert b"Connection: close" in answer
    assert b'hotplate_shed_total{reason="chunks"} 2.0' in Lists(lambda: pair.reader).prometheus_text()


async def test_extensions_of_chunks_count_towards_the_bytes_of_a_body(pair: Pair) -> None:
    extended = (b"1;" + b"a" * 4_000 + b"\r\n \r\n") * 100
    for server in (pair.lane, pair.plain):
        transport = sent_to(server, HEAD)
        for _ in range(6):
            transport.feed(extended)
        assert (await transport.answers()).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("part_bytes", [1000, 1 << 20])
async def test_long_extension_is_refused_in_any_pieces(pair: Pair, part_bytes: int) -> None:
    sent = HEAD + b"f;" + b"a" * 9_000 + b"\r\n" + batch(15) + b"\r\n0\r\n\r\n"
    _, transport = connected(pair.plain)
    for start in range(0, len(sent), part_bytes):
        transport.feed(sent[start : start + part_bytes])
    assert (await transport.answers()).startswith(b"HTTP/1.1 400 ")


async def test_chunks_beyond_the_bound_do_not_reach_the_parser(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = Mock()
    begin = StreamReader.begin_http_chunk_receiving

    def count_and_begin(body: StreamReader) -> None:
        parsed()
        begin(body)

    monkeypatch.setattr(StreamReader, "begin_http_chunk_receiving", count_and_begin)
    transport = sent_to(pair.plain, HEAD + chunked(batch(100_000), 1))
    assert (await transport.answers()).startswith(b"HTTP/1.1 413 ")
    assert 0 < parsed.call_count <= MAX_CHUNKS


@pytest.mark.parametrize(
    ("body", "chunk_bytes"),
    [
        (batch(MAX_BODY_BYTES), 256),  # all that a body may have
        (batch(MAX_BODY_BYTES), 16_384),  # a stream of Node
        (batch(MAX_BODY_BYTES), 65_519),  # curl -T
        (batch(MAX_CHUNKS), 1),
        (json.dumps({"users": [str(user) for user in range(MAX_USERS)]}, indent=1).encode(), 12),  # a line each
    ],
    ids=["256 B", "16 KiB", "64 KiB", "one byte", "lines"],
)
async def test_chunks_of_ordinary_sizes_pass(pair: Pair, body: bytes, chunk_bytes: int) -> None:
    sent = (HEAD + chunked(body, chunk_bytes)) * 2 + GET
    transport = sent_to(pair.plain, sent)
    await transport.answers(3)
    assert transport.written.count(b"HTTP/1.1 200 ") == 3
    assert not transport.closed


def taken(sent: bytes, cuts: list[int]) -> int:
    """Return how many bytes of *sent*, which is cut at these places, are the body; raises as `Body`."""
    body = Body(None)
    count = 0
    for start, end in pairwise([0, *sorted(cuts), len(sent)]):
        count += body.take(sent[start:end])
    assert body.is_complete
    return count


CUTS = st.lists(st.integers(0, 5_000), max_size=6)


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=300), max_size=12),
    extension=st.sampled_from([b"", b";a", b" ; a=b"]),
    trailers=st.lists(st.sampled_from([b"A: b\r\n", b"X-Request-Id: c\r\n"]), max_size=3),
    after=st.binary(max_size=50),
    cuts=CUTS,
)
def test_chunked_body_ends_at_the_same_byte_however_it_is_cut(
    chunks: list[bytes], extension: bytes, trailers: list[bytes], after: bytes, cuts: list[int]
) -> None:
    sent = b"".join(b"%X%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    sent += b"0\r\n" + b"".join(trailers) + b"\r\n"
    assert taken(sent + after, [min(cut, len(sent)) for cut in cuts]) == len(sent)


@given(data=st.binary(max_size=4000), cuts=CUTS)
def test_chunks_are_counted_alike_however_a_body_is_cut(data: bytes, cuts: list[int]) -> None:
    sent = b"1\r\na\r\n" * (MAX_CHUNKS + 3) + data
    with pytest.raises(TooManyChunks):
        taken(sent, [min(cut * 5, len(sent)) for cut in cuts])


PIECES = (b"0", b"1", b"2", b"0a", b";x", b" ", b"\r\n", b"\r\n", b"\r", b"\n", b"a\r\n", b"1\r\na\r\n")


def outcome(sent: bytes, step: int) -> int | type[Exception]:
    """Return what comes of taking *sent* in parts of *step* bytes: the size of the body, or an error."""
    body = Body(None)
    try:
        return sum(body.take(sent[start : start + step]) for start in range(0, len(sent), step))
    except MalformedBody as error:
        return type(error)


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
def test_whole_bodies_and_single_bytes_end_alike(pieces: list[bytes]) -> None:
    sent = b"".join(pieces)
    assert outcome(sent, len(sent) or 1) == outcome(sent, 1)


@pytest.mark.parametrize(
    "sent",
    [
        b"zz\r\n",
        b"\r\n",
        b"-1\r\n",
        b"0x1\r\n",
        b"1\n",
        b"1 \ra\r\n",
        b"100000000\r\n",
        b"1\r\na0\r\n\r\n",
        b"a" * 9000,
    ],
)
def test_malformed_chunks_are_found_at_once(sent: bytes) -> None:
    for cut in range(min(len(sent), 9)):
        with pytest.raises(MalformedBody):
            taken(sent, [cut])


async def test_long_trailers_are_refused(pair: Pair) -> None:
    transport = sent_to(pair.plain, HEAD + b"0\r\n" + b"A: b\r\n" * 200_000)
    assert (await transport.answers()).startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))


async def test_requests_behind_a_chunked_body_are_not_counted_with_it(pair: Pair) -> None:
    transport = sent_to(pair.plain, HEAD + chunked(batch(MAX_CHUNKS), 1) + GET * 3000)
    await transport.answers(3001)


async def test_empty_lines_before_a_request_are_skipped_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    read = create_autospec(RequestHandler.data_received, side_effect=RequestHandler.data_received)
    monkeypatch.setattr(RequestHandler, "data_received", read)
    for lines in (b"\r\n" * 50_000, b"\n\r" * 50_000 + b"\r"):
        transport = sent_to(pair.plain, lines)
        transport.feed(lines + GET)
        assert (await transport.answers()).startswith(b"HTTP/1.1 200 ")
    assert read.call_count <= 2
    assert pair.plain.bytes_in_flight == 0


async def test_body_that_is_not_read_yet_pauses_its_connection(pair: Pair) -> None:
    body = batch(1_000_000)
    transport = sent_to(pair.plain, LINE + b"Content-Length: %d\r\n\r\n" % len(body) + body[:700_000])
    assert not transport.is_reading()
    transport.feed(body[700_000:] + GET)
    await transport.answers(2)
    assert transport.is_reading()


def small_values() -> list[bytes]:
    """Return bodies that are refused, of as many small values as there is room for."""
    bodies = [b"{" + b"".join(b'"%x":0,' % number for number in range(100_000)) + b'"n":1}']
    for start, value in ((b'{"users":[', b"[],"), (b'{"other":[', b"{},"), (b'{"n":10.0,"users":[', b"[],")):
        bodies.append(start + value * (MAX_BODY_BYTES // len(value) - 10) + value[:-1] + b"]}")
    return bodies


@pytest.mark.parametrize("body", small_values(), ids=["fields", "arrays", "objects", "with n"])
def test_refused_values_are_not_decoded(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Problem):
            parse_batch(body)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < len(body)
