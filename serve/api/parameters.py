"""Reading queries, bodies and ids of requests by the types of the routes."""

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import hdrs, web
from msgspec import Struct

from hotplate.serve.api.routes import JSON, MSGPACK, OPERATIONS, Operation
from hotplate.serve.api.schemas import BatchBody, FoldInBody
from hotplate.serve.connections.framing import MAX_BODY_BYTES
from hotplate.serve.lists.options import ID_OPTIONS, MAX_EXCLUDED, Selection
from hotplate.serve.problems import CLOSE, ClientGone, Problem, bad_parameter
from hotplate.stores.encoding import MAX_ID_BYTES, check_id
from hotplate.stores.errors import StoreMisused

# Items of all users of a batch.
MAX_BATCH_ITEMS = 20_000

# Limits of error texts in characters: of a value, and in total.
SHOWN_CHARS = 40
MAX_REFUSAL_CHARS = 200
# Number of cached queries of a route, each of up to 16 KiB.
REMEMBERED = 256

AnyStruct = TypeVar("AnyStruct", bound=Struct)

_ROUTE_OF_BODY = {operation.body: operation.name for operation in OPERATIONS}


class QueryParser(Generic[AnyStruct]):
    """Parses and caches the query strings of one route."""

    def __init__(self, query: type[AnyStruct], route: str, without: Collection[str] = ()) -> None:
        """*route* is the name in error texts; it refuses the fields of *query* that *without* names."""
        self._query = query
        self._route = route
        defaults = {field.encode_name: field.default for field in msgspec.structs.fields(query)}
        self._defaults = {name: default for name, default in defaults.items() if name not in without}
        """By name; that of a parameter which is a list of ids is a tuple."""

        self.parse: Callable[[str], AnyStruct] = lru_cache(REMEMBERED)(self._parse)
        """Returns the parameters of a raw query; raises Problem for unknown, repeated and invalid ones."""

    def _parse(self, raw: str) -> AnyStruct:
        """Parse a raw query string, as `n=10&exclude=a,b`, into the record of the route's parameters.

        Raises a Problem (400) for a parameter that is unknown, repeated or invalid. `exclude` becomes a list of ids.
        """
        values = dict[str, object]()
        for pair in filter(None, raw.split("&")):
            raw_name, _, raw_value = pair.partition("=")
            name = _decoded(raw_name, "the name of a parameter")

            if name not in self._defaults:
                unknown = f"unknown field `{name[:SHOWN_CHARS]}`"
                raise bad_parameter(_with_known_fields(unknown, self._route, self._defaults))
            if name in values:
                raise bad_parameter(f"{name[:SHOWN_CHARS]} is given twice; give it once")
            is_list = isinstance(self._defaults[name], tuple)
            values[name] = _split_ids(raw_value, name) if is_list else _decoded(raw_value, name)

        try:
            query = msgspec.convert(values, self._query, strict=False)  # numbers are text
        except msgspec.ValidationError as error:
            raise _invalid_value(error, self._route, self._defaults) from None
        _check_ids_of(query)
        return query


