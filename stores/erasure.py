"""Erased users: hashes of their ids, and the rows that releases lack since.

Rollback, restore, copy and rebuild keep erasures. Readers treat erased users as unknown; their rows are deleted too if
the store can do that. `hotplate.stores.erasure_log` stores the record.

**Salts.** Ids are kept as keyed hashes. The key, a secret salt, is random in each store. A store that took over the
erased users of another has the hashes of both, by salt.

**Missing rows.** A release whose users were erased lacks rows that its manifest counts. The record has the sums over
them (count by kind, bytes, digest), and hashes of their keys, so that a repeated erasure counts none twice. Rows are
recorded before they are deleted. `verify` is exact at any time: it skips rows with these hashes, which may be present,
deleted, or restored by a node that restarted with older data, and adds the recorded sums.

**Unsummed rows** are missing rows that are only counted: damaged ones, whose sums as published are not known, those
and those beyond MAX_ROWS. `verify` accepts up to that number of missing rows.
"""

import secrets
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


@dataclass(frozen=True, slots=True)
class MissingRows:
    """Rows of erased users that one release lacks, or will lack once they are deleted."""

    sums: Tally = field(default_factory=Tally)
    key_hashes: frozenset[bytes] = frozenset()
    """Of the keys of these rows, but not of rows that a copy was made without."""

    unsummed_rows: int = 0
    """The number of further rows that may be missing, and are not in *sums*."""

    @property
    def max_rows(self) -> int:
        """The number of rows that may be missing."""
        return self.sums.rows + self.unsummed_rows


