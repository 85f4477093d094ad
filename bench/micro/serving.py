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
from pathlib import Path
from statistics import median

from bench.lists import Shape
from bench.loadgen.keys import Keys, Uniform
from bench.loadgen.load import Load, send_one
from bench.micro.c_peers import missing, nginx_serving
from bench.micro.harness import Candidate, Candidates, Case, Effort, Goal, Round, at_least, at_most
from bench.micro.http_peer import COPIED, must_be_alike, peer_serving
from bench.micro.publishing import publish_to
from bench.micro.servers import (
    LIST_LENGTH,
    WARMUP_S,
    by_generator,
    fetch,
    gets,
    hotplate_serving,
    keys_of,
    paced,
    path_of,
    saturated,
)
from bench.process import Server, on_core
from serve.access.keys import READ, create

TITLED = Shape(1_000, items=LIST_LENGTH, title_chars=17)
# What the plainest aiohttp has, to which all requests are the same.
FEW = Keys(COPIED, Uniform())
OURS, CHANGING = "hotplate", "hotplate, changing headers"
# A flip needs some time to be seen, for the release is read into memory first.
FLIP_S = 3.0
# Waits so many seconds, and POSTs to a URL.
FLIP = """\
import sys, time, urllib.request
time.sleep(float(sys.argv[1]))
urllib.request.urlopen(urllib.request.Request(sys.argv[2], method="POST")).close()
"""


@contextmanager
def _http_peer(effort: Effort) -> Iterator[Candidates]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        publish_to(f"file://{folder}", TITLED, TITLED.values())
        service = stack.enter_context(hotplate_serving(f"file://{folder}"))
        peer = stack.enter_context(peer_serving(service))
        stack.enter_context(on_core(1))
        load = gets(FEW, effort.round_s)
        yield {OURS: by_generator(service, load), "aiohttp": by_generator(peer, load)}


# A GET among many users, for a shop that has a key


@dataclass(frozen=True, slots=True)
class Shop:
    """A store with two releases of all users, the options of a service for it, and loads by who sends them."""

    store: str
    options: tuple[str, ...]
    releases: tuple[str, str]
    loads: Mapping[str, Load]

    def serving(self, stack: ExitStack, workers: int = 1) -> Server:
        """Start a service that ends with *stack*."""
        return stack.enter_context(hotplate_serving(self.store, *self.options, workers=workers))


