"""The catalogue: all control state of a store in one small record, and the pure functions that change it.

A change is a function from catalogue to catalogue; `hotplate.stores.lifecycle` applies it by compare-and-set. Releases
stand in the order of their last commit or activation. Every time is the store's (`Catalogue.now`), in seconds since the
epoch.

    draft → ready → live → superseded → dropping
                      └──→ withdrawn ──────┘        what a rollback or a repair left: never a rollback's target again

Beside the live release there may be a canary: a complete one that a share of the users see in its place, chosen by the
hash of each user's id. While it runs, no other release goes live but by a rollback, which ends it, or on request. It is
not pruned before it has ended.

People know a release by its id. Code that touches its data goes by its incarnation: each begin draws one, so a late
writer or eraser hits nothing but its own. Entries of one id may stand side by side: one that is being
erased and its successor, one that is served and the draft that repairs it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, NamedTuple, NewType

import msgspec
import orjson
from msgspec import Meta, Struct
from xxhash import xxh3_64_hexdigest

from hotplate.stores.errors import CanaryRunning, CatalogueUnreadable, ReleaseConflict, ReleaseNotFound

ReleaseId = NewType("ReleaseId", str)


class ReleaseRef(NamedTuple):
    """A release as a store is given it: *incarnation* names the physical data, *id* what people call it."""

    id: ReleaseId
    incarnation: str


class DraftRef(NamedTuple):
    """A draft and who may write it."""

    id: ReleaseId
    incarnation: str
    writer: str

    @property
    def release(self) -> ReleaseRef:
        """The release that the draft becomes."""
        return ReleaseRef(self.id, self.incarnation)


# A store from which users were erased has format 3: an older hotplate, which would serve them, refuses it.
FORMAT = 2
FORMAT_ERASED = 3

# How long a draft lives without its writer renewing the lease.
LEASE_S = 60.0

# How much further ahead than LEASE_S a lease may lie: clocks of two servers differ. Beyond it the clock was set back.
LEASE_SLACK_S = 30.0

# How long a release that is no longer live may still be read, by default.
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
    """One incarnation's control state; times in seconds by the store's clock."""

    id: ReleaseId
    incarnation: str
    """Names the physical data."""

    state: State
    created_at: float
    writer: str = ""
    """Who may write the draft, or wrote the release."""

    superseded_at: float | None = None
    lease_until: float | None = None
    refused_by: tuple[str, ...] = ()
    """The gates that keep it from going live, until somebody overrides that."""

    live_since: float | None = field(default=None, compare=False)
    """When it last went live; shown to people, and so in no checksum, which older versions would miss."""

    @property
    def ref(self) -> ReleaseRef:
        """What stores are given."""
        return ReleaseRef(self.id, self.incarnation)

    def lease_left_s(self, now: float) -> float:
        """Return for how long a draft's lease runs; 0 or less once it has lapsed.

        A lease further ahead than any writer takes is invalid: the clock was set back, and its writer would renew it.
        """
        left_s = (self.lease_until or 0.0) - now
        return left_s if left_s <= LEASE_S + LEASE_SLACK_S else 0.0


@dataclass(frozen=True, slots=True)
class Canary:
    """Which release a share of the users see in the place of the live one."""

    release: ReleaseId
    percent: Annotated[float, Meta(gt=0, lt=100)]

    salt: str
    """Hashed with each user's id. It is the release's id, so all tiers with this canary choose the same users."""


@dataclass(frozen=True, slots=True)
class Erased:
    """Which incarnation holds the record of erased users (`hotplate.stores.erasure`), and how many it names."""

    incarnation: str
    count: int


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The record itself: a value, and each change makes another."""

    store_id: str = ""
    generation: int = 0
    token: str = ""
    releases: tuple[Release, ...] = ()
    canary: Canary | None = None
    erased: Erased | None = None
    now: float = field(default=0.0, compare=False)
    """The store's clock at the read; not stored."""

    primary: bool = field(default=True, compare=False)
    """Whether it was read where swaps are made, and not from a replica that may be behind; not stored."""

    @property
    def distinct(self) -> tuple[Release, ...]:
        """The releases as people see them: without damaged or former copies that another entry of the id replaced."""
        left = (State.WITHDRAWN, State.DROPPING)
        kept = {entry.id for entry in self.releases if entry.state not in (*left, State.DRAFT)}
        return tuple(entry for entry in self.releases if entry.state not in left or entry.id not in kept)

    @property
    def version(self) -> tuple[str, int, str]:
        """What a swap compares."""
        return self.store_id, self.generation, self.token

    @property
    def live(self) -> ReleaseId | None:
        """The release that readers follow."""
        return None if (entry := self.live_entry) is None else entry.id

    @property
    def live_ref(self) -> ReleaseRef | None:
        """The release that readers follow, as stores are given it."""
        return None if (entry := self.live_entry) is None else entry.ref

    @property
    def live_entry(self) -> Release | None:
        """What is recorded of the release that readers follow."""
        return next((entry for entry in self.releases if entry.state is State.LIVE), None)

    @property
    def canary_entry(self) -> Release | None:
        """What is recorded of the canary's release."""
        return None if self.canary is None else self.find(self.canary.release)

    @property
    def served(self) -> tuple[ReleaseRef, ...]:
        """What readers hold: the live release and the canary, as far as there are any."""
        return tuple(entry.ref for entry in (self.live_entry, self.canary_entry) if entry is not None)

    def find(self, release: ReleaseId) -> Release:
        """Return the entry that an id stands for: what was committed last, or else the draft.

        Raises ReleaseNotFound if the id is unknown or being dropped.
        """
        found = [entry for entry in self.releases if entry.id == release and entry.state is not State.DROPPING]
        committed = [entry for entry in found if entry.state is not State.DRAFT]
        if not found:
            raise ReleaseNotFound(f"release {release} is not in this store; `hotplate releases list` shows what is")
        return (committed or found)[-1]

    def find_draft(self, release: ReleaseId) -> Release:
        """Return the draft of an id; ReleaseNotFound if there is nothing of that id, ReleaseConflict if no draft."""
        for entry in self.releases:
            if entry.id == release and entry.state is State.DRAFT:
                return entry
        raise ReleaseConflict(f"release {release} is not a draft any more, it is {self.find(release).state}")

    @property
    def incarnations(self) -> set[str]:
        """All that the catalogue names."""
        named = {entry.incarnation for entry in self.releases}
        return named if self.erased is None else named | {self.erased.incarnation}

    def entry(self, incarnation: str) -> Release | None:
        """Return the entry of an incarnation, in whatever state."""
        return next((entry for entry in self.releases if entry.incarnation == incarnation), None)


