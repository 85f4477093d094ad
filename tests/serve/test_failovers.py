"""Clusters, and primaries behind sentinels, that fail or are replaced: what a worker answers meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.crc import key_slot

from hotplate.serve.reader import EncodedList, TieredReader
from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.keys import USER
from hotplate.stores.publication import publish
from hotplate.stores.redis.layout import Keys
from hotplate.stores.store import Plan, Row
from hotplate.stores.verification import verify
from tests.support.readers import USERS, WAIT_S, lists, reading, until
from tests.support.redis_cluster import PRIMARIES, RedisCluster, running_cluster
from tests.support.redis_sentinel import SentinelDeployment, sentinel_deployment
from tests.support.service import publish_to
from tests.support.soak import long
from tests.support.stores import as_bodies, ref_of

# How many lists a second are read.
RATE = 200
# A publish that takes about three seconds, so that what happens meanwhile happens in its midst.
BATCHES, BATCH, PAUSE_S = 60, 100, 0.05


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
                answer = await self.reader.personal(str(user))
                assert answer.source == "popular" or f'-{user}"'.encode() in answer.body, "somebody else's list"
                self.answers.append(answer)
                await asyncio.sleep(1 / RATE)

    @property
    def misses(self) -> int:
        """How many lists were said not to exist, of users who all have one."""
        return sum(answer.status == "unknown" for answer in self.answers)

    async def until_personal(self, release: str | None = None) -> None:
        """Wait until as many answers in a row as there are users are their own, out of *release* where given."""

        async def is_so() -> bool:
            last = self.answers[-USERS:]
            releases = {answer.served.id for answer in last}
            return {answer.source for answer in last} == {"personal"} and releases == {release or last[-1].served.id}

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


class Publisher:
    """Publishes a release in small batches, as often as it takes, each time going on where it can."""

    def __init__(self, url: str, mark: str) -> None:
        self.interruptions = list[str]()
        self.put = 0
        self._store = connect(url)
        of = lists(mark)
        rows = [Row(key, of[key]) for key in of] + [
            Row(f"user:more-{n:06}", of["user:1"]) for n in range(BATCHES * BATCH)
        ]
        self._rows = as_bodies(sorted(rows, key=lambda row: row.key.encode()))

    async def batches(self) -> AsyncIterator[list[Row]]:
        for start in range(0, len(self._rows), BATCH):
            yield self._rows[start : start + BATCH]
            self.put = start
            await asyncio.sleep(0 if self.interruptions else PAUSE_S)

    async def publish(self) -> ReleaseId:
        """Return the release, once it is live and has been read back whole."""
        try:
            async with asyncio.timeout(3 * WAIT_S):
                release = await self._publish()
                while True:
                    with suppress(StoreUnavailable):  # a primary may be replaced once more
                        await verify(self._store, await ref_of(self._store, release))
                        break
        finally:
            await self._store.close()
        return release

    async def _publish(self) -> ReleaseId:
        plan, resume = Plan(len(self._rows), 1_000_000), None
        while True:
            try:
                done = await publish(self._store, self.batches(), plan=plan, about={}, resume=resume)
            except StoreUnavailable as error:
                self.interruptions.append(str(error))
                resume = await self._draft()
            else:
                return ReleaseId(done.manifest.release)

    async def _draft(self) -> ReleaseId | None:
        while True:
            try:
                found = await self._store.catalogue()
            except StoreError:
                await asyncio.sleep(0.1)
            else:
                return next((entry.id for entry in found.releases if entry.state == "draft"), None)

    async def until_half(self) -> None:
        async def is_so() -> bool:
            return self.put > len(self._rows) / 2

        await until(is_so, "the publish does not go on")


pytestmark = pytest.mark.soak

PREFIX = "test"

# Enough that a machine which stands still for a moment makes no list late.
BUDGET_S = 5.0

# Of tests in which a replica is elected: the shortest after which a busy machine elects none too many.
NODE_TIMEOUT_MS = 2000


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    with running_cluster(tmp_path, node_timeout_ms=NODE_TIMEOUT_MS) as running:
        yield running


def slot_of(user: int, release: ReleaseRef) -> int:
    """Return the slot of a user's list, which is another one in each release."""
    return key_slot(Keys(PREFIX).release(release).rows([f"{USER}{user}"])[0].encode())


