"""A service on an emulated Cosmos DB that throttles, fails, slows down or loses a region: what its callers see."""

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from stores.connect import connect
from stores.verification import verify
from tests.serve.test_flip import lists
from tests.support.cosmos_drivers import Account, account
from tests.support.loaded_service import RECOVERY_S, Run, under_load
from tests.support.proxy import through
from tests.support.service import publish_to

TIER = "cosmos+http"
STORM: dict[str, object] = {"kind": "throttle"}
AWAY: dict[str, object] = {"kind": "unavailable"}
SLOW: dict[str, object] = {"kind": "slow", "delay_ms": 1000}
ENDED: dict[str, object] = {"kind": "reset"}
IN_HEAD, IN_BODY = 100, 700
"""Where an answer of some 930 bytes may be cut; its head has 530."""

CUT = ("connect", "reset")
"""Connections that end without an answer again and again are not opened for a while, and reads fail for want of one."""


@pytest.fixture(scope="module")
def cosmos() -> Iterator[Account]:
    """An account for all tests of this file; each takes a database of its own."""
    with account(None) as one:
        yield one


@pytest.fixture(scope="module")
def pair() -> Iterator[Account]:
    """The same in two regions."""
    with account(None, "--second-region", "0") as one:
        yield one


@pytest.fixture
def url(cosmos: Account) -> Iterator[str]:
    yield cosmos.url(secrets.token_hex(4))
    cosmos.misbehave()


async def reads_in(cosmos: Account, seconds: float) -> int:
    """Return how many reads the account gets in so many seconds."""
    before = cosmos.asked("read item")
    await asyncio.sleep(seconds)
    return cosmos.asked("read item") - before


async def failures(run: Run, kinds: tuple[str, ...]) -> float:
    """Return how many attempts failed by these kinds, or by none but the refusals of a storm; hardly any by others."""
    told = await run.counts("hotplate_store_failures_total", "kind")
    named = sum(told.get(kind, 0) for kind in kinds)
    assert sum(told.values()) - named <= max(3, named / 10), told  # on a busy machine, some are late
    return named if kinds else await run.counted("hotplate_store_throttled_total")


def told_once(run: Run) -> None:
    """Hold the log to one line when the store was given up, and one when it was taken up again."""
    assert (run.logged("is spared until it answers again"), run.logged('answers again"')) == (1, 1)
    assert run.logged('"level":"error"') == 0
    assert run.logged('"level":"warning"') <= 3  # the catalogue may have been out of sight meanwhile, too


@pytest.mark.parametrize("driver", ["rest", "sdk"])
async def test_a_storm_of_429s_is_answered_by_popular_lists_and_a_publisher_in_it_loses_nothing(
    tmp_path: Path, cosmos: Account, url: str, driver: str
) -> None:
    await publish_to(url, lists("r0"))
    async with under_load(tmp_path, f"{url}&driver={driver}", seconds=11) as run:
        cosmos.misbehave(STORM)
        publishing = asyncio.create_task(publish_to(url, lists("r1")))
        await run.until(TIER, "popular")
        assert "has no request units left" in await run.until_status("degraded")
        await asyncio.sleep(0.5)
        spent_ru = cosmos.spent_ru()
        assert await reads_in(cosmos, 2) < 40
        assert cosmos.spent_ru() - spent_ru < 5
        cosmos.misbehave()
        assert await run.until(TIER) < RECOVERY_S
        released = await publishing
        await run.until_release(released)
        await run.until_status("ready")
        assert await failures(run, ()) > 10
    run.answered(TIER, source="popular")
    told_once(run)
    store = connect(url)
    await verify(store, (await store.catalogue()).find(released).id)  # type: ignore[arg-type]  # an id as text
    await store.close()


