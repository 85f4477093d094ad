"""The deny-list: items that no answer shows, and users who are answered as unknown, out of a file that is watched.

One entry a line, `item:ID` or `user:ID`; blank lines and those that begin with `#` say nothing. Spaces around an id are
not its own; an id with such, or one that begins with a quote, is written as a JSON string.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson

from serve.errors import ServiceMisused
from serve.watched import WatchedFiles
from stores.encoding import cut, cut_without, encode_id
from stores.errors import StoreMisused
from stores.keys import ITEM, USER, check_id

MAX_BYTES = 16 << 20

# The ids of a list up to their first quote, escaped or not: a quick look that finds all that are denied, and at times
# one that is not. It takes 0.9 µs for ten items.
_starts = re.compile(rb'\{"id":"([^"]*)').findall


class DenyListInvalid(ServiceMisused):
    """The file of a deny-list cannot be used; the text names the line, but no id, for those may be personal."""


@dataclass(frozen=True, slots=True)
class DenyList:
    """What is denied, as one version of the file says; immutable."""

    users: frozenset[str] = frozenset()
    items: frozenset[bytes] = frozenset()
    """As `encode_id` gives them."""

    starts: frozenset[bytes] = frozenset()
    """The items up to the first quote of their ids."""

    def cut(self, body: bytes, n: int, excluded: frozenset[bytes] = frozenset()) -> bytes:
        """Return the first *n* items of an opened body's list that are neither denied nor excluded."""
        if not excluded:
            items = cut(body, n)
            if not self.starts or self.starts.isdisjoint(_starts(items)):
                return items
        return cut_without(body, n, self.items, excluded)


def parse(content: bytes) -> DenyList:
    """Read a deny-list; raises DenyListInvalid."""
    ids: dict[str, set[str]] = {ITEM: set(), USER: set()}
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            line = raw.decode().strip()
            if not line or line.startswith("#"):
                continue
            kind, colon, identifier = line.partition(":")
            identifier = identifier.strip()
            if identifier.startswith('"'):
                identifier = orjson.loads(identifier)
            ids[kind + colon].add(check_id(identifier))
        except (KeyError, ValueError, StoreMisused):
            raise DenyListInvalid(
                f"line {number} is no entry; an entry is item:ID or user:ID, of at most 256 bytes of UTF-8"
            ) from None
    items = frozenset(map(encode_id, ids[ITEM]))
    starts = {item[1:-1].partition(b'"')[0] for item in items}
    return DenyList(frozenset(ids[USER]), items, frozenset(starts))  # of a set, it is half as large as of a generator


class DenyListFile:
    """The deny-list of a file, read anew whenever that changes; lives as long as its process."""

    def __init__(self, path: Path | None = None) -> None:
        """Read the file; without one nothing is denied. Raises DenyListInvalid."""
        self.current = DenyList()
        self.watched = [] if path is None else [WatchedFiles([path], partial(self._load, path))]

    def _load(self, path: Path) -> Callable[[], None]:
        read = _read(path)

        def use() -> None:
            self.current = read

        return use


def _read(path: Path) -> DenyList:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DenyListInvalid(f"the deny-list {path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise DenyListInvalid(f"the deny-list {path} has more than {MAX_BYTES} bytes")
    try:
        return parse(content)
    except DenyListInvalid as error:
        raise DenyListInvalid(f"the deny-list {path} cannot be used: {error}") from None
