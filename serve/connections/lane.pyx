# cython: language_level=3, boundscheck=True, wraparound=False, initializedcheck=False, cdivision=True
# cython: binding=False, freethreading_compatible=False
"""The fast lane: answers plain GETs of one list from the request's bytes.

`Lane.answer` returns None for anything else, and aiohttp's parser and handlers answer that. The lane accepts nothing
that aiohttp would refuse or read differently:

- The bytes are one whole request: their first empty line is their end.
- The request line is a GET with an id that needs no decoding, at most `n` and `list`, and HTTP/1.1.
- Each header has a name from `headers.py`, occurs once, and has a value of visible ASCII.

Policies stay in Python objects. What is hot in them is kept here for one generation of all policies (`generation.py`):
each change of a key file, the deny-list, a followed release or draining begins another one.

Memory
------
The lane reads three kinds of memory and writes one:

    request     a Py_buffer of the caller, held for the length of `answer`
    row         a Py_buffer of the stored value, held until its items are copied
    header      bytes objects that `_Template`, `_LocalRelease` and `Lane` own
    answer      a new bytes object of the exact size, which nobody else has seen yet

A `Span` is a part of such a buffer: its start and its end. Only functions below "Reading" advance a start, and each
compares with the end before it reads. Only `_put` writes, and it compares the room that is left before each copy; an
answer that its parts do not fill exactly is not sent (`_check_full`). No Span is stored in an object: what outlives a
call is copied to bytes. Sizes cannot overflow: header blocks are limited to MAX_BYTES, ids to MAX_ID, queries to
MAX_QUERY, and other parts are Python objects, whose sizes together stay far below 2 ** 63.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import logging
from array import array
from email.utils import formatdate
from math import inf
from secrets import token_hex
from time import time

from xxhash import xxh3_64_intdigest

from hotplate.serve.access.auth import Caller, bearer
from hotplate.serve.access.keys import READ
from hotplate.serve.api.app import PROBLEMS
from hotplate.serve.api.router import is_request_id
from hotplate.serve.api.handlers import NO_STORE, PRIVATE, is_known, list_head, list_headers
from hotplate.serve.api.parameters import QueryParser
from hotplate.serve.api.routes import ITEM_PATH, POPULAR_PATH, USER_PATH
from hotplate.serve.connections.answers import header_lines
from hotplate.serve.connections.headers import IGNORED
from hotplate.serve.connections.headers import READ as READ_HEADERS
from hotplate.serve.lists.encoded_lists import SOURCES, EncodedList
from hotplate.serve.errors import NotReady, UnknownList
from hotplate.serve.generation import POLICIES
from hotplate.serve.lists.options import PagedSelection
from hotplate.serve.lists.shaping import MAX_AGE_S as _MAX_AGE_S
from hotplate.serve.metrics import BUCKETS_S, HISTOGRAM_CELLS, HIT, LOOKUPS, request_cell
from hotplate.serve.problems import Problem, internal_error, problem_of
from hotplate.serve.telemetry.access_log import report
from hotplate.serve.telemetry.records import ListOrigin, RequestRecord
from hotplate.serve.telemetry.spans import use_span
from hotplate.serve.tiers.lookups import RowsRead
from hotplate.serve.tiers.tier import Origin
from hotplate.stores.encoding import (
    CHECKSUM_BYTES,
    EVERYBODY,
    ITEM,
    NO_OFFSET,
    OFFSET_BYTES,
    OVERALL,
    PLAIN,
    USER,
    USUAL_CUT,
    Checksum,
    RowKey,
)

cdef extern from *:
    """
    #ifndef HOTPLATE_SOURCE
    #define HOTPLATE_SOURCE ""
    #endif
    """
    const char* HOTPLATE_SOURCE

# Hash of the source that this was compiled from, by `hatch_build.source_hash`.
SOURCE = HOTPLATE_SOURCE.decode()
# Returned by `answer` if the answer is delivered later.
PENDING = b""

log = logging.getLogger(__name__)
_parse = QueryParser(PagedSelection, "a list").parse

# Sizes in bytes, but MAX_NAMES is a number of header names. MAX_BYTES limits a header block.
cdef enum:
    MAX_BYTES = 4096
    MAX_ID = 128
    MAX_QUERY = 128
    MAX_VALUE = 1024
    MAX_NAME = 32
    MAX_NAMES = 64
    ROW_CHECKSUM = 8
    ROW_HEADER = 12
    ETAG = 16
    # A 64-bit number in decimal, or microseconds as milliseconds ("%d.%03d").
    MAX_DIGITS = 24

if (ROW_CHECKSUM, ROW_HEADER) != (CHECKSUM_BYTES, CHECKSUM_BYTES + OFFSET_BYTES):
    raise ImportError("the layout of stored values has changed; change lane.pyx with it")

cdef double MAX_AGE_S = _MAX_AGE_S
# Entries of each table of remembered credentials, queries and heads, which are emptied when full.
cdef Py_ssize_t MAX_REMEMBERED = 1024
cdef Py_ssize_t MAX_TEMPLATES = 64
# Request ids of one random beginning: as many as their 8 digits can number.
cdef uint64_t MAX_IDS = 0xFFFFFFFF

ctypedef const unsigned char* Bytes


cdef struct Span:
    # Part of a buffer that outlives the Span.
    Bytes start
    Bytes end


# Places of READ_HEADERS, and their number.
cdef enum:
    HOST
    CONNECTION
    API_KEY
    AUTHORIZATION
    REQUEST_ID
    KNOWN
    TRACEPARENT
    TRACESTATE
    READ_COUNT


cdef struct Parsed:
    # A plain request. Spans of absent parts are empty, and `start` is NULL.
    Py_ssize_t route
    Span identifier
    Span query
    Span values[READ_COUNT]


cdef struct Output:
    # The part of a new bytes object that is not written yet.
    unsigned char* next
    unsigned char* end


# Tables -------------------------------------------------------------------------------------------------------------

cdef enum:
    RECOMMENDATIONS
    SIMILAR_ITEMS
    POPULAR

if READ_HEADERS != (
    "Host", "Connection", "X-API-Key", "Authorization", "X-Request-Id", "If-None-Match", "traceparent", "tracestate"
):
    raise ImportError("the order of headers.READ has changed; change the enum with it")


if (USER_PATH, ITEM_PATH, POPULAR_PATH) != ("/v1/recommendations/{user}", "/v1/similar/{item}", "/v1/popular"):
    raise ImportError("the paths of lists have changed; change _read_line with them")


cdef struct HeaderName:
    unsigned char lower[MAX_NAME]
    Py_ssize_t size


cdef HeaderName _names[MAX_NAMES]
# Index of the first name by its size; names of a size are adjacent.
cdef Py_ssize_t _first_of_size[MAX_NAME + 2]
# Number of each name: below READ_COUNT the place of its value.
cdef Py_ssize_t _number[MAX_NAMES]
# Properties of a byte.
cdef enum:
    OF_ID = 1
    OF_QUERY = 2
    VISIBLE = 4
    OF_REQUEST_ID = 8
cdef unsigned char _kind[256]
cdef unsigned char _lower[256]
cdef double _buckets[32]
cdef Py_ssize_t _bucket_count = len(BUCKETS_S)


cdef int _fill_bytes() except -1:
    """Set the properties of each byte, and its lower case."""
    cdef int byte
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    for byte in range(256):
        character = chr(byte)
        _kind[byte] = 0
        if character in letters + "_~.:@-":
            _kind[byte] |= OF_ID
        if character in letters + "_&=-":
            _kind[byte] |= OF_QUERY
        if 0x21 <= byte <= 0x7E:
            _kind[byte] |= VISIBLE
        if character in letters + "._~+/=:-":
            _kind[byte] |= OF_REQUEST_ID
        _lower[byte] = byte + 32 if 65 <= byte <= 90 else byte
    return 0


cdef int _fill_names() except -1:
    """Set the header names, ordered by size, and the number of each: its place in READ_HEADERS, then in IGNORED."""
    cdef Py_ssize_t size, place
    names = sorted((len(name), number, name.lower().encode()) for number, name in enumerate((*READ_HEADERS, *IGNORED)))
    if len(names) > MAX_NAMES or names[len(names) - 1][0] > MAX_NAME:
        raise ImportError("lane.pyx has too little room for the names of headers")
    for size in range(MAX_NAME + 2):
        _first_of_size[size] = sum(1 for length, _, _ in names if length < size)
    for place, (length, number, name) in enumerate(names):
        _names[place].size = length
        _number[place] = number
        for size in range(length):
            _names[place].lower[size] = name[size]
    return 0


cdef int _fill_buckets() except -1:
    """Set the bounds of the buckets of histograms."""
    cdef Py_ssize_t place
    if _bucket_count > 32:
        raise ImportError("lane.pyx has too little room for the buckets of histograms")
    for place, bound in enumerate(BUCKETS_S):
        _buckets[place] = bound
    return 0


_fill_bytes()
_fill_names()
_fill_buckets()


# Reading ------------------------------------------------------------------------------------------------------------

cdef inline Py_ssize_t _size(Span span) noexcept nogil:
    return span.end - span.start


cdef inline bint _skip(Span* span, const char* text, Py_ssize_t size) noexcept nogil:
    """Return whether *span* begins with *text*, and move behind it."""
    if span.end - span.start < size or memcmp(span.start, text, size) != 0:
        return False
    span.start += size
    return True


cdef inline Span _take(Span* span, unsigned char kind, Py_ssize_t most) noexcept nogil:
    """Return the bytes of *kind* that *span* begins with, at most *most*, and move behind them."""
    cdef Span taken
    taken.start = span.start
    while span.start < span.end and span.start - taken.start < most and _kind[span.start[0]] & kind:
        span.start += 1
    taken.end = span.start
    return taken


cdef inline Span _until(Span* span, unsigned char byte) noexcept nogil:
    """Return the bytes before *byte*, and move behind that; without it, the end is NULL."""
    cdef Span taken
    taken.start = span.start
    taken.end = NULL
    if span.start < span.end:
        taken.end = <Bytes>memchr(span.start, byte, span.end - span.start)
    if taken.end != NULL:
        span.start = taken.end + 1
    return taken


cdef inline Span _take_text(Span* span) noexcept nogil:
    """Return the JSON text that *span* begins with, in its quotes, and move behind it; without one, the end is NULL."""
    cdef Span taken
    taken.start = span.start
    taken.end = NULL
    if not _skip(span, b'"', 1):
        return taken
    while span.start < span.end and span.start[0] != 34:
        span.start += 2 if span.start[0] == 92 else 1  # a backslash, and what follows it
    if span.start < span.end:
        span.start += 1
        taken.end = span.start
    return taken


cdef inline bint _is_equal(Span span, const char* lower, Py_ssize_t size) noexcept nogil:
    """Return whether a span is *lower*, in any case."""
    cdef Py_ssize_t place
    if span.end - span.start != size:
        return False
    for place in range(size):
        if _lower[span.start[place]] != <unsigned char>lower[place]:
            return False
    return True


cdef Py_ssize_t _name_number(Span name) noexcept nogil:
    """Return the number of a header name in any case; -1 for others."""
    cdef Py_ssize_t size = _size(name)
    cdef Py_ssize_t place
    if size <= 0 or size > MAX_NAME:
        return -1
    for place in range(_first_of_size[size], _first_of_size[size + 1]):
        if _is_equal(name, <const char*>_names[place].lower, size):
            return _number[place]
    return -1


cdef bint _read_value(Span* value) noexcept nogil:
    """Trim one space or tab before a header's value; return whether it is plain: visible ASCII, with spaces inside.

    A value that is empty, longer than MAX_VALUE, or has further spaces at its ends is not plain.
    """
    cdef Bytes byte
    if value.start < value.end and (value.start[0] == 32 or value.start[0] == 9):
        value.start += 1
    if value.start >= value.end or value.end - value.start > MAX_VALUE:
        return False
    if value.start[0] == 32 or (value.end - 1)[0] == 32:
        return False

    byte = value.start
    while byte < value.end:
        if not (_kind[byte[0]] & VISIBLE or byte[0] == 32):
            return False
        byte += 1
    return True


cdef bint _keeps_open(Span value) noexcept nogil:
    """Return whether a Connection header has no options but ones that keep the connection open.

    These are `keep-alive`, and the two with which Java's client offers HTTP/2. Commas separate options.
    """
    cdef Span option
    while True:
        option = _until(&value, 44)
        if option.end == NULL:  # the last one
            option.end = value.end
        if not (
            _is_equal(option, b"keep-alive", 10)
            or _is_equal(option, b"upgrade", 7)
            or _is_equal(option, b"http2-settings", 14)
        ):
            return False
        if option.end == value.end:
            return True
        _skip(&value, b" ", 1)


cdef bint _read_line(Span* rest, Parsed* parsed) noexcept nogil:
    """Read the request line at the start of *rest* into *parsed*, and move behind it; return whether it is plain.

    A plain one is a GET of HTTP/1.1 of one of three routes, with an id and a query that need no decoding.
    """
    if not _skip(rest, b"GET /v1/", 8):
        return False
    if _skip(rest, b"recommendations/", 16):
        parsed.route = RECOMMENDATIONS
    elif _skip(rest, b"similar/", 8):
        parsed.route = SIMILAR_ITEMS
    elif _skip(rest, b"popular", 7):
        parsed.route = POPULAR
    else:
        return False

    parsed.identifier.start = parsed.identifier.end = NULL
    if parsed.route != POPULAR:
        parsed.identifier = _take(rest, OF_ID, MAX_ID)
        if _size(parsed.identifier) == 0:
            return False

    parsed.query.start = parsed.query.end = NULL
    if _skip(rest, b"?", 1):
        parsed.query = _take(rest, OF_QUERY, MAX_QUERY)
        if _size(parsed.query) == 0:
            return False

    # Fails, too, if a byte of another kind has ended the id or the query.
    return _skip(rest, b" HTTP/1.1\r\n", 11)


cdef bint _read_headers(Span* rest, Parsed* parsed) noexcept nogil:
    """Read the header block, which must end where *rest* ends, into `parsed.values`; return whether it is plain.

    A plain one has a Host, and only headers that the lane knows, each once and with a plain value. The headers in
    READ_HEADERS have the numbers below READ_COUNT.
    """
    cdef Span line, name
    cdef Py_ssize_t number
    cdef uint64_t seen = 0  # bit N for the header of number N, below MAX_NAMES
    for number in range(READ_COUNT):
        parsed.values[number].start = parsed.values[number].end = NULL
    if rest.end - rest.start > MAX_BYTES:
        return False

    while not _skip(rest, b"\r\n", 2):
        line = _until(rest, 13)  # \r
        if line.end == NULL or not _skip(rest, b"\n", 1):
            return False
        name = _until(&line, 58)  # a colon; `line` is the value then
        if name.end == NULL:
            return False

        number = _name_number(name)
        if number < 0 or seen >> number & 1 or not _read_value(&line):
            return False
        seen |= <uint64_t>1 << number
        if number < READ_COUNT:
            parsed.values[number] = line

    if rest.start != rest.end or not seen & 1:  # HOST
        return False
    return not seen >> CONNECTION & 1 or _keeps_open(parsed.values[CONNECTION])


cdef inline bytes _bytes(Span span):
    return PyBytes_FromStringAndSize(<const char*>span.start, span.end - span.start)


cdef inline str _text(Span span):
    """Return visible ASCII, or None for an absent part."""
    return None if span.start == NULL else _bytes(span).decode("ascii")


cdef inline bint _is_request_id(Span span) noexcept nogil:
    cdef Span rest = span
    return _size(_take(&rest, OF_REQUEST_ID, 128)) > 0 and rest.start == rest.end


# Rows ---------------------------------------------------------------------------------------------------------------

cdef const char* _base64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


cdef bint _is_whole(bytes key, Span row, object seed) except -1:
    """Return whether a row, the stored value of *key*, is as it was written, by its checksum.

    The first ROW_CHECKSUM bytes are 48 bits of the hash of key and body, in base64; *seed*, of the hash, depends on the
    release. The rest is the body.
    """
    cdef Py_ssize_t key_size = PyBytes_GET_SIZE(key)
    cdef Py_ssize_t body_size = _size(row) - ROW_CHECKSUM
    cdef bytes hashed
    cdef uint64_t expected
    cdef Output output
    cdef int place
    if body_size < ROW_HEADER - ROW_CHECKSUM:
        return False
    hashed = PyBytes_FromStringAndSize(NULL, key_size + body_size)
    output = _output(hashed)
    _put_bytes(&output, key)
    _put(&output, row.start + ROW_CHECKSUM, body_size)
    expected = xxh3_64_intdigest(hashed, seed)
    for place in range(ROW_CHECKSUM):
        if row.start[place] != <unsigned char>_base64[expected >> (58 - 6 * place) & 63]:
            return False
    return True


cdef Span _cut(Span body, Py_ssize_t n) noexcept nogil:
    """Return the first *n* items of a row's body, as `encoding.cut`.

    A body begins with four hexadecimal digits: the size in bytes of its first USUAL_CUT items, or 0 if that is above
    65,535. If they are not digits, the end is NULL. Items, JSON objects, are separated by a comma and a line feed.
    """
    cdef Span items
    cdef Py_ssize_t place, digit, offset = 0
    cdef Bytes byte
    items.start = body.start + 4
    items.end = NULL
    if body.end - body.start < 4:
        return items

    for place in range(4):
        digit = body.start[place]
        if 48 <= digit <= 57:
            digit -= 48
        elif 97 <= digit <= 102:
            digit -= 87
        else:
            return items
        offset = offset << 4 | digit

    items.end = body.end
    if n == 10 and offset:  # USUAL_CUT
        if offset < _size(items):
            items.end = items.start + offset
        return items

    # Find the separator after the last of the items.
    byte = items.start
    while byte < items.end:
        byte = <Bytes>memchr(byte, 10, items.end - byte)
        if byte == NULL:
            break
        if byte > items.start and (byte - 1)[0] == 44:  # a comma before the line feed
            n -= 1
            if n == 0:
                items.end = byte - 1
                break
        byte += 1
    return items


if USUAL_CUT != 10:
    raise ImportError("the offset of a body counts other items; change _cut with it")


# Writing ------------------------------------------------------------------------------------------------------------

# Parts of a header block, with their sizes.
cdef const char* _ID_LINE = b'"\r\nServer: hotplate\r\nX-Request-Id: '
cdef Py_ssize_t _ID_LINE_SIZE = 35
cdef const char* _TIMING_LINE = b"\r\nServer-Timing: app;dur="
cdef Py_ssize_t _TIMING_LINE_SIZE = 25
cdef const char* _LENGTH_LINE = b"Content-Length: "
cdef Py_ssize_t _LENGTH_LINE_SIZE = 16
cdef const char* _DATE_LINE = b"Date: "
cdef Py_ssize_t _DATE_LINE_SIZE = 6

cdef inline Output _output(bytes new):
    """Return the memory of a new bytes object, which only the caller has."""
    cdef Output output
    output.next = <unsigned char*>PyBytes_AS_STRING(new)
    output.end = output.next + PyBytes_GET_SIZE(new)
    return output


cdef inline int _put(Output* output, const void* source, Py_ssize_t size) except -1:
    """Copy *size* bytes of *source* to the next bytes of *output*; raise SystemError if they do not fit."""
    if size < 0 or size > output.end - output.next:
        raise SystemError("an answer is larger than was computed")
    if size:
        memcpy(output.next, source, size)
    output.next += size
    return 0


cdef inline int _put_bytes(Output* output, bytes source) except -1:
    return _put(output, PyBytes_AS_STRING(source), PyBytes_GET_SIZE(source))


cdef inline int _check_full(Output* output) except -1:
    """Raise SystemError if a byte of a new object was not written."""
    if output.next != output.end:
        raise SystemError("an answer is smaller than was computed")
    return 0


cdef inline Py_ssize_t _decimal(char* digits, uint64_t number) noexcept nogil:
    """Write a number to *digits*, which has MAX_DIGITS bytes; return how many it takes, at most 20."""
    cdef char reverse[MAX_DIGITS]
    cdef Py_ssize_t size = 0
    cdef Py_ssize_t place
    while True:
        reverse[size] = <char>(48 + number % 10)
        size += 1
        number //= 10
        if number == 0:
            break
    for place in range(size):
        digits[place] = reverse[size - 1 - place]
    return size


cdef inline Py_ssize_t _milliseconds(char* digits, double seconds) noexcept nogil:
    """Write seconds as milliseconds with three decimals to MAX_DIGITS bytes; return how many it takes."""
    cdef uint64_t microseconds = <uint64_t>(seconds * 1e6 + 0.5) if 0 < seconds < 1e9 else 0
    cdef Py_ssize_t size = _decimal(digits, microseconds // 1000)
    cdef uint32_t rest = <uint32_t>(microseconds % 1000)
    digits[size] = 46
    digits[size + 1] = <char>(48 + rest // 100)
    digits[size + 2] = <char>(48 + rest // 10 % 10)
    digits[size + 3] = <char>(48 + rest % 10)
    return size + 4


cdef inline void _hexadecimal(char* digits, uint64_t number, Py_ssize_t size) noexcept nogil:
    """Write the last *size* hexadecimal digits of a number."""
    cdef Py_ssize_t place
    for place in range(size):
        digits[place] = b"0123456789abcdef"[number >> 4 * (size - 1 - place) & 15]


cdef inline double _monotonic() noexcept nogil:
    """Return `time.monotonic()`."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


