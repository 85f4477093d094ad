"""Requests as bytes: plain, unusual and malformed ones, drawn at random."""

import re
from collections.abc import Sequence
from itertools import accumulate
from random import Random

from hotplate.serve.connections.headers import IGNORED, READ

HOST = b"Host: shop\r\n"
GET = b"GET /v1/recommendations/1 HTTP/1.1\r\n" + HOST + b"\r\n"
REAL = (
    b"GET /v1/recommendations/2?n=3 HTTP/1.1\r\nHost: recommend.internal:8080\r\nUser-Agent: python-httpx/0.28\r\n"
    b"Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"X-Forwarded-For: 10.1.2.3, 10.1.2.4\r\n"
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nX-Request-Id: page-17/2\r\n\r\n"
)
# X-Request-Timeout-Ms is not among them: 5 ms may be over in one server, and not yet in the other.
NAMES = [way for name in (*READ, *IGNORED) for way in (name, name.lower(), name.title(), name.swapcase())] + [
    "Content-Length", "Transfer-Encoding", "Expect", "Upgrade", "TE", "Trailer", "Range", "Origin",
    "If-Modified-Since", "If-Match", "Keep-Alive", "HTTP2-Settings", "Content-Encoding",
    "X-Other", "Connection", "Connection", "Content-Length", "Transfer-Encoding", "",
]  # fmt: skip
# Headers as clients and proxies send them.
PLAIN = [
    ("Accept", "application/json"), ("Accept", "*/*"), ("Connection", "keep-alive"), ("User-Agent", "httpx/0.28"),
    ("accept-encoding", "gzip, deflate, br"), ("X-Forwarded-For", "10.1.2.3"), ("X-Request-Id", "page-17/2"),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("Cookie", "a=b; c=d"),
    ("X-Request-Id", "not an id"), ("If-None-Match", '"x"'), ("Authorization", "Bearer abc"),
]  # fmt: skip
VALUES = [
    "", " ", "x", "keep-alive", "close", "Keep-Alive", "upgrade", "keep-alive, upgrade", "Upgrade, HTTP2-Settings",
    "upgrade, close", "upgrade,", "upgrade,keep-alive", "websocket", "0", "5", "+5", "0, 0",
    "chunked", "gzip, chunked", "chunked, identity", "100-continue", "h2c", "*/*", "application/json", "text/csv",
    "application/json;q=0", "text/html,*/*;q=0.8", "*", '"x"', 'W/"x", "y"', "https://shop.example", "Bearer abc",
    "Basic abc", "bearer", "a-good-id", "a bad id", "ü", "a\tb", "a\x01b", "a\x7fb", "a\x00b", "a\rb", "a\nb",
    "x" * 1023, "x" * 1025, "x" * 9000, "1000", "soon", "bytes=0-1", "10.0.0.1, 10.0.0.2",
]  # fmt: skip
COLONS = [":", ":  ", " : ", ":\t", "", ": \t", "::"]
ENDS = ["\n", "\r", " \r\n", "\r\n ", "\r\n\t", "\x00\r\n"]
USER = "/v1/recommendations/"
TARGETS = [f"{USER}1", f"{USER}2?n=3", "/v1/popular", "/v1/similar/1", f"{USER}2?list=basket"] * 12 + [
    f"{USER}1", f"{USER}1?n=5", f"{USER}nobody", f"{USER}empty", f"{USER}1?n=999", f"{USER}1?n=1000",
    f"{USER}1?n=1001", f"{USER}1?n=0", f"{USER}1?n=05", f"{USER}1?n=5&n=6", f"{USER}1?m=5", f"{USER}1?", f"{USER}1#x",
    f"{USER}..", f"{USER}.", USER, f"{USER}1/", f"{USER}/1", f"{USER}%31", f"{USER}a%20b", f"{USER}a b", f"{USER}ü",
    f"{USER}{'u' * 128}", f"{USER}{'u' * 257}", f"{USER}a.b@c:d~e_f-g", "http://shop/v1/recommendations/1", "*",
    "/v1/popular", "/v1/popular?n=3", "/v1/popular/", "/v1/popular/1", "/v1/popularity", "/livez",
    "/v1/similar/1", "/v1/similar/1?n=2", "/v1/similar/nothing", "/v1/similar/", "/v1/similar/../recommendations/1",
    "//v1/recommendations/1", f"{USER}1?segment=fr", f"{USER}1?n=5%00", f"{USER}1;n=5", f"{USER}1&n=5",
    f"{USER}1?n=\xb2", f"{USER}1?list=basket&n=2", f"{USER}2?n=2&list=basket", "/v1/popular?list=basket",
    f"{USER}1?list=", f"{USER}1?list=nothing", "/v1/popular?list=nothing", f"{USER}1?list=basket&list=basket",
    "/v1/similar/1?list=basket", f"{USER}1?list=bas%6bet",
    f"{USER}1?list=basket&where=", f"{USER}1?n=1&n=2&list=basket", f"{USER}1?fields=id",
]  # fmt: skip
METHODS = ["HEAD", "POST", "get", "GET ", "OPTIONS", "G", "\r\nGET", "\nGET", " GET"]
VERSIONS = ["HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ", "http/1.1", "HTTP/1.10", "HTTP/1.01", ""]
HOSTS = ["", "Host:\r\n", "host: a b\r\n", "Host: a/b\r\n", "HOST: x:y\r\n", "Host : x\r\n"]
BODIES = ["{}", "0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", GET.decode(), "GET ", "\r\n"]
# Known differences between servers: two readings of the end of a request, or of its meaning.
LINE = b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\n"
CORPUS = [
    GET,
    REAL,
    LINE + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
    LINE + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + GET,
    LINE + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + GET,
    LINE + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + GET,
    LINE + b" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
    LINE + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello" + GET,
    LINE + b"Content-Length: 49\r\n\r\n" + GET + GET,
    LINE + b"X-Forwarded-For: 1\r\n folded: 2\r\n\r\n" + GET,
    b"GET /v1/recommendations/1 HTTP/1.1\nHost: a\n\n" + GET,
    b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: a\n\r\n" + GET,
    b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\rContent-Length: 5\r\n\r\nhello",
    LINE + b"Host: b\r\n\r\n",
    b"GET /v1/recommendations/1 HTTP/1.1\r\nhost: a\r\nHost: a\r\n\r\n",
    b"GET /v1/recommendations/1 HTTP/1.1\r\n\r\n",
    b"GET /v1/recommendations/1 HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n" + GET,
    LINE + b"Connection: close\r\n\r\n" + GET,
    LINE + b"Connection: keep-alive, close\r\n\r\n" + GET,
    LINE + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + GET,
    LINE + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n\r\n" + GET,
    LINE + b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n" + GET,
    LINE + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}" + GET,
    LINE + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + GET,
    LINE + b"Expect: 100-continue\r\n\r\n" + GET,
    b'POST /v1/recommendations HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\n{"users":["1"]}' + GET,
    b'POST /score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n{"data":["1"]}\r\n0\r\n\r\n' + GET,
    b"HEAD /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"GET http://a/v1/recommendations/1 HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"GET http://b/v1/recommendations/1?n=2 HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"GET /v1/recommendations/%31 HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"GET /v1/recommendations/%zz HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"GET /v1/recommendations/%00 HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"GET /v1/recommendations/1%2e%2e HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"GET /v1/../v1/recommendations/1 HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"GET /v1/recommendations/1\xc2\xa0 HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + GET,
    b"\x16\x03\x01\x02\x00" + GET,
    b"GET /v1/recommendations/1 HTTP/1.1\r\nAccept: */*\r\n\r\n",
    GET + b"GET ",
    GET + GET[:-1],
    GET[:-2] + b"X-Request-Id: not an id\r\n\r\n",
    GET[:-2] + b"Accept: text/html\r\n\r\n",
    GET[:-2] + b"If-None-Match: \r\n\r\n",
    GET + b"\r\n\r\n" + GET,
    b"\r\n" + GET,
]  # fmt: skip


