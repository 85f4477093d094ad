"""One writer at a time: what a draft's state in Redis holds against a writer who was replaced and does not know it."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hotplate.bench.drills.proxy import through
from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound, StoreFull, StoreUnavailable
from hotplate.stores.redis.keys import BUCKETS
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.redis.writer import MAX_ROWS, RowsLost, with_retries
from hotplate.stores.store import Plan, Row
from tests.support.redis_server import RedisServer, running
from tests.support.soak import SEED, scaled
from tests.support.stores import FIRST

USERS = [Row(f"user:{n:06}", b"list of %d" % n) for n in range(3000)]
SMALL = Plan(len(USERS), 100_000)
INCARNATION, OTHER = "0a1b2c3d4e5f", "f5e4d3c2b1a0"
ONE, TWO = DraftRef(FIRST, INCARNATION, "one"), DraftRef(FIRST, INCARNATION, "two")
RELEASE = ReleaseRef(FIRST, INCARNATION)

# Generous: what is asserted is that it happens.
SOON_S = 30.0


@pytest.fixture
def prefix() -> str:
    return secrets.token_hex(4)


@pytest.fixture
async def first(redis_server: RedisServer, prefix: str) -> AsyncIterator[RedisStore]:
    store = open_url(redis_server.url(prefix=prefix))
    yield store
    await store.close()


@pytest.fixture
async def second(redis_server: RedisServer, prefix: str) -> AsyncIterator[RedisStore]:
    store = open_url(redis_server.url(prefix=prefix))
    yield store
    await store.close()


def stored(server: RedisServer, prefix: str) -> dict[str, str | None]:
    """Return every row and state under a prefix; None for what is no string."""
    names = sorted(server.execute_command("KEYS", f"*{prefix}*"))
    return dict(zip(names, server.execute_command("MGET", *names) if names else [], strict=True))


async def rows_of(store: RedisStore) -> list[Row]:
    return [row async for row in store.scan(RELEASE)]


async def test_a_writer_who_was_replaced_cannot_write_resume_or_seal(
    first: RedisStore, second: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    await first.create(ONE, SMALL)
    await first.put(ONE, USERS[:1000])
    await second.create(TWO, SMALL)
    before = stored(redis_server, prefix)
    for call in (
        first.put(ONE, [Row(USERS[0].key, b"late")]),
        first.put(ONE, [Row("meta:manifest", b"late")]),
        first.seal(ONE),
        first.resume_point(ONE),
    ):
        with pytest.raises(ReleaseConflict, match="another process"):
            await call
    assert stored(redis_server, prefix) == before
    assert await second.resume_point(TWO) == USERS[999].key
    await second.put(TWO, USERS[1000:])
    await second.seal(TWO)
    assert await rows_of(second) == USERS


async def test_from_a_takeover_on_a_writer_that_never_pauses_changes_nothing(
    second: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    await take_over_often(second, redis_server, prefix, rounds=5)


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_at_whatever_instant_a_writer_is_replaced_it_changes_nothing_from_then_on(
    second: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    await take_over_often(second, redis_server, prefix, rounds=scaled(400, least=50))


async def take_over_often(second: RedisStore, server: RedisServer, prefix: str, *, rounds: int) -> None:
    """Replace a writer while a batch of it is on its way, which a proxy delays, at another instant each time."""
    draw, keys = random.Random(SEED), f"{prefix}:{{{INCARNATION}.0}}:@keys"
    async with through(server.port) as proxy:
        first = open_url(f"redis://127.0.0.1:{proxy.port}/0?prefix={prefix}")
        for round_ in range(rounds):
            before, after = (DraftRef(FIRST, INCARNATION, f"{which} {round_}") for which in ("before", "after"))
            await first.create(before, SMALL)
            proxy.delay_s = draw.uniform(0.0, 0.005)
            writing = asyncio.create_task(write_without_end(first, before))
            await asyncio.sleep(draw.uniform(0.0, 0.02))
            await second.create(after, SMALL)
            written = server.execute_command("LLEN", keys)
            with pytest.raises(ReleaseConflict, match="another process"):
                await asyncio.wait_for(writing, SOON_S)
            await second.put(after, USERS[:1])
            assert server.execute_command("LLEN", keys) == written + 1
            proxy.delay_s = 0.0
        await first.close()


async def write_without_end(store: RedisStore, draft: DraftRef) -> None:
    while True:
        await store.put(draft, USERS[: MAX_ROWS // 10])


async def test_what_was_sealed_is_not_taken_over_and_takes_no_more(
    first: RedisStore, second: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    await first.create(ONE, SMALL)
    await second.create(TWO, SMALL)
    await second.put(TWO, USERS[:10])
    await second.seal(TWO)
    await second.seal(TWO)
    before = stored(redis_server, prefix)
    await first.seal(ONE)
    for call in (
        first.create(ONE, SMALL),
        first.put(ONE, USERS[:1]),
        first.resume_point(ONE),
        second.put(TWO, USERS[:1]),
        second.create(TWO, SMALL),
    ):
        with pytest.raises(ReleaseConflict, match="is sealed"):
            await call
    assert stored(redis_server, prefix) == before


async def test_the_states_of_all_buckets_change_at_once(
    first: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    def states() -> set[tuple[str | None, int]]:
        found = [value for name, value in stored(redis_server, prefix).items() if name.endswith(":@state")]
        return {(value, found.count(value)) for value in found}

    await first.create(ONE, SMALL)
    assert states() == {("draft:one", BUCKETS)}
    await first.create(TWO, SMALL)
    assert states() == {("draft:two", BUCKETS)}
    await first.seal(TWO)
    assert states() == {("sealed", BUCKETS)}
    await first.erase(RELEASE)
    assert stored(redis_server, prefix) == {}


async def test_the_inventory_names_what_was_created_until_all_of_it_is_erased(
    first: RedisStore, second: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    assert await first.incarnations() == []
    await first.create(ONE, SMALL)
    await first.put(ONE, USERS)
    await second.create(ONE._replace(incarnation=OTHER), SMALL)
    await second.seal(ONE._replace(incarnation=OTHER))
    assert await first.incarnations() == [INCARNATION, OTHER]
    erasing = asyncio.create_task(first.erase(RELEASE))
    while len(stored(redis_server, prefix)) > BUCKETS + len(USERS) - 1000:
        await asyncio.sleep(0)
    erasing.cancel()
    await asyncio.gather(erasing, return_exceptions=True)
    assert await first.incarnations() == [INCARNATION, OTHER]
    await second.erase(RELEASE)
    assert await first.incarnations() == [OTHER]
    await second.erase(RELEASE._replace(incarnation=OTHER))
    assert stored(redis_server, prefix) == {}


async def test_an_eraser_at_work_leaves_the_next_incarnation_of_the_id_alone(
    first: RedisStore, second: RedisStore
) -> None:
    again = ONE._replace(incarnation=OTHER)
    await first.create(ONE, SMALL)
    await first.put(ONE, USERS)
    erasing = asyncio.create_task(first.erase(RELEASE))
    while True:  # paused between two of its steps
        try:
            await second.get_many(RELEASE, [])
        except ReleaseNotFound:
            break
    await second.create(again, SMALL)
    await second.put(again, USERS)
    await second.seal(again)
    await erasing
    assert [row async for row in second.scan(again.release)] == USERS


async def test_a_writer_that_wakes_after_all_was_erased_leaves_what_the_inventory_names(first: RedisStore) -> None:
    await first.create(ONE, SMALL)
    await first.erase(RELEASE)
    with pytest.raises(ReleaseNotFound):
        await first.put(ONE, USERS[:1])
    await first.create(ONE, SMALL)
    await first.put(ONE, USERS[:1])
    assert await first.incarnations() == [INCARNATION]
    await first.erase(RELEASE)
    assert await first.incarnations() == []


class Unchecked(RedisStore):
    """A store whose server fills up between the check and the claim."""

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        """Find room for anything."""


async def test_on_a_full_server_nothing_new_is_claimed_and_what_there_is_can_be_taken_over_sealed_and_erased(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as server:
        store = Unchecked(open_url(server.url())._address)
        await store.create(ONE, SMALL)
        await store.put(ONE, USERS)
        keys = server.execute_command("DBSIZE")
        server.execute_command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreFull):
            await store.create(ONE._replace(incarnation=OTHER), SMALL)
        assert server.execute_command("DBSIZE") == keys
        assert await store.incarnations() == [INCARNATION]
        await store.create(TWO, SMALL)
        with pytest.raises(StoreFull):
            await store.put(TWO, USERS)
        await store.seal(TWO)
        assert await rows_of(store) == USERS
        await store.erase(RELEASE)
        assert server.execute_command("DBSIZE") == 0
        await store.close()


async def test_a_batch_of_which_a_part_failed_is_not_acknowledged(
    first: RedisStore, redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first._writer, "_retry_for_s", 0.0)
    await first.create(ONE, SMALL)
    redis_server.execute_command("SET", f"{prefix}:{{{INCARNATION}.0}}:@keys", "no list")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await first.put(ONE, USERS[:1])


async def test_a_step_is_tried_again_while_servers_are_away_but_not_where_rows_are_lost() -> None:
    failures = [StoreUnavailable("away"), RowsLost("rows are gone")]
    taken = list[str]()

    async def step() -> None:
        taken.append("step")
        raise failures.pop(0)

    with pytest.raises(RowsLost):
        await with_retries(step, SOON_S)
    assert len(taken) == 2
    failures += [StoreUnavailable("away"), StoreUnavailable("for good")]
    with pytest.raises(StoreUnavailable, match="away"):
        await with_retries(step, -1.0)


async def test_meta_rows_that_a_server_has_lost_are_missed_before_the_release_is_sealed(
    first: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    await first.create(ONE, SMALL)
    await first.put(ONE, USERS[:100])
    before = keys_of(redis_server, prefix)
    for place, name in enumerate(before):
        redis_server.execute_command("COPY", name, f"saved-{place}")
    await first.put(ONE, [Row("meta:factors:0000", b"a piece of the factors")])
    for name in keys_of(redis_server, prefix):  # as after a failover to a replica that was behind
        redis_server.execute_command("DEL", name)
    for place, name in enumerate(before):
        redis_server.execute_command("RENAME", f"saved-{place}", name)
    with pytest.raises(RowsLost, match="has lost rows of release"):
        await first.seal(ONE)


def keys_of(server: RedisServer, prefix: str) -> list[str]:
    return list(server.execute_command("KEYS", f"*{prefix}*"))
