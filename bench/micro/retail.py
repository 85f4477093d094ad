"""Figure: from the Online Retail file to a live release by the two commands, as its recipe and the defaults have it."""

import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.micro.commands import Spent, run
from bench.micro.rounds import Effort, Figure, Outcome, Unmeasured, at_most, interleave
from bench.report.machine import ROOT

DATA = ROOT.parent / "shared" / "data" / "online-retail" / "online_retail.parquet"
RECIPE = (
    *("--where", "quantity>0", "--where", "unit_price>0", "--where", r"stock_code~^\d{5}"),
    *("--count-column", "invoice_no", "--min-per-user", "5", "--min-per-item", "5"),
)
HOTPLATE = (sys.executable, "-m", "hotplate")
WALL_S = 60
PEAK_MB = 1000


def measure(effort: Effort) -> list[Outcome]:
    """Measure where the data set is, and say so where it is not."""
    if not DATA.exists():
        return [Unmeasured("retail", f"the data set is not at {DATA}")]
    return [*measure_file(DATA, effort.rounds)]


def measure_file(data: Path, rounds: int) -> list[Figure]:
    """Train and publish in turn, each publish the model that was trained just before, into a store of its own."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model, stores = folder / "model", (folder / f"store-{number}" for number in itertools.count())
        train = [*HOTPLATE, "train", str(data), *RECIPE, "--out", str(model)]
        variants: dict[str, Callable[[], Spent]] = {
            "train": partial(run, train),
            "publish": lambda: publish(model, next(stores)),
        }
        taken = interleave(variants, rounds)
    return figures(taken["train"], taken["publish"])


def publish(model: Path, store: Path) -> Spent:
    """Publish *model* into the new *store*, which is removed afterwards."""
    try:
        return run([*HOTPLATE, "publish", str(model), "--store", f"file://{store}"])
    finally:
        shutil.rmtree(store, ignore_errors=True)


def figures(trained: Sequence[Spent], published: Sequence[Spent]) -> list[Figure]:
    """Tell of each command, and of both together: their times added up, the larger of their peaks."""
    both = [
        Spent(first.wall_s + second.wall_s, first.cpu_s + second.cpu_s, max(first.peak_mb, second.peak_mb))
        for first, second in zip(trained, published, strict=True)
    ]
    named = {"train": trained, "publish": published, "train + publish": both}
    return [
        figure
        for name, spent in named.items()
        for figure in (
            Figure(
                f"Online Retail, {name}: wall time",
                "s",
                [one.wall_s for one in spent],
                at_most(WALL_S) if spent is both else None,
            ),
            Figure(f"Online Retail, {name}: CPU", "s", [one.cpu_s for one in spent]),
            Figure(
                f"Online Retail, {name}: peak memory",
                "MB",
                [one.peak_mb for one in spent],
                at_most(PEAK_MB) if spent is both else None,
            ),
        )
    ]
