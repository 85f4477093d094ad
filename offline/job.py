"""What programs call: train a model, publish its lists, or do both as a job that can be killed and resumed."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from time import time
from typing import Any, get_args, get_type_hints

import numpy as np

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.evaluation import BASELINES, Evaluation, evaluate, evaluate_parts, require_seeds
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.gates import failures, recorded
from hotplate.offline.input.columns import Columns
from hotplate.offline.input.files import Format, digest, named_paths
from hotplate.offline.input.filters import parse_filter
from hotplate.offline.input.interactions import Interactions, read_interactions
from hotplate.offline.input.matrix import History, KnownPairs, Matrix, UserItems, Weighting, known_pairs, to_matrix
from hotplate.offline.list_encoder import check_length
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.model import LEFT_OUT, Model, check_target, is_model, load, save
from hotplate.offline.publish import PublishSettings, Written, timed
from hotplate.offline.publish import publish as publish_lists
from hotplate.offline.registry import Registry
from hotplate.offline.rules import Rules
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import Params, as_options, described, engine_of, fit
from hotplate.offline.train.popularity import PopularityParams, most_popular, popular_by_segment
from hotplate.offline.train.tuning import Search, TuneOptions, digest_of, tune
from hotplate.stores.catalogue import DraftRef, ReleaseId, State
from hotplate.stores.connect import run_on
from hotplate.stores.errors import CanaryRunning, ReleaseConflict
from hotplate.stores.folders import LOCK, flush, take_lock
from hotplate.stores.lifecycle import activate, new_id, prune
from hotplate.stores.manifest import Manifest
from hotplate.stores.runs import claim, give_up, held
from hotplate.stores.store import Store
from hotplate.stores.verification import load_manifest

# After a cut in time there must be so many users to test, or the split is drawn at random.
_FEWEST_TESTED = 10

# A program that a killed attempt was starting holds the lock of its folder until it has started.
_STARTING_S = 2.0
_STATE, _STATE_FORMAT = "state.json", 1
_MODEL = "model-"

Progress = Callable[[str, int, int], None]
Notice = Callable[[str], None]


class AutoSplit(SplitOptions):
    """A split by time, but by item if the data have no times, or too few users after the cut."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The options of a training, whose data lie at *path* and in the files *more*; lives as long as the command.

    There is no evaluation if the *split* is None, and no split if the *test* has files of its own. With *tuning*,
    *params* are the defaults of a search.
    """

    path: Path | str
    more: Sequence[Path | str] = ()
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
    seeds: int = 1
    k: int = 10
    params: Params = field(default_factory=ALSParams)
    tuning: TuneOptions | None = None
    popular_length: int = 100
    test: Sequence[Path] = ()

    @property
    def data(self) -> list[Path]:
        """All files and folders that are learnt from."""
        return [Path(self.path), *map(Path, self.more)]

    def __post_init__(self) -> None:
        """Raise SettingError for what could only fail once much is done."""
        check_length(self.k, "k")
        for text in self.where:
            parse_filter(text)
        if self.test and self.seeds > 1:
            raise SettingError(
                "Several seeds are of splits that are drawn, but test data are given; leave out --seeds."
            )
        if self.split is not None and not self.test:
            require_seeds(self.split, self.seeds)


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training did: *evaluation* is None when there was none, and then *note* says why.

    Likewise *search*, the one for the parameters, and *tuning_note*. *model* is the one that was saved; *seconds* are
    wall time by stage.
    """

    out: Path
    model: Model
    evaluation: Evaluation | None
    note: str | None
    search: Search | None
    tuning_note: str | None
    seconds: dict[str, float]

    @property
    def warning(self) -> str | None:
        """Say which baseline ranks better than the model on the test, and how to get it; None if none does."""
        evaluation = self.evaluation
        if evaluation is None or not evaluation.baselines:
            return None
        lead, best = min(zip(evaluation.leads, evaluation.baselines, strict=True), key=lambda pair: pair[0].ndcg)
        if lead.ndcg >= 0:
            return None
        certain = lead.interval is not None and lead.interval[1] < 0
        return (
            f"{described(best.params)} ranks better than this model on the test: nDCG@{evaluation.k} "
            f"{best.metrics.ndcg:.4f} against {evaluation.model.metrics.ndcg:.4f}"
            f"{'' if certain else ', too little to be certain'}; train with {as_options(best.params)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything but the model's numbers as plain JSON values."""
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
            "warning": self.warning,
            "note": self.note,
            "tuning": self.model.tuning,
            "tuning_note": self.tuning_note,
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        }


