"""Shaping: from a list that was read to the items of an answer. Items are hidden, filtered, filled up and cut."""

from collections.abc import Collection

import msgspec

from hotplate.base.recommendations import ITEM_FIELDS
from hotplate.serve.consumed.table import Consumed, HiddenItems
from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.filters import NO_FILTERS, BoundFilters, Expired
from hotplate.serve.lists.options import ALL_FIELDS, POPULAR_ITEMS, Selection
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
# The end of an item from a popular list that follows another list, and of one that `else` adds.
POPULAR_MARK = b',"source":"popular"}'
FILLED_MARK = b',"filled":true}'


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
        short list that lost none of its items is not filled, except under a filter. Items of `else` come last, with
        the member `"filled":true`.

        Raises StoreMisused for an invalid `where`, `else` or `fields`, and StoreUnavailable if conditions need
        attributes of items that cannot be read.
        """
        if selection.else_ and selection.else_ != POPULAR_ITEMS:  # refused even if it is not needed
            self._check_else(encoded.release, selection.else_)
        gone = [ids for ids in (self._deny_list.current.items, self._expired(encoded.release)) if ids]

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
            left_out.append(self._filters_of(encoded.release).limited(selection.per))
        items = self._filtered(encoded, selection, left_out)

        enough = selection.n
        if not selection.is_filtered:
            enough = min(selection.n, length_of(encoded.body))
        if length_of(items) >= enough:
            return self._with_fields(encoded, selection, items)
        return self._filled(encoded, selection, left_out, items)

    def _filled(self, encoded: EncodedList, selection: Selection, left_out: Collection[IdSet], items: bytes) -> bytes:
        """Return *items* of a list with its fields, then popular items and those of `else`, up to `selection.n`."""
        shown = self._with_fields(encoded, selection, items)
        popular = self._popular_filling(encoded, selection, left_out, items)
        shown = _joined(shown, _marked(self._with_fields(encoded, selection, popular), POPULAR_MARK))
        if not (selection.where and selection.else_) or length_of(shown) == selection.n:
            return shown
        return _joined(shown, self._else_filling(encoded, selection, left_out, shown))

    def may_be_kept(self, release: ServedRelease, items: bytes) -> bool:
        """Return whether none of the items of an answer expires while a cache may keep it, for MAX_AGE_S."""
        expired = self._expired(release)
        return expired is None or expired.isdisjoint(ids_of(items), within_s=MAX_AGE_S)

    def _expired(self, release: ServedRelease) -> Expired | None:
        """Return the items of a release that have expired, also by overrides; None if its items stay."""
        return release.filters.under(self._deny_list.current.overrides).expired

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

        tails = release.filters.under(self._deny_list.current.overrides).shown(tuple(wanted))
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
        rejected = self._filters_of(encoded.release).rejected(where)
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
            filling = _joined(filling, more)
            shown = shown.union(ids_of(more))
        return filling

    def _else_filling(
        self, encoded: EncodedList, selection: Selection, left_out: Collection[IdSet], shown: bytes
    ) -> bytes:
        """Return the items of `else` to follow those that are *shown*, JSON with commas, up to `selection.n` in all.

        They are the items of the list that meet these conditions, then popular ones.
        """
        shown_ids = frozenset(ids_of(shown))
        left_out = [shown_ids, *left_out]  # before the limit of `per`, which counts the items that it is asked for
        has_conditions = selection.else_ != POPULAR_ITEMS
        second = msgspec.structs.replace(
            selection,
            n=selection.n - len(shown_ids),
            where=selection.else_ if has_conditions else "",
        )
        items = self._filtered(encoded, second, left_out) if has_conditions else b""
        popular = self._popular_filling(encoded, second, left_out, items)
        shown_popular = _marked(self._with_fields(encoded, selection, popular), POPULAR_MARK)
        return _marked(_joined(self._with_fields(encoded, selection, items), shown_popular), FILLED_MARK)

    def _check_else(self, release: ServedRelease, conditions: str) -> None:
        """Raise StoreMisused for invalid conditions of `else`; raises as `_filters_of`, too."""
        filters = self._filters_of(release)
        try:
            filters.rejected(conditions)
        except StoreMisused as error:
            raise StoreMisused(f"else: {error}") from None

    def _popular(self, release: ServedRelease, fallback: RowKey, where: str) -> bytes:
        """Return the popular list of a key, without items that do not meet *where*; empty if the release has none."""
        body = release.popular.get(fallback.text, NO_OFFSET)
        if not where:
            return body
        return self._filters_of(release).popular(fallback, body, where)

    def _filters_of(self, release: ServedRelease) -> BoundFilters:
        """Return the filters of a release; raises StoreUnavailable if it has attributes that could not be read."""
        if release.filters is NO_FILTERS and release.manifest.origin.item_attributes.pieces:
            raise StoreUnavailable(f"the item attributes of release {release.id} cannot be read for now")
        return release.filters.under(self._deny_list.current.overrides)


def _marked(items: bytes, mark: bytes) -> bytes:
    """Return items with one more member each."""
    return SEPARATOR.join([item[:-1] + mark for item in items.split(SEPARATOR) if item])


def _joined(items: bytes, more: bytes) -> bytes:
    """Return items with more of them."""
    return SEPARATOR.join(filter(None, [items, more]))
