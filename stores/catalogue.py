"""The catalogue: the control state of a store in one small record, and pure functions that change it.

Releases are in the order of their last commit or activation. Times are epoch seconds by the store's clock. A swap
replaces the record only if it still has the generation and the token that were read: the generation counts changes,
and each change draws a new token.

    draft → ready → live → superseded → dropping
                      └──→ withdrawn ──────┘

    draft        being written, by the process with the writer's token, which renews a lease; once that lapses, another
                 process may take it over, or `prune` marks it
    ready        complete: committed by its writer, but not live
    live         served; at most one release
    withdrawn    replaced by a rollback, a repair, a restore or a newer release of arm B; never a rollback's target
    dropping     its data are being erased

Ids are for people; data are named by incarnations. Each new draft draws one, so late writers and erasers of another
draft cannot touch its data. A served release and the draft that repairs it share an id.

A canary is a release that a share of the users see instead of the live one. An experiment compares both for some days:
its arm A is the live release, its arm B the canary, and each may get newer releases until the end.

Functions that change a catalogue return a new one, or the same if there is nothing to change, as after a repeated call.
"""

from collections.abc import Collection
from dataclasses import astuple, dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, NewType

import msgspec
import orjson
from msgspec import Meta, Struct
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from hotplate.stores.encoding import RecordFormat
from hotplate.stores.errors import (
    CanaryRunning,
    CatalogueUnreadable,
    HeldBack,
    RefusedByGates,
    ReleaseConflict,
    ReleaseNotFound,
)

ReleaseId = NewType("ReleaseId", str)

# Of an experiment: A is the live release, B the canary.
Arm = Literal["A", "B"]


class ReleaseRef(NamedTuple):
    """A release; *incarnation* names its data in the store."""

    id: ReleaseId
    incarnation: str


class DraftRef(NamedTuple):
    """A draft and the token of its writer."""

    id: ReleaseId
    incarnation: str
    writer: str

    @property
    def release(self) -> ReleaseRef:
        """The release that the draft becomes at its commit."""
        return ReleaseRef(self.id, self.incarnation)


# Formats of the record. A catalogue is written in the oldest one that can express it (`format_of`), so earlier versions
# refuse, with "upgrade hotplate", only what they would misread. Whatever changes the meaning of a record, its checksum
# included, takes the next number.
#   2    releases and a canary; before format 4 also an experiment, and refused releases with either of two checksums
#   3    the same with erased users, recorded as an incarnation
#   4    with an experiment, a refused release, or erased users recorded beside the catalogue
FORMAT_PLAIN = 2
FORMAT_ERASED = 3
FORMAT = 4

LEASE_S = 60.0

# Accepted clock skew; a longer lease is invalid: the clock was set back.
LEASE_SLACK_S = 30.0

# How long a release can be read after it left service.
GRACE_S = 600.0
DAY_S = 86_400


class State(StrEnum):
    """The state of a release."""

    DRAFT = "draft"
    READY = "ready"
    LIVE = "live"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"
    DROPPING = "dropping"


@dataclass(frozen=True, slots=True)
class Release:
    """Control state of one incarnation.

    *writer* is the token of its draft's writer, *lease_until* the end of its lease, *superseded_at* the time at which
    the release left service. *refused_by* names failed gates, or says why services withdrew it; both keep it from going
    live unless overridden. *live_since* is for display only.
    """

    id: ReleaseId
    incarnation: str
    state: State
    created_at: float
    writer: str = ""
    superseded_at: float | None = None
    lease_until: float | None = None
    refused_by: tuple[str, ...] = ()
    live_since: float | None = field(default=None, compare=False)

    @property
    def ref(self) -> ReleaseRef:
        """The id and the incarnation."""
        return ReleaseRef(self.id, self.incarnation)

    def lease_left_s(self, now: float) -> float:
        """Seconds until a draft's lease lapses; 0 or less if it has lapsed or is invalid."""
        left_s = (self.lease_until or 0.0) - now
        return left_s if left_s <= LEASE_S + LEASE_SLACK_S else 0.0


