"""Cases of what is more than a GET: too many batches, visitors that are folded in, and events."""

import asyncio
import itertools
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import orjson
import uvloop

from bench.lists import Shape
from bench.loadgen.generator import drive, run
from bench.loadgen.keys import Keys, Uniform
from bench.loadgen.load import Load, Posts, request_tail
from bench.loadgen.result import Result
from bench.micro.harness import Candidates, Case, Effort, Round, at_least, at_most
from bench.micro.publishing import publish_factors, publish_to
from bench.micro.servers import ANYWHERE, HEADERS, gets, hotplate_serving, keys_of, percentiles, run_at
from bench.process import Server, on_core

SERVED = Shape(10_000, items=20, title_chars=17)
# Answers within so long are in time; what is offered is counted from when it was due.
GOOD_S = 1.0
# So many rounds' time are one of these, for there to be a p99.
ROUNDS_LONG = 8
VISITORS_S, GETS_S = 25.0, 2_000.0
# A visitor's items, and the model.
BASKET, ITEMS, FACTORS = 10, 27_000, 256
# One visit of events: a list of ten shown, and what came of it.
EVENTS, SHOWN = 20, 10


@contextmanager
def _overload(effort: Effort) -> Iterator[Candidates]:
    """Offer batches for 1,000 users at multiples of what the service gives to as few callers as keep it busy."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        publish_to(f"file://{folder}", SERVED, SERVED.values())
        server = stack.enter_context(hotplate_serving(f"file://{folder}"))
        stack.enter_context(on_core(1))
        load = Load(url=server.url, requests=Posts(keys_of(SERVED.users), 1_000), duration_s=effort.round_s,
                    connections=256, headers=HEADERS, backlog=1_000_000)  # fmt: skip
        # The most of some rounds: what others of the machine take from one is not a capacity that the service lacks.
        capacity = max(run(replace(load, connections=2)).ok_rate for _ in range(effort.rounds))
        long = replace(load, duration_s=ROUNDS_LONG * effort.round_s)
        offered = {"at 0.2": 0.2, "at 1": 1.0, "at 3": 3.0}
        yield {name: partial(_offer, long, capacity * factor) for name, factor in offered.items()}


def _offer(load: Load, rate: float) -> Round:
    result = run(replace(load, rate=rate))
    return {"goodput": float((result.latencies_s <= GOOD_S).sum()) / load.duration_s, **percentiles(result.latencies_s)}


# Visitors


@dataclass(frozen=True, slots=True)
class Baskets:
    """POSTs of visitors, each with some items."""

    keys: Keys

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `bench.loadgen.load.Requests`."""
        drawn = iter(self.keys)
        while True:
            yield _post("/v1/recommendations/fold-in", host, headers, {"items": list(itertools.islice(drawn, BASKET))})


def _post(path: str, host: str, headers: Mapping[str, str], body: object) -> bytes:
    encoded = orjson.dumps(body)
    fields = {"Content-Type": "application/json", "Content-Length": str(len(encoded)), **headers}
    return f"POST {path}".encode() + request_tail(host, fields) + encoded


@contextmanager
def _fold_in(effort: Effort) -> Iterator[Candidates]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        publish_factors(f"file://{folder}", SERVED, ITEMS, FACTORS)
        server = stack.enter_context(hotplate_serving(f"file://{folder}", "--fold-in"))
        stack.enter_context(on_core(1))
        baskets = Baskets(Keys([f"i{number}" for number in range(ITEMS)], Uniform()))
        one = Load(url=server.url, requests=baskets, duration_s=effort.round_s, connections=1, headers=HEADERS)
        visitors = replace(one, connections=8, rate=VISITORS_S, duration_s=ROUNDS_LONG * effort.round_s)
        others = replace(gets(keys_of(SERVED.users), visitors.duration_s), url=server.url, rate=GETS_S, connections=8)
        yield {
            "visitors": lambda: percentiles(_together(visitors)[0].latencies_s),
            "GETs": lambda: {"GETs p99": percentiles(_together(others)[0].latencies_s)["p99"]},
            "both": lambda: _both(visitors, others),
            "one by one": lambda: run_at(server, one)[1],
        }


