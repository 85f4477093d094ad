"""Partial document update: set, add, remove, incr, replace and move, applied to a copy of an item.

https://learn.microsoft.com/azure/cosmos-db/partial-document-update: at most 10 operations, and a condition.
"""

import copy
from math import isfinite
from typing import Any

from bench.cosmos_emulator.errors import bad_request

MAX_OPERATIONS = 10
MAX_DEPTH = 128


def patched(item: dict[str, Any], operations: object) -> dict[str, Any]:
    """Return what *operations* make of *item*, which stays as it is; 400 where one cannot be applied."""
    if not isinstance(operations, list) or not 1 <= len(operations) <= MAX_OPERATIONS:
        raise bad_request(f"a patch has 1 to {MAX_OPERATIONS} operations")
    made = copy.deepcopy(item)
    for operation in operations:
        if not isinstance(operation, dict):
            raise bad_request("each operation of a patch is an object")
        _apply(made, operation)
    return made


def _apply(item: dict[str, Any], operation: dict[str, Any]) -> None:
    name = operation.get("op")
    if name == "move":
        parent, last = _resolve(item, operation.get("from"))
        value = _remove(parent, last)
        parent, last = _resolve(item, operation.get("path"))
        _add(parent, last, value)
        return
    parent, last = _resolve(item, operation.get("path"))
    if name == "remove":
        _remove(parent, last)
    elif name == "incr":
        _increment(parent, last, operation.get("value"))
    elif name in ("add", "set", "replace"):
        if "value" not in operation:
            raise bad_request(f"{name} needs a value")
        value = copy.deepcopy(operation["value"])
        if name == "add":
            _add(parent, last, value)
        else:
            _set(parent, last, value, must_exist=name == "replace")
    else:
        raise bad_request("op must be add, set, replace, remove, incr or move")


def _resolve(item: dict[str, Any], path: object) -> tuple[dict[str, Any] | list[Any], str]:
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
            here = here[_index(here, segment)]
        else:
            raise bad_request(f"path {path[:100]} leads through what is not there")
    if not isinstance(here, dict | list):
        raise bad_request(f"path {path[:100]} leads through a value")
    return here, last


def _index(inside: list[Any], segment: str, *, end: int = 0) -> int:
    if not segment.isdecimal() or not segment.isascii() or len(segment) > 9 or int(segment) >= len(inside) + end:
        raise bad_request(f"{segment[:20]} is no index of that array")
    return int(segment)


def _remove(parent: dict[str, Any] | list[Any], last: str) -> Any:  # noqa: ANN401 -- any JSON value
    if isinstance(parent, list):
        return parent.pop(_index(parent, last))
    if last not in parent:
        raise bad_request(f"{last[:100]} is not there")
    return parent.pop(last)


def _add(parent: dict[str, Any] | list[Any], last: str, value: object) -> None:
    if isinstance(parent, list):
        place = len(parent) if last == "-" else _index(parent, last, end=1)
        parent.insert(place, value)
    else:
        parent[last] = value


def _set(parent: dict[str, Any] | list[Any], last: str, value: object, *, must_exist: bool) -> None:
    if isinstance(parent, list):
        if last == "-" and not must_exist:
            parent.append(value)
        else:
            parent[_index(parent, last)] = value
    elif must_exist and last not in parent:
        raise bad_request(f"{last[:100]} is not there")
    else:
        parent[last] = value


def _increment(parent: dict[str, Any] | list[Any], last: str, by: object) -> None:
    if not _is_number(by):
        raise bad_request("incr needs a number")
    key: Any = _index(parent, last) if isinstance(parent, list) else last
    holder: Any = parent
    before = holder[key] if isinstance(parent, list) else parent.get(last, 0)
    if not _is_number(before):
        raise bad_request(f"{last[:100]} is not a number")
    after = before + by
    if not isfinite(after):
        raise bad_request(f"{last[:100]} would become larger than a number can be")
    holder[key] = after


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
