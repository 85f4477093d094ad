"""Reads over tiers that misbehave: inside the budget, never empty, never another release than the answer says.

Lookups of one turn of the loop are read together, once for each key, and each is answered as soon as its own is there.
"""

import asyncio
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, cast

import pytest

from hotplate.base.timing import loop_time
from hotplate.serve.embedded import Lists
from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.options import Selection
from hotplate.serve.lists.paging import Cursor
from hotplate.serve.lists.reader import FIRST_READ_S, TieredReader
from hotplate.serve.lists.requests import ListRequest, read_lists, shape_lists
from hotplate.serve.lists.shaping import Shaper
from hotplate.serve.metrics import FAILED, HISTOGRAM_CELLS, LOOKUPS
from hotplate.serve.tiers.breaker import FAILURES, PROBE_PAUSES_S
from hotplate.serve.tiers.lookups import caller_deadline, read_within
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import ITEM, OFFSET_BYTES, USER, IdTest, RowKey, decode, encode_id
from hotplate.stores.errors import ReleaseCorrupt, StoreUnavailable
from hotplate.stores.store import Reader, ReadResult
from hotplate.stores.users import erase_users
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore, publish
from tests.support.service import a_list, publish_through
from tests.support.stores import allow_erasure, ref_of
from tests.support.virtual import virtual

if TYPE_CHECKING:
    from hotplate.serve.consumed.table import Consumed

BUDGET_S = 0.1


class Counting(TieredReader):
    """A reader over some stores, and its counts."""

    def __init__(self, *stores: Reader) -> None:
        names = [f"tier{place}" for place in range(len(stores))]
        super().__init__(dict(zip(names, stores, strict=True)), budget_s=BUDGET_S)

    async def refresh(self) -> None:
        for tier in self.tiers:
            await tier.follower.refresh()

    def counted(self, source: str, outcome: str) -> float:
        return self.metrics.total(LOOKUPS[source, outcome])[0]


class DamagedStore(MemoryStore):
    """A store in this process in which some keys lie on pages that cannot be read."""

    damaged = frozenset[str]()
    raising: Exception = ReleaseCorrupt("page 7 cannot be read")

    def get(self, release: ReleaseRef, key: str) -> bytes | None:
        if key in self.damaged:
            raise self.raising
        return super().get(release, key)

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        results = await super().get_many(release, [key for key in keys if key not in self.damaged], timeout_s=timeout_s)
        read = iter(results)
        return [ReleaseCorrupt(str(self.raising)) if key in self.damaged else next(read) for key in keys]


@pytest.fixture
def fallback(clock: FakeClock) -> RemoteStore:
    return RemoteStore(MemoryStore(clock))


async def over(*stores: Reader) -> Counting:
    """Return a reader that has read the catalogue of each store."""
    reader = Counting(*stores)
    await reader.refresh()
    return reader


async def over_two_releases(first: RemoteStore, second: RemoteStore, *, users: range = range(5)) -> Counting:
    """Publish a release into each of two tiers, the second for *users*, and return a reader of both."""
    await publish(first.inner, "first")
    await publish(second.inner, "second", users=users)
    return await over(first, second)


def brief(answer: EncodedList) -> tuple[str, str, bytes]:
    return answer.tier, answer.source, answer.body[OFFSET_BYTES:]


