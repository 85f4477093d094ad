"""Admission of batches: turns, deadlines, disconnected clients, and real overload."""

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from math import inf
from pathlib import Path
from time import monotonic
from unittest.mock import create_autospec

import orjson
import pytest
from aiohttp.web_protocol import RequestHandler

from hotplate.serve.connections.admission import TICK_S, Admission
from hotplate.serve.connections.connection import State
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.problems import ClientGone, Problem
from hotplate.serve.telemetry.access_log import AccessLog
from tests.support.lane import Pair, connected, exchange, sent_to
from tests.support.limited_service import limited, memory_mb, shed
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore, publish
from tests.support.service import Service, a_list, published, until
from tests.support.virtual import VirtualLoop, virtual
from tests.support.waiting import until_true


class Gate:
    """An admission that measures, and batches that end when the test says."""

    def __init__(self) -> None:
        self.counted = Counter[str]()
        self.admission = Admission(lambda reason: self.counted.update([reason]))
        self.begun = list[str]()
        self.end = asyncio.Event()

    def batch(
        self, name: str, *, deadline: float = inf, is_gone: Callable[[], bool] = lambda: False
    ) -> "asyncio.Task[str]":
        async def work() -> str:
            self.begun.append(name)
            await self.end.wait()
            return name

        return asyncio.create_task(self.admission.run(work, deadline=deadline, is_gone=is_gone))


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    """An admission whose measuring stops with the test."""
    gate = Gate()
    yield gate
    gate.admission.stop()


async def test_more_batches_start_while_running_ones_wait_for_a_store(gate: Gate) -> None:
    async with asyncio.timeout(20):
        while len(gate.begun) < 4:
            batches = [gate.batch(str(n)) for n in range(4)]
            await asyncio.wait(batches, timeout=0.1)
    gate.end.set()


async def test_batch_that_waits_too_long_is_refused_with_retry_after(gate: Gate) -> None:
    waiting = [gate.batch(str(n)) for n in range(100)]
    await until_true(lambda: gate.counted["batch_delay"])
    gate.end.set()
    errors = [
        outcome for outcome in await asyncio.gather(*waiting, return_exceptions=True) if isinstance(outcome, Problem)
    ]
    assert {(error.status, error.name) for error in errors} == {(503, "overloaded")}
    pauses = {error.headers["Retry-After"] for error in errors}
    assert len(pauses) > 1, "they would all come back together"
    assert pauses <= {"1", "2", "3", "4"}


async def test_batch_of_a_gone_or_expired_client_is_not_started(gate: Gate) -> None:
    with pytest.raises(ClientGone):
        await gate.batch("gone", is_gone=lambda: True)
    with pytest.raises(Problem, match="has passed"):
        await gate.batch("late", deadline=monotonic() - 1)
    gate.end.set()
    assert await gate.batch("next") == "next"
    assert gate.begun == ["next"]
    assert gate.counted == {"gone": 1, "deadline": 1}


async def test_cancelled_task_gives_its_turn_to_the_next(gate: Gate) -> None:
    first, second = gate.batch("first"), gate.batch("second")
    await asyncio.sleep(0)
    second.cancel()
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    gate.end.set()
    assert await gate.batch("third") == "third"


async def test_one_batch_always_runs_on_a_late_loop(gate: Gate) -> None:
    def work() -> None:
        until_s = time.thread_time() + 4 * TICK_S
        while time.thread_time() < until_s:
            pass

    gate.batch("first")
    for _ in range(5):
        work()
        await asyncio.sleep(0)
    waiting = [gate.batch(str(n)) for n in range(20)]
    gate.end.set()
    while not all(task.done() for task in waiting):
        work()
        await asyncio.sleep(0)
    assert gate.counted["batch_delay"], "the loop is not late"
    assert await gate.batch("next") == "next"
    assert gate.counted["batch_delay"] < 20
    assert gate.begun.count("first") == 1


async def test_loop_without_cpu_time_refuses_no_batch(gate: Gate) -> None:
    gate.batch("first")
    for _ in range(5):
        time.sleep(0.08)  # noqa: ASYNC251 -- the loop is to be late, as if others had the core
        await asyncio.sleep(0)
    gate.end.set()
    assert await gate.batch("next") == "next"
    assert not gate.counted