def others_than(slots: set[int], watch: Watch) -> set[int]:
    """Return who got the popular list though the list of their own, in the release that was read, is elsewhere."""
    return {
        place % USERS
        for place, answer in enumerate(watch.answers)
        if answer.source == "popular" and slot_of(place % USERS, answer.served.ref) not in slots
    }


async def test_killed_primary_costs_only_its_users_popular_lists_until_failover(cluster: RedisCluster) -> None:
    url = cluster.url("rediss+cluster", PREFIX)
    await publish_to(url, lists("r0"))
    killed = cluster.owner(f"{{{PREFIX}}}:catalogue")
    slots = cluster.slots(killed)
    async with watched(url, BUDGET_S) as watch:
        publisher = Publisher(url, "r1")
        publishing = asyncio.create_task(publisher.publish())
        await publisher.until_half()
        await asyncio.to_thread(killed.server.kill)
        await asyncio.to_thread(cluster.wait_until, lambda: len(cluster.primaries) == PRIMARIES)
        second = await publishing
        await watch.until_personal(second)
        assert watch.misses == 0
        assert others_than(slots, watch) == set()
        await asyncio.to_thread(killed.server.start)
        await asyncio.to_thread(cluster.wait_until, cluster.every_primary_has_a_replica)
        await watch.until_personal(second)
        assert others_than(slots, watch) == set()


PLAIN, OVER_TLS, GUARDED = ((), False), ((), True), (("--min-replicas-to-write", "1"), False)


@pytest.fixture
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SentinelDeployment]:
    options, tls = getattr(request, "param", PLAIN)
    # Long enough for a machine that is busy: no second failover is wanted.
    with sentinel_deployment(tmp_path, *options, tls=tls, down_after_ms=3000) as running:
        yield running


def killed(deployment: SentinelDeployment) -> None:
    before = deployment.primary
    before.kill()
    deployment.wait_for_other(before)


def replaced(deployment: SentinelDeployment) -> None:
    deployment.fail_over()


@pytest.mark.parametrize(
    ("deployment", "fail_over"),
    [(OVER_TLS, killed), (PLAIN, replaced), pytest.param(GUARDED, replaced, marks=long)],
    indirect=["deployment"],
    ids=["killed, over TLS", "replaced", "replaced, with min-replicas-to-write"],
)
async def test_a_failover_in_the_midst_of_a_publish_loses_nothing(
    deployment: SentinelDeployment, fail_over: Callable[[SentinelDeployment], None]
) -> None:
    await publish_to(deployment.url(), lists("r0"))
    async with watched(deployment.url()) as watch:
        publisher = Publisher(deployment.url(), "r1")
        publishing = asyncio.create_task(publisher.publish())
        await publisher.until_half()
        await asyncio.to_thread(fail_over, deployment)
        release = await publishing
        await watch.until_personal(release)
        assert watch.misses == 0


async def test_replica_promoted_with_half_a_release_serves_the_previous_one(deployment: SentinelDeployment) -> None:
    url, primary = deployment.url(), deployment.primary
    first = await publish_to(url, lists("r0"))
    async with watched(url) as watch:
        publisher = Publisher(url, "r1")
        publishing = asyncio.create_task(publisher.publish())
        await publisher.until_half()
        primary.execute_command("WAIT", "2", "5000")
        for replica in deployment.replicas:  # which gets nothing any more
            replica.execute_command("REPLICAOF", "127.0.0.1", "1")
        await watch.until_personal(await publishing)
        await asyncio.to_thread(killed, deployment)
        await watch.until_personal(first)
        assert watch.misses == 0
        third = await publish_to(url, lists("r2"))
        await watch.until_personal(third)