def unnamed_release(incarnation: str) -> ReleaseRef:
    """Return a reference to data of an unknown release, with an id that no release has."""
    return ReleaseRef(ReleaseId(f"unknown-{incarnation}"), incarnation)


class UserShare(NamedTuple):
    """A share of the users: those for whom the hash of id and *salt* is less than *below*."""

    salt: str
    below: int

    @classmethod
    def of(cls, percent: float, salt: str) -> "UserShare":
        """Return a share of *percent*."""
        return cls(salt, round(percent / 100 * 2**64))

    def includes(self, user: str) -> bool:
        """Return whether a user belongs to it; the same in all processes."""
        return xxh3_64_intdigest((user + self.salt).encode()) < self.below


@dataclass(frozen=True, slots=True)
class Canary:
    """The release that a share of the users, by the hash of *salt* and id, see instead of the live one.

    *salt* is the release's id: all tiers choose the same users. A later release of arm B keeps it.
    """

    release: ReleaseId
    percent: Annotated[float, Meta(gt=0, lt=100)]
    salt: str


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment: arm B is the canary, arm A the live release, and both may get new releases.

    *ends_at* is its horizon, *ended_at* when it was ended, *previous* the incarnation that arm B had before.
    """

    salt: str
    percent: float
    started_at: float
    ends_at: float
    previous: str = ""
    ended_at: float | None = None

    def arm_of(self, user: str) -> Arm:
        """Return a user's arm: the canary's users have B."""
        return "B" if UserShare.of(self.percent, self.salt).includes(user) else "A"


@dataclass(frozen=True, slots=True)
class Erased:
    """The number of erased users, and what names their record.

    Until format 4 the record was a row of an *incarnation*, empty since. *last* is the number of its last part, *token*
    drawn for each change.
    """

    incarnation: str
    count: int
    last: int = 0
    token: str = ""

    @property
    def stored(self) -> tuple[str | int, ...]:
        """The fields that the catalogue's format has."""
        return (self.incarnation, self.count) if self.incarnation else (self.count, self.last, self.token)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The record as an immutable value.

    *experiment* is the running or the last one. *now* is the store's clock at the read, *primary* false if a lagging
    replica was read; neither is stored.
    """

    store_id: str = ""
    generation: int = 0
    token: str = ""
    releases: tuple[Release, ...] = ()
    canary: Canary | None = None
    erased: Erased | None = None
    experiment: Experiment | None = None
    now: float = field(default=0.0, compare=False)
    primary: bool = field(default=True, compare=False)

    @property
    def distinct(self) -> tuple[Release, ...]:
        """Releases without incarnations that another entry of their id replaced."""
        replaced = (State.WITHDRAWN, State.DROPPING)
        current = {entry.id for entry in self.releases if entry.state not in (*replaced, State.DRAFT)}
        return tuple(entry for entry in self.releases if entry.state not in replaced or entry.id not in current)

    @property
    def version(self) -> tuple[str, int, str]:
        """The values that a swap compares."""
        return self.store_id, self.generation, self.token

    @property
    def live(self) -> ReleaseId | None:
        """The release that readers follow."""
        entry = self.live_entry
        return None if entry is None else entry.id

    @property
    def live_ref(self) -> ReleaseRef | None:
        """The id and the incarnation of the live release."""
        entry = self.live_entry
        return None if entry is None else entry.ref

    @property
    def live_entry(self) -> Release | None:
        """The entry of the live release."""
        return next((entry for entry in self.releases if entry.state is State.LIVE), None)

    @property
    def canary_entry(self) -> Release | None:
        """The entry of the canary's release."""
        return None if self.canary is None else self.find(self.canary.release)

    @property
    def running(self) -> Experiment | None:
        """The running experiment; None if there is none, or the last one has ended."""
        if self.experiment is None or self.experiment.ended_at is not None:
            return None
        return self.experiment

    def ref_of(self, arm: Arm) -> ReleaseRef | None:
        """Return an arm's release, None for A if nothing is live; HeldBack for B if no experiment is running."""
        if arm == "B" and self.running is None:
            raise HeldBack("no experiment is running in this store; `hotplate releases canary --days` starts one")
        return self.live_ref if arm == "A" else self.served[-1]

    @property
    def served(self) -> tuple[ReleaseRef, ...]:
        """The live release and the canary, if any."""
        return tuple(entry.ref for entry in (self.live_entry, self.canary_entry) if entry is not None)

    @property
    def committed(self) -> tuple[Release, ...]:
        """The complete releases that are not being dropped."""
        return tuple(entry for entry in self.releases if entry.state not in (State.DRAFT, State.DROPPING))

    def get(self, release: ReleaseId) -> Release | None:
        """Return the last committed entry of an id, or else its draft; None if it is unknown or being dropped."""
        committed = [entry for entry in self.committed if entry.id == release]
        drafts = [entry for entry in self.releases if entry.id == release and entry.state is State.DRAFT]
        return next(reversed(committed or drafts), None)

    def find(self, release: ReleaseId) -> Release:
        """Return the result of `get`; ReleaseNotFound instead of None."""
        entry = self.get(release)
        if entry is None:
            raise ReleaseNotFound(f"release {release} is not in this store; `hotplate releases list` shows what is")
        return entry

    def find_draft(self, release: ReleaseId) -> Release:
        """Return the draft of an id; ReleaseNotFound if the id is unknown, ReleaseConflict if it is committed."""
        for entry in self.releases:
            if entry.id == release and entry.state is State.DRAFT:
                return entry
        raise ReleaseConflict(f"release {release} is not a draft any more, it is {self.find(release).state}")

    @property
    def incarnations(self) -> set[str]:
        """All incarnations, that of the erased users too."""
        names = {entry.incarnation for entry in self.releases}
        if self.erased is not None and self.erased.incarnation:
            names.add(self.erased.incarnation)
        return names

    def entry(self, incarnation: str) -> Release | None:
        """Return the entry of an incarnation, in any state."""
        return next((entry for entry in self.releases if entry.incarnation == incarnation), None)


