"""An emulated Cosmos DB of which a partition fails, or a release is gone or being written, as its callers see it."""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

from bench.cosmos_emulator.partition_keys import boundary, effective_key
from serve.reader import TieredReader
from stores.catalogue import ReleaseId
from stores.connect import connect
from stores.cosmos.items import container_of, name_of
from stores.errors import StoreThrottled
from stores.store import Store
from stores.verification import verify
from tests.support.cosmos_account import Account
from tests.support.cosmos_server import signed
from tests.support.loaded_service import USERS, Run, lists, reading, under_load, until, until_read
from tests.support.service import a_list, publish_to
from tests.support.soak import scaled
from tests.support.stores import ref_of

TIER = "cosmos+http"
# The partition that fails: the catalogue's container has only one, 0.
HOT = "1"

THROTTLED = "hotplate_cosmos_emulator_partition_throttled_total"


def partition_of(user: int) -> str:
    """Return which of two partitions holds a user's list."""
    return "0" if effective_key([name_of(f"user:{user}")], 2) < boundary(1, 2, 2) else HOT


WELL, SICK = (tuple(n for n in range(USERS) if (partition_of(n) == HOT) == hot) for hot in (False, True))


@pytest.fixture
def url(cosmos: Account) -> Iterator[str]:
    """A database whose releases have two partitions from the start, and served with 200 RU/s in each."""
    yield cosmos.url(secrets.token_hex(4), max_ru="12000")
    cosmos.misbehave()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = connect(url)
    yield opened
    await opened.close()


async def post(run: Run, users: Sequence[int]) -> dict[int, str]:
    """Request the users' lists at once; return where each came from."""
    body = json.dumps({"users": [str(user) for user in users]}).encode()
    answer = await asyncio.to_thread(run.service.request, "POST", "/v1/recommendations", body)
    assert answer.status == 200
    return {int(one["user"]): one["source"] for one in answer.json["results"]}


async def until_split(run: Run) -> None:
    """Wait until a request for all users is answered by the lists of those whose partition is well, and no others."""

    async def is_so() -> bool:
        many = await post(run, range(USERS))
        return {user for user in range(USERS) if many[user] == "personal"} == set(WELL)

    await until(is_so, "the lists of the partition that is well are not read")


async def sources(reader: TieredReader, users: Sequence[int]) -> set[str]:
    return {(await reader.personal(str(user))).source for user in users}


async def hammer(store: Store, release: ReleaseId, key: str) -> None:
    """Read one key as often as its partition allows, until cancelled."""
    found = await ref_of(store, release)
    while True:
        with suppress(StoreThrottled):
            await store.get_many(found, [key] * store.batch, timeout_s=1)  # as lookups do: without, it would wait


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_slow_partition_costs_its_own_users_their_lists_and_no_others(cosmos: Account, url: str) -> None:
    await publish_to(url, lists("r0"))
    async with reading(url, budget_s=2.0) as reader:
        await until_read(reader, TIER)
        cosmos.misbehave({"kind": "slow", "partition": HOT, "delay_ms": 30_000})
        assert await sources(reader, SICK[:10]) == {"popular"}
        assert await sources(reader, WELL) == {"personal"}
        many = [answer.source for answer in await reader.personal_many([str(user) for user in range(USERS)])]
        assert [user for user in range(USERS) if many[user] == "popular"] == list(SICK)
        assert not reader.tiers[0].breaker.is_open
        cosmos.misbehave()
        await until_read(reader, TIER, user=str(SICK[0]))


async def test_a_hot_key_spends_what_its_partition_has_and_nothing_of_the_others(
    cosmos: Account, url: str, store: Store
) -> None:
    live = ReleaseId(await publish_to(url, lists("r0")))
    async with reading(url, budget_s=0.5) as reader:
        hammering = asyncio.create_task(hammer(store, live, f"user:{SICK[0]}"))

        container = container_of(await ref_of(store, live))

        async def is_hot() -> bool:
            return cosmos_throttled(cosmos, container)[HOT] > 100

        await until(is_hot, "the partition has request units left")
        assert await sources(reader, WELL) == {"personal"}
        await stop(hammering)
        await until_read(reader, TIER, user=str(SICK[0]))
    assert cosmos_throttled(cosmos, container)["0"] == 0


def cosmos_throttled(cosmos: Account, container: str) -> Counter[str]:
    """Return how many requests each partition of a container refused."""
    counted = {labels[1]: round(count) for labels, count in cosmos.metric(THROTTLED).items() if container in labels[0]}
    return Counter(counted)


@pytest.mark.parametrize("what", ["its container", "the database"])
async def test_a_release_that_is_deleted_leaves_its_popular_lists_and_the_next_is_followed(
    cosmos: Account, what: str
) -> None:
    url = cosmos.url(secrets.token_hex(4))
    first = await publish_to(url, lists("r0"))
    async with reading(url) as reader:
        await delete(cosmos, url, first, what)
        await until_read(reader, TIER, "popular")

        async def says_why() -> bool:
            await reader.personal("1")
            return "is not in this store" in (reader.tiers[0].error or "")

        await until(says_why, "the reason is not given")
        second = await publish_to(url, lists("r1"))

        async def is_followed() -> bool:
            return (await reader.personal("1")).served.id == second

        await until(is_followed, "the next release is not followed")
        await until_read(reader, TIER)


async def delete(cosmos: Account, url: str, release: str, what: str) -> None:
    """Delete a release's container behind the service's back, or the whole database."""
    if what == "its container":
        store = connect(url)
        await store.erase((await store.catalogue()).find(ReleaseId(release)).ref)
        await store.close()
        return
    link = f"dbs/{urlsplit(url).path.strip('/')}"
    request = Request(f"{cosmos.emulator.endpoint}{link}/", headers=signed("DELETE", "dbs", link), method="DELETE")
    await asyncio.to_thread(lambda: urlopen(request, timeout=60).close())


