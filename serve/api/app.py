"""Routes of the service, and the reports of its answers."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp import web
from multidict import CIMultiDictProxy, istr

from hotplate.serve.access.auth import CALLER, Guard
from hotplate.serve.api.cors import Cors
from hotplate.serve.api.events import EventsHandler
from hotplate.serve.api.handlers import LIST_ANSWER, ListHandlers
from hotplate.serve.api.openapi import ServiceHandlers
from hotplate.serve.api.parameters import with_query
from hotplate.serve.api.router import Gate, Route, RouteMatch, Router, problem_for
from hotplate.serve.api.routes import EVENTS_TAG, LISTS_TAG, OPERATIONS, SCORING_TAG, SERVICE_TAG, USER_PATH
from hotplate.serve.api.scoring import Scoring
from hotplate.serve.consumed.table import Consumed
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.lists.shaping import Shaper
from hotplate.serve.metrics import OTHER, request_cell
from hotplate.serve.problems import NOT_READY, UNKNOWN_LIST, Problem, ProblemRow
from hotplate.serve.processes.readiness import WorkerReadiness
from hotplate.serve.telemetry.access_log import AccessLog, report
from hotplate.serve.telemetry.records import ListOrigin, RequestRecord
from hotplate.serve.telemetry.spans import use_span
from hotplate.serve.watched import WatchedFiles
from hotplate.stores.errors import StoreMisused

if TYPE_CHECKING:
    from hotplate.serve.telemetry.tracing import RequestSpan, Tracer

TRACEPARENT = istr("traceparent")  # found faster than a str
TRACESTATE = istr("tracestate")
NO_EVENTS = Route(OTHER, {}, scope=None, absence="this service takes no events; `hotplate serve --events FOLDER` does")
# Classes with the handlers of each tag.
HANDLERS = {
    LISTS_TAG: ListHandlers,
    EVENTS_TAG: EventsHandler,
    SCORING_TAG: Scoring,
    SERVICE_TAG: ServiceHandlers,
}
# Answers to errors of handlers.
PROBLEMS = (UNKNOWN_LIST, ProblemRow((StoreMisused,), 400, "bad-parameter"), NOT_READY)
# A route without a handler is an error here, before the service starts.
_METHODS = {operation: getattr(HANDLERS[operation.tag], operation.handler) for operation in OPERATIONS}


def routes_of(handlers: Mapping[str, object | None]) -> dict[str, Route]:
    """Return the routes of a worker by path. *handlers* are by tag; without those of events, it accepts none."""
    routes = dict[str, Route]()
    for operation, method in _METHODS.items():
        owner = handlers[operation.tag]
        if owner is None:
            routes[operation.path] = NO_EVENTS
            continue
        methods = {operation.method: with_query(operation, partial(method, owner))}
        routes[operation.path] = Route(operation.template, methods, operation.scope, scoring=operation.is_scoring)
    return routes


def _record_of(
    request: web.BaseRequest, response: web.Response, match: RouteMatch, *, request_id: str, took_s: float
) -> RequestRecord:
    """Return what the access log and traces need of an answered request, which took *took_s* seconds.

    *request* is a mapping, too: the router has stored the caller in it, and the handler the list.
    """
    template = match.route.template
    caller = request.get(CALLER)
    answer = request.get(LIST_ANSWER)

    user = None
    list_origin = None
    if answer is not None:
        encoded = answer.encoded
        list_origin = ListOrigin(encoded.release.id, encoded.source, encoded.tier, answer.items, encoded.name)
        user = unquote(match.raw_id) if template == USER_PATH else None

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


class Dispatcher(Router):
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
        tracer: "Tracer | None" = None,
        watched: Sequence[WatchedFiles] = (),
    ) -> None:
        """*watched* are followed files, *consumed* the items to hide. Without a guard, no key is needed."""
        self.reader = reader
        self.consumed = consumed
        self.shaper = Shaper(reader.deny_list, consumed, is_erased=reader.is_erased)
        self.guard = guard or Guard()
        self.readiness = WorkerReadiness(reader, watched=watched, writer=None if events is None else events.writer)
        self.handlers = ListHandlers(reader, self.shaper, self.guard)
        self.access_log = access_log
        self.tracer = tracer
        self.metrics = reader.metrics
        service = ServiceHandlers(
            self.readiness, takes_key=self.guard.reads_take_a_key, takes_events=events is not None
        )
        routes = routes_of(
            {
                LISTS_TAG: self.handlers,
                EVENTS_TAG: events,
                SCORING_TAG: Scoring(reader, self.shaper),
                SERVICE_TAG: service,
            }
        )
        cors = Cors(cors_origins) if cors_origins else None
        super().__init__(routes, self.guard, problems=PROBLEMS, cors=cors)

    def refuse_unread(
        self, path: str, headers: CIMultiDictProxy[str], refusal: Callable[[], Problem]
    ) -> tuple[Problem, str] | None:
        """Refuse a batch in overload: see `Router`. Not for unknown routes and methods, nor while the worker stops."""
        route = self.find(path, "POST").route
        if self.readiness.draining or route.find_handler("POST") is None:
            return None
        problem = problem_for(route, refusal())
        request_id = self.request_ids.of(headers)
        sampled_log = self._count(route, "POST", problem.status, 0.0)
        span = self._begin_span(headers)
        if sampled_log is not None or span is not None:
            record = RequestRecord(route.template, "POST", problem.status, 0.0, len(problem.body), request_id, None)
            report(record, sampled_log, span)
        return problem, request_id

    def _count(self, route: Route, method: str, status: int, took_s: float) -> AccessLog | None:
        """Count an answered request; returns the access log if the request is sampled for that."""
        self.metrics.observe(request_cell(route.template, method, status), took_s)
        return None if self.access_log is None else self.access_log.sampled()

    def _begin_span(self, headers: CIMultiDictProxy[str]) -> "RequestSpan | None":
        if self.tracer is None:
            return None
        return self.tracer.begin(headers.get(TRACEPARENT), ",".join(headers.getall(TRACESTATE, ())))

    async def answer(
        self, request: web.BaseRequest, path: str, query: str, *, gate: Gate, refusal: Problem | None = None
    ) -> web.Response:
        """Answer a request, then report it to the metrics, the access log and its span: see `Router`."""
        started = perf_counter()
        match = self.find(path, request.method)
        request_id = self.request_ids.of(request.headers)
        span = self._begin_span(request.headers)  # None if the request is not traced

        responding = self.respond(request, match, query, request_id=request_id, gate=gate, refusal=refusal)
        if span is None:
            response = await responding
        else:
            with use_span(span):
                response = await responding

        took_s = perf_counter() - started
        self._set_headers(request, response, took_s)
        sampled_log = self._count(match.route, request.method, response.status, took_s)
        if sampled_log is not None or span is not None:
            report(_record_of(request, response, match, request_id=request_id, took_s=took_s), sampled_log, span)
        if LIST_ANSWER in request:  # aiohttp keeps the last request of an idle connection
            del request[LIST_ANSWER]
        return response

    def _set_headers(self, request: web.BaseRequest, response: web.Response, took_s: float) -> None:
        """Set the headers of all answers; while draining, let the connection close."""
        response.headers["Server-Timing"] = f"app;dur={took_s * 1000:.3f}"
        if self.cors is not None:
            self.cors.admit(request, response)
        if self.readiness.draining:
            response.force_close()
