"""Files that are loaded again when they change: a version that cannot be used changes nothing, whatever is wrong."""

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hotplate.serve.tasks import background
from hotplate.serve.watched import WatchedFiles, follow
from tests.support.waiting import until_true


def polled(watched: WatchedFiles) -> list[Exception]:
    """Look three times, as a change is taken up at the second look; return what that raised."""
    raised = list[Exception]()
    for _ in range(3):
        try:
            watched.poll()
        except Exception as error:  # noqa: BLE001 -- whatever it is, is the finding
            raised.append(error)
    return raised


@pytest.mark.parametrize("error", [RecursionError(), MemoryError(), KeyError("the-secret"), StopIteration()])
def test_previous_version_is_kept_on_any_error_and_the_reason_is_shown(tmp_path: Path, error: Exception) -> None:
    file = tmp_path / "file"
    used = list[bytes]()
    file.write_text("good")

    def load(contents: Sequence[bytes]) -> None:
        if contents != [b"good"]:
            raise error
        used.extend(contents)

    watched = WatchedFiles([file], load)
    file.write_text("broken the-secret")
    assert polled(watched) == []
    assert f"file cannot be used: its content leads to {type(error).__name__}" in str(watched.warning)
    assert "the-secret" not in str(watched.warning)
    file.write_text("good")
    assert polled(watched) == []
    assert (watched.warning, used) == (None, [b"good", b"good"])


def test_bad_file_is_reported_once_and_not_while_it_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("[]")
    watched = WatchedFiles([file], lambda contents: json.loads(contents[0]))
    for size in range(3):
        file.write_text("[" * size)
        watched.poll()
    assert watched.warning is None
    polled(watched)
    assert "cannot be used" in str(watched.warning)
    file.unlink()
    polled(watched)
    assert "cannot be read" in str(watched.warning)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


@contextmanager
def without_root() -> Iterator[None]:
    """Have the rights of files count, also where the tests run as root."""
    before = os.geteuid()
    os.seteuid(65_534 if before == 0 else before)
    try:
        yield
    finally:
        os.seteuid(before)


def test_file_is_used_once_it_is_readable_again() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "file"
        used = list[bytes]()
        file.write_bytes(b"first")
        watched = WatchedFiles([file], used.extend)
        file.write_bytes(b"other")
        file.chmod(0)
        with without_root():
            polled(watched)
        assert "cannot be read: Permission denied" in str(watched.warning)
        file.chmod(0o644)
        with without_root():
            polled(watched)
        assert (watched.warning, used) == (None, [b"first", b"other"])


def test_file_replaced_by_a_pipe_is_not_opened_for_reading(tmp_path: Path) -> None:
    file = tmp_path / "file"
    reads = list[bytes]()
    file.write_text("good")
    watched = WatchedFiles([file], reads.extend)
    file.unlink()
    os.mkfifo(file)
    assert polled(watched) == []
    assert reads == [b"good"]
    assert "is not a regular file" in str(watched.warning)


async def test_files_are_followed_after_a_thread_could_not_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    used = list[bytes]()
    file.write_bytes(b"first")
    watched = WatchedFiles([file], used.extend)
    file.write_bytes(b"other")
    to_thread = asyncio.to_thread
    attempts = 0

    async def start_thread(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- as of `to_thread`
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise RuntimeError("can't start new thread")
        await to_thread(*args, **kwargs)

    monkeypatch.setattr(asyncio, "to_thread", start_thread)
    async with background(follow([watched])), asyncio.timeout(60):
        await until_true(lambda: used == [b"first", b"other"])


def test_same_content_is_loaded_again_in_another_context(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "file"
    file.write_text("good")
    names = tuple[str, ...]()
    loads = list[tuple[str, ...]]()

    def load(_: Sequence[bytes], *context: str) -> str | None:
        loads.append(context)
        return "a part is not in use" if context == ("b",) else None

    watched = WatchedFiles([file], load, context=lambda: names)
    polled(watched)
    assert loads == [()]
    for names in (("a",), ("b",), ("b",)):  # noqa: B007 -- for the context
        polled(watched)
    assert (watched.warning, loads) == ("a part is not in use", [(), ("a",), ("b",)])
    file.write_text("changed")
    polled(watched)
    assert loads[3:] == [("b",)]
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    names = ("a",)
    polled(watched)
    assert watched.warning is None


def test_byte_order_mark_is_not_part_of_a_file_and_utf_16_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    used = list[bytes]()
    file.write_bytes(b"\xef\xbb\xbf{}")
    watched = WatchedFiles([file], used.extend)
    assert used == [b"{}"]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        file.write_bytes("{}".encode(encoding))
        polled(watched)
        assert "file is UTF-16; save it as UTF-8" in str(watched.warning)


def test_last_valid_content_is_shared_with_processes_that_start_later(tmp_path: Path) -> None:
    file = tmp_path / "file"
    used = list[bytes]()
    file.write_bytes(b"first")
    watched = WatchedFiles([file], used.extend, max_bytes=100)
    watched.catch_up()
    assert used == [b"first"]
    leader = os.fork()
    if leader == 0:
        lead(watched, file, (b"second", b"x" * 101, b"y" * 100, b"third"))
    assert os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1]) == 0
    watched.catch_up()
    assert used == [b"first", b"third"]


def lead(watched: WatchedFiles, file: Path, contents: Sequence[bytes]) -> NoReturn:
    """Follow a file through *contents*, until it is gone, in the forked process that leads."""
    code = 1
    try:
        for content in contents:
            file.write_bytes(content)
            polled(watched)
        file.unlink()
        polled(watched)
        code = 0
    finally:
        os._exit(code)
