"""The deny-list: items that no answer shows, and users who are answered as unknown, out of a file that is watched.

One entry a line, `item:ID` or `user:ID`; blank lines and those that begin with `#` say nothing. Spaces around an id are
not its own; an id with such, or one that begins with a quote, is written as a JSON string.
"""

import threading
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Generic, TypeVar

import orjson

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.watched import WatchedFiles
from hotplate.stores.encoding import cut, cut_without, encode_id, ids_of
from hotplate.stores.errors import StoreMisused
from hotplate.stores.keys import ITEM, USER, check_id

MAX_BYTES = 16 << 20
# After how many lines a reader pauses; and for how long a thread other than the loop's does, so requests seldom wait
# for the lock of the interpreter.
LINES_AT_ONCE = 64
PAUSE_S = 2e-4


AnyId = TypeVar("AnyId", str, bytes)


class DenyListInvalid(ServiceMisused):
    """The file of a deny-list cannot be used; the text names the line, but no id, because ids may be personal."""


class Ids(Generic[AnyId]):
    """Ids in two blocks of memory: 16 to 32 bytes each, and the ids as they stand in lists.

    A set takes three times as much, and to free one of a million objects stops the process for a tenth of a second.
    """

    def __init__(self, encode: Callable[[AnyId], bytes], most: int = 0) -> None:
        """Make room for *most* ids; *encode* returns what `encode_id` does."""
        self._encode: Callable[[AnyId], bytes] = encode
        self._mask = (1 << (4 * most).bit_length()) - 1
        self._starts = array("I", bytes(4 * (self._mask + 1)))
        """Where an id starts in the text, at the place that its hash says, or the next free one; 0 if there is none."""

        self._text = bytearray(1)

    def __bool__(self) -> bool:
        return len(self._text) > 1

    def __contains__(self, one: object) -> bool:
        return self.has_any((one,))  # type: ignore[arg-type]  # what is not an id is not found

    def has_any(self, ids: Iterable[AnyId]) -> bool:
        """Return whether one of *ids* is among these; takes some 60 ns for each that is not."""
        starts, mask = self._starts, self._mask
        for one in ids:
            place = hash(one) & mask
            while start := starts[place]:
                if self._text.startswith(self._encode(one), start):
                    return True
                place = (place + 1) & mask
        return False

    def add(self, one: AnyId) -> None:
        """Add an id, once."""
        if one not in self:
            place = hash(one) & self._mask
            while self._starts[place]:
                place = (place + 1) & self._mask
            self._starts[place] = len(self._text)
            self._text += self._encode(one)


@dataclass(frozen=True, slots=True)
class DenyList:
    """What is denied, as one version of the file says; immutable."""

    users: Ids[str] = field(default_factory=lambda: Ids(encode_id))
    items: Ids[bytes] = field(default_factory=lambda: Ids[bytes](bytes))
    """As `encode_id` gives them."""

    def cut(self, body: bytes, n: int, excluded: frozenset[bytes] = frozenset()) -> bytes:
        """Return the first *n* items of an opened body's list that are neither denied nor excluded."""
        if not excluded:
            items = cut(body, n)
            if not self.items or not self.items.has_any(ids_of(items)):
                return items
        return cut_without(body, n, self.items, excluded)


def pause_beside_loop() -> None:
    """Let a loop have its turn, if this is another thread."""
    if threading.current_thread() is not threading.main_thread():
        time.sleep(PAUSE_S)


def parse(content: bytes, pause: Callable[[], None] = pause_beside_loop) -> DenyList:
    """Read a deny-list, and *pause* now and then; raises DenyListInvalid. A million lines take some seconds."""
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    users, items = Ids(encode_id, content.count(b"user:")), Ids[bytes](bytes, content.count(b"item:"))
    add: dict[str, Callable[[str], None]] = {USER: users.add, ITEM: lambda item: items.add(encode_id(item))}
    for number, raw in enumerate(BytesIO(content), 1):
        if number % LINES_AT_ONCE == 0:
            pause()
        try:
            line = raw.decode().strip()
            if not line or line.startswith("#"):
                continue
            kind, colon, identifier = line.partition(":")
            identifier = identifier.strip()
            if identifier.startswith('"'):
                identifier = orjson.loads(identifier)
            add[kind + colon](check_id(identifier))
        except (KeyError, ValueError, StoreMisused):
            raise DenyListInvalid(
                f"line {number} is not an entry; an entry is item:ID or user:ID, of at most 256 bytes of UTF-8"
            ) from None
    return DenyList(users, items)


class DenyListFile:
    """The deny-list of a file, read again when that changes; lives as long as its process."""

    def __init__(self, path: Path | None = None) -> None:
        """Read the file; without one nothing is denied. Raises DenyListInvalid."""
        self.current = DenyList()
        self.pause: Callable[[], None] = pause_beside_loop
        """What is called over and over while a version of the file is read."""
        self.watched = [] if path is None else [WatchedFiles([path], partial(self._load, path))]

    def _load(self, path: Path) -> Callable[[], None]:
        read = _read(path, self.pause)

        def use() -> None:
            self.current = read

        return use


def _read(path: Path, pause: Callable[[], None]) -> DenyList:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DenyListInvalid(f"the deny-list {path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise DenyListInvalid(f"the deny-list {path} has more than {MAX_BYTES} bytes")
    try:
        return parse(content, pause)
    except DenyListInvalid as error:
        raise DenyListInvalid(f"the deny-list {path} cannot be used: {error}") from None
