"""Training and publishing beside the plainest calls of implicit that learn and compute the same."""

import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.micro.rounds import HOTPLATE, Effort, Figure, Outcome, Unmeasured, at_most, interleave, ratio
from bench.micro.spent import Spent, run
from bench.micro.training_data import RETAIL, RETAIL_OPTIONS, write_catalogue, write_log
from offline.model import describe, load
from offline.train.engine import as_options

# Interactions of the log for each user of a release: a million make a log of ten million.
LOG_PER_USER = 10
# The defaults, which bare calls have to be given.
FACTORS = 256
CPU_RATIO, PEAK_RATIO = 1.15, 1.1
# What a search and the fit of what it finds may take of a catalogue of 40,000 items.
SEARCH_CPU_S, SEARCH_PEAK_MB = 120, 1000
# Its threads sleep while they wait, as ours do: without that it would take more CPU for nothing.
BARE = ("env", "OMP_WAIT_POLICY=passive", sys.executable, "-m", "bench.micro.bare_training")


def measure_retail(effort: Effort) -> list[Outcome]:
    """Train on Online Retail by its recipe, and publish."""
    if not RETAIL.exists():
        return [Unmeasured("retail", f"the data set is not at {RETAIL}")]
    return [*_beside_bare("Online Retail", RETAIL, RETAIL_OPTIONS, effort.rounds)]


def measure_log(effort: Effort) -> list[Outcome]:
    """Train on a log that is made here, and publish."""
    with tempfile.TemporaryDirectory() as folder:
        file, size = Path(folder) / "log.parquet", LOG_PER_USER * effort.users
        write_log(file, size)
        return [*_beside_bare(f"a log of {size / 1e6:g} M", file, ("--weighting", "binary"), effort.rounds)]


def measure_catalogue(_effort: Effort) -> list[Outcome]:
    """Search and fit on a large catalogue as typed; ALS of 512 factors stands beside it, fitted once."""
    with tempfile.TemporaryDirectory() as folder:
        file, model = Path(folder) / "catalogue.parquet", Path(folder) / "model"
        write_catalogue(file)
        train = [*HOTPLATE, "train", str(file), "--weighting", "binary", "--out", str(model)]
        spent = run([*train, "--split", "none"])
        found = as_options(load(model).params)
        ndcg = {}
        for options in (found, "--engine als --factors 512 --regularization 150 --alpha 20"):
            run([*train, "-k", "20", *options.split()])
            ndcg[options] = describe(model)["metrics"]["model"]["ndcg"]
    what = "a catalogue of 40,000 items, search and fit"
    return [
        Figure(f"{what}: CPU", "s", [spent.cpu_s], at_most(SEARCH_CPU_S)),
        Figure(f"{what}: peak memory", "MB", [spent.peak_mb], at_most(SEARCH_PEAK_MB)),
        *(Figure(f"{what}: nDCG@20 by {name}", "nDCG", [value]) for name, value in ndcg.items()),
    ]


def _beside_bare(what: str, data: Path, options: Sequence[str], rounds: int) -> Iterator[Figure]:
    """Run both sides in turn, hotplate's release each time into a store of its own."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model, stores = folder / "model", (folder / f"store-{number}" for number in itertools.count())
        training = [*HOTPLATE, "train", str(data), *options, "--no-tune"]
        variants: dict[str, Callable[[], Spent]] = {
            "train": lambda: run([*training, "--out", str(model)]),
            "publish": lambda: run([*HOTPLATE, "publish", str(model), "--store", f"file://{next(stores)}"]),
            "run": lambda: run([*HOTPLATE, "run", str(_write_pipeline(data, options, next(stores)))]),
            "bare": lambda: run([*BARE, str(data), str(FACTORS)]),
        }
        taken = interleave(variants, rounds)
    both = [
        Spent(first.wall_s + second.wall_s, first.cpu_s + second.cpu_s, max(first.peak_mb, second.peak_mb))
        for first, second in zip(taken["train"], taken["publish"], strict=True)
    ]
    for name, spent in {**taken, "train + publish": both}.items():
        yield Figure(f"{what}, {name}: wall time", "s", [one.wall_s for one in spent])
        yield Figure(f"{what}, {name}: CPU", "s", [one.cpu_s for one in spent])
        yield Figure(f"{what}, {name}: peak memory", "MB", [one.peak_mb for one in spent])
    bare = taken["bare"]
    for name, ours in {"train + publish": both, "run": taken["run"]}.items():
        cpu = [one.cpu_s for one in ours], [one.cpu_s for one in bare]
        yield ratio(f"{what}, {name} / bare: CPU", *cpu, goal=at_most(CPU_RATIO))
        peaks = [one.peak_mb for one in ours], [one.peak_mb for one in bare]
        yield ratio(f"{what}, {name} / bare: peak memory", *peaks, goal=at_most(PEAK_RATIO))


def _write_pipeline(data: Path, options: Sequence[str], store: Path) -> Path:
    """Write beside *store* what trains and publishes in one process as the two commands do."""
    given: dict[str, list[str]] = {}
    for name, value in zip(options[::2], options[1::2], strict=True):
        given.setdefault(name.removeprefix("--"), []).append(value)
    written = {name: values if len(values) > 1 else values[0] for name, values in given.items()}
    keys = "".join(f"{name} = {json.dumps(value)}\n" for name, value in written.items())  # TOML has JSON's strings
    pipeline = store.with_suffix(".toml")
    pipeline.write_text(
        f'[train]\ndata = "{data}"\nno_tune = true\n{keys}[publish]\nstore = "file://{store}"\n'
        f'[run]\nwork = "{store}-work"\n'
    )
    return pipeline
