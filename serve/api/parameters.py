"""Types of parameters and answers, which validate requests and generate the OpenAPI document."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import hdrs, web
from msgspec import UNSET, Meta, Struct, UnsetType

from hotplate.base.recommendations import Item
from hotplate.serve.encoded_lists import Status
from hotplate.serve.filters import EXAMPLE, MAX_WHERE_CHARS, WHERE_PATTERN
from hotplate.serve.fold_in import RECENCY
from hotplate.serve.paging import BEGIN, CURSOR_PATTERN
from hotplate.serve.problems import CLOSE, ClientGone, Problem, bad_parameter
from hotplate.serve.shaping import ALL_FIELDS, DEFAULT_N
from hotplate.serve.shaping import Fields as FieldNames
from hotplate.stores.encoding import MAX_ID_BYTES, MAX_LIST_NAME, OVERALL, check_id
from hotplate.stores.errors import StoreMisused

MAX_N = 1000
# Limits of a batch: users, and items of all users.
MAX_USERS = 2000
MAX_BATCH_ITEMS = 20_000
MAX_EXCLUDED = 200
# Limits of a basket.
MAX_BASKET = 200
MAX_WEIGHT = 1_000_000
MAX_BODY_BYTES = 1 << 20

JSON = "application/json"
MSGPACK = "application/msgpack"

# Limits of error texts in characters: of a value, and in total.
SHOWN_CHARS = 40
MAX_REFUSAL_CHARS = 200
MAX_DIGITS = 9
# Number of cached queries, and their maximum length.
REMEMBERED = 1024
REMEMBERED_CHARS = 256

AnyStruct = TypeVar("AnyStruct", bound=Struct)

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
Segment = Annotated[
    str,
    Meta(
        max_length=MAX_ID_BYTES,
        description="The segment of the popular list for a user without a list; the overall one if the release lacks "
        "this segment.",
    ),
]
ListName = Annotated[
    str,
    Meta(
        max_length=MAX_LIST_NAME,
        description="The name of a list of the release, such as `basket`; by default the default list.",
    ),
]
Fields = Annotated[FieldNames, Meta(description="The fields of items to return; by default all.")]


After = Annotated[
    str,
    Meta(
        extra_json_schema={"pattern": f"^$|{CURSOR_PATTERN}"},
        description=f"`{BEGIN}` for the first of several pages, or the `next` of the page before.",
    ),
]
AfterOfUser = Annotated[
    str,
    Meta(
        extra_json_schema={"pattern": CURSOR_PATTERN},
        description=f"`{BEGIN}` for the user's first page, or the `next` of their page before.",
    ),
]


class ListFields(Struct, frozen=True):
    """What is wanted of any list."""

    n: Count = DEFAULT_N
    exclude: Excluded = ()
    where: Where = ""
    fields: Fields = ALL_FIELDS
    list: ListName = ""


class SegmentFields(ListFields, frozen=True):
    """What is wanted of a list that may be a popular one."""

    segment: Segment = OVERALL


class ListQuery(ListFields, frozen=True):
    """The query of `GET /v1/similar/{item}`."""

    after: After = ""


class SegmentQuery(SegmentFields, frozen=True):
    """The query of `GET /v1/recommendations/{user}` and `GET /v1/popular`."""

    after: After = ""


class NoQuery(Struct, frozen=True):
    """The query of a route without parameters."""


class UserPage(Struct, frozen=True, forbid_unknown_fields=True):
    """A user whose list is paged through."""

    id: Id
    after: AfterOfUser


class BatchBody(SegmentFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/recommendations`."""

    users: Annotated[
        tuple[Id | UserPage, ...],
        Meta(max_length=MAX_USERS, description="User ids, in the order of the answers; with `after`, for a page."),
    ]

    @property
    def ids(self) -> tuple[str, ...]:
        """The user ids, in order."""
        return tuple(user if isinstance(user, str) else user.id for user in self.users)


class BasketItem(Struct, frozen=True, forbid_unknown_fields=True):
    """An item of a basket, perhaps with its weight."""

    id: Id
    weight: Annotated[
        Annotated[float, Meta(gt=0, le=MAX_WEIGHT)] | None,
        Meta(description="As of an interaction in training; by default the usual one."),
    ] = None


