"""Events of one worker on one core, each answered once it is on the disk: how many a second, and what one takes."""

import itertools
import random
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from bench.lists import Shape
from bench.loadgen.generator import run
from bench.loadgen.load import Load, request_tail
from bench.micro.publishing import publish_to
from bench.micro.rounds import HEADERS, Effort, Figure, Outcome, at_least, hotplate_serving
from bench.process import Server, on_core, read_metrics

SERVED = Shape(1_000, items=20, title_chars=17)
PATH = "/v1/events"
# One visit: a list of ten shown, and what came of it.
EVENTS, SHOWN = 20, 10
# So many requests are made once and sent in turn.
DIFFERENT = 512
CONNECTIONS = (1, 8, 32)
GOAL = 20_000


@dataclass(frozen=True, slots=True)
class Reports:
    """POSTs of EVENTS events each, one in ten of which is of a list that was shown."""

    seed: int = 1

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `bench.loadgen.load.Requests`."""
        drawn = random.Random(self.seed)  # noqa: S311 -- events to be measured with, nothing secret
        made = list[bytes]()
        for _ in range(DIFFERENT):
            body = orjson.dumps({"events": [_event(drawn, number) for number in range(EVENTS)]})
            fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
            made.append(f"POST {PATH}".encode() + request_tail(host, fields) + body)
        return itertools.cycle(made)


@dataclass(frozen=True, slots=True)
class Round:
    """What came of one round: durable events a second, and a second of CPU, and the share of requests refused."""

    rate: float
    per_core: float
    refused: float


def reported(server: Server, load: Load) -> Round:
    """Run a load, and count the CPU of the service for what it took, that of what it refused included."""
    before_s = server.cpu_s()
    result = run(load)
    cpu_s, refused = server.cpu_s() - before_s, result.statuses.get(503, 0)
    if not result.ok or result.errors.get("status", 0) != refused or set(result.errors) - {"status"}:
        raise RuntimeError(f"{server.url} gave {result.ok} responses and errors: {dict(result.errors)}")
    return Round(EVENTS * result.ok_rate, EVENTS * result.ok / cpu_s, refused / (result.ok + refused))


def _event(drawn: random.Random, number: int) -> dict[str, object]:
    shown = number % 10 == 0
    items = [str(drawn.randrange(100_000)) for _ in range(SHOWN if shown else 1)]
    about = {"id": f"{drawn.getrandbits(64):016x}", "user": str(drawn.randrange(1_000_000)), "items": items}
    return about | {
        "type": "impression" if shown else "click",
        "release": "20261120T064200Z-7f3a",
        "position": 1 if shown else drawn.randrange(1, 11),
        "time": 1_790_000_000 + drawn.randrange(1_000_000),
    }


def measure(effort: Effort) -> list[Outcome]:
    """Report events from few connections and from many, on a core beside the service's."""
    outcomes = list[Outcome]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        publish_to(f"file://{folder}/store", SERVED, SERVED.values())
        with hotplate_serving(f"file://{folder}/store", "--events", str(folder / "events")) as server, on_core(1):
            for connections in CONNECTIONS:
                load = Load(
                    url=server.url,
                    requests=Reports(),
                    duration_s=effort.round_s,
                    connections=connections,
                    headers=HEADERS,
                )
                rounds = [reported(server, load) for _ in range(effort.rounds + 1)][1:]
                what = f"events, {EVENTS} a request over {connections} connections"
                goal = at_least(GOAL) if connections == CONNECTIONS[-1] else None
                outcomes += [
                    Figure(f"{what}: rate", "events/s", [one.rate for one in rounds]),
                    Figure(f"{what}: rate / CPU", "events/s a core", [one.per_core for one in rounds], goal),
                    Figure(f"{what}: refused", "share", [one.refused for one in rounds]),
                ]
            written = sum(path.stat().st_size for path in (folder / "events").iterdir())
            durable = sum(read_metrics(f"{server.admin_url}/metrics", "hotplate_events_total", outcome="durable"))
            outcomes.append(Figure("events, on the disk", "bytes/event", [written / durable]))
    return outcomes