@virtual
async def test_slow_or_failing_store_gives_popular_lists_in_the_budget(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await publish(memory, "first")
    reader = await over(remote)
    assert brief(await reader.read(USER, "1")) == ("tier0", "personal", b"first for 1")
    remote.delay_s = 30
    assert brief(await asyncio.wait_for(reader.read(USER, "1"), 5)) == ("tier0", "popular", b"first")
    remote.delay_s = 0
    remote.failure = StoreUnavailable("gone")
    assert brief(await reader.read(USER, "1")) == ("tier0", "popular", b"first")
    remote.failure = None
    remote.broken_keys = {"user:2"}
    answers = await reader.personal_many(["1", "2", "3", "nobody"])
    assert [answer.source for answer in answers] == ["personal", "popular", "personal", "popular"]
    assert reader.counted("popular", "error") == 3
    assert reader.counted("popular", "miss") == 1
    assert reader.counted("personal", "hit") == 3


@virtual
async def test_failed_and_late_reads_are_not_repeated(memory: MemoryStore) -> None:
    await publish(memory, "first")
    remote = RemoteStore(memory)
    reader = await over(remote)

    def errors() -> float:
        return sum(reader.metrics.total(reader.metrics.store["tier0", "get_many", "error"], HISTOGRAM_CELLS - 1))

    remote.reads.clear()
    assert (await reader.read(USER, "1")).source == "personal"
    assert remote.reads == [["user:1"]]
    remote.failure = StoreUnavailable("gone")
    assert (await reader.read(USER, "1")).source == "popular"
    assert (remote.reads, errors()) == ([["user:1"]] * 2, 1)
    remote.failure, remote.delay_s = None, 30
    assert (await reader.read(USER, "1")).source == "popular"
    assert (len(remote.reads), errors()) == (3, 2)
    for _ in range(FAILURES):
        await reader.read(USER, "1")
    assert reader.tiers[0].breaker.is_open


@virtual
async def test_read_of_a_missing_release_is_no_failure_of_the_store(memory: MemoryStore) -> None:
    release = await publish(memory, "first")
    remote = RemoteStore(memory)
    reader = await over(remote)
    memory.releases.pop((await ref_of(memory, release)).incarnation)
    remote.reads.clear()
    assert (await reader.read(USER, "1")).source == "popular"
    assert remote.reads[:1] == [["user:1"]]
    assert set(map(tuple, reader.metrics.counted(FAILED).values())) == {(0.0,)}


@virtual
async def test_reader_closes_with_an_unsent_batch(memory: MemoryStore) -> None:
    await publish(memory, "first")
    remote = RemoteStore(memory)
    async with Counting(remote) as reader:
        await reader.wait_until_ready(1)
        remote.delay_s = BUDGET_S / 2
        waiting = asyncio.create_task(reader.read(USER, "1"))
        await asyncio.sleep(0)
    assert waiting.done()
    assert (await waiting).source == "personal"


async def test_unlimited_caller_sets_no_deadline() -> None:
    with read_within(inf):
        assert caller_deadline() is None
    with read_within(60):
        assert caller_deadline() is not None


@virtual
async def test_caller_deadline_below_the_budget_is_kept_and_opens_no_circuit(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await publish(memory, "first")
    reader = await over(remote)
    remote.delay_s = BUDGET_S / 2
    for _ in range(2 * FAILURES):
        started = loop_time()
        with read_within(BUDGET_S / 4):
            assert (await reader.read(USER, "1")).source == "popular"
            assert [answer.status for answer in await reader.personal_many(["1", "2"])] == ["error", "error"]
        assert loop_time() - started < BUDGET_S  # two answers, each in a quarter of the budget
    with read_within(60):
        assert (await reader.read(USER, "1")).source == "personal"
    remote.delay_s = 30
    for _ in range(FAILURES):
        with read_within(60):
            assert (await reader.read(USER, "1")).source == "popular"
    assert reader.tiers[0].breaker.is_open


@virtual
async def test_start_waits_for_a_silent_store_for_the_time_of_a_first_read_only(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await publish(memory, "first")
    remote.delay_s = 3600
    async with TieredReader({"silent": remote, "near": RemoteStore(memory)}) as reader:
        began_s = loop_time()
        await reader.wait_until_ready(60)
        assert loop_time() - began_s == pytest.approx(FIRST_READ_S)
        assert reader.first_live is not None


@virtual
async def test_release_is_read_from_the_next_tier_in_its_share_of_the_budget(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    release = await publish(memory, "first")
    reader = await over(remote, RemoteStore(memory))
    remote.delay_s = 30
    for _ in range(FAILURES):
        (encoded,) = await reader.in_release(release, [RowKey(USER, "1")])
        assert encoded is not None
        assert (encoded.source, encoded.tier) == ("personal", "tier1")
    assert [tier.breaker.is_open for tier in reader.tiers] == [True, False]


@virtual
async def test_caller_that_gives_up_on_a_release_opens_no_circuit(memory: MemoryStore, remote: RemoteStore) -> None:
    release = await publish(memory, "first")
    reader = await over(remote)
    remote.delay_s = BUDGET_S / 2
    for _ in range(2 * FAILURES):
        with read_within(BUDGET_S / 4):
            assert await reader.in_release(release, [RowKey(USER, "1")]) == [None]
    assert not reader.tiers[0].breaker.is_open


@pytest.mark.parametrize("local", [True, False])
@virtual
async def test_the_next_tier_answers_a_caller_with_little_time(
    remote: RemoteStore, fallback: RemoteStore, *, local: bool
) -> None:
    reader = await over_two_releases(remote, fallback, users=range(9))
    if local:
        reader = await over(remote, fallback.inner)
    remote.delay_s = 30
    for _ in range(2 * FAILURES):
        started = loop_time()
        with read_within(BUDGET_S):
            answers = await reader.personal_many([str(n % 9) for n in range(700)])
        assert {(answer.tier, answer.source) for answer in answers} == {("tier1", "personal")}
        assert loop_time() - started < BUDGET_S
    assert not reader.tiers[0].breaker.is_open
    if local:
        with read_within(BUDGET_S / 4):
            assert brief(await reader.read(USER, "8")) == ("tier1", "personal", b"second for 8")


@pytest.mark.parametrize("local", [True, False])
@virtual
async def test_missing_release_is_replaced_by_the_live_one(
    memory: MemoryStore, remote: RemoteStore, *, local: bool
) -> None:
    first = await publish(memory, "first")
    reader = await over(memory if local else remote)
    second = await publish(memory, "second")
    await memory.erase(await ref_of(memory, first), allow_erasure)
    answer = await reader.read(USER, "1")
    assert (answer.release.id, answer.body[OFFSET_BYTES:]) == (second, b"second for 1")
    many = await reader.personal_many(["1", "2", "3"])
    assert {answer.release.id for answer in many} == {second}
    await memory.erase(await ref_of(memory, second), allow_erasure)
    assert brief(await reader.read(USER, "1")) == ("tier0", "popular", b"second")


@pytest.mark.parametrize("failure", [StoreUnavailable("gone"), IndexError("pop from an empty deque")], ids=repr)
@virtual
async def test_next_tier_answers_if_the_first_is_slow_or_raises_and_is_named(
    remote: RemoteStore, fallback: RemoteStore, failure: Exception
) -> None:
    reader = await over_two_releases(remote, fallback)
    assert brief(await reader.read(USER, "1")) == ("tier0", "personal", b"first for 1")
    remote.delay_s = 30
    assert brief(await asyncio.wait_for(reader.read(ITEM, "1"), 5)) == ("tier1", "popular", b"second")
    remote.delay_s = 0
    remote.failure = failure
    for _ in range(FAILURES):
        answer = await reader.read(USER, "1")
        assert brief(answer) == ("tier1", "personal", b"second for 1")
        assert answer.release.id == reader.tiers[1].follower.live.id  # type: ignore[union-attr]  # it follows one
        assert {answer.tier for answer in await reader.personal_many(["1", "2", "3"])} == {"tier1"}
    assert ("IndexError" if isinstance(failure, IndexError) else "gone") in str(reader.tiers[0].error)


@virtual
async def test_large_batch_has_no_short_deadline_and_local_store_is_never_late(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await publish(memory, "first")
    users = [str(n % 5) for n in range(2000)]
    remote.delay_s = 2 * BUDGET_S
    for store in (remote, memory):
        reader = await over(store)
        batches = await asyncio.gather(*(reader.personal_many(users) for _ in range(5)))
        assert {answer.source for answers in batches for answer in answers} == {"personal"}
        assert [answer.body[OFFSET_BYTES:] for answer in batches[0]] == [f"first for {user}".encode() for user in users]


@virtual
async def test_an_answer_for_many_is_of_one_release_for_hidden_users_too(remote: RemoteStore) -> None:
    first = await publish(remote.inner, "first")
    await erase_users(remote.inner, ["2"])
    reader = await over(remote)
    remote.delay_s = BUDGET_S / 4
    answering = asyncio.create_task(reader.personal_many(["1", "2"]))
    await asyncio.sleep(BUDGET_S / 8)
    remote.delay_s = 0.0
    second = await publish(remote.inner, "second")
    await reader.refresh()
    assert reader.live_id() == second  # while the users are read in the first
    assert [answer.release.id for answer in await answering] == [first, first]


@virtual
async def test_failing_store_gets_no_requests_until_it_recovers(remote: RemoteStore, fallback: RemoteStore) -> None:
    reader = await over_two_releases(remote, fallback)
    remote.delay_s = 30
    for _ in range(FAILURES):
        assert (await reader.read(USER, "1")).tier == "tier1"
    assert reader.tiers[0].breaker.is_open
    assert reader.tiers[0].error is not None
    started = loop_time()
    for _ in range(50):
        assert (await reader.read(USER, "1")).tier == "tier1"
    assert loop_time() == started, "an open circuit costs no request its share"
    remote.delay_s = 0
    async with asyncio.timeout(PROBE_PAUSES_S[0] + 0.02):
        while (await reader.read(USER, "1")).tier != "tier0":
            await asyncio.sleep(0.01)
    assert reader.tiers[0].error is None


@pytest.mark.parametrize(
    "raising", [ReleaseCorrupt("'user:1' cannot be read"), RuntimeError("MDB_CORRUPTED")], ids=["corrupt", "foreign"]
)
@virtual
async def test_damaged_key_falls_through_without_affecting_others_and_logs_once(
    clock: FakeClock, fallback: RemoteStore, caplog: pytest.LogCaptureFixture, raising: Exception
) -> None:
    store = DamagedStore(clock)
    await publish(store, "first")
    await publish(fallback.inner, "second")
    reader = await over(store, fallback)
    store.damaged = frozenset({"user:1"})
    store.raising = raising
    assert brief(await reader.read(USER, "1")) == ("tier1", "personal", b"second for 1")
    assert brief(await reader.read(USER, "2")) == ("tier0", "personal", b"first for 2")
    many = await reader.personal_many(["0", "1", "2"])
    assert [brief(answer) for answer in many] == [
        ("tier0", "personal", b"first for 0"), ("tier0", "popular", b"first"), ("tier0", "personal", b"first for 2"),
    ]  # fmt: skip
    assert "is damaged in this store" in str(reader.tiers[0].error)
    assert "user:1" not in f"{caplog.text} {reader.tiers[0].error}"
    assert 'hotplate_store_corrupt_total{store="tier0"} 2.0' in Lists(lambda: reader).prometheus_text().decode()
    assert [record.levelname for record in caplog.records if record.levelname != "INFO"] == ["ERROR"]
    store.damaged = frozenset()
    third = await publish(store, "third")
    await reader.refresh()
    assert (reader.live_id(), reader.tiers[0].error) == (third, None)


class SlowPoints(RemoteStore):
    """A store that reads key by key, one of which it is slow to read."""

    coalesce = 1

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        await asyncio.sleep(BUDGET_S / 2 if "user:1" in keys else 0)
        return await super().get_many(release, keys, timeout_s=timeout_s)


def of_eight(store: RemoteStore) -> RemoteStore:
    """Return a remote store that reads eight keys in one call."""
    store.batch = store.coalesce = 8
    return store


@pytest.fixture
def store(clock: FakeClock) -> RemoteStore:
    return of_eight(RemoteStore(MemoryStore(clock)))


@pytest.fixture
def other(clock: FakeClock) -> RemoteStore:
    return of_eight(RemoteStore(MemoryStore(clock)))


async def personal(reader: TieredReader, *users: object) -> list[EncodedList]:
    return await asyncio.gather(*(reader.read(USER, str(user)) for user in users))


def texts(answers: Sequence[EncodedList]) -> list[str]:
    return [answer.body[OFFSET_BYTES:].decode() for answer in answers]


@virtual
async def test_lookups_of_one_loop_turn_are_batched_and_split_into_parallel_calls(store: RemoteStore) -> None:
    await publish(store.inner, "first", users=range(20))
    reader = await over(store)
    store.reads.clear()  # of the sample that is read before a release is served
    assert texts(await personal(reader, *range(8))) == [f"first for {n}" for n in range(8)]
    assert store.reads == [[f"user:{n}" for n in range(8)]]
    store.delay_s = BUDGET_S / 2
    started = loop_time()
    assert {answer.source for answer in await personal(reader, *range(20))} == {"personal"}
    assert loop_time() - started == pytest.approx(store.delay_s)
    assert [len(keys) for keys in store.reads[1:]] == [8, 8, 4]


@virtual
async def test_concurrent_lookups_of_a_key_share_one_read_across_loop_turns(store: RemoteStore) -> None:
    await publish(store.inner, "first", segments=1)
    reader = await over(store)
    store.delay_s = BUDGET_S / 2
    early = [asyncio.create_task(reader.read(USER, user)) for user in ("1", "1", "nobody")]
    await asyncio.sleep(BUDGET_S / 4)
    late = [asyncio.create_task(reader.read(USER, "1")), asyncio.create_task(reader.read(USER, "nobody", "s0"))]
    answers = await asyncio.gather(*early, *late)
    assert texts(answers) == ["first for 1", "first for 1", "first", "first for 1", "0"]
    assert store.reads == [["user:1", "user:nobody"]]
    assert [counts[:2] for counts in [answers[0].release.tally.lookups[""]]] == [[3, 2]]


@virtual
async def test_a_lookup_after_a_flip_does_not_share_a_read_from_before_it(store: RemoteStore) -> None:
    await publish(store.inner, "first")
    reader = await over(store)
    store.delay_s = BUDGET_S / 2
    before = asyncio.create_task(reader.read(USER, "1"))
    await asyncio.sleep(BUDGET_S / 4)
    await publish(store.inner, "second")
    store.delay_s = 0
    await reader.tiers[0].follower.refresh()
    assert texts([await reader.read(USER, "1"), await before]) == ["second for 1", "first for 1"]


@virtual
async def test_cancelled_caller_does_not_cancel_shared_reads(store: RemoteStore) -> None:
    await publish(store.inner, "first")
    reader = await over(store)
    store.delay_s = BUDGET_S / 2
    waiting = [asyncio.create_task(reader.read(USER, user)) for user in ("1", "1", "2")]
    await asyncio.sleep(BUDGET_S / 4)
    waiting[0].cancel()
    waiting[2].cancel()
    assert texts([await waiting[1]]) == ["first for 1"]
    assert not reader.tiers[0].breaker.is_open


@virtual
async def test_slow_point_read_delays_only_its_own_key(clock: FakeClock) -> None:
    store = SlowPoints(MemoryStore(clock))
    await publish(store.inner, "first")
    reader = await over(store)
    started = loop_time()
    slow = asyncio.create_task(reader.read(USER, "1"))
    assert texts(await personal(reader, 0, 2, 3)) == ["first for 0", "first for 2", "first for 3"]
    assert loop_time() == started
    assert texts([await slow]) == ["first for 1"]


@virtual
async def test_one_lookup_probes_a_store_and_the_rest_do_not_wait(store: RemoteStore, other: RemoteStore) -> None:
    await publish(store.inner, "first")
    await publish(other.inner, "second")
    reader = await over(store, other)
    store.failure = StoreUnavailable("gone")
    for _ in range(FAILURES):
        await reader.read(USER, "1")
    store.failure = None
    store.delay_s = BUDGET_S / 4
    await asyncio.sleep(PROBE_PAUSES_S[0])
    started = loop_time()
    probe, *waiting = [asyncio.create_task(reader.read(USER, str(n))) for n in range(5)]
    assert {answer.tier for answer in await asyncio.gather(*waiting)} == {"tier1"}
    assert loop_time() == started
    assert (await probe).tier == "tier0"
    assert not reader.tiers[0].breaker.is_open


class MovingRemote(RemoteStore):
    """A remote store whose live release is replaced and erased while the first rows of users are read."""

    moves_to: range = range(0)

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        results = await super().get_many(release, keys, timeout_s=timeout_s)
        if self.moves_to and keys[0].startswith(USER):
            users = self.moves_to
            self.moves_to = range(0)
            await publish(self.inner, "second", users=users)
            await self.inner.erase(release, allow_erasure)
        return results


@virtual
async def test_a_row_that_a_replaced_release_lacked_is_read_in_its_successor(clock: FakeClock) -> None:
    memory = MemoryStore(clock)
    await publish(memory, "first")
    first = MovingRemote(memory)
    reader = await over(first, RemoteStore(memory))
    first.broken_keys = {"user:1"}
    first.moves_to = range(9)
    lacking, failing = await asyncio.gather(reader.read(USER, "8"), reader.read(USER, "1"))
    assert brief(lacking) == ("tier1", "personal", b"second for 8")
    assert brief(failing) == ("tier1", "personal", b"second for 1")


@virtual
async def test_release_of_a_page_that_is_gone_is_read_once(memory: MemoryStore, remote: RemoteStore) -> None:
    first = await publish(memory, "first")
    reader = await over(remote)
    popular = reader.popular()
    await publish(memory, "second")
    await memory.erase(await ref_of(memory, first), allow_erasure)
    remote.reads.clear()
    await reader.in_release(first, [RowKey(USER, "1")])
    assert list(remote.reads).count(["user:1"]) == 1
    assert reader.popular(after=Cursor.of(popular)).release.id == first


class Bought:
    """Items that are hidden from users, as a table of consumed items has them."""

    def __init__(self, items: dict[str, set[str]]) -> None:
        self.items = items

    def hidden_from(self, user: str) -> IdTest | None:
        hidden = {encode_id(item) for item in self.items.get(user, ())}
        return hidden.__contains__ if hidden else None


async def test_popular_list_of_a_batch_lacks_only_what_each_user_consumed(memory: MemoryStore) -> None:
    await publish_through(memory, {"popular:": a_list("p1", "p2"), "user:1": a_list("a", "b")})
    reader = TieredReader({"memory": memory})
    await reader.tiers[0].follower.refresh()
    consumed = cast("Consumed", Bought({"buyer": {"p1"}, "1": {"a"}}))
    shaper = Shaper(reader.deny_list, consumed, is_erased=reader.is_erased)
    selection = Selection()
    requests = [ListRequest(USER, user, selection=selection) for user in ("x", "buyer", "1", "y")]
    answers = shape_lists(shaper, requests, await read_lists(reader, requests))
    shown = [[item["id"] for item in decode(answer.items)] for answer in answers]
    assert shown == [["p1", "p2"], ["p2"], ["b", "p1", "p2"], ["p1", "p2"]]
