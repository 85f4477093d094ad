"""Erasing users, and finding data that still contain them, in any store."""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from hotplate.stores.catalogue import Catalogue, DraftRef, Erased, ReleaseId, ReleaseRef, State
from hotplate.stores.encoding import USER, list_of, prefix_of, user_of
from hotplate.stores.erasure import ID, KEY, NOBODY, ErasedUsers, parse_erased, read_erased, row_of
from hotplate.stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreUnavailable
from hotplate.stores.lifecycle import SWAP_ATTEMPTS, change
from hotplate.stores.manifest import Manifest, Tally, compare, count_of
from hotplate.stores.store import Plan, ProvisionedStore, RowEraser, Store, read_one
from hotplate.stores.verification import load_manifest, read_slots


@dataclass(frozen=True, slots=True)
class Erasure:
    """The result of an erasure, or of a search.

    *holding* are the releases that still have rows of given users, *lists* the named lists with some of these rows;
    *being_written* are drafts, which were not searched.
    """

    erased: tuple[str, ...]
    holding: Mapping[ReleaseId, tuple[str, ...]]
    being_written: tuple[ReleaseId, ...]
    deleted: int = 0
    lists: Mapping[ReleaseId, tuple[str, ...]] = field(default_factory=dict)


async def read_record(store: Store, incarnation: str) -> ErasedUsers | None:
    """Return the erased users recorded in an incarnation, even without a catalogue; None if it holds no record.

    Raises ReleaseCorrupt for an unreadable record.
    """
    try:
        value = await read_one(store, ReleaseRef(ID, incarnation), KEY)
    except (ReleaseNotFound, ReleaseCorrupt):  # a draft or a damaged release
        return None
    return None if value is None else parse_erased(value)


async def find_erased(store: Store) -> ErasedUsers:
    """Return the union of all records of erased users, even without a catalogue."""
    found = NOBODY
    for incarnation in await store.incarnations():
        found = found.merged(await read_record(store, incarnation) or NOBODY)
    return found


async def write_record(store: Store, users: ErasedUsers) -> Erased:
    """Write a record, which a catalogue must then name."""
    draft = DraftRef(ID, secrets.token_hex(6), f"erase-{secrets.token_hex(8)}")
    row = row_of(users)
    await store.create(draft, Plan(1, len(row.key) + len(row.value), len(row.value)))
    await store.put(draft, [row])
    await store.seal(draft)
    if isinstance(store, ProvisionedStore):
        await store.scale_down(draft.release)
    return Erased(draft.incarnation, users.count)


async def erase_users(store: Store, users: Sequence[str]) -> Erasure:
    """Erase *users*: from their next refresh on, readers treat them as unknown.

    Rows are deleted if the store can. Raises ReleaseNotFound if nothing was ever published.
    """
    wanted = list(dict.fromkeys(users))
    counted = dict[ReleaseId, list[str]]()

    async def more(found: Catalogue, known: ErasedUsers) -> ErasedUsers:
        # A RowEraser has erased users' rows only in releases written since.
        by_row = isinstance(store, RowEraser)
        fresh = [user for user in wanted if by_row or not known.covers(USER + user)]
        counted.clear()
        counted.update(await _holding(store, found, fresh))
        # Rows of an interrupted erasure are counted again: verify may then overlook as many lost rows.
        return known.with_users(wanted, {release: len(there) for release, there in counted.items()})

    found = await _change(store, more)
    deleted = 0
    if isinstance(store, RowEraser):  # only counted rows: others would be reported as missing
        for entry in found.committed:
            with suppress(ReleaseNotFound):  # pruned since
                deleted += await store.erase_rows(entry.ref, counted.get(entry.id, ()))
    return replace(await find_users(store, wanted), deleted=deleted)


