"""Erasing users, and finding data that still contain them, in any store."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from hotplate.stores.catalogue import Catalogue, DraftRef, Erased, ReleaseId, ReleaseRef, State
from hotplate.stores.encoding import USER, RowKey
from hotplate.stores.erasure import ErasedUsers, MissingRows, RowSums
from hotplate.stores.erasure_log import ErasureLog, find_erased, read_erased, read_incarnation, read_log
from hotplate.stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound
from hotplate.stores.lifecycle import SWAP_ATTEMPTS, change
from hotplate.stores.manifest import Manifest, Tally, compare, count_of
from hotplate.stores.store import Diagnosed, Row, RowEraser, Store
from hotplate.stores.verification import load_manifest, read_slots

# Rows that came back while they were deleted, or a publish wrote meanwhile, are deleted again.
ATTEMPTS = 3

# Returns what is to be erased, given the catalogue and what is.
More = Callable[[Catalogue, ErasedUsers], Awaitable[ErasedUsers]]


@dataclass(frozen=True, slots=True)
class Erasure:
    """The result of an erasure, or of a search.

    *holding* are the releases that still have rows of given users, *lists* the named lists with some of these rows;
    *being_written* are drafts, which were not searched. *lost* is the number of ids that the store's record has lost,
    *warning* a sentence if this erasure may be lost with the store's data.
    """

    erased: tuple[str, ...]
    holding: Mapping[ReleaseId, tuple[str, ...]]
    being_written: tuple[ReleaseId, ...]
    deleted: int = 0
    lists: Mapping[ReleaseId, tuple[str, ...]] = field(default_factory=dict)
    lost: int = 0
    warning: str | None = None


async def erase_users(store: Store, users: Sequence[str]) -> Erasure:
    """Erase *users*: from their next refresh on, readers treat them as unknown.

    Rows are deleted if the store can. Raises ReleaseNotFound if nothing was ever published.
    """
    wanted = list(dict.fromkeys(users))

    deleted = 0
    for _ in range(ATTEMPTS):
        recorded, held = await _mark(store, wanted)
        if isinstance(store, RowEraser):
            for release, keys in held.items():
                with suppress(ReleaseNotFound, ReleaseConflict):  # pruned since; or not recorded any more
                    deleted += await store.erase_rows(release, keys, partial(_check_recorded, recorded))
        holdings = await find_users(store, wanted)
        if len(holdings.erased) == len(wanted) and not (holdings.holding and isinstance(store, RowEraser)):
            break
    warning = await store.check_durability() if isinstance(store, Diagnosed) else None
    return replace(holdings, deleted=deleted, warning=warning)


async def _mark(store: Store, users: Sequence[str]) -> tuple[Catalogue, dict[ReleaseRef, list[str]]]:
    """Record *users* as erased, and their rows as missing.

    Returns the catalogue with the record, and the keys of these rows, which are still there.
    """
    held = dict[ReleaseRef, list[str]]()

    async def more(catalogue: Catalogue, known: ErasedUsers) -> ErasedUsers:
        held.clear()
        known = known.with_users(users)
        for entry in catalogue.committed:
            with suppress(ReleaseNotFound):  # pruned since
                rows = await _present(store, entry.ref, await _keys_of(store, entry.ref, users))
                known = known.with_missing(entry.ref, rows)
                held[entry.ref] = [row.key for row in rows]
        return known

    return await _change(store, more), held


def _check_recorded(recorded: Catalogue, catalogue: Catalogue) -> None:
    if catalogue.store_id != recorded.store_id or catalogue.generation < recorded.generation:
        raise ReleaseConflict("the store has returned to older data, which do not record the rows as missing")


async def find_users(store: Store, users: Sequence[str]) -> Erasure:
    """Find which of *users* are erased, and which releases have their rows."""
    catalogue = await store.catalogue()
    erased = await read_erased(store, catalogue)
    wanted = list(dict.fromkeys(users))
    held = {
        release: [RowKey.parse(key) for key in keys]
        for release, keys in (await _holding(store, catalogue, wanted)).items()
    }
    drafts = tuple(entry.id for entry in catalogue.releases if entry.state is State.DRAFT)
    holding = {
        release: tuple(dict.fromkeys(row.user for row in rows if row.user is not None))
        for release, rows in held.items()
        if rows
    }
    lists = {release: tuple(dict.fromkeys(row.list for row in rows if row.list)) for release, rows in held.items()}
    marked = tuple(user for user in wanted if erased.covers_user(user))
    named = {release: names for release, names in lists.items() if names}
    return Erasure(marked, holding, drafts, lists=named, lost=erased.lost)


async def take_over_erasures(target: Store, erased: ErasedUsers) -> None:
    """Add another store's *erased* users to those of *target*."""

    async def more(_: Catalogue, known: ErasedUsers) -> ErasedUsers:
        return known.merged(replace(erased, rows={}))

    if erased:
        await _change(target, more)


