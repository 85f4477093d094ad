"""The catalogue: the control state of a store in one small record, and pure functions that change it.

Releases are in the order of their last commit or activation. Times are epoch seconds by the store's clock.

    draft → ready → live → superseded → dropping
                      └──→ withdrawn ──────┘        left by a rollback or a repair; never a rollback's target

Ids are for people; data are named by incarnations. Each new draft draws one, so late writers and erasers of another
draft cannot touch its data. A served release and the draft that repairs it share an id.
"""

from collections.abc import Collection
from dataclasses import astuple, dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, NewType

import msgspec
import orjson
from msgspec import Meta, Struct
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from hotplate.stores.errors import CanaryRunning, CatalogueUnreadable, HeldBack, ReleaseConflict, ReleaseNotFound

ReleaseId = NewType("ReleaseId", str)

# Of an experiment: A is the live release, B the canary.
Arm = Literal["A", "B"]


class ReleaseRef(NamedTuple):
    """A release; *incarnation* names the physical data."""

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

    *refused_by* names failed gates, or says why services withdrew it; both keep it from going live unless overridden.
    *live_since* is for display only.
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
        left = (State.WITHDRAWN, State.DROPPING)
        kept = {entry.id for entry in self.releases if entry.state not in (*left, State.DRAFT)}
        return tuple(entry for entry in self.releases if entry.state not in left or entry.id not in kept)

    @property
    def version(self) -> tuple[str, int, str]:
        """The values that a swap compares."""
        return self.store_id, self.generation, self.token

    @property
    def live(self) -> ReleaseId | None:
        """The release that readers follow."""
        return None if (entry := self.live_entry) is None else entry.id

    @property
    def live_ref(self) -> ReleaseRef | None:
        """The id and the incarnation of the live release."""
        return None if (entry := self.live_entry) is None else entry.ref

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
        """The running experiment."""
        return None if self.experiment is None or self.experiment.ended_at is not None else self.experiment

    def ref_of(self, arm: Arm) -> ReleaseRef | None:
        """Return an arm's release; HeldBack for B if no experiment is running."""
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
        if (entry := self.get(release)) is None:
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
        named = {entry.incarnation for entry in self.releases}
        return named | {self.erased.incarnation} if self.erased is not None and self.erased.incarnation else named

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


def begin(catalogue: Catalogue, draft: DraftRef, *, repairs: str | None = None) -> Catalogue:
    """Add a draft with a lease, and mark lapsed drafts as `dropping`; ReleaseConflict if the id is taken.

    *repairs* is the incarnation that `commit` replaces.
    """
    for one in catalogue.releases:
        if (one.id, one.writer, one.state) == (draft.id, draft.writer, State.DRAFT):  # begun by an earlier attempt
            return renew(catalogue, draft._replace(incarnation=one.incarnation))
    remaining = _lapsed_dropped(catalogue)
    harmless = {State.DROPPING} if repairs is None else {State.DROPPING, State.WITHDRAWN}
    taken = (entry for entry in remaining if entry.id == draft.id and entry.incarnation != repairs)
    if any(entry.state not in harmless for entry in taken):
        raise ReleaseConflict(f"release {draft.id} exists already; publish again under a new id")
    lease_until = catalogue.now + LEASE_S
    entry = Release(*draft.release, State.DRAFT, catalogue.now, draft.writer, lease_until=lease_until)
    return replace(catalogue, releases=(*remaining, entry))