# A request with headers or whole requests in its body, to detect servers that parse a body as headers.
END = b"\r\n\r\n"
BODY = b'{"users":["1"]}' + END + b"GET /v1/popular HTTP/1.1\r\nX: "


def post(path: bytes, body: bytes, *, chunked: bool = False) -> bytes:
    """Write a request with a body."""
    line = b"POST %b HTTP/1.1\r\nHost: shop\r\n" % path
    if not chunked:
        return line + b"Content-Length: %d" % len(body) + END + body
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 16]), body[at : at + 16]) for at in range(0, len(body), 16))
    return line + b"Transfer-Encoding: chunked" + END + chunks + b"0" + END


POSTS = [
    post(path, body, chunked=chunked)
    for path in (b"/v1/recommendations", b"/score", b"/livez", b"/v1/recommendations/1", b"/nothing")
    for body in (b'{"users":["1"]}', b'{"data":["1"]}' + END, END, BODY, END + GET, GET + END + b"GET ")
    for chunked in (False, True)
]
_BEHIND = (GET, REAL, b"", GET + POSTS[0], POSTS[1] + GET)
CORPUS += [post + two for post, two in zip(POSTS[::7], _BEHIND * 2, strict=False)]

# Requests with an end that servers have found in two places: framing headers, and a body.
SECRET = b"GET /v1/recommendations/2 HTTP/1.1\r\nHost: a\r\n\r\n"
_CHUNKED = b"0\r\n\r\n" + SECRET
_COUNTED = b"Content-Length: %d" % len(_CHUNKED)
AMBIGUOUS = [
    (headers, _CHUNKED)
    for headers in (
        _COUNTED + b"\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\n" + _COUNTED,
        _COUNTED + b"\r\nTransfer-Encoding: Chunked",
        _COUNTED + b"\r\nTransfer-Encoding: identity, chunked",
        _COUNTED + b"\r\nTransfer-Encoding: chunked, identity",
        _COUNTED + b"\r\nTransfer-Encoding : chunked",
        _COUNTED + b"\r\nTransfer-Encoding:\x0bchunked",
        _COUNTED + b"\r\nTransfer-Encoding:\x0cchunked",
        _COUNTED + b"\r\nTransfer-Encoding: \x00chunked",
        _COUNTED + b"\r\n Transfer-Encoding: chunked",
        _COUNTED + b"\r\nTransfer-Encoding:\r\n chunked",
        _COUNTED + b"\r\nTransfer-Encoding\r\n : chunked",
        _COUNTED + b"\r\nX: y\rTransfer-Encoding: chunked",
        _COUNTED + b"\r\nX: y\nTransfer-Encoding: chunked",
        _COUNTED + b"\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding: identity\r\n" + _COUNTED,
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunkedx",
        b"Transfer-Encoding: 'chunked'",
        b"Transfer-Encoding: chunked, chunked",
        b"Content-Length: 5\r\n" + _COUNTED,
        b"Content-Length: 5, %d" % len(_CHUNKED),
        b"Content-Length: +5",
        b"Content-Length: -5",
        b"Content-Length: 0x5",
        b"Content-Length: 5 5",
        b"Content-Length: 99999999999999999999",
    )
] + [
    (b"Transfer-Encoding: chunked", chunks + SECRET)
    for chunks in (
        b"0x0\r\n\r\n",
        b"-0\r\n\r\n",
        b"0\n\n",
        b"0\r\r\n\n",
        b"1\r\naX0\r\n\r\n",
        b"10000000000000000\r\n",
    )
]
# Lines with which such requests are sent, and of offers that change nothing.
METHOD_LINES = (
    b"GET /v1/popular HTTP/1.1\r\nHost: a\r\n",
    b"POST /v1/recommendations HTTP/1.1\r\nHost: a\r\n",
    b"POST /score HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
)