def _both(visitors: Load, others: Load) -> Round:
    of_visitors, of_gets = (percentiles(result.latencies_s) for result in _together(visitors, others))
    return {**of_visitors, "GETs p99": of_gets["p99"]}


def _together(*loads: Load) -> list[Result]:
    """Run loads at once; RuntimeError for a single error that is not a refusal, because errors are cheap."""

    async def drive_all() -> list[Result]:
        return await asyncio.gather(*map(drive, loads))

    results = uvloop.run(drive_all())
    for result in results:
        if not result.ok or sum(result.errors.values()) > result.statuses.get(503, 0):
            raise RuntimeError(f"there were {result.ok} responses and errors: {dict(result.errors)}")
    return results


# Events


@dataclass(frozen=True, slots=True)
class Reports:
    """POSTs of EVENTS events each, one in ten of which is of a list that was shown; 512 of them in turn."""

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `bench.loadgen.load.Requests`."""
        drawn = random.Random(1)  # noqa: S311 -- events to be measured with, nothing secret

        def event(number: int) -> dict[str, object]:
            shown = number % 10 == 0
            return {
                "id": f"{drawn.getrandbits(64):016x}",
                "user": str(drawn.randrange(1_000_000)),
                "items": [str(drawn.randrange(100_000)) for _ in range(SHOWN if shown else 1)],
                "type": "impression" if shown else "click",
                "release": "20261120T064200Z-7f3a",
                "position": 1 if shown else drawn.randrange(1, 11),
                "time": 1_790_000_000 + drawn.randrange(1_000_000),
            }

        bodies = [{"events": [event(number) for number in range(EVENTS)]} for _ in range(512)]
        return itertools.cycle([_post("/v1/events", host, headers, body) for body in bodies])


@contextmanager
def _events(effort: Effort) -> Iterator[Candidates]:
    """Report events from few callers and from many, each answered once it is on the disk."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store = f"file://{folder}/store"
        publish_to(store, SERVED, SERVED.values())
        server = stack.enter_context(hotplate_serving(store, "--events", f"{folder}/events"))
        stack.enter_context(on_core(1))
        load = Load(url=ANYWHERE, requests=Reports(), duration_s=effort.round_s, headers=HEADERS)
        callers = {"1 caller": 1, "8 callers": 8, "32 callers": 32}
        yield {name: partial(_reported, server, replace(load, connections=count)) for name, count in callers.items()}


def _reported(server: Server, load: Load) -> Round:
    """Run a load, and count the CPU of the service for what it took, that of what it refused included."""
    before_s = server.cpu_s()
    (result,) = _together(replace(load, url=server.url))
    return {"rate": EVENTS * result.ok_rate, "rate by CPU": EVENTS * result.ok / (server.cpu_s() - before_s)}


CASES = (
    Case(
        "overload",
        _overload,
        {"at 3 / at 1: goodput": at_least(0.85), "at 3 / at 0.2: p99": at_most(5)},
        {
            "at 3 / at 1: goodput": "batches in time at three times the capacity, compared with the capacity",
            "at 3 / at 0.2: p99": "the same, compared with a fifth of the capacity: p99",
        },
    ),
    Case(
        "fold_in",
        _fold_in,
        {"visitors: p99": at_most(10), "both: p99": at_most(10)},
        {
            "visitors: p99": "folding in a visitor, 27,000 items of 256 factors: p99",
            "both: p99": "the same with 2,000 GETs/s at the same time: p99",
            "one by one: CPU": "the same: CPU",
        },
    ),
    Case(
        "events",
        _events,
        {"32 callers: rate by CPU": at_least(20000)},
        {"32 callers: rate by CPU": "events, 20 a request, each answered once it is on the disk: in a second of CPU"},
    ),
)
