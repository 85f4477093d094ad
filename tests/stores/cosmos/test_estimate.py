"""One sum says what a publish into Cosmos DB spends: held to 1 % of what the emulator charges for the same one."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores.cosmos.charges import bill_of
from hotplate.stores.cosmos.url import parse
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.manifest import Manifest
from hotplate.stores.publication import estimate
from hotplate.stores.store import Estimate, Plan, Provisioned, Row, Store
from tests.support.cosmos_simulation import SimulatedAccount, simulated, with_simulation
from tests.support.planning import a_plan
from tests.support.stores import as_bodies


@dataclass
class Made:
    """A release as a publisher puts it, batch by batch."""

    batches: list[Sequence[Row]]
    about: dict[str, object]
    encoding: str = "json"

    @property
    def plan(self) -> Plan:
        rows = [row for batch in self.batches for row in batch]
        return Plan(len(rows), sum(len(key) + len(value) for key, value in rows))

    async def rows(self) -> AsyncIterator[Sequence[Row]]:
        for batch in self.batches:
            yield batch


def made_up(users: int = 1200, seed: int = 1) -> Made:
    draw = random.Random(seed)
    rows = [
        *(Row(f"item:{n:05}", draw.randbytes(draw.randrange(90, 2500))) for n in range(users // 2)),
        Row("popular:", b'{"id":"1"}'),
        *(Row(f"user:{n:05}", draw.randbytes(draw.randrange(40, 900))) for n in range(users)),
    ]
    batches = [as_bodies(rows[start : start + 1300]) for start in range(0, len(rows), 1300)]
    return Made([[Row("meta:dictionary", draw.randbytes(32 << 10))], *batches], {"data": "x" * 1500})


async def estimated(
    account: SimulatedAccount, made: Made, *, live: bool = True, keep: int = 1, **options: int
) -> Estimate:
    async def run(simulated: Store) -> Manifest:
        about = made.about
        result = await publication.publish(
            simulated, made.rows(), plan=made.plan, about=about, encoding=made.encoding, live=live
        )
        await life.prune(simulated, keep=keep)
        return result.manifest

    return await estimate(account.store(**options), run, live=live)


async def publish(
    account: SimulatedAccount, made: Made, *, live: bool = True, keep: int = 1, **options: int
) -> tuple[float, float]:
    """Publish and prune; return the RU that the service charged, and the seconds that passed."""
    store, loop = account.store(**options), asyncio.get_running_loop()
    before_ru, began = account.spent_ru(), loop.time()
    await publication.publish(store, made.rows(), plan=made.plan, about=made.about, encoding=made.encoding, live=live)
    await life.prune(store, keep=keep)
    return account.spent_ru() - before_ru, loop.time() - began


def held(made: Made, latency_s: float, *, ru: int, max_ru: int) -> tuple[Estimate, float, float]:
    async def work(account: SimulatedAccount) -> tuple[Estimate, float, float]:
        account.latency_s = latency_s
        found = await estimated(account, made, ru=ru, max_ru=max_ru)
        assert account.service.account.databases == {}
        return found, *await publish(account, made, ru=ru, max_ru=max_ru)

    return with_simulation(work)


@pytest.mark.parametrize(
    ("users", "max_ru", "ru", "latency_s"),
    [
        *((users, max_ru, 6000, 0.005) for users, max_ru in ((40, 400), (300, 100), (300, 5900))),
        pytest.param(4000, 2000, 6000, 0.005, marks=pytest.mark.soak),
        pytest.param(1200, 1000, 400, 0.0, id="all that the container has may be spent"),
    ],
)
def test_a_publish_spends_what_the_dry_run_estimated_within_a_percent(
    users: int, max_ru: int, ru: int, latency_s: float
) -> None:
    found, spent_ru, seconds = held(made_up(users, seed=max_ru), latency_s, ru=ru, max_ru=max_ru)
    assert found.total_ru == pytest.approx(spent_ru, rel=0.01)
    assert found.seconds is not None
    assert found.seconds == pytest.approx(seconds, rel=0.02, abs=1.5)


@pytest.mark.soak
@simulated
async def test_later_publishes_are_estimated_as_well_and_looked_at_once(account: SimulatedAccount) -> None:
    account.latency_s = 0.0
    for number in range(5):
        made, live = made_up(1200, seed=number), number != 3
        before_ru = account.spent_ru()
        found = await estimated(account, made, live=live, keep=0, ru=2000, max_ru=1000)
        assert account.spent_ru() - before_ru == (1.0 if number else 0.0)  # one look at the catalogue
        spent_ru, _ = await publish(account, made, live=live, keep=0, ru=2000, max_ru=1000)
        assert found.total_ru == pytest.approx(spent_ru, rel=0.01), number
        await asyncio.sleep(1000)  # the grace of what was superseded passes
    assert account.answers(204, "delete container") > 0


@simulated
async def test_a_release_that_cannot_be_served_is_refused(account: SimulatedAccount) -> None:
    with pytest.raises(ReleaseCorrupt, match="no popular list"):
        await estimated(account, Made([as_bodies([Row("user:1", b"x")])], {}))


def test_what_a_plan_says_of_a_publish_is_what_it_spends_and_takes() -> None:
    async def work(account: SimulatedAccount) -> tuple[float, float]:
        rows = [Row("popular:", b"p" * 700), *(Row(f"user:u{n:09}", b"l" * 700) for n in range(2500))]
        made = Made([as_bodies(rows)], {})
        return await publish(account, made, ru=400, max_ru=400)

    spent_ru, seconds = with_simulation(work)
    plan = a_plan(users=2500, list_bytes=712, publish_ru=400)
    assert plan.number("publish_total_ru") == pytest.approx(spent_ru, rel=0.01)
    assert plan.number("publish_hours") * 3600 == pytest.approx(seconds, rel=0.03)


@simulated
async def test_what_would_be_made_comes_with_a_note_on_containers_that_begin_large(account: SimulatedAccount) -> None:
    found = await estimated(account, made_up(20), ru=1000, max_ru=50_000)
    assert "50,000 RU/s, manual, 9 physical partitions, nothing indexed" in " ".join(found.makes)
    assert "scaled to 1,000 RU/s" in " ".join(found.makes)
    assert any("9 physical partitions for good" in each and "111 RU/s" in each for each in found.notes)
    assert found.bill is not None
    assert found.bill.afterwards[1] == Provisioned("release before it, kept", 500)


def test_what_is_billed_follows_the_url() -> None:
    def bill(options: str) -> list[tuple[int, bool]]:
        found = bill_of(parse(f"cosmos+http://here:1/d?{options}", {}))
        return [(one.ru_s, one.autoscale) for one in (*found.writing, *found.afterwards)]

    assert bill("ru=400") == [(400, False), (400, False), (400, False), (400, False), (400, False)]
    assert bill("ru=autoscale-2000&max_ru=4001") == [
        (5000, True), (400, False), (2000, True), (1000, True), (400, False),
    ]  # fmt: skip
    assert bill("ru=serverless&max_ru=3000") == []
