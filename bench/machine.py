"""Where and when figures were measured, without which they mean nothing."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIBRARIES = (
    "hotplate", "aiohttp", "hdrhistogram", "httptools", "implicit", "lmdb", "numpy", "orjson", "polars", "redis",
    "uvloop",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Describe the machine, the interpreter, the libraries, the commit and the date, as plain values."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def environment() -> dict[str, str]:
    """Copy the environment without what hotplate and polars set in it, so what is measured is what is shipped."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("HOTPLATE_", "_RJEM_"))}


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Name the commit, with a + when the tree differs from it; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None  # installed: whatever repository the environment lies in is not ours
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 -- constant
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
