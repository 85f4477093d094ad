"""The record of erased users: a log in records beside the catalogue.

    erased            all up to a part NUMBER, the base
    erased-00 … 31    the last parts: what a change added to all before it; part NUMBER is in NUMBER mod 32

A part holds groups of hashes by salt, and rows that releases lack (`hotplate.stores.erasure`), both in base64 or hex. A
change writes the next part, after it has read all others; every 16 parts also a new base. The catalogue names the
last part, and counts the hashes of ids. Where parts and catalogue are not written in one atomic step, parts come first:
an interrupted change leaves a part that the catalogue does not name, and counts all the same.

A lost record degrades a store: fewer ids than the catalogue counts are found (`ErasedUsers.lost`), and these must be
erased again. Nothing is refused because of it.

Until format 4 of the catalogue, the record was a row of an incarnation that the catalogue names.
"""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import msgspec

from hotplate.stores.catalogue import Catalogue, Erased, ReleaseId, ReleaseRef
from hotplate.stores.encoding import META, NO_OFFSET, OFFSET_BYTES, Checksum, decode_versioned
from hotplate.stores.erasure import HASH_BYTES, NOBODY, ErasedUsers, MissingRows, RowSums
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound
from hotplate.stores.store import Reader, RecordChange, Store, read_one

ID: Final = ReleaseId("erased-users")

# The row of a record in an incarnation, of format 1.
KEY = META + "erased"
FORMAT = 2

BASE = "erased"
PARTS = 32
NAMES = (BASE, *(f"{BASE}-{slot:02}" for slot in range(PARTS)))

# Parts since the base: new ones replace only parts that the base holds, also if it is written late.
PARTS_SINCE_BASE = 16


# What errors call the record.
_SUBJECT = "the record of erased users"


class _Group(msgspec.Struct):
    salt: str
    hashes: str


class _Sums(msgspec.Struct):
    counts: dict[str, int]
    bytes: int
    digest: str


class _Missing(msgspec.Struct):
    sums: _Sums
    hashes: str
    unsummed: int


class _Part(msgspec.Struct):
    number: int
    groups: list[_Group]
    rows: dict[str, _Missing]
    format: int = FORMAT


class _FirstFormat(msgspec.Struct):
    groups: list[_Group]
    rows: dict[str, int]


@dataclass(frozen=True, slots=True)
class ErasureLog:
    """The log as it was read.

    *last* is the number of the last part, *base* that of the base, *stored* the bytes of all records by name. Unless
    *is_whole*, there is no log, or the base or a part after it is missing or unreadable: *damage* says why,
    *unreadable* are the names.
    """

    users: ErasedUsers
    last: int = 0
    base: int = 0
    stored: dict[str, bytes] | None = None
    is_whole: bool = False
    damage: str | None = None
    unreadable: tuple[str, ...] = ()

    def appended(self, users: ErasedUsers, expected: int = 0) -> tuple[Erased, list[RecordChange]]:
        """Return the catalogue's entry, and the changes of records, by which *users* become the erased ones.

        *expected* is the count in the catalogue, which stays if fewer are known. Besides the next part, a new base is
        written if the log is not whole or the base is old, and unreadable parts are replaced by empty ones. Raises
        StoreMisused if there are too many users.
        """
        users.check_bounds()
        number = self.last + 1
        part = f"{BASE}-{number % PARTS:02}"
        records = list[RecordChange]()
        if not self.is_whole or number > self.base + PARTS_SINCE_BASE:
            records.append(self._change(BASE, self.last, self.users))
        records.append(self._change(part, number, _added(self.users, users)))
        records += [self._change(name, 0, NOBODY) for name in self.unreadable if name not in (BASE, part)]
        entry = Erased(incarnation="", count=max(expected, users.count), last=number, token=secrets.token_hex(8))
        return entry, records

    def _change(self, name: str, number: int, users: ErasedUsers) -> RecordChange:
        return RecordChange(name, (self.stored or {}).get(name), _dump(name, number, users))


async def read_log(reader: Reader) -> ErasureLog:
    """Read the log of erased users from the records beside the catalogue, which may be lost itself.

    A log is a base, all users erased up to some number, and numbered parts after it, each with what it added. Records
    that are missing or damaged make it not whole (`damage` says why), and the users of the others remain. Raises
    StoreUnavailable, WrittenByNewer.
    """
    values = await reader.records(NAMES)
    stored = {name: value for name, value in zip(NAMES, values, strict=True) if value is not None}
    base: _ParsedPart | None = None
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
        if name == BASE:
            base = part
        else:
            parts[part.number] = part.users

    base_number = 0 if base is None else base.number
    users = NOBODY if base is None else base.users
    later = sorted(number for number in parts if number > base_number)
    for number in later:
        users = parts[number].merged(users)

    last = max([base_number, *later])
    has_all_parts = base is not None and later == list(range(base_number + 1, last + 1))
    if stored and not has_all_parts:
        damage = damage or "a record of erased users is missing"
    return ErasureLog(
        users=users,
        last=last,
        base=base_number,
        stored=stored,
        is_whole=bool(stored) and damage is None,
        damage=damage,
        unreadable=tuple(unreadable),
    )


async def read_erased(reader: Reader, catalogue: Catalogue) -> ErasedUsers:
    """Read the erased users whom *catalogue* counts. Raises StoreUnavailable, WrittenByNewer."""
    if catalogue.erased is None:
        return NOBODY
    if catalogue.erased.incarnation:
        users = await read_incarnation(reader, catalogue.erased.incarnation) or NOBODY
    else:
        users = (await read_log(reader)).users
    return replace(users, lost=max(0, catalogue.erased.count - users.count))


