"""The deny-list: items that no answer shows, and users who are answered as unknown, out of a file that is watched.

One entry a line, `item:ID` or `user:ID`; blank lines and those that begin with `#` say nothing. Spaces around an id are
not its own; an id with such, or one that begins with a quote, is written as a JSON string.
"""

import asyncio
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import orjson

from stores.encoding import cut, cut_without, encode_id
from stores.errors import StoreMisused
from stores.keys import ITEM, USER, check_id

log = logging.getLogger(__name__)

# How often the file is looked at; it is read once it has been the same twice, as some programs write it bit by bit.
POLL_S = 0.5
MAX_BYTES = 16 << 20

# The ids of a list up to their first quote, escaped or not: a quick look that finds all that are denied, and at times
# one that is not. It takes 0.9 µs for ten items.
_starts = re.compile(rb'\{"id":"([^"]*)').findall


class DenyListInvalid(StoreMisused):
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
    return DenyList(frozenset(ids[USER]), items, frozenset(item[1:-1].partition(b'"')[0] for item in items))


class DenyListFile:
    """The deny-list of a file, read anew whenever that changes; lives as long as its process."""

    def __init__(self, path: Path | None = None) -> None:
        """Read the file; without one nothing is denied. Raises DenyListInvalid."""
        self.current = DenyList()
        self.error: str | None = None
        """What is wrong with the file now, in a sentence; what it said before is held on to."""
        self._path = path
        self._read: object = None
        self._seen: object = None
        if path is not None:
            try:
                self._read = _signature(path)
                self.current = _load(path)
            except OSError as error:
                raise DenyListInvalid(f"the deny-list {path} cannot be read: {error.strerror}") from None

    async def watch(self) -> None:
        """Look at the file until cancelled."""
        while self._path is not None:
            await asyncio.to_thread(self.refresh)
            await asyncio.sleep(POLL_S)

    def refresh(self) -> None:
        """Read the file if it is another than was read, and the same as at the last call."""
        if self._path is None:
            return
        try:
            found = _signature(self._path)
            if found == self._read or found != self._seen:
                self._seen = found
                return
            current = _load(self._path)
        except OSError as error:
            self._read = None  # should the same file come back, it is read, and is no error any more
            self._fail(f"the deny-list {self._path} cannot be read: {error.strerror}")
        except DenyListInvalid as error:
            self._read = found
            self._fail(str(error))
        else:
            self.current, self._read, self.error = current, found, None
            log.info("the deny-list has %d items and %d users", len(current.items), len(current.users))

    def _fail(self, error: str) -> None:
        if error != self.error:
            log.warning("%s; what it said before holds on", error)
        self.error = error


def _signature(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file is replaced or written to."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _load(path: Path) -> DenyList:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DenyListInvalid(f"the deny-list {path} has more than {MAX_BYTES} bytes")
    try:
        return parse(content)
    except DenyListInvalid as error:
        raise DenyListInvalid(f"the deny-list {path} cannot be used: {error}") from None
