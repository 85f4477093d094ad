"""Redis killed, stopped, slowed, cut off, filled or emptied: what its readers see."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

import hotplate
from hotplate.bench.drills.proxy import Proxy, through
from tests.support.readers import lists, reading, until, until_read
from tests.support.redis_server import RedisServer
from tests.support.redis_server import running as redis_running
from tests.support.service import a_list, publish_to, serving


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
    redis.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        redis.send_signal(signal.SIGCONT)


@asynccontextmanager
async def refused(_: RedisServer, proxy: Proxy) -> AsyncIterator[None]:
    proxy.refusing = True
    proxy.reset()
    yield
    proxy.refusing = False


def delayed(delay_s: float) -> Callable[[RedisServer, Proxy], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def fault(_: RedisServer, proxy: Proxy) -> AsyncIterator[None]:
        proxy.delay_s = delay_s
        yield
        proxy.delay_s = 0.0

    return fault


FAULTS: dict[str, Callable[[RedisServer, Proxy], AbstractAsyncContextManager[None]]] = {
    "killed": killed,
    "stopped": stopped,
    "connections refused": refused,
    "100 ms late": delayed(0.1),
    "2 s late": delayed(2.0),
}
every_fault = pytest.mark.parametrize("fault", FAULTS)
with_and_without_another_tier = pytest.mark.parametrize("others", [(), ("file",)], ids=["alone", "with a local tier"])


def url_through(proxy: Proxy, redis: RedisServer) -> str:
    return redis.url().replace(str(redis.port), str(proxy.port))


@every_fault
@with_and_without_another_tier
async def test_others_answer_during_a_fault_and_redis_after_it(
    tmp_path: Path, redis: RedisServer, fault: str, others: tuple[str, ...]
) -> None:
    await publish_to(redis.url(), lists("r0"))
    await publish_to(f"file://{tmp_path}/store", lists("f0"))
    async with through(redis.port) as proxy:
        urls = [url_through(proxy, redis), *(f"{scheme}://{tmp_path}/store" for scheme in others)]
        async with reading(*urls) as reader:
            await until_read(reader, "redis")
            async with FAULTS[fault](redis, proxy):
                await until_read(reader, *(("file", "personal") if others else ("redis", "popular")))
            await until_read(reader, "redis")
        assert proxy.accepted < 60, "a storm of connections"


async def test_a_service_that_starts_with_redis_dead_serves_from_a_local_tier_or_not_at_all(
    tmp_path: Path, redis: RedisServer
) -> None:
    await publish_to(redis.url(), {"user:1": a_list("far")})
    await publish_to(f"file://{tmp_path}/store", {"user:1": a_list("local")})
    redis.kill()
    async with reading(redis.url(), f"file://{tmp_path}/store") as reader:
        assert (await reader.personal("1")).tier == "file"
        assert reader.tiers[0].error is not None
    with serving(tmp_path, "--store", redis.url()) as alone:
        assert [alone.get(path).status for path in ("/v1/recommendations/1", "/readyz", "/livez")] == [503, 503, 200]
        redis.start()

        async def is_ready() -> bool:
            return alone.get("/readyz").status == 200

        await until(is_ready, "the service is not ready")
        assert alone.get("/v1/recommendations/1").json["tier"] == "redis"


async def test_a_wrong_password_is_named_without_the_password_and_serves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_running(folder, password="right") as redis, pytest.raises(hotplate.NotReady, match="password") as caught:
        async with hotplate.open(redis.url(user=":wrong-secret@"), timeout_s=0.7):  # it is tried several times
            raise AssertionError("it cannot be read")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "wrong-secret" not in caplog.text + str(caught.value)
