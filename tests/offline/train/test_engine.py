"""What every engine promises, on a checkerboard and on its edges; and popular lists, which all of them fall back to."""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_matrix

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.history import Times
from hotplate.offline.input.matrix import to_matrix
from hotplate.offline.input.pairs import Floats, Indices, UserItems
from hotplate.offline.train import engine
from hotplate.offline.train.als import ALSParams, SparkParams
from hotplate.offline.train.blend import Blend, BlendParams
from hotplate.offline.train.engine import (
    Engine,
    Params,
    Ranker,
    as_options,
    described,
    engine_of,
    fit,
    params_from,
    read_params,
)
from hotplate.offline.train.item_based import EASEParams, NeighbourParams, NeighbourWeighting
from hotplate.offline.train.popularity import (
    PopularityParams,
    Recency,
    most_popular,
    popular_by_segment,
    recent_popularity,
)
from hotplate.offline.train.ranking import Boosts, RankOptions, ScoresOfUsers, recommend
from tests.support.interactions import checkerboard

# A score is a float32 sum of a few products of up to about 1, and each kernel of a BLAS adds them in its own order. The
# sum then differs by a few times 1.2e-7, the step of a float32 at 1, however near to 0 it is.
ROUNDING = 1e-6

SIZE = 50
ALS = ALSParams(factors=3, regularization=0.1, alpha=1.0, seed=23)
NEIGHBOURS = [NeighbourParams(weighting, SIZE) for weighting in get_args(NeighbourWeighting)]
PERSONAL: list[Params] = [ALS, EASEParams(), *NEIGHBOURS]
ENGINES: list[Params] = [*PERSONAL, PopularityParams()]
BLENDED = BlendParams(ALS, NeighbourParams("tfidf", SIZE))


def test_each_engine_is_declared() -> None:
    assert engine.ENGINES.keys() == set(get_args(engine.Engine))
    for name, spec in engine.ENGINES.items():
        assert engine_of(spec.params()) == name


@pytest.fixture(scope="module")
def board() -> UserItems:
    return checkerboard(SIZE)


@pytest.fixture(scope="module", params=[*ENGINES, BLENDED], ids=described)
def ranker(request: pytest.FixtureRequest, board: UserItems) -> Ranker:
    return fit(board, request.param)


@pytest.fixture(scope="module", params=[*PERSONAL, BLENDED], ids=described)
def personal(request: pytest.FixtureRequest, board: UserItems) -> Ranker:
    return fit(board, request.param)


def everyone() -> Indices:
    return np.arange(SIZE, dtype=np.int32)


def test_each_user_of_a_checkerboard_is_recommended_the_item_withheld(personal: Ranker, board: UserItems) -> None:
    items, scores = personal.recommend(board, everyone(), 1)
    assert items[:, 0].tolist() == list(range(SIZE))
    assert (scores > 0).all()
    assert items.dtype == np.int32
    assert scores.dtype == np.float32


def test_only_allowed_items_are_recommended_up_to_the_number_available(ranker: Ranker, board: UserItems) -> None:
    allowed = np.isin(everyone(), [3, 8, 9, 14])
    items, scores = ranker.recommend(board, everyone(), 4, RankOptions(allowed=allowed))
    assert set(items.ravel()) <= {-1, 3, 8, 9, 14}
    assert set(items[0]) & {3, 9} or set(items[0]) == {-1}, "an even user has 8 and 14"
    assert (scores[items < 0] == 0).all()


def test_users_without_interactions_get_nothing_and_all_others_something(ranker: Ranker, board: UserItems) -> None:
    rows = board.tolil()
    rows[3] = 0
    user_items = csr_matrix(rows)
    for keep_seen in (False, True):
        items, scores = ranker.recommend(user_items, everyone(), 5, RankOptions(keep_seen))
        assert (items[3] == -1).all()
        assert (scores[3] == 0).all()
        assert (items[2, 0] >= 0).all()


