"""Lists of a model computed and published on Apache Spark; needs the extra `spark`.

Executors write lists as parts of one draft; items and factors are broadcast, blocks carry users and their interactions.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from py4j.protocol import Py4JError
from pyspark import AccumulatorParam, Broadcast
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from hotplate.offline.errors import SettingError
from hotplate.offline.lists import Block, ModelLists, blocks_of, rows_of
from hotplate.offline.measurement import Items, ListCounts, Measurement
from hotplate.offline.publish import prefetched
from hotplate.offline.sources import PartedSource
from hotplate.offline.threads import DaemonThreads
from hotplate.offline.train.spark import cause_of
from hotplate.stores.connect import opened, share_of
from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.manifest import Tally
from hotplate.stores.origin import OriginRecord
from hotplate.stores.publication import PartContext, WrittenPart, write_part
from hotplate.stores.store import ChargeCounter, Observer, Plan, Row
from hotplate.stores.urls import redacted, scheme_of
from hotplate.stores.verification import OnProgress

# Lists for a compression dictionary.
_SAMPLED = 4_096
_POLL_S = 0.2


def check_store(url: str) -> None:
    """Raise SettingError for a store that only one process can write."""
    if scheme_of(url) == "file":
        raise SettingError(f"{redacted(url)} is written by one process, so Spark cannot write it; leave out --master.")


class SparkLists(PartedSource):
    """Lists of a model, written by the executors of a session."""

    def __init__(self, lists: ModelLists, session: SparkSession, url: str) -> None:
        context = session.sparkContext
        self._lists = lists
        self._context = context
        self._url = share_of(url, context.defaultParallelism)
        self._blocks = blocks_of(lists)
        self._shared: Broadcast[ModelLists] = context.broadcast(lists.for_users(lists.model.users(0, 0)))

    def plan(self) -> Plan:
        """See `Source`."""
        return self._lists.plan()

    def about(self) -> OriginRecord:
        """See `Source`."""
        return self._lists.about()

    def items(self) -> Items:
        """See `Source`."""
        return self._lists.items()

    def own_rows(self) -> Iterator[list[Row]]:
        """See `PartedSource`."""
        yield from self._lists.popular()
        yield from self._lists.meta()

    def sample_rows(self) -> list[Row]:
        """See `PartedSource`."""
        model = self._lists.model
        some = self._lists.for_users(model.users(0, _SAMPLED))
        items = len(model.matrix.item_ids)
        return list(chain.from_iterable(chain(some.similar(0, min(items, _SAMPLED)), some.personal())))

    async def write_parts(
        self, context: PartContext, lists: Measurement, observer: Observer | None, on_progress: OnProgress
    ) -> WrittenPart:
        """Write all blocks (ranges of items or users) on executors, each as a part of the draft in *context*.

        A draft is a release that is still being written. Users' lists are counted in *lists*, charges of the store are
        added to *observer*, and *on_progress* is called with (rows written, rows in all). The first failure cancels the
        blocks that wait, and is raised: a StoreError.
        """
        progress = self._context.accumulator(_NO_PROGRESS, _ProgressSum())
        total = self.plan().rows
        job = _PublishJob(self._shared, context, self._url, lists.depth)
        work = partial(_write_blocks, job, progress)

        # Spark blocks the thread that starts a job, so this one polls for progress, failures and the end.
        group = f"hotplate-{secrets.token_hex(8)}"
        running = asyncio.get_running_loop().run_in_executor(DaemonThreads(), self._run_tasks, group, work)
        try:
            while True:
                await asyncio.wait([running], timeout=_POLL_S)
                if progress.value.failed is not None:
                    raise progress.value.failed
                on_progress(min(progress.value.rows, total), total)
                if running.done():
                    return self._sum_parts(running.result(), lists, observer)
        except (Py4JError, PySparkException, ConnectionError) as error:
            where = redacted(self._url)
            raise StoreUnavailable(f"the executors that write to {where} failed: {cause_of(error)}") from error
        finally:
            if not running.done():
                with suppress(Py4JError, ConnectionError):  # Java has ended, and the job with it
                    self._context.cancelJobGroup(group)
                running.add_done_callback(lambda ended: ended.exception())  # retrieves the error of the cancelled job

    def _sum_parts(self, parts: "list[_MeasuredPart]", lists: Measurement, observer: Observer | None) -> WrittenPart:
        """Return the sum of the *parts* that executors have written, one for each block.

        Adds the measures of their lists to *lists*, and their charges to *observer*. Raises StoreUnavailable if parts
        are missing.
        """
        count = len(self._blocks)
        if len(parts) != count:
            raise StoreUnavailable(f"Spark returned {len(parts)} of {count} parts of {redacted(self._url)}")

        tally = Tally()
        rows = 0
        for part in parts:
            tally.merge(part.written.tally)
            rows += part.written.rows
            lists.merge(part.counts)

            if observer is not None:
                observer.charged(part.charges.ru)
                for kind in part.charges.failures:
                    observer.failed(kind)
        return WrittenPart(tally, rows)

    def _run_tasks(
        self, group: str, work: "Callable[[Iterable[Block]], Iterator[_MeasuredPart]]"
    ) -> "list[_MeasuredPart]":
        """Return the results of *work* on each block, one task for each, of a job in *group*."""
        self._context.setJobGroup(group, "hotplate publish")  # applies to this thread's jobs
        parts: list[_MeasuredPart] = (
            self._context.parallelize(self._blocks, len(self._blocks)).mapPartitions(work).collect()
        )
        return parts


@dataclass(frozen=True, slots=True)
class _PublishJob:
    """Input of executors: lists without users, the draft, the store's URL, and the items to sample of a list."""

    lists: "Broadcast[ModelLists]"
    context: PartContext
    url: str
    depth: int


