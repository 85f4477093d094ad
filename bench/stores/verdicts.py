"""Comparisons of stores in words: which differ, by how much, and what else decides."""

from collections.abc import Sequence
from dataclasses import dataclass

from hotplate.bench.loadgen.result import Result
from hotplate.bench.statistics import Figure, compared
from hotplate.report import rounded

STALL_S = 0.1
# Wider intervals say nothing.
WIDEST = 100.0


@dataclass(frozen=True, slots=True)
class Contender:
    """One store's figure in a comparison."""

    name: str
    figure: Figure


@dataclass(frozen=True, slots=True)
class Difference:
    """A store's figure divided by the least one."""

    name: str
    ratio: Figure

    @property
    def is_proven(self) -> bool:
        """Whether the interval excludes equality."""
        low = self.ratio.low
        return low is not None and low > 1

    @property
    def factor(self) -> str:
        """Format the ratio with its interval, as `1.4 times (1.3 to 1.6)`."""
        ratio = self.ratio.value or 0.0
        low = self.ratio.low
        high = self.ratio.high
        times = f"{rounded(ratio)} times"
        if low is None or high is None:
            return f"{times} ({self.ratio.note})"
        if high > WIDEST * low:
            return f"{times} (the rounds differ too much for an interval)"
        return f"{times} ({rounded(low)} to {rounded(high)})"


@dataclass(frozen=True, slots=True)
class Ranking:
    """The store with the least figure, and the others' differences, ascending."""

    least: Contender
    differences: tuple[Difference, ...]

    @property
    def proven(self) -> tuple[Difference, ...]:
        """Stores whose figure is larger."""
        return tuple(difference for difference in self.differences if difference.is_proven)

    @property
    def alike(self) -> tuple[Difference, ...]:
        """Stores for which no difference is proven."""
        return tuple(difference for difference in self.differences if not difference.is_proven)

    def describe(self, least: str) -> str:
        """Return a line such as `files fastest; Redis 1.4 times (1.3 to 1.6)`."""
        proven = [f"{difference.name} {difference.factor}" for difference in self.proven]
        if not self.alike:
            return f"{self.least.name} {least}; {', '.join(proven)}"
        *names, last = [self.least.name, *(difference.name for difference in self.alike)]
        names_of_alike = f"{', '.join(names)} and {last}"
        alike = ", ".join(f"{difference.name} {difference.factor}" for difference in self.alike)
        return "; ".join([f"{names_of_alike}: no difference proven, {alike}", *proven])


def rank(contenders: Sequence[Contender]) -> Ranking | None:
    """Rank stores (contenders) by a figure, the least of which is the best; None if fewer than two are known."""
    known = [contender for contender in contenders if contender.figure.value is not None]
    if len(known) < 2:
        return None

    least, *larger = sorted(known, key=lambda contender: contender.figure.value or 0.0)
    differences = (Difference(contender.name, compared(least.figure, contender.figure)) for contender in larger)
    return Ranking(least, tuple(differences))


def stalls(results: Sequence[Result]) -> tuple[int, int]:
    """Return how many seconds had an answer after more than STALL_S, and how many there were."""
    seconds = [second for result in results for second in result.seconds if second.latencies_s.size]
    return sum(bool(second.latencies_s.max() > STALL_S) for second in seconds), len(seconds)


def describe_stalls(stores: Sequence[tuple[str, Sequence[Result]]]) -> str:
    """Return a line such as `Redis 2 of 42 seconds above 100 ms`; empty without stalls."""
    parts = []
    for name, results in stores:
        stalled, seconds = stalls(results)
        if stalled:
            parts.append(f"{name} {stalled} of {seconds} seconds above {1000 * STALL_S:g} ms")
    return ", ".join(parts)
