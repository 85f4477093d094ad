"""Cases: candidates that run A B A B …, so a noisy neighbour disturbs all of them alike, and what is compared."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

# What one candidate did in one round, by the names of UNITS.
RoundValues = Mapping[str, float]
CandidateRun = Callable[[], RoundValues]
# Who takes part, by name.
Candidates = Mapping[str, CandidateRun]
# Between the names of two in that of a figure which compares them.
RATIO = " / "

# How late the generator was.
LAG = "lag p99"
# The share of a latency from which on that is not the servers'.
LATE = 0.2

# Of a request, read, list or key, if it is not of a whole command.
UNITS = {
    "rate": "/s",
    "CPU": "µs",
    "p50": "ms",
    "p99": "ms",
    "p99.9": "ms",
    LAG: "ms",
    "memory": "MB",
    "file / data": "ratio",
    "time": "s",
    "CPU time": "s",
    "peak memory": "MB",
}


class Skipped(Exception):
    """A case cannot be measured on this machine; its text says what is missing."""


def require_room(folder: Path, needed_bytes: float) -> None:
    """Raise Skipped unless so much of the disk is free."""
    if (free := shutil.disk_usage(folder).free) < needed_bytes:
        raise Skipped(f"{folder} has {free / 1e6:,.0f} MB free; {needed_bytes / 1e6:,.0f} MB are needed")


@dataclass(frozen=True, slots=True)
class BenchmarkSize:
    """How much to measure: the defaults are those of published figures, and tests take far less."""

    rounds: int = 5
    users: int = 1_000_000
    round_s: float = 2.0


class Goal(NamedTuple):
    """What the median of a figure should be at least, or at most; in the figure's unit."""

    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"

    def met(self, value: float) -> bool:
        """Return whether *value* reaches it."""
        return value >= self.bound if self.sign == "≥" else value <= self.bound


def at_least(bound: float) -> Goal:
    """Expect *bound* or more."""
    return Goal("≥", bound)


def at_most(bound: float) -> Goal:
    """Expect *bound* or less."""
    return Goal("≤", bound)


@dataclass(frozen=True, slots=True)
class MeasuredFigure:
    """One measured number, with a value of each round; its median is compared with `goal`, if there is one."""

    name: str
    unit: str
    values: Sequence[float]
    goal: Goal | None = None

    @property
    def span(self) -> tuple[float, float, float]:
        """The median, the least and the most of its rounds."""
        return median(self.values), min(self.values), max(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; None without one."""
        return None if self.goal is None else self.goal.met(median(self.values))

    def to_json(self) -> dict[str, Any]:
        """Return it, with its rounds, as plain JSON values."""
        goal = None if self.goal is None else str(self.goal)
        return {"name": self.name, "unit": self.unit, "goal": goal, "met": self.met, "values": list(self.values)}


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A figure without a number, and why: the machine lacks something, or (`failed`) something went wrong."""

    name: str
    reason: str
    failed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"name": self.name, "failed" if self.failed else "skipped": self.reason}


Outcome = MeasuredFigure | Unmeasured


class Line(NamedTuple):
    """A line of docs/figures.md: what the figure is of, and its goal."""

    what: str
    goal: Goal | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """Who takes part, and the figures that are published, by name.

    Names are `A: CPU` of one candidate, and `A / B: CPU` of two, round by round. A case with *rounds*
    makes so many and none to warm up, because its data decide how long one takes.
    """

    name: str
    candidates: Callable[[BenchmarkSize], AbstractContextManager[Candidates]]
    rows: Mapping[str, Line]
    rounds: int = 0

    def measure(self, size: BenchmarkSize) -> list[Outcome]:
        """Let all candidates run, and return their figures and those that compare them."""
        try:
            with self.candidates(size) as present:
                taken = interleave(present, self.rounds or size.rounds, warm_up=not self.rounds)
        except Skipped as skipped:
            return [Unmeasured(self.name, str(skipped))]
        plain = [f"{name}: {quantity}" for name, rounds in taken.items() for quantity in rounds[0]]
        return [self._outcome(name, taken) for name in dict.fromkeys([*plain, *self.rows])]

    def _outcome(self, name: str, taken: Mapping[str, Sequence[RoundValues]]) -> Outcome:
        sides, _, quantity = name.rpartition(": ")
        ours, is_ratio, theirs = sides.partition(RATIO)
        full, values, unit = f"{self.name}: {name}", [one[quantity] for one in taken[ours]], UNITS[quantity]
        if is_ratio:
            if late := _late(quantity, [*taken[ours], *taken[theirs]]):
                return Unmeasured(full, late)
            values = [value / other[quantity] for value, other in zip(values, taken[theirs], strict=True)]
            unit = "ratio"
        return MeasuredFigure(full, unit, values, self.rows[name].goal if name in self.rows else None)


def _late(quantity: str, rounds: Sequence[RoundValues]) -> str:
    """Say that latencies are the generator's own, and compare no servers; empty if it was on time."""
    lag_ms, found_ms = median(one.get(LAG, 0.0) for one in rounds), median(one[quantity] for one in rounds)
    if UNITS[quantity] != "ms" or lag_ms <= LATE * found_ms:
        return ""
    return f"the generator was late by {lag_ms:.2g} ms at p99, and {quantity} is {found_ms:.2g} ms: use a quiet machine"


def interleave(candidates: Candidates, rounds: int, *, warm_up: bool) -> dict[str, list[RoundValues]]:
    """Run the candidates A B A B …, *rounds* times each, after one round to warm up, which is not kept."""
    taken: dict[str, list[RoundValues]] = {name: [] for name in candidates}
    for number in range(rounds + warm_up):
        for name, measure in candidates.items():
            one = measure()
            if number >= warm_up:
                taken[name].append(one)
    return taken


class Stopwatch:
    """Adds up the time of the blocks that it runs in; lives as long as one round."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the time of this block."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        self.wall_s += time.perf_counter() - wall_s
        self.cpu_s += time.process_time() - cpu_s

    def round(self, count: int) -> RoundValues:
        """Return the rate and the CPU of *count* operations in that time."""
        return {"rate": count / self.wall_s, "CPU": self.cpu_s * 1e6 / max(count, 1)}
