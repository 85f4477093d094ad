"""Lists for Redis: as a model gives them, popular items in more of them, so that they compress as real lists do."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.micro.lists import DISTINCT, ITEMS, Shape
from bench.micro.publishing import Stopwatch
from stores.compression import compress
from stores.connect import connect
from stores.encoding import ItemEncoder
from stores.manifest import Manifest
from stores.release import publish
from stores.store import Row, Store

ENCODINGS = ("json", "zstd")
LIST_LENGTH = 20


def values(shape: Shape) -> list[bytes]:
    """Draw the values that the rows share: different items by a Zipf law, scores of four digits, best first."""
    chance = np.random.default_rng(0)
    encoder = ItemEncoder([str(1000 + item) for item in range(ITEMS)], [None] * ITEMS)
    weights = 1 / np.arange(10, ITEMS + 10)
    weights /= weights.sum()
    return [
        encoder.encode(
            chance.choice(ITEMS, shape.items, replace=False, p=weights).tolist(),
            np.sort(chance.uniform(0.1, 1.0, shape.items).round(4))[::-1].tolist(),
        )
        for _ in range(DISTINCT)
    ]


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
