"""Whose lists are requested: the ids, how often each is drawn, and the share of unknown users."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hotplate.bench.errors import BenchMisused

# Keys drawn at a time, as due times are in `schedule`.
BLOCK = 256
Positions = NDArray[np.int64]


class Draw(Protocol):
    """A way to draw positions of a list; a value, so every process can draw its own."""

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """Yield, without end, blocks of BLOCK positions below *count*."""
        ...


@dataclass(frozen=True, slots=True)
class InTurn:
    """One after the other, over and over; no key is more popular than another, and caches see a worst case."""

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """See `Draw`."""
        first = int(rng.integers(count))
        for start in itertools.count(first, BLOCK):
            yield np.arange(start, start + BLOCK) % count


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each as likely as any other."""

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """See `Draw`."""
        while True:
            yield rng.integers(count, size=BLOCK)


@dataclass(frozen=True, slots=True)
class Zipf:
    """The k-th most popular key with a weight of 1/k^exponent; YCSB uses 0.99. Which keys those are is drawn, too."""

    exponent: float

    def __post_init__(self) -> None:
        """Refuse what is not an exponent."""
        if not 0 < self.exponent <= 10:
            raise BenchMisused(f"the exponent of zipf is above 0 and at most 10, not {self.exponent:g}")

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """See `Draw`."""
        summed = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -self.exponent)
        order = _shuffled(count)
        while True:
            yield order[np.searchsorted(summed, rng.random(BLOCK) * summed[-1], side="right")]


@dataclass(frozen=True, slots=True)
class HotSet:
    """A share of the requests goes to a share of the keys, the rest to the others; 0.8 to 0.2, for example."""

    of_requests: float
    of_keys: float

    def __post_init__(self) -> None:
        """Refuse what are not shares."""
        if not (0 < self.of_requests < 1 and 0 < self.of_keys < 1):
            raise BenchMisused(f"shares lie between 0 and 1, not {self.of_requests:g} of requests, {self.of_keys:g}")

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """See `Draw`."""
        if count < 2:
            raise BenchMisused("a hot set needs two keys or more")
        hot = min(max(1, round(count * self.of_keys)), count - 1)
        order = _shuffled(count)
        while True:
            among_hot = rng.integers(hot, size=BLOCK)
            among_cold = rng.integers(hot, count, size=BLOCK)
            yield order[np.where(rng.random(BLOCK) < self.of_requests, among_hot, among_cold)]


def _shuffled(count: int) -> Positions:
    """Decide which keys are the popular ones: the same ones in every process and every run."""
    return np.random.default_rng(count).permutation(count)


@dataclass(frozen=True, slots=True)
class Keys:
    """The requested ids; a share of `unknown` of them is made up, and has no list. Each `part` draws on its own."""

    ids: Sequence[str]
    draw: Draw
    unknown: float = 0.0
    seed: int = 1
    part: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn from."""
        if not self.ids:
            raise BenchMisused("a key to request is missing")
        if not 0 <= self.unknown <= 1:
            raise BenchMisused(f"the share of unknown users lies between 0 and 1, not {self.unknown:g}")

    def __iter__(self) -> Iterator[str]:
        """Yield ids without end; the same ones each time for the same seed and part."""
        rng = np.random.default_rng((self.seed, self.part))
        for positions in self.draw.blocks(len(self.ids), rng):
            drawn = [self.ids[position] for position in positions.tolist()]
            if self.unknown:
                for position in np.flatnonzero(rng.random(BLOCK) < self.unknown).tolist():
                    drawn[position] = f"unknown-{int(rng.integers(10**9))}"
            yield from drawn
