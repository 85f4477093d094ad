"""The Cosmos DB store beyond the contract: writers, throughput, and reports."""

import asyncio
import dataclasses
import secrets
import sys
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial

import orjson
import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import GRACE_S, Catalogue, ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.cosmos.errors import CosmosUnavailable
from hotplate.stores.cosmos.items import CONTROL, container_of
from hotplate.stores.cosmos.regions import REFRESH_INTERVAL_S
from hotplate.stores.cosmos.store import UNAVAILABLE_S
from hotplate.stores.cosmos.url import Throughput
from hotplate.stores.erasure_log import erased_from
from hotplate.stores.errors import (
    NotSent,
    ReleaseConflict,
    ReleaseNotFound,
    StoreMisused,
    StoreThrottled,
    StoreUnavailable,
)
from hotplate.stores.store import Plan, RecordChange, Row
from hotplate.stores.users import erase_users
from hotplate.stores.verification import verify
from tests.support.cosmos_account import Account
from tests.support.cosmos_simulation import (
    ProcessEndedError,
    SimulatedAccount,
    SimulatedContainers,
    simulated,
    with_simulation,
)
from tests.support.processes import run_process
from tests.support.soak import in_soak
from tests.support.stores import (
    LISTS,
    allow_erasure,
    begin_draft,
    draft_of,
    publish,
    ref_of,
    release_ref,
    swap_catalogue,
)

R = ReleaseId("20261120T064200Z-aaaa")


@simulated
async def test_multi_write_account_is_neither_written_nor_followed(account: SimulatedAccount) -> None:
    account.many_writers = True
    store = account.store()
    for refused in (
        store.swap(Catalogue(), changes.succeed(Catalogue(), changes.begin(Catalogue(), draft_of(R)), "t", "s")),
        store.create(draft_of(R), Plan(1, 1)),
        store.poll(),
    ):
        with pytest.raises(StoreMisused, match="several regions, where two publishers could both change"):
            await refused
    assert not account.service.account.databases


@simulated
async def test_account_that_becomes_multi_write_is_no_longer_written(account: SimulatedAccount) -> None:
    store = account.store()
    await publish(store)
    ready = await publish(store, live=False)
    account.many_writers = True
    await asyncio.sleep(2 * REFRESH_INTERVAL_S)
    await store.catalogue()
    await asyncio.sleep(1.0)  # the account is read in the background
    with pytest.raises(StoreMisused, match="several regions, where two publishers could both change"):
        await life.activate(store, ready)
    account.many_writers = False
    await life.activate(store, ready)
    assert (await store.catalogue()).live == ready


@simulated
async def test_lost_swap_reply_is_told_from_a_rival_swap(account: SimulatedAccount) -> None:
    store = account.store()
    rival = account.store()
    old = await store.catalogue()
    first = changes.succeed(old, changes.begin(old, draft_of(R)), "one", "s")
    account.lose_answers = 1
    with pytest.raises(CosmosUnavailable):  # a second attempt would be refused, as if a rival had swapped first
        await store.swap(old, first)
    assert await rival.catalogue() == first
    account.lose_answers = 1
    renewed = await life.update_catalogue(store, lambda catalogue: changes.renew(catalogue, draft_of(R)))
    assert renewed.generation == 2
    assert await rival.catalogue() == renewed
    with pytest.raises(ReleaseConflict):
        await rival.swap(first, changes.succeed(first, first, "three", "s"))
    assert (await store.catalogue()).token == renewed.token


@pytest.mark.parametrize("operation", ["read item", "create item"])
@simulated
async def test_swap_that_fails_before_its_write_was_not_sent(account: SimulatedAccount, operation: str) -> None:
    store = account.store()
    await publish(store)
    old = await store.catalogue()
    account.inject_faults({"kind": "unavailable", "operation": operation})
    with pytest.raises(NotSent):
        await store.swap(old, changes.succeed(old, old, "t", "s"), [RecordChange("one", None, b"1")])
    account.inject_faults()
    assert await store.catalogue() == old


