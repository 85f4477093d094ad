"""Rounds of a measurement: the variants take turns, so that a noisy neighbour disturbs all of them alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure: the defaults are those of the figures, and tests ask for far less."""

    rounds: int = 5
    users: int = 1_000_000
    round_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one variant did in one round: operations per second of wall time, and CPU time per operation."""

    rate_per_s: float
    cpu_us_per_op: float


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is held against; its unit is that of the figure."""

    bound: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"

    def held(self, value: float) -> bool:
        """Tell whether *value* is on the good side; the bound itself is."""
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float) -> Goal:
    """Expect *bound* or more."""
    return Goal(bound, at_least=True)


def at_most(bound: float) -> Goal:
    """Expect *bound* or less."""
    return Goal(bound)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number, a value per round or process; its median is held against `goal`, where it has one."""

    name: str
    unit: str
    values: Sequence[float]
    goal: Goal | None = None

    @property
    def median(self) -> float:
        """The middle of the values: what to quote."""
        return median(self.values)

    @property
    def min(self) -> float:
        """The lowest value."""
        return min(self.values)

    @property
    def max(self) -> float:
        """The highest value."""
        return max(self.values)

    @property
    def held(self) -> bool | None:
        """Whether the goal was met; None where there is none."""
        return None if self.goal is None else self.goal.held(self.median)

    def to_json(self) -> dict[str, Any]:
        """Give it with its raw values as plain values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "goal": None if self.goal is None else str(self.goal),
            "held": self.held,
            "median": self.median,
            "min": self.min,
            "max": self.max,
            "values": list(self.values),
        }


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A figure that there is no number for, and why: the machine lacks something, or (`failed`) it went wrong."""

    name: str
    reason: str
    failed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {"name": self.name, "failed" if self.failed else "skipped": self.reason}


Outcome = Figure | Unmeasured


def interleave(variants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run the variants A B A B …, *rounds* times each; a first round, in which everything warms up, is thrown away."""
    samples: dict[str, list[T]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, measure in variants.items():
            sample = measure()
            if number:
                samples[name].append(sample)
    return samples


def figures(name: str, samples: Sequence[Sample], *, each: str, cpu_goal: Goal | None = None) -> list[Figure]:
    """Tell of one variant: its rate, with the CPU beside it, as rates alone depend on what else the machine does.

    *each* is the word for what one operation is done for: a request, a list, a key.
    """
    return [
        Figure(f"{name}: rate", f"{each}s/s", [sample.rate_per_s for sample in samples]),
        Figure(f"{name}: CPU", f"µs/{each}", [sample.cpu_us_per_op for sample in samples], cpu_goal),
    ]


def ratio(name: str, over: Sequence[float], under: Sequence[float], *, goal: Goal | None = None) -> Figure:
    """Compare two variants round by round, which cancels what the rounds of a pair had in common."""
    return Figure(name, "ratio", [first / second for first, second in zip(over, under, strict=True)], goal)