def follows(read: Catalogue, seen: Catalogue | None) -> bool:
    """Return whether a reader that has *seen* one catalogue should follow *read*.

    Follows a higher generation, another store, and another token of the same generation (rewritten after a failover)
    unless only a replica has it; never an empty catalogue.
    """
    if read.generation == 0:
        return False
    if seen is None or read.store_id != seen.store_id or read.generation > seen.generation:
        return True
    rewritten = read.generation == seen.generation and read.token != seen.token
    return rewritten and (read.primary or not seen.primary)


def newly_committed(old: Catalogue, new: Catalogue) -> list[Release]:
    """Return the releases committed or made live between *old* and *new*."""
    committed = {entry.incarnation for entry in old.committed}
    return [
        entry
        for entry in new.committed
        if entry.incarnation not in committed or (entry.state is State.LIVE and old.live_ref != entry.ref)
    ]


def is_bookkeeping(old: Catalogue, new: Catalogue) -> bool:
    """Return whether a change is of drafts or dropped releases alone, such as a lease's renewal.

    Neither readers nor erasures rely on those.
    """
    return _without_drafts(old) == _without_drafts(new)


def _without_drafts(catalogue: Catalogue) -> Catalogue:
    return replace(catalogue, generation=0, token="", releases=catalogue.committed)


def begin(catalogue: Catalogue, draft: DraftRef, *, repairs: str | None = None) -> Catalogue:
    """Add an entry for a draft, a release that *draft*'s writer is writing, and mark lapsed drafts as `dropping`.

    The writer holds the draft by a lease of LEASE_S seconds. If the same writer began it in an earlier attempt, that
    draft's lease is renewed instead. *repairs* is the incarnation (the stored data) of the damaged release of the same
    id that `commit` is to replace. Raises ReleaseConflict if the id is taken.
    """
    for entry in catalogue.releases:
        if entry.state is State.DRAFT and (entry.id, entry.writer) == (draft.id, draft.writer):
            return renew(catalogue, draft._replace(incarnation=entry.incarnation))

    releases = _with_lapsed_dropping(catalogue)
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


