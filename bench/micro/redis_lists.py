"""Lists for Redis, published in either encoding, with a watch on each part of the work."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from bench.lists import Shape
from bench.micro.publishing import Stopwatch
from stores.compression import compress
from stores.connect import connect
from stores.lifecycle import publish
from stores.manifest import Manifest
from stores.store import Row, Store

ENCODINGS = ("json", "zstd")
LIST_LENGTH = 20


@dataclass(frozen=True, slots=True)
class Watches:
    """What one publish took: all in all, for the making of rows and their compression, and for the making alone."""

    whole: Stopwatch = field(default_factory=Stopwatch)
    preparing: Stopwatch = field(default_factory=Stopwatch)
    making: Stopwatch = field(default_factory=Stopwatch)


async def publish_lists(
    store: Store, shape: Shape, shared: Sequence[bytes], encoding: str, watches: Watches
) -> Manifest:
    """Publish lists of *shape*, their values taken in turn from *shared*, and make them live."""
    made = shape.batches(shared)

    async def rows() -> AsyncIterator[list[Row]]:
        while True:
            with watches.making.running():
                batch = next(made, None)
            if batch is None:
                return
            yield batch

    async def prepared(batches: AsyncIterator[list[Row]]) -> AsyncIterator[list[Row]]:
        while True:
            with watches.preparing.running():
                batch = await anext(batches, None)
            if batch is None:
                return
            yield batch

    with watches.whole.running():
        batches, plan = rows(), shape.plan
        if encoding == "zstd":
            with watches.preparing.running():
                compressed = await compress(batches, plan)
            return await publish(store, prepared(compressed.batches), plan=compressed.plan, about={}, encoding=encoding)
        return await publish(store, prepared(batches), plan=plan, about={}, encoding=encoding)


def fill(url: str, shape: Shape, shared: Sequence[bytes], encoding: str) -> Manifest:
    """Publish into the store at *url*, for others to read."""

    async def run() -> Manifest:
        store = connect(url)
        try:
            return await publish_lists(store, shape, shared, encoding, Watches())
        finally:
            await store.close()

    return asyncio.run(run())
