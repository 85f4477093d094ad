"""The forms of an answer: which one the caller wants, and lists in JSON, CSV, msgpack and Arrow.

A list is assembled as JSON, which it is stored in; every other form is made of that, so all say the same. CSV and
Arrow have one row an item: CSV of a single list says by its headers what the list is, that of a batch by its columns.
"""

import asyncio
import csv
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol

import msgspec
import orjson
import zstandard

from hotplate.serve.api.parameters import ARROW, CSV, JSON, MSGPACK
from hotplate.serve.problems import Problem

CONTENT_TYPES = {CSV: "text/csv; charset=utf-8; header=present"}
# What a row says of its user, before the item's own columns.
USER_COLUMNS = ("user", "status", "source", "tier", "release")
SOURCE_COLUMN = USER_COLUMNS.index("source")
# The end of an Arrow stream: a message of no bytes.
_ARROW_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
# Zstd's own default; gzip's fastest, for its default takes five times as long and saves a tenth.
ZSTD_LEVEL = 3
GZIP_LEVEL = 1
# How long a header may be to be understood at all.
MAX_HEADER_CHARS = 1024

# The items of an answer, and the results of a batch, as they come out of JSON.
DecodedAnswer = dict[str, Any]


class Compressor(Protocol):
    """Compresses one answer piece by piece."""

    def compress(self, data: bytes, /) -> bytes:
        """Take a piece, and return what is ready."""

    def flush(self) -> bytes:
        """Return the rest."""


def media_type(accept: str | None, offered: Sequence[str]) -> str:
    """Return which of the *offered* forms the caller likes best, of equals the first; a Problem if it is none."""
    if accept is None or accept in {"*/*", JSON}:
        return offered[0]
    chosen = _best(accept, tuple(offered))
    if chosen is None:
        raise Problem(406, "not-acceptable", f"this can be answered as {', '.join(offered)}")
    return chosen


async def load(media: str) -> None:
    """Load what a form is written with, in a thread, for Arrow's takes a while; a Problem if it is not installed."""
    if media != ARROW:
        return
    try:
        await asyncio.to_thread(import_module, "pyarrow")
    except ModuleNotFoundError:
        raise Problem(
            406, "not-acceptable", f"{media} needs pyarrow on the server: pip install hotplate[arrow]"
        ) from None


def content_coding(accept: str | None) -> str | None:
    """Return the compression that the caller takes and we prefer, or None."""
    if accept is None:
        return None
    likes = _likes(accept[:MAX_HEADER_CHARS].lower())
    liked = {coding: likes.get(coding, likes.get("*", 0.0)) for coding in ("zstd", "gzip")}
    best = max(liked, key=lambda coding: liked[coding])  # of equals the first
    return best if liked[best] > 0 else None


def compressor(coding: str) -> Compressor:
    """Make the compressor of one answer."""
    if coding == "zstd":
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()
    return zlib.compressobj(GZIP_LEVEL, wbits=31)


def encode_list(media: str, columns: Sequence[str], answer: bytes) -> bytes:
    """Return a single answer, which is JSON, in another form; *columns* are the fields of its items."""
    fields: DecodedAnswer = orjson.loads(answer)
    if media == MSGPACK:
        return msgspec.msgpack.encode(fields)
    return _csv_rows([columns, *([item.get(name) for name in columns] for item in fields["items"])])


def encode_batch(
    media: str, release: str, columns: Sequence[str], count: int, pieces: Iterable[list[bytes]]
) -> Iterator[bytes]:
    """Yield a batch's answer bit by bit: *count* results in *pieces*, each result one user's JSON."""
    if media == JSON:
        return _json_batch(release, pieces)
    decoded: Iterator[list[DecodedAnswer]] = (orjson.loads(b"[" + b",".join(piece) + b"]") for piece in pieces)
    if media == MSGPACK:
        return _msgpack_batch(release, count, decoded)
    return _csv_batch(columns, decoded) if media == CSV else _arrow_batch(release, columns, decoded)


def _json_batch(release: str, pieces: Iterable[list[bytes]]) -> Iterator[bytes]:
    yield b'{"release":"%b","results":[' % release.encode()
    separator = b""
    for results in pieces:
        yield separator + b",\n".join(results)
        separator = b",\n"
    yield b"]}"


def _msgpack_batch(release: str, count: int, pieces: Iterable[list[DecodedAnswer]]) -> Iterator[bytes]:
    encode = msgspec.msgpack.encode
    # A map of two entries, the second an array that says its length first, in 32 bits.
    yield b"\x82" + encode("release") + encode(release) + encode("results") + b"\xdd" + count.to_bytes(4, "big")
    for results in pieces:
        yield b"".join(map(encode, results))


def _csv_batch(columns: Sequence[str], pieces: Iterable[list[DecodedAnswer]]) -> Iterator[bytes]:
    yield _csv_rows([(*USER_COLUMNS, *columns)])
    for results in pieces:
        yield _csv_rows(zip(*_columns(results, columns), strict=True))


def _arrow_batch(release: str, columns: Sequence[str], pieces: Iterable[list[DecodedAnswer]]) -> Iterator[bytes]:
    pa = import_module("pyarrow")  # heavy, an extra, wanted by few, and without types

    names = (*USER_COLUMNS, *columns)
    schema = pa.schema(
        [(name, pa.float64() if name == "score" else pa.string()) for name in names], metadata={"release": release}
    )
    yield schema.serialize().to_pybytes()
    for results in pieces:
        values = _columns(results, columns)
        arrays = [pa.array(column, kind) for column, kind in zip(values, schema.types, strict=True)]
        yield pa.record_batch(arrays, schema=schema).serialize().to_pybytes()
    yield _ARROW_END


def _columns(results: Sequence[DecodedAnswer], columns: Sequence[str]) -> list[list[Any]]:
    """Return the columns of a row for each item: those of its user, then its own."""
    users = [[one[name] for one in results for _ in one["items"]] for name in USER_COLUMNS]
    users[SOURCE_COLUMN] = [item.get("source", one["source"]) for one in results for item in one["items"]]
    return users + [[item.get(name) for one in results for item in one["items"]] for name in columns]


def _csv_rows(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


@lru_cache(256)
def _best(accept: str, offered: tuple[str, ...]) -> str | None:
    likes = _likes(accept[:MAX_HEADER_CHARS].lower())

    def quality(media: str) -> float:
        ranges = (media, f"{media.partition('/')[0]}/*", "*/*")
        return next((likes[one] for one in ranges if one in likes), 0.0)

    best = max(offered, key=quality)  # of equals the first
    return best if quality(best) > 0 else None


def _likes(header: str) -> dict[str, float]:
    """Return what a header accepts, with its q-values; a value that is not a number counts as 1."""
    likes = dict[str, float]()
    for part in header.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        given = next((one[2:] for one in parameters if one.startswith("q=")), "1")
        try:
            likes[name] = max(0.0, min(1.0, float(given)))
        except ValueError:
            likes[name] = 1.0
    return likes
