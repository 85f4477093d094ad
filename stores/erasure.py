"""Erased users: hashes of their ids, and the rows that releases lack since.

Rollback, restore, copy and rebuild keep erasures. Unless the store is a RowEraser, releases keep the rows of erased
users, whom readers treat as unknown. `hotplate.stores.erasure_log` stores the record.

Ids are kept as hashes with a secret salt. The rows of erased users are counted
before they are deleted, by hashes of their keys. So a repeated erasure counts
none twice, and `verify` is exact at any time: it leaves these rows out, whether they are there, were deleted, or came
back with a node that restarted with older data, and adds their sums.
"""

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from hotplate.stores.catalogue import Release, ReleaseRef
from hotplate.stores.encoding import Checksum, RowKey
from hotplate.stores.errors import ReleaseCorrupt, StoreMisused
from hotplate.stores.manifest import Manifest, Tally
from hotplate.stores.store import Row

# 1.1 MB in the store, which takes that as one row, and 8 MB in each serving process.
MAX_ERASED = 100_000

# 0.6 MB in the store; new releases leave erased users out, so only those erased since a release was published count.
MAX_ROWS = 60_000

HASH_BYTES = 8
SALT_BYTES = 16
_DIGESTS = 1 << 128


@dataclass(frozen=True, slots=True)
class RowSums:
    """Sums over rows, as in a Tally and a manifest."""

    counts: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    digest: int = 0

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "RowSums":
        """Sum up *rows*."""
        tally = Tally()
        tally.add(rows)
        return cls(counts=tally.counts, bytes=tally.bytes, digest=tally.digest)

    @classmethod
    def lacking(cls, manifest: Manifest, tally: Tally) -> "RowSums":
        """Return the sums over the rows that *manifest* has and *tally* lacks; kinds without any are left out."""
        counts = dict[str, int]()
        for kind, count in manifest.counts.items():
            missing = count - tally.counts.get(kind, 0)
            if missing:
                counts[kind] = missing
        digest = (int(manifest.digest, 16) - tally.digest) % _DIGESTS
        return cls(counts, bytes=manifest.bytes - tally.bytes, digest=digest)

    def __add__(self, other: "RowSums") -> "RowSums":
        counts = dict(Counter(self.counts) + Counter(other.counts))
        digest = (self.digest + other.digest) % _DIGESTS
        return RowSums(counts=counts, bytes=self.bytes + other.bytes, digest=digest)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(self.counts.values())

    def add_to(self, tally: Tally) -> None:
        """Add these rows to *tally*."""
        tally.merge(Tally(counts=dict(self.counts), bytes=self.bytes, digest=self.digest))


@dataclass(frozen=True, slots=True)
class MissingRows:
    """Rows of erased users that a release has lost, or is about to lose."""

    sums: RowSums = RowSums()
    hashes: frozenset[bytes] = frozenset()
    """Of the keys of these rows, but not of rows that a copy was made without."""

    unsummed: int = 0
    """At most so many more are missing: damaged ones, those beyond MAX_ROWS, and those of earlier versions."""

    @property
    def most(self) -> int:
        """The number of rows that may be missing."""
        return self.sums.rows + self.unsummed


