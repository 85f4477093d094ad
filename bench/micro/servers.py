"""The service on one core, and load on it from another: as much as it takes, or at a rate."""

import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from hotplate.bench.lists import key_of
from hotplate.bench.loadgen.generator import run
from hotplate.bench.loadgen.keys import RequestKeys, Uniform
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.loadgen.result import Result
from hotplate.bench.micro.harness import CandidateRun, RoundValues
from hotplate.bench.process import Server, service_serving
from hotplate.stores.keys import USER

ROUTE = "/v1/recommendations/"
# What a client of an application programming interface sends besides the request line and Host.
HEADERS = {"User-Agent": "hotplate-bench", "Accept": "application/json", "Accept-Language": "en"}
# The command, as it runs in a process of its own.
HOTPLATE = (sys.executable, "-m", "hotplate")
LIST_LENGTH = 20
# The URL of a load until it is given a server.
ANYWHERE = "http://127.0.0.1"
# How many of all users are requested: more lists than the processor's cache holds.
REQUESTED = 50_000
# How long an open loop runs before it counts: the first of the seconds that a result has.
WARMUP_S = 1.0
WRK_CONNECTIONS = 64
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
    return None if executable(name) else f"{name} is not installed; on Debian or Ubuntu: apt-get install {name}"


def executable(name: str) -> str | None:
    """Find a program, also where those for administrators are, which are not on everybody's PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def id_of(user: int) -> str:
    """Return the id of a user, as requests have it."""
    return key_of(user).removeprefix(USER)


def path_of(user: int) -> str:
    """Return the path of a user's list."""
    return ROUTE + id_of(user)


def keys_of(users: int) -> RequestKeys:
    """Draw REQUESTED of the users, whatever their number is, and request each of them as often."""
    drawn = np.random.default_rng(0).integers(users, size=min(users, REQUESTED)).tolist()
    return RequestKeys([id_of(user) for user in drawn], Uniform())


def gets(
    keys: RequestKeys,
    duration_s: float,
    headers: Mapping[str, str] = HEADERS,
    varying: Sequence[Mapping[str, str]] = (),
) -> Load:
    """Return a closed loop of GETs for random users, each with the next of the *varying* headers, too."""
    requests = Gets(ROUTE + "{key}", keys, varying)
    return Load(url=ANYWHERE, requests=requests, duration_s=duration_s, connections=64, headers=headers)


@contextmanager
def hotplate_serving(store: str, *options: str) -> Iterator[Server]:
    """Serve the store at this URL on the first core; it is up once the first user's list is served.

    Without a cache: what is measured reads the store, as what it is compared with does.
    """
    command = [*HOTPLATE, "serve", "--store", store, "--cache-mb", "0", *options]
    with service_serving(command, path_of(0)) as server:
        yield server


def run_at(server: Server, load: Load) -> tuple[Result, RoundValues]:
    """Run a load, and count the server's CPU. RuntimeError for a single error, because errors are cheap."""
    before_s = server.cpu_s()
    result = run(replace(load, url=server.url))
    if result.errors or not result.ok:
        raise RuntimeError(f"{server.url} gave {result.ok} responses and errors: {dict(result.errors)}")
    return result, {"rate": result.ok_rate, "CPU": (server.cpu_s() - before_s) * 1e6 / result.ok}


def by_generator(server: Server, load: Load) -> CandidateRun:
    """Saturate a server by our own generator."""
    return lambda: run_at(server, load)[1]


def saturated(server: Server, load: Load) -> CandidateRun:
    """Saturate a server by wrk if it is installed, because it costs less than our generator."""
    return by_generator(server, load) if missing("wrk") else partial(_by_wrk, server, load)


def _by_wrk(server: Server, load: Load) -> RoundValues:
    requests = list(islice(replace(load, url=server.url).rendered(), REQUESTED))
    before_s = server.cpu_s()
    count, duration_s = run_wrk(server.url, requests, load.duration_s)
    return {"rate": count / duration_s, "CPU": (server.cpu_s() - before_s) * 1e6 / count}


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


def paced(server: Server, load: Load, rate: float) -> RoundValues:
    """Request at a rate, as independent users come: latencies from when due, and how late the generator was.

    All that is due waits to be sent, whatever the server does. The first second is left out, in which each connection
    sends its first request: that costs more than all others.
    """
    duration_s = load.duration_s + WARMUP_S
    at_rate = replace(load, duration_s=duration_s, rate=rate, seed=1, spin=True, backlog=10_000_000, timeout_s=60.0)
    result, round_ = run_at(server, at_rate)
    first, *others = result.seconds
    latencies_ms = np.concatenate([second.latencies_s for second in others]) * 1e3
    found = {f"p{percent:g}": float(np.percentile(latencies_ms, percent)) for percent in (50, 99, 99.9)}
    return {**round_, **found, "lag p99": float(np.percentile(result.lags_s[first.due :], 99)) * 1e3}


def fetch(url: str) -> tuple[bytes, dict[str, str]]:
    """Fetch the body, and the headers that a service sets."""
    made = {"connection", "content-length", "date", "keep-alive", "server"}
    with urllib.request.urlopen(url) as response:  # noqa: S310 -- http on loopback
        headers = {name: value for name, value in response.getheaders() if name.lower() not in made}
        return response.read(), headers
