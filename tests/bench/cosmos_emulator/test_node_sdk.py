"""The unmodified npm SDK against the emulation; a machine without node or npm skips it and says so."""

import subprocess

import pytest

from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from tests.support.cosmos_server import emulator_thread
from tests.support.npm import installed
from tests.support.paths import ROOT

SCRIPT = ROOT / "tests/support/cosmos_sdk.mjs"


@pytest.mark.soak
def test_the_npm_sdk(request: pytest.FixtureRequest) -> None:
    folder = installed(request.config, "@azure/cosmos", "4.9.3")
    with emulator_thread(EmulatorSettings(port=0)) as (server, _):
        command = ["node", str(SCRIPT), server.endpoint, server.key]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "done", done.stderr[:3000]
