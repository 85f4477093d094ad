"""Training: from interactions to a model folder, with a search and an evaluation.

The interactions are split into train and test. Parameters are chosen on train alone, evaluated on test, and fitted
again to everything.
"""

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

from hotplate.offline.errors import SettingError
from hotplate.offline.evaluate.evaluation import BASELINES, Evaluation, evaluate_parts
from hotplate.offline.evaluate.model_report import answer_in_words
from hotplate.offline.evaluate.records import EvaluationRecord, read_evaluation
from hotplate.offline.evaluate.splits import Parts, SplitKind, SplitOptions, split
from hotplate.offline.input.files import DataSource, named_paths
from hotplate.offline.input.interactions import Interactions, read_interactions
from hotplate.offline.input.matrix import History, Matrix, UserItems, Weighting, to_matrix
from hotplate.offline.input.tables import parse_filter
from hotplate.offline.list_encoder import POPULAR_LENGTH, check_length
from hotplate.offline.model import Model, check_target, save
from hotplate.offline.options import Columns, Format
from hotplate.offline.publish import timed
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import Params, as_options, described, engine_of, estimate_fit_s, fit
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
        check_length(self.k, "k")
        if not isinstance(self.split, SplitOptions | AutoSplit | None):
            raise SettingError(
                f"split is {self.split!r}; it must be SplitOptions('by-time'), or None for no evaluation."
            )
        for text in self.where:
            parse_filter(text)


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

    *on_progress* is called with (stage, done, total), for read, matrix, tune, evaluate, fit and save. *on_notice*
    gets sentences on cost and choices. Trials are kept in .NAME.kept beside *out* until the model is saved, so a killed
    search resumes. Raises DataError or SettingError, without writing a model.
    """
    out = Path(out)
    seconds = dict[str, float]()
    check_target(out)

    # Where an interrupted search leaves its trials.
    trials = out.resolve().with_name(f".{out.resolve().name}.kept")

    with _stage("read", seconds, on_progress):
        interactions = _read_data(settings)
    with _stage("matrix", seconds, on_progress):
        matrix = to_matrix(interactions.log, settings.min_per_user, settings.min_per_item, interactions.weighing)
        interactions = replace(interactions, log=interactions.log.clear())  # releases its memory
        test = _test_split(settings, matrix, on_notice)
        learned = matrix.standing()  # without users and items that have no pairs
        if settings.tuning is None:
            fitting_s = estimate_fit_s(settings.params, learned.user_items)
            if fitting_s > _LONG_FIT_S:
                on_notice(
                    f"a fit takes about {fitting_s:,.0f} s; each split of the evaluation needs one, and the model"
                )

    training_data = _TrainingData.of(matrix, test)
    search = None
    tuning_note = "The parameters were not searched."
    if settings.tuning is not None:
        with _stage("tune", seconds, on_progress):
            on_trial = partial(on_progress, "tune")
            search = _search_params(
                training_data, settings, settings.tuning, trials, on_trial=on_trial, on_notice=on_notice
            )
            tuning_note = f"{matrix.user_items.nnz:,} pairs are too few to search."
    chosen = _choose_params(training_data, settings, search, trials)

    evaluation = None
    note = "No evaluation was requested."
    if test is not None:
        with _stage("evaluate", seconds, on_progress):
            note = test.obstacle
            if not note:
                evaluation = _evaluate(test, settings, chosen, search, partial(on_progress, "evaluate"))
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
        note=note or None,
        search=search,
        tuning_note=None if search else tuning_note,
        seconds=seconds,
    )


class _Test(NamedTuple):
    """The split of the evaluation, and its parts."""

    split: SplitOptions
    parts: Parts

    @property
    def obstacle(self) -> str:
        """Why it cannot be evaluated on, or an empty text."""
        if not self.parts.is_empty:
            return ""
        pairs = self.parts.train.nnz + self.parts.test.nnz
        return (
            f"The split {self.split.kind} of {pairs:,} pairs leaves none to learn from, or none to test on: no "
            "evaluation."
        )


class _TrainingData(NamedTuple):
    """The data that parameters are chosen on: the train part of the evaluation's *split*, or everything without one."""

    user_items: UserItems
    history: History | None
    split: SplitOptions | None

    @classmethod
    def of(cls, matrix: Matrix, test: _Test | None) -> "_TrainingData":
        """Return the train part of *test*, or *matrix* if it is None."""
        if test is None:
            return cls(matrix.user_items, matrix.history, None)
        return cls(test.parts.train, test.parts.history, test.split)


