"""A service on an emulated Cosmos DB of which a part is sick, gone or being written, and what of it callers see."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

from bench.cosmos_emulator.partition_keys import boundary, effective_key
from stores.catalogue import ReleaseId
from stores.connect import connect
from stores.cosmos.items import name_of
from stores.errors import StoreThrottled
from stores.store import Store
from stores.verification import verify
from tests.serve.test_flip import USERS, lists
from tests.support.cosmos_drivers import Account, account
from tests.support.cosmos_server import signed
from tests.support.loaded_service import RECOVERY_S, Run, under_load
from tests.support.service import a_list, publish_to
from tests.support.stores import ref

TIER = "cosmos+http"
HOT = "1"
"""The partition that is sick: the catalogue's container has only one, 0."""

THROTTLED = "hotplate_cosmos_emulator_partition_throttled_total"


def partition_of(user: int) -> str:
    """Return which of two partitions holds a user's list."""
    return "0" if effective_key([name_of(f"user:{user}")], 2) < boundary(1, 2, 2) else HOT


CALM, SICK = (tuple(n for n in range(USERS) if (partition_of(n) == HOT) == hot) for hot in (False, True))


@pytest.fixture(scope="module")
def cosmos() -> Iterator[Account]:
    """An account for all tests of this file; each takes a database of its own."""
    with account(None) as one:
        yield one


@pytest.fixture
def url(cosmos: Account) -> Iterator[str]:
    """A database whose releases are born with two partitions, and served with 200 RU/s in each."""
    yield cosmos.url(secrets.token_hex(4), max_ru="12000")
    cosmos.misbehave()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = connect(url)
    yield opened
    await opened.close()


async def post(run: Run, users: Sequence[int]) -> dict[int, str]:
    """Ask for the users' lists at once; return where each came from."""
    body = json.dumps({"users": [str(user) for user in users]}).encode()
    answer = await asyncio.to_thread(run.service.ask, "POST", "/v1/recommendations", body)
    assert answer.status == 200
    return {int(one["user"]): one["source"] for one in answer.json["results"]}


async def test_a_slow_partition_costs_its_own_users_their_lists_and_nobody_else(
    tmp_path: Path, cosmos: Account, url: str
) -> None:
    await publish_to(url, lists("r0"))
    async with under_load(tmp_path, url, seconds=6) as run:
        cosmos.misbehave({"kind": "slow", "partition": HOT, "delay_ms": 1000})
        await asyncio.sleep(1)
        assert await run.personal(CALM) == 1
        assert await run.personal(SICK) == 0
        sources = await post(run, range(USERS))
        assert {sources[user] for user in CALM} == {"personal"}
        assert {sources[user] for user in SICK} == {"popular"}
        assert await run.counted("hotplate_store_failures_total", kind="timeout") > 20
        assert await run.counted("hotplate_breaker_open") == 0
        cosmos.misbehave()
        assert await run.until_personal(SICK) < RECOVERY_S
    run.answered(TIER, source="popular")
    assert run.logged('"level":"warning"') <= 1, "of the two partitions that the URL asks for"


async def test_a_hot_key_spends_what_its_partition_has_and_nothing_of_the_others(
    tmp_path: Path, cosmos: Account, url: str, store: Store
) -> None:
    live = ReleaseId(await publish_to(url, lists("r0")))
    async with under_load(tmp_path, url, seconds=6) as run:
        hammering = asyncio.create_task(hammer(store, live, f"user:{SICK[0]}"))
        for _ in range(2):
            await asyncio.sleep(1.5)  # these requests spend, too: a quarter of what the calm partition has in a second
            assert await run.personal(CALM) == 1
            sources = await post(run, range(USERS))
            assert {sources[user] for user in CALM} == {"personal"}
        assert await run.counted("hotplate_store_throttled_total", store=TIER) > 50
        assert await run.counted("hotplate_store_failures_total", store=TIER) == 0
        assert await run.counted("hotplate_breaker_open") == 0
        hammering.cancel()
        assert await run.until_personal(SICK) < RECOVERY_S
    run.answered(TIER, source="popular")
    told = {labels[1]: count for labels, count in cosmos.told(THROTTLED).items() if live in labels[0]}
    assert (told["0"], told[HOT] > 100) == (0, True)


