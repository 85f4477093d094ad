"""Deadlines that many reads share: each is ended in time, and no other cancellation is mistaken for one."""

import asyncio
import time

import pytest

from serve.deadlines import Deadlines


async def test_what_is_in_time_is_returned_and_leaves_nothing_behind() -> None:
    deadlines = Deadlines()
    assert await deadlines.within(5, asyncio.sleep(0.001, "done")) == "done"
    await asyncio.gather(*(deadlines.within(0.01, asyncio.sleep(0)) for _ in range(100)))
    await asyncio.sleep(0.03)
    assert not deadlines._ended
    assert len(deadlines._due) <= 1


async def test_what_takes_too_long_is_ended_and_cancelled() -> None:
    deadlines, ended = Deadlines(), list[str]()

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("cleaned up")

    started = time.monotonic()
    outcomes = await asyncio.gather(*(deadlines.within(0.02, slow()) for _ in range(50)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {TimeoutError}
    assert len(ended) == 50
    assert 0.02 <= time.monotonic() - started < 10


async def test_a_task_goes_on_after_its_read_was_ended() -> None:
    deadlines = Deadlines()
    with pytest.raises(TimeoutError):
        await deadlines.within(0.01, asyncio.sleep(30))
    await asyncio.sleep(0.02)
    assert await deadlines.within(1, asyncio.sleep(0.001, "next")) == "next"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_failure_passes_through() -> None:
    async def failing() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await Deadlines().within(1, failing())


async def test_a_task_that_somebody_else_cancels_is_cancelled() -> None:
    task = asyncio.create_task(Deadlines().within(30, asyncio.sleep(30)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_deadline_inside_another_timeout_leaves_that_one_whole() -> None:
    deadlines = Deadlines()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await deadlines.within(30, asyncio.sleep(30))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30):
            await deadlines.within(0.01, asyncio.sleep(30))


async def test_a_read_that_ends_in_the_same_turn_as_its_deadline_is_one_or_the_other() -> None:
    deadlines = Deadlines()

    async def read() -> str:
        try:
            return await deadlines.within(0.01, asyncio.sleep(0.0105, "done"))
        except TimeoutError:
            return "late"

    outcomes = await asyncio.gather(*(read() for _ in range(300)))
    assert set(outcomes) <= {"done", "late"}
    assert not deadlines._ended
