r"""A list of items as the bytes that are served: JSON objects, one a line, without brackets.

`{"id":"…","score":…,"title":"…"}` joined by `,\n`. JSON escapes control characters, so the separator cannot occur
inside an item: to cut is to split, to serve whole is to copy.
"""

from collections.abc import Iterable, Sequence
from typing import TypedDict

import orjson

from stores.errors import StoreMisused

SEPARATOR = b",\n"

# The encodings of a release's lists: `json` as here, `zstd` the same and compressed by `stores.compression`.
ENCODINGS = ("json", "zstd")


class Item(TypedDict, total=False):
    """One entry of a list; an item without a title has no `title`."""

    id: str
    score: float
    title: str


class ItemEncoder:
    """Encodes ranked lists over a fixed set of items; lives as long as one publish.

    Each item's constant bytes are made once, so that a list costs a join rather than a serialiser's walk.
    """

    def __init__(self, ids: Sequence[str], titles: Sequence[str | None]) -> None:
        """Take the items in index order, each with its title or None."""
        self._heads = [b'{"id":%b,"score":' % orjson.dumps(identifier) for identifier in ids]
        self._tails = [b"}" if title is None else b',"title":%b}' % orjson.dumps(title) for title in titles]

    def encode(self, items: Iterable[int], scores: list[float]) -> bytes:
        """Encode one list: item indices, and their finite scores, best first. An empty list is empty bytes."""
        if not scores:
            return b""
        heads, tails = self._heads, self._tails
        numbers = orjson.dumps(scores)[1:-1].split(b",")
        if b"null" in numbers:
            raise StoreMisused("a score is not a finite number; leave such items out of the list")
        return SEPARATOR.join([heads[item] + number + tails[item] for item, number in zip(items, numbers, strict=True)])


def encode(items: Iterable[Item]) -> bytes:
    """Encode a list item by item; the plain way, for a few lists."""
    lines = list[bytes]()
    for item in items:
        line = orjson.dumps({name: item[name] for name in ("id", "score", "title") if name in item})
        if b'"score":null' in line:
            raise StoreMisused(f"the score of item {item['id']!r} is not a finite number")
        lines.append(line)
    return SEPARATOR.join(lines)


def decode(value: bytes) -> list[Item]:
    """Read a list back into items."""
    items: list[Item] = orjson.loads(b"[" + value + b"]")
    return items


def cut(value: bytes, n: int) -> bytes:
    """Return the first *n* items of an encoded list; all of them where it is shorter."""
    lines = value.split(SEPARATOR, n)
    return value if len(lines) <= n else SEPARATOR.join(lines[:n])
