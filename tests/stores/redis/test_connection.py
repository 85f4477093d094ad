"""A reply reaches its own caller or nobody: on a real server, and on one that replies what none should."""

import asyncio
import gc
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from hotplate.stores.errors import StoreMisused, StoreUnavailable
from hotplate.stores.redis.connection import PipelinedConnection, Reconnector
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.redis.url import parse
from hotplate.stores.store import Plan, Row
from tests.support.redis_server import SOON_S, RedisServer, array, commands_in
from tests.support.stores import FIRST, draft_of, ref
from tests.support.streams import listening

ALICE, BOB = Row("user:alice", b"alice's list"), Row("user:bob", b"bob's list")
UNENCODABLE = "user:\ud800"


@pytest.fixture
async def connection(redis_server: RedisServer) -> AsyncIterator[PipelinedConnection]:
    opened = PipelinedConnection(parse(redis_server.url()), 60.0)
    await opened.open()
    yield opened
    await opened.close()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_who_gives_up_while_it_connects_leaves_no_socket_open(redis_server: RedisServer, scheme: str) -> None:
    async def give_up(after_s: float) -> None:
        connection = PipelinedConnection(parse(redis_server.url(scheme)), 60.0)
        opening = asyncio.create_task(connection.open())
        await asyncio.sleep(after_s)
        if not opening.cancel():
            await connection.close()
        await asyncio.gather(opening, return_exceptions=True)

    for tenths_ms in range(100):
        asyncio.run(give_up(tenths_ms / 10_000))
    gc.collect()  # which warns of what is open


async def test_a_command_that_cannot_be_encoded_is_never_waited_for(connection: PipelinedConnection) -> None:
    async with asyncio.timeout(SOON_S):
        replies = [connection.send_command(b"ECHO", text) for text in (UNENCODABLE, "mine")]
        bad, echoed = await asyncio.gather(*replies, return_exceptions=True)
    assert isinstance(bad, StoreMisused)
    assert echoed == b"mine"


async def test_row_with_an_unencodable_key_is_rejected_and_the_next_put_succeeds(redis: RedisStore) -> None:
    await redis.create(draft_of(FIRST), Plan(2, 100))
    with pytest.raises(StoreMisused):
        await redis.put(draft_of(FIRST), [Row(UNENCODABLE, b"x")])
    await redis.put(draft_of(FIRST), [BOB])
    assert await redis.get_many(ref(FIRST), [BOB.key]) == [BOB.value]


async def test_a_server_of_another_role_is_not_the_one_that_is_wanted(redis_server: RedisServer) -> None:
    primary = Reconnector(replace(parse(redis_server.url()), is_primary=True), 60.0)
    assert await primary.execute_command(b"ECHO", "yes") == b"yes"
    await primary.close()
    async with scripted(well, greeting=array(b"role", b"replica")) as server:
        replica = Reconnector(replace(parse(f"redis://127.0.0.1:{server.port}/0"), is_primary=True), 60.0)
        with pytest.raises(StoreUnavailable, match="is not a primary"):
            await replica.connection()
        await replica.close()


async def test_whatever_fails_while_connecting_is_an_error_to_those_who_wait(
    redis: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object, **_options: object) -> None:
        raise IndexError("a mistake of the client's")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.BaseEventLoop, "create_connection", fail)
        async with asyncio.timeout(SOON_S):
            for call in (redis.catalogue(), redis.get_many(ref(FIRST), [ALICE.key])):
                with pytest.raises(StoreUnavailable, match="a mistake of the client's"):
                    await call
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                await redis.catalogue()
                break
            except StoreUnavailable:
                await asyncio.sleep(0.01)


class ScriptedServer:
    """A server whose replies the test makes up; each connection is a *greeting*, then *reply* to each command."""

    def __init__(self, reply: Callable[[list[bytes]], bytes], greeting: bytes) -> None:
        self.reply = reply
        self.greeting = greeting
        self.accepted = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        commands = commands_in(reader)
        await anext(commands)
        writer.write(self.greeting)
        async for command in commands:
            writer.write(self.reply(command))


@asynccontextmanager
async def scripted(reply: Callable[[list[bytes]], bytes], greeting: bytes = b"*0\r\n") -> AsyncIterator[ScriptedServer]:
    made = ScriptedServer(reply, greeting)
    async with listening(made.serve) as made.port:
        yield made


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


