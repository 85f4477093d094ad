"""The small HTTP client against servers that misbehave: every request gets an answer or a reason, in time."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from stores.http1 import ConnectionPool, RequestFailed

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Charge: 1\r\n\r\nok"


@contextlib.asynccontextmanager
async def serving(*answers: bytes, hang_up: bool = False) -> AsyncIterator[tuple[ConnectionPool, list[bytes]]]:
    """Give the n-th request over all connections the n-th of *answers*, and further ones the last."""
    heard = list[bytes]()
    tasks = set[asyncio.Task[None] | None]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                heard.append(head)
                writer.write(answers[min(len(heard), len(answers)) - 1])
                if hang_up:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = ConnectionPool("127.0.0.1", server.sockets[0].getsockname()[1], size=2)
    try:
        yield pool, heard
    finally:
        await pool.close()
        server.close()
        await asyncio.gather(*(task for task in tasks if task))


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_an_answer_has_its_status_headers_and_body() -> None:
    async with serving(ANSWER) as (pool, _):
        answer = await pool.request(REQUEST, 5)
    assert (answer.status, answer.body, answer.header(b"x-charge")) == (200, b"ok", b"1")


async def test_chunks_are_put_together_and_headers_belong_to_one_answer() -> None:
    chunked = b"HTTP/1.1 404 No\r\nX-First: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    async with serving(chunked, ANSWER) as (pool, _):
        first, second = await pool.request(REQUEST, 5), await pool.request(REQUEST, 5)
    assert (first.status, first.body) == (404, b"abc")
    assert second.header(b"x-first") is None
    assert first.header(b"x-first") == b"1"


async def test_connections_are_kept_and_never_more_than_there_is_room_for() -> None:
    async with serving(ANSWER) as (pool, heard):
        answers = await asyncio.gather(*(pool.request(REQUEST, 5) for _ in range(20)))
        assert len(pool._open) == 2
    assert len(answers) == len(heard) == 20


@pytest.mark.parametrize(("said", "kind"), [(b"nonsense\r\n\r\n", "malformed"), (b"", "timeout")])
async def test_no_answer_has_a_kind_and_the_next_request_a_new_connection(said: bytes, kind: str) -> None:
    async with serving(said, ANSWER) as (pool, _):
        with pytest.raises(RequestFailed, match=kind) as failed:
            await pool.request(REQUEST, 0.1)
        assert failed.value.kind == kind
        assert (await pool.request(REQUEST, 5)).body == b"ok"


async def test_a_server_that_hangs_up_is_a_reset_and_one_that_is_not_there_a_failed_connect() -> None:
    async with serving(ANSWER[:-1], hang_up=True) as (pool, _):
        with pytest.raises(RequestFailed, match="reset"):
            await pool.request(REQUEST, 5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = ConnectionPool("127.0.0.1", probe.getsockname()[1])
        with pytest.raises(RequestFailed, match="connect"):
            await nowhere.request(REQUEST, 5)


async def test_a_caller_that_gives_up_leaves_no_answer_for_the_next() -> None:
    async with serving(b"", ANSWER) as (pool, _):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.request(REQUEST, 5), 0.05)
        assert not pool._open
        assert (await pool.request(REQUEST, 5)).body == b"ok"


async def test_closing_fails_what_is_in_flight() -> None:
    async with serving(b"") as (pool, heard):
        request = asyncio.create_task(pool.request(REQUEST, 5))
        while not heard:
            await asyncio.sleep(0.001)
        await pool.close()
        with pytest.raises(RequestFailed, match="reset"):
            await request


async def test_a_late_answer_is_dropped_and_its_connection_used_again() -> None:
    async with serving(ANSWER[:-1], ANSWER) as (pool, heard):
        with pytest.raises(RequestFailed, match="timeout"):
            await pool.request(REQUEST, 0.05)
        late = next(iter(pool._late))
        assert (await pool.request(REQUEST, 5)).body == b"ok"
        late.data_received(b"!")
        assert not pool._late
        assert len(pool._open) == 2
        assert (await pool.request(REQUEST, 5)).body == b"ok"
        assert len(heard) == 3


async def test_late_answers_are_waited_for_on_few_connections_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stores.http1.LATE_S", 0.05)
    async with serving(b"", b"", ANSWER) as (pool, _):
        for _ in range(2):
            with pytest.raises(RequestFailed, match="timeout"):
                await pool.request(REQUEST, 0.02)
            assert len(pool._late) <= 1
        while pool._late:
            await asyncio.sleep(0.01)
        assert (await pool.request(REQUEST, 5)).body == b"ok"


async def test_idle_connections_beyond_the_need_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stores.http1.IDLE_S", 0.02)
    async with serving(ANSWER) as (pool, heard):
        await asyncio.gather(*(pool.request(REQUEST, 5) for _ in range(2)))
        while pool._open:
            await asyncio.sleep(0.01)
        assert (await pool.request(REQUEST, 5)).body == b"ok"
        assert len(heard) == 3


async def test_a_server_that_is_known_to_be_away_is_left_in_peace_and_callers_fail_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pool = ConnectionPool("127.0.0.1", port)
    attempts = 0

    class Counting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal attempts
            attempts += 1
            assert isinstance(transport, asyncio.Transport)
            transport.abort()

    server = await asyncio.get_running_loop().create_server(Counting, "127.0.0.1", port)
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.5
    kinds = set[str]()
    while loop.time() < until:
        for failed in await asyncio.gather(*(pool.request(REQUEST, 5) for _ in range(16)), return_exceptions=True):
            assert isinstance(failed, RequestFailed)
            kinds.add(failed.kind)
        await asyncio.sleep(0)
    assert kinds <= {"connect", "reset"}
    assert attempts <= 16 + 8
    server.close()
    await server.wait_closed()
    await pool.close()
