"""Nodes of a cluster that restart with older data: whatever they bring back, or leave behind elsewhere, is found."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

import hotplate
from hotplate.stores.catalogue import Catalogue, ReleaseRef
from hotplate.stores.erasure_log import erased_from
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreError
from hotplate.stores.lifecycle import prune
from hotplate.stores.redis.keys import Keys
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.store import Level, Plan, RecordChange, Row
from hotplate.stores.transfer import copy
from hotplate.stores.users import erase_users
from hotplate.stores.verification import read_servable, verify
from tests.support.memory_store import MemoryStore
from tests.support.redis_cluster import ClusterNode, RedisCluster, running_cluster
from tests.support.redis_server import OpenRedis, running
from tests.support.stores import FIRST, allow_erasure, draft_of, lists_of, look, publish, ref_of, release_ref

ROWS = [Row("popular:", b"{}"), *lists_of(1500)]


# The same with lists that can be served.
LISTED = [Row(row.key, b'{"id":"x"}') for row in ROWS]


@pytest.fixture(scope="module")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with running_cluster(tmp_path_factory.mktemp("restarted")) as cluster:
        yield cluster


@pytest.fixture
def store(redis_cluster: RedisCluster, prefix: str, opened: OpenRedis) -> RedisStore:
    return opened(redis_cluster.url(prefix=prefix))


def save(node: ClusterNode) -> Path:
    """Return a dump of what a node holds now."""
    node.server.execute_command("SAVE")
    saved = node.server.folder / "older.rdb"
    shutil.copy(node.server.folder / "dump.rdb", saved)
    return saved


def restart_with(cluster: RedisCluster, saved: Mapping[ClusterNode, Path]) -> None:
    """Restart nodes with their dumps, at once: a primary serves nothing for 2 s after it has started."""
    for node, dump in saved.items():
        node.server.kill()
        shutil.copy(dump, node.server.folder / "dump.rdb")
        node.server.start()
    cluster.wait_until(cluster.every_primary_has_a_replica)


def keys_of(cluster: RedisCluster, prefix: str, release: ReleaseRef) -> list[str]:
    return cluster.keys(f"{prefix}:{{{release.incarnation}.*")


async def test_release_unknown_to_a_reverted_catalogue_is_erased(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    await publish(store, ROWS)
    home = redis_cluster.owner(Keys(prefix).catalogue)
    older = save(home)
    await publish(store, ROWS)
    first, second = (entry.ref for entry in (await store.catalogue()).releases)
    restart_with(redis_cluster, {home: older})
    assert keys_of(redis_cluster, prefix, second)
    assert second.incarnation in (await look(redis_cluster.url(prefix=prefix)))["left over"].sentence
    await prune(store, keep=0, grace_s=0)
    assert keys_of(redis_cluster, prefix, second) == []
    assert [entry.ref for entry in (await store.catalogue()).releases] == [first]
    assert keys_of(redis_cluster, prefix, first)


async def test_pruned_release_brought_back_by_an_older_node_is_erased(
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
    restart_with(redis_cluster, {other: older})
    assert keys_of(redis_cluster, prefix, first)
    assert first.incarnation in (await look(redis_cluster.url(prefix=prefix)))["left over"].sentence
    await prune(store, keep=0, grace_s=0)
    assert keys_of(redis_cluster, prefix, first) == []
    assert keys_of(redis_cluster, prefix, second) == kept


async def assert_unfrozen(store: RedisStore, user: str) -> None:
    """Publish, erase, verify, copy and serve: what a catalogue without its record of erased users refused."""
    await publish(store, ROWS)
    await erase_users(store, [user])
    live = (await store.catalogue()).live_ref
    assert live is not None
    await verify(store, live)
    await read_servable(store, live)
    await copy(store, MemoryStore(), live.id)
    await prune(store, keep=0, grace_s=0)
    erased = await erased_from(store)
    assert (erased.covers(f"user:{user}"), erased.lost) == (True, 0)


async def test_erased_users_revert_together_with_the_catalogue(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    release = await ref_of(store, await publish(store, ROWS))
    await erase_users(store, ["000003"])
    home = redis_cluster.owner(Keys(prefix).catalogue)
    saved = {node: save(node) for node in redis_cluster.primaries}
    await erase_users(store, ["000007"])
    restart_with(redis_cluster, {node: dump for node, dump in saved.items() if node is not home})
    assert (await erased_from(store)).covers("user:000007")
    await verify(store, release)  # whether the row came back or not
    assert (await erase_users(store, ["000007"])).holding == {}
    await verify(store, release)
    restart_with(redis_cluster, {home: saved[home]})
    with suppress(StoreError):  # of the former connection
        await store.catalogue()
    erased = await erased_from(store)
    assert [erased.covers(f"user:{user}") for user in ("000003", "000007")] == [True, False]
    await assert_unfrozen(store, "000007")


@pytest.mark.parametrize("swap", [1, 2])
async def test_server_reverting_during_an_erasure_blocks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: int, opened: OpenRedis
) -> None:
    with running(tmp_path) as server:
        store = opened(server.url())
        await publish(store, ROWS)
        await erase_users(store, ["000003"])
        server.execute_command("SAVE")
        swap_at_once = store.swap
        swaps = 0

        async def swap_after_restart(old: Catalogue, new: Catalogue, records: Sequence[RecordChange]) -> None:
            nonlocal swaps
            swaps += 1
            if swaps == swap:
                server.kill()
                server.start()
            await swap_at_once(old, new, records)

        monkeypatch.setattr(store, "swap", swap_after_restart)
        done = await erase_users(store, ["000007"])
        assert (done.erased, done.holding) == (("000007",), {})
        monkeypatch.undo()
        for entry in (await store.catalogue()).releases:
            await verify(store, entry.ref)
        await assert_unfrozen(store, "000007")


@pytest.mark.parametrize(("options", "warns"), [((), True), (("--appendonly", "yes"), False)])
async def test_an_erasure_warns_of_a_server_without_an_append_only_file(
    tmp_path: Path, options: tuple[str, ...], opened: OpenRedis, *, warns: bool
) -> None:
    with running(tmp_path, *options) as server:
        store = opened(server.url())
        await publish(store, ROWS[:2])
        warning = (await erase_users(store, ["000000"])).warning
        assert (warning is not None and "append-only" in warning) == warns


async def test_rows_missing_from_a_reverted_key_list_are_erased(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    draft = draft_of(FIRST)
    await store.create(draft, Plan(len(ROWS), 100_000))
    await store.put(draft, ROWS[1:200])
    first_bucket = redis_cluster.owner(Keys(prefix).release(draft).state)
    older = save(first_bucket)
    await store.put(draft, ROWS[200:])
    await store.seal(draft)
    restart_with(redis_cluster, {first_bucket: older})
    other = open_url(redis_cluster.url(prefix=prefix))
    await other.erase(release_ref(FIRST), allow_erasure)
    await other.close()
    assert keys_of(redis_cluster, prefix, release_ref(FIRST)) == []


async def test_unchanged_primaries_are_not_searched_again(store: RedisStore, redis_cluster: RedisCluster) -> None:
    await publish(store, ROWS[:20])
    await prune(store)
    before = redis_cluster.calls("scan")
    await publish(store, ROWS[:20])
    await prune(store, keep=0, grace_s=0)
    assert redis_cluster.calls("scan") == before


async def test_catalogue_reverted_to_a_pruned_release_is_repaired(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str, opened: OpenRedis
) -> None:
    url = redis_cluster.url(prefix=prefix)
    first = await publish(store, LISTED)
    home = redis_cluster.owner(Keys(prefix).catalogue)
    older = save(home)
    async with hotplate.open(url, budget_s=5.0) as service:
        second = await publish(store, LISTED)
        assert await prune(store, keep=0, grace_s=0) == [first]
        restart_with(redis_cluster, {home: older})
        other = opened(url)
        catalogue = await other.catalogue()
        assert catalogue.live == first
        with pytest.raises((ReleaseCorrupt, ReleaseNotFound)):
            await verify(other, catalogue.find(first).ref)
        finding = (await look(url))["live"]
        assert (finding.level, "publish again" in finding.sentence) == (Level.ERROR, True)
        answers = await service.personal_many([f"{number:06}" for number in range(100)], 1)
        assert {answer.source for answer in answers} <= {"personal", "popular"}
        third = await publish(other, LISTED)
        assert third not in (first, second)
        await prune(other, keep=0, grace_s=0)
        live = (await other.catalogue()).find(third).ref
        assert (await verify(other, live)).rows == len(LISTED)
        assert {
            finding.level for finding in (await look(url)).values() if finding.subject in ("live", "left over")
        } == {Level.OK}
        assert redis_cluster.keys(f"*{prefix}*{{*.*}}:*") == keys_of(redis_cluster, prefix, live)
