"""Encoded lists: lists as bytes, with where they are from."""

import msgspec

from hotplate.serve.errors import UnknownList
from hotplate.serve.lists.options import Status
from hotplate.serve.metrics import ERROR, HIT, MISS
from hotplate.serve.releases.served import ServedRelease
from hotplate.stores.encoding import EVERYBODY, ITEM, NO_OFFSET, USER, RowKey

OUTCOMES: dict[Status, int] = {"ok": HIT, "unknown": MISS, "error": ERROR}
# Sources of lists by the kind of their rows.
SOURCES = {USER: "personal", ITEM: "similar"}


class EncodedList(msgspec.Struct, frozen=True):
    """A list as bytes, with its tier, release and source.

    A Struct for the reason of `RowKey`.
    """

    tier: str
    release: ServedRelease
    source: str
    body: bytes
    """An opened value."""

    status: Status = "ok"
    fallback: RowKey = EVERYBODY
    """This popular list (that for everybody if the requested segment has none), or the one to fill it up."""

    @property
    def segment(self) -> str:
        """The segment of `fallback`."""
        return self.fallback.id

    @property
    def name(self) -> str:
        """The name of the list in its release; empty for a default list without one."""
        return self.fallback.list or self.release.manifest.default_list

    @property
    def popular_bodies(self) -> list[bytes]:
        """The popular lists that fill it up: of the segment, then of everybody, unless that is the same."""
        keys = dict.fromkeys((self.fallback, self.fallback.popular()))
        return [self.release.popular.get(key.text, NO_OFFSET) for key in keys]


def unknown_list(name: str, release: ServedRelease) -> UnknownList:
    """Return the error for a list that a release lacks."""
    names = filter(None, [release.manifest.default_list, *release.manifest.named])
    return UnknownList(f"release {release.id} has no list {name!r}; it has {', '.join(names) or 'no named lists'}")
