"""Text that cannot be encoded, in any part of a request: it is refused or ignored, never an internal error."""

import re
import socket
from collections.abc import Iterator

import pytest

from tests.support.service import Service, a_list, published, running

ODD = (b"\xff", b"http://\xff", b"\xed\xa0\x80", b"a\xffb", b"\xc3\xa9", b"[\xff", b"http://[")
PATHS = (
    b"GET /v1/recommendations/%b", b"GET /v1/recommendations/1?list=%b", b"GET /v1/recommendations/1?%b=1",
    b"GET /v1/recommendations/1?exclude=%b", b"GET /v1/recommendations/1?where=%b", b"GET /v1/similar/%b",
    b"GET /v1/popular?segment=%b", b"GET /%b", b"GET /docs/%b", b"POST /v1/events?%b", b"POST /score?%b", b"%b /livez",
    b"GET http://%b/livez",
)  # fmt: skip
ADMIN_PATHS = (
    b"GET /console/%b", b"GET /console/user?id=%b", b"GET /console/state?after=%b", b"POST /console/keys?name=%b",
    b"POST /console/keys/revoke?name=%b", b"POST /v1/releases/%b/activate", b"POST /v1/releases/%b/canary?percent=1",
    b"POST /v1/releases/rollback?if_live=%b", b"GET /%b",
)  # fmt: skip
HEADERS = (
    "Accept", "Access-Control-Request-Headers", "Access-Control-Request-Method", "Authorization", "Content-Encoding",
    "Content-Type", "Cookie", "Expect", "If-None-Match", "Origin", "Range", "traceparent", "tracestate", "Upgrade",
    "User-Agent", "X-API-Key", "X-Forwarded-For", "X-Request-Id", "X-Request-Timeout-Ms",
)  # fmt: skip
EVENT = b'{"events":[{"type":"click","user":"1","items":["a"]}]}'
BATCH = b'{"users":["1"]}'
BODIES = (b'{"users":["%b"]}', b'{"%b":1}', b'{"users":["1"],"where":"%b"}', b'{"data":["%b"]}', b'{"items":["%b"]}')


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("text")
    published(folder / "store", {"user:1": a_list("a")})
    options = ("--events", str(folder / "log"), "--cors-origin", "https://shop.example", "--access-log", "1")
    store = f"file://{folder / 'store'}"
    with running(folder / "store", *options, "--admin-store", store) as running_service:
        yield running_service


def status(port: int, line: bytes, *headers: bytes, body: bytes = b"") -> int:
    """Send a request; return the status of the answer."""
    lines = (line + b" HTTP/1.1", b"Host: 127.0.0.1", b"Content-Length: %d" % len(body), b"Connection: close", *headers)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        answer = b""
        while piece := client.recv(65_536):
            answer += piece
    match = re.match(rb"HTTP/1.1 (\d+)", answer)
    assert match is not None, answer
    return int(match[1])


def check(service: Service, code: int, *request: object) -> None:
    assert code != 500, request
    log = service.log.read_text(errors="replace")
    assert "failed" not in log, request
    assert "Logging error" not in log, request


@pytest.mark.parametrize("text", ODD, ids=repr)
def test_unencodable_text_causes_no_internal_error(service: Service, text: bytes) -> None:
    for path in PATHS:
        check(service, status(service.port, path % text), path)
    for path in ADMIN_PATHS:
        check(service, status(service.admin_port, path % text), path)
    for name in HEADERS:
        header = name.encode() + b": " + text
        for line, body in ((b"GET /v1/recommendations/1", b""), (b"POST /v1/recommendations", BATCH)):
            check(service, status(service.port, line, header, body=body), name)
        for port, line in ((service.port, b"POST /v1/events"), (service.admin_port, b"POST /v1/releases/rollback")):
            json = b"Content-Type: application/json"
            check(service, status(port, line, *(() if name == "Content-Type" else (json,)), header, body=EVENT), name)
    for body in BODIES:
        for path in (b"/v1/recommendations", b"/v1/recommendations/fold-in", b"/score", b"/v1/events"):
            json = b"Content-Type: application/json"
            check(service, status(service.port, b"POST " + path, json, body=body % text), path, body)


def test_event_with_an_unencodable_origin_is_refused(service: Service) -> None:
    headers = (b"Content-Type: application/json", b"Origin: http://\xff")
    assert status(service.port, b"POST /v1/events", *headers, body=EVENT) == 403
