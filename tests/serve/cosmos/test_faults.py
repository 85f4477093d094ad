"""An emulated Cosmos DB that throttles, fails, slows down or loses a region, as its callers see it, also under load."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from bench.drills.proxy import Proxy, through
from serve.reader import TieredReader
from stores.catalogue import ReleaseId
from stores.connect import connect
from stores.verification import verify
from tests.support.cosmos_account import Account
from tests.support.loaded_service import USERS, WAIT_S, Run, lists, reading, under_load, until, until_read
from tests.support.service import publish_to
from tests.support.soak import scaled

TIER = "cosmos+http"
# Where an answer of some 930 bytes may be cut; its head has 530.
IN_HEAD, IN_BODY = 100, 700
# Of so many that are cut, chance does not cut the second attempt of half.
ENOUGH_CUTS = 30
# Connections that end without an answer again and again are not opened for a while, and reads fail for want of one.
CUT = ("connect", "reset")
# What the emulator does, and as what its failures are counted; a refusal for want of throughput is counted by itself.
FAULTS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "429": ({"kind": "throttle"}, ()),
    "503": ({"kind": "unavailable"}, ("unavailable",)),
    "reads of 1 s": ({"kind": "slow", "delay_ms": 1000}, ("timeout",)),
    "connections cut": ({"kind": "reset"}, CUT),
}
every_fault = pytest.mark.parametrize("fault", FAULTS)
with_and_without_another_tier = pytest.mark.parametrize("others", [(), ("file",)], ids=["alone", "with a local tier"])


@pytest.fixture
def url(cosmos: Account) -> Iterator[str]:
    yield cosmos.url(secrets.token_hex(4))
    cosmos.misbehave()


def tiers(url: str, folder: Path, others: tuple[str, ...]) -> list[str]:
    return [url, *(f"{scheme}://{folder}/store" for scheme in others)]


def port_of(cosmos: Account) -> int:
    return int(cosmos.emulator.endpoint.rsplit(":", 1)[1].rstrip("/"))


@asynccontextmanager
async def proxied(cosmos: Account, url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Put a proxy before the account; the block gets it, and the URL that goes through it."""
    async with through(port_of(cosmos)) as proxy:
        yield proxy, url.replace(str(port_of(cosmos)), str(proxy.port))


async def sources(reader: TieredReader) -> Counter[str]:
    """Read the list of each user, one after the other; return how many came from where."""
    return Counter([(await reader.personal(str(user))).source for user in range(USERS)])


@every_fault
@with_and_without_another_tier
async def test_others_answer_during_a_fault_and_the_account_after_it(
    tmp_path: Path, cosmos: Account, url: str, fault: str, others: tuple[str, ...]
) -> None:
    await publish_to(url, lists("r0"))
    await publish_to(f"file://{tmp_path}/store", lists("f0"))
    async with reading(*tiers(url, tmp_path, others)) as reader:
        await until_read(reader, TIER)
        cosmos.misbehave(FAULTS[fault][0])

        async def is_open() -> bool:
            await reader.personal("1")
            return reader.tiers[0].breaker.is_open

        await until(is_open, "the circuit does not open")
        await until_read(reader, *(("file", "personal") if others else (TIER, "popular")))
        assert reader.tiers[0].error is not None
        cosmos.misbehave()
        await until_read(reader, TIER)


async def test_a_publisher_in_a_storm_of_429s_loses_nothing(cosmos: Account, url: str) -> None:
    await publish_to(url, lists("r0"))
    async with reading(url) as reader:
        cosmos.misbehave(FAULTS["429"][0])
        publishing = asyncio.create_task(publish_to(url, lists("r1")))
        await until_read(reader, TIER, "popular")
        cosmos.misbehave()
        released = await publishing

        async def is_followed() -> bool:
            return (await reader.personal("1")).served.id == released

        await until(is_followed, "the new release is not followed")
    store = connect(url)
    await verify(store, (await store.catalogue()).find(ReleaseId(released)).ref)
    await store.close()


