"""Pacing, and deadlines that many reads share."""

import asyncio

import pytest

from hotplate.base.timing import MIN_PAUSE_S, TICK_S, Pacer, TaskDeadlines
from tests.support.virtual import virtual


def test_pauses_keep_a_writer_to_its_share_of_the_time() -> None:
    pacer = Pacer(0.25)
    latency_s = 0.0004
    pauses_s = [pacer.pause_s(latency_s) for _ in range(1000)]
    assert sum(pauses_s) == pytest.approx(3 * latency_s * 1000, rel=0.01)
    assert all(pause_s == 0 or pause_s >= MIN_PAUSE_S for pause_s in pauses_s)


def after(seconds: float) -> float:
    """Return the loop's time in this many seconds."""
    return asyncio.get_running_loop().time() + seconds


@virtual
async def test_late_task_is_ended_and_cancelled() -> None:
    deadlines = TaskDeadlines()
    ended = list[str]()

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
async def test_task_continues_after_its_read_timed_out() -> None:
    deadlines = TaskDeadlines()
    with pytest.raises(TimeoutError):
        await deadlines.until(after(0.01), asyncio.sleep(30))
    await asyncio.sleep(0.02)
    assert await deadlines.until(after(1), asyncio.sleep(0.001, "next")) == "next"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@virtual
async def test_outer_cancellations_and_timeouts_are_passed_on() -> None:
    deadlines = TaskDeadlines()
    task = asyncio.create_task(deadlines.until(after(30), asyncio.sleep(30)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for outer_s, inner_s in ((0.01, 30), (60, 0.01)):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(outer_s):
                await deadlines.until(after(inner_s), asyncio.sleep(30))
