"""aiohttp behind connections: its private names are used in one module, and another release of it is refused."""

import asyncio
import re
from pathlib import Path

import pytest
from aiohttp import web

from hotplate.serve import connections
from hotplate.serve.connections import adapter
from hotplate.serve.connections.connection import Connection
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.reader import TieredReader
from hotplate.stores.memory import MemoryStore
from tests.support.lane import MemoryTransport, Pair
from tests.support.remote import publish

GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
# Names that begin with an underscore, of an object other than this one.
PRIVATE = re.compile(r"(?<!self)(?<!super\(\))\.(_[a-z]\w*)")


def test_the_release_of_aiohttp_that_is_installed_has_all_names() -> None:
    adapter.check_aiohttp()


def test_a_release_of_aiohttp_without_a_name_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(web.RequestHandler, "_waiter")
    with pytest.raises(ServiceMisused, match=r"aiohttp 3\.\S+ lacks _waiter, .*; install the release"):
        adapter.check_aiohttp()


def test_only_one_module_uses_private_names_and_it_checks_those_that_are_aiohttps() -> None:
    folder = Path(str(connections.__file__)).parent
    users = {file.name for file in folder.glob("*.py") if PRIVATE.search(file.read_text())}
    assert users == {"adapter.py"}
    inherited = set(re.findall(r"self\.(_[a-z]\w*)", (folder / "adapter.py").read_text()))
    own = {"_header_end", "_linger", "_on_error"}
    assert inherited - own <= set(adapter.PRIVATE)


def test_no_request_is_lost_behind_one_that_offers_another_protocol() -> None:
    offer = GET[:-2] + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    both = offer + GET

    async def test() -> None:
        store = MemoryStore()
        await publish(store, "first")
        async with Pair(TieredReader({"store": store})) as pair:
            for cut in range(len(both)):
                connection = Connection(pair.lane, "127.0.0.1")
                transport = MemoryTransport(connection)
                connection.connection_made(transport)
                for piece in filter(None, (both[:cut], both[cut:])):
                    transport.feed(piece)
                    for _ in range(100):
                        await asyncio.sleep(0)
                answers = transport.written.count(b"HTTP/1.1 200 ")
                assert transport.closed or answers == 2, f"cut at {cut}, {answers} requests of two are answered"
                transport.close()

    asyncio.run(test())


def test_of_requests_that_do_not_wait_for_answers_only_some_are_read_ahead() -> None:
    async def test() -> None:
        store = MemoryStore()
        await publish(store, "first")
        async with Pair(TieredReader({"store": store})) as pair:
            connection = Connection(pair.plain, "127.0.0.1")
            transport = MemoryTransport(connection)
            connection.connection_made(transport)
            transport.feed(GET * 1000)
            assert not transport.is_reading()
            transport.feed(GET * 10)
            async with asyncio.timeout(30):
                while transport.written.count(b"HTTP/1.1 200 ") < 1010:
                    await asyncio.sleep(0)
            assert transport.is_reading()

    asyncio.run(test())
