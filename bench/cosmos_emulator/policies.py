"""The policies of a container: which values of an item are indexed, and which no two items may both have.

https://learn.microsoft.com/azure/cosmos-db/index-policy: the most precise path decides; each indexed value is a term
that a write is charged for. Assumed, as the page says nothing of it: system properties are not terms.
https://learn.microsoft.com/azure/cosmos-db/unique-keys: up to 10 of them, of up to 16 paths in all, set when the
container is created; what an item lacks counts as null.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from hotplate.bench.cosmos_emulator.documents import UniqueValue
from hotplate.bench.cosmos_emulator.errors import bad_request

DEFAULT_POLICY: dict[str, Any] = {
    "indexingMode": "consistent",
    "automatic": True,
    "includedPaths": [{"path": "/*"}],
    "excludedPaths": [{"path": '/"_etag"/?'}],
}
MAX_SEGMENTS = 128
MAX_KEYS, MAX_PATHS = 10, 16
# System properties that no policy with an index excludes.
ALWAYS_INDEXED = (("id",), ("_ts",))
Path = tuple[str, ...]
Term = tuple[Path, object]


class IndexingPolicy:
    """An indexing policy, checked; it never changes."""

    __slots__ = ("_rules", "mode", "resource")

    def __init__(self, resource: object) -> None:
        if resource is None:
            resource = DEFAULT_POLICY
        if not isinstance(resource, dict):
            raise bad_request("indexingPolicy must be an object")
        self.mode = str(resource.get("indexingMode", "consistent")).lower()
        if self.mode not in ("consistent", "none"):
            raise bad_request("indexingMode must be consistent or none (lazy is not emulated)")
        for unknown in ("vectorIndexes", "fullTextIndexes"):
            if resource.get(unknown):
                raise bad_request(f"{unknown} are not emulated")
        if self.mode == "none" and resource.get("includedPaths"):
            raise bad_request("with indexingMode none, includedPaths must be empty")
        if self.mode == "consistent" and not resource.get("includedPaths") and "excludedPaths" not in resource:
            resource = {**resource, "includedPaths": DEFAULT_POLICY["includedPaths"]}
        excluded, included = _paths(resource, "excludedPaths"), _paths(resource, "includedPaths")
        self._rules = dict.fromkeys(excluded, False) | dict.fromkeys(included, True)
        defaults = {"automatic": True, "includedPaths": [], "excludedPaths": []}
        self.resource = {**defaults, **resource, "indexingMode": self.mode}

    @property
    def indexes_nothing(self) -> bool:
        """Return whether no item can have a term."""
        return self.mode == "none" or not any(self._rules.values())

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
    return [_path(entry, name) for entry in listed]


def _path(entry: object, name: str) -> Path:
    path = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(path, str) or not path.startswith("/") or path.rpartition("/")[2] not in ("*", "?"):
        raise bad_request(f"{name}: each needs a path that begins with / and ends in /* or /?")
    segments = tuple(segment.strip('"') for segment in path[1:].split("/"))
    if len(segments) > MAX_SEGMENTS:
        raise bad_request(f"{name}: a path has more than {MAX_SEGMENTS} segments")
    return segments


def _leaves(value: object, path: Path) -> Iterator[Term]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, (*path, "[]"))
    else:
        yield path, (type(value).__name__, value)


class UniqueKeys:
    """The unique keys of a container, checked; they never change."""

    __slots__ = ("paths", "resource")

    def __init__(self, resource: object) -> None:
        listed = (resource or {}).get("uniqueKeys") if isinstance(resource, dict | None) else None
        if resource is not None and not isinstance(resource, dict):
            raise bad_request("uniqueKeyPolicy must be an object")
        if not isinstance(listed, list | None):
            raise bad_request("uniqueKeys must be a list")
        self.paths: list[list[Path]] = [_unique_paths(key) for key in listed or []]
        if len(self.paths) > MAX_KEYS or sum(map(len, self.paths)) > MAX_PATHS:
            raise bad_request(f"a container has at most {MAX_KEYS} unique keys of {MAX_PATHS} paths in all")
        self.resource = {"uniqueKeys": [{"paths": ["/" + "/".join(path) for path in key]} for key in self.paths]}

    def values(self, key: bytes, item: Mapping[str, Any]) -> tuple[UniqueValue, ...]:
        """Return what no other item of the partition *key* may have."""
        return tuple(
            (key, number, orjson.dumps([_value(item, path) for path in paths], option=orjson.OPT_SORT_KEYS))
            for number, paths in enumerate(self.paths)
        )


def _unique_paths(key: object) -> list[Path]:
    listed = key.get("paths") if isinstance(key, dict) else None
    if not isinstance(listed, list) or not listed:
        raise bad_request("each unique key needs a list of paths")
    if not all(isinstance(path, str) and path.startswith("/") and len(path) > 1 for path in listed):
        raise bad_request("a path of a unique key begins with / and names a property")
    return [tuple(path[1:].split("/")) for path in listed]


def _value(value: Any, path: Path) -> Any:  # noqa: ANN401 -- any JSON value
    for segment in path:
        value = value.get(segment) if isinstance(value, dict) else None
    return value
