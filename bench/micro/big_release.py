"""A release of many users, end to end on one machine: what each step takes of memory, and each request of CPU.

Lists are imported from files, copied to Redis, verified, compared and pruned, each step by the command itself in a
process of its own. Then they are served beside a small release.
"""

import asyncio
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from bench.micro.redis import where_installed
from bench.micro.rounds import (
    HOTPLATE,
    Effort,
    Figure,
    Outcome,
    Reads,
    Unmeasured,
    at_most,
    figures,
    hotplate_serving,
    interleave,
    path_of,
    ratio,
    read,
)
from bench.micro.spent import Spent, run
from bench.process import RedisServer, Server, on_core, redis_serving
from stores.file.store import LmdbStore

LENGTH, ITEMS = 10, 100_000
# Rows are written so many a file, and so that those of one user lie far apart; prime, and so no factor of their number.
ROWS_A_FILE, STRIDE = 2_000_000, 1_000_000_007
# What is served beside it, and how many users of each are requested.
SMALL_USERS, REQUESTED = 10_000, 20_000
# Bytes of disk for a row: the files, what is sorted, and the stores.
ROOM = 90
IMPORT_MB, SERVE_MB, CPU_RATIO = 1500, 60, 1.15


@dataclass(frozen=True, slots=True)
class Place:
    """Where a release is made: a folder for its lists and its store, and a Redis to copy it to."""

    folder: Path
    redis: RedisServer

    @property
    def files(self) -> str:
        """The URL of the store in the folder."""
        return f"file://{self.folder}/store"

    @property
    def url(self) -> str:
        """The URL of the store in Redis."""
        return self.redis.url("big")


@where_installed
def measure(effort: Effort) -> list[Outcome]:
    """Take the effort's users through all steps, and serve them beside SMALL_USERS."""
    with tempfile.TemporaryDirectory() as made, redis_serving() as redis:
        free = shutil.disk_usage(made).free
        if free < effort.users * LENGTH * ROOM:
            needed_mb = effort.users * LENGTH * ROOM / 1e6
            return [Unmeasured("big release", f"{made} has {free / 1e6:,.0f} MB free; {needed_mb:,.0f} are needed")]
        place = Place(Path(made), redis)
        publish(place, "small", min(SMALL_USERS, effort.users))
        return [*make(place, effort.users), *check(place), *serve(place, effort), *erase(place)]


def write_lists(folder: Path, users: int) -> None:
    """Write LENGTH rows for each user, in no order, into files of a new folder; memory is that of one file."""
    folder.mkdir()
    rows = users * LENGTH
    for start in range(0, rows, ROWS_A_FILE):
        place = np.arange(start, min(start + ROWS_A_FILE, rows)) * STRIDE % rows
        user, rank = np.divmod(place, LENGTH)
        item = (user * 7919 + rank * (rank + 3)) % ITEMS
        numbered = pl.DataFrame({"user": user, "item": item, "score": np.round(1 / (2 + rank) + user % 97 / 1e3, 4)})
        texts = numbered.with_columns(
            pl.col("user").cast(pl.String).str.zfill(8), pl.format("sku{}", "item").alias("item")
        )
        texts.write_parquet(folder / f"{start:012}.parquet")


def publish(place: Place, name: str, users: int) -> Spent:
    """Import lists of so many users into a store of that name in the folder."""
    lists = place.folder / f"{name}-lists"
    write_lists(lists, users)
    try:
        store = f"file://{place.folder}/{name}"
        return run([*HOTPLATE, "import", str(lists), "--store", store, "--encoding", "zstd"])
    finally:
        shutil.rmtree(lists)


def make(place: Place, users: int) -> Iterator[Figure]:
    """Import the lists of *users*, and copy the release to Redis."""
    what = f"{users:,} users"
    yield from step(f"{what}: import", publish(place, "store", users), IMPORT_MB)
    copied = run([*HOTPLATE, "releases", "copy", "--from", place.files, "--to", place.url])
    yield from step(f"{what}: copy to Redis", copied)
    yield Figure(f"{what}: memory of Redis", "MB", [place.redis.used_bytes() / 1e6])


def check(place: Place) -> Iterator[Figure]:
    """Verify, sample and compare the release where it was made and in Redis."""
    live = str(asyncio.run(LmdbStore(place.folder / "store").catalogue()).live)
    for url in (place.files, place.url):
        where = url.partition(":")[0]
        for name, verb in {"verify": [], "sample": ["--sample", "1000"]}.items():
            yield from step(f"{where}: {name}", run([*HOTPLATE, "releases", "verify", "--store", url, *verb]))
        yield from step(f"{where}: diff", run([*HOTPLATE, "releases", "diff", live, live, "--store", url]))


def serve(place: Place, effort: Effort) -> Iterator[Figure]:
    """Serve the large release and the small one, each on the first core, out of files and out of Redis, in turn."""
    urls = {"large, files": (place.files, effort.users), "large, Redis": (place.url, effort.users)}
    urls["small, files"] = f"file://{place.folder}/small", SMALL_USERS
    urls["small, Redis"] = copy_small(place, "small"), SMALL_USERS
    with ExitStack() as stack:
        variants, servers = dict[str, Callable[[], Reads]](), dict[str, Server]()
        for name, (url, users) in urls.items():
            drawn = random.Random(0).choices(range(min(users, effort.users)), k=REQUESTED)  # noqa: S311 -- spreads reads, guards nothing
            servers[name] = stack.enter_context(hotplate_serving(url))
            variants[name] = partial(read, servers[name], [path_of(user) for user in drawn], effort.round_s)
        with on_core(1):
            taken = interleave(variants, effort.rounds)
        private_mb = {name: server.largest_memory_bytes() / 1e6 for name, server in servers.items()}
    for name, reads in taken.items():
        yield figures(f"GET of {name}", [one.sample for one in reads], each="request")[1]
        yield Figure(f"private memory of a worker, {name}", "MB", [private_mb[name]], at_most(SERVE_MB))
    for store in ("files", "Redis"):
        cpus = ([one.sample.cpu_us_per_op for one in taken[f"{size}, {store}"]] for size in ("large", "small"))
        yield ratio(f"GET, large / small, {store}: CPU", *cpus, goal=at_most(CPU_RATIO))


def copy_small(place: Place, prefix: str) -> str:
    """Copy the small release to a deployment in Redis, where it goes live, and return its URL."""
    url = place.redis.url(prefix)
    run([*HOTPLATE, "releases", "copy", "--from", f"file://{place.folder}/small", "--to", url])
    return url


def erase(place: Place) -> Iterator[Figure]:
    """Make the small release live where the large one was, and erase that."""
    url = copy_small(place, "big")
    yield from step(
        "redis: prune", run([*HOTPLATE, "releases", "prune", "--keep", "0", "--grace", "0", "--store", url])
    )


def step(name: str, spent: Spent, peak_mb: float | None = None) -> list[Figure]:
    """Name what a command took."""
    return [
        Figure(f"{name}: peak memory", "MB", [spent.peak_mb], None if peak_mb is None else at_most(peak_mb)),
        Figure(f"{name}: CPU", "s", [spent.cpu_s]),
        Figure(f"{name}: time", "s", [spent.wall_s]),
    ]
