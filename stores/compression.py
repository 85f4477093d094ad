"""The encodings of a release, `json` and `zstd`.

`zstd` compresses each list separately, with a dictionary trained on the first 20,000 lists or 32 MiB. The dictionary
is the first row, `meta:dictionary`, empty and unused if there were too few lists. `meta` rows are never compressed.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import zstandard

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import (
    CHECKSUM_BYTES,
    COMPRESSED,
    DICTIONARY,
    HEADER_BYTES,
    META,
    NO_OFFSET,
    OFFSET_BYTES,
    PLAIN,
    POPULAR,
    Checksum,
    Decode,
    Encoding,
    is_empty,
)
from hotplate.stores.errors import HEAL, ReleaseCorrupt, StoreMisused
from hotplate.stores.manifest import MAX_POPULAR_BYTES, Manifest
from hotplate.stores.store import Plan, Reader, Row, Store, read_one

LEVEL = 3
TRAINED_ON = 20_000
TRAINED_ON_BYTES = 32 << 20
MEASURED = 1000  # lists that are compressed to estimate the size of a release
DICTIONARY_BYTES = 32 << 10  # lists with titles are 2 % larger with 16 KiB, 2 % smaller with 64 KiB
FEWEST_LISTS = 100  # zstd's trainer crashes on a handful

# The trainer's k and d; searching for them takes five times as long without gain.
SEGMENT_BYTES = 1000
MATCHED_BYTES = 8

MAX_LIST_BYTES = 4 << 20
_MAX_BODY_BYTES = OFFSET_BYTES + MAX_LIST_BYTES
_ABOVE_ALL_BODIES = b"g"  # as these begin with hex digits, their offset
_POPULAR = (POPULAR, POPULAR[:-1] + "@")
_SPECIAL = (META, *_POPULAR)


def default_encoding(store: Store) -> Encoding:
    """Return `zstd` if values leave the process, else `json`."""
    return PLAIN if store.is_local else COMPRESSED


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
        """Return rows of stored values, in the same order, for rows of bodies and `meta` rows.

        Raises StoreMisused for an invalid body or an exceeded limit.
        """
        if not self._are_usual(rows):
            rows = [Row(key, self._body(key, value)) for key, value in rows]
        # Row(key, value) without a Python call each.
        seal = self._seal
        new = tuple.__new__
        return [new(Row, (key, seal(key, body))) for key, body in rows]

    def _are_usual(self, rows: Sequence[Row]) -> bool:
        """Return whether `_body` would neither change nor refuse any of *rows*; 0.1 µs each."""
        if self._compress is not None:
            return False
        for key, body in rows:
            if (
                not OFFSET_BYTES <= len(body) <= _MAX_BODY_BYTES
                or body >= _ABOVE_ALL_BODIES
                or key.startswith(_SPECIAL)
            ):
                return False
        return True

    def _body(self, key: str, body: bytes) -> bytes:
        """Return the body of a row as it is stored, without checksum: an offset and a list, compressed or not.

        `meta` rows hold no list: they get an offset, and are not compressed. Raises StoreMisused for a value that is
        not a body, and for lists above the limits.
        """
        if key.startswith(META):
            return NO_OFFSET + body

        if len(body) < OFFSET_BYTES or body >= _ABOVE_ALL_BODIES:
            raise StoreMisused(f"the value of {key!r} is not a body of a list; see `hotplate.stores.encoding`")
        size = len(body) - OFFSET_BYTES
        if size > MAX_LIST_BYTES:
            raise StoreMisused(f"the list of {key!r} has {size} bytes; a list has at most {MAX_LIST_BYTES}")
        if key.startswith(_POPULAR):
            self._popular_bytes += size
            if self._popular_bytes > MAX_POPULAR_BYTES:
                raise StoreMisused(f"the popular lists have over {MAX_POPULAR_BYTES} bytes; use fewer segments")

        if self._compress is None or not size:
            return body
        return body[:OFFSET_BYTES] + self._compress(body[OFFSET_BYTES:])


def decompressor(dictionary: bytes) -> Callable[[bytes], bytes]:
    """Return a function that decompresses one list by a release's dictionary; an empty list stays empty.

    A list has at most MAX_LIST_BYTES. Raises ReleaseCorrupt for a damaged dictionary, as the function does for a list.
    """
    try:
        decompress = zstandard.ZstdDecompressor(dict_data=_load(dictionary)).decompress
    except zstandard.ZstdError as error:
        raise ReleaseCorrupt(f"a dictionary is damaged ({error}); publish the release again") from error

    def decompress_list(value: bytes) -> bytes:
        if not value:
            return b""
        try:
            size = zstandard.frame_content_size(value)  # decompress allocates whatever the frame states
            if 0 <= size <= MAX_LIST_BYTES:
                return decompress(value, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ReleaseCorrupt(f"a list cannot be decompressed ({error}); publish the release again") from error
        stated = f"{size} bytes" if size >= 0 else "an unknown size"
        raise ReleaseCorrupt(f"a list has {stated}, but at most {MAX_LIST_BYTES} bytes; publish the release again")

    return decompress_list


def train(lists: Sequence[bytes]) -> bytes:
    """Return a dictionary; empty if lists are too few or too short."""
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
    """Encode rows of bodies (an offset and a list) to stored values, lazily; deterministic but for checksums.

    *encoding* is PLAIN, or `zstd`: then a compression dictionary is trained on the lists of the first batches and of
    *sample* (rows to train on if other processes write most of the release), and is itself the first row. `meta` rows,
    which hold no lists, are not compressed.

    *plan* has the expected rows, and bytes of keys and lists; that of the result has the estimated bytes of the
    encoded rows.
    """
    plan = replace(plan, payload_bytes=plan.payload_bytes + plan.rows * HEADER_BYTES)
    if encoding == PLAIN:
        plain = Encoder(checksum, None)
        return EncodedRows(plan, (plain.rows(rows) async for rows in batches))

    remaining = aiter(batches)
    first = await _first_batches(remaining)  # kept until they are encoded

    training_rows = [row for rows in (*first, sample) for row in rows if not row.key.startswith(META)]
    lists = (row.value[OFFSET_BYTES:] for row in training_rows if not is_empty(row.value))
    dictionary = await asyncio.to_thread(train, list(islice(lists, TRAINED_ON)))
    encoder = Encoder(checksum, dictionary)

    async def encoded() -> AsyncIterator[list[Row]]:
        yield encoder.rows([Row(DICTIONARY, dictionary)])
        while first:
            yield encoder.rows(first.popleft())
        async for rows in remaining:
            yield encoder.rows(rows)

    # Another encoder, because each counts the bytes of the popular lists that it encodes towards a limit.
    measuring_encoder = Encoder(checksum, dictionary)
    compressed_plan = _compressed_plan(plan, training_rows, measuring_encoder, dictionary)
    return EncodedRows(compressed_plan, encoded(), dictionary)


def _compressed_plan(plan: Plan, rows: Sequence[Row], encoder: Encoder, dictionary: bytes) -> Plan:
    """Estimate the plan of a compressed release from up to MEASURED of *rows*; the *dictionary* is one more row."""
    measured = rows[:: len(rows) // MEASURED + 1]
    plain_bytes = sum(len(row.value) + CHECKSUM_BYTES for row in measured)
    stored_bytes = sum(len(row.value) for row in encoder.rows(measured))
    ratio = stored_bytes / plain_bytes if plain_bytes else 1.0

    list_bytes = plan.payload_bytes - plan.meta_bytes
    dictionary_bytes = len(DICTIONARY) + HEADER_BYTES + len(dictionary)
    payload_bytes = plan.meta_bytes + int(list_bytes * ratio) + dictionary_bytes
    return replace(plan, rows=plan.rows + 1, payload_bytes=payload_bytes)


async def load_decode(reader: Reader, release: ReleaseRef, manifest: Manifest) -> Decode:
    """Return the function that decodes the values of a release's rows to bodies, an offset and a list.

    It checks the checksum of a value, and decompresses the list if the release is compressed. Raises ReleaseCorrupt if
    the dictionary for that is missing or damaged.
    """
    checksum = Checksum(manifest.release)
    if manifest.encoding == PLAIN:
        return checksum.open

    dictionary = await read_one(reader, release, DICTIONARY)
    if dictionary is None:
        raise ReleaseCorrupt(f"release {manifest.release} has lost its dictionary; {HEAL}")
    decompress = decompressor(checksum.open(DICTIONARY, dictionary)[OFFSET_BYTES:])

    def decode(key: str, value: bytes) -> bytes:
        body = checksum.open(key, value)
        return body[:OFFSET_BYTES] + decompress(body[OFFSET_BYTES:])

    return decode


async def _first_batches(batches: AsyncIterator[Sequence[Row]]) -> deque[Sequence[Row]]:
    """Take batches until there are enough lists to train on; others stay in *batches*."""
    first = deque[Sequence[Row]]()
    rows_taken = 0
    bytes_taken = 0
    async for rows in batches:
        first.append(rows)
        rows_taken += len(rows)
        bytes_taken += sum(len(row.value) for row in rows)
        if rows_taken >= TRAINED_ON or bytes_taken >= TRAINED_ON_BYTES:
            break
    return first


def _load(dictionary: bytes) -> zstandard.ZstdCompressionDict | None:
    """Return a trained dictionary for zstandard; None for an empty one."""
    if not dictionary:
        return None
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
