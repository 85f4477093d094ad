"""Training: from interactions to a model folder, with a search and an evaluation.

The interactions are split into train and test. Parameters are chosen on train alone, evaluated on test, and fitted
again to everything.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from hotplate.offline.errors import SettingError, require_at_least
from hotplate.offline.evaluate.evaluation import BASELINES, Evaluation, evaluate_parts
from hotplate.offline.evaluate.model_report import answer_in_words
from hotplate.offline.evaluate.records import EvaluationRecord, read_evaluation
from hotplate.offline.evaluate.splits import Parts, SplitKind, SplitOptions, split
from hotplate.offline.input.files import DataSource, check_source, named_paths
from hotplate.offline.input.interactions import Interactions, read_interactions
from hotplate.offline.input.matrix import History, Matrix, UserItems, Weighing, Weighting, to_matrix
from hotplate.offline.input.tables import parse_filter
from hotplate.offline.list_encoder import POPULAR_LENGTH, check_length
from hotplate.offline.model import Model, check_target, save
from hotplate.offline.options import Columns, Format
from hotplate.offline.steps import timed
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import Params, as_options, described, engine_of, estimate_fit_s, fit, params_class
from hotplate.offline.train.popularity import PopularityParams, Recency, most_popular, popular_by_segment
from hotplate.offline.train.repeats import RepeatParams, RepeatSearch
from hotplate.offline.train.similar import SIMILAR_GAMMA, SimilarParams, choose_similar_params
from hotplate.offline.train.similar import fit as fit_similar
from hotplate.offline.train.tuning import Search, TuneOptions, inner_splits, search_repeats, tune

# With fewer test users after a cut in time, the split is random.
_FEWEST_TESTED = 10
# Longer fits are announced, except with a search.
_LONG_FIT_S = 10

# Called with (stage, done, total).
OnStage = Callable[[str, int, int], None]
Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AutoSplit:
    """A split by time, or by item if the data lack times or users after the cut; options as of SplitOptions."""

    test_share: float = 0.25
    seed: int = 42

    def __post_init__(self) -> None:
        self.of("by-time")

    def of(self, kind: SplitKind) -> SplitOptions:
        """Return the split of this kind."""
        return SplitOptions(kind, test_share=self.test_share, seed=self.seed)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Options of a training on *path* and *more*: paths, URLs, polars, Arrow or pandas frames.

    *split* None omits the evaluation. With *tuning*, *params* are the search's defaults.
    """

    path: DataSource
    more: Sequence[DataSource] = ()
    columns: Columns = field(default_factory=Columns)
    form: Format = field(default_factory=Format)
    event_weights: Mapping[str, float] | None = None
    where: Sequence[str] = ()
    weighting: Weighting = "sum"
    half_life: timedelta | None = None
    titles: Path | None = None
    min_per_user: int = 1
    min_per_item: int = 1
    split: SplitOptions | AutoSplit | None = field(default_factory=AutoSplit)
    k: int = 10
    params: Params = field(default_factory=ALSParams)
    tuning: TuneOptions | None = None
    popular_length: int = POPULAR_LENGTH

    @property
    def data(self) -> list[DataSource]:
        """All sources of interactions."""
        return [self.path, *self.more]

    def __post_init__(self) -> None:
        for source in self.data:
            check_source(source)
        check_length(self.k, "k")
        check_length(self.popular_length, "popular_length")
        require_at_least("min_per_user", self.min_per_user)
        require_at_least("min_per_item", self.min_per_item)
        Weighing(self.weighting, self.half_life)
        for event, weight in (self.event_weights or {}).items():
            if not 0 < weight < math.inf:
                raise SettingError(f"The weight of event {event!r} is {weight}; it must be a number above zero.")
        if self.tuning is not None and not isinstance(self.params, ALSParams):
            self._check_params_of_search(self.tuning)
        if not isinstance(self.split, SplitOptions | AutoSplit | None):
            raise SettingError(
                f"split is {self.split!r}; it must be SplitOptions('by-time'), or None for no evaluation."
            )
        for text in self.where:
            parse_filter(text)

    def _check_params_of_search(self, tuning: TuneOptions) -> None:
        """Raise SettingError for parameters that the search would ignore: it has defaults for ALS only."""
        if tuning.engine is None or self.params != params_class(tuning.engine)():
            raise SettingError(
                f"The search would ignore {self.params}: only ALSParams are its defaults. Give "
                "tuning=TuneOptions(cells=(…,)) to try these, or tuning=None to train with them."
            )


