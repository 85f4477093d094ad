"""What publishing costs: the CPU and the wall time of `stores.lifecycle.publish`, and the bytes that are left on disk."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.lists import Shape
from bench.micro.rounds import Sample
from stores.lifecycle import publish
from stores.lmdb_store import LmdbStore
from stores.store import Row


@dataclass(frozen=True, slots=True)
class Published:
    """What one publish took, making the rows not counted; `file_ratio` is file bytes per byte of keys and values."""

    lists: int
    wall_s: float
    cpu_s: float
    file_ratio: float

    @property
    def sample(self) -> Sample:
        """The same per list."""
        return Sample(self.lists / self.wall_s, self.cpu_s * 1e6 / self.lists)


@dataclass(slots=True)
class Stopwatch:
    """Adds up the time of the blocks that it runs in; lives as long as one publish."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of this block in."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield
        self.wall_s += time.perf_counter() - wall_s
        self.cpu_s += time.process_time() - cpu_s


def publish_once(shape: Shape, values: Sequence[bytes], folder: Path) -> Published:
    """Publish lists of *shape* into *folder*, which is emptied first, and leave the release there."""
    shutil.rmtree(folder, ignore_errors=True)
    return asyncio.run(_publish(shape, values, folder))


async def _publish(shape: Shape, values: Sequence[bytes], folder: Path) -> Published:
    making, whole = Stopwatch(), Stopwatch()
    made = shape.batches(values)

    async def batches() -> AsyncIterator[list[Row]]:
        while True:
            with making.running():
                rows = next(made, None)
            if rows is None:
                return
            yield rows

    store = LmdbStore(folder)
    try:
        with whole.running():
            manifest = (await publish(store, batches(), plan=shape.plan, about={})).manifest
    finally:
        await store.close()
    (file,) = (folder / "releases").glob("*.mdb")
    return Published(
        lists=shape.users,
        wall_s=whole.wall_s - making.wall_s,
        cpu_s=whole.cpu_s - making.cpu_s,
        file_ratio=file.stat().st_size / manifest.bytes,
    )