class FoldInBody(SegmentFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/recommendations/fold-in`."""

    items: Annotated[
        tuple[Id | BasketItem, ...],
        Meta(
            max_length=MAX_BASKET,
            description="The visitor's items, the newest last; weights of a repeated item are added up.",
        ),
    ]
    recency: Annotated[
        float,
        Meta(gt=0, le=1, description="Factor of an item's weight for each newer item; 1 ignores the order."),
    ] = RECENCY


ReleaseName = Annotated[str, Meta(description="The release id of the list.")]
CanaryFlag = Annotated[bool, Meta(description="True if the release is the canary; otherwise absent.")]
TierName = Annotated[str, Meta(description="The store that the list was read from.")]
Source = Annotated[
    Literal["personal", "similar", "popular"], Meta(description="The kind of list; `popular` is the fallback.")
]
UsedSegment = Annotated[str | UnsetType, Meta(description="The segment of a popular list; empty for the overall list.")]
UsedList = Annotated[
    str | UnsetType, Meta(description="The name of the list; absent for a default list without a name.")
]
NextPage = Annotated[str | UnsetType, Meta(description="`after` of the next page; absent on the last one.")]
Restarted = Annotated[
    bool | UnsetType,
    Meta(description="True if the release of the page before is gone: this is a first page. Otherwise absent."),
]
UserStatus = Annotated[
    Status,
    Meta(
        description="`ok`: a personal list; `unknown`: the user has none; `error`: it could not be read. The last two "
        "come with the popular list."
    ),
]


class ListedItem(Item, total=False):
    """An item; `source` marks popular items that fill a list up."""

    source: Literal["popular"]


class ListAnswer(Struct, frozen=True):
    """Any list."""

    release: ReleaseName
    source: Source
    tier: TierName
    items: list[ListedItem]
    segment: UsedSegment = UNSET
    list: UsedList = UNSET


class PopularAnswer(ListAnswer, frozen=True, kw_only=True):
    """A popular list, or a page of it."""

    next: NextPage = UNSET
    restarted: Restarted = UNSET


class SimilarAnswer(PopularAnswer, frozen=True, kw_only=True):
    """Items similar to one item."""

    item: Id


class PersonalAnswer(PopularAnswer, frozen=True, kw_only=True):
    """A user's list."""

    user: Id
    canary: CanaryFlag | UnsetType = UNSET


class UserResult(PopularAnswer, frozen=True, kw_only=True):
    """One user's list, or a page of it, in the answer for many."""

    user: Id
    canary: CanaryFlag | UnsetType = UNSET
    status: UserStatus


class FoldInAnswer(ListAnswer, frozen=True, kw_only=True):
    """A list for a basket."""

    known: Annotated[int, Meta(description="How many different items the release knows.")]
    unknown: Annotated[int, Meta(description="How many it does not know, and ignores.")]
    source: Annotated[  # type: ignore[assignment]  # other values than of a stored list
        Literal["fold-in", "popular"], Meta(description="`popular` if no item is known, or nothing is left to show.")
    ]


class BatchAnswer(Struct, frozen=True):
    """The lists of many users, in order, of the live release or the canary; pages stay in their release."""

    release: ReleaseName
    results: list[UserResult]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route."""

    method: str
    path: str
    summary: str
    answer: Any
    statuses: tuple[int, ...]
    """200 comes with `answer`, 304 without a body, others with a problem."""

    media: tuple[str, ...] = (JSON,)
    path_parameter: str | None = None
    query: type[Struct] = field(default=NoQuery)
    body: type[Struct] | None = None
    body_media: tuple[str, ...] = (JSON,)


_READ = (200, 304, 400, 404, 503)
FOLD_IN = "/v1/recommendations/fold-in"
OPERATIONS = (
    Operation(
        "GET", "/v1/recommendations/{user}", "A user's list; for an unknown user the popular list",
        PersonalAnswer, _READ, path_parameter="user", query=SegmentQuery,
    ),
    Operation(
        "POST", "/v1/recommendations", "The lists of many users",
        BatchAnswer, (200, 400, 404, 413, 415, 503), (JSON, MSGPACK), body=BatchBody,
        body_media=(JSON, MSGPACK),
    ),
    Operation(
        "POST", FOLD_IN, "A list computed from a basket of items",
        FoldInAnswer, (200, 400, 404, 413, 415, 503), body=FoldInBody,
    ),
    Operation(
        "GET", "/v1/similar/{item}", "Similar items; for an unknown item the popular list",
        SimilarAnswer, _READ, path_parameter="item", query=ListQuery,
    ),
    Operation("GET", "/v1/popular", "The popular list", PopularAnswer, _READ, query=SegmentQuery),
)  # fmt: skip


class QueryParser(Generic[AnyStruct]):
    """Parses and caches the query strings of one route."""

    def __init__(self, query: type[AnyStruct], route: str) -> None:
        """*route* is the name in error texts."""
        self._query = query
        self._route = route
        self._default = query()
        self._remembered: Callable[[str], AnyStruct] = lru_cache(REMEMBERED)(self._parse)

    def parse(self, raw: str) -> AnyStruct:
        """Return the parameters; raises Problem for unknown, repeated and invalid ones."""
        if not raw:
            return self._default
        return self._remembered(raw) if len(raw) <= REMEMBERED_CHARS else self._parse(raw)

    def _parse(self, raw: str) -> AnyStruct:
        """Parse a raw query string, as `n=10&exclude=a,b`, into the record of the route's parameters.

        Raises a Problem (400) for a parameter that is unknown, repeated or invalid. `exclude` becomes a list of ids.
        """
        values = dict[str, object]()
        for pair in filter(None, raw.split("&")):
            raw_name, _, raw_value = pair.partition("=")
            name = _decoded(raw_name, "the name of a parameter")

            if name not in self._query.__struct_fields__:
                raise bad_parameter(
                    _with_known_fields(f"unknown field `{name[:SHOWN_CHARS]}`", self._route, self._query)
                )
            if name in values:
                raise bad_parameter(f"{name[:SHOWN_CHARS]} is given twice; give it once")
            values[name] = _split_ids(raw_value) if name == "exclude" else _decoded(raw_value, name)

        # msgspec takes numbers, not text. What is no number here is left to it, and refused.
        n = values.get("n")
        if isinstance(n, str) and n.isascii() and n.isdecimal() and len(n) <= MAX_DIGITS:
            values["n"] = int(n)

        try:
            query = msgspec.convert(values, self._query)
        except msgspec.ValidationError as error:
            raise _invalid_value(error, self._route, self._query) from None
        _check_ids(getattr(query, "exclude", ()), "exclude")
        return query


def check_body(request: web.BaseRequest) -> None:
    """Raise a Problem for a body that is refused unread."""
    # A small compressed body may expand to a gigabyte.
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise Problem(415, "encoded-body", "a body is sent as it is, without Content-Encoding")
    if request.content_length is not None and request.content_length > MAX_BODY_BYTES:
        raise _too_large()


async def read_body(request: web.BaseRequest) -> bytes:
    """Return the body; raises Problem and ClientGone."""
    check_body(request)
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large() from None
    except web.RequestPayloadError as error:
        raise unreadable(400, str(error)) from None
    except ConnectionError:
        raise ClientGone from None
    return body


async def read_json_body(request: web.BaseRequest) -> bytes:
    """Return the body of a route that takes no msgpack; raises Problem and ClientGone."""
    if request.content_type == MSGPACK:
        raise Problem(415, "not-json", f"this route takes JSON, not {MSGPACK}")
    return await read_body(request)


def unreadable(status: int, message: str | None) -> Problem:
    """Return the refusal of an unparsable request."""
    reason = (message or "it is not HTTP/1.1").strip().partition("\n")[0].partition(":")[0][:200]
    return Problem(status, "bad-request", f"the request cannot be read: {reason}", CLOSE)


def _too_large() -> Problem:
    return Problem(413, "body-too-large", f"a body has at most {MAX_BODY_BYTES} bytes; send several requests")


def parse_batch(body: bytes, media: str = JSON) -> BatchBody:
    """Parse and check the body of a batch, in JSON or MSGPACK; raises Problem."""
    batch = parse_body(body, BatchBody, "POST /v1/recommendations", media)
    _check_ids(batch.ids, "users")
    _check_ids(batch.exclude, "exclude")
    if len(batch.users) * batch.n > MAX_BATCH_ITEMS:
        raise bad_parameter(
            f"one request gets at most {MAX_BATCH_ITEMS} items, users times n, not {len(batch.users)} times {batch.n}; "
            f"send several requests"
        )
    return batch


def parse_fold_in(body: bytes) -> FoldInBody:
    """Parse and check the body of a fold-in; raises Problem."""
    basket = parse_body(body, FoldInBody, f"POST {FOLD_IN}")
    _check_ids([item if isinstance(item, str) else item.id for item in basket.items], "items")
    _check_ids(basket.exclude, "exclude")
    return basket


def parse_body(body: bytes, kind: type[AnyStruct], route: str, media: str = JSON) -> AnyStruct:
    """Parse a body of the type *kind*; raises a Problem (400) with the position of the error.

    *media* is the content type, JSON or MSGPACK, and *route* names the route in the error.
    """
    codec = msgspec.msgpack if media == MSGPACK else msgspec.json
    try:
        decoded = _decode_with_whole_n(body, kind, codec.decode)
    except msgspec.ValidationError as error:
        raise _invalid_value(error, route, kind) from None
    except (ValueError, TypeError, RecursionError) as error:  # a TypeError: a map or list as a key in msgpack
        raise bad_parameter(f"the body is not {'msgpack' if media == MSGPACK else 'JSON'}: {error}") from None
    return decoded


def _decode_with_whole_n(body: bytes, kind: type[AnyStruct], decode: Callable[..., Any]) -> AnyStruct:
    """Decode a body as the type *kind*. A whole float as its `n`, such as 10.0, counts as an integer.

    JSON does not distinguish them, but msgspec does. *decode* is that of msgspec for the content type, whose errors are
    raised.
    """
    try:
        decoded: AnyStruct = decode(body, type=kind)
    except msgspec.ValidationError as error:
        # Never decoded without a type, which takes a second for 300,000 arrays.
        if str(error).startswith("Expected `object`"):
            decode(body, type=msgspec.Raw)  # raises another error if it cannot be read at all
        if not str(error).endswith("got `float` - at `$.n`"):
            raise
        with_float = decode(body, type=_with_float_n(kind))
        if not (with_float.n.is_integer() and 0 < with_float.n <= MAX_N):
            raise
        decoded = msgspec.structs.replace(with_float, n=int(with_float.n))
    return decoded


@lru_cache
def _with_float_n(kind: type[Struct]) -> type[Any]:
    """Return a subclass of *kind* whose `n` is a float."""
    return msgspec.defstruct(kind.__name__, [("n", float)], bases=(kind,), frozen=True, kw_only=True)


def parse_id(raw: str, name: str) -> str:
    """Decode a percent-encoded id in the path."""
    if "%" in raw:
        try:
            raw = unquote_to_bytes(raw).decode()
        except UnicodeError:
            raise bad_parameter(f"the {name} id in the path is not percent-encoded UTF-8") from None
    return checked_id(raw, f"the {name} id in the path")


def _decoded(raw: str, what: str) -> str:
    try:
        return unquote_to_bytes(raw.replace("+", " ")).decode()
    except UnicodeError:
        raise bad_parameter(f"{what} in the query is not percent-encoded UTF-8") from None


def _split_ids(raw: str) -> tuple[str, ...]:
    """Return the ids in a percent-encoded value, which are separated by commas, each once.

    An encoded comma, `%2C`, may belong to an id, or be a separator of a client that encodes the whole value, as many
    do. So both readings are returned: `a%2Cb,c` has the ids `a,b`, `c`, `a` and `b`. A piece that is too long for an id
    is only divided.
    """
    pieces = [_decoded(piece, "exclude") for piece in raw.split(",")]
    if len(pieces) > MAX_EXCLUDED:
        return tuple(pieces)  # refused by the caller

    ids = [piece for piece in pieces if "," not in piece or len(piece.encode()) <= MAX_ID_BYTES]
    for piece in pieces:
        ids += piece.split(",")
    return tuple(dict.fromkeys(filter(None, ids)))


def _invalid_value(error: msgspec.ValidationError, route: str, kind: type[Struct]) -> Problem:
    """Return the problem (400) of an invalid value, with the reason and the place from msgspec's error.

    msgspec's "Expected `int`, got `str` - at `$.n`" becomes "n cannot be used: expected `int`, got `str`". For an
    unknown field, the fields of *kind* are named, and for `fields` its values.
    """
    reason, _, place = str(error).partition(" - at `$")
    if "unknown field" in reason:
        reason = _with_known_fields(reason[: 2 * SHOWN_CHARS], route, kind)
    field = place.rstrip("`").removeprefix(".")
    if field == "fields" and "enum value" in reason:
        reason = f"{reason[:SHOWN_CHARS]}; it is one of {' | '.join(get_args(FieldNames))}"
    reason = reason.replace("Object missing", "it is missing").replace("Object", "it")
    return bad_parameter(
        f"{field or 'the request'} cannot be used: {reason[:1].lower()}{reason[1:]}"[:MAX_REFUSAL_CHARS]
    )


def _with_known_fields(what: str, route: str, kind: type[Struct]) -> str:
    return f"{what}; {route} takes {', '.join(kind.__struct_fields__) or 'nothing in its query'}"


def _check_ids(ids: Sequence[str], name: str) -> None:
    """Refuse ids of too many bytes, as types limit characters."""
    for index, identifier in enumerate(ids):
        if len(identifier) * 4 > MAX_ID_BYTES:
            checked_id(identifier, f"{name}[{index}]")


def checked_id(identifier: str, what: str) -> str:
    """Return *identifier*, or raise a Problem that calls it *what*."""
    try:
        return check_id(identifier)
    except StoreMisused as error:
        raise bad_parameter(f"{what} cannot be used: {error}") from None
