"""The plainest aiohttp service that gives the same responses: one route over a dict, filled with copies of them."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop
from aiohttp import web

from hotplate.bench.micro.servers import ROUTE, fetch, id_of
from hotplate.bench.process import Server, free_port, serving

# Few enough lists for the dict and the processor's cache.
COPIED = [id_of(user) for user in range(1_000)]


@contextmanager
def peer_serving(like: Server) -> Iterator[Server]:
    """Run it on the first core, with copies of a service's responses for COPIED."""
    port = free_port()
    command = [sys.executable, "-m", "hotplate.bench.micro.http_peer", "--port", str(port), "--like", like.url]
    with serving(command, port, ROUTE + COPIED[0]) as peer:
        must_be_alike(like.url + ROUTE + COPIED[0], peer.url + ROUTE + COPIED[0])
        yield peer


def must_be_alike(url: str, other: str) -> None:
    """Raise RuntimeError unless both respond with the same body and the same names of headers."""
    (body, headers), (other_body, other_headers) = fetch(url), fetch(other)
    differ = {name.lower() for name in headers} ^ {name.lower() for name in other_headers}
    if body != other_body or differ:
        raise RuntimeError(f"{url} and {other} differ: {body[:200]!r}, {other_body[:200]!r}, headers {sorted(differ)}")


def main() -> None:
    """Copy the responses, then serve them until stopped."""
    parser = argparse.ArgumentParser(prog="python -m hotplate.bench.micro.http_peer", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--like", required=True, metavar="URL", help="the server whose responses are copied")
    options = parser.parse_args()
    responses = {user: fetch(options.like + ROUTE + user) for user in COPIED}

    async def recommendations(request: web.Request) -> web.Response:
        response = responses.get(request.match_info["user"])
        if response is None:
            raise web.HTTPNotFound
        return web.Response(body=response[0], headers=response[1])

    app = web.Application()
    app.router.add_get(ROUTE + "{user:[^/]+}", recommendations)
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=options.port, access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
