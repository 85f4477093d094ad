"""A new catalogue, made from the sealed releases that a store holds, if the old one is lost or cannot be read.

The data stay where they are: each release keeps its incarnation. The catalogue gets a new `store_id`, so
running services follow it, and work that was begun before cannot change it.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

from hotplate.stores import catalogue as changes
from hotplate.stores.catalogue import Catalogue, Erased, Release, ReleaseId, ReleaseRef, State
from hotplate.stores.erasure import NOBODY, ErasedUsers
from hotplate.stores.errors import (
    CatalogueUnreadable,
    RefusedByGates,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreMisused,
    StoreUnavailable,
)
from hotplate.stores.keys import MANIFEST
from hotplate.stores.lifecycle import is_sealed, scale_up_again
from hotplate.stores.manifest import Manifest, read_manifest, release_in
from hotplate.stores.store import Store, read_one
from hotplate.stores.users import find_records, write_record
from hotplate.stores.verification import read_servable, verify

# Is called with (the release that is read, its rows read, its rows in all).
OnRowsRead = Callable[[ReleaseId, int, int], None]


@dataclass(frozen=True, slots=True)
class FoundRelease:
    """A sealed release that a store holds, and what a reader found in it."""

    ref: ReleaseRef
    manifest: Manifest
    damage: str | None = None
    """What `verify` says; None if it is whole."""

    refusal: str | None = None
    """Why it cannot be served; None if it can."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a store without a readable catalogue holds; lives as long as one rebuild."""

    releases: tuple[FoundRelease, ...]
    """In the order in which they were written; of two with one id, the one to be taken is the later."""

    others: dict[str, str]
    """By incarnation, what is not taken up, and why: the next `prune` erases it."""

    erased: dict[str, ErasedUsers]
    """The records of erased users, by incarnation."""

    record: bytes | None
    """The catalogue that cannot be read; None if there is none."""

    now: float
    """The store's clock."""

    @property
    def candidates(self) -> tuple[FoundRelease, ...]:
        """Those that may become live: one for each id."""
        return tuple({found.ref.id: found for found in self.releases}.values())

    def only(self) -> ReleaseId:
        """Return the release that becomes live if none is named; StoreMisused unless there is exactly one."""
        if len(self.candidates) == 1:
            return self.candidates[0].ref.id
        servable = [found for found in self.candidates if found.refusal is None]
        whole = [found for found in servable if found.damage is None] or servable
        newest = [found for found in whole if not found.manifest.refused_by] or whole
        example = f", for example --live {newest[-1].ref.id}, the newest that is sound" if newest else ""
        raise StoreMisused(
            f"the store holds {len(self.candidates)} releases; say with --live ID which one is to be live{example}"
        )

    def find(self, release: ReleaseId) -> FoundRelease:
        """Return a candidate by its id; ReleaseNotFound, which names those that there are."""
        for found in self.candidates:
            if found.ref.id == release:
                return found
        named = ", ".join(found.ref.id for found in self.candidates)
        raise ReleaseNotFound(f"release {release} is not in this store; it holds {named}")


async def survey(
    store: Store, wanted: ReleaseId | None = None, on_progress: OnRowsRead = lambda _release, _done, _total: None
) -> Survey:
    """Find the sealed releases that a store holds, and read every row of each.

    Raises ReleaseConflict if the catalogue can be read, ReleaseNotFound if there is no sealed release, or not the one
    that is *wanted*.
    """
    record, now = await _unreadable_record(store)
    releases, others = list[FoundRelease](), dict[str, str]()
    erased = await find_records(store)
    for incarnation in await store.incarnations():
        if incarnation in erased:
            continue
        try:
            manifest = await _load_manifest(store, incarnation)
        except (ReleaseNotFound, ReleaseCorrupt) as error:
            others[incarnation] = str(error)
        else:
            releases.append(FoundRelease(ReleaseRef(manifest.release, incarnation), manifest))
    releases.sort(key=lambda one: one.manifest.created_at)
    found = Survey(tuple(releases), others, erased, record, now)
    if not releases:
        drafts = f"; {len(others)} drafts or damaged releases are not taken up" if others else ""
        raise ReleaseNotFound(f"the store holds no sealed release to rebuild a catalogue from{drafts}; publish into it")
    if wanted is not None:
        found.find(wanted)
    all_erased = reduce(ErasedUsers.merged, erased.values(), NOBODY)
    read = [await _read(store, one, all_erased, on_progress) for one in releases]
    read.sort(key=lambda one: (one.manifest.created_at, one.refusal is None, one.damage is None))
    return replace(found, releases=tuple(read))


