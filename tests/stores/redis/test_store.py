"""What the Redis store promises beyond the contract, on a real server."""

import asyncio
import random
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import Catalogue, DraftRef
from hotplate.stores.connect import connect
from hotplate.stores.errors import (
    AccessDenied,
    NotSent,
    ReleaseConflict,
    ReleaseNotFound,
    StoreFull,
    StoreUnavailable,
)
from hotplate.stores.lifecycle import activate, prune, rollback
from hotplate.stores.redis.errors import RowsLost
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.redis.writer import MAX_ROWS
from hotplate.stores.store import Plan, Row
from hotplate.stores.users import erase_users
from hotplate.stores.verification import verify
from tests.support.paths import ROOT
from tests.support.redis_server import SOON_S, OpenRedis, RedisServer, running, users_of_the_guide
from tests.support.soak import SEED, in_soak, scaled
from tests.support.stores import (
    FIRST,
    SECOND,
    allow_erasure,
    draft_of,
    lists_of,
    publish,
    release_ref,
    scan_rows,
    write_release,
)
from tests.support.tcp_proxy import through

USERS = lists_of(3500)


async def test_cancelled_caller_disturbs_no_other(redis: RedisStore) -> None:
    await write_release(redis, FIRST, USERS)
    for round_ in range(50):
        tasks = [asyncio.create_task(redis.get_many(release_ref(FIRST), [row.key])) for row in USERS[:9]]
        for _ in range(round_ % 4):
            await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        slots = await asyncio.gather(*tasks, return_exceptions=True)
        for place, (row, slot) in enumerate(zip(USERS, slots, strict=False)):
            assert slot == [row.value] or (place % 3 == 0 and isinstance(slot, asyncio.CancelledError))


@pytest.mark.parametrize("place", ["redis_server", "redis_cluster"])
@pytest.mark.parametrize("turns", [0, 1, 4, 8, 16])
async def test_calls_end_when_the_store_is_closed_during_them(
    request: pytest.FixtureRequest, place: str, prefix: str, turns: int
) -> None:
    store = open_url(request.getfixturevalue(place).url(prefix=prefix))
    calls = [store.catalogue(), store.incarnations(), store.records(["erased"]), store.poll()]
    tasks = [asyncio.ensure_future(call) for call in calls]
    for _ in range(turns):
        await asyncio.sleep(0)
    await store.close()
    async with asyncio.timeout(SOON_S):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    assert all(isinstance(error, StoreUnavailable) for error in errors), errors


async def test_abandoned_put_leaves_the_connection_usable(redis: RedisStore) -> None:
    await redis.create(draft_of(FIRST), Plan(1, 1))
    for hops in range(12):
        task = asyncio.create_task(redis.put(draft_of(FIRST), USERS[:1000]))
        for _ in range(hops):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await redis.put(draft_of(FIRST), USERS)
    await redis.seal(draft_of(FIRST))
    assert await scan_rows(redis, FIRST) == USERS


