"""Erasing users for good, and finding what holds them still: written once over any store."""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from hotplate.stores.catalogue import Catalogue, DraftRef, Erased, Release, ReleaseId, ReleaseRef, State
from hotplate.stores.erasure import ID, KEY, ErasedUsers, parse_erased, read_erased, row_of
from hotplate.stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.keys import USER
from hotplate.stores.lifecycle import SWAP_ATTEMPTS, change
from hotplate.stores.manifest import Manifest, Tally, compare
from hotplate.stores.store import Plan, ProvisionedStore, RowEraser, Store, read_one


@dataclass(frozen=True, slots=True)
class Erasure:
    """The result of an erasure, or of a search."""

    erased: tuple[str, ...]
    """Users who are erased, of those that were named."""

    holding: Mapping[ReleaseId, tuple[str, ...]]
    """Releases that hold rows of these users still, until they are pruned."""

    being_written: tuple[ReleaseId, ...]
    """Drafts, which were not looked into."""

    deleted: int = 0
    """How many rows were deleted."""


async def find_records(store: Store) -> dict[str, ErasedUsers]:
    """Return all records of erased users that a store holds, by incarnation; works without a catalogue.

    Raises ReleaseCorrupt for a record that cannot be read: without it, its users would be served again.
    """
    found = dict[str, ErasedUsers]()
    for incarnation in await store.incarnations():
        value: bytes | None = None
        with suppress(ReleaseNotFound, ReleaseCorrupt):  # of a draft, or a damaged release
            value = await read_one(store, ReleaseRef(ID, incarnation), KEY)
        try:
            if value is not None:
                found[incarnation] = parse_erased(value)
        except ReleaseCorrupt as error:
            raise ReleaseCorrupt(
                f"incarnation {incarnation} holds users who were erased, and would be served again: {error}; restore "
                f"the store from a backup"
            ) from error
    return found


async def write_record(store: Store, users: ErasedUsers) -> Erased:
    """Write a record, which counts once a catalogue names it."""
    draft = DraftRef(ID, secrets.token_hex(6), f"erase-{secrets.token_hex(8)}")
    row = row_of(users)
    await store.create(draft, Plan(1, len(row.key) + len(row.value), len(row.value)))
    await store.put(draft, [row])
    await store.seal(draft)
    if isinstance(store, ProvisionedStore):
        await store.scale_down(draft.release)
    return Erased(draft.incarnation, users.count)


async def erase_users(store: Store, users: Sequence[str]) -> Erasure:
    """Erase *users* for good: readers answer them as unknown from the next refresh on, whatever is live.

    Rows are deleted where the store can. Raises ReleaseNotFound if nothing was ever published.
    """
    wanted = list(dict.fromkeys(users))
    keys = [USER + user for user in wanted]

    counted = dict[ReleaseId, list[str]]()

    async def more(found: Catalogue, known: ErasedUsers) -> ErasedUsers:
        # Where rows are deleted, a row of an erased user is of a release that was written meanwhile.
        fresh = keys if isinstance(store, RowEraser) else [key for key in keys if not known.covers(key)]
        counted.clear()
        counted.update(await _holding(store, found, fresh))
        return known.with_users(wanted, {release: len(there) for release, there in counted.items()})

    found = await _change(store, more)
    deleted = 0
    if isinstance(store, RowEraser):  # only rows that the record counts, or they would be missing
        for entry in _committed(found):
            with suppress(ReleaseNotFound):  # pruned in between
                deleted += await store.erase_rows(entry.ref, counted.get(entry.id, ()))
    return replace(await find_users(store, wanted), deleted=deleted)


async def find_users(store: Store, users: Sequence[str]) -> Erasure:
    """Return which of *users* are erased, and which releases hold rows of theirs; changes nothing."""
    found = await store.catalogue()
    erased = await read_erased(store, found)
    wanted = list(dict.fromkeys(users))
    held = await _holding(store, found, [USER + user for user in wanted])
    drafts = tuple(entry.id for entry in found.releases if entry.state is State.DRAFT)
    holding = {release: tuple(key[len(USER) :] for key in there) for release, there in held.items() if there}
    return Erasure(tuple(user for user in wanted if erased.covers(USER + user)), holding, drafts)


