"""Commands as the servers get them: a change is sent once, a read at most twice, and all reads in few commands."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotplate.stores import transitions as changes
from hotplate.stores.errors import PartUnavailable, StoreUnavailable
from hotplate.stores.redis.keys import Keys
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.store import Plan, Row
from tests.support.redis_server import SOON_S, OpenRedis, RedisServer, replica_of, running
from tests.support.scripted_sentinel import ScriptedSentinel, speaking
from tests.support.stores import (
    FIRST,
    allow_erasure,
    begin_draft,
    draft_of,
    expect_rows,
    lists_of,
    release_ref,
    scan_rows,
    swap_catalogue,
    write_release,
)
from tests.support.tcp_proxy import Proxy, through

USERS = lists_of(200)


@dataclass(frozen=True, slots=True)
class Wire:
    """A store that reaches a server through a proxy: in a cluster, the server of the catalogue."""

    store: RedisStore
    proxy: Proxy
    server: RedisServer
    rows: list[Row]
    """Rows of the server."""

    def calls(self, *commands: str) -> int:
        return sum(self.server.calls(command) for command in commands)


@pytest.fixture(params=["redis", "redis+sentinel", "redis+cluster"])
async def wire(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[Wire]:
    rows = USERS
    async with AsyncExitStack() as stack:
        if request.param == "redis+cluster":
            cluster = request.getfixturevalue("redis_cluster")
            home = cluster.owner(Keys(prefix).catalogue)
            server = home.server
            names = Keys(prefix).release(release_ref(FIRST)).located([row.key for row in USERS]).names
            owners = cluster.owners([name.decode() for name in names])
            rows = [row for row, owner in zip(USERS, owners, strict=True) if owner is home]
        else:
            server = request.getfixturevalue("redis_server")
        proxy = await stack.enter_async_context(through(server.port))
        url = f"{request.param}://127.0.0.1:{proxy.port}/"
        if request.param == "redis+sentinel":
            url = await stack.enter_async_context(speaking(ScriptedSentinel(1, proxy.port)))
        if request.param == "redis+cluster":
            stack.enter_context(cluster.announced(home, proxy.port))
        store = open_url(f"{url}?prefix={prefix}")
        stack.push_async_callback(store.close)
        yield Wire(store, proxy, server, rows)


async def test_change_of_the_catalogue_without_a_reply_is_sent_once(wire: Wire) -> None:
    catalogue = await begin_draft(wire.store, FIRST)
    before = wire.calls("eval", "evalsha")
    wire.proxy.losing = b"EVAL"
    with pytest.raises(StoreUnavailable):
        await swap_catalogue(wire.store, changes.renew(catalogue, draft_of(FIRST)))
    wire.proxy.losing = None
    assert wire.calls("eval", "evalsha") == before + 1
    async with asyncio.timeout(SOON_S):
        assert (await wire.store.catalogue()).generation == catalogue.generation + 1


async def test_erasure_of_rows_without_a_reply_is_sent_once(wire: Wire) -> None:
    await write_release(wire.store, FIRST, USERS)
    commands = ("del", "unlink", "eval", "evalsha")
    before = wire.calls(*commands)
    wire.proxy.losing = wire.rows[0].key.encode()
    with pytest.raises(StoreUnavailable):
        await wire.store.erase_rows(release_ref(FIRST), [wire.rows[0].key], allow_erasure)
    wire.proxy.losing = None
    assert wire.calls(*commands) == before + 1


async def test_read_without_a_reply_is_sent_at_most_twice(wire: Wire) -> None:
    await write_release(wire.store, FIRST, USERS)
    key = wire.rows[0].key
    assert await wire.store.get_many(release_ref(FIRST), [key]) == [wire.rows[0].value]
    before = wire.calls("get", "mget")
    wire.proxy.losing = key.encode()
    with pytest.raises((StoreUnavailable, PartUnavailable)):
        await wire.store.get_many(release_ref(FIRST), [key], timeout_s=SOON_S)
    wire.proxy.losing = None
    assert wire.calls("get", "mget") == before + 2


async def test_read_of_many_keys_takes_one_command_of_one_server(wire: Wire) -> None:
    await write_release(wire.store, FIRST, USERS)
    keys = [row.key for row in wire.rows[:32]]
    for _ in range(2):
        before = wire.calls("mget"), wire.calls("get")
        await expect_rows(wire.store, *wire.rows[:32])
        after = wire.calls("mget"), wire.calls("get")
        assert (after[0] - before[0], after[1] - before[1]) in {(1, 0), (0, len(keys))}


async def test_reads_share_one_connection_to_the_server(wire: Wire) -> None:
    await write_release(wire.store, FIRST, USERS)
    await wire.store.get_many(release_ref(FIRST), [wire.rows[0].key])
    before = wire.proxy.accepted
    async with asyncio.timeout(SOON_S):
        for _ in range(3):
            reads = (wire.store.get_many(release_ref(FIRST), [row.key]) for row in wire.rows)
            assert await asyncio.gather(*reads) == [[row.value] for row in wire.rows]
    assert wire.proxy.accepted == before


async def test_lost_batch_of_rows_is_completed_and_no_row_is_listed_twice(wire: Wire) -> None:
    await wire.store.create(draft_of(FIRST), Plan(len(USERS), 10_000))
    await wire.store.put(draft_of(FIRST), USERS[:50])
    wire.proxy.losing = b"RPUSH"
    putting = asyncio.create_task(wire.store.put(draft_of(FIRST), USERS[50:]))
    async with asyncio.timeout(SOON_S):
        await asyncio.sleep(0.2)
        wire.proxy.losing = None
        await putting
    await wire.store.seal(draft_of(FIRST))
    assert await scan_rows(wire.store, FIRST) == USERS


@pytest.mark.usefixtures("brief_waits")
async def test_replicas_are_awaited_on_the_writing_connection(
    tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture, opened: OpenRedis
) -> None:
    with running(tmp_path) as primary, replica_of(primary, tmp_path / "replica") as replica:
        store = opened(primary.url(prefix=prefix))
        await write_release(store, FIRST, USERS, seal=False)
        with replica.stopped():
            await store.seal(draft_of(FIRST))
    assert "0 of the 1 replicas" in caplog.text
