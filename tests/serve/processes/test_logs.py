"""Where processes log to: standard error without waiting, and memory that keeps the latest lines free of secrets."""

import logging
import os
import pty
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.processes.logs import LINES, LogLine, LogStream, SharedLog, without_secrets

LINE = "x" * 199 + "\n"


def read_all(descriptor: int) -> str:
    """Read the available bytes without waiting."""
    os.set_blocking(descriptor, False)
    said = b""
    with suppress(OSError):
        while piece := os.read(descriptor, 1 << 20):
            said += piece
    return said.decode()


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_unread_log_lines_are_dropped_whole_and_counted(kind: str) -> None:
    if kind == "socket":
        ours, theirs = (end.detach() for end in socket.socketpair())
    elif kind == "terminal":
        theirs, ours = pty.openpty()
    else:
        theirs, ours = os.pipe()
    stream = LogStream(ours)
    lines = 0
    while not (dropped := stream.take_dropped()):
        stream.write(LINE)
        lines += 1
        assert lines * len(LINE) < 4 << 20
    said = ""
    while piece := read_all(theirs):
        said += piece
        stream.flush()
    assert said.replace("\r", "") == LINE * (lines - dropped)
    stream.write("again\n")
    assert read_all(theirs).replace("\r", "") == "again\n"
    os.close(ours)
    os.close(theirs)


def test_log_file_is_appended_to_and_a_closed_pipe_does_not_raise(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        print("first", file=file, flush=True)
        stream = LogStream(file.fileno())
        stream.write("second\n")
        print("third", file=file, flush=True)
        assert (tmp_path / "log").read_text() == "first\nsecond\nthird\n"
    reading, writing = os.pipe()
    gone = LogStream(writing)
    os.close(reading)
    for _ in range(3000):
        gone.write(LINE)
    assert gone.take_dropped() > 0
    os.close(writing)


KEY = "hp_" + "Ab9-_" * 8


def logged(shared: SharedLog, message: str, *arguments: object, error: BaseException | None = None) -> None:
    record = logging.LogRecord(
        "serve.test", logging.WARNING, "", 0, message, arguments, (type(error), error, None) if error else None
    )
    shared.emit(record)


def test_lines_of_all_processes_are_read_in_order_and_the_latest_kept() -> None:
    shared = SharedLog()
    for number in range(LINES + 10):
        logged(shared, "line %d", number)
        shared.read()
    lines = shared.lines()
    assert [line.message for line in lines] == [f"line {number}" for number in range(10, LINES + 10)]
    assert {line.process for line in lines} == {os.getpid()}
    assert shared.lines(after=lines[1].at) == lines[2:]
    for number in range(10_000):  # more than the pipe holds
        logged(shared, "line %d", number)
    shared.read()
    assert shared.lines()


@given(st.text(max_size=5000), st.text(max_size=500))
def test_any_text_can_be_logged_and_read_back(message: str, error: str) -> None:
    shared = SharedLog()
    logged(shared, "%s", message, error=ValueError(error))
    shared.read()
    (line,) = shared.lines()
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
def test_secrets_are_not_kept_in_log_lines(text: str) -> None:
    shown = without_secrets(text)
    assert "s3cret" not in shown
    assert KEY not in shown
    assert "redacted" in shown
