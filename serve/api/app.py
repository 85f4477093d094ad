"""Routes of the service."""

import itertools
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Protocol
from urllib.parse import unquote

from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDictProxy, istr

from hotplate.serve.access.auth import SCOPES_BY_ROUTE, Caller, Guard
from hotplate.serve.access.keys import READ
from hotplate.serve.api.cors import Cors
from hotplate.serve.api.events import DeferredResponse, EventsHandler
from hotplate.serve.api.handlers import LIST_ORIGIN, Handlers, RouteHandler
from hotplate.serve.api.openapi import Documents
from hotplate.serve.api.parameters import FOLD_IN
from hotplate.serve.api.scoring import Scoring, scoring_refusal
from hotplate.serve.consumed.table import Consumed
from hotplate.serve.encoded_lists import NotReady, UnknownList
from hotplate.serve.metrics import OTHER, request_cell
from hotplate.serve.problems import ClientGone, Problem, bad_parameter, internal_error, not_ready, unknown_list
from hotplate.serve.reader import TieredReader
from hotplate.serve.shaping import Shaper
from hotplate.serve.telemetry.access_log import AccessLog, report
from hotplate.serve.telemetry.spans import RequestRecord, RequestSpan, Tracer, use_span
from hotplate.serve.watched import WatchedFiles
from hotplate.stores.errors import StoreError, StoreMisused, StoreUnavailable

log = logging.getLogger(__name__)

# The client disconnected; nginx logs this code.
CLIENT_GONE = 499
GIVEN_ID = istr("X-Request-Id")  # found faster than a str
TRACEPARENT = istr("traceparent")
TRACESTATE = istr("tracestate")
CALLER = web.RequestKey("caller", Caller)
USER_ROUTE = "/v1/recommendations/{user}"
# Errors of handlers that are answers: a wrong parameter, or a release or its item attributes that cannot be read.
ANSWERED = (Problem, NotReady, StoreMisused, StoreUnavailable)
# Other ids must not reach logs or headers.
is_request_id = re.compile(r"[A-Za-z0-9._~+/=:-]{1,128}").fullmatch


class Gate(Protocol):
    """Limits on POST requests."""

    async def admit(self, request: web.BaseRequest, work: Callable[[], Awaitable[web.Response]]) -> web.Response:
        """Do *work* once the request is read and admitted; raises Problem and ClientGone."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """A path template with its handlers by method."""

    template: str
    methods: dict[str, RouteHandler]
    scoring: bool = False
    """Whether its callers expect the scoring contract."""


def by_template(*routes: Route) -> dict[str, Route]:
    """Return routes by their templates."""
    return {route.template: route for route in routes}


class Routes:
    """Routes by path, with or without an id at the end."""

    def __init__(
        self, handlers: Handlers, scoring: Scoring, documents: Documents, events: EventsHandler | None = None
    ) -> None:
        self._fixed = by_template(
            Route("/v1/recommendations", {"POST": handlers.recommend_many}),
            Route(FOLD_IN, {"POST": handlers.fold_in}),
            Route("/v1/popular", {"GET": handlers.popular}),
            Route("/livez", {"GET": handlers.live}),
            Route("/readyz", {"GET": handlers.ready}),
            Route("/score", {"POST": scoring.score}, scoring=True),
            Route("/swagger.json", {"GET": scoring.swagger}, scoring=True),
            Route("/", {"GET": scoring.healthy}, scoring=True),
            Route("/openapi.json", {"GET": documents.openapi}),
            Route("/docs", {"GET": documents.page}),
        )
        if events is not None:
            self._fixed["/v1/events"] = Route("/v1/events", {"POST": events.report})
        self._fixed["/health/live"] = self._fixed["/livez"]
        self._fixed["/health/ready"] = self._fixed["/readyz"]
        self._with_id = {
            "/v1/recommendations": Route(USER_ROUTE, {"GET": handlers.recommend}),
            "/docs": Route("/docs", {"GET": documents.file}),
            "/v1/similar": Route("/v1/similar/{item}", {"GET": handlers.similar}),
        }

    def find(self, path: str, method: str) -> tuple[Route | None, str]:
        """Return the route of a raw path, and the encoded id at its end.

        A user may have the id `fold-in`, so the method matters.
        """
        route = self._fixed.get(path)
        if route is not None and not (path == FOLD_IN and method in {"GET", "HEAD"}):
            return route, ""
        stem, _, raw_id = path.rpartition("/")
        return self._with_id.get(stem), raw_id


def no_such_route() -> Problem:
    """Return the problem of a path without a route."""
    return Problem(404, "no-such-route", "no route has this path; an id in a path writes / as %2F")


def handler_of(route: Route, method: str) -> RouteHandler:
    """Return the handler of *method*; raises a Problem (405) if the route has none."""
    handler = route.methods.get("GET" if method == "HEAD" else method)
    if handler is None:
        allowed = ", ".join(sorted(route.methods) + (["HEAD"] if "GET" in route.methods else []))
        raise Problem(405, "no-such-method", f"{route.template} takes {allowed}", {"Allow": allowed})
    return handler


def problem_of(error: Problem | StoreError) -> Problem:
    """Return the problem that answers *error*: one of ANSWERED."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, UnknownList):
        return unknown_list(str(error))
    if isinstance(error, StoreMisused):
        return bad_parameter(str(error))
    return not_ready(str(error))