@virtual
async def test_batch_is_refused_at_once_if_the_queue_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    for clock in ("monotonic", "thread_time"):  # all time that passes is work of the loop
        monkeypatch.setattr(f"hotplate.serve.connections.admission.{clock}", loop.time)
    gate = Gate()
    waiting = [gate.batch(str(n)) for n in range(5)]
    await asyncio.sleep(0)
    was_full = gate.admission.is_full
    assert not was_full, "nothing is known of the pace"
    gate.end.set()
    while not all(task.done() for task in waiting):
        loop.advance(0.02)
        await asyncio.sleep(0)
    assert not gate.counted
    gate.end.clear()
    more = [gate.batch(str(n)) for n in range(20)]
    await asyncio.sleep(0)
    assert gate.admission.is_full
    refused = [task for task in more if task.done()]
    assert 0 < len(refused) < 20
    assert all(isinstance(task.exception(), Problem) for task in refused)
    assert not more[0].done(), "one always runs"
    gate.end.set()
    await asyncio.gather(*more, return_exceptions=True)


BATCH = b'{"users":["1"]}'
HEAD = b"POST %b HTTP/1.1\r\nHost: a\r\nX-Request-Id: page-17\r\nContent-Length: 15\r\n\r\n"
GET = b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def logged() -> list[str]:
    """Lines of the access log."""
    return []


@pytest.fixture
async def full(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> AsyncIterator[Pair]:
    """Two servers with full queues of batches."""
    store = MemoryStore()
    await publish(store, "first")
    monkeypatch.setattr("hotplate.serve.connections.admission.MAX_WAITING", 0)
    async with Pair(TieredReader({"store": store}), access_log=AccessLog(1.0, write=logged.append)) as pair:
        yield pair


@pytest.mark.parametrize("query", [b"", b"?n=1", b"?api-version=1"])
@pytest.mark.parametrize("path", [b"/v1/recommendations", b"/score"])
async def test_a_batch_is_refused_before_its_body_is_read(
    full: Pair, path: bytes, query: bytes, logged: list[str]
) -> None:
    for server in (full.lane, full.plain):
        connection, transport = connected(server)
        transport.feed(HEAD % (path + query))
        answer = await transport.answers()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"X-Request-Id: page-17\r\n" in answer
        assert b"Retry-After: " in answer
        assert (b'"status_code":503' in answer) == (path == b"/score")
        assert connection.state is State.BODY
        for piece in (BATCH[:4], BATCH[4:] + GET[:9], GET[9:]):
            transport.feed(piece)
        assert b"HTTP/1.1 200 " in await transport.answers(2)
        assert not transport.closed
        assert server.bytes_in_flight == 0
    routes = [(line["route"], line["status"]) for line in map(orjson.loads, logged)]
    assert routes.count((path.decode(), 503)) == 2


@pytest.mark.parametrize("path", [b"/v1/recommendations", b"/v1/recommendations?n=1", b"/score"])
async def test_a_batch_with_its_body_is_refused_without_aiohttp(
    full: Pair, path: bytes, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = create_autospec(RequestHandler.data_received, side_effect=RequestHandler.data_received)
    monkeypatch.setattr(RequestHandler, "data_received", read)
    transport = sent_to(full.plain, HEAD % path + BATCH)
    answer = bytes(transport.written)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"X-Request-Id: page-17\r\n" in answer
    assert b"Retry-After: " in answer
    assert (b'"status_code":503' in answer) == (path == b"/score")
    assert [(line["route"], line["status"]) for line in map(orjson.loads, logged)] == [
        (path.partition(b"?")[0].decode(), 503)
    ]
    read.assert_not_called()
    transport.feed(GET)
    assert b"HTTP/1.1 200 " in await transport.answers(2)
    assert full.plain.bytes_in_flight == 0


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"Transfer-Encoding: chunked", 400),
        (b"Content-Length: 15", 400),
        (b"Content-Length: 16", 400),
        (b" folded: 1", 400),
        (b"a b: 1", 400),
        (b"A: \0", 400),
        (b"no colon", 400),
        (b"Expect: other", 417),
        (b"Origin: https://shop.example", 503),
        (b"Connection: close", 503),
        (b"Upgrade: h2c", 503),
    ],
)
async def test_unusual_batches_are_left_to_aiohttp_in_overload(full: Pair, line: bytes, status: int) -> None:
    transport = sent_to(full.plain, (HEAD % b"/v1/recommendations").replace(b"Host: a", b"Host: a\r\n" + line) + BATCH)
    assert not transport.written
    assert (await transport.answers()).startswith(b"HTTP/1.1 %d " % status)


