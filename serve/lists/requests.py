"""List requests: what the service and the library ask for one list, and the answer: the list, or a page of it.

A page is read in the release of the page before while that can be read. Otherwise the list is read anew, and paging
starts again unless the list is the same.
"""

from collections.abc import Iterator, Sequence

import msgspec

from hotplate.serve.lists.encoded_lists import SOURCES, EncodedList
from hotplate.serve.lists.options import Selection
from hotplate.serve.lists.paging import FIRST, MAX_ITEMS, Cursor, page_of
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.lists.shaping import Shaper
from hotplate.stores.encoding import ITEM, POPULAR, USER, RowKey


class ListRequest(msgspec.Struct, frozen=True, gc=False):
    """A request for one list.

    A Struct for the reason of `RowKey`.
    """

    kind: str
    """USER, ITEM or POPULAR."""

    id: str
    """Of the user or the item; empty for a popular list."""

    selection: Selection
    after: Cursor | None = None
    """The place before the first item of a page; None for the whole list."""

    @property
    def source(self) -> str:
        """The source of the answer unless a popular list replaces the requested one."""
        return SOURCES.get(self.kind, "popular")


class ListAnswer(msgspec.Struct, frozen=True, gc=False):
    """The answer to a ListRequest: the list that was read, and the items of it that are shown.

    A Struct for the reason of `RowKey`.
    """

    encoded: EncodedList
    items: bytes
    next: str | None = None
    """`after` of the next page; None after the last one, and for a whole list."""

    restarted: bool = False
    """Whether this is a first page because the list of the page before is gone."""


async def answer_list(reader: TieredReader, shaper: Shaper, request: ListRequest) -> ListAnswer:
    """Return the answer to a request for one list: read it, filter it, and cut it or take a page of it.

    A request with a cursor, `request.after`, continues a page: its list is read in the release of that page, if it
    still can be. Raises as `TieredReader.read` and `Shaper.shape`.
    """
    if request.kind == POPULAR:
        return answer_popular(reader, shaper, request)

    wanted = request.selection
    encoded: EncodedList | None = None
    if request.after is not None:
        continued = await _read_continued(reader, [request])
        encoded = continued.get(0)
    if encoded is None:  # in the release that is served to the user
        encoded = await reader.read(request.kind, request.id, wanted.segment, wanted.list)
    return shape_list(shaper, request, encoded)


def answer_popular(reader: TieredReader, shaper: Shaper, request: ListRequest) -> ListAnswer:
    """Return the answer to a request for a popular list, which is in memory.

    A request with a cursor, `request.after`, continues a page in the release of that page, if that is served still and
    the cursor is of this list. Raises as `TieredReader.popular` and `Shaper.shape`.
    """
    wanted = request.selection
    return shape_list(shaper, request, reader.popular(wanted.segment, wanted.list, request.after or FIRST))


def answer_nowait(reader: TieredReader, shaper: Shaper, request: ListRequest) -> ListAnswer | None:
    """Return the answer to a request for one list if that needs no I/O; None if `answer_list` must be awaited.

    Popular lists need none, nor lists of users and items that are in memory. Pages of the latter are not answered here.
    """
    if request.kind == POPULAR:
        return answer_popular(reader, shaper, request)
    if request.after is not None:
        return None
    wanted = request.selection
    read = reader.row_nowait(reader.row_of(request.kind, request.id, wanted.list))
    if read is None:
        return None
    lists = reader.lists_of(read, wanted.segment, wanted.list)
    return shape_list(shaper, request, lists[request.id])


async def read_lists(reader: TieredReader, requests: Sequence[ListRequest]) -> list[EncodedList]:
    """Return a list for each of *requests*, in their order; all are of users, and of the same segment and list name.

    A request with a cursor, `request.after`, continues a page: its list is read in the release of that page, if it
    still can be. All others are read together, in the release that is served to each user.
    """
    lists = await _read_continued(reader, requests)
    remaining = [number for number in range(len(requests)) if number not in lists]
    if remaining:
        users = [requests[number].id for number in remaining]
        wanted = requests[0].selection
        read = await reader.personal_many(users, wanted.segment, wanted.list)
        lists.update(zip(remaining, read, strict=True))
    return [lists[number] for number in range(len(requests))]


def shape_list(shaper: Shaper, request: ListRequest, encoded: EncodedList) -> ListAnswer:
    """Return the answer to a request from its list, *encoded*: the items that are shown, or a page of them.

    A page begins after the place of the cursor `request.after`, the last item of the page before. If the cursor is
    FIRST or of another list, it begins with the first item, and the answer is `restarted` unless the cursor is FIRST.
    *shaper* filters and cuts the list. Raises as `Shaper.shape`.
    """
    selection = request.selection
    if request.after is not None:  # the items of all pages, of which one is taken
        selection = msgspec.structs.replace(selection, n=MAX_ITEMS)
    user = request.id if request.kind == USER else ""  # whose consumed items are hidden
    beside = (request.id,) if request.kind == ITEM else ()
    items = shaper.shape(encoded, selection, user=user, beside=beside)
    if request.after is None:
        return ListAnswer(encoded, items)

    is_continued = request.after.continues(encoded)
    cursor = request.after if is_continued else Cursor.of(encoded)
    page = page_of(items, request.selection.n, cursor, encoded)
    is_restarted = not is_continued and request.after != FIRST
    return ListAnswer(encoded, page.items, page.next, restarted=is_restarted)


def shape_lists(shaper: Shaper, requests: Sequence[ListRequest], lists: Sequence[EncodedList]) -> Iterator[ListAnswer]:
    """Yield the answer to each of *requests*, in their order, from its list: see `shape_list`.

    A popular list in the place of several is shaped once, for users from whom nothing is hidden.
    """
    shaped = dict[tuple[int, int], ListAnswer]()  # by the list and the selection
    for request, encoded in zip(requests, lists, strict=True):
        if encoded.source != "popular" or request.after is not None or shaper.consumed_by(request.id) is not None:
            yield shape_list(shaper, request, encoded)
            continue
        key = id(encoded), id(request.selection)
        if key not in shaped:
            shaped[key] = shape_list(shaper, request, encoded)
        yield shaped[key]


async def _read_continued(reader: TieredReader, requests: Sequence[ListRequest]) -> dict[int, EncodedList]:
    """Return the lists of the requests that continue a page, by the number of the request.

    A request continues a page if it has the cursor of the page before, which names a release. The list is read in that
    release. It is not returned if it cannot be read there, or if the cursor is of another list.
    """
    by_release = dict[str, list[int]]()
    for number, request in enumerate(requests):
        if request.after is not None:
            by_release.setdefault(request.after.release, []).append(number)

    continued = dict[int, EncodedList]()
    for release, numbers in by_release.items():
        rows = [RowKey(requests[number].kind, requests[number].id) for number in numbers]
        wanted = requests[0].selection  # all have the same segment and list name
        lists = await reader.in_release(release, rows, wanted.segment, wanted.list)
        for number, encoded in zip(numbers, lists, strict=True):
            cursor = requests[number].after
            if encoded is not None and cursor is not None and cursor.continues(encoded):
                continued[number] = encoded
    return continued
