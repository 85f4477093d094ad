"""Deadlines that many reads share: each is ended in time, and no other cancellation is mistaken for one."""

import asyncio

import pytest

from hotplate.stores.deadlines import TICK_S, TaskDeadlines
from tests.support.virtual import virtual


def after(seconds: float) -> float:
    """Return the time of the loop's clock so many seconds from now."""
    return asyncio.get_running_loop().time() + seconds


@virtual
async def test_what_is_in_time_is_returned() -> None:
    deadlines = TaskDeadlines()
    assert await deadlines.until(after(5), asyncio.sleep(0.001, "done")) == "done"
    await asyncio.gather(*(deadlines.until(after(0.01), asyncio.sleep(0)) for _ in range(100)))


@virtual
async def test_what_takes_too_long_is_ended_and_cancelled() -> None:
    deadlines, ended = TaskDeadlines(), list[str]()

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("cleaned up")

    started = after(0)
    outcomes = await asyncio.gather(*(deadlines.until(after(0.02), slow()) for _ in range(50)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {TimeoutError}
    assert len(ended) == 50
    assert 0.02 <= after(0) - started <= 0.02 + 2 * TICK_S


@virtual
async def test_a_task_goes_on_after_its_read_was_ended() -> None:
    deadlines = TaskDeadlines()
    with pytest.raises(TimeoutError):
        await deadlines.until(after(0.01), asyncio.sleep(30))
    await asyncio.sleep(0.02)
    assert await deadlines.until(after(1), asyncio.sleep(0.001, "next")) == "next"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@virtual
async def test_a_task_that_is_cancelled_from_outside_is_cancelled() -> None:
    task = asyncio.create_task(TaskDeadlines().until(after(30), asyncio.sleep(30)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@virtual
async def test_a_deadline_inside_another_timeout_leaves_that_one_whole() -> None:
    deadlines = TaskDeadlines()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await deadlines.until(after(30), asyncio.sleep(30))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await deadlines.until(after(0.01), asyncio.sleep(30))