def request(random: Random) -> bytes:
    """Draw a request, or something like one: plain but for a share of its parts, which is drawn, too."""
    odd = random.choice((0.01, 0.05, 0.2))

    def pick(usual: str, odd_ones: Sequence[str]) -> str:
        return random.choice(odd_ones) if random.random() < odd else usual

    target = random.choice(TARGETS)
    line = f"{pick('GET', METHODS)}{pick(' ', ['  ', chr(9), ''])}{target} {pick('HTTP/1.1', VERSIONS)}"
    parts = [line, pick("\r\n", ["\n", "\r\n\r\n", "\r\n "]), pick("Host: shop\r\n", HOSTS)]
    for _ in range(random.randrange(6)):
        name, value = random.choice(PLAIN if random.random() > odd else [(random.choice(NAMES), _value(random))])
        parts += [name, pick(": ", COLONS), value, pick("\r\n", ENDS)]
    return "".join((*parts, "\r\n", pick("", BODIES))).encode("latin-1", "replace")


def _value(random: Random) -> str:
    """Draw what a header says."""
    if random.randrange(8):
        return random.choice(VALUES)
    return "".join(chr(random.randrange(256)) for _ in range(random.randrange(8)))


def pieces(random: Random, known: Sequence[bytes] = ()) -> list[bytes]:
    """Draw some requests, as the pieces in which they come; at times requests that are *known* to be the lane's.

    Between two pieces time passes, and more of it if there are empty ones between.
    """
    whole = [
        random.choice(POSTS if random.randrange(3) else (GET, REAL, *known)) if random.randrange(2) else request(random)
        for _ in range(random.randrange(1, 5))
    ]
    if not random.randrange(3):
        return whole
    joined = b"".join(whole)
    lines = [match.start() + random.randrange(5) for match in re.finditer(b"\r\n", joined)]
    starts = [0, *accumulate(map(len, whole))]
    places = (range(len(joined) + 1), lines or [0], starts)
    cuts = sorted(min(len(joined), random.choice(random.choice(places))) for _ in range(random.randrange(6)))
    cut = [piece for start, end in zip([0, *cuts], [*cuts, len(joined)], strict=True) if (piece := joined[start:end])]
    wait = [b""] * random.choice((0, 4, 12))
    return [sent for piece in cut for sent in (piece, *(wait if random.randrange(2) else ()))]
