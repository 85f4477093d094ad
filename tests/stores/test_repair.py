"""Damage is found value by value, named, and healed from another store under the same id; leftovers are swept."""

import asyncio
import re

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import publication, verification
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import LEASE_S, ReleaseId, State
from hotplate.stores.encoding import Checksum, body_of
from hotplate.stores.errors import RefusedByGates, ReleaseConflict, ReleaseCorrupt, ReleaseNotFound
from hotplate.stores.store import Row, Store
from hotplate.stores.transfer import copy, repair
from hotplate.stores.verification import verify
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list
from tests.support.stores import OpenStore, on_every_store, published_rows, ref_of
from tests.support.stores import publish as publish_rows
from tests.support.virtual import virtual

ROWS = [Row("popular:", a_list("p")), *(Row(f"user:{n:03}", a_list(str(n))) for n in range(200))]


async def publish(store: Store, rows: list[Row] = ROWS, *, live: bool = True) -> ReleaseId:
    return await publish_rows(store, rows, 50, live=live)


async def damaged(store: MemoryStore, release: ReleaseId, *keys: str) -> None:
    """Change one bit of some values."""
    rows = store.find(await ref_of(store, release)).rows
    for key in keys:
        value = bytearray(rows[key])
        value[len(value) // 2] ^= 4
        rows[key] = bytes(value)


async def test_verify_counts_missing_and_damaged_rows_and_names_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "CHUNK_ROWS", 3)
    store = MemoryStore()
    live = await publish(store)
    ref = await ref_of(store, live)
    assert (await verify(store, ref, rows_per_s=1e6)).rows == len(ROWS)
    for n in range(100, 150):
        del store.find(ref).rows[f"user:{n}"]
    with pytest.raises(ReleaseCorrupt, match=r"50 of 202 rows are missing; .*repair"):
        await verify(store, ref)
    await damaged(store, live, *(f"user:{n:03}" for n in range(9)))
    damage = "50 of 202 rows are missing and 9 of 152 rows are damaged: 'user:000', 'user:001', 'user:002' and 6 more; "
    with pytest.raises(ReleaseCorrupt, match=re.escape(f"of release {live}, {damage}")):
        await verify(store, ref)


async def test_verify_detects_intact_rows_that_differ_from_those_written() -> None:
    store = MemoryStore()
    live = await publish(store)
    rows = store.find(await ref_of(store, live)).rows
    checksum = Checksum(live)
    rows["user:001"] = checksum.seal("user:001", body_of(a_list("another")))
    with pytest.raises(ReleaseCorrupt, match="does not add up"):
        await verify(store, await ref_of(store, live))


@pytest.mark.parametrize("live", [True, False], ids=["live", "kept"])
@pytest.mark.parametrize(
    "lost",
    [["meta:manifest"], ["user:007"], [f"user:{n:03}" for n in range(50)]],
    ids=["the manifest", "one row", "many rows"],
)
async def test_a_copy_onto_a_release_that_lost_rows_repairs_it(lost: list[str], *, live: bool) -> None:
    source = MemoryStore()
    target = MemoryStore()
    release = await publish(source)
    await copy(source, target, release)
    newest = release if live else await publish(target)
    before = await ref_of(target, release)
    for key in lost:
        del target.find(before).rows[key]
    done = await copy(source, target, release, live=live)
    assert (done.rows, done.repaired) == (len(ROWS), True)
    assert await published_rows(target, release) == await published_rows(source, release)
    catalogue = await target.catalogue()
    assert (catalogue.live, catalogue.find(release).state) == (newest, State.LIVE if live else State.SUPERSEDED)
    assert catalogue.find(release).ref != before
    again = await copy(source, target, release, live=live)
    assert (again.rows, again.repaired) == (0, False)


