"""Made-up lists of a chosen size: real keys and real encoding, with a few thousand values, used again and again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hotplate.stores.encoding import Item, encode
from hotplate.stores.keys import OVERALL, POPULAR, USER
from hotplate.stores.store import Plan, Row

ITEMS = 9_000
DISTINCT = 4_096
BATCH = 4_096

# Times as many items are drawn as a list has, because the same one may be drawn again.
SPARE = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """How many users there are, and how many items each one's list has."""

    users: int
    items: int

    @property
    def value_bytes(self) -> int:
        """Bytes of one list; all are the same."""
        return len('{"id":"1234","score":0.1234}') * self.items + 2 * (self.items - 1)

    @property
    def plan(self) -> Plan:
        """The plan that a publish of it has to announce; each key has 13 bytes."""
        return Plan(self.users + 1, (self.users + 1) * (self.value_bytes + len(key_of(0))))

    def values(self) -> list[bytes]:
        """Encode the lists that the rows share, to bodies."""
        scores = [round(0.9999 - rank / 100, 4) for rank in range(self.items)]
        return [
            encode(_item((first * 7 + rank) % ITEMS, scores[rank]) for rank in range(self.items))
            for first in range(DISTINCT)
        ]

    def drawn(self) -> list[bytes]:
        """Draw bodies as of a model's lists, so they compress as real ones do; each list has about `value_bytes`.

        Different items by a Zipf law, popular ones in more of the lists, and scores of four digits, best first.
        """
        rng = np.random.default_rng(0)
        summed = np.cumsum(1 / np.arange(10, ITEMS + 10))
        drawn = np.searchsorted(summed, rng.random((DISTINCT, SPARE * self.items)) * summed[-1])
        scores = -np.sort(-rng.uniform(0.1, 1.0, (DISTINCT, self.items)).round(4))
        lists = (list(dict.fromkeys(row))[: self.items] for row in drawn.tolist())
        return [encode(map(_item, *one)) for one in zip(lists, scores.tolist(), strict=True)]

    def batches(self, values: Sequence[bytes]) -> Iterator[list[Row]]:
        """Yield all rows in ascending order of key bytes."""
        yield [Row(POPULAR + OVERALL, values[0])]
        for start in range(0, self.users, BATCH):
            numbers = range(start, min(start + BATCH, self.users))
            yield [Row(key_of(number), values[number % DISTINCT]) for number in numbers]


def _item(number: int, score: float) -> Item:
    return Item(id=str(1000 + number), score=score)


def key_of(user: int) -> str:
    """Name the key of a user's list; keys sort as their numbers do."""
    return f"{USER}{user:08d}"
