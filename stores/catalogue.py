"""The catalogue: all control state of a store in one small record, and the pure functions that change it.

A change is a function from catalogue to catalogue; `stores.lifecycle` applies it by compare-and-set. Releases stand in
the order of their last commit or activation. Every time is the store's (`Catalogue.now`), in seconds since the epoch.

    draft → ready → live → superseded → dropping
                      └──→ withdrawn ──────┘        what a rollback left: never a rollback's target again
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple, NewType, TypeVar

import orjson

from stores.errors import CatalogueUnreadable, ReleaseConflict, ReleaseNotFound

T = TypeVar("T")

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


# How long a draft lives without its writer renewing the lease.
LEASE_S = 60.0

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
    """One release's control state; times in seconds by the store's clock."""

    id: ReleaseId
    state: State
    created_at: float
    superseded_at: float | None = None
    lease_until: float | None = None

    @property
    def ref(self) -> ReleaseRef:
        """What stores are given; in catalogues of format 1 the id itself names the physical data."""
        return ReleaseRef(self.id, self.id)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The record itself; a value, made anew by each change. `now` is the store's clock at the read, and not stored."""

    store_id: str = ""
    generation: int = 0
    token: str = ""
    releases: tuple[Release, ...] = ()
    now: float = field(default=0.0, compare=False)

    @property
    def version(self) -> tuple[str, int, str]:
        """What a swap compares."""
        return self.store_id, self.generation, self.token

    @property
    def live(self) -> ReleaseId | None:
        """The release that readers follow."""
        return next((release.id for release in self.releases if release.state is State.LIVE), None)

    @property
    def live_ref(self) -> ReleaseRef | None:
        """The release that readers follow, as stores are given it."""
        return next((release.ref for release in self.releases if release.state is State.LIVE), None)

    def find(self, release: ReleaseId) -> Release:
        """Return the entry of *release*; ReleaseNotFound where it is unknown or being dropped."""
        for entry in self.releases:
            if entry.id == release and entry.state is not State.DROPPING:
                return entry
        raise ReleaseNotFound(f"release {release} is not in this store; `hotplate releases list` shows what is")


def follows(found: Catalogue, seen: Catalogue | None) -> bool:
    """Return whether a reader that has *seen* one catalogue should follow the one it *found*.

    Newer, rewritten after a failover (same generation, another token), or of a store made anew: yes. A stale read
    (lower generation of the same store) or an empty catalogue never un-serves anything: no.
    """
    if found.generation == 0:
        return False
    if seen is None or found.store_id != seen.store_id or found.generation > seen.generation:
        return True
    return found.generation == seen.generation and found.token != seen.token


def begin(catalogue: Catalogue, release: ReleaseId) -> Catalogue:
    """Add a draft with a lease; drafts whose lease has lapsed start to be dropped."""
    if any(entry.id == release for entry in catalogue.releases):
        raise ReleaseConflict(f"release {release} exists already; publish again under a new id")
    draft = Release(release, State.DRAFT, catalogue.now, lease_until=catalogue.now + LEASE_S)
    return replace(catalogue, releases=(*_lapsed_dropped(catalogue), draft))


def renew(catalogue: Catalogue, release: ReleaseId) -> Catalogue:
    """Extend a draft's lease by LEASE_S from now."""
    return _with(catalogue, replace(_draft(catalogue, release), lease_until=catalogue.now + LEASE_S))


def commit(catalogue: Catalogue, release: ReleaseId) -> Catalogue:
    """Make a draft ready: complete, verified, not yet live."""
    return _last(catalogue, replace(_draft(catalogue, release), state=State.READY, lease_until=None))


def activate(catalogue: Catalogue, release: ReleaseId) -> Catalogue:
    """Make a committed release live; the one that was live is superseded now."""
    entry = catalogue.find(release)
    if entry.state is State.LIVE:
        return catalogue
    if entry.state is State.DRAFT:
        raise ReleaseConflict(f"release {release} is still being written; activate it once it is committed")
    return _last(_retire(catalogue, State.SUPERSEDED), replace(entry, state=State.LIVE, superseded_at=None))


def rollback(catalogue: Catalogue, expected: ReleaseId) -> Catalogue:
    """Withdraw the live release and make the one that was live before it live again.

    *expected* is the release that the operator saw live: ReleaseConflict where another went live meanwhile.
    """
    if catalogue.live != expected:
        raise ReleaseConflict(f"release {expected} is no longer live; see what is, before you roll back")
    previous = _superseded_before_live(catalogue)
    if not previous:
        raise ReleaseNotFound(
            "there is no earlier release to roll back to; `hotplate releases list` shows the releases"
        )
    return _last(_retire(catalogue, State.WITHDRAWN), replace(previous[-1], state=State.LIVE, superseded_at=None))


