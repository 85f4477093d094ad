"""The store in a cluster: the contract, and what a cluster has beyond one server, on real nodes."""

import asyncio
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
from redis.crc import key_slot

from hotplate.serve.tiers.breaker import FAILURES
from hotplate.stores.catalogue import DraftRef
from hotplate.stores.connect import connect
from hotplate.stores.doctor import examine
from hotplate.stores.encoding import MANIFEST, USER
from hotplate.stores.errors import (
    PartUnavailable,
    ReleaseConflict,
    ReleaseNotFound,
    StoreError,
    StoreUnavailable,
)
from hotplate.stores.lifecycle import activate
from hotplate.stores.redis import server as server_module
from hotplate.stores.redis.client import Session
from hotplate.stores.redis.cluster import Cluster
from hotplate.stores.redis.deployment import RedisNode
from hotplate.stores.redis.footprint import BUCKETS
from hotplate.stores.redis.keys import Keys
from hotplate.stores.redis.server import MAX_SESSIONS
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.redis.url import parse
from hotplate.stores.store import Level, Plan, ReadResult, Row
from hotplate.stores.users import erase_users, find_users
from hotplate.testing import OpenStore, Stall, StoreContract
from tests.support.interrupted import turns_with_sockets_left
from tests.support.readers import lists, reading
from tests.support.redis_cluster import ClusterNode, RedisCluster
from tests.support.redis_server import SOON_S, OpenRedis, array, commands_in, users_of_the_guide
from tests.support.service import publish_to
from tests.support.soak import in_soak
from tests.support.stores import (
    FIRST,
    allow_erasure,
    expect_rows,
    lists_of,
    publish,
    ref_of,
    release_ref,
    scan_rows,
    write_release,
)
from tests.support.streams import listening

USERS = lists_of(2000)

# Nodes that do not hang answer within this time, after which the one that hangs is given up.
ANSWERED_WITHIN_S = 3.0

# Two writers of one draft.
LATE = DraftRef(FIRST, "cafe", "late")
LAST = DraftRef(FIRST, "cafe", "last")


class TestCluster(StoreContract):
    @pytest.fixture(params=["redis+cluster", in_soak("rediss+cluster")])
    def open_store(self, request: pytest.FixtureRequest, redis_cluster: RedisCluster) -> OpenStore:
        """Open handles on a separate deployment."""
        url = redis_cluster.url(request.param, secrets.token_hex(4))
        return lambda: connect(url)

    @pytest.fixture
    def stall(self, redis_cluster: RedisCluster) -> Stall:
        return redis_cluster.stopped


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "closed"])
def test_connections_that_are_being_opened_are_closed_with_the_store(
    redis_cluster: RedisCluster, prefix: str, *, is_cancelled: bool
) -> None:
    assert turns_with_sockets_left(redis_cluster.url("rediss+cluster", prefix), is_cancelled=is_cancelled) == []


@pytest.fixture
def store(redis_cluster: RedisCluster, prefix: str, opened: OpenRedis) -> RedisStore:
    return opened(redis_cluster.url(prefix=prefix))


def names_of(prefix: str, *keys: str) -> list[str]:
    return [name.decode() for name in Keys(prefix).release(release_ref(FIRST)).located(keys).names]


def to_be_moved(cluster: RedisCluster, prefix: str) -> tuple[str, ClusterNode]:
    """Return a row with a slot to move, and a node that does not have it."""
    (moved,) = names_of(prefix, USERS[0].key)
    return moved, next(node for node in cluster.primaries if node is not cluster.owner(moved))


def state_beside(name: str) -> str:
    return name[: name.index("}:") + 2] + "@state"