@pytest.mark.parametrize("cut_at", [IN_HEAD, IN_BODY])
async def test_an_answer_that_is_cut_is_read_again_and_never_taken_for_a_list(
    cosmos: Account, url: str, cut_at: int
) -> None:
    await publish_to(url, lists("r0"))
    async with proxied(cosmos, url) as (proxy, there):
        async with reading(there, budget_s=WAIT_S) as reader:
            await until_read(reader, TIER)
            proxy.cut_at, proxy.cut_every = cut_at, 7
            read = await sources(reader)
            assert proxy.cuts > 5
            assert read["popular"] <= proxy.cuts / 2, "a list that was cut was not read again"
            proxy.cut_at, proxy.cut_every = None, 1
        async with reading(there) as reader:
            proxy.cut_at = cut_at
            await until_read(reader, TIER, "popular")
            proxy.cut_at = None
            await until_read(reader, TIER)


async def test_after_a_new_connection_was_cut_lookups_wait_for_the_next_rather_than_fail_for_want_of_one(
    cosmos: Account, url: str
) -> None:
    await publish_to(url, lists("r0"))
    async with proxied(cosmos, url) as (proxy, there), reading(there, budget_s=WAIT_S) as reader:
        await until_read(reader, TIER)
        proxy.reset()
        proxy.cut_at = IN_HEAD
        first = asyncio.create_task(reader.personal("0"))
        while not proxy.cuts:
            await asyncio.sleep(0)
        proxy.cut_at = None
        answers = await asyncio.gather(*(reader.personal(str(user)) for user in range(1, USERS)))
        assert {answer.source for answer in answers} == {"personal"}
        await first


async def test_a_region_that_vanishes_is_left_for_another(two_regions: Account) -> None:
    url = two_regions.url(secrets.token_hex(4))
    await publish_to(url, lists("r0"))
    try:
        async with reading(url) as reader:
            await until_read(reader, TIER)
            two_regions.misbehave({"kind": "region-gone", "region": 0})

            async def all_personal() -> bool:
                return set(await sources(reader)) == {"personal"}

            await until(all_personal, "the other region is not read")
    finally:
        two_regions.misbehave()


async def failures(run: Run, kinds: tuple[str, ...]) -> float:
    """Return how many attempts failed by these kinds; the refusals of a storm where there are none."""
    if not kinds:
        return await run.counted("hotplate_store_throttled_total")
    counts = await run.counts("hotplate_store_failures_total", "kind")
    return sum(counts.get(kind, 0) for kind in kinds)


async def until_failures(run: Run, kinds: tuple[str, ...], more_than: float) -> None:
    async def is_so() -> bool:
        return await failures(run, kinds) > more_than

    await until(is_so, f"no more than {more_than} attempts failed by {kinds}")


def logged_seldom(run: Run, faults: int = 1) -> None:
    """Hold the log to one line when the circuit opened, and one when it closed, a minute at most."""
    opened = run.logged("circuit open")
    assert 1 <= opened <= faults
    assert run.logged("circuit closed") == opened
    assert run.logged('"level":"error"') == 0
    assert run.logged('"level":"warning"') <= 2 * opened + faults  # the catalogue may have been out of reach, too


@pytest.mark.soak
@with_and_without_another_tier
async def test_under_load_no_request_is_lost_to_a_fault(
    tmp_path: Path, cosmos: Account, url: str, others: tuple[str, ...]
) -> None:
    await publish_to(url, lists("r0"))
    await publish_to(f"file://{tmp_path}/store", lists("f0"))
    faults = scaled(1) * list(FAULTS.values())
    async with under_load(tmp_path, *tiers(url, tmp_path, others)) as run:
        for behaviour, kinds in faults:
            before = await failures(run, kinds)
            cosmos.misbehave(behaviour)
            await run.until(*(("file", "personal") if others else (TIER, "popular")))
            await run.until_status("degraded")
            await until_failures(run, kinds, before + 5)
            cosmos.misbehave()
            await run.until(TIER)
            await run.until_status("ready")
    run.answered(TIER, *others, source=None if others else "popular")
    if others:
        assert run.share("personal") == 1
    logged_seldom(run, len(faults))


