"""Lookups of one turn of the loop: read together, once for each key, and each answered as soon as its own is there."""

import asyncio
from collections.abc import Sequence

import pytest

from hotplate.serve.breaker import FAILURES, PAUSE_S
from hotplate.serve.reader import EncodedList, NotReady, TieredReader, read_within
from hotplate.serve.tiers import loop_time
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import OFFSET_BYTES
from hotplate.stores.errors import ReleaseCorrupt, StoreUnavailable
from hotplate.stores.memory import MemoryStore
from hotplate.stores.store import Reader, Slot
from tests.support.clock import FakeClock
from tests.support.remote import DamagedStore, RemoteStore, publish
from tests.support.virtual import virtual

BUDGET_S = 0.1


class CountingStore(RemoteStore):
    """A remote store that notes the keys of each read of users, and is slow for some of them."""

    batch = coalesce = 8

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.reads = list[list[str]]()
        self.slow_keys = set[str]()

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        if keys[0].startswith("user:"):
            self.reads.append(list(keys))
        if self.slow_keys & set(keys):
            await asyncio.sleep(BUDGET_S / 2)
        return await super().get_many(release, keys, timeout_s=timeout_s)


class CountingPoints(CountingStore):
    """The same, where each key is a request of its own."""

    coalesce = 1


@pytest.fixture
def store(clock: FakeClock) -> CountingStore:
    return CountingStore(MemoryStore(clock))


@pytest.fixture
def other(clock: FakeClock) -> CountingStore:
    return CountingStore(MemoryStore(clock))


async def over(*stores: Reader) -> TieredReader:
    """Return a reader that has read the catalogue of each store."""
    reader = TieredReader({f"tier{place}": each for place, each in enumerate(stores)}, budget_s=BUDGET_S)
    for tier in reader.tiers:
        await tier.follower.refresh()
    return reader


async def personal(reader: TieredReader, *users: object) -> list[EncodedList]:
    return await asyncio.gather(*(reader.personal(str(user)) for user in users))


def texts(answers: Sequence[EncodedList]) -> list[str]:
    return [one.body[OFFSET_BYTES:].decode() for one in answers]


@virtual
async def test_lookups_of_one_turn_are_one_read_and_of_more_than_a_call_takes_several_at_once(
    store: CountingStore,
) -> None:
    await publish(store.inner, "first", users=range(20))
    reader = await over(store)
    store.reads.clear()  # of the sample that is read before a release is served
    assert texts(await personal(reader, *range(8))) == [f"first for {n}" for n in range(8)]
    assert store.reads == [[f"user:{n}" for n in range(8)]]
    store.delay_s = BUDGET_S / 2
    started = loop_time()
    assert {one.source for one in await personal(reader, *range(20))} == {"personal"}
    assert loop_time() - started == pytest.approx(store.delay_s)
    assert [len(keys) for keys in store.reads[1:]] == [8, 8, 4]


@virtual
async def test_who_wants_a_key_that_is_being_read_shares_the_read_also_in_a_later_turn(store: CountingStore) -> None:
    await publish(store.inner, "first", segments=1)
    reader = await over(store)
    store.delay_s = BUDGET_S / 2
    early = [asyncio.create_task(reader.personal(user)) for user in ("1", "1", "nobody")]
    await asyncio.sleep(BUDGET_S / 4)
    late = [asyncio.create_task(reader.personal("1")), asyncio.create_task(reader.personal("nobody", "s0"))]
    answers = await asyncio.gather(*early, *late)
    assert texts(answers) == ["first for 1", "first for 1", "first", "first for 1", "0"]
    assert store.reads == [["user:1", "user:nobody"]]
    assert [counts[:2] for counts in [answers[0].served.lookups]] == [[3, 2]]


@virtual
async def test_a_lookup_after_a_flip_does_not_share_a_read_from_before_it(store: CountingStore) -> None:
    await publish(store.inner, "first")
    reader = await over(store)
    store.delay_s = BUDGET_S / 2
    before = asyncio.create_task(reader.personal("1"))
    await asyncio.sleep(BUDGET_S / 4)
    await publish(store.inner, "second")
    store.delay_s = 0
    await reader.tiers[0].follower.refresh()
    assert texts([await reader.personal("1"), await before]) == ["second for 1", "first for 1"]


@virtual
async def test_a_caller_that_hangs_up_leaves_the_others_their_lists(store: CountingStore) -> None:
    await publish(store.inner, "first")
    reader = await over(store)
    store.delay_s = BUDGET_S / 2
    waiting = [asyncio.create_task(reader.personal(user)) for user in ("1", "1", "2")]
    await asyncio.sleep(BUDGET_S / 4)
    waiting[0].cancel()
    waiting[2].cancel()
    assert texts([await waiting[1]]) == ["first for 1"]
    assert not reader.tiers[0].breaker.is_open


@virtual
async def test_one_slow_point_read_holds_up_only_its_own_key(clock: FakeClock) -> None:
    store = CountingPoints(MemoryStore(clock))
    await publish(store.inner, "first")
    reader = await over(store)
    store.slow_keys = {"user:1"}
    started = loop_time()
    slow = asyncio.create_task(reader.personal("1"))
    assert texts(await personal(reader, 0, 2, 3)) == ["first for 0", "first for 2", "first for 3"]
    assert loop_time() == started
    assert texts([await slow]) == ["first for 1"]


