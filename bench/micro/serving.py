"""Cases of a service that has its lists in a file: one worker on the first core, its callers on the other.

nginx gives the bytes of one of the service's own responses to every request. wrk saturates both if it is installed;
latencies are of our own generator.
"""

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median

from hotplate.bench.lists import Shape
from hotplate.bench.loadgen.keys import RequestKeys, Uniform
from hotplate.bench.loadgen.load import Load
from hotplate.bench.micro import servers
from hotplate.bench.micro.harness import BenchmarkSize, Candidates, Case, Line, RoundValues, Skipped, at_least, at_most
from hotplate.bench.micro.in_process import publish_to
from hotplate.bench.micro.peers import COPIED, aiohttp_serving, must_be_alike, nginx_serving
from hotplate.bench.process import Server, on_core
from hotplate.serve.access.keys import READ, create
from hotplate.stores.catalogue import ReleaseId

# The plainest aiohttp has these, because all requests are the same to it.
FEW = RequestKeys(COPIED, Uniform())
OURS = "hotplate"
CHANGING = "hotplate, changing headers"
# A flip takes a while, because the release is read into memory first.
FLIP_S = 3.0
# Waits so many seconds, and POSTs to a URL.
FLIP = """\
import sys, time, urllib.request
time.sleep(float(sys.argv[1]))
urllib.request.urlopen(urllib.request.Request(sys.argv[2], method="POST")).close()
"""


@contextmanager
def _http_peer(size: BenchmarkSize) -> Iterator[Candidates]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        shape = Shape(len(COPIED), servers.LIST_LENGTH)
        publish_to(f"file://{folder}", shape, shape.values())
        service = stack.enter_context(servers.hotplate_serving(f"file://{folder}"))
        peer = stack.enter_context(aiohttp_serving(service))
        stack.enter_context(on_core(1))
        load = servers.gets(FEW, size.round_s)
        yield {OURS: servers.by_generator(service, load), "aiohttp": servers.by_generator(peer, load)}


# A GET among many users, with the key of a shop


@dataclass(frozen=True, slots=True)
class Shop:
    """A service of a store with two releases of all users, and loads by the name of who sends them."""

    service: Server
    releases: list[ReleaseId]
    """The one that is live comes last."""

    loads: Mapping[str, Load]


@contextmanager
def _shop(size: BenchmarkSize) -> Iterator[Shop]:
    shape = Shape(size.users, servers.LIST_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        store, keys, values = f"file://{folder}/store", Path(folder) / "keys.json", shape.values()
        releases = [publish_to(store, shape, values).release.id for _ in range(2)]
        key = create(keys, "shop", [READ]).key
        headers = {"Accept": "application/json", "User-Agent": "shop/1.0", "X-API-Key": key}
        load = servers.gets(servers.keys_of(size.users), size.round_s, headers)
        changing = servers.gets(servers.keys_of(size.users), size.round_s, headers, behind_a_proxy())
        with servers.hotplate_serving(store, "--keys", str(keys), "--anonymous", "--admin-store", store) as service:
            yield Shop(service, releases, {OURS: load, CHANGING: changing})


def behind_a_proxy() -> tuple[Mapping[str, str], ...]:
    """Draw headers that a proxy adds to a request, each time others."""
    rng = random.Random(0)  # noqa: S311 -- spreads requests, guards nothing
    return tuple(
        {
            "X-Forwarded-For": str(IPv4Address(rng.getrandbits(32))),
            "traceparent": f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01",
        }
        for _ in range(4_096)
    )


@contextmanager
def _hot_path(size: BenchmarkSize) -> Iterator[Candidates]:
    if absent := servers.missing("nginx"):
        raise Skipped(absent)
    with _shop(size) as shop, ExitStack() as stack:
        url, loads = shop.service.url + servers.path_of(0), shop.loads
        nginx = stack.enter_context(nginx_serving(*servers.fetch(url)))
        must_be_alike(url, nginx.url)
        stack.enter_context(on_core(1))
        ours = {name: servers.saturated(shop.service, load) for name, load in loads.items()}
        yield ours | {"nginx": servers.saturated(nginx, loads[OURS])}


@contextmanager
def _tail(size: BenchmarkSize) -> Iterator[Candidates]:
    """Send half of what the service can take, also while another release goes live."""
    with _shop(size) as shop, on_core(1):
        service = shop.service
        load = replace(shop.loads[CHANGING], duration_s=max(FLIP_S, size.round_s))
        measure = servers.saturated(service, shop.loads[CHANGING])
        rate = median(measure()["rate"] for _ in range(3)) / 2

        def with_flip() -> RoundValues:
            shop.releases.reverse()
            activated = shop.releases[-1]
            url = f"{service.admin_url}/v1/releases/{activated}/activate"
            # In a process of its own, so the generator need not stop for that.
            flip = subprocess.Popen([sys.executable, "-c", FLIP, str(servers.WARMUP_S + load.duration_s / 4), url])  # noqa: S603 -- our own
            found = servers.paced(service, load, rate)
            if flip.wait():
                raise RuntimeError(f"POST {url} failed")
            if activated.encode() not in servers.fetch(service.url + servers.path_of(0))[0]:
                raise RuntimeError(f"the service does not serve {activated}, which was activated")
            return found

        yield {OURS: partial(servers.paced, service, load, rate), "with a flip": with_flip}


CASES = (
    Case(
        "http_peer",
        _http_peer,
        {
            "hotplate / aiohttp: rate": Line(
                "a GET on one core, compared with one route of aiohttp over a dict: rate", at_least(0.75)
            ),
            "hotplate: CPU": Line("the same: CPU"),
        },
    ),
    Case(
        "hot_path",
        _hot_path,
        {
            "hotplate / nginx: rate": Line(
                "a GET among 1,000,000 users, with a key, compared with nginx `return 200`: rate", at_least(0.75)
            ),
            "hotplate: CPU": Line("the same: CPU"),
            "hotplate, changing headers / nginx: rate": Line("the same, if headers change in each request: rate"),
            "hotplate, changing headers: CPU": Line("the same: CPU"),
        },
    ),
    Case(
        "tail",
        _tail,
        {
            "with a flip / hotplate: p99.9": Line(
                "a GET at half load during a flip, compared with no flip: p99.9", at_most(2)
            ),
        },
    ),
)
