"""Shaping: from a list that was read to the items of an answer. Items are hidden, filtered, filled up and cut."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from hotplate.base.recommendations import ITEM_FIELDS
from hotplate.serve.consumed.table import Consumed
from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.filters import NO_FILTERS, ReleaseFilters
from hotplate.serve.lists.options import ALL_FIELDS, POPULAR_ITEMS, Selection
from hotplate.serve.releases.served import ServedRelease
from hotplate.stores.encoding import (
    SEPARATOR,
    IdTest,
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
FILLED_POPULAR_MARK = POPULAR_MARK.removesuffix(b"}") + FILLED_MARK


class Source(NamedTuple):
    """One of the lists that the items of an answer are taken from, in turn, as long as there are too few."""

    body: bytes
    where: str
    """Conditions on its items; empty for all of them."""

    mark: bytes
    """The end of its items in the answer; empty if they have no mark."""

    is_popular: bool


def sources_of(encoded: EncodedList, selection: Selection) -> list[Source]:
    """Return the sources of an answer: the list, and popular lists; then both under the conditions of `else`."""
    where = selection.where
    is_popular = encoded.source == "popular"
    popular = encoded.popular_bodies
    sources = [Source(encoded.body, where, b"", is_popular)]
    sources += [Source(body, where, POPULAR_MARK, is_popular=True) for body in popular]
    if where and selection.else_:
        other = ""
        if selection.else_ != POPULAR_ITEMS:
            other = selection.else_
            sources.append(Source(encoded.body, other, FILLED_MARK, is_popular))
        sources += [Source(body, other, FILLED_POPULAR_MARK, is_popular=True) for body in popular]
    return sources


class Shaper:
    """Shapes lists by the deny-list, and by the items that users consumed. One per worker."""

    def __init__(
        self,
        deny_list: DenyListFile,
        consumed: Consumed | None = None,
        *,
        is_erased: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """*is_erased* says whether a user is erased; nothing is hidden from these."""
        self._deny_list = deny_list
        self._consumed = consumed
        self._is_erased = is_erased

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
        left_out = self._gone(encoded.release)
        is_hidden: IdTest | None = None
        if beside:
            is_hidden = self._listed_beside(encoded, selection, beside, is_filled=bool(left_out))
        elif user:
            is_hidden = self.consumed_by(user)

        # The usual case: nothing is left out.
        if not selection.is_filtered and is_hidden is None:
            items = cut(encoded.body, selection.n)
            if not left_out or not any(is_left_out(item) for item in ids_of(items) for is_left_out in left_out):
                return self._with_fields(encoded, selection, items)

        left_out += selection.left_out
        if is_hidden is not None:
            left_out.append(is_hidden)
        if selection.per:  # the last one: it counts items that are not left out
            left_out.append(self._filters_of(encoded.release).limited(selection.per))
        return self._gathered(encoded, selection, left_out)

    def _gone(self, release: ServedRelease) -> list[IdTest]:
        """Return what is true for the items that nobody is shown: they are denied, or have expired."""
        policies = self._deny_list.current
        is_expired = release.filters.under(policies.overrides).expired()
        tests: list[IdTest] = [] if is_expired is None else [is_expired]
        if policies.items:
            tests.append(policies.items.__contains__)
        return tests

    def _gathered(self, encoded: EncodedList, selection: Selection, left_out: Collection[IdTest]) -> bytes:
        """Return the items of the sources of an answer that are not *left_out*, up to `selection.n`."""
        enough = selection.n
        if not selection.is_filtered:
            enough = min(enough, length_of(encoded.body))

        parts = list[bytes]()
        shown = frozenset[bytes]()
        left = selection.n
        for source in sources_of(encoded, selection):
            items = self._filtered(encoded.release, source, left, [shown.__contains__, *left_out])
            parts.append(_marked(self._with_fields(encoded, selection, items), source.mark))
            left -= length_of(items)
            if selection.n - left >= enough:
                break
            enough = selection.n  # a list that has lost some of its items is filled up
            shown = shown.union(ids_of(items))
        return SEPARATOR.join(filter(None, parts))

    def _filtered(self, release: ServedRelease, source: Source, n: int, left_out: Collection[IdTest]) -> bytes:
        """Return the first *n* items of a source that meet its conditions, and are not *left_out*."""
        if not source.where:
            return cut_without(source.body, n, *left_out)
        filters = self._filters_of(release)
        if source.is_popular:  # which is kept under each `where`
            return cut_without(filters.popular(source.body, source.where), n, *left_out)
        return cut_without(source.body, n, filters.rejected(source.where), *left_out)

    def may_be_kept(self, release: ServedRelease, items: bytes) -> bool:
        """Return whether none of the items of an answer expires while a cache may keep it, for MAX_AGE_S."""
        filters = release.filters.under(self._deny_list.current.overrides)
        return filters.all_stay(ids_of(items), within_s=MAX_AGE_S)

    def consumed_by(self, user: str) -> IdTest | None:
        """Return a function that tells whether an item is hidden from a user; None if none is."""
        if self._consumed is None:
            return None
        is_hidden = self._consumed.hidden_from(user)
        if is_hidden is not None and self._is_erased(user):
            return None
        return is_hidden

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

        tail_of = release.filters.under(self._deny_list.current.overrides).shown(tuple(wanted))
        return with_fields(items, selection.field_names, tail_of)

    def _listed_beside(
        self, encoded: EncodedList, selection: Selection, beside: Collection[str], *, is_filled: bool
    ) -> IdTest | None:
        """Return a test for the items *beside* a list; None if the answer cannot contain them.

        A list that was made for these items lacks them, but popular items, which may follow it if it *is_filled*, do
        not.
        """
        if is_filled or encoded.source == "popular" or selection.is_filtered:
            return frozenset(map(encode_id, beside)).__contains__
        return None

    def _check_else(self, release: ServedRelease, conditions: str) -> None:
        """Raise StoreMisused for invalid conditions of `else`; raises as `_filters_of`, too."""
        filters = self._filters_of(release)
        try:
            filters.rejected(conditions)  # raises it
        except StoreMisused as error:
            raise StoreMisused(f"else: {error}") from None

    def _filters_of(self, release: ServedRelease) -> ReleaseFilters:
        """Return the filters of a release; raises StoreUnavailable if it has attributes that could not be read."""
        if release.filters is NO_FILTERS and release.manifest.origin.item_attributes.pieces:
            raise StoreUnavailable(f"the item attributes of release {release.id} cannot be read for now")
        return release.filters.under(self._deny_list.current.overrides)


def _marked(items: bytes, mark: bytes) -> bytes:
    """Return items with one more member each, if there is one."""
    if not mark:
        return items
    return SEPARATOR.join([item[:-1] + mark for item in items.split(SEPARATOR) if item])
