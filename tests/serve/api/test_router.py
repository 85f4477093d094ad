"""Which route a path and a method name."""

import pytest
from aiohttp import web

from hotplate.serve.api.router import NO_ROUTE, Route, Router, by_template


async def handler(_request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
    return web.Response()


USER = Route("/v1/users/{user}", {"GET": handler})
MANY = Route("/v1/users/fold-in", {"POST": handler})
CHANGE = Route("/v1/releases/{id}/activate", {"POST": handler})
ROLLBACK = Route("/v1/releases/rollback", {"POST": handler})
ROUTER = Router(by_template(USER, MANY, CHANGE, ROLLBACK), None, problems=())


@pytest.mark.parametrize(
    ("method", "path", "route", "raw_id"),
    [
        ("GET", "/v1/users/a%2Fb", USER, "a%2Fb"),
        ("GET", "/v1/users/", USER, ""),
        ("POST", "/v1/users/fold-in", MANY, ""),
        ("GET", "/v1/users/fold-in", USER, "fold-in"),  # a user of this name
        ("HEAD", "/v1/users/fold-in", USER, "fold-in"),
        ("PUT", "/v1/users/fold-in", MANY, ""),  # which no route takes
        ("POST", "/v1/releases/r1/activate", CHANGE, "r1"),
        ("POST", "/v1/releases//activate", NO_ROUTE, ""),
        ("GET", "/v1/releases/rollback", ROLLBACK, ""),
        ("GET", "/v1/users/a/b", NO_ROUTE, ""),
        ("GET", "/v1/users/a/", NO_ROUTE, ""),
        ("GET", "/v1/users", NO_ROUTE, ""),
        ("GET", "*", NO_ROUTE, ""),
    ],
)
def test_route_is_found_by_path_and_method(method: str, path: str, route: Route, raw_id: str) -> None:
    assert ROUTER.find(path, method) == (route, raw_id)
