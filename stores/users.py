"""Erasing users, and finding data that still contain them, in any store."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from hotplate.stores.catalogue import Catalogue, DraftRef, Erased, ReleaseId, ReleaseRef, State
from hotplate.stores.change_warnings import warn
from hotplate.stores.encoding import USER, RowKey, check_id
from hotplate.stores.erasure import ErasedUsers, MissingRows, missing_sums
from hotplate.stores.erasure_log import read_erased, read_log
from hotplate.stores.errors import PartLost, ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreMisused
from hotplate.stores.lifecycle import Revision, check_nothing_to_rebuild, revise_catalogue
from hotplate.stores.manifest import Manifest, Tally, compare, count_of
from hotplate.stores.store import Row, Store
from hotplate.stores.verification import load_manifest, read_results, read_rows

# Of recording and deleting: rows that came back while they were deleted, or that a publish wrote, are deleted again.
ATTEMPTS = 3

# From the catalogue and the erased users in its record: returns those that the record is to have.
Revise = Callable[[Catalogue, ErasedUsers], Awaitable[ErasedUsers]]


@dataclass(frozen=True, slots=True)
class Erasure:
    """The result of an erasure, or of a search.

    *erased* are the given users in the record. *holding* are those of them with rows in a release, by its id, *lists*
    the named lists with some of these rows; *being_written* are drafts, which are searched when they are committed.
    *deleted* is the number of deleted rows, *lost* that of ids that the store's record has lost. *warning* is a
    sentence if this erasure may be lost with the store's data.
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

    They are recorded first, with their rows in releases; then the rows are deleted, if the store can. Both
    are repeated, up to ATTEMPTS times, if a record or rows came back: a failover restores older data, and a concurrent
    publish writes rows. Raises ReleaseNotFound if nothing was ever published, and StoreMisused for an invalid id.
    """
    wanted = _checked_users(users)
    deleted = 0
    for _ in range(ATTEMPTS):
        catalogue, keys_by_release = await _record_users(store, wanted)
        for release, keys in keys_by_release.items():
            with suppress(ReleaseNotFound, ReleaseConflict):  # pruned since; or not recorded any more
                deleted += await store.erase_rows(release, keys, partial(_check_recorded, catalogue))

        # Before the search, which shows what an earlier failover took back; a later one takes back what this warns of.
        warning = await store.check_durability()
        result = await find_users(store, wanted)
        are_recorded = len(result.erased) == len(wanted)
        are_rows_left = store.erases_rows and bool(result.holding)
        if are_recorded and not are_rows_left:
            break

    return replace(result, deleted=deleted, warning=warning)


def _checked_users(users: Sequence[str]) -> list[str]:
    """Return each user once; raises StoreMisused for an invalid id, such as an empty one."""
    return [check_id(user) for user in dict.fromkeys(users)]


async def _record_users(store: Store, users: Sequence[str]) -> tuple[Catalogue, dict[ReleaseRef, list[str]]]:
    """Record *users* as erased, and their rows in all committed releases as missing; delete nothing.

    Returns the catalogue after the change, and the keys of the rows, which the caller deletes, by release. Rows are
    recorded before they are deleted: otherwise `verify` would call a release damaged.
    """
    keys_by_release = dict[ReleaseRef, list[str]]()

    async def add_users(catalogue: Catalogue, erased: ErasedUsers) -> ErasedUsers:
        keys_by_release.clear()  # of an attempt that lost a race
        erased = erased.with_users(users)
        for entry in catalogue.committed:
            with suppress(ReleaseNotFound):  # pruned since
                rows = await _present_rows(store, entry.ref, users)
                erased = erased.counting_as_missing(entry.ref, rows)
                keys_by_release[entry.ref] = [row.key for row in rows]
        return erased

    return await _change_record(store, add_users), keys_by_release


def _check_recorded(recorded: Catalogue, catalogue: Catalogue) -> None:
    """Raise ReleaseConflict unless *catalogue* is *recorded*, or a later one of its store."""
    if catalogue.store_id != recorded.store_id or catalogue.generation < recorded.generation:
        raise ReleaseConflict("the store has returned to older data, which do not record the rows as missing")


async def clear_erased(store: Store, release: ReleaseRef) -> Erased | None:
    """Delete the rows of erased users from a sealed release, which may be a draft.

    `erase_users` does not search drafts, so this is for a release that was written while users were erased. It scans
    all rows, and warns of those that it finds. Rows are recorded as missing first; a store that cannot delete rows
    keeps them, hidden, until the release is pruned.

    Returns the erased users whose rows were searched, as the catalogue names them after that.
    """
    catalogue = await store.catalogue()
    erased = await read_erased(store, catalogue)
    manifest = await load_manifest(store, release)
    rows = list[Row]()
    async for chunk in read_rows(store, release, manifest):
        rows += [row for row in chunk if erased.covers(row.key)]

    is_current = True  # whether no user was erased since the rows were searched

    async def add_missing(current: Catalogue, recorded: ErasedUsers) -> ErasedUsers:
        nonlocal is_current
        is_current = current.erased == catalogue.erased
        return recorded.counting_as_missing(release, rows)

    if rows:
        outcome = "are kept, hidden, until it is pruned"
        recorded = await _change_record(store, add_missing)
        if store.erases_rows:
            await store.erase_rows(release, [row.key for row in rows], partial(_check_recorded, recorded))
            outcome = "were deleted"
        warn(f"users were erased after release {release.id} was begun; {len(rows):,} rows of them {outcome}")
        if is_current:
            return recorded.erased
    return catalogue.erased


async def find_users(store: Store, users: Sequence[str]) -> Erasure:
    """Find which of *users* are recorded as erased, and which committed releases still have rows of any of them.

    In the result, `erased` are ids in the order of *users*; `holding` are the ids with rows, and `lists` the named
    lists with such rows, by release. Drafts are not searched, only named as `being_written`. `lost` is the number of
    ids that the catalogue counts and the record no longer has. Raises StoreMisused for an invalid id.
    """
    wanted = _checked_users(users)
    catalogue = await store.catalogue()
    erased = await read_erased(store, catalogue)

    keys_by_id = dict[ReleaseId, list[RowKey]]()
    for entry in catalogue.committed:
        with suppress(ReleaseNotFound):  # pruned since
            rows = await _present_rows(store, entry.ref, wanted)
            # An id with two incarnations, as after a repair, gets the keys of the one that has more of them.
            if len(rows) > len(keys_by_id.get(entry.id, ())):
                keys_by_id[entry.id] = [RowKey.parse(row.key) for row in rows]

    lists = {
        release: tuple(dict.fromkeys(key.list for key in keys if key.list)) for release, keys in keys_by_id.items()
    }
    return Erasure(
        erased=tuple(user for user in wanted if erased.covers_user(user)),
        holding={release: tuple(dict.fromkeys(key.id for key in keys)) for release, keys in keys_by_id.items()},
        being_written=tuple(entry.id for entry in catalogue.releases if entry.state is State.DRAFT),
        lists={release: names for release, names in lists.items() if names},
        lost=erased.lost,
    )


async def take_over_erasures(target: Store, erased: ErasedUsers) -> None:
    """Add another store's *erased* users to those of *target*."""

    async def add_theirs(_: Catalogue, ours: ErasedUsers) -> ErasedUsers:
        return ours.union(replace(erased, missing_by_release={}))

    if erased:
        await _change_record(target, add_theirs)


