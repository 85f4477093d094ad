"""The deny-list: a watched file of items that no answer contains, and users that are treated as unknown.

One `item:ID` or `user:ID` per line; blank lines and `#` comments are ignored. An id with spaces around it or a leading
quote is written as a JSON string.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import orjson

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.watched import WatchedFiles
from hotplate.stores.encoding import ITEM, USER, check_id, encode_id
from hotplate.stores.errors import StoreMisused

MAX_BYTES = 16 << 20
# A background thread sleeps after each batch of lines to release the GIL.
LINES_AT_ONCE = 64
PAUSE_S = 2e-4


class DenyListInvalid(ServiceMisused):
    """A deny-list cannot be parsed. The message contains no id, which may be personal."""


@dataclass(frozen=True, slots=True)
class DenyList:
    """The entries of one version of the file."""

    users: frozenset[str] = frozenset()
    items: frozenset[bytes] = frozenset()
    """Encoded by `encode_id`."""


def parse(content: bytes) -> DenyList:
    """Parse a deny-list; raises DenyListInvalid. A million lines take some seconds."""
    pauses = threading.current_thread() is not threading.main_thread()
    users, items = set[str](), set[bytes]()
    add: dict[str, Callable[[str], None]] = {USER: users.add, ITEM: lambda item: items.add(encode_id(item))}
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for number, raw in enumerate(BytesIO(content), 1):
        if pauses and number % LINES_AT_ONCE == 0:
            time.sleep(PAUSE_S)
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
    return DenyList(frozenset(users), frozenset(items))


class DenyListFile:
    """The deny-list in a watched file; one per process."""

    def __init__(self, path: Path | None = None) -> None:
        """Read the file, if any; raises ServiceMisused."""
        self.current = DenyList()
        self.watched = [] if path is None else [WatchedFiles([path], partial(self._load, path), max_bytes=MAX_BYTES)]

    def _load(self, path: Path, contents: Sequence[bytes]) -> None:
        try:
            self.current = parse(contents[0])
        except DenyListInvalid as error:
            raise DenyListInvalid(f"the deny-list {path} cannot be used: {error}") from None