FAULTS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "429": (STORM, ()),
    "503": (AWAY, ("unavailable",)),
    "reads of 1 s": (SLOW, ("timeout",)),
    "connections cut": (ENDED, CUT),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_local_tier_answers_while_the_account_fails(
    tmp_path: Path, cosmos: Account, url: str, fault: str
) -> None:
    told, kinds = FAULTS[fault]
    await publish_to(url, lists("r0"))
    await publish_to(f"file://{tmp_path}/store", lists("f0"))
    async with under_load(tmp_path, url, f"file://{tmp_path}/store", seconds=4) as run:
        cosmos.misbehave(told)
        await run.until("file")
        await run.until_status("degraded")
        await asyncio.sleep(1)
        cosmos.misbehave()
        assert await run.until(TIER) < RECOVERY_S
        assert await failures(run, kinds) > 10
    run.answered(TIER, "file")
    assert run.share("personal") == 1
    told_once(run)


@pytest.mark.parametrize("fault", ["503", "reads of 1 s", "connections cut"])
async def test_without_another_tier_callers_get_popular_lists_meanwhile(
    tmp_path: Path, cosmos: Account, url: str, fault: str
) -> None:
    told, kinds = FAULTS[fault]
    await publish_to(url, lists("r0"))
    async with under_load(tmp_path, url, seconds=4) as run:
        cosmos.misbehave(told)
        await run.until(TIER, "popular")
        await run.until_status("degraded")
        await asyncio.sleep(1)
        cosmos.misbehave()
        assert await run.until(TIER) < RECOVERY_S
        assert await failures(run, kinds) > 10
    run.answered(TIER, source="popular")
    told_once(run)


@pytest.mark.parametrize("regions", [1, 2])
async def test_where_one_answer_in_three_is_a_503_most_lists_are_personal(
    tmp_path: Path, cosmos: Account, pair: Account, regions: int
) -> None:
    far = (cosmos, pair)[regions - 1]
    url = far.url(secrets.token_hex(4))
    await publish_to(url, lists("r0"))
    async with under_load(tmp_path, url, seconds=6) as run:
        far.misbehave(AWAY | {"share": 0.3})
        await asyncio.sleep(5)
        far.misbehave()
        assert await run.counted("hotplate_store_failures_total", kind="unavailable") > 100
    run.answered(TIER, source="popular")
    assert run.share("personal") > 0.8
    assert run.logged('"level":"warning"') <= 6 * (regions - 1), "regions that are left and taken up again and again"


async def test_a_region_that_vanishes_is_left_for_another_and_taken_up_again(tmp_path: Path, pair: Account) -> None:
    url = pair.url(secrets.token_hex(4))
    await publish_to(url, lists("r0"))
    async with under_load(tmp_path, url, seconds=8) as run:
        pair.misbehave({"kind": "region-gone", "region": 0})
        await asyncio.sleep(2)
        assert await failures(run, CUT) > 0
        pair.misbehave()
        while not run.logged("can be read again; reading from Emulated West"):
            await asyncio.sleep(0.05)
    run.answered(TIER)
    assert run.share("personal") > 0.99
    assert run.logged("; reading from Emulated East") == 1
    assert run.logged('"level":"warning"') == 2


async def test_an_answer_that_is_cut_in_its_head_or_its_body_is_asked_for_again_and_never_taken_for_a_list(
    tmp_path: Path, cosmos: Account, url: str
) -> None:
    await publish_to(url, lists("r0"))
    port = int(cosmos.emulator.endpoint.rsplit(":", 1)[1].rstrip("/"))
    async with through(port) as proxy:
        async with under_load(tmp_path, url.replace(str(port), str(proxy.port)), seconds=9) as run:
            for cut_at in (IN_HEAD, IN_BODY):
                failed = await failures(run, CUT)
                popular = await run.counted("hotplate_lookups_total", source="popular")
                proxy.cut_at, proxy.cut_every = cut_at, 7
                await asyncio.sleep(1)
                assert await failures(run, CUT) > failed + 10
                assert await run.counted("hotplate_lookups_total", source="popular") == popular
                proxy.cut_every = 1
                await run.until(TIER, "popular")
                proxy.cut_at = None
                assert await run.until(TIER) < RECOVERY_S
            assert proxy.accepted < 150, "a storm of connections"
        run.answered(TIER, source="popular")
