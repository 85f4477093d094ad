"""The fast lane: the plainest request, a GET of one user's list, from the bytes that came to those of its answer.

It takes what it can be sure of and nothing else; for all the rest `answer` gives None, and aiohttp sees the same bytes,
untouched, on the same connection and in order. Why nothing is taken that aiohttp would refuse, or read otherwise:

- The bytes are one whole request: they begin where a request begins, and their first empty line is their end. So
  nothing follows that could be read as another's.
- The request line has one form: GET, the path of a user whose id needs no decoding, at most `?n=`, HTTP/1.1.
- Each header is one of a list, there at most once, with a value of visible ASCII. On the list is nothing that announces
  a body (Content-Length, Transfer-Encoding, Expect, Trailer, TE), changes the protocol (Upgrade, and of Connection all
  but keep-alive), or requests an answer of another kind (Range, Origin, If-None-Match, X-Request-Timeout-Ms). What a
  folded line, a bare line end or a space before the colon leave as a name is not on it.
- Keys, rates, the deny-list, the live release and whether the worker drains are looked at for each request, in the same
  objects that aiohttp's way looks at. A connection that brings a key is its client's by aiohttp's word only.
"""

import re
from time import perf_counter

from aiohttp.helpers import rfc822_formatted_time
from xxhash import xxh3_64_hexdigest

from serve.access.auth import bearer
from serve.access.keys import READ
from serve.api import handlers
from serve.api.app import USER_ROUTE, Dispatcher, is_request_id
from serve.api.formats import media_type
from serve.api.handlers import list_body
from serve.api.parameters import JSON, LIST_MEDIA, MAX_N
from serve.api.problems import Problem
from serve.reader import DEFAULT_N

MAX_BYTES = 4096
# How many lines of headers are remembered that are the same in request after request.
REMEMBERED = 1024
END = b"\r\n\r\n"
PRIVATE, NO_STORE = handlers.PRIVATE.encode(), handlers.NO_STORE.encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: %b\r\nX-Hotplate-Release: %b\r\nVary: %b\r\n"
    b'ETag: "%b"\r\nServer: hotplate\r\nX-Request-Id: %b\r\nServer-Timing: app;dur=%.3f\r\nContent-Length: %d\r\n'
    b"Date: %b\r\n\r\n%b"
)
_line = re.compile(rb"GET /v1/recommendations/([A-Za-z0-9_~-]{1,128})(?:\?n=([1-9][0-9]{0,3}))? HTTP/1\.1\r\n").match
_value = re.compile(rb"[ \t]?([\x21-\x7e](?:[\x20-\x7e]{0,1022}[\x21-\x7e])?)").fullmatch

# Who calls, and how the request is named; what a client sends with each request; what differs from one to the next.
NAMES = ("X-API-Key", "Authorization", "X-Request-Id")
CONSTANT = (
    "Host", "Accept", "Connection", "User-Agent", "Accept-Encoding", "Accept-Language", "Cache-Control", "Pragma",
    "DNT", "Referer", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port",
)  # fmt: skip
CHANGING = ("traceparent", "tracestate", "baggage", "X-Forwarded-For", "X-Real-IP", "Via", "Forwarded")
# A bit for each, by its name as it is mostly written.
_BITS = {name: 1 << n for n, name in enumerate((*NAMES, *CONSTANT, *CHANGING))}
BITS = {way.encode(): bit for name, bit in _BITS.items() for way in (name, name.lower(), name.title())}
API_KEY, AUTHORIZATION, REQUEST_ID, HOST, ACCEPT, CONNECTION = (_BITS[name] for name in (*NAMES, *CONSTANT[:3]))
READ_BITS = {API_KEY, AUTHORIZATION, REQUEST_ID}
IS_CONSTANT = sum(_BITS[name] for name in CONSTANT)


class Lane:
    """Answers what it can of one worker's requests, on its loop; lives as long as the worker."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Take what answers everything else."""
        self._dispatcher = dispatcher
        self._vary = b"Accept, Origin" if dispatcher.cors else b"Accept"
        self._constant = dict[bytes, int]()

    def answer(self, data: bytes, client: str) -> bytes | None:
        """Return the whole answer to what came on a connection of *client*; None for what is not the lane's."""
        started = perf_counter()
        line = _line(data)
        if line is None or len(data) > MAX_BYTES or data.find(END, line.end() - 2) != len(data) - len(END):
            return None
        dispatcher, reader = self._dispatcher, self._dispatcher.reader
        n = DEFAULT_N if line[2] is None else int(line[2])
        if n > MAX_N or dispatcher.draining or not reader.is_at_hand:
            return None
        headers = self._read(data[line.end() : -len(END)])
        if headers is None:
            return None
        credential, request_id = headers
        caller = dispatcher.guard.known(credential, client)
        if caller is None or READ not in caller.scopes or (caller.bucket is not None and caller.bucket.take() > 0):
            return None
        encoded = reader.personal_at_hand(line[1].decode())
        if encoded is None:
            return None
        body = list_body(b'"user":"%b",' % line[1], encoded, reader.cut(encoded, n))
        request_id = request_id or dispatcher.request_ids.new()
        took_s = perf_counter() - started
        dispatcher.observe(USER_ROUTE, "GET", 200, took_s, size=len(body), request_id=request_id, client=caller.name)
        return ANSWER % (
            PRIVATE if encoded.source == "personal" else NO_STORE,
            encoded.served.id.encode(),
            self._vary,
            xxh3_64_hexdigest(body).encode(),
            request_id.encode(),
            took_s * 1000,
            len(body),
            rfc822_formatted_time().encode(),
            body,
        )

    def _read(self, lines: bytes) -> tuple[str | None, str | None] | None:
        """Return the key or token and the given id of a request; None where a header is not the lane's to judge."""
        seen, values = 0, dict[int, str]()
        for line in lines.split(b"\r\n"):
            bit = self._constant.get(line) or self._judge(line, values)
            if not bit or seen & bit:
                return None
            seen |= bit
        if not seen & HOST:
            return None
        key, request_id = values.get(API_KEY), values.get(REQUEST_ID)
        if request_id is not None and not is_request_id(request_id):
            request_id = None
        return key if key is not None else bearer(values.get(AUTHORIZATION)), request_id

    def _judge(self, line: bytes, values: dict[int, str]) -> int:
        """Return the bit of a header, and note what it says where that matters; 0 where it is not the lane's."""
        name, _, given = line.partition(b":")
        bit, value = BITS.get(name, 0), _value(given)
        if value is None:
            return 0
        if bit & IS_CONSTANT:
            if not _is_harmless(bit, value[1].decode()):
                return 0
            if len(self._constant) >= REMEMBERED:
                self._constant.clear()
            self._constant[line] = bit
        elif bit in READ_BITS:
            values[bit] = value[1].decode()
        return bit


def _is_harmless(bit: int, value: str) -> bool:
    """Return whether a header leaves the answer what it is."""
    if bit == CONNECTION:
        return value.lower() == "keep-alive"
    if bit == ACCEPT:
        try:
            return media_type(value, LIST_MEDIA) == JSON
        except Problem:
            return False
    return True