async def find_users(store: Store, users: Sequence[str]) -> Erasure:
    """Find which of *users* are erased, and which releases have their rows."""
    found = await store.catalogue()
    erased = await read_erased(store, found)
    wanted = list(dict.fromkeys(users))
    held = await _holding(store, found, wanted)
    drafts = tuple(entry.id for entry in found.releases if entry.state is State.DRAFT)
    holding = {
        release: tuple(dict.fromkeys(user for key in there if (user := user_of(key)) is not None))
        for release, there in held.items()
        if there
    }
    lists = {release: tuple(dict.fromkeys(filter(None, map(list_of, there)))) for release, there in held.items()}
    marked = tuple(user for user in wanted if erased.covers(USER + user))
    return Erasure(marked, holding, drafts, lists={release: names for release, names in lists.items() if names})


async def take_over_erasures(target: Store, erased: ErasedUsers) -> None:
    """Add another store's *erased* users to those of *target*."""

    async def more(_: Catalogue, known: ErasedUsers) -> ErasedUsers:
        return known.merged(replace(erased, rows={}))

    if erased:
        await _change(target, more)


async def check_copied(target: Store, manifest: Manifest, tally: Tally, *, absent: int) -> None:
    """Raise ReleaseCorrupt if a copy lacks rows other than those of erased users, of which the source lacked *absent*.

    Records their number for `verify`.
    """
    missing = manifest.count("user") - count_of(tally.counts, "user")
    others, theirs = (
        {kind: count for kind, count in each.items() if user_of(f"{kind}:") is None}
        for each in (manifest.counts, tally.counts)
    )
    others_differ = others != theirs
    if not missing or others_differ or not tally.left_out <= missing <= tally.left_out + absent:
        compare(manifest, tally)
        return

    async def more(_: Catalogue, known: ErasedUsers) -> ErasedUsers:
        return replace(known, rows={**known.rows, manifest.release: max(missing, known.rows.get(manifest.release, 0))})

    await _change(target, more)


async def _change(store: Store, more: Callable[[Catalogue, ErasedUsers], Awaitable[ErasedUsers]]) -> Catalogue:
    for _ in range(SWAP_ATTEMPTS):
        found = await store.catalogue()
        if not found.generation:
            raise ReleaseNotFound("nothing was ever published to this store, so it has no users to erase")
        known = await read_erased(store, found)
        wanted = (await more(found, known)).of_releases({entry.id for entry in found.releases})
        if wanted == known.of_releases({entry.id for entry in found.releases}):
            return found
        record = await write_record(store, wanted)

        def step(current: Catalogue, seen: Catalogue = found, new: Erased = record) -> Catalogue:
            if current.erased == new:
                return current  # made, but its reply was lost
            if current.version != seen.version:  # a prune may have erased the new record
                raise ReleaseConflict("the catalogue has changed; try again")
            return replace(current, erased=new)

        try:
            return await change(store, step)
        except StoreUnavailable:
            raise  # unclear; a prune erases an unused record
        except ReleaseConflict:
            await store.erase(ReleaseRef(ID, record.incarnation), partial(_check_unused, record))
    raise ReleaseConflict(f"the catalogue changed {SWAP_ATTEMPTS} times; try again when it is quieter")


def _check_unused(record: Erased, found: Catalogue) -> None:
    if found.erased == record:
        raise ReleaseConflict("the catalogue names this record of erased users")


async def _holding(store: Store, found: Catalogue, users: Sequence[str]) -> dict[ReleaseId, list[str]]:
    """Return the keys of the users' rows in all lists, by release."""
    held = dict[ReleaseId, list[str]]()
    for entry in found.committed:
        with suppress(ReleaseNotFound):  # pruned since
            try:
                names = (await load_manifest(store, entry.ref)).named
            except ReleaseCorrupt:
                names = {}
            keys = [prefix_of(USER, name) + user for name in ("", *names) for user in users]
            there = [key async for key, slot in read_slots(store, entry.ref, keys) if slot is not None]
            if len(there) >= len(held.get(entry.id, ())):
                held[entry.id] = there
    return held
