"""The unmodified npm SDK makes a tour of the emulation, too; a machine without node or npm skips it and says so."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cosmos_server import emulator

TOUR = Path(__file__).with_name("cosmos_tour.mjs")
SDK = "@azure/cosmos@4.9.3"


@pytest.fixture
def installed(request: pytest.FixtureRequest) -> Path:
    """Install the SDK once and keep it in pytest's cache."""
    folder = request.config.cache.mkdir("hotplate-npm")
    if (folder / "node_modules" / "@azure" / "cosmos").is_dir():
        return folder
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    found = None if missing else _npm_install(folder)
    if missing or found:
        reason = found or f"{' and '.join(missing)} not on the PATH"
        if "node" in os.environ.get("HOTPLATE_REQUIRE", "").split(","):
            pytest.fail(f"HOTPLATE_REQUIRE says node: {reason}")
        pytest.skip(f"no tour by the npm SDK: {reason}")
    return folder


def _npm_install(folder: Path) -> str:
    """Install the SDK; returns why that was not possible, or nothing."""
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), SDK]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        return f"npm could not install {SDK} within 90 s"
    return f"npm cannot install {SDK}: {done.stderr.strip()[-200:]}" if done.returncode else ""


def test_a_tour_by_the_npm_sdk(installed: Path) -> None:
    with emulator() as server:
        command = ["node", str(TOUR), server.endpoint, server.key]
        toured = subprocess.run(command, cwd=installed, capture_output=True, text=True, timeout=60, check=False)
    assert toured.stdout.strip() == "done", toured.stderr[:3000]