async def check_copied(target: Store, draft: DraftRef, manifest: Manifest, tally: Tally, *, max_deleted: int) -> None:
    """Raise ReleaseCorrupt if a copy lacks rows other than those of erased users; record those in *target*.

    *manifest* has the sums over the rows of the release at its publish, *tally* those over the rows of the copy. The
    copy lacks the `tally.left_out` rows that were skipped as it was written, and at most *max_deleted* rows that the
    source had deleted before. `verify` will expect the recorded rows to be missing from the copy.
    """
    missing = manifest.count("user") - count_of(tally.counts, "user")
    is_explained = tally.left_out <= missing <= tally.left_out + max_deleted
    has_all_others = _without_users(manifest.counts) == _without_users(tally.counts)
    lacks_erased_users_only = missing > 0 and has_all_others and is_explained
    if not lacks_erased_users_only:
        compare(manifest, tally)  # raises ReleaseCorrupt for any difference
        return

    async def add_missing(_: Catalogue, erased: ErasedUsers) -> ErasedUsers:
        return erased.with_missing(draft.release, MissingRows(missing_sums(manifest, tally)))

    await _change_record(target, add_missing)


def _without_users(counts: Mapping[str, int]) -> dict[str, int]:
    return {kind: count for kind, count in counts.items() if RowKey.parse(kind).kind != USER}


