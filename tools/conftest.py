"""Fixtures of `make bench`: stores with lists, a service, its peers, and wrk.

HOTPLATE_BENCH_USERS is the number of users (100,000).
"""

import asyncio
import os
import random
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import uvloop

from hotplate.bench.loadgen.result import POPULAR_SOURCE
from hotplate.bench.measure.lists import Shape, publish_rows
from hotplate.bench.options import MAX_POPULAR
from hotplate.bench.process import (
    REDIS_SERVER,
    RedisServer,
    Server,
    emulator_serving,
    free_port,
    on_core,
    read_samples,
    redis_serving,
    service_serving,
    serving,
)
from hotplate.bench.stores.rounds import PATIENCE_S
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import run_on

# pytest-benchmark publishes no types.
Benchmark: TypeAlias = Any
LIST_LENGTH = 20
ROUTE = "/v1/recommendations/"
FIRST_USER = f"{0:08d}"
TIMES = "\N{MULTIPLICATION SIGN}"
COUNT = 1_000  # reads of one round
PLENTY_RU = 1_000_000  # the emulator must not throttle
COSMOS_USERS = 2_000
LUA_MODULES = Path("/usr/share/lua/5.1")
WRK_CONNECTIONS = 64
WRK_SECONDS = 2
REQUESTED = 50_000
HEADERS = {"User-Agent": "hotplate-bench", "Accept": "application/json", "Accept-Language": "en"}
# For wrk: send a file's requests in order.
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
# For {main} and {location}, see the functions below.
NGINX = """\
{main}
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
    {http}
    server {{
        listen 127.0.0.1:{port};
        default_type application/json;
        {location}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class FilledStore:
    """A store with lists, as its live release."""

    url: str
    shape: Shape
    release: ReleaseRef


def publish_lists(url: str, shape: Shape, values: Sequence[bytes]) -> FilledStore:
    """Publish lists of *shape*, with bodies from *values*."""
    release = run_on(url, lambda store: publish_rows(store, shape.batches(values), shape.plan))
    return FilledStore(url, shape, release)


def executable(name: str) -> str:
    """Find a program, also in sbin, or skip the benchmark."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed; on Debian or Ubuntu: apt-get install {name}")
    return path


@pytest.fixture(scope="session")
def shape() -> Shape:
    """Return the shape of the lists."""
    return Shape(int(os.environ.get("HOTPLATE_BENCH_USERS", "100000")), LIST_LENGTH)


@pytest.fixture(scope="session")
def values(shape: Shape) -> list[bytes]:
    """Return the bodies of the lists."""
    return shape.values()


@pytest.fixture(scope="session")
def run() -> Iterator[Callable[[Awaitable[object]], object]]:
    """Run coroutines on a shared uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.run  # type: ignore[misc]  # a coroutine is an awaitable


@pytest.fixture(scope="session")
def files(shape: Shape, values: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> FilledStore:
    """Return a store in files."""
    return publish_lists(f"file://{tmp_path_factory.mktemp('files')}/store", shape, values)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Run a redis-server."""
    executable(REDIS_SERVER)
    with redis_serving() as server:
        yield server


@pytest.fixture(scope="session")
def redis(redis_server: RedisServer, shape: Shape, values: list[bytes]) -> FilledStore:
    """Return a store in Redis."""
    return publish_lists(redis_server.url(), shape, values)


@pytest.fixture(scope="session")
def cosmos(values: list[bytes]) -> Iterator[FilledStore]:
    """Return a store in the emulator of Cosmos DB."""
    with emulator_serving(core=0) as emulator:
        url = f"cosmos+{emulator.url}/bench?ru={PLENTY_RU}"
        yield publish_lists(url, Shape(COSMOS_USERS, LIST_LENGTH), values)


