"""Lookups in Cosmos DB on a bad day: one key never holds up or fails another, and none is waited for in vain."""

import asyncio

import pytest

from hotplate.bench.cosmos_emulator.partitions import encode
from hotplate.serve.lists.reader import TieredReader
from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.cosmos.errors import DEADLINE_S
from hotplate.stores.cosmos.items import container_of, name_of
from hotplate.stores.cosmos.store import UNAVAILABLE_S, CosmosStore
from hotplate.stores.encoding import USER
from hotplate.stores.errors import PartUnavailable, ReleaseNotFound, StoreError, StoreThrottled, StoreUnavailable
from hotplate.stores.store import Row
from tests.support.cosmos_simulation import SimulatedAccount, simulated
from tests.support.service import a_list
from tests.support.stores import allow_erasure, lists_of, publish, ref_of, release_ref

R = ReleaseId("20261120T064200Z-aaaa")
DRAFTED = release_ref(R)
KEYS = [f"user:{n}" for n in range(40)]
READ = "read item"


async def filled(account: SimulatedAccount, **options: object) -> CosmosStore:
    store = await account.with_draft(R, [Row(key, key.encode()) for key in KEYS], **options)
    await store.get_many(DRAFTED, KEYS[:1])  # the account is known from here on
    return store


def partition_of(account: SimulatedAccount, key: str, release: ReleaseRef = DRAFTED) -> str:
    container = account.service.account.databases["d"].containers[container_of(release)]
    return container.partitions.of(encode(name_of(key))).id


@simulated
async def test_slow_partition_delays_only_its_own_keys(account: SimulatedAccount) -> None:
    store = await filled(account, ru=10_000)
    loop = asyncio.get_running_loop()
    account.inject_faults({"kind": "slow", "delay_ms": 10_000, "partition": "0", "operation": READ})
    began = loop.time()
    results = await store.get_many(DRAFTED, KEYS, timeout_s=0.05)
    assert loop.time() - began <= 0.0501
    for key, result in zip(KEYS, results, strict=True):
        if partition_of(account, key) == "0":
            assert isinstance(result, PartUnavailable), "which opens no circuit for the others"
        else:
            assert result == key.encode()
    assert {partition_of(account, key) for key in KEYS} == {"0", "1"}


@simulated
async def test_slow_key_delays_no_request_for_another_in_the_same_turn(account: SimulatedAccount) -> None:
    store = account.store(ru=10_000)
    release = await ref_of(store, await publish(store, [Row("popular:", a_list("p")), *lists_of(9, a_list("a"))]))
    users = {partition_of(account, f"user:{n:06}", release): f"{n:06}" for n in range(9)}
    async with TieredReader({"cosmos": store}) as reader:
        await reader.wait_until_ready(30)
        account.inject_faults({"kind": "slow", "delay_ms": 10_000, "partition": "0", "operation": READ})
        slow, other = [asyncio.create_task(reader.read(USER, users[partition])) for partition in ("0", "1")]
        assert (await other).source == "personal"
        assert not slow.done()
        assert (await slow).source == "popular"


@simulated
async def test_throttled_key_fails_alone_and_at_once_if_the_wait_is_too_long(account: SimulatedAccount) -> None:
    store = await filled(account)
    loop = asyncio.get_running_loop()
    account.inject_faults({"kind": "throttle", "share": 0.5, "retry_after_ms": 900, "operation": READ})
    began = loop.time()
    results = await store.get_many(DRAFTED, KEYS, timeout_s=0.05)
    assert loop.time() - began <= 0.011
    refused = [result for result in results if isinstance(result, StoreThrottled)]
    assert 5 < len(refused) < 35
    assert all(isinstance(result, PartUnavailable) for result in refused), "which opens no circuit for the others"
    assert [result for result in results if result not in refused] == [
        key.encode() for key, result in zip(KEYS, results, strict=True) if result not in refused
    ]


@simulated
async def test_throttled_key_is_read_again_if_time_allows(account: SimulatedAccount) -> None:
    store = await filled(account)
    loop = asyncio.get_running_loop()
    account.inject_faults({"kind": "throttle", "for_s": 0.02, "retry_after_ms": 30, "operation": READ})
    began = loop.time()
    assert await store.get_many(DRAFTED, KEYS[:1], timeout_s=0.05) == [b"user:0"]
    assert loop.time() - began == pytest.approx(0.04, abs=0.001)
    account.inject_faults({"kind": "throttle", "retry_after_ms": 10, "operation": READ})
    throttled = account.answers(429)
    with pytest.raises(StoreThrottled):
        await store.get_many(DRAFTED, KEYS[:1], timeout_s=0.05)
    assert account.answers(429) == throttled + 2


@pytest.mark.parametrize("kind", ["unavailable", "retry-with", "gone", "reset"])
@simulated
async def test_failed_read_is_repeated_immediately(account: SimulatedAccount, kind: str) -> None:
    store = await filled(account)
    account.inject_faults({"kind": kind, "share": 0.3, "operation": READ})
    results = await store.get_many(DRAFTED, KEYS, timeout_s=0.05)
    failed = sum(isinstance(result, StoreError) for result in results)
    assert failed < 10, "about one in ten fails twice, and a third would fail once"
    account.inject_faults({"kind": kind, "operation": READ})
    with pytest.raises(StoreUnavailable):
        await store.get_many(DRAFTED, KEYS)


@simulated
async def test_container_dropped_during_reads_is_a_missing_release(account: SimulatedAccount) -> None:
    store = await filled(account)
    await account.store().erase(DRAFTED, allow_erasure)
    for keys in (KEYS, KEYS[:1]):
        with pytest.raises(ReleaseNotFound, match="no such database or container"):
            await store.get_many(DRAFTED, keys, timeout_s=0.05)


@pytest.mark.parametrize("keys", [KEYS[:1], KEYS], ids=["one key", "many keys"])
@pytest.mark.parametrize(
    "fault", [{"kind": "retry-with"}, {"kind": "unavailable"}, {"kind": "throttle"}, {"kind": "slow", "delay_ms": 9000}]
)
@simulated
async def test_read_without_a_deadline_retries_like_a_write(
    account: SimulatedAccount, fault: dict[str, object], keys: list[str]
) -> None:
    store = await filled(account)
    account.inject_faults({**fault, "for_s": 8, "operation": READ})
    [results] = await asyncio.gather(store.get_many(DRAFTED, keys), return_exceptions=True)
    assert results == [key.encode() for key in keys]


@simulated
async def test_read_keeps_its_deadline_and_without_one_retries_are_bounded(account: SimulatedAccount) -> None:
    store = await filled(account)
    loop = asyncio.get_running_loop()
    account.inject_faults({"kind": "slow", "delay_ms": 9000})
    for timeout_s in (0.05, 3.0):
        began = loop.time()
        with pytest.raises(StoreError, match="did not answer in time"):
            await store.get_many(DRAFTED, KEYS[:1], timeout_s=timeout_s)
        assert loop.time() - began == pytest.approx(timeout_s, abs=0.01)
    began = loop.time()
    with pytest.raises(StoreError, match="did not answer in time"):
        await store.get_many(DRAFTED, KEYS[:1])
    assert UNAVAILABLE_S < loop.time() - began < UNAVAILABLE_S + 2 * DEADLINE_S


@simulated
async def test_cancelled_reads_leave_no_tasks(account: SimulatedAccount) -> None:
    store = await filled(account)
    account.inject_faults({"kind": "throttle", "share": 0.5, "retry_after_ms": 20, "operation": READ})
    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.get_many(DRAFTED, KEYS, timeout_s=5.0), 0.01)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
