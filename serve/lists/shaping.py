"""Shaping: from a list that was read to the items of an answer. Items are hidden, filtered, filled up and cut."""

from collections.abc import Collection
from time import time

from hotplate.base.recommendations import ITEM_FIELDS
from hotplate.serve.consumed.table import Consumed, HiddenItems
from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.filters import NO_FILTERS, ReleaseFilters
from hotplate.serve.lists.options import ALL_FIELDS, Selection
from hotplate.serve.releases.served import ServedRelease
from hotplate.stores.encoding import (
    NO_OFFSET,
    SEPARATOR,
    IdSet,
    RowKey,
    cut,
    cut_without,
    encode_id,
    ids_of,
    length_of,
    with_fields,
)
from hotplate.stores.errors import StoreMisused, StoreUnavailable

# For how long caches may keep lists that everybody shares.
MAX_AGE_S = 60


class Shaper:
    """Shapes lists by the deny-list, and by the items that users consumed. One per worker."""

    def __init__(self, deny_list: DenyListFile, consumed: Consumed | None = None) -> None:
        self._deny_list = deny_list
        self._consumed = consumed

    def shape(
        self, encoded: EncodedList, selection: Selection, *, user: str = "", beside: Collection[str] = ()
    ) -> bytes:
        """Return the first items of a list that are not denied, expired or hidden, and pass the filter of *selection*.

        The result is JSON objects with commas between them. The deny-list has items that are never shown. Hidden are
        the items that *user* has consumed, such as bought, or those that the list is shown *beside*, as of a basket.
        If that leaves too few, popular items with the member `"source":"popular"` follow, up to *n* items in all. A
        short list that lost none of its items is not filled, except under a filter.

        Raises StoreMisused for an invalid `where` or `fields`, and StoreUnavailable if `where` needs attributes of
        items that cannot be read.
        """
        current = self._deny_list.current
        gone = [ids for ids in (current.items, encoded.release.filters.expired(current.overrides)) if ids]

        hidden: IdSet | None = None
        if beside:
            hidden = self._listed_beside(encoded, selection, beside, is_filled=bool(gone))
        elif user:
            hidden = self.consumed_by(user)

        # The usual case: nothing is left out.
        if not selection.is_filtered and hidden is None:
            items = cut(encoded.body, selection.n)
            if not gone or all(ids.isdisjoint(ids_of(items)) for ids in gone):
                return self._with_fields(encoded, selection, items)

        left_out: list[IdSet] = [*gone, *(ids for ids in (*selection.left_out, hidden) if ids)]
        if selection.per:  # the last one: it counts items that are in no other
            left_out.append(_filters_of(encoded.release).limited(selection.per, current.overrides))
        items = self._filtered(encoded, selection, left_out)
        enough = selection.n
        if not selection.is_filtered:
            enough = min(selection.n, length_of(encoded.body))
        shown = self._with_fields(encoded, selection, items)
        if length_of(items) >= enough:
            return shown

        filling = self._with_fields(encoded, selection, self._popular_filling(encoded, selection, left_out, items))
        return SEPARATOR.join(filter(None, [shown, _marked(filling)]))

    def may_be_kept(self, release: ServedRelease, items: bytes) -> bool:
        """Return whether none of the items of an answer expires while a cache may keep it, for MAX_AGE_S."""
        if not release.filters.has_expiries:
            return True
        expiry = release.filters.first_expiry(ids_of(items), self._deny_list.current.overrides)
        return expiry >= time() + MAX_AGE_S

    def consumed_by(self, user: str) -> HiddenItems | None:
        """Return the items that are hidden from a user, if any."""
        return None if self._consumed is None else self._consumed.hidden_from(user)

    def _with_fields(self, encoded: EncodedList, selection: Selection, items: bytes) -> bytes:
        """Return items with the fields of *selection* only, those of the item and attributes that the release shows.

        Overrides of attributes count. Attributes are left out while the release's cannot be read, and where an item has
        none. Raises StoreMisused for a field that is neither.
        """
        if selection.fields == ALL_FIELDS:
            return items
        release = encoded.release
        shown = release.manifest.origin.item_attributes.shown
        wanted = [name for name in selection.field_names if name not in ITEM_FIELDS]
        if unknown := next((name for name in wanted if name not in shown), None):
            raise StoreMisused(
                f"fields: items of this release have {', '.join((*ITEM_FIELDS, *shown))}, and no {unknown!r}"
            )

        tails = release.filters.shown(tuple(wanted), self._deny_list.current.overrides)
        return with_fields(items, selection.field_names, tails)

    def _listed_beside(
        self, encoded: EncodedList, selection: Selection, beside: Collection[str], *, is_filled: bool
    ) -> frozenset[bytes] | None:
        """Return the ids of the items *beside* a list; None if the answer cannot contain them.

        A list that was made for these items lacks them, but popular items, which may follow it if it *is_filled*, do
        not.
        """
        if is_filled or encoded.source == "popular" or selection.is_filtered:
            return frozenset(map(encode_id, beside))
        return None

    def _filtered(self, encoded: EncodedList, selection: Selection, left_out: Collection[IdSet]) -> bytes:
        """Return the first items of the list itself that are in none of *left_out* and meet `where`."""
        where = selection.where
        if encoded.source == "popular":  # which is kept under each `where`
            popular = self._popular(encoded.release, encoded.fallback, where)
            return cut_without(popular, selection.n, *left_out)
        if not where:
            return cut_without(encoded.body, selection.n, *left_out)
        rejected = _filters_of(encoded.release).rejected(where, self._deny_list.current.overrides)
        return cut_without(encoded.body, selection.n, rejected, *left_out)

    def _popular_filling(
        self, encoded: EncodedList, selection: Selection, left_out: Collection[IdSet], items: bytes
    ) -> bytes:
        """Return popular items to follow *items*, JSON with commas, up to `selection.n` items in all.

        Those of the list's segment come first, then those for everybody. No item is repeated or of a set in *left_out*.
        """
        of_segment = encoded.fallback
        of_everybody = encoded.fallback.popular()
        shown = frozenset(ids_of(items))
        filling = b""
        for fallback in dict.fromkeys((of_segment, of_everybody)):  # which may be the same
            popular = self._popular(encoded.release, fallback, selection.where)
            more = cut_without(popular, selection.n - len(shown), shown, *left_out)
            filling = SEPARATOR.join(filter(None, [filling, more]))
            shown = shown.union(ids_of(more))
        return filling

    def _popular(self, release: ServedRelease, fallback: RowKey, where: str) -> bytes:
        """Return the popular list of a key, without items that do not meet *where*; empty if the release has none."""
        body = release.popular.get(fallback.text, NO_OFFSET)
        if not where:
            return body
        return _filters_of(release).popular(fallback, body, where, self._deny_list.current.overrides)


def _filters_of(release: ServedRelease) -> ReleaseFilters:
    """Return the filters of a release; raises StoreUnavailable if it has attributes that could not be read."""
    if release.filters is NO_FILTERS and release.manifest.origin.item_attributes.pieces:
        raise StoreUnavailable(f"the item attributes of release {release.id} cannot be read for now")
    return release.filters


def _marked(items: bytes) -> bytes:
    """Return items with the source `popular`."""
    return SEPARATOR.join([item[:-1] + b',"source":"popular"}' for item in items.split(SEPARATOR) if item])
