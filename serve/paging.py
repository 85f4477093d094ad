"""Paging: a cursor names the place of the last item that was shown, in a list of one release.

The places of a list are those of its items, then those of the popular items that fill it up: of the segment, then of
everybody. They do not move when items are hidden, bought or filtered, so no item is shown twice and none is left out.
"""

import re
from collections.abc import Collection, Sequence
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
# Of `after`, also in the dialect of JSON Schema.
CURSOR_PATTERN = r"^0$|^[0-9]{1,4}\.[0-9A-Za-z-]{1,64}\.[0-9a-f]{16}$"
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
    if not _is_cursor(text):
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
        (kept,) = await reader.in_release(cursor.release, [row], segment, name)
        if kept is not None and cursor.continues(kept):
            return Continued(kept, cursor, restarted=False)
    if row.kind == USER:
        encoded = await reader.personal(row.id, segment, name)
    else:
        encoded = await reader.similar(row.id, name)
    return _continued_or_begun(encoded, cursor)


async def continued_many(
    reader: TieredReader, users: Sequence[str], cursors: Sequence[Cursor | None], *, segment: str, name: str
) -> list[Continued]:
    """Read the lists of many users, in order, as of `continued`."""
    places_in = dict[str, list[int]]()
    for place, cursor in enumerate(cursors):
        if cursor is not None:
            places_in.setdefault(cursor.release, []).append(place)
    lists = dict[int, Continued]()
    for release, places in places_in.items():
        rows = [RowKey(USER, users[place]) for place in places]
        for place, kept in zip(places, await reader.in_release(release, rows, segment, name), strict=True):
            cursor = cursors[place]
            if kept is not None and cursor is not None and cursor.continues(kept):
                lists[place] = Continued(kept, cursor, restarted=False)
    others = [place for place in range(len(users)) if place not in lists]
    if others:
        read = await reader.personal_many([users[place] for place in others], segment, name)
        for place, encoded in zip(others, read, strict=True):
            lists[place] = _continued_or_begun(encoded, cursors[place])
    return [lists[place] for place in range(len(users))]


def _continued_or_begun(encoded: EncodedList, cursor: Cursor | None) -> Continued:
    """Go on in a list that was read anew, as in a popular list while no store can be read; else begin it."""
    if cursor is not None and cursor.continues(encoded):
        return Continued(encoded, cursor, restarted=False)
    return Continued(encoded, Cursor.of(encoded), restarted=cursor is not None)


def continued_popular(
    reader: TieredReader, cursor: Cursor | None, *, segment: str = OVERALL, name: str = ""
) -> Continued:
    """Return a popular list as of `continued`."""
    if cursor is not None:
        encoded = reader.popular_in_release(cursor.release, segment, name)
        if encoded is not None and cursor.continues(encoded):
            return Continued(encoded, cursor, restarted=False)
    return _continued_or_begun(reader.popular(segment, name), cursor)


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
