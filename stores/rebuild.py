"""A rebuild makes a new catalogue of the sealed releases in a store whose catalogue is lost or cannot be read.

Its new `store_id` makes running services follow it, and keeps earlier writers from changing it.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import (
    Catalogue,
    Release,
    ReleaseId,
    ReleaseRef,
    State,
    unnamed_release,
)
from hotplate.stores.change_warnings import failure_as_warning
from hotplate.stores.encoding import MANIFEST
from hotplate.stores.erasure import ErasedUsers
from hotplate.stores.erasure_log import ErasureLog, read_log
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
from hotplate.stores.manifest import Manifest, read_manifest, release_in
from hotplate.stores.release_log import changes_beside, read_refusals
from hotplate.stores.store import RecordChange, Store, read_one
from hotplate.stores.users import clear_erased
from hotplate.stores.verification import read_servable, verify

# Called with (release, its rows read, its rows in all).
OnRowsRead = Callable[[ReleaseId, int, int], None]


@dataclass(frozen=True, slots=True)
class FoundRelease:
    """A sealed release, why it was refused, and the error of `verify` or `read_servable` as *damage*."""

    ref: ReleaseRef
    manifest: Manifest
    refused_by: tuple[str, ...] = ()
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """The contents of a store without a readable catalogue.

    *releases* are in the order of writing; of two with one id, the later one is used. *others* has the reasons why
    incarnations are not used. *record* is the unreadable catalogue, if any. *now* is the store's clock.
    """

    releases: tuple[FoundRelease, ...]
    others: dict[str, str]
    erasures: ErasureLog
    record: bytes | None
    now: float

    @property
    def candidates(self) -> dict[ReleaseId, FoundRelease]:
        """Releases that may become live, by id."""
        return {release.ref.id: release for release in self.releases}

    def only(self) -> ReleaseId:
        """Return the only release; StoreMisused if there are several."""
        if len(self.candidates) == 1:
            return self.releases[0].ref.id
        raise StoreMisused(
            f"the store holds {len(self.candidates)} releases; say with --live ID which one is to be live"
        )

    def find(self, release: ReleaseId) -> FoundRelease:
        """Return a candidate; ReleaseNotFound, with all ids, if it is unknown."""
        if (candidate := self.candidates.get(release)) is None:
            raise ReleaseNotFound(f"release {release} is not in this store; it holds {', '.join(self.candidates)}")
        return candidate


async def survey(
    store: Store, wanted: ReleaseId | None = None, on_progress: OnRowsRead = lambda _release, _done, _total: None
) -> Survey:
    """Find the sealed releases and the erased users in a store whose catalogue is lost or damaged.

    All rows of the releases are read. *on_progress* gets a release, and its rows read and in all. Raises
    ReleaseConflict if the catalogue can be read; ReleaseNotFound without any sealed release, or without the *wanted*
    one.
    """
    record, now = await _unreadable_record(store)
    result = await find_releases(store, record, now)
    if wanted is not None:
        result.find(wanted)  # before the rows are read, which takes long

    erased = result.erasures.users
    examined = list[FoundRelease]()
    for release in result.releases:
        examined.append(await _examine_rows(store, release, erased, on_progress=on_progress))
    # By age; of two incarnations of one release, the intact one is last, as the last becomes the candidate.
    examined.sort(key=lambda release: (release.manifest.created_at, release.damage is None))
    return replace(result, releases=tuple(examined))


async def find_releases(store: Store, record: bytes | None, now: float) -> Survey:
    """Return the survey of a store, before the rows of its releases are read; *record* and *now* become its fields.

    An incarnation is the unique name of one write of a release, by which its data are stored. Raises ReleaseNotFound
    without any sealed release.
    """
    releases = list[FoundRelease]()
    others = dict[str, str]()
    refusals = await read_refusals(store)
    log = await read_log(store)

    for incarnation in await store.incarnations():
        try:
            manifest = await _load_manifest(store, incarnation)
        except (ReleaseNotFound, ReleaseCorrupt) as error:
            others[incarnation] = str(error)
        else:
            refused_by = refusals.get(incarnation, manifest.refused_by)
            releases.append(FoundRelease(ReleaseRef(manifest.release, incarnation), manifest, refused_by))

    if not releases:
        drafts = f"; {len(others)} drafts or damaged releases cannot be used" if others else ""
        raise ReleaseNotFound(f"the store holds no sealed release to rebuild a catalogue from{drafts}; publish into it")

    releases.sort(key=lambda release: release.manifest.created_at)
    return Survey(releases=tuple(releases), others=others, erasures=log, record=record, now=now)


async def rebuild(store: Store, survey: Survey, live: ReleaseId, *, force: bool = False) -> Catalogue:
    """Write and return a new catalogue, in which *live* is live and the other releases of *survey* are ready.

    It replaces the lost or damaged catalogue of a store, and records the erased users that *survey* has found.
    Unless *force* is true, raises ReleaseCorrupt if *live* or the record of erased users is damaged, and RefusedByGates
    if its gates or services refused it. Raises ReleaseConflict if another process has written a catalogue since.
    """
    chosen = survey.find(live)
    if not force:
        _check_rebuildable(survey, chosen)
    await store.prepare(chosen.ref)

    rebuilt = Catalogue(releases=tuple(_entries(survey, chosen)), now=survey.now)
    records = list[RecordChange]()
    if survey.erasures.users:
        erased, records = survey.erasures.changes_for(survey.erasures.users)
        rebuilt = replace(rebuilt, erased=erased)

    empty = Catalogue(now=survey.now)
    records += await changes_beside(store, empty, rebuilt)
    new = changes.succeed(empty, rebuilt, token=secrets.token_hex(8), store_id=secrets.token_hex(8))

    replaced: Catalogue | bytes = Catalogue()
    if survey.record is not None:
        replaced = survey.record
    try:
        await store.swap(replaced, new, records)
    except (ReleaseConflict, StoreUnavailable):
        if await _read_token(store) != new.token:  # otherwise only the reply was lost
            raise

    for release in new.served:
        changed = f"release {release.id} is live in the new catalogue; that it can be served is not sure"
        with failure_as_warning(changed):
            await store.prepare(release)  # a node of a cluster may have lost it meanwhile
    if new.erased is not None:
        for entry in new.releases:  # some may have been drafts, which `erase_users` does not search
            with failure_as_warning(f"release {entry.id} was to be searched for rows of erased users"):
                await clear_erased(store, entry.ref)
    return new


def _check_rebuildable(survey: Survey, live: FoundRelease) -> None:
    """Raise ReleaseCorrupt or RefusedByGates if *live* should not be live, or erased users would be shown again."""
    advice = "name another release with --live; only if there is none, --force makes it live as it is"
    if live.damage is not None:
        raise ReleaseCorrupt(f"{live.damage}; {advice}")
    if live.refused_by:
        raise RefusedByGates(f"release {live.ref.id} was refused by {', '.join(live.refused_by)}; {advice}")
    if survey.erasures.damage is not None:
        raise ReleaseCorrupt(
            f"{survey.erasures.damage}, so erased users would be shown again; --force rebuilds with those that are "
            f"left: erase the others again"
        )


async def _unreadable_record(store: Store) -> tuple[bytes | None, float]:
    """Return the bytes of an unreadable catalogue, None if there is none, and the time by the store's clock.

    Raises ReleaseConflict if the catalogue can be read, CatalogueUnreadable for one of a newer format.
    """
    try:
        catalogue = await store.catalogue()
    except CatalogueUnreadable as error:
        if error.record is None:
            raise
        return error.record, error.now
    if catalogue.generation:
        raise ReleaseConflict(
            "the catalogue can be read, so there is nothing to rebuild; see `hotplate releases activate`"
        )
    return None, catalogue.now


async def _load_manifest(store: Store, incarnation: str) -> Manifest:
    """Read the manifest of an unnamed incarnation; ReleaseNotFound for a draft, ReleaseCorrupt without a manifest."""
    unnamed = unnamed_release(incarnation)
    if not await store.is_sealed(unnamed):
        raise ReleaseNotFound("a draft that was not finished")
    value = await read_one(store, unnamed, MANIFEST)
    if value is None:
        raise ReleaseCorrupt("a release that has lost its manifest")
    return read_manifest(release_in(value), value)


async def _examine_rows(
    store: Store, release: FoundRelease, erased: ErasedUsers, *, on_progress: OnRowsRead
) -> FoundRelease:
    """Read all rows of a release, and return it with their damage, if any."""
    try:
        await verify(store, release.ref, erased=erased, on_progress=partial(on_progress, release.ref.id))
        await read_servable(store, release.ref, erased=erased)
    except (ReleaseCorrupt, ReleaseNotFound) as error:
        return replace(release, damage=str(error))
    return release


def _entries(survey: Survey, live: FoundRelease) -> list[Release]:
    """Return the entries of the surveyed releases for a new catalogue, *live* last, the others ready.

    Of two releases with one id, the earlier one is withdrawn.
    """
    entries = list[Release]()
    for release in sorted(survey.releases, key=lambda release: release is live):
        entry = Release(
            id=release.ref.id,
            incarnation=release.ref.incarnation,
            state=State.READY,
            created_at=release.manifest.created_at,
            refused_by=release.refused_by,
        )
        if release is live:
            entry = replace(entry, state=State.LIVE, refused_by=())
        elif survey.candidates[release.ref.id] is not release:
            entry = replace(entry, state=State.WITHDRAWN, superseded_at=survey.now, refused_by=())
        entries.append(entry)
    return entries


async def _read_token(store: Store) -> str:
    """Return the catalogue's token; empty if it cannot be read."""
    try:
        return (await store.catalogue()).token
    except StoreError:
        return ""
