"""The manifest: the description of a release, with sums that show whether its rows are complete.

It is the last row of a release that is written. A tally holds the same sums over rows that are written or read: their
number by kind, their bytes and a digest that does not depend on their order. Its sample are keys that are read before
the release is served.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec
import orjson
from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.encoding import (
    ENCODINGS,
    HEADER_BYTES,
    ITEM,
    MANIFEST,
    MAX_LISTS,
    META,
    NO_OFFSET,
    OFFSET_BYTES,
    OVERALL,
    POPULAR,
    USER,
    Checksum,
    RecordFormat,
    RowKey,
    check_kind,
    check_list,
    decode_versioned,
    prefix_of,
)
from hotplate.stores.errors import HEAL, ReleaseCorrupt, StoreMisused, WrittenByNewer
from hotplate.stores.origin import Origin
from hotplate.stores.store import Row

FORMAT = 2
# Of releases with named lists, which earlier versions refuse.
FORMAT_WITH_NAMES = 3
MAX_POPULAR_LISTS = 1001
MAX_POPULAR_BYTES = 8 << 20

# Rows of the sample, chosen by the smallest hashes of their keys.
SAMPLE_ROWS = 64
_HASHES = 1 << 64
_SAMPLED = (USER, ITEM)


@dataclass(slots=True)
class Tally:
    """Sums over rows, the same in any order of the rows, by which a release is compared with its manifest."""

    counts: dict[str, int] = field(default_factory=dict)
    """Rows by kind as in keys, such as `user`, `popular@basket`; without the manifest."""

    bytes: int = 0
    """Of keys and values."""

    digest: int = 0
    """The sum of the rows' hashes, modulo 2^128."""

    popular: list[str] = field(default_factory=list)
    """Keys of popular lists."""

    popular_bytes: int = 0
    """Of the values of popular lists."""

    left_out: int = 0
    """Rows of erased users that were not added."""

    drawn: list[tuple[int, str]] = field(default_factory=list)
    """(hash, key) of the SAMPLE_ROWS users and items with the smallest hashes, in order."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.counts.values())

    def add(self, rows: Sequence[Row]) -> None:
        """Add *rows* except the manifest; StoreMisused for a key of unknown kind.

        The kind is the prefix of a key, such as `user` in `user:42`. The digest is the sum modulo 2^128 of
        xxh3_128(len(key) ‖ key ‖ value), the length in 4 bytes.
        """
        if not rows:
            return

        # If the smallest and the largest key have one prefix, all keys have it, as in most calls.
        first = min(rows).key
        last = max(rows).key
        prefix = first[: first.find(":") + 1]
        if prefix and last.startswith(prefix):
            self._add(prefix[:-1], rows)
            return

        rows_by_kind = dict[str, list[Row]]()
        for row in rows:
            rows_by_kind.setdefault(row.key.partition(":")[0], []).append(row)
        for kind, rows_of_kind in rows_by_kind.items():
            self._add(kind, rows_of_kind)

    def merge(self, other: "Tally") -> None:
        """Add the sums over other rows."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
        self.bytes += other.bytes
        self.digest = (self.digest + other.digest) % (1 << 128)
        self.popular += other.popular
        self.popular_bytes += other.popular_bytes
        self.left_out += other.left_out
        self._draw(other.drawn)

    def _add(self, kind: str, rows: Sequence[Row]) -> None:
        """Add *rows* of one *kind*, the prefix of their keys, such as `user` or, in the list `basket`, `user@basket`.

        The manifest is skipped. Of users and items, the SAMPLE_ROWS keys with the smallest hashes are drawn: the sample
        that is read before the release is served. Raises StoreMisused for an unknown kind.
        """
        kind_of_rows = RowKey.parse(check_kind(kind)).kind
        if kind_of_rows == META:
            rows = [row for row in rows if row.key != MANIFEST]

        size = 0
        digest = 0
        length = 0  # of the last key, in bytes
        length_bytes = b""
        candidates = list[tuple[int, str]]()
        hash_of = xxh3_64_intdigest
        hash_limit = self._hash_limit() if kind_of_rows in _SAMPLED else 0
        for key, value in rows:
            raw = key.encode()
            if len(raw) != length:  # rarely: neighbours mostly have keys of one length
                length = len(raw)
                length_bytes = length.to_bytes(4, "big")
            size += length + len(value)
            digest += xxh3_128_intdigest(b"".join((length_bytes, raw, value)))
            if (key_hash := hash_of(raw)) < hash_limit:
                candidates.append((key_hash, key))

        self.bytes += size
        self.digest = (self.digest + digest) % (1 << 128)
        if rows:
            self.counts[kind] = self.counts.get(kind, 0) + len(rows)
        self._draw(candidates)

        if kind_of_rows == POPULAR:
            self.popular += [key for key, _ in rows]
            self.popular_bytes += sum(len(value) for _, value in rows)

    def _hash_limit(self) -> int:
        """Return the hash below which a key belongs to the sample: that of its last key, once it is full."""
        return self.drawn[-1][0] if len(self.drawn) == SAMPLE_ROWS else _HASHES

    def _draw(self, candidates: list[tuple[int, str]]) -> None:
        if candidates:
            self.drawn = sorted(self.drawn + candidates)[:SAMPLE_ROWS]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Description of a release.

    *counts* has the number of rows by kind as in keys (`user`, `item@basket`), *bytes* and *digest* their sums as in a
    Tally, *segments* the segments of users that have a popular list of their own in the default list.
    """

    release: ReleaseId
    encoding: str
    created_at: float
    counts: dict[str, int]
    bytes: int
    digest: str
    segments: tuple[str, ...]
    sample: tuple[str, ...]
    """Keys read before the release is served."""

    about: dict[str, Any]
    """The record of the origin as it was written, with fields of other versions; `origin` reads it."""

    named: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Segments of each list besides the default one, by its name."""

    @property
    def origin(self) -> Origin:
        """The origin of the default list and of the release; decoded at each access, in 3 µs."""
        return Origin.of(self.about)

    @property
    def origins(self) -> list[Origin]:
        """The origins of all lists, the default one first."""
        origin = self.origin
        return [origin, *(origin.lists.get(name, Origin()) for name in self.named)]

    def origin_of(self, stored: str) -> Origin:
        """Return the origin of the list of this name in keys."""
        origin = self.origin
        return origin.lists.get(stored, Origin()) if stored else origin

    @property
    def default_list(self) -> str:
        """The name of the default list, empty if it has none; not by `origin`, as batches read it for each list."""
        name: str = self.about.get("list", "")
        return name

    def stored_name(self, name: str) -> str | None:
        """Return the name of a list in keys, empty for the default list; None if the release lacks it."""
        if not name or name == self.default_list:
            return ""
        return name if name in self.named else None

    @property
    def popular_keys(self) -> list[str]:
        """The keys of the popular lists: of each list, the one for everybody, and those of its segments."""
        segments = {"": self.segments, **self.named}
        return [RowKey(POPULAR, segment, name).text for name in segments for segment in (OVERALL, *segments[name])]

    def count(self, kind: str) -> int:
        """Return the number of rows of *kind* (`user`, `item`, …) in all lists."""
        return count_of(self.counts, kind)

    @property
    def rows(self) -> int:
        """Number of rows, without the manifest."""
        return sum(self.counts.values())

    @property
    def learnt_until(self) -> float | None:
        """Time of the newest learnt event; of several lists the oldest one, None if unknown or unreadable."""
        times = (origin.learnt_until_s for origin in self.origins)
        return min((time for time in times if time is not None), default=None)

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules of any list, in order."""
        return tuple(sorted({rule for origin in self.origins for rule in origin.rules}))

    def has_lists_of(self, other: "Manifest") -> bool:
        """Return whether both describe the same lists: those of one release, or of one model with the same options."""
        if self.release == other.release:
            return (self.counts, self.digest) == (other.counts, other.digest)
        are_of_models = all(origin.model for origin in self.origins)
        return are_of_models and _options_of(self) == _options_of(other)

    @property
    def refused_by(self) -> tuple[str, ...]:
        """The gates that failed at publishing, unless it was forced."""
        return self.origin.gates.refusing

    @property
    def key_row(self) -> Row:
        """The row of the manifest, which is written last."""
        fields = asdict(self)
        if not self.named:
            del fields["named"]
        record = orjson.dumps({"format": FORMAT_WITH_NAMES if self.named else FORMAT} | fields)
        return Row(MANIFEST, Checksum(self.release).seal(MANIFEST, NO_OFFSET + record))


def _options_of(manifest: Manifest) -> tuple[object, ...]:
    """Return what determines the lists of models; equal for two releases with the same lists."""
    of_lists = [(origin.model, origin.list_length, origin.keep_seen, origin.rules) for origin in manifest.origins]
    return manifest.counts, manifest.default_list, of_lists


def count_of(counts: Mapping[str, int], kind: str) -> int:
    """Return the number of rows of *kind* in all lists."""
    return sum(count for name, count in counts.items() if RowKey.parse(name).kind == f"{kind}:")


def count_in_list(counts: Mapping[str, int], kind: str, name: str) -> int:
    """Return the number of rows of *kind* (USER, ITEM or POPULAR) in the list *name*, empty for the default list.

    *counts* are by kind as in keys, such as `user` or, of the list `basket`, `user@basket`.
    """
    return counts.get(prefix_of(kind, name).removesuffix(":"), 0)


def describe(
    release: ReleaseId, tally: Tally, *, created_at: float, encoding: str, about: Mapping[str, Any]
) -> Manifest:
    """Return the manifest of a release, which says what it holds, from the sums over its rows, *tally*.

    *about* is the record of the origin: how the lists were made. A release has a default list and may have named lists,
    such as `basket`; each needs a popular list for everybody, and may have others for segments, groups of users.
    *created_at* is a Unix time in seconds, by the store's clock. Raises ReleaseCorrupt if a list has no popular list
    for everybody, or lists exceed the limits, and StoreMisused for an invalid origin or name.
    """
    try:
        origin = Origin.of(about)
    except msgspec.ValidationError as error:
        raise StoreMisused(f"the origin of release {release} is invalid: {error}") from error

    named = {*(RowKey.parse(kind).list for kind in tally.counts), *origin.lists} - {""}
    for name in filter(None, [origin.list, *named]):
        check_list(name)
    segments = {name: _segments_of(release, name, tally) for name in ["", *sorted(named)]}  # "": the default list

    if len(segments) > MAX_LISTS or origin.list in named:
        raise ReleaseCorrupt(f"release {release} has more than {MAX_LISTS} lists, or two of one name")
    if len(tally.popular) > MAX_POPULAR_LISTS or tally.popular_bytes > MAX_POPULAR_BYTES:
        raise ReleaseCorrupt(
            f"release {release} has {len(tally.popular)} popular lists of {tally.popular_bytes} bytes; "
            f"at most {MAX_POPULAR_LISTS} of {MAX_POPULAR_BYTES} bytes in all are kept in memory: use fewer segments"
        )

    return Manifest(
        release=release,
        encoding=encoding,
        created_at=created_at,
        counts=dict(sorted(tally.counts.items())),
        bytes=tally.bytes,
        digest=f"{tally.digest:032x}",
        segments=segments.pop(""),
        sample=tuple(key for _, key in tally.drawn),
        about=dict(about),
        named=segments,
    )


def _segments_of(release: ReleaseId, name: str, tally: Tally) -> tuple[str, ...]:
    """Return the segments, groups of users, that have a popular list in the list *name*, sorted.

    An empty *name* is the default list. Raises ReleaseCorrupt if there is no popular list for everybody.
    """
    prefix = prefix_of(POPULAR, name)
    segments = sorted(key.removeprefix(prefix) for key in tally.popular if key.startswith(prefix))
    if OVERALL not in segments:
        subject = f"the list {name!r} of release {release}" if name else f"release {release}"
        raise ReleaseCorrupt(f"{subject} has no popular list for everybody; add a row {prefix!r}")
    return tuple(segment for segment in segments if segment != OVERALL)


def read_manifest(release: ReleaseId, value: bytes | None) -> Manifest:
    """Parse the stored *value* of a release's manifest, the row that says what the release holds.

    Raises ReleaseCorrupt if it is missing (None) or invalid, and WrittenByNewer for a newer format or encoding.
    """
    if value is None:
        raise ReleaseCorrupt(f"release {release} has no manifest; {HEAL}")

    try:
        record = Checksum(release).open(MANIFEST, value)[OFFSET_BYTES:]
        subject = f"release {release}"
        written_format = decode_versioned(record, RecordFormat, newest=FORMAT_WITH_NAMES, subject=subject).format
        if written_format < FORMAT:
            raise ReleaseCorrupt(f"{subject} has format {written_format}, which this hotplate reads no more; {HEAL}")
        manifest = msgspec.json.decode(record, type=Manifest)
        Origin.of(manifest.about)  # so that `origin` never fails
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ReleaseCorrupt(f"the manifest of release {release} cannot be read ({error}); {HEAL}") from error

    if manifest.encoding not in ENCODINGS:
        raise WrittenByNewer(f"release {release} is encoded in {manifest.encoding!r}; upgrade hotplate")
    return manifest


def release_in(value: bytes) -> ReleaseId:
    """Return the id in a stored manifest; ReleaseCorrupt if it cannot be read."""
    try:
        return ReleaseId(msgspec.json.decode(value[HEADER_BYTES:], type=dict[str, Any])["release"])
    except (msgspec.MsgspecError, ValueError, RecursionError, KeyError) as error:
        raise ReleaseCorrupt(f"the manifest cannot be read ({error})") from error


def compare(manifest: Manifest, tally: Tally) -> Manifest:
    """Return the manifest; ReleaseCorrupt, with both figures, if stored rows differ from it."""
    figures: list[tuple[str, object, object]] = [
        ("rows", manifest.counts, dict(sorted(tally.counts.items()))),
        ("bytes", manifest.bytes, tally.bytes),
        ("digest", manifest.digest, f"{tally.digest:032x}"),
    ]
    for name, stated, counted in figures:
        if stated != counted:
            raise ReleaseCorrupt(
                f"release {manifest.release} does not add up: its manifest says {name} {stated}, the store {counted}; "
                f"{HEAL}"
            )
    return manifest
