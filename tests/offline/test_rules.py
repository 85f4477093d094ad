"""Business rules: the items left in lists, their order, and fillers of shortened lists."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.model import Model
from hotplate.offline.options import RuleFiles
from hotplate.offline.rule_files import read_rules
from hotplate.offline.ruled_lists import RuledLists
from hotplate.offline.rules import Rules
from hotplate.offline.train.als import Factors
from hotplate.offline.train.item_based import NeighbourParams, fit_neighbours
from hotplate.offline.train.popularity import Popularity, PopularityParams, most_popular
from hotplate.offline.train.ranking import Ranked, RecentWeights
from hotplate.offline.train.similar import SimilarParams
from hotplate.offline.train.similar import fit as fit_similar
from hotplate.stores.categories import CategoryCap
from hotplate.stores.encoding import OFFSET_BYTES, decode
from tests.support.interactions import checkerboard_model, under_cap, write

SIZE = 20
MODEL = checkerboard_model(SIZE)
IDS = MODEL.matrix.item_ids


def lists_of(rules: Rules, model: Model = MODEL, **settings: object) -> dict[str, list[str]]:
    rows = (
        row
        for batch in ModelLists.of(model, ListSettings(rules=rules, **settings)).batches()  # type: ignore[arg-type]  # as the test says
        for row in batch
    )
    return {key: [item["id"] for item in decode(body[OFFSET_BYTES:])] for key, body in rows}


def parity(item: str) -> str:
    return "even" if IDS.index(item) % 2 == 0 else "odd"


def neighbours_model() -> Model:
    """A model with short lists: users get the missing items of the same parity."""
    params = NeighbourParams(neighbours=2)
    return replace(MODEL, ranker=fit_neighbours(MODEL.matrix.user_items, params), params=params)


def test_lists_have_exactly_the_available_items() -> None:
    available = frozenset(IDS[:8]) | {"gone"}
    lists = lists_of(Rules(available=available, excluded=frozenset({IDS[0], "never"})), length=5, force=True)
    left = set(IDS[1:8])
    assert {item for items in lists.values() for item in items} == left
    for index, user in enumerate(MODEL.matrix.user_ids):
        has = {IDS[item] for item in MODEL.matrix.user_items[index].indices}
        assert set(lists[f"user:{user}"]) <= left - has
        assert len(lists[f"user:{user}"]) == min(5, len(left - has))
    assert lists["popular:"] == [item for item in sorted(IDS) if item in left][:5]


def test_availability_that_removes_most_items_needs_force() -> None:
    few = Rules(available=frozenset(IDS[:9]))
    with pytest.raises(DataError, match="Only 9 of the 20 items of the model are available"):
        lists_of(few)
    assert lists_of(few, force=True)
    assert lists_of(Rules(available=frozenset(IDS[:10])))


def test_coverage_is_of_all_items_that_the_model_learnt() -> None:
    ruled = ModelLists.of(MODEL, ListSettings(rules=Rules(available=frozenset(IDS[:10]))))
    assert ruled.items().catalogue == SIZE


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        ("item,stock\na,0\nb,3\nc,-1\n", frozenset({"b"})),
        ("item,In stock\na,false\nb,True\nc,yes\n", frozenset({"b", "c"})),
        ("item,quantity,price\na,0.0,1\nb,2.5,1\n", frozenset({"b"})),
        ("item,quantity,stock\na,9,0\nb,0,3\n", frozenset({"b"})),
        ("StockCode,title\na,A\nb,B\n", frozenset({"a", "b"})),
        ("item,StockCode\na,A\nb,B\n", frozenset({"a", "b"})),
    ],
)
def test_available_items_are_those_with_stock(tmp_path: Path, rows: str, left: frozenset[str]) -> None:
    path = tmp_path / "stock.csv"
    path.write_text(rows)
    assert read_rules(RuleFiles(available=path)).available == left


@pytest.mark.parametrize("name", ["stok", "stock_level", "avail"])
def test_column_that_looks_like_stock_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "stock.csv"
    path.write_text(f"item,{name}\na,0\nb,3\n")
    with pytest.raises(DataError, match=f"has a column '{name}'; call it stock, or remove it"):
        read_rules(RuleFiles(available=path))


@pytest.mark.parametrize(("stock", "shown"), [("many", "'many'"), ("NAN", "'NAN'"), ("", "a missing value .*")])
def test_non_numeric_stock_is_refused_with_its_row(tmp_path: Path, stock: str, shown: str) -> None:
    path = tmp_path / "stock.csv"
    path.write_text(f"item,stock\na,3\nb,{stock}\n")
    with pytest.raises(DataError, match=f"row 3, column 'stock': {shown} is neither a number nor true or false"):
        read_rules(RuleFiles(available=path))


def test_category_cap_holds_and_lists_are_refilled() -> None:
    lists = lists_of(Rules(categories={item: parity(item) for item in IDS}, max_per_category=2), length=4)
    for user in MODEL.matrix.user_ids:
        recommended = lists[f"user:{user}"]
        own = parity(f"i{user}")
        # The one that the user lacks comes first, and of the other parity as many as may.
        assert [parity(item) for item in recommended] == [own, *[{"even": "odd", "odd": "even"}[own]] * 2]
    for item in IDS:
        recommended = [parity(entry) for entry in lists.get(f"item:{item}", [])]
        assert max(recommended.count("even"), recommended.count("odd")) <= 2
    assert [parity(item) for item in lists["popular:"]].count("even") == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcde"), max_size=3), min_size=SIZE, max_size=SIZE), st.integers(1, 4))
def test_item_is_listed_if_each_of_its_categories_is_under_the_cap(sets: list[set[str]], cap: int) -> None:
    categories = {item: names for item, names in zip(IDS, sets, strict=True) if names} or {IDS[0]: {"a"}}
    lists = lists_of(Rules(categories=categories, max_per_category=cap), length=6)
    ranked = lists_of(Rules(), length=SIZE)
    for key, items in ranked.items():
        expected = under_cap(items, categories, cap)[:6]
        listed = lists.get(key, [])
        assert listed[: len(expected)] == expected, key
        assert listed == expected or key == "popular:", "it is filled from all items, and the plain one is short"
        assert listed == under_cap(listed, categories, cap)


def test_a_long_chain_of_items_that_share_categories_is_decided_soon() -> None:
    chain = CategoryCap(1, [(item, item + 1) for item in range(20_000)])
    lists = np.array([np.arange(20_000), np.arange(20_000)[::-1]])
    expected = [np.arange(20_000) % 2 == 0] * 2
    np.testing.assert_array_equal(chain.are_listed(lists), expected)


def test_items_with_several_categories_are_read_from_rows_lists_and_arrays(tmp_path: Path) -> None:
    expected = {"a": ("x", "y"), "b": ("y",), "c": ("x", "z", "y")}
    csv = write(tmp_path / "rows.csv", "item,category\na,x|y\nb,y\nc,x\nc,z\nc,y|\nd,\n")
    lines = [{"item": item, "category": [*names]} for item, names in {**expected, "d": ()}.items()]
    json_lines = write(tmp_path / "arrays.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    pl.DataFrame(lines).write_parquet(tmp_path / "arrays.parquet")
    for path in (csv, json_lines, tmp_path / "arrays.parquet"):
        assert read_rules(RuleFiles(categories=path, max_per_category=1)).categories == expected

    bar = write(tmp_path / "bar.jsonl", '{"item": "a", "category": ["x|y"]}\n')
    assert read_rules(RuleFiles(categories=bar, max_per_category=1)).categories == {"a": ("x|y",)}


def test_short_lists_are_filled_with_unseen_popular_items() -> None:
    model = neighbours_model()
    rules = Rules(excluded=frozenset(IDS[:2]))
    users = np.arange(SIZE, dtype=np.int32)
    assert model.ranker.recommend(model.matrix.user_items, users, 6).items.min() < 0, "the model's lists are short"
    full = lists_of(rules, model, length=6)
    for index, user in enumerate(model.matrix.user_ids):
        has = {IDS[item] for item in model.matrix.user_items[index].indices}
        filled = full[f"user:{user}"]
        assert len(filled) == len(set(filled)) == 6
        assert not set(filled) & (has | set(IDS[:2]))


def test_a_user_with_a_short_history_gets_no_list() -> None:
    everything = MODEL.matrix.user_items.tolil()
    everything[3] = 0
    everything[3, 5] = 1
    model = replace(MODEL, matrix=replace(MODEL.matrix, user_items=csr_matrix(everything)))
    users = {key for key in lists_of(Rules(min_history=2), model) if key.startswith("user:")}
    assert users == {f"user:{user}" for index, user in enumerate(MODEL.matrix.user_ids) if index != 3}


def test_boosted_items_rise_in_users_and_popular_lists_by_their_factor() -> None:
    plain = lists_of(Rules(), length=4)
    user = MODEL.matrix.user_ids[0]
    last = plain[f"user:{user}"][-1]
    boosted = lists_of(Rules(boosts={last: 1000.0, IDS[9]: 1e-6, "gone": 2.0}), length=4)
    assert boosted[f"user:{user}"][0] == last
    assert boosted["popular:"][0] == last
    assert boosted[f"item:{IDS[0]}"] == plain[f"item:{IDS[0]}"]
    assert not any(IDS[9] in items for key, items in boosted.items() if key == "popular:")
    popular = replace(MODEL, ranker=Popularity(np.ones(SIZE, dtype=np.float32)), params=PopularityParams())
    assert lists_of(Rules(boosts={last: 2.0}), popular)[f"user:{user}"][0] == last


SCORES = st.floats(-1e6, 1e6, width=32)


def model_with(scores: list[list[float]], recent: RecentWeights | None = None) -> Model:
    """A model with these scores [users, items]; users have the first item, and a last user without scores has all."""
    table = np.array([*scores, [0.0] * len(scores[0])], dtype=np.float32)
    users, items = table.shape
    seen = np.zeros_like(table)
    seen[:, 0] = 1
    seen[-1] = 1
    matrix = replace(
        MODEL.matrix,
        user_ids=[f"u{user}" for user in range(users)],
        item_ids=[f"i{item}" for item in range(items)],
        user_items=csr_matrix(seen),
    )
    ranker = Factors(table, np.eye(items, dtype=np.float32), recent=recent)
    return replace(
        MODEL,
        matrix=matrix,
        ranker=ranker,
        popular=most_popular(matrix, 5),
        segments={},
        similar=fit_similar(matrix.user_items, SimilarParams()),
    )


def with_recency(scores: list[list[float]], gamma: float | None) -> Model:
    """Return a model with these scores of eight items, of which the last was chosen most recently."""
    if gamma is None:
        return model_with(scores)
    logs = (gamma * np.log(np.linspace(0.001, 1, 8))).astype(np.float32)
    return model_with(scores, RecentWeights(logs, gamma))


def personal(model: Model, boosts: dict[str, float], length: int = 7) -> Ranked:
    """Return the lists under boosts of all users but the last one, who has no scores."""
    users = np.arange(len(model.matrix.user_ids) - 1, dtype=np.int32)
    return RuledLists.of(model, Rules(boosts=boosts), length, keep_seen=False).personal(users)


TABLES = st.lists(st.lists(SCORES, min_size=8, max_size=8), min_size=1, max_size=4)
GAMMAS = st.sampled_from([None, 0.25, 16.0, 64.0])
BOOSTS = st.dictionaries(st.sampled_from([f"i{item}" for item in range(1, 8)]), st.floats(1, 1e6), min_size=1)


@settings(max_examples=60, deadline=None)
@given(scores=TABLES, gamma=GAMMAS, boosts=BOOSTS)
def test_boosts_never_lower_an_item(scores: list[list[float]], gamma: float | None, boosts: dict[str, float]) -> None:
    model = with_recency(scores, gamma)
    item = min(boosts)
    before = personal(model, {**boosts, item: 1.0})
    after = personal(model, boosts)
    number = int(item[1:])
    for plain, boosted, values in zip(before.items, after.items, after.scores, strict=True):
        assert boosted.tolist().index(number) <= plain.tolist().index(number), item
        assert np.isfinite(values).all()
        assert (np.diff(values) <= 0).all()


@settings(max_examples=60, deadline=None)
@given(scores=TABLES, gamma=GAMMAS, boosts=BOOSTS, length=st.integers(1, 7))
def test_items_with_the_largest_boost_come_first_in_their_order(
    scores: list[list[float]], gamma: float | None, boosts: dict[str, float], length: int
) -> None:
    model = with_recency(scores, gamma)
    largest = {f"i{number}": 1e6 for number in range(1, 4)}
    others = {item: min(boost, 1e6 - 50) for item, boost in boosts.items()}
    firsts = personal(model, others | largest, length).items.tolist()
    alone = personal(model, largest).items.tolist()
    for items, all_items, of_user in zip(firsts, alone, scores, strict=True):
        assert {1, 2, 3}.issuperset(items[:3])
        ordered = [item for item in items[:3] if of_user[item] > 0]
        assert ordered == [item for item in all_items if item in {1, 2, 3} and of_user[item] > 0][: len(ordered)]


def test_scores_are_above_zero_for_recommended_items_and_fillers_are_marked() -> None:
    rng = np.random.default_rng(5)
    scores = rng.normal(0, 1e-3, (30, 40)).tolist()
    recent = RecentWeights((64 * np.log(np.linspace(1e-3, 1, 40))).astype(np.float32), 64.0)
    model = model_with(scores, recent)
    rows = {key: body for batch in ModelLists.of(model, ListSettings(length=39)).batches() for key, body in batch}
    for user, of_user in enumerate(scores):
        items = decode(rows[f"user:u{user}"][OFFSET_BYTES:])
        recommended = [item for item in items if not item.get("filler")]
        assert {int(item["id"][1:]) for item in recommended} == {
            number for number, score in enumerate(of_user) if score > 0 and number
        }
        assert all(item["score"] > 0 for item in recommended)
        assert all(item["score"] == 0 for item in items[len(recommended) :])
        values = [item["score"] for item in items]
        assert values == sorted(values, reverse=True)
        assert [float(f"{value:.6g}") for value in values] == values
        expected = sorted(
            (
                math.exp((math.log(score) + float(recent.logs[number])) / 65)
                for number, score in enumerate(of_user)
                if score > 0 and number
            ),
            reverse=True,
        )
        assert values[: len(expected)] == pytest.approx(expected, rel=1e-4)


def test_counts_say_how_many_lists_have_a_boosted_item_before_and_after() -> None:
    plain = lists_of(Rules(), length=4)
    item = plain[f"user:{MODEL.matrix.user_ids[0]}"][-1]
    rules = Rules(boosts={item: 1e6, "gone": 2.0})
    users = [f"user:{user}" for user in MODEL.matrix.user_ids]
    before = sum(item in plain[user] for user in users)
    after = sum(item in lists for user, lists in lists_of(rules, length=4).items() if user in users)
    about = RuledLists.of(MODEL, rules, 4, keep_seen=False).about()["boosted"]
    assert about == {
        "items": 2,
        "unknown": 1,
        "of users": SIZE,
        f"lists with {item}": after,
        f"without boosts with {item}": before,
    }
    has = (MODEL.matrix.user_items[:, IDS.index(item)].toarray() > 0).sum()
    assert after == SIZE - has > before


def test_pinned_items_come_first_if_unseen_and_still_obey_other_rules() -> None:
    pins = (IDS[4], "gone", IDS[3], IDS[8])
    rules = Rules(excluded=frozenset({IDS[8]}), categories=dict.fromkeys(IDS[:6], "x"), max_per_category=2)
    rules = replace(rules, pinned=pins)
    pinned_lists = lists_of(rules, length=5)
    for index, user in enumerate(MODEL.matrix.user_ids):
        has = {IDS[item] for item in MODEL.matrix.user_items[index].indices}
        first = [item for item in (IDS[4], IDS[3]) if item not in has]
        items = pinned_lists[f"user:{user}"]
        assert items[: len(first)] == first
        assert len(items) == len(set(items)) == 5
        assert sum(item in IDS[:6] for item in items) <= 2
    assert pinned_lists["popular:"][:2] == [IDS[4], IDS[3]]
    kept = lists_of(rules, length=5, keep_seen=True)
    assert all(items[:2] == [IDS[4], IDS[3]] for key, items in kept.items() if key.startswith("user:"))
    assert lists_of(rules)[f"item:{IDS[0]}"] == lists_of(replace(rules, pinned=()))[f"item:{IDS[0]}"]


def test_manifest_has_the_rules_and_their_unknown_items() -> None:
    rules = Rules(frozenset({*IDS, "gone"}), frozenset({"never"}), {IDS[0]: "x"}, 3, 2, {"gone": 2.0}, pinned=(IDS[0],))
    assert RuledLists.of(MODEL, rules, 5, keep_seen=False).about() == {
        "available": {"items": SIZE + 1, "unknown": 1},
        "excluded": {"items": 1, "unknown": 1},
        "boosted": {"items": 1, "unknown": 1, "of users": SIZE},
        "pinned": {"items": 1, "unknown": 0},
        "categories": {"max": 3, "items_without": SIZE - 1},
        "min_history": {"items": 2, "users_without": 0},
    }


def test_empty_or_invalid_rules_are_reported() -> None:
    with pytest.raises(DataError, match="None of the 20 items of the model may be recommended"):
        lists_of(Rules(available=frozenset({"gone"})))
    with pytest.raises(SettingError, match="A cap needs both"):
        Rules(max_per_category=2)
    with pytest.raises(SettingError, match="min-history"):
        Rules(min_history=0)


def test_rules_are_read_from_lines_of_ids_and_from_tables(tmp_path: Path) -> None:
    lines = tmp_path / "items.txt"
    rows = tmp_path / "catalogue.csv"
    lines.write_text("a\n\n  b c \n")
    rows.write_text("Stock Code,Category,price\n17,x,1\n18,,2\n19,y,\n")
    rules = read_rules(RuleFiles(available=rows, exclude=lines, categories=rows, max_per_category=2, min_history=3))
    assert rules == Rules(frozenset({"17", "18", "19"}), frozenset({"a", "b c"}), {"17": ("x",), "19": ("y",)}, 2, 3)
    assert read_rules(RuleFiles()) == Rules()
    rows.write_text("item,boost\na,2\nb,0.5\n")
    lines.write_text("\ufeffa\n\n  b c \n", encoding="utf-8")
    favoured = read_rules(RuleFiles(boost=rows, pin=lines))
    assert favoured == Rules(boosts={"a": 2.0, "b": 0.5}, pinned=("a", "b c"))
    rows.write_text("item,boost\n")
    assert read_rules(RuleFiles(exclude=rows, boost=rows, pin=rows)) == Rules()
    with pytest.raises(DataError, match=r"catalogue\.csv has no rows"):
        read_rules(RuleFiles(available=rows))


def test_unusable_rule_files_are_reported(tmp_path: Path) -> None:
    rows = tmp_path / "catalogue.csv"
    for boost in ("0", "-1", "much", "inf", "1e308", "1000001", "nan", ""):
        rows.write_text(f"item,boost\na,1\nb,{boost}\n")
        with pytest.raises(DataError, match=r"row 3, column 'boost': .* is not a number above zero and at most "):
            read_rules(RuleFiles(boost=rows))
    rows.write_text("item,boost\na,2\nb,3\na,4\n")
    with pytest.raises(DataError, match="has item 'a' with two boosts; keep one for each item"):
        read_rules(RuleFiles(boost=rows))
    rows.write_text("item,colour\ni,x\n")
    with pytest.raises(DataError, match="looks like the category"):
        read_rules(RuleFiles(categories=rows, max_per_category=1))
    with pytest.raises(DataError, match=r"gone\.txt"):
        read_rules(RuleFiles(available=tmp_path / "gone.txt"))
    table = tmp_path / "blocked.txt"
    table.write_text("item,reason\na,broken\n")
    with pytest.raises(DataError, match=r"blocked\.txt has several columns; let its name end in \.csv"):
        read_rules(RuleFiles(exclude=table))
    rows.write_text("item,category\na,\n")
    with pytest.raises(DataError, match=r"catalogue\.csv has no item with a category"):
        read_rules(RuleFiles(categories=rows, max_per_category=1))


def test_categories_of_arrays_among_texts_are_each_read(tmp_path: Path) -> None:
    rows = '{"item":"a","category":["x","y"]}\n{"item":"b","category":"z"}\n{"item":"c","category":5}\n'
    path = write(tmp_path / "mixed.jsonl", rows)
    expected = {"a": ("x", "y"), "b": ("z",), "c": ("5",)}
    assert read_rules(RuleFiles(categories=path, max_per_category=1)).categories == expected
