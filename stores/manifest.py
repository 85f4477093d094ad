"""The manifest: the description of a release, with sums that show whether its rows are complete."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec
import orjson
from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from hotplate.stores.catalogue import RecordFormat, ReleaseId
from hotplate.stores.encoding import (
    ENCODINGS,
    HEADER_BYTES,
    ITEM,
    MANIFEST,
    META,
    NO_OFFSET,
    OFFSET_BYTES,
    OVERALL,
    POPULAR,
    USER,
    Checksum,
    check_kind,
)
from hotplate.stores.errors import HEAL, ReleaseCorrupt
from hotplate.stores.store import Row

FORMAT = 2
MAX_POPULAR_LISTS = 1001
MAX_POPULAR_BYTES = 8 << 20

# Rows of the sample, chosen by the smallest hashes of their keys.
SAMPLE_ROWS = 64
_HASHES = 1 << 64

# Parts of a release's origin that determine its lists, besides the model.
_AS_PUBLISHED = ("list_length", "keep_seen", "rules")


@dataclass(slots=True)
class Tally:
    """Sums over rows in any order, which can be merged."""

    counts: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    digest: int = 0
    segments: list[str] = field(default_factory=list)
    popular_bytes: int = 0
    left_out: int = 0
    """Rows of erased users that were not added."""

    drawn: list[tuple[int, str]] = field(default_factory=list)
    """(hash, key) of the SAMPLE_ROWS users and items with the smallest hashes, in order."""

    @property
    def rows(self) -> int:
        """Number of rows without the manifest."""
        return sum(self.counts.values())

    def add(self, rows: Sequence[Row]) -> None:
        """Add *rows* except the manifest; StoreMisused for a key of unknown kind.

        The digest is the sum modulo 2^128 of xxh3_128(len(key) ‖ key ‖ value), the length in 4 bytes.
        """
        if not rows:
            return
        first, last = min(rows).key, max(rows).key
        prefix = first[: first.find(":") + 1]
        if prefix and last.startswith(prefix):  # then all keys have it, as in most calls
            self._add(prefix[:-1], rows)
            return
        by_kind = dict[str, list[Row]]()
        for row in rows:
            by_kind.setdefault(row.key.partition(":")[0], []).append(row)
        for kind, of_kind in by_kind.items():
            self._add(kind, of_kind)

    def merge(self, other: "Tally") -> None:
        """Add the sums over other rows."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
        self.bytes += other.bytes
        self.digest = (self.digest + other.digest) % (1 << 128)
        self.segments += other.segments
        self.popular_bytes += other.popular_bytes
        self.left_out += other.left_out
        self._draw(other.drawn)

    def _add(self, kind: str, rows: Sequence[Row]) -> None:
        if check_kind(kind) + ":" == META:
            rows = [row for row in rows if row.key != MANIFEST]
        size = digest = length = 0
        length_bytes = b""
        drawn, hash_of = list[tuple[int, str]](), xxh3_64_intdigest
        below = self._draws_below() if kind + ":" in (USER, ITEM) else 0
        for key, value in rows:
            raw = key.encode()
            if len(raw) != length:  # rarely
                length = len(raw)
                length_bytes = length.to_bytes(4, "big")
            size += length + len(value)
            digest += xxh3_128_intdigest(b"".join((length_bytes, raw, value)))
            if (hashed := hash_of(raw)) < below:
                drawn.append((hashed, key))
        self.bytes += size
        self.digest = (self.digest + digest) % (1 << 128)
        if rows:
            self.counts[kind] = self.counts.get(kind, 0) + len(rows)
        self._draw(drawn)
        if kind + ":" == POPULAR:
            self.segments += [key.removeprefix(POPULAR) for key, _ in rows]
            self.popular_bytes += sum(len(value) for _, value in rows)

    def _draws_below(self) -> int:
        return _HASHES if len(self.drawn) < SAMPLE_ROWS else self.drawn[-1][0]

    def _draw(self, rows: list[tuple[int, str]]) -> None:
        if rows:
            self.drawn = sorted(self.drawn + rows)[:SAMPLE_ROWS]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Description of a release."""

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

    @property
    def rows(self) -> int:
        """Number of rows without the manifest."""
        return sum(self.counts.values())

    @property
    def model(self) -> str | None:
        """The id of the model; None for imported lists."""
        return self.about.get("model")

    def has_lists_of(self, other: "Manifest") -> bool:
        """Return whether both have the lists of one release, or of one model with the same options."""
        if self.release == other.release:
            return (self.counts, self.digest) == (other.counts, other.digest)
        ours, theirs = (
            (each.model, each.counts, *(each.about.get(name) for name in _AS_PUBLISHED)) for each in (self, other)
        )
        return self.model is not None and ours == theirs

    @property
    def refused_by(self) -> tuple[str, ...]:
        """The gates that failed at publishing, unless it was forced."""
        gates = self.about.get("gates") or {"forced": False, "verdicts": ()}
        return () if gates["forced"] else tuple(each["gate"] for each in gates["verdicts"] if not each["passed"])

    @property
    def key_row(self) -> Row:
        """The row of the manifest, which is written last."""
        record = orjson.dumps({"format": FORMAT} | asdict(self))
        return Row(MANIFEST, Checksum(self.release).seal(MANIFEST, NO_OFFSET + record))


def describe(release: ReleaseId, tally: Tally, *, created_at: float, encoding: str, about: dict[str, Any]) -> Manifest:
    """Make the manifest of tallied rows; ReleaseCorrupt if popular lists lack the overall one or exceed the limits."""
    if OVERALL not in tally.segments:
        raise ReleaseCorrupt(f"release {release} has no popular list for everybody; add a row {POPULAR!r}")
    if len(tally.segments) > MAX_POPULAR_LISTS or tally.popular_bytes > MAX_POPULAR_BYTES:
        raise ReleaseCorrupt(
            f"release {release} has {len(tally.segments)} popular lists of {tally.popular_bytes} bytes; "
            f"at most {MAX_POPULAR_LISTS} of {MAX_POPULAR_BYTES} bytes in all are kept in memory: use fewer segments"
        )
    return Manifest(
        release=release,
        encoding=encoding,
        created_at=created_at,
        counts=dict(sorted(tally.counts.items())),
        bytes=tally.bytes,
        digest=f"{tally.digest:032x}",
        segments=tuple(sorted(segment for segment in tally.segments if segment != OVERALL)),
        sample=tuple(key for _, key in tally.drawn),
        about=about,
    )


def read_manifest(release: ReleaseId, value: bytes | None) -> Manifest:
    """Parse a release's manifest; ReleaseCorrupt if it is missing or invalid."""
    if value is None:
        raise ReleaseCorrupt(f"release {release} has no manifest; {HEAL}")
    try:
        record = Checksum(release).open(MANIFEST, value)[OFFSET_BYTES:]
        if (written := msgspec.json.decode(record, type=RecordFormat).format) != FORMAT:
            raise ReleaseCorrupt(f"release {release} has format {written}, and this one reads {FORMAT}; upgrade")
        manifest = msgspec.json.decode(record, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ReleaseCorrupt(f"the manifest of release {release} cannot be read ({error}); {HEAL}") from error
    if manifest.encoding not in ENCODINGS:
        raise ReleaseCorrupt(f"release {release} is encoded in {manifest.encoding!r}; upgrade hotplate")
    return manifest


def release_in(value: bytes) -> ReleaseId:
    """Return the id in a stored manifest; ReleaseCorrupt if it cannot be read."""
    try:
        return ReleaseId(msgspec.json.decode(value[HEADER_BYTES:], type=dict[str, Any])["release"])
    except (msgspec.MsgspecError, ValueError, RecursionError, KeyError) as error:
        raise ReleaseCorrupt(f"the manifest cannot be read ({error})") from error


def compare(manifest: Manifest, tally: Tally) -> Manifest:
    """Return the manifest; ReleaseCorrupt, with both figures, if stored rows differ from it."""
    stated = (manifest.counts, manifest.bytes, manifest.digest)
    found = (dict(sorted(tally.counts.items())), tally.bytes, f"{tally.digest:032x}")
    for name, before, now in zip(("rows", "bytes", "digest"), stated, found, strict=True):
        if before != now:
            raise ReleaseCorrupt(
                f"release {manifest.release} does not add up: its manifest says {name} {before}, the store {now}; "
                f"{HEAL}"
            )
    return manifest
