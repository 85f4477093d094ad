"""Routes requests to handlers, checks the keys of callers, and answers errors, for workers and the admin process."""

import itertools
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from aiohttp import web
from multidict import CIMultiDictProxy, istr

from hotplate.serve.access.auth import CALLER, Guard
from hotplate.serve.access.keys import READ
from hotplate.serve.api.cors import Cors
from hotplate.serve.api.scoring import scoring_refusal
from hotplate.serve.metrics import OTHER
from hotplate.serve.problems import ClientGone, Problem, ProblemRow, internal_error, problem_of

log = logging.getLogger(__name__)

# The client disconnected; nginx logs this code.
CLIENT_GONE = 499
GIVEN_ID = istr("X-Request-Id")  # found faster than a str
# Other ids must not reach logs or headers.
is_request_id = re.compile(r"[A-Za-z0-9._~+/=:-]{1,128}").fullmatch

# Called with a request, the id in its path, or an empty text, and its query, both percent-encoded; for a POST that
# passed a gate, also with the body. Raises Problem.
RouteHandler = Callable[..., Awaitable["web.Response | DeferredResponse"]]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeferredResponse:
    """The result of a handler whose response takes a further wait, which does not count as work of a batch."""

    resolve: Callable[[], Awaitable[web.Response]]


class Gate(Protocol):
    """Limits on POST requests."""

    async def admit(self, request: web.BaseRequest, work: Callable[[bytes], Awaitable[T]]) -> T:
        """Do *work* with the body once the request is admitted; raises Problem and ClientGone."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """A path template with its handlers by method."""

    template: str
    methods: Mapping[str, RouteHandler]
    """Empty for unknown paths."""

    scope: str | None = READ
    """The scope that a caller's key must have; None for a public route."""

    scoring: bool = False
    """Whether its callers expect the scoring contract."""

    absence: str = "no route has this path; an id in a path writes / as %2F"
    """The reason of a 404, which a route without methods answers."""

    def handler_of(self, method: str) -> RouteHandler:
        """Return the handler of *method*; raises a Problem: 404 for the route of unknown paths, 405 for another method.

        That of GET also answers HEAD.
        """
        handler = self.find_handler(method)
        if handler is not None:
            return handler

        if not self.methods:
            raise Problem(404, "no-such-route", self.absence)
        allowed = ", ".join(sorted(self.methods) + (["HEAD"] if "GET" in self.methods else []))
        raise Problem(405, "no-such-method", f"{self.template} takes {allowed}", {"Allow": allowed})

    def find_handler(self, method: str) -> RouteHandler | None:
        """Return the handler of *method*, None if there is none; that of GET also answers HEAD."""
        return self.methods.get("GET" if method == "HEAD" else method)


def by_template(*routes: Route) -> dict[str, Route]:
    """Return routes by their templates, which are their paths."""
    return {route.template: route for route in routes}


NO_ROUTE = Route(OTHER, {}, scope=None)


class RouteMatch(NamedTuple):
    """The route of a path, and the encoded id in it, or an empty text."""

    route: Route
    raw_id: str = ""


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


