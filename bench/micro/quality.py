"""`python -m bench.micro.quality`: how good the lists are, on both data sets and every split, as the docs show it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from bench.micro.rounds import HOTPLATE
from bench.micro.training_data import DATA, RETAIL_OPTIONS
from bench.report import machine
from offline.evaluate.evaluation import evaluate_engine
from offline.evaluate.splits import SPLIT_KINDS, Parts, SplitKind, SplitOptions, split
from offline.input.matrix import Matrix, UserItems
from offline.model import load
from offline.train.als import ALSParams
from offline.train.ease import EASEParams
from offline.train.engine import Params
from offline.train.neighbours import NeighbourParams
from offline.train.popularity import PopularityParams

PAGE = machine.ROOT / "docs" / "evaluation.md"
BEGIN, END = "<!-- written by make quality -->\n", "<!-- up to here -->\n"
REFERENCE = "by-item, drawn as Recommenders does"
SEEDS = 5
# Held-out users are few, so that one draw says little; the literature measures them at 100 (Liang et al., WWW 2018).
STRONG = ("--split", "held-out-users", "--test-share", "0.1", "--seeds", str(SEEDS))
FIXED: dict[str, Params] = {
    "popularity": PopularityParams(),
    "TFIDF K=5": NeighbourParams(neighbours=5),
    "TFIDF K=100": NeighbourParams(neighbours=100),
    "EASE defaults": EASEParams(),
    "ALS defaults": ALSParams(),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """
    What a documented command has to reach: *metric* of the model, at *k*, with these *options*.

    *popularity* is what popularity had on the draw on which the bar was measured: the nearer it is here, the more of
    the figure is the model's and the less the draw's.
    """

    what: str
    metric: str
    bound: float
    popularity: float
    options: tuple[str, ...] = ()
    k: int = 10
    on_reference: bool = False


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set, how the command reads it, and its bars."""

    name: str
    file: str
    options: tuple[str, ...]
    bars: tuple[Bar, ...]


def _bars(
    typed: float, untuned: float, recall: float, ndcg: float, *, popularity: tuple[float, float, float]
) -> tuple[Bar, ...]:
    of_reference, of_recall, of_ndcg = popularity
    return (
        Bar(f"{REFERENCE}, nDCG@10", "ndcg", typed, of_reference, on_reference=True),
        Bar(f"{REFERENCE}, --no-tune, nDCG@10", "ndcg", untuned, of_reference, ("--no-tune",), on_reference=True),
        Bar("held-out users, recall@20", "recall_at_k", recall, of_recall, STRONG, 20),
        Bar("held-out users, nDCG@100", "ndcg", ndcg, of_ndcg, STRONG, 100),
    )


DATA_SETS = (
    DataSet(
        "Online Retail",
        "online-retail/online_retail.parquet",
        RETAIL_OPTIONS,
        _bars(0.297, 0.280, 0.34, 0.37, popularity=(0.0632, 0.0694, 0.0954)),
    ),
    DataSet(
        "MovieTweetings",
        "movietweetings-100k/ratings.csv.gz",
        ("--weighting", "binary", "--min-per-user", "5", "--min-per-item", "5"),
        _bars(0.176, 0.159, 0.33, 0.25, popularity=(0.1358, 0.2687, 0.2114)),
    ),
)


