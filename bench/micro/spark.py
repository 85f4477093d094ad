"""ALS on Spark beside ALS of implicit: the same command on the same data, with Java and all executors counted."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from bench.micro.rounds import HOTPLATE, Effort, Figure, Outcome, Unmeasured, interleave, ratio
from bench.micro.spark_quality import compare, hold_back
from bench.micro.spent import Spent
from bench.micro.training import LOG_PER_USER
from bench.micro.training_data import LOG_COLUMNS, RETAIL, RETAIL_COLUMNS, RETAIL_RECIPE, write_log
from bench.process import Server
from bench.report.machine import ROOT, environment

MASTER = "local[2]"
FACTORS = 32
# On Online Retail these rank alike; `bench.micro.spark_quality` has the same objective for both.
_ON_SPARK = ("--engine", "spark", "--master", MASTER, "--reg-param", "0.1")
_BY_IMPLICIT = ("--engine", "als", "--regularization", "5")
_POLL_S = 0.1


def measure_retail(effort: Effort) -> list[Outcome]:
    """Train on Online Retail by its recipe."""
    if not RETAIL.exists():
        return [Unmeasured("spark_retail", f"the data set is not at {RETAIL}")]
    named = dict(zip(LOG_COLUMNS, map(pl.col, RETAIL_COLUMNS), strict=True))
    rows = pl.scan_parquet(RETAIL).filter(RETAIL_RECIPE).select(**named).drop_nulls()
    pairs = rows.cast(pl.String).unique(maintain_order=True)
    return _measured("spark_retail", lambda: _beside("Online Retail", pairs.collect(), effort.rounds))


def measure_log(effort: Effort) -> list[Outcome]:
    """Train on a log that is made here."""

    def measure() -> Iterator[Figure]:
        size = LOG_PER_USER * effort.users
        with tempfile.TemporaryDirectory() as folder:
            write_log(Path(folder) / "log.parquet", size)
            pairs = pl.read_parquet(Path(folder) / "log.parquet")
        yield from _beside(f"a log of {size / 1e6:g} M", pairs, effort.rounds)

    return _measured("spark_log", measure)


def _measured(name: str, measure: Callable[[], Iterator[Figure]]) -> list[Outcome]:
    if find_spec("pyspark") is None or shutil.which("java") is None:
        return [Unmeasured(name, "there is no Java, or no pyspark; make spark-test brings both")]
    return [*measure()]


def _beside(what: str, pairs: pl.DataFrame, rounds: int) -> Iterator[Figure]:
    """Fit with both engines in turn, without an evaluation, which is the same for both; then compare the models."""
    with tempfile.TemporaryDirectory() as made:
        data, on_spark, by_implicit = (Path(made) / name for name in ("data.parquet", "spark", "implicit"))
        held_back = hold_back(pairs, data)
        training = [*HOTPLATE, "train", str(data), "--weighting", "binary", "--split", "none"]
        training += ["--factors", str(FACTORS), "--alpha", "2"]
        variants: dict[str, Callable[[], Spent]] = {
            f"Spark {MASTER}": lambda: _run([*training, *_ON_SPARK, "--out", str(on_spark)]),
            "implicit": lambda: _run([*training, *_BY_IMPLICIT, "--out", str(by_implicit)]),
        }
        taken = interleave(variants, rounds)
        alike = [*compare(what, on_spark, by_implicit, held_back)]
    for name, spent in taken.items():
        yield Figure(f"{what}, train, {name}: wall time", "s", [one.wall_s for one in spent])
        yield Figure(f"{what}, train, {name}: CPU", "s", [one.cpu_s for one in spent])
        yield Figure(f"{what}, train, {name}: peak memory", "MB", [one.peak_mb for one in spent])
    spark, implicit = taken.values()
    both = f"{what}, train, Spark / implicit"
    yield ratio(f"{both}: wall time", [one.wall_s for one in spark], [one.wall_s for one in implicit])
    yield ratio(f"{both}: peak memory", [one.peak_mb for one in spark], [one.peak_mb for one in implicit])
    yield from alike


def _run(command: Sequence[str]) -> Spent:
    """Run *command* to its end and look at its process group meanwhile: Java is not waited for by whoever started it.

    Raises RuntimeError, with its output, unless it exits with 0.
    """
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 -- our own commands
            command, cwd=ROOT, env=environment(), stdout=said, stderr=said, start_new_session=True
        )
        group, cpu_s, peak = Server("", process.pid), 0.0, 0
        while process.poll() is None:
            cpu_s, peak = max(cpu_s, group.cpu_s()), max(peak, group.memory_bytes())
            time.sleep(_POLL_S)
        wall_s = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said.read()[-2000:]}")
    return Spent(wall_s, cpu_s, peak / 1e6)
