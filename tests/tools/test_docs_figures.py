"""Benchmarks and published figures: stored results, and the tables in the docs."""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hotplate.base.report import Column, Report, Row, format_value, from_json, rounded, to_json
from hotplate.bench.planner import prices as price_list
from hotplate.bench.planner.formulas import round_up
from hotplate.bench.planner.inputs import INPUT_FIELDS, InputSource, merge
from hotplate.bench.planner.plan import break_even, calculate
from hotplate.stores.cosmos import charges as cosmos_charges
from tests.support.command import hotplate
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tools.docs_figures import FOLDER, keep, printed, read, write_tables

PLAN = "--users 1M --peak-rps 500 --profile evening --zipf 0.9"
STATS = dict.fromkeys(("min", "max", "mean", "stddev", "median", "iqr", "rounds", "iterations"), 1.0)
MARKS = "before\n<!-- written by make figures -->\nold\n<!-- up to here -->\nafter\n"


@pytest.mark.soak
def test_every_benchmark_runs() -> None:
    options = ["-o", "addopts=--import-mode=importlib --strict-markers", "-p", "no:xdist", "-p", "no:schemathesis"]
    command = [sys.executable, "-m", "pytest", "-q", *options, "--benchmark-disable", "tools"]
    environment = os.environ | {"HOTPLATE_BENCH_USERS": "1000"}
    run_process(*command, cwd=ROOT, env=environment)


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


def kept(folder: Path, *results: dict[str, Any]) -> Sequence[Row]:
    """Keep results of runs in *folder*, and return the figures of the last one."""
    folder.mkdir()
    files = [folder / f"result-{number}.json" for number in range(len(results))]
    for file, facts in zip(files, results, strict=True):
        file.write_text(json.dumps(facts))
    keep(files, folder / "kept")
    return read(folder / "kept" / "run.json").rows


def test_only_a_measured_cpu_time_is_called_cpu(tmp_path: Path) -> None:
    """Wall time of a publish was once published as its CPU time."""
    assert kept(tmp_path / "cpu", run(1))[0].figure == "a read: CPU"
    assert kept(tmp_path / "wall", run(1, timer="perf_counter"))[0].figure == "a read: wall time"


def test_a_subject_that_begins_with_the_same_has_figures_of_its_own(tmp_path: Path) -> None:
    """The CPU of a GET compared with nginx and Lua was once pooled into that compared with webdis."""
    results = run(1)
    figures = [["a GET: rate", "/s", [10.0]], ["the same: CPU", "µs", [12.0]],
               ["the same GET: rate", "/s", [20.0]], ["the same: CPU", "µs", [14.0]]]  # fmt: skip
    results["benchmarks"][1]["extra_info"]["figures"] = figures
    rows = kept(tmp_path / "results", results)[1:]
    assert [[row.figure, row.unit, list(row.values)] for row in rows] == figures
    assert [row.subject for row in rows] == ["a GET", "a GET", "the same GET", "the same GET"]


def test_the_tables_of_the_docs_are_of_the_kept_runs(tmp_path: Path) -> None:
    pages = {ROOT / "README.md": tmp_path / "README.md", ROOT / "docs" / "measuring.md": tmp_path / "measuring.md"}
    for page, copy in pages.items():
        copy.write_text(page.read_text())
    write_tables(FOLDER, *pages.values())
    for page, copy in pages.items():
        assert copy.read_text() == page.read_text()


def test_hosts_branches_and_paths_are_not_kept(tmp_path: Path) -> None:
    kept(tmp_path / "results", run(1), to_json(a_report()))
    files = list((tmp_path / "results" / "kept").iterdir())
    assert len(files) == 2
    for file in files:
        assert "secret" not in file.read_text()
        assert "EPYC" in file.read_text()


