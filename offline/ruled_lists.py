"""The lists of a model under business rules.

Users and items are rows and columns of a model's matrix. Items -1 with score 0 stand after the end of a list.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hotplate.offline.errors import SettingError
from hotplate.offline.exploration import Explore, NewItems, are_new
from hotplate.offline.input.pairs import Allowed, Floats, Indices, Mask, UserItems, items_per_user, values_at
from hotplate.offline.model import Model, Users
from hotplate.offline.rules import Rules
from hotplate.offline.train.popularity import Popular, Popularity, order_by_popularity, recent_popularity
from hotplate.offline.train.ranking import Boosts, Ranked, RankOptions
from hotplate.offline.variety import (
    ItemSimilarity,
    level_scores,
    order_for_variety,
    pool_size,
)
from hotplate.stores.categories import CategoryCap
from hotplate.stores.encoding import OVERALL

# In list lengths; short lists are ranked again, deeper.
_FIRST_DEPTH = 2
_DEEPER = 4
# Ranked items in memory at once.
_CELLS = 1 << 22
# Users and boosted items whose lists are counted.
_COUNTED_USERS = 5_000
_COUNTED_ITEMS = 20


@dataclass(frozen=True, slots=True, eq=False)
class RuledLists:
    """Ranks the items of one model under rules: lists [rows, length], best first.

    Popular items fill lists that rules shorten.

    options     of the ranking: seen items, those that may be recommended, users' own interactions, and boosts
    cap         of items of a category, None without one
    similarity  of items, None without diversity
    new         draws new items, None unless they are explored
    popularity  fills lists
    pins        items at the head of lists
    shown       days on which an item was shown without a click [users, items], None without showings
    """

    model: Model
    rules: Rules
    length: int
    options: RankOptions
    cap: CategoryCap | None
    similarity: ItemSimilarity | None
    new: NewItems | None
    popularity: Popularity
    pins: Indices
    shown: UserItems | None

    @classmethod
    def of(cls, model: Model, rules: Rules, length: int, *, keep_seen: bool) -> "RuledLists":
        """Prepare the lists of *model* under *rules*, of at most *length* items each.

        With *keep_seen*, lists may hold items that the user has. Raises SettingError if the rules put new items into
        lists and the data have no times.
        """
        matrix = model.matrix
        ids = matrix.item_ids
        boosts = _boosts(rules, ids)
        allowed = _allowed_items(rules, ids)

        counts = recent_popularity(matrix.user_items, matrix.times, model.popular_half_life_days)
        if boosts is not None:
            counts = boosts.apply(counts)

        new = None
        if rules.explore is not None:
            new = _new_items(model, rules.explore, allowed, keep_seen=keep_seen)

        return cls(
            model=model,
            rules=rules,
            length=length,
            options=RankOptions(keep_seen, allowed, own=model.own_counts() if keep_seen else None, boosts=boosts),
            cap=_category_cap(rules, ids),
            similarity=ItemSimilarity(model.similar) if rules.diversity else None,
            new=new,
            popularity=Popularity(counts.astype(np.float32)),
            pins=_pins(rules, ids, allowed),
            shown=None if rules.showings is None else rules.showings.days_without_click(matrix),
        )

    def users(self, start: int, stop: int) -> Users:
        """Return a range of the model's users, with the facts that rules use."""
        rows = slice(start, stop)
        return self.model.users(start, stop)._replace(
            own=None if self.options.own is None else self.options.own[rows],
            shown=None if self.shown is None else self.shown[rows],
        )

    def for_users(self, model: Model, users: Users | None = None) -> "RuledLists":
        """Return the same rules for the users of *model*, with the facts in *users*, if given."""
        return replace(
            self,
            model=model,
            options=replace(self.options, own=None if users is None else users.own),
            shown=None if users is None else users.shown,
        )

    @property
    def available_count(self) -> int:
        """Number of available items."""
        ids = self.model.matrix.item_ids
        available = self.rules.available
        return len(ids) if available is None else sum(item in available for item in ids)

    def personal(self, users: Indices) -> Ranked:
        """Return the lists of some users by all rules: items and scores [users, length], best first.

        *users* are rows of the model's matrix. A list that is shorter than *length* ends with -1. Users with fewer than
        `min_history` items get an empty list.
        """
        width = min(self.length, len(self.model.matrix.item_ids))
        lists = Ranked.empty(len(users), width)

        # Of these users alone: `items_per_user` would count those of all users again for each batch.
        starts = self.model.matrix.user_items.indptr
        has_enough = starts[users + 1] - starts[users] >= self.rules.min_history
        lists.put(has_enough, self._ranked_under_cap(self._recommend, users[has_enough], self._depth))

        # Rearranged lists are no longer in the order of their scores.
        return lists._replace(scores=level_scores(*lists)) if self.rules.rearranges else lists

    def similar(self, items: Indices) -> Ranked:
        """Rank items similar to the columns *items*; short lists are not filled."""
        similar = self.model.similar
        return self._ranked_under_cap(
            lambda batch, depth: similar.similar_items(batch, depth, allowed=self.options.allowed), items, self.length
        )

    def popular(self) -> dict[str, Popular]:
        """Return the popular list of each segment (a group of users, such as a country), and the overall one (OVERALL).

        Items that the rules remove from a segment's list are replaced by overall popular ones, with a score of 0.
        """
        model = self.model
        if not self._changes_popular:
            return {OVERALL: model.popular, **model.segments}

        counts = self.popularity.counts
        order = order_by_popularity(counts)
        lists = {OVERALL: self._ruled_popular_list(order, counts, len(model.popular.items))}

        for segment, popular in model.segments.items():
            # The score of each item of the model in this segment [items].
            scores = np.zeros_like(counts)
            scores[popular.items] = popular.scores
            if self.options.boosts is not None:
                scores = self.options.boosts.apply(scores).astype(np.float32)

            # The segment's items come first, then the others by overall popularity. Sorting by score keeps this order
            # for equal scores; boosts may change that of the segment's items.
            fillers = order[~np.isin(order, popular.items)]
            items = np.concatenate([popular.items, fillers])
            items = items[order_by_popularity(scores[items])]
            lists[segment] = self._ruled_popular_list(items, scores, len(popular.items))
        return lists

    @property
    def _changes_popular(self) -> bool:
        """Whether a rule removes, pins or boosts items, which changes popular lists, too."""
        return self.rules.shortens or len(self.pins) > 0 or bool(self.rules.boosts)

    def about(self) -> dict[str, Any]:
        """Describe the rules for the manifest of a release, such as `{"pinned": {"items": 3, "unknown": 1}}`.

        Only rules in force have an entry, with their settings and the numbers of items and users that they concern.
        `unknown` is the number of items of a rule that the model does not know.
        """
        rules = self.rules
        known = set(self.model.matrix.item_ids)
        ids_by_rule = {
            "available": rules.available or (),
            "excluded": rules.excluded,
            "boosted": rules.boosts,
            "pinned": set(rules.pinned),
        }
        facts = dict[str, Any]()
        for name, ids in ids_by_rule.items():
            if ids:
                facts[name] = {"items": len(ids), "unknown": len(set(ids) - known)}
        if rules.boosts:
            facts["boosted"] |= self._count_boosted(known)

        if rules.max_per_category is not None:
            without = len(known - rules.categories.keys())
            facts["categories"] = {"max": rules.max_per_category, "items_without": without}
        if rules.min_history > 1:
            users = int((items_per_user(self.model.matrix.user_items) < rules.min_history).sum())
            facts["min_history"] = {"items": rules.min_history, "users_without": users}
        if rules.diversity:
            facts["diversity"] = {"weight": rules.diversity}

        if self.shown is not None:
            users = int((items_per_user(self.shown) > 0).sum())
            facts["rotate"] = {"users": users, "items_shown": int(self.shown.nnz)}
        if self.new is not None:
            facts["explore"] = {**asdict(self.new.explore), "items": len(self.new.items)}
        return facts

    def _count_boosted(self, known: set[str]) -> dict[str, int]:
        """Return how many users' lists have each of the most boosted items that are *known*, and without boosts.

        At most 5,000 users are counted, drawn at random.
        """
        matrix = self.model.matrix
        users = np.random.default_rng(0).permutation(len(matrix.user_ids))[:_COUNTED_USERS].astype(np.int32)
        without = RuledLists.of(
            self.model, replace(self.rules, boosts={}), self.length, keep_seen=self.options.keep_seen
        ).personal(users)
        lists = self.personal(users)

        counts = {"of users": len(users)}
        best_first = sorted(known & self.rules.boosts.keys(), key=lambda item: (-self.rules.boosts[item], item))
        for item in best_first[:_COUNTED_ITEMS]:
            number = matrix.item_ids.index(item)
            counts[f"lists with {item}"] = int((lists.items == number).sum())
            counts[f"without boosts with {item}"] = int((without.items == number).sum())
        return counts

    @property
    def _reorders(self) -> bool:
        """Whether the candidates for a list are reordered, for diversity or rotation."""
        return self.similarity is not None or self.shown is not None

    @property
    def _depth(self) -> int:
        """The number of candidates for a list."""
        return max(self.length, pool_size(self.length)) if self._reorders else self.length

    def _recommend(self, users: Indices, depth: int) -> Ranked:
        """Return lists [users, n] of some users (rows of the matrix), by all rules but the cap per category.

        n is *depth*, or the number of items if that is lower. The order of the steps matters: pinned items come last,
        so that no other rule moves them.
        """
        user_items = self.model.matrix.user_items
        lists = self.model.ranker.recommend(user_items, users, depth, self.options)
        lists = self.popularity.fill(user_items, users, lists, self.options)
        if self._reorders:
            lists = self._reorder_candidates(users, lists)
        if self.new is not None:
            lists = self._insert_new_items(self.new, users, lists)
        if len(self.pins):
            lists = self._put_pins_first(users, lists)
        return lists

    def _reorder_candidates(self, users: Indices, lists: Ranked) -> Ranked:
        """Reorder the first items of the *lists* of *users*, for diversity and rotation.

        Diversity moves items down that are similar to those before them, rotation those that were shown on several days
        without a click. Only the first `pool_size` items are reordered; those behind keep their place.
        """
        pool = lists.items[:, : pool_size(self.length)]
        shown_days = None if self.shown is None else values_at(self.shown, users, pool)
        pool_order = order_for_variety(pool, self.rules.diversity, self.similarity, shown_days)

        # The places of whole lists, as they are but for the pool.
        rows, width = lists.items.shape
        order = np.tile(np.arange(width, dtype=pool_order.dtype), (rows, 1))
        order[:, : pool.shape[1]] = pool_order
        return lists.ordered(order)

    def _insert_new_items(self, new: NewItems, users: Indices, lists: Ranked) -> Ranked:
        """Insert *new* items, those with a recent first interaction, into the *lists* of *users* at random places.

        An item that is then listed twice loses its later place, and lists are cut to their former width.
        """
        matrix = self.model.matrix
        ids = [matrix.user_ids[user] for user in users.tolist()]
        wider = new.insert_new_items(ids, matrix.user_items[users], lists, self.length)
        return wider.without_repeats(lists.items.shape[1])

    def _put_pins_first(self, users: Indices, lists: Ranked) -> Ranked:
        """Put the items that the operator has pinned at the head of the *lists* of *users*, with the best score.

        A pinned item that the user has is left out, unless seen items are kept. Empty lists stay empty.
        """
        # The pins of each list [users, pins]; -1 for those left out.
        pins = np.tile(self.pins, (len(users), 1))
        is_empty = lists.items[:, 0] < 0
        pins[is_empty] = -1
        if not self.options.keep_seen:
            is_seen = self.model.matrix.user_items[users][:, self.pins].toarray() > 0
            pins[is_seen] = -1

        best_scores = np.broadcast_to(lists.scores[:, :1], pins.shape)
        return Ranked(pins, best_scores).followed_by(lists, lists.items.shape[1])

    def _ranked_under_cap(self, rank: Callable[[Indices, int], Ranked], rows: Indices, depth: int) -> Ranked:
        """Rank items for *rows* (users or items), and return lists [rows, length] that keep the cap per category.

        A list may have at most `max_per_category` items of a category. *rank* is called with some of the rows and with
        the number of items to rank for each: *depth* or more at first, and several times as many for lists that the cap
        leaves short. A list ends with -1 and scores of 0 if the ranking has too few items.
        """
        # Without a cap, one ranking gives the lists, unless the rules need more candidates than places.
        if self.cap is None and depth == self.length:
            return rank(rows, self.length)
        if self.cap is not None:
            depth = max(depth, self.length * _FIRST_DEPTH)

        total = len(self.model.matrix.item_ids)
        width = min(self.length, total)
        lists = Ranked.empty(len(rows), width)

        # Indices of lists: at first all, then those of short lists, which are ranked again, deeper.
        pending = np.arange(len(rows), dtype=np.int32)
        while len(pending):
            batches = -(-len(pending) * min(depth, total) // _CELLS)  # bounds memory; rounded up
            still_short = [
                self._fill_under_cap(lists, batch, rank(rows[batch], depth))
                for batch in np.array_split(pending, batches)
            ]
            if depth >= total:
                break
            pending = np.concatenate(still_short)
            depth *= _DEEPER
        return lists

    def _fill_under_cap(self, lists: Ranked, places: Indices, ranked: Ranked) -> Indices:
        """Put the items of *ranked* that keep the cap into the lists at *places*.

        Returns the places of lists that are still short and that a deeper ranking may fill: it has more items.
        """
        lists.put(places, ranked.only(self._are_under_cap(ranked.items), lists.items.shape[1]))

        is_short = lists.items[places, -1] < 0
        has_more = ranked.items[:, -1] >= 0
        deeper: Indices = places[is_short & has_more]
        return deeper

    def _are_under_cap(self, items: Indices) -> Mask:
        """Return which *items* [rows, depth] the cap per category leaves in their list; False for -1."""
        return items >= 0 if self.cap is None else self.cap.are_listed(items)

    def _ruled_popular_list(self, items: Indices, scores: Floats, n: int) -> Popular:
        """Return a popular list of *n* items, or fewer: the pinned ones, then the first of *items* that rules allow.

        *items* are numbers of items, best first; *scores* has the score of every item of the model, by number.
        """
        # Pinned items get the best score, so that scores descend in the list.
        scores = scores.copy()
        best_score = scores[items[0]]
        scores[self.pins] = best_score

        items = np.concatenate([self.pins, items[~np.isin(items, self.pins)]])
        if self.options.allowed is not None:
            items = items[self.options.allowed[items]]
        are_under_cap = self._are_under_cap(items[np.newaxis, :])[0]  # of the only list
        items = items[are_under_cap][:n]
        return Popular(items, scores[items])


def _pins(rules: Rules, ids: list[str], allowed: Allowed) -> Indices:
    """Return the pinned items that are known and *allowed*, in order."""
    columns = {item: column for column, item in enumerate(ids)}
    pinned = [columns[item] for item in dict.fromkeys(rules.pinned) if item in columns]
    pins = np.array(pinned, dtype=np.int32)
    return pins if allowed is None else pins[allowed[pins]]


def _new_items(model: Model, explore: Explore, allowed: Allowed, *, keep_seen: bool) -> NewItems:
    """Return the *allowed* new items of a model; SettingError without times."""
    times = model.matrix.times
    if times is None:
        raise SettingError("New items need times, and the data have none; name their column with --time-column.")
    new = are_new(model.matrix.user_items, times, explore.days)
    if allowed is not None:
        new &= allowed
    return NewItems(explore, model, new, keep_seen=keep_seen)


def _allowed_items(rules: Rules, ids: list[str]) -> Allowed:
    """Return the mask of items that are available and not excluded [items], None without such rules."""
    if rules.available is None and not rules.excluded:
        return None
    allowed = set(ids if rules.available is None else rules.available) - rules.excluded
    return np.array([item in allowed for item in ids], dtype=np.bool_)


def _boosts(rules: Rules, ids: list[str]) -> Boosts | None:
    """Return the boosts of items, None without any."""
    return Boosts.of([rules.boosts.get(item, 1.0) for item in ids]) if rules.boosts else None


def _category_cap(rules: Rules, ids: list[str]) -> CategoryCap | None:
    """Return the cap of the model's items, None without one; categories have the same numbers in each attempt."""
    if rules.max_per_category is None:
        return None
    names_of = {item: {names} if isinstance(names, str) else {*names} for item, names in rules.categories.items()}
    number_of = {name: number for number, name in enumerate(sorted(set().union(*names_of.values())))}
    categories = [sorted(map(number_of.__getitem__, names_of.get(item, ()))) for item in ids]
    return CategoryCap(rules.max_per_category, categories)
