"""The options of a list: what a request or a call may say besides the user or the item, declared once.

`Selection` has their names, types, bounds and texts, and what they leave out. From it follow the queries and bodies
of the service, the OpenAPI document, `hotplate.open`, and whether the fast lane may answer. The types of a call's
arguments, which a client without the service needs, too, are in `hotplate.base.recommendations`.
"""

import re
from functools import cached_property
from typing import Annotated, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import fields

from hotplate.base.recommendations import ITEM_FIELDS, RequestOptions
from hotplate.stores.encoding import MAX_ID_BYTES, MAX_LIST_NAME, OVERALL, IdTest, encode_id
from hotplate.stores.errors import StoreMisused

DEFAULT_N = 10
MAX_N = 1000
MAX_EXCLUDED = 200
MAX_WHERE_CHARS = 1024
EXAMPLE = "category:shoes|boots,price<50"
# The start of a condition in the dialect of JSON Schema, where values are not checked.
WHERE_PATTERN = r"^$|^\s*[\w.-]{1,64}\s*(!?:|[<>]=?)"
# The value of `else` that is no condition.
POPULAR_ITEMS = "popular"
# Of `per`, also in the dialect of JSON Schema.
PER_PATTERN = r"(?P<column>[\w.-]{1,64}):(?P<most>[1-9][0-9]{0,3})"
# `after` of a first page.
BEGIN = "0"
# What an answer says of the list of a row: it was read, is absent, or could not be read.
Status = Literal["ok", "unknown", "error"]
# Of `after`, also in the dialect of JSON Schema.
CURSOR_PATTERN = r"^0$|^[0-9]{1,4}\.[0-9A-Za-z-]{1,64}\.[0-9a-f]{16}$"
# Items of a list to which `where` is applied: of a computed one, and as estimated of stored ones.
FILTERED = 200
# Default factor of an item's weight for each newer one in a basket; docs/serving.md compares it with 1.
RECENCY = 0.7

ALL_FIELDS = ",".join(ITEM_FIELDS)
MAX_FIELDS = 20
# `id` and names of other fields, also in the dialect of JSON Schema.
FIELDS_PATTERN = rf"^id(,[\w.-]{{1,64}}){{0,{MAX_FIELDS - 1}}}$"
_are_fields = re.compile(FIELDS_PATTERN).fullmatch

Id = Annotated[
    str, Meta(min_length=1, max_length=MAX_ID_BYTES, description=f"An id: 1 to {MAX_ID_BYTES} bytes of UTF-8.")
]
Count = Annotated[int, Meta(ge=1, le=MAX_N, description="How many items to return; a shorter list is returned whole.")]
Excluded = Annotated[
    tuple[Annotated[str, Meta(max_length=MAX_ID_BYTES)], ...],
    Meta(
        max_length=MAX_EXCLUDED,
        description="Ids of items to leave out. The list is filled up to n from the stored list, then with popular "
        "items. In a query, ids are separated by commas; a comma in an id is written %2C.",
    ),
]
Where = Annotated[
    str,
    Meta(
        max_length=MAX_WHERE_CHARS,
        extra_json_schema={"pattern": WHERE_PATTERN},
        description=f"Conditions on item attributes, as `{EXAMPLE}`; all must hold. Operators are : !: < <= > >=; a "
        "value with a comma, bar or quote is a JSON string. Popular items that meet them fill the list up to n.",
    ),
]
Else = Annotated[
    str,
    Meta(
        max_length=MAX_WHERE_CHARS,
        extra_json_schema={"pattern": rf"{WHERE_PATTERN}|^{POPULAR_ITEMS}$"},
        description=f"What follows if `where` leaves less than n: items that meet these other conditions, or "
        f"`{POPULAR_ITEMS}` for any popular items. They have `filled`.",
    ),
]
Per = Annotated[
    str,
    Meta(
        extra_json_schema={"pattern": r"^$|^[\w.-]{1,64}:[1-9][0-9]{0,3}$"},
        description="An item attribute and a number, as `brand:1`: at most this number of items of each value are "
        "returned, in the order of the list; popular items fill it up to n. Items without a value are not limited.",
    ),
]
Fields = Annotated[
    str,
    Meta(
        extra_json_schema={"pattern": FIELDS_PATTERN},
        description=f"The fields of items to return, as `id,title,price`: the id, any of {', '.join(ITEM_FIELDS[1:])}, "
        "and item attributes that the release shows. Items without a value lack the field.",
    ),
]
ListName = Annotated[
    str,
    Meta(
        max_length=MAX_LIST_NAME,
        description="The name of a list of the release, such as `basket`; by default the default list.",
    ),
]
Segment = Annotated[
    str,
    Meta(
        max_length=MAX_ID_BYTES,
        description="The segment of the popular list for a user without a list; the overall one if the release lacks "
        "this segment.",
    ),
]
After = Annotated[
    str,
    Meta(
        extra_json_schema={"pattern": f"^$|{CURSOR_PATTERN}"},
        description=f"`{BEGIN}` for the first of several pages, or the `next` of the page before.",
    ),
]


class Selection(Struct, frozen=True, dict=True):
    """What is wanted of a list. A tuple is a list of item ids.

    The bounds are those of the service: `msgspec` checks them in requests, and the constructor checks nothing.
    """

    n: Count = DEFAULT_N
    exclude: Excluded = ()
    where: Where = ""
    else_: Else = field(default="", name="else")
    per: Per = ""
    fields: Fields = ALL_FIELDS
    list: ListName = ""
    segment: Segment = OVERALL

    @property
    def is_filtered(self) -> bool:
        """Whether items are left out, and popular ones fill the list up."""
        return bool(self.exclude or self.where or self.per)

    @cached_property
    def excluded(self) -> frozenset[bytes]:
        """The ids of `exclude`, by `encode_id`."""
        return frozenset(map(encode_id, self.exclude))

    @property
    def left_out(self) -> tuple[IdTest, ...]:
        """What is true for the items that the request leaves out by their ids."""
        return (self.excluded.__contains__,) if self.exclude else ()

    @property
    def examined(self) -> int:
        """How many items are examined for the *n* that are shown, as estimated."""
        return max(self.n, FILTERED) if self.where or self.per else self.n

    @cached_property
    def field_names(self) -> tuple[str, ...]:
        """The names in `fields`; StoreMisused for anything but `id` and names after it."""
        if not _are_fields(self.fields):
            raise StoreMisused(
                f"fields is {self.fields[:40]!r}, and begins with id; the names of at most {MAX_FIELDS} fields are "
                f"separated by commas, as {ALL_FIELDS}"
            )
        return tuple(self.fields.split(","))


class PagedSelection(Selection, frozen=True, dict=True):
    """The same, of a list that may be read by pages."""

    after: After = ""


class PreviewSelection(PagedSelection, frozen=True, dict=True):
    """The same, of a list that may be read in a release that is not live."""

    release: Annotated[
        str,
        Meta(
            max_length=MAX_ID_BYTES,
            description="A release to look at, such as a ready one, instead of that of the caller; takes "
            "a key of the scope `admin`.",
        ),
    ] = ""


# Options that are lists of ids.
ID_OPTIONS = tuple(option.name for option in fields(Selection) if isinstance(option.default, tuple))

if {*PagedSelection.__struct_fields__} != {"n", *RequestOptions.__optional_keys__} - {"timeout_s"}:
    raise ImportError("the options of PagedSelection and of RequestOptions differ; declare each in both")