class Trainings:
    """`hotplate train` on one data set, each command run once however often its figures are read."""

    def __init__(self, data: DataSet, file: Path, folder: Path) -> None:
        self._data = data
        self._file = file
        self._folder = folder
        self._found: dict[tuple[str, ...], dict[str, Any]] = {}

    def report(self, *options: str, on_reference: bool = False) -> dict[str, Any]:
        """Return what the command prints with --json; RuntimeError, with its words, where it fails."""
        read = self._reference_files if on_reference else (str(self._file), *self._data.options)
        arguments = (*read, *options)
        if arguments not in self._found:
            command = [*HOTPLATE, "train", *arguments, "--out", str(self._folder / "model"), "--json"]
            done = subprocess.run(  # noqa: S603 -- our own command
                command, cwd=machine.ROOT, env=machine.environment(), capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
            self._found[arguments] = json.loads(done.stdout)
        return self._found[arguments]

    @cached_property
    def matrix(self) -> Matrix:
        """The interactions as the command reads them."""
        self.report("--engine", "popularity", "--no-tune", "--split", "none")
        return load(self._folder / "model").matrix

    @cached_property
    def reference(self) -> Parts:
        """The data as Recommenders splits them."""
        return reference_split(self.matrix)

    @cached_property
    def _reference_files(self) -> tuple[str, ...]:
        train, test = self._folder / "train.parquet", self._folder / "test.parquet"
        for file, part in ((train, self.reference.train), (test, self.reference.test)):
            _named(self.matrix, part).write_parquet(file)
        return str(train), "--test", str(test), "--weighting", "binary"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: a split, and how many draws of it its figures are the means of."""

    name: str
    kind: SplitKind
    options: tuple[str, ...] = ()
    draws: int = 1
    k: int = 10
    on_reference: bool = False

    def parts(self, trainings: Trainings) -> list[Parts]:
        """Return the draws."""
        if self.on_reference:
            return [trainings.reference]
        matrix, share = trainings.matrix, 0.1 if self.kind == "held-out-users" else 0.25
        options = [SplitOptions(self.kind, share, seed=SplitOptions().seed + draw) for draw in range(self.draws)]
        return [split(matrix.user_items, matrix.history, each) for each in options]


def _rows() -> Iterator[Row]:
    yield Row(REFERENCE, "by-item", on_reference=True)
    yield Row("by-item", "by-item", ("--split", "by-item"))
    yield Row(f"by-item, {SEEDS} draws", "by-item", ("--split", "by-item", "--seeds", str(SEEDS)), SEEDS)
    for kind in SPLIT_KINDS:
        if kind == "by-item":
            continue
        if kind == "held-out-users":
            yield Row(f"{kind}, {SEEDS} draws, nDCG@100", kind, STRONG, SEEDS, 100)
        else:
            yield Row(kind, kind, ("--split", kind))


def check_bars(data: DataSet, trainings: Trainings) -> Iterator[str]:
    """Yield a line for each bar: whether it holds, by what figure."""
    for bar in data.bars:
        report = trainings.report(*bar.options, *_length(bar.k), on_reference=bar.on_reference)
        value, popular = (each[bar.metric] for each in (report["evaluation"]["model"], _popularity(report)))
        yield (
            f"{'PASS' if value >= bar.bound else 'MISS'}  {data.name}, {bar.what}: {value:.4f} "
            f"({_interval(report, bar.metric)}), at least {bar.bound:g}; {described(report)}; popularity "
            f"{popular:.4f}, and {bar.popularity:.4f} where the bar was measured"
        )


def table_rows(data: DataSet, trainings: Trainings) -> Iterator[str]:
    """Yield a row of the table for each split: users and those without a list, then nDCG of each engine."""
    for row in _rows():
        report = trainings.report(*row.options, *_length(row.k), on_reference=row.on_reference)
        typed, drawn = report["evaluation"]["model"], row.parts(trainings)
        cells = [f"{typed['users']:,}", f"{typed['users'] - typed['users_with_lists']:,}"]
        cells += [f"{_mean_ndcg(drawn, params, row.k):.4f}" for params in FIXED.values()]
        cells.append(f"{typed['ndcg']:.4f} ({_interval(report, 'ndcg')}), {described(report)}")
        yield f"| {' | '.join((data.name, row.name, *cells))} |"


def _mean_ndcg(drawn: Sequence[Parts], params: Params, k: int) -> float:
    return float(np.mean([evaluate_engine(parts, params, k).metrics.ndcg for parts in drawn]))


def _length(k: int) -> tuple[str, ...]:
    return () if k == 10 else ("-k", str(k))


def _interval(report: dict[str, Any], metric: str) -> str:
    low, high = report["evaluation"]["intervals"][metric]
    return f"{low:.4f} to {high:.4f}"


def _popularity(report: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = report["evaluation"]["baselines"]["popularity"]
    return found


def described(report: dict[str, Any]) -> str:
    """Name the engine of a report and its parameters, those of ALS as factors/regularization/alpha."""
    params = {name: value for name, value in report["params"].items() if value is not None}
    recency = params.pop("recency", None)
    if report["engine"] == "als":
        chosen = [f"{params['factors']}/{params['regularization']:g}/{params['alpha']:g}"]
    elif report["engine"] == "neighbours" and params["weighting"] != "rp3beta":
        chosen = [params["weighting"], str(params["neighbours"])]
    else:
        chosen = [f"{value:g}" if isinstance(value, float) else str(value) for value in params.values()]
    if recency is not None:
        chosen.append(f"recency {recency['half_life_days']:g} d ^ {recency['gamma']:g}")
    return " ".join([report["engine"], *chosen])


def reference_split(matrix: Matrix) -> Parts:
    """
    Split as Recommenders' `python_stratified_split(data, 0.75, filter_by="item", seed=42)` does.

    It gives each row a number of numpy's old generator, which is to say that its draw depends on the order of the rows:
    here by user and item, in which MovieTweetings come, and Online Retail once its lines are grouped by them.
    """
    rows = _pairs(matrix.user_items).sort(
        pl.col("user").replace_strict(_places(matrix.user_ids)), pl.col("item").replace_strict(_places(matrix.item_ids))
    )
    rows = rows.with_columns(draw=np.random.RandomState(42).random_sample(rows.height))
    train = pl.col("draw").rank("ordinal").over("item") <= (0.75 * pl.len().over("item")).round(mode="half_to_even")
    parts = (_matrix_of(rows.filter(kept), matrix) for kept in (train, ~train))
    return Parts.of(*parts)


def _places(ids: Sequence[str]) -> dict[int, int]:
    """Return where each of *ids* comes once they are sorted: as numbers where all are numbers."""
    key = int if all(each.isdecimal() for each in ids) else str
    return {at: place for place, at in enumerate(sorted(range(len(ids)), key=lambda at: key(ids[at])))}


def _pairs(user_items: UserItems) -> pl.DataFrame:
    users = np.repeat(np.arange(user_items.shape[0]), np.diff(user_items.indptr))
    return pl.DataFrame({"user": users, "item": user_items.indices})


def _named(matrix: Matrix, user_items: UserItems) -> pl.DataFrame:
    """Return the pairs by the ids of *matrix*, whose shape *user_items* has."""
    pairs, users, items = _pairs(user_items), pl.Series(matrix.user_ids), pl.Series(matrix.item_ids)
    return pl.DataFrame(
        {"user": users.gather(pairs.get_column("user")), "item": items.gather(pairs.get_column("item"))}
    )


def _matrix_of(rows: pl.DataFrame, matrix: Matrix) -> UserItems:
    ones = np.ones(rows.height, dtype=np.float32)
    made = csr_matrix((ones, (rows.get_column("user"), rows.get_column("item"))), shape=matrix.user_items.shape)
    made.sum_duplicates()
    return made


def page_with(page: str, table: str) -> str:
    """Return *page* with *table* between its two marks; ValueError where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}{table}{END}{after}"


def main(arguments: Sequence[str]) -> int:
    """Print the bars and the table, and write the table into the docs; 0 however the figures came out."""
    data_at = Path(arguments[0]) if arguments else DATA
    heading = ["data", "split", "users", "without a list", *FIXED, "as typed"]
    rows = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    missing = False
    for data in DATA_SETS:
        file = data_at / data.file
        if not file.exists():
            print(f"{data.name} is skipped: {file} is not on this machine")
            missing = True
            continue
        with tempfile.TemporaryDirectory() as made:
            trainings = Trainings(data, file, Path(made))
            for line in check_bars(data, trainings):
                print(line, flush=True)
            rows += table_rows(data, trainings)
    print("\n".join(rows))
    if not missing:
        PAGE.write_text(page_with(PAGE.read_text(), "\n".join(rows) + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
