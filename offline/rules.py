"""Business rules of lists."""

import re
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hotplate.offline.errors import DataError, SettingError, require_at_least
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import input_files, named_paths
from hotplate.offline.input.matrix import Allowed, Floats, Indices, UserItems, items_per_user
from hotplate.offline.input.showings import Showings, read_showings
from hotplate.offline.input.tables import open_tables, read_text
from hotplate.offline.model import Model, Users
from hotplate.offline.options import Format, RuleFiles
from hotplate.offline.train.engine import with_recency
from hotplate.offline.train.popularity import Popular, Popularity, by_popularity, recent_popularity
from hotplate.offline.train.ranking import recommend
from hotplate.offline.variety import (
    MAX_DIVERSITY,
    Explore,
    ItemSimilarity,
    NewItems,
    are_new,
    levelled,
    pool_size,
    read_explore,
    rearranged,
    values_at,
)
from hotplate.stores.encoding import OVERALL

# In list lengths; short lists are ranked again, deeper.
_FIRST_DEPTH = 2
_DEEPER = 4
# Ranked items in memory at once.
_CELLS = 1 << 22
# Larger boosts could overflow float32 scores.
_MAX_BOOST = 1_000_000
_STOCK_NAME = re.compile(r"(?i)stock|in[ _-]?stock|quantity|qty|available|availability|inventory")
_IN_STOCK = ["true", "yes", "in stock", "instock"]
_OUT_OF_STOCK = ["false", "no", "out of stock", "outofstock"]
# Items without a category are not capped.
_NO_CATEGORY = -1

Ranked = tuple[Indices, Floats]


@dataclass(frozen=True, slots=True)
class Rules:
    """Business rules of lists; raises SettingError for invalid ones.

    available         ids of recommendable items; None for all
    categories        by item id; a list has each at most *max_per_category* times
    min_history       users with fewer interactions get no list
    boosts            factors of scores, by item id
    pinned            ids of items at the head of lists, unless the user has them
    diversity         weight of variety against relevance, from 0 to 0.9
    showings          days on which items were shown; those without a click sink
    explore           places for new items
    """

    available: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    categories: Mapping[str, str] = field(default_factory=dict)
    max_per_category: int | None = None
    min_history: int = 1
    boosts: Mapping[str, float] = field(default_factory=dict)
    pinned: tuple[str, ...] = ()
    diversity: float = 0.0
    showings: Showings | None = None
    explore: Explore | None = None

    def __post_init__(self) -> None:
        require_at_least("min-history", self.min_history)
        if self.max_per_category is not None:
            require_at_least("max-per-category", self.max_per_category)
        require_both(self.max_per_category, self.categories or None)
        if not 0 <= self.diversity <= MAX_DIVERSITY:
            raise SettingError(f"diversity is {self.diversity}; it must lie between 0 and {MAX_DIVERSITY}.")

    @property
    def rearrange(self) -> bool:
        """Whether a rule changes the order of users' lists, beyond pins and boosts."""
        return self.diversity > 0 or self.showings is not None or self.explore is not None

    @property
    def shorten(self) -> bool:
        """Whether a rule removes items from lists."""
        return self.available is not None or bool(self.excluded) or self.max_per_category is not None


def require_both(max_per_category: int | None, categories: object | None) -> None:
    """Raise SettingError unless both or neither are given."""
    if (max_per_category is None) != (categories is None):
        raise SettingError("A cap needs both --categories FILE and --max-per-category N.")


def read_rules(files: RuleFiles) -> Rules:
    """Read the rules from files, *rotate* from events; raises DataError and SettingError."""
    categories = dict[str, str]()
    if files.categories is not None:
        rows = read_text(files.categories, ["item", "category"]).drop_nulls()
        categories = _by_item(rows, files.categories, "in two categories")
    return Rules(
        available=None if files.available is None else frozenset(_read_available(files.available)),
        excluded=frozenset() if files.exclude is None else frozenset(_read_items(files.exclude)),
        categories=categories,
        max_per_category=files.max_per_category,
        min_history=files.min_history,
        boosts={} if files.boost is None else _read_boosts(files.boost),
        pinned=() if files.pin is None else tuple(_read_items(files.pin)),
        diversity=files.diversity,
        showings=None if files.rotate is None else read_showings(files.rotate),
        explore=None if files.explore is None else read_explore(files.explore),
    )


