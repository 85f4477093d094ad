"""The scoring contract of Azure Machine Learning endpoints, as called by Stream Analytics and the Azure ML SDK.

`POST /score` takes `{"data": [ROW, …]}` and answers one element per row. Callers retry on 503, and end their job on any
other error: transient errors are 503, and an invalid row is an error of its element.
"""

from importlib.resources import files
from typing import Any

import msgspec
import orjson
from aiohttp import web
from msgspec import Raw

from hotplate.serve.api.handlers import NO_STORE, RELEASE, conditional, in_pieces, releases, results
from hotplate.serve.api.parameters import MAX_BATCH_ITEMS
from hotplate.serve.api.routes import JSON
from hotplate.serve.api.schemas import MAX_USERS, NoQuery, ScoreBody, ScoreColumns, ScoreError, ScoreRow, User
from hotplate.serve.lists.options import DEFAULT_N, Selection
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.lists.requests import ListRequest
from hotplate.serve.lists.shaping import Shaper
from hotplate.serve.problems import Problem, bad_parameter
from hotplate.stores.attributes import EXACT_FLOATS
from hotplate.stores.encoding import MAX_ID_BYTES, USER, check_id
from hotplate.stores.errors import StoreMisused, StoreUnavailable

# Swagger 2.0, with the names of Azure ML's servers.
SIGNATURE: dict[str, Any] = orjson.loads((files("hotplate.serve.api") / "swagger.json").read_bytes())
# Rows answered before other requests run.
ROWS_A_PIECE = 256
TRANSIENT = frozenset({408, 425, 429, 502, 503, 504})

_OBJECT = ord("{")
_ARRAY = ord("[")

_decode_body = msgspec.json.Decoder(ScoreBody).decode
_decode_row = msgspec.json.Decoder(ScoreRow, strict=False).decode
_decode_columns = msgspec.json.Decoder(ScoreColumns, strict=False).decode
_decode_user = msgspec.json.Decoder[str | int | float](User).decode


class Scoring:
    """Handlers of the scoring routes."""

    def __init__(self, reader: TieredReader, shaper: Shaper) -> None:
        self._reader = reader
        self._shaper = shaper

    async def score(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str, body: bytes) -> web.Response:
        """`POST /score`: answer a batch of rows as an Azure ML endpoint does.

        A row has a user, and the number of items. The answer is a JSON array with an element per row, in their order:
        the user's list or, for an invalid row, an error, which does not fail the others.
        """
        rows = _parse_rows(body)
        valid_rows = [row for row in rows if isinstance(row, ScoreRow)]

        release = self._reader.live_id()  # raises NotReady, also if no row is valid
        requests = [ListRequest(USER, str(row.user), selection=Selection(row.n or DEFAULT_N)) for row in valid_rows]
        try:
            lists = await self._reader.personal_many([wanted.id for wanted in requests], must_read=True)
        except StoreUnavailable as error:
            raise Problem(503, "store-unavailable", str(error)) from error

        # Merge the elements of valid and invalid rows. Those of valid ones are made when they are iterated over.
        valid_elements = results(requests, lists, self._shaper)
        elements = (next(valid_elements) if isinstance(row, ScoreRow) else row for row in rows)
        content = b"[%b]" % b",\n".join(await in_pieces(elements, ROWS_A_PIECE))

        headers = {"Content-Type": JSON, "Cache-Control": NO_STORE, RELEASE: release, **releases(lists)}
        return web.Response(body=content, headers=headers)

    async def swagger(self, request: web.BaseRequest, _raw_id: str, _query: NoQuery) -> web.Response:
        """`GET /swagger.json`."""
        return conditional(request, orjson.dumps(SIGNATURE), {"Content-Type": JSON, "Cache-Control": "no-cache"})

    async def healthy(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /`: the text that callers expect."""
        return web.Response(text="Healthy", headers={"Cache-Control": NO_STORE})


def scoring_refusal(problem: Problem) -> Problem:
    """Return *problem* in the scoring contract: 503 if it is transient."""
    status = problem.status
    headers = problem.headers
    if status in TRANSIENT:
        status = 503
        headers = {"Retry-After": "1", **headers}
    members = msgspec.structs.asdict(ScoreError(status, problem.detail))
    return Problem(status, problem.name, problem.detail, headers, members)


def _parse_rows(body: bytes) -> list[ScoreRow | bytes]:
    """Parse the rows of a body. An invalid one becomes its element of the answer, in JSON, with the reason.

    Raises a Problem (400) for a body that is not `{"data": [row, …]}`, or if its rows request too many items.
    """
    try:
        data = _decode_body(body).data
    except (ValueError, RecursionError) as error:
        raise bad_parameter(
            f'the body must have a list of at most {MAX_USERS} rows, as {{"data": [{{"user": "42"}}]}}: {error}'
        ) from None

    rows = [_row_of(raw) for raw in data]
    items = sum(row.n or DEFAULT_N for row in rows if isinstance(row, ScoreRow))
    if items > MAX_BATCH_ITEMS:
        raise bad_parameter(
            f"one request gets at most {MAX_BATCH_ITEMS} items, all rows together, not {items}; send smaller batches"
        )
    return rows


def _row_of(raw: Raw) -> ScoreRow | bytes:
    """Parse a row in JSON: `{"user": "42", "n": 5}`, `["42", 5]`, or `"42"` alone. See `_parse_rows`."""
    try:
        first_byte = memoryview(raw)[0]
        if first_byte == _OBJECT:
            row = _decode_row(raw)
        elif first_byte == _ARRAY:
            row = _decode_columns(raw)
        else:
            row = ScoreRow(_decode_user(raw))

        if isinstance(row.user, float):
            row = ScoreRow(_whole(row.user), row.n)
        user = str(row.user)
        if len(user) * 4 > MAX_ID_BYTES:  # a character has up to 4 bytes, so shorter ids need no check
            check_id(user)
    except (ValueError, RecursionError, StoreMisused) as error:
        reason = orjson.dumps(f"the row is invalid: {error}")
        return b'{"user":null,"status":"invalid","items":[],"error":%b}' % reason
    return row


def _whole(user: float) -> int:
    """Return an id that was written as a float; ValueError if it may be another one's."""
    if user.is_integer() and abs(user) < EXACT_FLOATS:
        return int(user)
    raise ValueError(f"the user {user!r} is no whole number below 2^53; write a string")
