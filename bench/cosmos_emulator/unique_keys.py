"""Unique keys of a container: values that no two items of one partition key may have both.

https://learn.microsoft.com/azure/cosmos-db/unique-keys: up to 10 of them, of up to 16 paths in all, set when the
container is created; what an item lacks counts as null.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from bench.cosmos_emulator.documents import UniqueValue
from bench.cosmos_emulator.errors import bad_request

MAX_KEYS, MAX_PATHS = 10, 16
Path = tuple[str, ...]


class UniqueKeys:
    """The unique keys of a container, checked; they never change."""

    __slots__ = ("paths", "resource")

    def __init__(self, resource: object) -> None:
        listed = (resource or {}).get("uniqueKeys") if isinstance(resource, dict | None) else None
        if resource is not None and not isinstance(resource, dict):
            raise bad_request("uniqueKeyPolicy must be an object")
        if not isinstance(listed, list | None):
            raise bad_request("uniqueKeys must be a list")
        self.paths: list[list[Path]] = [_paths(key) for key in listed or []]
        if len(self.paths) > MAX_KEYS or sum(map(len, self.paths)) > MAX_PATHS:
            raise bad_request(f"a container has at most {MAX_KEYS} unique keys of {MAX_PATHS} paths in all")
        self.resource = {"uniqueKeys": [{"paths": ["/" + "/".join(path) for path in key]} for key in self.paths]}

    def values(self, key: bytes, item: Mapping[str, Any]) -> tuple[UniqueValue, ...]:
        """Return what no other item of the partition *key* may have."""
        return tuple(
            (key, number, orjson.dumps([_value(item, path) for path in paths], option=orjson.OPT_SORT_KEYS))
            for number, paths in enumerate(self.paths)
        )


def _paths(key: object) -> list[Path]:
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