async def erased_from(reader: Reader) -> ErasedUsers:
    """Read the catalogue and its record, again if an erasure replaced it in between."""
    catalogue = await reader.catalogue()
    users = await read_erased(reader, catalogue)
    if users.lost and (again := await reader.catalogue()).erased != catalogue.erased:
        return await read_erased(reader, again)
    return users


async def read_incarnation(reader: Reader, incarnation: str) -> ErasedUsers | None:
    """Read a record of format 1; None if the incarnation holds none, or it cannot be read."""
    try:
        value = await read_one(reader, ReleaseRef(ID, incarnation), KEY)
        return None if value is None else parse_first_format(value)
    except (ReleaseNotFound, ReleaseCorrupt):
        return None


async def find_erased(store: Store) -> ErasedUsers:
    """Return the union of all records, even without a catalogue."""
    users = (await read_log(store)).users
    for incarnation in await store.incarnations():
        users = users.merged(await read_incarnation(store, incarnation) or NOBODY)
    return users


def first_records(users: ErasedUsers, expected: int = 0) -> tuple[Erased, list[RecordChange]]:
    """Return the catalogue's entry and the records of a store without any."""
    return ErasureLog(NOBODY).appended(users, expected)


def lost_sentence(lost: int) -> str:
    """Return what to do about *lost* ids."""
    return (
        f"{_SUBJECT} has lost {lost:,} of them, and shows them again: erase these ids again, as by "
        f"`hotplate users erase`; `hotplate store repair` accepts the loss"
    )


def _added(before: ErasedUsers, users: ErasedUsers) -> ErasedUsers:
    """Return what a part must hold so that *before* becomes *users*."""
    groups = {salt: hashes - before.groups.get(salt, frozenset()) for salt, hashes in users.groups.items()}
    rows = {name: missing for name, missing in users.rows.items() if before.rows.get(name) != missing}
    return ErasedUsers({salt: hashes for salt, hashes in groups.items() if hashes}, rows)


def _dump(name: str, number: int, users: ErasedUsers) -> bytes:
    """Encode the record *name* of the log, the base or a part, with its number: JSON behind a checksum."""
    groups = [_Group(salt.hex(), _joined(hashes)) for salt, hashes in users.groups.items()]
    rows = {release: _stored(missing) for release, missing in users.rows.items()}
    part = _Part(number=number, groups=groups, rows=rows)
    return Checksum(ID).seal(name, NO_OFFSET + msgspec.json.encode(part))


def _stored(missing: MissingRows) -> _Missing:
    sums = _Sums(counts=dict(missing.sums.counts), bytes=missing.sums.bytes, digest=f"{missing.sums.digest:x}")
    return _Missing(sums=sums, hashes=_joined(missing.hashes), unsummed=missing.unsummed)


def _joined(hashes: frozenset[bytes]) -> str:
    return base64.b64encode(b"".join(sorted(hashes))).decode()


class _ParsedPart(NamedTuple):
    number: int
    users: ErasedUsers


def _parse(name: str, value: bytes) -> _ParsedPart:
    """Parse a part or the base; ReleaseCorrupt if it is damaged, WrittenByNewer for a newer format."""
    try:
        stored = Checksum(ID).open(name, value)[OFFSET_BYTES:]
        part = decode_versioned(stored, _Part, newest=FORMAT, subject=_SUBJECT)
        rows = {release: _parse_missing(missing) for release, missing in part.rows.items()}
        return _ParsedPart(part.number, ErasedUsers(_groups(part.groups), rows))
    except (msgspec.MsgspecError, ValueError, ReleaseCorrupt) as error:
        raise _unreadable(name, error) from error


def parse_first_format(value: bytes) -> ErasedUsers:
    """Parse the row of an incarnation, of format 1; ReleaseCorrupt if it is invalid."""
    try:
        stored = Checksum(ID).open(KEY, value)[OFFSET_BYTES:]
        record = decode_versioned(stored, _FirstFormat, newest=1, subject=_SUBJECT)
        rows = {release: MissingRows(unsummed=count) for release, count in record.rows.items()}
        return ErasedUsers(_groups(record.groups), rows)
    except (msgspec.MsgspecError, ValueError, ReleaseCorrupt) as error:
        raise _unreadable(KEY, error) from error


def _unreadable(name: str, error: Exception) -> ReleaseCorrupt:
    return ReleaseCorrupt(f"{_SUBJECT} cannot be read ({name}: {error})")


def _parse_missing(stored: _Missing) -> MissingRows:
    sums = RowSums(counts=stored.sums.counts, bytes=stored.sums.bytes, digest=int(stored.sums.digest, 16))
    return MissingRows(sums=sums, hashes=_split(stored.hashes), unsummed=stored.unsummed)


def _groups(groups: Sequence[_Group]) -> dict[bytes, frozenset[bytes]]:
    return {bytes.fromhex(group.salt): _split(group.hashes) for group in groups}


def _split(hashes: str) -> frozenset[bytes]:
    """Return the hashes in a text; ValueError if it is not base64."""
    raw = base64.b64decode(hashes, validate=True)
    return frozenset(raw[place : place + HASH_BYTES] for place in range(0, len(raw), HASH_BYTES))
