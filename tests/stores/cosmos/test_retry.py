"""Request units are spent at the requested rate, or at what the service gives, if that is less; on a held clock."""

import asyncio

import pytest

from hotplate.stores import publication
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.cosmos.store import SCALING_POLL_S
from hotplate.stores.store import Plan, Row
from hotplate.stores.throttle import RateLimiter
from tests.support.clock import FakeClock
from tests.support.cosmos_simulation import SimulatedAccount, batches, simulated
from tests.support.stores import as_bodies, draft_of, ref

R = ReleaseId("20261120T064200Z-aaaa")
ROWS = [Row("popular:", b"p" * 100), *(Row(f"user:{n:05}", b"x" * (n % 1800)) for n in range(2000))]


def spend(clock: FakeClock, limiter: RateLimiter, seconds: float, charge_ru: float) -> float:
    """Send one request after the other for so long; return what was spent."""
    until, spent_ru = clock.now + seconds, 0.0
    while clock.now + (wait_s := limiter.wait_s()) < until:
        clock.now += wait_s
        limiter.take(charge_ru)
        spent_ru += charge_ru
    return spent_ru


@pytest.mark.parametrize("charge_ru", [1.0, 5.4, 22.67, 625.0])
def test_the_rate_is_spent_exactly(clock: FakeClock, charge_ru: float) -> None:
    assert spend(clock, RateLimiter(clock, 1000), 60, charge_ru) == pytest.approx(60_000, rel=0.001, abs=charge_ru)


def test_limiter_waits_for_retry_after_and_saves_up_no_budget_meanwhile(clock: FakeClock) -> None:
    limiter = RateLimiter(clock, 1000)
    limiter.pause(3)
    limiter.pause(1)
    assert limiter.wait_s() == pytest.approx(3)
    clock.now += 3
    assert spend(clock, limiter, 1, 5.0) == pytest.approx(1000, abs=10)


@simulated
async def test_a_publish_spends_at_the_configured_rate(account: SimulatedAccount) -> None:
    store, loop = account.store(max_ru=1000), asyncio.get_running_loop()
    began = loop.time()
    manifest = (await publication.publish(store, batches(ROWS), plan=Plan(len(ROWS), 1000), about={})).manifest
    took_s = loop.time() - began
    spent_ru = account.admitted_ru(manifest.release)
    assert took_s == pytest.approx(spent_ru / 1000 + SCALING_POLL_S, abs=0.5)  # what is done one after the other
    assert account.answers(429) <= 5


@pytest.mark.parametrize(("provisioned", "max_ru", "share"), [(400, 1000, 0.02), (600, 1000, 0.02), (400, 400, 0.01)])
@simulated
async def test_container_below_the_configured_rate_is_fully_used_without_loss(
    account: SimulatedAccount, provisioned: int, max_ru: int, share: float
) -> None:
    maker, store, loop = account.store(ru=provisioned), account.store(max_ru=max_ru), asyncio.get_running_loop()
    await maker.create(draft_of(R), Plan(1, 1))
    began, before_ru = loop.time(), account.admitted_ru(R)
    async for batch in batches(ROWS):
        await store.put(draft_of(R), batch)
    took_s = loop.time() - began
    assert (account.admitted_ru(R) - before_ru) / took_s == pytest.approx(provisioned, rel=0.03)
    assert account.answers(429) < share * len(ROWS)
    await store.seal(draft_of(R))
    assert [row async for row in store.scan(ref(R))] == as_bodies(ROWS)
