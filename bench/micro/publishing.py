"""Publishing: what it costs a list, and what stays in the store."""

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bench.lists import Shape
from bench.micro.harness import Candidates, Case, Effort, Goal, Round, Skipped, Stopwatch, at_most
from bench.micro.servers import HOTPLATE, LIST_LENGTH
from bench.micro.spent import run
from bench.micro.training_data import RETAIL, RETAIL_OPTIONS
from bench.process import REDIS_MISSING, RedisServer, emulator_serving, on_core, redis_installed, redis_serving
from stores.catalogue import ReleaseRef
from stores.connect import connect
from stores.factors import Description, Entry, description_row, pieces
from stores.lifecycle import publish
from stores.store import Plan, Row

# Bytes of disk that must be free per byte of keys and values: large values leave pages partly empty.
ROOM = 2.0


@dataclass(frozen=True, slots=True)
class Published:
    """One publish: its release, and what it took without the making of rows."""

    release: ReleaseRef
    stored_bytes: int
    round: Round


def publish_to(url: str, shape: Shape, shared: Sequence[bytes], encoding: str = "json") -> Published:
    """Publish lists of *shape*, their values taken in turn from *shared*, into the store at *url*."""
    whole, making = Stopwatch(), Stopwatch()

    async def rows() -> AsyncIterator[list[Row]]:
        batches = shape.batches(shared)
        while True:
            with making.running():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    async def published() -> Published:
        store = connect(url)
        try:
            with whole.running():
                written = await publish(store, rows(), plan=shape.plan, about={}, encoding=encoding)
            live = (await store.catalogue()).live_ref
            if live is None:
                raise RuntimeError("nothing is live after a publish")
            rate = shape.users / (whole.wall_s - making.wall_s)
            cpu_us = (whole.cpu_s - making.cpu_s) * 1e6 / shape.users
            return Published(live, written.manifest.bytes, {"rate": rate, "CPU": cpu_us})
        finally:
            await store.close()

    return asyncio.run(published())


def publish_factors(url: str, shape: Shape, items: int, factors: int) -> None:
    """Publish a list for each user, and item factors as large as those of a model."""
    drawn = np.random.default_rng(0).normal(0, 0.1, (items, factors)).astype("<f4")
    named = ((Entry(f"i{number}", f"Title {number:011}"), row.tobytes()) for number, row in enumerate(drawn))
    rows = list(pieces(named))
    described = Description("als", items, factors, len(rows), regularization=30.0, alpha=4.0, weight=1.0)
    plan = Plan(shape.plan.rows + len(rows) + 1, shape.plan.payload_bytes + drawn.nbytes, drawn.nbytes)

    async def batches() -> AsyncIterator[list[Row]]:
        for batch in shape.batches(shape.values()):
            yield batch
        for row in (*rows, description_row(described)):
            yield [row]

    async def published() -> None:
        store = connect(url)
        try:
            await publish(store, batches(), plan=plan, about={})
        finally:
            await store.close()

    asyncio.run(published())


@contextmanager
def _files(effort: Effort) -> Iterator[Candidates]:
    """Publish all users' lists at about 600 bytes, and a tenth of them with titles."""
    shapes = {"20 items": Shape(effort.users, 20), "with titles": Shape(max(effort.users // 10, 1), 20, title_chars=84)}
    with tempfile.TemporaryDirectory() as folder:
        free, needed = shutil.disk_usage(folder).free, ROOM * max(one.plan.payload_bytes for one in shapes.values())
        if free < needed:
            raise Skipped(f"{folder} has {free / 1e6:,.0f} MB free; {needed / 1e6:,.0f} MB are needed")
        yield {name: partial(_publish_once, shape, shape.values(), Path(folder)) for name, shape in shapes.items()}


def _publish_once(shape: Shape, values: Sequence[bytes], folder: Path) -> Round:
    shutil.rmtree(folder / "store", ignore_errors=True)
    published = publish_to(f"file://{folder}/store", shape, values)
    (file,) = (folder / "store" / "releases").glob("*.mdb")
    return {**published.round, "file / data": file.stat().st_size / published.stored_bytes}


@contextmanager
def _redis(effort: Effort) -> Iterator[Candidates]:
    """Publish a fifth of the effort's users in both encodings, each time into an empty server."""
    if not redis_installed():
        raise Skipped(REDIS_MISSING)
    shape = Shape(max(effort.users // 5, 1), LIST_LENGTH)
    with redis_serving() as server, on_core(0):
        shared = shape.drawn()
        yield {encoding: partial(_publish_to_empty, server, shape, shared, encoding) for encoding in ("json", "zstd")}


def _publish_to_empty(server: RedisServer, shape: Shape, shared: Sequence[bytes], encoding: str) -> Round:
    server.clear()
    before_bytes, before_s = server.used_bytes(), server.cpu_s()
    published = publish_to(server.url(), shape, shared, encoding)
    return {
        **published.round,
        "CPU of the store's server": (server.cpu_s() - before_s) * 1e6 / shape.users,
        "bytes": (server.used_bytes() - before_bytes) / shape.users,
    }


@contextmanager
def _cosmos(_effort: Effort) -> Iterator[Candidates]:
    """Train on Online Retail once, and publish it at 1,000 RU/s, with --dry-run and without."""
    if not RETAIL.exists():
        raise Skipped(f"the data set is not at {RETAIL}")
    with ExitStack() as stack:
        model = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
        server = stack.enter_context(emulator_serving(core=0))
        run([*HOTPLATE, "train", str(RETAIL), *RETAIL_OPTIONS, "--no-tune", "--out", str(model)])

        def publish_model(*options: str) -> Round:
            command = [*HOTPLATE, "publish", str(model), "--store", f"cosmos+{server.url}/db", "--max-ru", "1000"]
            done = subprocess.run([*command, "--json", *options], capture_output=True, text=True, check=False)  # noqa: S603 -- our own
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
            found = json.loads(done.stdout)
            spent = found if options else found["spent"]
            return {"time": spent["seconds"], "charge": spent["request_units"]}

        yield {"dry run": partial(publish_model, "--dry-run"), "publish": publish_model}


CASES = (
    Case(
        "files",
        _files,
        {"20 items: CPU": at_most(5), "20 items: file / data": at_most(1.2)},
        {
            "20 items: CPU": "publishing 1,000,000 lists of 20 items (598 bytes) to files: CPU of a list",
            "20 items: rate": "the same: lists/s",
            "20 items: file / data": "the same: size of the file, compared with keys and values",
        },
    ),
    Case(
        "redis_publishing",
        _redis,
        {"json: CPU": at_most(5)},
        {
            "json: CPU": "publishing lists of 20 items to Redis: CPU of a list",
            "json: bytes": "memory of Redis for a list of 596 bytes: as json",
            "zstd: bytes": "the same: as zstd",
        },
    ),
    Case(
        "cosmos_publishing",
        _cosmos,
        {"publish / dry run: time": Goal(0.85, 1.15), "publish / dry run: charge": Goal(0.99, 1.01)},
        {
            "publish / dry run: time": "publishing to Cosmos DB (local emulator), compared with its dry run: time",
            "publish / dry run: charge": "the same: request units",
        },
        rounds=1,
    ),
)
