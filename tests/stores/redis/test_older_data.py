"""Nodes of a cluster that restart with older data: whatever they bring back, or leave behind elsewhere, is found."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.lifecycle import prune
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.redis.writer import Keys
from hotplate.stores.store import Plan, Row
from tests.support.redis_cluster import ClusterNode, RedisCluster, running_cluster
from tests.support.stores import FIRST, draft_of, look, publish, ref, unchecked

ROWS = [Row("popular:", b"{}"), *(Row(f"user:{n:06}", b"list of %d" % n) for n in range(1500))]


@pytest.fixture(scope="module")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with running_cluster(tmp_path_factory.mktemp("restarted")) as cluster:
        yield cluster


@pytest.fixture
async def store(redis_cluster: RedisCluster, prefix: str) -> AsyncIterator[RedisStore]:
    opened = open_url(redis_cluster.url(prefix=prefix))
    yield opened
    await opened.close()


def save(node: ClusterNode) -> Path:
    """Return a dump of what a node holds now."""
    node.server.execute_command("SAVE")
    saved = node.server.folder / "older.rdb"
    shutil.copy(node.server.folder / "dump.rdb", saved)
    return saved


def restart_with(cluster: RedisCluster, node: ClusterNode, saved: Path) -> None:
    node.server.kill()
    shutil.copy(saved, node.server.folder / "dump.rdb")
    node.server.start()
    cluster.wait_until(cluster.every_primary_has_a_replica)


def keys_of(cluster: RedisCluster, prefix: str, release: ReleaseRef) -> list[str]:
    return cluster.keys(f"{prefix}:{{{release.incarnation}.*")


async def test_a_release_that_a_catalogue_gone_back_does_not_name_is_erased(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    await publish(store, ROWS)
    home = redis_cluster.owner(Keys(prefix).catalogue)
    older = save(home)
    await publish(store, ROWS)
    first, second = (entry.ref for entry in (await store.catalogue()).releases)
    restart_with(redis_cluster, home, older)
    assert keys_of(redis_cluster, prefix, second)
    assert second.incarnation in (await look(redis_cluster.url(prefix=prefix)))["left over"].sentence
    await prune(store, keep=0, grace_s=0)
    assert keys_of(redis_cluster, prefix, second) == []
    assert [entry.ref for entry in (await store.catalogue()).releases] == [first]
    assert keys_of(redis_cluster, prefix, first)


async def test_a_pruned_release_that_an_older_node_brings_back_is_erased(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    for _ in range(2):
        await publish(store, ROWS)
    first, second = (entry.ref for entry in (await store.catalogue()).releases)
    home = redis_cluster.owner(Keys(prefix).catalogue)
    other = next(node for node in redis_cluster.primaries if node is not home)
    older = save(other)
    await prune(store, keep=0, grace_s=0)
    assert keys_of(redis_cluster, prefix, first) == []
    kept = keys_of(redis_cluster, prefix, second)
    restart_with(redis_cluster, other, older)
    assert keys_of(redis_cluster, prefix, first)
    assert first.incarnation in (await look(redis_cluster.url(prefix=prefix)))["left over"].sentence
    await prune(store, keep=0, grace_s=0)
    assert keys_of(redis_cluster, prefix, first) == []
    assert keys_of(redis_cluster, prefix, second) == kept


async def test_rows_beyond_those_that_a_node_gone_back_lists_are_erased(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    draft = draft_of(FIRST)
    await store.create(draft, Plan(len(ROWS), 100_000))
    await store.put(draft, ROWS[1:200])
    first_bucket = redis_cluster.owner(Keys(prefix).release(draft).state)
    older = save(first_bucket)
    await store.put(draft, ROWS[200:])
    await store.seal(draft)
    restart_with(redis_cluster, first_bucket, older)
    other = open_url(redis_cluster.url(prefix=prefix))
    await other.erase(ref(FIRST), unchecked)
    await other.close()
    assert keys_of(redis_cluster, prefix, ref(FIRST)) == []


async def test_primaries_that_stayed_as_they_were_are_not_searched_again(
    store: RedisStore, redis_cluster: RedisCluster
) -> None:
    await publish(store, ROWS[:20])
    await prune(store)
    before = redis_cluster.calls("scan")
    await publish(store, ROWS[:20])
    await prune(store, keep=0, grace_s=0)
    assert redis_cluster.calls("scan") == before
