"""Following the live release of a misbehaving store: served lists stay served."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import replace

import orjson
import pytest

from hotplate.serve.releases.follower import RESTORED_S, SPREAD_S, STALE_POLL_S, WARM_S, Follower
from hotplate.serve.releases.served import ServedRelease
from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores.catalogue import Release, ReleaseId, ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.encoding import MANIFEST, NO_OFFSET, OFFSET_BYTES, Checksum, body_of
from hotplate.stores.errors import ReleaseNotFound, StoreMisused, StoreUnavailable
from hotplate.stores.redis.keys import Keys
from hotplate.stores.store import Reader, ReadResult
from hotplate.stores.timing import TOLERATED_S
from hotplate.stores.users import accept_loss, erase_users
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.readers import USERS, lists
from tests.support.redis_cluster import RedisCluster
from tests.support.remote import RemoteStore, publish
from tests.support.service import publish_to
from tests.support.stores import lapse, ref_of
from tests.support.virtual import virtual
from tests.support.waiting import until_true


def backup(memory: MemoryStore) -> MemoryStore:
    """Copy all that a store holds."""
    copy = MemoryStore(memory.clock, memory.current)
    copy.releases = deepcopy(memory.releases)
    copy.beside = dict(memory.beside)
    return copy


def restore(memory: MemoryStore, copy: MemoryStore, *, only_catalogue: bool = False) -> None:
    """Replace a store's data by those of a copy, as a restore at night does: no swap, and no other data stay."""
    memory.current = copy.current
    if not only_catalogue:
        memory.releases = deepcopy(copy.releases)
        memory.beside = dict(copy.beside)


@asynccontextmanager
async def following(store: Reader, *, warm: bool = False) -> AsyncIterator[Follower]:
    """Follow a store until the block ends."""
    follower = Follower(store)
    task = asyncio.create_task(follower.run(warm=warm))
    if not warm:
        await follower.attempted.wait()
    yield follower
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until_error(follower: Follower) -> str:
    await until_true(lambda: follower.last_error)
    return str(follower.last_error)


def served(follower: Follower) -> ServedRelease:
    assert follower.live is not None
    return follower.live


async def until(follower: Follower, release: ReleaseId) -> None:
    await until_true(lambda: follower.live is not None and follower.live.id == release)


async def followed(memory: MemoryStore, follower: Follower) -> ReleaseId:
    """Publish a first release, and return it when it is served."""
    release = await publish(memory, "first")
    await until(follower, release)
    return release


@virtual
async def test_the_first_release_is_followed_as_soon_as_there_is_one(memory: MemoryStore, remote: RemoteStore) -> None:
    async with following(remote) as follower:
        assert (follower.live, "nothing was ever published to this store" in str(follower.last_error)) == (None, True)
        await until(follower, await publish(memory, "first", segments=5))
        assert follower.last_error is None
        lists = {key.removeprefix("popular:"): body[OFFSET_BYTES:] for key, body in served(follower).popular.items()}
        assert lists == {"": b"first", **{f"s{n}": b"%d" % n for n in range(5)}}


Rows = dict[str, bytes]


def change_format(rows: Rows, release: ReleaseId) -> None:
    checksum = Checksum(release)
    manifest = orjson.loads(checksum.open(MANIFEST, rows[MANIFEST])[OFFSET_BYTES:]) | {"format": 9}
    rows[MANIFEST] = checksum.seal(MANIFEST, NO_OFFSET + orjson.dumps(manifest))


def without(*keys: str) -> Callable[[Rows, ReleaseId], None]:
    """Return what removes rows."""

    def remove(rows: Rows, _: ReleaseId) -> None:
        for key in keys:
            del rows[key]

    return remove


def damage_popular(rows: Rows, _: ReleaseId) -> None:
    rows["popular:"] += b"x"


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (change_format, "upgrade"),
        (without("popular:"), "publish again"),
        (without(MANIFEST), "publish again"),
        (without("user:0", "user:1", "user:2"), "3 of the 5 rows of its sample are missing or damaged"),
        (damage_popular, "'popular:' is damaged"),
    ],
    ids=["another format", "no popular list", "no manifest", "few rows", "a damaged popular list"],
)
@virtual
async def test_a_release_that_cannot_be_served_is_not_followed_and_the_next_is(
    memory: MemoryStore, remote: RemoteStore, harm: Callable[[Rows, ReleaseId], None], reason: str
) -> None:
    async with following(remote) as follower:
        first = await followed(memory, follower)
        second = await publish(memory, "second", live=False)
        harm(memory.find(await ref_of(memory, second)).rows, second)
        await life.activate(memory, second, override=life.Override.DAMAGE)
        assert reason in await until_error(follower)
        assert served(follower).id == first
        await until(follower, await publish(memory, "third"))
        assert follower.last_error is None


