"""A cluster that loses a node, moves slots, or has lost a seed: what a worker of the service answers meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.crc import key_slot

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.errors import ReleaseNotFound
from hotplate.stores.keys import USER
from hotplate.stores.redis.keys import Keys
from hotplate.stores.store import Store
from tests.support.failover import Publisher, Watch, watched
from tests.support.readers import USERS, lists
from tests.support.redis_cluster import PRIMARIES, RedisCluster, running_cluster
from tests.support.service import publish_to
from tests.support.soak import long

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


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = connect(url)
    try:
        yield store
    finally:
        await store.close()


async def live_in(url: str) -> ReleaseRef:
    async with opened(url) as store:
        found = (await store.catalogue()).live_ref
    assert found is not None
    return found


def slot_of(user: int, release: ReleaseRef) -> int:
    """Return the slot of a user's list, which is another one in each release."""
    (name,) = Keys(PREFIX).release(release).rows([f"{USER}{user}"])
    return key_slot(name.encode())


def popular_of(watch: Watch) -> dict[int, list[float]]:
    """Return when each user was answered with the popular list; of those who ever were."""
    found = dict[int, list[float]]()
    for place, (at, answer) in enumerate(watch.answers):
        if answer.source == "popular":
            found.setdefault(place % USERS, []).append(at)
    return found


def others_than(slots: set[int], watch: Watch) -> set[int]:
    """Return who got the popular list though the list of their own, in the release that was read, is elsewhere."""
    return {
        place % USERS
        for place, (_, answer) in enumerate(watch.answers)
        if answer.source == "popular" and slot_of(place % USERS, answer.served.ref) not in slots
    }


def said(popular: dict[int, list[float]]) -> str:
    """Say how many lists of `popular_of` there were, where they are the node's own users'."""
    return f"{sum(map(len, popular.values()))} to {len(popular)} users, the node's own"


async def test_a_primary_that_is_killed_costs_its_own_users_popular_lists_until_its_replica_is_elected(
    cluster: RedisCluster, record_property: Callable[[str, object], None]
) -> None:
    url = cluster.url("rediss+cluster", PREFIX)
    await publish_to(url, lists("r0"))
    killed = cluster.owner(f"{{{PREFIX}}}:catalogue")
    slots = cluster.slots(killed)
    async with watched(url, BUDGET_S) as watch:
        publisher = Publisher(url, "r1")
        publishing = asyncio.create_task(publisher.publish())
        await publisher.until_half()
        started = time.monotonic()
        await asyncio.to_thread(cluster.kill, killed)
        await asyncio.to_thread(cluster.wait_until, lambda: len(cluster.primaries) == PRIMARIES)
        elected = time.monotonic()
        second = await publishing
        await watch.until_personal(second)
        popular = popular_of(watch)
        assert watch.misses == 0
        assert others_than(slots, watch) == set()
        await asyncio.to_thread(cluster.restart, killed)
        await asyncio.to_thread(cluster.wait_until, cluster.every_primary_has_a_replica)
        await watch.until_personal(second)
        assert others_than(slots, watch) == set()
    last = max((at for times in popular.values() for at in times), default=started)
    record_property("election", f"{elected - started:.2f} s")
    record_property("popular lists", said(popular))
    record_property("the last", f"{last - elected:+.2f} s after it")
    record_property("publish interrupted", publisher.interruptions)


@long
async def test_a_replica_that_takes_over_without_the_end_of_a_release_answers_nothing_of_it_that_is_wrong(
    cluster: RedisCluster, record_property: Callable[[str, object], None]
) -> None:
    url = cluster.url(prefix=PREFIX)
    await publish_to(url, lists("r0"))
    killed = cluster.owner(f"{{{PREFIX}}}:catalogue")
    primary = next(node for node in cluster.primaries if node is not killed)
    slots = cluster.slots(primary)
    replica = cluster.nodes[PRIMARIES + cluster.nodes.index(primary)].server
    replica.execute_command("CONFIG", "SET", "cluster-replica-validity-factor", "0")  # however old its data is
    for setting in ("masteruser", "masterauth"):
        replica.execute_command("CONFIG", "SET", setting, "nobody")
    async with watched(url, BUDGET_S) as watch:
        primary.server.execute_command("CLIENT", "KILL", "TYPE", "replica")  # which is refused from here on
        second = await publish_to(url, lists("r1"))
        await watch.until_personal(second)
        live = await live_in(url)
        started = time.monotonic()
        cluster.kill(primary)
        await asyncio.to_thread(cluster.wait_until, lambda: len(cluster.primaries) == PRIMARIES)
        elected = time.monotonic()
        await watch.until_popular({user for user in range(USERS) if slot_of(user, live) in slots})
        await asyncio.to_thread(cluster.wait_until, cluster.is_whole)  # all nodes know who was elected
        async with opened(url) as store:
            with pytest.raises(ReleaseNotFound, match="parts are not sealed"):
                await store.prepare(live)  # as whoever would make it live again
        third = await publish_to(url, lists("r2"))
        await watch.until_personal(third)
        assert watch.misses == 0
        assert others_than(slots, watch) == set()
    record_property("election", f"{elected - started:.2f} s")
    record_property("popular lists", said(popular_of(watch)))
