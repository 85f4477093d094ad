"""Publishing: what it costs a list, and what stays on disk."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.lists import Shape
from bench.micro.rounds import (
    Effort,
    Figure,
    Outcome,
    Sample,
    Stopwatch,
    Unmeasured,
    at_most,
    figures,
    interleave,
)
from stores.catalogue import ReleaseRef
from stores.compression import encode_rows
from stores.connect import connect
from stores.encoding import Checksum
from stores.lifecycle import publish
from stores.store import Row, Store

MAIN, TITLED = "20-items", "20-titled-items"
USUAL = {MAIN, TITLED}
# Bytes that must be free per byte of keys and values: large values leave pages partly empty.
ROOM = 2.0
CPU_US_PER_LIST = 5
FILE_RATIO = 1.2
UP_TO_BYTES = 600


@dataclass(frozen=True, slots=True)
class Published:
    """One publish: all of it, the part that made rows, and the same rows made and compressed once more."""

    lists: int
    release: ReleaseRef
    stored_bytes: int
    whole: Stopwatch
    preparing: Stopwatch
    making: Stopwatch

    @property
    def sample(self) -> Sample:
        """The rate, without the making of rows, and the CPU of a list, without its compression either."""
        rate_per_s = self.lists / (self.whole.wall_s - self.making.wall_s)
        return Sample(rate_per_s, (self.whole.cpu_s - self.preparing.cpu_s) * 1e6 / self.lists)

    @property
    def compression_cpu_us(self) -> float:
        """The CPU of compressing a list, the training of the dictionary included."""
        return (self.preparing.cpu_s - self.making.cpu_s) * 1e6 / self.lists


def publish_to(url: str, shape: Shape, shared: Sequence[bytes], encoding: str = "json") -> Published:
    """Publish lists of *shape*, their values taken in turn from *shared*, into the store at *url*."""

    async def published() -> Published:
        store = connect(url)
        try:
            return await _publish(store, shape, shared, encoding)
        finally:
            await store.close()

    return asyncio.run(published())


async def _publish(store: Store, shape: Shape, shared: Sequence[bytes], encoding: str) -> Published:
    whole, preparing, making = Stopwatch(), Stopwatch(), Stopwatch()

    async def rows() -> AsyncIterator[list[Row]]:
        for batch in shape.batches(shared):
            yield batch

    async def watched(batches: AsyncIterator[list[Row]], watch: Stopwatch) -> AsyncIterator[list[Row]]:
        while True:
            with watch.running():
                batch = await anext(batches, None)
            if batch is None:
                return
            yield batch

    with whole.running():
        written = await publish(store, watched(rows(), making), plan=shape.plan, about={}, encoding=encoding)
    if encoding == "json":
        preparing = making
    else:
        with preparing.running():
            async for _ in (await encode_rows(rows(), shape.plan, encoding, Checksum("measured"))).batches:
                pass
    release = (await store.catalogue()).live_ref
    if release is None:
        raise RuntimeError("nothing is live after a publish")
    return Published(shape.users, release, written.manifest.bytes, whole, preparing, making)


def measure_files(effort: Effort) -> list[Outcome]:
    """Publish lists of several shapes into files; skipped where the disk lacks room."""
    shapes = shapes_for(effort.users)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        needed = ROOM * sum(shape.plan.payload_bytes for shape in shapes.values())
        free = shutil.disk_usage(folder).free
        if free < needed:
            return [Unmeasured("files", f"{made} has {free / 1e6:,.0f} MB free; {needed / 1e6:,.0f} MB are needed")]
        values = {name: shape.values() for name, shape in shapes.items()}
        variants = {name: partial(publish_once, shape, values[name], folder / name) for name, shape in shapes.items()}
        taken = interleave(variants, effort.rounds)
        return [figure for name, shape in shapes.items() for figure in publishing_figures(shape, name, taken[name])]


def shapes_for(users: int) -> Mapping[str, Shape]:
    """Choose what is published: all users' lists at about 600 bytes, and other sizes of value with a tenth of them."""
    tenth = max(users // 10, 1)
    return {
        MAIN: Shape(users, items=20),
        "10-items": Shape(tenth, items=10),
        TITLED: Shape(tenth, items=20, title_chars=19),
        "20-long-titled-items": Shape(tenth, items=20, title_chars=84),
    }


def publish_once(shape: Shape, values: Sequence[bytes], folder: Path) -> tuple[Published, float]:
    """Publish into *folder*, which is emptied first; return also the bytes of file per byte of keys and values."""
    shutil.rmtree(folder, ignore_errors=True)
    published = publish_to(f"file://{folder}", shape, values)
    (file,) = (folder / "releases").glob("*.mdb")
    return published, file.stat().st_size / published.stored_bytes


def publishing_figures(shape: Shape, name: str, taken: Sequence[tuple[Published, float]]) -> list[Figure]:
    """Name the publishes of one shape; the goals are for the two usual lists, and for values of up to 600 bytes."""
    what = f"file://, publish {shape.users:,} lists of {name.replace('-', ' ')}, {shape.value_bytes:,} B"
    cpu_goal = at_most(CPU_US_PER_LIST) if name in USUAL else None
    size_goal = at_most(FILE_RATIO) if shape.value_bytes <= UP_TO_BYTES else None
    samples = [published.sample for published, _ in taken]
    return [
        *figures(f"{what}, making of rows not counted", samples, each="list", cpu_goal=cpu_goal),
        Figure(f"{what}: file / keys and values", "ratio", [file_ratio for _, file_ratio in taken], size_goal),
    ]
