"""Memory of mapped files: how much fits, and releasing parts.

LMDB hides a map's address, so it is read from /proc. All calls are optional: they only speed up reads.
"""

import ctypes
import errno
import mmap
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


def release(address: int, size: int) -> None:
    """Remove pages from the page table, but not from the page cache."""
    _libc.madvise(address, size, mmap.MADV_DONTNEED)


def room_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> float:
    """Return the bytes of files that fit in memory; inf if unknown.

    The minimum of the machine's and the cgroups' available memory; their page cache counts as free.
    """
    room = _numbers(proc / "meminfo").get("MemAvailable", inf) * 1024
    for group in _groups(proc, cgroups):
        stat = _numbers(group / "memory.stat")
        files = stat.get("active_file", 0) + stat.get("inactive_file", 0)
        room = min(room, _number(group / "memory.max") - _number(group / "memory.current") + files)
    return max(0.0, room * SHARE_OF_ROOM)


def _groups(proc: Path, cgroups: Path) -> list[Path]:
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    inner = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if inner is None:
        return []
    folder = cgroups / inner
    return [each for each in (folder, *folder.parents) if each.is_relative_to(cgroups)]


def _number(path: Path) -> float:
    try:
        text = path.read_text().strip()
    except OSError:
        return inf if path.name == "memory.max" else 0.0
    return inf if text == "max" else float(text)


def _numbers(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) for words in map(str.split, lines) if len(words) > 1}