cdef inline bytes _joined(bytes first, bytes second):
    """Return `first + second`, which takes 200 instructions more by the operator."""
    cdef bytes joined = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(first) + PyBytes_GET_SIZE(second))
    cdef Output output = _output(joined)
    _put_bytes(&output, first)
    _put_bytes(&output, second)
    _check_full(&output)
    return joined


# Objects that outlive a request -------------------------------------------------------------------------------------

@cython.final
cdef class _Route:
    """A route with its cells in metrics, and the parts of its keys and bodies.

    The cells are indexes of counters and histograms: of answers with 200 and 304, and of lists that were found.
    """

    cdef Py_ssize_t place
    cdef str name
    cdef str source
    cdef str kind
    cdef bytes prefix
    cdef bytes subject
    cdef str cache
    cdef Py_ssize_t ok_cell
    cdef Py_ssize_t known_cell
    cdef Py_ssize_t hit_cell
    # That of the last answer; mostly the next one has the same.
    cdef _Template template

    def __init__(self, place, name, kind, subject, cache):
        """*kind* begins the keys of its rows; *cache* is the Cache-Control of a list from its source."""
        self.place = place
        self.name = name
        self.source = SOURCES.get(kind, "popular")
        self.kind = kind
        self.prefix = kind.encode()
        self.subject = subject
        self.cache = cache
        self.ok_cell = request_cell(name, "GET", 200)
        self.known_cell = request_cell(name, "GET", 304)
        self.hit_cell = LOOKUPS[self.source, "hit"]


