"""Lookups in Cosmos DB on a bad day: one key never holds up or fails another, and none is waited for in vain."""

import asyncio

import pytest

from stores.catalogue import ReleaseId
from stores.cosmos.items import container_of, name_of
from stores.cosmos.store import CosmosStore
from stores.errors import ReleaseNotFound, StoreError, StoreThrottled, StoreUnavailable
from stores.store import Plan, Row
from tests.support.cosmos_held import Far, with_far
from tests.support.stores import draft_of, ref

R = ReleaseId("20261120T064200Z-aaaa")
KEYS = [f"user:{n}" for n in range(40)]
READ = "read item"


async def filled(far: Far, **options: object) -> CosmosStore:
    store = far.store(**options)
    await store.create(draft_of(R), Plan(1, 1))
    await store.put(draft_of(R), [Row(key, key.encode()) for key in KEYS])
    await store.get_many(ref(R), KEYS[:1])  # the account is known from here on
    return store


def partition_of(far: Far, key: str) -> str:
    container = far.service.account.databases["d"].containers[container_of(ref(R))]
    return container.partitions.of(container.definition.effective(name_of(key))).id


def test_a_slow_partition_holds_up_only_its_own_keys() -> None:
    async def work(far: Far) -> None:
        store, loop = await filled(far, ru=10_000), asyncio.get_running_loop()
        far.misbehave({"kind": "slow", "delay_ms": 10_000, "partition": "0", "operation": READ})
        began = loop.time()
        slots = await store.get_many(ref(R), KEYS, timeout_s=0.05)
        assert loop.time() - began <= 0.0501
        for key, slot in zip(KEYS, slots, strict=True):
            if partition_of(far, key) == "0":
                assert isinstance(slot, StoreUnavailable)
            else:
                assert slot == key.encode()
        assert {partition_of(far, key) for key in KEYS} == {"0", "1"}

    with_far(work)


def test_a_throttled_key_fails_alone_and_at_once_where_waiting_would_be_too_long() -> None:
    async def work(far: Far) -> None:
        store, loop = await filled(far), asyncio.get_running_loop()
        far.misbehave({"kind": "throttle", "share": 0.5, "retry_after_ms": 900, "operation": READ})
        began = loop.time()
        slots = await store.get_many(ref(R), KEYS, timeout_s=0.05)
        assert loop.time() - began <= 0.011
        refused = [slot for slot in slots if isinstance(slot, StoreThrottled)]
        assert 5 < len(refused) < 35
        assert [slot for slot in slots if slot not in refused] == [
            key.encode() for key, slot in zip(KEYS, slots, strict=True) if slot not in refused
        ]

    with_far(work)


def test_a_throttled_key_is_read_once_more_where_the_time_allows() -> None:
    async def work(far: Far) -> None:
        store, loop = await filled(far), asyncio.get_running_loop()
        far.misbehave({"kind": "throttle", "for_s": 0.02, "retry_after_ms": 30, "operation": READ})
        began = loop.time()
        assert await store.get_many(ref(R), KEYS[:1], timeout_s=0.05) == [b"user:0"]
        assert loop.time() - began == pytest.approx(0.04, abs=0.001)
        far.misbehave({"kind": "throttle", "retry_after_ms": 10, "operation": READ})
        asked = far.answers(429)
        with pytest.raises(StoreThrottled):
            await store.get_many(ref(R), KEYS[:1], timeout_s=0.05)
        assert far.answers(429) == asked + 2

    with_far(work)


@pytest.mark.parametrize("kind", ["unavailable", "retry-with", "gone", "reset"])
def test_a_failure_is_tried_once_more_at_once(kind: str) -> None:
    async def work(far: Far) -> None:
        store = await filled(far)
        far.misbehave({"kind": kind, "share": 0.3, "operation": READ})
        slots = await store.get_many(ref(R), KEYS, timeout_s=0.05)
        failed = sum(isinstance(slot, StoreError) for slot in slots)
        assert failed < 10, "about one in ten fails twice, and a third would fail once"
        far.misbehave({"kind": kind, "operation": READ})
        with pytest.raises(StoreUnavailable):
            await store.get_many(ref(R), KEYS)

    with_far(work)


def test_a_container_that_was_dropped_under_its_readers_is_a_release_that_is_gone() -> None:
    async def work(far: Far) -> None:
        store = await filled(far)
        await far.store().erase(ref(R))
        for keys in (KEYS, KEYS[:1]):
            with pytest.raises(ReleaseNotFound, match=f"release {R} is not in this store"):
                await store.get_many(ref(R), keys, timeout_s=0.05)

    with_far(work)


def test_a_row_that_somebody_else_wrote_fails_alone() -> None:
    async def work(far: Far) -> None:
        store = await filled(far)
        await store._items.upsert(container_of(ref(R)), {"id": name_of(KEYS[1]), "foreign": 1})
        first, second, third = await store.get_many(ref(R), KEYS[:3])
        assert (first, third) == (b"user:0", b"user:2")
        assert isinstance(second, StoreError)
        assert "was not written by hotplate" in str(second)

    with_far(work)
