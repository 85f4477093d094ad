"""Memory of mapped files: how much fits, and releasing parts.

LMDB hides a map's address, so it is read from /proc.
"""

import ctypes
import errno
import mmap
from contextlib import suppress
from math import inf
from pathlib import Path

# Share of free memory to use; the rest is for growth.
SHARE_OF_ROOM = 0.9

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def mapped_at(path: Path, inode: int) -> int:
    """Return the address of a file mapped by this process; OSError if it is unknown."""
    whole_path = str(path.resolve())
    for line in (_PROC / "self" / "maps").read_text().splitlines():
        address, _, offset, _, number, *name = line.split(maxsplit=5)
        # Layered file systems show another inode; unlinked files have longer names.
        if name and path.name in name[0] and (int(number) == inode or name[0] == whole_path) and int(offset, 16) == 0:
            return int(address.partition("-")[0], 16)
    raise OSError(errno.ENOENT, f"{path} is not among the maps of this process")


def release(path: Path, inode: int, size: int, at_once: int | None = None) -> None:
    """Remove pages of a mapped file from the page table, but not from the page cache."""
    with suppress(OSError):
        start, step = mapped_at(path, inode), at_once or size
        for place in range(0, size, step):
            _libc.madvise(start + place, min(step, size - place), mmap.MADV_DONTNEED)


def room_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> float:
    """Return the bytes of files that fit in memory; inf if unknown. Page cache counts as free."""
    room = _numbers(proc / "meminfo").get("MemAvailable:", inf) * 1024
    inner = next((name[4:] for name in _numbers(proc / "self" / "cgroup") if name.startswith("0::/")), "")
    for group in ((cgroups / inner), *(cgroups / inner).parents):
        limit = next(iter(_numbers(group / "memory.max")), "max")
        if limit.isdecimal():
            stat, used = _numbers(group / "memory.stat"), next(iter(_numbers(group / "memory.current")), "0")
            room = min(room, int(limit) - int(used) + stat.get("active_file", 0) + stat.get("inactive_file", 0))
    return max(0.0, room * SHARE_OF_ROOM)


def _numbers(path: Path) -> dict[str, int]:
    """Return the number, or 0, after the first word of each line; empty if the file cannot be read."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) if words[1:] else 0 for words in lines if words}
