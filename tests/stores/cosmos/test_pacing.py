"""Background work on a live release leaves throughput to lookups: all of it together stays within one rate."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.cosmos.store import CosmosStore
from hotplate.stores.doctor import READS, examine
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Row
from hotplate.stores.users import erase_users, find_users
from hotplate.stores.verification import verify
from tests.support.cosmos_simulation import SimulatedAccount, simulated
from tests.support.stores import publish, ref_of

USERS = [f"{number:05}" for number in range(300)]
ROWS = [Row("popular:", b'{"id":"p"}'), *(Row(f"user:{user}", b"list") for user in USERS)]
MAX_RU = 100

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
    live = await publish(account.store(ru=400, max_ru=6000), ROWS, 100)
    reader = account.store(ru=400)
    store = account.store(ru=400, max_ru=MAX_RU)
    release = await ref_of(store, live)
    asked = list[bool]()
    lookups = asyncio.create_task(answered(reader, release, asked))
    began = asyncio.get_running_loop().time()
    spent_ru = account.admitted_ru(live)
    await work(store, release)
    took_s = asyncio.get_running_loop().time() - began
    spent_ru = account.admitted_ru(live) - spent_ru - len(asked)
    lookups.cancel()
    assert all(asked)
    assert spent_ru <= took_s * MAX_RU + 20


@simulated
async def test_doctor_times_reads_that_are_not_paced(account: SimulatedAccount) -> None:
    await publish(account.store())
    store = account.store(max_ru=2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    findings = await examine(store)
    assert "reading" in {finding.subject for finding in findings}
    assert loop.time() - began < READS, "at 1 RU/s, the timed reads alone would take as long"
