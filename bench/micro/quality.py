"""`python -m bench.micro.quality`: how good the lists are, on both data sets and every split, as the docs show it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from offline.train.engine import Params
from offline.train.neighbours import NeighbourParams
from offline.train.popularity import PopularityParams

PAGE = machine.ROOT / "docs" / "evaluation.md"
BEGIN, END = "<!-- written by make quality -->\n", "<!-- up to here -->\n"
SEEDS = 5
# Held-out users are few, so that one draw says little; the literature measures them at 100 (Liang et al., WWW 2018).
STRONG = ("--split", "held-out-users", "--test-share", "0.1", "--seeds", str(SEEDS))
FIXED: dict[str, Params] = {
    "popularity": PopularityParams(),
    "TFIDF K=5": NeighbourParams(neighbours=5),
    "TFIDF K=100": NeighbourParams(neighbours=100),
    "ALS defaults": ALSParams(),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """What a documented command has to reach: *metric* of the model, at *k*, with these *options*."""

    what: str
    metric: str
    bound: float
    options: tuple[str, ...] = ()
    k: int = 10


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set, how the command reads it, and its bars."""

    name: str
    file: str
    options: tuple[str, ...]
    bars: tuple[Bar, ...]


def _bars(typed: float, untuned: float, recall: float, ndcg: float) -> tuple[Bar, ...]:
    return (
        Bar("as typed, nDCG@10", "ndcg", typed),
        Bar("--no-tune, nDCG@10", "ndcg", untuned, ("--no-tune",)),
        Bar("held-out users, recall@20", "recall_at_k", recall, STRONG, 20),
        Bar("held-out users, nDCG@100", "ndcg", ndcg, STRONG, 100),
    )


DATA_SETS = (
    DataSet("Online Retail", "online-retail/online_retail.parquet", RETAIL_OPTIONS, _bars(0.297, 0.280, 0.34, 0.37)),
    DataSet(
        "MovieTweetings",
        "movietweetings-100k/ratings.csv.gz",
        ("--weighting", "binary", "--min-per-user", "5", "--min-per-item", "5"),
        _bars(0.176, 0.159, 0.33, 0.25),
    ),
)


class Trainings:
    """`hotplate train` on one data set, each command run once however often its figures are read."""

    def __init__(self, data: DataSet, file: Path, folder: Path) -> None:
        self._data = data
        self._file = file
        self._folder = folder
        self._found: dict[tuple[str, ...], dict[str, Any]] = {}

    def report(self, *options: str) -> dict[str, Any]:
        """Return what the command prints with --json; RuntimeError, with its words, where it fails."""
        if options not in self._found:
            command = [*HOTPLATE, "train", str(self._file), *self._data.options, *options]
            command += ["--out", str(self._folder / "model"), "--json"]
            done = subprocess.run(  # noqa: S603 -- our own command
                command, cwd=machine.ROOT, env=machine.environment(), capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
            self._found[options] = json.loads(done.stdout)
        return self._found[options]

    def matrix(self) -> Matrix:
        """Return the interactions as the command reads them."""
        self.report("--no-tune")
        return load(self._folder / "model").matrix


def check_bars(data: DataSet, trainings: Trainings) -> Iterator[str]:
    """Yield a line for each bar: whether it holds, by what figure."""
    for bar in data.bars:
        report = trainings.report(*bar.options, *_length(bar.k))
        value = report["evaluation"]["model"][bar.metric]
        verdict = "PASS" if value >= bar.bound else "MISS"
        low, high = report["evaluation"]["intervals"][bar.metric]
        yield (
            f"{verdict}  {data.name}, {bar.what}: {value:.4f} ({low:.4f} to {high:.4f}), at least {bar.bound:g}; "
            f"{described(report)}"
        )


def table_rows(data: DataSet, trainings: Trainings) -> Iterator[str]:
    """Yield a row of the table for each split: users and those without a list, then nDCG of each engine."""
    matrix = trainings.matrix()
    for kind in SPLIT_KINDS:
        strong = kind == "held-out-users"
        k = 100 if strong else 10
        report = trainings.report(*(STRONG if strong else _of_kind(kind)), *_length(k))
        typed = report["evaluation"]["model"]
        cells = [f"{typed['users']:,}", f"{typed['users'] - typed['users_with_lists']:,}"]
        cells += [f"{ndcg:.4f}" for ndcg in fixed_engines(matrix, kind, k)]
        named = f"{kind}, nDCG@100" if strong else kind
        cells = [data.name, named, *cells, f"{typed['ndcg']:.4f} ({described(report)})"]
        yield f"| {' | '.join(cells)} |"


def fixed_engines(matrix: Matrix, kind: SplitKind, k: int) -> list[float]:
    """Return the nDCG of each engine with fixed parameters, the mean of several seeds for held-out users."""
    strong = kind == "held-out-users"
    drawn = [
        split(matrix.user_items, matrix.times, SplitOptions(kind, 0.1 if strong else 0.25, seed=42 + seed))
        for seed in range(SEEDS if strong else 1)
    ]
    return [
        float(np.mean([evaluate_engine(parts, params, k).metrics.ndcg for parts in drawn])) for params in FIXED.values()
    ]


def _of_kind(kind: SplitKind) -> tuple[str, ...]:
    return () if kind == SplitOptions().kind else ("--split", kind)


def _length(k: int) -> tuple[str, ...]:
    return () if k == 10 else ("-k", str(k))


def described(report: dict[str, Any]) -> str:
    """Name the engine of a report and its parameters, those of ALS as factors/regularization/alpha."""
    params = report["params"]
    if report["engine"] == "als":
        return f"als {params['factors']}/{params['regularization']:g}/{params['alpha']:g}"
    return " ".join([report["engine"], *(str(value) for value in params.values())])


def reference_split(matrix: Matrix, ratings: Path) -> Parts:
    """Split MovieTweetings as the reference does: one number of the old generator a row of the file."""
    rows = pl.read_csv(ratings, infer_schema=False).select(
        user=pl.col("user_id").replace_strict({id_: at for at, id_ in enumerate(matrix.user_ids)}, default=None),
        item=pl.col("movie_id").replace_strict({id_: at for at, id_ in enumerate(matrix.item_ids)}, default=None),
    )
    rows = rows.drop_nulls()
    draw = np.random.RandomState(42).random_sample(rows.height)
    rows = rows.with_columns(draw=draw).with_columns(rank=pl.col("draw").rank("ordinal").over("item"))
    train = pl.col("rank") <= (0.75 * pl.len().over("item")).round(mode="half_to_even")
    return Parts.of(_pairs(rows.filter(train), matrix), _pairs(rows.filter(~train), matrix))


def _pairs(rows: pl.DataFrame, matrix: Matrix) -> UserItems:
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
            if data.name == "MovieTweetings":
                parts = reference_split(trainings.matrix(), file)
                for name, params in FIXED.items():
                    ndcg = evaluate_engine(parts, params, 10).metrics.ndcg
                    print(f"      {data.name}, {name} on the draw of the reference, nDCG@10: {ndcg:.4f}")
    print("\n".join(rows))
    if not missing:
        PAGE.write_text(page_with(PAGE.read_text(), "\n".join(rows) + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
