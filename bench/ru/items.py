"""The items that a sweep reads: ids that lie evenly over physical partitions, and bodies of a chosen stored size."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.cosmos_emulator.partition_keys import V2_SPAN, effective_key
from stores.cosmos.charges import KB

OVERHEAD_BYTES = 223
"""What an item of ours is stored with besides its id and its padding: names, quotes and system properties."""


@dataclass(frozen=True, slots=True)
class Items:
    """Items of one size in a container of so many partitions; the n-th id lies in the (n modulo *parts*)-th of them."""

    size_kb: int
    count: int
    parts: int

    @property
    def size(self) -> int:
        """Bytes of each as stored, with its system properties."""
        return self.size_kb * KB

    @property
    def ids(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(
            itertools.islice(_in_turn((f"{self.size_kb}k-{n:08d}" for n in itertools.count()), self.parts), self.count)
        )

    def bodies(self) -> Iterator[dict[str, Any]]:
        """Yield them."""
        for name in self.ids:
            yield {"id": name, "pad": "x" * (self.size - OVERHEAD_BYTES - len(name))}


def partition_of(name: str, parts: int) -> int:
    """Tell which of *parts* even partitions holds the item whose id and partition key are *name*."""
    return int(effective_key([name], 2), 16) * parts // V2_SPAN


def fullest(names: Sequence[str], parts: int) -> float:
    """Return the share of *names*, with repetitions, that the partition holds that is asked most."""
    places = {name: partition_of(name, parts) for name in set(names)}
    counts = [0] * parts
    for name in names:
        counts[places[name]] += 1
    return max(counts) / len(names)


def _in_turn(names: Iterator[str], parts: int) -> Iterator[str]:
    """Yield names whose partitions take turns; those that come too early wait."""
    waiting = [deque[str]() for _ in range(parts)]
    for part in itertools.cycle(range(parts)):
        while not waiting[part]:
            name = next(names)
            waiting[partition_of(name, parts)].append(name)
        yield waiting[part].popleft()
