"""Scratch folders, locks, durable replacement of files, and the memory of mapped files.

A folder has one owner, and those of killed processes are removed by the next process. Its owner holds an
flock on the file `.lock` in it, and removes that once the folder is renamed to its place.

LMDB hides the address of a map, so it is read from /proc.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path

LOCK = ".lock"
# The rest of a folder's name after the prefix.
_MARK = re.compile(r"\d+-[0-9a-f]{8}")
_LOCK_POLL_S = 0.002
# Share of free memory to use; the rest is for growth.
SHARE_OF_ROOM = 0.9

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@contextmanager
def scratch_folder(parent: Path, prefix: str, *, mode: int = 0o777) -> Iterator[Path]:
    """Make a folder in *parent*, and remove it at the end unless it was renamed.

    Its lock shows to others that its process is alive. Abandoned folders, of the same prefix and with a free lock, are
    removed first. Raises OSError.
    """
    make_folder(parent)
    for folder in marked(parent, prefix):
        remove_abandoned(folder)

    lock = None
    while lock is None:  # again if another process removed the folder, not locked yet, as abandoned
        folder = _new(parent, prefix)
        folder.mkdir(mode)
        lock = _lock(folder)

    try:
        yield folder
    finally:
        try:
            if is_at(lock, folder / LOCK):
                # Renamed, because a thread may still be writing.
                _remove(folder.rename(_new(parent, prefix)))
        finally:
            os.close(lock)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Make a private scratch folder in TMPDIR."""
    with scratch_folder(Path(tempfile.gettempdir()), f"hotplate-{purpose}-", mode=0o700) as folder:
        yield folder


