"""Training: from interactions to a model folder, with a search and an evaluation."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from hotplate.offline.errors import SettingError
from hotplate.offline.evaluate.evaluation import BASELINES, Evaluation, evaluate_parts
from hotplate.offline.evaluate.model_report import answer
from hotplate.offline.evaluate.records import EvaluationRecord, read_evaluation
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.columns import Columns
from hotplate.offline.input.files import DataSource, Format, named_paths
from hotplate.offline.input.interactions import Interactions, read_interactions
from hotplate.offline.input.matrix import History, Matrix, UserItems, Weighting, to_matrix
from hotplate.offline.input.tables import parse_filter
from hotplate.offline.list_encoder import POPULAR_LENGTH, check_length
from hotplate.offline.model import LEFT_OUT, Model, check_target, save
from hotplate.offline.publish import timed
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import Params, as_options, described, engine_of, fit, fit_s
from hotplate.offline.train.popularity import PopularityParams, Recency, most_popular, popular_by_segment
from hotplate.offline.train.repeats import RepeatParams, RepeatSearch
from hotplate.offline.train.similar import SIMILAR_GAMMA, SimilarParams, choose
from hotplate.offline.train.similar import fit as fit_similar
from hotplate.offline.train.tuning import Search, TuneOptions, inner_cuts, search_repeats, tune

# With fewer test users after a cut in time, the split is random.
_FEWEST_TESTED = 10
# Longer fits are announced, except with a search.
_LONG_FIT_S = 10

# Called with (stage, done, total).
OnStage = Callable[[str, int, int], None]
Notice = Callable[[str], None]


class AutoSplit(SplitOptions):
    """A split by time, or by item if the data lack times or users after the cut."""


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
    split: SplitOptions | None = field(default_factory=AutoSplit)
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
        if not isinstance(self.split, SplitOptions | None):
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
        return None if record is None else answer(record)

    @property
    def record(self) -> EvaluationRecord | None:
        """The evaluation as reports show it."""
        return read_evaluation(self.model.metrics)

    @property
    def warning(self) -> str | None:
        """A sentence about a baseline that ranks better on the test, or None."""
        evaluation = self.evaluation
        if evaluation is None or not evaluation.baselines:
            return None
        lead, best = min(zip(evaluation.leads, evaluation.baselines, strict=True), key=lambda pair: pair[0].ndcg)
        if lead.ndcg >= 0:
            return None
        certain = lead.interval is not None and lead.interval[1] < 0
        return (
            f"{described(best.params)} ranks better than this model on the test: nDCG@{evaluation.k} "
            f"{best.as_served.ndcg:.4f} against {evaluation.model.as_served.ndcg:.4f}"
            f"{'' if certain else ', too little to be certain'}; train with {as_options(best.params)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return all but the model's arrays as JSON values."""
        matrix = self.model.matrix
        return {
            "out": str(self.out),
            "data": self.model.data,
            "users": len(matrix.user_ids),
            "items": len(matrix.item_ids),
            "pairs": int(matrix.user_items.nnz),
            **{name: getattr(matrix, name) for name in LEFT_OUT},
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
        facts = self.to_json()
        counts = ", ".join(f"{facts[what]:,} {what}" for what in ("users", "items", "pairs"))
        said = [f"{described(self.model.params)}, of {counts}, in {self.out}", self.verdict, self.warning, self.note]
        shown = "".join(f"<p>{escape(text)}</p>" for text in said if text)
        return shown if self.evaluation is None else shown + self.evaluation._repr_html_()


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
    folder = out.resolve().with_name(f".{out.resolve().name}.kept")
    with _stage("read", seconds, on_progress):
        interactions = _read(settings)
    with _stage("matrix", seconds, on_progress):
        matrix = to_matrix(interactions.log, settings.min_per_user, settings.min_per_item, interactions.weighing)
        interactions = replace(interactions, log=interactions.log.clear())  # releases its memory
        settings, parts = _split(settings, matrix, on_notice)
        standing = matrix.standing()
        if settings.tuning is None and (fitting := fit_s(settings.params, standing.user_items)) > _LONG_FIT_S:
            on_notice(f"a fit takes about {fitting:,.0f} s; each split of the evaluation needs one, and the model")
    learnable = (matrix.user_items, matrix.history) if parts is None else (parts.train, parts.history)
    search = None
    tuning_note = "The parameters were not searched."
    if settings.tuning is not None:
        with _stage("tune", seconds, on_progress):
            search = _search(learnable, settings, folder, on_progress, on_notice)
            tuning_note = f"{matrix.user_items.nnz:,} pairs are too few to search."
    chosen = _choose(learnable, settings, search, folder)
    evaluation = None
    note = "No evaluation was requested."
    if parts is not None:
        with _stage("evaluate", seconds, on_progress):
            evaluation, note = _evaluate(parts, settings, chosen, search, on_progress)
    del parts, learnable, matrix  # releases memory for the last fit
    with _stage("fit", seconds, on_progress):
        model = _fit(interactions, standing, settings, chosen, partial(on_progress, "fit"))
        tuning = search.to_json() | {"repeats": chosen.repeats and asdict(chosen.repeats)} if search else None
        model = replace(model, tuning=tuning, metrics=evaluation.to_json() if evaluation else None)
    with _stage("save", seconds, on_progress):
        save(model, out)
        shutil.rmtree(folder, ignore_errors=True)  # another training may have removed it
    return TrainReport(
        out, model, evaluation, None if evaluation else note, search, None if search else tuning_note, seconds
    )


Learnable = tuple[UserItems, History | None]


class _Chosen(NamedTuple):
    params: Params
    recent: PopularityParams
    similar: SimilarParams
    repeats: RepeatSearch | None


def _read(settings: TrainSettings) -> Interactions:
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


def _choose(learnable: Learnable, settings: TrainSettings, search: Search | None, trials: Path) -> _Chosen:
    params = search.trials[search.best].params if search else settings.params
    recent = _recent(learnable, settings, search, trials)
    days = recent.half_life_days
    similar = SimilarParams(recency=None if days is None else Recency(days, SIMILAR_GAMMA))
    if settings.tuning is None or settings.split is None:
        return _Chosen(params, recent, similar, None)
    cuts = inner_cuts(*learnable, settings.split)
    repeats = search_repeats(*learnable, settings.split, params, k=settings.k, popular=recent)
    return _Chosen(params, recent, choose(cuts, days, settings.k) if cuts else similar, repeats)


def _evaluate(
    parts: Parts, settings: TrainSettings, chosen: _Chosen, search: Search | None, on_progress: OnStage
) -> tuple[Evaluation | None, str]:
    assert settings.split is not None  # noqa: S101 -- there are parts
    if not (parts.train.nnz and parts.test.nnz):
        return None, (
            f"The split {settings.split.kind} of {parts.train.nnz + parts.test.nnz:,} pairs leaves none to learn from, "
            "or none to test on: no evaluation."
        )
    best = [search.trials[each].params for each in search.best_of_each] if search else []
    baselines = list({engine_of(each): each for each in (*BASELINES, *best, chosen.recent)}.values())
    measured = evaluate_parts(
        parts,
        chosen.params,
        on_iteration=partial(on_progress, "evaluate"),
        k=settings.k,
        baselines=baselines,
        popular=chosen.recent,
        similar=chosen.similar,
    )
    return replace(measured, split=settings.split), ""


def _fit(
    interactions: Interactions,
    matrix: Matrix,
    settings: TrainSettings,
    chosen: _Chosen,
    on_iteration: Callable[[int, int], None],
) -> Model:
    segments = interactions.segments
    length = settings.popular_length
    recent = chosen.recent.half_life_days
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
    if known is None:
        return None
    users = pl.DataFrame({"user": user_ids}, schema={"user": pl.String})
    return users.join(known, on="user", how="left", maintain_order="left").get_column("segment").to_list()


def _search(
    learnable: Learnable, settings: TrainSettings, trials: Path, report: OnStage, on_notice: Notice
) -> Search | None:
    """Search on the training part; None if there are too few pairs."""
    search = tune(
        *learnable,
        settings.split or SplitOptions("by-item" if learnable[1] is None else "by-time"),
        settings.tuning or TuneOptions(),
        k=settings.k,
        defaults=settings.params if isinstance(settings.params, ALSParams) else None,
        kept=trials,
        evaluated=settings.split is not None,
        on_trial=partial(report, "tune"),
        on_notice=on_notice,
    )
    if search is not None and not search.trials:
        raise SettingError("the search has no time or memory for any cell: raise --tune SECONDS, or give --no-tune")
    return search


def _split(settings: TrainSettings, matrix: Matrix, on_notice: Notice) -> tuple[TrainSettings, Parts | None]:
    """Return *settings* with the split that the data allow, and its parts."""
    if settings.split is None:
        return settings, None
    everything = matrix.user_items, matrix.history
    core = {"min_per_user": settings.min_per_user, "min_per_item": settings.min_per_item}
    wanted = SplitOptions(**asdict(settings.split) | core)
    is_auto = isinstance(settings.split, AutoSplit)
    drawn = replace(wanted, kind="by-item")
    if is_auto and matrix.history is None:
        wanted = drawn
        on_notice("the data have no times, so the test is a random draw, which flatters; name them with --time-column")
    parts = split(*everything, wanted)
    tested = int(np.count_nonzero(np.diff(parts.test.indptr)))
    if is_auto and wanted.in_time and not (tested >= _FEWEST_TESTED and parts.train.nnz):
        wanted = drawn
        parts = split(*everything, drawn)
        on_notice(f"a cut in time leaves {tested} users to test, so the test is a random draw; --split by-time insists")
    return replace(settings, split=wanted), parts


def _recent(learnable: Learnable, settings: TrainSettings, search: Search | None, trials: Path) -> PopularityParams:
    if search is not None and search.popular.half_life_days is not None:
        return search.popular
    if settings.split is None or not settings.split.in_time:
        return PopularityParams()
    found = tune(*learnable, settings.split, TuneOptions(engine="popularity"), k=settings.k, kept=trials)
    return PopularityParams() if found is None else found.popular


def _description(interactions: Interactions, settings: TrainSettings) -> dict[str, Any]:
    times = interactions.time_range
    found = {name: getattr(interactions, name) for name in ("rows", "left_out", "fingerprint", "notes")}
    return found | {
        "source": named_paths(settings.data),
        "titles": None if settings.titles is None else named_paths([settings.titles]),
        "time_range": None if times is None else [time.isoformat() for time in times],
        "columns": asdict(interactions.columns),
        "where": list(settings.where),
        "event_weights": None if settings.event_weights is None else dict(settings.event_weights),
        "half_life_s": None if settings.half_life is None else settings.half_life.total_seconds(),
        **{name: getattr(settings, name) for name in ("weighting", "min_per_user", "min_per_item")},
    }


@contextmanager
def _stage(name: str, seconds: dict[str, float], on_progress: OnStage) -> Iterator[None]:
    on_progress(name, 0, 1)
    with timed(seconds, name):
        yield
    on_progress(name, 1, 1)
