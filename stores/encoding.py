r"""Keys, `KIND:ID`, and the encoding of lists, stored values and lists of keys.

A release may have named lists besides the default one; their kinds end in their name: `user@basket:ID`.

A list of keys takes two bytes a key instead of twenty, and knows its range.

A list is `{"id":"…","score":…,"title":"…"}` joined by `,\n`, without brackets. JSON escapes control characters, so
lists are cut at separators without parsing.

    stored value    CHECKSUM ‖ OFFSET ‖ payload     8 and 4 ASCII characters, never compressed
    body            OFFSET ‖ payload
    opened body     OFFSET ‖ list

The checksum is 48 bits of xxh3_64(key ‖ body) in base64, seeded by the release's id, so it also detects values of
another key or release. The offset, four hex digits, is the length in bytes of the list's first ten items, so the usual
cut is a slice; `0000` above 65,535.
"""

import re
import struct
import zlib
from binascii import b2a_base64
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec
import orjson
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from hotplate.base.recommendations import ALL_ITEM_FIELDS, Item
from hotplate.stores.errors import HEAL, ReleaseCorrupt, StoreMisused, WrittenByNewer

T = TypeVar("T")

SEPARATOR = b",\n"
CHECKSUM_BYTES = 8
OFFSET_BYTES = 4
HEADER_BYTES = CHECKSUM_BYTES + OFFSET_BYTES
USUAL_CUT = 10  # items before the offset; a request's default
SCORE_DIGITS = 6  # significant ones of computed scores: nearly the precision of float32

# Offset of long lists, and of values that are not lists.
NO_OFFSET = b"0000"
MAX_OFFSET = 0xFFFF

# Quotes within an item are escaped, so `{"id":` only occurs at its start.
_ID = re.compile(rb'\{"id":("[^"\\]*(?:\\.[^"\\]*)*")')
_VALUE = rb'(?:"[^"\\]*(?:\\.[^"\\]*)*"|[^,"}]*)'
_FIELDS = re.compile(_ID.pattern + b"".join(b'(,"%b":%b)?' % (name.encode(), _VALUE) for name in ALL_ITEM_FIELDS[1:]))

# Of the values of a release.
Encoding = Literal["json", "zstd"]
# From a key and its stored value to the opened body; raises ReleaseCorrupt.
Decode = Callable[[str, bytes], bytes]

PLAIN: Final = "json"
COMPRESSED: Final = "zstd"
ENCODINGS = (PLAIN, COMPRESSED)
USER = "user:"
ITEM = "item:"
POPULAR = "popular:"
META = "meta:"
KINDS = ("item", "meta", "popular", "user")
# Kinds that named lists have, too.
LISTED = ("item", "popular", "user")

MANIFEST = META + "manifest"
DICTIONARY = META + "dictionary"
ATTRIBUTES = META + "attributes"
FACTORS = META + "factors"
MAX_ID_BYTES = 256
OVERALL = ""
MAX_LISTS = 20  # of one release, the default one included
MAX_LIST_NAME = 32
_is_list_name = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{MAX_LIST_NAME - 1}}}").fullmatch
_HEADER = struct.Struct(">HH")  # lengths of the first and last key
PACKED_AT_ONCE = 64  # packed lists that are read together, about 100 kB


