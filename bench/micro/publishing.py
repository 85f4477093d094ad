"""Publishing: what it costs a list, and what stays in the store."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hotplate.bench.lists import Shape
from hotplate.bench.micro.harness import Candidates, Case, Effort, Round, Stopwatch, at_most, require_room
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.lifecycle import publish
from hotplate.stores.store import Row

# Bytes of disk that must be free per byte of keys and values: large values leave pages partly empty.
ROOM = 2.0


@dataclass(frozen=True, slots=True)
class Published:
    """One publish: its release, and what it took without the making of rows."""

    release: ReleaseRef
    stored_bytes: int
    round: Round


def publish_to(url: str, shape: Shape, shared: Sequence[bytes], encoding: str = "json") -> Published:
    """Publish lists of *shape*, their values taken from *shared*, again and again, into the store at *url*."""
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


@contextmanager
def _files(effort: Effort) -> Iterator[Candidates]:
    """Publish all users' lists at about 600 bytes."""
    shape = Shape(effort.users, 20)
    with tempfile.TemporaryDirectory() as folder:
        require_room(Path(folder), ROOM * shape.plan.payload_bytes)
        yield {"20 items": partial(_publish_once, shape, shape.values(), Path(folder))}


def _publish_once(shape: Shape, values: Sequence[bytes], folder: Path) -> Round:
    shutil.rmtree(folder / "store", ignore_errors=True)
    published = publish_to(f"file://{folder}/store", shape, values)
    (file,) = (folder / "store" / "releases").glob("*.mdb")
    return {**published.round, "file / data": file.stat().st_size / published.stored_bytes}


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
)
