"""Variety, rotation and new items: against an oracle that computes one user's list at a time, with plain loops."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_matrix
from xxhash import xxh3_64_intdigest

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.evaluation import evaluate_as_published, share_of_new_items
from hotplate.offline.evaluate.splits import Parts, SplitOptions
from hotplate.offline.exploration import Explore, read_explore
from hotplate.offline.input.history import DAY_US, History
from hotplate.offline.input.matrix import Matrix
from hotplate.offline.input.showings import Showings, read_showings
from hotplate.offline.model import Model
from hotplate.offline.ruled_lists import RuledLists
from hotplate.offline.rules import Rules
from hotplate.offline.train.als import ALSParams, Factors
from hotplate.offline.train.popularity import Popularity, PopularityParams, most_popular
from hotplate.offline.train.similar import SimilarParams
from hotplate.offline.train.similar import fit as fit_similar
from hotplate.offline.variety import ItemSimilarity
from hotplate.stores.event_log import LogSegment, line_of
from tests.support.interactions import DATA, evaluate, under_cap
from tests.support.property import depths

if TYPE_CHECKING:
    from hotplate.offline.train.engine import Params, Ranker

TODAY = 20_000


def random_model(random: np.random.Generator) -> Model:
    """Return a model of few users and items; the last items are new."""
    users = int(random.integers(3, 9))
    items = int(random.integers(6, 40))
    pairs = random.random((users, items)) < random.uniform(0.1, 0.5)
    pairs[random.integers(users), :] = True  # every item has a user
    pairs[:, random.integers(items)] = True
    user_items = csr_matrix(np.where(pairs, random.uniform(0.5, 1.5, pairs.shape), 0).astype(np.float32))
    age_days = np.where(user_items.indices >= 0.7 * items, random.integers(0, 7), random.integers(8, 60))
    times = (TODAY - age_days) * DAY_US + random.integers(0, DAY_US // 2, user_items.nnz)
    matrix = Matrix(
        [f"u{user:02}" for user in range(users)],
        [f"i{item:02}" for item in range(items)],
        user_items,
        History.of(user_items, times),
    )
    # Scores without ties, of which a ranking of fewer items may hold others.
    ranker: Ranker = Popularity(random.permutation(items).astype(np.float32) + 1)
    params: Params = PopularityParams()
    if random.random() < 0.5:
        factors = random.standard_normal((users + items, 4)).astype(np.float32)
        ranker = Factors(factors[:users], factors[users:])
        params = ALSParams()
    return Model(
        ranker=ranker,
        matrix=matrix,
        titles={},
        popular=most_popular(matrix, 5),
        segments={},
        params=params,
        evaluation=None,
        data=DATA,
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
        similar=fit_similar(user_items, SimilarParams(shrink=0)),
    )


def random_showings(random: np.random.Generator, model: Model) -> Showings:
    users, items = model.matrix.user_items.shape
    rows = {
        (f"u{random.integers(users + 1):02}", f"i{random.integers(items + 1):02}", TODAY + int(random.integers(-5, 9)))
        for _ in range(users * items)
    }
    frame = pl.DataFrame(sorted(rows), schema=["user", "item", "day"], orient="row")
    clicked = pl.Series("clicked", random.random(frame.height) < 0.05)
    kinds = {"user": pl.Categorical(), "item": pl.Categorical(), "day": pl.Int32()}
    return Showings(frame.with_columns(clicked).cast(kinds))  # type: ignore[arg-type]  # polars wants its classes


def mutual_similarities(model: Model) -> list[list[np.float32]]:
    """Return the similarity of each two items: the larger of their shares of the most similar item's."""
    table = model.similar.similarity.toarray()
    shares = [[value / (max(row) or 1) for value in row] for row in table]
    items = range(len(model.matrix.item_ids))
    return [[max(shares[item][other], shares[other][item]) for other in items] for item in items]