def _error_response(route: Route | None, error: Problem | StoreError | ClientGone) -> web.Response:
    if isinstance(error, ClientGone):
        return web.Response(status=CLIENT_GONE)  # not sent
    problem = problem_of(error)
    if route is not None and route.scoring:
        problem = scoring_refusal(problem)
    return problem.response()


def _record_of(
    request: web.BaseRequest,
    response: web.Response,
    route: Route | None,
    raw_id: str,
    *,
    request_id: str,
    took_s: float,
) -> RequestRecord:
    """Return the record of an answered request; guards and handlers have left the caller and the list in *request*."""
    template = OTHER if route is None else route.template
    caller = request.get(CALLER)
    list_origin = request.get(LIST_ORIGIN)
    user = None
    if template == USER_ROUTE and list_origin is not None:
        user = unquote(raw_id)
    return RequestRecord(
        route=template,
        method=request.method,
        status=response.status,
        took_s=took_s,
        size=response.content_length,
        request_id=request_id,
        client=None if caller is None else caller.name,
        user=user,
        list_origin=list_origin,
    )


class RequestIds:
    """Request ids of one process."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._count = itertools.count(1)

    def of(self, headers: CIMultiDictProxy[str]) -> str:
        """Return the caller's id if it is valid, or a new one."""
        request_id = headers.get(GIVEN_ID)
        return request_id if request_id is not None and is_request_id(request_id) else self.new()

    def new(self) -> str:
        """Return a new id."""
        return f"{self._prefix}{next(self._count):08x}"