async def test_first_batch_takes_a_task_per_node_and_none_outlives_the_store(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    await write_release(store, FIRST, USERS)
    before = len(asyncio.all_tasks())
    most = 0
    for is_awaited in (True, False):
        other = open_url(redis_cluster.url(prefix=prefix))
        await other.catalogue()  # finds the nodes
        read = asyncio.create_task(other.get_many(release_ref(FIRST), [row.key for row in USERS]))
        while is_awaited and not read.done():
            await asyncio.sleep(0)
            most = max(most, len(asyncio.all_tasks()) - before)
        await asyncio.sleep(0)
        await other.close()
        await asyncio.wait([read])
        assert not is_awaited or read.result() == [row.value for row in USERS]
        assert len(asyncio.all_tasks()) == before
    assert 0 < most < 20


async def test_batch_that_fails_at_one_node_ends_at_all_before_it_may_be_repeated(redis_cluster: RedisCluster) -> None:
    failing, slow, _ = (node.server for node in redis_cluster.primaries)
    keys = [f"key:{n}" for n in range(20)]
    assert {failing.port, slow.port} <= {owner.port for owner in redis_cluster.owners(keys)}
    is_slow = asyncio.Event()

    def go_on() -> None:
        slow.send_signal(signal.SIGCONT)
        is_slow.clear()

    deployment = Cluster(parse(redis_cluster.url()))
    failing.execute_command("CONFIG", "SET", "requirepass", "another")
    failing.password = "another"
    await deployment.load()
    slow.send_signal(signal.SIGSTOP)
    is_slow.set()
    going_on = asyncio.get_running_loop().call_later(0.5, go_on)
    try:
        with pytest.raises(StoreUnavailable, match="does not accept this user and password"):
            await deployment.execute_each([("GET", key) for key in keys])
        assert not is_slow.is_set()
    finally:
        going_on.cancel()
        go_on()
        failing.execute_command("CONFIG", "SET", "requirepass", "")
        failing.password = None
        await deployment.close()


@pytest.mark.usefixtures("real_limits")
@pytest.mark.usefixtures("brief_waits")
async def test_erasure_that_a_replica_lacks_is_reported(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    await publish(store, [Row("popular:", b"{}"), *USERS[:5]])
    home = redis_cluster.owner(Keys(prefix).catalogue)
    replica = next(node for node in redis_cluster.nodes if node.primary is home)
    with replica.server.stopped():
        erasure = await erase_users(store, ["000001"])
    assert erasure.warning is not None
    assert f"0 of the 1 replicas of the node 127.0.0.1:{home.port}" in erasure.warning
    redis_cluster.wait_until(redis_cluster.is_whole)


@pytest.mark.usefixtures("brief_waits")
async def test_erasure_while_a_replica_cannot_follow_its_primary_is_reported(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(store, [Row("popular:", b"{}"), *USERS[:5]])
    home = redis_cluster.owner(Keys(prefix).catalogue)
    replica = next(node for node in redis_cluster.nodes if node.primary is home)

    # The primary refuses the replica, which stays a node of the cluster.
    replica.server.execute_command("CONFIG", "SET", "masterauth", "wrong")
    replica.server.execute_command("CLIENT", "KILL", "TYPE", "master")
    try:
        redis_cluster.wait_until(lambda: home.server.execute_command("ROLE")[2] == [])
        caplog.clear()
        erasure = await erase_users(store, ["000001"])
    finally:
        replica.server.execute_command("CONFIG", "SET", "masterauth", "")
        redis_cluster.wait_until(redis_cluster.is_whole)
    lag = f"0 of the 1 replicas of the node 127.0.0.1:{home.port}"
    assert erasure.warning is not None
    assert lag in erasure.warning
    assert any(lag in record.getMessage() for record in caplog.records)


async def test_release_on_all_nodes_uses_single_server_layout_and_erases_fully(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    await write_release(store, FIRST, [*USERS, Row("meta:manifest", b"{}")])
    of_release = 3  # the keys of its rows, those of its `meta` rows, and its points
    assert len(redis_cluster.keys(f"*{prefix}*")) == len(USERS) + 1 + BUCKETS + of_release + 1  # and the inventory
    for node in redis_cluster.primaries:
        assert len(node.server.execute_command("KEYS", f"*{prefix}*")) > len(USERS) // 6
    await store.erase(release_ref(FIRST), allow_erasure)
    assert redis_cluster.keys(f"*{prefix}*") == []


async def test_present_list_takes_one_read_and_only_absent_ones_check_the_bucket(
    store: RedisStore, redis_cluster: RedisCluster
) -> None:
    await write_release(store, FIRST, USERS)
    before = redis_cluster.calls("get")
    await expect_rows(store, *USERS[:100])
    assert redis_cluster.calls("get") == before + 100
    assert await store.get_many(release_ref(FIRST), ["user:absent", USERS[0].key]) == [None, USERS[0].value]
    assert redis_cluster.calls("get") == before + 103


async def test_node_with_lost_tail_is_detected_and_fails_only_its_own_users(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    await write_release(store, FIRST, USERS)
    lost = USERS[0].key
    kept = USERS[1:50]
    name = names_of(prefix, lost)[0]
    node = redis_cluster.owner(name).server
    node.execute_command("DEL", name)
    node.execute_command("SET", state_beside(name), "draft:writer")
    with pytest.raises(ReleaseNotFound, match="1 of its 256 parts are not sealed"):
        await store.get_many(release_ref(FIRST), [lost])
    slots = await store.get_many(release_ref(FIRST), [lost, *(row.key for row in kept)])
    assert isinstance(slots[0], ReleaseNotFound)
    assert slots[1:] == [row.value for row in kept]
    for call in (store.prepare(release_ref(FIRST)), scan_rows(store, FIRST)):
        with pytest.raises(ReleaseNotFound, match="1 of its 256 parts are not sealed"):
            await call


@pytest.mark.parametrize("lost", [USERS[1].key, MANIFEST])
async def test_lost_part_of_a_release_hides_no_user_of_others_from_an_erasure(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str, lost: str
) -> None:
    users = ["000000", "000001"]
    release = await ref_of(store, await publish(store, [Row("popular:", b"{}"), *USERS[:5]]))
    name = Keys(prefix).release(release).located([lost]).names[0].decode()
    redis_cluster.owner(name).server.execute_command("DEL", name, state_beside(name))
    held = {release.id: tuple(user for user in users if f"user:{user}" != lost)}
    assert (await find_users(store, users)).holding == held
    assert (await find_users(store, users[:1])).holding == {release.id: (users[0],)}

    erasure = await erase_users(store, users)
    assert (erasure.erased, erasure.deleted, erasure.holding) == (tuple(users), len(held[release.id]), {})
    assert await store.get_many(release, [USERS[0].key]) == [None]


async def test_lost_part_of_a_release_does_not_open_the_circuit_for_other_users(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    url = redis_cluster.url(prefix=prefix)
    await publish_to(url, lists("r0"))
    async with reading(url, budget_s=SOON_S) as reader:
        served = reader.tiers[0].follower.live
        assert served is not None
        name = Keys(prefix).release(served.ref).located(["user:1"]).names[0].decode()
        redis_cluster.owner(name).server.execute_command("DEL", name, state_beside(name))
        for _ in range(2 * FAILURES):
            assert (await reader.read(USER, "1")).source == "popular"
        assert not reader.tiers[0].breaker.is_open


async def test_interrupted_seal_is_completed_by_next_writer_and_blocks_writes(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    await write_release(store, FIRST, USERS[:50])
    states = [group.first for group in Keys(prefix, clustered=True).release(release_ref(FIRST)).groups][1::16]
    for state, node in zip(states, redis_cluster.owners(states), strict=True):
        node.server.execute_command("SET", state, "draft:writer")
    next_one = DraftRef(FIRST, release_ref(FIRST).incarnation, "next")
    for call in (store.create(next_one, Plan(1, 1)), store.put(next_one, USERS[:1])):
        with pytest.raises(ReleaseConflict, match="is sealed"):
            await call
    await store.seal(next_one)
    assert await scan_rows(store, FIRST) == USERS[:50]


async def test_rows_of_a_writer_that_was_replaced_are_refused_by_their_buckets(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    await store.create(LATE, Plan(1, 1))
    await write_by_another(redis_cluster.url(prefix=prefix))
    with pytest.raises(ReleaseConflict):
        await store.put(LATE, [Row(USERS[0].key, b"late"), Row("user:x", b"late")])
    assert await store.get_many(LAST.release, ["user:x", USERS[0].key]) == [None, USERS[0].value]


async def write_by_another(url: str) -> None:
    other = open_url(url)
    await other.create(LAST, Plan(1, 1))
    await other.put(LAST, USERS[:100])
    await other.seal(LAST)
    await other.close()


async def test_moved_and_migrating_slots_are_followed(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    await write_release(store, FIRST, USERS)
    read = {row.key: row.value for row in USERS[:40]}
    await expect_rows(store, *USERS[:40])
    moved, target = to_be_moved(redis_cluster, prefix)
    half_way = list[object]()
    loop = asyncio.get_running_loop()

    def between() -> None:
        reading = store.get_many(release_ref(FIRST), [*read, "user:absent"])
        half_way.append(asyncio.run_coroutine_threadsafe(reading, loop).result(30))

    await asyncio.to_thread(redis_cluster.migrate, moved, target, between=between)
    assert half_way
    assert all(slots == [*read.values(), None] for slots in half_way)
    await expect_rows(store, *USERS[:40])
    assert await scan_rows(store, FIRST) == USERS


async def test_nodes_that_import_their_first_slots_keep_their_connections(redis_cluster: RedisCluster) -> None:
    """No node names them as owners of slots, but commands are redirected to them."""
    deployment = Cluster(parse(redis_cluster.url()))
    await deployment.load()
    importing = [RedisNode("127.0.0.1", port) for port in (1, 2)]
    servers = [deployment.server(node) for node in importing]
    assert [deployment.server(node) for node in importing] == servers
    await deployment.close()


async def test_catalogue_changes_while_its_slot_is_moved(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    first = await publish(store, [Row("popular:", b"{}")])
    second = await publish(store, [Row("popular:", b"{}")])
    catalogue = Keys(prefix).catalogue
    slot = str(key_slot(catalogue.encode()))
    source = redis_cluster.owner(catalogue)
    target = next(node for node in redis_cluster.primaries if node is not source)
    loop = asyncio.get_running_loop()

    def between() -> None:  # its keys are at the target, which is not the slot's owner yet
        asyncio.run_coroutine_threadsafe(activate(store, second), loop).result(SOON_S)

    target.server.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.server.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    try:
        await activate(store, first)
        assert (await store.catalogue()).live == first
    finally:
        await asyncio.to_thread(redis_cluster.migrate, catalogue, target, between=between)
    assert (await store.catalogue()).live == second


@pytest.mark.parametrize("is_moved", [True, False], ids=["moved", "migrating"])
async def test_redirected_commands_are_sent_at_once_to_each_node(
    redis_cluster: RedisCluster, prefix: str, *, is_moved: bool
) -> None:
    source, target, _ = redis_cluster.primaries
    names = {key_slot(name.encode()): name for name in (f"{prefix}:{number}" for number in range(200))}
    owners = redis_cluster.owners(list(names.values()))
    redirected = [name for name, owner in zip(names.values(), owners, strict=True) if owner is source]
    redirected = redirected[: 2 * MAX_SESSIONS + 1]
    assert len(redirected) > 2 * MAX_SESSIONS
    deployment = Cluster(parse(redis_cluster.url()))
    await deployment.load()
    sessions = Counter[int]()

    async def count(session: Session) -> None:
        _, port = session.node
        sessions[port] += 1

    for name in redirected:
        slot = str(key_slot(name.encode()))
        if is_moved:
            redis_cluster.migrate(name, target)
        else:
            target.server.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
            source.server.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    try:
        commands = [("SET", name, name) for name in redirected]
        await deployment.execute_each(commands, after=count)
    finally:
        await deployment.close()
        if not is_moved:
            for name in redirected:
                redis_cluster.migrate(name, target)
    assert sessions == {source.port: 1, target.port: 1}
    assert [target.server.execute_command("GET", name) for name in redirected] == redirected


async def test_erase_continues_after_a_slot_moved(store: RedisStore, redis_cluster: RedisCluster, prefix: str) -> None:
    await write_release(store, FIRST, USERS)
    moved, target = to_be_moved(redis_cluster, prefix)
    erasing = list[Future[None]]()
    loop = asyncio.get_running_loop()

    def between() -> None:
        if not erasing:
            erasing.append(asyncio.run_coroutine_threadsafe(store.erase(release_ref(FIRST), allow_erasure), loop))
            time.sleep(0.5)  # meanwhile the erase reaches the slot; its keys are on two nodes

    await asyncio.to_thread(redis_cluster.migrate, moved, target, between=between)
    await asyncio.wrap_future(erasing[0])
    assert redis_cluster.keys(f"*{prefix}*") == []


async def test_scan_continues_once_all_slots_are_served(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    await write_release(store, FIRST, USERS)
    keys = Keys(prefix).release(release_ref(FIRST))
    rows = store.scan(release_ref(FIRST))
    scanned = list[Row]()
    lost = [(redis_cluster.owner(keys.heads[bucket].decode()).server, str(keys.slots[bucket])) for bucket in (0, 9)]

    def change(verb: str) -> None:
        for server, slot in lost:
            server.execute_command("CLUSTER", verb, slot)

    for wanted in (1, len(USERS) - 1):  # as during an election: of states, then of lists of keys and of rows
        change("DELSLOTS")
        asyncio.get_running_loop().call_later(0.1, change, "ADDSLOTS")
        scanned += [await anext(rows) for _ in range(wanted)]
    assert scanned == USERS


@dataclass
class ScriptedShard:
    """A primary and its replica, which may take over. The primary has the lower port."""

    primary: int = 0
    replica: int = 0
    is_taken_over: bool = False
    hangs: bool = False
    """Whether the former primary answers nothing, instead of naming its successor."""

    asked: list[bytes] = field(default_factory=list)
    """Commands to the former primary."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, port = writer.get_extra_info("sockname")
        async for command in commands_in(reader):
            is_former = self.is_taken_over and port == self.primary
            if is_former:
                self.asked.append(command[0])
            if not (is_former and self.hangs):
                writer.write(self.reply(command, is_former=is_former))

    def reply(self, command: list[bytes], *, is_former: bool) -> bytes:
        if command[0] == b"HELLO":
            return array(b"role", b"master")
        if command[0] == b"CLUSTER":
            nodes = (self.primary, self.replica)
            ports = reversed(nodes) if self.is_taken_over and not is_former else nodes
            listed = b"".join(b"*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port for port in ports)
            return b"*1\r\n*4\r\n:0\r\n:16383\r\n" + listed
        if command[0] != b"GET":
            return b"+OK\r\n"
        if is_former:
            return b"-MOVED %d 127.0.0.1:%d\r\n" % (key_slot(command[1]), self.replica)
        return b"$4\r\nlist\r\n"


@asynccontextmanager
async def scripted_shard() -> AsyncIterator[tuple[ScriptedShard, RedisStore]]:
    """Yield a shard, and a store that has read from its primary."""
    shard = ScriptedShard()
    async with asyncio.timeout(SOON_S), listening(shard.serve) as one, listening(shard.serve) as other:
        shard.primary, shard.replica = sorted((one, other))
        opened = open_url(f"redis+cluster://127.0.0.1:{shard.primary},127.0.0.1:{shard.replica}/")
        assert await opened.get_many(release_ref(FIRST), ["user:1"]) == [b"list"]
        yield shard, opened
        await opened.close()


async def test_node_that_hangs_is_asked_last_for_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hotplate.stores.redis.cluster.random.sample", lambda nodes, _: nodes
    )  # by port: the primary first
    async with scripted_shard() as (shard, store):
        shard.is_taken_over = shard.hangs = True
        values = list[ReadResult]()
        while not values:
            with suppress(StoreUnavailable):
                values = await store.get_many(release_ref(FIRST), ["user:1"], timeout_s=0.05)
            assert b"CLUSTER" not in shard.asked
    assert values == [b"list"]


async def test_first_redirection_to_a_replica_moves_all_slots_of_its_primary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.stores.redis.deployment.DISCOVERY_PAUSES_S", (3600.0, 3600.0))
    async with scripted_shard() as (shard, store):
        shard.is_taken_over = True
        for number in range(20):
            assert await store.get_many(release_ref(FIRST), [f"user:{number}"]) == [b"list"]
    assert shard.asked.count(b"GET") < 20


async def test_silent_cluster_is_retried_with_pauses() -> None:
    asked = list[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for command in commands_in(reader):
            asked.append(command[0])
            writer.write(b"-ERR not now\r\n" if command[0] == b"CLUSTER" else b"+OK\r\n")

    async with listening(serve) as port:
        servers = Cluster(parse(f"redis+cluster://127.0.0.1:{port}/"))
        for _ in range(1000):
            with pytest.raises(StoreUnavailable, match="not now"):
                await servers.load()
        await servers.close()
    assert asked.count(b"CLUSTER") < 100


async def test_missing_seeds_are_skipped_and_no_seed_is_an_error(redis_cluster: RedisCluster, prefix: str) -> None:
    seed = f"127.0.0.1:{redis_cluster.nodes[4].port}"  # a replica will do
    store = connect(f"redis+cluster://127.0.0.1:1,{seed}/?prefix={prefix}")
    await write_release(store, FIRST, USERS[:10])
    assert await scan_rows(store, FIRST) == USERS[:10]
    await store.close()
    lonely = connect("redis+cluster://user:secret@127.0.0.1:1/")
    for call in (lonely.catalogue(), lonely.get_many(release_ref(FIRST), ["user:1"])):
        with pytest.raises(
            StoreUnavailable, match=r"node 127.0.0.1:1 of redis\+cluster://127.0.0.1:1/ cannot be reached"
        ):
            await call
    await lonely.close()


@pytest.mark.parametrize("is_connected", [False, True], ids=["not connected", "connected"])
async def test_hanging_node_delays_only_its_own_users_and_others_get_their_lists(
    store: RedisStore,
    redis_cluster: RedisCluster,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_connected: bool,
) -> None:
    if not is_connected:
        monkeypatch.setattr(server_module, "CONNECT_TIMEOUT_S", ANSWERED_WITHIN_S)
    await write_release(store, FIRST, USERS)
    keys = [row.key for row in USERS[:20]]
    if is_connected:
        await store.get_many(release_ref(FIRST), keys)
    owners = redis_cluster.owners(names_of(prefix, *keys))
    still = owners[0]
    theirs = [owner is owners[0] for owner in owners]
    with still.server.stopped():
        cancelled = asyncio.create_task(store.get_many(release_ref(FIRST), keys, timeout_s=SOON_S))
        await asyncio.sleep(0)
        cancelled.cancel()
        slots = await store.get_many(release_ref(FIRST), keys, timeout_s=ANSWERED_WITHIN_S if is_connected else SOON_S)
    assert cancelled.cancelled()
    assert not [record for record in caplog.records if record.name == "asyncio"]
    assert [isinstance(slot, PartUnavailable) for slot in slots] == theirs
    assert all(slot == row.value for slot, row in zip(slots, USERS, strict=False) if not isinstance(slot, StoreError))
    redis_cluster.wait_until(redis_cluster.is_whole)


async def test_replicas_answer_a_service_while_no_primary_does(
    store: RedisStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    await write_release(store, FIRST, USERS)
    service = open_url(users_of_the_guide(prefix, redis_cluster.execute_everywhere, redis_cluster.url)["serve"])
    assert await service.get_many(release_ref(FIRST), ["user:000007"]) == [USERS[7].value]
    assert service.has_replicas
    with ExitStack() as stack:
        for node in redis_cluster.primaries:
            stack.enter_context(node.server.stopped())
        slots = await service.get_many_elsewhere(release_ref(FIRST), [row.key for row in USERS[:50]], timeout_s=5.0)
    assert slots == [row.value for row in USERS[:50]]
    await service.close()
    redis_cluster.wait_until(redis_cluster.is_whole)


async def test_doctor_finds_a_sound_cluster_as_publisher(
    redis_cluster: RedisCluster, prefix: str, monkeypatch: pytest.MonkeyPatch, opened: OpenRedis
) -> None:
    monkeypatch.setattr("hotplate.stores.doctor.BUDGET_S", SOON_S)  # a slower read is a warning
    publisher = opened(users_of_the_guide(prefix, redis_cluster.execute_everywhere, redis_cluster.url)["publish"])
    await publish(publisher, [Row("popular:", b"{}"), *USERS[:2]])
    redis_cluster.execute_everywhere("CONFIG", "SET", "min-replicas-to-write", "1")
    findings = {finding.subject: finding for finding in await examine(publisher)}
    redis_cluster.execute_everywhere("CONFIG", "SET", "min-replicas-to-write", "0")
    assert {subject for subject, finding in findings.items() if finding.level != Level.OK} == set(), findings
    assert findings["cluster"].sentence.count("3 primaries of 6 nodes") == 3
    assert "unknown" in findings["coverage"].sentence, "CONFIG is not allowed"
    assert {"replicas", "min-replicas", "may publish", "memory", "room"} <= findings.keys()


async def test_doctor_warns_of_full_coverage_required(store: RedisStore, redis_cluster: RedisCluster) -> None:
    for setting, well, wrong in (("require-full-coverage", "no", "yes"), ("allow-reads-when-down", "yes", "no")):
        redis_cluster.execute_everywhere("CONFIG", "SET", f"cluster-{setting}", wrong)
        findings = await store.examine()
        redis_cluster.execute_everywhere("CONFIG", "SET", f"cluster-{setting}", well)
        assert [finding for finding in findings if setting in finding.sentence]
    warned = [finding for finding in findings if finding.level != Level.OK]
    assert Counter(finding.subject for finding in warned) == dict.fromkeys(
        ("coverage", "persistence", "min-replicas"), 3
    )


async def test_nodes_known_by_numbers_are_reached_without_tls_when_the_seed_is_a_name(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    store = connect(redis_cluster.url(prefix=prefix).replace("127.0.0.1", "localhost"))
    await write_release(store, FIRST, USERS[:10])
    assert await scan_rows(store, FIRST) == USERS[:10]
    await store.close()


def test_a_node_known_by_a_number_may_be_certified_under_the_name_of_a_seed() -> None:
    cluster = Cluster(parse("rediss+cluster://u:p@10.0.0.1,cache.example:10000/", {}))
    other = cluster.address(RedisNode("10.0.0.9", 8500))
    assert other.certified_as == "cache.example"
    assert cluster.address(RedisNode("10.0.0.1", 6379)).certified_as is None
    assert cluster.address(RedisNode("node.example", 8500)).certified_as is None
    assert (other.password, other.tls) == ("p", True)
    assert "p@" not in other.shown
