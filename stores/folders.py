"""Scratch folders: one process writes into each, and the next process removes those of processes that were killed.

A folder is named PREFIX, process id, random digits. Its owner holds a lock (flock) on the file `.lock` in it. The
kernel frees the lock when the owner ends, so a process that gets it knows that the owner is dead. A folder may be
renamed to its final place; then the `.lock` in it has to be removed.
"""

import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
# What comes after the prefix.
_MARK = re.compile(r"\d+-[0-9a-f]{8}")
# How often a lock that another process holds is tried again.
_LOCK_POLL_S = 0.002


@contextmanager
def scratch_folder(parent: Path, prefix: str, *, mode: int = 0o777) -> Iterator[Path]:
    """Make a folder in *parent* that is this process's own, and remove it at the end, if it lies there still.

    Folders of the same prefix whose owners are dead are removed first. Raises OSError.
    """
    for folder in marked(parent, prefix):
        remove_abandoned(folder)
    lock = None
    while lock is None:
        folder = _new(parent, prefix)
        folder.mkdir(mode)
        lock = _lock(folder, required=False)
    try:
        yield folder
    finally:
        try:
            if is_at(lock, folder / LOCK):
                # A thread that was left behind, in the middle of a long write, finds it no more.
                _remove(folder.rename(_new(parent, prefix)))
        finally:
            os.close(lock)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Make a scratch folder where temporary files go (TMPDIR), which only this user can read."""
    with scratch_folder(Path(tempfile.gettempdir()), f"hotplate-{purpose}-", mode=0o700) as folder:
        yield folder


def marked(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield this user's folders in *parent* that have *prefix* and a mark."""
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            named = entry.name.startswith(prefix) and _MARK.fullmatch(entry.name, len(prefix))
            with suppress(OSError):
                if named and entry.is_dir(follow_symlinks=False) and entry.stat().st_uid == os.getuid():
                    yield Path(entry)


def take_lock(path: Path, mode: int, timeout_s: float) -> int:
    """Take the lock of a file (flock), which is made if there is none; it ends with the descriptor that is returned.

    Blocks; raises TimeoutError if another process has held it for so long. A file that was removed while it was waited
    for locks nothing any more, so the one that lies there by then is taken.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
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
    """Return whether an open file is the one that lies at *path* now."""
    try:
        there, held = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def flush(path: Path) -> None:
    """Make what a file holds, or the renames inside a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new(parent: Path, prefix: str) -> Path:
    return parent / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"


def is_abandoned(folder: Path) -> bool:
    """Return whether the owner of a scratch folder is dead, so `remove_abandoned` removes it."""
    with suppress(OSError):
        if (folder / LOCK).exists() and (lock := _lock(folder, required=True)) is not None:
            os.close(lock)
            return True
    return False


def remove_abandoned(folder: Path) -> None:
    """Remove a scratch folder if its owner is dead; what cannot be removed is left where it is."""
    with suppress(OSError):
        if not (folder / LOCK).exists():
            folder.rmdir()  # only if it is empty: its owner, should it live, makes another
        elif (lock := _lock(folder, required=True)) is not None:
            try:
                _remove(folder)
            finally:
                os.close(lock)


def _lock(folder: Path, *, required: bool) -> int | None:
    """Take the lock of *folder*, which ends with the descriptor; None where somebody else has it, or swept the folder.

    If files cannot be locked (some network mounts), an owner goes on without, and no folder is swept.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        if required:
            os.close(descriptor)
            raise
    if not is_at(descriptor, folder / LOCK):
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path) -> None:
    """Remove *folder*, its lock last, so a process that is killed here leaves what the next one sweeps."""
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
        elif each.name != LOCK:
            each.unlink(missing_ok=True)
    (folder / LOCK).unlink(missing_ok=True)
    folder.rmdir()
