"""Benchmarks and published figures: stored results, and the tables in the docs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hotplate.bench.docs_figures import RUNS, keep, lines_of, of_one_cpu, printed, stripped, write_tables
from hotplate.report import Column, Report, Row, from_json, to_json
from tests.support.command import hotplate
from tests.support.paths import ROOT

PLAN = "--users 1M --peak-rps 500 --profile evening --zipf 0.9"
STATS = dict.fromkeys(("min", "max", "mean", "stddev", "median", "iqr", "rounds", "iterations"), 1.0)
MARKS = "before\n<!-- written by make figures -->\nold\n<!-- up to here -->\nafter\n"


@pytest.mark.soak
def test_every_benchmark_runs() -> None:
    options = ["-o", "addopts=--import-mode=importlib --strict-markers", "-p", "no:xdist", "-p", "no:schemathesis"]
    command = [sys.executable, "-m", "pytest", "-q", *options, "--benchmark-disable", "bench"]
    environment = os.environ | {"HOTPLATE_BENCH_USERS": "1000"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def run(day: int, median_s: float = 0.002, ratio: float = 2.0, timer: str = "process_time") -> dict[str, Any]:
    """Return a result as pytest-benchmark saves it."""
    peer = {"figures": [["a GET: rate", "/s", [ratio * 10]], ["the same: rate against nginx", "times", [ratio]]]}
    return {
        "machine_info": {"node": "secret-host", "cpu": {"brand_raw": "EPYC", "count": 2}, "python_version": "3.11"},
        "commit_info": {"id": "abc", "branch": "secret-branch", "project": "secret-project"},
        "datetime": f"2026-11-{day:02}T06:00:00+00:00",
        "benchmarks": [
            {"group": "look-ups", "name": "test_read", "fullname": "/secret/path", "params": None,
             "extra_info": {"what": "a read", "count": 1000}, "options": {"timer": timer},
             "stats": STATS | {"median": median_s, "data": [1]}},
            {"group": "peers", "name": "test_get", "fullname": "/secret/path", "extra_info": peer,
             "options": {"timer": "perf_counter"}, "stats": STATS},
        ],
    }  # fmt: skip


def a_report() -> Report:
    rows = (
        Row("redis", "p99", "us", 1500.0, note="assumed", mark="*"),
        Row("redis", "CPU", "us", 30.0),
        Row("files", "p99", "us", None, note="too few"),
        Row("files", "hidden", "", 1.0, main=False),
    )
    machine = {"cpu": "EPYC", "system": "secret-host"}
    columns = (Column("p99", "p99\nms", "ms"), Column("CPU", "CPU, µs", "µs"))
    return Report(
        kind="stores", sentence="s", rows=rows, columns=columns, marks={"*": "assumed"}, machine=machine,
        configuration={"folder": "/secret"},
    )  # fmt: skip


def test_only_a_measured_cpu_time_is_called_cpu() -> None:
    """Wall time of a publish was once published as its CPU time."""
    assert lines_of([run(1)])[0].label == "a read: CPU"
    assert lines_of([run(1, timer="perf_counter")])[0].label == "a read: wall time"


def test_figures_of_different_cpus_are_not_merged() -> None:
    """A table had "0.636 to 3.46 µs", of two kinds of CPU."""
    runs = [stripped(run(day, median_s=0.001 * day)) for day in (1, 2, 3)]
    runs[0]["machine"]["brand_raw"] = "Xeon"
    (line, *_) = lines_of(of_one_cpu(runs))
    assert line.values == [2.0, 3.0]


def test_hosts_branches_and_paths_are_not_kept() -> None:
    for facts in (run(1), to_json(a_report())):
        kept = json.dumps(stripped(facts))
        assert "secret" not in kept
        assert "EPYC" in kept


def test_the_latest_runs_become_tables_between_the_marks_of_both_pages(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    readme = tmp_path / "README.md"
    page = tmp_path / "measuring.md"
    runs = [run(1), *(run(day) for day in range(2, RUNS)), run(RUNS, 0.003, 3.0), run(RUNS + 1, 0.004, 1.0)]
    files = [tmp_path / f"{day}.json" for day in range(len(runs))]
    for file, results in zip(files, runs, strict=True):
        file.write_text(json.dumps(results))
    (tmp_path / "report.json").write_text(json.dumps(to_json(a_report())))
    keep([*files, tmp_path / "report.json"], folder)
    names = sorted(file.name for file in folder.iterdir())
    assert names == [f"run-2026-11-{day:02}-0600.json" for day in range(2, RUNS + 2)] + ["stores.json"]
    page.write_text(MARKS)
    readme.write_text(MARKS.replace("make figures", "make figures: stores") + MARKS)
    write_tables(folder, readme, page)
    assert "redis  1.5 *       30\n" in readme.read_text()
    assert "\n* assumed\n```\n" in readme.read_text()
    assert "| the same: rate against nginx | 2 times (1 to 3) |" in readme.read_text()
    assert "a read: CPU" not in readme.read_text()
    assert "| a read: CPU | " in page.read_text()
    assert "nginx" not in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")


def block_after(command: str) -> str:
    """Return the README's fence that follows a command."""
    _, command_line, after = (ROOT / "README.md").read_text().partition(f"    hotplate {command}\n")
    assert command_line
    return after.partition("```\n")[2].partition("```")[0]


@pytest.mark.parametrize("name", ["stores", "ru"])
def test_the_readme_shows_what_was_measured(name: str) -> None:
    facts = json.loads((ROOT / "bench" / "figures" / f"{name}.json").read_text())
    assert f"```\n{block_after(f'bench {name}')}```\n" == printed(from_json(facts))


def test_the_readme_shows_what_a_plan_prints() -> None:
    shown = block_after(f"plan {PLAN}")
    assert len(shown.splitlines()) <= 25
    assert shown.split() == hotplate("plan", *PLAN.split()).stdout.split()