def train(
    settings: TrainSettings,
    out: Path | str,
    on_progress: Progress = lambda _stage, _done, _total: None,
    on_notice: Notice = lambda _text: None,
) -> TrainReport:
    """Train on the interactions that *settings* name and write the model folder *out*, replacing a model that is there.

    *on_progress* is called with (stage, done, total): read, matrix, tune, evaluate, fit, save, in this order; within
    tune once per trial, within evaluate and fit once per iteration; *on_notice* with a sentence on what a search will
    cost. Raises DataError when the data, the settings or *out* cannot be used; no model is written then.

    Finished parts lie next to *out* until the model is saved, and are not done again after a kill:

        .NAME.kept/trials.jsonl          the trials of a search
        .NAME.kept/evaluation-KEY.json   the evaluation
        .NAME.kept/fitted-KEY/           a model folder of the final fit

    KEY names the data, the settings, the parameters and the versions of libraries that they belong to.
    """
    out, seconds = Path(out), dict[str, float]()
    check_target(out)
    with _stage("read", seconds, on_progress):
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
    with _stage("matrix", seconds, on_progress):
        try:
            matrix = to_matrix(interactions.log, settings.min_per_user, settings.min_per_item, interactions.weighing)
        except DataError as error:
            raise DataError(f"{settings.path}: {error}") from error
        interactions = replace(interactions, log=interactions.log.clear())  # the matrix has it now
        settings, learnable = _split(settings, matrix, on_notice)
        standing = matrix.standing()
        judged = standing if settings.test else matrix  # before a cut there are users whose pairs were cancelled later
        test, about_test = _read_test(interactions, judged, settings) if settings.test else (None, None)
    folder = out.resolve().with_name(f".{out.resolve().name}.kept")
    journal = folder / "trials.jsonl"
    search, tuning_note = None, "The parameters were not searched, as they were named or --no-tune was given."
    if settings.tuning is not None:
        with _stage("tune", seconds, on_progress):
            pairs = int(matrix.user_items.nnz)
            search, tuning_note = _search(pairs, learnable, settings, journal, report=on_progress, on_notice=on_notice)
    params = search.trials[search.best].params if search else settings.params
    recent = _recent(learnable, settings, search, journal)
    best = [search.trials[each].params for each in search.best_of_each] if search else []
    baselines = list({engine_of(each): each for each in (*BASELINES, *best, recent)}.values())
    data = _description(interactions, settings) | {"test": about_test}
    evaluation, note = None, "No evaluation was requested."
    given = settings, params, baselines, data, interactions.titles
    key = digest_of(matrix.user_items, matrix.history, *given)
    if settings.test or settings.split is not None:
        with _stage("evaluate", seconds, on_progress):
            how: dict[str, Any] = {"k": settings.k, "baselines": baselines, "popular": recent}
            how["on_iteration"] = partial(on_progress, "evaluate")
            evaluation, note = _kept_evaluation(
                folder / f"evaluation-{key}.json", lambda: _evaluate(judged, test, params, settings, how)
            )

    def learn() -> Model:
        rows, length = interactions.segments, settings.popular_length
        segments = {} if rows is None else popular_by_segment(rows, standing.item_ids, length)
        return Model(
            ranker=fit(standing.user_items, params, partial(on_progress, "fit"), times=standing.times),
            matrix=standing,
            titles={item: interactions.titles[item] for item in standing.item_ids if item in interactions.titles},
            popular=most_popular(standing, length, recent.half_life_days),
            segments=segments,
            params=params,
            metrics=evaluation.to_json() if evaluation else None,
            data=data,
            created_at=datetime.now(UTC),
            tuning=search.to_json() if search else None,
            test=None if test is None else test.user_items,
            popular_half_life_days=recent.half_life_days,
        )

    with _stage("fit", seconds, on_progress):
        model = _kept_model(folder / f"fitted-{key}", learn)
    with _stage("save", seconds, on_progress):
        save(model, out)
        shutil.rmtree(folder, ignore_errors=True)  # another training of the same model may have removed it
    return TrainReport(
        out, model, evaluation, None if evaluation else note, search, None if search else tuning_note, seconds
    )