def renew(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Renew a draft's lease; ReleaseConflict if it is no longer the writer's, ReleaseNotFound if it was dropped."""
    return _with_entry(catalogue, replace(_owned_draft(catalogue, draft), lease_until=catalogue.now + LEASE_S))


def end_lease(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Let a draft's lease lapse now; raises the errors of `renew`."""
    return _with_entry(catalogue, replace(_owned_draft(catalogue, draft), lease_until=catalogue.now))


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

    ready = replace(_owned_draft(catalogue, draft), state=State.READY, lease_until=None, refused_by=refused_by)
    others = [other for other in catalogue.releases if other.incarnation != draft.incarnation]
    for index, other in enumerate(others):
        is_repaired = other.id == draft.id and other.state not in (State.DRAFT, State.DROPPING, State.WITHDRAWN)
        if is_repaired:
            damaged = replace(other, state=State.WITHDRAWN, superseded_at=catalogue.now)
            repaired = replace(
                other,
                incarnation=ready.incarnation,
                created_at=ready.created_at,
                writer=ready.writer,
            )
            return replace(catalogue, releases=(*others[:index], damaged, repaired, *others[index + 1 :]))
    return replace(catalogue, releases=(*others, ready))


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


def rollback(catalogue: Catalogue, expected: ReleaseId, reason: str = "") -> Catalogue:
    """Withdraw the live release, restore the one before it, and end a canary, but not an experiment.

    With a *reason*, the withdrawn release is refused. Raises ReleaseConflict if *expected* is not live, and
    ReleaseNotFound if there is no earlier release.
    """
    if catalogue.live != expected:
        raise ReleaseConflict(f"release {expected} is no longer live; see what is, before you roll back")
    previous = _superseded_before_live(catalogue)
    if not previous:
        raise ReleaseNotFound(
            "there is no earlier release to roll back to; `hotplate releases list` shows the releases"
        )
    restored = _make_live(catalogue, previous[-1], replaced_state=State.WITHDRAWN)
    withdrawn = None if catalogue.live_ref is None else restored.entry(catalogue.live_ref.incarnation)
    if not reason or withdrawn is None:
        return restored
    return _with_entry(restored, replace(withdrawn, refused_by=(reason,)))


def prune(
    catalogue: Catalogue,
    keep: int = 1,
    grace_s: float = GRACE_S,
    keep_ready_s: float | None = None,
    present: Collection[str] = (),
) -> Catalogue:
    """Mark as `dropping` what is needed no more: lapsed drafts, and old releases.

    Kept are the live release, the canary, the release before it in arm B of a running experiment, the last *keep*
    releases that were live before, ready releases (for *keep_ready_s* after they were begun; None: always), and any
    that left service less than *grace_s* ago, as lagging readers may still read it.

    Incarnations in *present* without an entry are marked, too, under an id of their own. They must have been listed
    before the catalogue was read: an entry is written before its data, so such data belong to no release.
    """
    kept = set[str]()
    if keep:
        kept = {entry.incarnation for entry in _superseded_before_live(catalogue)[-keep:]}
    if catalogue.canary_entry is not None:
        kept.add(catalogue.canary_entry.incarnation)
    if catalogue.running is not None:
        kept.add(catalogue.running.previous)

    def is_unneeded(entry: Release) -> bool:
        if entry.incarnation in kept or (entry.superseded_at or 0.0) + grace_s > catalogue.now:
            return False
        if entry.state is State.READY:
            return keep_ready_s is not None and entry.created_at + keep_ready_s <= catalogue.now
        return entry.state in (State.SUPERSEDED, State.WITHDRAWN)

    entries = list[Release]()
    for entry in _with_lapsed_dropping(catalogue):
        state = State.DROPPING if is_unneeded(entry) else entry.state
        entries.append(replace(entry, state=state))
    for incarnation in sorted(set(present) - catalogue.incarnations):
        unnamed = unnamed_release(incarnation)
        entry = Release(id=unnamed.id, incarnation=incarnation, state=State.DROPPING, created_at=catalogue.now)
        entries.append(entry)
    return replace(catalogue, releases=tuple(entries))


def abandon(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Mark a draft as `dropping`; raises the errors of `renew`."""
    return _with_entry(catalogue, replace(_owned_draft(catalogue, draft), state=State.DROPPING, lease_until=None))


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


def _with_lapsed_dropping(catalogue: Catalogue) -> tuple[Release, ...]:
    """Return all releases, with lapsed drafts as `dropping`."""
    return tuple(
        replace(entry, state=State.DROPPING, lease_until=None)
        if entry.state is State.DRAFT and entry.lease_left_s(catalogue.now) <= 0
        else entry
        for entry in catalogue.releases
    )


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
        retired = replace(retired, state=State.WITHDRAWN)  # never a target of a rollback
    if entry.state is State.WITHDRAWN:
        entry = replace(entry, state=State.READY)
    changed = _with_entry(_with_entry(catalogue, retired), entry)
    return replace(
        changed,
        canary=replace(canary, release=entry.id),
        experiment=replace(running, previous=previous.incarnation),
    )


def _with_entry(catalogue: Catalogue, changed: Release) -> Catalogue:
    """Return the catalogue with *changed* in the place of the entry of its incarnation."""
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
        catalogue = _with_entry(catalogue, replace(replaced, state=replaced_state, superseded_at=catalogue.now))
    others = (other for other in catalogue.releases if other.incarnation != entry.incarnation)
    live = replace(entry, state=State.LIVE, superseded_at=None, live_since=catalogue.now)
    return replace(catalogue, releases=(*others, live))


class _Record(Struct):
    store_id: str
    generation: int
    token: str
    live: ReleaseId | None
    canary: Canary | None
    entries: tuple[Release, ...]
    checksum: str
    erased: Erased | None = None
    experiment: Experiment | None = None
    refusals: str | None = None
    """Of a pre-release of 0.3: the checksum of the refusals, which *checksum* leaves out."""

    def catalogue(self, now: float) -> Catalogue:
        """Return the catalogue, read at *now*."""
        return Catalogue(
            store_id=self.store_id,
            generation=self.generation,
            token=self.token,
            releases=self.entries,
            canary=self.canary,
            erased=self.erased,
            experiment=self.experiment,
            now=now,
        )


class _Refusal(Struct):
    incarnation: str
    refused_by: tuple[str, ...] = ()
    canary_stopped: str = ""


class _Refusals(Struct):
    entries: tuple[_Refusal, ...]


def format_of(catalogue: Catalogue) -> int:
    """Return the format in which a catalogue is written."""
    if catalogue.experiment is not None or any(entry.refused_by for entry in catalogue.releases):
        return FORMAT
    if catalogue.erased is None:
        return FORMAT_PLAIN
    return FORMAT_ERASED if catalogue.erased.incarnation else FORMAT


def dump(catalogue: Catalogue) -> bytes:
    """Encode a catalogue for storage: JSON in lines, in the oldest format that has its fields."""
    return orjson.dumps(
        {
            "format": format_of(catalogue),
            "store_id": catalogue.store_id,
            "generation": catalogue.generation,
            "token": catalogue.token,
            "live": catalogue.live,
            "canary": catalogue.canary,
            "entries": catalogue.releases,
            "checksum": _checksum(catalogue),
            **({} if catalogue.erased is None else {"erased": catalogue.erased}),
            **({} if catalogue.experiment is None else {"experiment": catalogue.experiment}),
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def parse(record: bytes, *, now: float, where: str) -> Catalogue:
    """Decode a stored catalogue, read at *now* by the store's clock; *where* names it in errors.

    Raises CatalogueUnreadable if it is damaged or contradicts itself, with the record, or if its format is newer or no
    longer read.
    """

    def unreadable(reason: str) -> CatalogueUnreadable:
        advice = "`hotplate store rebuild` writes a new one from the releases that the store holds"
        return CatalogueUnreadable(f"the catalogue at {where} {reason}; {advice}", record, now)

    try:
        written_format = msgspec.json.decode(record, type=RecordFormat).format  # others may have other fields
        if written_format > FORMAT:
            raise CatalogueUnreadable(
                f"the catalogue at {where} was written by a newer hotplate: it has format {written_format}, and this "
                f"one reads {FORMAT}; upgrade hotplate, services before publishers"
            )
        if written_format < FORMAT_PLAIN:
            raise CatalogueUnreadable(
                f"the catalogue at {where} has format {written_format}, which this hotplate reads no more; publish "
                f"into a new store"
            )
        fields = msgspec.json.decode(record, type=_Record)
        catalogue = fields.catalogue(now)
        is_contradictory = _is_contradictory(catalogue, live=fields.live, written_format=written_format)
        has_two_checksums = fields.refusals is not None and written_format == FORMAT_PLAIN
        refusals = _refusals_checksum(record) if has_two_checksums else None
    except (msgspec.MsgspecError, ValueError, RecursionError, ReleaseNotFound) as error:
        raise unreadable(f"cannot be read: {error}") from error
    if is_contradictory:
        raise unreadable("contradicts itself")
    if fields.checksum != _checksum(catalogue, with_refusals=not has_two_checksums):
        raise unreadable("is damaged: its checksum is wrong")
    if has_two_checksums and fields.refusals != refusals:
        raise unreadable("is damaged: the checksum of its refusals is wrong")
    return catalogue


def _is_contradictory(catalogue: Catalogue, *, live: ReleaseId | None, written_format: int) -> bool:
    """Return whether fields of a record exclude each other; *live* is its field, besides the states of its releases.

    Raises ReleaseNotFound if the canary is not among the releases.
    """
    canary = catalogue.canary_entry  # raises ReleaseNotFound
    live_ids = [entry.id for entry in catalogue.releases if entry.state is State.LIVE]
    expected_live_ids = [] if live is None else [live]
    if live_ids != expected_live_ids or not 1 <= catalogue.generation < 1 << 63:
        return True

    incarnations = {entry.incarnation for entry in catalogue.releases}
    if len(incarnations) != len(catalogue.releases):
        return True

    # Format 3 was written for erased users only, format 2 only without any.
    has_erased = catalogue.erased is not None
    if written_format < FORMAT and has_erased != (written_format == FORMAT_ERASED):
        return True

    if canary is None:
        return catalogue.running is not None  # arm B of an experiment is the canary
    # A canary is compared with a live release, and is another, committed one.
    return not live_ids or canary.state in (State.DRAFT, State.LIVE)


def _refusals_checksum(record: bytes) -> str:
    """Return the checksum over refused releases, as a pre-release of 0.3 wrote it. Raises msgspec.MsgspecError."""
    fields = msgspec.json.decode(record, type=_Refusals)
    refusals = [
        (entry.incarnation, entry.refused_by, *filter(None, [entry.canary_stopped]))
        for entry in fields.entries
        if entry.refused_by or entry.canary_stopped
    ]
    return xxh3_64_hexdigest(orjson.dumps(refusals))


def _checksum(catalogue: Catalogue, *, with_refusals: bool = True) -> str:
    """Return the checksum over the fields of a catalogue, in hexadecimal digits.

    Over values, not stored bytes: a store may reorder fields and write 1.0 as 1. Fields that earlier versions lacked
    count only if set, so that the checksums of their catalogues stay valid. Without *with_refusals*, the gates that
    refused a release do not count: a pre-release of 0.3 had another checksum for them.
    """
    fields = list[object](catalogue.version)
    canary = catalogue.canary
    fields.append(None if canary is None else (canary.release, float(canary.percent), canary.salt))
    fields.append([_checked_fields(entry, with_refusals=with_refusals) for entry in catalogue.releases])
    if catalogue.erased is not None:
        fields.append(catalogue.erased.stored)
    if catalogue.experiment is not None:
        fields.append(astuple(catalogue.experiment))
    return xxh3_64_hexdigest(orjson.dumps(fields))


def _checked_fields(entry: Release, *, with_refusals: bool) -> list[object]:
    fields: list[object] = [
        entry.id,
        entry.incarnation,
        entry.state,
        float(entry.created_at),
        entry.writer,
        None if entry.superseded_at is None else float(entry.superseded_at),
        None if entry.lease_until is None else float(entry.lease_until),
    ]
    if with_refusals and entry.refused_by:
        fields.append(entry.refused_by)
    return fields