async def test_refused_batch_does_not_fail_the_transaction_after_it(
    redis: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    mine = draft_of(FIRST)
    other = open_url(redis_server.url(prefix=prefix))
    await redis.create(mine, Plan(1, 1))
    await other.create(mine._replace(writer="another"), Plan(1, 1))
    with pytest.raises(ReleaseConflict):
        await redis.put(mine, USERS[:1])
    await redis.create(draft_of(SECOND), Plan(1, 1))
    await other.seal(mine._replace(writer="another"))  # changes the state that the refused batch has watched
    await other.close()
    before = redis_server.calls("exec")
    await redis.put(draft_of(SECOND), USERS[:1])
    assert redis_server.calls("exec") == before + 1


@pytest.mark.parametrize("place", ["redis_server", "redis_cluster"])
async def test_documented_redis_users_have_exactly_their_rights(
    request: pytest.FixtureRequest, place: str, prefix: str
) -> None:
    there = request.getfixturevalue(place)
    urls = users_of_the_guide(prefix, there.execute_everywhere, there.url)
    publisher = open_url(urls["publish"])
    server = open_url(urls["serve"])
    rows = [Row("popular:", b"{}"), *USERS[:2]]
    old = await publish(publisher, rows)
    assert (await server.poll()).live == old
    new = await publish(publisher, rows)
    assert (await server.poll()).live == new
    await rollback(publisher)
    await activate(publisher, new)
    assert await prune(publisher, keep=0, grace_s=0) == [old]
    catalogue = await server.catalogue()
    assert catalogue == await publisher.catalogue()
    assert catalogue.primary
    live = catalogue.find(new)
    assert None not in await server.get_many(live.ref, [row.key for row in rows])
    assert await server.warnings() == []
    await verify(server, live.ref)
    draft = DraftRef(live.id, "another", "w")
    for call in (
        server.create(draft, Plan(3, 100)),
        server.put(draft, rows),
        server.seal(draft),
        server.swap(catalogue, catalogue),
        server.erase(live.ref, allow_erasure),
    ):
        with pytest.raises(AccessDenied, match="lacks a permission"):
            await call
    other = open_url(there.url(prefix="other", user=f"{prefix}-publish:open@"))
    with pytest.raises(AccessDenied, match="lacks a permission"):
        await other.catalogue()
    for store in (publisher, server, other):
        await store.close()


async def test_too_large_release_is_refused_with_the_sizes(redis: RedisStore, redis_server: RedisServer) -> None:
    redis_server.execute_command("CONFIG", "SET", "maxmemory", "500mb")
    try:
        with pytest.raises(
            StoreFull, match=r"needs about 7\d\d\.\d MB .* limit of 524\.3 MB and uses \d+\.\d MB; raise maxm"
        ):
            await redis.create(draft_of(FIRST), Plan(1_000_000, 607_000_000))
        with pytest.raises(ReleaseNotFound):
            await redis.put(draft_of(FIRST), USERS)
        await redis.create(draft_of(FIRST), Plan(100_000, 60_700_000))
    finally:
        redis_server.execute_command("CONFIG", "SET", "maxmemory", "0")
    with pytest.raises(StoreFull, match="take a machine with more memory, prune"):
        await redis.create(draft_of(SECOND), Plan(1_000_000_000, 10**15))


async def test_estimated_memory_matches_used_memory(redis: RedisStore, redis_server: RedisServer) -> None:
    def used() -> int:
        return int(redis_server.execute_command("INFO", "memory")["used_memory"])

    before = used()
    rows = [Row(f"user:{n:08}", secrets.token_bytes(587)) for n in range(20_000)]
    await write_release(redis, FIRST, rows)
    payload = sum(len(row.key) + len(row.value) for row in rows)
    taken = used() - before
    redis_server.execute_command("CONFIG", "SET", "maxmemory", str(used() + taken * 8 // 10))
    try:
        with pytest.raises(StoreFull):
            await redis.create(draft_of(SECOND), Plan(len(rows), payload))
        redis_server.execute_command("CONFIG", "SET", "maxmemory", str(used() + taken * 12 // 10))
        await redis.create(draft_of(SECOND), Plan(len(rows), payload))
    finally:
        redis_server.execute_command("CONFIG", "SET", "maxmemory", "0")


async def test_a_certificate_of_an_unknown_authority_is_refused(redis_server: RedisServer) -> None:
    store = connect(f"rediss://127.0.0.1:{redis_server.tls_port}")
    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        await store.catalogue()
    await store.close()


SMALL = Plan(len(USERS), 100_000)
INCARNATION = "0a1b2c3d4e5f"
ONE = DraftRef(FIRST, INCARNATION, "one")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rounds", [5, in_soak(scaled(400, least=50))])
async def test_replaced_writer_changes_nothing_from_any_moment_of_replacement(
    redis: RedisStore, redis_server: RedisServer, prefix: str, rounds: int, opened: OpenRedis
) -> None:
    """A batch of it is on its way, which a proxy delays."""
    draw = random.Random(SEED)
    keys = f"{prefix}:{{{INCARNATION}.0}}:@keys"
    async with through(redis_server.port) as proxy:
        first = opened(f"redis://127.0.0.1:{proxy.port}/0?prefix={prefix}")
        for round_ in range(rounds):
            before, after = (DraftRef(FIRST, INCARNATION, f"{which} {round_}") for which in ("before", "after"))
            await first.create(before, SMALL)
            proxy.delay_s = draw.uniform(0.0, 0.005)
            writing = asyncio.create_task(write_without_end(first, before))
            await asyncio.sleep(draw.uniform(0.0, 0.02))
            await redis.create(after, SMALL)
            written = redis_server.execute_command("LLEN", keys)
            with pytest.raises(ReleaseConflict, match="another process"):
                await asyncio.wait_for(writing, SOON_S)
            await redis.put(after, USERS[:1])
            assert redis_server.execute_command("LLEN", keys) == written + 1
            proxy.delay_s = 0.0


async def write_without_end(store: RedisStore, draft: DraftRef) -> None:
    while True:
        await store.put(draft, USERS[: MAX_ROWS // 10])


async def test_swap_is_not_sent_to_a_server_without_its_release(redis: RedisStore, redis_server: RedisServer) -> None:
    ready = await publish(redis, live=False)
    entry = (await redis.catalogue()).find(ready)
    for state in redis_server.execute_command("KEYS", f"*{entry.incarnation}*@state"):
        redis_server.execute_command("SET", state, "draft:writer")  # as after a restart with older data
    old = await redis.catalogue()
    with pytest.raises(RowsLost) as raised:
        await redis.swap(old, changes.succeed(old, changes.activate(old, ready), "t", "s"))
    assert isinstance(raised.value, NotSent)
    assert await redis.catalogue() == old


async def test_swap_that_the_server_refuses_has_changed_nothing(tmp_path: Path, opened: OpenRedis) -> None:
    with running(tmp_path, "--min-replicas-to-write", "1") as server:
        store = opened(server.url())
        with pytest.raises(NotSent, match=r"refused: NOREPLICAS Not enough good replicas to write$"):
            await store.swap(Catalogue(), changes.succeed(Catalogue(), Catalogue(), "t", "s"))
        assert not (await store.catalogue()).generation


async def test_swap_without_a_connection_was_not_sent(opened: OpenRedis) -> None:
    closed = opened("redis://127.0.0.1:1/0")
    with pytest.raises(NotSent):
        await closed.swap(Catalogue(), changes.succeed(Catalogue(), Catalogue(), "t", "s"))


async def test_publish_to_a_server_that_lost_its_data_says_so(
    redis: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    await redis.create(ONE, SMALL)
    await redis.put(ONE, USERS[:100])
    redis_server.put_back(prefix, {})  # as after a restart without a snapshot
    for call in (redis.put(ONE, USERS[100:200]), redis.seal(ONE)):
        with pytest.raises(ReleaseNotFound, match="the server has lost its data"):
            await call


async def test_lost_meta_rows_are_detected_before_the_release_is_sealed(
    redis: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    await redis.create(ONE, SMALL)
    await redis.put(ONE, USERS[:100])
    before = redis_server.copied(prefix)
    await redis.put(ONE, [Row("meta:factors:0000", b"a piece of the factors")])
    redis_server.put_back(prefix, before)  # as after a failover to a replica that was behind
    with pytest.raises(RowsLost, match="has lost rows of release"):
        await redis.seal(ONE)


async def test_security_page_lists_what_an_erasure_leaves_in_the_server(redis_server: RedisServer, prefix: str) -> None:
    store = open_url(redis_server.url(prefix=prefix))
    await publish(store, [Row("popular:", b"{}"), *(Row(f"user:zebra-{n}", b"{}") for n in range(3))])
    await erase_users(store, [f"zebra-{n}" for n in range(3)])
    await store.close()
    left = {key.rpartition(b"}:")[2].decode() for key, data in raw_data(redis_server, prefix) if b"zebra" in key + data}
    assert left == {"@keys", "@points", "meta:manifest"}
    page = (ROOT / "docs" / "security.md").read_text()
    assert "until a release is pruned, its list of keys, Redis' `@points`, and perhaps its manifest's 64 sample" in page


def raw_data(server: RedisServer, prefix: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield all keys of a prefix, each with all bytes that it holds."""
    with redis.Redis(port=server.port) as client:
        for key in client.scan_iter(f"*{prefix}*"):
            match client.type(key):
                case b"string":
                    data = client.get(key)
                case b"list":
                    data = b"".join(client.lrange(key, 0, -1))
                case b"hash":
                    data = repr(client.hgetall(key)).encode()
                case _:
                    data = repr(client.smembers(key)).encode()
            yield key, data