@simulated
async def test_activation_follows_the_write_region(account: SimulatedAccount) -> None:
    store = account.store()
    ready = await publish(store, live=False)
    account.write_port = 2
    await life.activate(store, ready)
    assert (await store.catalogue()).live == ready
    assert account.answers(403, "create item") > 1  # of the log, before the catalogue


@simulated
async def test_swap_outlasts_refused_connections(account: SimulatedAccount) -> None:
    store = account.store()
    await publish(store)
    account.refused_connects = 5
    await swap_catalogue(store, await store.catalogue())
    assert account.refused_connects == 0


@simulated
async def test_swap_that_is_always_refused_unprocessed_was_not_sent(account: SimulatedAccount) -> None:
    store = account.store()
    await publish(store)
    old = await store.catalogue()
    account.inject_faults({"kind": "retry-with", "operation": "replace item"})
    began = account.now()
    with pytest.raises(NotSent, match="449/0"):
        await store.swap(old, changes.succeed(old, old, "t", "s"))
    assert UNAVAILABLE_S <= account.now() - began < UNAVAILABLE_S + 5
    account.inject_faults()
    assert await store.catalogue() == old


@simulated
async def test_change_whose_swaps_are_all_throttled_was_not_made(account: SimulatedAccount) -> None:
    store = account.store()
    ready = await publish(store, live=False)
    old = await store.catalogue()
    account.inject_faults({"kind": "throttle", "operation": "replace item", "retry_after_ms": 900})
    with pytest.raises(StoreThrottled, match=r"no request units left for now; raise its throughput$") as raised:
        await life.activate(store, ready)
    assert raised.value.retry_after_s == 0.9
    account.inject_faults()
    assert await store.catalogue() == old


@simulated
async def test_unclear_swap_is_sent_once(account: SimulatedAccount) -> None:
    store = account.store()
    await publish(store)
    old = await store.catalogue()
    account.inject_faults({"kind": "unavailable", "operation": "replace item"})
    with pytest.raises(CosmosUnavailable, match="503/0"):
        await store.swap(old, changes.succeed(old, old, "t", "s"))
    assert account.answers(503, "replace item") == 1


@pytest.mark.parametrize("rewritten", [False, True], ids=["a lower generation", "the same, with another token"])
@simulated
async def test_catalogue_after_a_lossy_failover_is_that_of_the_write_region(
    account: SimulatedAccount, *, rewritten: bool
) -> None:
    store = account.store()
    rival = account.store()
    await begin_draft(store, R)
    documents = account.service.account.databases["d"].containers[CONTROL].documents
    (item,) = documents.after()
    lsn = item.partition.lsn
    lost = await swap_catalogue(store, changes.renew(await store.catalogue(), draft_of(R)))
    documents.put(item)
    item.partition.lsn = lsn
    if rewritten:
        await swap_catalogue(rival, await rival.catalogue())
    now = await rival.catalogue()
    assert now.generation == lost.generation - (not rewritten)
    catalogue = await store.catalogue()
    assert catalogue == now
    assert catalogue.primary
    with pytest.raises(ReleaseConflict):
        await store.swap(lost, changes.succeed(lost, lost, "t", "s"))
    assert await swap_catalogue(store, await store.catalogue()) == await rival.catalogue()


