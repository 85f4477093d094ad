"""The record of erased users, beside the catalogue.

    erased            all erased users, as of the change NUMBER
    erased-00 … 31    parts by earlier versions, of which each holds what one change added

All have the same content (`hotplate.stores.erasure`): the number of a change, hashes of user ids by salt, called groups
in the stored JSON, and the missing rows of releases, in base64 or hex. A change reads all records, writes the first one
anew, and empties the others. The catalogue has the number of the last change, and the count of the hashes of ids. Where
records and catalogue are not written in one atomic step, records come first: users of an interrupted change, which the
catalogue does not name, count all the same.

A lost record degrades a store: fewer ids than the catalogue counts are found (`ErasedUsers.lost`), and these must be
erased again. Nothing is refused because of it.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import msgspec

from hotplate.stores.catalogue import Catalogue, Erased, ReleaseId
from hotplate.stores.encoding import NO_OFFSET, OFFSET_BYTES, Checksum, decode_versioned
from hotplate.stores.erasure import HASH_BYTES, NOBODY, ErasedUsers, MissingRows
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.manifest import Tally
from hotplate.stores.store import Reader, RecordChange

ID: Final = ReleaseId("erased-users")

FORMAT = 2

SNAPSHOT = "erased"
PARTS = 32
NAMES = (SNAPSHOT, *(f"{SNAPSHOT}-{slot:02}" for slot in range(PARTS)))


# What errors call the record.
_SUBJECT = "the record of erased users"


class _Group(msgspec.Struct):
    salt: str
    hashes: bytes


class _Sums(msgspec.Struct):
    counts: dict[str, int]
    bytes: int
    digest: str


class _Missing(msgspec.Struct):
    sums: _Sums
    hashes: bytes
    unsummed: int


class _Part(msgspec.Struct):
    number: int
    groups: list[_Group]
    rows: dict[str, _Missing]
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class ErasureLog:
    """The record as it was read.

    *last* is the number of the last change, *stored* the bytes of all records by name. *damage* says that one of them
    is missing or unreadable.
    """

    users: ErasedUsers
    last: int = 0
    stored: Mapping[str, bytes] = field(default_factory=dict)
    damage: str | None = None

    def changes_for(self, users: ErasedUsers, *, min_count: int = 0) -> tuple[Erased, list[RecordChange]]:
        """Return the changes that make *users* the erased ones: the catalogue's entry, and those of the records.

        The entry counts at least *min_count* users, although some of them may be lost from the records. Raises
        StoreMisused if there are too many users.
        """
        users.check_bounds()
        number = self.last + 1
        changes = [RecordChange(SNAPSHOT, self.stored.get(SNAPSHOT), _dump(SNAPSHOT, number, users))]
        for name, value in self.stored.items():
            emptied = _dump(name, 0, NOBODY)
            if name != SNAPSHOT and value != emptied:
                changes.append(RecordChange(name, value, emptied))

        count = max(min_count, users.count)
        return Erased(count=count, last=number, token=secrets.token_hex(8)), changes


async def read_log(reader: Reader) -> ErasureLog:
    """Read the record of erased users, and what earlier versions have added to it.

    It can be read even if the catalogue is lost. If records are missing or damaged, the result has the users of the
    others. Without any record, it is empty, and has no damage. Raises StoreUnavailable, WrittenByNewer.
    """
    values = await reader.records(NAMES)
    stored = {name: value for name, value in zip(NAMES, values, strict=True) if value is not None}
    damage: str | None = None
    if stored and SNAPSHOT not in stored:
        damage = "a record of erased users is missing"

    parts = list[_ParsedPart]()
    for name, value in reversed(stored.items()):  # the first record comes after a part of the same number
        try:
            parts.append(_parse(name, value))
        except ReleaseCorrupt as error:
            damage = str(error)

    users = NOBODY
    for part in sorted(parts, key=lambda part: part.number):
        users = part.users.union(users)  # a part's missing rows replace those recorded before it
    return ErasureLog(users, last=max((part.number for part in parts), default=0), stored=stored, damage=damage)


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


def _dump(name: str, number: int, users: ErasedUsers) -> bytes:
    """Encode *users* as the record *name* of the change with this *number*: JSON behind a checksum."""
    groups = [_Group(salt.hex(), b"".join(sorted(hashes))) for salt, hashes in users.hashes_by_salt.items()]
    rows = dict[str, _Missing]()
    for release, missing in users.missing_by_release.items():
        hashes = b"".join(sorted(missing.key_hashes))
        sums = _Sums(missing.sums.counts, bytes=missing.sums.bytes, digest=f"{missing.sums.digest:x}")
        rows[release] = _Missing(sums=sums, hashes=hashes, unsummed=missing.unsummed_rows)
    part = _Part(number=number, groups=groups, rows=rows)
    return Checksum(ID).seal(name, NO_OFFSET + msgspec.json.encode(part))


class _ParsedPart(NamedTuple):
    number: int
    users: ErasedUsers


def _parse(name: str, value: bytes) -> _ParsedPart:
    """Parse the record *name*. Raises ReleaseCorrupt, WrittenByNewer for a newer format."""
    try:
        stored = Checksum(ID).open(name, value)[OFFSET_BYTES:]
        part = decode_versioned(stored, _Part, newest=FORMAT, subject=_SUBJECT)
        hashes_by_salt = {bytes.fromhex(group.salt): _split_hashes(group.hashes) for group in part.groups}
        rows = dict[str, MissingRows]()
        for release, missing in part.rows.items():
            sums = Tally(missing.sums.counts, bytes=missing.sums.bytes, digest=int(missing.sums.digest, 16))
            rows[release] = MissingRows(sums, _split_hashes(missing.hashes), missing.unsummed)
    except (msgspec.MsgspecError, ValueError, ReleaseCorrupt) as error:
        raise ReleaseCorrupt(f"{_SUBJECT} cannot be read ({name}: {error})") from error
    return _ParsedPart(part.number, ErasedUsers(hashes_by_salt, rows))


def _split_hashes(joined: bytes) -> frozenset[bytes]:
    return frozenset(joined[place : place + HASH_BYTES] for place in range(0, len(joined), HASH_BYTES))
