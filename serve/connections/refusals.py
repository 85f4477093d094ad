"""What is answered outside of aiohttp, and how: one writer of answers, and what refuses before there is a request."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from math import inf
from time import monotonic, time

from aiohttp.helpers import rfc822_formatted_time

from hotplate.serve.api.app import RequestIds
from hotplate.serve.api.cors import Cors
from hotplate.serve.metrics import OTHER, Metrics
from hotplate.serve.problems import CONTENT_TYPE, Problem, overloaded

_origin = re.compile(rb"(?i)\r\norigin:[ \t]*([\x21-\x7e]+)[ \t]*\r\n").search


class AnswerWriter:
    """Writes whole answers as bytes, as aiohttp would write them; one for each server, and one for its lane."""

    def __init__(self, metrics: Metrics, request_ids: RequestIds, cors: Cors | None) -> None:
        self._metrics, self._request_ids, self._cors = metrics, request_ids, cors
        self._date, self._date_until = "", -inf

    def write(
        self, head: bytes, request_id: str, took_s: float, body: bytes | None, *, last: str = "", more: str = ""
    ) -> bytes:
        """Return an answer that begins with *head* and *last*, the end of its last line.

        *more* are header lines behind those of every answer; without a *body* there is no Content-Length either.
        """
        now = monotonic()
        if now >= self._date_until:
            self._date, self._date_until = rfc822_formatted_time(), now + 1 - time() % 1
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        lines = (
            f"{last}Server: hotplate\r\nX-Request-Id: {request_id}\r\nServer-Timing: app;dur={took_s * 1000:.3f}\r\n"
            f"{more}{length}Date: {self._date}\r\n\r\n"
        )
        return b"".join((head, lines.encode(), body or b""))

    def write_problem(self, problem: Problem, request_id: str, took_s: float, data: bytes = b"") -> bytes:
        """Return a problem as an answer to *data*, the beginning of a request."""
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"{_lines(problem.headers)}"
        )
        origin = _origin(data)
        more = "" if self._cors is None else _lines(self._cors.headers(origin and origin[1].decode()))
        return self.write(head.encode(), request_id, took_s, problem.body, more=more)

    def refuse(self, problem: Problem, reason: str, took_s: float, data: bytes) -> bytes:
        """Return the answer to what is refused before there is a request; *reason* is one of SHED, or empty."""
        if reason:
            self._metrics.count_shed(reason)
        self._metrics.observe_request(OTHER, OTHER, problem.status, 0.0)
        return self.write_problem(problem.closing(), self._request_ids.new(), took_s, data)

    def no_room(self) -> Problem:
        """Count a body for which there is no memory; how to refuse it."""
        self._metrics.count_shed("bytes")
        return overloaded("bodies and answers that are not read take all the memory that there is for them").closing()


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