def service_of(store: str, *options: str) -> AbstractContextManager[Server]:
    """Serve the store at the URL *store* without a cache, on the first core.

    The service waits long for a read: a slow one counts as slow, and is not answered by the popular list.
    """
    return service_serving(store, ROUTE + FIRST_USER, ("--budget", f"{PATIENCE_S:g}", *options))


@contextmanager
def nginx_of(body: bytes, headers: Mapping[str, str]) -> Iterator[Server]:
    """Run one nginx worker with a fixed response."""
    text = body.decode()
    if any(character in text for character in "'\\$"):
        raise ValueError(f"nginx would expand characters of {text[:200]}")
    with _nginx(f"location / {{ {_added(headers)} return 200 '{text}'; }}", "/") as server:
        yield server


@contextmanager
def nginx_with_files(bodies: Mapping[str, bytes], headers: Mapping[str, str]) -> Iterator[Server]:
    """Run one nginx worker that serves responses from files, which it keeps open, until the block ends.

    *bodies* has a response by user; all get the same *headers*.
    """
    headers = {name: value for name, value in headers.items() if name.lower() != "etag"}  # nginx makes its own
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # started by root, nginx reads as another user
        for user, body in bodies.items():
            (Path(folder) / user).write_bytes(body)

        location = f"""
            location {ROUTE} {{
                alias {folder}/;
                open_file_cache max={2 * len(bodies)} inactive=1h;
                open_file_cache_valid 1h;
                etag on;
                {_added(headers)}
            }}"""
        with _nginx(location, ROUTE + next(iter(bodies))) as server:
            yield server


@contextmanager
def nginx_with_lua(redis: RedisServer, prefix: str, headers: Mapping[str, str], user: str) -> Iterator[Server]:
    """Run one nginx worker, with Lua code that gets lists from Redis over persistent connections, until the block ends.

    The key of a user's list is *prefix* and the user's id. The block begins once *user*, who has a list, is answered.
    Responses get *headers*. Skips the test if nginx has no Lua.
    """
    module = Path("/usr/lib/nginx/modules/ngx_http_lua_module.so")
    # Of Debian's lua-nginx-redis, or of OpenResty.
    clients = {"nginx.redis": "nginx/redis.lua", "resty.redis": "resty/redis.lua"}
    client = next((name for name, file in clients.items() if (LUA_MODULES / file).exists()), None)
    if client is None or not module.exists():
        pytest.skip("nginx has no Lua; on Debian or Ubuntu: apt-get install libnginx-mod-http-lua lua-nginx-redis")

    main = f"load_module {module.with_name('ndk_http_module.so')}; load_module {module};"
    location = f"""
        location ~ ^{ROUTE}(?<user>[^/]+)$ {{
            {_added(headers)}
            content_by_lua_block {{
                local connection = require("{client}"):new()
                connection:set_timeout(1000)
                if not connection:connect("127.0.0.1", {redis.port}) then return ngx.exit(503) end
                local list, error = connection:get("{prefix}" .. ngx.var.user)
                if not list then return ngx.exit(503) end
                connection:set_keepalive(60000, 128)
                if list == ngx.null then return ngx.exit(404) end
                ngx.header["Content-Length"] = #list
                ngx.print(list)
            }}
        }}"""
    paths = f'lua_package_path "{LUA_MODULES}/?.lua;;";'
    with _nginx(location, ROUTE + user, main=main, http=paths) as server:
        yield server


def _added(headers: Mapping[str, str]) -> str:
    own = {"connection", "content-length", "content-type", "date", "keep-alive", "server"}
    return "\n".join(f"add_header {name} '{value}';" for name, value in headers.items() if name.lower() not in own)


