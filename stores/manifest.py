"""The manifest: a release's description of itself, with the sums by which its rows are known to be complete."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec
import orjson
from msgspec import Struct
from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from hotplate.stores.catalogue import RecordFormat, ReleaseId
from hotplate.stores.encoding import ENCODINGS, HEADER_BYTES, NO_OFFSET, OFFSET_BYTES, Checksum
from hotplate.stores.errors import HEAL, ReleaseCorrupt
from hotplate.stores.keys import ITEM, MANIFEST, META, OVERALL, POPULAR, USER, check_kind
from hotplate.stores.store import Row

FORMAT = 2
MAX_POPULAR_LISTS = 1001
MAX_POPULAR_BYTES = 8 << 20

# How many rows are drawn to be tried before a release is served; and what the hash of each key is below.
SAMPLE_ROWS = 64
_HASHES = 1 << 64

# What of a release's origin changes its lists beside the model.
_AS_PUBLISHED = ("list_length", "keep_seen", "rules")


@dataclass(slots=True)
class Tally:
    """Sums over rows, in any order: partitions and resumed publishes add up. Lives as long as one pass over rows."""

    counts: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    digest: int = 0
    segments: list[str] = field(default_factory=list)
    popular_bytes: int = 0
    drawn: list[tuple[int, str]] = field(default_factory=list)
    """Of the lists of users and items, the SAMPLE_ROWS whose keys have the smallest hashes: hash and key, in order."""

    @property
    def rows(self) -> int:
        """How many rows were counted, the manifest aside."""
        return sum(self.counts.values())

    def add(self, rows: Sequence[Row]) -> None:
        """Add *rows*, all but the manifest, to the counts and the digest; StoreMisused if a key has no known kind.

        The digest is the sum modulo 2^128 of xxh3_128(len(key) ‖ key ‖ value), the length in 4 bytes.
        """
        if not rows:
            return
        first, last = min(rows).key, max(rows).key
        prefix = first[: first.find(":") + 1]
        if prefix and last.startswith(prefix):  # the usual case: and so does any key between them
            self._add(prefix[:-1], rows)
            return
        by_kind = dict[str, list[Row]]()
        for row in rows:
            by_kind.setdefault(row.key.partition(":")[0], []).append(row)
        for kind, of_kind in by_kind.items():
            self._add(kind, of_kind)

    def merge(self, other: "Tally") -> None:
        """Count in what *other* has counted, of other rows."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
        self.bytes += other.bytes
        self.digest = (self.digest + other.digest) % (1 << 128)
        self.segments += other.segments
        self.popular_bytes += other.popular_bytes
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
            if len(raw) != length:  # keys of a kind are mostly of one length
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
        """Return what the hash of a key has to be below for its row to be drawn."""
        return _HASHES if len(self.drawn) < SAMPLE_ROWS else self.drawn[-1][0]

    def _draw(self, rows: list[tuple[int, str]]) -> None:
        if rows:
            self.drawn = sorted(self.drawn + rows)[:SAMPLE_ROWS]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a release holds: counts by kind, bytes of keys and values, digest, and its origin."""

    release: ReleaseId
    encoding: str
    created_at: float
    counts: dict[str, int]
    bytes: int
    digest: str
    segments: tuple[str, ...]
    sample: tuple[str, ...]
    """Keys that were drawn by their hashes: they are tried before the release is served."""

    about: dict[str, Any]

    @property
    def rows(self) -> int:
        """How many rows the release has, the manifest aside."""
        return sum(self.counts.values())

    @property
    def model(self) -> str | None:
        """The id of the model that the lists were computed from; None of lists that no model of ours made."""
        return self.about.get("model")

    def has_lists_of(self, other: "Manifest") -> bool:
        """Return whether both hold the same lists: one release, or two publishes of one model in the same way."""
        if self.release == other.release:
            return (self.counts, self.digest) == (other.counts, other.digest)
        ours, theirs = (
            (each.model, each.counts, *(each.about.get(name) for name in _AS_PUBLISHED)) for each in (self, other)
        )
        return self.model is not None and ours == theirs

    @property
    def refused_by(self) -> tuple[str, ...]:
        """The gates that failed when the release was published; none if it was forced."""
        gates = self.about.get("gates") or {"forced": False, "verdicts": ()}
        return () if gates["forced"] else tuple(each["gate"] for each in gates["verdicts"] if not each["passed"])

    @property
    def key_row(self) -> Row:
        """The row that carries the manifest, the last that is written."""
        record = orjson.dumps({"format": FORMAT} | asdict(self))
        return Row(MANIFEST, Checksum(self.release).seal(MANIFEST, NO_OFFSET + record))


class _Named(Struct):
    """The part of a manifest that names its release."""

    release: str


def describe(release: ReleaseId, tally: Tally, *, created_at: float, encoding: str, about: dict[str, Any]) -> Manifest:
    """Make the manifest of rows that were tallied; ReleaseCorrupt for a set that could not be served.

    A release needs an overall popular list, which answers if there is no other, and its popular lists stay
    within what each process keeps in memory.
    """
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
    """Parse a release's manifest; ReleaseCorrupt if it is missing, foreign or of an unknown format or encoding."""
    if value is None:
        raise ReleaseCorrupt(f"release {release} has no manifest; {HEAL}")
    try:
        record = Checksum(release).open(MANIFEST, value)[OFFSET_BYTES:]
        if (written := msgspec.json.decode(record, type=RecordFormat).format) != FORMAT:
            raise ReleaseCorrupt(
                f"release {release} has format {written} and this hotplate reads {FORMAT}; upgrade hotplate"
            )
        manifest = msgspec.json.decode(record, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ReleaseCorrupt(f"the manifest of release {release} cannot be read ({error}); {HEAL}") from error
    if manifest.encoding not in ENCODINGS:
        raise ReleaseCorrupt(
            f"release {release} is encoded in {manifest.encoding!r}; this one reads {', '.join(ENCODINGS)}: upgrade"
        )
    if manifest.release != release:
        raise ReleaseCorrupt(f"release {release} carries the manifest of {manifest.release}; {HEAL}")
    return manifest


def release_in(value: bytes) -> ReleaseId:
    """Return the id in a stored manifest, which `read_manifest` needs to check it; ReleaseCorrupt if there is none."""
    try:
        return ReleaseId(msgspec.json.decode(value[HEADER_BYTES:], type=_Named).release)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ReleaseCorrupt(f"the manifest cannot be read ({error})") from error


def compare(manifest: Manifest, tally: Tally) -> None:
    """Hold a tally of what is stored against the manifest; ReleaseCorrupt, with both figures, if they differ."""
    stated = (manifest.counts, manifest.bytes, manifest.digest)
    found = (dict(sorted(tally.counts.items())), tally.bytes, f"{tally.digest:032x}")
    for name, before, now in zip(("rows", "bytes", "digest"), stated, found, strict=True):
        if before != now:
            raise ReleaseCorrupt(
                f"release {manifest.release} does not add up: its manifest says {name} {before}, the store {now}; "
                f"{HEAL}"
            )
