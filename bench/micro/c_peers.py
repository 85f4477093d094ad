"""What is written in C, set up to do the least: nginx, webdis and wrk, each of them only if it is installed."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hotplate.bench.process import RedisServer, Server, free_port, serving

WRK_CONNECTIONS = 64
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
# wrk sends the requests of a file one after the other; each ends with the first empty line after it begins.
SCRIPT = """\
local requests, number = {{}}, 0
local file = assert(io.open("{requests}", "rb"))
for request in file:read("*a"):gmatch("(.-\\r\\n\\r\\n)") do requests[#requests + 1] = request end
file:close()
request = function()
    number = number % #requests + 1
    return requests[number]
end
"""
_counted = re.compile(r"(\d+) requests in ")
_failed = re.compile(r"Socket errors: .*|Non-2xx or 3xx responses: .*")


def missing(name: str) -> str | None:
    """Return why a program cannot be measured; None if it is installed."""
    return None if path_of(name) else f"{name} is not installed; on Debian or Ubuntu: apt-get install {name}"


def path_of(name: str) -> str | None:
    """Find a program, also where those for administrators are, which are not on everybody's PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


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
        command = [path_of("nginx") or "nginx", "-p", folder, "-e", "stderr", "-c", str(configuration)]
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
        with serving([path_of("webdis") or "webdis", str(configuration)], port, "/PING") as server:
            yield server


def run_wrk(url: str, requests: Iterable[bytes], duration_s: float) -> tuple[int, float]:
    """Let wrk send *requests* over and over; return how many were answered well, and in how many seconds.

    wrk counts in whole seconds. RuntimeError for a single error.
    """
    whole_s = max(1, round(duration_s))
    with tempfile.TemporaryDirectory() as folder:
        script, file = Path(folder) / "wrk.lua", Path(folder) / "requests"
        file.write_bytes(b"".join(requests))
        script.write_text(SCRIPT.format(requests=file))
        command = ["wrk", "-t1", f"-c{WRK_CONNECTIONS}", f"-d{whole_s}", "-s", str(script), url]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- a known tool
    counted, failed = _counted.search(ended.stdout), _failed.search(ended.stdout)
    if counted is None or failed is not None:
        raise RuntimeError(f"wrk printed {(ended.stdout + ended.stderr)[-500:]}")
    return int(counted[1]), float(whole_s)
