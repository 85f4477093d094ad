"""Counts and evicts a file's pages in the page cache."""

import ctypes
import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest

PAGE = 4096


def absent_pages(path: Path) -> int:
    """Return the number of pages of a file that are not in memory, without reading them."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        pages = -(-size // PAGE)
        resident = (ctypes.c_ubyte * pages)()
        start = np.frombuffer(view, dtype=np.uint8).ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), resident):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return sum(not state & 1 for state in resident)


def evict(path: Path) -> None:
    """Evict a file from the page cache; skips the test if the system keeps pages of it."""
    for _ in range(20):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if absent_pages(path) == -(-path.stat().st_size // PAGE):
            return
        time.sleep(0.05)
    pytest.skip(f"the pages of {path} cannot be evicted; its file system may be in memory")