def _kept_evaluation(path: Path, measure: Callable[[], tuple[Evaluation | None, str]]) -> tuple[Evaluation | None, str]:
    """Return the evaluation that is kept, or make one and keep it."""
    with suppress(OSError, ValueError):
        return _revived(Evaluation, json.loads(path.read_bytes())), ""
    evaluation, note = measure()
    if evaluation is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The nDCG of each user, an array, is left out: the leads are made of it already.
        path.write_text(json.dumps(asdict(evaluation), default=lambda each: each.item() if each.ndim == 0 else None))
    return evaluation, note


def _kept_model(path: Path, learn: Callable[[], Model]) -> Model:
    """Return the model that is kept, or learn it and keep it."""
    with suppress(DataError):
        return load(path)
    model = learn()
    shutil.rmtree(path, ignore_errors=True)  # of one that was being removed a part may be left
    save(model, path)
    return model


def _revived(kind: Any, value: Any) -> Any:  # noqa: ANN401 -- any type
    """Return plain JSON values as *kind* again: a dataclass, or what its fields are made of."""
    if isinstance(value, list):
        return tuple(_revived(get_args(kind)[0], each) for each in value)
    if not isinstance(value, dict):
        return value
    for each in (kind, *get_args(kind)):
        if is_dataclass(each) and {one.name for one in fields(each)} == value.keys():
            hints = get_type_hints(each)
            return each(**{name: _revived(hints[name], one) for name, one in value.items()})  # type: ignore[operator]  # a class
    return {key: _revived(get_args(kind)[1], each) for key, each in value.items()}


Learnable = tuple[UserItems, History | None]


def _search(
    pairs: int, learnable: Learnable, settings: TrainSettings, journal: Path, *, report: Progress, on_notice: Notice
) -> tuple[Search | None, str]:
    """Search for parameters on what the evaluation learns from, never on its test; or say why there was no search."""
    assert settings.tuning is not None  # noqa: S101 -- `train` has looked
    most = settings.tuning.max_pairs
    if most is not None and pairs >= most:
        return None, f"{pairs:,} pairs are too many to search for parameters unless asked; --tune 0 does."
    wanted = settings.split or SplitOptions("by-item" if learnable[1] is None else "by-time")
    runs = 1 if settings.test else 0 if settings.split is None else settings.seeds * len(wanted.draws)
    search = tune(
        *learnable,
        wanted,
        settings.tuning,
        k=settings.k,
        defaults=settings.params if isinstance(settings.params, ALSParams) else None,
        journal=journal,
        evaluations=runs,
        on_trial=partial(report, "tune"),
        on_notice=on_notice,
    )
    return search, f"{pairs:,} pairs are too few to hold some back, so the parameters were not searched."


def _split(settings: TrainSettings, matrix: Matrix, on_notice: Notice) -> tuple[TrainSettings, Learnable]:
    """Return the split that the data allow, with their core, and what the evaluation learns from: all before its test.

    If it is another split than the default, a notice says so.
    """
    everything = matrix.user_items, matrix.history
    if settings.split is None:
        return settings, everything
    core = {"min_per_user": settings.min_per_user, "min_per_item": settings.min_per_item}
    wanted, is_auto = SplitOptions(**asdict(settings.split) | core), isinstance(settings.split, AutoSplit)
    drawn = replace(wanted, kind="by-item")
    if settings.test:  # only the search splits
        return replace(settings, split=drawn if is_auto and matrix.history is None else wanted), everything
    if is_auto and matrix.history is None:
        wanted = drawn
        on_notice(
            "the data have no times, so the lists are tested on a random draw, which flatters: a model learns from "
            "what came later; name the times with --time-column"
        )
    parts = split(*everything, wanted)
    tested = int(np.count_nonzero(np.diff(parts.test.indptr)))
    if is_auto and wanted.in_time and not (tested >= _FEWEST_TESTED and parts.train.nnz):
        wanted, parts = drawn, split(*everything, drawn)
        on_notice(
            f"a cut in time leaves {tested} users to test, so the lists are tested on a random draw, which flatters; "
            "--split by-time does it all the same"
        )
    return replace(settings, split=wanted), (parts.train, parts.history)


