"""Whose lists are requested: the ids, how often each is drawn, and the share of unknown users."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hotplate.bench.errors import BenchMisused

# Keys drawn at a time, as due times are in `schedule`.
BLOCK = 256
Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InTurn:
    """One after the other, over and over; no key is more popular than another, and caches see a worst case."""

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """Yield, without end, blocks of BLOCK positions below *count*."""
        first = int(rng.integers(count))
        for start in itertools.count(first, BLOCK):
            yield np.arange(start, start + BLOCK) % count


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each as likely as any other."""

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Positions]:
        """See `InTurn`."""
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
        """See `InTurn`."""
        summed = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -self.exponent)
        order = np.random.default_rng(count).permutation(count)  # the same keys are popular in every process and run
        while True:
            yield order[np.searchsorted(summed, rng.random(BLOCK) * summed[-1], side="right")]


# A way to draw positions of a list; a value, so every process can draw its own.
KeyDraw: TypeAlias = InTurn | Uniform | Zipf


@dataclass(frozen=True, slots=True)
class RequestKeys:
    """The requested ids; a share of `unknown` of them is made up, and has no list. Each `part` draws on its own."""

    ids: Sequence[str]
    draw: KeyDraw
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
