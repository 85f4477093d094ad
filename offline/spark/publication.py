"""Lists of a model computed on Spark's executors, block by block, and written from there as parts of one draft.

The items, their factors and what else all lists have in common are broadcast; a block brings its users, with what they
have. What comes back of a part are the sums over its rows.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from py4j.protocol import Py4JError
from pyspark import AccumulatorParam, Broadcast
from pyspark.sql import SparkSession

from hotplate.offline.errors import SettingError
from hotplate.offline.input.matrix import Indices
from hotplate.offline.lists import Block, ModelLists, blocks_of, rows_of
from hotplate.offline.measurement import Items, ListCounts, Measurement, Observe, ignore
from hotplate.offline.publish import PartedSource, prefetched
from hotplate.offline.spark.session import cause_of, is_local
from hotplate.offline.threads import DaemonThreads
from hotplate.stores.connect import connect, share_of
from hotplate.stores.errors import (
    ReleaseConflict,
    ReleaseNotFound,
    StoreError,
    StoreFull,
    StoreMisused,
    StoreUnavailable,
)
from hotplate.stores.manifest import Tally
from hotplate.stores.publication import PartContext, WrittenPart, write_part
from hotplate.stores.store import Observer, Plan, Row
from hotplate.stores.urls import redacted, scheme_of
from hotplate.stores.verification import OnProgress

# What is observed of users' lists.
Observed = tuple[Sequence[str], Indices, Indices]
# How many lists are computed here for a dictionary to be learnt from.
_SAMPLED = 4_096
# One process writes these stores, on the machine where they are.
_OF_ONE_PROCESS = frozenset({"file"})
# How often it is looked whether the executors are done.
_POLL_S = 0.2
# What an executor's error is here; the first that it is a kind of.
_KINDS = (ReleaseConflict, ReleaseNotFound, StoreFull, StoreMisused, StoreUnavailable, StoreError)


def check_store(url: str, master: str) -> None:
    """Raise SettingError where neither the executors of *master* nor its driver can write the store at *url*."""
    if scheme_of(url) in _OF_ONE_PROCESS and not is_local(master):
        raise SettingError(
            f"{redacted(url)} is written by one process on one machine; publish to redis:// or cosmos:// from "
            f"{master}, or run on --master local[*]."
        )


class SparkLists(PartedSource):
    """All lists of one model, computed on the executors of a session; a ListSource that lives as long as one publish.

    A store that many processes can write is written by the executors; the others get their rows through the driver.
    Raises SettingError as `check_store` does.
    """

    def __init__(self, lists: ModelLists, session: SparkSession, url: str) -> None:
        context = session.sparkContext
        check_store(url, context.master)
        self.is_written_in_parts = scheme_of(url) not in _OF_ONE_PROCESS
        self._lists = lists
        self._context = context
        self._url = share_of(url, context.defaultParallelism)
        self._of_items, self._of_users = blocks_of(lists)
        self._shared: Broadcast[ModelLists] = context.broadcast(lists.for_users(lists.model.users(0, 0)))

    def plan(self) -> Plan:
        """See `ListSource`."""
        return self._lists.plan()

    def about(self) -> dict[str, Any]:
        """See `ListSource`."""
        return self._lists.about()

    def items(self) -> Items:
        """See `ListSource`."""
        return self._lists.items()

    def batches(self, observe: Observe = ignore) -> Iterator[list[Row]]:
        """See `ListSource`; as many blocks at once as there are cores, whose rows come here."""
        yield from self._computed(self._of_items, observe)
        yield self._lists.popular()
        yield from self._computed(self._of_users, observe)
        yield from self._lists.factors()

    def _computed(self, blocks: Sequence[Block], observe: Observe) -> Iterator[list[Row]]:
        step = max(1, self._context.defaultParallelism)
        for first in range(0, len(blocks), step):
            for rows, observed in self._run(blocks[first : first + step], partial(_compute, self._shared)):
                for lists in observed:
                    observe(*lists)
                yield rows

    def own(self) -> Iterator[list[Row]]:
        """See `PartedSource`."""
        yield self._lists.popular()
        yield from self._lists.factors()

    def sample(self) -> list[Row]:
        """See `PartedSource`."""
        model = self._lists.model
        some, items = self._lists.for_users(model.users(0, _SAMPLED)), len(model.matrix.item_ids)
        return list(chain.from_iterable(chain(some.similar(0, min(items, _SAMPLED)), some.personal())))

    async def write_parts(
        self, context: PartContext, lists: Measurement | None, observer: Observer | None, on_progress: OnProgress
    ) -> WrittenPart:
        """See `PartedSource`; once the first part fails, those that are not begun are not begun any more."""
        blocks = [*self._of_items, *self._of_users]
        noted, total = self._context.accumulator(_NOTHING, _Noting()), self.plan().rows
        job = _PublishJob(self._shared, context, self._url, None if lists is None else lists.depth)
        work = partial(_write, job, noted)
        running = asyncio.get_running_loop().run_in_executor(DaemonThreads(), self._run, blocks, work)
        try:
            while True:
                await asyncio.wait([running], timeout=_POLL_S)
                if (failed := noted.value.failed) is not None:
                    raise failed
                on_progress(min(noted.value.rows, total), total)
                if running.done():
                    return self._sum(running.result(), len(blocks), lists, observer)
        except Py4JError as error:
            where = redacted(self._url)
            raise StoreUnavailable(f"the executors that write to {where} failed: {cause_of(error)}") from error
        finally:
            if not running.done():
                self._context.cancelAllJobs()
                running.add_done_callback(lambda ended: ended.exception())  # it is known why

    def _sum(
        self, parts: "list[_MeasuredPart]", wanted: int, lists: Measurement | None, observer: Observer | None
    ) -> WrittenPart:
        """Add up *parts*; StoreUnavailable unless there are as many as *wanted*, because then the sums say nothing."""
        if len(parts) != wanted:
            raise StoreUnavailable(f"Spark returned {len(parts)} of {wanted} parts of {redacted(self._url)}")
        everything, rows = Tally(), 0
        for written, counts, charges in parts:
            everything.merge(written.tally)
            rows += written.rows
            if lists is not None and counts is not None:
                lists.merge(counts)
            if observer is not None:
                observer.charged(charges.ru)
                for kind in charges.failures:
                    observer.failed(kind)
        return WrittenPart(everything, rows)

    def _run(self, blocks: Sequence[Block], work: Callable[[Iterable[Block]], Iterator[Any]]) -> list[Any]:
        """Return what a task makes of each block, in order: whatever attempts there were, the result of one."""
        results: list[Any] = self._context.parallelize(blocks, len(blocks)).mapPartitions(work).collect()
        return results


@dataclass(frozen=True, slots=True)
class _PublishJob:
    """What all tasks of one publish have in common; pickled with each."""

    lists: "Broadcast[ModelLists]"
    context: PartContext
    url: str
    depth: int | None


class _Noted(NamedTuple):
    """What tasks have reported to the driver so far: rows that are written, and the first failure."""

    rows: int
    failed: StoreError | None


_NOTHING = _Noted(0, None)


class _Noting(AccumulatorParam):  # type: ignore[misc]  # mypy knows nothing of pyspark
    """Adds up what tasks report."""

    def zero(self, value: _Noted) -> _Noted:  # noqa: ARG002 -- as Spark wants it
        return _NOTHING

    def addInPlace(self, value1: _Noted, value2: _Noted) -> _Noted:  # noqa: N802 -- as above
        return _Noted(value1.rows + value2.rows, value1.failed or value2.failed)


class _ChargeCounter:
    """Counts what an executor is charged; see `Observer`."""

    def __init__(self) -> None:
        self.ru = 0.0
        self.failures = list[str]()

    def charged(self, ru: float) -> None:
        self.ru += ru

    def failed(self, kind: str) -> None:
        self.failures.append(kind)


class _MeasuredPart(NamedTuple):
    """What an executor did: what it wrote, counts of its users' lists if gates want them, and what it was charged."""

    written: WrittenPart
    counts: ListCounts | None
    charges: _ChargeCounter


