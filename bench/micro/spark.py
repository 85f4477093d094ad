"""ALS on Spark beside ALS of implicit: the same command on the same data, with Java and all executors counted."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from bench.micro.rounds import HOTPLATE, Effort, Figure, Outcome, Unmeasured, interleave, ratio
from bench.micro.spent import Spent
from bench.micro.training import LOG_PER_USER
from bench.micro.training_data import RETAIL, RETAIL_OPTIONS, write_log
from bench.process import Server
from bench.report.machine import ROOT, environment

MASTER = "local[2]"
FACTORS = 32
_POLL_S = 0.1


def measure_retail(effort: Effort) -> list[Outcome]:
    """Train on Online Retail by its recipe."""
    if not RETAIL.exists():
        return [Unmeasured("spark_retail", f"the data set is not at {RETAIL}")]
    return _measured("spark_retail", lambda: _beside("Online Retail", RETAIL, RETAIL_OPTIONS, effort.rounds))


def measure_log(effort: Effort) -> list[Outcome]:
    """Train on a log that is made here."""

    def measure() -> Iterator[Figure]:
        with tempfile.TemporaryDirectory() as folder:
            file, size = Path(folder) / "log.parquet", LOG_PER_USER * effort.users
            write_log(file, size)
            yield from _beside(f"a log of {size / 1e6:g} M", file, ("--weighting", "binary"), effort.rounds)

    return _measured("spark_log", measure)


def _measured(name: str, measure: Callable[[], Iterator[Figure]]) -> list[Outcome]:
    if find_spec("pyspark") is None or shutil.which("java") is None:
        return [Unmeasured(name, "there is no Java, or no pyspark; make spark-test brings both")]
    return [*measure()]


def _beside(what: str, data: Path, options: Sequence[str], rounds: int) -> Iterator[Figure]:
    """Fit with both engines in turn, without an evaluation, which is the same for both."""
    with tempfile.TemporaryDirectory() as made:
        training = [*HOTPLATE, "train", str(data), *options, "--split", "none", "--factors", str(FACTORS)]
        training += ["--out", str(Path(made) / "model")]
        variants: dict[str, Callable[[], Spent]] = {
            f"Spark {MASTER}": lambda: _run([*training, "--engine", "spark", "--master", MASTER]),
            "implicit": lambda: _run([*training, "--engine", "als"]),
        }
        taken = interleave(variants, rounds)
    for name, spent in taken.items():
        yield Figure(f"{what}, train, {name}: wall time", "s", [one.wall_s for one in spent])
        yield Figure(f"{what}, train, {name}: CPU", "s", [one.cpu_s for one in spent])
        yield Figure(f"{what}, train, {name}: peak memory", "MB", [one.peak_mb for one in spent])
    on_spark, implicit = taken.values()
    both = f"{what}, train, Spark / implicit"
    yield ratio(f"{both}: wall time", [one.wall_s for one in on_spark], [one.wall_s for one in implicit])
    yield ratio(f"{both}: peak memory", [one.peak_mb for one in on_spark], [one.peak_mb for one in implicit])


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
