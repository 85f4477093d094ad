"""`make quality`: measures lists on public data, by time and at random.

Each cut and random draw is measured by a process of one thread.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import polars as pl

from hotplate.base.report import markdown_page, markdown_table
from hotplate.offline.evaluate.evaluation import fit_parts
from hotplate.offline.evaluate.metrics import MetricInterval, with_interval
from hotplate.offline.evaluate.model_report import ndcg_by_group
from hotplate.offline.evaluate.records import BaselineRecord, EvaluationRecord, SearchRecord
from hotplate.offline.evaluate.similar_hits import measure_similar
from hotplate.offline.evaluate.splits import SplitOptions, split
from hotplate.offline.input.history import Weighing
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.input.matrix import to_matrix
from hotplate.offline.options import Columns
from hotplate.offline.search.repeat_weights import ndcg as ndcg_of_repeats
from hotplate.offline.train.engine import Engine, Params, described, params_from
from hotplate.offline.train.popularity import PopularityParams, Recency
from hotplate.offline.train.repeats import RepeatParams
from hotplate.offline.train.similar import SIMILAR_GAMMA, SimilarParams
from hotplate.offline.train.similar import fit as fit_similar

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
PAGE = ROOT / "docs" / "evaluation.md"
# Of random draws and similar items: users and items with fewer are left out.
LEAST_INTERACTIONS = 5
CORE_OPTIONS = ("--min-per-user", str(LEAST_INTERACTIONS), "--min-per-item", str(LEAST_INTERACTIONS))
# Shares of the log, by time; each is tested on its last quarter.
PIECES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# As in the literature, at 20 and 100 (Liang et al., 2018).
STRONG = ("--split", "held-out-users", "--test-share", "0.1")
# Simple methods, as the evaluation of `hotplate train` names them: each with its best parameters of the search.
SIMPLE_METHODS = ("popularity", "recent popularity", "neighbours", "ease")
POPULARITIES = SIMPLE_METHODS[:2]
AS_TYPED = "as typed"  # the model that `hotplate train` chooses
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
    (
        "data",
        "first pairs",
        "users, new ones",
        *SIMPLE_METHODS,
        AS_TYPED,
        "lead over popularity",
        "lead over others",
        "returning users, popularity",
        "new users, popularity",
        "shared of 10, popularity",
        "half of all places, popularity",
    ),
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
        """Run `hotplate train` with *arguments*, and return what it prints; raises RuntimeError with its messages."""
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
        """Write the first part of the log to a Parquet file [user, item, time], and return its path.

        The part ends at the time at which *share* of all pairs of a user and an item have had their first row.
        """
        pairs = self.log.group_by("user", "item").agg(first=pl.col("time").min())
        first_times = pairs.get_column("first").sort()
        end = first_times[max(0, round(share * len(first_times)) - 1)]

        file = self._folder / f"first-{share:g}.parquet"
        self.log.filter(pl.col("time") <= end).select("user", "item", "time").write_parquet(file)
        return file


@dataclass(frozen=True, slots=True)
class Piece:
    """Figures of one piece of a log, of lists as they are served.

    evaluation  of the model that `hotplate train` chooses, and of simple methods
    described   engine and parameters of the model
    similar     hit rate@10 of similar items by method
    repeats     nDCG@10 by method of lists that keep seen items; empty if users choose nothing twice
    """

    evaluation: EvaluationRecord
    described: str
    similar: dict[str, float]
    repeats: dict[str, float]


def measure_piece(trainings: Trainings, share: float) -> Piece:
    """Run `hotplate train` on the first *share* of the log, and measure simple methods for other lists.

    The figures of users' lists are those that the command reports. Those of similar items and repeats are measured here
    on the same split.
    """
    file = trainings.write_piece(share)
    report = trainings.report(str(file))
    evaluation = report.evaluation
    tested = _TestedPiece(file, report.best("popularity"))

    similar = tested.similar_hit_rates()
    if evaluation.similar is not None:
        similar[AS_TYPED] = evaluation.similar.hit_rate

    repeats = dict[str, float]()
    if report.tuning.repeats is not None:
        repeats = tested.repeats_ndcg(report.chosen, report.tuning.repeats.params)
    return Piece(evaluation, described(report.chosen), similar, repeats)


class _TestedPiece:
    """A piece of a log, split as `hotplate train` splits it, to measure methods on its test part.

    *file* was written by `Trainings.write_piece`. *popular* is popularity with its best half-life.
    """

    def __init__(self, file: Path, popular: Params) -> None:
        log = pl.read_parquet(file).with_columns(weight=pl.lit(1.0))
        matrix = to_matrix(log, weighing=Weighing("binary"))
        options = SplitOptions("by-time")
        self._matrix = matrix
        self._options = options
        self._parts = split(matrix.user_items, matrix.history, options)
        self._half_life_days = popular.half_life_days if isinstance(popular, PopularityParams) else None

    def similar_hit_rates(self) -> dict[str, float]:
        """Return the hit rate@10 of similar items by method: the cosine of their users, alone and with recency.

        It is 0 if no test user has items in the train part. With recency, cosines are multiplied by a power of recent
        popularity.
        """
        parts = self._parts
        methods = {COSINE: SimilarParams()}
        if self._half_life_days is not None:
            methods[COSINE_RECENT] = SimilarParams(recency=Recency(self._half_life_days, SIMILAR_GAMMA))

        hit_rates = {}
        for name, params in methods.items():
            result = measure_similar(fit_similar(parts.train, params, parts.train_times), params, parts, 10)
            hit_rates[name] = 0.0 if result is None else result.hit_rate
        return hit_rates

    def repeats_ndcg(self, params: Params, repeats: RepeatParams) -> dict[str, float]:
        """Return nDCG@10 by method of lists that keep seen items, tested on all choices after the cut in time.

        The methods are the engine with *params* alone, users' own interactions alone, and both together (`as typed`):
        *repeats* says how much a user's earlier interactions with an item add to its score.
        """
        parts = split(self._matrix.user_items, self._matrix.history, replace(self._options, repeats=True))
        methods = {ENGINE_ALONE: RepeatParams(weight=0.0), BY_OWN_COUNTS: OWN_COUNTS, AS_TYPED: repeats}
        ranker = fit_parts(self._parts, params)
        return {name: ndcg_of_repeats(parts, ranker, 10, method) for name, method in methods.items()}


def time_rows(data: DataSet, pieces: Mapping[float, Piece]) -> Iterator[Sequence[str]]:
    """Yield the rows of a table of lists as served for one data set: a row for each piece, and one of their means.

    A piece is the first part of the data, up to a date. *pieces* are by their share of all pairs of user and item.
    """
    leads = list[tuple[float | None, float | None]]()
    for share, piece in pieces.items():
        record = piece.evaluation
        popular = _best_of(record, POPULARITIES)
        other = _best_of(record, SIMPLE_METHODS[2:])
        assert popular is not None  # noqa: S101 -- always measured
        leads.append((_relative_lead(popular), _relative_lead(other)))

        new = record.model.users - record.model.users_with_lists
        simple = (record.baselines.get(name) for name in SIMPLE_METHODS)
        yield (
            data.name,
            f"{share:.0%}",
            f"{record.model.users:,}, {new:,}",
            *("" if baseline is None else f"{baseline.as_served.ndcg:.4f}" for baseline in simple),
            f"{with_interval(record.as_served.ndcg, record.as_served.intervals.get('ndcg'))}, {piece.described}",
            _lead(popular),
            _lead(other),
            *_beside_popularity(record, popular),
        )

    means = [
        f"{100 * np.mean([lead for lead in column if lead is not None]):+.1f} %" for column in zip(*leads, strict=True)
    ]
    yield data.name, "mean lead", *([""] * (len(SIMPLE_METHODS) + 2)), *means, *([""] * 4)


def _best_of(record: EvaluationRecord, names: Sequence[str]) -> BaselineRecord | None:
    """Return the best of these baselines as served, None without any."""
    known = [record.baselines[name] for name in names if name in record.baselines]
    return max(known, key=lambda baseline: baseline.as_served.ndcg, default=None)


def _relative_lead(baseline: BaselineRecord | None) -> float | None:
    return None if baseline is None else baseline.model_leads_by.ndcg / baseline.as_served.ndcg


def _lead(baseline: BaselineRecord | None) -> str:
    if baseline is None:
        return ""
    return with_interval(baseline.model_leads_by.ndcg, baseline.model_leads_by.interval)


def _beside_popularity(record: EvaluationRecord, popular: BaselineRecord) -> Iterator[str]:
    """Yield nDCG by group of users, and how personal lists are, each beside that of *popular* lists.

    The groups are users with a list and those without.
    """
    lists = ndcg_by_group(record.model, record.as_served)
    beside = ndcg_by_group(popular, popular.as_served)
    for of_lists, of_popular in zip(lists, beside, strict=True):
        yield f"{of_lists:.4f}, {of_popular:.4f}"
    yield f"{record.model.shared_items or 0:.1f}, {popular.shared_items or 0:.1f}"
    yield f"{record.model.half_places or 0:.0f}, {popular.half_places or 0:.0f}"


def other_rows(data: DataSet, pieces: Mapping[float, Piece]) -> Iterator[Sequence[str]]:
    """Yield the rows of a table of similar items and of lists that keep seen items (repeats), for one data set.

    A piece is the first part of the data, up to a date. *pieces* are by their share of all pairs of user and item. The
    cell of a method that was not measured is empty.
    """
    for share, piece in pieces.items():
        similar = {name: f"{hit_rate:.4f}" for name, hit_rate in piece.similar.items()}
        repeats = {name: f"{ndcg:.4f}" for name, ndcg in piece.repeats.items()}
        yield (
            data.name,
            f"{share:.0%}",
            *(similar.get(name, "") for name in SIMILAR_COLUMNS),
            *(repeats.get(name, "") for name in REPEAT_COLUMNS),
        )


@dataclass(frozen=True, slots=True)
class Draw:
    """Figures of one random split, in the metric of its column.

    value       of the model that `hotplate train` chooses
    interval    of the value
    popularity  of the ranking by popularity
    described   engine and parameters of the model
    """

    value: float
    interval: MetricInterval
    popularity: float
    described: str


def measure_draw(trainings: Trainings, random_split: RandomSplit) -> Draw:
    """Run `hotplate train` on the whole log with the options of a random split, and return its figures."""
    all_pairs = trainings.write_piece(1.0)
    report = trainings.report(str(all_pairs), *CORE_OPTIONS, *random_split.options, "-k", str(random_split.k))
    evaluation = report.evaluation

    # Popularity is no baseline of itself, if the search has chosen it.
    popularity = evaluation.baselines.get("popularity", evaluation.model)
    return Draw(
        value=getattr(evaluation.model, random_split.metric),
        interval=evaluation.intervals[random_split.metric],
        popularity=getattr(popularity, random_split.metric),
        described=described(report.chosen),
    )


def draw_rows(data: DataSet, draws: Mapping[str, Draw]) -> Iterator[Sequence[str]]:
    """Yield a row for each random draw."""
    for name, draw in draws.items():
        yield data.name, name, f"{draw.popularity:.4f}", f"{with_interval(draw.value, draw.interval)}, {draw.described}"


Part = float | RandomSplit
# Of each piece, by its share, or random split of a data set.
AllFigures = Mapping[tuple[DataSet, Part], Any]


def measured(data: DataSet, part: Part, data_at: Path) -> Piece | Draw:
    """Return the figures of one piece or random split of *data*, whose file is in the folder *data_at*."""
    with tempfile.TemporaryDirectory() as folder:
        trainings = Trainings(data, data_at / data.file, Path(folder))
        return measure_draw(trainings, part) if isinstance(part, RandomSplit) else measure_piece(trainings, part)


def measure_all(data_sets: Sequence[DataSet], data_at: Path) -> AllFigures:
    """Measure all pieces and random splits of *data_sets*, in the folder *data_at*; prints a line for each that ends.

    There is a process of one thread for each core.
    """
    # The numerical libraries read this variable when a process starts.
    os.environ["OMP_NUM_THREADS"] = "1"

    started = perf_counter()
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as processes:
        # Large pieces come first, as the last tasks run on few cores.
        parts: list[Part] = [*sorted(PIECES, reverse=True), *DRAWS]
        tasks = {
            (data, part): processes.submit(measured, data, part, data_at)
            for part in parts
            for data in reversed(data_sets)
        }
        for done, future in enumerate(as_completed(tasks.values()), start=1):
            future.result()  # raises the task's error at once
            print(f"{done} of {len(tasks)} after {(perf_counter() - started) / 60:.1f} min", flush=True)

    return {part: future.result() for part, future in tasks.items()}


def tables(data_sets: Sequence[DataSet], figures: AllFigures) -> str:
    """Return the three tables of the page as Markdown: nDCG by date, similar items and repeats, and random draws.

    A repeat is an item that a user chose again. *figures* have those of all pieces and draws of *data_sets*.
    """
    times = list[Sequence[str]]()
    others = list[Sequence[str]]()
    draws = list[Sequence[str]]()
    for data in data_sets:
        pieces = {share: figures[data, share] for share in PIECES}
        times += time_rows(data, pieces)
        others += other_rows(data, pieces)
        draws += draw_rows(data, {drawn.name: figures[data, drawn] for drawn in DRAWS})
    return "\n".join(map(markdown_table, HEADINGS, (times, others, draws)))


def main(arguments: Sequence[str]) -> int:
    """Measure the data sets that are present, print the tables, and write them into the docs if none is missing.

    The first of *arguments* may be the folder of the data sets.
    """
    data_at = Path(arguments[0]) if arguments else DATA
    present = []
    for data in DATA_SETS:
        if (data_at / data.file).exists():
            present.append(data)
        else:
            print(f"{data.name} is skipped: {data_at / data.file} is not on this machine")
    if not present:
        return 0

    written = tables(present, measure_all(present, data_at))
    print(written)
    if len(present) == len(DATA_SETS):
        PAGE.write_text(markdown_page(PAGE.read_text(), written, "quality"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