async def rebuild(store: Store, found: Survey, live: ReleaseId, *, force: bool = False) -> Catalogue:
    """Write a catalogue of what was *found*, in which *live* is live and the others are ready; return it.

    Raises ReleaseCorrupt if *live* cannot be served, and RefusedByGates if its manifest says that gates refused it,
    unless *force*; ReleaseConflict if somebody else has written a catalogue since, as another rebuild does.
    """
    chosen = found.find(live)
    if chosen.refusal is not None and not force:
        raise ReleaseCorrupt(f"{chosen.refusal}; name another release with --live, or say --force to have it live")
    if chosen.manifest.refused_by and not force:
        raise RefusedByGates(
            f"release {live} was refused by {', '.join(chosen.manifest.refused_by)} when it was published; "
            f"name another release with --live, or say --force to have it live"
        )
    await store.prepare(chosen.ref)
    new = changes.succeed(
        Catalogue(now=found.now),
        Catalogue(releases=tuple(_entries(found, chosen)), erased=await _erased(store, found), now=found.now),
        token=secrets.token_hex(8),
        store_id=secrets.token_hex(8),
    )
    try:
        if found.record is None:
            await store.swap(Catalogue(), new)
        else:
            await store.replace_unreadable(found.record, new)
    except (ReleaseConflict, StoreUnavailable) as error:
        if await _token(store) != new.token:  # otherwise only the reply was lost
            if isinstance(error, StoreUnavailable):
                raise
            raise ReleaseConflict(
                "somebody else wrote a catalogue first, as another rebuild does; see `hotplate releases list`"
            ) from error
    await scale_up_again(store, chosen.ref)
    return new


async def _erased(store: Store, found: Survey) -> Erased | None:
    """Return the record of all who were ever erased: the one there is, or one that is written of several."""
    if len(found.erased) > 1:
        return await write_record(store, reduce(ErasedUsers.merged, found.erased.values()))
    return next((Erased(incarnation, users.count) for incarnation, users in found.erased.items()), None)


async def _unreadable_record(store: Store) -> tuple[bytes | None, float]:
    """Return the record that cannot be read, None if there is none, and the store's clock."""
    try:
        found = await store.catalogue()
    except CatalogueUnreadable as error:
        if error.record is None:
            raise
        return error.record, error.now
    if found.generation:
        live = "nothing is live" if found.live is None else f"release {found.live} is live"
        raise ReleaseConflict(
            f"the catalogue can be read, and {live}: nothing is to be rebuilt; to make another release live, use "
            f"`hotplate releases activate`"
        )
    return None, found.now


async def _load_manifest(store: Store, incarnation: str) -> Manifest:
    """Read the manifest of a sealed release by its incarnation alone; raises ReleaseNotFound or ReleaseCorrupt."""
    unnamed = ReleaseRef(ReleaseId(f"unknown-{incarnation}"), incarnation)
    if not await is_sealed(store, unnamed):
        raise ReleaseNotFound("a draft that was not finished")
    value = await read_one(store, unnamed, MANIFEST)
    if value is None:
        raise ReleaseCorrupt("a release that has lost its manifest")
    return read_manifest(release_in(value), value)


async def _read(store: Store, found: FoundRelease, erased: ErasedUsers, on_progress: OnRowsRead) -> FoundRelease:
    """Read all of a release, and ask whether it can be served."""
    damage = refusal = None
    try:
        await verify(
            store, found.ref, erased=erased, on_progress=lambda done, total: on_progress(found.ref.id, done, total)
        )
    except (ReleaseCorrupt, ReleaseNotFound) as error:
        damage = str(error)
    try:
        await read_servable(store, found.ref, erased=erased)
    except (ReleaseCorrupt, ReleaseNotFound) as error:
        refusal = str(error)
    return replace(found, damage=damage, refusal=refusal)


def _entries(found: Survey, live: FoundRelease) -> list[Release]:
    """Return what the new catalogue says of each release, the live one last; of two with one id, one is withdrawn."""
    candidates = found.candidates
    withdrawn = [one for one in found.releases if one not in candidates]
    ready = [one for one in candidates if one is not live]
    return [
        *(_entry(one, State.WITHDRAWN, superseded_at=found.now) for one in withdrawn),
        *(_entry(one, State.READY) for one in ready),
        _entry(live, State.LIVE),
    ]


def _entry(found: FoundRelease, state: State, superseded_at: float | None = None) -> Release:
    refused_by = found.manifest.refused_by if state is State.READY else ()
    return Release(*found.ref, state, found.manifest.created_at, superseded_at=superseded_at, refused_by=refused_by)


async def _token(store: Store) -> str:
    """Return the token of the catalogue that is stored; empty if it cannot be read."""
    try:
        return (await store.catalogue()).token
    except StoreError:
        return ""
