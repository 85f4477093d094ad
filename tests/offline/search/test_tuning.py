"""The search and its cells on data with a known best cell: its data, trials and recommendation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from weakref import ReferenceType, ref

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_matrix

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.evaluation import EvaluateOptions, evaluate_engine, fit_parts
from hotplate.offline.evaluate.metrics import Spread
from hotplate.offline.evaluate.splits import Parts, SplitKind, SplitOptions, split
from hotplate.offline.input.matrix import Matrix, to_matrix
from hotplate.offline.input.sample import sample
from hotplate.offline.search.budget import announced_s
from hotplate.offline.search.cells import cells_past_edge, next_cells_with_recency
from hotplate.offline.search.popular_lists import PopularSearch
from hotplate.offline.search.trials import Trial, best_of_each_engine
from hotplate.offline.search.tuning import Search, SearchData, TuneOptions, tune
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.blend import BlendParams
from hotplate.offline.train.engine import Params, Ranker, engine_of, params_from, without_recency
from hotplate.offline.train.item_based import EASE, EASEParams, NeighbourParams
from hotplate.offline.train.popularity import PopularityParams, Recency

SMALL = ALSParams(factors=8, iterations=3)
WEAK = replace(SMALL, factors=1, regularization=1e6)
CELLS: tuple[Params, ...] = (WEAK, SMALL, NeighbourParams(neighbours=20), PopularityParams())


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return to_matrix(sample(80, 40))


def search(matrix: Matrix, options: SplitOptions | None = None, **settings: object) -> Search:
    tuning = settings.pop("tuning", TuneOptions(CELLS))
    data = SearchData(matrix.user_items, matrix.history, options or SplitOptions("by-item"))
    tuned = tune(data, tuning, **settings)  # type: ignore[arg-type]  # as the test says
    assert tuned is not None
    return tuned


def trial(params: Params, *per_user: float) -> Trial:
    return Trial(params, None, np.array(per_user), 1.0)


def ranked(*trials: Trial) -> Search:
    popular = PopularSearch(trials[:1], np.zeros(1, dtype=np.bool_), np.ones(1, dtype=np.bool_))
    return Search(SplitOptions("by-item"), 10, trials, popular)


@pytest.mark.parametrize("kind", ["by-item", "held-out-users"])
def test_trial_metrics_match_an_evaluation(kind: SplitKind, matrix: Matrix) -> None:
    options = SplitOptions(kind, seed=7)
    tuned = search(matrix, options, k=5)
    assert tuned.split == replace(options, seed=8, pieces=3)
    assert [trial.params for trial in tuned.trials] == list(CELLS)
    assert [trial.iterations for trial in tuned.trials] == [3, 3, None, None]
    parts = split(matrix.user_items, matrix.history, tuned.split)
    for tried in tuned.trials:
        measured = evaluate_engine(parts, fit_parts(parts, tried.params), EvaluateOptions(k=5)).served_per_user
        assert measured is not None
        assert tried.ndcg == pytest.approx(measured.mean(), abs=1e-6)
        assert tried.se == pytest.approx(measured.std() / len(measured) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("interrupted", [False, True])
def test_blends_of_the_best_cells_are_tried_last(interrupted: bool, matrix: Matrix, tmp_path: Path) -> None:  # noqa: FBT001
    tuned = search(matrix, tuning=TuneOptions(), defaults=SMALL, k=5, trials_folder=tmp_path)
    if interrupted:  # before the last blend: the fits of its engines are no longer in memory
        max(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns).unlink()
        tuned = search(matrix, tuning=TuneOptions(), defaults=SMALL, k=5, trials_folder=tmp_path)

    *others, first, second = tuned.trials
    best = {trial.params for trial in best_of_each_engine(others) if not isinstance(trial.params, EASEParams)}
    parts = split(matrix.user_items, matrix.history, tuned.split)
    for blend, weight in ((first, 0.3), (second, 0.6)):
        assert isinstance(blend.params, BlendParams)
        assert set(blend.params.parts) == best
        assert blend.params.popularity_weight == weight
        measured = evaluate_engine(parts, fit_parts(parts, blend.params), EvaluateOptions(k=5)).served_per_user
        assert blend.per_user == pytest.approx(measured, abs=1e-6)


def test_only_a_search_of_all_engines_tries_a_blend(matrix: Matrix) -> None:
    for tuning in (TuneOptions(engine="als"), TuneOptions(engine="popularity"), TuneOptions(CELLS)):
        tuned = search(matrix, tuning=tuning, defaults=SMALL)
        assert not any(isinstance(trial.params, BlendParams) for trial in tuned.trials)


def test_a_blend_is_chosen_only_if_it_ranks_best() -> None:
    blend = BlendParams(SMALL)
    values = np.random.default_rng(1).random(100)
    others = [trial(SMALL, *values), trial(EASEParams(), *(values - 0.01)), trial(PopularityParams(), *(values - 0.2))]
    for lead, chosen in ((0.1, blend), (-0.1, SMALL)):
        choices = ranked(*others, trial(blend, *(values + lead))).choices
        assert choices["accuracy"].params == choices["balance"].params == chosen


def test_default_cells_extend_beyond_a_best_edge(matrix: Matrix) -> None:
    reports: list[tuple[int, int]] = []
    notices: list[str] = []
    tuned = search(
        matrix,
        tuning=TuneOptions(),
        defaults=replace(SMALL, seed=5),
        on_trial=lambda done, total: reports.append((done, total)),
        on_notice=notices.append,
    )
    assert tuned.trials[1].params == replace(SMALL, seed=5)
    tried = [trial.params for trial in tuned.trials]
    assert len(set(tried)) == len(tried) > reports[0][1]
    assert {params.seed for params in tried if isinstance(params, ALSParams)} == {5}
    assert reports[0][0] == 0
    assert reports[-1] == (len(tried), len(tried))
    assert list(dict.fromkeys(done for done, _ in reports)) == list(range(len(tried) + 1))
    assert len(notices) == 1
    assert notices[0].startswith(f"searching {reports[0][1]} cells on an inner by-item split, the ")
    assert tuned.users is None


def test_stopped_search_resumes(matrix: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "new" / "trials"
    options = TuneOptions(CELLS)
    whole = search(matrix, tuning=options)

    earlier = set[Path]()

    def stop(done: int, _total: int) -> None:
        if done == 1:
            earlier.update(kept.iterdir())
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(matrix, tuning=options, trials_folder=kept, on_trial=stop)
    (latest,) = set(kept.iterdir()) - earlier
    latest.write_bytes(latest.read_bytes()[:100])
    monkeypatch.setattr("hotplate.offline.search.trials.fit_parts", fit_of(whole.trials[1:]))
    resumed = search(matrix, tuning=options, trials_folder=kept)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in whole.trials]
    assert [(trial.ndcg, trial.se) for trial in resumed.trials] == [(trial.ndcg, trial.se) for trial in whole.trials]
    assert resumed.recommended == whole.recommended


def fit_of(allowed: Sequence[Trial]) -> object:
    left = [cell.params for cell in allowed]

    def only(parts: Parts, params: Params) -> object:
        assert params == left.pop(0), "a trial was made again"
        return fit_parts(parts, params)

    return only


@pytest.fixture(scope="module")
def fashions() -> Matrix:
    """Each week half of the users choose among the five items of that week, at random, and some others."""
    rng = np.random.default_rng(4)
    rows = [
        (
            f"u{user:02}",
            f"i{(5 * week + choice) % 60:02}",
            week * 7 * 86_400_000_000 + int(rng.integers(86_400_000_000)),
        )
        for week in range(12)
        for user in rng.permutation(60)[:30].tolist()
        for choice in rng.choice(np.r_[0:5, 20:23], 3, replace=False).tolist()
    ]
    log = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    return to_matrix(log.with_columns(pl.col("time").cast(pl.Datetime("us")), weight=pl.lit(1.0)))


def test_recency_is_tuned_on_time_splits_for_each_best_engine_and_saved(
    fashions: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"tuning": TuneOptions(engine="ease"), "trials_folder": tmp_path / "trials", "k": 5}
    tuned = search(fashions, SplitOptions("by-time"), **settings)
    recent = [cell for cell in tuned.trials if cell.params.recency is not None]
    tried = {cell.params.recency for cell in recent}
    popular = tuned.popular.baselines[1].half_life_days
    assert popular is not None
    assert {Recency(popular, 1.0), Recency(2 * popular, 1.0)} <= tried
    assert {recency.gamma for recency in tried if recency is not None} >= {0.5, 1, 2}
    assert len({cell.params for cell in recent}) == len(recent), "no cell is tried twice"
    best = max(tuned.trials, key=lambda trial: trial.ndcg)
    assert tuned.trials[tuned.recommended].params.recency is not None
    (plain,) = search(
        fashions, SplitOptions("by-time"), tuning=TuneOptions((without_recency(best.params),)), k=5
    ).trials
    assert best.ndcg > 1.2 * plain.ndcg
    drawn = [split(fashions.user_items, fashions.history, cell) for cell in tuned.split.by_piece]
    options = EvaluateOptions(k=5, popular=tuned.popular.for_new_users)
    metrics = [evaluate_engine(parts, fit_parts(parts, best.params), options).as_served for parts in drawn]
    ndcg = np.average([measured.ndcg for measured in metrics], weights=[measured.users for measured in metrics])
    assert best.ndcg == pytest.approx(ndcg, abs=1e-6)
    monkeypatch.setattr("hotplate.offline.search.trials.fit_parts", fit_of(()))
    assert search(fashions, SplitOptions("by-time"), **settings).record(None) == tuned.record(None)
    chosen = tuned.trials[tuned.recommended].params
    assert params_from("ease", tuned.record(None).trials[tuned.recommended].params) == chosen


def test_lower_powers_of_recency_are_tried_first_and_end_without_it() -> None:
    best = trial(replace(SMALL, recency=Recency(2.0, 0.125)), 0.5, 0.6)
    assert next_cells_with_recency([best]) == [SMALL]

    worse = trial(SMALL, 0.3, 0.4)
    around = [Recency(4.0, 0.125), Recency(1.0, 0.125), Recency(2.0, 0.25)]
    assert next_cells_with_recency([best, worse]) == [replace(SMALL, recency=recency) for recency in around]

    better = trial(SMALL, 0.7, 0.8)
    assert next_cells_with_recency([best, better]) == []


def test_a_cell_without_recency_is_tried_in_time_only_after_the_powers_of_it(fashions: Matrix) -> None:
    tuned = search(fashions, SplitOptions("by-time"), tuning=TuneOptions(), defaults=SMALL, k=5)
    recencies = [cell.params.recency for cell in tuned.trials if engine_of(cell.params) == "als"]
    assert recencies[0] == Recency(tuned.popular.baselines[1].half_life_days or 0, 1.0)
    assert None not in recencies[:5], "all default cells have recency"


def test_only_the_engine_of_the_best_cell_goes_beyond_its_edge() -> None:
    best_first: list[Params] = [PopularityParams(), EASEParams(60.0), EASEParams(20.0), NeighbourParams(neighbours=100)]
    assert cells_past_edge(best_first, 1000) == [EASEParams(180.0)]
    assert {engine_of(cell) for cell in cells_past_edge(best_first[::-1], 1000)} == {"neighbours"}
    assert cells_past_edge([PopularityParams()], 1000) == []


def test_cells_are_fitted_once_per_split_with_recency_too(fashions: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[Params] = []

    def counted(parts: Parts, params: Params) -> Ranker:
        fits.append(params)
        return fit_parts(parts, params)

    monkeypatch.setattr("hotplate.offline.search.trials.fit_parts", counted)
    tuned = search(fashions, SplitOptions("by-time"), tuning=TuneOptions(), defaults=SMALL)
    cells = [trial.params for trial in tuned.trials if not isinstance(trial.params, PopularityParams | BlendParams)]
    plain = {without_recency(params) for params in cells}
    assert {engine_of(params) for params in plain} == {"als", "ease", "neighbours"}
    fits = [params for params in fits if not isinstance(params, PopularityParams)]
    assert len(plain) < len(tuned.trials), "several recencies were tried"
    assert sorted(map(repr, fits)) == sorted(map(repr, [*plain] * 3)), "there are three splits"


def test_large_fits_are_released_before_other_engines_get_recency(
    fashions: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = Counter[Params]()
    als = list[ReferenceType[Ranker]]()
    alive: list[int] = []

    def watched(parts: Parts, params: Params) -> Ranker:
        fits[params] += 1
        # The three splits were fitted before, and are once more for each blend.
        if isinstance(params, NeighbourParams) and 3 < fits[params] <= 6:
            alive.append(sum(ranker() is not None for ranker in als))
        ranker = fit_parts(parts, params)
        if isinstance(params, ALSParams):
            als.append(ref(ranker))
        return ranker

    monkeypatch.setattr("hotplate.offline.search.trials.fit_parts", watched)
    monkeypatch.setattr("hotplate.offline.search.trials._MOST_KEPT_BYTES", 0)
    search(fashions, SplitOptions("by-time"), tuning=TuneOptions(), defaults=SMALL)
    assert als
    assert alive
    assert not any(alive)


def test_tables_of_ease_are_released_after_each_fit(fashions: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = list[ReferenceType[object]]()

    def watched(parts: Parts, params: Params) -> Ranker:
        assert not any(table() is not None for table in tables)
        ranker = fit_parts(parts, params)
        assert isinstance(ranker, EASE)
        tables.append(ref(ranker.weights))
        return ranker

    monkeypatch.setattr("hotplate.offline.search.trials.fit_parts", watched)
    search(fashions, SplitOptions("by-time"), tuning=TuneOptions(engine="ease"))
    assert len(tables) > 3


def test_announced_cost_includes_the_final_fits(fashions: Matrix) -> None:
    parts = split(fashions.user_items, fashions.history, SplitOptions("by-time"))
    cells: list[Params] = [SMALL, EASEParams()]
    announced = [
        announced_s([parts], cells, tries_recency=False, is_evaluated=False),
        announced_s([parts, parts], cells, tries_recency=False, is_evaluated=False),
        announced_s([parts, parts], cells, tries_recency=True, is_evaluated=False),
        announced_s([parts, parts], cells, tries_recency=True, is_evaluated=True),
    ]
    assert announced == sorted(set(announced))


def test_popularity_half_life_is_tuned_on_time_splits_but_not_random_ones(
    fashions: Matrix,
) -> None:
    options = TuneOptions(engine="popularity")
    tuned = search(fashions, SplitOptions("by-time"), tuning=options, k=5)
    half_life_days = tuned.popular.for_new_users.half_life_days
    assert half_life_days is not None
    assert half_life_days < 30
    assert tuned.popular.baselines[1] == max(tuned.trials[1:], key=lambda trial: trial.ndcg).params
    at_random = search(fashions, SplitOptions("by-item"), tuning=options, k=5)
    assert [trial.params for trial in at_random.trials] == [PopularityParams()]
    assert at_random.popular.for_new_users == PopularityParams()
    own = search(fashions, SplitOptions("by-time"), tuning=TuneOptions((EASEParams(),)), k=5)
    assert [trial.params for trial in own.trials] == [EASEParams()], "a grid is searched as it is"


def test_trials_of_other_data_or_splits_are_repeated(matrix: Matrix, tmp_path: Path) -> None:
    kept = tmp_path / "trials"
    tuning = TuneOptions((PopularityParams(),))
    search(matrix, tuning=tuning, trials_folder=kept)
    search(matrix, tuning=tuning, trials_folder=kept)
    assert len(list(kept.iterdir())) == 1
    search(matrix, tuning=tuning, trials_folder=kept, k=3)
    search(matrix, SplitOptions("random"), tuning=tuning, trials_folder=kept)
    search(matrix, SplitOptions("by-item", seed=1), tuning=tuning, trials_folder=kept)
    heavier = replace(matrix, user_items=2 * matrix.user_items)
    search(heavier, tuning=tuning, trials_folder=kept)
    assert len(list(kept.iterdir())) == 5


def test_trials_that_cannot_be_written_are_an_error(
    matrix: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = TuneOptions((PopularityParams(),))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"trials cannot be written to .*file: File exists"):
        search(matrix, tuning=tuning, trials_folder=tmp_path / "file")

    def fail(*_: object, **__: object) -> None:
        raise OSError("733 requested and 496 written")  # as numpy says it

    monkeypatch.setattr("numpy.save", fail)
    with pytest.raises(DataError, match=r"trials cannot be written to .*trials: the disk is full"):
        search(matrix, tuning=tuning, trials_folder=tmp_path / "trials")


def test_popularity_is_chosen_only_for_a_significant_lead() -> None:
    ease = trial(EASEParams(), 0.1, 0.9, 0.2)
    popular = trial(PopularityParams(2.0), 0.1, 0.9, 0.5)
    assert popular.leads_by(ease) == pytest.approx(1 / 2**0.5 * 3**0.5)
    assert ranked(ease, popular).recommended == 0, "one user decides nothing"
    sure = replace(popular, per_user=ease.per_user + 0.01)
    assert ranked(ease, sure).recommended == 1, "each user is better, however much users differ"
    assert ranked(popular, sure).recommended == 0
    assert best_of_each_engine([ease, popular, replace(ease, per_user=ease.per_user / 2)]) == [popular, ease]


def spread(items: float) -> Spread:
    return Spread(1.0, 1.0, items)


def test_most_personal_of_trials_within_a_standard_error_and_one_percent_is_balanced() -> None:
    level = np.linspace(0.2, 0.4, 400)
    noise = np.tile([1.0, -1.0], 200)
    best = Trial(SMALL, None, level, 1.0, spread(10))
    cases = {
        "a more personal one as good as the best": (level - 0.0001 + 0.01 * noise, 20, 1),
        "a less personal one": (level - 0.0001 + 0.01 * noise, 5, 0),
        "beyond a standard error": (level - 0.0006 + 0.01 * noise, 20, 0),
        "within a standard error, but more than 1 % below": (level - 0.004 + 0.2 * noise, 20, 0),
    }
    for case, (per_user, items, expected) in cases.items():
        other = Trial(EASEParams(), None, per_user, 1.0, spread(items))
        assert ranked(best, other).recommended == expected, case


def test_preferences_are_the_best_a_balance_and_the_most_varied_within_five_percent() -> None:
    level = np.linspace(0.2, 0.4, 400)
    noise = np.tile([1.0, -1.0], 200)
    trials = (
        Trial(SMALL, None, level, 1.0, spread(10)),
        Trial(EASEParams(20.0), None, level - 0.0001 + 0.01 * noise, 1.0, spread(20)),
        Trial(EASEParams(60.0), None, 0.96 * level, 1.0, spread(40)),
        Trial(EASEParams(200.0), None, 0.94 * level, 1.0, spread(80)),
        Trial(PopularityParams(), None, 0.99 * level, 1.0, spread(999)),
    )
    preferred = {
        prefer: replace(ranked(*trials), prefer=prefer).recommended for prefer in ("accuracy", "balance", "variety")
    }
    assert preferred == {"accuracy": 0, "balance": 1, "variety": 2}
    popular = Trial(PopularityParams(2.0), None, level + 0.01, 1.0, spread(5))
    assert ranked(*trials, popular).choices["balance"] == popular
    assert ranked(*trials, popular).choices["variety"] == trials[1], "personal, and less than 5 % below"


@pytest.mark.parametrize(("new_users", "expected"), [(200, 1.0), (50, None)])
def test_popular_list_is_that_of_new_users_if_they_are_enough(new_users: int, expected: float | None) -> None:
    rng = np.random.default_rng(1)
    is_new = np.arange(600) < new_users
    noise = 0.01 * rng.random(600)
    all_time = Trial(PopularityParams(), None, np.where(is_new, 0.1, 0.5) + noise, 1.0)
    recent = Trial(PopularityParams(1.0), None, np.where(is_new, 0.3, 0.1) + noise, 1.0)
    popular = PopularSearch((all_time, recent), is_new, np.ones(600, dtype=np.bool_))
    assert popular.for_new_users == PopularityParams(expected)
    assert popular.baselines == (PopularityParams(), PopularityParams(1.0))
    engine = popular.as_engine[0].per_user
    served = recent.per_user if expected else all_time.per_user
    assert engine[is_new].tolist() == served[is_new].tolist(), "new users get the list chosen for them"
    assert engine[~is_new].tolist() == all_time.per_user[~is_new].tolist()


def test_too_expensive_cells_are_left_out_and_reported(matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.offline.search.budget.BUDGET_BYTES", 5_000)
    notices: list[str] = []
    tuned = search(matrix, tuning=TuneOptions(), defaults=SMALL, on_notice=notices.append)
    assert {engine_of(cell) for cell in tuned.left_out} == {"als", "ease", "neighbours"}
    assert {engine_of(cell.params) for cell in tuned.trials} == {"popularity"}
    assert notices[1].startswith("not tried within 36 s of a core, 0.0 GB, and ")
    assert ": 5 of als, 2 of ease, 4 of neighbours; " in notices[1]
    assert notices[1].endswith("; --tune SECONDS allows more")
    assert {cell.engine for cell in tuned.record(None).left_out} == {"als", "ease", "neighbours"}
    for bounded in (TuneOptions(engine="als"), TuneOptions(engine="ease")):
        assert search(matrix, tuning=bounded, defaults=SMALL).left_out, "a search of one engine is bounded, too"


def test_only_given_cells_without_budget_are_unlimited() -> None:
    assert TuneOptions().limit_s is None, "the default budget"
    assert TuneOptions(cells=(SMALL,)).limit_s == inf
    assert TuneOptions(cells=(SMALL,), budget_s=5).limit_s == 5


def test_a_budget_of_seconds_bounds_the_search(matrix: Matrix) -> None:
    tuned = search(matrix, tuning=TuneOptions(budget_s=0.001), defaults=SMALL)
    assert EASEParams(20.0) in [trial.params for trial in tuned.trials]
    assert ALSParams(40, 30.0, 6.0, 3) in tuned.left_out
    assert len(set(tuned.left_out)) == len(tuned.left_out)
    assert search(matrix, tuning=TuneOptions(budget_s=9.0), defaults=SMALL).left_out == ()
    assert search(matrix, tuning=TuneOptions(CELLS), defaults=SMALL).left_out == ()
    with pytest.raises(SettingError, match="tune is -1"):
        TuneOptions(budget_s=-1)


def test_cell_with_a_too_long_final_fit_is_left_out(matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.offline.search.budget.LAST_FIT_S", 1.0)
    tuned = search(matrix, tuning=TuneOptions(), defaults=replace(SMALL, iterations=1_000_000))
    assert {engine_of(params) for params in tuned.left_out} == {"als"}


def test_large_log_is_searched_on_sampled_users(matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.offline.search.tuning._SEARCHED_PAIRS", matrix.user_items.nnz // 2)
    notices: list[str] = []
    tuned = search(matrix, SplitOptions("by-time", min_per_user=2, min_per_item=20), on_notice=notices.append)
    assert tuned.users is not None
    assert (tuned.split.min_per_user, tuned.split.min_per_item) == (2, 1), "the minimum per item is of all users"
    assert 30 <= tuned.users <= 50
    assert tuned.record(None).users_searched == tuned.users
    assert f"the search is of {tuned.users} of 80 users" in notices[1]
    assert [trial.params for trial in tuned.trials] == list(CELLS)
    assert all(trial.ndcg > 0 for trial in tuned.trials)


@pytest.mark.parametrize("robots", [60, 120])
def test_users_with_more_pairs_than_a_search_takes_are_drawn_last(robots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = to_matrix(sample(120, 600)).user_items.toarray()
    pairs[:robots] = 1
    user_items = csr_matrix(pairs)
    items = user_items.shape[1]
    monkeypatch.setattr("hotplate.offline.search.tuning._SEARCHED_PAIRS", items)
    for seed in range(3):
        data = SearchData(user_items, None, SplitOptions("by-item", seed=seed))
        drawn = data.sample().user_items
        if robots == 60:
            assert drawn.getnnz(axis=1).max() < items
            assert drawn.shape[0] > 10
        else:
            assert drawn.shape[0] == 1, "a search needs some user"
        tune(data, TuneOptions((PopularityParams(),)))


def test_the_powers_of_random_walks_are_searched_if_these_are_best() -> None:
    walk = NeighbourParams("rp3beta", 100)
    cosines = NeighbourParams("bm25", 100)
    further = cells_past_edge([walk, cosines], 1000)
    powers = {
        (cell.walk_alpha, cell.walk_beta)
        for cell in further
        if isinstance(cell, NeighbourParams) and cell.weighting == "rp3beta"
    }
    assert {(0.8, 0.3), (0.6, 0.3), (0.7, 0.4), (0.7, 0.2)} <= powers
    assert {cell.weighting for cell in cells_past_edge([cosines, walk], 1000) if isinstance(cell, NeighbourParams)} == {
        "bm25"
    }


def test_cell_that_fails_to_fit_ranks_last(matrix: Matrix) -> None:
    heavy = replace(matrix, user_items=1e37 * matrix.user_items)
    tuned = search(heavy, tuning=TuneOptions((SMALL, PopularityParams())))
    assert tuned.trials[0].ndcg == 0
    assert tuned.trials[tuned.recommended].params == PopularityParams()


def test_a_cell_that_lacks_memory_is_left_out_and_tried_again_later(
    fashions: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"tuning": TuneOptions(), "defaults": SMALL, "k": 5, "trials_folder": tmp_path / "trials"}
    is_short = True

    def fit_in_room(parts: Parts, params: Params) -> Ranker:
        # As if other processes took the memory while neighbours are fitted.
        room = 0 if is_short and isinstance(params, NeighbourParams) else 2**40
        monkeypatch.setattr("hotplate.offline.train.engine.room_bytes", lambda: room)
        return fit_parts(parts, params)

    monkeypatch.setattr("hotplate.offline.search.trials.fit_parts", fit_in_room)
    notices: list[str] = []
    short = search(fashions, SplitOptions("by-time"), on_notice=notices.append, **settings)
    assert {engine_of(params) for params in short.left_out} == {"neighbours"}
    assert "neighbours" not in {engine_of(trial.params) for trial in short.trials}
    assert notices[-1].startswith(f"left out for lack of memory: {len(short.left_out)} of neighbours; the first: ")
    is_short = False
    later = search(fashions, SplitOptions("by-time"), **settings)
    neighbours = [trial for trial in later.trials if engine_of(trial.params) == "neighbours"]
    assert neighbours
    assert all(trial.ndcg > 0 for trial in neighbours)


def als(factors: int, regularization: float, alpha: float) -> ALSParams:
    return ALSParams(factors, regularization, alpha)
