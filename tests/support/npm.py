"""Packages of npm that a test works against: installed once, kept in pytest's cache; a machine without them skips."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def installed(config: pytest.Config, package: str, version: str) -> Path:
    """Return the folder in which a package can be required; skips, or fails where HOTPLATE_REQUIRE says node."""
    folder = config.cache.mkdir(f"hotplate-npm-{package.replace('@', '').replace('/', '-')}")
    if (folder / "node_modules" / package).is_dir():
        return folder
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    reason = f"{' and '.join(missing)} not on the PATH" if missing else _install(folder, f"{package}@{version}")
    if reason:
        if "node" in os.environ.get("HOTPLATE_REQUIRE", "").split(","):
            pytest.fail(f"HOTPLATE_REQUIRE says node: {reason}")
        pytest.skip(f"not without {package}: {reason}")
    return folder


def _install(folder: Path, package: str) -> str:
    """Install a package; returns why that was not possible, or nothing."""
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        return f"npm could not install {package} within 90 s"
    return f"npm cannot install {package}: {done.stderr.strip()[-200:]}" if done.returncode else ""