async def hammer(store: Store, release: ReleaseId, key: str) -> None:
    """Read one key as often as its partition allows, until cancelled."""
    while True:
        with suppress(StoreThrottled):
            await store.get_many(ref(release), [key] * store.batch)


@pytest.mark.parametrize("what", ["its container", "the database"])
async def test_a_release_that_is_deleted_while_it_is_served_leaves_its_popular_lists_and_the_next_is_followed(
    tmp_path: Path, cosmos: Account, what: str
) -> None:
    url = cosmos.url(secrets.token_hex(4))
    first = await publish_to(url, lists("r0"))
    async with under_load(tmp_path, url, seconds=8) as run:
        if what == "its container":
            store = connect(url)
            await store.erase(ReleaseId(first))
            await store.close()
        else:
            delete_database(cosmos, url)
        await run.until(TIER, "popular")
        assert "is not in this store" in await run.until_status("degraded")
        before = cosmos.asked("read item")
        await asyncio.sleep(2)
        assert cosmos.asked("read item") - before < 20, "a storm of reads"
        assert await run.counted("hotplate_store_operation_duration_seconds_count", outcome="gone") > 5
        second = await publish_to(url, lists("r1"))
        await run.until_release(second)
        assert await run.until(TIER) < RECOVERY_S
        await run.until_status("ready")
    run.answered(TIER, source="popular")
    assert run.result is not None
    assert set(run.result.seen["release"]) == {first, second}
    assert (run.logged("is spared until it answers again"), run.logged('answers again"')) == (1, 1)


def delete_database(cosmos: Account, url: str) -> None:
    link = f"dbs/{urlsplit(url).path.strip('/')}"
    asked = Request(f"{cosmos.emulator.endpoint}{link}/", headers=signed("DELETE", "dbs", link), method="DELETE")
    urlopen(asked, timeout=5).close()


async def test_with_less_throughput_than_the_load_takes_it_is_all_spent_on_personal_lists_and_the_rest_are_popular(
    tmp_path: Path, cosmos: Account
) -> None:
    url = cosmos.url(secrets.token_hex(4), ru="400")
    long = {key: a_list(*(f"{key}-{n}" for n in range(500))) for key in lists("")}
    await publish_to(url, long)
    async with under_load(tmp_path, url, seconds=6) as run:
        before = await run.counted("hotplate_store_request_units_total")
        await asyncio.sleep(4)
        spent_ru = await run.counted("hotplate_store_request_units_total") - before
        assert await run.counted("hotplate_store_throttled_total") > 50
    run.answered(TIER, source="popular")
    assert 0.7 < spent_ru / (4 * 400) < 1.3
    assert 0.1 < run.share("personal") < 0.9
    assert run.logged("is spared until it answers again") <= 1


async def test_a_publish_that_has_too_little_throughput_slows_down_and_readers_do_not_notice(
    tmp_path: Path, cosmos: Account
) -> None:
    url = cosmos.url(secrets.token_hex(4), ru="400")
    first = await publish_to(url, lists("r0"))
    many = {f"user:{n}": a_list(f"r1-{n}", "b", "c") for n in range(250)}
    async with under_load(tmp_path, url, seconds=10) as run:
        cosmos.misbehave({"kind": "throttle", "operation": "upsert item", "share": 0.05, "retry_after_ms": 100})
        began = time.monotonic()
        second = await publish_to(url, many)
        assert time.monotonic() - began > 3, "250 rows of more than 5 RU each"
        await run.until_release(second)
        assert await run.counted("hotplate_store_throttled_total") == 0
        assert await run.counted("hotplate_store_failures_total") == 0
    run.answered(TIER)
    assert run.result is not None
    assert set(run.result.seen["release"]) == {first, second}
    assert run.share("personal") == 1
    store = connect(url)
    await verify(store, ReleaseId(second))
    await store.close()