def _recent(learnable: Learnable, settings: TrainSettings, search: Search | None, journal: Path) -> PopularityParams:
    """Return how popularity is counted: with the half-life that ranks best in a split by time."""
    if search is not None and search.popular.half_life_days is not None:
        return search.popular
    if settings.split is None or not settings.split.in_time or settings.test:
        return PopularityParams()
    found = tune(*learnable, settings.split, TuneOptions(engine="popularity"), k=settings.k, journal=journal)
    return PopularityParams() if found is None else found.popular


def _evaluate(
    matrix: Matrix, test: KnownPairs | None, params: Params, settings: TrainSettings, how: dict[str, Any]
) -> tuple[Evaluation | None, str]:
    """Evaluate on the test files or a split, with *how* of `evaluate_parts`; or say why not."""
    if test is not None:
        note = f"No pair of {named_paths(settings.test)} can be tested on, so there was no evaluation."
        parts = Parts.of(matrix.user_items, test.user_items, matrix.history)
        return (evaluate_parts(parts, params, **how) if test.new else None), note
    assert settings.split is not None  # noqa: S101 -- `train` has looked
    note = (
        f"The split {settings.split.kind} of {matrix.user_items.nnz:,} pairs leaves none to learn from, or none to "
        "test on, so there was no evaluation."
    )
    return evaluate(matrix, params, settings.split, seeds=settings.seeds, **how), note


def _read_test(
    interactions: Interactions, matrix: Matrix, settings: TrainSettings
) -> tuple[KnownPairs, dict[str, Any]]:
    """Read the test files by the columns of the data; also returned is what the model folder says of them."""
    read = read_interactions(
        *settings.test,
        columns=replace(interactions.columns, title=None, segment=None),
        form=settings.form,
        # Beside segments of events there may be files without a column of events, as the test is.
        event_weights=settings.event_weights if interactions.columns.event else None,
        where=settings.where,
        weighting=settings.weighting,
    )
    known = known_pairs(read.log, matrix)
    return known, _read_of(read, settings.test) | {
        "pairs": known.new,
        "pairs_left_out": known.left_out,
        "unknown_users": known.unknown_users,
        "unknown_items": known.unknown_items,
    }


def _description(interactions: Interactions, settings: TrainSettings) -> dict[str, Any]:
    """Return what the model folder says about its data, so the same training can be run again."""
    times = interactions.time_range
    return _read_of(interactions, settings.data) | {
        "titles": None if settings.titles is None else str(settings.titles),
        "time_range": None if times is None else [time.isoformat() for time in times],
        "columns": asdict(interactions.columns),
        "where": list(settings.where),
        "event_weights": None if settings.event_weights is None else dict(settings.event_weights),
        "half_life_s": None if settings.half_life is None else settings.half_life.total_seconds(),
        **{name: getattr(settings, name) for name in ("weighting", "min_per_user", "min_per_item")},
    }


def _read_of(interactions: Interactions, paths: Sequence[Path]) -> dict[str, Any]:
    """Return what the model folder says of each reading."""
    found = {name: getattr(interactions, name) for name in ("rows", "left_out", "fingerprint", "notes")}
    return {"source": named_paths(paths), **found}


@contextmanager
def _stage(name: str, seconds: dict[str, float], on_progress: Progress) -> Iterator[None]:
    on_progress(name, 0, 1)
    with timed(seconds, name):
        yield
    on_progress(name, 1, 1)


