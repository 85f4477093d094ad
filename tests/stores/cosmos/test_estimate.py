"""What `hotplate plan` says of a publish, against what the emulator charges for one."""

import asyncio

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores.store import Row
from tests.support.cosmos_simulation import SimulatedAccount, with_simulation
from tests.support.planning import a_plan
from tests.support.stores import publish


def test_publish_costs_and_takes_what_the_plan_predicts() -> None:
    async def work(account: SimulatedAccount) -> tuple[float, float]:
        rows = [Row("popular:", b"p" * 700), *(Row(f"user:u{n:09}", b"l" * 700) for n in range(2500))]
        store = account.store(ru=400, max_ru=400)
        loop = asyncio.get_running_loop()
        before_ru = account.spent_ru()
        began = loop.time()
        await publish(store, rows, len(rows))
        await life.prune(store)
        return account.spent_ru() - before_ru, loop.time() - began

    spent_ru, seconds = with_simulation(work)
    plan = a_plan(users=2500, list_bytes=712, publish_ru=400)
    assert plan.number("publish_total_ru") == pytest.approx(spent_ru, rel=0.01)
    assert plan.number("publish_hours") * 3600 == pytest.approx(seconds, rel=0.03)
