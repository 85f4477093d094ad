"""`make quality`: measures lists on public data, by time and at random.

Each cut and random draw is measured by a process of one thread, and kept in KEPT until the code or the data change, so
that a run which was stopped goes on.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from hotplate.offline.evaluate.evaluation import fit_parts, recommend_all
from hotplate.offline.evaluate.metrics import (
    MetricInterval,
    fill_empty_lists,
    interval_of_mean,
    measure_users,
    with_interval,
)
from hotplate.offline.evaluate.records import EvaluationRecord, Lead, TuningRecord
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.input.matrix import Matrix, Weighing, to_matrix
from hotplate.offline.options import Columns
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import (
    Engine,
    Params,
    Ranker,
    described,
    params_from,
    recency_of,
    with_recency,
    without_recency,
)
from hotplate.offline.train.item_based import EASEParams, NeighbourParams
from hotplate.offline.train.popularity import PopularityParams, Recency, order_by_popularity, recent_popularity
from hotplate.offline.train.repeats import RepeatParams
from hotplate.offline.train.repeats import ndcg as ndcg_of_repeats
from hotplate.offline.train.similar import SIMILAR_GAMMA, SimilarParams, measure_similar
from hotplate.offline.train.similar import fit as fit_similar
from hotplate.report import markdown_page, markdown_table

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
PAGE = ROOT / "docs" / "evaluation.md"
KEPT = ROOT / ".quality"
# Users and items with fewer are left out.
LEAST_INTERACTIONS = 5
CORE_OPTIONS = ("--min-per-user", str(LEAST_INTERACTIONS), "--min-per-item", str(LEAST_INTERACTIONS))
# Shares of the log, by time; each is tested on its last quarter. The rules of the search were chosen on CHOSEN, and
# confirmed on the others.
PIECES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CHOSEN = (0.5, 0.7, 0.9)
# As in the literature, at 20 and 100 (Liang et al., 2018).
STRONG = ("--split", "held-out-users", "--test-share", "0.1")
FIXED_METHODS: dict[str, Params] = {
    "popularity": PopularityParams(),
    "TFIDF K=5": NeighbourParams(neighbours=5),
    "TFIDF K=100": NeighbourParams(neighbours=100),
    "EASE": EASEParams(),
    "ALS": ALSParams(),
}
RECENT_POPULARITY = "recent popularity"
SEARCHED_ALS = "searched ALS"
AS_TYPED = "as typed"  # the model that `hotplate train` chooses
LEAD = "lead over recent popularity"
# Simple methods that `train` has to match, for similar items and for lists that keep seen items.
COSINE = "cosine"
COSINE_RECENT = "cosine, recent popularity^0.25"
ENGINE_ALONE = "engine"
BY_OWN_COUNTS = "own counts"
SIMILAR_COLUMNS = (COSINE, COSINE_RECENT, AS_TYPED)
REPEAT_COLUMNS = (ENGINE_ALONE, BY_OWN_COUNTS, AS_TYPED)
# The engine then only breaks ties.
OWN_COUNTS = RepeatParams(120.0, 1_000.0)
HEADINGS = (
    ("data", "first pairs", "users", *FIXED_METHODS, RECENT_POPULARITY, SEARCHED_ALS, AS_TYPED, LEAD),
    (
        "data",
        "first pairs",
        *(f"similar: {name}" for name in SIMILAR_COLUMNS),
        *(f"repeats: {name}" for name in REPEAT_COLUMNS),
    ),
    ("data", "random draw, which flatters", "popularity", AS_TYPED),
)


@dataclass(frozen=True, slots=True)
class RandomSplit:
    """A random split, and the *metric* at *k* to show."""

    name: str
    metric: str
    options: tuple[str, ...] = ()
    k: int = 10


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set and how to read it."""

    name: str
    file: str
    columns: Columns = field(default_factory=Columns)
    where: tuple[str, ...] = ()


