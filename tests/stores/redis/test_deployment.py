"""When the servers of a deployment are discovered, and how connections to a former one end."""

import asyncio

import pytest

from hotplate.stores.errors import AccessDenied, StoreUnavailable
from hotplate.stores.redis.client import settings_of
from hotplate.stores.redis.deployment import Deployment
from hotplate.stores.redis.server import MAX_SESSIONS, Server
from hotplate.stores.redis.url import parse
from tests.support.redis_server import SOON_S, RedisServer, commands_in
from tests.support.streams import listening
from tests.support.tcp_proxy import through
from tests.support.waiting import until_true


class Unreachable(Deployment):
    """A deployment in which every discovery fails."""

    def __init__(self) -> None:
        super().__init__(parse("redis://127.0.0.1:1/0"), None)
        self.asked = 0

    async def ask(self) -> None:
        self.asked += 1
        raise StoreUnavailable(f"question {self.asked} failed")


async def test_callers_fail_at_once_in_the_pause_after_a_failed_discovery() -> None:
    deployment = Unreachable()
    with pytest.raises(StoreUnavailable, match="question 1 failed"):
        await deployment.load()
    with pytest.raises(StoreUnavailable, match="question 1 failed"):
        deployment.load().send(None)  # without a further question
    async with asyncio.timeout(SOON_S):
        while deployment.asked < 2:
            await asyncio.sleep(0.001)
            with pytest.raises(StoreUnavailable):
                await deployment.load()
    await deployment.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("turns", range(12))
async def test_calls_that_wait_for_a_retired_server_are_answered(redis_server: RedisServer, turns: int) -> None:
    """Whenever connections are returned and closed at the same time, in *turns* of the event loop."""
    async with through(redis_server.port) as proxy:
        address = parse(f"redis://127.0.0.1:{proxy.port}/0")
        server = Server(address, settings_of(address))
        calls = [asyncio.create_task(server.execute("TIME")) for _ in range(3 * MAX_SESSIONS)]
        await calls[0]
        assert not calls[-1].done()
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.retire()
        assert all(await asyncio.gather(*calls))
        await until_true(lambda: not proxy.is_connected)


async def test_reply_to_a_command_after_a_refused_asking_reaches_no_later_call() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for command in commands_in(reader):
            if command[0] == b"ASKING":
                writer.write(b"-NOPERM this user has no permissions to run the 'asking' command\r\n")
            elif command[0] == b"GET":
                await asyncio.sleep(0.05)  # in which the refusal is read
                writer.write(b"$1\r\n" + command[1] + b"\r\n")
            else:
                writer.write(b"+OK\r\n")

    async with asyncio.timeout(SOON_S), listening(serve) as port:
        address = parse(f"redis://127.0.0.1:{port}/0")
        server = Server(address, settings_of(address))
        async with server.session(asking=True) as session:
            with pytest.raises(AccessDenied, match="asking"):
                await session.execute("GET", "a")
        assert await server.execute("GET", "b") == b"b"
        await server.close()


async def test_no_discovery_is_scheduled_after_close() -> None:
    deployment = Unreachable()
    await deployment.close()
    with pytest.raises(StoreUnavailable, match="was closed"):
        await deployment.load()
    deployment.schedule_refresh()
    assert deployment.asked == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