def publish(
    model: Model | Path | str,
    store: str | Store,
    settings: PublishSettings | None = None,
    lists: ListSettings | None = None,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Written:
    """Compute every list of *model* (or of the model folder of that path), publish them as one release, and prune.

    *store* is a URL, or a Store that nothing has used yet, which is closed at the end. Readers see all of the release,
    or nothing of it. *on_progress* is called with (lists written, lists in all). Raises GateFailed or CanaryRunning if
    the release was written and is not live; DataError for what is not a model; SettingError for gates that cannot be
    judged; StoreError if the store fails.
    """
    loaded = model if isinstance(model, Model) else load(Path(model))
    source = ModelLists(loaded, lists or ListSettings()).measure()
    written = run_on(store, lambda it: publish_lists(source, it, settings, on_progress=on_progress))
    if written.refused is not None:
        raise written.refused
    return written


def _write(source: ModelLists, store: str, settings: PublishSettings) -> Written:
    return run_on(store, lambda it: publish_lists(source, it, settings))


@dataclass(frozen=True, slots=True)
class Registration:
    """How a run registers its model: as the next version of *name*, which gets *stage* if gates let it through."""

    name: str
    registry: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    stage: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What a scheduled run does; lives as long as the attempts of the process.

    name     what it is called in the summary and in metrics
    store    a URL
    rules    reads the rules of the lists from their files, once the model is there
    inputs   the files and folders that are read; if none of their bytes has changed, nothing is done
    options  a digest of everything else; if that has changed, a new run begins
    """

    name: str
    store: str
    training: TrainSettings
    publishing: PublishSettings
    lists: ListSettings
    rules: Callable[[], Rules]
    registration: Registration | None
    inputs: Sequence[Path]
    options: str


@dataclass(frozen=True, slots=True)
class Run:
    """What is recorded of one run; a value, which each step replaces.

    id        empty before the first run
    options   a digest of everything that it was given
    inputs    a digest of the files that it reads
    release   what it writes, chosen before anything is written
    seconds   wall time by step, of all attempts together; no second is in two steps
    outcome   `published` or `refused`, and None until it has ended; *summary* is what it said then
    """

    id: str
    options: str
    inputs: str
    release: ReleaseId
    seconds: dict[str, float] = field(default_factory=dict)
    outcome: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """The folder of a job, which is this process's alone, and how far it has come; lives as long as the attempt.

        DIR/.lock        locked (flock) for as long as a process works here
        DIR/state.json   the run that was begun last, replaced at each step
        DIR/model-ID     what it has trained; once it is there, it is not trained again

    Everything else that a run has done is in the store's catalogue, under the id that the run chose for its release. So
    a run that was killed goes on where it was, and ends in the same release. DataError if the record cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.run, self.succeeded_at = _read_state(path / _STATE)
        """The run that was begun last, and when one last succeeded, in seconds since 1970."""

    @property
    def model(self) -> Path:
        """Where the model of the last run is, or will be."""
        return self._path / f"{_MODEL}{self.run.id}"

    def record(self, run: Run) -> None:
        """Replace what is recorded, so after a power cut either is there."""
        self.run = run
        new = self._path / f".{_STATE}.new"
        state = {"format": _STATE_FORMAT, "run": asdict(run), "succeeded_at": self.succeeded_at}
        new.write_text(json.dumps(state, indent=2) + "\n")
        flush(new)
        new.replace(self._path / _STATE)
        flush(self._path)

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, float]]:
        """Record how long a step of the last run took, together with what it took before it was cut off.

        What the block puts into the yielded dict are steps within this one, which is then only what is left of it.
        """
        within, whole = dict[str, float](), dict[str, float]()
        try:
            with timed(whole, name):
                yield within
        finally:
            took = within | {name: whole[name] - sum(within.values())}
            before = self.run.seconds
            added = {each: round(before.get(each, 0.0) + seconds, 3) for each, seconds in took.items()}
            self.record(replace(self.run, seconds=before | added))

    def finish(self, summary: dict[str, Any]) -> None:
        """Record how the last run ended, and remove the models of those before it."""
        if summary["outcome"] == "published":
            self.succeeded_at = time()
        self.record(replace(self.run, outcome=summary["outcome"], summary=summary))
        self.sweep()

    def sweep(self) -> None:
        """Remove all models but that of the last run, and what was left of any that was being written."""
        for folder in [each for dots in ("", ".") for each in self._path.glob(f"{dots}{_MODEL}*")]:
            if folder != self.model:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def opened(path: Path, wait_s: float = 0.0) -> Iterator[RunFolder]:
    """Lock the folder *path*, which is made if there is none; DataError if another has it for *wait_s*."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DataError(f"{path} is not a folder; name another for what a run has done so far, with --work.") from error
    try:
        lock = take_lock(path / LOCK, 0o600, max(wait_s, _STARTING_S))
    except TimeoutError as error:
        raise DataError(f"Another run works in {path}; wait for its end, or give --wait SECONDS.") from error
    try:
        yield RunFolder(path)
    finally:
        os.close(lock)


class Attempt:
    """One attempt to bring a job to its end; *summary* is what is known of it, however that comes.

    *train*, *measure* and *write* do the long steps, for those who want to show them; *write* publishes lists in the
    store of that URL. The end of another run, in the folder or in the store, is waited for *wait_s* seconds.
    """

    def __init__(
        self,
        job: Job,
        wait_s: float = 0.0,
        keep_ready_s: float | None = None,
        *,
        train: Callable[[TrainSettings, Path], TrainReport] = train,
        measure: Callable[[ModelLists], ModelLists] = ModelLists.measure,
        write: Callable[[ModelLists, str, PublishSettings], Written] = _write,
    ) -> None:
        self.summary: dict[str, Any] = {"pipeline": job.name, "outcome": "failed"}
        self._job, self._wait_s, self._keep_ready_s = job, wait_s, keep_ready_s
        self._train, self._measure, self._write = train, measure, write

    def make(self, path: Path) -> dict[str, Any]:
        """Do what is left to do, step by step, record each in the folder *path*, and return the summary."""
        job = self._job
        with opened(path, self._wait_s) as folder:
            self.summary["succeeded_at"] = folder.succeeded_at
            inputs = digest((str(file), file) for each in job.inputs for file in _files(each))
            run = run_on(job.store, partial(self._run_of, folder.run, inputs))
            if run is not folder.run:
                folder.sweep()  # what was trained before the last one
                folder.record(run)
            if run.outcome is None:
                self._finish(folder)
            else:
                self.summary |= run.summary
                if run.outcome == "published":
                    folder.finish(run.summary)
                    self.summary["outcome"] = "unchanged"
            self.summary["succeeded_at"] = folder.succeeded_at
        return self.summary

    async def _run_of(self, last: Run, inputs: str, store: Store) -> Run:
        """Return *last* if that is the run to go on with, or nothing is to do after it; else a new one."""
        if (last.options, last.inputs) == (self._job.options, inputs):
            found = await store.catalogue()
            # A new store in its place serves nothing, and lacks what the last run wrote.
            if last.outcome is None or found.live or any(entry.id == last.release for entry in found.releases):
                return last
        elif last.id and last.outcome is None:
            await give_up(store, last.id, last.release)
        return Run(secrets.token_hex(4), self._job.options, inputs, await new_id(store))

    def _finish(self, folder: RunFolder) -> None:
        job, run = self._job, folder.run
        self.summary |= {"run": run.id, "release": run.release, "model": str(folder.model), "inputs": run.inputs}
        draft = self._claim(run)
        if draft is not None and not is_model(folder.model):
            with folder.step("train") as within, held(job.store, draft):
                within.update(self._train(job.training, folder.model).seconds)
            draft = self._claim(run)
        if job.registration is not None:
            with folder.step("register"):
                self.summary["registered"] = _register(job.registration, folder)
        manifest, held_back = self._publish(folder, draft)
        with folder.step("prune"):
            erased = run_on(job.store, lambda it: prune(it, keep=job.publishing.keep, keep_ready_s=self._keep_ready_s))
        summary = self.summary | _result(manifest, held_back) | {"erased": erased, "seconds": folder.run.seconds}
        if job.registration is not None:
            registry, reference = Registry(job.registration.registry), self.summary["registered"]
            registry.record_release(reference, job.store, manifest.release)
            if job.registration.stage and summary["outcome"] == "published":
                registry.change(reference, stage=job.registration.stage)
        if held_back is None:  # else the next attempt goes on from here
            folder.finish(summary)
        self.summary |= summary

    def _publish(self, folder: RunFolder, draft: DraftRef | None) -> tuple[Manifest, CanaryRunning | None]:
        """Write the release, and make it live if gates and canary let it; also returned is how a canary held it back.

        One that was written before is not written again.
        """
        job, run = self._job, folder.run
        if draft is None:
            with folder.step("activate"):
                return run_on(job.store, partial(self._activate, run))
        with folder.step("measure") as within, held(job.store, draft):
            with timed(within, "load"):
                lists = ModelLists(load(folder.model), replace(job.lists, rules=job.rules()))
            self._measure(lists)
        draft = self._claim(run)
        try:
            with folder.step("publish") as within:
                written = self._write(lists, job.store, replace(job.publishing, resume=draft))
                within.update(written.steps)
        except ReleaseConflict:  # begun with other lists, by another version say: the next attempt begins again
            run_on(job.store, lambda it: give_up(it, run.id, run.release))
            raise
        return written.result.manifest, written.result.held_back

    async def _activate(self, run: Run, store: Store) -> tuple[Manifest, CanaryRunning | None]:
        """Make a release live that was committed when the run was cut off; what became of it since stays."""
        entry = (await store.catalogue()).find(run.release)
        manifest = await load_manifest(store, entry.ref)
        if entry.state is State.READY and self._job.publishing.activate and not _refusal(manifest):
            try:
                await activate(store, run.release, end_canary=self._job.publishing.end_canary)
            except CanaryRunning as error:
                return manifest, error
        return manifest, None

    def _claim(self, run: Run) -> DraftRef | None:
        return run_on(self._job.store, lambda it: claim(it, run.id, run.release, self._wait_s))


def _files(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def _read_state(state: Path) -> tuple[Run, float | None]:
    try:
        fields = json.loads(state.read_bytes())
        if fields["format"] != _STATE_FORMAT:
            raise DataError(
                f"{state} has the format {fields['format']!r}, and this hotplate reads {_STATE_FORMAT}; remove it."
            )
        return Run(**fields["run"]), fields["succeeded_at"]
    except FileNotFoundError:
        return Run("", "", "", ReleaseId("")), None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state} cannot be read ({error}); remove it, and a run begins again.") from error


def _register(wanted: Registration, folder: RunFolder) -> str:
    """Add the model to the registry, unless an earlier attempt did, and return NAME@VERSION."""
    registry, run = Registry(wanted.registry), folder.run.id
    for entry in registry.entries():
        if (entry.name, entry.tags.get("run")) == (wanted.name, run):
            return entry.reference
    return registry.register(folder.model, wanted.name, {**wanted.tags, "run": run}).reference


def _result(manifest: Manifest, held_back: CanaryRunning | None) -> dict[str, Any]:
    """Return what a release is worth, as the summary says it."""
    measured = (manifest.about.get("metrics") or {}).get("model", {})
    found: dict[str, Any] = {
        "outcome": "published",
        "metrics": {name: value for name, value in measured.items() if isinstance(value, int | float)},
        "gates": [asdict(verdict) for verdict in recorded(manifest)[1]],
        "lists": manifest.counts,
    }
    if sentence := _refusal(manifest) or str(held_back or ""):
        found |= {"outcome": "refused", "error": sentence}
    return found


def _refusal(manifest: Manifest) -> str:
    """Say why gates keep a release from going live; nothing if they do not."""
    forced, verdicts = recorded(manifest)
    failed = "" if forced else failures(verdicts)
    by_hand = f"to make it so all the same: hotplate releases activate {manifest.release}"
    return failed and f"{failed}; release {manifest.release} was written and is not live; {by_hand}"
