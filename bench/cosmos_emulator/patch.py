"""Partial document update: set, add, remove, incr, replace and move, applied to a parsed item.

https://learn.microsoft.com/azure/cosmos-db/partial-document-update: at most 10 operations, and a condition.
"""

from math import isfinite
from typing import Any

from hotplate.bench.cosmos_emulator.http import bad_request

MAX_OPERATIONS = 10
MAX_DEPTH = 128
OPERATIONS = ("add", "set", "replace", "remove", "incr", "move")


def apply_patch(item: dict[str, Any], operations: object) -> int:
    """Change *item* in place, and return the number of operations; 400 if one of them cannot be applied."""
    if not isinstance(operations, list) or not 1 <= len(operations) <= MAX_OPERATIONS:
        raise bad_request(f"a patch has 1 to {MAX_OPERATIONS} operations")
    for operation in operations:
        if not isinstance(operation, dict):
            raise bad_request("each operation of a patch is an object")
        _apply(item, operation)
    return len(operations)


def _apply(item: dict[str, Any], operation: dict[str, Any]) -> None:
    name, value = operation.get("op"), operation.get("value")
    if name not in OPERATIONS:
        raise bad_request("op must be add, set, replace, remove, incr or move")
    if name in ("add", "set", "replace") and "value" not in operation:
        raise bad_request(f"{name} needs a value")
    if name == "move":
        parent, key = _locate(item, operation.get("from"), "remove")
        value = parent.pop(key)
    parent, key = _locate(item, operation.get("path"), name)
    if name == "remove":
        del parent[key]
        return
    if name == "incr":
        value = _sum(parent[key] if isinstance(parent, list) else parent.get(key, 0), value)
    if isinstance(parent, list) and (name in ("add", "move") or key == len(parent)):
        parent.insert(key, value)
    else:
        parent[key] = value


def _locate(item: dict[str, Any], path: object, name: str) -> tuple[Any, Any]:
    """Return the object or array that *path* leads into, and the key or index there at which *name* can act."""
    if not isinstance(path, str) or not path.startswith("/") or len(path) < 2:
        raise bad_request("a path of a patch begins with / and names a property")
    *parents, last = (segment.replace("~1", "/").replace("~0", "~") for segment in path[1:].split("/"))
    if len(parents) > MAX_DEPTH:
        raise bad_request(f"a path of a patch has at most {MAX_DEPTH} segments")
    here: Any = item
    for segment in parents:
        if isinstance(here, dict) and segment in here:
            here = here[segment]
        elif isinstance(here, list):
            here = here[_index(segment, len(here))]
        else:
            raise bad_request(f"path {path[:100]} leads through what is not there")
    if isinstance(here, list):
        inserts = name in ("add", "move")
        appends = last == "-" and (inserts or name == "set")
        return here, len(here) if appends else _index(last, len(here) + inserts)
    if not isinstance(here, dict):
        raise bad_request(f"path {path[:100]} leads through a value")
    if name in ("remove", "replace") and last not in here:
        raise bad_request(f"{last[:100]} is not there")
    return here, last


def _index(segment: str, end: int) -> int:
    if not segment.isdecimal() or not segment.isascii() or len(segment) > 9 or int(segment) >= end:
        raise bad_request(f"{segment[:20]} is not an index of that array")
    return int(segment)


def _sum(before: object, by: object) -> float:
    for number in (before, by):
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise bad_request("incr needs a number, and adds it to one")
    after: float = before + by  # type: ignore[operator]  # both are numbers, as was just checked
    if not isfinite(after):
        raise bad_request("incr would make the number larger than one can be")
    return after
