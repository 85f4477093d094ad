"""Servers that the service is compared with: nginx and webdis, set up to do as little as they can, and plain aiohttp.

The aiohttp service (`main`, in its own process) has one route, which reads copies of responses from a dict.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvloop
from aiohttp import web

from hotplate.bench.micro.servers import ROUTE, executable, fetch, id_of
from hotplate.bench.process import RedisServer, Server, free_port, serving

# Few enough lists for aiohttp's dict and the processor's cache.
COPIED = [id_of(user) for user in range(1_000)]
# Written by nginx itself, or again for each response.
MADE_BY_NGINX = {"connection", "content-length", "content-type", "date", "keep-alive", "server"}
NGINX = """\
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        default_type {content_type};
        location / {{
{headers}
            return 200 '{body}';
        }}
    }}
}}
"""


@contextmanager
def nginx_serving(body: bytes, headers: Mapping[str, str]) -> Iterator[Server]:
    """Run one nginx worker on the first core, which gives this response to every request, out of its configuration."""
    text, port = body.decode(), free_port()
    if any(character in text for character in "'\\$"):
        raise ValueError(f"nginx would read more than text in {text[:200]}")
    added = [f"add_header {name} '{value}';" for name, value in headers.items() if name.lower() not in MADE_BY_NGINX]
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "nginx.conf"
        configuration.write_text(
            NGINX.format(
                folder=folder, port=port, content_type=headers["Content-Type"], headers="\n".join(added), body=text
            )
        )
        command = [executable("nginx") or "nginx", "-p", folder, "-e", "stderr", "-c", str(configuration)]
        with serving(command, port, "/") as server:
            yield server


@contextmanager
def webdis_serving(redis: RedisServer) -> Iterator[Server]:
    """Run webdis with one thread on the first core, before a redis-server."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "webdis.json"
        settings = {
            "redis_host": "127.0.0.1",
            "redis_port": redis.port,
            "http_host": "127.0.0.1",
            "http_port": port,
            "threads": 1,
            "daemonize": False,
            "verbosity": 0,
            "logfile": f"{folder}/webdis.log",
        }
        configuration.write_text(json.dumps(settings))
        with serving([executable("webdis") or "webdis", str(configuration)], port, "/PING") as server:
            yield server


@contextmanager
def aiohttp_serving(like: Server) -> Iterator[Server]:
    """Run aiohttp's service on the first core, with copies of a service's responses for COPIED."""
    port = free_port()
    command = [sys.executable, "-m", "hotplate.bench.micro.peers", str(port), like.url]
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
    """Serve copies of a service's responses: the arguments are our port and its URL."""
    port, like = sys.argv[1:]
    responses = {user: fetch(like + ROUTE + user) for user in COPIED}

    async def recommendations(request: web.Request) -> web.Response:
        response = responses.get(request.match_info["user"])
        if response is None:
            raise web.HTTPNotFound
        return web.Response(body=response[0], headers=response[1])

    app = web.Application()
    app.router.add_get(ROUTE + "{user:[^/]+}", recommendations)
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
