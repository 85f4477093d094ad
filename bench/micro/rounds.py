"""Rounds of a measurement: the variants take turns, so that a noisy neighbour disturbs all of them alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """What one variant did in one round: operations per second of wall time, and CPU time per operation."""

    rate_per_s: float
    cpu_us_per_op: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number, a value per round; `goal` says what it is held against, where there is something."""

    name: str
    unit: str
    values: Sequence[float]
    goal: str = ""

    @property
    def median(self) -> float:
        """The middle of the rounds: what to quote."""
        return median(self.values)

    @property
    def min(self) -> float:
        """The lowest round."""
        return min(self.values)

    @property
    def max(self) -> float:
        """The highest round."""
        return max(self.values)

    def to_json(self) -> dict[str, Any]:
        """Give it with its raw rounds as plain values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "goal": self.goal,
            "median": self.median,
            "min": self.min,
            "max": self.max,
            "rounds": list(self.values),
        }


def interleave(variants: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, list[Sample]]:
    """Run the variants A B A B …, *rounds* times each; a first round, in which everything warms up, is thrown away."""
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, measure in variants.items():
            sample = measure()
            if number:
                samples[name].append(sample)
    return samples


def figures(name: str, samples: Sequence[Sample]) -> list[Figure]:
    """Tell of one variant: its rate, with the CPU beside it, as rates alone depend on what else the machine does."""
    return [
        Figure(f"{name}: rate", "1/s", [sample.rate_per_s for sample in samples]),
        Figure(f"{name}: CPU", "µs/op", [sample.cpu_us_per_op for sample in samples]),
    ]


def ratio(name: str, over: Sequence[Sample], under: Sequence[Sample], *, goal: str) -> Figure:
    """Compare two variants' rates round by round, which cancels what the rounds of a pair had in common."""
    pairs = zip(over, under, strict=True)
    return Figure(name, "ratio", [first.rate_per_s / second.rate_per_s for first, second in pairs], goal)