def prune(catalogue: Catalogue, keep: int = 1, grace_s: float = GRACE_S) -> Catalogue:
    """Mark as `dropping` what nobody needs: lapsed drafts, and what is neither live, nor kept, nor within its grace.

    Kept are the live release, the *keep* that were live before it, and ready ones that may still go live next.
    """
    live = next((index for index, entry in enumerate(catalogue.releases) if entry.state is State.LIVE), -1)
    kept = {entry.id for entry in _superseded_before_live(catalogue)[-keep:]} if keep else set[ReleaseId]()

    def is_unneeded(index: int, entry: Release) -> bool:
        over = entry.state in (State.SUPERSEDED, State.WITHDRAWN) and entry.id not in kept
        skipped = entry.state is State.READY and index < live
        return (over or skipped) and max(entry.created_at, entry.superseded_at or 0.0) + grace_s <= catalogue.now

    return replace(
        catalogue,
        releases=tuple(
            replace(entry, state=State.DROPPING) if is_unneeded(index, entry) else entry
            for index, entry in enumerate(_lapsed_dropped(catalogue))
        ),
    )


def abandon(catalogue: Catalogue, release: ReleaseId) -> Catalogue:
    """Give a draft up at once, rather than when its lease lapses."""
    return _with(catalogue, replace(_draft(catalogue, release), state=State.DROPPING, lease_until=None))


def forget(catalogue: Catalogue, release: ReleaseId) -> Catalogue:
    """Take a dropped release, whose rows are erased, out of the record."""
    return replace(
        catalogue,
        releases=tuple(
            entry for entry in catalogue.releases if entry.id != release or entry.state is not State.DROPPING
        ),
    )


def succeed(old: Catalogue, new: Catalogue, token: str, store_id: str) -> Catalogue:
    """Stamp *new* as the successor of *old*; *store_id* names the store at its very first change."""
    return replace(new, store_id=old.store_id or store_id, generation=old.generation + 1, token=token)


def _draft(catalogue: Catalogue, release: ReleaseId) -> Release:
    entry = catalogue.find(release)
    if entry.state is not State.DRAFT:
        raise ReleaseConflict(f"release {release} is no draft any more, it is {entry.state}")
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
        if entry.state is State.DRAFT and (entry.lease_until or 0.0) <= catalogue.now
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


def _with(catalogue: Catalogue, changed: Release) -> Catalogue:
    return replace(
        catalogue, releases=tuple(changed if entry.id == changed.id else entry for entry in catalogue.releases)
    )


def _last(catalogue: Catalogue, changed: Release) -> Catalogue:
    others = (entry for entry in catalogue.releases if entry.id != changed.id)
    return replace(catalogue, releases=(*others, changed))


def dump(catalogue: Catalogue) -> bytes:
    """Render a catalogue for storage; `now` stays behind."""
    return orjson.dumps(
        {
            "store_id": catalogue.store_id,
            "generation": catalogue.generation,
            "token": catalogue.token,
            "live": catalogue.live,
            "releases": catalogue.releases,
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def parse(record: bytes, *, now: float, where: str) -> Catalogue:
    """Read a stored catalogue back; CatalogueUnreadable, naming *where*, for anything that is not one."""
    try:
        fields = orjson.loads(record)
        catalogue = Catalogue(
            store_id=_typed(fields["store_id"], str),
            generation=_typed(fields["generation"], int),
            token=_typed(fields["token"], str),
            releases=tuple(_release(entry) for entry in fields["releases"]),
            now=now,
        )
        stated = fields["live"]
    except (ValueError, KeyError, TypeError) as error:
        raise CatalogueUnreadable(
            f"the catalogue at {where} cannot be read ({error!r}); restore it, or publish into a new store"
        ) from error
    living = [entry.id for entry in catalogue.releases if entry.state is State.LIVE]
    if catalogue.generation < 1 or living != ([stated] if stated else []):
        raise CatalogueUnreadable(
            f"the catalogue at {where} contradicts itself; restore it, or publish into a new store"
        )
    return catalogue


def _release(fields: dict[str, Any]) -> Release:
    return Release(
        id=ReleaseId(_typed(fields["id"], str)),
        state=State(fields["state"]),
        created_at=float(fields["created_at"]),
        superseded_at=_optional_time(fields["superseded_at"]),
        lease_until=_optional_time(fields["lease_until"]),
    )


def _optional_time(value: float | None) -> float | None:
    return None if value is None else float(value)


def _typed(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value
