"""Each step of an operation is repeated in one place, within one time limit."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import ParamSpec, TypeVar

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import GRACE_S, Catalogue, ReleaseId
from hotplate.stores.cosmos.errors import MAX_RETRY_AFTER_S, CosmosUnavailable
from hotplate.stores.cosmos.store import UNAVAILABLE_S
from hotplate.stores.errors import NotSent, StoreUnavailable
from hotplate.stores.store import Plan, Row
from hotplate.stores.timing import Retrier
from hotplate.stores.users import erase_users
from hotplate.stores.verification import verify
from tests.support.cosmos_simulation import SimulatedAccount, simulated
from tests.support.stores import allow_erasure, begin_draft, draft_of, lapse, publish, ref_of, release_ref, scan_rows

T = TypeVar("T")
P = ParamSpec("P")

R = ReleaseId("20261120T064200Z-aaaa")
ROWS = [Row("popular:", b'{"id":"p"}'), *(Row(f"user:{n:03}", b'{"id":"a"}') for n in range(50))]
READ_FAILS: dict[str, object] = {"kind": "unavailable", "operation": "read item"}


@pytest.fixture
def unnested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when a step that is repeated repeats a step itself."""
    is_in_step = ContextVar("is_in_step", default=False)
    call = Retrier.call

    async def call_once(self: Retrier, step: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        assert not is_in_step.get(), "a step that is repeated repeats another"
        reset = is_in_step.set(True)
        try:
            return await call(self, step, *args, **kwargs)
        finally:
            is_in_step.reset(reset)

    monkeypatch.setattr(Retrier, "call", call_once)


@pytest.mark.usefixtures("unnested")
@simulated
async def test_no_repeated_step_repeats_another(account: SimulatedAccount) -> None:
    store = account.store(ru=4000)
    first = await publish(store, ROWS, 20)
    second = await publish(store, ROWS, 20)
    assert await life.rollback(store) == first
    await verify(store, await ref_of(store, first))
    assert (await erase_users(store, ["007"])).deleted == 2
    assert await store.get_many(await ref_of(store, first), ["user:007"]) == [None]
    await asyncio.sleep(GRACE_S)
    assert await life.prune(store, keep=0) == [second]
    await begin_draft(store, R)
    first_writer = draft_of(R)
    await store.create(first_writer, Plan(1, 1))
    await store.put(first_writer, ROWS[:10], 3)
    draft = first_writer._replace(writer="two")
    await lapse(store)
    await life.update_catalogue(store, partial(changes.take_over, draft=draft))
    await store.create(draft, Plan(1, 1))
    assert await store.resume_point(draft, 3) == ROWS[9].key
    await store.put(draft, ROWS[10:20], 3)
    await store.seal(draft)
    assert await scan_rows(store, R) == ROWS[:20]
    assert await store.is_sealed(release_ref(R))


@simulated
async def test_first_swap_gives_up_after_one_time_limit(account: SimulatedAccount) -> None:
    store = account.store()
    account.inject_faults({"kind": "unavailable", "operation": "create container"})
    began = account.now()
    with pytest.raises(NotSent, match="503/0"):  # without a container, nothing can be written
        await store.swap(Catalogue(), changes.succeed(Catalogue(), changes.begin(Catalogue(), draft_of(R)), "t", "s"))
    assert UNAVAILABLE_S <= account.now() - began < UNAVAILABLE_S + 5
    assert 10 < account.answers(503) < 35


@simulated
async def test_erasure_gives_up_after_one_time_limit(account: SimulatedAccount) -> None:
    store = await account.with_draft(R, ROWS[:5])
    began = account.now()

    def lose_service(catalogue: Catalogue) -> None:
        del catalogue
        account.inject_faults(READ_FAILS)

    with pytest.raises(CosmosUnavailable):
        await store.erase(release_ref(R), lose_service)
    assert UNAVAILABLE_S <= account.now() - began < UNAVAILABLE_S + 5
    assert 10 < account.answers(503) < 35
    account.inject_faults()
    await store.erase(release_ref(R), allow_erasure)
    assert await store.incarnations() == []


@simulated
async def test_lost_races_for_a_state_count_against_the_time_limit(account: SimulatedAccount) -> None:
    store = await account.with_draft(R)
    account.loses_races = True
    account.latency_s = 2.0
    began = account.now()
    with pytest.raises(StoreUnavailable, match="keep changing the state"):
        await store.seal(draft_of(R))
    assert UNAVAILABLE_S <= account.now() - began < UNAVAILABLE_S + 10
    assert account.answers(412) < 10


@simulated
async def test_poll_for_changes_is_repeated_by_its_caller(account: SimulatedAccount) -> None:
    store = account.store()
    await publish(store)
    await store.poll()
    account.inject_faults(READ_FAILS)
    with pytest.raises(CosmosUnavailable):
        await store.poll()
    assert account.answers(503) == 2, "a read has a second attempt in another region"


@simulated
async def test_long_pause_that_a_429_asks_for_is_cut(account: SimulatedAccount) -> None:
    store = await account.with_draft(R)
    account.inject_faults({"kind": "throttle", "for_s": 1.0, "retry_after_ms": 100_000_000, "operation": "create item"})
    began = account.now()
    await store.put(draft_of(R), ROWS)
    assert account.now() - began < 2 * MAX_RETRY_AFTER_S


@simulated
async def test_429_with_a_pause_of_zero_backs_off(account: SimulatedAccount) -> None:
    store = await account.with_draft(R, ru="serverless")
    account.inject_faults({"kind": "throttle", "for_s": 3.0, "retry_after_ms": 0, "operation": "create item"})
    await store.put(draft_of(R), ROWS[:1])
    assert account.answers(429, "create item") < 10
