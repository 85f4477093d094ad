"""Which path and method reach which handler: a table, and one lookup in it."""

from dataclasses import dataclass

from serve.handlers import Handler, Handlers
from serve.metrics import OTHER
from serve.problems import Problem


@dataclass(frozen=True, slots=True)
class Route:
    """One path template, as metrics name it, and its handlers by method."""

    template: str
    methods: dict[str, Handler]


class Routes:
    """The table: paths that are whole, and paths that end in one id."""

    def __init__(self, handlers: Handlers) -> None:
        self._whole = {
            route.template: route
            for route in (
                Route("/v1/recommendations", {"POST": handlers.recommend_many}),
                Route("/v1/popular", {"GET": handlers.popular}),
                Route("/livez", {"GET": handlers.live}),
                Route("/readyz", {"GET": handlers.ready}),
                Route("/metrics", {"GET": handlers.metrics}),
            )
        }
        self._whole["/health/live"] = self._whole["/livez"]
        self._whole["/health/ready"] = self._whole["/readyz"]
        self._with_id = {
            "/v1/recommendations": Route("/v1/recommendations/{user}", {"GET": handlers.recommend}),
            "/v1/similar": Route("/v1/similar/{item}", {"GET": handlers.similar}),
        }

    def find(self, path: str) -> tuple[Route | None, str]:
        """Return the route of a raw path, and the id that the path ends in, still encoded."""
        route = self._whole.get(path)
        if route is not None:
            return route, ""
        stem, _, raw_id = path.rpartition("/")
        return self._with_id.get(stem), raw_id


def handler_of(route: Route | None, method: str) -> Handler:
    """Return the handler of *method*; a problem where there is no such route or method."""
    if route is None:
        raise Problem(404, "no-such-route", "no route has this path; an id in a path writes / as %2F")
    handler = route.methods.get("GET" if method == "HEAD" else method)
    if handler is None:
        allowed = sorted(route.methods) + (["HEAD"] if "GET" in route.methods else [])
        raise Problem(
            405, "no-such-method", f"{route.template} takes {', '.join(allowed)}", {"Allow": ", ".join(allowed)}
        )
    return handler


def template_of(route: Route | None) -> str:
    """Return how metrics name a route."""
    return OTHER if route is None else route.template
