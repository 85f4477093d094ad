"""The TCP proxy of the tests: none of its connections outlives it."""

import asyncio
from contextlib import suppress

import pytest

from tests.support.streams import listening
from tests.support.tcp_proxy import through


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer nothing until the client goes."""
    del writer
    await reader.read()


@pytest.mark.parametrize("turns", range(8))
async def test_a_connection_is_cut_however_far_it_is_when_the_proxy_ends(turns: int) -> None:
    async with listening(never) as target:
        async with through(target) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            for _ in range(turns):
                await asyncio.sleep(0)
        try:
            async with asyncio.timeout(60):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
        except TimeoutError:
            pytest.fail("the connection goes on without the proxy")
        finally:
            writer.transport.abort()