class RuledLists:
    """Ranks the items of one model under rules: [rows, length], best first, -1 with score 0 after the end.

    Popular items fill shortened lists. *allowed* is the mask of items, None for all; *categories* are numbers by item,
    negative for uncategorized, None without a cap. Raises SettingError for new items without times.
    """

    def __init__(self, model: Model, rules: Rules, length: int, *, keep_seen: bool) -> None:
        self._rules = rules
        self._length = length
        self._keep_seen = keep_seen
        ids = model.matrix.item_ids
        self._boosts = _boosts(rules, ids)
        self.allowed = _allowed(rules, ids)
        self.categories = None if rules.max_per_category is None else _codes(rules.categories, ids)
        self._model = self._favouring(model)
        self._history = items_per_user(model.matrix.user_items)
        self._own = self._counted(model) if keep_seen else None
        self._shown = None if rules.showings is None else rules.showings.days_without_click(model.matrix)
        self._similarity = ItemSimilarity(model.similar) if rules.diversity else None
        self._new = None if rules.explore is None else self._new_items(model, rules.explore)
        counts = recent_popularity(model.matrix.user_items, model.matrix.times, model.popular_half_life_days)
        if self._boosts is not None:
            counts = counts * self._boosts
        self._popularity = Popularity(counts.astype(np.float32))
        self._pins = self._pinned_columns(ids)

    def users(self, start: int, stop: int) -> Users:
        """Return a range of the model's users, with what the rules know of them."""
        rows = slice(start, stop)
        own = None if self._own is None else self._own[rows]
        shown = None if self._shown is None else self._shown[rows]
        return self._model.users(start, stop)._replace(own=own, shown=shown)

    def for_users(self, model: Model, users: Users | None = None) -> "RuledLists":
        """Return a copy for *model*'s users, with what is known of *users*."""
        lists = copy(self)
        lists._model = self._favouring(model)  # noqa: SLF001 -- a copy of itself
        lists._history = items_per_user(model.matrix.user_items)  # noqa: SLF001 -- as above
        lists._own = None if users is None else users.own  # noqa: SLF001 -- as above
        lists._shown = None if users is None else users.shown  # noqa: SLF001 -- as above
        return lists

    @property
    def multipliers(self) -> Floats | None:
        """Factors of users' scores by item, from recency and boosts."""
        return self._model.ranker.recent

    @property
    def available(self) -> int:
        """Number of available items."""
        ids = self._model.matrix.item_ids
        available = self._rules.available
        return len(ids) if available is None else sum(item in available for item in ids)

    @property
    def catalogue(self) -> int:
        """Number of items that all rules allow."""
        return len(self._model.matrix.item_ids) if self.allowed is None else int(self.allowed.sum())

    def personal(self, users: Indices) -> Ranked:
        """Rank for the rows *users*; too short a history gives an empty list."""
        width = min(self._length, len(self._model.matrix.item_ids))
        items = np.full((len(users), width), -1, dtype=np.int32)
        scores = np.zeros((len(users), width), dtype=np.float32)
        enough = self._history[users] >= self._rules.min_history
        items[enough], scores[enough] = self._cut(self._recommend, users[enough], self._depth)
        return items, levelled(items, scores) if self._rules.rearrange else scores

    def similar(self, items: Indices) -> Ranked:
        """Rank items similar to the columns *items*; short lists are not filled."""
        similar = self._model.similar
        return self._cut(
            lambda batch, depth: similar.similar_items(batch, depth, allowed=self.allowed), items, self._length
        )

    def popular(self) -> dict[str, Popular]:
        """Return popular lists by segment, filled with overall popular items of score 0."""
        model = self._model
        counts = self._popularity.counts
        if not (self._rules.shorten or len(self._pins) or self._boosts is not None):
            return {OVERALL: model.popular, **model.segments}
        order = by_popularity(counts)
        lists = {OVERALL: self._shortened(order, counts, len(model.popular.items))}
        for segment, popular in model.segments.items():
            own = np.zeros_like(counts)
            own[popular.items] = popular.scores
            own = own if self._boosts is None else own * self._boosts
            items = np.concatenate([popular.items, order[~np.isin(order, popular.items)]])
            lists[segment] = self._shortened(items[by_popularity(own[items])], own, len(popular.items))
        return lists

    def about(self) -> dict[str, Any]:
        """Return the entry of the manifest; the model lacks *unknown* items."""
        rules = self._rules
        known = set(self._model.matrix.item_ids)
        items = {
            "available": rules.available or (),
            "excluded": rules.excluded,
            "boosted": rules.boosts,
            "pinned": set(rules.pinned),
        }
        facts: dict[str, Any] = {
            name: {"items": len(ids), "unknown": len(set(ids) - known)} for name, ids in items.items() if ids
        }
        if rules.max_per_category is not None:
            without = len(known - rules.categories.keys())
            facts["categories"] = {"max": rules.max_per_category, "items_without": without}
        if rules.min_history > 1:
            facts["min_history"] = {
                "items": rules.min_history,
                "users_without": int((self._history < rules.min_history).sum()),
            }
        if rules.diversity:
            facts["diversity"] = {"weight": rules.diversity}
        if self._shown is not None:
            users = int((items_per_user(self._shown) > 0).sum())
            facts["rotate"] = {"users": users, "items_shown": int(self._shown.nnz)}
        if self._new is not None:
            facts["explore"] = {**asdict(self._new.explore), "items": len(self._new.items)}
        return facts

    @property
    def _depth(self) -> int:
        """The number of candidates for a list."""
        needs_pool = self._similarity is not None or self._shown is not None
        return max(self._length, pool_size(self._length)) if needs_pool else self._length

    def _pinned_columns(self, ids: list[str]) -> Indices:
        columns = {item: column for column, item in enumerate(ids)}
        pinned = [columns[item] for item in dict.fromkeys(self._rules.pinned) if item in columns]
        pins = np.array(pinned, dtype=np.int32)
        return pins if self.allowed is None else pins[self.allowed[pins]]

    def _new_items(self, model: Model, explore: Explore) -> NewItems:
        times = model.matrix.times
        if times is None:
            raise SettingError("New items need times, and the data have none; name their column with --time-column.")
        new = are_new(model.matrix.user_items, times, explore.days)
        if self.allowed is not None:
            new &= self.allowed
        return NewItems(explore, model, new, keep_seen=self._keep_seen)

    def _recommend(self, users: Indices, depth: int) -> Ranked:
        ranker = self._model.ranker
        rank = ranker.recommend if self._own is None else partial(recommend, ranker, own=self._own)
        items, scores = rank(
            self._model.matrix.user_items, users, depth, keep_seen=self._keep_seen, allowed=self.allowed
        )
        if self._rules.shorten:
            self._fill(users, items, scores)
        if self._similarity is not None or self._shown is not None:
            items, scores = self._rearranged(users, items, scores)
        if self._new is not None:
            items, scores = self._explored(self._new, users, items, scores)
        return self._pinned(users, items, scores) if len(self._pins) else (items, scores)

    def _fill(self, users: Indices, items: Indices, scores: Floats) -> None:
        """Fill short lists with popular items, in place."""
        short = np.flatnonzero(items[:, -1] < 0)
        if len(short):
            user_items = self._model.matrix.user_items
            filler, _ = self._popularity.recommend(
                user_items, users[short], items.shape[1], keep_seen=self._keep_seen, allowed=self.allowed
            )
            items[short], scores[short] = filled((items[short], scores[short]), filler)

    def _rearranged(self, users: Indices, items: Indices, scores: Floats) -> Ranked:
        pool = items[:, : pool_size(self._length)]
        shown_days = None if self._shown is None else values_at(self._shown[users], pool)
        order = rearranged(pool, self._rules.diversity, self._similarity, shown_days)
        beyond = np.arange(pool.shape[1], items.shape[1], dtype=order.dtype)
        order = np.concatenate([order, np.broadcast_to(beyond, (len(items), len(beyond)))], axis=1)
        return np.take_along_axis(items, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _explored(self, new: NewItems, users: Indices, items: Indices, scores: Floats) -> Ranked:
        matrix = self._model.matrix
        segments = self._model.user_segments
        chosen = Users(
            ids=[matrix.user_ids[user] for user in users.tolist()],
            user_items=matrix.user_items[users],
            factors=None,
            segments=None if segments is None else [segments[user] for user in users.tolist()],
        )
        lists, values = new.inserted(chosen, items, scores, self._length)
        return cut(lists, values, (lists >= 0) & _first(lists, 1), items.shape[1])

    def _pinned(self, users: Indices, items: Indices, scores: Floats) -> Ranked:
        pins = np.tile(self._pins, (len(users), 1))
        pins[items[:, 0] < 0] = -1
        if not self._keep_seen:
            pins[self._model.matrix.user_items[users][:, self._pins].toarray() > 0] = -1
        everything = np.concatenate([pins, items], axis=1)
        values = np.concatenate([np.broadcast_to(scores[:, :1], pins.shape), scores], axis=1)
        return cut(everything, values, (everything >= 0) & _first(everything, 1), items.shape[1])

    def _counted(self, model: Model) -> UserItems | None:
        own = model.own_counts()
        if own is not None and self._boosts is not None:
            own.data *= self._boosts[own.indices]
        return own

    def _favouring(self, model: Model) -> Model:
        ranker = model.ranker
        weights = self._boosts
        if weights is None:
            return model
        if isinstance(ranker, Popularity):
            return replace(model, ranker=Popularity(ranker.counts * weights))
        if ranker.recent is not None:
            weights = ranker.recent * weights
        return replace(model, ranker=with_recency(ranker, weights))

    def _cut(self, rank: Callable[[Indices, int], Ranked], rows: Indices, depth: int) -> Ranked:
        """Return lists of the full length, under the cap, of rankings of at least *depth* items."""
        most = self._rules.max_per_category
        total = len(self._model.matrix.item_ids)
        if most is not None:
            depth = max(depth, self._length * _FIRST_DEPTH)
        elif depth == self._length:
            return rank(rows, self._length)
        width = min(self._length, total)
        items = np.full((len(rows), width), -1, dtype=np.int32)
        scores = np.zeros((len(rows), width), dtype=np.float32)
        pending = np.arange(len(rows))
        while len(pending):
            short = list[Indices]()
            batches = -(-len(pending) * min(depth, total) // _CELLS)
            for places in np.array_split(pending, batches):
                ranked, values = rank(rows[places], depth)
                kept = ranked >= 0
                if self.categories is not None and most is not None:
                    kept = capped(ranked, self.categories, most)
                lists, values = cut(ranked, values, kept, width)
                items[places, : lists.shape[1]] = lists
                scores[places, : lists.shape[1]] = values
                is_short = items[places, -1] < 0
                short.append(places[is_short & (ranked[:, -1] >= 0)])
            if depth >= total:
                break
            pending = np.concatenate(short)
            depth *= _DEEPER
        return items, scores

    def _shortened(self, items: Indices, scores: Floats, n: int) -> Popular:
        """Return *n* allowed pinned or other *items*; *scores* are by item."""
        scores = scores.copy()
        scores[self._pins] = scores[items[0]]
        items = np.concatenate([self._pins, items[~np.isin(items, self._pins)]])
        if self.allowed is not None:
            items = items[self.allowed[items]]
        if self.categories is not None and self._rules.max_per_category is not None:
            items = items[capped(items[None, :], self.categories, self._rules.max_per_category)[0]]
        return Popular(items[:n], scores[items[:n]])


def capped(items: Indices, categories: Indices, most: int) -> npt.NDArray[np.bool_]:
    """Return the mask of *items* [rows, depth], best first, under a cap of *most* per category; False for -1."""
    return (items >= 0) & _first(np.where(items >= 0, categories[items], _NO_CATEGORY), most)


def cut(items: Indices, scores: Floats, kept: npt.NDArray[np.bool_], n: int) -> Ranked:
    """Return the first *n* kept entries per row, then -1 with score 0."""
    order = np.argsort(~kept, axis=1, kind="stable")[:, :n]
    kept = np.take_along_axis(kept, order, axis=1)
    best = np.take_along_axis(items, order, axis=1)
    values = np.take_along_axis(scores, order, axis=1)
    return np.where(kept, best, np.int32(-1)), np.where(kept, values, np.float32(0))


def filled(ranked: Ranked, filler: Indices) -> Ranked:
    """Append missing items of *filler*, with a score of 0 or the row's lowest if negative."""
    items, scores = ranked
    lowest = scores.min(axis=1, where=items >= 0, initial=0)
    everything = np.concatenate([items, filler], axis=1)
    values = np.concatenate([scores, np.broadcast_to(lowest[:, None], filler.shape)], axis=1)
    return cut(everything, values, (everything >= 0) & _first(everything, 1), items.shape[1])


def _first(kinds: Indices, most: int) -> npt.NDArray[np.bool_]:
    """Return the mask of the first *most* entries per row and kind; negative kinds are unlimited."""
    order = np.argsort(kinds, axis=1, kind="stable")
    ordered = np.take_along_axis(kinds, order, axis=1)
    places = np.arange(kinds.shape[1])
    begins = np.ones(kinds.shape, dtype=np.bool_)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    nth = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    first = np.empty(kinds.shape, dtype=np.bool_)
    np.put_along_axis(first, order, (nth < most) | (ordered < 0), axis=1)
    return first


def _read_items(path: Path, *, may_be_empty: bool = True) -> list[str]:
    if path.suffix.lower() != ".txt":
        return read_text(path, ["item"], may_be_empty=may_be_empty).get_column("item").to_list()
    with input_files([path]) as files, data_errors(named_paths([path]), files):
        lines = [line.strip() for file in files for line in file.path.read_text("utf-8-sig").splitlines()]
    return [*filter(None, lines)]


def _read_available(path: Path) -> list[str]:
    stock = None if path.suffix.lower() == ".txt" else _stock_column(path)
    if stock is None:
        return _read_items(path, may_be_empty=False)
    text = pl.col("stock").str.strip_chars().str.to_lowercase()
    amount = pl.when(text.is_in(_IN_STOCK)).then(1.0).when(text.is_in(_OUT_OF_STOCK)).then(0.0)
    number = text.cast(pl.Float64, strict=False)
    rows = read_text(path, ["item"], {"stock": stock}).with_columns(amount=amount.otherwise(number))
    unread = rows.filter(pl.col("amount").is_null())
    if unread.height:
        item, value = unread.select("item", "stock").row(0)
        raise DataError(
            f"{named_paths([path])} has {value!r} as the {stock} of item {item!r}; write a number, true or false."
        )
    return rows.filter(pl.col("amount") > 0).get_column("item").to_list()


def _stock_column(path: Path) -> str | None:
    with input_files([path]) as files:
        names = open_tables(files, Format())[0].schema
    return next((name for name in names if _STOCK_NAME.fullmatch(name.strip())), None)


def _read_boosts(path: Path) -> dict[str, float]:
    boost = pl.col("boost")
    rows = read_text(path, ["item", "boost"], may_be_empty=True).with_columns(boost.cast(pl.Float64, strict=False))
    is_valid = (boost > 0) & (boost <= _MAX_BOOST)
    wrong = rows.filter(~is_valid.fill_null(value=False)).get_column("item").sort()
    if len(wrong):
        bounds = f"above zero and at most {_MAX_BOOST:,}"
        raise DataError(f"{named_paths([path])} has no number {bounds} as the boost of item {wrong[0]!r}.")
    return _by_item(rows, path, "with two boosts")


def _by_item(rows: pl.DataFrame, path: Path, fault: str) -> dict[str, Any]:
    """Return the values of *rows* [item, value] by item; DataError with the *fault* of an item that has two."""
    rows = rows.unique()
    repeated = rows.filter(pl.col("item").is_duplicated()).get_column("item").sort()
    if len(repeated):
        raise DataError(f"{named_paths([path])} has item {repeated[0]!r} {fault}; keep one for each item.")
    return dict(rows.iter_rows())


def _allowed(rules: Rules, ids: list[str]) -> Allowed:
    if rules.available is None and not rules.excluded:
        return None
    allowed = set(ids if rules.available is None else rules.available) - rules.excluded
    return np.array([item in allowed for item in ids], dtype=np.bool_)


def _boosts(rules: Rules, ids: list[str]) -> Floats | None:
    """Return factors of scores [items], None if all are 1."""
    if not rules.boosts:
        return None
    return np.array([rules.boosts.get(item, 1.0) for item in ids], dtype=np.float32)


def _codes(categories: Mapping[str, str], ids: list[str]) -> Indices:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(categories.values()))}
    return np.array([numbers.get(categories.get(item, ""), _NO_CATEGORY) for item in ids], dtype=np.int32)
