"""Rounds of a measurement: the variants run in turn, so that a noisy neighbour disturbs all of them alike.

Below the rounds and their figures stand the service on one core, and closed or open loops against it.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import numpy as np

from bench.lists import key_of
from bench.loadgen.generator import run
from bench.loadgen.load import Load
from bench.loadgen.result import Result
from bench.process import Server, service_serving
from stores.keys import USER

T = TypeVar("T")

ROUTE = "/v1/recommendations/"
# What a client of an application programming interface sends besides the request line and Host.
HEADERS = {"User-Agent": "hotplate-bench", "Accept": "application/json", "Accept-Language": "en"}
# The command, as it runs in a process of its own.
HOTPLATE = (sys.executable, "-m", "hotplate")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure: the defaults are those of the figures, and tests take far less."""

    rounds: int = 5
    users: int = 1_000_000
    round_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one variant did in one round: operations per second of wall time, and CPU time per operation."""

    rate_per_s: float
    cpu_us_per_op: float


@dataclass(slots=True)
class Stopwatch:
    """Adds up the time of the blocks that it runs in; lives as long as one round."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the time of this block."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        self.wall_s += time.perf_counter() - wall_s
        self.cpu_s += time.process_time() - cpu_s

    def sample(self, count: int) -> Sample:
        """Return the rate and the CPU of *count* operations in that time."""
        return Sample(count / self.wall_s, self.cpu_s * 1e6 / max(count, 1))


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is compared with; its unit is that of the figure."""

    bound: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"

    def met(self, value: float) -> bool:
        """Return whether *value* is on the good side; the bound itself is."""
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float) -> Goal:
    """Expect *bound* or more."""
    return Goal(bound, at_least=True)


def at_most(bound: float) -> Goal:
    """Expect *bound* or less."""
    return Goal(bound)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number, a value per round or process; its median is compared with `goal`, where it has one."""

    name: str
    unit: str
    values: Sequence[float]
    goal: Goal | None = None

    @property
    def median(self) -> float:
        """The middle of the values: what to quote."""
        return median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; None where there is none."""
        return None if self.goal is None else self.goal.met(self.median)

    def to_json(self) -> dict[str, Any]:
        """Return it, with its raw values, as plain JSON values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "goal": None if self.goal is None else str(self.goal),
            "met": self.met,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A figure that there is no number for, and why: the machine lacks something, or (`failed`) it went wrong."""

    name: str
    reason: str
    failed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"name": self.name, "failed" if self.failed else "skipped": self.reason}


Outcome = Figure | Unmeasured


def interleave(variants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run the variants A B A B …, *rounds* times each, after one round to warm up, which is not kept."""
    samples: dict[str, list[T]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, measure in variants.items():
            sample = measure()
            if number:
                samples[name].append(sample)
    return samples


def figures(name: str, samples: Sequence[Sample], *, each: str, cpu_goal: Goal | None = None) -> list[Figure]:
    """Return the rate and the CPU time of one variant; rates alone depend on what else the machine does.

    *each* is the word for what one operation is done for: a request, a list, a key.
    """
    return [
        Figure(f"{name}: rate", f"{each}s/s", [sample.rate_per_s for sample in samples]),
        Figure(f"{name}: CPU", f"µs/{each}", [sample.cpu_us_per_op for sample in samples], cpu_goal),
    ]


def ratio(name: str, over: Sequence[float], under: Sequence[float], *, goal: Goal | None = None) -> Figure:
    """Compare two variants round by round, which cancels what the rounds of a pair had in common."""
    return Figure(name, "ratio", [first / second for first, second in zip(over, under, strict=True)], goal)


def ratios(
    name: str, ours: Sequence[Sample], theirs: Sequence[Sample], *, rate_goal: Goal | None = None
) -> list[Figure]:
    """Compare the rates and the CPU of two variants round by round."""
    rates = [one.rate_per_s for one in ours], [one.rate_per_s for one in theirs]
    cpus = [one.cpu_us_per_op for one in ours], [one.cpu_us_per_op for one in theirs]
    return [ratio(f"{name}: rate", *rates, goal=rate_goal), ratio(f"{name}: CPU", *cpus)]


def cpu_difference(name: str, ours: Sequence[Sample], theirs: Sequence[Sample], *, goal: Goal | None = None) -> Figure:
    """Subtract the CPU of a request to one service from that of another, round by round."""
    pairs = zip(ours, theirs, strict=True)
    return Figure(f"{name}: CPU", "µs/request", [one.cpu_us_per_op - two.cpu_us_per_op for one, two in pairs], goal)


@dataclass(frozen=True, slots=True)
class Reads:
    """Requests over HTTP in one round; `popular` is the share of responses that were not the user's own list."""

    sample: Sample
    p50_us: float
    p99_us: float
    popular: float


def path_of(user: int) -> str:
    """Return the path of a user's list."""
    return ROUTE + key_of(user).removeprefix(USER)


@contextmanager
def hotplate_serving(store: str, *options: str, workers: int = 1) -> Iterator[Server]:
    """Serve the store at this URL on the first core; it is up once the first user's list is served.

    Without a cache: what is measured reads the store, as the others beside it do.
    """
    command = [*HOTPLATE, "serve", "--store", store, "--cache-mb", "0", *options]
    with service_serving(command, path_of(0), workers=workers) as server:
        yield server


def read(
    server: Server, paths: Sequence[str], duration_s: float, *, rate: float | None = None, connections: int = 64
) -> Reads:
    """Send GETs of *paths* in turn at *rate* requests/s, or without a rate as many as the server takes."""
    load = Load(
        url=server.url,
        paths=paths,
        rate=rate,
        duration_s=duration_s,
        connections=connections,
        headers=HEADERS,
        observe=("source",),
    )
    result, sample = run_at(server, load)
    p50_s, p99_s = np.percentile(np.asarray(result.latencies_s), (50, 99))
    return Reads(
        sample,
        p50_us=float(p50_s) * 1e6,
        p99_us=float(p99_s) * 1e6,
        popular=result.seen["source"].get("popular", 0) / result.ok,
    )


def run_at(server: Server, load: Load) -> tuple[Result, Sample]:
    """Run a load, and count the server's CPU. Raises RuntimeError for a single error, because errors are cheap."""
    before_s = server.cpu_s()
    result = run(load)
    if result.errors or not result.ok:
        raise RuntimeError(f"{server.url} gave {result.ok} responses and errors: {dict(result.errors)}")
    return result, Sample(result.ok_rate, (server.cpu_s() - before_s) * 1e6 / result.ok)


def late_figures(what: str, reads: Sequence[Reads]) -> list[Figure]:
    """Name the share of responses that the store was too late for, where there were any: they cost less."""
    shares = [one.popular for one in reads]
    return [Figure(f"{what}: popular list instead", "share", shares)] if any(shares) else []
