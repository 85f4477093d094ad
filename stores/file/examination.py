"""What `hotplate store doctor` finds out about the folder of a `file://` store, without changing anything in it."""

import os
import shutil
from pathlib import Path

from hotplate.stores.store import Finding, Level

# Kinds of file systems over a network, where locks, renames and memory maps are not what they are on a disk.
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs")

# With less of the disk free, other programs fill it before the next publish does.
LITTLE_FREE = 0.05


def examine(folder: Path) -> list[Finding]:
    """Look at the folder's rights, file system and disk."""
    return [_reading(folder), _writing(folder), _file_system(folder), _disk(folder)]


def _reading(folder: Path) -> Finding:
    if not folder.exists():
        return Finding(Level.OK, "may read", f"{folder} does not exist yet; the first publish makes it")
    releases = folder / "releases"
    needed = [(folder, os.R_OK | os.X_OK), (folder / "catalogue.json", os.R_OK), (releases, os.R_OK | os.X_OK)]
    needed += [(path, os.R_OK) for path in sorted(releases.glob("*.mdb"))] if _may(releases, os.R_OK | os.X_OK) else []
    refused = [path for path, mode in needed if _exists(path) and not _may(path, mode)]
    if refused:
        sentence = f"no: {refused[0]} may not be read by user {os.geteuid()}; change its owner or its mode"
        return Finding(Level.ERROR, "may read", sentence)
    return Finding(Level.OK, "may read", "yes")


def _writing(folder: Path) -> Finding:
    existing = _existing(folder)
    written = [existing] if existing != folder else [folder, folder / "releases", folder / "catalogue.lock"]
    modes = {path: os.W_OK | (os.X_OK if path.is_dir() else 0) for path in written if _exists(path)}
    refused = [path for path, mode in modes.items() if not _may(path, mode)]
    if refused:
        return Finding(
            Level.WARNING,
            "may publish",
            f"no: user {os.geteuid()} may not write to {refused[0]}, which is right for a service; to publish, change "
            f"its owner or its mode",
        )
    return Finding(Level.OK, "may publish", "yes")


def _file_system(folder: Path) -> Finding:
    kind = _kind(_existing(folder).resolve())
    if kind in NETWORK:
        sentence = f"{kind}, over a network, where locks and memory maps are not reliable; use a local disk"
        return Finding(Level.WARNING, "file system", sentence)
    return Finding(Level.OK, "file system", kind or "of an unknown kind")


def _disk(folder: Path) -> Finding:
    usage = shutil.disk_usage(_existing(folder))
    sentence = f"{usage.free / 1e6:,.0f} MB free of {usage.total / 1e6:,.0f} MB"
    if usage.free < usage.total * LITTLE_FREE:
        return Finding(Level.WARNING, "disk", f"{sentence}; free some, or prune old releases")
    return Finding(Level.OK, "disk", sentence)


def _kind(path: Path) -> str:
    """Return the kind of file system that *path* lies in, by the longest mount point above it; empty if unknown."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    fields = [line.split(" ") for line in mounts]
    points = {
        Path(each[1].replace("\\040", " ")): each[2] for each in fields if len(each) > 2
    }  # the last covers others
    return next((points[above] for above in (path, *path.parents) if above in points), "")


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # a folder above it may not be entered


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
