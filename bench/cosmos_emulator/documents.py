"""The items of one container: stored as the bytes that are returned, found by id and partition key, kept in order.

A document takes its bytes and some 500 more. Its system properties stand at the end of its bytes, so a read copies
and a write appends. A resource id (`_rid`) is 4 bytes of a database, then 4 of a container with the highest bit
set, then 8 of the document, as the service's are.
"""

from base64 import b64encode
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import count
from operator import attrgetter
from typing import Any

import orjson

from hotplate.bench.cosmos_emulator.partitions import Partition

SYSTEM_PROPERTIES = ("_rid", "_self", "_etag", "_attachments", "_ts")
serial_of = attrgetter("serial")
# A partition key, which unique key of the container, and the values of its paths as JSON.
UniqueValue = tuple[bytes, int, bytes]


class Document:
    """One item as it is stored; replaced in place, so all who hold it see its present state."""

    __slots__ = (
        "body", "etag", "id", "key", "lsn", "partition", "serial", "size", "terms", "ts", "ttl", "unique",
    )  # fmt: skip

    def __init__(self, item_id: str, key: bytes, serial: int, partition: Partition) -> None:
        self.id = item_id
        self.key = key
        self.serial = serial
        self.partition = partition
        self.body: bytes | None = None  # None once it is deleted
        self.size = 0  # bytes that are charged for
        self.terms = 0  # indexed terms
        self.etag = ""
        self.ts = 0
        self.ttl: int | None = None
        self.lsn = 0  # the number of its last write in its partition
        self.unique: tuple[UniqueValue, ...] = ()  # what no other document of its key may have

    def parsed(self) -> dict[str, Any]:
        """Parse the whole item, system properties included."""
        item: dict[str, Any] = orjson.loads(self.body or b"{}")
        return item


def without_system_properties(item: dict[str, Any]) -> dict[str, Any]:
    """Return the properties that a user wrote."""
    return {name: value for name, value in item.items() if name not in SYSTEM_PROPERTIES}


class Documents:
    """All documents of one container."""

    def __init__(self) -> None:
        self._by_id = dict[str, Document | dict[bytes, Document]]()
        self._ordered = list[Document]()
        self._unique = dict[UniqueValue, Document]()
        self._deleted = 0
        self.next_serial = count(1).__next__  # returns the number of a new document
        self.stored_bytes = 0

    def __len__(self) -> int:
        return len(self._ordered) - self._deleted

    def get(self, item_id: str, key: bytes) -> Document | None:
        """Find a document, expired or not."""
        found = self._by_id.get(item_id)
        if isinstance(found, dict):
            return found.get(key)
        return found if found is not None and found.key == key else None

    def with_ids(self, item_ids: Iterable[str], after: int = 0) -> list[Document]:
        """Return the documents of some ids, of all partition keys, with a serial above *after*, in order."""
        found = list[Document]()
        for item_id in set(item_ids):
            one = self._by_id.get(item_id)
            if one is not None:
                found += one.values() if isinstance(one, dict) else [one]
        return sorted((document for document in found if document.serial > after), key=serial_of)

    def add(self, document: Document) -> None:
        """Add a new document of a size that was set; its id and key must be free, its serial the highest."""
        self._index(document)
        if self._deleted > 64 and self._deleted * 2 > len(self._ordered):
            self._ordered = [one for one in self._ordered if one.body is not None]
            self._deleted = 0
        self._ordered.append(document)

    def _index(self, document: Document) -> None:
        found = self._by_id.get(document.id)
        if found is None:
            self._by_id[document.id] = document
        elif isinstance(found, dict):
            found[document.key] = document
        else:
            self._by_id[document.id] = {found.key: found, document.key: document}

    def has_other(self, document: Document, values: Iterable[UniqueValue]) -> bool:
        """Return whether another document has one of the values of a unique key."""
        return any(self._unique.get(value, document) is not document for value in values)

    def claim(self, document: Document, values: tuple[UniqueValue, ...]) -> None:
        """Take the values of a document's unique keys, and let go of those that it had."""
        self._release(document)
        document.unique = values
        self._unique |= dict.fromkeys(values, document)

    def _release(self, document: Document) -> None:
        for value in document.unique:
            if self._unique.get(value) is document:
                del self._unique[value]

    def resize(self, document: Document, size: int) -> None:
        """Set the size of a document, new or replaced."""
        self.stored_bytes += size - document.size
        document.size = size

    def remove(self, document: Document) -> None:
        """Delete a document."""
        found = self._by_id[document.id]
        if isinstance(found, dict):
            del found[document.key]
        if not isinstance(found, dict) or not found:
            del self._by_id[document.id]
        document.body = None
        self._release(document)
        self.stored_bytes -= document.size
        self._deleted += 1

    def restore(self, saved: Document) -> None:
        """Put a copy of a document back that was removed since."""
        self._index(saved)
        insort(self._ordered, saved, key=serial_of)
        self.claim(saved, saved.unique)
        self.stored_bytes += saved.size

    def after(self, serial: int = 0) -> Iterator[Document]:
        """Yield the documents with a higher serial, in order; add and remove nothing before the end."""
        for place in range(bisect_right(self._ordered, serial, key=serial_of), len(self._ordered)):
            document = self._ordered[place]
            if document.body is not None:
                yield document


def resource_id(raw: bytes) -> str:
    """Return the resource id that some bytes stand for."""
    return b64encode(raw, b"+-").decode()
