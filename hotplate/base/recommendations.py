"""An item, a list as the library and the client return it, and the options of a call."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Required, TypedDict, get_args, get_type_hints

# Of a field that requests cannot name in `fields`.
MARK = "mark"


class Item(TypedDict, total=False):
    """An item of a list, and the attributes that were asked for; `source` marks popular items that fill a list up.

    An item is `filled` if it does not meet the filter of the request, but its `else`.
    """

    # In the order of their encoding.
    id: Required[str]
    score: float
    filler: Annotated[bool, MARK]
    """Whether this is a popular item at the end of a stored list that was too short."""
    title: str
    source: Annotated[Literal["popular"], MARK]
    filled: Annotated[bool, MARK]


_TYPES = get_type_hints(Item, include_extras=True)
# All fields, those that `fields` may name, and texts that differ from list to list, unlike a title.
ALL_ITEM_FIELDS = tuple(_TYPES)
ITEM_FIELDS = tuple(name for name, kind in _TYPES.items() if MARK not in get_args(kind))
ENTRY_TEXTS = tuple(name for name, kind in _TYPES.items() if kind is str and name != "title")


@dataclass(frozen=True, slots=True)
class Recommendations:
    """One list, best item first.

    source     `personal`, `similar`, `fold-in` or `popular`
    segment    of a popular list, empty for the overall one
    list       its name, empty for a default list without one
    next       `after` of the next page, if this is a page and not the last one
    restarted  whether the release of the page before is gone; then this is a first page
    """

    items: "list[Item]"
    source: str
    release: str
    tier: str
    canary: bool = False
    segment: str | None = None
    list: str = ""
    next: str | None = None
    restarted: bool = False


class FilterOptions(TypedDict, total=False):
    """Ids to leave out, conditions on item attributes, as `category:shoes,price<50`, and the name of a list.

    *per*, as `brand:1`, limits the items with the same value of an attribute. Popular items that pass all of these fill
    the list up to *n*, then the items of *else_*: other conditions, or `popular` for any popular items. *fields* are
    those of items to return: the id, and by default score and title; other names are item attributes that the release
    shows.
    """

    exclude: Collection[str]
    where: str
    else_: str
    per: str
    fields: Sequence[str]
    list: str


class ListOptions(FilterOptions, total=False):
    """Options of a call; *segment* is that of the popular list, by default the overall one."""

    segment: str


class RequestOptions(ListOptions, total=False):
    """Options of a request; the *segment* is not for `similar`.

    *after* asks for a page: "0" for the first, or the `next` of the page before; not for `fold_in`, and for `batch` by
    user.
    """

    timeout_s: float
    after: str
