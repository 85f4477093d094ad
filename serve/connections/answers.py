"""Answers as bytes, as aiohttp would write them, for requests that have no aiohttp request: refusals and problems."""

from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

from hotplate.serve.api.router import RequestIds
from hotplate.serve.connections.framing import MAX_CHUNKED_BYTES, MAX_CHUNKS
from hotplate.serve.metrics import OTHER, Metrics, request_cell
from hotplate.serve.problems import CLOSE, CONTENT_TYPE, Problem, overloaded


class AnswerWriter:
    """Writes whole answers as aiohttp would."""

    def __init__(self, metrics: Metrics, request_ids: RequestIds, *, varies: bool) -> None:
        """*varies*: whether answers may differ for other origins."""
        self.request_ids = request_ids
        self.metrics = metrics
        self.vary = "Vary: Origin\r\n" if varies else ""
        """A header line, or nothing."""

    def write_problem(self, problem: Problem, request_id: str, took_s: float) -> bytes:
        """Return a problem as an answer."""
        body = problem.body
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"{header_lines(problem.headers)}Server: hotplate\r\nX-Request-Id: {request_id}\r\n"
            f"Server-Timing: app;dur={took_s * 1000:.3f}\r\n{self.vary}Content-Length: {len(body)}\r\n"
            f"Date: {formatdate(usegmt=True)}\r\n\r\n"
        )
        return head.encode() + body

    def refuse(self, problem: Problem, reason: str, took_s: float) -> bytes:
        """Answer bytes that are refused before there is a request; *reason* is one of SHED, or empty."""
        if reason:
            self.metrics.count_shed(reason)
        self.metrics.observe(request_cell(OTHER, OTHER, problem.status), 0.0)
        return self.write_problem(problem.closing(), self.request_ids.new(), took_s)

    def no_room(self) -> Problem:
        """Count and return the refusal of a body without room."""
        self.metrics.count_shed("bytes")
        return overloaded("bodies and unread answers take all the memory that is allowed for them").closing()

    def too_many_chunks(self) -> Problem:
        """Count and return the refusal of a chunked body that would take too long to parse."""
        self.metrics.count_shed("chunks")
        detail = (
            f"a body has at most {MAX_CHUNKS} chunks and trailers, and {MAX_CHUNKED_BYTES} bytes with their sizes; "
            "send larger chunks, or Content-Length"
        )
        return Problem(413, "too-many-chunks", detail, CLOSE)


def header_lines(headers: Mapping[str, str]) -> str:
    """Return headers as lines of an answer."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