@cython.final
cdef class _Query:
    """The options of a plain request: none but the number of items, and the name of a named list."""

    cdef object selection
    cdef Py_ssize_t n
    cdef str list_name

    def __init__(self, selection):
        self.selection = selection
        self.n = selection.n
        self.list_name = selection.list


@cython.final
cdef class _KnownCaller:
    """The caller of a credential that was seen before; *may_read_freely* if it may read, without a rate limit."""

    cdef object caller
    cdef str name
    cdef bint may_read_freely

    def __init__(self, caller):
        self.caller = caller
        self.name = caller.name
        self.may_read_freely = READ in caller.scopes and caller.bucket is None


@cython.final
cdef class _Template:
    """The constant bytes of answers with lists of one origin: release, source and tier."""

    cdef object release
    cdef str source
    cdef str tier
    cdef object fallback
    cdef str cache
    cdef str list_name
    # Of status 200 and of 304, up to the ETag.
    cdef bytes head
    cdef bytes head_not_modified
    # The members of the body between its subject, such as the user, and its items.
    cdef bytes list_head

    def __init__(self, encoded, str source, str cache):
        content, *others = list_headers(encoded, source, cache).items()
        first = header_lines(dict([content]))
        lines = header_lines(dict(others)) + 'ETag: "'
        self.release = encoded.release
        self.source = encoded.source
        self.tier = encoded.tier
        self.fallback = encoded.fallback
        self.cache = cache
        self.list_name = encoded.name
        self.head = f"HTTP/1.1 200 OK\r\n{first}{lines}".encode()
        self.head_not_modified = f"HTTP/1.1 304 Not Modified\r\n{lines}".encode()
        self.list_head = list_head(encoded)


