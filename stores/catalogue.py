"""The catalogue: the control state of a store in one small record, as an immutable value.

Releases are in the order of their last commit or activation. Times are epoch seconds by the store's clock. A swap
replaces the record only if it still has the generation and the token that were read: the generation counts changes,
and each change draws a new token. `hotplate.stores.transitions` changes a catalogue, `hotplate.stores.catalogue_record`
encodes it.

Ids are for people; data are named by incarnations. Each new draft draws one, so late writers and erasers of another
draft cannot touch its data. A served release and the draft that repairs it share an id.

A canary is a release that a share of the users see instead of the live one. An experiment compares both for some days:
its arm A is the live release, its arm B the canary, and each may get newer releases until the end.
"""

from dataclasses import astuple, dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, NewType

from msgspec import Meta
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from hotplate.stores.errors import HeldBack, ReleaseConflict, ReleaseNotFound

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


LEASE_S = 60.0

# Accepted clock skew; a longer lease is invalid: the clock was set back.
LEASE_SLACK_S = 30.0

# How long a release can be read after it left service.
GRACE_S = 600.0

# How long a draft can be resumed after its lease has lapsed.
DRAFT_GRACE_S = 6 * 3600.0


class State(StrEnum):
    """The state of a release.

    DRAFT       being written, by the process with the writer's token, which renews a lease; once that lapses, another
                process may take it over, and after DRAFT_GRACE_S `prune` marks it
    READY       complete: committed by its writer, but not live
    LIVE        served; at most one release
    SUPERSEDED  replaced by an activation; a rollback returns to the last one
    WITHDRAWN   replaced by a rollback, a repair, a restore or a newer release of arm B; never a rollback's target
    DROPPING    its data are being erased
    """

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

    *last* is the number of its last part, *token* drawn for each change, but for accepted losses.
    """

    count: int
    last: int
    token: str

    @property
    def token_of_acceptance(self) -> str:
        """The token of the next entry if that accepts the loss of users.

        By it, readers of both entries tell a lower count that was accepted from that of older data.
        """
        return xxh3_64_hexdigest(repr(astuple(self)).encode())


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
        """The releases, without withdrawn and dropping entries of an id that also has a committed, current entry."""
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
        """The experiment, unless it has ended."""
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
        """All incarnations."""
        return {entry.incarnation for entry in self.releases}

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
