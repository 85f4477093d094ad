"""A pytest plugin: a test marked `alone` runs while no other test of the same run does.

The workers of pytest-xdist share a lock, the room: a test marked `alone` holds it exclusively, and others share it.
"""

import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path

import pytest

# How long the workers wait at the start for the first test that runs alone; they get their tests at the same time.
START_S = 10.0
_room = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_position)


# First, because the time-out of a test must not count how long the test waits for others.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    if not hasattr(item.config, "workerinput"):  # only the workers of pytest-xdist run several tests at a time
        return (yield)
    folder = Path(item.config.getoption("basetemp")).parent  # the workers' folders are in it
    started = folder / "alone.started"
    if not _is_alone(item) and _is_alone(item.session.items[0]):
        _wait_for(started)
    if _room not in item.config.stash:
        # A test holds the queue while it waits for the room, so that it is not overtaken by tests that share the room.
        queue = _lock(folder / "alone.queue", fcntl.LOCK_EX)
        item.config.stash[_room] = _lock(folder / "alone.room", fcntl.LOCK_EX if _is_alone(item) else fcntl.LOCK_SH)
        _unlock(queue)
    if _is_alone(item):
        started.touch()
    try:
        return (yield)
    finally:
        # The room is kept for the next test that runs alone.
        if not (_is_alone(item) and nextitem is not None and _is_alone(nextitem)):
            _unlock(item.config.stash[_room])
            del item.config.stash[_room]


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def _position(item: pytest.Item) -> int:
    """Put soak tests that run alone first, and fast ones last.

    A soak test would wait for others of several minutes, and all workers with it. While fast tests begin, `make test`
    checks types.
    """
    if not _is_alone(item):
        return 1
    return 0 if item.get_closest_marker("soak") else 2


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + START_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _lock(path: Path, mode: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, mode)
    return descriptor


def _unlock(descriptor: int) -> None:
    # To close it would not be enough, because a process that the test has forked may still have it open.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