@dataclass(frozen=True, slots=True)
class ErasedUsers:
    """The erased users of a store; false if there are none."""

    groups: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict)
    """By salt: one of this store, one per store that was copied from."""

    rows: Mapping[str, MissingRows] = field(default_factory=dict)
    """By incarnation; what earlier versions counted, by the release's id."""

    lost: int = 0
    """The number of ids that the catalogue counts, and the record has lost."""

    def __bool__(self) -> bool:
        return bool(self.groups)

    def covers(self, key: str) -> bool:
        """Return whether *key* is the row of an erased user, in any list."""
        user = RowKey.parse(key).user
        return user is not None and self.covers_user(user)

    def covers_user(self, user: str) -> bool:
        """Return whether *user* is erased; 1 µs per salt."""
        identifier = user.encode("utf-8", "surrogatepass")
        return any(_hash(salt, identifier) in hashes for salt, hashes in self.groups.items())

    @property
    def count(self) -> int:
        """The number of hashes."""
        return sum(map(len, self.groups.values()))

    def merged(self, other: "ErasedUsers") -> "ErasedUsers":
        """Return the union; of rows that both have of a release, these."""
        groups = dict(self.groups)
        for salt, hashes in other.groups.items():
            groups[salt] = groups.get(salt, frozenset()) | hashes
        return ErasedUsers(groups, {**other.rows, **self.rows})

    def with_users(self, users: Iterable[str]) -> "ErasedUsers":
        """Return the union with *users*."""
        salt = next(iter(self.groups), None) or secrets.token_bytes(SALT_BYTES)
        new = frozenset(_hash(salt, user.encode()) for user in users if not self.covers_user(user))
        return replace(self, groups={**self.groups, salt: self.groups.get(salt, frozenset()) | new})

    def missing_from(self, release: ReleaseRef) -> MissingRows:
        """Return the rows that a release lacks, none if it was published without erased users."""
        return self.rows.get(release.incarnation) or self.rows.get(release.id) or MissingRows()

    def with_rows(self, release: ReleaseRef, missing: MissingRows) -> "ErasedUsers":
        """Return a copy with these rows of a release."""
        if missing == self.missing_from(release):
            return self
        return replace(self, rows={**self.rows, release.incarnation: missing})

    def with_missing(self, release: ReleaseRef, rows: Sequence[Row]) -> "ErasedUsers":
        """Return a copy in which *rows* of erased users, which the release still has, count as missing.

        For each release, `self.rows` has the sums (count, bytes, digest) over its missing rows, by which `verify`
        corrects the stored ones, and salted hashes of their keys, so that no row is counted twice. MAX_ROWS limits the
        hashes of all releases. Rows beyond it, and damaged rows, have no sums: `unsummed` is their number.

        `self.groups` has hashed user ids by salt, and must not be empty; new hashes use the first salt.
        """
        missing = self.missing_from(release)
        salt = next(iter(self.groups))
        new_rows = [row for row in rows if not self.hashes_of([row.key]) & missing.hashes]
        hashed = sum(len(missing_rows.hashes) for missing_rows in self.rows.values())
        kept_rows = new_rows[: max(0, MAX_ROWS - hashed)]
        whole_rows = [row for row in kept_rows if _is_whole(release, row)]
        with_new = MissingRows(
            sums=missing.sums + RowSums.of(whole_rows),
            hashes=missing.hashes | {_hash(salt, row.key.encode()) for row in kept_rows},
            unsummed=missing.unsummed + len(new_rows) - len(whole_rows),
        )
        return self.with_rows(release, with_new)

    def hashes_of(self, keys: Iterable[str]) -> set[bytes]:
        """Return the hashes by which *keys* may be counted as missing."""
        return {_hash(salt, key.encode("utf-8", "surrogatepass")) for key in keys for salt in self.groups}

    def of_releases(self, entries: Iterable[Release]) -> "ErasedUsers":
        """Return a copy without the rows of releases other than *entries*."""
        names = {name for entry in entries for name in entry.ref}
        return replace(self, rows={name: missing for name, missing in self.rows.items() if name in names})

    def check_bounds(self) -> None:
        """Raise StoreMisused if there are more users than a store keeps."""
        if self.count > MAX_ERASED:
            raise StoreMisused(
                f"{self.count:,} users would be erased, and a store keeps {MAX_ERASED:,}; publish releases without "
                f"them into a new store, and serve that"
            )


NOBODY = ErasedUsers()


def _hash(salt: bytes, identifier: bytes) -> bytes:
    return blake2b(identifier, digest_size=HASH_BYTES, key=salt).digest()


def _is_whole(release: ReleaseRef, row: Row) -> bool:
    """Return whether a row is as it was published: the manifest has other sums of a damaged one."""
    try:
        Checksum(release.id).open(row.key, row.value)
    except ReleaseCorrupt:
        return False
    return True