@simulated
async def test_incarnations_in_the_account_are_listed_without_foreign_containers(account: SimulatedAccount) -> None:
    store = account.store()
    assert await store.incarnations() == []
    await publish(store)
    orphan = draft_of(R)._replace(incarnation="0123456789ab")
    odd = draft_of(R)._replace(incarnation="odd")
    for draft in (orphan, odd):
        await store.create(draft, Plan(1, 1))
    for foreign in ("release-notes", "releases", "0123456789ab"):
        await SimulatedContainers(account).create_container(foreign, None)
    live = (await store.catalogue()).releases[0].incarnation
    assert sorted(await store.incarnations()) == sorted([live, orphan.incarnation, odd.incarnation])
    await life.prune(store)
    assert await store.incarnations() == [live]
    assert set(account.service.account.databases["d"].containers) == {
        CONTROL, f"release-{live}", "release-notes", "releases", "0123456789ab",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "written", "served", "kept"),
    [
        ({"ru": 1000, "max_ru": 4000}, Throughput(4000), Throughput(1000), Throughput(400)),
        ({"ru": 400, "max_ru": 300}, Throughput(400), Throughput(400), Throughput(400)),
        ({"ru": 400, "max_ru": 100_000}, Throughput(100_000), Throughput(1000), Throughput(1000)),
        ({"ru": "autoscale-2000", "max_ru": 9001}, *(Throughput(ru, autoscale=True) for ru in (10_000, 2000, 1000))),
    ],
)
@simulated
async def test_container_throughput_follows_its_lifecycle(
    account: SimulatedAccount, options: dict[str, object], written: Throughput, served: Throughput, kept: Throughput
) -> None:
    store = account.store(**options)
    await store.create(draft_of(R), Plan(1, 1))
    assert account.throughput(R) == written
    first = await publish(store)
    assert account.throughput(first) == served
    second = await publish(store)
    await life.prune(store)
    assert account.throughput(first) == served  # its last readers may still be there
    await asyncio.sleep(GRACE_S)
    await life.prune(store)
    assert (account.throughput(first), account.throughput(second)) == (kept, served)
    scaled = account.answers(200, "replace offer")
    await life.prune(store)
    await life.activate(store, second)
    assert account.answers(200, "replace offer") == scaled, "what is right already is left alone"
    assert await life.rollback(store) == first
    assert account.throughput(first) == served
    assert account.throughput(await publish(store, live=False)) == kept


@pytest.mark.parametrize(
    "head_starts_ms",
    [range(-40, 41, 10), in_soak(range(-40, 41))],
    ids=["few head starts", "every head start"],
)
def test_release_activated_during_scale_down_is_scaled_up(head_starts_ms: range) -> None:
    async def work(account: SimulatedAccount, head_start_s: float) -> None:
        operator = account.store(ru=1000)
        pruner = account.store(ru=1000)
        first = await publish(operator)
        await publish(operator)
        await asyncio.sleep(GRACE_S)

        async def after(seconds: float, act: Coroutine[None, None, object]) -> None:
            await asyncio.sleep(max(0.0, seconds))
            await act

        await asyncio.gather(
            after(-head_start_s, life.prune(pruner)), after(head_start_s, life.activate(operator, first))
        )
        assert account.throughput(first) == Throughput(1000)

    for head_start_ms in head_starts_ms:
        with_simulation(partial(work, head_start_s=head_start_ms * 0.001))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("scales_for_ever", "its partitions are being split"),
        ("ignores_scaling", ".* or something else scales it"),
    ],
)
@simulated
async def test_scaling_that_does_not_end_is_an_error_after_ten_minutes(
    account: SimulatedAccount, fault: str, reason: str
) -> None:
    store = account.store(ru=1000, max_ru=4000)
    release = await publish(store, live=False)
    setattr(account, fault, True)
    began = account.now()
    with pytest.raises(StoreUnavailable, match=rf"is not scaled to 1,000: {reason}"):
        await life.activate(store, release)
    assert 600 <= account.now() - began < 660
    assert (await store.catalogue()).live is None


@simulated
async def test_erasing_costs_few_request_units(account: SimulatedAccount) -> None:
    store = account.store()
    release = await publish(store)
    spent = account.spent_ru("item")
    await store.erase(release_ref(release), allow_erasure)
    await store.erase(release_ref(release), allow_erasure)
    assert account.spent_ru("item") <= spent + 10  # the mark of the erasure
    with pytest.raises(ReleaseNotFound):
        await store.scale_down(release_ref(release))
    await store.create(draft_of(release), Plan(1, 1))
    await store.put(draft_of(release), LISTS)
    assert await store.resume_point(draft_of(release)) == "user:1"