class _ChosenParams(NamedTuple):
    """Parameters of a model: of its engine, popular lists, similar items, and repeats, None if these had no search."""

    params: Params
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
    """Choose all parameters of the model.

    The engine's are those that the *search* recommends, without one those of the settings. Similar items and repeats
    are searched if the settings want a search and the data have a split for the evaluation.
    """
    params = settings.params if search is None else search.trials[search.recommended].params
    popularity = _popular_params(training_data, settings, search, trials)
    half_life_days = popularity.half_life_days
    similar = SimilarParams(recency=None if half_life_days is None else Recency(half_life_days, SIMILAR_GAMMA))
    user_items, history, options = training_data
    if settings.tuning is None or options is None:
        return _ChosenParams(params, popularity, similar, None)
    cuts = inner_splits(user_items, history, options)
    repeats = search_repeats(user_items, history, options, params, k=settings.k, popular=popularity)
    if cuts:
        similar = choose_similar_params(cuts, half_life_days, settings.k)
    return _ChosenParams(params, popularity, similar, repeats)


def _evaluate(
    test: _Test,
    settings: TrainSettings,
    chosen: _ChosenParams,
    search: Search | None,
    on_iteration: Callable[[int, int], None],
) -> Evaluation:
    """Evaluate the chosen parameters beside baselines: one of each engine, with its best parameters of the search."""
    baselines = [*BASELINES]
    if search is not None:
        baselines += [search.trials[number].params for number in search.best_of_each]
    baselines.append(chosen.popularity)
    last_by_engine = {engine_of(params): params for params in baselines}
    return evaluate_parts(
        test.parts,
        chosen.params,
        on_iteration=on_iteration,
        k=settings.k,
        baselines=list(last_by_engine.values()),
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
    """Return the model: an engine with the *chosen* parameters, fitted to all pairs of *matrix*, and its other lists.

    These are similar items, and popular items for everybody and by segment. *interactions* may be without their log.
    *on_iteration* gets iterations done and in all.
    """
    segments = interactions.segments
    length = settings.popular_length
    recent = chosen.popularity.half_life_days
    return Model(
        ranker=fit(matrix.user_items, chosen.params, on_iteration, times=matrix.times),
        matrix=matrix,
        titles={item: interactions.titles[item] for item in matrix.item_ids if item in interactions.titles},
        popular=most_popular(matrix, length, recent),
        segments={} if segments is None else popular_by_segment(segments, matrix.item_ids, length, recent),
        params=chosen.params,
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
    """Search parameters, without the pairs that the evaluation tests; None if there are too few pairs.

    *trials* is where an interrupted search has kept its trials, which are not repeated. *on_trial* gets trials done and
    in all. Raises SettingError if time or memory allow no trial.
    """
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
    """Split the data for the evaluation of the model; None if *settings* want none.

    By default the split is by time if the data have times and that leaves enough users to test, otherwise a random
    draw, which *on_notice* is told. A split that was asked for is made as it is.
    """
    wanted = settings.split
    if wanted is None:
        return None

    def test_of(options: SplitOptions) -> _Test:
        options = replace(options, min_per_user=settings.min_per_user, min_per_item=settings.min_per_item)
        return _Test(options, split(matrix.user_items, matrix.history, options))

    if isinstance(wanted, SplitOptions):
        return test_of(wanted)
    if matrix.history is None:
        on_notice("the data have no times, so the test is a random draw, which flatters; name them with --time-column")
        return test_of(wanted.of("by-item"))
    test = test_of(wanted.of("by-time"))
    tested = len(test.parts.tested)
    if tested >= _FEWEST_TESTED and test.parts.train.nnz:
        return test
    test = test_of(wanted.of("by-item"))
    on_notice(f"a cut in time leaves {tested} users to test, so the test is a random draw; --split by-time insists")
    return test


def _popular_params(
    training_data: _TrainingData, settings: TrainSettings, search: Search | None, trials: Path
) -> PopularityParams:
    """Return the half-life by which popular lists are ranked, as parameters of the engine `popularity`.

    It is that of *search* if it has searched one. Otherwise it is searched here if the split is by time; if not, all
    interactions count alike.
    """
    if search is not None and search.popular.half_life_days is not None:
        return search.popular
    if training_data.split is None or not training_data.split.in_time:
        return PopularityParams()
    of_popularity = tune(
        training_data.user_items,
        training_data.history,
        training_data.split,
        TuneOptions(engine="popularity"),
        k=settings.k,
        trials_folder=trials,
    )
    return PopularityParams() if of_popularity is None else of_popularity.popular


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
