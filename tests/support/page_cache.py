"""What of a file is in the page cache of the system, for tests on a disk that has one."""

import ctypes
import os
import struct
from pathlib import Path

import pytest

PAGE = 4096

SYS_PROCESS_MADVISE, MADV_PAGEOUT = 440, 21


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


def _is_absent(file: int, place: int) -> bool:
    try:
        os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    return False