class Router:
    """Answers the requests to one listener by its routes."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        guard: Guard | None,
        *,
        problems: Sequence[ProblemRow],
        no_route: Route = NO_ROUTE,
        cors: Cors | None = None,
    ) -> None:
        """*routes* are by path; a path may have one id, written as `{id}`, as its last segment or the one before.

        *guard* checks the keys of callers; None if no route takes one. *problems* answer errors of handlers; others
        are defects, which are logged. *no_route* answers paths that *routes* lack, and *cors* preflight requests.
        """
        self.request_ids = RequestIds()
        self._fixed = {path: route for path, route in routes.items() if "{" not in path}
        self._with_id = [(_pattern_of(path), route) for path, route in routes.items() if "{" in path]
        self._guard = guard
        self._problems = problems
        self._no_route = no_route
        self.cors = cors

    async def answer(
        self, request: web.BaseRequest, path: str, query: str, *, gate: Gate, refusal: Problem | None = None
    ) -> web.Response:
        """Answer a request; problems become answers, as do unexpected exceptions, with 500.

        *path* and *query* are percent-encoded. *gate* delays or refuses POSTs while the worker is busy. *refusal* is
        the answer to a request that is refused already.
        """
        raise NotImplementedError

    def refuse_unread(
        self, path: str, headers: CIMultiDictProxy[str], refusal: Callable[[], Problem]
    ) -> tuple[Problem, str] | None:
        """Refuse a POST in overload in the form of its route, and report that.

        *refusal* makes and counts the problem. Returns it, with the request's id; None if `answer` has to answer the
        request. Not called for a router that uses no gate.
        """
        raise NotImplementedError

    def on_problem(self, request: web.BaseRequest, route: Route, problem: Problem) -> None:
        """Report a problem that becomes an answer."""

    def find(self, path: str, method: str) -> RouteMatch:
        """Return the route of a raw path.

        A user may have the id `fold-in`: if a path has a route both with an id and without, *method* matters.
        """
        fixed = self._fixed.get(path)
        if fixed is None:
            return self._find_with_id(path)
        if fixed.find_handler(method) is None:
            match = self._find_with_id(path)
            if match.route.find_handler(method) is not None:
                return match
        return RouteMatch(fixed)

    def _find_with_id(self, path: str) -> RouteMatch:
        """Return the route of a raw path with an id, and the id: `/v1/similar/{item}` or `/v1/releases/{id}/activate`.

        The id is the last segment, or the one before the last. Other paths have the route for unknown ones.
        """
        for pattern, route in self._with_id:
            match = pattern.fullmatch(path)
            if match is not None:
                return RouteMatch(route, match[1])
        return RouteMatch(self._no_route)

    async def respond(
        self,
        request: web.BaseRequest,
        match: RouteMatch,
        query: str,
        *,
        request_id: str,
        gate: Gate | None = None,
        refusal: Problem | None = None,
    ) -> web.Response:
        """Return the answer to a request: that of the handler of its route, or a problem.

        *query* is percent-encoded. *gate* reads the body of a POST, and delays or refuses it while the worker is busy.
        *refusal* is the answer to a request that is refused already. Problems become answers, as do unexpected
        exceptions, with 500. The caller whom a key names is stored in *request*, as CALLER.
        """
        if refusal is None:
            try:
                response = await self._call_handler(request, match, query, gate)
            except ClientGone:
                response = web.Response(status=CLIENT_GONE)  # for logs and metrics; it is not sent
            except Exception as error:  # noqa: BLE001 -- logged if it is a defect
                response = self._answer_error(request, match.route, error, request_id)
        else:
            response = self._answer_error(request, match.route, refusal, request_id)

        response.headers["Server"] = "hotplate"
        response.headers["X-Request-Id"] = request_id
        return response

    def _answer_error(self, request: web.BaseRequest, route: Route, error: Exception, request_id: str) -> web.Response:
        problem = problem_of(error, self._problems)
        if problem is None:
            log.error("request %s failed", request_id, exc_info=error)
            problem = internal_error(request_id)
        self.on_problem(request, route, problem)
        return problem_for(route, problem).response()

    async def _call_handler(
        self, request: web.BaseRequest, match: RouteMatch, query: str, gate: Gate | None
    ) -> web.Response:
        """Check the key of a request, and call the handler of its route.

        A preflight request, by which a browser asks what a page of another site may send, is answered here: it has no
        key. *gate*, if any, decides when a POST runs. Raises a Problem, and errors of the handler.
        """
        route = match.route
        if self.cors is not None and route.methods:
            preflight = self.cors.preflight(request, route.methods)
            if preflight is not None:
                return preflight

        if self._guard is not None and route.scope is not None:
            request[CALLER] = await self._guard.admit(request.headers, route.scope)

        handler = route.handler_of(request.method)
        if gate is None or request.method != "POST":
            response = await handler(request, match.raw_id, query)
        else:
            response = await gate.admit(request, partial(handler, request, match.raw_id, query))

        # A deferred response waits out here, where it holds no place that the gate grants.
        if isinstance(response, DeferredResponse):
            return await response.resolve()
        return response


def _pattern_of(path: str) -> re.Pattern[str]:
    """Return the pattern of paths with an id, which may be empty only at the end."""
    before, _, after = re.escape(path).partition(r"\{")
    _, _, after = after.partition(r"\}")
    return re.compile(f"{before}([^/]{'+' if after else '*'}){after}")


def problem_for(route: Route, problem: Problem) -> Problem:
    """Return *problem* in the form that callers of a route expect."""
    return scoring_refusal(problem) if route.scoring else problem
