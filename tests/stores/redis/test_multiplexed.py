"""A reply reaches its own caller or none: on a real server, and on one with wrong replies."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from hotplate.stores.errors import StoreClosed, StoreMisused, StoreUnavailable
from hotplate.stores.redis.client import settings_of
from hotplate.stores.redis.deployment import Deployment, RedisNode
from hotplate.stores.redis.multiplexed import Multiplexer
from hotplate.stores.redis.server import Server
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.redis.url import parse
from hotplate.stores.store import Plan, Row
from tests.support.redis_server import SOON_S, OpenRedis, RedisServer, array, commands_in
from tests.support.stores import FIRST, draft_of, expect_rows, release_ref
from tests.support.streams import listening
from tests.support.tcp_proxy import through
from tests.support.waiting import until_true

BOB = Row("user:bob", b"bob's list")
UNENCODABLE = "user:\ud800"


def server_at(port: int) -> Server:
    address = parse(f"redis://127.0.0.1:{port}/0")
    return Server(address, settings_of(address))


@pytest.fixture
async def connection(redis_server: RedisServer) -> AsyncIterator[Multiplexer]:
    client = server_at(redis_server.port)
    yield await client.open_reads()
    await client.close()


async def test_row_with_an_unencodable_key_is_rejected_and_the_next_put_succeeds(redis: RedisStore) -> None:
    await redis.create(draft_of(FIRST), Plan(2, 100))
    with pytest.raises(StoreMisused):
        await redis.put(draft_of(FIRST), [Row(UNENCODABLE, b"x")])
    await redis.put(draft_of(FIRST), [BOB])
    await expect_rows(redis, BOB)


class ScriptedServer:
    """A server with scripted replies; each connection gets a *greeting*, then *reply* to each command."""

    def __init__(self, reply: Callable[[list[bytes]], bytes], greeting: bytes) -> None:
        self.reply = reply
        self.greeting = greeting
        self.accepted = self.ended = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        async for command in commands_in(reader):
            is_greeting = command[0] in (b"AUTH", b"CLIENT")
            writer.write(self.greeting if is_greeting else self.reply(command))
        self.ended += 1


@asynccontextmanager
async def scripted(
    reply: Callable[[list[bytes]], bytes], greeting: bytes = b"+OK\r\n"
) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(reply, greeting)
    async with listening(server.serve) as server.port:
        yield server


@asynccontextmanager
async def reading(reply: Callable[[list[bytes]], bytes]) -> AsyncIterator[tuple[ScriptedServer, RedisStore]]:
    """Open a store at a server that replies so, for SOON_S at most."""
    async with scripted(reply) as server, asyncio.timeout(SOON_S):
        store = open_url(f"redis://127.0.0.1:{server.port}/0")
        yield server, store
        await store.close()


def well(command: list[bytes]) -> bytes:
    """Reply to an MGET with the end of each key."""
    return array(*(key.rpartition(b":")[2] for key in command[1:]))


async def test_read_with_the_shortest_limit_closes_a_silent_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read without a limit may be before it."""
    monkeypatch.setattr("hotplate.stores.redis.reader.LOOKUP_TIMEOUT_S", 0.05)
    async with reading(well) as (server, store):
        await store.get_many(release_ref(FIRST), ["user:1"], timeout_s=SOON_S)
        server.reply = lambda _command: b""
        unlimited = asyncio.create_task(store.get_many(release_ref(FIRST), ["user:1"]))
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="has not answered in time"):
            await store.get_many(release_ref(FIRST), ["user:1"], timeout_s=SOON_S)
        with pytest.raises(StoreUnavailable, match="has not answered in time"):
            await unlimited


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda command: array(*command[2:]), id="one value too few"),
        pytest.param(lambda command: array(*command), id="one value too many"),
        pytest.param(lambda _command: b":1\r\n", id="a number"),
        pytest.param(lambda _command: b"$-1\r\n", id="nothing"),
        pytest.param(lambda command: b"+OK\r\n" + well(command), id="the reply to something else first"),
    ],
)
async def test_mismatched_reply_is_delivered_to_no_caller_and_closes_connection(
    wrong: Callable[[list[bytes]], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with reading(wrong) as (server, store):
        reads = await asyncio.gather(
            *(store.get_many(release_ref(FIRST), [f"user:{n}"]) for n in range(5)), return_exceptions=True
        )
        assert {type(read_slots) for read_slots in reads} == {StoreUnavailable}
        closed = server.accepted
        assert closed <= 2  # a lost read is sent once more
        server.reply = well
        while True:
            try:
                found = await store.get_many(release_ref(FIRST), ["user:7", "user:8"])
                break
            except StoreUnavailable:
                await asyncio.sleep(0.01)
    assert found == [b"7", b"8"]
    assert server.accepted == closed + 1
    ours = [record for record in caplog.records if record.name.startswith("hotplate")]
    assert len(ours) == closed


async def test_unexpected_reply_closes_the_connection() -> None:
    async with reading(lambda command: well(command) + b"+OK\r\n") as (server, store):
        assert await store.get_many(release_ref(FIRST), ["user:1"]) == [b"1"]
        await until_true(lambda: server.ended)


async def test_a_server_that_repeats_an_unknown_command_shows_no_password(opened: OpenRedis) -> None:
    said = b"-ERR unknown command `HELLO`, with args beginning with: `2`, `AUTH`, `shop`, `S3CRET`, `SETNAME`\r\n"
    async with scripted(lambda _command: b"", said) as server, asyncio.timeout(SOON_S):
        store = opened(f"redis://shop:S3CRET@127.0.0.1:{server.port}/0")
        with pytest.raises(StoreUnavailable, match=r"unknown command `HELLO`$"):
            await store.catalogue()


async def test_replies_to_another_command_are_no_catalogue() -> None:
    replies = {b"GET": b"+OK\r\n$-1\r\n", b"TIME": array(b"1795202475", b"0"), b"HELLO": b"*0\r\n"}
    async with reading(lambda command: replies[command[0]]) as (_, store):
        with pytest.raises(StoreUnavailable, match="unknown format"):
            await store.catalogue()


@pytest.mark.parametrize(
    ("greeting", "primary"),
    [
        (array(b"server", b"redis", b"role", b"master"), True),
        (array(b"server", b"redis", b"role", b"replica"), False),
        (array(b"server", b"role", b"proto", b"master"), False),
        (array(b"server", b"redis", b"role"), False),
        (b"-ERR unknown command\r\n", False),
        (b"-NOPERM this user has no permissions\r\n", False),
        (b"+OK\r\n", False),
    ],
)
async def test_server_without_a_stated_role_counts_as_a_replica(greeting: bytes, *, primary: bool) -> None:
    replies = {b"GET": b"$-1\r\n", b"TIME": array(b"1795202475", b"500000"), b"HELLO": greeting}
    async with reading(lambda command: replies[command[0]]) as (_, store):
        catalogue = await store.catalogue()
    assert (catalogue.generation, catalogue.now, catalogue.primary) == (0, 1795202475.5, primary)


@asynccontextmanager
async def connecting(server: ScriptedServer) -> AsyncIterator[Server]:
    """Connect to a server for reads, for SOON_S at most."""
    client = server_at(server.port)
    async with asyncio.timeout(SOON_S):
        yield client
        await client.close()


ENDED_BY = [b"-LOADING Redis is loading the dataset in memory\r\n", b"-READONLY You can't write\r\n"]


@pytest.mark.parametrize("refusal", ENDED_BY)
@pytest.mark.parametrize("count", [1, 2])
async def test_refusal_of_any_get_closes_the_connection(refusal: bytes, count: int) -> None:
    replies = {b"a": b"$1\r\n1\r\n", b"b": refusal}
    async with (
        scripted(lambda command: replies.get(command[-1], array(b"role", b"master"))) as server,
        connecting(server) as client,
    ):
        connection = await client.open_reads()
        reads = [connection.get_each([b"a", b"b"], SOON_S) for _ in range(count)]
        for read in reads:
            with pytest.raises(StoreUnavailable):
                await read
        assert client.reads is None


async def test_reconnects_with_backoff_after_a_refusal_with_an_invalid_reply() -> None:
    replies = {b"a": b"$1\r\n1\r\n", b"refused": ENDED_BY[0], b"number": b":1\r\n"}
    async with (
        scripted(lambda command: replies.get(command[-1], array(b"role", b"master"))) as server,
        connecting(server) as client,
    ):
        connection = await client.open_reads()
        assert await connection.get_each([b"a"], SOON_S) == [b"1"]
        with pytest.raises(StoreUnavailable, match="still loading"):
            await connection.get_each([b"refused", b"number"], SOON_S)
        with pytest.raises(StoreUnavailable, match="still loading"):
            await client.open_reads()
        assert server.accepted == 1


async def test_calls_after_a_lost_connection_share_the_next_one(redis_server: RedisServer) -> None:
    async with asyncio.timeout(SOON_S), through(redis_server.port) as proxy:
        client = server_at(proxy.port)
        lost = await client.open_reads()
        await lost.mget([b"a"], SOON_S)
        proxy.reset()
        while client.reads is not None:
            await asyncio.sleep(0.01)
        first, second = await asyncio.gather(client.open_reads(), client.open_reads())
        assert first is second
        assert proxy.accepted == 2
        await client.close()


async def test_close_ends_an_attempt_to_connect() -> None:
    deployment = Deployment(parse("redis://127.0.0.1:1/0"))
    opening = asyncio.create_task(deployment.server(RedisNode("127.0.0.1", 1)).open_reads())
    await asyncio.sleep(0)
    closing = asyncio.create_task(deployment.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreClosed):
        deployment.server(RedisNode("127.0.0.1", 2))
    await closing
    with pytest.raises(StoreUnavailable, match="was closed"):
        await opening


async def test_overlapping_calls_receive_the_values_of_their_own_commands(
    redis_server: RedisServer, connection: Multiplexer
) -> None:
    names = [secrets.token_hex(8).encode() for _ in range(3)]
    redis_server.execute_command("MSET", names[0].decode(), "a", names[1].decode(), "b")
    no_string = secrets.token_hex(8).encode()
    redis_server.execute_command("RPUSH", no_string.decode(), "x")
    async with asyncio.timeout(SOON_S):
        for _ in range(2):
            first, second, together, third = await asyncio.gather(
                connection.get_each([names[0], no_string, names[1]], SOON_S),
                connection.get_each([names[2], no_string, names[0]], SOON_S),
                connection.mget([names[1], names[2]], SOON_S),
                connection.get_each([names[1]], SOON_S),
            )
            assert isinstance(first[1], StoreUnavailable)
            assert isinstance(second[1], StoreUnavailable)
            assert (first[::2], second[::2], together, third) == ([b"a", b"b"], [None, b"a"], [b"b", None], [b"b"])
