"""A release that its gates refused goes live, or before some users, only on request; in every store that it gets to."""

from dataclasses import replace

import pytest

from hotplate.stores import catalogue as changes
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import ReleaseId, State
from hotplate.stores.errors import RefusedByGates
from hotplate.stores.manifest import Manifest
from hotplate.stores.store import Row, Store
from hotplate.stores.transfer import copy
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list, refused_by
from tests.support.stores import OpenStore, on_every_store
from tests.support.stores import publish as publish_rows

ROWS = [Row("popular:", a_list("p")), Row("user:1", a_list("a"))]
GATES = ("ndcg", "overlap@10")


async def publish(store: Store, *gates: str, live: bool = True) -> ReleaseId:
    return await publish_rows(store, ROWS, about=refused_by(*gates), live=live)


@on_every_store
async def test_a_refused_release_is_marked_and_each_verb_wants_to_be_forced(open_store: OpenStore) -> None:
    store = open_store()
    good, bad = await publish(store), await publish(store, *GATES, live=False)
    found = await open_store().catalogue()
    assert (found.find(bad).state, found.find(bad).refused_by, found.find(good).refused_by) == (State.READY, GATES, ())
    for verb in (life.activate(store, bad), life.start_canary(store, bad, 5)):
        with pytest.raises(RefusedByGates, match=r"refused by ndcg, overlap@10 when it was published.*--force"):
            await verb
    assert await store.catalogue() == found
    await life.start_canary(store, bad, 5, though_refused=True)
    with pytest.raises(RefusedByGates):
        await life.promote(store)
    assert await life.promote(store, though_refused=True) == bad
    assert (await open_store().catalogue()).find(bad).refused_by == ()


async def test_release_is_refused_even_if_an_older_hotplate_dropped_its_mark(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    await publish(store)
    bad = await publish(store, *GATES, live=False)
    found = await store.catalogue()
    unmarked = replace(found, releases=tuple(replace(entry, refused_by=()) for entry in found.releases))
    await store.swap(found, changes.succeed(found, unmarked, "older", ""))
    with pytest.raises(RefusedByGates, match=r"refused by ndcg, overlap@10"):
        await life.activate(store, bad)
    assert await life.activate(store, bad, though_refused=True)


async def test_gates_refusing_a_resumed_draft_mark_it_despite_its_manifest(
    clock: FakeClock,
) -> None:
    store = MemoryStore(clock)

    async def refused_now(_: Manifest) -> tuple[str, ...]:
        return ("overlap@10",)

    release = await publish_rows(store, ROWS, live=False, refused_by=refused_now)
    assert (await store.catalogue()).find(release).refused_by == ("overlap@10",)
    with pytest.raises(RefusedByGates):
        await life.activate(store, release)


async def test_a_rollback_to_what_was_forced_live_is_not_refused(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    await publish(store)
    bad = await publish(store, *GATES, live=False)
    assert await life.activate(store, bad, though_refused=True)
    await publish(store)
    assert await life.rollback(store) == bad


@on_every_store
async def test_copy_of_a_refused_release_stays_ready_until_forced_in_the_source(
    open_store: OpenStore, clock: FakeClock
) -> None:
    source, target = MemoryStore(clock), open_store()
    good, bad = await publish(source), await publish(source, *GATES, live=False)
    await copy(source, target, good)
    held = await copy(source, target, bad)
    assert isinstance(held.held_back, RefusedByGates)
    found = await open_store().catalogue()
    assert (found.live, found.find(bad).refused_by) == (good, GATES)
    await life.activate(source, bad, though_refused=True)
    assert (await copy(source, target, bad)).held_back is None
    assert (await open_store().catalogue()).live == bad
