"""Requests and answers at the level of HTTP: what is said where no handler is reached, and how bodies are read."""

from http import HTTPStatus
from math import inf

from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time
from multidict import istr

from serve.api.handlers import too_large
from serve.api.problems import CONTENT_TYPE, Problem, overloaded
from serve.connections.admission import ClientGone

# How long a caller may say that it waits.
MOST_TIMEOUT_S = 60.0
TIMEOUT = istr("X-Request-Timeout-Ms")
# The part of that in which lists are read; in the rest they become an answer, and that reaches its caller.
READ_SHARE = 0.9
CLOSE = {"Connection": "close"}


def raw_answer(problem: Problem, request_id: str, more: str) -> bytes:
    """Write a problem as a whole answer."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in problem.headers.items() if name != "Connection")
    body = problem.body
    return (
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
        f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\nServer: hotplate\r\n"
        f"X-Request-Id: {request_id}\r\nDate: {rfc822_formatted_time()}\r\n{more}{lines}\r\n"
    ).encode() + body


def deadline_of(request: web.BaseRequest, received: float) -> float:
    """Return when the caller stops to wait, by `time.monotonic`; inf where it does not say."""
    given = request.headers.get(TIMEOUT)
    if given is None:
        return inf
    if not (given.isascii() and given.isdecimal() and len(given) <= 9):
        raise Problem(400, "bad-parameter", f"{TIMEOUT} must be a whole number of milliseconds, not {given[:40]!r}")
    return received + min(int(given) / 1000, MOST_TIMEOUT_S)


def wrong_version(request: web.BaseRequest) -> Problem:
    """Refuse another version than ours, and have the request answered in ours."""
    major, minor = request._version  # noqa: SLF001 -- `version`, once read, keeps its value
    request._version = HttpVersion11  # noqa: SLF001 -- the answer's version is ours, not the caller's
    status, name = (505, "version-not-supported") if major else (400, "bad-request")
    return Problem(status, name, f"HTTP/1.1 and HTTP/1.0 are spoken here, not HTTP/{major}.{minor}", CLOSE)


def crowded() -> Problem:
    """Refuse a connection for which there is no room."""
    return overloaded("there are more connections than can be served")


def closing(problem: Problem) -> Problem:
    """Have the connection of a problem closed, as where what is left of the body is not read."""
    problem.headers |= CLOSE
    return problem


def unreadable(status: int, message: str | None) -> Problem:
    """Refuse what the parser refuses."""
    reason = (message or "it is not HTTP/1.1").strip().partition("\n")[0].partition(":")[0][:200]
    return Problem(status, "bad-request", f"the request cannot be read: {reason}", CLOSE)


async def read_body(request: web.BaseRequest) -> None:
    """Read a body into its request; raises Problem, and ClientGone where it ends before its end."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise closing(too_large()) from None
    except web.RequestPayloadError as error:
        raise unreadable(400, str(error)) from None
    except ConnectionError:
        raise ClientGone from None
