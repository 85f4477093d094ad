"""An emulated Cosmos DB of which a partition fails, or a release is gone or being written, as its callers see it."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
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
from tests.support.cosmos_account import Account
from tests.support.cosmos_server import signed
from tests.support.readers import USERS, lists, reading, until, until_read
from tests.support.service import publish_to
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
