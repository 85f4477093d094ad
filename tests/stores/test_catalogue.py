"""The catalogue's record, and the rule by which readers follow it."""

from dataclasses import replace

import orjson
import pytest

from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import (
    DRAFT_GRACE_S,
    GRACE_S,
    LEASE_S,
    Arm,
    Canary,
    Catalogue,
    DraftRef,
    Erased,
    ReleaseId,
    State,
    follows,
    is_bookkeeping,
)
from hotplate.stores.catalogue_record import dump, parse
from hotplate.stores.errors import CatalogueUnreadable, HeldBack, RefusedByGates, ReleaseConflict, ReleaseNotFound

A, B, C = ReleaseId("a"), ReleaseId("b"), ReleaseId("c")
GATES = ("ndcg", "overlap@10")


def draft(release: ReleaseId, incarnation: str = "", writer: str = "writer") -> DraftRef:
    return DraftRef(release, incarnation or f"of-{release}", writer)


def end_lease(catalogue: Catalogue, ended: DraftRef) -> Catalogue:
    return changes.renew(catalogue, ended, lease_s=0.0)


def evolved() -> Catalogue:
    catalogue = Catalogue(store_id="s", generation=4, token="t", now=100.0)
    for release in (A, B):
        catalogue = changes.activate(changes.commit(changes.begin(catalogue, draft(release)), draft(release)), release)
    return changes.begin(catalogue, draft(C))


