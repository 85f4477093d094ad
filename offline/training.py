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
from pathlib import Path
from typing import Any

from hotplate.base.report import Report, format_count
from hotplate.base.report_page import brief
from hotplate.offline.errors import SettingError, require_above_zero
from hotplate.offline.evaluate.evaluation import BASELINES, EvaluateOptions, evaluate_parts
from hotplate.offline.evaluate.model_report import answer_in_words, quality_report, warnings_of
from hotplate.offline.evaluate.records import EvaluationRecord, RepeatSearch, json_values
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.files import DataSource, check_source, named_paths
from hotplate.offline.input.filters import parse_filter
from hotplate.offline.input.history import Weighing
from hotplate.offline.input.interactions import Interactions, read_interactions
from hotplate.offline.input.matrix import Matrix, to_matrix
from hotplate.offline.list_encoder import POPULAR_LENGTH, check_length
from hotplate.offline.model import DataDescription, Model
from hotplate.offline.model_folder import check_target, save
from hotplate.offline.options import ReadOptions, check_settings
from hotplate.offline.search.popular_lists import ALL_TIME, search_popular
from hotplate.offline.search.similar_items import choose_similar_params
from hotplate.offline.search.trials import best_of_each_engine
from hotplate.offline.search.tuning import Search, SearchData, TuneOptions, search_repeats, tune
from hotplate.offline.steps import timed
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import (
    Params,
    described,
    engine_of,
    estimate_fit_s,
    fit,
    params_class,
)
from hotplate.offline.train.popularity import PopularityParams, Recency, most_popular, popular_by_segment
from hotplate.offline.train.repeats import RepeatParams
from hotplate.offline.train.similar import SIMILAR_GAMMA, SimilarParams
from hotplate.offline.train.similar import fit as fit_similar
from hotplate.stores.verification import OnProgress

# With fewer test users after a cut in time, the split is random.
_FEWEST_TESTED = 10
# Longer fits are announced, except with a search.
_LONG_FIT_S = 10

# Called with (stage, done, total).
OnStage = Callable[[str, int, int], None]
Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainSettings(ReadOptions):
    """Options of a training on *path* and *more*: paths, URLs, polars, Arrow or pandas frames.

    *split* None omits the evaluation. With *tuning*, *params* are the search's defaults.
    """

    path: DataSource
    more: Sequence[DataSource] = ()
    event_weights: Mapping[str, float] | None = None
    half_life: timedelta | None = None
    split: SplitOptions | None = SplitOptions("auto")  # noqa: RUF009 -- immutable
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
        check_settings(self)
        Weighing(self.weighting, self.half_life)  # raises SettingError

        for event, weight in (self.event_weights or {}).items():
            require_above_zero(f"The weight of event {event!r}", weight)

        engine_of(self.params)  # raises SettingError

        # The search has defaults for ALS only; it would ignore other parameters.
        if self.tuning is not None and not isinstance(self.params, ALSParams):
            engine = self.tuning.engine
            if engine is None or self.params != params_class(engine)():
                raise SettingError(
                    f"The search would ignore {self.params}: only ALSParams are its defaults. Give "
                    "tuning=TuneOptions(cells=(…,)) to try these, or tuning=None to train with them."
                )
        if not isinstance(self.split, SplitOptions | None):
            raise SettingError(
                f"split is {self.split!r}; it must be SplitOptions('by-time'), or None for no evaluation."
            )

        for text in self.where:
            parse_filter(text)


