"""Of all states that a small model of the protocol can be in, none breaks a rule; broken protocols are found."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from stores import catalogue as changes
from stores.catalogue import Catalogue, DraftRef, State
from tests.support import protocol_states as model
from tests.support.protocol_states import Bounds, Search, Violation, World

# What anybody may do, where nothing is refused.
Fault = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize(
    ("deaths", "same_rows"), [(0, False), pytest.param(1, True, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
)
def test_no_state_of_a_small_model_breaks_a_rule(
    deaths: int, *, same_rows: bool, record_property: Callable[[str, object], None]
) -> None:
    found = Search(Bounds(deaths, losses=0, same_rows=same_rows, renewals=False)).run(most=200_000)
    record_property("found", str(found))
    assert found.states > 40_000
    assert found.transitions > 150_000
    assert found.reader_states > 7_000


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("deaths", "losses", "renewals", "same_rows"), [(0, 1, False, True), (1, 0, True, True)])
def test_no_state_breaks_a_rule_with_lost_replies_or_renewals(
    deaths: int, losses: int, *, renewals: bool, same_rows: bool, record_property: Callable[[str, object], None]
) -> None:
    """All at once are 2.5 million states and more, none of which did either; they take ten minutes."""
    found = Search(Bounds(deaths, losses, same_rows=same_rows, renewals=renewals)).run(most=1_000_000)
    record_property("found", str(found))
    assert found.states > 100_000
    assert found.transitions > 500_000


def takes_over_under_a_lease(patch: pytest.MonkeyPatch) -> None:
    take_over = changes.take_over
    patch.setattr(changes, "take_over", lambda found, draft: take_over(lapsed(found), draft))


def lapsed(found: Catalogue) -> Catalogue:
    entries = (replace(one, lease_until=0.0) if one.state is State.DRAFT else one for one in found.releases)
    return replace(found, releases=tuple(entries))


def prunes_under_a_lease(patch: pytest.MonkeyPatch) -> None:
    prune = changes.prune
    patch.setattr(changes, "prune", lambda found, *rest: prune(lapsed(found), *rest))


def lets_anybody_commit(patch: pytest.MonkeyPatch) -> None:
    commit = changes.commit

    def commit_whoever(found: Catalogue, draft: DraftRef) -> Catalogue:
        entry = found.entry(draft.incarnation)
        return commit(found, draft if entry is None else draft._replace(writer=entry.writer))

    patch.setattr(changes, "commit", commit_whoever)


def writes_whoever_claimed(patch: pytest.MonkeyPatch) -> None:
    """As a store does that knows no writers: what was begun is written to, sealed or not."""
    patch.setattr(model, "check_claim", lambda _found, _writer: None)


def erases_by_id(patch: pytest.MonkeyPatch) -> None:
    erased = model.erased

    def erase_all(world: World, incarnation: str) -> World:
        left = erased(world, incarnation)
        return (
            left if incarnation == "other" else left._replace(data=tuple(one for one in left.data if one[0] == "other"))
        )

    patch.setattr(model, "erased", erase_all)


def begins_an_incarnation_twice(patch: pytest.MonkeyPatch) -> None:
    """As a begin does that draws its incarnation once, and begins anew what was dropped while its reply was lost."""
    patch.setattr(model, "drawn", lambda name, _world: name)


def follows_whatever_it_reads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(changes, "follows", lambda found, _seen: found.generation > 0)


def prunes_what_is_read(patch: pytest.MonkeyPatch) -> None:
    """As a prune does that takes what it found in the store before it read the catalogue for all that may be there."""
    prune = changes.prune

    def prune_later(found: Catalogue, keep: int, grace_s: float, keep_ready_s: float | None, _: object) -> Catalogue:
        return prune(found, keep, grace_s, keep_ready_s)

    patch.setattr(changes, "prune", prune_later)


def verifies_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model, "is_verified", lambda _found, _label: True)


@pytest.mark.parametrize(
    ("fault", "bounds"),
    [
        (takes_over_under_a_lease, Bounds(0, 0, renewals=False)),
        (prunes_under_a_lease, Bounds(0, 0, renewals=False)),
        (lets_anybody_commit, Bounds(0, 0, same_rows=False, renewals=False)),
        (writes_whoever_claimed, Bounds(0, 0, same_rows=False, renewals=False)),
        (erases_by_id, Bounds(0, 0, renewals=False)),
        pytest.param(begins_an_incarnation_twice, Bounds(0, 1, renewals=False), marks=pytest.mark.soak),
        pytest.param(follows_whatever_it_reads, Bounds(0, 0, renewals=False), marks=pytest.mark.soak),
        (prunes_what_is_read, Bounds(0, 0, renewals=False)),
        (verifies_nothing, Bounds(1, 0, same_rows=False, renewals=False)),
    ],
)
def test_the_search_finds_a_protocol_that(fault: Fault, bounds: Bounds, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises(Violation):
        Search(bounds).run(most=200_000)