def renew(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Renew a draft's lease; ReleaseConflict if another writer has taken it over."""
    return _with(catalogue, replace(_owned(catalogue, draft), lease_until=catalogue.now + LEASE_S))


def end_lease(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Let a draft's lease lapse now."""
    return _with(catalogue, replace(_owned(catalogue, draft), lease_until=catalogue.now))


def take_over(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Make *draft*'s writer the owner of a draft; ReleaseConflict while another writer's lease runs."""
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
    return _with(catalogue, replace(entry, writer=draft.writer, lease_until=catalogue.now + LEASE_S))


def commit(catalogue: Catalogue, draft: DraftRef, refused_by: tuple[str, ...] = ()) -> Catalogue:
    """Make a verified draft ready; a repair replaces the damaged entry."""
    entry = catalogue.entry(draft.incarnation)
    if entry is not None and entry.writer == draft.writer and entry.state not in (State.DRAFT, State.DROPPING):
        return catalogue  # done by an earlier attempt
    ready = replace(_owned(catalogue, draft), state=State.READY, lease_until=None, refused_by=refused_by)
    others = [other for other in catalogue.releases if other.incarnation != draft.incarnation]
    for place, other in enumerate(others):
        if other.id == draft.id and other.state not in (State.DRAFT, State.DROPPING, State.WITHDRAWN):
            repaired = replace(other, incarnation=ready.incarnation, created_at=ready.created_at, writer=ready.writer)
            damaged = replace(other, state=State.WITHDRAWN, superseded_at=catalogue.now)
            return replace(catalogue, releases=(*others[:place], damaged, repaired, *others[place + 1 :]))
    return replace(catalogue, releases=(*others, ready))


def activate(catalogue: Catalogue, release: ReleaseId, *, arm: Arm = "A", end_canary: bool = False) -> Catalogue:
    """Make a committed release live, or that of arm B.

    Raises CanaryRunning while another is the canary, unless *end_canary* is true, or it is arm B, which goes on. For
    arm B, raises HeldBack if no experiment is running, and ReleaseConflict for the live release.
    """
    entry = catalogue.find(release)
    canary = catalogue.canary
    if entry.state is State.DRAFT:
        raise ReleaseConflict(f"release {release} is still being written; activate it once it is committed")
    if arm == "B":
        return _renew_arm_b(catalogue, entry)
    if entry.state is State.LIVE:
        return catalogue
    if canary is not None and canary.release != release and not end_canary and catalogue.running is None:
        raise CanaryRunning(
            f"release {canary.release} is the canary, of {canary.percent:g} %, so {release} stays {entry.state}; "
            f"promote or abort the canary first, or end it with `hotplate releases activate {release} --end-canary`"
        )
    return _live(catalogue, replace(entry, refused_by=()), State.SUPERSEDED, end_canary=end_canary)


def start_canary(catalogue: Catalogue, release: ReleaseId, percent: float, days: float | None = None) -> Catalogue:
    """Show a committed release to *percent* of the users, or change the canary's share.

    With *days*, this starts an experiment, whose share is fixed. Raises ReleaseConflict for a draft or the live
    release, if nothing is live, while another is the canary, and while an experiment is running.
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
    started = replace(catalogue, canary=Canary(release, percent, salt=release))
    now = float(catalogue.now)
    if days is None:
        return started
    return replace(started, experiment=Experiment(release, float(percent), now, now + days * 86_400))


def promote(catalogue: Catalogue, expected: ReleaseId) -> Catalogue:
    """Make the canary live; ReleaseConflict if *expected* is no longer the canary."""
    return activate(_with_canary(catalogue, expected), expected)


def abort(catalogue: Catalogue, expected: ReleaseId) -> Catalogue:
    """End the canary, which stays ready; ReleaseConflict if it is not *expected*."""
    return _without_canary(_with_canary(catalogue, expected))


def rollback(catalogue: Catalogue, expected: ReleaseId, reason: str = "") -> Catalogue:
    """Withdraw the live release, restore the one before it, and end a canary, but not an experiment.

    With a *reason*, the withdrawn release is refused. Raises ReleaseConflict if *expected* is not live.
    """
    if catalogue.live != expected:
        raise ReleaseConflict(f"release {expected} is no longer live; see what is, before you roll back")
    previous = _superseded_before_live(catalogue)
    if not previous:
        raise ReleaseNotFound(
            "there is no earlier release to roll back to; `hotplate releases list` shows the releases"
        )
    restored = _live(catalogue, previous[-1], State.WITHDRAWN)
    if not reason:
        return restored
    return replace(
        restored,
        releases=tuple(
            replace(entry, refused_by=(reason,)) if entry.ref == catalogue.live_ref else entry
            for entry in restored.releases
        ),
    )


def prune(
    catalogue: Catalogue,
    keep: int = 1,
    grace_s: float = GRACE_S,
    keep_ready_s: float | None = None,
    present: Collection[str] = (),
) -> Catalogue:
    """Mark lapsed drafts, and releases that are neither live nor kept and past their grace, as `dropping`.

    Also incarnations without an entry that were *present* before the catalogue was read, as entries precede data. Kept
    are the canary, arm B's previous release, the *keep* releases live before, and ready ones: always, or for
    *keep_ready_s*.
    """
    kept = {entry.incarnation for entry in _superseded_before_live(catalogue)[-keep:]} if keep else set[str]()
    if (canary := catalogue.canary_entry) is not None:
        kept.add(canary.incarnation)
    if catalogue.running is not None:
        kept.add(catalogue.running.previous)

    def is_unneeded(entry: Release) -> bool:
        if entry.incarnation in kept or (entry.superseded_at or 0.0) + grace_s > catalogue.now:
            return False
        if entry.state is State.READY:
            return keep_ready_s is not None and entry.created_at + keep_ready_s <= catalogue.now
        return entry.state in (State.SUPERSEDED, State.WITHDRAWN)

    entries = [
        replace(entry, state=State.DROPPING) if is_unneeded(entry) else entry for entry in _lapsed_dropped(catalogue)
    ]
    entries += [
        Release(ReleaseId(f"unknown-{incarnation}"), incarnation, State.DROPPING, catalogue.now)
        for incarnation in sorted(set(present) - catalogue.incarnations)
    ]
    return replace(catalogue, releases=tuple(entries))


def abandon(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Mark a draft as `dropping`; ReleaseConflict if another writer owns it."""
    return _with(catalogue, replace(_owned(catalogue, draft), state=State.DROPPING, lease_until=None))


def forget(catalogue: Catalogue, release: ReleaseRef) -> Catalogue:
    """Remove an erased, `dropping` release."""
    erased = (release.incarnation, State.DROPPING)
    kept = (entry for entry in catalogue.releases if (entry.incarnation, entry.state) != erased)
    return replace(catalogue, releases=tuple(kept))


def succeed(old: Catalogue, new: Catalogue, token: str, store_id: str) -> Catalogue:
    """Stamp *new* as the successor of *old*; *store_id* is for the first change."""
    return replace(new, store_id=old.store_id or store_id, generation=old.generation + 1, token=token)


def _owned(catalogue: Catalogue, draft: DraftRef) -> Release:
    entry = catalogue.entry(draft.incarnation)
    if entry is None:
        raise ReleaseNotFound(f"release {draft.id} was dropped, for its writer's lease had lapsed; publish again")
    if entry.state is not State.DRAFT:
        raise ReleaseConflict(f"release {draft.id} is not a draft any more, it is {entry.state}")
    if entry.writer != draft.writer:
        raise ReleaseConflict(f"release {draft.id} was taken over by another writer once the lease had lapsed")
    return entry


def _superseded_before_live(catalogue: Catalogue) -> list[Release]:
    before = list[Release]()
    for entry in catalogue.releases:
        if entry.state is State.LIVE:
            return before
        if entry.state is State.SUPERSEDED:
            before.append(entry)
    return []


def _lapsed_dropped(catalogue: Catalogue) -> tuple[Release, ...]:
    return tuple(
        replace(entry, state=State.DROPPING, lease_until=None)
        if entry.state is State.DRAFT and entry.lease_left_s(catalogue.now) <= 0
        else entry
        for entry in catalogue.releases
    )


def _retire(catalogue: Catalogue, state: State) -> Catalogue:
    if (live := catalogue.live_entry) is None:
        return catalogue
    return _with(catalogue, replace(live, state=state, superseded_at=catalogue.now))


def _with_canary(catalogue: Catalogue, expected: ReleaseId) -> Catalogue:
    if catalogue.canary is None or catalogue.canary.release != expected:
        raise ReleaseConflict(f"release {expected} is not the canary any more; `hotplate releases list` shows what is")
    return catalogue


def _without_canary(catalogue: Catalogue) -> Catalogue:
    if (entry := catalogue.canary_entry) is None:
        return catalogue
    running = catalogue.running
    experiment = catalogue.experiment if running is None else replace(running, ended_at=catalogue.now)
    changed = _with(catalogue, replace(entry, superseded_at=catalogue.now))
    return replace(changed, canary=None, experiment=experiment)


def _renew_arm_b(catalogue: Catalogue, entry: Release) -> Catalogue:
    catalogue.ref_of("B")
    before = catalogue.canary_entry
    canary = catalogue.canary
    running = catalogue.running
    if entry.state is State.LIVE:
        raise ReleaseConflict(f"release {entry.id} is live, as that of arm A; publish another for arm B")
    if before is None or canary is None or running is None or before.id == entry.id:
        return catalogue
    left = State.WITHDRAWN if before.state is State.READY else before.state  # no target of a rollback
    chosen = State.READY if entry.state is State.WITHDRAWN else entry.state
    changed = _with(catalogue, replace(before, state=left, superseded_at=catalogue.now))
    renewed = replace(running, previous=before.incarnation)
    return replace(
        _with(changed, replace(entry, state=chosen)), canary=replace(canary, release=entry.id), experiment=renewed
    )


def _with(catalogue: Catalogue, changed: Release) -> Catalogue:
    return replace(
        catalogue,
        releases=tuple(changed if entry.incarnation == changed.incarnation else entry for entry in catalogue.releases),
    )


def _live(catalogue: Catalogue, entry: Release, left: State, *, end_canary: bool = False) -> Catalogue:
    goes_on = catalogue.running is not None and catalogue.served[-1].id != entry.id and not end_canary
    retired = _retire(catalogue if goes_on else _without_canary(catalogue), left)
    others = (other for other in retired.releases if other.incarnation != entry.incarnation)
    changed = replace(entry, state=State.LIVE, superseded_at=None, live_since=catalogue.now)
    return replace(retired, releases=(*others, changed))


class RecordFormat(Struct):
    """The format number of a stored record."""

    format: int


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
    """Of a pre-release of 0.3: the checksum of the refusals, which the other one leaves out."""

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
    """Encode a catalogue for storage."""
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
    """Decode a stored catalogue; CatalogueUnreadable, naming *where*, if it is invalid."""

    def unreadable(reason: str) -> CatalogueUnreadable:
        advice = "`hotplate store rebuild` writes a new one from the releases that the store holds"
        return CatalogueUnreadable(f"the catalogue at {where} {reason}; {advice}", record, now)

    try:
        written = msgspec.json.decode(record, type=RecordFormat).format  # first: others may have other fields
        if written > FORMAT:
            raise CatalogueUnreadable(
                f"the catalogue at {where} was written by a newer hotplate: it has format {written}, and this one "
                f"reads {FORMAT}; upgrade hotplate, services before publishers"
            )
        if written < FORMAT_PLAIN:
            raise CatalogueUnreadable(
                f"the catalogue at {where} has format {written}, which this hotplate reads no more; publish into a new "
                f"store"
            )
        fields = msgspec.json.decode(record, type=_Record)
        catalogue = fields.catalogue(now)
        is_contradictory = _is_contradictory(catalogue, live=fields.live, written=written)
    except (msgspec.MsgspecError, ValueError, RecursionError, ReleaseNotFound) as error:
        raise unreadable(f"cannot be read: {error}") from error
    if is_contradictory:
        raise unreadable("contradicts itself")
    is_split = fields.refusals is not None and written == FORMAT_PLAIN
    if fields.checksum != _checksum(catalogue, with_refusals=not is_split):
        raise unreadable("is damaged: its checksum is wrong")
    if is_split and fields.refusals != _refusals_checksum(msgspec.json.decode(record, type=_Refusals)):
        raise unreadable("is damaged: the checksum of its refusals is wrong")
    return catalogue


def _is_contradictory(catalogue: Catalogue, *, live: ReleaseId | None, written: int) -> bool:
    """Return whether fields of a record in the format *written* exclude each other; ReleaseNotFound for the canary."""
    canary = catalogue.canary_entry
    living = [entry.id for entry in catalogue.releases if entry.state is State.LIVE]
    incarnations = {entry.incarnation for entry in catalogue.releases}
    return (
        not 1 <= catalogue.generation < 1 << 63
        or living != ([live] if live else [])
        or len(incarnations) != len(catalogue.releases)
        or (written < FORMAT and (written == FORMAT_ERASED) != (catalogue.erased is not None))
        or (canary is not None and (canary.state in (State.DRAFT, State.LIVE) or not living))
        or (catalogue.running is not None and canary is None)
    )


def _refusals_checksum(fields: _Refusals) -> str:
    refusals = [
        (entry.incarnation, entry.refused_by, *filter(None, [entry.canary_stopped]))
        for entry in fields.entries
        if entry.refused_by or entry.canary_stopped
    ]
    return xxh3_64_hexdigest(orjson.dumps(refusals))


def _checksum(catalogue: Catalogue, *, with_refusals: bool = True) -> str:
    # Over values, not stored bytes: a store may reorder fields and write 1.0 as 1.
    canary = catalogue.canary
    entries = [
        (
            entry.id,
            entry.incarnation,
            entry.state,
            float(entry.created_at),
            entry.writer,
            None if entry.superseded_at is None else float(entry.superseded_at),
            None if entry.lease_until is None else float(entry.lease_until),
            *filter(None, [entry.refused_by if with_refusals else ()]),  # hotplate 0.2 had none
        )
        for entry in catalogue.releases
    ]
    shown = None if canary is None else (canary.release, float(canary.percent), canary.salt)
    erased = () if catalogue.erased is None else (catalogue.erased.stored,)
    tried = () if catalogue.experiment is None else (astuple(catalogue.experiment),)
    return xxh3_64_hexdigest(orjson.dumps((*catalogue.version, shown, entries, *erased, *tried)))
