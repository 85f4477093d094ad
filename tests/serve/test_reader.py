"""Reads over tiers that misbehave: inside the budget, never empty, never another release than the answer says."""

import asyncio

import pytest

from hotplate.serve.breaker import FAILURES, PAUSE_S
from hotplate.serve.lists import Lists
from hotplate.serve.metrics import LOOKUPS
from hotplate.serve.reader import EncodedList, NotReady, TieredReader, read_within
from hotplate.serve.tiers import loop_time
from hotplate.stores import lifecycle as life
from hotplate.stores.encoding import OFFSET_BYTES
from hotplate.stores.errors import ReleaseCorrupt, StoreUnavailable
from hotplate.stores.memory import MemoryStore
from hotplate.stores.store import Reader
from tests.support.clock import FakeClock
from tests.support.remote import DamagedStore, RemoteStore, publish
from tests.support.stores import ref_of
from tests.support.virtual import virtual

BUDGET_S = 0.1


class Counting(TieredReader):
    """A reader over some stores, and what it counted."""

    def __init__(self, *stores: Reader) -> None:
        names = [f"tier{place}" for place in range(len(stores))]
        super().__init__(dict(zip(names, stores, strict=True)), budget_s=BUDGET_S)

    async def refresh(self) -> None:
        for tier in self.tiers:
            await tier.follower.refresh()

    def counted(self, source: str, outcome: str) -> float:
        return self.metrics.total(LOOKUPS[source, outcome])[0]


@pytest.fixture
def fallback(clock: FakeClock) -> RemoteStore:
    return RemoteStore(MemoryStore(clock))


async def over(*stores: Reader) -> Counting:
    """Return a reader that has read the catalogue of each store."""
    reader = Counting(*stores)
    await reader.refresh()
    return reader


async def over_a_failed_one(memory: MemoryStore, remote: RemoteStore) -> Counting:
    """Return a reader of a store that has a release and failed so often that its circuit is open; it still fails."""
    await publish(memory, "first")
    reader = await over(remote)
    remote.failure = StoreUnavailable("gone")
    for _ in range(FAILURES):
        await reader.personal("1")
    return reader


async def over_two_releases(first: RemoteStore, second: RemoteStore, *, users: range = range(5)) -> Counting:
    """Publish a release into each of two tiers, the second for *users*, and return a reader of both."""
    await publish(first.inner, "first")
    await publish(second.inner, "second", users=users)
    return await over(first, second)


def brief(answer: EncodedList) -> tuple[str, str, bytes]:
    return answer.tier, answer.source, answer.body[OFFSET_BYTES:]


@virtual
async def test_before_any_release_nothing_is_ready_and_the_error_has_the_reason(remote: RemoteStore) -> None:
    reader = await over(remote)
    with pytest.raises(NotReady, match="nothing is live"):
        await reader.personal("1")
    with pytest.raises(NotReady):
        await reader.personal_many(["1"])
    with pytest.raises(NotReady):
        reader.popular()


