"""Lists computed for baskets of visitors, by item factors or from lists of similar items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hotplate.base.recommendations import Item
from hotplate.serve.lists.fold_in import FoldIn, from_similar, summed_weights
from hotplate.serve.tiers.lookups import Lookups, is_list
from hotplate.serve.tiers.tier import Origin, Tier
from hotplate.stores.encoding import ITEM, RowKey, encode
from hotplate.stores.errors import StoreError
from hotplate.stores.store import ReadResult

if TYPE_CHECKING:
    from hotplate.serve.lists.item_factors import ItemFactors

# An item, and its weight (None for the usual one).
BasketItem = tuple[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Basket:
    """A visitor's items, and what is wanted for them."""

    items: Sequence[BasketItem]
    """The newest last."""

    recency: float
    """Factor of an item's weight for each newer item."""

    list: str
    """The name of the list in keys."""

    n: int
    denied: frozenset[bytes]
    """Encoded ids, as `excluded`."""

    excluded: frozenset[bytes]


class ComputedList(NamedTuple):
    """The list that was computed for a basket."""

    origin: Origin | None
    """None if no tier could be read."""

    result: ReadResult
    """As if it were a row: the items encoded; without any, None, or the failure of a list of similar items."""

    known: int
    """Number of different items of the basket from which it was computed."""

    unknown: int
    """Number of the others."""


async def compute_list(basket: Basket, tiers: Sequence[Tier], lookups: Lookups, fold_in: FoldIn | None) -> ComputedList:
    """Compute a list for a visitor with the items of *basket*.

    It is computed from the item factors of the first tier (store) that has them, but only for the default list. For a
    named list, without factors or without *fold_in*, it is computed from lists of similar items. Raises FoldInFull if
    too many visitors wait.
    """
    if fold_in is not None and not basket.list:
        for tier in tiers:
            release = tier.follower.live
            if release is not None and release.factors is not None:
                return await _compute_by_factors(basket, Origin(tier, release), release.factors, fold_in=fold_in)
    return await _compute_by_similar(basket, lookups)


async def _compute_by_similar(basket: Basket, lookups: Lookups) -> ComputedList:
    """Compute a list for a visitor from the lists of similar items of the basket's items.

    All are read in one release. Items of the basket that have such a list count as known, the others as unknown.
    An error of a list is kept in the result, which is computed from the other lists.
    """
    weights = summed_weights(basket.items, 1.0, basket.recency)  # by the id of the item
    batch = await lookups.read_batch([RowKey(ITEM, item, basket.list) for item in weights])
    if batch.unread:  # no store could be read; a few cached lists would not make a list
        return ComputedList(None, None, 0, len(weights))

    (part,) = batch.parts  # one tier and, as all rows are of items, one release
    lists = dict[str, bytes]()
    failure: StoreError | None = None
    for row, result in zip(part.rows, part.results, strict=True):
        if isinstance(result, StoreError):
            failure = failure or result
        elif is_list(result):
            lists[row.id] = result

    items = await from_similar(lists, weights, basket.n, basket.denied, basket.excluded)
    return ComputedList(part.origin, encode(items) if items else failure, len(lists), len(weights) - len(lists))


async def _compute_by_factors(
    basket: Basket, origin: Origin, factors: "ItemFactors", *, fold_in: FoldIn
) -> ComputedList:
    """Compute a list for a visitor from the item factors of a release; an empty one if it has no item of the basket.

    *origin* is the store and the release. *fold_in* computes lists in a thread.
    """
    weights = summed_weights(basket.items, factors.description.weight, basket.recency)  # by the id of the item
    known_weights = factors.known(weights)  # by the row of the item in the factors

    items = list[Item]()
    if known_weights:
        items = await fold_in.recommend(factors, known_weights, basket.n, basket.denied, basket.excluded)
    encoded = encode(items) if items else None
    return ComputedList(origin, encoded, len(known_weights), len(weights) - len(known_weights))
