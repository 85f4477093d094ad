"""Clusters, and primaries behind sentinels, that fail or are replaced: answers of a worker."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.crc import key_slot

from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.reader import TieredReader
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import USER
from hotplate.stores.redis.keys import Keys
from tests.support.readers import USERS, lists, reading, until
from tests.support.redis_cluster import RedisCluster, running_cluster
from tests.support.redis_sentinel import sentinel_deployment
from tests.support.service import publish_to

# How many lists a second are read.
RATE = 200


class Watch:
    """Reads list after list, each of which must be its user's own or popular, and keeps them.

    Users come in turn, so that the answers' places say whose they are.
    """

    def __init__(self, reader: TieredReader) -> None:
        self.reader = reader
        self.answers = list[EncodedList]()

    async def run(self) -> None:
        while True:
            for user in range(USERS):
                answer = await self.reader.read(USER, str(user))
                assert answer.source == "popular" or f'-{user}"'.encode() in answer.body, "somebody else's list"
                self.answers.append(answer)
                await asyncio.sleep(1 / RATE)

    @property
    def misses(self) -> int:
        """The number of lists reported as absent, of users who all have one."""
        return sum(answer.status == "unknown" for answer in self.answers)

    async def until_popular(self) -> None:
        """Wait until one of as many answers as there are users is the popular list."""

        async def is_so() -> bool:
            return any(answer.source == "popular" for answer in self.answers[-USERS:])

        await until(is_so, "no popular list")

    async def until_personal(self, release: str | None = None) -> None:
        """Wait until as many answers in a row as there are users are their own, out of *release* where given."""

        async def is_so() -> bool:
            last = self.answers[-USERS:]
            releases = {answer.release.id for answer in last}
            return {answer.source for answer in last} == {"personal"} and releases == {release or last[-1].release.id}

        await until(is_so, f"no personal lists of {release or 'a release'}")


@asynccontextmanager
async def watched(url: str, budget_s: float = 0.05) -> AsyncIterator[Watch]:
    """Read what *url* has as a worker does, all the time until the block ends."""
    async with reading(url, budget_s=budget_s) as reader:
        watch = Watch(reader)
        watching = asyncio.create_task(watch.run())
        try:
            await watch.until_personal()
            yield watch
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching


pytestmark = pytest.mark.soak

PREFIX = "test"

# Enough that a machine which stands still for a moment makes no list late.
BUDGET_S = 30.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    with running_cluster(tmp_path) as running:
        yield running


def slot_of(user: int, release: ReleaseRef) -> int:
    """Return the slot of a user's list, which is another one in each release."""
    return key_slot(Keys(PREFIX).release(release).located([f"{USER}{user}"]).names[0])


def others_than(slots: set[int], watch: Watch) -> set[int]:
    """Return the users who got the popular list although their list, in the release read, is on another node."""
    return {
        place % USERS
        for place, answer in enumerate(watch.answers)
        if answer.source == "popular" and slot_of(place % USERS, answer.release.ref) not in slots
    }


@pytest.mark.usefixtures("patience")
async def test_killed_primary_costs_only_its_users_popular_lists_until_failover(cluster: RedisCluster) -> None:
    url = cluster.url("rediss+cluster", PREFIX)
    await publish_to(url, lists("r0"))
    killed = cluster.owner(f"{{{PREFIX}}}:catalogue")
    slots = cluster.slots(killed)
    async with watched(url, BUDGET_S) as watch:
        await asyncio.to_thread(killed.server.kill)
        await watch.until_popular()
        await asyncio.to_thread(cluster.take_over, killed)
        second = await publish_to(url, lists("r1"))
        await watch.until_personal(second)
        assert watch.misses == 0
        assert others_than(slots, watch) == set()
        await asyncio.to_thread(killed.server.start)
        await asyncio.to_thread(cluster.wait_until, cluster.every_primary_has_a_replica)
        await watch.until_personal(second)
        assert others_than(slots, watch) == set()


@pytest.mark.parametrize("tls", [True, False], ids=["killed, over TLS", "replaced"])
async def test_a_failover_behind_sentinels_loses_no_list(tmp_path: Path, *, tls: bool) -> None:
    with sentinel_deployment(tmp_path, tls=tls) as deployment:
        url = deployment.url()
        before = deployment.primary
        await publish_to(url, lists("r0"))
        async with watched(url) as watch:
            if tls:
                await asyncio.to_thread(before.kill)
            await asyncio.to_thread(deployment.fail_over)
            await watch.until_personal(await publish_to(url, lists("r1")))
            assert watch.misses == 0
