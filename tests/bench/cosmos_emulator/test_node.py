"""The unmodified npm SDK makes a tour of the emulation, too; a machine without node or npm skips it and says so."""

import subprocess

import pytest

from tests.support.cosmos_server import emulator
from tests.support.npm import installed
from tests.support.paths import ROOT

TOUR = ROOT / "tests/support/cosmos_tour.mjs"


def test_a_tour_by_the_npm_sdk(request: pytest.FixtureRequest) -> None:
    folder = installed(request.config, "@azure/cosmos", "4.9.3")
    with emulator() as server:
        command = ["node", str(TOUR), server.endpoint, server.key]
        toured = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert toured.stdout.strip() == "done", toured.stderr[:3000]
