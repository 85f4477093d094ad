"""Figures of `bench http` next to the answer times that a programmed server logs itself."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hotplate.report import Report, from_json
from tests.support.command import hotplate
from tests.support.paths import ROOT
from tests.support.programmed_server import LIMIT

NEAR = 0.10


@contextmanager
def serving(mode: str, log: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.support.programmed_server", mode, str(log)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.terminate()


def measured(url: str, *arguments: str, out: Path) -> Report:
    done = hotplate("bench", "http", url, "--path", "/", "--warmup", "0s", "--json", "--out", out, *arguments)
    return from_json(json.loads(done.stdout))


def value(report: Report, figure: str) -> float:
    (found,) = [row.value for row in report.rows if row.figure == figure]
    assert found is not None
    return found


@pytest.mark.soak
@pytest.mark.alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["constant", "bimodal", "stalling"])
def test_p50_and_p99_are_within_a_tenth_of_what_the_server_logs(mode: str, tmp_path: Path) -> None:
    with serving(mode, tmp_path / "log") as url:
        report = measured(url, "--rate", "500", "--duration", "12s", "--repeat", "2", out=tmp_path / "report")
    truth_us = np.loadtxt(tmp_path / "log") * 1e6
    for figure, percent in (("p50", 50), ("p99", 99)):
        assert value(report, figure) == pytest.approx(float(np.percentile(truth_us, percent)), rel=NEAR), figure


@pytest.mark.soak
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_the_highest_rate_is_within_a_tenth_of_the_limit_of_the_server(tmp_path: Path) -> None:
    with serving("limited", tmp_path / "log") as url:
        report = measured(
            url, "--find-max", "--rate", "500", "--slo", "p99=50ms", "--duration", "4s", out=tmp_path / "report"
        )
    assert value(report, "highest rate") == pytest.approx(LIMIT, rel=NEAR)
