"""One draft written by several: parts that are cut off, written twice or at the same time, and their sums."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import share_of
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.manifest import Tally
from hotplate.stores.publication import (
    ParallelWriters,
    PartContext,
    WrittenPart,
    publish_release,
    take_over,
    write_part,
)
from hotplate.stores.store import Plan, Row, Store
from tests.support.service import a_list
from tests.support.stores import OpenStore, as_bodies, batches, lapse, published_rows

POPULAR = [Row("popular:", a_list("a", "b", "c"))]
PARTS = [[Row(f"user:{part}{n:03}", a_list(f"i{part}", f"j{n}", "k")) for n in range(60)] for part in range(1, 4)]
EVERYTHING = [*POPULAR, *(row for rows in PARTS for row in rows)]
PLAN = Plan(len(EVERYTHING), 20_000)
on_shared_stores = pytest.mark.parametrize("open_store", ["memory", "redis", "cosmos+http"], indirect=True)


async def cut_off(rows: Sequence[Row]) -> AsyncIterator[Sequence[Row]]:
    """Yield the first half of a part, and end as an executor does that is lost."""
    async for batch in batches(rows[: len(rows) // 2], 10):
        yield batch
    raise StoreUnavailable("the executor is gone")


async def write_all(stores: Sequence[Store], context: PartContext) -> WrittenPart:
    """Write the first part after an attempt that was lost, the second twice at once, and the third in the ordinary way.

    Of each, what one attempt returned counts.
    """
    crashed, two, three = stores
    with pytest.raises(StoreUnavailable):
        await write_part(crashed, context, 1, cut_off(PARTS[0]))
    first = await write_part(two, context, 1, batches(PARTS[0], 7))
    second, _ = await asyncio.gather(
        write_part(crashed, context, 2, batches(PARTS[1], 10)), write_part(two, context, 2, batches(PARTS[1], 10))
    )
    third = await write_part(three, context, 3, batches(PARTS[2], 25))
    assert first.rows == 30
    total = Tally()
    for part in (third, first, second):
        total.merge(part.tally)
    return WrittenPart(total, first.rows + second.rows + third.rows)


@on_shared_stores
@pytest.mark.parametrize("encoding", ["json", "zstd"])
async def test_lost_and_repeated_parts_add_up_to_one_release(open_store: OpenStore, encoding: str) -> None:
    store = open_store()
    writers = [open_store() for _ in range(3)]
    sample = as_bodies([row for rows in PARTS for row in rows])
    parallel = ParallelWriters(sample, lambda context: write_all(writers, context))
    result = await publish_release(store, batches(POPULAR), plan=PLAN, encoding=encoding, others=parallel)
    assert result.manifest.counts == {"popular": 1, "user": 180} | ({"meta": 1} if encoding == "zstd" else {})
    assert (await store.catalogue()).live == result.manifest.release
    if encoding == "json":
        assert await published_rows(store, result.manifest.release) == EVERYTHING


@on_shared_stores
async def test_a_part_that_two_write_at_different_speeds_is_complete(open_store: OpenStore) -> None:
    """As Spark's speculative execution does: what the faster attempt wrote is not lost for the slower one."""
    slow, fast = open_store(), open_store()
    faster_is_done = asyncio.Event()

    async def paused(rows: Sequence[Row]) -> AsyncIterator[Sequence[Row]]:
        async for batch in batches(rows, 10):
            yield batch
            await faster_is_done.wait()

    async def twice(context: PartContext) -> WrittenPart:
        slower = asyncio.create_task(write_part(slow, context, 1, paused(PARTS[0])))
        await asyncio.sleep(0)
        await write_part(fast, context, 1, batches(PARTS[0], 7))
        faster_is_done.set()
        return await slower

    store = open_store()
    result = await publish_release(store, batches(POPULAR), plan=PLAN, others=ParallelWriters((), twice))
    assert await published_rows(store, result.manifest.release) == [*POPULAR, *PARTS[0]]


@on_shared_stores
async def test_draft_of_dead_writers_resumes_each_part(open_store: OpenStore) -> None:
    store = open_store()

    async def die(context: PartContext) -> WrittenPart:
        await write_part(store, context, 1, batches(PARTS[0], 10))
        await write_part(store, context, 2, cut_off(PARTS[1]))
        raise AssertionError("it was cut off")

    async def go_on(context: PartContext) -> WrittenPart:
        total = Tally()
        rows = 0
        for part, of_it in enumerate(PARTS, 1):
            written = await write_part(store, context, part, batches(of_it, 10))
            total.merge(written.tally)
            rows += written.rows
        return WrittenPart(total, rows)

    with pytest.raises(StoreUnavailable, match="--resume"):
        await publish_release(store, batches(POPULAR), plan=PLAN, others=ParallelWriters((), die))
    (draft,) = (await store.catalogue()).releases
    await lapse(store)
    result = await publish_release(
        store,
        batches(POPULAR),
        plan=PLAN,
        draft=await take_over(store, ReleaseId(draft.id)),
        others=ParallelWriters((), go_on),
    )
    assert (result.rows, result.skipped) == (90, 91)
    assert await published_rows(store, draft.id) == EVERYTHING


@pytest.mark.parametrize(
    ("url", "share"),
    [
        ("cosmos+http://127.0.0.1:8081/db?ru=4000", "max_ru=500"),
        ("cosmos+http://127.0.0.1:8081/db?ru=400&max_ru=2000", "max_ru=250"),
        ("cosmos+http://127.0.0.1:8081/db?ru=serverless", "ru=serverless"),
        ("redis://127.0.0.1:6379/0?prefix=x", "prefix=x"),
    ],
)
def test_max_ru_is_divided_among_writers(url: str, share: str) -> None:
    url_of_writer = share_of(url, 8)
    assert share in url_of_writer.partition("?")[2].split("&")
    assert url_of_writer.count("max_ru") <= 1
