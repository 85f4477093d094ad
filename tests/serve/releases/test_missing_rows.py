"""Rows that Redis has dropped: a service is degraded until they are back, and only then."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.processes.readiness import Status, status_of_tiers
from hotplate.serve.releases import missing_rows
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.store import Row
from hotplate.stores.users import erase_users
from hotplate.stores.verification import load_manifest
from tests.support.redis_server import RedisServer
from tests.support.redis_server import running as redis_running
from tests.support.service import a_list
from tests.support.stores import publish, ref_of
from tests.support.waiting import until_true

LISTS = [Row("popular:", a_list("p")), *(Row(f"user:{number:05}", a_list("a")) for number in range(3000))]
INTERVAL_S = 0.05
SEEN = "sampled rows of release"
CATALOGUE_LOST = "the catalogue is not in this store any more"


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(missing_rows, "MISSING_S", INTERVAL_S)
    caplog.set_level(logging.INFO)


@pytest.fixture
def prefix() -> str:
    return f"missing-{uuid4().hex}"


@pytest.fixture
async def redis(redis_server: RedisServer, prefix: str) -> AsyncIterator[RedisStore]:
    store = open_url(redis_server.url(prefix=prefix))
    yield store
    await store.close()


@pytest.fixture
async def reader(redis: RedisStore) -> AsyncIterator[TieredReader]:
    await publish(redis, LISTS)
    async with TieredReader({"redis": redis}) as reader:
        await reader.wait_until_ready(30)
        yield reader


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if SEEN in record.getMessage()]


async def until(condition: Callable[[], bool]) -> None:
    await until_true(condition)


def is_degraded(reader: TieredReader) -> bool:
    return status_of_tiers(reader.tiers) is Status.DEGRADED


def drop(server: RedisServer, prefix: str, share: int) -> None:
    """Delete every row of users but each one of *share*, as an eviction does."""
    rows = [key for key in server.copied(prefix) if b":user:" in key]
    server.execute_command("DEL", *[key.decode() for number, key in enumerate(rows) if number % share])


async def test_service_is_degraded_while_lists_are_missing_and_logs_it_once(
    reader: TieredReader, redis_server: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = redis_server.copied(prefix)
    drop(redis_server, prefix, 3)
    await until(lambda: is_degraded(reader))
    await asyncio.sleep(10 * INTERVAL_S)
    (error,) = [tier.error for tier in reader.tiers]
    assert error is not None
    assert " of 64 sampled rows of release " in error
    assert logged(caplog) == [error]

    redis_server.put_back(prefix, whole)
    await until(lambda: not is_degraded(reader))
    assert logged(caplog)[1:] == [f"the sampled rows of release {reader.live_id()} are there again"]


async def test_new_release_ends_it(
    reader: TieredReader, redis: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    drop(redis_server, prefix, 3)
    await until(lambda: is_degraded(reader))
    await publish(redis, LISTS)
    await until(lambda: not is_degraded(reader))


async def test_unknown_and_erased_users_are_not_missing(
    reader: TieredReader, redis: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = await load_manifest(redis, await ref_of(redis, reader.live_id()))
    sampled = [key.removeprefix("user:") for key in manifest.sample]
    await erase_users(redis, sampled[:40])
    lists = await reader.personal_many([f"unknown {number}" for number in range(2000)])
    assert {encoded.source for encoded in lists} == {"popular"}
    await asyncio.sleep(20 * INTERVAL_S)
    assert not is_degraded(reader)
    assert logged(caplog) == []


async def test_user_without_the_right_to_exists_sees_missing_lists(
    redis: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    await publish(redis, LISTS)
    redis_server.execute_command("ACL", "SETUSER", prefix, "on", ">secret", "~*", "&*", "+@all", "-exists")
    limited = open_url(redis_server.url(prefix=prefix, user=f"{prefix}:secret@"))
    async with TieredReader({"redis": limited}) as reader:
        await reader.wait_until_ready(30)
        await asyncio.sleep(10 * INTERVAL_S)
        assert not is_degraded(reader)
        drop(redis_server, prefix, 3)
        await until(lambda: is_degraded(reader))
    redis_server.execute_command("ACL", "DELUSER", prefix)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
async def test_evicted_lists_are_seen_with_the_number_of_evicted_keys(
    tmp_path: Path, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_running(tmp_path) as server:
        store = open_url(server.url())
        await publish(store, LISTS)
        async with TieredReader({"redis": store}) as reader:
            await reader.wait_until_ready(30)
            await asyncio.sleep(20 * INTERVAL_S)
            assert not is_degraded(reader)
            used = int(server.execute_command("INFO", "memory")["used_memory"])
            server.execute_command("CONFIG", "SET", "maxmemory-policy", policy)
            server.execute_command("CONFIG", "SET", "maxmemory", str(used))
            number = 0
            # The catalogue may be dropped, too, before any list is.
            while not logged(caplog) and CATALOGUE_LOST not in str(reader.tiers[0].error):
                for _ in range(100):  # what another application writes
                    server.execute_command("SET", f"other:{number}", "x" * 200)
                    number += 1
                await asyncio.sleep(INTERVAL_S)
                assert number < 100_000, "the lists that are asked for stay"
            assert is_degraded(reader)
            assert all("keys were dropped since the server started" in sentence for sentence in logged(caplog))
