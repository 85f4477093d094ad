"""Cases of commands that run to their end: CPU and peak memory, compared with the plainest calls of what they use."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import polars as pl

from hotplate.bench.machine import ROOT, environment
from hotplate.bench.micro.bare_import import LENGTH
from hotplate.bench.micro.harness import (
    BenchmarkSize,
    CandidateRun,
    Candidates,
    Case,
    Line,
    RoundValues,
    Skipped,
    at_most,
    require_room,
)
from hotplate.bench.micro.servers import HOTPLATE, by_generator, gets, hotplate_serving, keys_of
from hotplate.bench.process import Server, on_core

DATA = ROOT.parent / "shared" / "data"
RETAIL = DATA / "online-retail" / "online_retail.parquet"
RETAIL_OPTIONS = (
    *("--where", "quantity>0", "--where", "unit_price>0", "--where", r"stock_code~^\d{5}"),
    *("--count-column", "invoice_no", "--weighting", "binary", "--min-per-user", "5", "--min-per-item", "5"),
)
# Interactions of the log for each user of a release: a million make a log of ten million.
LOG_PER_USER = 10
# Interactions of each user of the log.
LOG_EACH = 100
# Of ALS, by default; bare calls have to be given it.
FACTORS = 256
# Its threads sleep while they wait, as ours do: without that it would take more CPU for nothing.
BARE_TRAINING = ("env", "OMP_WAIT_POLICY=passive", sys.executable, "-m", "hotplate.bench.micro.bare_training")
BARE_IMPORT = (sys.executable, "-m", "hotplate.bench.micro.bare_import")
# Items of the log and of imported lists.
ITEMS = 20_000
# Of disk for an imported row: the file, what is sorted, and both stores.
ROW_BYTES = 160
# The large release has so many times as many users as the size says.
LARGER = 10
SMALL_USERS = 10_000
# The length of the lists of both.
SHORT = 10
USERS_A_FILE = 200_000

# Linux lets a child's peak memory begin at what its parent had when it was started. So each command is started by this
# small process, and not by the benchmark, which may be large. What the command prints goes to stderr.
STARTER = """\
import json, os, sys, time
started = time.perf_counter()
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(process, 0)
wall_s, cpu_s = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
print(json.dumps({"time": wall_s, "CPU time": cpu_s, "peak memory": usage.ru_maxrss * 1024 / 1e6}))
sys.exit(abs(os.waitstatus_to_exitcode(status)))
"""


def run(command: Sequence[str]) -> dict[str, float]:
    """Run *command* in the repository; RuntimeError, with its output, unless it exits with 0.

    Returns its wall time, the CPU time of all its threads and children, and the most memory that it had.
    """
    starter = [sys.executable, "-c", STARTER, *command]
    ended = subprocess.run(  # noqa: S603 -- our own commands
        starter, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    found: dict[str, float] = json.loads(ended.stdout)
    return found


# Training and publishing, compared with the plainest calls of implicit that learn and compute the same


@contextmanager
def _retail(_size: BenchmarkSize) -> Iterator[Candidates]:
    if not RETAIL.exists():
        raise Skipped(f"the data set is not at {RETAIL}")
    with tempfile.TemporaryDirectory() as folder:
        yield _trainings(RETAIL, RETAIL_OPTIONS, Path(folder))


@contextmanager
def _log(size: BenchmarkSize) -> Iterator[Candidates]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.parquet"
        write_log(file, LOG_PER_USER * size.users)
        yield _trainings(file, ("--weighting", "binary"), Path(folder))


def write_log(file: Path, interactions: int) -> None:
    """Write about so many *interactions* as Parquet: users like kinds of items, popular ones more often."""
    rng = np.random.default_rng(0)
    users = max(interactions // LOG_EACH, 10)
    popularity = 1 / np.arange(10, ITEMS + 10) ** 0.8
    kinds = np.arange(ITEMS) % 50
    user = np.repeat(np.arange(users, dtype=np.int32), LOG_EACH)
    drawn = rng.choice(ITEMS, len(user), p=popularity / popularity.sum()).astype(np.int32)
    # Half of what a user has is moved to the nearest item of a kind that is the user's own.
    own = rng.random(len(user)) < 1 / 2
    drawn = np.where(own, np.minimum(drawn - kinds[drawn] + user % 50, ITEMS - 1), drawn)
    frame = pl.DataFrame({"user": user, "item": drawn}).unique(maintain_order=True)
    frame.select(pl.format("u{}", "user").alias("user"), pl.format("i{}", "item").alias("item")).write_parquet(file)


def _trainings(data: Path, options: Sequence[str], folder: Path) -> Candidates:
    """Train and publish by two commands and by one, each time into a store of its own, and by bare calls."""
    stores = (f"file://{folder}/store-{number}" for number in count())

    def two_commands() -> RoundValues:
        trained = run([*HOTPLATE, "train", str(data), *options, "--no-tune", "--out", f"{folder}/model"])
        published = run([*HOTPLATE, "publish", f"{folder}/model", "--store", next(stores)])
        sums = {name: trained[name] + published[name] for name in ("time", "CPU time")}
        return {**sums, "peak memory": max(trained["peak memory"], published["peak memory"])}

    def one_command() -> RoundValues:
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
def _import(size: BenchmarkSize) -> Iterator[Candidates]:
    """Import shuffled rows, 20 for each user."""
    with tempfile.TemporaryDirectory() as made:
        folder, file = Path(made), Path(made) / "lists.csv"
        require_room(folder, size.users * LENGTH * ROW_BYTES)
        write_lists(file, size.users)
        yield {
            "CSV": partial(import_lists, file, folder / "store"),
            "bare, CSV": partial(import_bare, file, folder / "bare.mdb"),
        }


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


def import_lists(lists: Path, store: Path, *options: str) -> RoundValues:
    """Import into a new store."""
    shutil.rmtree(store, ignore_errors=True)
    return run([*HOTPLATE, "import", str(lists), "--store", f"file://{store}", *options])


def import_bare(lists: Path, target: Path) -> RoundValues:
    """Import with nothing but polars and LMDB."""
    target.unlink(missing_ok=True)
    return run([*BARE_IMPORT, str(lists), str(target)])


@contextmanager
def _big_release(size: BenchmarkSize) -> Iterator[Candidates]:
    """Import lists of LARGER times the size's users, and serve them and a few users' on one core, A B A B …."""
    users = size.users * LARGER
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder, imports, candidates = Path(made), list[RoundValues](), dict[str, CandidateRun]()
        require_room(folder, users * SHORT * ROW_BYTES)
        for name, number in {"few": min(SMALL_USERS, users), "many": users}.items():
            (lists := folder / f"{name}-lists").mkdir()
            parts = max(1, number // USERS_A_FILE)
            for part in range(parts):
                write_lists(lists / f"{part}.parquet", number, SHORT, part, parts)
            imports.append(import_lists(lists, folder / name, "--encoding", "zstd"))
            shutil.rmtree(lists)
            service = stack.enter_context(hotplate_serving(f"file://{folder}/{name}"))
            candidates[name] = by_generator(service, gets(keys_of(number), size.round_s))
            candidates[f"{name} at rest"] = partial(_memory, service)
        stack.enter_context(on_core(1))
        yield {**candidates, "import": lambda: imports[-1]}


def _memory(service: Server) -> RoundValues:
    return {"memory": service.memory_bytes() / 1e6}


CASES = (
    Case(
        "retail",
        _retail,
        {
            "train, publish / bare: CPU time": Line(
                "Online Retail trained and published, compared with implicit alone: CPU", at_most(1.15)
            ),
            "train, publish / bare: peak memory": Line("the same: memory", at_most(1.1)),
            "run / bare: CPU time": Line("the same in one process (`hotplate run`): CPU", at_most(1.15)),
            "run / bare: peak memory": Line("the same: memory", at_most(1.1)),
        },
        rounds=3,
    ),
    Case(
        "log",
        _log,
        {
            "train, publish / bare: CPU time": Line(
                "a log of 10,000,000 interactions, compared with implicit alone: CPU", at_most(1.15)
            ),
            "train, publish / bare: peak memory": Line("the same: memory", at_most(1.1)),
        },
        rounds=1,
    ),
    Case(
        "import",
        _import,
        {
            "CSV / bare, CSV: CPU time": Line(
                "20,000,000 rows imported from CSV, compared with polars and LMDB alone: CPU", at_most(1.5)
            ),
            "CSV: peak memory": Line("the same: memory", at_most(1200)),
            "bare, CSV: peak memory": Line("polars and LMDB alone: memory"),
        },
    ),
    Case(
        "big_release",
        _big_release,
        {
            "many / few: CPU": Line("a GET among 10,000,000 users, compared with 10,000 users: CPU", at_most(1.15)),
            "import: peak memory": Line("importing 10,000,000 lists: memory", at_most(1500)),
            "many at rest: memory": Line("a service of one worker that serves them: memory", at_most(100)),
        },
    ),
)