async def accept_loss(store: Store, expected: int) -> None:
    """Accept that the record of erased users has lost *expected* of them, whose lists are shown and published again.

    The catalogue then counts only the users that the record has; before, its higher count keeps the loss visible.
    Raises StoreMisused, and changes nothing, if another number is lost when the catalogue is replaced.
    """

    async def check_lost(catalogue: Catalogue, erased: ErasedUsers) -> ErasedUsers:
        lost = max(0, _counted(catalogue) - erased.count)
        if lost != expected:
            raise StoreMisused(_not_accepted(lost, expected))
        return erased

    await _change_record(store, check_lost, accepts_loss=True)


def _not_accepted(lost: int, expected: int) -> str:
    """Return why the loss of *expected* users is not accepted, although *lost* are."""
    if not lost:
        return f"this store has lost no erased user, instead of {expected:,}"
    users = "1 erased user, whose lists are" if lost == 1 else f"{lost:,} erased users, whose lists are"
    return (
        f"this store has lost the record of {users} shown and published again: erase them again with "
        f"`hotplate users erase`; if their ids are unknown, give --lost {lost} to accept the loss, which is final"
    )


async def _change_record(store: Store, revise: Revise, *, accepts_loss: bool = False) -> Catalogue:
    """Record the users that *revise* returns as erased, and return the new catalogue.

    *revise* gets the catalogue and the users in the record, and is called again after a lost race. Records and the
    catalogue's entry, which counts the users, are written together; nothing is, if both remain the same.

    With *accepts_loss*, the entry counts the recorded users. Otherwise its count is not lowered, so that a loss remains
    visible. Raises ReleaseNotFound for an empty store, and ReleaseConflict as `revise_catalogue`.
    """

    async def with_revised_record(catalogue: Catalogue) -> Revision:
        if not catalogue.generation:
            await check_nothing_to_rebuild(store)
            raise ReleaseNotFound("nothing was ever published to this store, so it has no users to erase")

        log = await read_log(store)
        users = log.users.restricted_to(catalogue.releases)  # without those that were pruned
        new_users = await revise(catalogue, users)

        min_count = 0 if accepts_loss else _counted(catalogue)
        is_count_lowered = accepts_loss and _counted(catalogue) > users.count
        # Otherwise, an interrupted erasure has written only the record.
        is_last_change_named = log.last == (0 if catalogue.erased is None else catalogue.erased.last)
        if new_users == users and not is_count_lowered and is_last_change_named:
            return Revision(catalogue)

        entry, record_changes = log.changes_for(new_users, min_count=min_count)
        if is_count_lowered and catalogue.erased is not None:
            entry = replace(entry, token=catalogue.erased.token_of_acceptance)
        return Revision(replace(catalogue, erased=entry), record_changes)

    return await revise_catalogue(store, with_revised_record)


def _counted(catalogue: Catalogue) -> int:
    """Return the number of erased users that a catalogue counts."""
    return 0 if catalogue.erased is None else catalogue.erased.count


async def _present_rows(store: Store, release: ReleaseRef, users: Sequence[str]) -> list[Row]:
    """Return the rows that a release has of *users*, in all lists; a row that cannot be read has no value.

    If the release cannot be read at all, as a file that was cut, it may have the rows of all users. Rows of parts that
    the store has lost are absent. Raises ReleaseNotFound if the release is gone.
    """
    try:
        names = (await load_manifest(store, release)).named
    except (ReleaseCorrupt, PartLost):
        names = {}
    keys = [RowKey(USER, user, name).text for name in ("", *names) for user in users]
    try:
        return await _read_rows(store, release, keys)
    except ReleaseCorrupt:
        return [Row(key, b"") for key in keys]
    except PartLost:
        rows = list[Row]()
        for key in keys:  # one by one, to find those in other parts
            with suppress(PartLost):
                rows += await _read_rows(store, release, [key])
        return rows


async def _read_rows(store: Store, release: ReleaseRef, keys: Sequence[str]) -> list[Row]:
    """Return the rows that exist; a damaged one has no value."""
    return [
        Row(key, b"" if isinstance(result, ReleaseCorrupt) else result)
        async for key, result in read_results(store, release, keys)
        if result is not None
    ]
