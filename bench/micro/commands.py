"""Cases of commands that run to their end: CPU and peak memory, compared with the plainest calls of what they use."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import polars as pl

from hotplate.bench.micro.bare_import import LENGTH
from hotplate.bench.micro.harness import Candidate, Candidates, Case, Effort, Round, Skipped, at_most, require_room
from hotplate.bench.micro.servers import HOTPLATE, by_generator, gets, hotplate_serving, keys_of
from hotplate.bench.micro.spent import run
from hotplate.bench.micro.training_data import RETAIL, RETAIL_OPTIONS, write_log
from hotplate.bench.process import Server, on_core

# Interactions of the log for each user of a release: a million make a log of ten million.
LOG_PER_USER = 10
# Of ALS, by default; bare calls have to be given it.
FACTORS = 256
# Its threads sleep while they wait, as ours do: without that it would take more CPU for nothing.
BARE_TRAINING = ("env", "OMP_WAIT_POLICY=passive", sys.executable, "-m", "hotplate.bench.micro.bare_training")
BARE_IMPORT = (sys.executable, "-m", "hotplate.bench.micro.bare_import")
# Items of imported lists, and the bytes of disk for a row: the file, what is sorted, and both stores.
ITEMS, ROOM = 20_000, 160
# How many times as many users the large release has, those of the small one, and how long their lists are.
LARGER, SMALL_USERS, SHORT = 10, 10_000, 10
USERS_A_FILE = 200_000


# Training and publishing, compared with the plainest calls of implicit that learn and compute the same


@contextmanager
def _retail(_effort: Effort) -> Iterator[Candidates]:
    if not RETAIL.exists():
        raise Skipped(f"the data set is not at {RETAIL}")
    with tempfile.TemporaryDirectory() as folder:
        yield _trainings(RETAIL, RETAIL_OPTIONS, Path(folder))


@contextmanager
def _log(effort: Effort) -> Iterator[Candidates]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.parquet"
        write_log(file, LOG_PER_USER * effort.users)
        yield _trainings(file, ("--weighting", "binary"), Path(folder))


def _trainings(data: Path, options: Sequence[str], folder: Path) -> Candidates:
    """Train and publish by two commands and by one, each time into a store of its own, and by bare calls."""
    stores = (f"file://{folder}/store-{number}" for number in count())

    def two_commands() -> Round:
        trained = run([*HOTPLATE, "train", str(data), *options, "--no-tune", "--out", f"{folder}/model"])
        published = run([*HOTPLATE, "publish", f"{folder}/model", "--store", next(stores)])
        sums = {name: trained[name] + published[name] for name in ("time", "CPU time")}
        return {**sums, "peak memory": max(trained["peak memory"], published["peak memory"])}

    def one_command() -> Round:
        named: dict[str, list[str]] = {}
        for name, value in zip(options[::2], options[1::2], strict=True):
            named.setdefault(name.removeprefix("--"), []).append(value)
        keys = (f"{name} = {json.dumps(given if given[1:] else given[0])}\n" for name, given in named.items())
        store, pipeline = next(stores), folder / "pipeline.toml"  # TOML has JSON's strings
        pipeline.write_text(
            f'[train]\ndata = "{data}"\nno_tune = true\n{"".join(keys)}[publish]\nstore = "{store}"\n'
            f'[run]\nwork = "{store.removeprefix("file://")}-work"\n'
        )
        return run([*HOTPLATE, "run", str(pipeline)])

    bare = partial(run, [*BARE_TRAINING, str(data), str(FACTORS)])
    return {"train, publish": two_commands, "run": one_command, "bare": bare}


# Import


@contextmanager
def _import(effort: Effort) -> Iterator[Candidates]:
    """Import shuffled rows, 20 for each user, from CSV and from Parquet."""
    with tempfile.TemporaryDirectory() as made:
        folder, candidates = Path(made), dict[str, Candidate]()
        require_room(folder, effort.users * LENGTH * ROOM)
        for name, file in {"CSV": folder / "lists.csv", "Parquet": folder / "lists.parquet"}.items():
            write_lists(file, effort.users)
            candidates[name] = partial(import_lists, file, folder / "store")
            candidates[f"bare, {name}"] = partial(import_bare, file, folder / "bare.mdb")
        yield candidates


def write_lists(path: Path, users: int, each: int = LENGTH, part: int = 0, parts: int = 1) -> None:
    """Write rows of user, item and score in no order, of every so many users; no user has an item twice."""
    draw = np.random.default_rng(part)
    first, scores = draw.integers(0, ITEMS, users // parts), draw.random(users // parts * each).round(4)
    user, rank = np.divmod(draw.permutation(users // parts * each), each)
    rows = pl.DataFrame({"user": user * parts + part, "item": (first[user] + rank**2) % ITEMS, "score": scores})
    zeros = pl.col("user").cast(pl.String).str.zfill(8)
    texts = rows.with_columns(user=zeros, item=pl.format("sku{}", "item"))
    if path.suffix == ".parquet":
        texts.write_parquet(path)
    else:
        texts.write_csv(path)


def import_lists(lists: Path, store: Path, *options: str) -> Round:
    """Import into a new store."""
    shutil.rmtree(store, ignore_errors=True)
    return run([*HOTPLATE, "import", str(lists), "--store", f"file://{store}", *options])


def import_bare(lists: Path, target: Path) -> Round:
    """Import with nothing but polars and LMDB."""
    target.unlink(missing_ok=True)
    return run([*BARE_IMPORT, str(lists), str(target)])


@contextmanager
def _big_release(effort: Effort) -> Iterator[Candidates]:
    """Import lists of LARGER times the effort's users, and serve them and a few users' on one core, A B A B …."""
    users = effort.users * LARGER
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder, imports, candidates = Path(made), list[Round](), dict[str, Candidate]()
        require_room(folder, users * SHORT * ROOM)
        for name, number in {"few": min(SMALL_USERS, users), "many": users}.items():
            (lists := folder / f"{name}-lists").mkdir()
            parts = max(1, number // USERS_A_FILE)
            for part in range(parts):
                write_lists(lists / f"{part}.parquet", number, SHORT, part, parts)
            imports.append(import_lists(lists, folder / name, "--encoding", "zstd"))
            shutil.rmtree(lists)
            service = stack.enter_context(hotplate_serving(f"file://{folder}/{name}"))
            candidates[name] = by_generator(service, gets(keys_of(number), effort.round_s))
            candidates[f"{name} at rest"] = partial(_memory, service)
        stack.enter_context(on_core(1))
        yield {**candidates, "import": lambda: imports[-1]}


def _memory(service: Server) -> Round:
    return {"memory": service.memory_bytes() / 1e6}


CASES = (
    Case(
        "retail",
        _retail,
        {
            "train, publish / bare: CPU time": at_most(1.15),
            "train, publish / bare: peak memory": at_most(1.1),
            "run / bare: CPU time": at_most(1.15),
            "run / bare: peak memory": at_most(1.1),
        },
        {
            "train, publish / bare: CPU time": "Online Retail trained and published, compared with implicit alone: CPU",
            "train, publish / bare: peak memory": "the same: memory",
            "run / bare: CPU time": "the same in one process (`hotplate run`): CPU",
            "run / bare: peak memory": "the same: memory",
        },
        rounds=3,
    ),
    Case(
        "log",
        _log,
        {"train, publish / bare: CPU time": at_most(1.15), "train, publish / bare: peak memory": at_most(1.1)},
        {
            "train, publish / bare: CPU time": "a log of 10,000,000 interactions, compared with implicit alone: CPU",
            "train, publish / bare: peak memory": "the same: memory",
        },
        rounds=1,
    ),
    Case(
        "import",
        _import,
        {"CSV / bare, CSV: CPU time": at_most(1.5), "CSV: peak memory": at_most(1200)},
        {
            "CSV / bare, CSV: CPU time": "20,000,000 rows imported from CSV, compared with polars and LMDB alone: CPU",
            "CSV: peak memory": "the same: memory",
            "bare, CSV: peak memory": "polars and LMDB alone: memory",
        },
    ),
    Case(
        "big_release",
        _big_release,
        {"many / few: CPU": at_most(1.15), "import: peak memory": at_most(1500), "many at rest: memory": at_most(100)},
        {
            "many / few: CPU": "a GET among 10,000,000 users, compared with 10,000 users: CPU",
            "import: peak memory": "importing 10,000,000 lists: memory",
            "many at rest: memory": "a service of one worker that serves them: memory",
        },
    ),
)
