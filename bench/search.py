"""The highest rate inside an objective: doubled until it is outside, and then the gap is halved."""

import math
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

# How near the highest good rate and the lowest bad one must come.
PRECISION = 0.05

# The share of the first rate below which nothing is looked for.
FLOOR = 0.01

# How often a rate is tried at which the generator itself was disturbed.
TRIES = 3


class Attempt(Protocol):
    """One run at a rate."""

    @property
    def inside(self) -> bool:
        """Whether the run is valid and keeps the objective."""
        ...

    @property
    def unclear(self) -> bool:
        """Whether the generator was disturbed, so that nothing is known of the service."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether it was ended early."""
        ...


A = TypeVar("A", bound=Attempt)


def search(attempt: Callable[[float], A], start: float, precision: float = PRECISION) -> Iterator[A]:
    """Double the rate from *start* until it is outside, then halve the gap until it is at most as wide as *precision*.

    An unclear attempt says nothing about the service, so it is made again, twice at most; a rate that stays unclear
    counts as out of reach. Yields every attempt, in order. Ends early if one was stopped.
    """
    low, high = 0.0, math.inf
    rate = start
    while high / max(low, start * FLOOR) > 1 + precision:
        for _ in range(TRIES):
            found = attempt(rate)
            yield found
            if found.stopped:
                return
            if not found.unclear:
                break
        if found.inside:
            low = rate
        else:
            high = rate
        rate = low * 2 if math.isinf(high) else (low + high) / 2
