"""The latest lines of all processes: kept in order, cut where they are long, and free of what must not be shown."""

import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.processes.shared_log import LINES, LogLine, SharedLog, SharedLogHandler, without_secrets

KEY = "hp_" + "Ab9-_" * 8


def logged(shared: SharedLog, message: str, *arguments: object, error: BaseException | None = None) -> None:
    record = logging.LogRecord(
        "serve.test", logging.WARNING, "", 0, message, arguments, (type(error), error, None) if error else None
    )
    SharedLogHandler(shared).emit(record)


def test_lines_of_all_processes_are_read_in_order_and_each_once() -> None:
    shared = SharedLog(2)
    for number in range(3):
        shared.use_slot(number % 2)
        logged(shared, "line %d", number)
    lines, counts = shared.since([0, 0])
    assert [line.message for line in lines] == ["line 0", "line 1", "line 2"]
    assert {line.process for line in lines} == {os.getpid()}
    assert shared.since(counts) == ([], counts)


def test_a_ring_keeps_the_latest_lines() -> None:
    shared = SharedLog(1)
    for number in range(LINES + 10):
        logged(shared, str(number))
    lines, counts = shared.since([0])
    assert [line.message for line in lines] == [str(number) for number in range(10, LINES + 10)]
    assert counts == [LINES + 10]


def test_another_process_writes_into_the_same_memory() -> None:
    shared = SharedLog(2)
    pid = os.fork()
    if pid == 0:
        shared.use_slot(0)
        logged(shared, "from the child")
        os._exit(0)
    os.waitpid(pid, 0)
    ((line,), counts) = shared.since([0, 0])
    assert (line.message, line.process, counts) == ("from the child", pid, [1, 0])


@given(st.text(max_size=5000), st.text(max_size=500))
def test_any_text_can_be_logged_and_read_back(message: str, error: str) -> None:
    shared = SharedLog(1)
    logged(shared, "%s", message, error=ValueError(error))
    ((line,), _) = shared.since([0])
    assert isinstance(line, LogLine)
    assert line.error.startswith("ValueError: ")


@pytest.mark.parametrize(
    "text",
    [
        f"the key {KEY} is odd",
        f"X-API-Key: {KEY}",
        "Authorization: Bearer s3cret, and more",
        "redis://user:s3cret@cache:6379/0 is away",
        "AccountEndpoint=https://x;AccountKey=s3cret;",
        "password=s3cret",
        "https://x.blob/c?sv=1&sig=s3cret&se=2",
    ],
)
def test_what_looks_like_a_secret_is_not_kept(text: str) -> None:
    shown = without_secrets(text)
    assert "s3cret" not in shown
    assert KEY not in shown
    assert "redacted" in shown