async def take_over_erasures(target: Store, erased: ErasedUsers) -> ErasedUsers:
    """Have all who were erased elsewhere erased in *target*, too; return who is."""

    async def more(_: Catalogue, known: ErasedUsers) -> ErasedUsers:
        return known if known.contains(erased) else known.merged(replace(erased, rows={}))

    found = await _change(target, more) if erased else await target.catalogue()
    return await read_erased(target, found)


async def check_copied(target: Store, manifest: Manifest, tally: Tally, left_out: int, absent: int) -> None:
    """Hold the rows of a copy against the manifest, where *left_out* were of erased users, as up to *absent* more were.

    The number is noted, so `verify` takes the copy for whole. Raises ReleaseCorrupt if any other row is missing.
    """
    missing = manifest.counts.get("user", 0) - tally.counts.get("user", 0)
    others = {kind: count for kind, count in manifest.counts.items() if kind != "user"}
    is_explained = left_out <= missing <= left_out + absent
    if not missing or not is_explained or others != {k: n for k, n in tally.counts.items() if k != "user"}:
        compare(manifest, tally)
        return

    async def more(_: Catalogue, known: ErasedUsers) -> ErasedUsers:
        return replace(known, rows={**known.rows, manifest.release: max(missing, known.rows.get(manifest.release, 0))})

    await _change(target, more)


async def _change(store: Store, more: Callable[[Catalogue, ErasedUsers], Awaitable[ErasedUsers]]) -> Catalogue:
    """Replace the record by what *more* returns, by compare-and-set; return the catalogue then."""
    for _ in range(SWAP_ATTEMPTS):
        found = await store.catalogue()
        if not found.generation:
            raise ReleaseNotFound("nothing was ever published to this store, so there is nobody to erase")
        known = await read_erased(store, found)
        wanted = (await more(found, known)).of_releases({entry.id for entry in found.releases})
        if wanted == known.of_releases({entry.id for entry in found.releases}):
            return found
        record = await write_record(store, wanted)

        def step(current: Catalogue, seen: Catalogue = found, new: Erased = record) -> Catalogue:
            if current.erased == new:
                return current  # a swap whose reply was lost
            if current.version != seen.version:  # a prune may have erased the new record, which nothing names yet
                raise ReleaseConflict("the catalogue has changed meanwhile; try again")
            return replace(current, erased=new)

        try:
            return await change(store, step)
        except StoreUnavailable:
            raise  # it may have been made: a prune erases the record if not
        except ReleaseConflict:
            await store.erase(ReleaseRef(ID, record.incarnation))
    raise ReleaseConflict(f"the catalogue changed {SWAP_ATTEMPTS} times meanwhile; try again when it is quieter")


async def _holding(store: Store, found: Catalogue, keys: Sequence[str]) -> dict[ReleaseId, list[str]]:
    """Return for each release that is complete which of *keys* it has rows of, damaged ones too."""
    held = dict[ReleaseId, list[str]]()
    for entry in _committed(found):
        there = list[str]()
        try:
            for start in range(0, len(keys), store.batch):
                chunk = keys[start : start + store.batch]
                for key, slot in zip(chunk, await store.get_many(entry.ref, chunk), strict=True):
                    if isinstance(slot, StoreError) and not isinstance(slot, ReleaseCorrupt):
                        raise slot
                    if slot is not None:
                        there.append(key)
        except ReleaseNotFound:
            continue  # pruned in between
        if len(there) >= len(held.get(entry.id, ())):
            held[entry.id] = there
    return held


def _committed(found: Catalogue) -> list[Release]:
    return [entry for entry in found.releases if entry.state not in (State.DRAFT, State.DROPPING)]