@cython.final
cdef class _LocalRelease:
    """The release from which rows are read without I/O and without Python code of ours in between.

    There is one while the first tier is local, its release is not compressed, no tier has a canary, and no user is
    hidden.
    """

    cdef object tier
    cdef str tier_name
    cdef object release
    cdef object rows
    cdef object seed
    cdef list lookups
    cdef Py_ssize_t read_cell

    def __init__(self, tier, release, rows):
        """*rows* has the attribute `read`, which is loaded for each row: it changes when the file is damaged."""
        self.tier = tier
        self.tier_name = tier.name
        self.release = release
        self.rows = rows
        self.seed = Checksum(release.manifest.release).seed
        self.lookups = release.tally.lookups[""]
        self.read_cell = tier.read_cell


@cython.final
@cython.freelist(64)
cdef class _Request:
    """A plain request while it is answered."""

    cdef double started
    cdef _Route route
    cdef bytes identifier
    cdef _Query query
    cdef bytes request_id
    cdef str known
    cdef str client
    cdef object span

    cdef str text_id(self):
        return self.identifier.decode("ascii")

    cdef object row(self):
        """Return the key in the default list."""
        return RowKey(self.route.kind, self.text_id())


@cython.final
cdef class _Delivery:
    """Answers a request whose list is read by the reader, later: a `Waiter`."""

    cdef Lane lane
    cdef _Request request
    cdef object deliver

    def __call__(self, origin, row, body):
        try:
            reader = self.lane._reader
            if reader.hides_users and reader.hides(row):  # denied or erased during the read
                body = None
            answer = self.lane._answer_with_row(self.request, RowsRead(origin, [row], [body]))
        except Exception as error:
            answer = self.lane._answer_error(self.request, error)
        self.deliver(answer)


