"""The encodings of a release, `json` and `zstd`.

With `zstd` each list is compressed separately, with a dictionary trained on the release's first lists. It is the first
row, `meta:dictionary`, empty if there were too few lists. `meta` rows are never compressed.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import zstandard

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import (
    CHECKSUM_BYTES,
    HEADER_BYTES,
    NO_OFFSET,
    OFFSET_BYTES,
    Checksum,
    Decode,
    is_empty,
)
from hotplate.stores.errors import HEAL, ReleaseCorrupt, StoreMisused
from hotplate.stores.keys import DICTIONARY, META, POPULAR
from hotplate.stores.manifest import MAX_POPULAR_BYTES, Manifest
from hotplate.stores.store import LocalReader, Plan, Reader, Row, Store, read_one

LEVEL = 3

TRAINED_ON = 20_000
TRAINED_ON_BYTES = 32 << 20

# Lists with titles are 2 % larger with 16 KiB, 2 % smaller with 64 KiB.
DICTIONARY_BYTES = 32 << 10

# zstd's trainer crashes on a handful of lists.
FEWEST_LISTS = 100

# The trainer's k and d; searching for them takes five times as long without gain.
SEGMENT_BYTES = 1000
MATCHED_BYTES = 8

_SPECIAL = (META, POPULAR)

MAX_LIST_BYTES = 4 << 20
_MAX_BODY_BYTES = OFFSET_BYTES + MAX_LIST_BYTES

# Upper bound of bodies, which begin with hex digits.
_NO_BODY = b"g"


def default_encoding(store: Store) -> str:
    """Return `zstd` if values leave the process, else `json`."""
    return "json" if isinstance(store, LocalReader) else "zstd"


class Encoder:
    """Encodes the values of one release; uncompressed if *dictionary* is None."""

    def __init__(self, checksum: Checksum, dictionary: bytes | None) -> None:
        self._seal = checksum.seal
        self._popular_bytes = 0
        self._compress: Callable[[bytes], bytes] | None = None
        if dictionary is not None:
            trained = _load(dictionary)
            if trained is not None:
                trained.precompute_compress(level=LEVEL)
            self._compress = zstandard.ZstdCompressor(level=LEVEL, dict_data=trained).compress

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows of bodies as rows of stored values; StoreMisused for an invalid body or an exceeded limit."""
        if not self._are_usual(rows):
            rows = [Row(key, self._body(key, value)) for key, value in rows]
        seal, new = self._seal, tuple.__new__  # Row(key, value) without a Python call each
        return [new(Row, (key, seal(key, body))) for key, body in rows]

    def _are_usual(self, rows: Sequence[Row]) -> bool:
        """Return whether `_body` would change no rows; 0.1 µs each."""
        if self._compress is not None:
            return False
        for key, body in rows:
            if not OFFSET_BYTES <= len(body) <= _MAX_BODY_BYTES or body >= _NO_BODY or key.startswith(_SPECIAL):
                return False
        return True

    def _body(self, key: str, body: bytes) -> bytes:
        if key.startswith(META):
            return NO_OFFSET + body
        if len(body) < OFFSET_BYTES or body >= _NO_BODY:
            raise StoreMisused(
                f"the value of {key!r} is not a body of a list; encode it with `hotplate.stores.encoding`"
            )
        size = len(body) - OFFSET_BYTES
        if size > MAX_LIST_BYTES:
            raise StoreMisused(f"the list of {key!r} has {size} bytes; a list has at most {MAX_LIST_BYTES}")
        if key.startswith(POPULAR):
            self._popular_bytes += size
            if self._popular_bytes > MAX_POPULAR_BYTES:
                raise StoreMisused(f"the popular lists have over {MAX_POPULAR_BYTES} bytes; use fewer segments")
        if self._compress is None or not size:
            return body
        return body[:OFFSET_BYTES] + self._compress(body[OFFSET_BYTES:])


