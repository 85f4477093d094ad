"""Erased users: hashes of their ids, in one row of an incarnation that the catalogue names.

An erasure writes a new incarnation and swaps the catalogue to it. Rollback, restore, copy and rebuild keep erasures.
Unless the store is a RowEraser, releases keep the rows of erased users, whom readers treat as unknown. A release that
lacks as many user rows as the record counts is complete.
"""

import base64
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final

import msgspec
import orjson

from hotplate.stores.catalogue import Catalogue, RecordFormat, ReleaseId, ReleaseRef
from hotplate.stores.encoding import META, NO_OFFSET, OFFSET_BYTES, USER, Checksum, user_of
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreMisused, check_format
from hotplate.stores.store import Reader, Row, read_one

ID: Final = ReleaseId("erased-users")
KEY = META + "erased"
FORMAT = 1

# 1.1 MB as one row, which any store takes, and 8 MB in each serving process.
MAX_ERASED = 100_000
HASH_BYTES = 8
SALT_BYTES = 16


class _Group(msgspec.Struct):
    salt: str
    hashes: str


class _Record(msgspec.Struct):
    groups: list[_Group]
    rows: dict[str, int]


@dataclass(frozen=True, slots=True)
class ErasedUsers:
    """The erased users of a store; false if there are none."""

    groups: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict)
    """By salt: one of this store, one per store that was copied from."""

    rows: Mapping[ReleaseId, int] = field(default_factory=dict)
    """Number of erased users' rows in each release as written."""

    def __bool__(self) -> bool:
        return bool(self.groups)

    def covers(self, key: str) -> bool:
        """Return whether *key* is the row of an erased user, in any list; 1 µs per salt."""
        user = user_of(key)
        if user is None:
            return False
        identifier = user.encode("utf-8", "surrogatepass")
        return any(_hash(salt, identifier) in hashes for salt, hashes in self.groups.items())

    @property
    def count(self) -> int:
        """The number of hashes."""
        return sum(map(len, self.groups.values()))

    def merged(self, other: "ErasedUsers") -> "ErasedUsers":
        """Return the union; StoreMisused if it exceeds MAX_ERASED."""
        groups = {
            salt: self.groups.get(salt, frozenset()) | other.groups.get(salt, frozenset())
            for salt in (*self.groups, *other.groups)
        }
        return _bounded(ErasedUsers(groups, Counter(self.rows) | Counter(other.rows)))

    def with_users(self, users: Iterable[str], rows: Mapping[ReleaseId, int]) -> "ErasedUsers":
        """Return the union with *users*, with *rows* added; StoreMisused if it exceeds MAX_ERASED."""
        salt = next(iter(self.groups), None) or secrets.token_bytes(SALT_BYTES)
        new = frozenset(_hash(salt, user.encode()) for user in users if not self.covers(USER + user))
        groups = {**self.groups, salt: self.groups.get(salt, frozenset()) | new}
        return _bounded(ErasedUsers(groups, Counter(self.rows) + Counter(rows)))

    def of_releases(self, releases: Collection[ReleaseId]) -> "ErasedUsers":
        """Return a copy without the counts of other releases."""
        return replace(self, rows={name: count for name, count in self.rows.items() if count and name in releases})


NOBODY = ErasedUsers()


async def read_erased(reader: Reader, found: Catalogue) -> ErasedUsers:
    """Read the record that *found* names, if any. Raises StoreError."""
    if found.erased is None:
        return NOBODY
    try:
        value = await read_one(reader, ReleaseRef(ID, found.erased.incarnation), KEY)
    except (ReleaseNotFound, ReleaseCorrupt) as error:
        raise _lost(str(error)) from error
    erased = None if value is None else parse_erased(value)
    if erased is None or erased.count != found.erased.count:
        raise _lost("it is missing, or a different one")
    return erased


async def erased_from(reader: Reader) -> ErasedUsers:
    """Read the catalogue and its record, again if an erasure replaced it in between."""
    found = await reader.catalogue()
    try:
        return await read_erased(reader, found)
    except ReleaseCorrupt:
        again = await reader.catalogue()
        if again.erased == found.erased:
            raise
        return await read_erased(reader, again)


def _hash(salt: bytes, identifier: bytes) -> bytes:
    return blake2b(identifier, digest_size=HASH_BYTES, key=salt).digest()


def _bounded(users: ErasedUsers) -> ErasedUsers:
    if users.count > MAX_ERASED:
        raise StoreMisused(
            f"{users.count:,} users would be erased, and a store keeps {MAX_ERASED:,}; publish releases without them "
            f"into a new store, and serve that"
        )
    return users


def row_of(users: ErasedUsers) -> Row:
    """Return the row of a record."""
    groups = [
        {"salt": salt.hex(), "hashes": base64.b64encode(b"".join(sorted(hashes))).decode()}
        for salt, hashes in sorted(users.groups.items())
    ]
    record = orjson.dumps({"format": FORMAT, "groups": groups, "rows": dict(users.rows)})
    return Row(KEY, Checksum(ID).seal(KEY, NO_OFFSET + record))


def parse_erased(value: bytes) -> ErasedUsers:
    """Parse a record; ReleaseCorrupt if it is invalid."""
    try:
        stored = Checksum(ID).open(KEY, value)[OFFSET_BYTES:]
        # First: others may have other fields.
        check_format(msgspec.json.decode(stored, type=RecordFormat).format, FORMAT, "the record of erased users")
        record = msgspec.json.decode(stored, type=_Record)
        groups = dict[bytes, frozenset[bytes]]()
        for group in record.groups:
            raw = base64.b64decode(group.hashes, validate=True)
            hashes = (raw[place : place + HASH_BYTES] for place in range(0, len(raw), HASH_BYTES))
            groups[bytes.fromhex(group.salt)] = frozenset(hashes)
    except (msgspec.MsgspecError, ValueError, ReleaseCorrupt) as error:
        raise _lost(str(error)) from error
    return ErasedUsers(groups, {ReleaseId(release): count for release, count in record.rows.items()})


def _lost(why: str) -> ReleaseCorrupt:
    return ReleaseCorrupt(
        f"the record of erased users cannot be read, so nothing new is served: {why}; restore a backup into a new "
        f"store, or see `hotplate users` in the documentation of security"
    )
