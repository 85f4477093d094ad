"""Which part of a mapped file is in memory: how much fits, and how a part is populated and released.

LMDB does not say where it mapped a file, so the system is asked. If a system or a kernel lacks one of these calls, only
the speed of reads changes.
"""

import ctypes
import errno
import mmap
from math import inf
from pathlib import Path

# Of the free memory, the share that may be taken: the rest is for what grows in between.
SHARE_OF_ROOM = 0.9

# From Linux's mman.h.
_POPULATE_READ = 22

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def mapped_at(path: Path, inode: int) -> int:
    """Return the address at which this process has mapped a file; OSError if it has not, or if that cannot be known."""
    whole_path = str(path.resolve())
    for line in (_PROC / "self" / "maps").read_text().splitlines():
        address, _, offset, _, number, *name = line.split(maxsplit=5)
        # Layered file systems show numbers of the layer below, and a file that was unlinked has a longer name.
        if name and path.name in name[0] and (int(number) == inode or name[0] == whole_path) and int(offset, 16) == 0:
            return int(address.partition("-")[0], 16)
    raise OSError(errno.ENOENT, f"{path} is not among the maps of this process")


def populate(address: int, size: int) -> None:
    """Enter the pages of a part of a map that are in memory into the page table, so no read has to."""
    _libc.madvise(address, size, _POPULATE_READ)


def release(address: int, size: int) -> None:
    """Take a part of a map out of the page table; what is cached stays so, for all processes."""
    _libc.madvise(address, size, mmap.MADV_DONTNEED)


def room_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> float:
    """Return how many bytes of files this process can have in memory; inf where the system does not say.

    That is what the machine has available, and what the process's cgroups have left: what they hold of files counts as
    left, because it can be evicted.
    """
    room = _numbers(proc / "meminfo").get("MemAvailable", inf) * 1024
    for group in _groups(proc, cgroups):
        stat = _numbers(group / "memory.stat")
        files = stat.get("active_file", 0) + stat.get("inactive_file", 0)
        room = min(room, _number(group / "memory.max") - _number(group / "memory.current") + files)
    return max(0.0, room * SHARE_OF_ROOM)


def _groups(proc: Path, cgroups: Path) -> list[Path]:
    """Return the folders of the process's cgroup (of version 2) and of those around it."""
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
    """Read the limit or the use of a cgroup; a missing limit means unlimited."""
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