class Decompressor:
    """Decompresses the lists of a release; ReleaseCorrupt if the dictionary is damaged."""

    def __init__(self, dictionary: bytes) -> None:
        try:
            self._decompress = zstandard.ZstdDecompressor(dict_data=_load(dictionary)).decompress
        except zstandard.ZstdError as error:
            raise ReleaseCorrupt(f"a dictionary is damaged ({error}); publish the release again") from error

    def decompress(self, value: bytes) -> bytes:
        """Decompress one list; ReleaseCorrupt if it is damaged or exceeds MAX_LIST_BYTES."""
        if not value:
            return b""
        try:
            size = zstandard.frame_content_size(value)  # decompress allocates whatever the frame states
            if 0 <= size <= MAX_LIST_BYTES:
                return self._decompress(value, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ReleaseCorrupt(f"a list cannot be decompressed ({error}); publish the release again") from error
        stated = "does not state its size" if size < 0 else f"states {size} bytes; a list has at most {MAX_LIST_BYTES}"
        raise ReleaseCorrupt(f"a compressed list {stated}; publish the release again")


def train(lists: Sequence[bytes]) -> bytes:
    """Return a dictionary trained on *lists*; empty if they are too few or too short."""
    if len(lists) < FEWEST_LISTS or sum(map(len, lists)) < DICTIONARY_BYTES:
        return b""
    try:
        return zstandard.train_dictionary(DICTIONARY_BYTES, list(lists), k=SEGMENT_BYTES, d=MATCHED_BYTES).as_bytes()
    except zstandard.ZstdError:
        return b""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """A release, encoded lazily; *dictionary* is None if rows are not compressed."""

    plan: Plan
    batches: AsyncIterator[list[Row]]
    dictionary: bytes | None = None


async def encode_rows(
    batches: AsyncIterable[Sequence[Row]], plan: Plan, encoding: str, checksum: Checksum, sample: Sequence[Row] = ()
) -> EncodedRows:
    """Encode rows of bodies to stored values; deterministic but for checksums.

    *plan* counts keys and lists, without offsets; for `zstd`, its bytes are scaled by the compression ratio of the
    first lists. *sample* holds rows to train on if other processes write most of the release.
    """
    plan = Plan(plan.rows, plan.payload_bytes + plan.rows * HEADER_BYTES, plan.meta_bytes)
    if encoding == "json":
        plain = Encoder(checksum, None)
        return EncodedRows(plan, (plain.rows(rows) async for rows in batches))
    remaining = aiter(batches)
    first = await _first(remaining)
    bodies = (row.value for rows in (*first, sample) for row in rows if not _is_meta(row))
    lists = (body[OFFSET_BYTES:] for body in bodies if not is_empty(body))
    dictionary = await asyncio.to_thread(train, list(islice(lists, TRAINED_ON)))
    encoder = Encoder(checksum, dictionary)
    ready = [encoder.rows([Row(DICTIONARY, dictionary)]), *map(encoder.rows, first)]
    before = sum(len(row.value) + CHECKSUM_BYTES for rows in (*first, sample) for row in rows if not _is_meta(row))
    encoded_sample = encoder.rows(sample)
    after = sum(len(row.value) for rows in (*ready[1:], encoded_sample) for row in rows if not _is_meta(row))
    lists_bytes = plan.payload_bytes - plan.meta_bytes
    payload = plan.meta_bytes + (int(lists_bytes * after / before) if before else lists_bytes)
    del first

    async def encoded() -> AsyncIterator[list[Row]]:
        while ready:
            yield ready.pop(0)
        async for rows in remaining:
            yield encoder.rows(rows)

    return EncodedRows(
        Plan(plan.rows + 1, payload + len(DICTIONARY) + HEADER_BYTES + len(dictionary), plan.meta_bytes),
        encoded(),
        dictionary,
    )


async def load_decode(reader: Reader, release: ReleaseRef, manifest: Manifest) -> Decode:
    """Return the decoder of a release's values; ReleaseCorrupt if its dictionary is missing or damaged."""
    check = Checksum(manifest.release).open
    if manifest.encoding == "json":
        return check
    dictionary = await read_one(reader, release, DICTIONARY)
    if dictionary is None:
        raise ReleaseCorrupt(f"release {manifest.release} has lost its dictionary; {HEAL}")
    decompress = Decompressor(check(DICTIONARY, dictionary)[OFFSET_BYTES:]).decompress

    def decode(key: str, value: bytes) -> bytes:
        body = check(key, value)
        return body[:OFFSET_BYTES] + decompress(body[OFFSET_BYTES:])

    return decode


async def _first(batches: AsyncIterator[Sequence[Row]]) -> list[Sequence[Row]]:
    taken = list[Sequence[Row]]()
    lists = size = 0
    async for rows in batches:
        taken.append(rows)
        lists += len(rows)
        size += sum(len(row.value) for row in rows)
        if lists >= TRAINED_ON or size >= TRAINED_ON_BYTES:
            break
    return taken


def _is_meta(row: Row) -> bool:
    return row.key.startswith(META)


def _load(dictionary: bytes) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT) if dictionary else None