@contextmanager
def _shop(effort: Effort) -> Iterator[Shop]:
    shape = Shape(effort.users, LIST_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        store, keys, values = f"file://{folder}/store", Path(folder) / "keys.json", shape.values()
        first, second = (publish_to(store, shape, values).release.id for _ in range(2))
        shop, limited = create(keys, "shop", [READ]).key, create(keys, "limited", [READ], 0.001).key

        def load(key: str, varying: tuple[Mapping[str, str], ...] = ()) -> Load:
            headers = {"Accept": "application/json", "User-Agent": "shop/1.0", "X-API-Key": key}
            return gets(keys_of(effort.users), effort.round_s, headers, varying)

        loads = {
            OURS: load(shop),
            CHANGING: load(shop, behind_a_proxy()),
            "401": replace(load("unknown"), check=partial(_unless, 401)),
            "429": replace(load(limited), check=partial(_unless, 429)),
        }
        yield Shop(store, ("--keys", str(keys), "--anonymous", "--admin-store", store), (first, second), loads)


def behind_a_proxy() -> tuple[Mapping[str, str], ...]:
    """Draw headers that a proxy adds to a request, each time others."""
    rng = random.Random(0)  # noqa: S311 -- spreads requests, guards nothing

    def address() -> str:
        return ".".join(str(rng.randrange(256)) for _ in range(4))

    return tuple(
        {"X-Forwarded-For": address(), "traceparent": f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01"}
        for _ in range(4_096)
    )


def _unless(expected: int, status: int, body: bytes) -> str | None:
    """Call every status an error but the one that a load is made for."""
    del body
    return None if status == expected else "status"


def _nginx_like(service: Server, stack: ExitStack) -> Server:
    """Start nginx, which gives one of the service's responses; it ends with *stack*."""
    nginx = stack.enter_context(nginx_serving(*fetch(service.url + path_of(0))))
    must_be_alike(service.url + path_of(0), nginx.url)
    return nginx


@contextmanager
def _hot_path(effort: Effort) -> Iterator[Candidates]:
    with _shop(effort) as shop, ExitStack() as stack:
        service, absent, loads = shop.serving(stack), missing("nginx"), shop.loads
        peer = stack.enter_context(peer_serving(service))
        nginx: Candidate | str = absent or saturated(_nginx_like(service, stack), loads[OURS])
        # The only one that is answered for long.
        send_one(service.url, next(replace(loads["429"], url=service.url).rendered()), timeout_s=5.0)
        stack.enter_context(on_core(1))
        yield {
            OURS: saturated(service, loads[OURS]),
            CHANGING: saturated(service, loads[CHANGING]),
            "aiohttp": saturated(peer, gets(FEW, effort.round_s, loads[OURS].headers)),
            "nginx": nginx,
            "hotplate by hotplate bench": missing("wrk") or by_generator(service, loads[OURS]),
            "hotplate, 401": by_generator(service, loads["401"]),
            "hotplate, 429": by_generator(service, loads["429"]),
        }


@contextmanager
def _tail(effort: Effort) -> Iterator[Candidates]:
    """Send half of what the service can take: to it, to nginx, and to it while another release goes live."""
    with _shop(effort) as shop, ExitStack() as stack:
        service, absent = shop.serving(stack), missing("nginx")
        nginx = None if absent else _nginx_like(service, stack)
        stack.enter_context(on_core(1))
        load = replace(shop.loads[CHANGING], duration_s=max(FLIP_S, effort.round_s))
        measure = saturated(service, shop.loads[CHANGING])
        rate = median(measure()["rate"] for _ in range(3)) / 2
        releases = list(shop.releases)

        def with_flip() -> Round:
            releases.reverse()  # the one that is live was published last
            url = f"{service.admin_url}/v1/releases/{releases[-1]}/activate"
            # In a process of its own, so the generator need not stop for that.
            flip = subprocess.Popen([sys.executable, "-c", FLIP, str(WARMUP_S + load.duration_s / 4), url])  # noqa: S603 -- our own
            found = paced(service, load, rate)
            if flip.wait():
                raise RuntimeError(f"POST {url} failed")
            if releases[-1].encode() not in fetch(service.url + path_of(0))[0]:
                raise RuntimeError(f"the service does not serve {releases[-1]}, which was activated")
            return found

        yield {
            OURS: partial(paced, service, load, rate),
            "nginx": absent or partial(paced, nginx or service, load, rate),
            "with a flip": with_flip,
        }


@contextmanager
def _workers(effort: Effort) -> Iterator[Candidates]:
    """Put two workers on one core, because the generator needs the other; memory is read when nothing is sent."""
    with _shop(effort) as shop, ExitStack() as stack:
        one, two = shop.serving(stack), shop.serving(stack, workers=2)
        stack.enter_context(on_core(1))
        yield {
            "one": saturated(one, shop.loads[CHANGING]),
            "two": saturated(two, shop.loads[CHANGING]),
            "one at rest": lambda: {"memory": one.memory_bytes() / 1e6},
            "two at rest": lambda: {"memory": two.memory_bytes() / 1e6},
        }


CASES = (
    Case(
        "http_peer",
        _http_peer,
        {"hotplate / aiohttp: rate": at_least(0.75)},
        {
            "hotplate / aiohttp: rate": "a GET on one core, compared with one route of aiohttp over a dict: rate",
            "hotplate: CPU": "the same: CPU",
        },
    ),
    Case(
        "hot_path",
        _hot_path,
        {
            "hotplate / nginx: rate": at_least(0.75),
            "hotplate / nginx: CPU": at_most(1.4),
            "hotplate / aiohttp: rate": at_least(3),
            "hotplate by hotplate bench / hotplate: rate": Goal(0.9, 1.1),
        },
        {
            "hotplate / nginx: rate": "a GET among 1,000,000 users, with a key, compared with nginx `return 200`: rate",
            "hotplate: CPU": "the same: CPU",
            "hotplate, changing headers / nginx: rate": "the same, if headers change in each request: rate",
            "hotplate, changing headers: CPU": "the same: CPU",
            "hotplate, 401: CPU": "an answer of 401: CPU",
            "hotplate, 429: CPU": "an answer of 429: CPU",
        },
    ),
    Case(
        "tail",
        _tail,
        {"hotplate / nginx: p99": at_most(1.25), "with a flip / hotplate: p99.9": at_most(2)},
        {
            "hotplate / nginx: p99": "a GET at half load, compared with nginx: p99",
            "with a flip / hotplate: p99.9": "a GET at half load during a flip, compared with no flip: p99.9",
        },
    ),
    Case(
        "workers",
        _workers,
        {"two / one: CPU": at_most(1.1), "two at rest - one at rest: memory": at_most(60)},
        {
            "two / one: CPU": "a GET of two workers on one core, compared with one worker: CPU",
            "two at rest - one at rest: memory": "memory that a second worker adds, among 1,000,000 users",
        },
    ),
)