async def test_copy_onto_a_withdrawn_release_that_lost_rows_leaves_it_refused() -> None:
    source = MemoryStore()
    target = MemoryStore()
    for rows in (ROWS[:100], ROWS):
        withdrawn = await publish(source, rows)
        await copy(source, target, withdrawn)
    live = await life.rollback(target, reason="more errors")
    before = await ref_of(target, withdrawn)
    del target.find(before).rows["user:007"]
    done = await copy(source, target, withdrawn)
    assert (done.repaired, isinstance(done.held_back, RefusedByGates)) == (True, True)
    catalogue = await target.catalogue()
    assert (catalogue.live, catalogue.find(withdrawn).state) == (live, State.WITHDRAWN)
    assert catalogue.find(withdrawn).ref != before
    assert await published_rows(target, withdrawn) == ROWS
    await life.activate(target, withdrawn, override=life.Override.REFUSAL)
    assert await life.rollback(target) == live


@on_every_store
async def test_release_is_repaired_in_place_while_it_is_served(open_store: OpenStore) -> None:
    store = open_store()
    source = MemoryStore()
    first = await publish(store)
    second = await publish(store, ROWS[:100])
    for release in (first, second):
        await copy(store, source, release)
        before = await ref_of(store, release)
        written = await repair(store, source, release)
        after = await ref_of(store, release)
        assert written.rows == written.manifest.rows
        assert before.incarnation != after.incarnation
        assert await published_rows(store, release) == (ROWS if release == first else ROWS[:100])
        assert (await store.catalogue()).live == second
    states = [(entry.id, entry.state) for entry in (await store.catalogue()).releases]
    assert states == [
        (first, State.WITHDRAWN), (first, State.SUPERSEDED), (second, State.WITHDRAWN), (second, State.LIVE),
    ]  # fmt: skip
    assert await life.rollback(store) == first
    assert await life.prune(store, grace_s=0.0) == [first, second]
    assert await published_rows(store, first) == ROWS


async def test_rollback_from_a_release_fails_if_it_was_repaired_since() -> None:
    store = MemoryStore()
    source = MemoryStore()
    first = await publish(store)
    second = await publish(store, ROWS[:100])
    await copy(store, source, second)
    damaged_release = await ref_of(store, second)
    await repair(store, source, second)
    with pytest.raises(ReleaseConflict, match=f"release {second} was repaired"):
        await life.rollback(store, damaged_release)
    assert (await store.catalogue()).live == second
    assert await life.rollback(store, await ref_of(store, second)) == first


async def test_repair_source_must_be_the_same_release() -> None:
    store = MemoryStore()
    source = MemoryStore()
    live = await publish(store)
    other = await publish(source, ROWS[:3])
    with pytest.raises(ReleaseNotFound):
        await repair(store, source, live)
    rows = source.releases.pop((await ref_of(source, other)).incarnation)
    impostor = await publication.begin(source, live)
    source.releases[impostor.incarnation] = rows
    rows.writer = impostor.writer
    await life.update_catalogue(source, lambda catalogue: changes.commit(catalogue, impostor))
    with pytest.raises((ReleaseConflict, ReleaseCorrupt)):
        await repair(store, source, live)
    assert [entry.state for entry in (await store.catalogue()).releases] == [State.LIVE]


async def test_a_repair_that_fails_leaves_the_damaged_release_as_it_was(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    source = MemoryStore(clock)
    live = await publish(store)
    await copy(store, source, live)
    before = await ref_of(store, live)
    await damaged(source, live, "user:150")
    with pytest.raises(ReleaseCorrupt, match="does not add up"):
        await repair(store, source, live)
    assert await ref_of(store, live) == before
    assert await store.incarnations() == [before.incarnation]


@virtual
async def test_draft_is_taken_over_after_its_lease_expired_but_not_while_renewed() -> None:
    loop = asyncio.get_running_loop()
    store = MemoryStore(loop.time)
    draft = await publication.begin(store, ReleaseId("20261120T064200Z-aaaa"))
    began = loop.time()
    taken = await publication.take_over(store, draft.id)
    assert loop.time() - began == pytest.approx(LEASE_S)
    assert (taken.incarnation, taken.writer == draft.writer) == (draft.incarnation, False)

    async def keep() -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            await life.update_catalogue(store, lambda catalogue: changes.renew(catalogue, taken))

    keeping = asyncio.create_task(keep())
    with pytest.raises(ReleaseConflict, match="is being written by another process"):
        await publication.take_over(store, draft.id)
    keeping.cancel()
