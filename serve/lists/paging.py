"""Paging: a cursor names the place of the last item that was shown, in a list of one release.

The places of a list are those of its items, then those of the popular items that fill it up: of the segment, then of
everybody. Those of items that `else` adds follow: of the list, then of the popular lists, which may have items of the
list, too. They do not move when items are hidden, bought or filtered, so no item is shown twice and none is left out,
unless new overrides move an item from `where` to `else`.
"""

import re
from typing import NamedTuple

from xxhash import xxh3_64_hexdigest

from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.options import BEGIN, CURSOR_PATTERN
from hotplate.serve.lists.shaping import FILLED_MARK, FILLED_POPULAR_MARK
from hotplate.stores.encoding import SEPARATOR, ids_of, length_of
from hotplate.stores.errors import StoreMisused

# Items of all pages of a list.
MAX_ITEMS = 1000
# Before the first item.
_BEGINNING = -1
_is_cursor = re.compile(CURSOR_PATTERN).fullmatch


class Cursor(NamedTuple):
    """The place of the last item on a page, in a list of a release, known by a digest of its name and kind."""

    place: int
    release: str
    digest: str

    @classmethod
    def of(cls, encoded: EncodedList) -> "Cursor":
        """Return the cursor before the first item of a list."""
        named = f"{encoded.fallback.list}\0{encoded.source}\0{encoded.segment}"
        return cls(_BEGINNING, encoded.release.id, xxh3_64_hexdigest(named.encode()))

    def encoded(self) -> str:
        """Return the text for a URL."""
        return f"{self.place}.{self.release}.{self.digest}"

    def continues(self, encoded: EncodedList) -> bool:
        """Return whether this is a place of the list *encoded*."""
        return self._replace(place=_BEGINNING) == Cursor.of(encoded)


# Before the first item of any list. It has no release, so it continues no list.
FIRST = Cursor(_BEGINNING, "", "")


def parse_cursor(text: str) -> Cursor:
    """Return a cursor, FIRST for BEGIN; raises StoreMisused."""
    if text == BEGIN:
        return FIRST
    if not _is_cursor(text):
        raise StoreMisused(f"after is {text[:40]!r}; give the `next` of a page, or {BEGIN} for the first")
    place, release, digest = text.split(".")
    return Cursor(int(place), release, digest)


class Page(NamedTuple):
    """The items of a page, and the cursor of the next one, encoded; None after the last page."""

    items: bytes
    next: str | None


def page_of(items: bytes, n: int, cursor: Cursor, encoded: EncodedList) -> Page:
    """Return a page: the first *n* of *items* after the place of *cursor* in the list *encoded*.

    *items* are JSON objects with a separator between them, all that are shown of the list, in its order: some may be
    left out, so their places have gaps. The page's `next` is the cursor of its last item, None if no items follow.
    """
    popular_bodies = encoded.popular_bodies
    places = _places(encoded.body, *popular_bodies)
    filled_places = _places(*popular_bodies)
    places_and_items = list[tuple[int, bytes]]()  # after the cursor
    for identifier, item in zip(ids_of(items), items.split(SEPARATOR), strict=False):
        place = places[identifier]
        if item.endswith(FILLED_POPULAR_MARK):
            place = len(places) + length_of(encoded.body) + filled_places[identifier]
        elif item.endswith(FILLED_MARK):
            place += len(places)
        if place > cursor.place:
            places_and_items.append((place, item))

    page = places_and_items[:n]
    following: str | None = None
    if len(places_and_items) > len(page):
        last_place, _ = page[-1]
        following = cursor._replace(place=last_place).encoded()
    return Page(SEPARATOR.join([item for _, item in page]), following)


def _places(*bodies: bytes) -> dict[bytes, int]:
    """Return the places of items by their ids: from 0 in the first body, then in the next ones.

    An item has its first place.
    """
    places = dict[bytes, int]()
    for body in bodies:
        for identifier in ids_of(body):
            places.setdefault(identifier, len(places))
    return places