async def test_next_request_is_answered_for_any_cut_of_a_refused_batch(full: Pair) -> None:
    sent = HEAD % b"/v1/recommendations" + BATCH + GET
    for at in range(1, len(sent)):
        transport = sent_to(full.plain, sent[:at])
        await asyncio.sleep(0)
        transport.feed(sent[at:])
        assert re.findall(rb"HTTP/1.1 (\d+)", await transport.answers(2)) == [b"503", b"200"]
        transport.close()


async def test_other_requests_are_not_refused_for_a_full_queue(full: Pair) -> None:
    for request, status in (
        (GET, 200),
        (HEAD % b"/nothing" + BATCH, 404),
        (HEAD % b"/livez" + BATCH, 405),
        (HEAD.replace(b"Content-Length", b"Content-Encoding: gzip\r\nContent-Length") % b"/score" + BATCH, 503),
    ):
        transport = sent_to(full.plain, request)
        assert (await transport.answers()).startswith(b"HTTP/1.1 %d " % status)


async def test_missing_body_of_a_refused_batch_is_not_awaited(full: Pair) -> None:
    connection, transport = connected(full.plain)
    transport.feed(HEAD % b"/v1/recommendations")
    assert (await transport.answers()).startswith(b"HTTP/1.1 503 ")
    connection.check(monotonic() + 60)
    await transport.until_closed()


async def test_pipelined_batches_of_many_clients_are_partly_answered() -> None:
    store = MemoryStore()
    await publish(store, "first")
    body = b'{"users":[%b],"n":10}' % b",".join(b'"%d"' % n for n in range(200))
    batch = b"POST /v1/recommendations HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with Pair(TieredReader({"store": store})) as pair:
        transports = [connected(pair.plain)[1] for _ in range(100)]
        for transport in transports:
            transport.feed(batch * 10)
        statuses = Counter[bytes]()
        for transport in transports:
            statuses.update(re.findall(rb"HTTP/1.1 (\d+)", await transport.answers(10)))
        assert statuses.keys() == {b"200", b"503"}
        assert statuses.total() == 1000


@virtual
async def test_reads_end_at_the_callers_deadline() -> None:
    store = RemoteStore(MemoryStore())
    await publish(store.inner, "first")
    async with Pair(TieredReader({"far": store}, budget_s=60)) as pair:
        store.delay_s = 120
        headers = "HTTP/1.1\r\nHost: x\r\nX-Request-Timeout-Ms: 10000\r\nContent-Length:"
        get = f"GET /v1/recommendations/1 {headers} 0\r\n\r\n".encode()
        many = f'POST /v1/recommendations {headers} 15\r\n\r\n{{"users":["1"]}}'.encode()
        assert b'"source":"popular"' in await exchange(pair.plain, [get], 0.2)
        assert b'"status":"error"' in await exchange(pair.plain, [many], 0.2)


def answered(service: Service) -> bool:
    assert service.get("/v1/recommendations/1").status == service.get("/readyz").status == 200
    return True


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    published(folder, {f"user:{n}": a_list(*map(str, range(20))) for n in range(50)})
    return folder


USERS = b",".join(b'"%d"' % (n % 50) for n in range(2000))
BATCHES = {"/v1/recommendations": b'{"users": [%b], "n": 1}' % USERS, "/score": b'{"data": [%b]}' % USERS}


def test_too_many_batches_are_refused_while_reads_and_probes_are_answered(store: Path) -> None:
    statuses = Counter[int]()
    over = threading.Event()

    with limited(store) as service:

        def post(path: str) -> None:
            while not over.is_set():
                answer = service.post(path, BATCHES[path])
                statuses[answer.status] += 1
                assert answer.status == 200 or 1 <= int(answer.headers["retry-after"]) <= 4
                if path == "/score" and answer.status != 200:
                    assert (answer.json["status_code"], bool(answer.json["message"])) == (503, True)

        callers = [threading.Thread(target=post, args=(path,)) for path in BATCHES for _ in range(20)]
        for caller in callers:
            caller.start()
        try:
            until(lambda: answered(service) and statuses[200] > 20 and statuses[503] > 20, "none is refused")
        finally:
            over.set()
        for caller in callers:
            caller.join()
        assert set(statuses) == {200, 503}
        assert shed(service, "batch_delay") == statuses[503]
        assert memory_mb(service) < 200
        for path, batch in BATCHES.items():
            until(lambda: service.post(path, batch).status == 200, "no batch is answered any more")  # noqa: B023