def scores_of(ranker: Ranker, user_items: UserItems, users: Indices) -> Floats:
    """Return [users, items]: what each item scores, 0 if it would not be listed."""
    keep_seen = not isinstance(ranker, Blend)  # places in its lists depend on it
    items, listed = ranker.recommend(user_items, users, user_items.shape[1], RankOptions(keep_seen))
    table = np.zeros(items.shape, dtype=np.float32)
    rows, _ = np.nonzero(items >= 0)
    table[rows, items[items >= 0]] = listed[items >= 0]
    return table


def test_a_list_is_the_best_of_what_a_user_does_not_have(ranker: Ranker) -> None:
    rng = np.random.default_rng(2)
    has = rng.random((SIZE, SIZE)) < 0.1
    has[3] = False
    user_items = csr_matrix(has.astype(np.float32))
    users = everyone()[::-1]
    items, listed = ranker.recommend(user_items, users, 5)
    scores = scores_of(ranker, user_items, users)
    for row, row_scores, user_scores, own in zip(items, listed, scores, has[users], strict=True):
        some = row >= 0
        assert not own[row[some]].any()
        assert user_scores[row[some]] == pytest.approx(row_scores[some], rel=1e-5, abs=ROUNDING)
        unlisted = np.delete(np.where(own, -np.inf, user_scores), row[some])
        assert unlisted.max() <= user_scores[row[some]].min(initial=np.inf) + ROUNDING
        assert some.all() or len(np.unique(unlisted[np.isfinite(unlisted)])) <= 1, "nothing else is listed"


def test_own_choices_and_boosts_count_in_the_lists_of_each_engine(ranker: Ranker, board: UserItems) -> None:
    own = csr_matrix(board.multiply(np.arange(1, SIZE + 1)).astype(np.float32))
    boosts = Boosts.of(np.linspace(1, 3, SIZE))
    users = np.array([2, 9, 13], dtype=np.int32)
    options = RankOptions(keep_seen=True, own=own, boosts=boosts)
    lists = ranker.recommend(board, users, 6, options)
    by_scores = ScoresOfUsers.of(ranker, board, users)
    expected = by_scores.recommend(board, users, 6, options)
    assert lists.items.tolist() == expected.items.tolist()
    assert lists.scores == pytest.approx(expected.scores, rel=1e-5)
    plain = ranker.recommend(board, users, 6, RankOptions(keep_seen=True))
    assert lists.items.tolist() != plain.items.tolist()


@pytest.mark.parametrize("keep_seen", [False, True])
def test_a_score_of_a_blend_is_a_sum_over_places_of_its_engines(keep_seen: bool) -> None:  # noqa: FBT001
    rng = np.random.default_rng(3)
    user_items = csr_matrix((rng.random((30, 40)) < 0.15).astype(np.float32))
    params = BlendParams(ALS, NeighbourParams(neighbours=4), popularity_weight=0.25)
    blend = fit(user_items, params)
    engines = {part: fit(user_items, part) for part in params.parts}
    users = np.array([4, 11, 2], dtype=np.int32)
    short = blend.recommend(user_items, users, 20, RankOptions(keep_seen))
    whole = blend.recommend(user_items, users, 40, RankOptions(keep_seen))
    assert whole.items[:, :20].tolist() == short.items.tolist()
    for row, user in enumerate(users):
        sums = {}
        for places in (20, 40):
            sums[places] = np.zeros(40)
            for part, ranker in engines.items():
                weight = 0.25 if isinstance(part, PopularityParams) else 1
                listed = ranker.recommend(user_items, users[row : row + 1], places, RankOptions(keep_seen)).items[0]
                for place, item in enumerate(listed[listed >= 0].tolist(), start=1):
                    sums[places][item] += weight / np.log2(1 + place)
        if keep_seen:
            assert blend.score(user_items[[user]], users[row : row + 1])[0] == pytest.approx(sums[20])
        first = short.items[row]
        assert short.scores[row] == pytest.approx(sums[20][first], rel=1e-5)
        assert np.delete(sums[20], first).max() <= short.scores[row, -1] + ROUNDING
        others = whole.items[row, 20:]
        others = others[others >= 0]
        assert {*first.tolist(), *others.tolist()} == {*np.flatnonzero(sums[40])}
        assert (np.diff(sums[40][others]) <= ROUNDING).all()
        assert (np.diff(whole.scores[row]) <= 0).all()


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf])
def test_a_weight_of_popularity_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(SettingError, match=r"popularity_weight is \S+; it must be at least 0"):
        BlendParams(popularity_weight=weight)


