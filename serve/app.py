"""The service as routes: which request reaches which handler, here and as a part of another application."""

import itertools
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from aiohttp import web
from multidict import istr

from serve.access_log import AccessLog
from serve.admission import ClientGone
from serve.auth import Caller, Guard, scope_of
from serve.cors import Cors
from serve.handlers import Handler, Handlers
from serve.metrics import OTHER
from serve.openapi import Documents
from serve.problems import Problem, internal_error, not_ready
from serve.reader import Lists, NotReady, TieredReader
from serve.scoring import Scoring, refusal

log = logging.getLogger(__name__)

# Nobody was there to be answered; the code that proxies log for it.
CLIENT_GONE = 499
GIVEN_ID = istr("X-Request-Id")  # found faster than a str
REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:-]{1,128}")


# Does the work of a request once its body was read and its turn has come. Raises Problem and ClientGone.
Gate = Callable[[web.BaseRequest, Callable[[], Awaitable[web.Response]]], Awaitable[web.Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """One path template, as metrics name it, and its handlers by method."""

    template: str
    methods: dict[str, Handler]
    scoring: bool = False
    """Whether its callers follow the scoring contract, and back off on 503 only."""


class Routes:
    """Which path reaches which route: paths without an id, and paths that end in one."""

    def __init__(self, handlers: Handlers, scoring: Scoring, documents: Documents) -> None:
        self._fixed = {
            route.template: route
            for route in (
                Route("/v1/recommendations", {"POST": handlers.recommend_many}),
                Route("/v1/popular", {"GET": handlers.popular}),
                Route("/livez", {"GET": handlers.live}),
                Route("/readyz", {"GET": handlers.ready}),
                Route("/score", {"POST": scoring.score}, scoring=True),
                Route("/swagger.json", {"GET": scoring.swagger}, scoring=True),
                Route("/", {"GET": scoring.healthy}, scoring=True),
                Route("/openapi.json", {"GET": documents.openapi}),
                Route("/docs", {"GET": documents.page}),
            )
        }
        self._fixed["/health/live"] = self._fixed["/livez"]
        self._fixed["/health/ready"] = self._fixed["/readyz"]
        self._with_id = {
            "/v1/recommendations": Route("/v1/recommendations/{user}", {"GET": handlers.recommend}),
            "/docs": Route("/docs", {"GET": documents.file}),
            "/v1/similar": Route("/v1/similar/{item}", {"GET": handlers.similar}),
        }

    def find(self, path: str) -> tuple[Route | None, str]:
        """Return the route of a raw path, and the id that the path ends in, still encoded."""
        route = self._fixed.get(path)
        if route is not None:
            return route, ""
        stem, _, raw_id = path.rpartition("/")
        return self._with_id.get(stem), raw_id


def _handler(route: Route | None, method: str) -> Handler:
    """Return the handler of *method*; raises a Problem where there is no such route or method."""
    if route is None:
        raise Problem(404, "no-such-route", "no route has this path; an id in a path writes / as %2F")
    handler = route.methods.get("GET" if method == "HEAD" else method)
    if handler is None:
        allowed = ", ".join(sorted(route.methods) + (["HEAD"] if "GET" in route.methods else []))
        raise Problem(405, "no-such-method", f"{route.template} takes {allowed}", {"Allow": allowed})
    return handler


def _refused(route: Route | None, problem: Problem) -> web.Response:
    """Answer with a problem, in the way of the route's callers."""
    return (refusal(problem) if route is not None and route.scoring else problem).response()


class Dispatcher:
    """Answers requests by their raw path: finds the handler, names and times the request; one for each worker."""

    def __init__(
        self,
        reader: TieredReader,
        guard: Guard | None = None,
        *,
        cors_origins: Sequence[str] = (),
        access_log: AccessLog | None = None,
    ) -> None:
        """Take the reader, and who may call; without a guard everybody may do everything."""
        self._guard = guard or Guard()
        self.handlers = Handlers(reader, take_a_key=self._guard.reads_take_a_key)
        self._access_log = access_log
        self.metrics = reader.metrics
        self.draining = False
        self.gate: Gate | None = None
        """What a POST has to pass before its handler; None where the application around the service has its own."""
        documents = Documents(takes_key=self._guard.reads_take_a_key)
        self._routes = Routes(self.handlers, Scoring(reader), documents)
        self._cors = Cors(cors_origins) if cors_origins else None
        self._id_prefix = secrets.token_hex(6)
        self._id_count = itertools.count(1)

    def drain(self) -> None:
        """Be not ready from now on, and have every client close its connection."""
        self.draining = self.handlers.draining = True

    def request_id(self, request: web.BaseRequest) -> str:
        """Return the caller's id of a request, or make one; an odd or long one would end in logs and headers."""
        given = request.headers.get(GIVEN_ID)
        if given is not None and REQUEST_ID.fullmatch(given):
            return given
        return self.new_request_id()

    def new_request_id(self) -> str:
        """Make an id for a request."""
        return f"{self._id_prefix}{next(self._id_count):08x}"

    def refuse(self, request: web.BaseRequest, problem: Problem) -> web.Response:
        """Answer a request that is refused before it has a route, and close its connection."""
        response = problem.response()
        response.headers["Server"] = "hotplate"
        response.headers["X-Request-Id"] = self.request_id(request)
        response.force_close()
        self.metrics.observe_request(OTHER, OTHER, response.status, 0.0)
        return response

    def gone(self) -> web.Response:
        """Count a request whose client hung up before it had a route; the answer reaches nobody."""
        self.metrics.observe_request(OTHER, OTHER, CLIENT_GONE, 0.0)
        return web.Response(status=CLIENT_GONE)

    def _work(self, route: Route | None, request: web.BaseRequest, raw_id: str, query: str) -> Awaitable[web.Response]:
        """Have the handler do its work, behind the gate where there is one for it."""
        handler = _handler(route, request.method)
        if self.gate is not None and request.method == "POST":
            return self.gate(request, partial(handler, request, raw_id, query))
        return handler(request, raw_id, query)

    async def answer(self, request: web.BaseRequest, path: str, query: str) -> web.Response:
        """Answer a request for a raw path and query."""
        started = perf_counter()
        route, raw_id = self._routes.find(path)
        request_id = self.request_id(request)
        caller: Caller | None = None
        try:
            response = None
            if self._cors is not None and route is not None:
                response = self._cors.preflight(request, route.methods)
            if response is None:
                scope = scope_of(route.template) if route is not None else None
                if scope is not None:
                    caller = await self._guard.admit(request.headers, scope)
                response = await self._work(route, request, raw_id, query)
        except (Problem, NotReady) as error:
            response = _refused(route, error if isinstance(error, Problem) else not_ready(str(error)))
        except ClientGone:
            response = web.Response(status=CLIENT_GONE)  # it reaches nobody
        except Exception:
            log.exception("request %s failed", request_id)
            response = _refused(route, internal_error(request_id))
        took_s = perf_counter() - started
        response.headers["Server"] = "hotplate"
        response.headers["X-Request-Id"] = request_id
        response.headers["Server-Timing"] = f"app;dur={took_s * 1000:.3f}"
        if self._cors is not None:
            self._cors.admit(request, response)
        if self.draining:
            response.force_close()
        template = OTHER if route is None else route.template
        self.metrics.observe_request(template, request.method, response.status, took_s)
        if self._access_log is not None and (level := self._access_log.level_of(took_s)) is not None:
            client = None if caller is None else caller.name
            self._access_log.write(
                level, request, response, template, request_id=request_id, took_s=took_s, client=client
            )
        return response


def mount(app: web.Application, prefix: str, lists: Lists) -> None:
    """Let *app* answer all routes of the service below *prefix*, from lists that are not open yet.

    The application opens *lists* when it starts, waits a moment for its stores, and closes them when it stops; its own
    handlers may use them meanwhile. As long as no release is served, requests get 503. Who may call is the
    application's own to say, as by a middleware: no key is asked for here, and `/metrics` is among the routes.
    """
    lists.reader.warm = True
    dispatcher = Dispatcher(lists.reader)

    async def answer(request: web.Request) -> web.Response:
        resource = request.match_info.route.resource
        depth = 0 if resource is None else resource.canonical.count("/")  # the prefix is as the caller encoded it
        path = "/" + request.rel_url.raw_path.split("/", depth)[-1]
        return await dispatcher.answer(request, path, request.rel_url.raw_query_string)

    async def lifespan(_: web.Application) -> AsyncIterator[None]:
        async with lists.reader:
            await lists.reader.wait_until_attempted()
            yield

    async def drain(_: web.Application) -> None:
        dispatcher.drain()

    service = web.Application()
    service.router.add_route("*", "/{path:.*}", answer)
    service.cleanup_ctx.append(lifespan)
    service.on_shutdown.append(drain)
    app.add_subapp(prefix, service)