def marked(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield this user's scratch folders in *parent*: those with a name as `scratch_folder` gives it, after *prefix*.

    Entries that cannot be read, and symbolic links, are left out; without *parent* there are none.
    """
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if not (entry.name.startswith(prefix) and _MARK.fullmatch(entry.name, len(prefix))):
                continue
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False) and entry.stat().st_uid == os.getuid():
                    yield Path(entry)


def take_lock(path: Path, mode: int, timeout_s: float) -> int:
    """Lock a file by flock, and return its descriptor; closing that frees the lock.

    The file is created with *mode* if necessary. If it was removed between opening and locking, another process may
    lock the new one, so the file is opened again. Blocks; raises TimeoutError after *timeout_s*.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(descriptor, path):
                return descriptor
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise TimeoutError(f"{path} was held for {timeout_s:g} s; is a process stuck?") from error
            time.sleep(_LOCK_POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether *descriptor* is the open file *path*."""
    try:
        at_path = path.stat()
        opened = os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return os.path.samestat(at_path, opened)


def check_held(lock: int, path: Path) -> None:
    """Raise OSError if the file of a held lock was removed or replaced, because another process may hold the new one.

    Called just before a rename or a removal that the lock protects.
    """
    if not is_at(lock, path):
        raise OSError(errno.ESTALE, "its lock file was removed while it was held, so nothing was changed", str(path))


def make_folder(folder: Path) -> None:
    """Make a folder, and missing ones above it, which a power failure leaves there; nothing if it exists."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def flush(path: Path) -> None:
    """Make the contents of a file, or renames in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of *data* at *offset*."""
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def replace_durably(
    path: Path, data: bytes, *, mode: int = 0o666, before_rename: Callable[[], None] = lambda: None
) -> None:
    """Replace the file *path* by one with *data*, which a power failure leaves whole; its owner, group and mode stay.

    The data are written to a file beside it, which is then renamed, so readers see the old content or the new. Writers
    must exclude each other. A new file has *mode*, less the umask. An owner or group that this process may not give
    away is not kept. *before_rename* may still raise, as when a lock was lost; after any error the old file stays.
    Raises OSError.
    """
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)  # left by a killed process, perhaps with other rights
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            with suppress(FileNotFoundError):
                _copy_rights(path.stat(), descriptor)
            write_all(descriptor, data, 0)
            os.fsync(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error  # that of a write has no file name
        before_rename()
        draft.rename(path)
    except BaseException:
        if is_at(descriptor, draft):  # else that of a process that took the lock meanwhile
            draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    flush(path.parent)


def _copy_rights(status: os.stat_result, descriptor: int) -> None:
    """Give an open file the owner, group and mode in *status*, each as far as the system allows."""
    with suppress(PermissionError):
        os.fchown(descriptor, -1, status.st_gid)
    with suppress(PermissionError):
        os.fchmod(descriptor, status.st_mode & 0o777)
    with suppress(PermissionError):
        os.fchown(descriptor, status.st_uid, -1)  # last: only the owner may change the mode


def _new(parent: Path, prefix: str) -> Path:
    return parent / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"


def is_abandoned(folder: Path) -> bool:
    """Return whether the owner of a scratch folder is dead."""
    with suppress(OSError):
        if (folder / LOCK).exists() and (lock := _lock(folder)) is not None:
            os.close(lock)
            return True
    return False


def remove_abandoned(folder: Path) -> None:
    """Remove a scratch folder, as far as possible, if its owner is dead."""
    with suppress(OSError):
        if not (folder / LOCK).exists():
            folder.rmdir()  # only if empty; a living owner makes another one
        elif (lock := _lock(folder)) is not None:
            try:
                _remove(folder)
            finally:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Take the lock of *folder*; None if it is held or the folder was removed."""
    with suppress(FileNotFoundError, TimeoutError):
        return take_lock(folder / LOCK, 0o600, 0.0)
    return None


def _remove(folder: Path) -> None:
    """Remove *folder*, its lock last, so the next process continues a removal that was killed, or failed."""
    for path in _content(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if _content(folder):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))

    (folder / LOCK).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        # Without its lock, the folder looks abandoned: another process has removed it, or has locked it to do so.
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise


def _content(folder: Path) -> list[Path]:
    """Return the paths in a scratch folder, without its lock."""
    return [path for path in folder.iterdir() if path.name != LOCK]


def mapped_at(path: Path, inode: int) -> int:
    """Return the memory address at which this process has mapped the beginning of a file; OSError if it has not.

    The file is known by its *inode* or its *path*.
    """
    whole_path = str(path.resolve())
    for line in (_PROC / "self" / "maps").read_text().splitlines():
        address, _, offset, _, number, *name = line.split(maxsplit=5)
        # Layered file systems show another inode; unlinked files have longer names.
        if name and path.name in name[0] and (int(number) == inode or name[0] == whole_path) and int(offset, 16) == 0:
            return int(address.partition("-")[0], 16)
    raise OSError(errno.ENOENT, f"{path} is not among the maps of this process")


def release_map(path: Path, inode: int, size: int, at_once: int | None = None) -> None:
    """Remove pages of a mapped file of *size* bytes from the page table, but not from the page cache.

    They count as memory of this process until then. *at_once* limits the bytes of a system call, during which no other
    thread can map memory.
    """
    with suppress(OSError):
        start = mapped_at(path, inode)
        step = at_once or size
        for place in range(0, size, step):
            _libc.madvise(start + place, min(step, size - place), mmap.MADV_DONTNEED)


def return_free_memory() -> None:
    """Return freed memory to the system, which glibc keeps otherwise; takes about 0.1 ms for a megabyte."""
    trim = getattr(_libc, "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)


def room_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> float:
    """Return how many bytes of files fit into the page cache, a share of the free memory; inf if unknown.

    Free memory is the least of that of the machine and those of the process's control groups. Page cache counts as
    free. *proc* and *cgroups* are the file systems at /proc and /sys/fs/cgroup.
    """
    room = _numbers(proc / "meminfo").get("MemAvailable:", inf) * 1024

    memberships = _lines(proc / "self" / "cgroup")
    group_path = next((line.removeprefix("0::/") for line in memberships if line.startswith("0::/")), "")
    innermost = cgroups / group_path
    for group in (innermost, *innermost.parents):  # each may have a limit
        limit = _first_line(group / "memory.max")
        if not limit.isdecimal():  # "max", or no such file
            continue

        used = int(_first_line(group / "memory.current") or 0)
        stat = _numbers(group / "memory.stat")
        cached = stat.get("active_file", 0) + stat.get("inactive_file", 0)
        room = min(room, int(limit) - used + cached)

    return max(0.0, room * SHARE_OF_ROOM)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; none if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _first_line(path: Path) -> str:
    """Return the first line of a file; empty if it cannot be read."""
    return next(iter(_lines(path)), "")


def _numbers(path: Path) -> dict[str, int]:
    """Return the numbers in a file of lines such as `MemAvailable: 1024 kB`, by the word before."""
    numbers = dict[str, int]()
    for line in _lines(path):
        words = line.split()
        if len(words) > 1 and words[1].isdecimal():
            numbers[words[0]] = int(words[1])
    return numbers