@virtual
async def test_a_slow_or_failing_store_is_answered_by_popular_inside_the_budget(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await publish(memory, "first")
    reader = await over(remote)
    assert brief(await reader.personal("1")) == ("tier0", "personal", b"first for 1")
    remote.delay_s = 30
    assert brief(await asyncio.wait_for(reader.personal("1"), 5)) == ("tier0", "popular", b"first")
    remote.delay_s, remote.failure = 0, StoreUnavailable("gone")
    assert brief(await reader.personal("1")) == ("tier0", "popular", b"first")
    remote.failure, remote.broken_keys = None, {"user:2"}
    answers = await reader.personal_many(["1", "2", "3", "nobody"])
    assert [one.source for one in answers] == ["personal", "popular", "personal", "popular"]
    assert reader.counted("popular", "error") == 3
    assert reader.counted("popular", "miss") == 1
    assert reader.counted("personal", "hit") == 3


@virtual
async def test_a_caller_that_waits_for_less_than_the_budget_is_answered_in_its_time_and_opens_no_circuit(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await publish(memory, "first")
    reader = await over(remote)
    remote.delay_s = BUDGET_S / 2
    for _ in range(2 * FAILURES):
        started = loop_time()
        with read_within(BUDGET_S / 4):
            assert (await reader.personal("1")).source == "popular"
            assert [one.status for one in await reader.personal_many(["1", "2"])] == ["error", "error"]
        assert loop_time() - started < BUDGET_S  # two answers, each in a quarter of the budget
    with read_within(60):
        assert (await reader.personal("1")).source == "personal"
    remote.delay_s = 30
    for _ in range(FAILURES):
        with read_within(60):
            assert (await reader.personal("1")).source == "popular"
    assert reader.tiers[0].breaker.is_open


@virtual
async def test_a_probe_whose_caller_could_not_wait_leaves_the_next_one_to_probe(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    reader = await over_a_failed_one(memory, remote)
    remote.failure, remote.delay_s = None, BUDGET_S / 2
    await asyncio.sleep(PAUSE_S[0])
    with read_within(BUDGET_S / 4):
        assert (await reader.personal("1")).source == "popular"
    assert reader.tiers[0].breaker.is_open
    assert (await reader.personal("1")).source == "personal"


@pytest.mark.parametrize("local", [True, False])
@virtual
async def test_a_release_that_is_gone_is_replaced_by_what_is_live_now(
    memory: MemoryStore, remote: RemoteStore, *, local: bool
) -> None:
    first = await publish(memory, "first")
    reader = await over(memory if local else remote)
    second = await publish(memory, "second")
    await memory.erase(await ref_of(memory, first))
    answer = await reader.personal("1")
    assert (answer.served.id, answer.body[OFFSET_BYTES:]) == (second, b"second for 1")
    many = await reader.personal_many(["1", "2", "3"])
    assert {one.served.id for one in many} == {second}
    await memory.erase(await ref_of(memory, second))
    assert brief(await reader.personal("1")) == ("tier0", "popular", b"second")


@virtual
async def test_the_next_tier_answers_when_the_first_fails_or_is_slow_and_the_answer_names_it(
    remote: RemoteStore, fallback: RemoteStore
) -> None:
    reader = await over_two_releases(remote, fallback)
    assert brief(await reader.personal("1")) == ("tier0", "personal", b"first for 1")
    remote.failure = StoreUnavailable("gone")
    answer = await reader.personal("1")
    assert brief(answer) == ("tier1", "personal", b"second for 1")
    assert answer.served.id == reader.tiers[1].follower.served.id  # type: ignore[union-attr]  # it follows one
    assert {one.tier for one in await reader.personal_many(["1", "2"])} == {"tier1"}
    remote.failure, remote.delay_s = None, 30
    assert brief(await asyncio.wait_for(reader.similar("1"), 5)) == ("tier1", "popular", b"second")


@virtual
async def test_a_miss_falls_through_to_a_tier_with_another_release_only(
    memory: MemoryStore, remote: RemoteStore, fallback: RemoteStore
) -> None:
    await publish(memory, "first")
    await publish(fallback.inner, "second", users=range(9))
    same = RemoteStore(memory)
    reader = await over(remote, same, fallback)
    same.failure = StoreUnavailable("must not be read")
    assert brief(await reader.personal("8")) == ("tier2", "personal", b"second for 8")
    assert brief(await reader.personal("nobody")) == ("tier0", "popular", b"first")
    assert not reader.tiers[1].breaker.is_open


@virtual
async def test_a_large_batch_has_the_time_that_it_takes_and_a_local_store_is_never_late(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await publish(memory, "first")
    users = [str(n % 5) for n in range(2000)]
    remote.delay_s = 2 * BUDGET_S
    for store in (remote, memory):
        reader = await over(store)
        batches = await asyncio.gather(*(reader.personal_many(users) for _ in range(5)))
        assert {one.source for answers in batches for one in answers} == {"personal"}
        assert [one.body[OFFSET_BYTES:] for one in batches[0]] == [f"first for {user}".encode() for user in users]


@virtual
async def test_an_answer_for_many_is_of_one_release(remote: RemoteStore, fallback: RemoteStore) -> None:
    reader = await over_two_releases(remote, fallback, users=range(9))
    answers = await reader.personal_many(["1", "8"])
    assert [brief(one) for one in answers] == [("tier0", "personal", b"first for 1"), ("tier0", "popular", b"first")]
    assert len({one.served.id for one in answers}) == 1


@virtual
async def test_a_store_that_keeps_failing_gets_no_requests_until_it_is_well(
    remote: RemoteStore, fallback: RemoteStore
) -> None:
    reader = await over_two_releases(remote, fallback)
    remote.delay_s = 30
    for _ in range(FAILURES):
        assert (await reader.personal("1")).tier == "tier1"
    assert reader.tiers[0].breaker.is_open
    assert reader.tiers[0].error is not None
    started = loop_time()
    for _ in range(50):
        assert (await reader.personal("1")).tier == "tier1"
    assert loop_time() == started, "an open circuit costs no request its share"
    remote.delay_s = 0
    async with asyncio.timeout(PAUSE_S[0] + 0.02):
        while (await reader.personal("1")).tier != "tier0":
            await asyncio.sleep(0.01)
    assert reader.tiers[0].error is None


@virtual
async def test_a_probe_that_is_cancelled_does_not_keep_the_breaker_open_for_ever(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    reader = await over_a_failed_one(memory, remote)
    remote.failure, remote.delay_s = None, 30
    breaker = reader.tiers[0].breaker
    async with asyncio.timeout(60):
        while not breaker._probing:
            probe = asyncio.create_task(reader.personal("1"))
            await asyncio.sleep(0.01)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    remote.delay_s = 0
    async with asyncio.timeout(60):
        while (await reader.personal("1")).source != "personal":
            await asyncio.sleep(0.01)


@virtual
async def test_a_tier_that_never_answered_is_passed_over(remote: RemoteStore, fallback: RemoteStore) -> None:
    remote.failure = StoreUnavailable("never there")
    await publish(fallback.inner, "second")
    reader = await over(remote, fallback)
    assert brief(await reader.personal("1")) == ("tier1", "personal", b"second for 1")
    assert brief(reader.popular()) == ("tier1", "popular", b"second")
    assert reader.tiers[0].error == "never there"
    remote.failure = None
    await publish(remote.inner, "first")
    await reader.refresh()
    assert (await reader.personal("1")).tier == "tier0"
    await life.prune(fallback.inner)


every_damage = pytest.mark.parametrize(
    "raising", [ReleaseCorrupt("page 7 cannot be read"), RuntimeError("MDB_CORRUPTED")], ids=["corrupt", "foreign"]
)


@every_damage
@virtual
async def test_a_damaged_key_falls_through_to_the_next_tier_others_are_served_and_it_is_said_once(
    clock: FakeClock, fallback: RemoteStore, caplog: pytest.LogCaptureFixture, raising: Exception
) -> None:
    store = DamagedStore(clock)
    await publish(store, "first")
    await publish(fallback.inner, "second")
    reader = await over(store, fallback)
    store.damaged, store.raising = frozenset({"user:1"}), raising
    assert brief(await reader.personal("1")) == ("tier1", "personal", b"second for 1")
    assert brief(await reader.personal("2")) == ("tier0", "personal", b"first for 2")
    many = await reader.personal_many(["0", "1", "2"])
    assert [brief(one) for one in many] == [
        ("tier0", "personal", b"first for 0"), ("tier0", "popular", b"first"), ("tier0", "personal", b"first for 2"),
    ]  # fmt: skip
    assert "is damaged in this store" in str(reader.tiers[0].error)
    assert 'hotplate_store_corrupt_total{store="tier0"} 2.0' in Lists(reader).prometheus_text().decode()
    assert [record.levelname for record in caplog.records if record.levelname != "INFO"] == ["ERROR"]
    store.damaged = frozenset()
    third = await publish(store, "third")
    await reader.refresh()
    assert (reader.release(), reader.tiers[0].error) == (third, None)


@every_damage
@virtual
async def test_a_store_alone_of_which_every_key_is_damaged_answers_popular(
    clock: FakeClock, raising: Exception
) -> None:
    store = DamagedStore(clock)
    await publish(store, "first")
    reader = await over(store)
    store.damaged, store.raising = frozenset({"user:1", "user:2"}), raising
    assert brief(await reader.personal("1")) == ("tier0", "popular", b"first")
    assert [one.source for one in await reader.personal_many(["1", "2"])] == ["popular", "popular"]


@virtual
async def test_a_damaged_value_of_a_remote_store_falls_through_too_and_its_circuit_stays_closed(
    remote: RemoteStore, fallback: RemoteStore
) -> None:
    reader = await over_two_releases(remote, fallback)
    remote.broken_keys, remote.broken_by = {"user:1"}, ReleaseCorrupt("a list under another key")
    for _ in range(2 * FAILURES):
        assert brief(await reader.personal("1")) == ("tier1", "personal", b"second for 1")
    assert not reader.tiers[0].breaker.is_open
    assert "a list under another key" in str(reader.tiers[0].error)
    assert (await reader.personal("2")).tier == "tier0"


@virtual
async def test_whatever_a_remote_store_raises_the_next_tier_answers(remote: RemoteStore, fallback: RemoteStore) -> None:
    reader = await over_two_releases(remote, fallback)
    remote.failure = IndexError("pop from an empty deque")
    for _ in range(FAILURES):
        assert (await reader.personal("1")).tier == "tier1"
        assert {one.tier for one in await reader.personal_many(["1", "2", "3"])} == {"tier1"}
    assert "IndexError" in str(reader.tiers[0].error)