@pytest.mark.parametrize(
    "change",
    [
        {"live": "a"},
        {"generation": 0},
        {"generation": 1 << 63},
        {"entries": [{}]},
        {"format": 3},
        {"format": None},
        {"canary": {"release": "b", "percent": 5, "salt": "b"}},
        {"canary": {"release": "nowhere", "percent": 5, "salt": "c"}},
        {"canary": {"release": "c", "percent": 100, "salt": "c"}},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CatalogueUnreadable, match="nowhere"):
        parse(orjson.dumps(orjson.loads(dump(with_canary())) | change), now=0, where="nowhere")


def test_record_with_a_changed_byte_is_refused_with_advice() -> None:
    """A blank may change, and the name of a field that is not read; a record never reads as another one."""
    catalogue = with_canary(2.5)
    record = dump(catalogue)
    misread = list[bytes]()
    advised = 0
    for place in range(len(record)):
        changed = record[:place] + bytes([record[place] ^ 1]) + record[place + 1 :]
        try:
            if parse(changed, now=100.0, where="here") != catalogue:
                misread.append(changed)
        except CatalogueUnreadable as error:
            advised += "hotplate store rebuild" in str(error)
    assert misread == []
    assert advised > len(record) / 2


def test_readers_follow_newer_rewritten_and_restored_catalogues_only() -> None:
    seen = evolved()
    assert follows(seen, None)
    assert follows(replace(seen, generation=5), seen)
    assert follows(replace(seen, token="after-failover"), seen)
    assert not follows(replace(seen, token="not-there-yet", primary=False), seen)
    assert follows(replace(seen, token="on-its-way"), replace(seen, primary=False))
    assert follows(replace(seen, store_id="anew", generation=1), seen)
    assert not follows(seen, seen)
    assert not follows(replace(seen, generation=3, token="older"), seen)
    assert not follows(Catalogue(), seen)
    assert not follows(Catalogue(), None)


def test_rollback_requires_the_live_release_the_operator_saw() -> None:
    with pytest.raises(ReleaseConflict, match="no longer live"):
        changes.rollback(evolved(), A)
    back = changes.rollback(evolved(), B)
    assert back.live == A
    with pytest.raises(ReleaseNotFound, match="no earlier release"):
        changes.rollback(back, A)


def test_a_draft_cannot_go_live_and_a_dropped_release_is_gone() -> None:
    with pytest.raises(ReleaseConflict, match="still being written"):
        changes.activate(evolved(), C)
    dropping = changes.abandon(evolved(), draft(C))
    with pytest.raises(ReleaseNotFound):
        changes.activate(dropping, C)
    assert [entry.id for entry in changes.forget(dropping, draft(C).release).releases] == [A, B]
    assert changes.forget(dropping, draft(B).release) == dropping


def test_a_draft_has_one_writer_and_another_only_once_the_lease_has_lapsed() -> None:
    catalogue = evolved()
    other = draft(C, writer="other")
    with pytest.raises(ReleaseConflict, match="whose lease runs for 60 s more"):
        changes.take_over(catalogue, other)
    lapsed = replace(catalogue, now=100.0 + LEASE_S)
    taken = changes.take_over(lapsed, other)
    assert changes.take_over(taken, other) == taken
    for step in (changes.renew, end_lease, changes.commit, changes.abandon):
        with pytest.raises(ReleaseConflict, match="taken over"):
            step(taken, draft(C))
        step(taken, other)
    assert changes.take_over(end_lease(evolved(), draft(C)), other).find_draft(C).writer == other.writer


def test_bookkeeping_is_of_drafts_and_dropped_releases_alone() -> None:
    old = evolved()
    after_lease = replace(old, now=old.now + 2 * LEASE_S)
    dropping = changes.abandon(old, draft(C))
    for bookkeeping in (
        changes.begin(old, draft(ReleaseId("d"))),
        changes.renew(after_lease, draft(C)),
        end_lease(old, draft(C)),
        changes.take_over(after_lease, draft(C, writer="other")),
        dropping,
        changes.forget(dropping, draft(C).release),
    ):
        assert bookkeeping != old
        assert is_bookkeeping(old, replace(bookkeeping, generation=old.generation + 1, token="next"))
    for relied_on in (
        changes.commit(old, draft(C)),
        changes.rollback(old, B),
        changes.start_canary(old, A, 5),
        changes.prune(replace(old, now=old.now + 2 * GRACE_S), keep=0),
        replace(old, erased=Erased(count=1, last=1, token="next")),
        replace(old, store_id="other"),
    ):
        assert relied_on != old
        assert not is_bookkeeping(old, relied_on)


def test_release_that_left_service_by_a_clock_ahead_is_pruned_after_the_next_activation() -> None:
    ahead = changes.activate(replace(evolved(), now=1e9), A)
    back = replace(ahead, now=200.0)
    assert changes.prune(back, keep=0).find(B) == ahead.find(B)
    replaced = changes.activate(changes.commit(back, draft(C)), C)
    assert changes.prune(replaced, keep=0).find(B).superseded_at == 1e9
    for gone in (
        changes.prune(replace(replaced, now=200.0 + GRACE_S), keep=0),
        changes.prune(back, keep=0, grace_s=0.0),
    ):
        with pytest.raises(ReleaseNotFound):
            gone.find(B)


def test_prune_while_the_clock_is_set_back_shortens_no_grace() -> None:
    left = changes.activate(replace(evolved(), now=10_000.0), A)
    set_back = changes.prune(replace(left, now=6_400.0), keep=0)
    assert changes.prune(replace(set_back, now=10_012.0), keep=0).find(B).state is State.SUPERSEDED
    with pytest.raises(ReleaseNotFound):
        changes.prune(replace(set_back, now=10_000.0 + GRACE_S), keep=0).find(B)


def test_prune_leaves_a_canary_that_left_service_before_by_a_clock_ahead_alone() -> None:
    ahead = changes.start_canary(replace(evolved(), now=1e9), A, 10)
    again = changes.start_canary(changes.abort(ahead, A), A, 10)
    back = replace(again, now=200.0)
    assert again.find(A).superseded_at == 1e9
    assert changes.prune(back).find(A) == again.find(A)


def test_ready_releases_are_kept_for_the_given_age() -> None:
    catalogue = changes.commit(evolved(), draft(C))
    after = changes.activate(replace(catalogue, now=200.0), A)
    years_later = replace(after, now=1e9)
    assert changes.prune(years_later).find(C).state is State.READY
    assert changes.prune(replace(after, now=250.0), keep_ready_s=200.0).find(C).state is State.READY
    with pytest.raises(ReleaseNotFound):
        changes.prune(years_later, keep_ready_s=200.0).find(C)


def with_canary(percent: float = 5) -> Catalogue:
    """Return a catalogue in which b is live, a is superseded, and c, which is ready and was refused, is the canary."""
    refused = changes.commit(evolved(), draft(C), GATES)
    return changes.start_canary(refused, C, percent, overridden=GATES)


def test_records_of_hotplate_0_2_are_read() -> None:
    catalogue = changes.start_canary(changes.commit(evolved(), draft(C)), C, 5)
    fields = orjson.loads(dump(catalogue))
    for entry in fields["entries"]:
        del entry["refused_by"], entry["live_since"]
    assert parse(orjson.dumps(fields), now=100.0, where="here") == catalogue


def test_canary_needs_a_live_release_and_is_complete() -> None:
    with pytest.raises(ReleaseConflict, match="still being written"):
        changes.start_canary(evolved(), C, 5)
    with pytest.raises(ReleaseConflict, match="is live"):
        changes.start_canary(evolved(), B, 5)
    with pytest.raises(ReleaseNotFound):
        changes.start_canary(evolved(), ReleaseId("nowhere"), 5)
    alone = changes.commit(changes.begin(Catalogue(), draft(C)), draft(C))
    with pytest.raises(ReleaseConflict, match="nothing is live"):
        changes.start_canary(alone, C, 5)
    with pytest.raises(ReleaseConflict, match="release c is the canary, of 5 %"):
        changes.start_canary(with_canary(), A, 5)
    assert changes.start_canary(with_canary(), C, 50, overridden=GATES).canary == Canary(C, 50, salt="c")
    assert changes.start_canary(evolved(), A, 5).canary_entry == evolved().find(A)


def test_a_canary_is_promoted_aborted_or_ends_with_the_live_release() -> None:
    with pytest.raises(RefusedByGates):
        changes.promote(with_canary(), C)
    promoted = changes.promote(with_canary(), C, overridden=GATES)
    assert (promoted.live, promoted.canary) == (C, None)
    assert changes.rollback(promoted, C).live == B
    aborted = changes.abort(with_canary(), C)
    assert (aborted.live, aborted.canary, aborted.find(C).state) == (B, None, State.READY)
    for step in (changes.promote, changes.abort):
        for catalogue in (aborted, changes.start_canary(aborted, A, 5)):
            with pytest.raises(ReleaseConflict, match="not the canary any more"):
                step(catalogue, C)
    for ended in (changes.activate(with_canary(), A, end_canary=True), changes.rollback(with_canary(), B)):
        assert (ended.live, ended.canary, ended.find(C).state) == (A, None, State.READY)


def test_only_overridden_reasons_of_a_refusal_are_accepted() -> None:
    refused = changes.commit(evolved(), draft(C), GATES)
    with pytest.raises(RefusedByGates, match=r"refused by overlap@10 when it was published, so it stays ready"):
        changes.activate(refused, C, overridden=GATES[:1])
    assert changes.activate(refused, C, overridden=GATES).find(C).refused_by == ()


def test_during_a_canary_only_a_rollback_changes_the_live_release() -> None:
    with pytest.raises(ReleaseConflict, match=r"is the canary, of 5 %, so .* stays superseded; promote or abort"):
        changes.activate(with_canary(), A)
    assert changes.activate(with_canary(), B) == with_canary(), "it is live already"
    assert changes.activate(with_canary(), C, overridden=GATES).live == C, "the canary itself may go live"
    assert changes.rollback(with_canary(), B).live == A


def with_arms() -> Catalogue:
    """Return a catalogue in which b is arm A and c, which was refused, is arm B, at 50 % for 14 days."""
    refused = changes.commit(evolved(), draft(C), GATES)
    return changes.start_canary(refused, C, 50, 14, overridden=GATES)


def renewed(catalogue: Catalogue, release: str, arm: Arm) -> Catalogue:
    """Publish another release for an arm, 20 minutes later."""
    new = draft(ReleaseId(release))
    written = changes.commit(changes.begin(replace(catalogue, now=catalogue.now + 1200), new), new)
    return changes.activate(written, new.id, arm=arm)


def test_new_releases_of_arms_keep_assignment_and_horizon() -> None:
    catalogue = with_arms()
    for night in range(3):
        for arm in ("A", "B"):
            catalogue = changes.prune(renewed(catalogue, f"{arm}{night}", arm))
            assert (
                parse(dump(replace(catalogue, generation=1)), now=catalogue.now, where="here").canary
                == catalogue.canary
            )
    assert (catalogue.live, catalogue.canary) == ("A2", Canary(ReleaseId("B2"), 50, salt="c"))
    assert replace(catalogue.experiment, previous="") == with_arms().experiment  # type: ignore[type-var]  # is running
    left = {entry.id: entry.state for entry in catalogue.releases if entry.state is not State.DROPPING}
    assert left == {"A1": "superseded", "A2": "live", "B1": "withdrawn", "B2": "ready"}
    back = changes.activate(catalogue, ReleaseId("B1"), arm="B")
    assert (back.canary_entry, back.live) == (replace(back.find(ReleaseId("B1")), state=State.READY), "A2")


def test_rollback_changes_arm_a_and_promote_or_abort_end_experiments() -> None:
    catalogue = renewed(with_arms(), "b2", "B")
    back = changes.rollback(catalogue, B)
    assert (back.live, back.canary, back.running) == (A, catalogue.canary, catalogue.experiment)
    b2 = ReleaseId("b2")
    for ended, live in ((changes.promote(catalogue, b2), b2), (changes.abort(catalogue, b2), B)):
        assert (ended.live, ended.canary, ended.running) == (live, None, None)
        assert ended.experiment == replace(catalogue.experiment, ended_at=catalogue.now)  # type: ignore[type-var]  # it was
        with pytest.raises(HeldBack):
            changes.activate(ended, C, arm="B")
    assert changes.rollback(changes.promote(catalogue, b2), b2).live == B
    assert changes.activate(catalogue, A, end_canary=True).running is None


@pytest.mark.parametrize("days", [None, 14.0], ids=["canary", "experiment"])
def test_rollback_to_the_release_of_a_canary_or_of_arm_b_shows_it_to_all(days: float | None) -> None:
    catalogue = changes.start_canary(evolved(), A, 50, days)
    assert changes.rollback_target(catalogue) == catalogue.find(A)
    back = changes.rollback(catalogue, B, "slow")
    assert (back.live, back.canary, back.running, back.find(B).refused_by) == (A, None, None, ("slow",))
    assert parse(dump(replace(back, generation=1)), now=100.0, where="here").live == A
    assert changes.start_canary(back, B, 5, overridden=("slow",)).canary == Canary(B, 5, salt="b")


def test_an_experiment_has_a_fixed_share_and_arms_of_different_releases() -> None:
    with pytest.raises(ReleaseConflict, match="promote or abort it"):
        changes.start_canary(with_arms(), C, 60)
    with pytest.raises(ReleaseConflict, match="is live"):
        changes.activate(with_arms(), B, arm="B")
    with pytest.raises(ReleaseConflict, match="still being written"):
        changes.activate(changes.begin(with_arms(), draft(ReleaseId("d"))), ReleaseId("d"), arm="B")
    with pytest.raises(HeldBack):
        changes.activate(with_canary(), A, arm="B")


def test_a_canary_is_not_pruned_before_its_grace_is_over() -> None:
    for canary in (C, A):
        catalogue = changes.start_canary(changes.commit(evolved(), draft(C)), canary, 5)
        later = replace(catalogue, now=1e6)
        assert changes.prune(later, keep=0, keep_ready_s=0).canary_entry == catalogue.canary_entry
        ended = changes.abort(later, canary)
        assert changes.prune(ended, keep=0, keep_ready_s=0).find(canary).state is catalogue.find(canary).state
        with pytest.raises(ReleaseNotFound):
            changes.prune(replace(ended, now=1e6 + GRACE_S), keep=0, keep_ready_s=0).find(canary)


def test_a_repaired_canary_is_the_canary() -> None:
    catalogue = with_canary(2.5)
    healed = draft(C, "healed")
    assert (catalogue.canary, catalogue.served) == (Canary(C, 2.5, salt="c"), (draft(B).release, draft(C).release))
    assert parse(dump(catalogue), now=5.0, where="here").now == 5.0
    done = changes.commit(changes.begin(catalogue, healed, repairs=draft(C).incarnation), healed)
    assert (done.canary, done.served) == (catalogue.canary, (draft(B).release, healed.release))
    assert parse(dump(done), now=100.0, where="here") == done


def test_a_lapsed_draft_can_be_resumed_until_its_grace_is_over() -> None:
    another = draft(ReleaseId("d"))
    hours_later = replace(end_lease(evolved(), draft(C)), now=100.0 + DRAFT_GRACE_S - 1)
    begun = changes.prune(changes.begin(hours_later, another))
    assert changes.take_over(begun, draft(C, writer="another")).find_draft(C).writer == "another"
    assert begun.find_draft(another.id).writer == another.writer

    for abandoned in (
        changes.prune(hours_later, grace_s=0.0),
        changes.prune(replace(hours_later, now=100.0 + DRAFT_GRACE_S)),
        changes.begin(hours_later, draft(C, writer="another")._replace(incarnation="of-another")),
    ):
        entry = abandoned.entry(draft(C).incarnation)
        assert entry is not None
        assert (entry.state, entry.lease_until) == (State.DROPPING, None)


def test_a_lease_further_ahead_than_a_writer_takes_has_lapsed() -> None:
    """As when the clock of the store is set back while a draft is written."""
    catalogue = replace(evolved(), now=100.0 - 6 * 3600)
    taken = changes.take_over(catalogue, draft(C, writer="another"))
    assert taken.find_draft(C).writer == "another"
    assert changes.prune(catalogue).entry(draft(C).incarnation).state is State.DROPPING  # type: ignore[union-attr]  # it is there
    with pytest.raises(ReleaseConflict, match="written by another"):
        changes.take_over(replace(catalogue, now=100.0 - 20.0), draft(C, writer="another"))


def test_each_state_can_end_as_dropping_except_that_of_a_served_release() -> None:
    ends = {state for state, following in changes.TRANSITIONS.items() if State.DROPPING in following}
    assert ends == {*State} - {State.LIVE, State.DROPPING}
    assert changes.TRANSITIONS[State.DROPPING] == ()
