"""Malformed requests, by hypothesis: the emulation answers or closes, soon, and no other item ever changes."""

import asyncio
import socket
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.cosmos_emulator.http import Connection, Request, Response
from tests.support.clock import FakeClock
from tests.support.cosmos_server import Direct, Emulator, emulator, signed

EXAMPLES = settings(max_examples=200, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
words = st.sampled_from(
    ["id", "operations", "op", "path", "value", "query", "parameters", "name", "ttl", "content", "indexingPolicy",
     "partitionKey", "paths", "operationType", "resourceBody", "incr", "set", "/n", "/id", "/_etag", "SELECT * FROM c",
     "Upsert", "Delete", "Read", "Patch", "keep", "other", "condition", "from c where c.id = 'x'"],
)  # fmt: skip
shaped = st.recursive(
    words | json_values, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5)
)
bodies = st.binary(max_size=60) | shaped.map(lambda value: orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
header_names = st.sampled_from(
    ["x-ms-documentdb-partitionkey", "x-ms-documentdb-partitionkeyrangeid", "x-ms-documentdb-isquery", "if-match",
     "x-ms-documentdb-query-enablecrosspartition", "x-ms-cosmos-is-batch-request", "x-ms-documentdb-is-upsert",
     "x-ms-cosmos-is-query-plan-request", "x-ms-continuation", "x-ms-max-item-count", "x-ms-session-token", "prefer",
     "x-ms-consistency-level", "x-ms-offer-throughput", "x-ms-cosmos-offer-autopilot-settings", "if-none-match",
     "x-ms-activity-id", "a-im", "content-type", "host", "x-ms-date", "authorization"],
)  # fmt: skip
header_values = st.sampled_from(["True", '["other"]', "[null]", "[{}]", "[]", "[1,2]", "0", "-1", "99999999999", "400"])
headers = st.dictionaries(
    header_names, header_values | st.text(st.characters(max_codepoint=255), max_size=30), max_size=5
)
printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)
paths = st.sampled_from(
    ["/", "/dbs", "/dbs/", "/dbs/d/", "/dbs/d/colls/", "/dbs/d/colls/c/docs/", "/dbs/d/colls/c/docs/other/",
     "/dbs/d/colls/c/pkranges/", "/offers", "/offers/x/", "/dbs/d/colls/c/docs/%ff/", "/dbs//colls/", "//", "/dbs/e/"],
) | printable.map("/dbs/d/colls/c/docs/{}".format)  # fmt: skip
methods = st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])


@EXAMPLES
@given(method=methods, path=paths, body=bodies, given_headers=headers)
def test_any_request_is_answered_and_spares_other_items(
    clock: FakeClock, method: str, path: str, body: bytes, given_headers: dict[str, str]
) -> None:
    direct = Direct(clock)
    kept = direct.item("POST", "keep", {"id": "keep", "n": 1}).body
    is_the_whole = (method, path) in (("DELETE", "/dbs/d/"), ("DELETE", "/dbs/d/colls/c/"))
    answer = direct.ask(method, path, body, given_headers)
    assert answer.status != 500
    assert set(answer.headers) == {name for name in answer.headers if name.isascii()}
    if not is_the_whole and b"keep" not in body and "keep" not in str(given_headers) + path:
        assert direct.item("GET", "keep").body == kept


@EXAMPLES
@given(text=st.text(max_size=80) | st.lists(st.sampled_from(
    ["SELECT", "*", "FROM", "c", "WHERE", "c.id", "=", "'a'", "(", ")", "AND", "OR", "NOT", "IN", ",", "@p", "1", "-",
     "ORDER BY", "c.n", "OFFSET", "LIMIT", "TOP", "VALUE", "COUNT(1)", "[", "]", "{", "}", ":", "<", "IS_DEFINED(c.x)"],
), max_size=25).map(" ".join))  # fmt: skip
def test_any_query_is_answered(clock: FakeClock, text: str) -> None:
    direct = Direct(clock)
    direct.item("POST", "a", {"id": "a", "n": [1, {"x": "y"}]})
    asked = {"content-type": "application/query+json", "x-ms-documentdb-query-enablecrosspartition": "True"}
    body = {"query": text, "parameters": [{"name": "@p", "value": 1}]}
    for more in ({}, {"x-ms-cosmos-is-query-plan-request": "True"}):
        assert direct.ask("POST", "/dbs/d/colls/c/docs/", body, asked | more).status in (200, 400)


@EXAMPLES
@given(operations=st.lists(st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "set", "replace", "remove", "incr", "move"]),
     "path": st.sampled_from(["/n", "/l", "/l/0", "/l/-", "/l/9", "/o/x", "/o/x/y", "/", "", "/id", "/a~1b", "/_ts"])},
    optional={"value": json_values, "from": st.sampled_from(["/n", "/l/0", "/o", "/zz"])},
), max_size=5))  # fmt: skip
def test_a_patch_changes_its_item_whole_or_not_at_all(clock: FakeClock, operations: list[dict[str, Any]]) -> None:
    direct = Direct(clock)
    item = {"id": "a", "n": 1, "l": [1, 2], "o": {"x": {}}}
    before = direct.item("POST", "a", item).body
    answer = direct.item("PATCH", "a", {"operations": operations})
    assert answer.status in (200, 400)
    after = direct.item("GET", "a").body
    assert after == (answer.body if answer.status == 200 else before)
    assert len(direct.container.documents) == 1