@virtual
async def test_each_key_of_a_turn_falls_through_by_itself(store: CountingStore, other: CountingStore) -> None:
    await publish(store.inner, "first", users=range(3))
    await publish(other.inner, "second", users=range(5))
    reader = await over(store, other)
    store.broken_keys = {"user:1"}
    answers = await personal(reader, 0, 1, 2, 3, "nobody")
    assert texts(answers) == ["first for 0", "second for 1", "first for 2", "second for 3", "first"]
    assert [one.tier for one in answers] == ["tier0", "tier1", "tier0", "tier1", "tier0"]
    assert [one.status for one in answers] == ["ok"] * 4 + ["unknown"]
    assert other.reads == [["user:1", "user:3", "user:nobody"]]


@virtual
async def test_lists_of_the_first_tier_do_not_wait_for_those_of_the_next(
    store: CountingStore, other: CountingStore
) -> None:
    await publish(store.inner, "first", users=range(3))
    await publish(other.inner, "second", users=range(5))
    reader = await over(store, other)
    other.delay_s = BUDGET_S / 4
    started = loop_time()
    slow = asyncio.create_task(reader.personal("4"))
    assert texts(await personal(reader, 0, 1)) == ["first for 0", "first for 1"]
    assert loop_time() == started
    assert texts([await slow]) == ["second for 4"]


@virtual
async def test_one_lookup_of_a_turn_probes_a_store_and_the_others_do_not_wait_for_it(
    store: CountingStore, other: CountingStore
) -> None:
    await publish(store.inner, "first")
    await publish(other.inner, "second")
    reader = await over(store, other)
    store.failure = StoreUnavailable("gone")
    for _ in range(FAILURES):
        await reader.personal("1")
    store.failure, store.delay_s = None, BUDGET_S / 4
    await asyncio.sleep(PAUSE_S[0])
    started = loop_time()
    probe, *others = [asyncio.create_task(reader.personal(str(n))) for n in range(5)]
    assert {one.tier for one in await asyncio.gather(*others)} == {"tier1"}
    assert loop_time() == started
    assert (await probe).tier == "tier0"
    assert not reader.tiers[0].breaker.is_open


@virtual
async def test_what_takes_no_wait_is_at_hand_and_the_rest_is_requested(clock: FakeClock, store: CountingStore) -> None:
    local = DamagedStore(clock)
    reader = await over(local, store)
    with pytest.raises(NotReady):
        reader.at_hand("user:1", "personal")
    await publish(local, "first", users=range(3))
    await reader.tiers[0].follower.refresh()
    found = reader.at_hand("user:1", "personal")
    assert found is not None
    assert (found.tier, found.source, found.status, texts([found])) == ("tier0", "personal", "ok", ["first for 1"])
    unknown = reader.at_hand("user:9", "personal")
    assert unknown is not None
    assert (unknown.source, unknown.status) == ("popular", "unknown")
    assert found.served.lookups == [1, 1, 0]
    await publish(store.inner, "second", users=range(10))
    await reader.tiers[1].follower.refresh()
    local.damaged, local.raising = frozenset({"user:2"}), ReleaseCorrupt("page 7 cannot be read")
    assert reader.at_hand("user:9", "personal") is None
    assert reader.at_hand("user:2", "personal") is None
    assert reader.tiers[0].error is None, "it is read, and counted, by the request"
    delivered = list[EncodedList]()
    for key in ("user:9", "user:2"):
        reader.request(key, "personal", "", delivered.append)
    assert not delivered
    await asyncio.sleep(BUDGET_S)
    assert texts(delivered) == ["second for 9", "second for 2"]
    assert "page 7" in str(reader.tiers[0].error)


@virtual
async def test_a_request_never_fails_and_one_that_cannot_deliver_harms_no_other(store: CountingStore) -> None:
    await publish(store.inner, "first")
    reader = await over(store)
    delivered = list[EncodedList]()

    def refuse(_: EncodedList) -> None:
        raise RuntimeError("the connection is gone")

    for user, deliver in (("1", refuse), ("1", delivered.append), ("2", delivered.append)):
        reader.request(f"user:{user}", "personal", "", deliver)
    await asyncio.sleep(BUDGET_S)
    assert texts(delivered) == ["first for 1", "first for 2"]
    store.failure = IndexError("a mistake of the store's")
    reader.request("user:1", "personal", "", delivered.append)
    await asyncio.sleep(BUDGET_S)
    assert (delivered[-1].source, delivered[-1].status) == ("popular", "error")


@virtual
async def test_a_caller_in_a_hurry_waits_for_no_read_of_others(store: CountingStore) -> None:
    await publish(store.inner, "first")
    reader = await over(store)
    store.delay_s = BUDGET_S / 2
    patient = asyncio.create_task(reader.personal("1"))
    await asyncio.sleep(0)
    started = loop_time()
    with read_within(BUDGET_S / 4):
        assert (await reader.personal("1")).status == "error"
    assert loop_time() - started < BUDGET_S / 2
    assert texts([await patient]) == ["first for 1"]


@virtual
async def test_stores_are_closed_once_what_was_requested_is_delivered(store: CountingStore) -> None:
    await publish(store.inner, "first")
    reader = TieredReader({"remote": store}, budget_s=BUDGET_S)
    async with reader:
        await reader.wait_until_ready(1)
        store.delay_s = BUDGET_S / 2
        waiting = asyncio.create_task(reader.personal("1"))
        await asyncio.sleep(0)
    assert texts([await waiting]) == ["first for 1"]