@dataclass(frozen=True, slots=True)
class ErasedUsers:
    """The erased users of a store; false if there are none."""

    hashes_by_salt: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict)
    """Hashes of user ids. The first salt is used for new ones; others are of stores that were copied from."""

    missing_by_release: Mapping[str, MissingRows] = field(default_factory=dict)
    """By the release's incarnation."""

    lost: int = 0
    """The number of ids that the catalogue counts, and the record has lost."""

    def __bool__(self) -> bool:
        return bool(self.hashes_by_salt)

    def covers(self, key: str) -> bool:
        """Return whether *key* is the row of an erased user, in any list."""
        user = RowKey.parse(key).user
        return user is not None and self.covers_user(user)

    def covers_user(self, user: str) -> bool:
        """Return whether *user* is erased; 1 µs per salt."""
        identifier = user.encode("utf-8", "surrogatepass")
        return any(_hash(salt, identifier) in hashes for salt, hashes in self.hashes_by_salt.items())

    @property
    def count(self) -> int:
        """The number of hashes."""
        return sum(map(len, self.hashes_by_salt.values()))

    def union(self, other: "ErasedUsers") -> "ErasedUsers":
        """Return the users of both; if both have missing rows of a release, those of *self* are kept."""
        hashes_by_salt = dict(self.hashes_by_salt)
        for salt, hashes in other.hashes_by_salt.items():
            hashes_by_salt[salt] = hashes_by_salt.get(salt, frozenset()) | hashes
        return ErasedUsers(hashes_by_salt, {**other.missing_by_release, **self.missing_by_release})

    def with_users(self, users: Iterable[str]) -> "ErasedUsers":
        """Return a copy with *users* too."""
        salt = next(iter(self.hashes_by_salt), None) or secrets.token_bytes(SALT_BYTES)
        old_hashes = self.hashes_by_salt.get(salt, frozenset())
        new_hashes = frozenset(_hash(salt, user.encode()) for user in users if not self.covers_user(user))
        return replace(self, hashes_by_salt={**self.hashes_by_salt, salt: old_hashes | new_hashes})

    def missing_from(self, release: ReleaseRef) -> MissingRows:
        """Return the rows that a release lacks, none if it was published without erased users."""
        return self.missing_by_release.get(release.incarnation, MissingRows())

    def max_rows_of_lost(self, manifest: Manifest) -> int:
        """Return how many rows may be deleted for lost users: one in each list, the default and named ones."""
        return self.lost * (1 + len(manifest.named))

    def with_missing(self, release: ReleaseRef, missing: MissingRows) -> "ErasedUsers":
        """Return a copy that has *missing* as the missing rows of a release."""
        if missing == self.missing_from(release):
            return self
        return replace(self, missing_by_release={**self.missing_by_release, release.incarnation: missing})

    def counting_as_missing(self, release: ReleaseRef, rows: Sequence[Row]) -> "ErasedUsers":
        """Return a copy in which *rows* of erased users, which a release still has, count as missing from it.

        Rows that are counted already change nothing. There must be erased users; new hashes use their first salt.
        """
        missing = self.missing_from(release)
        new_rows = [row for row in rows if not self.has_counted(row.key, missing)]

        # All releases share MAX_ROWS hashes; rows without a hash have no sums either.
        total_hashes = sum(len(other.key_hashes) for other in self.missing_by_release.values())
        hashed_rows = new_rows[: max(0, MAX_ROWS - total_hashes)]
        summed_rows = [row for row in hashed_rows if _is_intact(release, row)]

        salt = next(iter(self.hashes_by_salt))
        new_hashes = {_hash(salt, row.key.encode()) for row in hashed_rows}
        sums = Tally()
        sums.merge(missing.sums)
        sums.add(summed_rows)
        with_new = MissingRows(
            sums=sums,
            key_hashes=missing.key_hashes | new_hashes,
            unsummed_rows=missing.unsummed_rows + len(new_rows) - len(summed_rows),
        )
        return self.with_missing(release, with_new)

    def has_counted(self, key: str, missing: MissingRows) -> bool:
        """Return whether the row *key* is counted in *missing*; its hash may have any of the salts."""
        identifier = key.encode("utf-8", "surrogatepass")
        return any(_hash(salt, identifier) in missing.key_hashes for salt in self.hashes_by_salt)

    def renamed(self, new_names: Mapping[str, str]) -> "ErasedUsers":
        """Return a copy for releases with other incarnations, the *new_names* by the old ones."""
        renamed = {new_names.get(name, name): missing for name, missing in self.missing_by_release.items()}
        return replace(self, missing_by_release=renamed)

    def restricted_to(self, entries: Iterable[Release]) -> "ErasedUsers":
        """Return a copy with the missing rows of the releases *entries* alone; the users stay."""
        names = {entry.incarnation for entry in entries}
        missing_by_release = {name: missing for name, missing in self.missing_by_release.items() if name in names}
        return replace(self, missing_by_release=missing_by_release)

    def check_bounds(self) -> None:
        """Raise StoreMisused if there are more users than a store keeps."""
        if self.count > MAX_ERASED:
            raise StoreMisused(
                f"{self.count:,} users would be erased, and a store keeps {MAX_ERASED:,}; publish releases without "
                f"them into a new store, and serve that"
            )


NOBODY = ErasedUsers()


def missing_sums(manifest: Manifest, tally: Tally) -> Tally:
    """Return the sums over the rows that *manifest* counts and *tally* lacks; kinds without any are left out.

    A digest is a sum of hashes modulo 2^128, so the difference is the digest of the missing rows.
    """
    counts = dict[str, int]()
    for kind, count in manifest.counts.items():
        missing = count - tally.counts.get(kind, 0)
        if missing:
            counts[kind] = missing
    digest = (int(manifest.digest, 16) - tally.digest) % (1 << 128)
    return Tally(counts, bytes=manifest.bytes - tally.bytes, digest=digest)


def _hash(salt: bytes, identifier: bytes) -> bytes:
    return blake2b(identifier, digest_size=HASH_BYTES, key=salt).digest()


def _is_intact(release: ReleaseRef, row: Row) -> bool:
    """Return whether a row is as it was published: the manifest has other sums of a damaged one."""
    try:
        Checksum(release.id).open(row.key, row.value)
    except ReleaseCorrupt:
        return False
    return True