def _compute(shared: "Broadcast[ModelLists]", blocks: Iterable[Block]) -> Iterator[tuple[list[Row], list[Observed]]]:
    """Compute the rows of blocks on an executor, and what is to be observed of them."""
    for block in blocks:
        observed = list[Observed]()

        def observe(users: Sequence[str], items: Indices, lengths: Indices) -> None:
            observed.append((users, items, lengths))  # noqa: B023 -- it is called while this block is computed

        for rows in rows_of(shared.value, block, observe):
            yield rows, observed[:]
            observed.clear()
        yield [], observed


def _write(job: _PublishJob, noted: Any, blocks: Iterable[Block]) -> Iterator[_MeasuredPart]:  # noqa: ANN401 -- an Accumulator
    """Write blocks as parts on an executor; a StoreError is reported, and ends the task without a result."""
    for block in blocks:
        try:
            made = asyncio.run(_write_block(job, block))
        except StoreError as error:
            kind = next(kind for kind in _KINDS if isinstance(error, kind))
            noted.add(_Noted(0, kind(str(error))))
            return
        noted.add(_Noted(made.written.tally.rows, None))
        yield made


async def _write_block(job: _PublishJob, block: Block) -> _MeasuredPart:
    lists, charges = job.lists.value, _ChargeCounter()
    measured = None if job.depth is None else Measurement(lists.items(), job.depth)
    rows = rows_of(lists, block, ignore if measured is None else measured.add)
    store = connect(job.url, charges)
    try:
        async with aclosing(prefetched(rows, {})) as bodies:
            written = await write_part(store, job.context, block.part, bodies)
    finally:
        await store.close()
    counts = None if measured is None else measured.counts()
    return _MeasuredPart(written, counts, charges)
