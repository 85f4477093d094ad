"""Which resource a path names: what is signed for it, and which handler answers."""

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

from bench.cosmos_emulator.errors import Refused, bad

MOST_REMEMBERED_CHARS = 512
"""Longer paths are understood anew each time, so that memory stays bounded."""


@dataclass(frozen=True, slots=True)
class Route:
    """A path that was understood: the names in it, and the type and the link that are signed."""

    kind: str
    """The type of the resource, or of the feed; empty for the account."""

    link: str
    names: tuple[str, ...]
    is_feed: bool


def route_of(path: str) -> Route:
    """Understand a path as it was sent; 404 where nothing is there."""
    return _remembered(path) if len(path) <= MOST_REMEMBERED_CHARS else _understood(path)


def _understood(path: str) -> Route:
    segments = [_decoded(segment) for segment in path.strip("/").split("/")]
    if segments == [""]:
        return Route("", "", (), is_feed=False)
    is_feed = len(segments) % 2 == 1
    kinds, names = segments[0::2], tuple(segments[1::2])
    kind = kinds[-1]
    shape = "/".join(kinds)
    if shape not in ("dbs", "dbs/colls", "dbs/colls/docs", "dbs/colls/pkranges", "offers") or "" in segments:
        raise Refused(404, f"this emulation has no resource there: {shape[:100]}")
    if kind == "pkranges" and not is_feed:
        raise bad("single partition-key ranges cannot be read; read the feed")
    link = "/".join(segments[:-1] if is_feed else segments)
    if kind == "offers":
        link = "" if is_feed else names[0].lower()
    return Route(kind, link, names, is_feed)


_remembered = lru_cache(16384)(_understood)


def _decoded(segment: str) -> str:
    if "%" not in segment:
        return segment
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise bad("the path is not UTF-8") from None
