"""Error responses as problem+json (RFC 9457), each with a stable type."""

import random
from collections.abc import Mapping

import orjson
from aiohttp import web

from hotplate.serve.log_lines import printable

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


def not_ready(detail: str) -> Problem:
    """Return the problem of a service without a release."""
    return Problem(503, "not-ready", detail, {"Retry-After": "1"})


def unknown_list(detail: str) -> Problem:
    """Return the problem of a name that no list of the release has."""
    return Problem(404, "unknown-list", detail)


def overloaded(detail: str) -> Problem:
    """Return the refusal of an overloaded service."""
    pause_s = random.randint(*RETRY_AFTER_S)  # noqa: S311 -- not cryptographic
    return Problem(503, "overloaded", detail, {"Retry-After": str(pause_s)})


def internal_error(request_id: str) -> Problem:
    """Return the problem of a defect, with the id under which it was logged."""
    return Problem(500, "internal-error", f"something went wrong; the log says what, under request {request_id}")
