"""Folding in visitors: how long one waits for a list, alone and beside GETs of others, and what it costs."""

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import orjson
import uvloop

from bench.lists import Shape, key_of
from bench.loadgen.generator import drive
from bench.loadgen.keys import Keys, Uniform
from bench.loadgen.load import Gets, Load
from bench.loadgen.result import Result
from bench.micro.overload import refused_share
from bench.micro.rounds import (
    HEADERS,
    ROUTE,
    Effort,
    Figure,
    Outcome,
    at_most,
    figures,
    hotplate_serving,
    interleave,
    run_at,
)
from bench.process import Server, on_core
from stores.connect import connect
from stores.factors import Description, Entry, description_row, pieces
from stores.keys import USER
from stores.lifecycle import publish
from stores.store import Plan, Row

ITEMS, FACTORS = 27_000, 256
# What a visitor has.
BASKET = 10
SERVED = Shape(10_000, items=20, title_chars=17)
PATH = "/v1/recommendations/fold-in"
# Visitors and GETs per second, few enough that none waits for another of its kind.
VISITORS_S, GETS_S = 25.0, 2_000.0
# So many rounds' time are one of these, for there to be a p99 of visitors.
ROUNDS_LONG = 8
GOAL_MS = 10.0


@dataclass(frozen=True, slots=True)
class Baskets:
    """POSTs of visitors, each with some items."""

    keys: Keys

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `Requests`."""
        drawn = iter(self.keys)
        lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": host, **headers}.items())
        while True:
            body = orjson.dumps({"items": list(itertools.islice(drawn, BASKET))})
            yield f"POST {PATH} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True, slots=True)
class Latencies:
    """The latencies of visitors or of GETs in one round, and the share of them that was refused."""

    p50_ms: float
    p99_ms: float
    refused: float


def measure(effort: Effort) -> list[Outcome]:
    """Publish lists with item factors, serve them on the first core, and send visitors and GETs from the other."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        asyncio.run(_publish(store))
        with hotplate_serving(store, "--fold-in") as server, on_core(1):
            return measured(server, effort)


def measured(server: Server, effort: Effort) -> list[Outcome]:
    """Send visitors alone, GETs alone, and both together, in turn; then visitors one after another."""
    items = Keys([f"i{number}" for number in range(ITEMS)], Uniform())
    users = Keys([key_of(user).removeprefix(USER) for user in range(SERVED.users)], Uniform())
    empty = Load(url=server.url, paths=("/",), duration_s=effort.round_s * ROUNDS_LONG, headers=HEADERS, connections=8)
    visitors = replace(empty, requests=Baskets(items), rate=VISITORS_S)
    gets = replace(empty, requests=Gets(ROUTE + "{key}", users), rate=GETS_S)
    saturating = replace(visitors, rate=None, connections=1, duration_s=effort.round_s)
    rounds = interleave(
        {
            "visitors": lambda: _together(visitors),
            "GETs": lambda: _together(gets),
            "both": lambda: _together(visitors, gets),
        },
        effort.rounds,
    )
    alone, beside = [one[0] for one in rounds["visitors"]], [one[0] for one in rounds["both"]]
    gets_alone, gets_beside = [one[0] for one in rounds["GETs"]], [one[1] for one in rounds["both"]]
    name = f"fold in, {ITEMS:,} items of {FACTORS} factors"
    samples = [run_at(server, saturating)[1] for _ in range(effort.rounds)]
    return [
        Figure(f"{name}: p50", "ms", [one.p50_ms for one in alone]),
        Figure(f"{name}: p99", "ms", [one.p99_ms for one in alone], at_most(GOAL_MS)),
        Figure(f"{name}, beside {GETS_S:,.0f} GETs/s: p50", "ms", [one.p50_ms for one in beside]),
        Figure(f"{name}, beside {GETS_S:,.0f} GETs/s: p99", "ms", [one.p99_ms for one in beside], at_most(GOAL_MS)),
        Figure("GETs alone: p99", "ms", [one.p99_ms for one in gets_alone]),
        Figure(f"GETs beside {VISITORS_S:g} visitors/s: p99", "ms", [one.p99_ms for one in gets_beside]),
        *figures(f"{name}, one after another", samples, each="visitor"),
        Figure(f"{name}: refused", "share", [one.refused for one in (*alone, *beside)]),
        Figure("fold in: memory of the service", "MB", [server.memory_bytes() / 1e6]),
    ]


def _together(*loads: Load) -> list[Latencies]:
    """Run loads at once; RuntimeError for a single error that is no refusal, because errors are cheap."""

    async def drive_all() -> list[Result]:
        return await asyncio.gather(*map(drive, loads))

    results = uvloop.run(drive_all())
    for result in results:
        if not result.ok or sum(result.errors.values()) > result.statuses.get(503, 0):
            raise RuntimeError(f"there were {result.ok} responses and errors: {dict(result.errors)}")
    return [_latencies(result) for result in results]


def _latencies(result: Result) -> Latencies:
    p50_s, p99_s = np.percentile(np.asarray(result.latencies_s), (50, 99))
    return Latencies(float(p50_s) * 1000, float(p99_s) * 1000, refused_share(result))


async def _publish(url: str) -> None:
    """Publish a list for each user, and factors as large as those of a model."""
    drawn = np.random.default_rng(0).normal(0, 0.1, (ITEMS, FACTORS)).astype("<f4")
    named = ((Entry(f"i{number}", f"Title {number:011}"), row.tobytes()) for number, row in enumerate(drawn))
    rows = list(pieces(named))
    described = Description("als", ITEMS, FACTORS, len(rows), regularization=30.0, alpha=4.0, weight=1.0)

    async def batches() -> AsyncIterator[list[Row]]:
        for batch in SERVED.batches(SERVED.values()):
            yield batch
        for row in (*rows, description_row(described)):
            yield [row]

    plan = Plan(SERVED.plan.rows + len(rows) + 1, SERVED.plan.payload_bytes + drawn.nbytes, drawn.nbytes)
    store = connect(url)
    try:
        await publish(store, batches(), plan=plan, about={})
    finally:
        await store.close()
