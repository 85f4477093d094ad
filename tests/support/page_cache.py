"""What of a file is in the page cache of the system, for tests on a disk that has one."""

import os
from pathlib import Path

import pytest

PAGE = 4096


def absent_pages(path: Path) -> int:
    """Return how many pages of a file are not in memory; to look for one has the disk begin to read it."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        return sum(_is_absent(file, place) for place in range(0, os.fstat(file).st_size, PAGE))
    finally:
        os.close(file)


def evict(path: Path) -> None:
    """Have a file read from the disk when it is read next; skips the test where the system cannot."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        if not _is_absent(file, 0):
            pytest.skip(f"the pages of {path} cannot be evicted, as where a file system is in memory")
    finally:
        os.close(file)


def _is_absent(file: int, place: int) -> bool:
    try:
        os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    return False
