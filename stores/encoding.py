r"""A list of items as the bytes that are served, and a stored value: the same with a checksum before it.

`{"id":"…","score":…,"title":"…"}` joined by `,\n`, without brackets. JSON escapes control characters, so the separator
cannot occur inside an item. No JSON is parsed to serve a list: its bytes are copied, or cut at a separator.

    stored value    CHECKSUM ‖ OFFSET ‖ payload     8 and 4 ASCII characters, outside of any compression
    body            OFFSET ‖ payload                what the checksum covers, together with the key
    opened body     OFFSET ‖ list                   what is published, and what `cut` takes

The checksum is 48 bits of xxh3_64(key ‖ body), in base64, seeded by the release's id: a list that is damaged, or was
read under another key or out of another release, is recognised in every store, and copies stay equal byte for byte. The
offset is four hex digits: where the tenth item ends, so the usual cut is a slice. It is known when a list is encoded;
the checksum is not, because it needs the key and the release. So lists are bodies until they are written.
"""

import re
from binascii import b2a_base64
from collections.abc import Callable, Container, Iterable
from typing import Required, TypedDict

import orjson
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from hotplate.stores.errors import ReleaseCorrupt, StoreMisused

SEPARATOR = b",\n"

# How many bytes of a value are its checksum, and of a body its offset.
CHECKSUM_BYTES = 8
OFFSET_BYTES = 4
HEADER_BYTES = CHECKSUM_BYTES + OFFSET_BYTES

# How many items the offset is of: as many as are served by default.
USUAL_CUT = 10

# Of a list whose first items are longer than four digits can say, and of what is not a list.
NO_OFFSET = b"0000"
# The most that they can say.
MAX_OFFSET = 0xFFFF

# An item up to its title: within one, every quote is escaped, so only an item begins with `{"id":`.
_ID = re.compile(rb'\{"id":("[^"\\]*(?:\\.[^"\\]*)*")')
_ID_AND_SCORE = re.compile(_ID.pattern + rb'(,"score":[^,}]*)?')

# From a stored value to its opened body, given its key; raises ReleaseCorrupt.
Decode = Callable[[str, bytes], bytes]

# The encodings of a release's lists: `json` as here, `zstd` the same and compressed by `hotplate.stores.compression`.
ENCODINGS = ("json", "zstd")


class Item(TypedDict, total=False):
    """One item of a list; `fields` of a request leaves out its score and title, and not every item has a title."""

    id: Required[str]
    score: float
    title: str


def encode(items: Iterable[Item]) -> bytes:
    """Encode a list, item by item, to its body; the simple way, for a few lists."""
    lines = list[bytes]()
    for item in items:
        line = orjson.dumps({name: item[name] for name in ("id", "score", "title") if name in item})
        if b'"score":null' in line:
            raise StoreMisused(f"the score of item {item['id']!r} is not a finite number")
        lines.append(line)
    return _join(lines)


def body_of(value: bytes) -> bytes:
    """Return the body of a list that was encoded without its offset; 0.9 µs for 20 items."""
    return _join(value.split(SEPARATOR))


def _join(lines: list[bytes]) -> bytes:
    """Join encoded items to a body: the first ten by themselves, because their end is the offset."""
    usual = SEPARATOR.join(lines[:USUAL_CUT])
    offset = b"%04x" % len(usual) if len(usual) <= MAX_OFFSET else NO_OFFSET
    lines[:USUAL_CUT] = [offset + usual]
    return SEPARATOR.join(lines)


def decode(value: bytes) -> list[Item]:
    """Read a list back into items."""
    items: list[Item] = orjson.loads(b"[" + value + b"]")
    return items


def cut(body: bytes, n: int) -> bytes:
    """Return the first *n* items of an opened body's list; all of them if it is shorter."""
    if n == USUAL_CUT and (end := int(body[:OFFSET_BYTES], 16)):
        return body[OFFSET_BYTES : OFFSET_BYTES + end]
    lines = body[OFFSET_BYTES:].split(SEPARATOR, n)
    return SEPARATOR.join(lines[:n])


def cut_without(body: bytes, n: int, *left_out: Container[bytes]) -> bytes:
    """Return the first *n* items of an opened body's list whose ids, by `encode_id`, are nowhere left out."""
    lines = list[bytes]()
    for line in body[OFFSET_BYTES:].split(SEPARATOR):
        if len(lines) == n:
            break
        found = _ID.match(line)
        if found and not any(found[1] in ids for ids in left_out):
            lines.append(line)
    return SEPARATOR.join(lines)


def without_titles(items: bytes, *, scores: bool) -> bytes:
    """Return a list with the ids of its items, and their scores if they are wanted, too."""
    return SEPARATOR.join(
        [b'{"id":%b%b}' % (one, score if scores else b"") for one, score in _ID_AND_SCORE.findall(items)]
    )


def encode_id(identifier: str) -> bytes:
    """Return an id as it stands in a list."""
    return bytes(bytearray(orjson.dumps(identifier)))  # a copy, as what orjson returns holds on to its buffer of 4 KB


def ids_of(items: bytes) -> list[bytes]:
    """Return the ids of a list's items, by `encode_id`; takes 1.4 µs for ten items."""
    return _ID.findall(items)


def is_empty(body: bytes) -> bool:
    """Return whether an opened body's list has no items."""
    return len(body) == OFFSET_BYTES


class Checksum:
    """Makes and checks the values of one release; lives as long as that is written or served."""

    def __init__(self, release: str) -> None:
        self._seed = xxh3_64_intdigest(release.encode())

    def seal(self, key: str, body: bytes) -> bytes:
        """Return the stored value of a body."""
        return b2a_base64(xxh3_64_digest(key.encode() + body, self._seed)[:6], newline=False) + body

    def open(self, key: str, value: bytes) -> bytes:
        """Return the body of a stored value; ReleaseCorrupt if it was damaged or belongs to another key."""
        body = value[CHECKSUM_BYTES:]
        found = b2a_base64(xxh3_64_digest(key.encode() + body, self._seed)[:6], newline=False)
        if found != value[:CHECKSUM_BYTES] or len(body) < OFFSET_BYTES:
            raise ReleaseCorrupt(
                f"the value of {key!r} is damaged or was stored for another key; "
                f"`hotplate releases repair` heals it from another store"
            )
        return body