def times_by_pair(model: Model) -> dict[tuple[int, int], int]:
    """Return the time of each pair of a user and an item."""
    pairs = model.matrix.user_items.tocoo()
    assert model.matrix.times is not None
    places = zip(pairs.row.tolist(), pairs.col.tolist(), strict=True)
    return dict(zip(places, model.matrix.times.tolist(), strict=True))


def days_by_pair(model: Model) -> dict[int, list[int]]:
    """Return the days of interactions by pair number."""
    history = model.matrix.history
    assert history is not None
    days = dict[int, list[int]]()
    for pair, time in zip(history.pair_numbers.tolist(), history.times.tolist(), strict=True):
        days.setdefault(pair, []).append(time // DAY_US)
    return days


@dataclass
class Oracle:
    """One user's list, from the whole ranking of the model without rules."""

    model: Model
    rules: Rules
    length: int
    keep_seen: bool

    def __post_init__(self) -> None:
        everything = RuledLists.of(self.model, Rules(), len(self.model.matrix.item_ids), keep_seen=self.keep_seen)
        self.ids = self.model.matrix.item_ids
        rankings, _ = everything.personal(np.arange(len(self.model.matrix.user_ids), dtype=np.int32))
        self.rankings = [[item for item in ranking.tolist() if item >= 0] for ranking in rankings]
        self.has = self.model.matrix.user_items.toarray() > 0
        self.similarities = mutual_similarities(self.model)
        self.times = times_by_pair(self.model)
        self.first_times = dict[int, int]()
        for (_, item), time in self.times.items():
            self.first_times[item] = min(time, self.first_times.get(item, time))
        self.interaction_days = days_by_pair(self.model)
        self.shown = dict[tuple[str, str], list[tuple[int, bool]]]()
        if self.rules.showings is not None:
            for user, item, day, clicked in self.rules.showings.frame.iter_rows():
                self.shown.setdefault((user, item), []).append((day, clicked))

    def list_of(self, user: int) -> list[int]:
        ranking = self.rankings[user]
        pool_size = 5 * min(self.length, 100)
        needs_pool = self.rules.diversity > 0 or self.rules.showings is not None
        pool, remaining = (ranking[:pool_size], ranking[pool_size:]) if needs_pool else ([], ranking)
        order = [*self.reordered(user, pool, min(pool_size, len(self.ids))), *remaining]
        if self.rules.explore is not None and order:
            order = self.explored(user, order, self.rules.explore)
        return list(self.capped(dict.fromkeys(order)))[: self.length]

    def reordered(self, user: int, pool: Sequence[int], places: int) -> Iterator[int]:
        relevance = {}
        for place, item in enumerate(pool):
            kept = np.maximum(np.float32(0.9) ** np.float32(self.days_shown(user, item)), np.float32(0.5))
            relevance[item] = (1 - np.float32(place) / np.float32(places)) * kept
        diversity = self.rules.diversity
        nearest = dict.fromkeys(relevance, np.float32(0))  # the similarity to the nearest item that was chosen
        while relevance:
            gains = {
                item: np.float32(1 - diversity) * value - np.float32(diversity) * nearest[item]
                for item, value in relevance.items()
            }
            best = max(gains, key=lambda item: gains[item])
            del relevance[best]
            for item in relevance:
                nearest[item] = max(nearest[item], self.similarities[item][best])
            yield best

    def days_shown(self, user: int, item: int) -> int:
        if self.rules.showings is None:
            return 0
        names = (self.model.matrix.user_ids[user], self.ids[item])
        showings = self.shown.get(names, [])
        clicks = [day for day, clicked in showings if clicked]
        since = max([-1, *clicks, *self.interaction_days.get(user * len(self.ids) + item, [])])
        return sum(day > since for day, _ in showings)

    def explored(self, user: int, order: Sequence[int], explore: Explore) -> list[int]:
        tens = -(-self.length // 10)
        name = self.model.matrix.user_ids[user]
        hashed = xxh3_64_intdigest(name.encode(), explore.seed)
        slots = set[int]()
        for ten in range(tens):
            places = range(10 * ten + 1, 10 * ten + 10)
            slots.update(sorted(places, key=lambda place: uniform(hashed + place))[: explore.new])
        keys = {
            item: math.log(uniform(hashed ^ xxh3_64_intdigest(self.ids[item].encode(), explore.seed)))
            / self.weight(item)
            for item in self.new_items(user, explore)
            if item not in order[: self.length]
        }
        drawn = iter(sorted(keys, key=lambda item: -keys[item])[: len(slots)])
        unchosen = iter(order)
        lists = [next(drawn if place in slots else unchosen, -1) for place in range(len(order) + 10 * tens)]
        return [item for item in lists if item >= 0]

    def new_items(self, user: int, explore: Explore) -> Iterator[int]:
        newest = max(self.times.values())
        for item in range(len(self.ids)):
            if self.first_times[item] > newest - explore.days * DAY_US and (self.keep_seen or not self.has[user, item]):
                yield item

    def weight(self, item: int) -> int:
        return 1 + int(self.has[:, item].sum())

    def capped(self, items: Sequence[int] | dict[int, None]) -> Iterator[int]:
        names = (self.ids[item] for item in items)
        return map(self.ids.index, under_cap(names, self.rules.categories, self.rules.max_per_category))


def uniform(value: int) -> float:
    """Return the number of a hash, mixed by SplitMix64's finalizer."""
    mask = (1 << 64) - 1
    value &= mask
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
    value ^= value >> 31
    return ((value >> 11) + 0.5) * 2.0**-53


def lists_of(ruled: RuledLists, users: int) -> list[list[tuple[int, float]]]:
    """Return (item, score) of each list."""
    rows = zip(*ruled.personal(np.arange(users, dtype=np.int32)), strict=True)
    return [[pair for pair in zip(*(row.tolist() for row in pairs), strict=True) if pair[0] >= 0] for pairs in rows]


def items_of(lists: list[list[tuple[int, float]]]) -> list[list[int]]:
    return [[item for item, _ in listed] for listed in lists]


def random_rules(random: np.random.Generator, model: Model, kind: str) -> Rules:
    everything = kind == "all"
    rules = Rules()
    if kind == "diversity" or (everything and random.random() < 0.7):
        rules = replace(rules, diversity=float(random.uniform(0.05, 0.9)))
    if kind == "rotate" or (everything and random.random() < 0.7):
        rules = replace(rules, showings=random_showings(random, model))
    if kind == "explore" or (everything and random.random() < 0.7):
        explore = Explore(int(random.integers(1, 6)), int(random.integers(3, 30)), int(random.integers(0, 9)))
        rules = replace(rules, explore=explore)
    if everything and random.random() < 0.5:
        categories = {
            item: [f"c{number}" for number in random.integers(4, size=random.integers(1, 4))]
            for item in model.matrix.item_ids
            if random.random() < 0.8
        }
        most = int(random.integers(1, 4)) if categories else None
        rules = replace(rules, categories=categories, max_per_category=most)
    return rules


@depths(20, 300)
@pytest.mark.parametrize("kind", ["diversity", "rotate", "explore", "all"])
def test_lists_equal_those_of_the_oracle(kind: str, examples: int) -> None:
    changed = 0
    for case in range(examples):
        random = np.random.default_rng([case, len(kind)])
        model = random_model(random)
        rules = random_rules(random, model, kind)
        length = int(random.integers(1, 15))
        keep_seen = bool(random.random() < 0.3)
        oracle = Oracle(model, rules, length, keep_seen)
        users = len(model.matrix.user_ids)
        lists = lists_of(RuledLists.of(model, rules, length, keep_seen=keep_seen), users)
        assert items_of(lists) == [oracle.list_of(user) for user in range(users)], f"case {case}"
        for listed in lists:
            assert all(score >= after for (_, score), (_, after) in pairwise(listed)), f"case {case}"
        plain = lists_of(RuledLists.of(model, Rules(), length, keep_seen=keep_seen), users)
        changed += items_of(lists) != items_of(plain)
    assert changed > examples / 2


def some_model(users: int = 40, items: int = 30) -> Model:
    """Return a model with a time for each pair; the last five items are new."""
    random = np.random.default_rng(5)
    pairs = random.random((users, items)) < 0.3
    pairs[0] = True
    user_items = csr_matrix(pairs.astype(np.float32))
    age_days = np.where(user_items.indices >= items - 5, 2, 30)
    history = History.of(user_items, (TODAY - age_days) * DAY_US)
    user_ids = [f"u{n:03}" for n in range(users)]
    item_ids = [f"i{n:03}" for n in range(items)]
    matrix = Matrix(user_ids, item_ids, user_items, history)
    return replace(
        random_model(random),
        matrix=matrix,
        ranker=Popularity(np.arange(items, 0, -1, dtype=np.float32)),
        params=PopularityParams(),
        popular=most_popular(matrix, 5),
        similar=fit_similar(user_items, SimilarParams(shrink=0)),
    )


def test_a_draw_depends_on_the_seed_and_the_user_alone() -> None:
    model = some_model()
    ruled = RuledLists.of(model, Rules(explore=Explore(seed=3)), 10, keep_seen=True)
    everybody = items_of(lists_of(ruled, 40))
    alone = ruled.for_users(model.with_users(ruled.users(7, 8)), ruled.users(7, 8))
    assert items_of(lists_of(alone, 1)) == [everybody[7]]
    other_seed = RuledLists.of(model, Rules(explore=Explore(seed=4)), 10, keep_seen=True)
    assert items_of(lists_of(other_seed, 40)) != everybody


def test_exploration_needs_times_and_new_items() -> None:
    model = some_model()
    untimed = replace(model, matrix=replace(model.matrix, history=None))
    with pytest.raises(SettingError, match="New items need times"):
        RuledLists.of(untimed, Rules(explore=Explore()), 10, keep_seen=True)
    old = Rules(explore=Explore(), excluded=frozenset(model.matrix.item_ids[25:]))
    plain = replace(old, explore=None)
    assert items_of(lists_of(RuledLists.of(model, old, 10, keep_seen=True), 40)) == items_of(
        lists_of(RuledLists.of(model, plain, 10, keep_seen=True), 40)
    )


@pytest.mark.parametrize(
    "text", ["", "1", "old=1", "days=3", "new=0", "new=6", "new=x", "new=1,days=0", "new=1,seed=-1"]
)
def test_invalid_exploration_places_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="--explore"):
        read_explore(text)


def test_options_of_the_order_are_checked() -> None:
    assert read_explore("new=2, days=3,seed=4") == Explore(2, 3, 4)
    for diversity in (-0.1, 0.91, math.nan):
        with pytest.raises(SettingError, match=r"diversity is .*; it must lie between 0 and 0\.9"):
            Rules(diversity=diversity)


def event(kind: str, user: str, items: Sequence[str], day: int, **more: object) -> dict[str, object]:
    facts = {"id": f"{kind}{user}{day}", "time": day * 86_400.0 + 5, "type": kind, "user": user, "items": items}
    return {**facts, "role": "live", **more}


def test_showings_are_read_from_segments_of_events(tmp_path: Path) -> None:
    shown = [
        event("impression", "u000", ["i001", "i002"], TODAY - 3),
        event("impression", "u000", ["i001", "i002"], TODAY - 3, id="again"),
        event("impression", "u000", ["i001", "i002"], TODAY - 1),
        event("click", "u000", ["i002"], TODAY - 1),
        event("impression", "u000", ["i001", "i002", "strange"], TODAY),
        event("impression", "u001", ["i003"], TODAY - 31),
        event("impression", "stranger", ["i003"], TODAY),
        event("buy", "u000", ["i001"], TODAY),
    ]
    for part in (shown[:3], shown[3:]):
        segment = LogSegment(tmp_path)
        segment.append([line_of(json.dumps(event).encode()) for event in part])
        segment.close()
    showings = read_showings(tmp_path)
    model = some_model()
    old = replace(model.matrix.history, times=model.matrix.history.times - 60 * DAY_US)  # type: ignore[union-attr,type-var]
    days = showings.days_without_click(replace(model.matrix, history=old)).toarray()
    expected = np.zeros_like(days)
    expected[0, 1] = 3
    expected[0, 2] = 1
    assert (days == expected).all()
    early = showings.until(TODAY * DAY_US + 7).days_without_click(replace(model.matrix, history=old)).toarray()
    expected[0, 1] = 2
    expected[0, 2] = 0
    assert (early == expected).all()


def test_interaction_resets_the_day_count() -> None:
    model = some_model()
    rows = [("u000", "i003", TODAY - day, False) for day in range(40)]
    frame = pl.DataFrame(rows, schema=["user", "item", "day", "clicked"], orient="row")
    shown = Showings(frame.cast({"user": pl.Categorical(), "item": pl.Categorical()}))
    assert shown.days_without_click(model.matrix)[0, 3] == 30
    assert shown.days_without_click(replace(model.matrix, history=None))[0, 3] == 40


def test_other_files_than_events_are_refused(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("user,item\n1,2\n")
    with pytest.raises(SettingError, match="holds other files than events; name a folder of hotplate serve --events"):
        read_showings(tmp_path)
    (tmp_path / "clicks.csv").unlink()
    segment = LogSegment(tmp_path)
    segment.append([line_of(json.dumps(event("buy", "u000", ["i001"], TODAY)).encode())])
    segment.close()
    with pytest.raises(DataError, match="has no impressions"):
        read_showings(tmp_path)


def test_manifest_has_the_ordering_rules() -> None:
    model = some_model()
    frame = pl.DataFrame([("u001", "i000", TODAY, False)], schema=["user", "item", "day", "clicked"], orient="row")
    shown = Showings(frame.cast({"user": pl.Categorical(), "item": pl.Categorical()}))
    rules = Rules(diversity=0.3, showings=shown, explore=Explore(1, 7, 5))
    assert RuledLists.of(model, rules, 5, keep_seen=False).about() == {
        "diversity": {"weight": 0.3},
        "rotate": {"users": 1, "items_shown": 1},
        "explore": {"new": 1, "days": 7, "seed": 5, "items": 5},
    }


def test_variety_is_the_similarity_within_lists_and_the_share_of_new_items() -> None:
    model = some_model()
    parts = Parts(model.matrix.user_items, model.matrix.history, model.matrix.user_items, model.matrix.user_items)
    lists = np.array([[0, 1, 25], [26, 3, -1], [4, -1, -1], [-1, -1, -1]], dtype=np.int32)
    similarity = ItemSimilarity(model.similar)
    within = similarity.within(lists)
    assert share_of_new_items(lists, parts, 7) == pytest.approx(2 / 6)
    assert similarity.mean_within(lists) == pytest.approx((within[0].sum() / 6 + within[1].sum() / 2) / 2)
    assert similarity.mean_within(lists[2:]) is None


def test_lists_as_published_are_measured_under_the_rules_of_the_order() -> None:
    model = some_model(users=300)
    user_items = model.matrix.user_items
    begin = np.where(user_items.indices >= 25, 30, 0)
    age_days = np.random.default_rng(7).uniform(begin, 60)
    history = History.of(user_items, (age_days * DAY_US).astype(np.int64))
    model = replace(model, matrix=replace(model.matrix, history=history))
    plain = evaluate(model.matrix, model.params, SplitOptions(), similar=SimilarParams())
    model = replace(model, evaluation=plain)
    diverse = evaluate_as_published(model, Rules(diversity=0.5), 20, keep_seen=False)
    explored = evaluate_as_published(model, Rules(explore=Explore(1, 20)), 20, keep_seen=False)
    assert diverse is not None
    assert explored is not None
    assert diverse.model.list_similarity is not None
    assert plain.model.list_similarity is not None
    assert diverse.model.list_similarity < plain.model.list_similarity
    assert explored.model.new_items == pytest.approx(0.1, abs=0.02)
    assert explored.new_days == 20
    assert diverse.as_trained is not None
    assert diverse.as_trained.model == plain.model
