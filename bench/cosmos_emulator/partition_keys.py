"""A container's partition key: where in an item it stands, and how a request's header tells it."""

from collections.abc import Mapping
from typing import Any

import orjson

from bench.cosmos_emulator.errors import bad
from bench.cosmos_emulator.hashing import UNDEFINED, Component, effective_key, encode

HEADER = b"x-ms-documentdb-partitionkey"
MOST_BYTES = {1: 101, 2: 2048}
"""By version; https://learn.microsoft.com/azure/cosmos-db/concepts-limits, with and without large partition keys."""


class Definition:
    """The definition of a partition key that was checked; it never changes."""

    __slots__ = ("_segments", "told", "version")

    def __init__(self, told: object) -> None:
        if not isinstance(told, dict):
            raise bad("a container needs a partitionKey")
        paths = told.get("paths")
        kind = told.get("kind", "Hash")
        if kind != "Hash" or not isinstance(paths, list) or len(paths) != 1:
            raise bad("partitionKey must be of kind Hash with one path; hierarchical keys are not emulated")
        self.version = told.get("version", 1)
        if self.version not in (1, 2) or isinstance(self.version, bool):
            raise bad("partitionKey.version must be 1 or 2")
        if not isinstance(paths[0], str) or not paths[0].startswith("/") or not paths[0].strip("/"):
            raise bad("a path of a partition key begins with / and names a property")
        self._segments = tuple(segment.strip('"') for segment in paths[0].strip("/").split("/"))
        self.told = {"paths": paths, "kind": "Hash", "version": self.version}

    def of_item(self, item: Mapping[str, Any]) -> Component:
        """Return the value of the key in an item."""
        value: Any = item
        for segment in self._segments:
            if not isinstance(value, dict) or segment not in value:
                return UNDEFINED
            value = value[segment]
        return self._checked(value)

    def of_header(self, header: bytes | None) -> Component:
        """Return the value that a request's header tells as a JSON list of one."""
        if header is None:
            raise bad("the header x-ms-documentdb-partitionkey is missing")
        try:
            told = orjson.loads(header)
        except orjson.JSONDecodeError:
            raise bad("x-ms-documentdb-partitionkey must be JSON") from None
        if not isinstance(told, list) or len(told) > 1:
            raise bad("x-ms-documentdb-partitionkey must be a list of one value")
        if not told or told[0] == {}:
            return UNDEFINED
        return self._checked(told[0])

    def _checked(self, value: object) -> Component:
        if isinstance(value, str):
            if len(value.encode()) > MOST_BYTES[self.version]:
                raise bad(f"a partition key has at most {MOST_BYTES[self.version]} bytes")
            return value
        if value is None or isinstance(value, bool | int | float):
            return value
        raise bad("a partition key is a string, a number, a boolean or null")

    def effective(self, value: Component) -> str:
        """Return the effective partition key."""
        return effective_key([value], self.version)


def key_of(value: Component) -> bytes:
    """Return the bytes that equal keys share."""
    return encode([value])
