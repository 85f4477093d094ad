"""What hotplate is held against: one aiohttp route over a dict, which gives the very answers that it copied before."""

import argparse
import urllib.request
from pathlib import Path
from urllib.parse import unquote

import uvloop
from aiohttp import web

ROUTE = "/v1/recommendations/"
MADE_BY_AIOHTTP = {"connection", "content-length", "date", "keep-alive"}

Answer = tuple[bytes, dict[str, str]]


def copy(url: str) -> Answer:
    """Fetch the body, and the headers that aiohttp does not make by itself."""
    with urllib.request.urlopen(url) as answer:  # noqa: S310 -- http on loopback
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in MADE_BY_AIOHTTP}
        return answer.read(), headers


def application(answers: dict[str, Answer]) -> web.Application:
    """Make the one-route service, as plain as it can be written."""

    async def recommendations(request: web.Request) -> web.Response:
        found = answers.get(request.match_info["user"])
        if found is None:
            raise web.HTTPNotFound
        return web.Response(body=found[0], headers=found[1])

    app = web.Application()
    app.router.add_get(ROUTE + "{user:[^/]+}", recommendations)
    return app


def main() -> None:
    """Copy the answers, then serve them until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.aiohttp_peer", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--like", required=True, metavar="URL", help="the server whose answers are copied")
    parser.add_argument("--paths-file", type=Path, required=True, help=f"paths under {ROUTE}, one per line")
    asked = parser.parse_args()
    paths = asked.paths_file.read_text().split()
    answers = {unquote(path.removeprefix(ROUTE)): copy(asked.like + path) for path in paths}
    loop = uvloop.new_event_loop()
    web.run_app(application(answers), host="127.0.0.1", port=asked.port, access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
