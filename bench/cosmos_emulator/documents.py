"""The items of one container: stored as the bytes that are answered, found by id and partition key, kept in order.

A document costs its bytes and some 500 more. Its system properties stand at the end of its bytes, so that a read copies
and a write appends.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from bench.cosmos_emulator.partitions import Partition

SYSTEM = ("_rid", "_self", "_etag", "_attachments", "_ts")


@dataclass(frozen=True, slots=True)
class State:
    """What of a document changes, as it was at some time."""

    body: bytes | None
    size: int
    terms: int
    etag: str
    ts: int
    ttl: int | None


class Document:
    """One item as it is stored; replaced in place, so that whoever holds it sees what is there now."""

    __slots__ = ("body", "etag", "id", "key", "partition", "serial", "size", "terms", "ts", "ttl")

    def __init__(self, name: str, key: bytes, serial: int, partition: Partition) -> None:
        self.id = name
        self.key = key
        self.serial = serial
        self.partition = partition
        self.body: bytes | None = None
        """None once it was deleted."""

        self.size = 0
        """What is charged for, in bytes."""

        self.terms = 0
        self.etag = ""
        self.ts = 0
        self.ttl: int | None = None

    def parsed(self) -> dict[str, Any]:
        """Parse the whole item, system properties included."""
        item: dict[str, Any] = orjson.loads(self.body or b"{}")
        return item

    def state(self) -> State:
        """Return what could change."""
        return State(self.body, self.size, self.terms, self.etag, self.ts, self.ttl)

    def put_back(self, state: State) -> None:
        """Make it again what it was."""
        self.body, self.size, self.terms = state.body, state.size, state.terms
        self.etag, self.ts, self.ttl = state.etag, state.ts, state.ttl


def user_part(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item without its system properties."""
    return {name: value for name, value in item.items() if name not in SYSTEM}


class Documents:
    """All documents of one container."""

    def __init__(self) -> None:
        self._by_id = dict[str, Document | dict[bytes, Document]]()
        self._ordered = list[Document]()
        self._dead = 0
        self._born = 0
        self.stored_bytes = 0

    def __len__(self) -> int:
        return len(self._ordered) - self._dead

    def get(self, name: str, key: bytes) -> Document | None:
        """Find a document; whether it has expired is the caller's to know."""
        found = self._by_id.get(name)
        if isinstance(found, dict):
            return found.get(key)
        return found if found is not None and found.key == key else None

    def with_id(self, name: str) -> list[Document]:
        """Return the documents of one id, of all partition keys."""
        found = self._by_id.get(name)
        if found is None:
            return []
        return list(found.values()) if isinstance(found, dict) else [found]

    def next_serial(self) -> int:
        """Return the number that a new document gets; it is never given again."""
        self._born += 1
        return self._born

    def add(self, document: Document) -> None:
        """Put a new document in; its id and key must be free, its serial the highest."""
        self._hold(document)
        if self._dead > 64 and self._dead * 2 > len(self._ordered):
            self._ordered = [one for one in self._ordered if one.body is not None]
            self._dead = 0
        self._ordered.append(document)
        self.stored_bytes += document.size

    def _hold(self, document: Document) -> None:
        found = self._by_id.get(document.id)
        if found is None:
            self._by_id[document.id] = document
        elif isinstance(found, dict):
            found[document.key] = document
        else:
            self._by_id[document.id] = {found.key: found, document.key: document}

    def resize(self, document: Document, size: int) -> None:
        """Note what a document takes after it was replaced."""
        self.stored_bytes += size - document.size
        document.size = size

    def remove(self, document: Document) -> None:
        """Take a document out."""
        found = self._by_id[document.id]
        if isinstance(found, dict):
            del found[document.key]
            if not found:
                del self._by_id[document.id]
        else:
            del self._by_id[document.id]
        document.body = None
        self.stored_bytes -= document.size
        self._dead += 1

    def revive(self, document: Document) -> None:
        """Put a document back that was removed a moment ago."""
        others = [one for one in self._ordered if one is not document]
        self._dead -= len(self._ordered) - len(others)
        others.insert(bisect_right(others, document.serial, key=_serial_of), document)
        self._ordered = others
        self._hold(document)
        self.stored_bytes += document.size

    def after(self, serial: int = 0) -> Iterator[Document]:
        """Yield the documents that were made after the one of *serial*, in order; do not change them meanwhile."""
        start = bisect_right(self._ordered, serial, key=_serial_of)
        for place in range(start, len(self._ordered)):
            document = self._ordered[place]
            if document.body is not None:
                yield document

    def in_order(self, names: Iterable[str], serial: int = 0) -> list[Document]:
        """Return the documents of some ids after *serial*, in order."""
        found = [one for name in set(names) for one in self.with_id(name) if one.serial > serial]
        return sorted(found, key=_serial_of)


def _serial_of(document: Document) -> int:
    return document.serial
