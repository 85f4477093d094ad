"""Publishing to Cosmos DB: at the rate that may be spent, through faults, and over rows that an account has lost."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import LEASE_S, ReleaseId
from hotplate.stores.cosmos.errors import ContainerMissing, CosmosThrottled, CosmosUnavailable
from hotplate.stores.cosmos.items import container_of, name_of
from hotplate.stores.cosmos.paced_items import CONTAINER_VISIBLE_S
from hotplate.stores.cosmos.store import SCALING_POLL_S, THROTTLED_S, UNAVAILABLE_S, CosmosStore, open_url
from hotplate.stores.errors import ReleaseCorrupt, StoreFull
from hotplate.stores.store import Plan, Row
from hotplate.stores.transfer import copy, repair
from hotplate.stores.verification import verify
from tests.support.cosmos_account import emulated_account
from tests.support.cosmos_simulation import ROWS, SimulatedAccount, simulated, with_simulation
from tests.support.memory_store import MemoryStore
from tests.support.soak import in_soak, scaled
from tests.support.stores import (
    as_bodies,
    batches,
    begin_draft,
    draft_of,
    publish,
    published_rows,
    ref_of,
    release_ref,
    scan_rows,
)

R = ReleaseId("20261120T064200Z-aaaa")


FAULTS: list[dict[str, object]] = [
    {"kind": "throttle", "for_s": 30},
    {"kind": "throttle", "share": 0.3, "retry_after_ms": 20},
    {"kind": "unavailable", "for_s": 8},
    {"kind": "reset", "share": 0.2},
    {"kind": "slow", "delay_ms": 9000, "share": 0.01},
    {"kind": "region-gone", "for_s": 8},
]
SIMILAR: list[dict[str, object]] = [
    {"kind": kind, "share": 0.2} for kind in ("unavailable", "retry-with", "timeout", "gone")
]
each_fault = pytest.mark.parametrize(
    "fault",
    [*FAULTS, *(in_soak(fault) for fault in SIMILAR)],
    ids=lambda fault: " ".join(map(str, fault.values())),
)


@each_fault
@pytest.mark.parametrize(("rows", "times"), [(300, 1), in_soak(len(ROWS), scaled(1))])
def test_publish_survives_transient_faults(fault: dict[str, object], rows: int, times: int) -> None:
    for _ in range(times):
        with_simulation(partial(publish_under, fault, ROWS[:rows]))


async def publish_under(fault: dict[str, object], rows: list[Row], account: SimulatedAccount) -> None:
    async def until_it_fails() -> AsyncIterator[Sequence[Row]]:
        async for batch in batches(rows, 100):
            yield batch
            if batch[0].key == rows[100].key:
                account.inject_faults(fault)

    store = account.store(ru=4000)
    manifest = (await publication.publish_release(store, until_it_fails(), plan=Plan(len(rows), 1000))).manifest
    account.inject_faults()
    assert await published_rows(store, manifest.release) == rows
    assert (await store.catalogue()).live == manifest.release


@each_fault
@simulated
async def test_verification_survives_transient_faults(account: SimulatedAccount, fault: dict[str, object]) -> None:
    store = account.store(ru=4000)
    manifest = (await publication.publish_release(store, batches(ROWS[:300]), plan=Plan(300, 1000))).manifest
    published = await ref_of(store, manifest.release)
    account.inject_faults(fault)
    [outcome] = await asyncio.gather(verify(store, published), return_exceptions=True)
    assert outcome == manifest


@pytest.mark.parametrize(
    ("kind", "error", "limit_s"),
    [("throttle", CosmosThrottled, THROTTLED_S), ("unavailable", CosmosUnavailable, UNAVAILABLE_S)],
)
@simulated
async def test_persistent_fault_raises_its_cause_and_keeps_acknowledged_rows(
    account: SimulatedAccount, kind: str, error: type[Exception], limit_s: float
) -> None:
    store = await account.with_draft(R, ROWS[:100], ru=4000)
    loop = asyncio.get_running_loop()
    account.inject_faults({"kind": kind})
    began = loop.time()
    with pytest.raises(error):
        await store.put(draft_of(R), ROWS[100:300])
    assert limit_s <= loop.time() - began < limit_s + 10
    account.inject_faults()
    assert await account.store().resume_point(draft_of(R)) == ROWS[99].key
    await store.put(draft_of(R), ROWS[100:600])
    await store.seal(draft_of(R))
    assert await scan_rows(account.store(ru=4000), R) == ROWS[:600]


@simulated
async def test_throttled_rows_are_given_up_while_the_lease_is_renewed(account: SimulatedAccount) -> None:
    store = account.store(ru=4000)
    loop = asyncio.get_running_loop()
    await begin_draft(store, R)
    draft = draft_of(R)
    await store.create(draft, Plan(1, 1))

    async def renew_lease() -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            await life.update_catalogue(store, partial(changes.renew, draft=draft))

    account.inject_faults({"kind": "throttle", "operation": "create item"})
    began = loop.time()
    renewing = asyncio.create_task(renew_lease())
    with pytest.raises(CosmosThrottled):
        async with asyncio.timeout(10 * THROTTLED_S):
            await store.put(draft, ROWS[:100])
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)
    assert renewing.cancelled()
    assert THROTTLED_S <= loop.time() - began < 1.5 * THROTTLED_S  # attempts that wait for each other end later


@simulated
async def test_too_large_row_fails_the_publish_before_sending(account: SimulatedAccount) -> None:
    store = await account.with_draft(R)
    with pytest.raises(StoreFull, match=r"the row user\.MQ takes 2,.* publish shorter lists"):
        await store.put(draft_of(R), [Row("user:1", b"\xff" * (2 << 20))])
    assert account.answers(413) == 0


@simulated
async def test_a_cancelled_put_leaves_nothing_running(account: SimulatedAccount) -> None:
    store = await account.with_draft(R)
    putting = asyncio.create_task(store.put(draft_of(R), ROWS[:500]))
    await asyncio.sleep(0.5)
    putting.cancel()
    await asyncio.gather(putting, return_exceptions=True)
    assert putting.cancelled()
    assert len(asyncio.all_tasks()) == 1
    written = account.answers(201)
    await asyncio.sleep(10)
    assert account.answers(201) == written


@simulated
async def test_verification_leaves_request_units_for_lookups(account: SimulatedAccount) -> None:
    store = account.store(ru=400, max_ru=4000)
    loop = asyncio.get_running_loop()
    release = await publish(store, ROWS[:2000])
    began = loop.time()
    spent_ru = account.admitted_ru(release)
    throttled = account.answers(429)
    await verify(store, await ref_of(store, release))
    took_s = loop.time() - began
    assert (account.admitted_ru(release) - spent_ru) / took_s == pytest.approx(200, rel=0.03)
    assert account.answers(429) == throttled


@simulated
async def test_lagging_replica_is_read_again(account: SimulatedAccount) -> None:
    store = await account.with_draft(R, ROWS[:300], ru=4000)
    await store.seal(draft_of(R))
    account.forgets = 0.05
    assert await scan_rows(account.store(ru=4000), R) == ROWS[:300]
    assert await account.store().resume_point(draft_of(R)) == ROWS[299].key
    assert container_of(release_ref(R)) in account.service.account.databases["d"].containers


@pytest.mark.parametrize("unseen_s", [0.5, 20.0])
@pytest.mark.parametrize(("operation", "share"), [("create item", 1.0), ("create item", 0.3), ("read item", 0.3)])
@simulated
async def test_publish_waits_for_its_containers_to_appear(
    account: SimulatedAccount, operation: str, share: float, unseen_s: float
) -> None:
    account.inject_faults({"kind": "missing", "operation": operation, "for_s": unseen_s, "share": share})
    store = account.store()
    release = await publish(store, ROWS[:11])
    assert (await store.catalogue()).live == release
    assert account.answers(404, operation) > 1


@simulated
async def test_wait_for_a_missing_container_is_bounded(account: SimulatedAccount) -> None:
    account.inject_faults({"kind": "missing", "operation": "create item"})
    began = account.now()
    with pytest.raises(ContainerMissing):
        await publish(account.store(), ROWS[:11])
    assert CONTAINER_VISIBLE_S <= account.now() - began < 2 * CONTAINER_VISIBLE_S


LARGE = [Row("popular:", b"p" * 100), *(Row(f"user:{n:05}", b"x" * (n % 1800)) for n in range(2000))]


@simulated
async def test_a_publish_spends_at_the_configured_rate(account: SimulatedAccount) -> None:
    store = account.store(max_ru=1000)
    loop = asyncio.get_running_loop()
    began = loop.time()
    release = await publish(store, LARGE[:1000])
    took_s = loop.time() - began
    spent_ru = account.admitted_ru(release)
    assert took_s == pytest.approx(spent_ru / 1000 + SCALING_POLL_S, abs=0.5)  # one step after the other
    assert account.answers(429) <= 5


@pytest.mark.parametrize(("provisioned", "max_ru", "share"), [(400, 1000, 0.02), in_soak(400, 400, 0.01)])
@simulated
async def test_container_below_the_configured_rate_is_fully_used_without_loss(
    account: SimulatedAccount, provisioned: int, max_ru: int, share: float
) -> None:
    maker = account.store(ru=provisioned)
    store = account.store(max_ru=max_ru)
    loop = asyncio.get_running_loop()
    await begin_draft(maker, R)
    await maker.create(draft_of(R), Plan(1, 1))
    await store.catalogue()  # as a publish, which then knows that no lookup reads the container
    began = loop.time()
    before_ru = account.admitted_ru(R)
    async for batch in batches(LARGE):
        await store.put(draft_of(R), batch)
    took_s = loop.time() - began
    assert (account.admitted_ru(R) - before_ru) / took_s == pytest.approx(provisioned, rel=0.03)
    assert account.answers(429) < share * len(LARGE)
    await store.seal(draft_of(R))
    assert await scan_rows(store, R) == as_bodies(LARGE)


# As a release that folds visitors in has them: pieces of item factors.
FACTORS = [Row(f"meta:factors-{n}", b"\0" * 100) for n in range(3)]
ALL = sorted([*ROWS[:300], *FACTORS])


async def published(account: SimulatedAccount) -> tuple[CosmosStore, ReleaseId]:
    store = account.store(ru=10_000)
    return store, await publish(store, ALL, 100)


async def lose(account: SimulatedAccount, store: CosmosStore, release: ReleaseId, names: set[str]) -> int:
    """Remove items from the account, as nothing of ours does; return how many."""
    container = account.service.account.databases["d"].containers[container_of(await ref_of(store, release))]
    lost = [document for document in list(container.documents.after()) if document.parsed()["id"] in names]
    for document in lost:
        container.documents.remove(document)
    return len(lost)


@pytest.mark.parametrize(
    ("lost", "names"),
    [
        ("user rows", {name_of(row.key) for row in ROWS[100:150]}),
        ("a piece of the factors", {name_of("meta:factors-1")}),
        ("an acknowledgement in the middle", {"rows-2"}),
        ("the last acknowledgement", {"rows-3"}),
    ],
)
@simulated
async def test_lost_rows_are_found_by_verify_and_restored_by_repair(
    account: SimulatedAccount, lost: str, names: set[str]
) -> None:
    store, live = await published(account)
    other = MemoryStore()
    await copy(store, other, live)
    assert await lose(account, store, live, names) == len(names), lost
    damaged = account.store(ru=10_000)
    released = await ref_of(damaged, live)
    with pytest.raises(ReleaseCorrupt):
        await verify(damaged, released)
    await repair(damaged, other, live)
    await verify(damaged, await ref_of(damaged, live))
    assert await published_rows(damaged, live) == ALL


@simulated
async def test_missing_acknowledgement_is_named(account: SimulatedAccount) -> None:
    store, live = await published(account)
    await lose(account, store, live, {"rows-2"})
    damaged = account.store(ru=10_000)
    with pytest.raises(ReleaseCorrupt, match=r"'rows-2' of the container release-\w+ is missing"):
        await verify(damaged, await ref_of(damaged, live))


async def test_release_is_checked_where_it_was_written_not_in_a_region_that_lags() -> None:
    with emulated_account(None, "--second-region", "0") as account:
        store = open_url(account.url("d", ru="30000", region="Emulated East"))
        account.inject_faults({"kind": "missing", "region": 1, "operation": "read item"})
        try:
            release = await publish(store)
            assert (await store.catalogue()).live == release
        finally:
            await store.close()
