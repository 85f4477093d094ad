"""A model divided into blocks, each the lists of some users or items, and what one of them is computed of.

How it is divided depends on nothing but its size, so a block is the same in every attempt, on another executor and
in another run, too. Users are multiplied with the factors of all items batch by batch, as without Spark.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

from hotplate.offline.lists import ModelLists
from hotplate.offline.measurement import Observe, ignore
from hotplate.offline.model import Users
from hotplate.stores.store import Row

# A block has so many users or items, or more if there would be too many blocks.
_LEAST, _MOST_BLOCKS = 1_000, 2_000


class Block(NamedTuple):
    """What one task computes: lists of the items from *start* to *stop*, or those of *users*."""

    part: int
    start: int
    stop: int
    users: Users | None


class Blocks(Sequence[Block]):
    """All blocks of a model, each made when it is taken; numbered from 1 in the order of the rows' keys."""

    def __init__(self, lists: ModelLists) -> None:
        self._model = lists.model
        self._spans = [(start, stop, False) for start, stop in _spans(len(self._model.matrix.item_ids))]
        self.of_items = len(self._spans)
        self._spans += [(start, stop, True) for start, stop in _spans(len(self._model.matrix.user_ids))]

    def __len__(self) -> int:
        return len(self._spans)

    @overload
    def __getitem__(self, at: int) -> Block: ...
    @overload
    def __getitem__(self, at: slice) -> list[Block]: ...
    def __getitem__(self, at: int | slice) -> Block | list[Block]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        start, stop, is_of_users = self._spans[at]
        return Block(at % len(self) + 1, start, stop, self._model.users(start, stop) if is_of_users else None)


def rows_of(lists: ModelLists, block: Block, observe: Observe = ignore) -> Iterator[list[Row]]:
    """Compute the rows of a block, in the order of their keys, by what *lists*, of no users, have in common."""
    if block.users is None:
        return lists.similar(block.start, block.stop)
    return lists.for_users(block.users).personal(observe)


def _spans(count: int) -> Iterator[tuple[int, int]]:
    step = max(_LEAST, -(-count // _MOST_BLOCKS))
    for start in range(0, count, step):
        yield start, min(start + step, count)
