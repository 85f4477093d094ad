"""A new catalogue from the sealed releases of a store, if the old one is lost or cannot be read.

Its new `store_id` makes running services follow it, and keeps earlier writers from changing it.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from hotplate.stores import catalogue as changes
from hotplate.stores.catalogue import Catalogue, Release, ReleaseId, ReleaseRef, State
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
from hotplate.stores.lifecycle import is_sealed, prepare_served
from hotplate.stores.manifest import Manifest, read_manifest, release_in
from hotplate.stores.store import Store, read_one
from hotplate.stores.users import read_record, write_record
from hotplate.stores.verification import read_servable, verify

# Called with (release, its rows read, its rows in all).
OnRowsRead = Callable[[ReleaseId, int, int], None]


@dataclass(frozen=True, slots=True)
class FoundRelease:
    """A sealed release, with the error of `verify` or `read_servable` as *damage*."""

    ref: ReleaseRef
    manifest: Manifest
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """The contents of a store without a readable catalogue.

    *releases* are in the order of writing; of two with one id, the later one is used. *others* has the reasons why
    incarnations are not used. *record* is the unreadable catalogue, if any. *now* is the store's clock.
    """

    releases: tuple[FoundRelease, ...]
    others: dict[str, str]
    erased: ErasedUsers
    record: bytes | None
    now: float

    @property
    def candidates(self) -> dict[ReleaseId, FoundRelease]:
        """Releases that may become live, by id."""
        return {found.ref.id: found for found in self.releases}

    def only(self) -> ReleaseId:
        """Return the only release; StoreMisused if there are several."""
        if len(self.candidates) == 1:
            return self.releases[0].ref.id
        raise StoreMisused(
            f"the store holds {len(self.candidates)} releases; say with --live ID which one is to be live"
        )

    def find(self, release: ReleaseId) -> FoundRelease:
        """Return a candidate; ReleaseNotFound, with all ids, if it is unknown."""
        if (found := self.candidates.get(release)) is None:
            raise ReleaseNotFound(f"release {release} is not in this store; it holds {', '.join(self.candidates)}")
        return found


async def survey(
    store: Store, wanted: ReleaseId | None = None, on_progress: OnRowsRead = lambda _release, _done, _total: None
) -> Survey:
    """Find the sealed releases in a store, and read all their rows.

    Raises ReleaseConflict if the catalogue can be read; ReleaseNotFound without any sealed or the *wanted* release.
    """
    record, now = await _unreadable_record(store)
    releases, others, erased = list[FoundRelease](), dict[str, str](), NOBODY
    for incarnation in await store.incarnations():
        if (users := await read_record(store, incarnation)) is not None:
            erased = erased.merged(users)
            continue
        try:
            manifest = await _load_manifest(store, incarnation)
        except (ReleaseNotFound, ReleaseCorrupt) as error:
            others[incarnation] = str(error)
        else:
            releases.append(FoundRelease(ReleaseRef(manifest.release, incarnation), manifest))
    if not releases:
        drafts = f"; {len(others)} drafts or damaged releases cannot be used" if others else ""
        raise ReleaseNotFound(f"the store holds no sealed release to rebuild a catalogue from{drafts}; publish into it")
    releases.sort(key=lambda one: one.manifest.created_at)
    found = Survey(tuple(releases), others, erased, record, now)
    if wanted is not None:
        found.find(wanted)
    read = [await _read(store, one, erased, on_progress) for one in releases]
    read.sort(key=lambda one: (one.manifest.created_at, one.damage is None))
    return replace(found, releases=tuple(read))


async def rebuild(store: Store, found: Survey, live: ReleaseId, *, force: bool = False) -> Catalogue:
    """Write and return a catalogue with *live* live and the other *found* releases ready.

    Unless *force* is true, raises ReleaseCorrupt if *live* is damaged, and RefusedByGates if its gates refused it.
    Raises ReleaseConflict if another process has written a catalogue since.
    """
    chosen = found.find(live)
    advice = "name another release with --live, or say --force to have it live"
    if chosen.damage is not None and not force:
        raise ReleaseCorrupt(f"{chosen.damage}; {advice}")
    if (refused_by := chosen.manifest.refused_by) and not force:
        raise RefusedByGates(f"release {live} was refused by {', '.join(refused_by)} when it was published; {advice}")
    await store.prepare(chosen.ref)
    erased = await write_record(store, found.erased) if found.erased else None
    new = changes.succeed(
        Catalogue(now=found.now),
        Catalogue(releases=tuple(_entries(found, chosen)), erased=erased, now=found.now),
        token=secrets.token_hex(8),
        store_id=secrets.token_hex(8),
    )
    try:
        if found.record is None:
            await store.swap(Catalogue(), new)
        else:
            await store.replace_unreadable(found.record, new)
    except (ReleaseConflict, StoreUnavailable):
        if await _token(store) != new.token:  # otherwise only the reply was lost
            raise
    await prepare_served(store, new)
    return new


async def _unreadable_record(store: Store) -> tuple[bytes | None, float]:
    try:
        found = await store.catalogue()
    except CatalogueUnreadable as error:
        if error.record is None:
            raise
        return error.record, error.now
    if found.generation:
        raise ReleaseConflict(
            "the catalogue can be read, so there is nothing to rebuild; see `hotplate releases activate`"
        )
    return None, found.now


async def _load_manifest(store: Store, incarnation: str) -> Manifest:
    unnamed = ReleaseRef(ReleaseId(f"unknown-{incarnation}"), incarnation)
    if not await is_sealed(store, unnamed):
        raise ReleaseNotFound("a draft that was not finished")
    value = await read_one(store, unnamed, MANIFEST)
    if value is None:
        raise ReleaseCorrupt("a release that has lost its manifest")
    return read_manifest(release_in(value), value)


async def _read(store: Store, found: FoundRelease, erased: ErasedUsers, on_progress: OnRowsRead) -> FoundRelease:
    try:
        await verify(store, found.ref, erased=erased, on_progress=partial(on_progress, found.ref.id))
        await read_servable(store, found.ref, erased=erased)
    except (ReleaseCorrupt, ReleaseNotFound) as error:
        return replace(found, damage=str(error))
    return found


def _entries(found: Survey, live: FoundRelease) -> list[Release]:
    # The live release is last; of two with one id, the earlier one is withdrawn.
    entries = list[Release]()
    for one in found.releases:
        if one is live:
            continue
        entry = Release(*one.ref, State.READY, one.manifest.created_at, refused_by=one.manifest.refused_by)
        if found.candidates[one.ref.id] is not one:
            entry = replace(entry, state=State.WITHDRAWN, superseded_at=found.now, refused_by=())
        entries.append(entry)
    return [*entries, Release(*live.ref, State.LIVE, live.manifest.created_at)]


async def _token(store: Store) -> str:
    try:
        return (await store.catalogue()).token
    except StoreError:
        return ""