def with_query(operation: Operation, handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler that checks the query, unless the route ignores it, and the media type of a body.

    *handler* is called with the request, the encoded id, the parsed query and the body, if any.
    """
    parse = str if operation.query is None else QueryParser(operation.query, operation.name, operation.without).parse

    def handle(request: web.BaseRequest, raw_id: str, raw_query: str, *body: bytes) -> Any:  # noqa: ANN401 -- of the handler
        query = parse(raw_query)
        if body and request.content_type == MSGPACK and MSGPACK not in operation.media:
            raise Problem(415, "not-json", f"this route takes JSON, not {MSGPACK}")
        return handler(request, raw_id, query, *body)

    return handle


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


def unreadable(status: int, message: str | None) -> Problem:
    """Return the refusal of an unparsable request."""
    reason = (message or "it is not HTTP/1.1").strip().partition("\n")[0].partition(":")[0][:200]
    return Problem(status, "bad-request", f"the request cannot be read: {reason}", CLOSE)


def _too_large() -> Problem:
    return Problem(413, "body-too-large", f"a body has at most {MAX_BODY_BYTES} bytes; send several requests")


def parse_batch(body: bytes, media: str = JSON) -> BatchBody:
    """Parse and check the body of a batch, in JSON or MSGPACK; raises Problem."""
    batch = parse_body(body, BatchBody, media)
    _check_ids(batch.ids, "users")
    if len(batch.users) * batch.n > MAX_BATCH_ITEMS:
        raise bad_parameter(
            f"one request gets at most {MAX_BATCH_ITEMS} items, users times n, not {len(batch.users)} times {batch.n}; "
            f"send several requests"
        )
    return batch


def parse_fold_in(body: bytes) -> FoldInBody:
    """Parse and check the body of a fold-in; raises Problem."""
    basket = parse_body(body, FoldInBody)
    _check_ids([item if isinstance(item, str) else item.id for item in basket.items], "items")
    return basket


def parse_body(body: bytes, kind: type[AnyStruct], media: str = JSON) -> AnyStruct:
    """Parse a body of the type *kind*; raises a Problem (400) with the position of the error.

    *media* is the content type, JSON or MSGPACK.
    """
    codec = msgspec.msgpack if media == MSGPACK else msgspec.json
    try:
        decoded = _decode_with_whole_n(body, kind, codec.decode)
    except msgspec.ValidationError as error:
        raise _invalid_value(error, _ROUTE_OF_BODY[kind], kind.__struct_encode_fields__) from None
    except (ValueError, TypeError, RecursionError) as error:  # a TypeError: a map or list as a key in msgpack
        raise bad_parameter(f"the body is not {'msgpack' if media == MSGPACK else 'JSON'}: {error}") from None
    _check_ids_of(decoded)
    return decoded


def _decode_with_whole_n(body: bytes, kind: type[AnyStruct], decode: Callable[..., Any]) -> AnyStruct:
    """Decode a body as the type *kind*. A whole float as its `n`, such as 10.0, counts as an integer.

    JSON does not distinguish them, but msgspec does. *decode* is that of msgspec for the content type, whose errors are
    raised.
    """
    decoded: AnyStruct
    try:
        decoded = decode(body, type=kind)
    except msgspec.ValidationError as error:
        # Never decoded without a type, which takes a second for 300,000 arrays.
        if str(error).startswith("Expected `object`"):
            decode(body, type=msgspec.Raw)  # raises another error if it cannot be read at all
        if not str(error).endswith("got `float` - at `$.n`"):
            raise
        decode(body, type=_with_float_n(kind))  # since the other fields are not converted
        decoded = decode(body, type=kind, strict=False)
    return decoded


@lru_cache
def _with_float_n(kind: type[Struct]) -> type[Struct]:
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


def _split_ids(raw: str, name: str) -> tuple[str, ...]:
    """Return the ids in a percent-encoded value, which are separated by commas, each once.

    An encoded comma, `%2C`, may belong to an id, or be a separator of a client that encodes the whole value, as many
    do. So both readings are returned: `a%2Cb,c` has the ids `a,b`, `c`, `a` and `b`. A piece that is too long for an id
    is only divided.
    """
    pieces = [_decoded(piece, name) for piece in raw.split(",")]
    if len(pieces) > MAX_EXCLUDED:
        return tuple(pieces)  # refused by the caller

    ids = [piece for piece in pieces if "," not in piece or len(piece.encode()) <= MAX_ID_BYTES]
    for piece in pieces:
        ids += piece.split(",")
    return tuple(dict.fromkeys(filter(None, ids)))


def _invalid_value(error: msgspec.ValidationError, route: str, names: Collection[str]) -> Problem:
    """Return the problem (400) of an invalid value, with the reason and the place from msgspec's error.

    msgspec's "Expected `int`, got `str` - at `$.n`" becomes "n cannot be used: expected `int`, got `str`". For an
    unknown field, *names* of known ones follow.
    """
    reason, _, place = str(error).partition(" - at `$")
    if "unknown field" in reason:
        reason = _with_known_fields(reason[: 2 * SHOWN_CHARS], route, names)
    field = place.rstrip("`").removeprefix(".")
    reason = reason.replace("Object missing", "it is missing").replace("Object", "it")
    return bad_parameter(
        f"{field or 'the request'} cannot be used: {reason[:1].lower()}{reason[1:]}"[:MAX_REFUSAL_CHARS]
    )


def _with_known_fields(reason: str, route: str, names: Collection[str]) -> str:
    return f"{reason}; {route} takes {', '.join(names) or 'nothing in its query'}"


def _check_ids_of(options: Struct) -> None:
    """Check the options that are lists of ids."""
    if isinstance(options, Selection):
        for name in ID_OPTIONS:
            _check_ids(getattr(options, name), name)


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