DRAWS = (
    RandomSplit("by item: nDCG@10", "ndcg", ("--split", "by-item")),
    RandomSplit("held-out users: recall@20", "recall_at_k", STRONG, 20),
    RandomSplit("held-out users: nDCG@100", "ndcg", STRONG, 100),
)
DATA_SETS = (
    DataSet("MovieTweetings", "movietweetings-100k/ratings.csv.gz"),
    DataSet(
        "Online Retail",
        "online-retail/online_retail.parquet",
        Columns(count="invoice_no"),
        ("quantity>0", "unit_price>0", r"stock_code~^\d{5}"),
    ),
)


class TrialRecord(msgspec.Struct, frozen=True):
    """One trial of a search."""

    engine: str
    params: dict[str, Any]
    ndcg: float


class SearchRecord(TuningRecord, frozen=True, kw_only=True):
    """The search of a training."""

    trials: list[TrialRecord]


class TrainingRecord(msgspec.Struct, frozen=True):
    """What `hotplate train --json` prints of the model and its quality."""

    engine: str
    params: dict[str, Any]
    evaluation: EvaluationRecord
    tuning: SearchRecord

    @property
    def chosen(self) -> Params:
        """The model's parameters."""
        return params_from(self.engine, self.params)

    def best(self, engine: Engine) -> Params:
        """Return the engine's best parameters."""
        trials = (trial for trial in self.tuning.trials if trial.engine == engine)
        return params_from(engine, max(trials, key=lambda trial: trial.ndcg).params)


