"""Cases: candidates that run A B A B …, so a noisy neighbour disturbs all of them alike, and what is compared."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")

# What one candidate did in one round, by the names of UNITS.
Round = Mapping[str, float]
Candidate = Callable[[], Round]
# Who takes part, by name, or the reason why one cannot.
Candidates = Mapping[str, Candidate | str]

# How late the generator was, and the share of a latency from which on that is not the servers'.
LAG, LATE = "lag p99", 0.2

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
class Effort:
    """How much to measure: the defaults are those of published figures, and tests take far less."""

    rounds: int = 5
    users: int = 1_000_000
    round_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Goal:
    """What the median of a figure should be, the bounds included; in the figure's unit."""

    least: float = -inf
    most: float = inf

    def __str__(self) -> str:
        bounds = {"≥": self.least, "≤": self.most}
        return ", ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if abs(bound) < inf)

    def met(self, value: float) -> bool:
        """Return whether *value* is inside."""
        return self.least <= value <= self.most


def at_least(bound: float) -> Goal:
    """Expect *bound* or more."""
    return Goal(least=bound)


def at_most(bound: float) -> Goal:
    """Expect *bound* or less."""
    return Goal(most=bound)


@dataclass(frozen=True, slots=True)
class Figure:
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


Outcome = Figure | Unmeasured


@dataclass(frozen=True, slots=True)
class Case:
    """Who takes part, goals of figures by name, and rows of docs/figures.md, which say what a figure is of.

    Names are `A: CPU` of one candidate, `A / B: CPU` and `A - B: CPU` of two, round by round. A case with *rounds*
    makes so many and none to warm up, because its data decide how long one takes.
    """

    name: str
    candidates: Callable[[Effort], AbstractContextManager[Candidates]]
    goals: Mapping[str, Goal]
    rows: Mapping[str, str]
    rounds: int = 0

    def measure(self, effort: Effort) -> list[Outcome]:
        """Let all candidates run, and return their figures and those that compare them."""
        try:
            with self.candidates(effort) as given:
                present = {name: one for name, one in given.items() if not isinstance(one, str)}
                absent = {name: one for name, one in given.items() if isinstance(one, str)}
                taken = interleave(present, self.rounds or effort.rounds, warm_up=not self.rounds)
        except Skipped as skipped:
            return [Unmeasured(self.name, str(skipped))]
        plain = [f"{name}: {quantity}" for name, rounds in taken.items() for quantity in rounds[0]]
        return [self._outcome(name, taken, absent) for name in dict.fromkeys([*plain, *self.goals, *self.rows])]

    def _outcome(self, name: str, taken: Mapping[str, Sequence[Round]], absent: Mapping[str, str]) -> Outcome:
        sides, _, quantity = name.rpartition(": ")
        ours, sign, theirs = split_sides(sides)
        full = f"{self.name}: {name}"
        for side in (ours, theirs):
            if side in absent:
                return Unmeasured(full, absent[side])
        values = [one[quantity] for one in taken[ours]]
        if sign:
            if late := _late(quantity, [*taken[ours], *taken[theirs]]):
                return Unmeasured(full, late)
            pairs = zip(values, (one[quantity] for one in taken[theirs]), strict=True)
            values = [one / other if sign == " / " else one - other for one, other in pairs]
        return Figure(full, "ratio" if sign == " / " else UNITS[quantity], values, self.goals.get(name))


def _late(quantity: str, rounds: Sequence[Round]) -> str:
    """Say that latencies are the generator's own, and compare no servers; empty if it was on time."""
    lag_ms, found_ms = median(one.get(LAG, 0.0) for one in rounds), median(one[quantity] for one in rounds)
    if UNITS[quantity] != "ms" or lag_ms <= LATE * found_ms:
        return ""
    return f"the generator was late by {lag_ms:.2g} ms at p99, and {quantity} is {found_ms:.2g} ms: use a quiet machine"


def split_sides(sides: str) -> tuple[str, str, str]:
    """Split `A / B` or `A - B` into two names and the sign between; the last two are empty for one name."""
    for sign in (" / ", " - "):
        if sign in sides:
            return sides.partition(sign)
    return sides, "", ""


def interleave(candidates: Mapping[str, Callable[[], T]], rounds: int, *, warm_up: bool = True) -> dict[str, list[T]]:
    """Run the candidates A B A B …, *rounds* times each, after one round to warm up, which is not kept."""
    taken: dict[str, list[T]] = {name: [] for name in candidates}
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

    def round(self, count: int) -> Round:
        """Return the rate and the CPU of *count* operations in that time."""
        return {"rate": count / self.wall_s, "CPU": self.cpu_s * 1e6 / max(count, 1)}
