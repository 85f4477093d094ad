"""Whose lists are asked for: the ids, how often each is drawn, and the share of users that nobody knows."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchMisused

BLOCK = 4096
Places = NDArray[np.int64]


class Draw(Protocol):
    """A way to draw places of a list; a value, so that every process can draw its own."""

    def blocks(self, count: int, chance: np.random.Generator) -> Iterator[Places]:
        """Yield, without end, blocks of BLOCK places below *count*."""
        ...


@dataclass(frozen=True, slots=True)
class InTurn:
    """One after the other, over and over; no key is more popular than another, and caches see a worst case."""

    def blocks(self, count: int, chance: np.random.Generator) -> Iterator[Places]:
        """See `Draw`."""
        first = int(chance.integers(count))
        for start in itertools.count(first, BLOCK):
            yield np.arange(start, start + BLOCK) % count


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each as likely as any other."""

    def blocks(self, count: int, chance: np.random.Generator) -> Iterator[Places]:
        """See `Draw`."""
        while True:
            yield chance.integers(count, size=BLOCK)


@dataclass(frozen=True, slots=True)
class Zipf:
    """The k-th most popular key with a weight of 1/k^exponent; YCSB uses 0.99. Which keys those are is drawn, too."""

    exponent: float

    def __post_init__(self) -> None:
        """Refuse what is no exponent."""
        if not 0 < self.exponent <= 10:
            raise BenchMisused(f"the exponent of zipf is above 0 and at most 10, not {self.exponent:g}")

    def blocks(self, count: int, chance: np.random.Generator) -> Iterator[Places]:
        """See `Draw`."""
        summed = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -self.exponent)
        order = _shuffled(count)
        while True:
            yield order[np.searchsorted(summed, chance.random(BLOCK) * summed[-1], side="right")]


@dataclass(frozen=True, slots=True)
class HotSet:
    """A share of the requests goes to a share of the keys, the rest to the others; 0.8 to 0.2, for example."""

    of_requests: float
    of_keys: float

    def __post_init__(self) -> None:
        """Refuse what are no shares."""
        if not (0 < self.of_requests < 1 and 0 < self.of_keys < 1):
            raise BenchMisused(f"shares lie between 0 and 1, not {self.of_requests:g} of requests, {self.of_keys:g}")

    def blocks(self, count: int, chance: np.random.Generator) -> Iterator[Places]:
        """See `Draw`."""
        if count < 2:
            raise BenchMisused("a hot set needs two keys or more")
        hot = min(max(1, round(count * self.of_keys)), count - 1)
        order = _shuffled(count)
        while True:
            among_hot = chance.integers(hot, size=BLOCK)
            among_cold = chance.integers(hot, count, size=BLOCK)
            yield order[np.where(chance.random(BLOCK) < self.of_requests, among_hot, among_cold)]


def _shuffled(count: int) -> Places:
    """Decide which keys are the popular ones: the same ones in every process and every run."""
    return np.random.default_rng(count).permutation(count)


@dataclass(frozen=True, slots=True)
class Keys:
    """The ids that are asked for; a share of `unknown` of them is made up, and nobody has a list for those."""

    ids: Sequence[str]
    draw: Draw
    unknown: float = 0.0
    seed: int = 1
    part: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn from."""
        if not self.ids:
            raise BenchMisused("there is no key to ask for")
        if not 0 <= self.unknown <= 1:
            raise BenchMisused(f"the share of unknown users lies between 0 and 1, not {self.unknown:g}")

    def share(self, part: int) -> "Keys":
        """Give the keys for one of several processes, which draws on its own."""
        return replace(self, part=part)

    def __iter__(self) -> Iterator[str]:
        """Yield ids without end; the same ones each time for the same seed and part."""
        chance = np.random.default_rng((self.seed, self.part))
        for places in self.draw.blocks(len(self.ids), chance):
            drawn = [self.ids[place] for place in places.tolist()]
            if self.unknown:
                for place in np.flatnonzero(chance.random(BLOCK) < self.unknown).tolist():
                    drawn[place] = f"unknown-{int(chance.integers(10**9))}"
            yield from drawn
