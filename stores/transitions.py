"""The changes of a catalogue: pure functions from one to the next, and the states that a release goes through.

Functions return a new catalogue, or the same if there is nothing to change, as after a repeated call.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from hotplate.base.timing import DAY_S
from hotplate.stores.catalogue import (
    DRAFT_GRACE_S,
    GRACE_S,
    LEASE_S,
    Arm,
    Canary,
    Catalogue,
    DraftRef,
    Experiment,
    Release,
    ReleaseId,
    ReleaseRef,
    State,
    unnamed_release,
)
from hotplate.stores.errors import CanaryRunning, RefusedByGates, ReleaseConflict, ReleaseNotFound

# The states that may follow each. A release begins as a draft; data without an entry begin as `dropping`.
TRANSITIONS: Mapping[State, tuple[State, ...]] = {
    State.DRAFT: (State.READY, State.DROPPING),
    State.READY: (State.LIVE, State.WITHDRAWN, State.DROPPING),
    State.LIVE: (State.SUPERSEDED, State.WITHDRAWN),
    State.SUPERSEDED: (State.LIVE, State.WITHDRAWN, State.DROPPING),
    State.WITHDRAWN: (State.READY, State.LIVE, State.DROPPING),
    State.DROPPING: (),
}

# `prune` may mark a release in one of these states once its grace is over.
PRUNABLE = (State.READY, State.SUPERSEDED, State.WITHDRAWN)


def _moved(entry: Release, state: State) -> Release:
    """Return a release's entry with its next state; RuntimeError if TRANSITIONS does not allow it."""
    if state not in TRANSITIONS[entry.state]:
        raise RuntimeError(f"release {entry.id} cannot become {state}, as it is {entry.state}")
    return replace(entry, state=state)


def _retired(entry: Release, state: State, now: float) -> Release:
    """Return a release's entry with its next state, in which it is not served; its grace period begins."""
    return replace(_moved(entry, state), superseded_at=now)


def begin(catalogue: Catalogue, draft: DraftRef, *, repairs: str | None = None) -> Catalogue:
    """Add an entry for a draft, a release that *draft*'s writer is writing.

    The writer holds the draft by a lease of LEASE_S seconds. If the same writer began it in an earlier attempt, that
    draft's lease is renewed instead. A lapsed draft of the same id is marked as `dropping`. *repairs* is the
    incarnation (the stored data) of the damaged release of the same id that `commit` is to replace. Raises
    ReleaseConflict if the id is taken.
    """
    for entry in catalogue.releases:
        if entry.state is State.DRAFT and (entry.id, entry.writer) == (draft.id, draft.writer):
            return renew(catalogue, draft._replace(incarnation=entry.incarnation))

    releases = list[Release]()
    for entry in catalogue.releases:
        is_replaced = entry.id == draft.id and _is_lapsed(entry, catalogue.now)
        releases.append(_dropped(entry) if is_replaced else entry)

    reusable_states = [State.DROPPING]
    if repairs is not None:
        reusable_states.append(State.WITHDRAWN)  # left by earlier repairs
    for entry in releases:
        if entry.id == draft.id and entry.incarnation != repairs and entry.state not in reusable_states:
            raise ReleaseConflict(f"release {draft.id} exists already; publish again under a new id")
    begun = Release(
        id=draft.id,
        incarnation=draft.incarnation,
        state=State.DRAFT,
        created_at=catalogue.now,
        writer=draft.writer,
        lease_until=catalogue.now + LEASE_S,
    )
    return replace(catalogue, releases=(*releases, begun))


def renew(catalogue: Catalogue, draft: DraftRef, lease_s: float = LEASE_S) -> Catalogue:
    """Renew a draft's lease for *lease_s*, 0 to let it lapse.

    Raises ReleaseConflict if the draft is no longer the writer's, ReleaseNotFound if it was dropped.
    """
    return _with_entry(catalogue, replace(_owned_draft(catalogue, draft), lease_until=catalogue.now + lease_s))