async def test_waiters_for_a_connection_closed_meanwhile_get_an_error() -> None:
    async with asyncio.timeout(SOON_S), scripted(well, greeting=b"") as server:
        address = replace(parse(f"redis://127.0.0.1:{server.port}"), is_primary=True)
        reconnector = Reconnector(address, SOON_S)
        waiting = [asyncio.create_task(reconnector.connection()) for _ in range(2)]
        while not server.accepted:
            await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        await reconnector.close()
        with pytest.raises(StoreUnavailable, match="was closed"):
            await waiting[1]
        assert server.accepted == 1


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
            *(store.get_many(ref(FIRST), [f"user:{n}"]) for n in range(5)), return_exceptions=True
        )
        assert {type(found) for found in reads} == {StoreUnavailable}
        server.reply = well
        while True:
            try:
                found = await store.get_many(ref(FIRST), ["user:7", "user:8"])
                break
            except StoreUnavailable:
                await asyncio.sleep(0.01)
    assert found == [b"7", b"8"]
    assert server.accepted == 2
    assert len(caplog.records) == 1


async def test_a_reply_after_the_last_that_was_waited_for_ends_the_connection() -> None:
    async with reading(lambda command: well(command) + b"+OK\r\n") as (_, store):
        assert await store.get_many(ref(FIRST), ["user:1"]) == [b"1"]
        while store._reads.at(store._servers.primaries[0]).current is not None:
            await asyncio.sleep(0.01)


async def test_a_catalogue_is_not_made_of_the_replies_to_something_else() -> None:
    replies = {b"GET": b"+OK\r\n$-1\r\n", b"TIME": array(b"1795202475", b"0"), b"HELLO": b"*0\r\n"}
    async with reading(lambda command: replies[command[0]]) as (_, store):
        with pytest.raises(StoreUnavailable, match="unknown format"):
            await store.catalogue()
        assert store._nodes.at(store._servers.primaries[0]).current is None


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
async def test_a_server_that_does_not_say_that_it_is_a_primary_counts_as_a_replica(
    greeting: bytes, *, primary: bool
) -> None:
    replies = {b"GET": b"$-1\r\n", b"TIME": array(b"1795202475", b"500000"), b"HELLO": greeting}
    async with reading(lambda command: replies[command[0]]) as (_, store):
        found = await store.catalogue()
    assert (found.generation, found.now, found.primary) == (0, 1795202475.5, primary)


async def test_overlapping_calls_receive_the_values_of_their_own_commands(
    connection: PipelinedConnection,
) -> None:
    names = [secrets.token_hex(8).encode() for _ in range(3)]
    await connection.send_command(b"MSET", names[0], b"a", names[1], b"b")
    no_string = secrets.token_hex(8).encode()
    await connection.send_command(b"RPUSH", no_string, b"x")
    async with asyncio.timeout(SOON_S):
        for _ in range(2):
            first, second, echoed, third = await asyncio.gather(
                connection.get_each([names[0], no_string, names[1]]),
                connection.get_each([names[2], no_string, names[0]]),
                connection.send_command(b"ECHO", b"mine"),
                connection.get_each([names[1]]),
            )
            assert isinstance(first[1], StoreUnavailable)
            assert isinstance(second[1], StoreUnavailable)
            assert (first[::2], second[::2], echoed, third) == ([b"a", b"b"], [None, b"a"], b"mine", [b"b"])


@pytest.mark.parametrize("wrong", [b":1\r\n", b"*1\r\n$1\r\na\r\n"])
@pytest.mark.parametrize("calls", [1, 2])
async def test_a_value_of_another_form_ends_the_connection(wrong: bytes, calls: int) -> None:
    async with scripted(lambda _command: wrong) as server, asyncio.timeout(SOON_S):
        opened = PipelinedConnection(parse(f"redis://127.0.0.1:{server.port}/0"), 60.0)
        await opened.open()
        sent = [opened.get_each([b"one", b"two"]) for _ in range(calls)]
        for found in await asyncio.gather(*sent, return_exceptions=True):
            assert isinstance(found, StoreUnavailable)
            assert "something else than its value" in str(found)
        await opened.close()
