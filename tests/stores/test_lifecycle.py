"""Processes take turns between any two primitives of the store: in whichever order, the rules of the design hold."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import Phase, seed
from hypothesis.stateful import run_state_machine_as_test

from hotplate.serve.releases import follower
from hotplate.stores import catalogue as changes
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseId, ReleaseRef, State
from hotplate.stores.errors import StoreError
from hotplate.stores.memory import MemoryStore
from hotplate.stores.store import Plan, Row, Store
from tests.support.interleaved import Interleaved, InterleavedOnDisk, ServerLike, on_cosmos, on_redis
from tests.support.property import depth
from tests.support.soak import SEED, long, scaled


@pytest.fixture
def interleaved(request: pytest.FixtureRequest) -> type[Interleaved]:
    """Return the machine over the store that is named, with counts of its own."""
    if request.param == "redis":
        return on_redis(request.getfixturevalue("redis_server"))
    if request.param == "cosmos":
        return on_cosmos(request.getfixturevalue("cosmos_http"))
    over = {"memory": Interleaved, "file": InterleavedOnDisk}[request.param]
    return type("Counted", (over,), {"histories": 0, "steps": 0})


@pytest.mark.parametrize(
    ("interleaved", "examples"), [("memory", 30), ("file", 3), ("redis", 3), ("cosmos", 2)], indirect=["interleaved"]
)
def test_the_rules_hold_between_any_two_primitives(interleaved: type[Interleaved], examples: int) -> None:
    run_state_machine_as_test(interleaved, settings=depth(examples, 30))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("interleaved", "examples"),
    [("memory", 1_500), ("file", 60), ("redis", 60), ("cosmos", 40)],
    indirect=["interleaved"],
)
def test_the_rules_hold_between_any_two_primitives_in_thousands_of_histories(
    interleaved: type[Interleaved], examples: int, record_property: Callable[[str, object], None]
) -> None:
    run_state_machine_as_test(seed(SEED)(interleaved), settings=depth(scaled(examples), 30))
    record_property("histories", interleaved.histories)
    record_property("steps", interleaved.steps)
    assert interleaved.histories >= scaled(examples)
    assert interleaved.steps > 20 * interleaved.histories


@pytest.mark.parametrize("interleaved", ["memory", "redis"], indirect=True)
def test_an_erase_that_is_half_way_when_the_store_is_put_back_takes_nothing_of_what_is_live_again(
    interleaved: type[Interleaved],
) -> None:
    history = interleaved()
    history.something_is_live(["a copy is made", "publish", "grace passes"], stops=1, goes_on=1)
    pruner = history.processes[history.pruner]
    history.the_pruner_starts(keep=0, keep_ready_s=None, turns=b"")
    while not history.erased:
        pruner.step()
        history.look()
    pruner.step()  # once more, which is less than an erase takes
    assert pruner.is_waiting
    history.the_store_is_put_back(which=0, whole=True, turns=b"")
    history.run_to_end(pruner)
    history.run_readers()
    history.teardown()


# Protocols that are broken, and stores that do not keep their contract.

Fault = Callable[[pytest.MonkeyPatch], None]


def lapsed(found: Catalogue) -> Catalogue:
    entries = (replace(one, lease_until=0.0) if one.state is State.DRAFT else one for one in found.releases)
    return replace(found, releases=tuple(entries))


def takes_over_under_a_lease(patch: pytest.MonkeyPatch) -> None:
    take_over = changes.take_over
    patch.setattr(changes, "take_over", lambda found, draft: take_over(lapsed(found), draft))


def prunes_under_a_lease(patch: pytest.MonkeyPatch) -> None:
    prune = changes.prune
    patch.setattr(changes, "prune", lambda found, *rest: prune(lapsed(found), *rest))


def prunes_without_grace(patch: pytest.MonkeyPatch) -> None:
    prune = changes.prune
    patch.setattr(changes, "prune", lambda found, keep, _grace_s, *rest: prune(found, keep, 0.0, *rest))


def leaves_what_no_entry_names(patch: pytest.MonkeyPatch) -> None:
    prune = changes.prune
    patch.setattr(
        changes, "prune", lambda found, keep, grace_s, ready_s, _present: prune(found, keep, grace_s, ready_s)
    )


def erases_what_it_marked_before_a_restore(patch: pytest.MonkeyPatch) -> None:
    async def drop(store: Store, release: ReleaseRef) -> None:
        await store.erase(release)
        await life.change(store, lambda found: changes.forget(found, release))

    patch.setattr(life, "_drop", drop)


def erases_what_others_took_over(patch: pytest.MonkeyPatch) -> None:
    async def abandon(store: Store, draft: DraftRef) -> None:
        with suppress(StoreError):
            await store.erase(draft.release)

    patch.setattr(life, "_abandon", abandon)


def follows_whatever_it_reads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(follower, "follows", lambda found, _seen: found.generation > 0)


def never_follows_a_restore(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(follower, "RESTORED_S", 1e9)


def erases_by_id(patch: pytest.MonkeyPatch) -> None:
    ids, create = dict[str, ReleaseId](), MemoryStore.create

    async def create_noted(self: MemoryStore, draft: DraftRef, plan: Plan) -> None:
        ids[draft.incarnation] = draft.id
        await create(self, draft, plan)

    async def erase(self: MemoryStore, release: ReleaseRef) -> None:
        for incarnation in list(self._releases):
            if ids.get(incarnation) == ids.get(release.incarnation):
                del self._releases[incarnation]

    patch.setattr(MemoryStore, "create", create_noted)
    patch.setattr(ServerLike, "erase", erase)


def writes_whoever_claimed(patch: pytest.MonkeyPatch) -> None:
    async def put(self: MemoryStore, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        found = self._find(draft)
        found.rows.update(rows)
        if rows:
            found.points[part] = rows[-1].key

    patch.setattr(MemoryStore, "put", put)


def swaps_without_comparing(patch: pytest.MonkeyPatch) -> None:
    async def swap(self: MemoryStore, _old: Catalogue, new: Catalogue) -> None:
        self._catalogue = new

    patch.setattr(MemoryStore, "swap", swap)


@pytest.mark.parametrize(
    "fault",
    [
        prunes_under_a_lease,
        prunes_without_grace,
        leaves_what_no_entry_names,
        follows_whatever_it_reads,
        never_follows_a_restore,
        erases_by_id,
        writes_whoever_claimed,
        swaps_without_comparing,
        pytest.param(takes_over_under_a_lease, marks=pytest.mark.soak),
        pytest.param(erases_what_others_took_over, marks=pytest.mark.soak),
        pytest.param(erases_what_it_marked_before_a_restore, marks=[pytest.mark.soak, long]),
    ],
)
@pytest.mark.timeout(600)
def test_histories_find_a_protocol_that(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    broken = seed(1)(type("Broken", (Interleaved,), {}))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(broken, settings=depth(5_000, 30, phases=[Phase.generate]))