@pytest.mark.soak
async def test_under_load_a_slow_partition_costs_no_other_users_lists(
    tmp_path: Path, cosmos: Account, url: str
) -> None:
    await publish_to(url, lists("r0"))
    async with under_load(tmp_path, url, options=("--budget", "0.2")) as run:
        for _ in range(scaled(1)):
            cosmos.misbehave({"kind": "slow", "partition": HOT, "delay_ms": 1000})
            await run.windows(1)
            await run.until_personal(WELL)
            assert await run.personal(SICK) == 0
            await until_split(run)
            await run.until_counted("hotplate_store_failures_total", 20, kind="timeout")
            assert await run.counted("hotplate_breaker_open") == 0
            cosmos.misbehave()
            await run.until_personal(SICK)
    run.answered(TIER, source="popular")
    assert run.logged('"level":"warning"') <= 1, "of the two partitions that the URL names"


@pytest.mark.soak
async def test_under_load_a_hot_key_costs_no_other_users_lists(
    tmp_path: Path, cosmos: Account, url: str, store: Store
) -> None:
    live = ReleaseId(await publish_to(url, lists("r0")))
    async with under_load(tmp_path, url, options=("--budget", "1")) as run:
        hammering = asyncio.create_task(hammer(store, live, f"user:{SICK[0]}"))
        for _ in range(scaled(2)):
            await run.windows(2)  # these requests spend, too: a quarter of what the other partition has in a second
            await run.until_personal(WELL)
            many = await post(run, range(USERS))
            assert {many[user] for user in WELL} == {"personal"}
        await run.until_counted("hotplate_store_throttled_total", 50, store=TIER)
        refused = await run.counted("hotplate_store_throttled_total", store=TIER)
        assert await run.counted("hotplate_store_failures_total", store=TIER) <= refused / 20, "refused, not failed"
        assert await run.counted("hotplate_breaker_open") == 0
        await stop(hammering)
        await run.until_personal(SICK)
    run.answered(TIER, source="popular")
    throttled = cosmos_throttled(cosmos, container_of(await ref_of(store, live)))
    assert (throttled["0"], throttled[HOT] > 100) == (0, True)


@pytest.mark.soak
@pytest.mark.parametrize("what", ["its container", "the database"])
async def test_under_load_no_request_is_lost_to_a_release_that_is_deleted(
    tmp_path: Path, cosmos: Account, what: str
) -> None:
    url = cosmos.url(secrets.token_hex(4))
    first = await publish_to(url, lists("r0"))
    async with under_load(tmp_path, url) as run:
        await delete(cosmos, url, first, what)
        await run.until(TIER, "popular")
        assert "is not in this store" in await run.until_status("degraded")
        reads, windows = cosmos.requests("read item"), len(run.results)
        await run.windows(scaled(2))
        requests = sum(result.due for result in run.results[windows:])
        assert cosmos.requests("read item") - reads < requests / 10, "a storm of reads"
        await run.until_counted("hotplate_store_operation_duration_seconds_count", 5, outcome="gone")
        second = await publish_to(url, lists("r1"))
        await run.until_release(second)
        await run.until(TIER)
        await run.until_status("ready")
    run.answered(TIER, source="popular")
    assert set(run.seen("release")) == {first, second}
    assert (run.logged("circuit open"), run.logged("circuit closed")) == (1, 1)


@pytest.mark.soak
async def test_with_less_throughput_than_the_load_takes_it_is_all_spent_on_personal_lists_and_the_rest_are_popular(
    tmp_path: Path, cosmos: Account
) -> None:
    url = cosmos.url(secrets.token_hex(4), ru="400")
    long = {key: a_list(*(f"{key}-{n}" for n in range(500))) for key in lists("")}
    await publish_to(url, long)
    async with under_load(tmp_path, url) as run:
        before, began = await run.counted("hotplate_store_request_units_total"), time.monotonic()
        await run.windows(scaled(4))
        spent_ru = await run.counted("hotplate_store_request_units_total") - before
        took_s = time.monotonic() - began
        await run.until_counted("hotplate_store_throttled_total", 50)
    run.answered(TIER, source="popular")
    assert 0.5 < spent_ru / (took_s * 400) < 1.3
    assert 0.1 < run.share("personal") < 0.9
    assert run.logged("circuit open") <= 1 + took_s / 60


@pytest.mark.soak
async def test_a_publish_that_has_too_little_throughput_slows_down_and_readers_do_not_notice(
    tmp_path: Path, cosmos: Account
) -> None:
    url = cosmos.url(secrets.token_hex(4), ru="400")
    first = await publish_to(url, lists("r0"))
    many = {f"user:{n}": a_list(f"r1-{n}", "b", "c") for n in range(250)}
    async with under_load(tmp_path, url, options=("--budget", "1")) as run:
        cosmos.misbehave({"kind": "throttle", "operation": "upsert item", "share": 0.05, "retry_after_ms": 100})
        began = time.monotonic()
        second = await publish_to(url, many)
        assert time.monotonic() - began > 3, "250 rows of more than 5 RU each"
        cosmos.misbehave()
        await run.until_release(second)
        assert await run.counted("hotplate_store_throttled_total") == 0
        assert await run.counted("hotplate_store_failures_total") == 0
    run.answered(TIER)
    assert set(run.seen("release")) == {first, second}
    assert run.share("personal") == 1
    store = connect(url)
    await verify(store, (await store.catalogue()).find(ReleaseId(second)).ref)
    await store.close()
