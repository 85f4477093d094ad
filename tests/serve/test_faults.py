"""A service on a real Redis that is killed, stopped, slowed, cut off, filled, emptied: what its callers see."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from stores.catalogue import State
from stores.connect import connect
from stores.errors import StoreFull, StoreUnavailable
from stores.lifecycle import prune, publish
from stores.store import Plan, Row
from tests.serve.test_flip import lists
from tests.support.loaded_service import RECOVERY_S, Run, under_load
from tests.support.proxy import Proxy, through
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


async def test_redis_killed_and_restarted(tmp_path: Path, redis: RedisServer) -> None:
    await publish_to(redis.url(), lists("r0"))
    async with under_load(tmp_path, redis.url(), seconds=7) as run:
        redis.kill()
        await run.until("redis", "popular")
        while (ready := run.service.get("/readyz")).json["status"] != "degraded":
            await asyncio.sleep(0.02)
        assert ready.status == 200
        redis.start()
        assert await run.until("redis") < RECOVERY_S
    run.answered("redis", source="popular")


async def test_redis_stopped_for_a_while(tmp_path: Path, redis: RedisServer) -> None:
    await publish_to(redis.url(), lists("r0"))
    async with under_load(tmp_path, redis.url(), seconds=12) as run:
        redis.send_signal(signal.SIGSTOP)
        await asyncio.sleep(5)
        redis.send_signal(signal.SIGCONT)
        assert await run.until("redis") < RECOVERY_S
    run.answered("redis", source="popular")
    assert run.logged('"level":"error"') == 0


async def cut(proxy: Proxy) -> None:
    proxy.reset()


async def refuse(proxy: Proxy) -> None:
    proxy.refusing = True
    proxy.reset()
    await asyncio.sleep(1)
    proxy.refusing = False


async def delay(proxy: Proxy, delay_s: float) -> None:
    proxy.delay_s = delay_s
    await asyncio.sleep(2)
    proxy.delay_s = 0.0


FAULTS: dict[str, Callable[[Proxy], Awaitable[None]]] = {
    "connections reset": cut,
    "connections refused": refuse,
    "50 ms late": lambda proxy: delay(proxy, 0.05),
    "2 s late": lambda proxy: delay(proxy, 2.0),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_network_that_fails(tmp_path: Path, redis: RedisServer, fault: str) -> None:
    await publish_to(redis.url(), lists("r0"))
    async with through(redis.port) as proxy:
        url = redis.url().replace(str(redis.port), str(proxy.port))
        async with under_load(tmp_path, url, seconds=9) as run:
            await FAULTS[fault](proxy)
            assert await run.until("redis") < RECOVERY_S
            opened = proxy.accepted
        run.answered("redis")
        assert proxy.accepted - opened < 5, "a storm of connections"
        assert proxy.accepted < 60


async def test_everything_in_redis_is_flushed(tmp_path: Path, redis: RedisServer) -> None:
    await publish_to(redis.url(), lists("r0"))
    async with under_load(tmp_path, redis.url(), seconds=6) as run:
        redis.execute_command("FLUSHALL")
        await run.until("redis", "popular")
        assert run.service.get("/readyz").status == 200
        await publish_to(redis.url(), lists("r1"))
        assert await run.until("redis") < RECOVERY_S
    run.answered("redis", source="popular")


async def test_redis_is_full_in_the_middle_of_a_publish(tmp_path: Path, redis: RedisServer) -> None:
    await publish_to(redis.url(), lists("r0"))
    store = connect(redis.url())

    async def too_much() -> AsyncIterator[list[Row]]:
        yield [Row("popular:", a_list("p"))]
        for start in range(0, 200_000, 1000):
            yield [Row(f"user:{n:06}", b"x" * 1000) for n in range(start, start + 1000)]

    async with under_load(tmp_path, redis.url(), seconds=6) as run:
        used = int(redis.execute_command("INFO", "memory")["used_memory"])
        redis.execute_command("CONFIG", "SET", "maxmemory", str(used + 20_000_000))
        with pytest.raises(StoreFull):
            await publish(store, too_much(), plan=Plan(1, 1000), about={})
        with pytest.raises(StoreFull, match="needs"):
            await publish(store, too_much(), plan=Plan(200_000, 200_000_000), about={})
        await prune(store)
        assert int(redis.execute_command("INFO", "memory")["used_memory"]) < used + 5_000_000
    run.answered("redis")
    assert set(run.result.seen["source"]) == {"personal"}  # type: ignore[union-attr]  # it is there by now
    await store.close()


async def test_a_publisher_is_killed_half_way(tmp_path: Path, redis: RedisServer) -> None:
    release = await publish_to(redis.url(), lists("r0"))
    program = f"""