def take_over(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Make *draft*'s writer the owner of the draft of its incarnation, with a new lease.

    Raises ReleaseConflict while another writer's lease runs, or if it is not a draft any more.
    """
    entry = catalogue.entry(draft.incarnation)
    if entry is None or entry.state is not State.DRAFT:
        raise ReleaseConflict(f"release {draft.id} is not a draft any more; `hotplate releases list` shows what it is")
    if entry.writer == draft.writer:
        return catalogue  # done by an earlier attempt
    left_s = entry.lease_left_s(catalogue.now)
    if left_s > 0:
        raise ReleaseConflict(
            f"release {draft.id} is being written by another process, whose lease runs for {left_s:.0f} s more"
        )
    return _with_entry(catalogue, replace(entry, writer=draft.writer, lease_until=catalogue.now + LEASE_S))


def commit(catalogue: Catalogue, draft: DraftRef, refused_by: tuple[str, ...] = ()) -> Catalogue:
    """Make a verified draft a ready release; *refused_by* are the gates that refuse it, if any.

    If a release of its id exists, the draft repairs it: that entry keeps its state and gates, and gets the draft's
    incarnation, the name of its data. The damaged data get a new entry, withdrawn, until they are pruned. Raises
    ReleaseConflict and ReleaseNotFound if the draft is not the writer's any more.
    """
    entry = catalogue.entry(draft.incarnation)
    if entry is not None and entry.writer == draft.writer and entry.state not in (State.DRAFT, State.DROPPING):
        return catalogue  # done by an earlier attempt

    ready = replace(_moved(_owned_draft(catalogue, draft), State.READY), lease_until=None, refused_by=refused_by)
    others = [other for other in catalogue.releases if other.incarnation != draft.incarnation]
    damaged = replace(catalogue, releases=tuple(others)).get(draft.id)
    if damaged is None or damaged.state is State.DRAFT:
        return replace(catalogue, releases=(*others, ready))

    withdrawn = damaged
    if damaged.state is not State.WITHDRAWN:
        withdrawn = _retired(damaged, State.WITHDRAWN, catalogue.now)
    repaired = replace(
        damaged,
        incarnation=ready.incarnation,
        created_at=ready.created_at,
        writer=ready.writer,
    )
    releases = list[Release]()
    for other in others:
        releases += [withdrawn, repaired] if other is damaged else [other]
    return replace(catalogue, releases=tuple(releases))


def activate(
    catalogue: Catalogue,
    release: ReleaseId,
    *,
    arm: Arm = "A",
    end_canary: bool = False,
    overridden: Collection[str] = (),
) -> Catalogue:
    """Make a committed release live, or with *arm* B that which the users of arm B of the experiment see.

    A live release is no longer refused. Raises RefusedByGates if `refused_by` of the release has reasons that
    are not *overridden*; CanaryRunning while another release is the canary (shown to a share of the users), unless
    *end_canary* is true, or the canary is arm B, which goes on. For arm B, raises HeldBack if no experiment is running,
    and ReleaseConflict for the live release.
    """
    entry = catalogue.find(release)
    canary = catalogue.canary
    if entry.state is State.DRAFT:
        raise ReleaseConflict(f"release {release} is still being written; activate it once it is committed")
    if arm == "B":
        return _renew_arm_b(catalogue, entry, overridden)
    if entry.state is State.LIVE:
        return catalogue
    if canary is not None and canary.release != release and not end_canary and catalogue.running is None:
        raise CanaryRunning(
            f"release {canary.release} is the canary, of {canary.percent:g} %, so {release} stays {entry.state}; "
            f"promote or abort the canary first, or end it with `hotplate releases activate {release} --end-canary`"
        )
    _check_accepted(entry, overridden)
    accepted = replace(entry, refused_by=())
    return _make_live(catalogue, accepted, replaced_state=State.SUPERSEDED, end_canary=end_canary)


def start_canary(
    catalogue: Catalogue,
    release: ReleaseId,
    percent: float,
    days: float | None = None,
    *,
    overridden: Collection[str] = (),
) -> Catalogue:
    """Show a committed release to *percent* of the users, or change the canary's share.

    With *days*, this starts an experiment of that length, with a fixed share. Raises ReleaseConflict for a draft or
    the live release, if nothing is live, while another is the canary, and while an experiment is running;
    RefusedByGates as `activate`.
    """
    entry = catalogue.find(release)
    canary = catalogue.canary
    if entry.state is State.DRAFT:
        raise ReleaseConflict(f"release {release} is still being written; it can be the canary once it is committed")
    if entry.state is State.LIVE:
        raise ReleaseConflict(f"release {release} is live, so all users see it; name another as the canary")
    if catalogue.live is None:
        raise ReleaseConflict("nothing is live to compare a canary with; activate a release first")
    if canary is not None and (canary.release != release or catalogue.running is not None):
        raise ReleaseConflict(
            f"release {canary.release} is {'arm B' if catalogue.running else 'the canary'}, of {canary.percent:g} %; "
            f"promote or abort it first"
        )

    _check_accepted(entry, overridden)
    started = replace(catalogue, canary=Canary(release, percent, salt=release))
    if days is None:
        return started
    started_at = float(catalogue.now)
    experiment = Experiment(
        salt=release, percent=float(percent), started_at=started_at, ends_at=started_at + days * DAY_S
    )
    return replace(started, experiment=experiment)


def promote(catalogue: Catalogue, expected: ReleaseId, *, overridden: Collection[str] = ()) -> Catalogue:
    """Make the canary live; ReleaseConflict if *expected* is no longer the canary, RefusedByGates as `activate`."""
    _check_canary(catalogue, expected)
    return activate(catalogue, expected, overridden=overridden)


def abort(catalogue: Catalogue, expected: ReleaseId) -> Catalogue:
    """End the canary, whose release keeps its state, and a running experiment.

    Raises ReleaseConflict if the canary is not *expected*.
    """
    _check_canary(catalogue, expected)
    return _without_canary(catalogue)


def rollback(catalogue: Catalogue, expected: ReleaseId | ReleaseRef, reason: str = "") -> Catalogue:
    """Withdraw the live release, and restore the one before it; a canary ends, an experiment if that is its arm B.

    With a *reason*, the withdrawn release is refused. Raises ReleaseConflict if *expected* is not live, or, given as a
    ReleaseRef, was repaired since; ReleaseNotFound if there is no earlier release.
    """
    live = catalogue.live_entry
    if isinstance(expected, ReleaseRef):
        if live is not None and live.id == expected.id and live.ref != expected:
            raise ReleaseConflict(f"release {expected.id} was repaired; see how it is served, before you roll back")
        expected = expected.id
    if live is None or live.id != expected:
        raise ReleaseConflict(f"release {expected} is no longer live; see what is, before you roll back")
    previous = rollback_target(catalogue)
    if previous is None:
        raise ReleaseNotFound(
            "there is no earlier release to roll back to; `hotplate releases list` shows the releases"
        )
    if reason:
        catalogue = _with_entry(catalogue, replace(live, refused_by=(reason,)))
    return _make_live(catalogue, previous, replaced_state=State.WITHDRAWN)


def rollback_target(catalogue: Catalogue) -> Release | None:
    """Return the release that a rollback leads to, the last one before the live one; None without one."""
    before = _superseded_before_live(catalogue)
    return before[-1] if before else None


def restore(catalogue: Catalogue, saved: Catalogue) -> Catalogue:
    """Add the releases of *saved*, the catalogue of a backup; its live release becomes live.

    Canaries of both end, as that of the backup may have been aborted since. Releases that were live or superseded are
    withdrawn: they never become live again, and are pruned after their grace period. So are ready releases with an id
    that *saved* has, too. Other ready releases, and drafts, stay as they are.
    """
    saved = _without_canary(replace(saved, now=catalogue.now))
    saved_ids = {entry.id for entry in saved.releases}

    others = list[Release]()
    for entry in _without_canary(catalogue).releases:
        is_replaced = entry.state is State.READY and entry.id in saved_ids
        if is_replaced or entry.state in (State.LIVE, State.SUPERSEDED):
            others.append(_retired(entry, State.WITHDRAWN, catalogue.now))
        else:
            others.append(entry)
    return replace(saved, releases=(*others, *saved.releases))


def prune(
    catalogue: Catalogue,
    keep: int = 1,
    grace_s: float = GRACE_S,
    keep_ready_s: float | None = None,
    present: Collection[str] = (),
) -> Catalogue:
    """Mark abandoned drafts and old releases as `dropping`.

    Drafts are abandoned DRAFT_GRACE_S after their lease has lapsed, or at once if *grace_s* is 0.

    Kept are the live release, the canary, the release before it in arm B of a running experiment, the last *keep*
    releases that were live before, ready releases (for *keep_ready_s* after they were begun; None: always), and any
    that left service less than *grace_s* ago, as lagging readers may still read it. One that left service in the future
    is kept, as the store's clock may have been set back for a while; if it had been ahead, a superseded release is kept
    until the grace after the next activation.

    Incarnations in *present* without an entry are marked, too, under a new id. They must have been listed
    before the catalogue was read: an entry is written before its data, so such data belong to no release.
    """
    now = catalogue.now
    kept = _kept_incarnations(catalogue, keep)
    draft_grace_s = DRAFT_GRACE_S if grace_s else 0.0
    entries = list[Release]()
    for entry in catalogue.releases:
        is_marked = False
        if entry.state is State.DRAFT:
            is_marked = _is_abandoned(entry, now, draft_grace_s)
        elif entry.state in PRUNABLE and entry.incarnation not in kept:
            is_marked = _is_unneeded(entry, catalogue, grace_s, keep_ready_s)
        entries.append(_dropped(entry) if is_marked else entry)

    for incarnation in sorted(set(present) - catalogue.incarnations):
        unnamed = unnamed_release(incarnation)
        entry = Release(id=unnamed.id, incarnation=incarnation, state=State.DROPPING, created_at=now)
        entries.append(entry)
    return replace(catalogue, releases=tuple(entries))


def _kept_incarnations(catalogue: Catalogue, keep: int) -> set[str]:
    """Return what `prune` keeps at any age: the last *keep* superseded releases, the canary, and arm B's former one."""
    kept = set[str]()
    if keep:
        kept = {entry.incarnation for entry in _superseded_before_live(catalogue)[-keep:]}
    if catalogue.canary_entry is not None:
        kept.add(catalogue.canary_entry.incarnation)
    if catalogue.running is not None:
        kept.add(catalogue.running.previous)
    return kept


def abandon(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Mark a draft as `dropping`; raises the errors of `renew`."""
    return _with_entry(catalogue, _dropped(_owned_draft(catalogue, draft)))


def forget(catalogue: Catalogue, release: ReleaseRef) -> Catalogue:
    """Remove an erased, `dropping` release."""
    entry = catalogue.entry(release.incarnation)
    if entry is None or entry.state is not State.DROPPING:
        return catalogue
    return replace(catalogue, releases=tuple(other for other in catalogue.releases if other is not entry))


def succeed(old: Catalogue, new: Catalogue, token: str, store_id: str) -> Catalogue:
    """Stamp *new* as the successor of *old*: the next generation, with a new *token*.

    The store's id stays; *store_id* is for its first change.
    """
    return replace(new, store_id=old.store_id or store_id, generation=old.generation + 1, token=token)


def _owned_draft(catalogue: Catalogue, draft: DraftRef) -> Release:
    """Return a draft's entry; ReleaseNotFound if it was dropped, ReleaseConflict if it is no longer the writer's."""
    entry = catalogue.entry(draft.incarnation)
    if entry is None:
        raise ReleaseNotFound(f"release {draft.id} was dropped, for its writer's lease had lapsed; publish again")
    if entry.state is not State.DRAFT:
        raise ReleaseConflict(f"release {draft.id} is not a draft any more, it is {entry.state}")
    if entry.writer != draft.writer:
        raise ReleaseConflict(f"release {draft.id} was taken over by another writer once the lease had lapsed")
    return entry


def _superseded_before_live(catalogue: Catalogue) -> list[Release]:
    """Return the releases that were live before the live one, in order; empty if nothing is live."""
    before = list[Release]()
    for entry in catalogue.releases:
        if entry.state is State.LIVE:
            return before
        if entry.state is State.SUPERSEDED:
            before.append(entry)
    return []


def _is_lapsed(entry: Release, now: float) -> bool:
    """Return whether a release is a draft that no writer holds."""
    return entry.state is State.DRAFT and entry.lease_left_s(now) <= 0


def _is_abandoned(entry: Release, now: float, grace_s: float) -> bool:
    """Return whether a draft's lease lapsed more than *grace_s* ago, or is invalid."""
    lapsed_at = entry.lease_until or 0.0
    is_in_grace = lapsed_at <= now < lapsed_at + grace_s
    return _is_lapsed(entry, now) and not is_in_grace


def _is_unneeded(entry: Release, catalogue: Catalogue, grace_s: float, keep_ready_s: float | None) -> bool:
    """Return whether a release left service at least *grace_s* ago, or never served, and is not a ready one to keep.

    A ready release is kept for *keep_ready_s* after it was begun, or always if that is None.
    """
    now = catalogue.now
    left_at = entry.superseded_at or 0.0
    live = catalogue.live_entry
    if left_at > now and entry.state is State.SUPERSEDED and live is not None:
        left_at = min(left_at, live.live_since or left_at)  # the live one has replaced it, or one after it
    if grace_s and left_at + grace_s > now:
        return False
    if entry.state is State.READY:
        return keep_ready_s is not None and entry.created_at + keep_ready_s <= now
    return True


def _dropped(entry: Release) -> Release:
    """Return a release's entry as `dropping`."""
    return replace(_moved(entry, State.DROPPING), lease_until=None)


def _check_accepted(entry: Release, overridden: Collection[str]) -> None:
    """Raise RefusedByGates if gates, or services on probation, refused a release for reasons not *overridden*."""
    reasons = [reason for reason in entry.refused_by if reason not in overridden]
    if not reasons:
        return
    when = "" if entry.state is State.WITHDRAWN else " when it was published"
    raise RefusedByGates(
        f"release {entry.id} was refused by {', '.join(reasons)}{when}, so it stays {entry.state}; "
        f"`hotplate releases show {entry.id}` says why. Publish again without the fault; only if it may be served as "
        "it is: --force of activate, canary and promote, or `?force=true` over HTTP"
    )


def _check_canary(catalogue: Catalogue, expected: ReleaseId) -> None:
    if catalogue.canary is None or catalogue.canary.release != expected:
        raise ReleaseConflict(f"release {expected} is not the canary any more; `hotplate releases list` shows what is")


def _without_canary(catalogue: Catalogue) -> Catalogue:
    """End the canary, which can still be read for its grace, and a running experiment."""
    entry = catalogue.canary_entry
    if entry is None:
        return catalogue
    experiment = catalogue.experiment
    if catalogue.running is not None:
        experiment = replace(catalogue.running, ended_at=catalogue.now)
    changed = _with_entry(catalogue, replace(entry, superseded_at=catalogue.now))
    return replace(changed, canary=None, experiment=experiment)


def _renew_arm_b(catalogue: Catalogue, entry: Release, overridden: Collection[str]) -> Catalogue:
    """Make *entry* the release of arm B, the canary of the running experiment, instead of the one before it.

    The canary keeps its salt, so the users of arm B stay the same. Raises the errors of `activate`.
    """
    catalogue.ref_of("B")  # raises HeldBack without a running experiment
    previous = catalogue.canary_entry
    canary = catalogue.canary
    running = catalogue.running
    if entry.state is State.LIVE:
        raise ReleaseConflict(f"release {entry.id} is live, as that of arm A; publish another for arm B")
    if previous is None or canary is None or running is None or previous.id == entry.id:
        return catalogue
    _check_accepted(entry, overridden)
    retired = replace(previous, superseded_at=catalogue.now)
    if previous.state is State.READY:
        retired = _moved(retired, State.WITHDRAWN)  # never a target of a rollback
    if entry.state is State.WITHDRAWN:
        entry = _moved(entry, State.READY)
    changed = _with_entry(_with_entry(catalogue, retired), entry)
    return replace(
        changed,
        canary=replace(canary, release=entry.id),
        experiment=replace(running, previous=previous.incarnation),
    )


def _with_entry(catalogue: Catalogue, changed: Release) -> Catalogue:
    """Return the catalogue with *changed*, which replaces the entry of the same incarnation."""
    releases = [changed if entry.incarnation == changed.incarnation else entry for entry in catalogue.releases]
    return replace(catalogue, releases=tuple(releases))


def _make_live(catalogue: Catalogue, entry: Release, *, replaced_state: State, end_canary: bool = False) -> Catalogue:
    """Make *entry* live, and the last of the releases; the live one before it gets *replaced_state*.

    A canary ends. As arm B of a running experiment, it goes on unless it is *entry* itself or *end_canary* is true.
    """
    is_canary = catalogue.canary is not None and catalogue.canary.release == entry.id
    is_arm_b_kept = catalogue.running is not None and not is_canary and not end_canary
    if not is_arm_b_kept:
        catalogue = _without_canary(catalogue)
    replaced = catalogue.live_entry
    if replaced is not None:
        catalogue = _with_entry(catalogue, _retired(replaced, replaced_state, catalogue.now))
    others = (other for other in catalogue.releases if other.incarnation != entry.incarnation)
    live = replace(_moved(entry, State.LIVE), superseded_at=None, live_since=catalogue.now)
    return replace(catalogue, releases=(*others, live))
