"""Writers of a draft on Cosmos DB: one at a time, and late requests of a former one change nothing."""

import asyncio
from collections.abc import Sequence

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import DraftRef, ReleaseId
from hotplate.stores.cosmos.store import CosmosStore
from hotplate.stores.errors import ReleaseConflict
from hotplate.stores.store import Plan, Row
from tests.support.cosmos_simulation import HeldItems, SimulatedAccount, simulated
from tests.support.stores import begin_draft, draft_of, lapse, release_ref
from tests.support.waiting import until_true

R = ReleaseId("20261120T064200Z-aaaa")
FIRST, SECOND, THIRD = (draft_of(R, writer) for writer in ("one", "two", "three"))
ROWS = [Row(f"user:{n:04}", b"%d" % n) for n in range(100)]
PLAN = Plan(100, 1000)


async def put_and_hold(
    account: SimulatedAccount, store: CosmosStore, draft: DraftRef, rows: Sequence[Row]
) -> tuple[asyncio.Event, asyncio.Task[None]]:
    """Put rows, and delay their requests until the returned event is set."""
    account.held = held = HeldItems()
    putting = asyncio.create_task(store.put(draft, rows))
    await until_true(lambda: held.waiting >= len(rows))
    account.held = None
    return held.go, putting


async def scanned(account: SimulatedAccount) -> list[Row]:
    return [row async for row in account.store(ru=4000).scan(release_ref(R))]


@simulated
async def test_late_rows_of_a_former_writer_do_not_overwrite_the_new_writers(account: SimulatedAccount) -> None:
    late = account.store(ru=4000)
    new = account.store(ru=4000)
    await late.create(FIRST, PLAN)
    await late.put(FIRST, ROWS[:10])
    go, putting = await put_and_hold(account, late, FIRST, [Row(key, b"late") for key, _ in ROWS[10:20]])
    await new.create(SECOND, PLAN)
    assert await new.resume_point(SECOND) == ROWS[9].key
    await new.put(SECOND, ROWS[10:])
    await new.seal(SECOND)
    go.set()
    with pytest.raises(ReleaseConflict, match="holds another value for 'user:0010'"):
        await putting
    assert await scanned(account) == ROWS
    assert await new.get_many(release_ref(R), [row.key for row in ROWS]) == [row.value for row in ROWS]


@simulated
async def test_late_acknowledgement_of_a_former_writer_is_ignored(account: SimulatedAccount) -> None:
    late = account.store(ru=4000)
    new = account.store(ru=4000)
    await late.create(FIRST, PLAN)
    await late.put(FIRST, ROWS[:10])
    foreign = [Row(f"user:{n:04}x", b"late") for n in range(5)]
    go, putting = await put_and_hold(account, late, FIRST, [*ROWS[10:12], *foreign])
    await new.create(SECOND, PLAN)
    go.set()
    await putting
    assert await new.resume_point(SECOND) == ROWS[9].key
    await new.put(SECOND, ROWS[10:])
    await new.seal(SECOND)
    assert await scanned(account) == ROWS
    # What the docs say: a late row of a key that the new rows lack is there.
    assert await new.get_many(release_ref(R), [foreign[0].key]) == [b"late"]


@simulated
async def test_row_with_a_lost_response_is_compared_and_a_difference_conflicts(account: SimulatedAccount) -> None:
    store = account.store(ru=4000)
    await store.create(FIRST, PLAN)
    account.inject_faults({"kind": "reset", "operation": "create item", "share": 0.5})
    await store.put(FIRST, ROWS)
    account.inject_faults()
    reads = account.answers(200, "read item")
    await store.put(FIRST, [Row("user:new", b"")])
    assert account.answers(200, "read item") - reads == 1, "of the state: rows are read only where they are there"
    await store.put(FIRST, ROWS[50:60])
    with pytest.raises(ReleaseConflict, match="another writer, or other lists, wrote it; publish again"):
        await store.put(FIRST, [Row(ROWS[7].key, b"other")])
    await store.seal(FIRST)
    assert await scanned(account) == [*ROWS, Row("user:new", b"")]


@simulated
async def test_one_of_two_concurrent_takeovers_succeeds(account: SimulatedAccount) -> None:
    await account.store(ru=4000).create(FIRST, PLAN)
    stores = [account.store(ru=4000) for _ in range(2)]
    await asyncio.gather(*(store.create(draft, PLAN) for store, draft in zip(stores, (SECOND, THIRD), strict=True)))
    outcomes = await asyncio.gather(
        *(store.put(draft, ROWS) for store, draft in zip(stores, (SECOND, THIRD), strict=True)),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "ReleaseConflict"]


@simulated
async def test_writer_paused_before_claiming_its_draft_displaces_no_other(account: SimulatedAccount) -> None:
    paused = account.store(ru=4000)
    new = account.store(ru=4000)
    await begin_draft(paused, R)
    first = draft_of(R)
    await new.create(first, PLAN)
    second = first._replace(writer="two")
    await lapse(new)
    await life.update_catalogue(new, lambda catalogue: changes.take_over(catalogue, second))
    await new.create(second, PLAN)
    for late in (first, first._replace(writer="nobody")):
        with pytest.raises(ReleaseConflict, match="by another process now"):
            await paused.create(late, PLAN)
    await new.put(second, ROWS)
    await new.seal(second)
    assert await scanned(account) == ROWS