class _Progress(NamedTuple):
    """Progress that executors report: the rows written so far, and the first error."""

    rows: int
    failed: StoreError | None


_NO_PROGRESS = _Progress(0, None)


class _ProgressSum(AccumulatorParam):  # type: ignore[misc]  # pyspark is not typed
    """Adds up reports of executors."""

    def zero(self, value: _Progress) -> _Progress:  # noqa: ARG002 -- Spark's interface
        return _NO_PROGRESS

    def addInPlace(self, value1: _Progress, value2: _Progress) -> _Progress:  # noqa: N802 -- as above
        return _Progress(value1.rows + value2.rows, value1.failed or value2.failed)


class _MeasuredPart(NamedTuple):
    """One part: sums over its rows, measures of its lists, and what the store charged."""

    written: WrittenPart
    counts: ListCounts
    charges: ChargeCounter


def _write_blocks(job: _PublishJob, progress: Any, blocks: Iterable[Block]) -> Iterator[_MeasuredPart]:  # noqa: ANN401 -- an Accumulator
    """Write each block (a range of items or users) as a part of the draft in *job*; runs on an executor.

    *progress* is read by the driver: it gets the rows of each part, and a StoreError. After such an error, the task
    ends as if it had succeeded, so that Spark does not retry it; the driver raises the error.
    """
    for block in blocks:
        try:
            part = asyncio.run(_write_block(job, block))
        except StoreError as error:
            progress.add(_Progress(0, error))
            return

        progress.add(_Progress(part.written.tally.rows, None))
        yield part


async def _write_block(job: _PublishJob, block: Block) -> _MeasuredPart:
    """Compute the lists of a block (a range of items or users), and write them as a part of the draft in *job*.

    A draft is a release that is still being written, by several executors. Returns sums over the rows, measures of the
    users' lists, and the store's charges. Lists are computed and measured in a thread while the previous ones are
    written. Raises StoreError.
    """
    model_lists = job.lists.value  # sent once to each executor, without users; the block has its own
    measurement = Measurement(model_lists.items(), job.depth)
    rows = rows_of(model_lists, block, measurement.add)

    charges = ChargeCounter()
    waited_s = dict[str, float]()  # not reported
    async with opened(job.url, charges) as store, aclosing(prefetched(rows, waited_s)) as batches:
        written = await write_part(store, job.context, block.part, batches)
    return _MeasuredPart(written, measurement.counts(), charges)
