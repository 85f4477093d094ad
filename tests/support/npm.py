"""Packages of npm that a test works against: installed once, kept in pytest's cache; a machine without them skips."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import run_process, skip_without


def installed(config: pytest.Config, *packages: str) -> Path:
    """Return the folder in which packages, each as NAME@VERSION, can be required.

    Skips if they cannot be installed, or fails if HOTPLATE_REQUIRE has node.
    """
    folder = config.cache.mkdir("hotplate-npm-" + "-".join(packages).replace("@", "-").replace("/", "-"))
    if all((folder / "node_modules" / package.rpartition("@")[0]).is_dir() for package in packages):
        return folder
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    reason = f"{' and '.join(missing)} not on the PATH" if missing else _install(folder, packages)
    if reason:
        skip_without("node", f"not without {', '.join(packages)}: {reason}")
    return folder


def _install(folder: Path, packages: tuple[str, ...]) -> str:
    """Install packages; returns why that was not possible, or nothing."""
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), *packages]
    try:
        done = run_process(*command, code=None, timeout=90)
    except subprocess.TimeoutExpired:
        return f"npm could not install {', '.join(packages)} within 90 s"
    return f"npm cannot install {', '.join(packages)}: {done.stderr.strip()[-200:]}" if done.returncode else ""