@pytest.mark.parametrize("params", ENGINES, ids=described)
def test_equal_scores_are_in_the_order_of_the_items(params: Params) -> None:
    twins = csr_matrix(np.kron(np.eye(SIZE // 5), np.ones((5, 5)))[:, ::-1].astype(np.float32))
    alike = fit(twins, params)
    items, scores = alike.recommend(twins, everyone(), 4, RankOptions(keep_seen=True))
    for row, row_scores in zip(items, scores, strict=True):
        assert all(
            row[at] < row[at + 1] for at in range(3) if row_scores[at] == row_scores[at + 1] and row[at + 1] >= 0
        )


def test_any_users_in_any_order_get_their_own_lists(ranker: Ranker, board: UserItems) -> None:
    every, _ = ranker.recommend(board, everyone(), 4)
    users = np.array([9, 3, 3, 40], dtype=np.int32)
    assert (ranker.recommend(board, users, 4)[0] == every[users]).all()
    assert ranker.recommend(board, users[:0], 4)[0].shape == (0, 4)


def test_unseen_users_are_folded_in(personal: Ranker, board: UserItems) -> None:
    strangers = csr_matrix(board[[7, 20]])
    items, _ = personal.fold_in(strangers).recommend(strangers, np.arange(2, dtype=np.int32), 1)
    assert items[:, 0].tolist() == [7, 20]


@pytest.mark.parametrize("params", ENGINES, ids=described)
def test_unusable_matrix_is_refused(params: Params, board: UserItems) -> None:
    with pytest.raises(TypeError, match="csr_matrix"):
        fit(board.tocsc(), params)
    with pytest.raises(DataError, match="learning needs two"):
        fit(board[:1], params)
    for value in (float("nan"), float("inf"), 0.0, -1.0):
        bad = board.copy()
        bad.data[5] = value
        with pytest.raises(DataError, match="not finite and above zero"):
            fit(bad, params)


@pytest.mark.parametrize("params", ENGINES, ids=described)
def test_described_parameters_round_trip(params: Params) -> None:
    values = {name: getattr(params, name) for name in params.__slots__}
    assert params_from(engine_of(params), values) == params
    assert as_options(NeighbourParams()) == "--engine neighbours --params weighting=tfidf,neighbours=10"
    recent = (
        PopularityParams(2)
        if isinstance(params, PopularityParams | BlendParams)
        else replace(params, recency=Recency(7, 0.5))
    )
    for expected in (params, recent):
        engine, _, chosen = as_options(expected).removeprefix("--engine ").partition(" --params ")
        assert engine == engine_of(params)
        iterations = f",iterations={expected.iterations}" if isinstance(expected, ALSParams | SparkParams) else ""
        assert read_params(engine, chosen + iterations, getattr(expected, "seed", 0)) == expected
    with pytest.raises(DataError, match="'svd' is not known"):
        params_from("svd", {})


@pytest.mark.parametrize(
    ("engine", "names"),
    [
        ("als", "alpha, factors, iterations, recency, regularization, seed, gamma"),
        ("popularity", "half_life"),
        ("spark", "alpha, factors, iterations, recency, reg_param, seed, gamma"),
    ],
)
def test_unknown_parameter_of_an_engine_names_the_known_ones(engine: Engine, names: str) -> None:
    with pytest.raises(SettingError, match=f"the engine {engine} has no facotrs; it has {names}\\."):
        read_params(engine, "facotrs=3", 0)


INF, NAN = float("inf"), float("nan")
WRONG: list[tuple[type[Params], str, object, str]] = [
    *((ALSParams, name, 0, f"{name} is 0") for name in ("factors", "iterations", "alpha")),
    *((ALSParams, name, -1, f"{name} is -1") for name in ("regularization", "seed")),
    (ALSParams, "regularization", NAN, "regularization is nan"),
    (ALSParams, "alpha", INF, "alpha is inf"),
    (ALSParams, "seed", 2**32, f"seed is {2**32}"),
    (SparkParams, "reg_param", -1.0, "reg-param"),
    *((EASEParams, "regularization", value, "EASE needs it to be above zero") for value in (0, -1, INF, NAN)),
    (NeighbourParams, "weighting", "lift", "weighting is 'lift'; it must be one of tfidf, bm25, cosine"),
    (NeighbourParams, "neighbours", 1, "neighbours is 1; it must be at least 2"),
    (NeighbourParams, "walk_alpha", 0.0, "walk_alpha is 0.0 and walk_beta 0.3; both are at most 2"),
]


def with_times(board: UserItems) -> Times:
    """Return the day on which each pair began: later for higher items, for nearly distinct recencies."""
    times: Times = (board.indices.astype(np.int64) // 2 + 3) * 86_400_000_000
    return times


@pytest.mark.parametrize("params", PERSONAL, ids=described)
def test_recency_is_in_a_geometric_mean_with_the_scores_of_lists(params: Params, board: UserItems) -> None:
    assert not isinstance(params, PopularityParams | BlendParams)
    times = with_times(board)
    recency = Recency(half_life_days=9, gamma=2)
    recent = recent_popularity(board, times, 9)
    weights = np.maximum(recent / recent.max(), 1e-3) ** 2
    plain = fit(board, params)
    ranker = fit(board, replace(params, recency=recency), times=times)
    strangers = csr_matrix(board[[7, 20]])
    for user_items, plain_ranker, other in (
        (board, plain, ranker),
        (strangers, plain.fold_in(strangers), ranker.fold_in(strangers)),
    ):
        users = np.arange(user_items.shape[0], dtype=np.int32)
        wanted = np.maximum(scores_of(plain_ranker, user_items, users) * weights, 0) ** (1 / 3)
        assert scores_of(other, user_items, users) == pytest.approx(wanted, rel=1e-3, abs=0.01)
        items, listed = other.recommend(user_items, users, 6, RankOptions(keep_seen=True))
        best = np.sort(wanted, axis=1)[:, ::-1][:, :6]
        assert listed == pytest.approx(np.where(items < 0, 0, best), rel=1e-3, abs=0.01)


def test_recency_and_half_life_need_times_and_valid_values(board: UserItems) -> None:
    for params in (EASEParams(recency=Recency(7, 1)), PopularityParams(7)):
        with pytest.raises(DataError, match="A half-life needs times, and the data have none"):
            fit(board, params)
    for days in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SettingError, match="The half-life is"):
            Recency(days, 1)
        with pytest.raises(SettingError, match="The half-life is"):
            PopularityParams(days)
    with pytest.raises(SettingError, match="gamma is 0"):
        Recency(7, 0)


PAIRS = pl.DataFrame(
    {
        "user": ["u", "v", "w", "u", "v", "w", "u"],
        "item": ["b", "b", "b", "c", "a", "a", "c2"],
        "weight": [1.0] * 6 + [99],
    }
)


def test_the_most_users_come_first_and_ties_are_in_order_of_id() -> None:
    matrix = to_matrix(PAIRS)
    popular = most_popular(matrix, 10)
    assert [matrix.item_ids[item] for item in popular.items] == ["b", "a", "c", "c2"]
    assert popular.scores.tolist() == [3, 2, 1, 1]
    assert most_popular(matrix, 2).items.tolist() == popular.items[:2].tolist()


def test_half_life_ranks_recent_items_first() -> None:
    times = pl.Series([0, 1, 2, 90, 91, 92, 93], dtype=pl.Int64) * 86_400_000_000
    matrix = to_matrix(PAIRS.with_columns(time=times.cast(pl.Datetime("us"))))
    popular = most_popular(matrix, 10, half_life_days=1)
    assert [matrix.item_ids[item] for item in popular.items] == ["c2", "a", "c", "b"]
    assert popular.scores.tolist() == pytest.approx([1, 0.5 + 0.25, 0.125, 3 * 0.5**10])
    assert most_popular(matrix, 10).items.tolist() == most_popular(to_matrix(PAIRS), 10).items.tolist()
    with pytest.raises(DataError, match="A half-life needs times"):
        most_popular(to_matrix(PAIRS), 10, half_life_days=1)


def test_each_segment_has_its_own_list_of_known_items() -> None:
    segments = pl.DataFrame(
        {"segment": ["y", "x", "x", "x"], "item": ["b", "b", "a", "gone"], "weight": [1.0, 1.0, 2.0, 9.0]}
    )
    lists = popular_by_segment(segments, ["a", "b"], 5)
    assert list(lists) == ["x", "y"]
    assert lists["x"].items.tolist() == [0, 1]
    assert lists["x"].scores.tolist() == [2, 1]
    assert lists["y"].items.tolist() == [1]


def test_segment_lists_use_recency_like_the_overall_list() -> None:
    days = pl.DataFrame(
        {"segment": "x", "item": ["a", "a", "b", "c"], "day": [100, 90, 100, None], "weight": [1.0, 9.0, 2.0, 9.0]}
    )
    lists = popular_by_segment(days, ["a", "b", "c"], 5)
    assert (lists["x"].items.tolist(), lists["x"].scores.tolist()) == ([0, 2, 1], [10, 9, 2])
    recent = popular_by_segment(days, ["a", "b", "c"], 5, half_life_days=2)["x"]
    assert recent.items.tolist() == [1, 0, 2]
    assert recent.scores.tolist() == pytest.approx([2, 1 + 9 / 32, 9 / 32])


def test_too_short_popular_lists_are_refused() -> None:
    with pytest.raises(SettingError, match="popular list is 0"):
        most_popular(to_matrix(PAIRS), 0)


def matrix(users: int, items: int, items_per_user: int) -> UserItems:
    """Return users who all have the first items."""
    ends = np.arange(users + 1) * items_per_user
    indices = np.tile(np.arange(items_per_user, dtype=np.int32), users)
    return csr_matrix((np.ones(users * items_per_user, dtype=np.float32), indices, ends), shape=(users, items))


def test_too_large_fit_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    user_items = checkerboard(20)
    monkeypatch.setattr(engine, "room_bytes", lambda: 100.0)
    for params, instead in ((ALSParams(factors=2), "with --engine spark"), (EASEParams(), "with --engine als")):
        with pytest.raises(DataError, match=f"Learning takes about .*{instead}"):
            fit(user_items.astype(np.float32), params)


def test_sparse_scores_give_the_lists_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    has = csr_matrix((rng.random((60, 300)) < 0.03).astype(np.float32))
    users = np.arange(60, dtype=np.int32)
    allowed = np.arange(300) % 3 > 0
    times = rng.integers(0, 10**12, has.nnz)
    for recency in (None, Recency(2.0, 1.0)):
        ranker = fit(has, NeighbourParams("tfidf", 5, recency=recency), times=times)
        monkeypatch.setattr("hotplate.offline.train.item_based._MOST_SPARSE_SCORES", 1.0)
        for options in (RankOptions(), RankOptions(keep_seen=True), RankOptions(allowed=allowed)):
            items, scores = ranker.recommend(has, users, 7, options)
            table, values = recommend(ranker, has, users, 7, options)
            assert np.allclose(scores, values, rtol=1e-6)
            assert (items == table)[scores != scores.min(axis=1, keepdims=True)].all(), "equals at the end may differ"