class RowKey(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """The key of a row. Stores take its `text`.

    A Struct, because each read makes one: in 0.2 µs, where a frozen dataclass takes 1.3.
    """

    kind: str
    """USER, ITEM, POPULAR or META."""

    id: str
    """Of a user or an item, or the segment of a popular list."""

    list: str = ""
    """The name of the list in keys; empty for the default list."""

    @classmethod
    def parse(cls, text: str) -> "RowKey":
        """Parse a key, or the kind of keys, such as `user@basket`."""
        prefix, _, identifier = text.partition(":")
        kind, _, name = prefix.partition("@")
        return cls(f"{kind}:", identifier, name)

    @property
    def text(self) -> str:
        """The key in stores, such as `user:42`, or `user@basket:42` in a named list."""
        return f"{self.kind[:-1]}@{self.list}:{self.id}" if self.list else self.kind + self.id

    @property
    def user(self) -> str | None:
        """The user of a user's list, else None."""
        return self.id if self.kind == USER else None

    def popular(self, segment: str = OVERALL) -> "RowKey":
        """Return the key of the popular list of *segment* in the same list."""
        return RowKey(POPULAR, segment, self.list)


def prefix_of(kind: str, name: str) -> str:
    """Return how keys of *kind* (USER, ITEM or POPULAR) begin in the list *name*, empty for the default list."""
    return RowKey(kind, "", name).text


# The popular list for everybody, in the default list.
EVERYBODY = RowKey(POPULAR, OVERALL)


def significant(score: float) -> float:
    """Return a computed score with SCORE_DIGITS significant digits."""
    return float(f"{score:.{SCORE_DIGITS}g}")


IdTest = Callable[[bytes], bool]
"""Says something of an item, by its id (`encode_id`)."""


def encode(items: Iterable[Item]) -> bytes:
    """Encode a list to its body, the offset included; for a few lists only (`body_of` is faster).

    Raises StoreMisused for a score that is not a finite number.
    """
    lines = list[bytes]()
    for item in items:
        values: Mapping[str, object] = item
        line = orjson.dumps({name: values[name] for name in ALL_ITEM_FIELDS if name in values})
        if b'"score":null' in line:
            raise StoreMisused(f"the score of item {item['id']!r} is not a finite number")
        lines.append(line)
    return _join(lines)


def body_of(value: bytes) -> bytes:
    """Put the offset before an encoded list, and return the body; 0.9 µs for 20 items."""
    return _join(value.split(SEPARATOR))


def _join(lines: list[bytes]) -> bytes:
    """Return the body of a list of encoded items.

    A body begins with the length of its first USUAL_CUT items, in four hexadecimal digits, so that a request for the
    usual number of items needs one slice.
    """
    usual = SEPARATOR.join(lines[:USUAL_CUT])
    offset = b"%04x" % len(usual) if len(usual) <= MAX_OFFSET else NO_OFFSET
    return SEPARATOR.join([offset + usual, *lines[USUAL_CUT:]])


def decode(value: bytes) -> list[Item]:
    """Decode a list to items."""
    items: list[Item] = orjson.loads(b"[" + value + b"]")
    return items


def cut(body: bytes, n: int) -> bytes:
    """Return the first *n* items of an opened body's list, in bytes, by the offset if *n* is the usual number."""
    if n == USUAL_CUT and (end := int(body[:OFFSET_BYTES], 16)):
        return body[OFFSET_BYTES : OFFSET_BYTES + end]
    lines = body[OFFSET_BYTES:].split(SEPARATOR, n)
    return SEPARATOR.join(lines[:n])


def cut_without(body: bytes, n: int, *left_out: IdTest) -> bytes:
    """Return the first *n* items of an opened body's list, in bytes, that none of *left_out* is true for.

    The body begins with an offset, which is skipped, and holds one JSON object per item.
    """
    items = body[OFFSET_BYTES:]
    lines = list[bytes]()
    for match, line in zip(_ID.finditer(items), items.split(SEPARATOR), strict=False):  # no id in an empty list
        if len(lines) == n:
            break
        identifier = match[1]
        for is_left_out in left_out:  # `any` would cost a generator for each item
            if is_left_out(identifier):
                break
        else:
            lines.append(line)
    return SEPARATOR.join(lines)


def with_fields(items: bytes, fields: Collection[str], tail_of: Callable[[bytes], bytes]) -> bytes:
    """Return a list with the id and those of ALL_ITEM_FIELDS that are in *fields*, and more fields of each item.

    *tail_of* returns these, encoded as `,"price":5`, by `encode_id`.
    """
    more = b"".join(b"%b" if name in fields else b"%.0b" for name in ALL_ITEM_FIELDS[1:])
    line = b'{"id":%b' + more + b"%b}"
    return SEPARATOR.join([line % (*found, tail_of(found[0])) for found in _FIELDS.findall(items)])


def encode_id(identifier: str) -> bytes:
    """Return an id as encoded in a list."""
    return bytes(bytearray(orjson.dumps(identifier)))  # a copy: orjson's result keeps a 4 kB buffer alive


def ids_of(items: bytes) -> list[bytes]:
    """Return the ids of a list, by `encode_id`; 1.4 µs for ten items."""
    return _ID.findall(items)


def length_of(items: bytes) -> int:
    """Return the number of items of a list, also of a body; 0 only for no bytes."""
    return items.count(SEPARATOR) + 1 if items else 0


def is_empty(body: bytes) -> bool:
    """Return whether an opened body's list is empty."""
    return len(body) == OFFSET_BYTES


class RecordFormat(msgspec.Struct):
    """The format number of a stored record."""

    format: int


def decode_versioned(
    record: bytes, kind: type[T], *, newest: int, subject: str, decode: Callable[..., Any] = msgspec.json.decode
) -> T:
    """Check the format number of a record, then decode all of it as *kind*.

    The number is decoded first, because other formats may have other fields. Raises WrittenByNewer, with *subject*, for
    a format above *newest*, and errors of msgspec for damage.
    """
    written_format: int = decode(record, type=RecordFormat).format
    if written_format > newest:
        raise WrittenByNewer(
            f"{subject} was written by a newer hotplate: its format is {written_format}, and this one reads {newest}; "
            f"upgrade hotplate"
        )
    result: T = decode(record, type=kind)
    return result


class Checksum:
    """Seals and opens the values of one release."""

    def __init__(self, release: str) -> None:
        self.seed = xxh3_64_intdigest(release.encode())

    def seal(self, key: str, body: bytes) -> bytes:
        """Return the stored value of a body."""
        return b2a_base64(xxh3_64_digest(key.encode() + body, self.seed)[:6], newline=False) + body

    def open(self, key: str, value: bytes) -> bytes:
        """Return the body of a stored value; raises ReleaseCorrupt."""
        body = value[CHECKSUM_BYTES:]
        expected = b2a_base64(xxh3_64_digest(key.encode() + body, self.seed)[:6], newline=False)
        if expected != value[:CHECKSUM_BYTES] or len(body) < OFFSET_BYTES:
            raise ReleaseCorrupt(f"the value of {key!r} is damaged or was stored for another key; {HEAL}")
        return body


def check_id(identifier: str) -> str:
    """Return *identifier*; StoreMisused unless it has 1 to 256 bytes of valid UTF-8."""
    try:
        size = len(identifier.encode())
    except AttributeError as error:
        raise StoreMisused(f"an id is a string, and not of the type {type(identifier).__name__}") from error
    except UnicodeEncodeError as error:
        raise StoreMisused("an id is not valid Unicode text") from error
    if not 0 < size <= MAX_ID_BYTES:
        raise StoreMisused(f"an id has 1 to {MAX_ID_BYTES} bytes of UTF-8; this one has {size}")
    return identifier


def check_list(name: str) -> str:
    """Return the *name* of a list.

    Raises StoreMisused unless it has 1 to 32 ASCII letters, digits, `-` and `_`, and begins with a letter or digit.
    """
    if not _is_list_name(name):
        raise StoreMisused(
            f"{name[:MAX_ID_BYTES]!r} is not the name of a list, which has 1 to {MAX_LIST_NAME} letters, digits, - "
            f"and _, and begins with a letter or digit"
        )
    return name


def check_kind(kind: str) -> str:
    """Return *kind*; StoreMisused if it is unknown."""
    if kind in KINDS:
        return kind
    base, at, name = kind.partition("@")
    if base not in LISTED or not at or not _is_list_name(name):
        raise StoreMisused(f"{kind!r} is not a kind of key; keys start with {', '.join(KINDS)} and a colon")
    return kind


class KeySpan(NamedTuple):
    """The range of a packed list of keys, and its location: a *source* defined by the store, and a *place* in it."""

    first: str
    last: str
    source: str
    place: int


def pack(keys: Sequence[str]) -> bytes:
    """Pack keys in any order to bytes; 0.05 µs a key.

    The result has the lengths of the smallest and the largest key, both keys, and all keys as compressed JSON. So
    `bounds` reads the range of the keys without decompressing them.
    """
    first = min(keys).encode()  # in the order of UTF-8 bytes, as str are ordered in the same way
    last = max(keys).encode()
    return _HEADER.pack(len(first), len(last)) + first + last + zlib.compress(orjson.dumps(keys), 1)


def bounds(packed: bytes) -> tuple[str, str]:
    """Return the smallest and the largest key of a packed list."""
    first_bytes, last_bytes = _HEADER.unpack_from(packed)
    last_start = _HEADER.size + first_bytes
    first = packed[_HEADER.size : last_start]
    last = packed[last_start : last_start + last_bytes]
    return first.decode(), last.decode()


def unpack(packed: bytes) -> list[str]:
    """Return the keys in their packed order."""
    first_bytes, last_bytes = _HEADER.unpack_from(packed)
    compressed = packed[_HEADER.size + first_bytes + last_bytes :]
    keys: list[str] = orjson.loads(zlib.decompress(compressed))
    return keys


async def merge_packed_keys(
    spans: Iterable[KeySpan], fetch: Callable[[Sequence[KeySpan]], Awaitable[Sequence[bytes | None]]]
) -> AsyncIterator[list[str]]:
    """Merge packed lists of keys, and yield the distinct keys in ascending order, in chunks.

    A packed list is a compressed list of keys; a span has its smallest (`first`) and largest key, and its location.
    Lists are read in the order of their smallest keys. As their ranges may overlap, keys are only yielded once they are
    below the smallest key of the next list. *fetch* gets up to PACKED_AT_ONCE spans, and returns their packed lists in
    order, None for a list that is gone.
    """
    ordered = sorted(spans)
    pending = list[str]()  # sorted; may hold a key twice

    for start in range(0, len(ordered), PACKED_AT_ONCE):
        packed_lists = await fetch(ordered[start : start + PACKED_AT_ONCE])
        for next_span, packed in enumerate(packed_lists, start + 1):
            if packed is not None:
                pending += unpack(packed)
                pending.sort()  # linear for ascending runs

            # Number of pending keys that no later list can precede.
            complete = len(pending)
            if next_span < len(ordered):
                complete = bisect_left(pending, ordered[next_span].first)

            if complete:
                yield list(dict.fromkeys(pending[:complete]))
                del pending[:complete]