class Trainings:
    """`hotplate train` on pieces and draws of one data set."""

    def __init__(self, data: DataSet, file: Path, folder: Path) -> None:
        self._data = data
        self._file = file
        self._folder = folder

    def report(self, *arguments: str) -> TrainingRecord:
        """Run the command; raises RuntimeError with its messages."""
        options = ("--weighting", "binary", "--out", f"{self._folder}/model", "--json")
        command = [sys.executable, "-m", "hotplate", "train", *arguments, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 -- our own
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return msgspec.json.decode(done.stdout, type=TrainingRecord)

    @cached_property
    def log(self) -> pl.DataFrame:
        """The rows used [user, item, weight, time], sorted."""
        read = read_interactions(self._file, columns=self._data.columns, where=self._data.where, weighting="binary")
        return read.log.with_columns(pl.col("user", "item").cast(pl.String)).sort("user", "item", "time")

    def write_piece(self, share: float) -> Path:
        """Write a piece of the log, its rows up to a time, to a Parquet file [user, item, time], and return its path.

        At that time *share* of all pairs of a user and an item have had their first row.
        """
        pairs = self.log.group_by("user", "item").agg(first=pl.col("time").min())
        first_times = pairs.get_column("first").sort()
        end = first_times[max(0, round(share * len(first_times)) - 1)]
        file = self._folder / f"first-{share:g}.parquet"
        self.log.filter(pl.col("time") <= end).select("user", "item", "time").write_parquet(file)
        return file


@dataclass(frozen=True, slots=True)
class Piece:
    """Figures of one piece, as served.

    ndcg     nDCG@10 by column; *half* of the interval of `as typed`, and its engine
    lead     nDCG of `as typed` minus recent popularity's, with the interval over users
    similar  hit rate@10 by method
    repeats  nDCG@10 of lists that keep seen items by method; empty without repeats
    """

    users: int
    ndcg: dict[str, float]
    half: float
    described: str
    lead: Lead
    similar: dict[str, float]
    repeats: dict[str, float]


def measure_piece(trainings: Trainings, share: float) -> Piece:
    """Train on the first *share* of the pairs as a user would type it, and measure other rankers on the same split.

    Columns of nDCG@10 are methods with fixed parameters, recent popularity, the best ALS of the search, and the model
    as typed, whose value is that of its report. Its lead is that over recent popularity, by user.
    """
    file = trainings.write_piece(share)
    report = trainings.report(str(file), *CORE_OPTIONS)
    evaluation = report.evaluation
    repeats = report.tuning.repeats

    # The split that the command makes with these options.
    log = pl.read_parquet(file).with_columns(weight=pl.lit(1.0))
    matrix = to_matrix(log, LEAST_INTERACTIONS, LEAST_INTERACTIONS, Weighing("binary"))
    options = SplitOptions("by-time", min_per_user=LEAST_INTERACTIONS, min_per_item=LEAST_INTERACTIONS)
    parts = split(matrix.user_items, matrix.history, options)
    popular = report.best("popularity")
    assert isinstance(popular, PopularityParams)  # noqa: S101 -- the engine says so

    columns = {**FIXED_METHODS, RECENT_POPULARITY: popular, SEARCHED_ALS: report.best("als"), AS_TYPED: report.chosen}
    rankers = _Rankers(parts)
    per_user = {name: _served_ndcg(parts, rankers.fitted(params), popular) for name, params in columns.items()}
    leads = per_user[AS_TYPED] - per_user[RECENT_POPULARITY]
    ndcg = {name: float(values.mean()) for name, values in per_user.items()}
    ndcg[AS_TYPED] = evaluation.as_served.ndcg

    similar = _similar_hit_rates(parts, popular)
    if evaluation.similar is not None:
        similar[AS_TYPED] = evaluation.similar.hit_rate
    return Piece(
        users=len(leads),
        ndcg=ndcg,
        half=_half_width(evaluation.as_served.intervals["ndcg"]),
        described=described(report.chosen),
        lead=Lead(float(leads.mean()), interval_of_mean(leads)),
        similar=similar,
        repeats={}
        if repeats is None
        else _repeats_ndcg(matrix, options, rankers.fitted(report.chosen), repeats.params),
    )


class _Rankers:
    """Fits rankers to the train part, once for parameters that differ in recency alone: it only multiplies scores."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._fitted: dict[Params, Ranker] = {}

    def fitted(self, params: Params) -> Ranker:
        """Return the ranker with these *params*, fitted to the train part."""
        recency = recency_of(params)
        plain = without_recency(params)
        if plain not in self._fitted:
            self._fitted[plain] = fit_parts(self._parts, plain)
        ranker = self._fitted[plain]
        if recency is None:
            return ranker
        return with_recency(ranker, recency.weights(self._parts.train, self._parts.train_times))


def _served_ndcg(parts: Parts, ranker: Ranker, popular: PopularityParams) -> npt.NDArray[np.float64]:
    """Return nDCG@10 per user, of *popular* items for users without a list."""
    counts = recent_popularity(parts.train, parts.train_times, popular.half_life_days)
    lists = fill_empty_lists(recommend_all(ranker, parts, 10), order_by_popularity(counts))
    return measure_users(lists, parts.test).values["ndcg"]


def _similar_hit_rates(parts: Parts, popular: PopularityParams) -> dict[str, float]:
    """Return the hit rate@10 of similar items by simple methods; 0 if it cannot be measured."""
    days = popular.half_life_days
    methods = {COSINE: SimilarParams()}
    if days is not None:
        methods[COSINE_RECENT] = SimilarParams(recency=Recency(days, SIMILAR_GAMMA))
    hit_rates = {}
    for name, params in methods.items():
        result = measure_similar(fit_similar(parts.train, params, parts.train_times), params, parts, 10)
        hit_rates[name] = result.hit_rate if result else 0.0
    return hit_rates


def _repeats_ndcg(matrix: Matrix, options: SplitOptions, typed: Ranker, params: RepeatParams) -> dict[str, float]:
    """Return nDCG@10 of lists of *typed* that keep seen items, tested on all choices after the cut."""
    parts = split(matrix.user_items, matrix.history, replace(options, repeats=True))
    methods = {ENGINE_ALONE: RepeatParams(weight=0.0), BY_OWN_COUNTS: OWN_COUNTS, AS_TYPED: params}
    return {name: ndcg_of_repeats(parts, typed, 10, method) for name, method in methods.items()}


def time_rows(data: DataSet, pieces: Mapping[float, Piece]) -> Iterator[Sequence[str]]:
    """Yield the rows of the table of nDCG@10 of one data set: one for each piece, and their mean with its interval.

    *pieces* are by the share of all pairs that they have; each share is a date at which the data are cut.
    """
    for share, piece in pieces.items():
        cells = [f"{value:.4f}" for value in piece.ndcg.values()]
        cells[-1] += f" ± {piece.half:.4f}, {piece.described}"
        role = "chosen" if share in CHOSEN else "confirmed"
        lead = with_interval(piece.lead.ndcg, piece.lead.interval)
        yield data.name, f"{share:.0%}, {role}", f"{piece.users:,}", *cells, lead
    means = [
        f"{np.mean([piece.ndcg[name] for piece in pieces.values()]):.4f}"
        for name in (*FIXED_METHODS, RECENT_POPULARITY, SEARCHED_ALS)
    ]
    typed = _mean_over_dates([piece.ndcg[AS_TYPED] for piece in pieces.values()])
    lead = _mean_over_dates([piece.lead.ndcg for piece in pieces.values()])
    yield data.name, "mean, ± over dates", "", *means, typed, lead


def _mean_over_dates(values: Sequence[float]) -> str:
    return with_interval(float(np.mean(values)), interval_of_mean(values))


def other_rows(data: DataSet, pieces: Mapping[float, Piece]) -> Iterator[Sequence[str]]:
    """Yield a row for each piece, with cells of the hit rates of similar items and of nDCG with repeats, by method."""
    for share, piece in pieces.items():
        similar = {name: f"{hit_rate:.4f}" for name, hit_rate in piece.similar.items()}
        repeats = {name: f"{ndcg:.4f}" for name, ndcg in piece.repeats.items()}
        yield (
            data.name,
            f"{share:.0%}",
            *(similar.get(name, "") for name in SIMILAR_COLUMNS),
            *(repeats.get(name, "") for name in REPEAT_COLUMNS),
        )


def _half_width(around: MetricInterval) -> float:
    low, high = around
    return (high - low) / 2


@dataclass(frozen=True, slots=True)
class Draw:
    """Figures of one random draw: its metric with *half* of the interval, popularity's, and the engine."""

    value: float
    half: float
    popularity: float
    described: str


def measure_draw(trainings: Trainings, drawn: RandomSplit) -> Draw:
    """Train on all pairs as a user would type it, with the options of a random split, and return its figures.

    *drawn* is the split, with the metric and the list length k of its column in the table.
    """
    report = trainings.report(str(trainings.write_piece(1.0)), *CORE_OPTIONS, *drawn.options, "-k", str(drawn.k))
    evaluation = report.evaluation
    popularity = evaluation.baselines.get("popularity", evaluation.model)
    return Draw(
        value=getattr(evaluation.model, drawn.metric),
        half=_half_width(evaluation.intervals[drawn.metric]),
        popularity=getattr(popularity, drawn.metric),
        described=described(report.chosen),
    )


def draw_rows(data: DataSet, draws: Mapping[str, Draw]) -> Iterator[Sequence[str]]:
    """Yield a row for each random draw."""
    for name, draw in draws.items():
        yield data.name, name, f"{draw.popularity:.4f}", f"{draw.value:.4f} ± {draw.half:.4f}, {draw.described}"


@dataclass(frozen=True, slots=True)
class Task:
    """One cut of *data*, by its share, or one random draw."""

    data: DataSet
    part: float | RandomSplit

    @property
    def name(self) -> str:
        """The name in messages."""
        part = self.part.name if isinstance(self.part, RandomSplit) else f"first {self.part:.0%}"
        return f"{self.data.name}, {part}"

    def measure(self, file: Path) -> Piece | Draw:
        """Measure in a folder of its own."""
        with tempfile.TemporaryDirectory() as folder:
            trainings = Trainings(self.data, file, Path(folder))
            if isinstance(self.part, RandomSplit):
                return measure_draw(trainings, self.part)
            return measure_piece(trainings, self.part)


def kept_or_measured(task: Task, file: Path) -> Piece | Draw:
    """Return the figures of an earlier run of the same code on the same data, or measure and keep them."""
    kept = KEPT / f"{_digest(task, file)}.json"
    if kept.exists():
        kind: type[Draw | Piece] = Draw if isinstance(task.part, RandomSplit) else Piece
        return msgspec.json.decode(kept.read_bytes(), type=kind)
    figures = task.measure(file)
    KEPT.mkdir(exist_ok=True)
    half_written = kept.with_suffix(".new")
    half_written.write_bytes(msgspec.json.encode(figures))
    half_written.rename(kept)
    return figures


def _digest(task: Task, file: Path) -> str:
    """Return a digest of the task, its data, and the code from the log to the figures."""
    offline = ROOT / "offline"
    sources = [offline / "training.py", offline / "quality.py"]
    for folder in ("input", "train", "evaluate"):
        sources += sorted((offline / folder).glob("*.py"))
    digest = blake2b(repr(task).encode(), digest_size=16)
    for source in (*sources, file):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def measure_all(tasks: Sequence[Task], data_at: Path) -> dict[Task, Piece | Draw]:
    """Measure all tasks in processes, one on each core, and return their figures; prints a line for each that ends.

    *data_at* is the folder of the data sets.
    """
    # The processes' libraries read it when they start.
    os.environ["OMP_NUM_THREADS"] = "1"
    started = perf_counter()
    figures: dict[Task, Piece | Draw] = {}
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(min(cores, len(tasks)), mp_context=get_context("spawn")) as processes:
        waiting = {processes.submit(kept_or_measured, task, data_at / task.data.file): task for task in tasks}
        for future in as_completed(waiting):
            task = waiting[future]
            figures[task] = future.result()
            minutes = (perf_counter() - started) / 60
            print(f"{len(figures)} of {len(tasks)} after {minutes:.1f} min: {task.name}", flush=True)
    return figures


def tables(data_sets: Sequence[DataSet], figures: Mapping[Task, Piece | Draw]) -> str:
    """Return the tables of the page as Markdown: nDCG by date, similar items and repeats, and random draws."""
    times = list[Sequence[str]]()
    others = list[Sequence[str]]()
    draws = list[Sequence[str]]()
    for data in data_sets:
        pieces: dict[float, Piece] = {}
        drawn: dict[str, Draw] = {}
        for part in (*PIECES, *DRAWS):
            measured = figures[Task(data, part)]
            if isinstance(measured, Piece) and isinstance(part, float):
                pieces[part] = measured
            elif isinstance(measured, Draw) and isinstance(part, RandomSplit):
                drawn[part.name] = measured
        times += time_rows(data, pieces)
        others += other_rows(data, pieces)
        draws += draw_rows(data, drawn)
    return "\n".join(map(markdown_table, HEADINGS, (times, others, draws)))


def main(arguments: Sequence[str]) -> int:
    """Print the tables, and write them into the docs if no data set is missing."""
    data_at = Path(arguments[0]) if arguments else DATA
    present = []
    for data in DATA_SETS:
        if (data_at / data.file).exists():
            present.append(data)
        else:
            print(f"{data.name} is skipped: {data_at / data.file} is not on this machine")
    if not present:
        return 0
    # Large cuts come first, as the last tasks run on few cores.
    largest_first: tuple[float | RandomSplit, ...] = (*sorted(PIECES, reverse=True), *DRAWS)
    tasks = [Task(data, part) for part in largest_first for data in reversed(present)]
    written = tables(present, measure_all(tasks, data_at))
    print(written)
    if len(present) == len(DATA_SETS):
        PAGE.write_text(markdown_page(PAGE.read_text(), written, "quality"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