@EXAMPLES
@given(names=st.lists(st.tuples(st.sampled_from(["Create", "Upsert", "Replace", "Delete", "Read", "Patch", "?"]),
                                st.sampled_from("abc")), max_size=8))  # fmt: skip
def test_a_batch_happens_whole_or_not_at_all(clock: FakeClock, names: list[tuple[str, str]]) -> None:
    direct = Direct(clock, partitionKey={"paths": ["/pk"], "kind": "Hash", "version": 2})
    key = {"x-ms-documentdb-partitionkey": '["x"]'}
    for name in "ab":
        direct.ask("POST", "/dbs/d/colls/c/docs/", {"id": name, "pk": "x"}, key)
    before = direct.ask("GET", "/dbs/d/colls/c/docs/").body
    stored = direct.container.documents.stored_bytes
    patch = [{"op": "add", "path": "/z", "value": 1}]
    operations = [
        {"operationType": kind, "id": name, "resourceBody": {"id": name, "pk": "x", "operations": patch}}
        for kind, name in names
    ]
    answer = direct.ask("POST", "/dbs/d/colls/c/docs/", operations, key | {"x-ms-cosmos-is-batch-request": "True"})
    assert answer.status in (200, 207, 400)
    if answer.status != 200:
        assert direct.ask("GET", "/dbs/d/colls/c/docs/").body == before
        assert direct.container.documents.stored_bytes == stored


def test_a_client_that_does_not_read_is_not_answered_on_and_on() -> None:
    asked = list[Request]()

    def answering(request: Request) -> Response:
        asked.append(request)
        return Response(200, b"x" * 10)

    async def scene() -> None:
        sink = Sink()
        connection = Connection(answering, set(), 0, "http")
        connection.connection_made(sink)
        connection.pause_writing()
        connection.data_received(b"GET / HTTP/1.1\r\n\r\n" * 50)
        assert asked == []
        connection.resume_writing()
        assert sink.heard.count(b"HTTP/1.1 200 OK") == 50

    asyncio.run(scene())


class Sink(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.heard += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def fed(pieces: list[bytes]) -> tuple[list[Request], Sink]:
    """Feed a connection with pieces; returns the requests that it understood, and what it wrote."""
    asked = list[Request]()

    def answering(request: Request) -> Response:
        asked.append(request)
        return Response(200, b"{}")

    async def feed() -> Sink:
        sink = Sink()
        connection = Connection(answering, set(), 0, "http")
        connection.connection_made(sink)
        for piece in pieces:
            connection.data_received(piece)
        connection.connection_lost(None)
        return sink

    return asked, asyncio.run(feed())


WHOLE = b'POST /dbs HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n{"a":1}GET /offers HTTP/1.1\r\nhost: x\r\n\r\n'


@EXAMPLES
@given(cuts=st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_requests_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(WHOLE)]
    asked, sink = fed([WHOLE[start:end] for start, end in pairwise(edges)])
    assert [(one.method, one.path, one.body) for one in asked] == [
        ("POST", "/dbs", b'{"a":1}'),
        ("GET", "/offers", b""),
    ]
    assert sink.heard.count(b"HTTP/1.1 200 OK") == 2


@EXAMPLES
@given(noise=st.binary(min_size=1, max_size=200), place=st.integers(0, len(WHOLE)))
def test_noise_is_refused_or_waited_for(noise: bytes, place: int) -> None:
    _, sink = fed([WHOLE[:place] + noise + WHOLE[place:], b"\r\n\r\n", noise])
    for line in sink.heard.split(b"\r\n"):
        if line.startswith(b"HTTP/1.1"):
            assert line[9:12] in (b"200", b"100", b"400", b"413", b"431")


def test_heads_that_never_end_are_refused() -> None:
    for piece in (b"x" * 9000, b"a: " + b"b" * 9000 + b"\r\n"):
        asked, sink = fed([b"GET /" if b":" not in piece else b"GET / HTTP/1.1\r\n", *[piece] * 20])
        assert (asked, sink.closed) == ([], True)
        assert b" 431 " in sink.heard


def test_a_client_that_wants_another_protocol_is_answered_in_this_one() -> None:
    asked, sink = fed([b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n"])
    assert (len(asked), sink.heard.count(b"HTTP/1.1"), sink.closed) == (1, 1, True)


def test_a_client_that_asks_before_its_body_is_told_to_go_on() -> None:
    asked, sink = fed([b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n", b"{}"])
    assert [one.body for one in asked] == [b"{}"]
    assert sink.heard.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_a_body_that_is_too_large_is_read_and_refused() -> None:
    asked, sink = fed([b"POST /dbs HTTP/1.1\r\ncontent-length: 3000000\r\n\r\n", *[b"x" * 100_000] * 30])
    assert (asked, sink.closed) == ([], False)
    assert b" 413 " in sink.heard


@pytest.fixture(scope="module")
def server() -> Iterator[Emulator]:
    with emulator() as running:
        yield running


@settings(max_examples=40, deadline=None)
@given(raw=st.binary(max_size=400) | st.tuples(methods, paths, bodies).map(
    lambda parts: f"{parts[0]} {parts[1]} HTTP/1.1\r\ncontent-length: {len(parts[2]) + 1}\r\n\r\n".encode() + parts[2]
))  # fmt: skip
def test_a_real_server_outlives_what_is_cut_off(server: Emulator, raw: bytes) -> None:
    host, port = server.endpoint.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(raw)
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        signing = "".join(f"{name}: {value}\r\n" for name, value in signed("GET", "", "").items())
        connection.sendall(f"GET / HTTP/1.1\r\nhost: x\r\n{signing}\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
