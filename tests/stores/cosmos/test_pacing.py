"""Background work on a live release leaves throughput to lookups: all of it together stays within one rate."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.cosmos.store import CosmosStore
from hotplate.stores.errors import StoreClosed, StoreError
from hotplate.stores.lifecycle import activate
from hotplate.stores.store import Plan, Row
from hotplate.stores.users import erase_users, find_users
from hotplate.stores.verification import read_servable, verify
from tests.support.cosmos_simulation import SimulatedAccount, simulated
from tests.support.stores import FIRST, draft_of, publish, ref_of

USERS = [f"{number:05}" for number in range(300)]
ROWS = [Row("popular:", b'{"id":"p"}'), *(Row(f"user:{user}", b"list") for user in USERS)]
RU = 400

Work = Callable[[CosmosStore, ReleaseRef], Awaitable[object]]


async def find(store: CosmosStore, _: ReleaseRef) -> None:
    await find_users(store, USERS)


async def erase(store: CosmosStore, _: ReleaseRef) -> None:
    await erase_users(store, USERS[:100])


async def verify_and_find(store: CosmosStore, release: ReleaseRef) -> None:
    await asyncio.gather(verify(store, release), find_users(store, USERS))


async def answered(reader: CosmosStore, release: ReleaseRef, asked: list[bool]) -> None:
    """Look up a user every 10 ms, and note whether the list came in time."""
    while True:
        is_answered = False
        with suppress(StoreError):
            (result,) = await reader.get_many(release, ["popular:"], timeout_s=0.05)
            is_answered = isinstance(result, bytes)
        asked.append(is_answered)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("work", [find, erase, verify_and_find])
@simulated
async def test_background_work_starves_no_lookup(account: SimulatedAccount, work: Work) -> None:
    live = await publish(account.store(ru=RU, max_ru=6000), ROWS, 100)
    reader = account.store(ru=RU)
    store = account.store(ru=RU)
    release = await ref_of(store, live)
    asked = list[bool]()
    lookups = asyncio.create_task(answered(reader, release, asked))
    began = asyncio.get_running_loop().time()
    spent_ru = account.admitted_ru(live)
    await work(store, release)
    took_s = asyncio.get_running_loop().time() - began
    spent_ru = account.admitted_ru(live) - spent_ru - len(asked)
    lookups.cancel()
    assert asked
    assert all(asked)
    assert spent_ru <= took_s * RU / 2 + 20


@simulated
async def test_scan_keeps_to_half_of_max_ru(account: SimulatedAccount) -> None:
    live = await publish(account.store(), ROWS, 100)
    store = account.store(max_ru=100)
    release = await ref_of(store, live)
    began = asyncio.get_running_loop().time()
    await verify(store, release)
    assert asyncio.get_running_loop().time() - began > len(ROWS) / 50 - 1


@simulated
async def test_max_ru_does_not_slow_the_start_of_a_service(account: SimulatedAccount) -> None:
    popular = [Row(f"popular:{segment}", b'{"id":"p"}') for segment in ["", *USERS]]
    first, live = [await publish(account.store(), [*popular, *ROWS[1:]]) for _ in range(2)]
    store = account.store(max_ru=1)
    await read_servable(store, await ref_of(store, live))
    await activate(store, first)
    assert (await store.catalogue()).live == first


@simulated
async def test_requests_that_wait_for_the_rate_end_soon_after_a_close(account: SimulatedAccount) -> None:
    store = account.store(max_ru=2)
    draft = draft_of(FIRST)
    await store.create(draft, Plan(1, 1))
    writing = asyncio.create_task(store.put(draft, ROWS))
    await asyncio.sleep(10)
    await store.close()
    began = asyncio.get_running_loop().time()
    with pytest.raises(StoreClosed):
        await writing
    assert asyncio.get_running_loop().time() - began < 10
