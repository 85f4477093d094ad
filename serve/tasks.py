"""Tasks that run until their owner ends: in the background of a block, or again and again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from hotplate.base.timing import loop_time
from hotplate.serve.log_once import LOG_EVERY_S, LogOnce
from hotplate.stores.concurrency import end_tasks

log = logging.getLogger(__name__)


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine until the block ends."""
    task = asyncio.create_task(work)
    task.add_done_callback(partial(log_defect, "work in the background has ended"))
    try:
        yield
    finally:
        await end_tasks(task)


def log_defect(what: str, task: asyncio.Task[None]) -> None:
    """Log the error of a task that should not end."""
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        log.error(what, exc_info=error)


async def repeat(work: Callable[[], Awaitable[None]], interval_s: float, name: str) -> None:
    """Do *work* every *interval_s* seconds, the first time after one interval, until cancelled.

    An error does not end it. The first one is logged, and later ones every LOG_EVERY_S with their number. *name* is the
    subject of the sentence in the log.
    """
    failing = LogOnce(again_s=LOG_EVERY_S, clock=loop_time)
    while True:
        await asyncio.sleep(interval_s)
        try:
            await work()
        except Exception:
            failures = failing.met()
            if failures:
                log.exception("%s failed (errors: %d); trying again", name, failures)
