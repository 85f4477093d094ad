"""Lookups over tiers that misbehave: inside the budget, never empty, never another release than the answer says."""

import asyncio
import time

import pytest

from serve.breaker import FAILURES
from serve.lookup import Found, Lookup
from serve.metrics import LOOKUPS, Metrics
from serve.problems import Problem
from serve.tiers import Tier
from stores import lifecycle as life
from stores.errors import StoreUnavailable
from stores.memory import MemoryStore
from tests.support.clock import FakeClock
from tests.support.remote import RemoteStore, publish

BUDGET_S = 0.1


class Tiers:
    """A lookup over remote stores, and what it counted."""

    def __init__(self, *readers: RemoteStore | MemoryStore) -> None:
        names = [f"tier{place}" for place in range(len(readers))]
        self.metrics = Metrics(1, names)
        self.tiers = [Tier(name, reader, self.metrics) for name, reader in zip(names, readers, strict=True)]
        self.lookup = Lookup(self.tiers, self.metrics, BUDGET_S)

    async def look(self) -> None:
        for tier in self.tiers:
            await tier.follower.refresh()

    def counted(self, source: str, outcome: str) -> float:
        return self.metrics.total(LOOKUPS[source, outcome])[0]


@pytest.fixture
def memory(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def remote(memory: MemoryStore) -> RemoteStore:
    return RemoteStore(memory)


@pytest.fixture
def fallback(clock: FakeClock) -> RemoteStore:
    return RemoteStore(MemoryStore(clock))


def told(found: Found) -> tuple[str, str, bytes]:
    return found.tier, found.source, found.value


async def test_before_any_release_a_lookup_is_a_503_that_says_why(remote: RemoteStore) -> None:
    tiers = Tiers(remote)
    await tiers.look()
    with pytest.raises(Problem, match="nothing is live") as caught:
        await tiers.lookup.personal("1", "")
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    with pytest.raises(Problem):
        await tiers.lookup.personal_many(["1"])
    with pytest.raises(Problem):
        tiers.lookup.popular("")


async def test_a_slow_or_failing_store_is_answered_by_popular_inside_the_budget(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await publish(memory, "first")
    tiers = Tiers(remote)
    await tiers.look()
    assert told(await tiers.lookup.personal("1", "")) == ("tier0", "personal", b"first for 1")
    remote.delay_s = 30
    assert told(await asyncio.wait_for(tiers.lookup.personal("1", ""), 5)) == ("tier0", "popular", b"first")
    remote.delay_s, remote.failure = 0, StoreUnavailable("gone")
    assert told(await tiers.lookup.personal("1", "")) == ("tier0", "popular", b"first")
    remote.failure, remote.broken_keys = None, {"user:2"}
    found = await tiers.lookup.personal_many(["1", "2", "3", "nobody"])
    assert [one.source for one in found] == ["personal", "popular", "personal", "popular"]
    assert tiers.counted("popular", "error") == 3
    assert tiers.counted("popular", "miss") == 1
    assert tiers.counted("personal", "hit") == 3


@pytest.mark.parametrize("local", [True, False])
async def test_a_release_that_is_gone_is_looked_for_anew_once(
    memory: MemoryStore, remote: RemoteStore, *, local: bool
) -> None:
    first = await publish(memory, "first")
    tiers = Tiers(memory if local else remote)
    await tiers.look()
    second = await publish(memory, "second")
    await memory.erase(first)
    found = await tiers.lookup.personal("1", "")
    assert (found.view.release, found.value) == (second, b"second for 1")
    many = await tiers.lookup.personal_many(["1", "2", "3"])
    assert {one.view.release for one in many} == {second}
    await memory.erase(second)
    assert told(await tiers.lookup.personal("1", "")) == ("tier0", "popular", b"second")


async def test_the_next_tier_answers_when_the_first_fails_or_is_slow_and_the_answer_says_so(
    memory: MemoryStore, remote: RemoteStore, fallback: RemoteStore
) -> None:
    await publish(memory, "first")
    await publish(fallback.inner, "second")
    tiers = Tiers(remote, fallback)
    await tiers.look()
    assert told(await tiers.lookup.personal("1", "")) == ("tier0", "personal", b"first for 1")
    remote.failure = StoreUnavailable("gone")
    found = await tiers.lookup.personal("1", "")
    assert told(found) == ("tier1", "personal", b"second for 1")
    assert found.view.release == tiers.tiers[1].follower.view.release  # type: ignore[union-attr]  # it follows one
    assert {one.tier for one in await tiers.lookup.personal_many(["1", "2"])} == {"tier1"}
    remote.failure, remote.delay_s = None, 30
    assert told(await asyncio.wait_for(tiers.lookup.similar("1"), 5)) == ("tier1", "popular", b"second")


async def test_a_miss_falls_through_to_a_tier_with_another_release_only(
    memory: MemoryStore, remote: RemoteStore, fallback: RemoteStore
) -> None:
    await publish(memory, "first")
    await publish(fallback.inner, "second", users=range(9))
    same = RemoteStore(memory)
    tiers = Tiers(remote, same, fallback)
    await tiers.look()
    same.failure = StoreUnavailable("must not be asked")
    assert told(await tiers.lookup.personal("8", "")) == ("tier2", "personal", b"second for 8")
    assert told(await tiers.lookup.personal("nobody", "")) == ("tier0", "popular", b"first")
    assert not tiers.tiers[1].breaker.is_open


async def test_a_large_batch_has_the_time_that_it_takes_and_a_local_store_is_never_late(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await publish(memory, "first")
    users = [str(n % 5) for n in range(2000)]
    remote.delay_s = 2 * BUDGET_S
    for reader in (remote, memory):
        tiers = Tiers(reader)
        await tiers.look()
        batches = await asyncio.gather(*(tiers.lookup.personal_many(users) for _ in range(5)))
        assert {one.source for found in batches for one in found} == {"personal"}
        assert [one.value for one in batches[0]] == [f"first for {user}".encode() for user in users]


async def test_an_answer_for_many_is_of_one_release(
    memory: MemoryStore, remote: RemoteStore, fallback: RemoteStore
) -> None:
    await publish(memory, "first")
    await publish(fallback.inner, "second", users=range(9))
    tiers = Tiers(remote, fallback)
    await tiers.look()
    found = await tiers.lookup.personal_many(["1", "8"])
    assert [told(one) for one in found] == [("tier0", "personal", b"first for 1"), ("tier0", "popular", b"first")]
    assert len({one.view.release for one in found}) == 1


async def test_a_store_that_keeps_failing_is_spared_and_used_again_when_it_is_well(
    memory: MemoryStore, remote: RemoteStore, fallback: RemoteStore
) -> None:
    await publish(memory, "first")
    await publish(fallback.inner, "second")
    tiers = Tiers(remote, fallback)
    await tiers.look()
    remote.delay_s = 30
    for _ in range(FAILURES):
        assert (await tiers.lookup.personal("1", "")).tier == "tier1"
    assert tiers.tiers[0].breaker.is_open
    assert tiers.tiers[0].trouble is not None
    started = time.monotonic()
    for _ in range(50):
        assert (await tiers.lookup.personal("1", "")).tier == "tier1"
    assert time.monotonic() - started < 50 * BUDGET_S / 2, "a store that is spared costs no request its share"
    remote.delay_s = 0
    async with asyncio.timeout(5):
        while (await tiers.lookup.personal("1", "")).tier != "tier0":
            await asyncio.sleep(0.01)
    assert tiers.tiers[0].trouble is None


async def test_a_probe_that_is_cancelled_does_not_keep_the_breaker_open_for_ever(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await publish(memory, "first")
    tiers = Tiers(remote)
    await tiers.look()
    remote.failure = StoreUnavailable("gone")
    for _ in range(FAILURES):
        await tiers.lookup.personal("1", "")
    remote.failure, remote.delay_s = None, 30
    breaker = tiers.tiers[0].breaker
    async with asyncio.timeout(5):
        while not breaker._probing:
            probe = asyncio.create_task(tiers.lookup.personal("1", ""))
            await asyncio.sleep(0.01)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    remote.delay_s = 0
    async with asyncio.timeout(5):
        while (await tiers.lookup.personal("1", "")).source != "personal":
            await asyncio.sleep(0.01)


async def test_a_tier_that_never_answered_is_passed_over(remote: RemoteStore, fallback: RemoteStore) -> None:
    remote.failure = StoreUnavailable("never there")
    await publish(fallback.inner, "second")
    tiers = Tiers(remote, fallback)
    await tiers.look()
    assert told(await tiers.lookup.personal("1", "")) == ("tier1", "personal", b"second for 1")
    assert told(tiers.lookup.popular("")) == ("tier1", "popular", b"second")
    assert tiers.tiers[0].trouble == "never there"
    remote.failure = None
    await publish(remote.inner, "first")
    await tiers.look()
    assert (await tiers.lookup.personal("1", "")).tier == "tier0"
    await life.prune(fallback.inner)
