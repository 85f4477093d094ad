"""The load generator against small servers on loopback that misbehave on purpose."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from hotplate.bench.loadgen.absence import Absence, ProcessUsage, measure_stolen, measure_usage
from hotplate.bench.loadgen.capacity import batch_point, knee
from hotplate.bench.loadgen.generator import drive
from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.result import Result, run_text
from hotplate.bench.report.comparison import compare
from hotplate.bench.report.report import series
from hotplate.bench.report.text import format_bounds, format_latency

BODY = b'{"user":"1","release":"r1","source":"personal","items":[]}'
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
    counter, made = list[int](), list[Server]()

    def accept() -> Server:
        made.append(Server(act, counter))
        return made[-1]

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()
        for each in made:
            each.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def aiohttp_serving(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{rest:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def adds_up(result: Result) -> bool:
    return result.due == result.ok + sum(result.errors.values()) + result.dropped


async def test_a_quiet_run_sends_exactly_what_was_requested_and_adds_up() -> None:
    async with serving(answer) as url:
        result = await drive(Load(url=url, paths=["/a", "/b"], rate=500, duration_s=0.4, connections=4))
    assert (result.due, result.sent, result.ok, result.dropped) == (200, 200, 200, 0)
    assert adds_up(result)
    assert result.opened == 4
    assert result.statuses == {200: 200}
    assert len(result.latencies_s) == 200


async def test_a_stall_is_charged_to_every_request_that_it_kept_waiting() -> None:
    loop = asyncio.get_running_loop()
    over_s = 0.0

    def stall(transport: asyncio.Transport, count: int) -> None:
        nonlocal over_s
        if count == 100:
            over_s = loop.time() + 0.2
        loop.call_at(max(over_s, loop.time()), transport.write, ANSWER)

    async with serving(stall) as url:
        result = await drive(Load(url=url, paths=["/"], rate=500, duration_s=0.6, connections=2))
    assert result.latency is not None
    assert result.latency.max >= 150_000
    assert (result.latencies_s > 0.05).sum() >= 500 * 0.1
    assert result.ok == result.due == 300


async def test_a_connection_that_dies_under_a_request_is_an_error_and_the_next_request_gets_a_new_one() -> None:
    def abort_tenth(transport: asyncio.Transport, count: int) -> None:
        if count % 10:
            answer(transport, count)
        else:
            transport.abort()

    async with serving(abort_tenth) as url:
        result = await drive(Load(url=url, paths=["/"], rate=500, duration_s=0.2, connections=2))
    assert result.errors == {"reset": 10}
    assert result.ok == 90
    assert result.opened > 2


async def test_a_server_that_hangs_up_between_requests_costs_no_request() -> None:
    def hang_up(transport: asyncio.Transport, count: int) -> None:
        answer(transport, count)
        transport.close()

    async with serving(hang_up) as url:
        result = await drive(Load(url=url, paths=["/"], rate=20, duration_s=0.4, connections=1))
    assert result.errors == {}
    assert result.ok == result.opened == 8


async def test_connection_close_in_an_answer_is_honoured() -> None:
    async def handler(request: web.Request) -> web.Response:
        del request
        response = web.Response(body=BODY)
        response.force_close()
        return response

    async with aiohttp_serving(handler) as url:
        result = await drive(Load(url=url, paths=["/any"], rate=200, duration_s=0.2, connections=4))
    assert result.errors == {}
    assert result.ok == 40
    assert result.opened >= 40


async def test_a_closed_port_gives_an_error_for_each_request() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    result = await drive(Load(url=url, paths=["/"], rate=200, duration_s=0.2, connections=4))
    assert result.errors == {"connect": 40}
    assert result.sent == 0
    assert result.latency is None
    assert not result.valid


async def test_a_closed_port_ends_a_closed_loop_too() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    result = await drive(Load(url=url, paths=["/"], rate=None, duration_s=0.1, connections=2))
    assert set(result.errors) == {"connect"}
    assert adds_up(result)


async def test_an_answer_that_is_not_one_is_malformed() -> None:
    async with serving(lambda transport, _: transport.write(b"HTTP/1.1 banana\r\n\r\n")) as url:
        result = await drive(Load(url=url, paths=["/"], rate=100, duration_s=0.1, connections=2))
    assert result.errors == {"malformed": 10}


@pytest.mark.parametrize("surplus", [b"more than was announced", ANSWER, ANSWER[:-1], b"\n"])
async def test_bytes_behind_an_answer_are_counted_and_end_their_connection(surplus: bytes) -> None:
    async with serving(lambda transport, _: transport.write(ANSWER + surplus)) as url:
        result = await drive(Load(url=url, paths=["/"], rate=100, duration_s=0.1, connections=2))
    assert result.errors == {}
    assert (result.ok, result.unsolicited) == (10, 10)


async def test_unsolicited_bytes_are_counted_and_end_their_connection() -> None:
    def twice(transport: asyncio.Transport, count: int) -> None:
        answer(transport, count)
        asyncio.get_running_loop().call_later(0.01, transport.write, ANSWER)

    async with serving(twice) as url:
        result = await drive(Load(url=url, paths=["/"], rate=5, duration_s=0.8, connections=1))
    assert result.ok == 4
    assert result.unsolicited >= 3


async def test_a_silent_server_times_out_from_when_the_request_was_due() -> None:
    async with serving(lambda _transport, _count: None) as url:
        result = await drive(Load(url=url, paths=["/"], rate=100, duration_s=0.2, connections=1, timeout_s=0.1))
    assert result.errors == {"timeout": 20}


async def test_what_the_queue_cannot_hold_is_dropped_and_counted() -> None:
    async with serving(lambda _transport, _count: None) as url:
        load = Load(url=url, paths=["/"], rate=200, duration_s=0.2, connections=1, timeout_s=0.5, backlog=5)
        result = await drive(load)
    assert result.errors == {"timeout": 6}
    assert result.dropped == 34
    assert not result.valid


async def test_bad_statuses_are_errors_and_every_status_is_counted() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=503 if request.path == "/bad" else 200, body=BODY)

    async with aiohttp_serving(handler) as url:
        result = await drive(Load(url=url, paths=["/good", "/bad"], rate=200, duration_s=0.2))
    assert result.errors == {"status": 20}
    assert result.statuses == {200: 20, 503: 20}


async def test_values_of_fields_are_counted_and_so_is_their_absence() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=b"{}" if request.path == "/empty" else BODY)

    async with aiohttp_serving(handler) as url:
        load = Load(url=url, paths=["/full", "/empty"], rate=200, duration_s=0.2, observe=["release", "source"])
        result = await drive(load)
    assert result.seen == {"release": {"r1": 20, "": 20}, "source": {"personal": 20, "": 20}}


async def test_a_check_names_the_errors() -> None:
    async with serving(answer) as url:
        load = Load(
            url=url, paths=["/"], rate=100, duration_s=0.1, check=lambda _, body: None if b"r2" in body else "old"
        )
        result = await drive(load)
    assert result.errors == {"old": 10}


async def test_a_check_that_raises_ends_the_run() -> None:
    def check(status: int, body: bytes) -> str | None:
        raise LookupError(status, body)

    async with serving(answer) as url:
        with pytest.raises(LookupError):
            await drive(Load(url=url, paths=["/"], rate=100, duration_s=5, check=check))


async def test_a_closed_loop_is_labelled_and_sends_on_each_answer() -> None:
    async with serving(answer) as url:
        result = await drive(Load(url=url, paths=["/"], rate=None, duration_s=0.1, connections=3))
    assert result.mode == "closed loop"
    assert result.ok == result.due == result.sent > 3
    assert result.opened == 3


async def test_the_rate_of_a_closed_loop_that_waited_for_its_core_is_a_lower_bound() -> None:
    async with serving(answer) as url:
        made = await drive(Load(url=url, paths=["/"], rate=None, duration_s=0.1, connections=3))
    quiet, little, long = (
        replace(made, usage=(ProcessUsage(cpu_s=0.02, waited_s=waited_s, wall_s=0.1),)) for waited_s in (0, 0.001, 0.03)
    )
    assert "waited" not in run_text(quiet.to_json())
    assert "the generator waited for a core 1.0% of the time" in run_text(little.to_json())
    assert "at least" not in run_text(little.to_json())
    facts = long.to_json()
    assert f"(at least {facts['ok_rate']:.0f}/s)" in run_text(facts)
    assert long.valid
    assert not replace(long, requested_rate=100.0).at_least
    swept = [batch_point(size, run) for size, run in ((1, quiet), (2, little))]
    assert knee(swept) == swept[1]
    assert knee([*swept, batch_point(3, long)]) is None
    found = compare(series("A", [quiet] * 5), series("B", [long] * 5), "rate")
    assert found.sentence.startswith("— (the generator waited for a core 30.0% of the time")
    assert not found.regression


async def test_the_rate_of_a_server_that_is_too_slow_is_its_own_and_not_the_one_that_was_offered() -> None:
    loop = asyncio.get_running_loop()
    free_s = 0.0

    def one_by_one(transport: asyncio.Transport, count: int) -> None:
        nonlocal free_s
        del count
        free_s = max(free_s, loop.time()) + 1 / 100
        loop.call_at(free_s, transport.write, ANSWER)

    async with serving(one_by_one) as url:
        result = await drive(Load(url=url, paths=["/"], rate=200, duration_s=0.3, connections=40))
    assert result.ok == result.due == 60
    assert result.ok_rate <= 102
    assert result.duration_s >= 0.59


async def test_spinning_sends_the_same_requests() -> None:
    async with serving(answer) as url:
        result = await drive(Load(url=url, paths=["/"], rate=500, duration_s=0.2, connections=4, spin=True))
    assert result.ok == result.due == 100


async def test_a_late_generator_gives_bounds_and_an_invalid_run_only_where_these_say_nothing() -> None:
    async with serving(answer) as url:
        result = await drive(Load(url=url, paths=["/"], rate=100, duration_s=0.1))
    (second,) = result.seconds
    late = replace(
        result,
        lags_s=np.full(10, 0.002, np.float32),
        seconds=(replace(second, latencies_s=np.full(10, 0.003), sent_latencies_s=np.full(10, 0.001)),),
        stolen=0.012,
    )
    assert late.valid
    assert late.disturbance == "the generator was late, 2 ms at p99: 1.2% of the CPU was stolen by the host"
    facts = late.to_json()
    assert (facts["latency_us"]["p50"], facts["sent_latency_us"]["p50"]) == pytest.approx((3000, 1000), rel=0.001)
    assert "stolen" in run_text(facts)
    assert "INVALID" not in run_text(facts)
    lost = replace(late, seconds=(replace(late.seconds[0], sent_latencies_s=np.full(10, 0.0001)),))
    assert lost.invalid_reasons[0].startswith("not even its p99 is known: between 100 µs and 3 ms")
    assert "INVALID" in run_text(lost.to_json())
    long = np.where(np.arange(10) < 9, 0.001, 0.05)
    some = replace(late, seconds=(replace(second, latencies_s=long, sent_latencies_s=np.full(10, 0.001)),))
    assert some.valid
    assert "latency  p50 1 ms  p90 1 ms  p99 — (1 ms to 50 ms)" in run_text(some.to_json())


def test_a_latency_is_written_as_what_is_known_of_it() -> None:
    found = {"mean": 8_610.0, "low": 4_510.0, "high": 16_500.0, "sent": {"mean": 2_100.0, "low": 1_900.0}}
    found |= {"enough_samples": True}
    assert format_latency(found) == "2.1 ms to 8.61 ms (1.9 ms … 16.5 ms)"
    assert format_latency({**found, "sent": {"mean": 8_500.0, "low": 4_400.0}}) == "8.61 ms (4.51 … 16.5)"
    assert format_bounds(100.0, 3_000.0) == "— (100 µs to 3 ms)"


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"url": "ftp://127.0.0.1:1"}, "target"),
        ({"url": "http://127.0.0.1:1/path"}, "target"),
        ({"paths": []}, "a path to request is missing"),
        ({"paths": ["v1"]}, "starts with /"),
        ({"paths": ["/a\r\nX: y"]}, "percent-encode"),
        ({"headers": {"X-Name": "ü"}}, "percent-encode"),
        ({"rate": 0.0}, "rate"),
        ({"connections": 0}, "connections"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_sentence(wrong: dict[str, Any], word: str) -> None:
    good: dict[str, Any] = {"url": "http://127.0.0.1:1", "paths": ["/"], "rate": 1.0, "duration_s": 1.0}
    with pytest.raises(ValueError, match=word):
        Load(**(good | wrong))


def test_absences_add_up_once_and_hide_only_what_is_read_right_after_them() -> None:
    absence = Absence()
    absence.seen_at_s = 0.9995
    assert absence.note(1.0, 1.01)  # away since it was last seen
    assert not absence.note(1.001, 1.01)  # the same absence
    assert absence.total_s == absence.unread_s == pytest.approx(0.0105)
    absence.all_read()
    assert absence.unread_s == 0
    assert absence.note(1.02, 1.03)  # 2 ms before the request fell due, at most
    assert absence.total_s == pytest.approx(0.0105 + 0.012)


def test_lateness_delays_answers_until_the_server_has_caught_up_and_by_the_longest_only() -> None:
    absence = Absence()
    absence.note(1.0, 1.01)
    absence.note(1.018, 1.02)
    assert absence.delay(0.0, 1.021) == pytest.approx(0.01)
    assert absence.delay(0.03, 1.021) == pytest.approx(0.03)  # its own
    assert absence.delay(0.0, 1.041) == 0
    absence.note(1.05, 1.06)
    absence.note(1.065, 1.065, idle=True)
    assert absence.delay(0.0001, 1.066) == pytest.approx(0.0001)


def test_the_machine_says_what_was_stolen_and_what_the_generator_used() -> None:
    stolen, usage = measure_stolen(1), measure_usage(time.monotonic)
    sum(range(100_000))
    found = usage()
    assert found.cpu_s > 0
    assert found.wall_s > 0
    for share in (stolen(), found.stolen):
        assert share is None or 0 <= share <= 1