@pytest.mark.soak
async def test_under_load_a_storm_of_429s_costs_few_reads_and_next_to_no_request_units(
    tmp_path: Path, cosmos: Account, url: str
) -> None:
    await publish_to(url, lists("r0"))
    async with under_load(tmp_path, url) as run:
        cosmos.misbehave(FAULTS["429"][0])
        publishing = asyncio.create_task(publish_to(url, lists("r1")))
        await run.until(TIER, "popular")
        assert "has no request units left" in await run.until_status("degraded")
        await run.windows(1)
        for _ in range(scaled(1)):
            spent_ru, reads, due = cosmos.spent_ru(), cosmos.requests("read item"), len(run.results)
            await run.windows(2)
            requests = sum(result.due for result in run.results[due:])
            assert cosmos.requests("read item") - reads < requests / 10
            assert cosmos.spent_ru() - spent_ru < 5
        cosmos.misbehave()
        await run.until(TIER)
        await run.until_release(await publishing)
        await run.until_status("ready")
        await until_failures(run, (), 10)
    run.answered(TIER, source="popular")
    logged_seldom(run)


@pytest.mark.soak
@pytest.mark.parametrize("region_count", [1, 2])
async def test_where_one_answer_in_three_is_a_503_most_lists_are_personal(
    tmp_path: Path, cosmos: Account, two_regions: Account, region_count: int
) -> None:
    account = (cosmos, two_regions)[region_count - 1]
    url = account.url(secrets.token_hex(4))
    await publish_to(url, lists("r0"))
    async with under_load(tmp_path, url) as run:
        account.misbehave(FAULTS["503"][0] | {"share": 0.3})
        await run.windows(scaled(4, least=4))
        account.misbehave()
        assert await run.counted("hotplate_store_failures_total", kind="unavailable") > 100
    run.answered(TIER, source="popular")
    assert run.share("personal") > 0.8
    assert run.logged('"level":"warning"') <= len(run.results) * (region_count - 1), (
        "regions that are left again and again"
    )


@pytest.mark.soak
async def test_under_load_a_region_that_vanishes_is_left_for_another_and_read_again(
    tmp_path: Path, two_regions: Account
) -> None:
    url = two_regions.url(secrets.token_hex(4))
    await publish_to(url, lists("r0"))
    async with under_load(tmp_path, url) as run:
        for times in range(1, scaled(1) + 1):
            two_regions.misbehave({"kind": "region-gone", "region": 0})
            await run.windows(2)
            assert await failures(run, CUT) > 0
            two_regions.misbehave()

            async def is_back(times: int = times) -> bool:
                return run.logged("can be read again; reading from Emulated West") == times

            await until(is_back, "the first region is not read again")
            assert run.logged("; reading from Emulated East") == times
    run.answered(TIER)
    assert run.share("personal") > 0.99
    assert run.logged('"level":"warning"') == 2 * scaled(1)


async def are_cut(proxy: Proxy, answers: int) -> bool:
    """Return whether a proxy has cut so many answers."""
    return proxy.cuts >= answers


async def none_is_popular(run: Run) -> bool:
    """Return whether no worker answers with the popular list, as one whose circuit is still open."""
    before = await run.counted("hotplate_lookups_total", source="popular")
    await run.windows(1)
    return await run.counted("hotplate_lookups_total", source="popular") == before


@pytest.mark.soak
async def test_under_load_most_answers_that_are_cut_are_read_again_and_none_is_taken_for_a_list(
    tmp_path: Path, cosmos: Account, url: str
) -> None:
    await publish_to(url, lists("r0"))
    async with proxied(cosmos, url) as (proxy, there):
        async with under_load(tmp_path, there, options=("--budget", "1")) as run:  # nothing is late
            for cut_at in scaled(1) * (IN_HEAD, IN_BODY):
                await until(partial(none_is_popular, run), "a worker goes on with popular lists")
                failed = await failures(run, CUT)
                popular, cuts = await run.counted("hotplate_lookups_total", source="popular"), proxy.cuts
                proxy.cut_at, proxy.cut_every = cut_at, 7
                await until(partial(are_cut, proxy, cuts + ENOUGH_CUTS), "too few answers are cut")
                await until_failures(run, CUT, failed + 10)
                made_popular = await run.counted("hotplate_lookups_total", source="popular") - popular
                assert made_popular <= (proxy.cuts - cuts) / 2, "a list that was cut, or was late, and not read again"
                proxy.cut_every = 1
                await run.until(TIER, "popular")
                proxy.cut_at = None
                await run.until(TIER)
            assert proxy.accepted < 150 * scaled(1), "a storm of connections"
        run.answered(TIER, source="popular")
