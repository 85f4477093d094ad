"""`make quality`: measures lists on public data, by time and at random."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hotplate.offline.evaluate.evaluation import fit_parts, recommend_all
from hotplate.offline.evaluate.metrics import measure_users
from hotplate.offline.evaluate.splits import Parts, SplitOptions, split
from hotplate.offline.input.columns import Columns
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.input.matrix import Weighing, to_matrix
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import Params, described, params_from
from hotplate.offline.train.item_based import EASEParams, NeighbourParams
from hotplate.offline.train.popularity import PopularityParams
from hotplate.report import markdown_page, markdown_table

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
PAGE = ROOT / "docs" / "evaluation.md"
CORE = 5
CORE_OPTIONS = ("--min-per-user", str(CORE), "--min-per-item", str(CORE))
# Shares of the log, by time; each is tested on its last quarter.
PIECES = (0.6, 0.8, 1.0)
# As in the literature, at 20 and 100 (Liang et al., 2018).
STRONG = ("--split", "held-out-users", "--test-share", "0.1")
FIXED: dict[str, Params] = {
    "popularity": PopularityParams(),
    "TFIDF K=5": NeighbourParams(neighbours=5),
    "TFIDF K=100": NeighbourParams(neighbours=100),
    "EASE": EASEParams(),
    "ALS": ALSParams(),
}
RECENT = "recent popularity"
PERSONAL = "best personal"
TYPED = "as typed"


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


class Trainings:
    """`hotplate train` on pieces and draws of one data set."""

    def __init__(self, data: DataSet, file: Path, folder: Path) -> None:
        self._data, self._file, self._folder = data, file, folder

    def report(self, *arguments: str) -> dict[str, Any]:
        """Run the command; raises RuntimeError with its messages."""
        options = ("--weighting", "binary", "--out", f"{self._folder}/model", "--json")
        command = [sys.executable, "-m", "hotplate", "train", *arguments, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 -- our own
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @cached_property
    def log(self) -> pl.DataFrame:
        """The rows used [user, item, weight, time], sorted."""
        read = read_interactions(self._file, columns=self._data.columns, where=self._data.where, weighting="binary")
        return read.log.with_columns(pl.col("user", "item").cast(pl.String)).sort("user", "item", "time")

    def piece(self, share: float) -> Path:
        """Write the rows until *share* of all pairs have begun."""
        first = self.log.group_by("user", "item").agg(pl.col("time").min()).get_column("time").sort()
        end = first[max(0, round(share * len(first)) - 1)]
        file = self._folder / f"first-{share:g}.parquet"
        self.log.filter(pl.col("time") <= end).select("user", "item", "time").write_parquet(file)
        return file


@dataclass(frozen=True, slots=True)
class Piece:
    """nDCG@10 as served, by column; half of the interval, and the engine, of `as typed`."""

    users: int
    ndcg: dict[str, float]
    half: float
    described: str


def measure_piece(trainings: Trainings, share: float) -> Piece:
    """Train as typed, and measure the other columns on the same split."""
    file = trainings.piece(share)
    report = trainings.report(str(file), *CORE_OPTIONS)
    evaluation, trials = report["evaluation"], report["tuning"]["trials"]
    log = pl.read_parquet(file).with_columns(weight=pl.lit(1.0))
    matrix = to_matrix(log, CORE, CORE, Weighing("binary"))
    parts = split(matrix.user_items, matrix.history, SplitOptions("by-time", min_per_user=CORE, min_per_item=CORE))
    typed = params_from(report["engine"], report["params"])
    is_popular = isinstance(typed, PopularityParams)
    columns = {
        **FIXED,
        RECENT: _best(each for each in trials if each["engine"] == "popularity"),
        PERSONAL: _best(each for each in trials if each["engine"] != "popularity") if is_popular else typed,
        TYPED: typed,
    }
    values = {name: _ndcg(parts, params) for name, params in columns.items()}
    served = evaluation["as_served"]
    low, high = served["intervals"]["ndcg"]
    ndcg = {name: float(value.mean()) for name, value in values.items()} | {TYPED: served["ndcg"]}
    return Piece(len(values[TYPED]), ndcg, (high - low) / 2, _described(report))


def _best(trials: Iterator[dict[str, Any]]) -> Params:
    best = max(trials, key=lambda trial: float(trial["ndcg"]))
    return params_from(best["engine"], best["params"])


def _ndcg(parts: Parts, params: Params) -> npt.NDArray[np.float64]:
    return measure_users(recommend_all(fit_parts(parts, params), parts, 10), parts.test).values["ndcg"]


def time_rows(data: DataSet, trainings: Trainings) -> Iterator[Sequence[str]]:
    """Yield a row for each piece, and their mean."""
    pieces = [measure_piece(trainings, share) for share in PIECES]
    for share, piece in zip(PIECES, pieces, strict=True):
        cells = [f"{value:.4f}" for value in piece.ndcg.values()]
        cells[-1] += f" ± {piece.half:.4f}, {piece.described}"
        yield data.name, f"{share:.0%}", f"{piece.users:,}", *cells
    means = {name: float(np.mean([piece.ndcg[name] for piece in pieces])) for name in pieces[0].ndcg}
    yield data.name, "mean", "", *(f"{value:.4f}" for value in means.values())


def draw_rows(data: DataSet, trainings: Trainings) -> Iterator[Sequence[str]]:
    """Yield a row for each random draw."""
    for draw in DRAWS:
        report = trainings.report(str(trainings.piece(1.0)), *CORE_OPTIONS, *draw.options, "-k", str(draw.k))
        value = report["evaluation"]["model"][draw.metric]
        popular = report["evaluation"]["baselines"].get("popularity", report["evaluation"]["model"])[draw.metric]
        low, high = report["evaluation"]["intervals"][draw.metric]
        yield data.name, draw.name, f"{popular:.4f}", f"{value:.4f} ± {(high - low) / 2:.4f}, {_described(report)}"


def _described(report: dict[str, Any]) -> str:
    return described(params_from(report["engine"], report["params"]))


def main(arguments: Sequence[str]) -> int:
    """Print the tables, and write them into the docs if no data set is missing."""
    data_at = Path(arguments[0]) if arguments else DATA
    headings = (
        ("data", "first pairs", "users", *FIXED, RECENT, PERSONAL, TYPED),
        ("data", "random draw, which flatters", "popularity", TYPED),
    )
    times, draws, missing = list[Sequence[str]](), list[Sequence[str]](), False
    for data in DATA_SETS:
        file = data_at / data.file
        if not file.exists():
            print(f"{data.name} is skipped: {file} is not on this machine")
            missing = True
            continue
        with tempfile.TemporaryDirectory() as made:
            trainings = Trainings(data, file, Path(made))
            times += time_rows(data, trainings)
            draws += draw_rows(data, trainings)
    written = "\n".join(map(markdown_table, headings, (times, draws)))
    print(written)
    if not missing:
        PAGE.write_text(markdown_page(PAGE.read_text(), written, "quality"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
