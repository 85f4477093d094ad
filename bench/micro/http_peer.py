"""How many GETs one core serves, beside the plainest aiohttp service that gives the same responses.

That peer is this module's command: one route over a dict, which it fills with copies of the service's own responses.
"""

import argparse
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import uvloop
from aiohttp import web

from bench.lists import Shape
from bench.micro.publishing import publish_to
from bench.micro.rounds import (
    ROUTE,
    Effort,
    Outcome,
    Sample,
    at_least,
    figures,
    hotplate_serving,
    interleave,
    path_of,
    ratios,
    read,
)
from bench.process import Server, free_port, on_core, serving

# What is served: few enough lists for the peer's dict and the processor's cache, with titles as shops have them.
SERVED = Shape(1_000, items=20, title_chars=17)
PATHS = [path_of(user) for user in range(SERVED.users)]
MADE_BY_AIOHTTP = {"connection", "content-length", "date", "keep-alive"}

Response = tuple[bytes, dict[str, str]]


def measure(effort: Effort) -> list[Outcome]:
    """Start both servers on one core and the generator on another, and saturate them in turn."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        publish_to(store, SERVED, SERVED.values())
        with hotplate_serving(store) as hotplate, peer_serving(hotplate) as peer, on_core(1):
            return compare(hotplate, peer, PATHS, effort)


@contextmanager
def peer_serving(like: Server) -> Iterator[Server]:
    """Run the peer on the first core, with copies of the responses for PATHS."""
    port = free_port()
    command = [sys.executable, "-m", "bench.micro.http_peer", "--port", str(port), "--like", like.url]
    with serving(command, port, PATHS[0]) as peer:
        yield peer


def compare(hotplate: Server, peer: Server, paths: Sequence[str], effort: Effort) -> list[Outcome]:
    """Saturate the two in turn; they must give the same bytes and names of headers."""
    must_be_alike(hotplate.url + paths[0], peer.url + paths[0])

    def saturate(server: Server) -> Sample:
        return read(server, paths, effort.round_s).sample

    taken = interleave({"hotplate": partial(saturate, hotplate), "aiohttp": partial(saturate, peer)}, effort.rounds)
    ours, plain = taken["hotplate"], taken["aiohttp"]
    return [
        *figures("GET on one core, hotplate", ours, each="request"),
        *figures("GET on one core, aiohttp over a dict", plain, each="request"),
        *ratios("GET on one core, hotplate / aiohttp", ours, plain, rate_goal=at_least(0.75)),
    ]


def must_be_alike(url: str, other: str) -> None:
    """Raise RuntimeError unless both respond with the same body and the same names of headers."""
    (body, headers), (other_body, other_headers) = fetch(url), fetch(other)
    if body != other_body:
        raise RuntimeError(f"the bodies of {url} and {other} differ: {body[:200]!r} and {other_body[:200]!r}")
    if differ := {name.lower() for name in headers} ^ {name.lower() for name in other_headers}:
        raise RuntimeError(f"only one of {url} and {other} sends the headers {sorted(differ)}")


def fetch(url: str) -> Response:
    """Fetch the body, and the headers that aiohttp does not make by itself."""
    with urllib.request.urlopen(url) as response:  # noqa: S310 -- http on loopback
        headers = {name: value for name, value in response.getheaders() if name.lower() not in MADE_BY_AIOHTTP}
        return response.read(), headers


def application(responses: dict[str, Response]) -> web.Application:
    """Make the one-route service, as plain as it can be written."""

    async def recommendations(request: web.Request) -> web.Response:
        response = responses.get(request.match_info["user"])
        if response is None:
            raise web.HTTPNotFound
        return web.Response(body=response[0], headers=response[1])

    app = web.Application()
    app.router.add_get(ROUTE + "{user:[^/]+}", recommendations)
    return app


def main() -> None:
    """Copy the responses, then serve them until stopped."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.http_peer", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--like", required=True, metavar="URL", help="the server whose responses are copied")
    options = parser.parse_args()
    responses = {path.removeprefix(ROUTE): fetch(options.like + path) for path in PATHS}
    loop = uvloop.new_event_loop()
    web.run_app(application(responses), host="127.0.0.1", port=options.port, access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
