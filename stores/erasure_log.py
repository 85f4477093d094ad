"""The record of erased users: a log in records beside the catalogue.

    erased            the snapshot: all users erased up to the part of some NUMBER
    erased-00 … 31    the last parts, each what one change added; part NUMBER is in the record NUMBER mod 32

Snapshot and parts have the same content (`hotplate.stores.erasure`): hashes of user ids by salt, called groups in the
stored JSON, and the missing rows of releases, in base64 or hex. A change reads all records and writes the next part;
every 16 parts also a new snapshot. The catalogue has the number of the last part, and the count of the hashes of ids.
Where parts and catalogue are not written in one atomic step, parts come first: an interrupted change leaves a part that
the catalogue does not name, and counts all the same.

A lost record degrades a store: fewer ids than the catalogue counts are found (`ErasedUsers.lost`), and these must be
erased again. Nothing is refused because of it.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import msgspec

from hotplate.stores.catalogue import Catalogue, Erased, ReleaseId
from hotplate.stores.encoding import NO_OFFSET, OFFSET_BYTES, Checksum, decode_versioned
from hotplate.stores.erasure import HASH_BYTES, NOBODY, ErasedUsers, MissingRows, RowSums
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.store import Reader, RecordChange

ID: Final = ReleaseId("erased-users")

FORMAT = 2

SNAPSHOT = "erased"
PARTS = 32
NAMES = (SNAPSHOT, *(f"{SNAPSHOT}-{slot:02}" for slot in range(PARTS)))

# Half of PARTS: a new part replaces only one that the snapshot holds, even if the snapshot is written late.
PARTS_SINCE_SNAPSHOT = 16


# What errors call the record.
_SUBJECT = "the record of erased users"


class _Group(msgspec.Struct):
    salt: str
    hashes: bytes


class _Missing(msgspec.Struct):
    sums: RowSums
    hashes: bytes
    unsummed: int


class _Part(msgspec.Struct):
    number: int
    groups: list[_Group]
    rows: dict[str, _Missing]
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class ErasureLog:
    """The log as it was read.

    *last_part* is the number of the last part, *snapshot_part* that of the last part in the snapshot, *stored* the
    bytes of all records by name. *is_whole* is false if there is no log, or if the snapshot or a part after it is
    missing or unreadable: *damage* says why, *unreadable* are the names.
    """

    users: ErasedUsers
    last_part: int = 0
    snapshot_part: int = 0
    stored: Mapping[str, bytes] = field(default_factory=dict)
    is_whole: bool = False
    damage: str | None = None
    unreadable: tuple[str, ...] = ()

    def changes_for(self, users: ErasedUsers, *, min_count: int = 0) -> tuple[Erased, list[RecordChange]]:
        """Return the changes that make *users* the erased ones: the catalogue's entry, and those of the records.

        The entry counts at least *min_count* users, although some of them may be lost from the records. Raises
        StoreMisused if there are too many users.
        """
        users.check_bounds()
        number = self.last_part + 1
        new_part = f"{SNAPSHOT}-{number % PARTS:02}"
        changes = list[RecordChange]()

        # The snapshot holds the users before this change; the new part adds the others.
        if not self.is_whole or number > self.snapshot_part + PARTS_SINCE_SNAPSHOT:
            changes.append(self._change(SNAPSHOT, self.last_part, self.users))
        changes.append(self._change(new_part, number, _added(self.users, users)))

        # Unreadable parts become empty ones of number 0, which readers skip, as all parts up to the snapshot's number.
        for name in self.unreadable:
            if name not in (SNAPSHOT, new_part):
                changes.append(self._change(name, 0, NOBODY))

        count = max(min_count, users.count)
        return Erased(count=count, last=number, token=secrets.token_hex(8)), changes

    def _change(self, name: str, number: int, users: ErasedUsers) -> RecordChange:
        return RecordChange(name, self.stored.get(name), _dump(name, number, users))


async def read_log(reader: Reader) -> ErasureLog:
    """Read the log of erased users: the snapshot, and the parts after it, which hold later changes.

    They are records beside the catalogue, so they can be read even if that is lost. If some are missing or damaged, the
    log is not whole, and has the users of the others. Without any record, it is empty, not whole, and has no damage.
    Raises StoreUnavailable, WrittenByNewer.
    """
    values = await reader.records(NAMES)
    stored = {name: value for name, value in zip(NAMES, values, strict=True) if value is not None}
    snapshot: _ParsedPart | None = None
    parts = dict[int, ErasedUsers]()
    damage: str | None = None
    unreadable = list[str]()

    for name, value in stored.items():
        try:
            part = _parse(name, value)
        except ReleaseCorrupt as error:
            damage = str(error)
            unreadable.append(name)
            continue
        if name == SNAPSHOT:
            snapshot = part
        else:
            parts[part.number] = part.users

    snapshot_part = 0 if snapshot is None else snapshot.number
    users = NOBODY if snapshot is None else snapshot.users

    # Records are used in turn, so those of parts that the snapshot has already may still be there.
    later_parts = sorted(number for number in parts if number > snapshot_part)
    for number in later_parts:
        users = parts[number].union(users)  # a part's missing rows replace those recorded before it

    last_part = max([snapshot_part, *later_parts])
    has_all_parts = snapshot is not None and later_parts == list(range(snapshot_part + 1, last_part + 1))
    if stored and not has_all_parts and damage is None:
        damage = "a record of erased users is missing"

    return ErasureLog(
        users=users,
        last_part=last_part,
        snapshot_part=snapshot_part,
        stored=stored,
        is_whole=bool(stored) and damage is None,
        damage=damage,
        unreadable=tuple(unreadable),
    )


async def read_erased(reader: Reader, catalogue: Catalogue) -> ErasedUsers:
    """Read the erased users whom *catalogue* counts. Raises StoreUnavailable, WrittenByNewer."""
    if catalogue.erased is None:
        return NOBODY
    users = (await read_log(reader)).users
    return replace(users, lost=max(0, catalogue.erased.count - users.count))


async def erased_from(reader: Reader) -> ErasedUsers:
    """Read the catalogue and its record, again if an erasure replaced it in between."""
    catalogue = await reader.catalogue()
    users = await read_erased(reader, catalogue)
    if users.lost and (again := await reader.catalogue()).erased != catalogue.erased:
        return await read_erased(reader, again)
    return users


def lost_sentence(lost: int) -> str:
    """Return what to do about *lost* ids."""
    return (
        f"{_SUBJECT} has lost {lost:,} of them, and shows them again: erase these ids again with "
        f"`hotplate users erase`; if they are unknown, `hotplate users accept-loss` accepts the loss"
    )


def draft_sentence(release: ReleaseId) -> str:
    """Return when a release that is being written loses the rows of erased users."""
    return f"release {release} is being written, and is searched for erased users when it is committed"


def _added(before: ErasedUsers, users: ErasedUsers) -> ErasedUsers:
    """Return what a new part records: the users of *users* that *before* lacks, and changed rows of releases.

    Users are hashes of ids by salt. The rows of a release are those of erased users that it lacks.
    """
    added = dict[bytes, frozenset[bytes]]()
    for salt, hashes in users.hashes_by_salt.items():
        new_hashes = hashes - before.hashes_by_salt.get(salt, frozenset())
        if new_hashes:
            added[salt] = new_hashes
    changed = {
        name: missing
        for name, missing in users.missing_by_release.items()
        if before.missing_by_release.get(name) != missing
    }
    return ErasedUsers(added, changed)


def _dump(name: str, number: int, users: ErasedUsers) -> bytes:
    """Encode *users* as the record *name*: JSON behind a checksum.

    The record is the part with this *number*, or the snapshot of all parts up to it.
    """
    groups = [_Group(salt.hex(), b"".join(sorted(hashes))) for salt, hashes in users.hashes_by_salt.items()]
    rows = dict[str, _Missing]()
    for release, missing in users.missing_by_release.items():
        hashes = b"".join(sorted(missing.key_hashes))
        rows[release] = _Missing(sums=missing.sums, hashes=hashes, unsummed=missing.unsummed_rows)
    part = _Part(number=number, groups=groups, rows=rows)
    return Checksum(ID).seal(name, NO_OFFSET + msgspec.json.encode(part))


class _ParsedPart(NamedTuple):
    number: int
    users: ErasedUsers


def _parse(name: str, value: bytes) -> _ParsedPart:
    """Parse the record *name*, a part or the snapshot. Raises ReleaseCorrupt, WrittenByNewer for a newer format."""
    try:
        stored = Checksum(ID).open(name, value)[OFFSET_BYTES:]
        part = decode_versioned(stored, _Part, newest=FORMAT, subject=_SUBJECT)
        rows = dict[str, MissingRows]()
        for release, missing in part.rows.items():
            hashes = _split_hashes(missing.hashes)
            rows[release] = MissingRows(missing.sums, key_hashes=hashes, unsummed_rows=missing.unsummed)
        return _ParsedPart(part.number, ErasedUsers(_parse_groups(part.groups), rows))
    except (msgspec.MsgspecError, ValueError, ReleaseCorrupt) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> ReleaseCorrupt:
    return ReleaseCorrupt(f"{_SUBJECT} cannot be read ({name}: {error})")


def _parse_groups(groups: Sequence[_Group]) -> dict[bytes, frozenset[bytes]]:
    return {bytes.fromhex(group.salt): _split_hashes(group.hashes) for group in groups}


def _split_hashes(joined: bytes) -> frozenset[bytes]:
    return frozenset(joined[place : place + HASH_BYTES] for place in range(0, len(joined), HASH_BYTES))
