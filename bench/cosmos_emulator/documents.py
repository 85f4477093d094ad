"""The items of one container: stored as the bytes that are returned, found by id and partition key, kept in order.

System properties stand at the end of a document's bytes, so a read copies and a write appends. A resource id (`_rid`)
is 4 bytes of a database, then 4 of a container with the highest bit set, then 8 of the document, as the service's are.

https://learn.microsoft.com/azure/cosmos-db/index-policy: the most precise path decides; each indexed value is a term
that a write is charged for. Assumed, as the page says nothing of it: system properties are not terms.
"""

from base64 import b64encode
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from operator import attrgetter
from typing import Any

import orjson

from hotplate.bench.cosmos_emulator.http import bad_request
from hotplate.bench.cosmos_emulator.partitions import Partition

SYSTEM_PROPERTIES = ("_rid", "_self", "_etag", "_attachments", "_ts")
serial_of = attrgetter("serial")


class Document:
    """One item as it is stored; replaced in place."""

    __slots__ = ("body", "etag", "id", "key", "partition", "serial", "size", "terms")

    def __init__(self, item_id: str, key: bytes, serial: int, partition: Partition) -> None:
        self.id = item_id
        self.key = key
        self.serial = serial
        self.partition = partition
        self.body: bytes | None = None  # None once it is deleted
        self.size = 0  # bytes that are charged for
        self.terms = 0  # indexed terms
        self.etag = ""

    def parsed(self) -> dict[str, Any]:
        """Parse the whole item, system properties included."""
        item: dict[str, Any] = orjson.loads(self.body or b"{}")
        return item


def without_system_properties(item: dict[str, Any]) -> dict[str, Any]:
    """Return the properties that a user wrote."""
    return {name: value for name, value in item.items() if name not in SYSTEM_PROPERTIES}


class ContainerDocuments:
    """All documents of one container."""

    def __init__(self) -> None:
        self._by_id = dict[str, dict[bytes, Document]]()
        self._ordered = list[Document]()
        self._deleted = 0
        self.next_serial = count(1).__next__  # returns the number of a new document
        self.stored_bytes = 0

    def __len__(self) -> int:
        return len(self._ordered) - self._deleted

    def get(self, item_id: str, key: bytes) -> Document | None:
        """Find a document."""
        of_id = self._by_id.get(item_id)
        return None if of_id is None else of_id.get(key)

    def with_ids(self, item_ids: Iterable[str], after: int = 0) -> list[Document]:
        """Return the documents of some ids, of all partition keys, with a serial above *after*, in order."""
        found = (document for item_id in set(item_ids) for document in self._by_id.get(item_id, {}).values())
        return sorted((document for document in found if document.serial > after), key=serial_of)

    def add(self, document: Document) -> None:
        """Add a new document of a size that was set; its id and key must be free, its serial the highest."""
        self._by_id.setdefault(document.id, {})[document.key] = document
        if self._deleted > 64 and self._deleted * 2 > len(self._ordered):
            self._ordered = [one for one in self._ordered if one.body is not None]
            self._deleted = 0
        self._ordered.append(document)

    def resize(self, document: Document, size: int) -> None:
        """Set the size of a document, new or replaced."""
        self.stored_bytes += size - document.size
        document.size = size

    def remove(self, document: Document) -> None:
        """Delete a document."""
        of_id = self._by_id[document.id]
        del of_id[document.key]
        if not of_id:
            del self._by_id[document.id]
        document.body = None
        self.stored_bytes -= document.size
        self._deleted += 1

    def restore(self, saved: Document) -> None:
        """Put a copy of a document back that was removed since."""
        self._by_id.setdefault(saved.id, {})[saved.key] = saved
        insort(self._ordered, saved, key=serial_of)
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


DEFAULT_POLICY: dict[str, Any] = {
    "indexingMode": "consistent",
    "automatic": True,
    "includedPaths": [{"path": "/*"}],
    "excludedPaths": [{"path": '/"_etag"/?'}],
}
# System properties that no policy with an index excludes.
ALWAYS_INDEXED = (("id",), ("_ts",))
Path = tuple[str, ...]
Term = tuple[Path, object]


class IndexingPolicy:
    """An indexing policy, checked; it never changes."""

    __slots__ = ("_rules", "indexes_nothing", "mode", "resource")

    def __init__(self, resource: object) -> None:
        if resource is None:
            resource = DEFAULT_POLICY
        if not isinstance(resource, dict):
            raise bad_request("indexingPolicy must be an object")
        self.mode = str(resource.get("indexingMode", "consistent")).lower()
        if self.mode not in ("consistent", "none"):
            raise bad_request("indexingMode must be consistent or none (lazy is not emulated)")
        if self.mode == "none" and resource.get("includedPaths"):
            raise bad_request("with indexingMode none, includedPaths must be empty")
        if self.mode == "consistent" and not resource.get("includedPaths") and "excludedPaths" not in resource:
            resource = {**resource, "includedPaths": DEFAULT_POLICY["includedPaths"]}
        excluded, included = _paths(resource, "excludedPaths"), _paths(resource, "includedPaths")
        self._rules = dict.fromkeys(excluded, False) | dict.fromkeys(included, True)
        self.indexes_nothing = self.mode == "none" or not any(self._rules.values())
        defaults = {"automatic": True, "includedPaths": [], "excludedPaths": []}
        self.resource = {**defaults, **resource, "indexingMode": self.mode}

    def terms(self, item: Mapping[str, Any]) -> frozenset[Term]:
        """Return the indexed values of an item; each value of a path counts once."""
        if self.indexes_nothing:
            return frozenset()
        return frozenset((path, value) for path, value in _leaves(item, ()) if self._is_indexed(path))

    def serves(self, path: Path) -> bool:
        """Return whether a condition on a path can be answered from the index."""
        return (self.mode != "none" and path in ALWAYS_INDEXED) or self._is_indexed(path)

    def _is_indexed(self, path: Path) -> bool:
        found = self._rules.get((*path, "?"))
        depth = len(path)
        while found is None and depth >= 0:
            found = self._rules.get((*path[:depth], "*"))
            depth -= 1
        return bool(found)


def _paths(resource: Mapping[str, Any], name: str) -> list[Path]:
    listed = resource.get(name) or []
    if not isinstance(listed, list):
        raise bad_request(f"{name} must be a list")
    paths = [entry.get("path") if isinstance(entry, dict) else None for entry in listed]
    return [_path(path, name) for path in paths]


def _path(path: object, name: str) -> Path:
    if not isinstance(path, str) or not path.startswith("/") or path.rpartition("/")[2] not in ("*", "?"):
        raise bad_request(f"{name}: the path of each must begin with / and end in /* or /?")
    return tuple(segment.strip('"') for segment in path[1:].split("/"))


def _leaves(value: object, path: Path) -> Iterator[Term]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, (*path, "[]"))
    else:
        yield path, (type(value).__name__, value)
