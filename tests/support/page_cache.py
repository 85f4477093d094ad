"""What of a file is in the page cache of the system, for tests on a disk that has one."""

import ctypes
import mmap
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest

PAGE = 4096

SYS_PROCESS_MADVISE, MADV_PAGEOUT = 440, 21


def absent_pages(path: Path) -> int:
    """Return how many pages of a file are not in memory; reads none of them."""
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
    """Have a file read from the disk when it is read next; skips the test where the system keeps pages of it."""
    for _ in range(20):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if absent_pages(path) == -(-path.stat().st_size // PAGE):
            return
        time.sleep(0.05)
    pytest.skip(f"the pages of {path} cannot be evicted, as where a file system is in memory")


def page_out(pid: int, path: Path) -> None:
    """Take from a process what it has mapped of a file, and from memory, as the kernel does where memory is short."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith(str(path)):
            start, end = (int(place, 16) for place in line.split()[0].split("-"))
            mapping = struct.pack("@PN", start, end - start)
            descriptor = os.pidfd_open(pid)
            libc = ctypes.CDLL(None, use_errno=True)
            done = libc.syscall(SYS_PROCESS_MADVISE, descriptor, mapping, ctypes.c_size_t(1), MADV_PAGEOUT, 0)
            os.close(descriptor)
            if done < 0:
                pytest.skip(f"this system does not let a test page out: {os.strerror(ctypes.get_errno())}")