class Dispatcher:
    """Answers requests by their raw path; one per worker."""

    def __init__(
        self,
        reader: TieredReader,
        guard: Guard | None = None,
        *,
        consumed: Consumed | None = None,
        cors_origins: Sequence[str] = (),
        access_log: AccessLog | None = None,
        events: EventsHandler | None = None,
        tracer: Tracer | None = None,
        watched: Sequence[WatchedFiles] = (),
    ) -> None:
        """*watched* are followed files, *consumed* the items to hide. Without a guard, no key is needed."""
        self.reader = reader
        self.consumed = consumed
        self.shaper = Shaper(reader.deny_list, consumed)
        self.guard = guard or Guard()
        self.handlers = Handlers(
            reader,
            self.shaper,
            take_a_key=self.guard.reads_take_a_key,
            watched=watched,
            writer=None if events is None else events.writer,
        )
        self.access_log = access_log
        self.tracer = tracer
        self.metrics = reader.metrics
        documents = Documents(takes_key=self.guard.reads_take_a_key, takes_events=events is not None)
        self._routes = Routes(self.handlers, Scoring(reader, self.shaper), documents, events)
        self.cors = Cors(cors_origins) if cors_origins else None
        self.request_ids = RequestIds()

    def drain(self) -> None:
        """Report not ready, and close connections after their next answer."""
        self.handlers.drain()

    def refuse_unread(
        self, message: RawRequestMessage, refusal: Callable[[], Problem], took_s: float
    ) -> tuple[Problem, str] | None:
        """Refuse a POST by its header, before its body is read, and report that.

        *refusal* makes and counts the problem, and *took_s* is the time since the request began, in seconds. Returns
        the problem in the form of the route, and the request's id. None if the request has to be answered by
        `answer`: other methods and routes, while draining, and pages of other origins, which need headers of CORS.
        """
        route, _ = self._routes.find(message.path, message.method)
        if route is None or message.method not in route.methods or message.method != "POST":
            return None
        if self.handlers.draining or hdrs.ORIGIN in message.headers:
            return None

        problem = refusal()
        if route.scoring:
            problem = scoring_refusal(problem)
        headers = message.headers
        request_id = self.request_ids.of(headers)
        record = RequestRecord(
            route=route.template,
            method="POST",
            status=problem.status,
            took_s=took_s,
            size=len(problem.body),
            request_id=request_id,
            client=None,
        )
        self._report(record, self._begin_span(headers))
        return problem, request_id

    def _report(self, record: RequestRecord, span: RequestSpan | None) -> None:
        """Count an answered request, and report it to the access log and its span."""
        self.metrics.observe(request_cell(record.route, record.method, record.status), record.took_s)
        sampled_log = None if self.access_log is None else self.access_log.sampled()
        report(record, sampled_log, span)

    def _begin_span(self, headers: CIMultiDictProxy[str]) -> RequestSpan | None:
        if self.tracer is None:
            return None
        return self.tracer.begin(headers.get(TRACEPARENT), ",".join(headers.getall(TRACESTATE, ())))

    async def _respond(
        self, request: web.BaseRequest, route: Route | None, raw_id: str, query: str, gate: Gate
    ) -> web.Response:
        """Check the key of a request, and call the handler of its route; raises a Problem.

        A POST is called through *gate*, which reads its body and delays or refuses it if the worker is busy. *raw_id*
        is the id in the path, percent-encoded. Preflight requests of CORS are answered here.
        """
        if route is None:
            raise no_such_route()
        if self.cors is not None:
            preflight = self.cors.preflight(request, route.methods)
            if preflight is not None:
                return preflight
        scope = SCOPES_BY_ROUTE.get(route.template, READ)
        if scope is not None:
            request[CALLER] = await self.guard.admit(request.headers, scope)

        handler = handler_of(route, request.method)
        if request.method != "POST":
            return await handler(request, raw_id, query)
        response = await gate.admit(request, partial(handler, request, raw_id, query))
        if isinstance(response, DeferredResponse):  # the gate is left before its wait
            return await response.resolve()
        return response

    async def answer(
        self, request: web.BaseRequest, path: str, query: str, *, gate: Gate, refusal: Problem | None = None
    ) -> web.Response:
        """Answer a request, then report it to the metrics, the access log and its span.

        *path* and *query* are percent-encoded; *gate* admits POSTs. *refusal* is the answer if it is already known.
        Problems become answers, as do unexpected exceptions, with 500.
        """
        started = perf_counter()
        route, raw_id = self._routes.find(path, request.method)
        request_id = self.request_ids.of(request.headers)
        span = self._begin_span(request.headers)
        with nullcontext() if span is None else use_span(span):
            try:
                if refusal is None:
                    response = await self._respond(request, route, raw_id, query, gate)
                else:
                    response = _error_response(route, refusal)
            except (*ANSWERED, ClientGone) as error:
                response = _error_response(route, error)
            except Exception:
                log.exception("request %s failed", request_id)
                response = _error_response(route, internal_error(request_id))

        record = _record_of(request, response, route, raw_id, request_id=request_id, took_s=perf_counter() - started)
        self._set_headers(request, response, record)
        self._report(record, span)
        return response

    def _set_headers(self, request: web.BaseRequest, response: web.Response, record: RequestRecord) -> None:
        """Set the headers of all answers; while draining, let the connection close."""
        response.headers["Server"] = "hotplate"
        response.headers["X-Request-Id"] = record.request_id
        response.headers["Server-Timing"] = f"app;dur={record.took_s * 1000:.3f}"
        if self.cors is not None:
            self.cors.admit(request, response)
        if self.handlers.draining:
            response.force_close()