def test_the_last_run_becomes_tables_between_the_marks_of_both_pages(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    readme = tmp_path / "README.md"
    page = tmp_path / "measuring.md"
    runs = [run(1, 0.003, 3.0), run(2)]
    files = [tmp_path / f"{day}.json" for day in range(len(runs))]
    for file, results in zip(files, runs, strict=True):
        file.write_text(json.dumps(results))
    (tmp_path / "report.json").write_text(json.dumps(to_json(a_report())))
    keep([*files, tmp_path / "report.json"], folder)
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["run.json", "stores.json"]
    page.write_text(MARKS)
    readme.write_text(MARKS.replace("make figures", "make figures: stores") + MARKS)
    write_tables(folder, readme, page)
    assert "redis  1.5 *       30\n" in readme.read_text()
    assert "\n* assumed\n```\n" in readme.read_text()
    assert "| the same: rate against nginx | 2 times |" in readme.read_text()
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


def kept_report(name: str) -> Report:
    return from_json(json.loads((FOLDER / f"{name}.json").read_text()))


@pytest.mark.parametrize("name", ["stores", "ru"])
def test_the_readme_shows_what_was_measured(name: str) -> None:
    assert f"```\n{block_after(f'bench {name}')}```\n" == printed(kept_report(name))


def test_the_first_line_of_bench_stores_has_the_rates_of_the_planner() -> None:
    shown = kept_report("stores").sentence
    users = re.findall(r"for ([0-9,]+) users cheaper than Cosmos DB", shown)[0].replace(",", "")
    load = InputSource("bench stores", {"users": users, "peak_rps": 800})
    plan = calculate(merge([load]), price_list.load(price_list.OURS), cosmos_charges.load())
    (rates,) = break_even(plan)
    assert f" users cheaper than Cosmos DB {rates.describe('reads/s')}. How sure: " in shown


def test_the_readme_shows_what_a_plan_prints() -> None:
    shown = block_after(f"plan {PLAN}")
    assert len(shown.splitlines()) <= 25
    assert shown.split() == hotplate("plan", *PLAN.split()).stdout.split()


def cpu_by_stores(subject: str) -> float:
    """Return the µs of CPU of a request that `bench stores` measured."""
    row = kept_report("stores").row(subject, "CPU a request")
    assert row is not None
    assert row.value is not None
    return row.value


def benchmarked() -> dict[tuple[str, str], float]:
    """Return the published medians by subject and figure, as ("a read from Redis, 16 in flight", "CPU")."""
    rows = read(FOLDER / "run.json").rows
    return {(row.subject, row.figure.rpartition(": ")[2]): row.value or 0.0 for row in rows}


# Sentences with measured figures, as {}, and the benchmarks that measured them.
CITATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "docs/cosmos.md": (
        "signed requests, at {} µs of CPU a read; through azure-cosmos it would be {}",
        ("a point read from Cosmos DB (emulated), 16 in flight", "the same through azure-cosmos"),
    ),
    "docs/stores.md": ("| a read | {} µs, no network |", ("a read from a file of 100,000 users",)),
    "stores/redis/multiplexed.py": (
        "`MGET` takes {}, {} and {} µs of CPU a key at 1, 8 and 32 keys instead of {}, {} and {}",
        tuple(
            f"a key from Redis through {client}, {keys} at once"
            for client in ("redis-py", "our connection")
            for keys in (1, 8, 32)
        ),
    ),
    "stores/cosmos/signed.py": (
        "A point read takes {} µs of CPU, by azure-cosmos {}",
        ("a point read from Cosmos DB (emulated), 16 in flight", "the same through azure-cosmos"),
    ),
    "hotplate/base/background.py": ("takes {} µs of CPU", ("a list from `hotplate.open_sync`, decoded",)),
}


@pytest.mark.parametrize("path", CITATIONS)
def test_figures_in_prose_are_those_of_the_benchmarks(path: str) -> None:
    sentence, subjects = CITATIONS[path]
    figures = benchmarked()
    cited = sentence.format(*(format_value(figures[subject, "CPU"]) for subject in subjects))
    assert cited in " ".join((ROOT / path).read_text().split())


def test_a_service_by_redis_py_has_the_figures_of_the_comparison() -> None:
    ours = rounded(cpu_by_stores("Redis"), 3)
    theirs = rounded(cpu_by_stores("Redis by redis-py"), 3)
    text = " ".join((ROOT / "stores" / "redis" / "multiplexed.py").read_text().split())
    assert f"a GET of the service {theirs} µs instead of {ours} at 32 connections" in text


def test_every_docstring_that_names_a_benchmark_is_checked() -> None:
    rooms = ("stores", "serve", "offline", "hotplate")
    files = [file for room in rooms for file in (ROOT / room).rglob("*.py") if "bench" not in file.parts]
    naming = {str(file.relative_to(ROOT)) for file in files if "`tools/test_" in file.read_text()}
    assert naming <= CITATIONS.keys()


@pytest.mark.parametrize(("name", "subject"), [("cosmos", "Cosmos emulator"), ("redis", "Redis"), ("files", "files")])
def test_the_planner_assumes_a_multiple_of_the_measured_cpu(name: str, subject: str) -> None:
    assumed = INPUT_FIELDS[f"{name}_cpu_us"]
    factor, measured = re.findall(r"([0-9.]+) times ([0-9.]+) measured", assumed.metadata["reason"])[0]
    assert measured == rounded(cpu_by_stores(subject), 3)
    assert assumed.default == round_up(float(factor) * float(measured), 5)


def test_readme_quotes_the_mean_quality_over_the_cuts() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text()
    [header] = [line for line in page.splitlines() if line.startswith("| data | first pairs | users, new ones |")]
    columns = [cell.strip() for cell in header.split("|")]
    rows = [line.split("|") for line in page.splitlines() if re.match(r"\| Online Retail \| \d+% \|", line)]
    cuts = [row for row in rows if len(row) == len(columns)]  # a further table has other columns
    assert len(cuts) == 6

    readme = " ".join((ROOT / "README.md").read_text().split())
    for column, quoted in (
        ("as typed", r"of ([\d.]+) over the six cuts"),
        ("recent popularity", r"has ([\d.]+)"),
    ):
        mean = sum(float(cut[columns.index(column)].split()[0]) for cut in cuts) / len(cuts)
        [figure] = re.findall(rf"nDCG@10.*?{quoted}", readme)
        assert figure.rstrip(".") == f"{mean:.3f}"
