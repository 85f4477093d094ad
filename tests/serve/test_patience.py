"""Stores that read key by key and count their attempts: a slow key fails alone, and a scrape tells what was paid."""

import asyncio
from collections.abc import Sequence

import pytest

from serve.breaker import FAILURES, FAILURES_OF_PARTS
from serve.exposition import Exposition
from serve.lookup import Lookup
from serve.metrics import Metrics
from serve.tiers import Tier
from stores.catalogue import ReleaseId
from stores.errors import ReleaseNotFound, StoreError, StoreThrottled, StoreUnavailable
from stores.memory import MemoryStore
from stores.store import Observer, Slot
from tests.support.clock import FakeClock
from tests.support.remote import RemoteStore, publish

BUDGET_S = 0.2


class OneByOne(RemoteStore):
    """A remote store that asks for each key by itself, and is billed for it."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.slow_keys = set[str]()
        self.meter: Observer | None = None

    def count_into(self, meter: Observer) -> None:
        self.meter = meter

    async def get_within(self, release: ReleaseId, keys: Sequence[str], timeout_s: float) -> list[Slot]:
        slots = await self.get_many(release, keys)
        if self.slow_keys & set(keys):
            await asyncio.sleep(timeout_s)
        late = StoreUnavailable("this one has no answer yet")
        slots = [late if key in self.slow_keys else slot for key, slot in zip(keys, slots, strict=True)]
        assert self.meter is not None
        for slot in slots:
            self.meter.charged(1.25)
            if isinstance(slot, StoreError):
                self.meter.failed("throttled" if slot is late else "a word of its own")
        return slots


@pytest.fixture
async def store(clock: FakeClock) -> OneByOne:
    inner = MemoryStore(clock)
    await publish(inner, "first")
    return OneByOne(inner)


def opened(store: RemoteStore) -> tuple[Lookup, Tier, Metrics]:
    metrics = Metrics(1, ["cosmos"])
    tier = Tier("cosmos", store, metrics)
    return Lookup([tier], metrics, BUDGET_S), tier, metrics


async def test_a_slow_key_is_answered_by_popular_and_the_others_of_its_batch_by_their_own_lists(
    store: OneByOne,
) -> None:
    lookup, tier, _ = opened(store)
    await tier.follower.refresh()
    store.slow_keys = {"user:1"}
    found = await lookup.personal_many(["0", "1", "2", "3"])
    assert [one.source for one in found] == ["personal", "popular", "personal", "personal"]


async def test_a_batch_of_which_nothing_can_be_read_does_not_fail_the_others(store: OneByOne) -> None:
    lookup, tier, _ = opened(store)
    await tier.follower.refresh()
    store.broken_keys = {"user:0", "user:1"}  # a whole batch: this store takes two keys at once
    found = await lookup.personal_many(["0", "1", "2", "3"])
    assert [one.source for one in found] == ["popular", "popular", "personal", "personal"]
    assert not tier.breaker.is_open


async def test_a_store_that_answers_nothing_at_all_is_spared_in_the_end(
    store: OneByOne, caplog: pytest.LogCaptureFixture
) -> None:
    lookup, tier, _ = opened(store)
    await tier.follower.refresh()
    store.broken_keys = {f"user:{n}" for n in range(5)}
    for _ in range(FAILURES_OF_PARTS):
        await lookup.personal_many(["0", "1", "2", "3"])
    assert tier.breaker.is_open
    assert tier.trouble == "it fails, and is spared until it answers again: this one could not be read"
    assert [record.levelname for record in caplog.records if record.name == "serve.tiers"] == ["WARNING"]


async def test_a_store_that_is_spared_time_and_again_does_not_fill_the_log(
    store: OneByOne, caplog: pytest.LogCaptureFixture
) -> None:
    lookup, tier, _ = opened(store)
    await tier.follower.refresh()
    spared = 0
    while spared < 3:
        store.failure = StoreThrottled("not now", 1.0)
        while not tier.breaker.is_open:
            await lookup.personal("1", "")
        spared += 1
        store.failure = None
        while tier.breaker.is_open:
            await lookup.personal("1", "")
            await asyncio.sleep(0.01)
    assert [record.getMessage() for record in caplog.records if record.name == "serve.tiers"] == [
        "cosmos: it fails, and is spared until it answers again: not now",
        "cosmos answers again",
    ]


async def test_keys_of_one_part_may_fail_for_long_before_those_of_others_are_spared(store: OneByOne) -> None:
    lookup, tier, _ = opened(store)
    await tier.follower.refresh()
    store.broken_keys = {"user:1"}
    for _ in range(FAILURES_OF_PARTS - 1):
        await lookup.personal("1", "")
    assert (await lookup.personal("0", "")).source == "personal"
    for _ in range(FAILURES_OF_PARTS - 1):
        await lookup.personal("1", "")
    assert not tier.breaker.is_open


async def test_a_release_that_is_gone_concerns_every_key(store: OneByOne) -> None:
    lookup, tier, _ = opened(store)
    await tier.follower.refresh()
    store.failure = ReleaseNotFound("gone")
    for _ in range(FAILURES):
        await lookup.personal("1", "")
    assert tier.breaker.is_open


async def test_a_scrape_tells_what_was_paid_refused_and_failed(store: OneByOne) -> None:
    lookup, tier, metrics = opened(store)
    await tier.follower.refresh()
    store.slow_keys, store.broken_keys = {"user:1"}, {"user:2"}
    await lookup.personal_many(["0", "1", "2"])
    text = Exposition(metrics, [tier]).text().decode()
    assert 'hotplate_store_request_units_total{store="cosmos"} 3.75' in text
    assert 'hotplate_store_throttled_total{store="cosmos"} 1.0' in text
    assert 'hotplate_store_failures_total{kind="other",store="cosmos"} 1.0' in text


async def test_a_store_that_counts_nothing_has_no_such_series(store: OneByOne) -> None:
    _, tier, metrics = opened(RemoteStore(store.inner))
    assert "{store=" not in "".join(
        line for line in Exposition(metrics, [tier]).text().decode().splitlines() if "request_units" in line
    )
