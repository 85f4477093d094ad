"""Redis killed, stopped, slowed, cut off or emptied, and an emulated Cosmos DB that fails: what their readers see."""

import asyncio
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

import hotplate
from hotplate.serve.reader import TieredReader
from tests.support.cosmos_account import Account, emulated_account
from tests.support.readers import USERS, WAIT_S, lists, reading, until_read
from tests.support.readers import until as until_so
from tests.support.redis_server import RedisServer
from tests.support.redis_server import running as redis_running
from tests.support.service import a_list, publish_to, serving, until
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


async def test_a_redis_that_is_emptied_leaves_popular_lists_until_the_next_publish(redis: RedisServer) -> None:
    await publish_to(redis.url(), lists("r0"))
    async with reading(redis.url()) as reader:
        redis.execute_command("FLUSHALL")
        await until_read(reader, "redis", "popular")
        second = await publish_to(redis.url(), lists("r1"))
        assert (await until_read(reader, "redis")).served.id == second


async def test_service_started_with_redis_down_serves_only_from_a_local_tier(
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
        until(alone.is_ready, "the service is not ready")
        assert alone.get("/v1/recommendations/1").json["tier"] == "redis"


async def test_a_wrong_password_is_named_without_the_password_and_serves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    said = list[str]()
    with redis_running(folder, password="right") as redis:
        opened = hotplate.open(redis.url(user=":wrong-secret@"))

        async def is_named() -> bool:
            with pytest.raises(hotplate.NotReady) as raised:
                await opened.personal("1")
            said.append(str(raised.value))
            return "password" in said[-1]

        async with opened:
            await until_so(is_named, "the password is not named")
            await asyncio.sleep(0.7)  # it is tried several times
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "wrong-secret" not in caplog.text + "".join(said)


TIER = "cosmos+http"
# Where an answer of some 930 bytes may be cut; its head has 530.
IN_HEAD, IN_BODY = 100, 700
# What the emulator does.
COSMOS_FAULTS: dict[str, dict[str, object]] = {
    "429": {"kind": "throttle"},
    "503": {"kind": "unavailable"},
    "reads of 1 s": {"kind": "slow", "delay_ms": 1000},
    "connections cut": {"kind": "reset"},
}


@pytest.fixture(scope="module")
def cosmos() -> Iterator[Account]:
    """An account of this file's own, as it is disturbed; each test takes a database of its own."""
    with emulated_account(None) as one:
        yield one


@pytest.fixture
def url(cosmos: Account) -> Iterator[str]:
    yield cosmos.url(secrets.token_hex(4))
    cosmos.inject_faults()


def port_of(cosmos: Account) -> int:
    return int(cosmos.emulator.endpoint.rsplit(":", 1)[1].rstrip("/"))


@asynccontextmanager
async def proxied(cosmos: Account, url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Put a proxy before the account; the block gets it, and the URL that goes through it."""
    async with through(port_of(cosmos)) as proxy:
        yield proxy, url.replace(str(port_of(cosmos)), str(proxy.port))


async def sources(reader: TieredReader) -> Counter[str]:
    """Read the list of each user, one after the other; return how many came from where."""
    return Counter([(await reader.personal(str(user))).source for user in range(USERS)])


@pytest.mark.parametrize("fault", COSMOS_FAULTS)
@with_and_without_another_tier
async def test_others_answer_during_a_fault_of_an_account_and_the_account_after_it(
    tmp_path: Path, cosmos: Account, url: str, fault: str, others: tuple[str, ...]
) -> None:
    await publish_to(url, lists("r0"))
    await publish_to(f"file://{tmp_path}/store", lists("f0"))
    async with reading(url, *(f"{scheme}://{tmp_path}/store" for scheme in others)) as reader:
        await until_read(reader, TIER)
        cosmos.inject_faults(COSMOS_FAULTS[fault])
        async with asyncio.timeout(WAIT_S):
            while not reader.tiers[0].breaker.is_open:
                await reader.personal("1")
        await until_read(reader, *(("file", "personal") if others else (TIER, "popular")))
        assert reader.tiers[0].error is not None
        cosmos.inject_faults()
        await until_read(reader, TIER)


@pytest.mark.parametrize("cut_at", [IN_HEAD, IN_BODY])
async def test_an_answer_that_is_cut_is_read_again_and_never_taken_for_a_list(
    cosmos: Account, url: str, cut_at: int
) -> None:
    await publish_to(url, lists("r0"))
    async with proxied(cosmos, url) as (proxy, there):
        async with reading(there, budget_s=WAIT_S) as reader:
            await until_read(reader, TIER)
            proxy.cut_at, proxy.cut_every = cut_at, 7
            read = await sources(reader)
            assert proxy.cuts > 5
            assert read["popular"] <= proxy.cuts / 2, "a list that was cut was not read again"
            proxy.cut_at, proxy.cut_every = None, 1
        async with reading(there) as reader:
            proxy.cut_at = cut_at
            await until_read(reader, TIER, "popular")
            proxy.cut_at = None
            await until_read(reader, TIER)


async def test_lookups_share_the_next_connection_after_a_new_one_was_cut(cosmos: Account, url: str) -> None:
    await publish_to(url, lists("r0"))
    async with proxied(cosmos, url) as (proxy, there), reading(there, budget_s=WAIT_S) as reader:
        await until_read(reader, TIER)
        proxy.reset()
        proxy.cut_at = IN_HEAD
        first = asyncio.create_task(reader.personal("0"))
        while not proxy.cuts:
            await asyncio.sleep(0)
        proxy.cut_at = None
        await first
        await until_read(reader, TIER)  # lookups in the pause after the cut may get the popular list
        answers = await asyncio.gather(*(reader.personal(str(user)) for user in range(1, USERS)))
        assert {answer.source for answer in answers} == {"personal"}


@pytest.mark.soak
@pytest.mark.alone  # request units a second are compared with what is provisioned
async def test_limited_throughput_goes_to_personal_lists_and_the_rest_are_popular(cosmos: Account) -> None:
    url = cosmos.url(secrets.token_hex(4), ru="400")
    users = range(4 * USERS)  # several times as many request units as are provisioned, however slow the machine is
    keys = [*(f"user:{user}" for user in users), *lists("")]
    await publish_to(url, {key: a_list(*(f"{key}-{n}" for n in range(500))) for key in keys})
    async with reading(url, budget_s=0.5) as reader:
        await until_read(reader, TIER)
        found, before_ru, began = Counter[str](), cosmos.spent_ru(), time.monotonic()
        while time.monotonic() - began < 4:
            answers = await asyncio.gather(*(reader.personal(str(user)) for user in users))
            found += Counter(answer.source for answer in answers)
            await asyncio.sleep(0.25)
        rate_ru = (cosmos.spent_ru() - before_ru) / (time.monotonic() - began)
    assert 0.5 < rate_ru / 400 < 1.3
    assert found["popular"] > 0.1 * found.total(), found
    assert found["personal"] > 0.05 * found.total(), found