cdef class Lane:
    """The fast lane of one worker, on its loop."""

    cdef object _readiness
    cdef object _guard
    cdef object _reader
    cdef object _lookups
    cdef object _shaper
    cdef object _deny_list
    # By the hash of a user, until when items are hidden; of size 0 if none ever are.
    cdef const uint32_t[::1] _hidden_until
    cdef object _access_log
    cdef object _tracer
    cdef object _writer
    cdef tuple _routes
    cdef bytes _vary
    # The generation of policies of which the attributes until `_templates` are; `_renew` sets them all.
    cdef object _generation
    cdef bint _is_draining
    # Whether a tier has a canary, whose lookups are counted by role.
    cdef bint _has_canary
    # Whether a list may lose denied items.
    cdef bint _denies_items
    # Whether a list may lose items with time.
    cdef bint _has_expiries
    # The last release of which a list may lose items, and when an item of it leaves.
    cdef object _expiring
    cdef object _expiry
    # Where rows are read without the reader; None if it must read them.
    cdef _LocalRelease _local
    # Whether each row of the default list needs I/O, so that the reader need not be asked before.
    cdef bint _needs_io
    # Callers by the value of X-API-Key and of Authorization.
    cdef dict _by_key
    cdef dict _by_authorization
    cdef _KnownCaller _anonymous
    cdef dict _templates
    cdef dict _queries
    # Counters of this worker, in memory that all share.
    cdef double[::1] _cells
    cdef bytes _id_prefix
    cdef uint64_t _id_count
    cdef bytes _date
    cdef double _date_until

    def __init__(self, *, reader, guard, shaper, consumed, readiness, shared_cache, writer, access_log, tracer):
        """Share objects with the aiohttp handlers. What is kept of them must be constant or a `generation.Policy`."""
        self._readiness = readiness
        self._guard = guard
        self._reader = reader
        self._lookups = reader.lookups
        self._shaper = shaper
        self._deny_list = reader.deny_list
        self._hidden_until = array("I") if consumed is None else consumed.hidden_until
        self._access_log = access_log
        self._tracer = tracer
        self._writer = writer
        self._routes = (
            _Route(RECOMMENDATIONS, USER_PATH, USER, b'{"user":"', PRIVATE),
            _Route(SIMILAR_ITEMS, ITEM_PATH, ITEM, b'{"item":"', shared_cache),
            _Route(POPULAR, POPULAR_PATH, "", b"{", shared_cache),
        )
        self._vary = writer.vary.encode()
        self._generation = None
        self._queries = {}
        self._cells = writer.metrics.own_cells
        self._id_prefix = token_hex(6).encode()
        self._id_count = 0
        self._date = b""
        self._date_until = -inf

    def answer(self, data, double now, deliver):
        """Return the answer to a request that arrived at *now* (`time.monotonic`); None if it is not plain.

        PENDING if a store is read first: *deliver* gets the answer later.
        """
        cdef Py_buffer view
        cdef Parsed parsed
        cdef Span rest
        if POLICIES.number is not self._generation:
            self._renew()
        if self._is_draining:
            return None
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            rest.start = <Bytes>view.buf
            rest.end = rest.start + view.len
            if not _read_line(&rest, &parsed) or not _read_headers(&rest, &parsed):
                return None
            return self._answer(&parsed, now, deliver)
        finally:
            PyBuffer_Release(&view)

    cdef int _renew(self) except -1:
        """Set what is kept of the policies, such as keys, the deny-list and the followed releases, of a new generation.

        There is a `_local` if rows of the default list can be read here: the first tier (store) is local and its
        release is not compressed, there is no canary, and no user is hidden.
        """
        tiers = self._reader.tiers
        generation = POLICIES.number  # first: a change meanwhile, by another thread, is another generation

        hides_users = self._reader.hides_users
        self._is_draining = self._readiness.draining
        self._has_canary = any(tier.follower.canary is not None for tier in tiers)
        self._has_expiries = any(release.filters.has_expiries for tier in tiers for release in tier.follower.releases)
        self._expiring = None
        self._denies_items = bool(self._deny_list.current.items)
        self._by_key = {}
        self._by_authorization = {}
        self._anonymous = _KnownCaller(self._guard.anonymous)
        self._templates = {}
        for route in self._routes:
            (<_Route>route).template = None

        self._local = None
        self._needs_io = False
        first = tiers[0]
        release = first.follower.live
        if release is not None and not self._has_canary and not hides_users:
            rows = first.local_rows(release)
            if rows is not None and release.manifest.encoding == PLAIN:
                self._local = _LocalRelease(first, release, rows)
            self._needs_io = first.needs_io

        self._generation = generation  # last: after an exception, the next request calls this again
        return 0

    cdef object _answer(self, Parsed* parsed, double now, object deliver):
        """Answer a plain request like `answer`: check its query and its caller, then read the list.

        Returns the answer, PENDING if *deliver* gets it later, or None if aiohttp has to answer.
        """
        cdef _Request request
        cdef _KnownCaller caller
        cdef object answer
        cdef _Query query = self._query(parsed.query)
        if query is None:
            return None
        request = _Request.__new__(_Request)
        request.started = now
        request.route = <_Route>self._routes[parsed.route]
        request.query = query
        request.identifier = b"" if parsed.identifier.start == NULL else _bytes(parsed.identifier)
        request.request_id = _bytes(parsed.values[REQUEST_ID]) if _is_request_id(parsed.values[REQUEST_ID]) else None
        request.known = _text(parsed.values[KNOWN])
        if self._tracer is not None:
            request.span = self._tracer.begin(_text(parsed.values[TRACEPARENT]), _text(parsed.values[TRACESTATE]))

        try:
            caller = self._caller_of(parsed.values[API_KEY], parsed.values[AUTHORIZATION])
            if caller is None:
                return None
            if not caller.may_read_freely:
                self._guard.charge(caller.caller, READ)
        except Problem as problem:
            return self._refuse(request, problem)
        request.client = caller.name

        try:
            if self._local is not None and parsed.route != POPULAR and not request.query.list_name:
                answer = self._answer_from_local(request)
                if answer is not None:
                    return answer
            return self._answer_by_reader(request, deliver)
        except Exception as error:
            return self._answer_error(request, error)

    cdef _Query _query(self, Span span):
        """Return the parameters of a query string; None if it is invalid, or has others than `n` and `list`.

        Those of the last query strings are remembered.
        """
        cdef object query
        cdef bytes raw
        if span.start == NULL:
            return _WITHOUT_QUERY
        raw = _bytes(span)
        query = self._queries.get(raw)
        if query is not None:
            return <_Query>query

        try:
            selection = _parse(raw.decode("ascii"))
        except Problem:
            return None  # aiohttp's handler answers it
        if selection != PagedSelection(n=selection.n, list=selection.list):
            return None

        if len(self._queries) >= MAX_REMEMBERED:
            self._queries.clear()
        query = _Query(selection)
        self._queries[raw] = query
        return <_Query>query

    cdef _KnownCaller _caller_of(self, Span key, Span authorization):
        """Return the caller, by the values of X-API-Key and Authorization; None for a token that must be verified.

        The callers of the last values are remembered. Raises Problem for an unknown key.
        """
        cdef object known
        cdef dict table
        cdef bytes raw
        if key.start != NULL:
            raw = _bytes(key)
            table = self._by_key
        elif authorization.start != NULL:
            raw = _bytes(authorization)
            table = self._by_authorization
        else:
            return self._anonymous

        known = table.get(raw)
        if known is not None:
            return <_KnownCaller>known

        credential = raw.decode("ascii") if key.start != NULL else bearer(raw.decode("ascii"))
        caller = self._guard.caller(credential)
        if not isinstance(caller, Caller):
            return None

        if len(table) >= MAX_REMEMBERED:
            table.clear()
        known = _KnownCaller(caller)
        table[raw] = known
        return <_KnownCaller>known

    # Lists that this module reads, or finishes, itself: of the default list, without a canary --------------------------

    cdef object _answer_from_local(self, _Request request):
        """Answer with a list of `_local`, a local release, or with the fallback; None if it cannot be read in this way.

        Then the reader reads it, which also reports what is wrong with it.
        """
        cdef _LocalRelease local = self._local
        cdef Py_buffer view
        cdef Span row
        cdef double started = _monotonic()
        cdef bytes key = _joined(request.route.prefix, request.identifier)
        cdef object value
        try:
            value = local.rows.read(key)
        except Exception:
            log.debug("a row could not be read, and is read again by the reader", exc_info=True)
            return None
        if value is None:
            return self._answer_missed(request, local, started)

        PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
        try:
            row.start = <Bytes>view.buf
            row.end = row.start + view.len
            if not _is_whole(key, row, local.seed):
                return None
            if _size(row) == ROW_HEADER:  # an empty list
                return self._answer_missed(request, local, started)
            row.start += ROW_CHECKSUM
            self._observe(local.read_cell, _monotonic() - started)
            return self._answer_hit(request, local.tier_name, local.release, local.lookups, row)
        finally:
            PyBuffer_Release(&view)

    cdef object _answer_missed(self, _Request request, _LocalRelease local, double started):
        """Answer from the tiers (stores) after that of `_local`, which lacks the row or has an empty list.

        None if they need I/O. *started* is when the row was looked up, by `_monotonic`.
        """
        self._observe(local.read_cell, _monotonic() - started)
        read = self._reader.row_nowait(request.row(), Origin(local.tier, local.release))
        return None if read is None else self._answer_with_row(request, read)

    cdef object _answer_hit(self, _Request request, str tier, object release, list lookups, Span opened):
        """Count a list that was read for a user or an item, and answer with it.

        *lookups* are the counters of the release by outcome, and *opened* is the body of the row: an offset, then the
        items. None if the offset is damaged.
        """
        cdef _Route route = request.route
        cdef Span items = _cut(opened, request.query.n)
        if items.end == NULL:
            return None
        self._cells[route.hit_cell] += 1
        lookups[HIT] += 1
        if self._must_shape(request) or (self._has_expiries and self._may_expire(route, release, items)):
            return self._finish(request, EncodedList(tier, release, route.source, _bytes(opened), "ok", EVERYBODY))
        return self._write(request, self._template(route, release, route.source, tier, EVERYBODY, route.cache), items)

    # By the reader: other stores, canaries, hidden users, named lists ------------------------------------------------

    cdef object _answer_by_reader(self, _Request request, object deliver):
        """Answer with a list of the reader, now if that needs no I/O; otherwise return PENDING.

        Then the row is read together with others that are requested in this iteration of the event loop, and *deliver*
        is called with the answer.
        """
        cdef _Route route = request.route
        cdef _Delivery delivery
        if route.place == POPULAR:
            return self._finish(request, self._reader.popular(OVERALL, request.query.list_name))

        if request.query.list_name:
            row = self._reader.row_of(route.kind, request.text_id(), request.query.list_name)
        else:
            row = request.row()

        if not self._needs_io or request.query.list_name:
            read = self._reader.row_nowait(row)
            if read is not None:
                return self._answer_with_row(request, read)

        delivery = _Delivery.__new__(_Delivery)
        delivery.lane = self
        delivery.request = request
        delivery.deliver = deliver
        if request.span is None:
            self._lookups.add(row, delivery)
        else:
            with use_span(request.span):
                self._lookups.add(row, delivery)
        return PENDING

    cdef object _answer_with_row(self, _Request request, object read):
        """Return the answer with the result of reading one row, and count it; a list is the row after its checksum."""
        cdef Py_buffer view
        cdef Span opened
        cdef object origin
        cdef object release
        cdef object answer
        cdef object body = read.results[0]
        if POLICIES.number is not self._generation:
            self._renew()
        if body is None or self._has_canary or request.query.list_name:
            lists = self._reader.lists_of(read, OVERALL, request.query.list_name)
            return self._finish(request, lists[read.rows[0].id])

        origin = read.origin
        release = origin.release
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        try:
            opened.start = <Bytes>view.buf
            opened.end = opened.start + view.len
            answer = self._answer_hit(request, origin.tier.name, release, release.tally.lookups[""], opened)
        finally:
            PyBuffer_Release(&view)
        if answer is None:
            raise ValueError("the offset of a list is not a number")
        return answer

    cdef bint _must_shape(self, _Request request) except -1:
        """Return whether a user's or an item's list may lose items: denied ones, or those that the user has consumed.

        `_hidden_until` has, by the hash of a user, the Unix time until which items are hidden; 0 if none are.
        """
        cdef uint32_t until
        cdef Py_ssize_t users = self._hidden_until.shape[0]
        if self._denies_items:
            return True
        if users == 0 or request.route.place != RECOMMENDATIONS:
            return False
        until = self._hidden_until[<uint64_t>xxh3_64_intdigest(request.identifier) % <uint64_t>users]
        return until != 0 and until > time()

    cdef bint _may_expire(self, _Route route, object release, Span items) except -1:
        """Return whether one of the items has left all lists, or leaves them while a cache may keep the answer.

        True, too, if an item does not begin with its id, so that it cannot be told.
        """
        cdef double until = time() + (0 if route.place == RECOMMENDATIONS else MAX_AGE_S)
        cdef object expiry
        cdef Span identifier
        if release is not self._expiring:
            self._expiring = release
            self._expiry = release.filters.under(self._deny_list.current.overrides).expiry
        expiry = self._expiry
        if expiry is None:
            return False
        while items.start < items.end:
            if not _skip(&items, b'{"id":', 6):
                return True
            identifier = _take_text(&items)
            if identifier.end == NULL or <double>expiry(_bytes(identifier)) <= until:
                return True
            _until(&items, 10)  # the line feed between items
            if items.start == identifier.end:  # after the last one
                return False
        return False

    cdef object _finish(self, _Request request, object encoded):
        """Shape a list (leave out items that must not be shown, and cut it), and answer with it."""
        cdef _Route route = request.route
        cdef Py_buffer view
        cdef Span items
        cdef _Template template
        cdef object cache = route.cache
        if route.place == RECOMMENDATIONS:
            body = self._shaper.shape(encoded, request.query.selection, user=request.text_id())
        elif route.place == SIMILAR_ITEMS:
            body = self._shaper.shape(encoded, request.query.selection, beside=(request.text_id(),))
        else:
            body = self._shaper.shape(encoded, request.query.selection)

        if self._has_expiries and route.place != RECOMMENDATIONS and not self._shaper.may_be_kept(encoded.release, body):
            cache = NO_STORE
        template = self._template(route, encoded.release, encoded.source, encoded.tier, encoded.fallback, cache)
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        try:
            items.start = <Bytes>view.buf
            items.end = items.start + view.len
            return self._write(request, template, items)
        finally:
            PyBuffer_Release(&view)

    cdef _Template _template(self, _Route route, object release, str source, str tier, object fallback, object cache):
        """Return the template of answers with lists of this origin, and this Cache-Control."""
        cdef _Template last = route.template
        cdef object key
        cdef object template
        if (
            last is not None
            and last.release is release
            and last.source is source
            and last.tier is tier
            and last.fallback is fallback
            and last.cache is cache
        ):
            return last

        key = (route.place, release.load_id, release.is_canary, source, tier, fallback, cache)
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= MAX_TEMPLATES:
                self._templates.clear()
            encoded = EncodedList(tier, release, source, NO_OFFSET, "ok", fallback)
            template = _Template(encoded, route.source, cache)
            self._templates[key] = template
        route.template = <_Template>template
        return <_Template>template

    # Answers -------------------------------------------------------------------------------------------------------

    cdef object _write(self, _Request request, _Template template, Span items):
        """Return the answer with these items, or 304 if the caller has it already (`If-None-Match`), and count it."""
        cdef _Route route = request.route
        cdef bytes body = self._body(request, template, items)
        cdef bytes head = template.head
        cdef Py_ssize_t cell = route.ok_cell
        cdef int status = 200
        cdef double took_s
        cdef char etag[ETAG]
        _hexadecimal(etag, xxh3_64_intdigest(body), ETAG)
        if request.known is not None:
            tag = PyBytes_FromStringAndSize(etag, ETAG).decode("ascii")
            if is_known(f'"{tag}"', request.known):
                status = 304
                cell = route.known_cell
                head = template.head_not_modified
                body = None

        took_s = self._report(request, status, cell, 0 if body is None else PyBytes_GET_SIZE(body), template, items)
        return self._join(head, etag, request.request_id, took_s, body)

    cdef double _report(
        self, _Request request, int status, Py_ssize_t cell, Py_ssize_t size, _Template template, Span items
    ) except? -1:
        """Count an answer, log it, and end its span; return the seconds since the request arrived.

        *cell* is its histogram, *size* that of its body. *template* and *items* are those of its list; a refusal has
        the template None. Gives the request an id if it has none.
        """
        cdef double took_s = _monotonic() - request.started
        cdef object sampled_log = None
        cdef object origin = None
        cdef str user = None
        if request.request_id is None:
            request.request_id = self._new_request_id()
        self._observe(cell, took_s)
        if self._access_log is not None:
            sampled_log = self._access_log.sampled()
        if sampled_log is not None or request.span is not None:
            if template is not None:
                release = template.release.id
                origin = ListOrigin(release, template.source, template.tier, _bytes(items), template.list_name)
                if request.route.place == RECOMMENDATIONS:
                    user = request.text_id()
            record = RequestRecord(
                route=request.route.name,
                method="GET",
                status=status,
                took_s=took_s,
                size=size,
                request_id=request.request_id.decode("ascii"),
                client=request.client,
                user=user,
                list_origin=origin,
            )
            report(record, sampled_log, request.span)
        return took_s

    cdef bytes _body(self, _Request request, _Template template, Span items):
        """Return the body of an answer: an object with the subject, the members of the template, and the items."""
        cdef bytes subject = request.route.subject
        cdef bytes identifier = request.identifier
        cdef Py_ssize_t quote = 2 if identifier else 0
        cdef bytes body = PyBytes_FromStringAndSize(
            NULL,
            PyBytes_GET_SIZE(subject)
            + PyBytes_GET_SIZE(identifier)
            + quote
            + PyBytes_GET_SIZE(template.list_head)
            + _size(items)
            + 2,
        )
        cdef Output output = _output(body)
        _put_bytes(&output, subject)
        _put_bytes(&output, identifier)
        _put(&output, b'",', quote)
        _put_bytes(&output, template.list_head)
        _put(&output, items.start, _size(items))
        _put(&output, b"]}", 2)
        _check_full(&output)
        return body

    cdef bytes _join(self, bytes head, char* etag, bytes request_id, double took_s, bytes body):
        """Return a whole answer: header block and body, in an object of the exact size.

        *head* is the header block up to the value of the ETag. Without a *body*, there is no Content-Length.
        """
        cdef char duration[MAX_DIGITS]
        cdef Py_ssize_t duration_size = _milliseconds(duration, took_s)
        cdef char length[MAX_DIGITS]
        cdef Py_ssize_t length_size = 0
        cdef Py_ssize_t body_size = 0
        cdef bytes date = self._date_now()
        cdef bytes answer
        cdef Output output
        if body is not None:
            body_size = PyBytes_GET_SIZE(body)
            length_size = _decimal(length, body_size)

        answer = PyBytes_FromStringAndSize(
            NULL,
            PyBytes_GET_SIZE(head) + ETAG + _ID_LINE_SIZE + PyBytes_GET_SIZE(request_id) + _TIMING_LINE_SIZE + duration_size
            + 2 + PyBytes_GET_SIZE(self._vary) + (0 if body is None else _LENGTH_LINE_SIZE + length_size + 2)
            + _DATE_LINE_SIZE + PyBytes_GET_SIZE(date) + 4 + body_size,
        )
        output = _output(answer)
        _put_bytes(&output, head)
        _put(&output, etag, ETAG)
        _put(&output, _ID_LINE, _ID_LINE_SIZE)
        _put_bytes(&output, request_id)
        _put(&output, _TIMING_LINE, _TIMING_LINE_SIZE)
        _put(&output, duration, duration_size)
        _put(&output, b"\r\n", 2)
        _put_bytes(&output, self._vary)
        if body is not None:
            _put(&output, _LENGTH_LINE, _LENGTH_LINE_SIZE)
            _put(&output, length, length_size)
            _put(&output, b"\r\n", 2)
        _put(&output, _DATE_LINE, _DATE_LINE_SIZE)
        _put_bytes(&output, date)
        _put(&output, b"\r\n\r\n", 4)
        if body is not None:
            _put_bytes(&output, body)
        _check_full(&output)
        return answer

    cdef bytes _date_now(self):
        """Return the value of the Date header, which is made once a second."""
        cdef double now = _monotonic()
        if now >= self._date_until:
            self._date = formatdate(usegmt=True).encode()
            self._date_until = now + 1 - time() % 1
        return self._date

    cdef bytes _new_request_id(self):
        """Return an id like those of `RequestIds`, whose random beginning differs."""
        cdef char digits[8]
        if self._id_count >= MAX_IDS:
            self._id_prefix = token_hex(6).encode()
            self._id_count = 0
        self._id_count += 1
        _hexadecimal(digits, self._id_count, 8)
        return self._id_prefix + PyBytes_FromStringAndSize(digits, 8)

    cdef int _observe(self, Py_ssize_t cell, double seconds) except -1:
        """Count a time in the histogram that begins at *cell*, as `Metrics.observe`."""
        cdef Py_ssize_t bucket = 0
        while bucket < _bucket_count and seconds > _buckets[bucket]:
            bucket += 1
        self._cells[cell + bucket] += 1
        self._cells[cell + _bucket_count + 1] += seconds
        return 0

    cdef object _answer_error(self, _Request request, object error):
        """Answer with the problem of an error; others than NotReady and UnknownList are defects, and logged."""
        if isinstance(error, (NotReady, UnknownList)):
            return self._refuse(request, problem_of(error, PROBLEMS))
        if request.request_id is None:
            request.request_id = self._new_request_id()
        request_id = request.request_id.decode("ascii")
        log.error("request %s failed", request_id, exc_info=error)
        return self._refuse(request, internal_error(request_id))

    cdef object _refuse(self, _Request request, object problem):
        """Return a problem as the answer, and count it."""
        cdef Span no_items
        cell = request_cell(request.route.name, "GET", problem.status)
        no_items.start = no_items.end = NULL
        cdef double took_s = self._report(request, problem.status, cell, len(problem.body), None, no_items)
        return self._writer.write_problem(problem, request.request_id.decode("ascii"), took_s)


if HISTOGRAM_CELLS != len(BUCKETS_S) + 2:
    raise ImportError("the layout of histograms has changed; change Lane._observe with it")

cdef _Query _WITHOUT_QUERY = _Query(PagedSelection())
