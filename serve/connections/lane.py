"""The fast lane: answers plain GETs of one list from the request's bytes.

`answer` returns None for anything else, which aiohttp's parser then reads. It accepts nothing that aiohttp would refuse
or read differently:

- The bytes are one whole request: their first empty line is their end.
- The request line is a GET with an id that needs no decoding, at most `n` and `list`, and HTTP/1.1.
- Each header has a listed name, occurs once, and has visible ASCII. Headers are not listed if they announce a body or
  request another kind of answer (Range, Origin, X-Request-Timeout-Ms). Offers to upgrade are ignored.
- Only facts that header bytes determine are remembered. Keys, rates, the deny-list, the live release and draining are
  checked for each request, in the same objects as on aiohttp's path.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from http import HTTPStatus
from math import inf
from time import monotonic, time
from typing import NamedTuple

from aiohttp.helpers import rfc822_formatted_time
from xxhash import xxh3_64_hexdigest

from hotplate.serve.access.auth import Caller, bearer
from hotplate.serve.access.keys import READ
from hotplate.serve.api.app import Dispatcher, RequestIds, is_request_id, problem_of
from hotplate.serve.api.handlers import PRIVATE, SIMILAR, found_in, is_known, list_body, list_head, list_headers
from hotplate.serve.api.parameters import ListQuery
from hotplate.serve.metrics import OTHER, Metrics, request_cell
from hotplate.serve.problems import CONTENT_TYPE, Problem, overloaded
from hotplate.serve.reader import DEFAULT_N, EVERYBODY, EncodedList, NotReady, UnknownList
from hotplate.serve.telemetry.access_log import report
from hotplate.serve.telemetry.spans import ListOrigin, RequestRecord, RequestSpan, use_span
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import ITEM, OVERALL, USER

MAX_BYTES = 4096
# Limits of remembered header blocks and lines, and of response heads.
MAX_REMEMBERED = 1024
MAX_FRAMES = 64
# Returned if the answer is delivered later.
PENDING = b""
END = b"\r\n\r\n"

_line = re.compile(
    rb"GET /v1/(?:(recommendations|similar)/([A-Za-z0-9_~.:@-]{1,128})|popular)"
    rb"(?:\?([a-z]+=[A-Za-z0-9_&=-]{1,128}))? HTTP/1\.1\r\n"
).match
_value = re.compile(rb"[ \t]?([\x21-\x7e](?:[\x20-\x7e]{0,1022}[\x21-\x7e])?)").fullmatch
# Values of Connection that close nothing. Java's client offers HTTP/2 with the last two.
_keeps_open = re.compile(rb"(?i:(?:keep-alive|upgrade|http2-settings)(?:, ?(?!$)|$))+").fullmatch

# Headers that are read, that clients repeat, and that differ between requests.
NAMES = ("X-API-Key", "Authorization", "X-Request-Id", "If-None-Match")
CONSTANT = (
    "Host", "Connection", "Accept", "User-Agent", "Accept-Encoding", "Accept-Language", "Cache-Control", "Pragma",
    "Content-Type", "DNT", "Referer", "Priority", "Sec-GPC", "Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site",
    "Sec-Fetch-User", "Sec-CH-UA", "Sec-CH-UA-Mobile", "Sec-CH-UA-Platform", "X-Scheme", "X-Forwarded-Scheme",
    "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Envoy-Internal", "X-Envoy-Attempt-Count",
    "Upgrade", "HTTP2-Settings",
)  # fmt: skip
CHANGING = (
    "traceparent", "tracestate", "baggage", "b3", "X-B3-TraceId", "X-B3-SpanId", "X-B3-ParentSpanId", "X-B3-Sampled",
    "X-Amzn-Trace-Id", "X-Cloud-Trace-Context", "X-Forwarded-For", "X-Original-Forwarded-For", "X-Real-IP",
    "X-Forwarded-Client-Cert", "X-Envoy-Expected-Rq-Timeout-Ms", "Via", "Forwarded", "Cookie",
)  # fmt: skip
# One bit per header, by its usual spellings.
_BITS = {name: 1 << n for n, name in enumerate((*NAMES, *CONSTANT, *CHANGING))}
BITS = {way.encode(): bit for name, bit in _BITS.items() for way in (name, name.lower(), name.title())}
API_KEY, AUTHORIZATION, REQUEST_ID, KNOWN, HOST, CONNECTION = (_BITS[one] for one in (*NAMES, *CONSTANT[:2]))
IS_READ = API_KEY | AUTHORIZATION | REQUEST_ID | KNOWN
IS_CONSTANT = sum(_BITS[name] for name in CONSTANT)
TRACEPARENT = _BITS["traceparent"]
TRACESTATE = _BITS["tracestate"]
# Header bits that do not change between a client's requests.
IS_REMEMBERED = IS_CONSTANT | API_KEY | AUTHORIZATION


# Credential, request id, If-None-Match, and, if traced, `traceparent` and `tracestate`.
_Headers = tuple[str | None, str | None, str | None, str | None, str | None]


class _ListRoute(NamedTuple):
    """Route in metrics, source of the lists, and prefix of their keys."""

    route: str
    source: str
    key: str
    subject: bytes
    cache: str
    """Cache-Control of a list from that source; a fallback is not stored."""

    ok_cell: int
    known_cell: int


def _kind(route: str, source: str, key: str, subject: bytes, cache: str) -> _ListRoute:
    cells = request_cell(route, "GET", 200), request_cell(route, "GET", 304)
    return _ListRoute(route, source, key, subject, cache, *cells)


class _AnswerFrame(NamedTuple):
    """Heads of answers up to the ETag, and the body between subject and items."""

    head: bytes
    not_modified: bytes
    middle: bytes


# The parameters of a request without a query.
_PLAIN = DEFAULT_N, ""

# Start time, kind, id in the path, n and name of the list, headers, caller, and span if sampled; a tuple for speed.
_Request = tuple[float, _ListRoute, bytes, tuple[int, str], _Headers, str | None, RequestSpan | None]


class AnswerWriter:
    """Writes whole answers as aiohttp would."""

    def __init__(self, metrics: Metrics, request_ids: RequestIds, *, varies: bool) -> None:
        """*varies*: whether answers may differ for other origins."""
        self.request_ids = request_ids
        self._metrics = metrics
        self._vary = "Vary: Origin\r\n" if varies else ""
        self._date, self._date_until = "", -inf

    def write(self, head: bytes, request_id: str, took_s: float, body: bytes | None, last: str = "") -> bytes:
        """Return an answer that begins with *head* and *last*; without a *body*, Content-Length is omitted."""
        now = monotonic()
        if now >= self._date_until:
            self._date, self._date_until = rfc822_formatted_time(), now + 1 - time() % 1
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        lines = (
            f"{last}Server: hotplate\r\nX-Request-Id: {request_id}\r\nServer-Timing: app;dur={took_s * 1000:.3f}\r\n"
            f"{self._vary}{length}Date: {self._date}\r\n\r\n"
        )
        return b"".join((head, lines.encode(), body or b""))

    def write_problem(self, problem: Problem, request_id: str, took_s: float) -> bytes:
        """Return a problem as an answer."""
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"{_lines(problem.headers)}"
        )
        return self.write(head.encode(), request_id, took_s, problem.body)

    def refuse(self, problem: Problem, reason: str, took_s: float) -> bytes:
        """Answer bytes that are refused before there is a request; *reason* is one of SHED, or empty."""
        if reason:
            self._metrics.count_shed(reason)
        self._metrics.observe(request_cell(OTHER, OTHER, problem.status), 0.0)
        return self.write_problem(problem.closing(), self.request_ids.new(), took_s)

    def no_room(self) -> Problem:
        """Count and return the refusal of a body without room."""
        self._metrics.count_shed("bytes")
        return overloaded("bodies and unread answers take all the memory that is allowed for them").closing()


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


class Lane:
    """The fast lane of one worker, on its loop."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """*dispatcher* answers everything else."""
        self._dispatcher = dispatcher
        self._guard = dispatcher.guard
        self._reader = dispatcher.reader
        self._cut, self._hides = self._reader.cut, self._reader.consumed is not None
        self._observe = dispatcher.metrics.observe
        self._access_log = dispatcher.access_log
        self._tracer = dispatcher.tracer
        self._is_read = IS_READ if self._tracer is None else IS_READ | TRACEPARENT | TRACESTATE
        shared = dispatcher.handlers.shared
        self._kinds = {
            b"recommendations": _kind("/v1/recommendations/{user}", "personal", USER, b'"user":"%b",', PRIVATE),
            b"similar": _kind("/v1/similar/{item}", "similar", ITEM, b'"item":"%b",', shared),
            None: _kind("/v1/popular", "popular", "", b"", shared),
        }
        self._writer = AnswerWriter(dispatcher.metrics, dispatcher.request_ids, varies=dispatcher.cors is not None)
        self._blocks = dict[bytes, _Headers]()
        self._lines = dict[bytes, tuple[int, str | None]]()
        self._queries = dict[bytes, tuple[int, str]]()
        self._frames = dict[tuple[str, ReleaseRef, bool, str, str, str], _AnswerFrame]()

    def answer(self, data: bytes, now: float, deliver: Callable[[bytes], None]) -> bytes | None:
        """Return the answer to a request that arrived *now*; None if it is not plain.

        PENDING if a store is read first: *deliver* gets the answer later.
        """
        line = _line(data)
        if line is None or self._dispatcher.draining:
            return None
        block = data[line.end() :]
        headers = self._blocks.get(block) or self._read(block)
        name, raw_id, raw_query = line.groups()
        query = _PLAIN if raw_query is None else self._queries.get(raw_query) or self._parse(raw_query)
        if headers is None or query is None:
            return None
        kind, guard = self._kinds[name], self._guard
        try:
            caller = guard.caller(headers[0])
            if not isinstance(caller, Caller):
                return None  # a token that must be verified
            guard.charge(caller, READ)
        except Problem as problem:
            return self._refused((now, kind, b"", query, headers, None, self._span(headers)), problem)
        request = now, kind, raw_id or b"", query, headers, caller.name, self._span(headers)
        try:
            return self._answer_list(request, deliver)
        except (NotReady, UnknownList) as error:
            return self._refused(request, problem_of(error))

    def _parse(self, raw: bytes) -> tuple[int, str] | None:
        """Return *n* and the name of the list; None for other parameters."""
        try:
            query = SIMILAR.parse(raw.decode())
        except Problem:
            return None
        if query != ListQuery(n=query.n, list=query.list):
            return None
        if len(self._queries) >= MAX_REMEMBERED:
            self._queries.clear()
        self._queries[raw] = found = query.n, query.list
        return found

    def _span(self, headers: _Headers) -> RequestSpan | None:
        return None if self._tracer is None else self._tracer.begin(headers[3], headers[4])

    def _refused(self, request: _Request, problem: Problem) -> bytes:
        started, kind, _, _, headers, _, _ = request
        request_id, took_s = headers[1] or self._dispatcher.request_ids.new(), monotonic() - started
        self._observe(request_cell(kind.route, "GET", problem.status), took_s)
        self._report(request, problem.status, took_s, len(problem.body), request_id, found=None)
        return self._writer.write_problem(problem, request_id, took_s)

    def _report(
        self, request: _Request, status: int, took_s: float, size: int, request_id: str, *, found: ListOrigin | None
    ) -> None:
        _, kind, raw_id, _, _, client, span = request
        is_logged = self._access_log is not None and self._access_log.due()
        if is_logged or span is not None:
            user = raw_id.decode() if found is not None and kind.key == USER else None
            record = RequestRecord(kind.route, "GET", status, took_s, size, request_id, client, user, found)
            report(record, self._access_log if is_logged else None, span)

    def _answer_list(self, request: _Request, deliver: Callable[[bytes], None]) -> bytes:
        _, kind, raw_id, (_, name), _, _, span = request
        if not kind.key:
            return self._made(request, self._reader.popular(OVERALL, name))
        key, fallback = kind.key + raw_id.decode(), EVERYBODY
        if name:
            key, fallback = self._reader.placed(kind.key, raw_id.decode(), OVERALL, name)
        encoded, source = self._reader.get_nowait(key, kind.source, fallback), kind.source
        if encoded is not None:
            return self._made(request, encoded)
        with nullcontext() if span is None else use_span(span):
            self._reader.submit(key, source, fallback, lambda read: deliver(self._made(request, read)))
        return PENDING

    def _made(self, request: _Request, encoded: EncodedList) -> bytes:
        started, kind, raw_id, (n, name), (_, given_id, known, _, _), _, span = request
        if name and kind.key:  # `popular` has counted its own
            try:
                encoded = self._reader.as_named(encoded, name)
            except UnknownList as error:  # gone since it was read
                return self._refused(request, problem_of(error))
        served, fallback = encoded.served, encoded.fallback
        frame = self._frames.get((kind.source, served.ref, served.is_canary, encoded.source, encoded.tier, fallback))
        if frame is None:
            frame = self._frame(kind, encoded)
        if kind.key == USER:
            if self._hides:
                encoded = self._reader.hiding(raw_id.decode(), encoded)
        elif kind.key:
            encoded = self._reader.beside((raw_id.decode(),), encoded)
        items = self._cut(encoded, n)
        body = list_body(kind.subject % raw_id if raw_id else b"", frame.middle, items)
        etag, size = xxh3_64_hexdigest(body), len(body)
        request_id = given_id or self._dispatcher.request_ids.new()
        status, cell, head = 200, kind.ok_cell, frame.head
        content: bytes | None = body
        if known is not None and is_known(f'"{etag}"', known):
            status, cell, head, content, size = 304, kind.known_cell, frame.not_modified, None, 0
        took_s = monotonic() - started
        self._observe(cell, took_s)
        if self._access_log is not None or span is not None:
            self._report(request, status, took_s, size, request_id, found=found_in(encoded, items))
        return self._writer.write(head, request_id, took_s, content, f'{etag}"\r\n')

    def _frame(self, kind: _ListRoute, encoded: EncodedList) -> _AnswerFrame:
        served, source, tier, fallback = encoded.served, encoded.source, encoded.tier, encoded.fallback
        if len(self._frames) >= MAX_FRAMES:
            self._frames.clear()
        content, *others = list_headers(encoded, kind.source, kind.cache).items()
        first = "{}: {}\r\n".format(*content)
        lines = _lines(dict(others)) + 'ETag: "'
        self._frames[kind.source, served.ref, served.is_canary, source, tier, fallback] = frame = _AnswerFrame(
            f"HTTP/1.1 200 OK\r\n{first}{lines}".encode(),
            f"HTTP/1.1 304 Not Modified\r\n{lines}".encode(),
            list_head(encoded),
        )
        return frame

    def _read(self, block: bytes) -> _Headers | None:
        if len(block) > MAX_BYTES or block.find(END) != len(block) - len(END):
            return None
        seen, values = 0, dict[int, str]()
        for line in block[: -len(END)].split(b"\r\n"):
            found = self._lines.get(line) or self._classify_header(line)
            if found is None or seen & found[0]:
                return None
            bit, value = found
            seen |= bit
            if value is not None:
                values[bit] = value
        if not seen & HOST:
            return None
        key, request_id = values.get(API_KEY), values.get(REQUEST_ID)
        if request_id is not None and not is_request_id(request_id):
            request_id = None
        credential = key if key is not None else bearer(values.get(AUTHORIZATION))
        headers = credential, request_id, values.get(KNOWN), values.get(TRACEPARENT), values.get(TRACESTATE)
        if not seen & ~IS_REMEMBERED:
            if len(self._blocks) >= MAX_REMEMBERED:
                self._blocks.clear()
            self._blocks[block] = headers
        return headers

    def _classify_header(self, line: bytes) -> tuple[int, str | None] | None:
        """Return a header's bit, and its value if read; None if not allowed here."""
        name, _, given = line.partition(b":")
        bit, value = BITS.get(name, 0), _value(given)
        if not bit or value is None:
            return None
        found = bit, value[1].decode() if bit & self._is_read else None
        if bit & IS_REMEMBERED:
            if bit == CONNECTION and not _keeps_open(value[1]):
                return None
            if len(self._lines) >= MAX_REMEMBERED:
                self._lines.clear()
            self._lines[line] = found
        return found
