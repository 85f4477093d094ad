"""Which values of an item a container's indexing policy covers: each is a term that a write pays for.

https://learn.microsoft.com/azure/cosmos-db/index-policy: the most exact path decides. Not told there, and assumed here:
system properties are no terms.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from bench.cosmos_emulator.errors import bad

DEFAULT_POLICY: dict[str, Any] = {
    "indexingMode": "consistent",
    "automatic": True,
    "includedPaths": [{"path": "/*"}],
    "excludedPaths": [{"path": '/"_etag"/?'}],
}
MOST_SEGMENTS = 128
Path = tuple[str, ...]
Term = tuple[Path, object]


class Policy:
    """An indexing policy that was checked; it lives as long as its container has it."""

    __slots__ = ("_rules", "mode", "told")

    def __init__(self, told: object) -> None:
        if told is None:
            told = DEFAULT_POLICY
        if not isinstance(told, dict):
            raise bad("indexingPolicy must be an object")
        self.mode = str(told.get("indexingMode", "consistent")).lower()
        if self.mode not in ("consistent", "none"):
            raise bad("indexingMode must be consistent or none (lazy is not emulated)")
        for unknown in ("vectorIndexes", "fullTextIndexes"):
            if told.get(unknown):
                raise bad(f"{unknown} are not emulated")
        if self.mode == "none" and told.get("includedPaths"):
            raise bad("includedPaths must be empty where indexingMode is none")
        included = _paths(told, "includedPaths")
        if self.mode == "consistent" and not told.get("includedPaths") and "excludedPaths" not in told:
            included = [("*",)]
        self._rules = dict.fromkeys(_paths(told, "excludedPaths"), False) | dict.fromkeys(included, True)
        self.told = {"automatic": True, "includedPaths": [], "excludedPaths": [], **told, "indexingMode": self.mode}
        if included == [("*",)] and not told.get("includedPaths"):
            self.told["includedPaths"] = [{"path": "/*"}]

    @property
    def covers_nothing(self) -> bool:
        """Tell whether no item can have a term."""
        return self.mode == "none" or not any(self._rules.values())

    def terms(self, item: Mapping[str, Any]) -> frozenset[Term]:
        """Return the indexed values of an item; each value of a path counts once."""
        if self.covers_nothing:
            return frozenset()
        return frozenset((path, value) for path, value in _leaves(item, ()) if self._covers(path))

    def _covers(self, path: Path) -> bool:
        found = self._rules.get((*path, "?"))
        depth = len(path)
        while found is None and depth >= 0:
            found = self._rules.get((*path[:depth], "*"))
            depth -= 1
        return bool(found)


def _paths(told: Mapping[str, Any], name: str) -> list[Path]:
    listed = told.get(name) or []
    if not isinstance(listed, list):
        raise bad(f"{name} must be a list")
    return [_path(entry, name) for entry in listed]


def _path(entry: object, name: str) -> Path:
    path = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(path, str) or not path.startswith("/") or path.rpartition("/")[2] not in ("*", "?"):
        raise bad(f"{name}: each needs a path that begins with / and ends in /* or /?")
    segments = tuple(segment.strip('"') for segment in path[1:].split("/"))
    if len(segments) > MOST_SEGMENTS:
        raise bad(f"{name}: a path has more than {MOST_SEGMENTS} segments")
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
