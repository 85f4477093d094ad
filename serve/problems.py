"""Errors as callers see them: problem+json (RFC 9457), each with a stable type."""

import random

import orjson
from aiohttp import web

CONTENT_TYPE = "application/problem+json"
# The header of a problem after which its connection is closed.
CLOSE = {"Connection": "close"}
# Callers that were refused together come back spread over so many seconds.
RETRY_AFTER_S = (1, 4)


class ClientGone(Exception):
    """The caller hung up before its request was whole, or before its turn came; no answer would reach it."""


class Problem(Exception):
    """Ends a request with an error; *name* makes the stable type `urn:hotplate:problem:NAME`.

    *members* are fields of the body beyond the standard's, which some routes' callers read.
    """

    def __init__(
        self,
        status: int,
        name: str,
        detail: str,
        headers: dict[str, str] | None = None,
        members: dict[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.name = name
        self.detail = detail
        self.headers = headers or {}
        self.members = members or {}

    @property
    def body(self) -> bytes:
        """The problem as JSON."""
        fields = {
            "type": f"urn:hotplate:problem:{self.name}",
            "title": self.name.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }
        return orjson.dumps(fields)

    def closing(self) -> "Problem":
        """Have the connection closed after this problem; returns it."""
        self.headers = self.headers | CLOSE
        return self

    def response(self) -> web.Response:
        """Render the problem."""
        response = web.Response(
            status=self.status, body=self.body, headers={"Content-Type": CONTENT_TYPE, **self.headers}
        )
        if "Connection" in self.headers:
            response.force_close()
        return response


def bad_parameter(detail: str) -> Problem:
    """Refuse what the caller sent as no possible value."""
    return Problem(400, "bad-parameter", detail)


def not_ready(detail: str) -> Problem:
    """Say that nothing can be answered yet; callers should come back in a second."""
    return Problem(503, "not-ready", detail, {"Retry-After": "1"})


def overloaded(detail: str) -> Problem:
    """Refuse what cannot be done in time; callers should come back in a few seconds, not all at once."""
    pause_s = random.randint(*RETRY_AFTER_S)  # noqa: S311 -- to spread retries, nothing secret
    return Problem(503, "overloaded", detail, {"Retry-After": str(pause_s)})


def internal_error(request_id: str) -> Problem:
    """Say that a defect ended the request, and where to read of it."""
    return Problem(500, "internal-error", f"something went wrong; the log says what, under request {request_id}")
