"""The load generator against misbehaving servers on loopback."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest

from hotplate.bench.loadgen.generator import LoadGenerator
from hotplate.bench.loadgen.load import Gets, InTurn, Load, Posts, RequestKeys
from hotplate.bench.loadgen.result import Result
from tests.support.streams import stop_listening
from tests.support.virtual import simulate

BODY = b'{"user":"1","release":"r1","source":"personal","items":[]}'
MSGPACK = "application/msgpack"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
Act = Callable[[asyncio.Transport, int], None]
"""What a server does with its n-th request (from 1, over all connections)."""


def answer(transport: asyncio.Transport, count: int) -> None:
    del count
    transport.write(ANSWER)


class Server(asyncio.Protocol):
    def __init__(self, act: Act, counter: list[int]) -> None:
        self.act = act
        self.counter = counter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert data.endswith(b"\r\n\r\n")
        self.counter.append(1)
        self.act(self.transport, len(self.counter))


@asynccontextmanager
async def serving(act: Act) -> AsyncIterator[str]:
    counter = list[int]()
    servers = list[Server]()

    def accept() -> Server:
        servers.append(Server(act, counter))
        return servers[-1]

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await stop_listening(server)
        for started in servers:
            started.transport.abort()
        await asyncio.sleep(0)


async def drive(load: Load) -> Result:
    return await LoadGenerator(load).run()


def http(status: int, body: bytes, media_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} -\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


ITEM = b'{"id":"i","score":0.5}'


def list_of(user: str, *items: bytes) -> bytes:
    head = b'"release":"r","source":"personal","tier":"file"'
    return b'{"user":"%b",%b,"items":[%b]}' % (user.encode(), head, b",".join(items or [ITEM]))


def batch_of(*lists: bytes) -> bytes:
    return b'{"release":"r","results":[%b]}' % b",\n".join(lists)


def packed(body: bytes) -> bytes:
    return http(200, msgspec.msgpack.encode(json.loads(body)), MSGPACK)


ONE = RequestKeys(("1",), InTurn())
GET = Gets("/v1/recommendations/{key}?n=3", ONE)
GET_SPACED = Gets("/v1/recommendations/{key}", RequestKeys(("a b",), InTurn()))
BATCH = Posts(RequestKeys(("1", "2"), InTurn(), seed=3), 2)
SCORE = replace(BATCH, score=True)


def adds_up(result: Result) -> bool:
    return result.due == result.ok + sum(result.errors.values()) + result.dropped


def abort_tenth(transport: asyncio.Transport, count: int) -> None:
    if count % 10:
        answer(transport, count)
    else:
        transport.abort()


def hang_up(transport: asyncio.Transport, count: int) -> None:
    answer(transport, count)
    transport.close()


def say(*answers: bytes) -> Act:
    """Return a server that gives these answers one after the other."""
    return lambda transport, count: transport.write(answers[count % len(answers)])


@pytest.mark.parametrize(
    ("act", "load", "expected"),
    [
        pytest.param(
            answer,
            {"rate": 500, "duration_s": 0.4, "connections": 4},
            {"due": 200, "sent": 200, "ok": 200, "dropped": 0, "opened": 4, "statuses": {200: 200}},
            id="a quiet run",
        ),
        pytest.param(
            abort_tenth, {"rate": 500, "duration_s": 0.2}, {"errors": {"reset": 10}, "ok": 90}, id="connections die"
        ),
        pytest.param(
            answer,
            {"url": "http://127.0.0.1:9"},
            {"errors": {"connect": 10}, "sent": 0, "ok": 0},
            id="a closed port",
        ),
        pytest.param(say(b"HTTP/1.1 banana\r\n\r\n"), {}, {"errors": {"malformed": 10}}, id="no answer of HTTP"),
        *(
            pytest.param(say(ANSWER + surplus), {}, {"errors": {}, "ok": 10, "unsolicited": 10}, id=f"{name} too much")
            for name, surplus in {
                "a text": b"more than was announced",
                "an answer": ANSWER,
            }.items()
        ),
        pytest.param(
            say(ANSWER, b"HTTP/1.1 503 -\r\nContent-Length: 0\r\n\r\n"),
            {},
            {"errors": {"status": 5}, "statuses": {200: 5, 503: 5}},
            id="bad statuses",
        ),
        pytest.param(
            say(http(200, BODY), http(200, b'{"items":[]}')),
            {},
            {"sources": {"personal": 5, "": 5}},
            id="sources and their absence",
        ),
        pytest.param(
            answer,
            {"check": lambda response: None if b"r2" in response.body else "old"},
            {"errors": {"old": 10}},
            id="a check names errors",
        ),
    ],
)
async def test_every_server_behaviour_is_counted(act: Act, load: dict[str, Any], expected: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"requests": Gets("/"), "rate": 100, "duration_s": 0.1, "connections": 2}
    async with serving(act) as url:
        result = await drive(Load(**({"url": url} | usual | load)))
    assert {name: getattr(result, name) for name in expected} == expected
    assert adds_up(result)


@pytest.mark.parametrize(
    ("requests", "response", "errors"),
    [
        (GET, http(200, list_of("1")), {}),
        (GET, http(200, b'{"items": [{}], "user": "1"}', "application/json; charset=utf-8"), {}),
        (Gets("/v1/similar/{key}", ONE), http(200, b'{"item":"1","items":[{}]}'), {}),
        *(
            (Gets(f"/v1/recommendations/{{key}}?{option}=x", ONE), http(200, b'{"user":"1","items":[]}'), errors)
            for option, errors in {"where": {}, "exclude": {}, "after": {}, "per": {"empty list": 10}}.items()
        ),
        (GET, http(200, b'{"user":"1","items":[]}'), {"empty list": 10}),
        (GET, http(200, b'{"user":[1],"items":[{}]}'), {"missing list": 10}),
        (Gets("/livez"), http(200, b"alive", "text/plain"), {}),
        (GET_SPACED, http(200, list_of("a b")), {}),
        (GET_SPACED, http(200, list_of("a%20b")), {"missing list": 10}),
        (GET, http(302, b""), {"redirect": 10}),
        (Gets("/livez"), http(308, b""), {"redirect": 10}),
        (GET, http(204, b""), {"status": 10}),
        (GET, http(200, b"<html>please log in</html>", "text/html"), {"content type": 10}),
        (GET, http(200, list_of("1"), "text/html"), {"content type": 10}),
        (GET, http(200, list_of("2")), {"missing list": 10}),
        (GET, http(200, b"[]"), {"missing list": 10}),
        (GET, http(200, b'{"user":"1","items":'), {"missing list": 10}),
        (BATCH, http(200, batch_of(list_of("2"), list_of("1"))), {}),
        (SCORE, http(200, b"[%b,\n%b]" % (list_of("2"), list_of("1"))), {}),
        (SCORE, http(200, b'[{"items":[{}],"user":"2"}, {"items":[{}],"user":"1"}]'), {}),
        (BATCH, http(200, batch_of(list_of("2"))), {"missing list": 10}),
        (BATCH, http(200, batch_of(list_of("1"), list_of("2"))), {"missing list": 10}),
        (BATCH, http(200, batch_of(list_of("2"), b'{"user":"1"}')), {"missing list": 10}),
        (BATCH, packed(batch_of(list_of("2"), list_of("1"))), {}),
        (BATCH, packed(batch_of(list_of("2"))), {"missing list": 10}),
        (BATCH, http(200, b"\x82\xa7", MSGPACK), {"missing list": 10}),
        (BATCH, http(200, batch_of(list_of("2"), b'{"user":"1","items":[{}]}')), {}),
        (BATCH, http(200, batch_of(list_of("2"), b'{"user":"1","items":[]}')), {"empty list": 10}),
        (BATCH, http(200, batch_of(list_of("2"), list_of("2"))), {"missing list": 10}),
        (SCORE, http(200, b"[]"), {"missing list": 10}),
        (BATCH, http(200, b"<html>please log in</html>", "text/html"), {"content type": 10}),
    ],
)
def test_only_a_response_with_all_requested_lists_is_good(
    requests: Gets | Posts, response: bytes, errors: dict[str, int]
) -> None:
    """A login page, a redirect, and a batch without lists were good answers, and the fastest of all."""
    load = Load(url="http://simulated", requests=requests, rate=100, duration_s=0.1)
    result = simulate(load, lambda at: at + 0.001, respond=lambda *_: response)
    assert result.errors == errors
    assert result.ok == (0 if errors else 10)


@pytest.mark.parametrize("encoded", [partial(http, 200), packed])
def test_sources_of_items_in_a_batch_are_not_those_of_lists(encoded: Callable[[bytes], bytes]) -> None:
    """A list that was filled up with popular items, as with a deny-list, counted as a popular list for each of them."""
    item = b'{"id":"p","score":0.1,"source":"popular"}'
    response = encoded(batch_of(list_of("2", item, item), list_of("1")))
    load = Load(url="http://simulated", requests=BATCH, rate=100, duration_s=0.1)
    result = simulate(load, lambda at: at + 0.001, respond=lambda *_: response)
    assert result.sources == {"personal": 20}


def test_lists_of_several_sources_in_a_batch_are_all_good_and_counted() -> None:
    popular = list_of("1").replace(b"personal", b"popular")
    response = http(200, batch_of(list_of("2"), popular))
    load = Load(url="http://simulated", requests=BATCH, rate=100, duration_s=0.1)
    result = simulate(load, lambda at: at + 0.001, respond=lambda *_: response)
    assert result.sources == {"personal": 10, "popular": 10}
    assert result.ok == 10


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        pytest.param({"rate": 100, "duration_s": 0.1, "timeout_s": 0.1}, {"errors": {"timeout": 10}}, id="silence"),
        pytest.param(
            {"rate": 200, "duration_s": 0.2, "timeout_s": 0.5, "backlog": 5},
            {"errors": {"timeout": 6}, "dropped": 34},
            id="more than the queue holds",
        ),
    ],
)
def test_requests_to_a_silent_server_time_out_or_are_dropped(load: dict[str, Any], expected: dict[str, Any]) -> None:
    silent = Load(url="http://simulated", requests=Gets("/"), connections=1, **load)
    result = simulate(silent, lambda arrival_s: arrival_s + 60)
    assert {name: getattr(result, name) for name in expected} == expected
    assert adds_up(result)


async def test_a_connection_that_the_server_closed_is_opened_again() -> None:
    async with serving(hang_up) as url:
        result = await drive(Load(url=url, requests=Gets("/"), rate=20, duration_s=0.4, connections=1))
    # On a busy machine, a request is sent before the end of its connection arrives.
    assert result.ok + result.errors["reset"] == 8
    assert result.opened == result.ok > 1
    assert adds_up(result)


async def test_rate_reported_for_a_slow_server_is_achieved_not_offered_rate() -> None:
    loop = asyncio.get_running_loop()
    free_s = 0.0

    def one_by_one(transport: asyncio.Transport, count: int) -> None:
        nonlocal free_s
        del count
        free_s = max(free_s, loop.time()) + 1 / 100
        loop.call_at(free_s, transport.write, ANSWER)

    async with serving(one_by_one) as url:
        result = await drive(Load(url=url, requests=Gets("/"), rate=200, duration_s=0.3, connections=40))
    assert result.ok == result.due == 60
    assert result.ok_rate <= 102
    assert result.duration_s >= 0.59


async def test_a_closed_loop_is_invalid_if_the_generator_had_no_cpu_to_spare() -> None:
    async with serving(answer) as url:
        result = await drive(Load(url=url, requests=Gets("/"), rate=None, duration_s=0.1, connections=3))
    assert not replace(result, cpu_share=0.5).invalid_reasons
    assert replace(result, cpu_share=0.99).invalid_reasons


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"url": "ftp://127.0.0.1:1"}, "target"),
        ({"path": "v1"}, "starts with /"),
        ({"path": "/a\r\nX: y"}, "percent-encode"),
        ({"headers": {"X-Name": "ü"}}, "percent-encode"),
        ({"rate": 0.0}, "rate"),
    ],
)
def test_impossible_load_is_refused_with_a_message(wrong: dict[str, Any], word: str) -> None:
    options: dict[str, Any] = {"url": "http://127.0.0.1:1", "path": "/", "rate": 1.0, "duration_s": 1.0, **wrong}
    with pytest.raises(ValueError, match=word):
        Load(requests=Gets(options.pop("path")), **options)


@pytest.mark.parametrize("rate", [None, 100.0])
async def test_run_that_is_stopped_before_it_begins_ends_at_once(rate: float | None) -> None:
    async with serving(answer) as url:
        generator = LoadGenerator(Load(url=url, requests=Gets("/"), rate=rate, connections=2, duration_s=60.0))

        async def begin() -> float:
            generator.stop()
            return time.monotonic()

        async with asyncio.timeout(10):
            result = await generator.run(begin)
    assert result.interrupted
    assert result.due == result.ok <= 2


async def test_run_that_is_stopped_before_its_start_has_no_duration() -> None:
    """Its duration was negative, and its share of a core some thousands."""
    async with serving(answer) as url:
        generator = LoadGenerator(Load(url=url, requests=Gets("/"), rate=100.0, connections=2, duration_s=60.0))

        async def begin() -> float:
            generator.stop()
            return time.monotonic() + 60

        result = await generator.run(begin)
    assert result.interrupted
    assert result.due == 0
    assert result.duration_s == 0
    assert result.cpu_share == 0


async def test_run_beyond_the_speed_of_the_generator_can_be_stopped() -> None:
    """Offering all requests that were due took minutes, in which Ctrl-C was not noticed and no response was read."""

    def answer_and_stop(transport: asyncio.Transport, count: int) -> None:
        answer(transport, count)
        if count > 2:  # a connection has read its first response
            generator.stop()

    async with serving(answer_and_stop) as url:
        generator = LoadGenerator(Load(url=url, requests=Gets("/"), rate=1e9, connections=2, duration_s=60.0))
        async with asyncio.timeout(30):
            result = await generator.run()
    assert result.interrupted
    assert result.ok
    assert adds_up(result)


async def test_run_that_is_stopped_does_not_wait_for_the_next_due_request() -> None:
    """Ctrl-C at one request in 20 s took up to 20 s."""

    def stop(transport: asyncio.Transport, count: int) -> None:
        generator.stop()
        answer(transport, count)

    async with serving(stop) as url:
        generator = LoadGenerator(Load(url=url, requests=Gets("/"), rate=0.02, duration_s=100.0))
        async with asyncio.timeout(10):
            result = await generator.run()
    assert result.interrupted
    assert result.due == result.ok == 1