async def check_copied(target: Store, draft: DraftRef, manifest: Manifest, tally: Tally, *, absent: int) -> None:
    """Raise ReleaseCorrupt if a copy lacks rows other than those of erased users, of which the source lacked *absent*.

    Records the sums of these rows for `verify`.
    """
    missing = manifest.count("user") - count_of(tally.counts, "user")
    others, theirs = (
        {kind: count for kind, count in counts.items() if RowKey.parse(kind).kind != USER}
        for counts in (manifest.counts, tally.counts)
    )
    others_differ = others != theirs
    if not missing or others_differ or not tally.left_out <= missing <= tally.left_out + absent:
        compare(manifest, tally)
        return

    async def more(_: Catalogue, known: ErasedUsers) -> ErasedUsers:
        return known.with_rows(draft.release, MissingRows(RowSums.lacking(manifest, tally)))

    await _change(target, more)


async def accept_loss(store: Store) -> int:
    """Count as erased only the users that the record has; return how many were lost."""
    lost = 0

    async def more(catalogue: Catalogue, known: ErasedUsers) -> ErasedUsers:
        nonlocal lost
        lost = 0 if catalogue.erased is None else max(0, catalogue.erased.count - known.count)
        return known

    await _change(store, more, accepts_loss=True)
    return lost


async def _change(store: Store, more: More, *, accepts_loss: bool = False) -> Catalogue:
    for _ in range(SWAP_ATTEMPTS):
        catalogue = await store.catalogue()
        if not catalogue.generation:
            raise ReleaseNotFound("nothing was ever published to this store, so it has no users to erase")
        log = await _read_whole(store, catalogue)
        wanted = (await more(catalogue, log.users)).of_releases(catalogue.releases)
        is_named = _is_named(catalogue, log)
        loses = catalogue.erased is not None and catalogue.erased.count > log.users.count
        if is_named and not (accepts_loss and loses) and wanted == log.users.of_releases(catalogue.releases):
            return catalogue
        expected = 0 if accepts_loss or catalogue.erased is None else catalogue.erased.count
        erased, records = log.appended(wanted, expected)

        def step(current: Catalogue, seen: Catalogue = catalogue, new: Erased = erased) -> Catalogue:
            if current.erased == new:
                return current  # made, but its reply was lost
            if current.version != seen.version:  # what is erased depends on the catalogue
                raise ReleaseConflict("the catalogue has changed; try again")
            return replace(current, erased=new)

        with suppress(ReleaseConflict):
            return await change(store, step, records=records)
    raise ReleaseConflict(f"the catalogue changed {SWAP_ATTEMPTS} times; try again when it is quieter")


def _is_named(catalogue: Catalogue, log: ErasureLog) -> bool:
    """Return whether the catalogue names the last part, which an interrupted erasure may have written."""
    if catalogue.erased is None:
        return log.last == 0
    return bool(catalogue.erased.incarnation) or catalogue.erased.last == log.last


async def _read_whole(store: Store, catalogue: Catalogue) -> ErasureLog:
    """Read the log, with records of format 1 until it replaces them, and all that are left if one is lost."""
    log = await read_log(store)
    users = log.users
    if catalogue.erased is not None and catalogue.erased.incarnation:
        users = users.merged(await read_incarnation(store, catalogue.erased.incarnation) or users)
    if catalogue.erased is not None and catalogue.erased.count > users.count:
        users = users.merged(await find_erased(store))
    return log if users == log.users else replace(log, users=users, is_whole=False)


async def _keys_of(store: Store, release: ReleaseRef, users: Sequence[str]) -> list[str]:
    """Return the keys of the users' rows, in all lists."""
    try:
        names = (await load_manifest(store, release)).named
    except ReleaseCorrupt:
        names = {}
    return [RowKey(USER, user, name).text for name in ("", *names) for user in users]


async def _present(store: Store, release: ReleaseRef, keys: Sequence[str]) -> list[Row]:
    """Return the rows that a release has; a row that cannot be read has no value."""
    return [
        Row(key, b"" if isinstance(slot, ReleaseCorrupt) else slot)
        async for key, slot in read_slots(store, release, keys)
        if slot is not None
    ]


async def _holding(store: Store, catalogue: Catalogue, users: Sequence[str]) -> dict[ReleaseId, list[str]]:
    """Return the keys of the users' rows in all lists, by release."""
    held = dict[ReleaseId, list[str]]()
    for entry in catalogue.committed:
        with suppress(ReleaseNotFound):  # pruned since
            keys = await _keys_of(store, entry.ref, users)
            there = [row.key for row in await _present(store, entry.ref, keys)]
            if len(there) >= len(held.get(entry.id, ())):
                held[entry.id] = there
    return held