import asyncio
from stores.connect import connect
from stores.lifecycle import publish
from stores.store import Plan, Row
async def batches():
    yield [Row("popular:", b"x")]
    for start in range(0, 10_000_000, 1000):
        yield [Row(f"user:{{n:08}}", b"x" * 500) for n in range(start, start + 1000)]
asyncio.run(publish(connect({redis.url()!r}), batches(), plan=Plan(1, 1), about={{}}))
"""
    async with under_load(tmp_path, redis.url(), seconds=4) as run:
        publisher = subprocess.Popen([sys.executable, "-c", program])  # noqa: ASYNC220 -- starting one takes no time
        await asyncio.sleep(1.5)
        publisher.kill()
        publisher.wait()
    run.answered("redis")
    assert run.result is not None
    assert set(run.result.seen["release"]) == {release}
    store = connect(redis.url())
    assert [entry.state for entry in (await store.catalogue()).releases] == [State.LIVE, State.DRAFT]
    await store.close()


async def test_a_wrong_password_is_told_without_the_password_and_serves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_running(folder, password="right") as redis:
        url = redis.url(user=":wrong-secret@")
        with serving(tmp_path, "--store", url) as service:
            answer = service.get("/v1/recommendations/1")
            assert answer.status == 503
            assert "password" in answer.json["detail"]
            assert service.get("/readyz").status == 503
            await asyncio.sleep(1)
            log = service.log.read_text()
            assert log.count('"level":"warning"') == 1
            assert "wrong-secret" not in log + answer.body.decode()


async def test_a_read_only_replica_serves_and_cannot_be_published_to(tmp_path: Path, redis: RedisServer) -> None:
    await publish_to(redis.url(), lists("r0"))
    folder = tmp_path / "replica"
    folder.mkdir()
    with redis_running(folder, "--replicaof", "127.0.0.1", str(redis.port)) as replica:
        while "master_link_status:up" not in str(replica.execute_command("INFO", "replication")).replace("': '", ":"):
            await asyncio.sleep(0.05)
        async with under_load(tmp_path, replica.url(), seconds=2) as run:
            with pytest.raises(StoreUnavailable, match="replica"):
                await publish_to(replica.url(), lists("r1"))
        run.answered("redis")


async def test_a_policy_that_may_drop_lists_is_told_by_readyz(tmp_path: Path, redis: RedisServer) -> None:
    await publish_to(redis.url(), lists("r0"))
    redis.execute_command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    redis.execute_command("CONFIG", "SET", "maxmemory", "100mb")
    with serving(tmp_path, "--store", redis.url()) as service:
        (tier,) = service.get("/readyz").json["tiers"]
        assert "allkeys-lru" in tier["warnings"][0]


async def test_with_redis_dead_a_local_tier_answers_everything_and_redis_is_used_again_when_it_is_back(
    tmp_path: Path, redis: RedisServer
) -> None:
    await publish_to(redis.url(), lists("r0"))
    await publish_to(f"file://{tmp_path}/store", lists("f0"))
    async with under_load(tmp_path, redis.url(), f"file://{tmp_path}/store", seconds=9) as run:
        redis.kill()
        await run.until("file")
        await asyncio.sleep(2)
        redis.start()
        assert await run.until("redis") < RECOVERY_S
    run.answered("redis", "file")
    assert run.result is not None
    assert set(run.result.seen["source"]) == {"personal"}


async def test_a_service_that_starts_with_redis_dead_serves_from_a_local_tier_or_not_at_all(
    tmp_path: Path, redis: RedisServer
) -> None:
    await publish_to(redis.url(), lists("r0"))
    await publish_to(f"file://{tmp_path}/store", {"user:1": a_list("local")})
    redis.kill()
    with serving(tmp_path, "--store", redis.url()) as alone:
        assert alone.get("/v1/recommendations/1").status == 503
        assert alone.get("/readyz").status == 503
        assert alone.get("/livez").status == 200
        redis.start()
        run = Run(alone)
        deadline = time.monotonic() + RECOVERY_S
        while alone.get("/readyz").status != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert await run.until("redis") < RECOVERY_S
    redis.kill()
    with serving(tmp_path, "--store", redis.url(), "--store", f"file://{tmp_path}/store") as tiered:
        assert tiered.get("/v1/recommendations/1").json["tier"] == "file"
        assert tiered.get("/readyz").json["status"] == "degraded"
