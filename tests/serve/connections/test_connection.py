"""One connection in memory: what it counts as a header, and what it does when a request comes behind another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from hotplate.serve.connections.connection import Connection
from hotplate.serve.reader import TieredReader
from hotplate.stores.memory import MemoryStore
from tests.support.lane import MemoryTransport, Pair
from tests.support.remote import publish

GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = b'{"users": ["1"]}' + b" " * 30_000
POST = b"POST /v1/recommendations HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Connection, MemoryTransport]]:
    """Give a connection to a server without the lane, and its other end."""
    store = MemoryStore()
    await publish(store, "first")
    async with Pair(TieredReader({"store": store})) as pair:
        connection = Connection(pair.plain, "127.0.0.1", "")
        transport = MemoryTransport(connection)
        connection.connection_made(transport)
        yield connection, transport


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("between", range(12))
def test_the_body_of_a_request_that_comes_behind_another_is_not_counted_as_a_header(between: int) -> None:
    async def test() -> None:
        async with connected() as (connection, transport):
            transport.feed(GET)
            transport.feed(POST)
            await turns(between)
            transport.feed(BODY[:20_000])
            transport.feed(BODY[20_000:])
            for _ in range(500):
                await asyncio.sleep(0.001)
                if transport.written.count(b"HTTP/1.1 ") == 2:
                    break
            assert b"HTTP/1.1 431 " not in transport.written
            assert transport.written.count(b"HTTP/1.1 200 ") == 2
            await turns(10)
            connection.check(monotonic() + 20)  # more than a header may take, and less than an idle connection may
            assert b"HTTP/1.1 408 " not in transport.written
            assert not transport.is_closing()

    asyncio.run(test())


@pytest.mark.parametrize("between", range(12))
def test_a_piece_of_a_body_does_not_make_an_idle_connection_late(between: int) -> None:
    async def test() -> None:
        async with connected() as (connection, transport):
            transport.feed(GET)
            transport.feed(POST)
            await turns(between)
            transport.feed(BODY[:1_000])
            await turns(2)
            transport.feed(BODY[1_000:])
            for _ in range(500):
                await asyncio.sleep(0.001)
                if transport.written.count(b"HTTP/1.1 ") == 2:
                    break
            await turns(10)
            connection.check(monotonic() + 20)
            assert b"HTTP/1.1 408 " not in transport.written
            assert not transport.is_closing()

    asyncio.run(test())


def test_the_time_for_a_body_begins_with_the_turn_of_its_request() -> None:
    async def test() -> None:
        async with connected() as (connection, transport):
            transport.feed(GET)
            connection.since -= 100  # as if its answer had taken long
            transport.feed(POST)
            await turns(20)
            connection.check(monotonic())
            await turns(10)
            assert b"HTTP/1.1 408 " not in transport.written
            transport.feed(BODY)
            for _ in range(500):
                await asyncio.sleep(0.001)
                if transport.written.count(b"HTTP/1.1 200 ") == 2:
                    break
            assert transport.written.count(b"HTTP/1.1 200 ") == 2

    asyncio.run(test())