@dataclass(frozen=True, slots=True)
class TrainReport:
    """Result of a training; *seconds* are by stage. Notes explain a missing *evaluation* or *search*."""

    out: Path
    model: Model
    evaluation: Evaluation | None
    note: str | None
    search: Search | None
    tuning_note: str | None
    seconds: dict[str, float]

    @property
    def verdict(self) -> str | None:
        """The lists against what is popular now, as both are served, or None without an evaluation."""
        record = self.record
        return None if record is None else answer_in_words(record)

    @property
    def record(self) -> EvaluationRecord | None:
        """The evaluation as reports show it."""
        return read_evaluation(self.model.metrics)

    @property
    def warning(self) -> str | None:
        """A sentence about the baseline that ranks best on the test, if better than the model, or None."""
        evaluation = self.evaluation
        if evaluation is None or not evaluation.baselines:
            return None
        lead, best = min(zip(evaluation.leads, evaluation.baselines, strict=True), key=lambda pair: pair[0].ndcg)
        if lead.ndcg >= 0:
            return None
        is_certain = lead.interval is not None and lead.interval[1] < 0
        doubt = "" if is_certain else ", too little to be certain"
        return (
            f"{described(best.params)} ranks better than this model on the test: nDCG@{evaluation.k} "
            f"{best.as_served.ndcg:.4f} against {evaluation.model.as_served.ndcg:.4f}{doubt}; train with "
            f"{as_options(best.params)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values: the data, the parameters, the evaluation, the search and the durations."""
        matrix = self.model.matrix
        return {
            "out": str(self.out),
            "data": self.model.data,
            "users": len(matrix.user_ids),
            "items": len(matrix.item_ids),
            "pairs": int(matrix.user_items.nnz),
            **asdict(matrix.left_out),
            "titles": len(self.model.titles),
            "segments": len(self.model.segments),
            "engine": engine_of(self.model.params),
            "params": asdict(self.model.params),
            "evaluation": self.evaluation.to_json() if self.evaluation else None,
            "verdict": self.verdict,
            "warning": self.warning,
            "note": self.note,
            "tuning": self.model.tuning,
            "tuning_note": self.tuning_note,
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        }

    def _repr_html_(self) -> str:
        """Return the model, its quality and the evaluation for notebooks."""
        facts = self.to_json()
        counts = ", ".join(f"{facts[name]:,} {name}" for name in ("users", "items", "pairs"))
        model = f"{described(self.model.params)}, of {counts}, in {self.out}"
        texts = [text for text in (model, self.verdict, self.warning, self.note) if text]
        page = "".join(f"<p>{escape(text)}</p>" for text in texts)
        return page if self.evaluation is None else page + self.evaluation._repr_html_()


def train(
    settings: TrainSettings,
    out: Path | str,
    on_progress: OnStage = lambda _stage, _done, _total: None,
    on_notice: Notice = lambda _text: None,
) -> TrainReport:
    """Train on the interactions of *settings* and write the model folder *out*, replacing an existing model.

    The stages of *on_progress* are read, matrix, tune, evaluate, fit and save; *on_notice* gets sentences on cost and
    choices. A killed search resumes, from the folder .NAME.kept beside *out*. Raises DataError or SettingError, without
    writing a model.
    """
    out = Path(out)
    seconds = dict[str, float]()
    check_target(out)

    # Keeps the trials of an interrupted search.
    trials = out.resolve().with_name(f".{out.resolve().name}.kept")

    with _stage("read", seconds, on_progress):
        interactions = _read_data(settings)
    with _stage("matrix", seconds, on_progress):
        matrix = to_matrix(interactions.log, settings.min_per_user, settings.min_per_item, interactions.weighing)
        interactions = replace(interactions, log=interactions.log.clear())  # releases its memory
        test = _test_split(settings, matrix, on_notice)
        learned = matrix.standing()  # without users and items that have no pairs
        if settings.tuning is None:
            _announce_long_fit(settings.params, learned, on_notice)

    training_data = _TrainingData.of(matrix, test)
    search = None
    if settings.tuning is not None:
        with _stage("tune", seconds, on_progress):
            on_trial = partial(on_progress, "tune")
            search = _search_params(
                training_data, settings, settings.tuning, trials, on_trial=on_trial, on_notice=on_notice
            )
    chosen = _choose_params(training_data, settings, search, trials)

    evaluation = None
    if test is not None:
        with _stage("evaluate", seconds, on_progress):
            evaluation = _evaluate(test, settings, chosen, search, partial(on_progress, "evaluate"))
    note = _evaluation_note(test)
    del test, training_data, matrix  # releases memory for the last fit

    with _stage("fit", seconds, on_progress):
        model = _fit_model(interactions, learned, settings, chosen, partial(on_progress, "fit"))
        metrics = None if evaluation is None else evaluation.to_json()
        model = replace(model, tuning=_search_record(search, chosen), metrics=metrics)
    with _stage("save", seconds, on_progress):
        save(model, out)
        shutil.rmtree(trials, ignore_errors=True)  # another training may have removed it
    return TrainReport(
        out=out,
        model=model,
        evaluation=evaluation,
        note=note,
        search=search,
        tuning_note=_tuning_note(settings, search, learned),
        seconds=seconds,
    )


def _announce_long_fit(params: Params, matrix: Matrix, on_notice: Notice) -> None:
    """Tell *on_notice* how long a fit takes, if that is long."""
    fit_s = estimate_fit_s(params, matrix.user_items)
    if fit_s > _LONG_FIT_S:
        on_notice(f"a fit takes about {fit_s:,.0f} s; each split of the evaluation needs one, and the model")


class _Test(NamedTuple):
    """The split of the evaluation, and its parts."""

    split: SplitOptions
    parts: Parts

    @classmethod
    def of(cls, matrix: Matrix, options: SplitOptions, settings: TrainSettings) -> "_Test":
        """Split *matrix*; the train part has the least interactions of users and items in *settings*, too."""
        options = replace(options, min_per_user=settings.min_per_user, min_per_item=settings.min_per_item)
        return cls(options, split(matrix.user_items, matrix.history, options))


def _evaluation_note(test: _Test | None) -> str | None:
    """Return why there is no evaluation on *test*, None if there is one."""
    if test is None:
        return "No evaluation was requested."
    if not test.parts.is_empty:
        return None
    pairs = test.parts.train.nnz + test.parts.test.nnz
    return (
        f"The split {test.split.kind} of {pairs:,} pairs leaves none to learn from, or none to test on: no evaluation."
    )


def _tuning_note(settings: TrainSettings, search: Search | None, matrix: Matrix) -> str | None:
    """Return why the parameters were not searched on *matrix*, None if they were."""
    if search is not None:
        return None
    if settings.tuning is None:
        return "The parameters were not searched."
    return f"{matrix.user_items.nnz:,} pairs are too few to search."


class _TrainingData(NamedTuple):
    """The pairs that parameters are chosen on, their history, and the *split* of the evaluation, None without one."""

    user_items: UserItems
    history: History | None
    split: SplitOptions | None

    @classmethod
    def of(cls, matrix: Matrix, test: _Test | None) -> "_TrainingData":
        """Return the train part of *test*, or all of *matrix* if it is None."""
        if test is None:
            return cls(matrix.user_items, matrix.history, None)
        return cls(test.parts.train, test.parts.history, test.split)


class _ChosenParams(NamedTuple):
    """Parameters of a model.

    engine      of its engine
    popularity  of popular lists: their half-life
    similar     of similar items
    repeats     of lists that keep seen items; None for the defaults, without a search of them
    """

    engine: Params
    popularity: PopularityParams
    similar: SimilarParams
    repeats: RepeatSearch | None


def _read_data(settings: TrainSettings) -> Interactions:
    """Read the interactions of *settings*."""
    return read_interactions(
        *settings.data,
        columns=settings.columns,
        form=settings.form,
        event_weights=settings.event_weights,
        where=settings.where,
        titles=settings.titles,
        weighting=settings.weighting,
        half_life=settings.half_life,
    )


def _choose_params(
    training_data: _TrainingData, settings: TrainSettings, search: Search | None, trials: Path
) -> _ChosenParams:
    """Choose all parameters of the model, on *training_data*.

    Those of the engine are the ones that *search* recommends, or those of *settings* without one. Those of similar
    items and repeats are searched here if there is a search (`settings.tuning`) and an evaluation, which gives the
    split. *trials* is the folder that keeps the trials of an interrupted search.
    """
    engine = settings.params if search is None else search.trials[search.recommended].params
    popularity = _popular_params(training_data, settings, search, trials)
    half_life_days = popularity.half_life_days
    similar = SimilarParams(recency=None if half_life_days is None else Recency(half_life_days, SIMILAR_GAMMA))
    user_items, history, split_options = training_data
    if settings.tuning is None or split_options is None:
        return _ChosenParams(engine=engine, popularity=popularity, similar=similar, repeats=None)

    inner = inner_splits(user_items, history, split_options)
    if inner:
        similar = choose_similar_params(inner, half_life_days, settings.k)
    repeats = search_repeats(user_items, history, split_options, engine, k=settings.k, popular=popularity)
    return _ChosenParams(engine=engine, popularity=popularity, similar=similar, repeats=repeats)


def _evaluate(
    test: _Test,
    settings: TrainSettings,
    chosen: _ChosenParams,
    search: Search | None,
    on_iteration: Callable[[int, int], None],
) -> Evaluation | None:
    """Evaluate the chosen parameters beside baselines; None if *test* has an empty part.

    There is one baseline for each engine: with its best parameters of *search*, otherwise with those in BASELINES.
    """
    if test.parts.is_empty:
        return None
    baselines = {engine_of(params): params for params in BASELINES}
    if search is not None:
        for number in search.best_of_each:
            params = search.trials[number].params
            baselines[engine_of(params)] = params
    baselines[engine_of(chosen.popularity)] = chosen.popularity
    return evaluate_parts(
        test.parts,
        chosen.engine,
        on_iteration=on_iteration,
        k=settings.k,
        baselines=list(baselines.values()),
        popular=chosen.popularity,
        similar=chosen.similar,
        split=test.split,
    )


def _search_record(search: Search | None, chosen: _ChosenParams) -> dict[str, Any] | None:
    """Return the search as `Model.tuning`, None without one."""
    if search is None:
        return None
    return search.to_json() | {"repeats": None if chosen.repeats is None else asdict(chosen.repeats)}


def _fit_model(
    interactions: Interactions,
    matrix: Matrix,
    settings: TrainSettings,
    chosen: _ChosenParams,
    on_iteration: Callable[[int, int], None],
) -> Model:
    """Fit the engine and similar items with the *chosen* parameters to all pairs of *matrix*, and count popular items.

    *interactions* have the titles, the segments and the description of the data; their log is not read.
    *on_iteration* gets iterations done and in all.
    """
    segments = interactions.segments
    length = settings.popular_length
    recent = chosen.popularity.half_life_days
    return Model(
        ranker=fit(matrix.user_items, chosen.engine, on_iteration, times=matrix.times),
        matrix=matrix,
        titles={item: interactions.titles[item] for item in matrix.item_ids if item in interactions.titles},
        popular=most_popular(matrix, length, recent),
        segments={} if segments is None else popular_by_segment(segments, matrix.item_ids, length, recent),
        params=chosen.engine,
        metrics=None,
        data=_description(interactions, settings),
        created_at=datetime.now(UTC),
        popular_half_life_days=recent,
        similar=fit_similar(matrix.user_items, chosen.similar, matrix.times),
        repeats=chosen.repeats.params if chosen.repeats else RepeatParams(),
        user_segments=_segments_of(interactions.user_segments, matrix.user_ids),
    )


def _segments_of(known: pl.DataFrame | None, user_ids: list[str]) -> list[str | None] | None:
    """Return the segment of each user, None where unknown; *known* are rows [user, segment], None without segments."""
    if known is None:
        return None
    users = pl.DataFrame({"user": user_ids}, schema={"user": pl.String})
    return users.join(known, on="user", how="left", maintain_order="left").get_column("segment").to_list()


def _search_params(
    training_data: _TrainingData,
    settings: TrainSettings,
    tuning: TuneOptions,
    trials: Path,
    *,
    on_trial: Callable[[int, int], None],
    on_notice: Notice,
) -> Search | None:
    """Search the engine's parameters on *training_data*; None if there are too few pairs.

    *trials* is the folder that keeps trials, for a search that resumes. *on_trial* gets trials done and in all. Raises
    SettingError if time or memory allow no trial.
    """
    # Without an evaluation, by time if there are times.
    usual = SplitOptions("by-item" if training_data.history is None else "by-time")
    search = tune(
        training_data.user_items,
        training_data.history,
        training_data.split or usual,
        tuning,
        k=settings.k,
        defaults=settings.params if isinstance(settings.params, ALSParams) else None,
        trials_folder=trials,
        evaluated=training_data.split is not None,
        on_trial=on_trial,
        on_notice=on_notice,
    )
    if search is not None and not search.trials:
        raise SettingError("the search has no time or memory for any cell: raise --tune SECONDS, or give --no-tune")
    return search


def _test_split(settings: TrainSettings, matrix: Matrix, on_notice: Notice) -> _Test | None:
    """Split *matrix* for the evaluation as *settings* say; None if they want none.

    An AutoSplit is by time if the data have times and that leaves enough users to test, otherwise a random draw, which
    *on_notice* is told.
    """
    wanted = settings.split
    if wanted is None:
        return None
    if isinstance(wanted, SplitOptions):
        return _Test.of(matrix, wanted, settings)
    if matrix.history is None:
        on_notice("the data have no times, so the test is a random draw, which flatters; name them with --time-column")
        return _Test.of(matrix, wanted.of("by-item"), settings)

    test = _Test.of(matrix, wanted.of("by-time"), settings)
    tested = len(test.parts.tested)
    if tested >= _FEWEST_TESTED and test.parts.train.nnz:
        return test
    on_notice(f"a cut in time leaves {tested} users to test, so the test is a random draw; --split by-time insists")
    return _Test.of(matrix, wanted.of("by-item"), settings)


def _popular_params(
    training_data: _TrainingData, settings: TrainSettings, search: Search | None, trials: Path
) -> PopularityParams:
    """Return the parameters by which popular lists are ranked: a half-life, or None if all interactions count alike.

    A half-life that *search* has found is taken. Otherwise it is searched here if the evaluation's split is by time.
    """
    if search is not None and search.popular.half_life_days is not None:
        return search.popular
    if training_data.split is None or not training_data.split.in_time:
        return PopularityParams()
    popularity_search = tune(
        training_data.user_items,
        training_data.history,
        training_data.split,
        TuneOptions(engine="popularity"),
        k=settings.k,
        trials_folder=trials,
    )
    return PopularityParams() if popularity_search is None else popularity_search.popular


def _description(interactions: Interactions, settings: TrainSettings) -> dict[str, Any]:
    """Return what the model says of the interactions that it was trained on: their files, rows, times and weights."""
    times = interactions.time_range
    return {
        "rows": interactions.rows,
        "left_out": interactions.left_out,
        "fingerprint": interactions.fingerprint,
        "notes": interactions.notes,
        "source": named_paths(settings.data),
        "titles": None if settings.titles is None else named_paths([settings.titles]),
        "time_range": None if times is None else [time.isoformat() for time in times],
        "columns": asdict(interactions.columns),
        "where": list(settings.where),
        "event_weights": None if settings.event_weights is None else dict(settings.event_weights),
        "half_life_s": None if settings.half_life is None else settings.half_life.total_seconds(),
        "weighting": settings.weighting,
        "min_per_user": settings.min_per_user,
        "min_per_item": settings.min_per_item,
    }


@contextmanager
def _stage(name: str, seconds: dict[str, float], on_progress: OnStage) -> Iterator[None]:
    """Report the begin and the end of a stage of the training, and add its wall time to *seconds*."""
    on_progress(name, 0, 1)
    with timed(seconds, name):
        yield
    on_progress(name, 1, 1)
