"""Lists computed for baskets of visitors, by item factors or from lists of similar items."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hotplate.base.recommendations import Item
from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.fold_in import from_similar, summed_weights
from hotplate.serve.lists.options import FILTERED, RECENCY, Selection
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.tiers.lookups import RowsRead, is_list
from hotplate.serve.tiers.tier import Origin
from hotplate.stores.encoding import ITEM, RowKey, encode
from hotplate.stores.errors import StoreError
from hotplate.stores.store import ReadResult

# An item, and its weight (None for the usual one).
BasketItem = tuple[str, float | None]


class FoldedIn(NamedTuple):
    """The list that was computed for a basket."""

    encoded: EncodedList
    known: int
    """Number of different items of the basket from which it was computed."""

    unknown: int
    """Number of the others."""


class _ComputedRow(NamedTuple):
    origin: Origin | None
    """None if no tier could be read."""

    result: ReadResult
    """As if it were a row: the items encoded; without any, None, or the failure of a list of similar items."""

    known: int
    """Number of different items of the basket from which it was computed."""


class _LeftOut(NamedTuple):
    """Ids of items, by `encode_id`."""

    denied: frozenset[bytes]
    excluded: frozenset[bytes]


async def compute_list(
    reader: TieredReader, items: Sequence[BasketItem], selection: Selection, *, recency: float = RECENCY
) -> FoldedIn:
    """Compute a list for a visitor with a basket of *items*, pairs of an id and a weight, newest last.

    An item's weight (None for the default one) is multiplied by *recency* for each newer item, and the weights of a
    repeated item are added up. The list lacks the items of the basket, and denied and excluded ones. It is computed
    from the item factors of the first tier (store) that has them, but only for the default list; otherwise from the
    lists of similar items. The caller applies the other options of *selection*, for which the list has as many items as
    they examine. If nothing is left, or no store could be read, it is the popular list of the segment. Raises NotReady,
    and FoldInFull if too many visitors wait.
    """
    if not items:
        return FoldedIn(reader.popular(selection.segment, selection.list), 0, 0)

    row = reader.row_of(ITEM, "", selection.list)  # for the name under which the release stores the list
    n = selection.examined
    if any(release.filters.has_expiries for tier in reader.tiers for release in tier.follower.releases):
        n = max(n, FILTERED)
    left_out = _LeftOut(reader.deny_list.current.items, selection.excluded)

    computed: _ComputedRow | None = None
    if not row.list:
        computed = await _compute_by_factors(reader, items, recency, n, left_out)
    if computed is None:
        computed = await _compute_by_similar(reader, row.list, summed_weights(items, 1.0, recency), n, left_out)

    read = RowsRead(computed.origin, [row], [computed.result])
    lists = reader.lists_of(read, selection.segment, selection.list, "fold-in")
    different = len({item for item, _ in items})
    return FoldedIn(lists[row.id], computed.known, different - computed.known)


async def _compute_by_factors(
    reader: TieredReader, items: Sequence[BasketItem], recency: float, n: int, left_out: _LeftOut
) -> _ComputedRow | None:
    """Compute a list for a visitor from the item factors of the first tier that has them; None without any."""
    for tier in reader.tiers:
        release = tier.follower.live
        if release is None or release.factors is None or reader.folding is None:
            continue
        weights = summed_weights(items, release.factors.description.weight, recency)
        known = release.factors.known(weights)  # by the row of the item in the factors
        found = list[Item]()
        if known:
            found = await reader.folding.recommend(release.factors, known, n, *left_out)
        encoded = encode(found) if found else None
        return _ComputedRow(Origin(tier, release), encoded, len(known))
    return None


async def _compute_by_similar(
    reader: TieredReader, name: str, weights: Mapping[str, float], n: int, left_out: _LeftOut
) -> _ComputedRow:
    """Compute a list for a visitor from the lists *name* of similar items of the basket's items.

    *weights* are by the id of the item. All are read in one release. Items of the basket that have such a list count as
    known, the others as unknown. An error of a list is kept in the result, which is computed from the other lists.
    """
    read = await reader.lookups.read([RowKey(ITEM, item, name) for item in weights])
    if any(part.origin is None for part in read.parts):  # no store could be read; a few cached lists make no list
        return _ComputedRow(None, None, 0)

    lists = dict[str, bytes]()
    failure: StoreError | None = None
    for part in read.parts:  # of one tier and, as all rows are of items, one release
        for row, result in zip(part.rows, part.results, strict=True):
            if isinstance(result, StoreError):
                failure = failure or result
            elif is_list(result):
                lists[row.id] = result

    items = await from_similar(lists, weights, n, *left_out)
    encoded = encode(items) if items else failure
    return _ComputedRow(read.parts[-1].origin, encoded, len(lists))
