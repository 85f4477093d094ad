"""A pytest plugin: tests marked `alone` run last, and each while no other test of the same run does."""

import fcntl
import os
from collections.abc import Generator
from pathlib import Path

import pytest


# Last, so that the other workers wait for few of them with work left to do.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_is_alone)


# First, because the time-out of a test must not count how long the test waits for others.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if not hasattr(item.config, "workerinput"):  # only the workers of pytest-xdist run several tests at a time
        return (yield)
    folder = Path(item.config.getoption("basetemp")).parent  # the workers have folders of their own in it
    # A test holds the queue while it waits for the room. Without it, tests that share the room could enter it for ever.
    queue = _lock(folder / "alone.queue", fcntl.LOCK_EX)
    room = _lock(folder / "alone.room", fcntl.LOCK_EX if _is_alone(item) else fcntl.LOCK_SH)
    _unlock(queue)
    try:
        return (yield)
    finally:
        _unlock(room)


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def _lock(path: Path, how: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, how)
    return descriptor


def _unlock(descriptor: int) -> None:
    # To close it would not be enough, because a process that the test has forked may still have it open.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
