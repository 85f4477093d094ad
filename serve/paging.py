"""Paging: a cursor names the place of the last item that was shown, in a list of one release.

The places of a list are those of its items, then those of the popular items that fill it up: of the segment, then of
everybody. They do not move when items are hidden, bought or filtered, so no item is shown twice and none is left out.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_hexdigest

from hotplate.serve.encoded_lists import EncodedList
from hotplate.serve.reader import TieredReader
from hotplate.serve.shaping import Selection, Shaper
from hotplate.stores.encoding import NO_OFFSET, OVERALL, SEPARATOR, USER, RowKey, ids_of
from hotplate.stores.errors import StoreMisused

# `after` of a first page.
BEGIN = "0"
# Of `after`, also in the dialect of JSON Schema; empty for no page.
CURSOR_PATTERN = r"^$|^0$|^[0-9]{1,4}\.[0-9A-Za-z-]{1,64}\.[0-9a-f]{16}$"
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
        return cls(_BEGINNING, encoded.served.id, xxh3_64_hexdigest(named.encode()))

    def encoded(self) -> str:
        """Return the text for a URL."""
        return f"{self.place}.{self.release}.{self.digest}"

    def continues(self, encoded: EncodedList) -> bool:
        """Return whether this is a place of the list *encoded*."""
        return self._replace(place=_BEGINNING) == Cursor.of(encoded)


def parse_cursor(text: str) -> Cursor | None:
    """Return a cursor, None for BEGIN; raises StoreMisused."""
    if text == BEGIN:
        return None
    if not text or not _is_cursor(text):
        raise StoreMisused(f"after is {text[:40]!r}; give the `next` of a page, or {BEGIN} for the first")
    place, release, digest = text.split(".")
    return Cursor(int(place), release, digest)


class Page(NamedTuple):
    """The items of a page, and the cursor of the next one; None after the last page."""

    items: bytes
    following: Cursor | None


class Continued(NamedTuple):
    """A list to page through, from *cursor* on; *restarted* if it is another one than that of the page before."""

    encoded: EncodedList
    cursor: Cursor
    restarted: bool


async def continued(
    reader: TieredReader, cursor: Cursor | None, row: RowKey, *, segment: str = OVERALL, name: str = ""
) -> Continued:
    """Read the list of a user or an item, in the release of *cursor* if that can still be read; raises as *reader*."""
    if cursor is not None:
        encoded = await reader.in_release(cursor.release, row, segment, name)
        if encoded is not None and cursor.continues(encoded):
            return Continued(encoded, cursor, restarted=False)
    if row.kind == USER:
        encoded = await reader.personal(row.id, segment, name)
    else:
        encoded = await reader.similar(row.id, name)
    return Continued(encoded, Cursor.of(encoded), restarted=cursor is not None)


def continued_popular(
    reader: TieredReader, cursor: Cursor | None, *, segment: str = OVERALL, name: str = ""
) -> Continued:
    """Return a popular list as of `continued`."""
    if cursor is not None:
        encoded = reader.popular_in_release(cursor.release, segment, name)
        if encoded is not None and cursor.continues(encoded):
            return Continued(encoded, cursor, restarted=False)
    encoded = reader.popular(segment, name)
    return Continued(encoded, Cursor.of(encoded), restarted=cursor is not None)


def page_of(
    shaper: Shaper,
    encoded: EncodedList,
    selection: Selection,
    cursor: Cursor,
    *,
    user: str = "",
    beside: Collection[str] = (),
) -> Page:
    """Return the items after *cursor*, a place of *encoded*; raises as `Shaper.shape`."""
    everything = msgspec.structs.replace(selection, n=MAX_ITEMS)
    items = shaper.shape(encoded, everything, user=user, beside=beside)
    places = _places(encoded)
    rest = [
        (places[identifier], item)
        for identifier, item in zip(ids_of(items), items.split(SEPARATOR), strict=False)
        if places[identifier] > cursor.place
    ]
    page = rest[: selection.n]
    following = None
    if len(rest) > len(page):
        following = cursor._replace(place=page[-1][0])
    return Page(SEPARATOR.join([item for _, item in page]), following)


def _places(encoded: EncodedList) -> dict[bytes, int]:
    popular = encoded.served.popular
    bodies = [encoded.body]
    bodies += [popular.get(key.text, NO_OFFSET) for key in (encoded.fallback, encoded.fallback.popular())]
    places = dict[bytes, int]()
    for body in bodies:
        for identifier in ids_of(body):
            places.setdefault(identifier, len(places))
    return places