@dataclass(frozen=True, slots=True)
class TrainReport:
    """Result of a training; *seconds* are by stage. Notes explain a missing `model.evaluation` or *search*."""

    out: Path
    model: Model
    note: str | None
    search: Search | None
    tuning_note: str | None
    seconds: dict[str, float]

    @property
    def verdict(self) -> str | None:
        """The lists against what is popular now, as both are served, or None without an evaluation."""
        evaluation = self.model.evaluation
        return None if evaluation is None else answer_in_words(evaluation)

    @property
    def warning(self) -> str | None:
        """Sentences about lists that hardly differ, and a baseline that is certainly better on the test, or None."""
        evaluation = self.model.evaluation
        return None if evaluation is None else "; ".join(warnings_of(evaluation)) or None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values: the data, the parameters, the evaluation, the search and the durations."""
        model = self.model
        matrix = model.matrix
        return {
            "out": str(self.out),
            "data": json_values(model.data),
            **matrix.counts,
            **asdict(matrix.left_out),
            "titles": len(model.titles),
            "segments": len(model.segments),
            "engine": engine_of(model.params),
            "params": asdict(model.params),
            "evaluation": None if model.evaluation is None else model.evaluation.to_json(),
            "verdict": self.verdict,
            "warning": self.warning,
            "note": self.note,
            "tuning": json_values(model.search),
            "tuning_note": self.tuning_note,
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        }

    @property
    def report(self) -> Report:
        """How good the lists are beside baselines, the model and its search, and what was read and written."""
        report = quality_report(self.model)
        warnings = [f"look out: {self.warning}"] if self.warning else []
        return replace(
            report,
            sentence=self.verdict or f"The lists were not tested. {self.note}",
            origins={**report.origins, "model": _model_in_words(self), **dict(_read_and_written(self))},
            notes=(*warnings, *self.model.data.notes),
        )

    def _repr_html_(self) -> str:
        """Return the report for notebooks."""
        return brief(self.report)


def _model_in_words(report: TrainReport) -> str:
    """Return the engine and its parameters, and how they were found."""
    model = described(report.model.params)
    search = report.search
    if search is None:
        return f"{model}. {report.tuning_note}"
    trial = search.trials[search.recommended]
    tried = f"chosen of {len(search.trials)} tried in {report.seconds['tune']:.0f} s"
    return f"{model}: {tried}, before the test, on an inner split (nDCG@{search.k} {trial.ndcg:.4f} there)"


def _read_and_written(report: TrainReport) -> Iterator[tuple[str, str]]:
    """Yield labels and texts: the rows that were read, their columns, what was learned from, and the files written."""
    data = report.model.data
    left_out_rows = [f"{count:,} left out: {reason}" for reason, count in data.left_out.items()]
    yield "read", "; ".join([f"{format_count(data.rows, 'row')} of {data.source}", *left_out_rows])
    yield "columns", ", ".join(f"{role}={name}" for role, name in asdict(data.columns).items() if name)

    matrix = report.model.matrix
    kept = {**matrix.counts, "titles": len(report.model.titles)}
    sentences = ["from " + ", ".join(f"{count:,} {kind}" for kind, count in kept.items())]
    for name, count in asdict(matrix.left_out).items():
        if count:
            sentences.append(f"{count:,} {name.replace('_', ' ')}, with fewer than the minimum")
    yield "learned", "; ".join(sentences)

    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.seconds.items())
    yield "written", f"{report.out} ({stages})"


def train(
    settings: TrainSettings,
    out: Path | str,
    on_progress: OnStage = lambda _stage, _done, _total: None,
    on_notice: Notice = lambda _text: None,
) -> TrainReport:
    """Train on the interactions of *settings* and write the model folder *out*, replacing an existing model.

    The stages of *on_progress* are read, matrix, tune, choose (popularity, similar items and repeats), evaluate, fit
    and save; *on_notice* gets sentences on cost and choices. A killed search resumes, from the folder .NAME.kept beside
    *out*. Raises DataError or SettingError, without writing a model.
    """
    out = Path(out)
    check_target(out)
    trials = trials_folder(out)
    progress = _Progress(on_progress, on_notice)

    data = _read_data(settings, progress)
    choice = _choose_params(data.search_data, settings, trials, progress)

    evaluation = None
    if data.test is not None:
        with progress.stage("evaluate") as on_iteration:
            evaluation = _evaluate(data.test, settings, choice, on_iteration)
    note = _evaluation_note(data.test)

    interactions = data.interactions
    matrix = data.learned
    del data  # releases the memory of the test for the last fit

    with progress.stage("fit") as on_iteration:
        model = _fit_model(
            interactions,
            matrix,
            settings=settings,
            choice=choice,
            evaluation=evaluation,
            on_iteration=on_iteration,
        )

    with progress.stage("save"):
        save(model, out)
        shutil.rmtree(trials, ignore_errors=True)  # another training may have removed it

    return TrainReport(
        out=out,
        model=model,
        note=note,
        search=choice.search,
        tuning_note=_tuning_note(settings, choice.search, matrix),
        seconds=progress.seconds,
    )


class _Progress:
    """Reports the stages of a training and its choices; `seconds` are the wall time by stage."""

    def __init__(self, on_stage: OnStage, on_notice: Notice) -> None:
        self.notice = on_notice
        self.seconds = dict[str, float]()
        self._on_stage = on_stage

    @contextmanager
    def stage(self, name: str) -> Iterator[OnProgress]:
        """Report the begin and the end of a stage, and measure it; yield a function that reports its steps."""
        self._on_stage(name, 0, 1)
        with timed(self.seconds, name):
            yield partial(self._on_stage, name)
        self._on_stage(name, 1, 1)


@dataclass(frozen=True, slots=True)
class _Data:
    """The data of a training.

    interactions  their titles, segments and description; the log is empty
    learned       the matrix that the model is fitted to
    search_data   the pairs that parameters are chosen on: the train part of the test, or without one all
    test          the split of the evaluation; None if none is wanted
    """

    interactions: Interactions
    learned: Matrix
    search_data: SearchData
    test: Parts | None


def _read_data(settings: TrainSettings, progress: _Progress) -> _Data:
    """Read the interactions of *settings*, make a matrix of them, and split it for the evaluation."""
    with progress.stage("read"):
        interactions = read_interactions(
            *settings.data,
            columns=settings.columns,
            form=settings.form,
            event_weights=settings.event_weights,
            where=settings.where,
            titles=settings.titles,
            weighting=settings.weighting,
            half_life=settings.half_life,
        )

    with progress.stage("matrix"):
        matrix = to_matrix(interactions.log, settings.min_per_user, settings.min_per_item, interactions.weighing)
        interactions = replace(interactions, log=interactions.log.clear())  # releases its memory

        test = _test_split(settings, matrix, progress.notice)
        learned = matrix.only_present_in(matrix.user_items)  # without users and items that have no pairs
        if settings.tuning is None:
            fit_s = estimate_fit_s(settings.params, learned.user_items)
            if fit_s > _LONG_FIT_S:
                progress.notice(
                    f"a fit takes about {fit_s:,.0f} s; each split of the evaluation needs one, and the model"
                )

    # Parameters must not be chosen on the pairs that test them.
    search_data = SearchData(matrix.user_items, matrix.history)
    if test is not None:
        search_data = SearchData(test.train, test.history, evaluation=test.options)
    return _Data(interactions, learned, search_data, test)


def _evaluation_note(test: Parts | None) -> str | None:
    """Return why there is no evaluation on *test*, None if there is one."""
    if test is None or test.options is None:
        return "No evaluation was requested."
    if not test.is_empty:
        return None
    pairs = format_count(test.train.nnz + test.test.nnz, "pair")
    return f"The split {test.options.kind} of {pairs} leaves none to learn from, or none to test on: no evaluation."


def _tuning_note(settings: TrainSettings, search: Search | None, matrix: Matrix) -> str | None:
    """Return why the parameters were not searched on *matrix*, None if they were."""
    if search is not None:
        return None
    if settings.tuning is None:
        return "The parameters were not searched."
    return f"{matrix.user_items.nnz:,} pairs are too few to search."


@dataclass(frozen=True, slots=True)
class _Choice:
    """The parameters of a model.

    engine      of its engine
    popularity  of popular lists: their half-life
    baselines   of popularity of all time and of the best recent one
    similar     of similar items
    repeats     of lists that keep seen items; None for the defaults, without a search of them
    search      that chose the engine and its parameters; None without one
    """

    engine: Params
    popularity: PopularityParams
    baselines: tuple[PopularityParams, ...]
    similar: SimilarParams
    repeats: RepeatSearch | None
    search: Search | None


def trials_folder(out: Path) -> Path:
    """Return the folder that keeps the trials of an interrupted search for the model folder *out*."""
    return out.resolve().with_name(f".{out.resolve().name}.kept")


def _choose_params(data: SearchData, settings: TrainSettings, trials: Path, progress: _Progress) -> _Choice:
    """Choose all parameters of the model on *data*: of the engine, popular lists, similar items and repeats.

    Repeats are items that a user has already, in lists that keep them. The engine is searched if *settings* say so.
    Similar items and repeats are then searched, too, but only if the model is evaluated. *trials* is the folder that
    keeps the trials of an interrupted search. *progress* is told the stages `tune` and `choose`. Raises SettingError if
    time or memory allow no trial.
    """
    search = None
    if settings.tuning is not None:
        with progress.stage("tune") as on_trial:
            search = tune(
                data,
                settings.tuning,
                k=settings.k,
                defaults=settings.params if isinstance(settings.params, ALSParams) else None,
                trials_folder=trials,
                on_trial=on_trial,
                on_notice=progress.notice,
            )
    if search is not None and not search.trials:
        raise SettingError("the search has no time or memory for any cell: raise --tune SECONDS, or give --no-tune")
    engine = settings.params if search is None else search.trials[search.recommended].params

    with progress.stage("choose"):
        # The inner splits are made again, as those of the search would take memory until here.
        splits = data.sample().splits() if data.evaluation is not None else []
        popular = None if search is None else search.popular
        if popular is None and splits:
            popular = search_popular(splits, settings.k, in_time=data.split.in_time)
        popularity = ALL_TIME if popular is None else popular.for_new_users
        half_life_days = popularity.half_life_days
        similar = SimilarParams(recency=None if half_life_days is None else Recency(half_life_days, SIMILAR_GAMMA))

        repeats = None
        if settings.tuning is not None and data.evaluation is not None:
            if splits:
                similar = choose_similar_params(splits, half_life_days, settings.k)
            repeats = search_repeats(data, engine, k=settings.k, popular=popularity)
    return _Choice(
        engine=engine,
        popularity=popularity,
        baselines=(ALL_TIME,) if popular is None else popular.baselines,
        similar=similar,
        repeats=repeats,
        search=search,
    )


def _evaluate(
    test: Parts, settings: TrainSettings, choice: _Choice, on_iteration: OnProgress
) -> EvaluationRecord | None:
    """Evaluate the chosen parameters, and baselines to compare them with; None if *test* has an empty part.

    These are popularity of all time, the best recent one, and each other engine with its best parameters of a search,
    otherwise with those in BASELINES.
    *on_iteration* is called with the iterations done and in all.
    """
    if test.is_empty:
        return None

    # Later parameters replace earlier ones of the same engine.
    best = {engine_of(params): params for params in BASELINES}
    if choice.search is not None:
        best |= {engine_of(trial.params): trial.params for trial in best_of_each_engine(choice.search.trials)}
        best.pop("blend", None)  # compared only if it is chosen
    del best["popularity"]

    return evaluate_parts(
        test,
        choice.engine,
        EvaluateOptions(k=settings.k, popular=choice.popularity, similar=choice.similar),
        baselines=[*choice.baselines, *best.values()],
        on_iteration=on_iteration,
    )


def _fit_model(
    interactions: Interactions,
    matrix: Matrix,
    *,
    settings: TrainSettings,
    choice: _Choice,
    evaluation: EvaluationRecord | None,
    on_iteration: OnProgress,
) -> Model:
    """Fit the engine and similar items with the chosen parameters to all pairs of *matrix*, and count popular items.

    *evaluation* is kept in the model. *on_iteration* is called with the iterations done and in all.
    """
    length = settings.popular_length
    half_life_days = choice.popularity.half_life_days

    # The popular lists of segments, which are groups of users.
    segments = {}
    if interactions.segments is not None:
        segments = popular_by_segment(interactions.segments, matrix.item_ids, length, half_life_days)

    return Model(
        ranker=fit(matrix.user_items, choice.engine, on_iteration, times=matrix.times),
        matrix=matrix,
        titles={item: interactions.titles[item] for item in matrix.item_ids if item in interactions.titles},
        popular=most_popular(matrix, length, half_life_days),
        segments=segments,
        params=choice.engine,
        evaluation=evaluation,
        search=None if choice.search is None else choice.search.record(choice.repeats),
        data=_describe_data(interactions, settings),
        created_at=datetime.now(UTC),
        popular_half_life_days=half_life_days,
        similar=fit_similar(matrix.user_items, choice.similar, matrix.times),
        repeats=RepeatParams() if choice.repeats is None else choice.repeats.params,
    )


def _test_split(settings: TrainSettings, matrix: Matrix, on_notice: Notice) -> Parts | None:
    """Split *matrix* for the evaluation as *settings* say; None if they want none.

    The split `auto` is by time if the data have times and that leaves enough users to test. Otherwise it is a random
    draw of items, and *on_notice* is called with a sentence that says why.
    """
    wanted = settings.split
    if wanted is None:
        return None
    if wanted.kind != "auto":
        return _split(settings, matrix, wanted)

    reason = "the data have no times, so the test is a random draw, which flatters; name them with --time-column"
    if matrix.history is not None:
        test = _split(settings, matrix, replace(wanted, kind="by-time"))
        tested = len(test.tested)
        if tested >= _FEWEST_TESTED and test.train.nnz:
            return test
        reason = (
            f"a cut in time leaves {format_count(tested, 'user')} to test, so the test is a random draw; "
            "--split by-time insists"
        )
    on_notice(reason)
    return _split(settings, matrix, replace(wanted, kind="by-item"))


def _split(settings: TrainSettings, matrix: Matrix, options: SplitOptions) -> Parts:
    """Split *matrix*; the train part has the least interactions of users and items in *settings*, too."""
    options = replace(options, min_per_user=settings.min_per_user, min_per_item=settings.min_per_item)
    return split(matrix.user_items, matrix.history, options)


def _describe_data(interactions: Interactions, settings: TrainSettings) -> DataDescription:
    """Describe the interactions for the model that was trained on them: files, rows, times, columns and weights."""
    times = interactions.time_range
    return DataDescription(
        rows=interactions.rows,
        left_out=interactions.left_out,
        fingerprint=interactions.fingerprint,
        notes=interactions.notes,
        source=named_paths(settings.data),
        titles=None if settings.titles is None else named_paths([settings.titles]),
        time_range=None if times is None else (times[0].isoformat(), times[1].isoformat()),
        columns=interactions.columns,
        where=list(settings.where),
        event_weights=None if settings.event_weights is None else dict(settings.event_weights),
        half_life_s=None if settings.half_life is None else settings.half_life.total_seconds(),
        weighting=settings.weighting,
        min_per_user=settings.min_per_user,
        min_per_item=settings.min_per_item,
    )
