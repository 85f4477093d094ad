"""The benchmarks of `make bench` run, each once and with few users."""

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.soak
def test_every_benchmark_runs() -> None:
    options = ["-o", "addopts=--import-mode=importlib --strict-markers", "-p", "no:xdist", "-p", "no:schemathesis"]
    command = [sys.executable, "-m", "pytest", "-q", *options, "--benchmark-disable", "bench"]
    environment = os.environ | {"HOTPLATE_BENCH_USERS": "1000"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
