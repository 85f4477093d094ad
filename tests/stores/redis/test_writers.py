"""One writer at a time: what a draft's state in Redis holds against a writer who was replaced and does not know it."""

import asyncio
import random
import time

import pytest

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.errors import ReleaseConflict, StoreUnavailable
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.redis.writer import MAX_ROWS, RowsLost
from hotplate.stores.store import Plan, Row
from hotplate.stores.throttle import Retrier
from tests.support.redis_server import SOON_S, RedisServer
from tests.support.soak import SEED, scaled
from tests.support.stores import FIRST
from tests.support.tcp_proxy import through

USERS = [Row(f"user:{n:06}", b"list of %d" % n) for n in range(3000)]
SMALL = Plan(len(USERS), 100_000)
INCARNATION, OTHER = "0a1b2c3d4e5f", "f5e4d3c2b1a0"
ONE, TWO = DraftRef(FIRST, INCARNATION, "one"), DraftRef(FIRST, INCARNATION, "two")
RELEASE = ReleaseRef(FIRST, INCARNATION)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rounds", [5, pytest.param(scaled(400, least=50), id="soak", marks=pytest.mark.soak)])
async def test_replaced_writer_changes_nothing_from_any_moment_of_replacement(
    redis: RedisStore, redis_server: RedisServer, prefix: str, rounds: int
) -> None:
    """A batch of it is on its way, which a proxy delays."""
    draw, keys = random.Random(SEED), f"{prefix}:{{{INCARNATION}.0}}:@keys"
    async with through(redis_server.port) as proxy:
        first = open_url(f"redis://127.0.0.1:{proxy.port}/0?prefix={prefix}")
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
        await first.close()


async def write_without_end(store: RedisStore, draft: DraftRef) -> None:
    while True:
        await store.put(draft, USERS[: MAX_ROWS // 10])


async def test_a_batch_of_which_a_part_failed_is_not_acknowledged(
    redis: RedisStore, redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis._writer, "_retrier", Retrier(time.monotonic, for_s=0.0))
    await redis.create(ONE, SMALL)
    redis_server.execute_command("SET", f"{prefix}:{{{INCARNATION}.0}}:@keys", "no list")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await redis.put(ONE, USERS[:1])


async def test_lost_meta_rows_are_detected_before_the_release_is_sealed(
    redis: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    await redis.create(ONE, SMALL)
    await redis.put(ONE, USERS[:100])
    before = redis_server.execute_command("KEYS", f"*{prefix}*")
    for place, name in enumerate(before):
        redis_server.execute_command("COPY", name, f"saved-{place}")
    await redis.put(ONE, [Row("meta:factors:0000", b"a piece of the factors")])
    for name in redis_server.execute_command("KEYS", f"*{prefix}*"):  # as after a failover to a replica that was behind
        redis_server.execute_command("DEL", name)
    for place, name in enumerate(before):
        redis_server.execute_command("RENAME", f"saved-{place}", name)
    with pytest.raises(RowsLost, match="has lost rows of release"):
        await redis.seal(ONE)