@contextmanager
def _nginx(location: str, path: str, *, main: str = "", http: str = "") -> Iterator[Server]:
    """Run one nginx worker until the block ends. The block begins once *path* is answered with 200.

    *location*, *main* and *http* are nginx directives for the server, the top level and the http block.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "nginx.conf"
        text = NGINX.format(folder=folder, port=port, main=main, http=http, location=location)
        configuration.write_text(text)
        command = [executable("nginx"), "-p", folder, "-e", "stderr", "-c", str(configuration)]
        with serving(command, port, path) as server:
            yield server


def fetch(url: str) -> tuple[bytes, dict[str, str]]:
    """Return a response's body and the application's headers."""
    automatic = {"connection", "content-length", "date", "keep-alive", "server"}
    with urllib.request.urlopen(url) as response:  # noqa: S310 -- http on loopback
        headers = {name: value for name, value in response.getheaders() if name.lower() not in automatic}
        return response.read(), headers


def must_be_alike(url: str, other: str) -> None:
    """Raise RuntimeError unless two URLs have equal bodies and equal names of headers."""
    body, headers = fetch(url)
    other_body, other_headers = fetch(other)
    differ = {name.lower() for name in headers} ^ {name.lower() for name in other_headers}
    if body != other_body or differ:
        raise RuntimeError(f"{url} and {other} differ: {body[:200]!r}, {other_body[:200]!r}, headers {sorted(differ)}")


def random_gets(path: str, users: Sequence[str], headers: Mapping[str, str] = HEADERS) -> bytes:
    """Return GETs of random users; *path* contains `{user}`."""
    tail = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    drawn = random.Random(0).choices(users, k=REQUESTED)  # noqa: S311 -- spreads requests
    requests = [f"GET {path.replace('{user}', user)} HTTP/1.1\r\nHost: 127.0.0.1\r\n{tail}\r\n" for user in drawn]
    return "".join(requests).encode()


class Saturation(NamedTuple):
    """Requests/s, and the server's CPU a request in µs."""

    rate: float
    cpu_us: float


def saturate(server: Server, requests: bytes) -> Saturation:
    """Load *server* fully with wrk for WRK_SECONDS; return its rate and its CPU time in µs for an answer.

    *requests* are sent in their order, again and again. Raises RuntimeError for errors, and if more than the share
    MAX_POPULAR of the lists were the popular list: it is the fallback for a user's own list, and cheaper to answer.
    """
    before = lookups(server)
    cpu_before_s = server.cpu_s()
    output = _run_wrk(server, requests)
    used_s = server.cpu_s() - cpu_before_s

    request_count = re.search(r"(\d+) requests in ", output)
    if request_count is None or re.search(r"Socket errors: |Non-2xx or 3xx responses: ", output):
        raise RuntimeError(f"wrk printed {output[-500:]}")
    answers = int(request_count[1])

    answered = lookups(server) - before
    popular = answered[POPULAR_SOURCE]
    if popular > MAX_POPULAR * answered.total():
        raise RuntimeError(f"{popular:,} of {answered.total():,} lists were popular ones; is the machine busy?")
    return Saturation(answers / WRK_SECONDS, used_s * 1e6 / answers)


def _run_wrk(server: Server, requests: bytes) -> str:
    """Load *server* with wrk, a load generator, on the second core for WRK_SECONDS; return what it printed.

    wrk gets *requests*, complete HTTP requests in a row, from a file, by a Lua script that takes one after the other.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "wrk.lua"
        file = Path(folder) / "requests"
        file.write_bytes(requests)
        script.write_text(SCRIPT.format(requests=file))

        options = ["-t1", f"-c{WRK_CONNECTIONS}", f"-d{WRK_SECONDS}", "-s", str(script)]
        with on_core(1):
            ended = subprocess.run(  # noqa: S603 -- a known tool
                [executable("wrk"), *options, server.url], capture_output=True, text=True, check=False
            )
    return ended.stdout + ended.stderr


def lookups(server: Server) -> Counter[str]:
    """Return the lists that a service has answered since its start, by their source; none for a peer."""
    counts = Counter[str]()
    if server.admin_url:
        for sample in read_samples(f"{server.admin_url}/metrics"):
            if sample.name == "hotplate_lookups_total":
                counts[sample.labels["source"]] += round(sample.value)
    return counts