def follows(found: Catalogue, seen: Catalogue | None) -> bool:
    """Return whether a reader that has *seen* one catalogue should follow the one it *found*.

    Newer, rewritten after a failover (same generation, another token), or of a store that was rebuilt: yes. A stale
    read (lower generation of the same store) or an empty catalogue never un-serves anything: no. Nor is what a replica
    says of the same generation followed, once the primary has said otherwise.
    """
    if found.generation == 0:
        return False
    if seen is None or found.store_id != seen.store_id or found.generation > seen.generation:
        return True
    rewritten = found.generation == seen.generation and found.token != seen.token
    return rewritten and (found.primary or not seen.primary)


def newly_committed(old: Catalogue, new: Catalogue) -> list[ReleaseRef]:
    """Return what *new* has committed, or made live, and *old* had not: what must be whole where *new* is stored."""

    def is_newly_committed(entry: Release) -> bool:
        before = old.entry(entry.incarnation)
        is_committed = before is not None and before.state is State.DRAFT and entry.state is not State.DROPPING
        return (is_committed and entry.state is not State.DRAFT) or (
            entry.state is State.LIVE and old.live_ref != entry.ref
        )

    return [entry.ref for entry in new.releases if is_newly_committed(entry)]


def begin(catalogue: Catalogue, draft: DraftRef, *, repairs: str | None = None) -> Catalogue:
    """Add a draft with a lease, unless its writer has one; drafts whose lease has lapsed start to be dropped.

    The incarnation is one that was never begun, at each attempt another: that of one whose reply was lost may have been
    begun, and may be erased by now. Raises ReleaseConflict if its id is taken, but for the incarnation that it
    *repairs*: of that, `commit` takes the place.
    """
    if any((one.id, one.writer, one.state) == (draft.id, draft.writer, State.DRAFT) for one in catalogue.releases):
        return catalogue  # a swap whose reply was lost, of another incarnation
    remaining = _lapsed_dropped(catalogue)
    harmless = {State.DROPPING} if repairs is None else {State.DROPPING, State.WITHDRAWN}
    if any(
        entry.id == draft.id and entry.state not in harmless and entry.incarnation != repairs for entry in remaining
    ):
        raise ReleaseConflict(f"release {draft.id} exists already; publish again under a new id")
    entry = Release(
        draft.id,
        draft.incarnation,
        State.DRAFT,
        catalogue.now,
        draft.writer,
        lease_until=catalogue.now + LEASE_S,
    )
    return replace(catalogue, releases=(*remaining, entry))