@virtual
async def test_recreated_store_is_followed_at_a_lower_generation(
    memory: MemoryStore, remote: RemoteStore, clock: FakeClock
) -> None:
    async with following(remote) as follower:
        for name in ("first", "second"):
            await until(follower, await publish(memory, name))
        remote.inner = MemoryStore(clock)
        release = await publish(remote.inner, "anew")
        await follower.refresh()
        await until(follower, release)


@virtual
async def test_draft_restored_and_finished_with_other_lists_is_another_release(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    async with following(remote) as follower:
        await followed(memory, follower)
        draft = await publication.begin(memory, ReleaseId("twice"))
        await lapse(memory)
        copy = backup(memory)
        await until(follower, await publish(memory, "once", draft=await publication.take_over(memory, draft.id)))
        once = served(follower)
        restore(memory, copy)
        await publish(memory, "again", draft=await publication.take_over(memory, draft.id))
        await asyncio.sleep(RESTORED_S + 2 * STALE_POLL_S)
        assert (once.ref, once.popular["popular:"]) == (served(follower).ref, body_of(b"once"))
        assert served(follower).popular["popular:"] == body_of(b"again")


async def elapsed_until(follower: Follower, release: ReleaseId) -> float:
    """Wait, for as long as it takes, until a release is served; return how many seconds that took."""
    clock = asyncio.get_running_loop().time
    started = clock()
    while served(follower).id != release:
        await asyncio.sleep(0.1)
        assert clock() < started + 1000
    return clock() - started


async def restored(memory: MemoryStore, follower: Follower) -> ReleaseId:
    """Publish twice, and restore the store to the state between; return the live release."""
    first = await followed(memory, follower)
    copy = backup(memory)
    await until(follower, await publish(memory, "second"))
    restore(memory, copy)
    return first


@virtual
async def test_store_restored_without_the_release_is_followed_and_logged_once(
    memory: MemoryStore, remote: RemoteStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(remote) as follower:
        first = await restored(memory, follower)
        assert await elapsed_until(follower, first) < STALE_POLL_S
        assert [answer.source for answer in follower.findings] == ["restored"]
        await asyncio.sleep(100)
    assert "restored from an older copy at generation" in follower.findings[0].sentence
    assert [record.getMessage() for record in caplog.records if "restored from" in record.getMessage()] == [
        follower.findings[0].sentence
    ]


async def backup_before_erasures(memory: MemoryStore, follower: Follower) -> MemoryStore:
    """Return a copy with user 1 erased, of a followed store in which users 2 and 3 are erased afterwards."""
    await followed(memory, follower)
    await erase_users(memory, ["1"])
    copy = backup(memory)
    await erase_users(memory, ["2", "3"])
    await until(follower, await publish(memory, "second"))
    return copy


@virtual
async def test_users_erased_before_a_restore_stay_hidden_and_are_counted(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    async with following(remote) as follower:
        copy = await backup_before_erasures(memory, follower)
        restore(memory, copy)
        await asyncio.sleep(2 * RESTORED_S)
        assert [follower.erasures.erased.covers(f"user:{user}") for user in "1234"] == [True, True, True, False]
        sentences = {finding.source: finding.sentence for finding in follower.findings}
        assert "has lost 2 of them" in sentences["erased users"]
        await erase_users(memory, ["2", "3"])
        await until(follower, await publish(memory, "third"))
        assert "erased users" not in {finding.source for finding in follower.findings}


@virtual
async def test_replica_that_lags_behind_a_restore_does_not_clear_the_lost_erasures(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    async with following(remote) as follower:
        copy = await backup_before_erasures(memory, follower)
        lagging = backup(memory)
        restore(memory, copy)
        await asyncio.sleep(2 * RESTORED_S)
        remote.primary = False
        restore(memory, lagging)
        await asyncio.sleep(1)
        sentences = {finding.source: finding.sentence for finding in follower.findings}
        assert "has lost 2 of them" in sentences["erased users"]


class SlowRecords(RemoteStore):
    """A store that takes a while to return records."""

    pause_s = 0.0

    async def records(self, names: Sequence[str]) -> list[bytes | None]:
        records = await super().records(names)
        await asyncio.sleep(self.pause_s)
        return records


@virtual
async def test_no_user_seems_lost_if_an_older_record_is_read_late(memory: MemoryStore) -> None:
    store = SlowRecords(memory)
    async with following(store) as follower:
        await followed(memory, follower)
        store.pause_s = 5.0
        await erase_users(memory, ["1"])
        await asyncio.sleep(1)
        store.pause_s = 0.0
        await erase_users(memory, ["2"])
        await follower.refresh()
        await asyncio.sleep(10)
        assert [follower.erasures.erased.covers_user(user) for user in "123"] == [True, True, False]
        assert follower.findings == []


@virtual
async def test_service_without_the_record_of_erased_users_serves(memory: MemoryStore, remote: RemoteStore) -> None:
    await publish(memory, "first")
    await erase_users(memory, ["1"])
    memory.beside.clear()
    async with following(remote) as follower:
        assert follower.live is not None
        sentences = {finding.source: finding.sentence for finding in follower.findings}
        assert "has lost 1 of them" in sentences["erased users"]


@pytest.mark.parametrize("is_reported", [True, False])
@virtual
async def test_accepted_loss_of_erased_users_is_not_reported_and_they_stay_hidden(
    memory: MemoryStore, remote: RemoteStore, *, is_reported: bool
) -> None:
    async with following(remote) as follower:
        await followed(memory, follower)
        await erase_users(memory, ["1", "2", "3"])
        await until(follower, await publish(memory, "second"))
        memory.beside.clear()
        if is_reported:
            await erase_users(memory, ["1"])
            await until(follower, await publish(memory, "third"))
            assert [finding.source for finding in follower.findings] == ["erased users"]
        await accept_loss(memory, 2 if is_reported else 3)
        await until(follower, await publish(memory, "fourth"))
        assert follower.findings == []
        assert [follower.erasures.erased.covers_user(user) for user in "1234"] == [True, True, True, False]


@virtual
async def test_erasures_after_a_restore_are_not_taken_for_an_accepted_loss(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    async with following(remote) as follower:
        copy = await backup_before_erasures(memory, follower)
        restore(memory, copy)
        await erase_users(memory, ["4"])
        await until(follower, await publish(memory, "third"))
        assert [finding.source for finding in follower.findings] == ["erased users"]
        memory.beside.clear()
        await accept_loss(memory, 2)
        await until(follower, await publish(memory, "fourth"))
        assert [finding.source for finding in follower.findings] == ["erased users"], "those of the restore"


@virtual
async def test_manually_restored_older_catalogue_is_followed_after_30_seconds(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    async with following(remote) as follower:
        first = await followed(memory, follower)
        older = backup(memory)
        second = await publish(memory, "second")
        await until(follower, second)
        current = backup(memory)
        restore(memory, older, only_catalogue=True)
        await asyncio.sleep(RESTORED_S - 1)
        assert served(follower).id == second
        assert "if that lasts" in str(follower.last_error)
        restore(memory, current, only_catalogue=True)  # it was a stale read
        await asyncio.sleep(5)
        assert (served(follower).id, follower.last_error) == (second, None)
        restore(memory, older, only_catalogue=True)
        await asyncio.sleep(RESTORED_S - 1)
        assert served(follower).id == second
        assert await elapsed_until(follower, first) < 1 + 2 * STALE_POLL_S
        assert follower.last_error is None
        async with following(remote) as new:
            assert served(follower) == replace(served(new), decode=served(follower).decode)
        third = await publish(memory, "third")
        await until(follower, third)
        assert follower.findings == []


@virtual
async def test_restore_is_recognized_over_failures_between_older_reads(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    async with following(remote) as follower:
        first = await followed(memory, follower)
        older = backup(memory)
        await until(follower, await publish(memory, "second"))
        restore(memory, older, only_catalogue=True)
        await asyncio.sleep(RESTORED_S / 2)
        remote.failure = StoreUnavailable("away")
        await asyncio.sleep(RESTORED_S / 4)
        remote.failure = None
        assert await elapsed_until(follower, first) < RESTORED_S / 4 + 2 * STALE_POLL_S


@virtual
async def test_age_of_the_catalogue_counts_from_the_last_read_that_agreed(
    memory: MemoryStore, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", asyncio.get_running_loop().time)
    async with following(remote) as follower:
        await followed(memory, follower)
        await asyncio.sleep(100)
        assert follower.catalogue_age_s < STALE_POLL_S
        current = backup(memory)
        restore(memory, MemoryStore())
        await asyncio.sleep(10)
        assert 10 - STALE_POLL_S <= follower.catalogue_age_s <= 10 + STALE_POLL_S
        remote.failure = StoreUnavailable("away")
        await asyncio.sleep(10)
        assert 20 - STALE_POLL_S <= follower.catalogue_age_s <= 20 + STALE_POLL_S
        remote.failure = None
        restore(memory, current)
        await asyncio.sleep(2 * STALE_POLL_S)
        assert follower.catalogue_age_s < STALE_POLL_S


@virtual
async def test_failure_of_a_read_for_a_request_ends_when_the_store_answers(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    async with following(remote) as follower:
        await followed(memory, follower)
        remote.failure = StoreUnavailable("away")
        await follower.refresh()
        remote.failure = None
        assert follower.last_error == "away"
        await asyncio.sleep(2 * STALE_POLL_S)
        assert follower.last_error is None


@virtual
async def test_stale_replica_is_ignored_and_reported_while_it_alone_answers(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    async with following(remote) as follower:
        remote.primary = False
        first = await restored(memory, follower)
        second = served(follower).id
        await asyncio.sleep(10 * RESTORED_S)
        assert served(follower).id == second
        assert "only a replica answers" in str(follower.last_error)
        remote.primary = True
        assert await elapsed_until(follower, first) < 2 * STALE_POLL_S


@pytest.mark.parametrize(("key", "lost"), [("user:4", True), ("popular:s1", False)])
@virtual
async def test_partly_damaged_release_is_followed_and_reported(
    memory: MemoryStore, remote: RemoteStore, key: str, *, lost: bool
) -> None:
    async with following(remote) as follower:
        await followed(memory, follower)
        second = await publish(memory, "second", live=False, segments=2)
        await asyncio.sleep(0.05)
        assert served(follower).id != second, "it is not live yet"
        rows = memory.find(await ref_of(memory, second)).rows
        rows[key] += b"x"
        if lost:
            del rows[key]
        await life.activate(memory, second)
        await until(follower, second)
        assert follower.findings[0].sentence.startswith("damaged: 1 of its popular lists")
        left = ["", "s0"] if key == "popular:s1" else ["", "s0", "s1"]
        assert sorted(served(follower).popular) == [f"popular:{segment}" for segment in left]


@virtual
async def test_same_generation_catalogue_with_another_token_is_followed_at_once(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    async with following(remote) as follower:
        await followed(memory, follower)
        older = backup(memory)
        await until(follower, await publish(memory, "lost by a failover"))
        lost = await memory.catalogue()
        restore(memory, older, only_catalogue=True)  # the served release is still there
        other = await publish(memory, "written after the failover")
        assert (await memory.catalogue()).generation == lost.generation
        assert await elapsed_until(follower, other) < 2 * SPREAD_S
        assert follower.last_error is None


@pytest.mark.parametrize("lost", ["catalogue", "release"])
@virtual
async def test_data_missing_from_a_store_is_an_error_and_serving_continues(
    memory: MemoryStore, remote: RemoteStore, lost: str
) -> None:
    async with following(remote) as follower:
        first = await followed(memory, follower)
        copy = backup(memory)
        if lost == "catalogue":
            restore(memory, MemoryStore())
            sentence = (
                "the catalogue is not in this store any more; if releases are left, `hotplate store rebuild` writes a "
                "new one, else publish again or restore a backup"
            )
        else:
            memory.releases.clear()
            await follower.refresh()
            sentence = f"release {first} is live, and is not in this store"
        assert sentence in await until_error(follower)
        await asyncio.sleep(2 * RESTORED_S)
        assert (served(follower).id, sentence in str(follower.last_error)) == (first, True)
        restore(memory, copy)
        await asyncio.sleep(2 * STALE_POLL_S)
        assert (served(follower).id, follower.last_error) == (first, None)


async def test_release_of_which_a_cluster_has_lost_one_part_is_not_gone(redis_cluster: RedisCluster) -> None:
    url = redis_cluster.url(prefix="lost-part")
    await publish_to(url, lists("first"))
    store = connect(url)
    async with following(store) as follower:
        names = Keys("lost-part", clustered=True).release(served(follower).ref)
        manifest = names.located([MANIFEST])
        (bucket,) = manifest.buckets
        for key in (names.groups[bucket].first, manifest.names[0].decode()):
            redis_cluster.owner(key).server.execute_command("DEL", key)
        await follower.refresh()
        assert follower.last_error is None

        for group in names.groups:
            redis_cluster.owner(group.first).server.execute_command("DEL", group.first)
        for name in names.located(["popular:", *(f"user:{number}" for number in range(USERS))]).names:
            key = name.decode()
            redis_cluster.owner(key).server.execute_command("DEL", key)
        await follower.refresh()
        assert "is live, and is not in this store" in str(follower.last_error)
    await store.close()


@virtual
async def test_follower_survives_and_reports_any_reader_error(
    memory: MemoryStore, remote: RemoteStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(remote) as follower:
        first = await followed(memory, follower)
        remote.failure = RuntimeError("a page cannot be read, password=secret")
        second = await publish(memory, "second")
        assert "RuntimeError" in await until_error(follower)
        await follower.refresh()
        await asyncio.sleep(10)
        assert (served(follower).id, "secret" in str(follower.last_error)) == (first, False)
        assert [record.exc_info is not None for record in caplog.records if record.exc_info] == [True]
        remote.failure = None
        await until(follower, second)
        assert follower.last_error is None


class PolledStore(RemoteStore):
    """A store over a network whose changes are polled."""

    poll_s = 0.5


@virtual
async def test_short_outages_of_the_store_are_not_reported(
    memory: MemoryStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "hotplate.serve.releases.follower")
    monkeypatch.setattr("time.monotonic", asyncio.get_running_loop().time)  # of the catalogue's age
    store = PolledStore(memory)
    async with following(store) as follower:
        await followed(memory, follower)
        caplog.clear()
        for _ in range(5):
            store.failure = StoreUnavailable("503")
            await asyncio.sleep(TOLERATED_S / 2)
            assert (follower.findings, follower.catalogue_age_s < TOLERATED_S) == ([], True)
            store.failure = None
            await asyncio.sleep(2 * TOLERATED_S)
        assert caplog.messages == []
        second = await publish(memory, "second")
        await until(follower, second)


@virtual
async def test_outage_that_is_not_short_is_reported_once(memory: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "hotplate.serve.releases.follower")
    store = PolledStore(memory)
    async with following(store) as follower:
        await followed(memory, follower)
        caplog.clear()
        store.failure = StoreUnavailable("503")
        await asyncio.sleep(10 * TOLERATED_S)
        assert [finding.sentence for finding in follower.findings] == ["503"]
        store.failure = None
        await asyncio.sleep(10 * TOLERATED_S)
        assert follower.findings == []
        assert caplog.messages == ["503", "the store can be read again"]


def refused_for_good() -> StoreUnavailable:
    refusal = StoreUnavailable("401")
    refusal.permanent = True
    return refusal


@pytest.mark.parametrize("failure", [StoreMisused("no database"), refused_for_good()])
@virtual
async def test_failure_that_a_retry_cannot_mend_is_reported_at_once(
    memory: MemoryStore, failure: StoreUnavailable | StoreMisused
) -> None:
    store = PolledStore(memory)
    async with following(store) as follower:
        await followed(memory, follower)
        store.failure = failure
        await asyncio.sleep(store.poll_s)
        assert [finding.sentence for finding in follower.findings] == [str(failure)]


class Warmed(MemoryStore):
    """A store that takes a while to bring a release into memory."""

    warm_s = 5.0
    warmed = 0

    async def warm(self, release: ReleaseRef) -> None:
        if release.incarnation not in self.releases:
            raise ReleaseNotFound("gone")
        await asyncio.sleep(self.warm_s)
        self.warmed += 1


@virtual
async def test_release_is_warmed_before_serving_with_a_time_limit(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    store = Warmed(clock)
    first = await publish(store, "first")
    async with following(store, warm=True) as follower:
        await asyncio.sleep(store.warm_s - 1)
        assert (follower.live, follower.attempted.is_set()) == (None, False)
        await asyncio.wait_for(follower.attempted.wait(), 60)
        assert follower.live is not None
        assert f"release {first} was brought into memory in 5.0 s" in caplog.text
        store.warm_s = 2 * WARM_S
        second = await publish(store, "second")
        await asyncio.sleep(WARM_S - 1)
        assert served(follower).id == first
        await asyncio.sleep(2)
        assert (served(follower).id, store.warmed) == (second, 1)
        assert f"release {second} is served before all of it is in memory" in caplog.text


@virtual
async def test_erasure_takes_effect_while_a_release_is_warmed_and_does_not_restart_it(clock: FakeClock) -> None:
    store = Warmed(clock)
    first = await publish(store, "first")
    async with following(store, warm=True) as follower:
        await until(follower, first)
        second = await publish(store, "second")
        await asyncio.sleep(store.warm_s - 1)
        await erase_users(store, ["3"])
        await asyncio.sleep(0.1)
        assert (served(follower).id, follower.erasures.erased.covers_user("3")) == (first, True)
        await asyncio.sleep(1)
        assert served(follower).id == second


@virtual
async def test_rollback_neither_waits_for_warming_nor_warms_the_release_before(clock: FakeClock) -> None:
    store = Warmed(clock)
    await publish(store, "first")
    second = await publish(store, "second")
    async with following(store, warm=True) as follower:
        await until(follower, second)
        third = await publish(store, "third")
        await until(follower, third)
        store.warmed = 0
        await publish(store, "fourth")
        await asyncio.sleep(1)
        await life.rollback(store, None, reason="worse")
        await asyncio.sleep(0.1)
        assert served(follower).id == third, "the fourth was never served"
        await life.rollback(store, third, reason="worse")
        await asyncio.sleep(0.1)
        assert (served(follower).id, store.warmed) == (second, 0)


@virtual
async def test_processes_stagger_remote_release_loads_except_for_the_first(memory: MemoryStore) -> None:
    clock = asyncio.get_running_loop().time
    await publish(memory, "first")
    followers = [Follower(RemoteStore(memory)) for _ in range(20)]
    started = clock()
    tasks = [asyncio.create_task(follower.run()) for follower in followers]
    await asyncio.gather(*(follower.attempted.wait() for follower in followers))
    assert clock() == started
    second = await publish(memory, "second")
    loaded_at = set[float]()
    waiting = list(followers)
    while waiting:
        await asyncio.sleep(0.001)
        for follower in list(waiting):
            if served(follower).id == second:
                loaded_at.add(clock())
                waiting.remove(follower)
    assert len(loaded_at) > 10
    assert max(loaded_at) - started <= SPREAD_S + 0.01
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@virtual
async def test_releases_are_followed_after_a_defect_in_judging_a_canary(memory: MemoryStore) -> None:
    first = await publish(memory, "first")
    await life.start_canary(memory, await publish(memory, "canary", live=False), 50)

    def fail(_: Release | None) -> str | None:
        return None if follower.live is None else str(1 // 0)

    follower = Follower(memory, verdict=fail)
    task = asyncio.create_task(follower.run())
    await until(follower, first)
    await asyncio.sleep(5)
    await life.abort(memory)
    await asyncio.sleep(1)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class SlowRelease(RemoteStore):
    """A store whose rows of one release are read only once they may be."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.slow: ReleaseRef | None = None
        self.may_answer = asyncio.Event()

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        if release == self.slow:
            await self.may_answer.wait()
        return await super().get_many(release, keys, timeout_s=timeout_s)


@virtual
async def test_release_goes_live_while_the_release_before_is_loaded_slowly(memory: MemoryStore) -> None:
    store = SlowRelease(memory)
    first = await ref_of(memory, await publish(memory, "first"))
    second = await publish(memory, "second")
    async with following(store) as follower:
        assert (served(follower).id, follower.previous) == (second, None)
        store.slow = first
        loading = asyncio.create_task(follower.release_before(first))
        await asyncio.sleep(1)
        third = await publish(memory, "third")
        assert await elapsed_until(follower, third) < 2 * SPREAD_S
        store.may_answer.set()
        before = await loading
        assert before is not None
        assert before.ref == first
        assert follower.previous is not None
        assert follower.previous.id == second, "the release before the third"
