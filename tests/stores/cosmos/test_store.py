"""The Cosmos DB store beyond the contract: who may publish, what containers may spend, what is said of it all."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Coroutine
from functools import partial

import pytest

from stores import catalogue as changes
from stores import lifecycle as life
from stores.catalogue import GRACE_S, Catalogue, ReleaseId
from stores.connect import connect
from stores.cosmos.store import CosmosStore
from stores.cosmos.throughput import Throughput
from stores.errors import ReleaseConflict, ReleaseNotFound, StoreFull, StoreMisused, StoreUnavailable
from stores.store import Advised, Metered, PatientReader, Plan, Row, Thrifty
from tests.support.cosmos_held import Far, batches, with_far
from tests.support.stores import draft_of, ref

R = ReleaseId("20261120T064200Z-aaaa")
ROWS = [Row("popular:", b'{"id":"p"}'), Row("user:1", b'{"id":"a"}')]


async def publish(store: CosmosStore, *, live: bool = True) -> ReleaseId:
    return ((await life.publish(store, batches(ROWS), plan=Plan(2, 100), about={}, live=live)).manifest).release


def test_it_offers_what_services_and_operators_may_ask_for() -> None:
    async def work(far: Far) -> None:
        store = far.store()
        for offered in (Advised, Metered, PatientReader, Thrifty):
            assert isinstance(store, offered)

    with_far(work)


def test_an_account_of_many_writers_is_neither_written_nor_followed() -> None:
    async def work(far: Far) -> None:
        far.many_writers = True
        store = far.store()
        for refused in (
            store.swap(Catalogue(), changes.succeed(Catalogue(), changes.begin(Catalogue(), R), "t", "s")),
            store.create(draft_of(R), Plan(1, 1)),
            anext(aiter(store.changes())),
        ):
            with pytest.raises(StoreMisused, match="several regions, where two publishers could both change"):
                await refused
        assert not far.service.account.databases

    with_far(work)


def test_a_swap_whose_answer_was_lost_is_no_rival_and_a_rival_is_one() -> None:
    async def work(far: Far) -> None:
        store, rival = far.store(), far.store()
        old = await store.catalogue()
        first = changes.succeed(old, changes.begin(old, R), "one", "s")
        far.lose_answers = 1
        await store.swap(old, first)
        assert await rival.catalogue() == first
        seen = await store.catalogue()
        far.lose_answers = 1
        await store.swap(seen, changes.succeed(seen, seen, "two", "s"))
        with pytest.raises(ReleaseConflict):
            await rival.swap(first, changes.succeed(first, first, "three", "s"))
        assert (await store.catalogue()).token == "two"

    with_far(work)


def test_times_are_the_services() -> None:
    async def work(far: Far) -> None:
        store = far.store()
        await publish(store)
        assert (await store.catalogue()).now == pytest.approx(far.now(), abs=1.1)
        await asyncio.sleep(3600)
        watched = store.changes()
        assert (await anext(watched)).now == pytest.approx(far.now(), abs=1.1)
        await watched.aclose()  # type: ignore[attr-defined]  # it is an async generator

    with_far(work)


@pytest.mark.parametrize(
    ("asked", "written", "served", "kept"),
    [
        ({"ru": 1000, "max_ru": 4000}, Throughput(4000), Throughput(1000), Throughput(400)),
        ({"ru": 400, "max_ru": 300}, Throughput(400), Throughput(400), Throughput(400)),
        ({"ru": 400, "max_ru": 100_000}, Throughput(100_000), Throughput(1000), Throughput(1000)),
        ({"ru": "autoscale-2000", "max_ru": 9001}, *(Throughput(ru, autoscale=True) for ru in (10_000, 2000, 1000))),
    ],
)
def test_a_container_may_spend_what_it_needs_at_each_time_of_its_life(
    asked: dict[str, object], written: Throughput, served: Throughput, kept: Throughput
) -> None:
    async def work(far: Far) -> None:
        store = far.store(**asked)
        await store.create(draft_of(R), Plan(1, 1))
        assert far.throughput(R) == written
        first = await publish(store)
        assert far.throughput(first) == served
        second = await publish(store)
        await life.prune(store)
        assert far.throughput(first) == served  # its last readers may still be there
        await asyncio.sleep(GRACE_S)
        await life.prune(store)
        assert (far.throughput(first), far.throughput(second)) == (kept, served)
        scaled = far.answers(200, "replace offer")
        await life.prune(store)
        await life.activate(store, second)
        assert far.answers(200, "replace offer") == scaled, "what is right already is left alone"
        assert await life.rollback(store) == first
        assert far.throughput(first) == served
        assert far.throughput(await publish(store, live=False)) == kept

    with_far(work)


def test_a_release_that_goes_live_while_it_is_put_to_rest_is_woken() -> None:
    async def work(far: Far, head_start_s: float) -> None:
        operator, pruner = far.store(ru=1000), far.store(ru=1000)
        first, _ = await publish(operator), await publish(operator)
        await asyncio.sleep(GRACE_S)

        async def after(seconds: float, act: Coroutine[None, None, object]) -> None:
            await asyncio.sleep(max(0.0, seconds))
            await act

        await asyncio.gather(
            after(-head_start_s, life.prune(pruner)), after(head_start_s, life.activate(operator, first))
        )
        assert far.throughput(first) == Throughput(1000)

    for place in range(-40, 41):
        with_far(partial(work, head_start_s=place * 0.001))


def test_a_scaling_that_takes_hours_ends_with_a_sentence() -> None:
    async def work(far: Far) -> None:
        store = far.store(ru=1000, max_ru=4000)
        release = await publish(store, live=False)
        far.scales_for_ever = True
        began = far.now()
        with pytest.raises(StoreUnavailable, match=r"still being scaled to 1,000 RU/s, which can take hours"):
            await life.activate(store, release)
        assert 600 <= far.now() - began < 660
        assert (await store.catalogue()).live is None

    with_far(work)


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    async def work(far: Far) -> None:
        with pytest.raises(StoreFull, match=r"2,000 GB, and a serverless container of .* holds 1,000 GB"):
            await far.store(ru="serverless").create(draft_of(R), Plan(1, 2 * 10**12))
        await far.store().create(draft_of(R), Plan(1, 2 * 10**12))

    with_far(work)


def test_readers_are_warned_of_what_they_could_run_into() -> None:
    async def work(far: Far) -> None:
        store = far.store()
        assert await store.warnings() == []
        await publish(store)
        assert await store.warnings() == []
        (short,) = await far.store(ru=1000).warnings()
        assert "has 400 RU/s, and ru= of cosmos+http://here:1/d asks for 1,000" in short
        (split,) = await far.store(max_ru=20_000).warnings()
        assert "4 partitions for good, so that one key can be read at 100 RU/s at most" in split

    with_far(work)


def test_erasing_costs_no_request_units_but_the_containers_own() -> None:
    async def work(far: Far) -> None:
        store = far.store()
        release = await publish(store)
        spent = far.spent_ru("item")
        await store.erase(ref(release))
        await store.erase(ref(release))
        assert far.spent_ru("item") == spent
        with pytest.raises(ReleaseNotFound):
            await store.rest(ref(release))
        await store.create(draft_of(release), Plan(1, 1))
        await store.put(draft_of(release), ROWS)
        assert await store.resume_point(draft_of(release)) == "user:1"

    with_far(work)


@pytest.mark.parametrize("driver", ["rest", "sdk"])
def test_a_url_opens_nothing_by_itself(driver: str) -> None:
    assert isinstance(connect(f"cosmos+http://127.0.0.1:9/d?driver={driver}"), CosmosStore)


@pytest.mark.parametrize(
    ("url", "missing"),
    [("cosmos+http://127.0.0.1:9/d", "httptools"), ("cosmos+http://127.0.0.1:9/d?driver=sdk", "azure")],
)
def test_an_extra_that_is_not_installed_is_named(url: str, missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None\nfrom stores.connect import connect; connect({url!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert re.search(rf"StoreMisused: {missing}\S* is not installed.*'hotplate\[cosmos\]'$", done.stderr.strip())


def test_reading_over_the_wire_by_key_loads_no_sdk() -> None:
    program = (
        "import sys; from stores.connect import connect; connect('cosmos+http://127.0.0.1:9/d'); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "stores.cosmos.rest.driver" in done.stdout
    assert "azure" not in done.stdout