def renew(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Extend a draft's lease by LEASE_S from now; ReleaseConflict if another writer has taken it over."""
    return _with(catalogue, replace(_owned(catalogue, draft), lease_until=catalogue.now + LEASE_S))


def end_lease(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Let a draft's lease lapse now: its writer stops, and another may go on."""
    return _with(catalogue, replace(_owned(catalogue, draft), lease_until=catalogue.now))


def take_over(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Make *draft*'s writer the owner of a draft whose lease has lapsed; ReleaseConflict while it runs."""
    entry = catalogue.entry(draft.incarnation)
    if entry is None or entry.state is not State.DRAFT:
        raise ReleaseConflict(f"release {draft.id} is not a draft any more; `hotplate releases list` shows what it is")
    if entry.writer == draft.writer:
        return catalogue  # a swap whose reply was lost
    left_s = entry.lease_left_s(catalogue.now)
    if left_s > 0:
        raise ReleaseConflict(
            f"release {draft.id} is being written by another process, whose lease runs for {left_s:.0f} s more; "
            f"wait until it is done, or, once that process is gone, until the lease has lapsed"
        )
    return _with(catalogue, replace(entry, writer=draft.writer, lease_until=catalogue.now + LEASE_S))


def commit(catalogue: Catalogue, draft: DraftRef, refused_by: tuple[str, ...] = ()) -> Catalogue:
    """Make a draft ready: complete, verified, not yet live; *refused_by* names the gates that failed.

    One that repairs takes the place of what it repairs.
    """
    entry = catalogue.entry(draft.incarnation)
    if entry is not None and entry.writer == draft.writer and entry.state not in (State.DRAFT, State.DROPPING):
        return catalogue  # a swap whose reply was lost
    ready = replace(_owned(catalogue, draft), state=State.READY, lease_until=None, refused_by=refused_by)
    others = [other for other in catalogue.releases if other.incarnation != draft.incarnation]
    for place, other in enumerate(others):
        if other.id == draft.id and other.state not in (State.DRAFT, State.DROPPING, State.WITHDRAWN):
            repaired = replace(
                other,
                incarnation=ready.incarnation,
                created_at=ready.created_at,
                writer=ready.writer,
            )
            damaged = replace(other, state=State.WITHDRAWN, superseded_at=catalogue.now)
            return replace(catalogue, releases=(*others[:place], damaged, repaired, *others[place + 1 :]))
    return replace(catalogue, releases=(*others, ready))


def activate(catalogue: Catalogue, release: ReleaseId, *, end_canary: bool = False) -> Catalogue:
    """Make a committed release live; the one that was live is superseded now.

    Raises CanaryRunning while another release is the canary: with *end_canary* it ends instead.
    """
    entry, canary = catalogue.find(release), catalogue.canary
    if entry.state is State.LIVE:
        return catalogue
    if entry.state is State.DRAFT:
        raise ReleaseConflict(f"release {release} is still being written; activate it once it is committed")
    if canary is not None and canary.release != release and not end_canary:
        raise CanaryRunning(
            f"release {canary.release} is the canary, of {canary.percent:g} %, so {release} stays {entry.state}; "
            f"promote or abort the canary first, or end it with --end-canary"
        )
    return _live(_retire(_without_canary(catalogue), State.SUPERSEDED), replace(entry, refused_by=()))


def start_canary(catalogue: Catalogue, release: ReleaseId, percent: float) -> Catalogue:
    """Show a committed release to *percent* of the users, or change the share of the one that is shown.

    A user who is among 5 % is among 10 % of the same release, too. Raises ReleaseConflict for a draft, for what is
    live, if nothing is, and while another release is the canary.
    """
    entry, canary = catalogue.find(release), catalogue.canary
    if entry.state is State.DRAFT:
        raise ReleaseConflict(f"release {release} is still being written; it can be the canary once it is committed")
    if entry.state is State.LIVE:
        raise ReleaseConflict(f"release {release} is live, so all users see it; name another as the canary")
    if catalogue.live is None:
        raise ReleaseConflict("nothing is live that a canary could be compared with; activate a release first")
    if canary is not None and canary.release != release:
        raise ReleaseConflict(
            f"release {canary.release} is the canary, of {canary.percent:g} %; promote or abort it before another"
        )
    return replace(catalogue, canary=Canary(release, percent, salt=release))


def promote(catalogue: Catalogue, expected: ReleaseId) -> Catalogue:
    """Make the canary live; ReleaseConflict if *expected*, which the operator saw, is not the canary any more."""
    return activate(_with_canary(catalogue, expected), expected)


def abort(catalogue: Catalogue, expected: ReleaseId) -> Catalogue:
    """End the canary, so all users see the live release; ReleaseConflict as for `promote`.

    Its release stays ready. It counts as having left service now, so those who still read it have their grace.
    """
    return _without_canary(_with_canary(catalogue, expected))


def rollback(catalogue: Catalogue, expected: ReleaseId) -> Catalogue:
    """Withdraw the live release and make the one that was live before it live again; a canary ends.

    *expected* is the release that the operator saw live: ReleaseConflict if another went live since.
    """
    if catalogue.live != expected:
        raise ReleaseConflict(f"release {expected} is no longer live; see what is, before you roll back")
    previous = _superseded_before_live(catalogue)
    if not previous:
        raise ReleaseNotFound(
            "there is no earlier release to roll back to; `hotplate releases list` shows the releases"
        )
    return _live(_retire(_without_canary(catalogue), State.WITHDRAWN), previous[-1])


def prune(
    catalogue: Catalogue,
    keep: int = 1,
    grace_s: float = GRACE_S,
    keep_ready_s: float | None = None,
    present: Collection[str] = (),
) -> Catalogue:
    """Mark as `dropping` what is not needed: lapsed drafts, and what is neither live, nor kept, nor within its grace.

    And what no entry names of the incarnations that were *present* before the catalogue was read: their writers died,
    or lost them, because an incarnation is in the catalogue before it has data. That the swap succeeds proves it
    current.

    Kept are the live release, the canary, the *keep* that were live before, and ready ones, which somebody may still
    activate: for ever, or until they were begun *keep_ready_s* ago.
    """
    kept = {entry.incarnation for entry in _superseded_before_live(catalogue)[-keep:]} if keep else set[str]()
    if (canary := catalogue.canary_entry) is not None:
        kept.add(canary.incarnation)

    def is_unneeded(entry: Release) -> bool:
        if entry.incarnation in kept or (entry.superseded_at or 0.0) + grace_s > catalogue.now:
            return False
        if entry.state is State.READY:
            return keep_ready_s is not None and entry.created_at + keep_ready_s <= catalogue.now
        return entry.state in (State.SUPERSEDED, State.WITHDRAWN)

    entries = [
        replace(entry, state=State.DROPPING) if is_unneeded(entry) else entry for entry in _lapsed_dropped(catalogue)
    ]
    unknown = sorted(set(present) - catalogue.incarnations)
    entries += [
        Release(ReleaseId(f"unknown-{incarnation}"), incarnation, State.DROPPING, catalogue.now)
        for incarnation in unknown
    ]
    return replace(catalogue, releases=tuple(entries))


def abandon(catalogue: Catalogue, draft: DraftRef) -> Catalogue:
    """Give a draft up at once, rather than when its lease lapses; ReleaseConflict if another owns it."""
    return _with(catalogue, replace(_owned(catalogue, draft), state=State.DROPPING, lease_until=None))


def forget(catalogue: Catalogue, release: ReleaseRef) -> Catalogue:
    """Take a dropped release, whose rows are erased, out of the record."""
    return replace(
        catalogue,
        releases=tuple(
            entry
            for entry in catalogue.releases
            if entry.incarnation != release.incarnation or entry.state is not State.DROPPING
        ),
    )


def succeed(old: Catalogue, new: Catalogue, token: str, store_id: str) -> Catalogue:
    """Stamp *new* as the successor of *old*; *store_id* names the store at its very first change."""
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
    return replace(
        catalogue,
        releases=tuple(
            replace(entry, state=state, superseded_at=catalogue.now) if entry.state is State.LIVE else entry
            for entry in catalogue.releases
        ),
    )


def _with_canary(catalogue: Catalogue, expected: ReleaseId) -> Catalogue:
    """Return a catalogue as it is, whose canary is *expected*; ReleaseConflict for any other."""
    if catalogue.canary is None or catalogue.canary.release != expected:
        raise ReleaseConflict(f"release {expected} is not the canary any more; `hotplate releases list` shows what is")
    return catalogue


def _without_canary(catalogue: Catalogue) -> Catalogue:
    if (entry := catalogue.canary_entry) is None:
        return catalogue
    return replace(_with(catalogue, replace(entry, superseded_at=catalogue.now)), canary=None)


def _with(catalogue: Catalogue, changed: Release) -> Catalogue:
    return replace(
        catalogue,
        releases=tuple(changed if entry.incarnation == changed.incarnation else entry for entry in catalogue.releases),
    )


def _live(catalogue: Catalogue, entry: Release) -> Catalogue:
    """Make *entry* live, and the last one, in the place of what was retired."""
    others = (other for other in catalogue.releases if other.incarnation != entry.incarnation)
    changed = replace(entry, state=State.LIVE, superseded_at=None, live_since=catalogue.now)
    return replace(catalogue, releases=(*others, changed))


class RecordFormat(Struct):
    """The number of the format that a stored record is in; read before the rest of it."""

    format: int


class _Record(Struct):
    """A stored catalogue, but for its format."""

    store_id: str
    generation: int
    token: str
    live: ReleaseId | None
    canary: Canary | None
    entries: tuple[Release, ...]
    checksum: str
    refusals: str | None = None
    erased: Erased | None = None


def dump(catalogue: Catalogue) -> bytes:
    """Render a catalogue for storage; what belongs to one read stays behind."""
    return orjson.dumps(
        {
            "format": FORMAT if catalogue.erased is None else FORMAT_ERASED,
            "store_id": catalogue.store_id,
            "generation": catalogue.generation,
            "token": catalogue.token,
            "live": catalogue.live,
            "canary": catalogue.canary,
            "entries": catalogue.releases,
            "checksum": _checksum(catalogue),
            "refusals": _sum_refusals(catalogue.releases),
            **({} if catalogue.erased is None else {"erased": catalogue.erased}),
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def parse(record: bytes, *, now: float, where: str) -> Catalogue:
    """Read a stored catalogue back; CatalogueUnreadable, naming *where*, for anything that is not one."""

    def unreadable(reason: str) -> CatalogueUnreadable:
        advice = "`hotplate store rebuild` writes a new one from the releases that the store holds"
        return CatalogueUnreadable(f"the catalogue at {where} {reason}; {advice}", record, now)

    try:
        written = msgspec.json.decode(record, type=RecordFormat).format
        if written > FORMAT_ERASED:
            raise CatalogueUnreadable(
                f"the catalogue at {where} has format {written} and this hotplate reads {FORMAT_ERASED}; upgrade "
                f"hotplate"
            )
        if written < FORMAT:
            raise CatalogueUnreadable(
                f"the catalogue at {where} has format {written}, of hotplate 0.1, and this hotplate reads {FORMAT}; "
                f"publish into a new store"
            )
        found = msgspec.json.decode(record, type=_Record)
        catalogue = Catalogue(
            found.store_id, found.generation, found.token, found.entries, found.canary, found.erased, now
        )
        canary = catalogue.canary_entry
    except (msgspec.MsgspecError, ValueError, RecursionError, ReleaseNotFound) as error:
        raise unreadable(f"cannot be read: {error}") from error
    living = [entry.id for entry in catalogue.releases if entry.state is State.LIVE]
    incarnations = {entry.incarnation for entry in catalogue.releases}
    if (
        not 1 <= catalogue.generation < 1 << 63
        or living != ([found.live] if found.live else [])
        or len(incarnations) != len(catalogue.releases)
        or (written == FORMAT_ERASED) != (catalogue.erased is not None)
        or (canary is not None and (canary.state in (State.DRAFT, State.LIVE) or not living))
    ):
        raise unreadable("contradicts itself")
    if (found.checksum, found.refusals) != (_checksum(catalogue), _sum_refusals(catalogue.releases)):
        raise unreadable("is damaged: its checksum is wrong")
    return catalogue


def _checksum(catalogue: Catalogue) -> str:
    """Sum up what is stored of a catalogue; a store may change the order of its fields, and write 1.0 as 1."""
    canary = catalogue.canary
    entries = [
        (
            entry.id,
            entry.incarnation,
            entry.state,
            float(entry.created_at),
            entry.writer,
            _optional_time(entry.superseded_at),
            _optional_time(entry.lease_until),
        )
        for entry in catalogue.releases
    ]
    shown = None if canary is None else (canary.release, float(canary.percent), canary.salt)
    erased = () if catalogue.erased is None else ((catalogue.erased.incarnation, catalogue.erased.count),)
    return xxh3_64_hexdigest(orjson.dumps((*catalogue.version, shown, entries, *erased)))


def _sum_refusals(entries: Iterable[Release]) -> str | None:
    """Sum up what gates refused; apart, so hotplate 0.2 reads a catalogue without it."""
    found = [(entry.incarnation, entry.refused_by) for entry in entries if entry.refused_by]
    return xxh3_64_hexdigest(orjson.dumps(found)) if found else None


def _optional_time(value: float | None) -> float | None:
    return None if value is None else float(value)
