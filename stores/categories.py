"""Categories of items, and the items that a cap on each category leaves in a list. Needs numpy.

An item is listed only if each of its categories is below the cap. With a cap of 1, a list of a (shoes), b (shoes and
sale) and c (sale) has a and c: b is not listed, so it does not count as one of sale.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

Items = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]


# Items of lists at once, whose arrays stay in the cache.
_CELLS = 1 << 15
# Rounds that decide all items of usual lists at once; items left undecided are decided one by one.
_ROUNDS = 50


class CategoryCap:
    """The most items of a category in a list, and the categories of items; both are numbers from 0."""

    def __init__(self, most: int, categories: Sequence[Collection[int]]) -> None:
        """*categories* has those of each item, without repeats."""
        self._most = most
        lengths = [len(numbers) for numbers in categories]
        self._lengths = np.array([*lengths, 0])  # that of the item -1, too
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._numbers = np.fromiter(chain.from_iterable(categories), dtype=np.intp)

    @property
    def has_several(self) -> bool:
        """Whether an item has several categories."""
        return bool(self._lengths.max() > 1)

    def of(self, item: int) -> tuple[int, ...]:
        """Return the categories of an item."""
        start = self._starts[item]
        return tuple(self._numbers[start : start + self._lengths[item]].tolist())

    def are_listed(self, items: Items) -> Mask:
        """Return which *items* of lists [lists, n], the best first, are listed; False for -1."""
        are_listed = np.empty(items.shape, dtype=np.bool_)
        at_once = _CELLS // max(items.shape[1], 1) + 1
        for start in range(0, len(items), at_once):
            lists = slice(start, start + at_once)
            are_listed[lists] = self._are_listed(items[lists])
        return are_listed

    def _are_listed(self, items: Items) -> Mask:
        cells = items.ravel()
        places, categories = self._pairs(cells)

        # Sorted, the pairs of a list and a category are side by side, in the order of the list.
        groups = places // items.shape[1] * (self._numbers.max(initial=0) + 1) + categories
        keys = np.sort(groups * len(cells) + places)
        groups = keys // len(cells)
        places = keys - groups * len(cells)

        # With all items that may be listed counted, those below the cap are certain; with these alone, others may be
        # listed. Each round is right for one more item of each list at least, as the items before it decide.
        possible = cells >= 0
        for _ in range(_ROUNDS):
            certain = possible.copy()
            certain[places[_count_before(groups, possible[places]) >= self._most]] = False
            possible[places[_count_before(groups, certain[places]) >= self._most]] = False
            if np.array_equal(certain, possible):
                return possible.reshape(items.shape)
            is_left = possible[places]
            places = places[is_left]
            groups = groups[is_left]

        self._decide_one_by_one(possible, places, groups)
        return possible.reshape(items.shape)

    def _decide_one_by_one(self, possible: Mask, places: Items, groups: Items) -> None:
        """Leave those of *possible* whose groups, in pairs with their *places*, have fewer than the most before."""
        groups_of = dict[int, list[int]]()
        order = np.argsort(places, kind="stable")
        for place, group in zip(places[order].tolist(), groups[order].tolist(), strict=True):
            groups_of.setdefault(place, []).append(group)

        listed = Counter[int]()
        for place, own in groups_of.items():
            possible[place] = all(listed[group] < self._most for group in own)
            if possible[place]:
                listed.update(own)

    def in_full(self, listed: Items) -> Items:
        """Return the items that have a category of which the most items are *listed*."""
        _, categories = self._pairs(listed)
        is_full = np.bincount(categories, minlength=self._numbers.max(initial=0) + 1) >= self._most
        owners = np.repeat(np.arange(len(self._lengths)), self._lengths)
        return owners[is_full[self._numbers]]

    def _pairs(self, items: Items) -> tuple[Items, Items]:
        """Return the pairs of an item and a category of it: the places of the item in *items*, and the categories."""
        lengths = self._lengths[items]
        places = np.repeat(np.arange(len(items)), lengths)
        first_pairs = np.cumsum(lengths) - lengths
        offsets = np.arange(len(places)) - first_pairs[places]
        return places, self._numbers[self._starts[items][places] + offsets]


def _count_before(groups: Items, are_listed: Mask) -> Items:
    """Return for each pair how many pairs of its group (side by side) are listed before it."""
    starts_group = np.ones(len(groups), dtype=np.bool_)
    starts_group[1:] = groups[1:] != groups[:-1]
    group_starts = np.maximum.accumulate(np.where(starts_group, np.arange(len(groups)), 0))
    listed_before: Items = np.cumsum(are_listed) - are_listed
    return listed_before - listed_before[group_starts]
