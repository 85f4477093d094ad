"""The HTTP server: every request in, every answer out, with its id, its time and its place in the metrics."""

import itertools
import logging
import re
import secrets
from time import perf_counter
from typing import Any

from aiohttp import web

from serve.metrics import OTHER, Metrics
from serve.problems import Problem
from serve.routes import Routes, handler_of, template_of

log = logging.getLogger(__name__)

KEEPALIVE_S = 75.0
MAX_LINE_BYTES = 8190
REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:-]{1,128}")


class RequestIds:
    """Takes a caller's request id, or makes one: a random prefix for the process and a count."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._count = itertools.count(1)

    def of(self, request: web.BaseRequest) -> str:
        """Return the id of *request*; one that is odd or long is replaced, for it would end in logs and headers."""
        given = request.headers.get("X-Request-Id")
        if given is not None and REQUEST_ID.fullmatch(given):
            return given
        return f"{self._prefix}{next(self._count):08x}"


class Server(web.Server):
    """aiohttp's low-level server without its router and middlewares: the hot path pays for neither."""

    def __init__(self, routes: Routes, metrics: Metrics) -> None:
        super().__init__(self._answer)
        self._routes = routes
        self.metrics = metrics
        self.request_ids = RequestIds()
        self.draining = False

    def __call__(self) -> web.RequestHandler:
        """Make the protocol of one connection."""
        return _Connection(
            self,
            loop=self._loop,
            access_log=None,  # type: ignore[arg-type]  # aiohttp tests it for truth, and types it as always there
            keepalive_timeout=KEEPALIVE_S,
            max_line_size=MAX_LINE_BYTES,
        )

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        started = perf_counter()
        path, _, query = request.raw_path.partition("?")
        if path[:1] != "/":
            path = request.rel_url.raw_path  # the absolute form, which proxies use
        route, raw_id = self._routes.find(path)
        request_id = self.request_ids.of(request)
        try:
            response = await handler_of(route, request.method)(request, raw_id, query)
        except Problem as problem:
            response = problem.response()
        except Exception:
            log.exception("request %s failed", request_id)
            response = _internal_error(request_id)
        took = perf_counter() - started
        response.headers["Server"] = "hotplate"
        response.headers["X-Request-Id"] = request_id
        response.headers["Server-Timing"] = f"app;dur={took * 1000:.3f}"
        if self.draining:
            response.force_close()
        self.metrics.observe_request(template_of(route), request.method, response.status, took)
        return response


class _Connection(web.RequestHandler):
    """One connection; what aiohttp's parser refuses is answered as a problem, too."""

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        server: Any = self._manager
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun; it cannot become an error any more") from exc
        request_id = server.request_ids.of(request)
        if status >= 500:
            log.error("request %s failed", request_id, exc_info=exc)
            response = _internal_error(request_id)
        else:
            reason = (message or "it is not HTTP/1.1").strip().partition("\n")[0].partition(":")[0][:200]
            response = Problem(status, "bad-request", f"the request cannot be read: {reason}").response()
        response.headers["Server"] = "hotplate"
        response.headers["X-Request-Id"] = request_id
        response.force_close()
        server.metrics.observe_request(OTHER, OTHER, response.status, 0.0)
        return response


def _internal_error(request_id: str) -> web.Response:
    return Problem(
        500, "internal-error", f"something went wrong; the log says what, under request {request_id}"
    ).response()
