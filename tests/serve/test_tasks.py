"""Background tasks: work that is repeated goes on after errors, which are logged at a bounded rate."""

import asyncio
import logging

import pytest

from hotplate.serve.log_once import LOG_EVERY_S
from hotplate.serve.tasks import background, repeat
from tests.support.virtual import virtual


@virtual
async def test_repeated_work_goes_on_after_errors_and_logs_them_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        if calls <= LOG_EVERY_S + 1:
            raise RuntimeError("a defect")

    with caplog.at_level(logging.ERROR):
        async with background(repeat(work, 1.0, "counting")):
            await asyncio.sleep(2 * LOG_EVERY_S + 0.5)
    assert calls == 2 * LOG_EVERY_S
    assert [record.getMessage() for record in caplog.records] == [
        "counting failed (errors: 1); trying again",
        f"counting failed (errors: {LOG_EVERY_S:.0f}); trying again",
    ]
    assert "RuntimeError: a defect" in caplog.text


@virtual
async def test_background_work_that_ends_by_an_error_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise RuntimeError("a defect")

    async with background(work()):
        await asyncio.sleep(1)
    assert "work in the background has ended" in caplog.text