@simulated
async def test_prune_erases_a_release_whose_state_cannot_be_decoded(account: SimulatedAccount) -> None:
    store = account.store()
    released = [await publish(store) for _ in range(3)]
    container = account.service.account.databases["d"].containers[container_of(await ref_of(store, released[0]))]
    (state,) = [document for document in container.documents.after() if document.parsed()["id"] == "state"]
    damaged = orjson.dumps(state.parsed() | {"state": 1})
    container.documents.put(dataclasses.replace(state, body=damaged))
    await asyncio.sleep(GRACE_S)
    assert await life.prune(store, keep=0) == released[:2]
    assert [entry.id for entry in (await store.catalogue()).releases] == released[2:]
    assert len(await store.incarnations()) == 1


@simulated
async def test_no_read_of_records_goes_on_after_an_error(account: SimulatedAccount) -> None:
    store = account.store()
    await publish(store)
    account.inject_faults(
        {"kind": "forbidden", "operation": "read item", "share": 0.5}, {"kind": "unavailable", "operation": "read item"}
    )
    tasks = asyncio.all_tasks()
    with pytest.raises(CosmosUnavailable):
        await store.records([f"erased-{number:02}" for number in range(32)])
    assert asyncio.all_tasks() == tasks


def test_a_worker_that_only_serves_never_imports_the_control_plane(cosmos_http: Account) -> None:
    """Reads by key, follows, and looks for warnings, as `serve` does."""
    program = """
import asyncio, sys
from hotplate.stores import lifecycle
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import connect

async def main():
    store = connect(sys.argv[1])
    live = (await store.catalogue()).live_ref
    (value,) = await store.get_many(live, ["user:1"])
    assert value.endswith(b'{"id":"a"}')
    assert (await store.poll()).live_ref == live
    await store.warnings()
    await store.close()

asyncio.run(main())
print(*(name for name in sys.modules if name.startswith("azure")))
"""
    url = cosmos_http.url(f"d{secrets.token_hex(4)}")

    async def fill() -> None:
        store = connect(url)
        await publish(store)
        await store.close()

    asyncio.run(fill())
    done = run_process(sys.executable, "-c", program, url, code=None)
    assert done.stderr == ""
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@simulated
async def test_erasure_killed_at_any_write_keeps_catalogue_and_record(
    account: SimulatedAccount, *, after: bool
) -> None:
    writer = account.store()
    rows = [*LISTS[:1], *(Row(f"user:{number}", b'{"id":"a"}') for number in range(40))]
    await publish(writer, rows)
    (entry,) = (await writer.catalogue()).releases
    await erase_users(writer, ["30"])
    account.ends_after = after
    at = ended = 0
    while ended == at:
        at += 1
        account.ends_at_write = at
        with suppress(ProcessEndedError):
            await erase_users(account.store(), [str(at)])
        ended += account.ends_at_write == 0
        account.ends_at_write = None
        reader = account.store()
        assert (await erased_from(reader)).lost == 0
        assert (await erased_from(reader)).covers("user:30")
        await verify(reader, entry.ref)
        assert (await erase_users(reader, [str(at)])).erased == (str(at),)
        await verify(reader, entry.ref)
    assert ended > 2  # a part, the catalogue and a row
    assert (await erased_from(writer)).count == at + 1


@pytest.mark.parametrize(
    "fault", [{"kind": "reset", "share": 0.2}, {"kind": "unavailable", "share": 0.2}], ids=["reset", "unavailable"]
)
@simulated
async def test_concurrent_erasures_with_faults_lose_no_user(
    account: SimulatedAccount, fault: dict[str, object]
) -> None:
    writer = account.store()
    rows = [*LISTS[:1], *(Row(f"user:{number}", b'{"id":"a"}') for number in range(40))]
    await publish(writer, rows)
    (entry,) = (await writer.catalogue()).releases
    account.inject_faults(fault)

    async def erase(number: int) -> None:
        while True:
            with suppress(StoreUnavailable, ReleaseConflict):
                assert (await erase_users(account.store(), [str(number)])).deleted <= 1
                return

    await asyncio.gather(*map(erase, range(8)))
    account.inject_faults()
    erased = await erased_from(writer)
    assert all(erased.covers(f"user:{number}") for number in range(8))
    assert erased.missing_from(entry.ref).sums.rows == 8
    await verify(writer, entry.ref)
