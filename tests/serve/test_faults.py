"""Redis killed, stopped, slowed, cut off or emptied, and an emulated Cosmos DB that fails: what their readers see."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from hotplate.stores.encoding import USER
from tests.support.command import hotplate
from tests.support.cosmos_account import Account, emulated_account
from tests.support.limited_service import counted
from tests.support.readers import WAIT_S, lists, reading, until_read
from tests.support.redis_server import RedisServer
from tests.support.redis_server import running as redis_running
from tests.support.service import a_list, publish_to, published, serving, until
from tests.support.tcp_proxy import Proxy, through


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, that keeps its data when it is killed."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_running(folder, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@asynccontextmanager
async def killed(redis: RedisServer, proxy: Proxy) -> AsyncIterator[None]:
    redis.kill()
    proxy.reset()
    yield
    await asyncio.to_thread(redis.start)


@asynccontextmanager
async def stopped(redis: RedisServer, _: Proxy) -> AsyncIterator[None]:
    with redis.stopped():
        yield


@asynccontextmanager
async def late(_: RedisServer, proxy: Proxy) -> AsyncIterator[None]:
    proxy.delay_s = 0.1
    yield
    proxy.delay_s = 0.0


with_and_without_another_tier = pytest.mark.parametrize(
    "other_tiers", [(), ("file",)], ids=["alone", "with a local tier"]
)


def url_through(proxy: Proxy, redis: RedisServer) -> str:
    return redis.url().replace(str(redis.port), str(proxy.port))


@pytest.mark.parametrize("fault", [killed, stopped, late])
@with_and_without_another_tier
async def test_other_tiers_answer_during_a_redis_fault_and_redis_after_it(
    tmp_path: Path,
    redis: RedisServer,
    fault: Callable[[RedisServer, Proxy], AbstractAsyncContextManager[None]],
    other_tiers: tuple[str, ...],
) -> None:
    await publish_to(redis.url(), lists("r0"))
    await publish_to(f"file://{tmp_path}/store", lists("f0"))
    async with through(redis.port) as proxy:
        urls = [url_through(proxy, redis), *(f"{scheme}://{tmp_path}/store" for scheme in other_tiers)]
        async with reading(*urls) as reader:
            await until_read(reader, "redis")
            async with fault(redis, proxy):
                await until_read(reader, *(("file", "personal") if other_tiers else ("redis", "popular")))
            await until_read(reader, "redis")
        assert proxy.accepted < 60, "a storm of connections"


async def test_emptied_redis_leaves_popular_lists_until_next_publish(redis: RedisServer) -> None:
    await publish_to(redis.url(), lists("r0"))
    async with reading(redis.url()) as reader:
        redis.execute_command("FLUSHALL")
        await until_read(reader, "redis", "popular")
        second = await publish_to(redis.url(), lists("r1"))
        assert (await until_read(reader, "redis")).release.id == second


async def test_redis_outage_at_start_or_later_is_reported_and_survived(tmp_path: Path, redis: RedisServer) -> None:
    await publish_to(redis.url(), {"user:1": a_list("far")})
    await publish_to(f"file://{tmp_path}/store", {"user:1": a_list("local")})
    redis.kill()
    async with reading(redis.url(), f"file://{tmp_path}/store") as reader:
        assert (await reader.read(USER, "1")).tier == "file"
        assert reader.tiers[0].error is not None
    with serving(tmp_path, "--store", redis.url()) as alone:
        assert [alone.get(path).status for path in ("/v1/recommendations/1", "/readyz", "/livez")] == [503, 503, 200]
        redis.start()
        until(alone.is_ready, "the service is not ready")
        assert alone.get("/v1/recommendations/1").json["tier"] == "redis"
        redis.kill()

        def is_seen() -> bool:
            assert alone.get("/v1/recommendations/1").json["source"] == "popular"
            failures = counted(alone, "hotplate_store_operation_duration_seconds_count", outcome="error")
            return failures > 0 and counted(alone, "hotplate_breaker_open") == counted(alone, "hotplate_degraded") == 1

        until(is_seen, "operators do not see the outage")
        assert alone.is_ready()


def test_store_warnings_are_json_lines_of_a_service_and_text_of_a_verb(tmp_path: Path, redis: RedisServer) -> None:
    first, second = (published(redis.url(), lists("r")) for _ in range(2))
    for row in redis.execute_command("KEYS", "*user:1"):
        redis.execute_command("DEL", row)
    warning = f"release {first} can be served, but is damaged"
    with serving(tmp_path, "--store", redis.url(), "--admin-store", redis.url()) as service:
        assert service.admin(f"/v1/releases/{first}/activate", "POST").status == 200
        assert service.stop() == 0
        lines = service.log.read_text().splitlines()
    records = [json.loads(line) for line in lines if not line.startswith("serving ")]
    assert [record["level"] for record in records if warning in record["message"]] == ["warning"]

    done = hotplate("releases", "activate", second, "--store", redis.url())
    assert done.returncode == 0
    assert done.stderr.startswith(f"hotplate: release {second} can be served, but is damaged")


TIER = "cosmos+http"
# What the emulator does.
COSMOS_FAULTS: dict[str, dict[str, object]] = {
    "429": {"kind": "throttle"},
    "reads of 1 s": {"kind": "slow", "delay_ms": 1000},
    "connections cut": {"kind": "reset"},
}


@pytest.fixture(scope="module")
def cosmos() -> Iterator[Account]:
    """An account for this file, because its tests disturb it; each test uses a separate database."""
    with emulated_account(None) as account:
        yield account


@pytest.fixture
def url(cosmos: Account) -> Iterator[str]:
    yield cosmos.url(secrets.token_hex(4))
    cosmos.inject_faults()


@pytest.mark.parametrize("fault", COSMOS_FAULTS)
@with_and_without_another_tier
async def test_other_tiers_answer_during_an_account_fault_then_the_account(
    tmp_path: Path, cosmos: Account, url: str, fault: str, other_tiers: tuple[str, ...]
) -> None:
    await publish_to(url, lists("r0"))
    await publish_to(f"file://{tmp_path}/store", lists("f0"))
    async with reading(url, *(f"{scheme}://{tmp_path}/store" for scheme in other_tiers)) as reader:
        await until_read(reader, TIER)
        cosmos.inject_faults(COSMOS_FAULTS[fault])
        async with asyncio.timeout(WAIT_S):
            while not reader.tiers[0].breaker.is_open:
                await reader.read(USER, "1")
        await until_read(reader, *(("file", "personal") if other_tiers else (TIER, "popular")))
        assert reader.tiers[0].error is not None
        cosmos.inject_faults()
        await until_read(reader, TIER)
