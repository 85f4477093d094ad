"""Error responses as problem+json (RFC 9457), each with a stable type."""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import orjson
from aiohttp import web

from hotplate.serve.errors import NotReady, UnknownList
from hotplate.serve.log_lines import printable
from hotplate.stores.errors import StoreUnavailable

CONTENT_TYPE = "application/problem+json"
CLOSE = {"Connection": "close"}
# Retry-After in seconds, drawn at random to spread retries.
RETRY_AFTER_S = (1, 4)


class ClientGone(Exception):
    """The caller disconnected before it could be answered."""


class Problem(Exception):
    """An error response of type `urn:hotplate:problem:NAME`; *members* are added to the body."""

    def __init__(
        self,
        status: int,
        name: str,
        detail: str,
        headers: dict[str, str] | None = None,
        members: Mapping[str, int | str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.name = name
        self.detail = printable(detail)
        self.headers = headers or {}
        self.members = {
            member: printable(value) if isinstance(value, str) else value for member, value in (members or {}).items()
        }

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
        """Close the connection after this problem; returns self."""
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
    """Return the refusal of an invalid parameter."""
    return Problem(400, "bad-parameter", detail)


class ProblemRow(NamedTuple):
    """The problem that answers errors of these types."""

    errors: tuple[type[Exception], ...]
    status: int
    name: str
    retry_after_s: int = 0
    """0 if a retry does not help."""


UNKNOWN_LIST = ProblemRow((UnknownList,), 404, "unknown-list")
NOT_READY = ProblemRow((NotReady, StoreUnavailable), 503, "not-ready", 1)


def problem_of(error: Exception, rows: Sequence[ProblemRow]) -> Problem | None:
    """Return the problem that answers an error, by the first of *rows* with its type; None for a defect."""
    if isinstance(error, Problem):
        return error
    row = next((row for row in rows if isinstance(error, row.errors)), None)
    if row is None:
        return None
    headers = {"Retry-After": str(row.retry_after_s)} if row.retry_after_s else None
    return Problem(row.status, row.name, str(error), headers)


def overloaded(detail: str) -> Problem:
    """Return the refusal of an overloaded service."""
    pause_s = random.randint(*RETRY_AFTER_S)  # noqa: S311 -- not cryptographic
    return Problem(503, "overloaded", detail, {"Retry-After": str(pause_s)})


def internal_error(request_id: str) -> Problem:
    """Return the problem of a defect, with the id under which it was logged."""
    return Problem(500, "internal-error", f"something went wrong; the log says what, under request {request_id}")
