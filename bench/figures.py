"""`make figures`: keeps results without names of hosts and paths in bench/figures/, and writes the tables of the docs.

Arguments are files to keep: those that `make bench` saves below .benchmarks/, and JSON reports of `hotplate bench
stores` and `hotplate bench ru`. Of the former the latest RUNS are kept, of the latter one each.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from hotplate.bench.process import ROOT
from hotplate.markdown import page_with, table
from hotplate.report import UNKNOWN, Report, format_value, from_json, to_json

FOLDER = ROOT / "bench" / "figures"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "measuring.md"
VERB = "figures"
# Runs of the benchmarks that a figure is the median of.
RUNS = 3
MACHINE = ("processor", "machine", "python_version", "system")
CPU = ("brand_raw", "count")
STATS = ("min", "max", "mean", "stddev", "median", "iqr", "rounds", "iterations")
REPORTS = ("stores", "ru")
# The figures of a report that the front page shows; its other columns are in docs/measuring.md.
FRONT = {
    "stores": ("p50", "p99", "requests/s and core"),
    "ru": ("reads/s", "p50", "p99", "USD/month manual", "USD per billion reads"),
}
FRONT_GROUP = "peers"


class Line(NamedTuple):
    """A figure of the benchmarks: its median of each run, and the least and the most of all."""

    what: str
    unit: str
    values: list[float]
    group: str

    @property
    def measured(self) -> str:
        """The median of the runs, and what they span, or what the rounds span if there is one run."""
        low, high = min(self.values), max(self.values)
        span = f" ({format_value(low)} to {format_value(high)})" if low < high else ""
        return f"{format_value(median(self.values))} {self.unit}{span}"


def stripped(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result of pytest-benchmark or a report without names of hosts, users, branches and paths."""
    if "benchmarks" not in facts:
        report = from_json(facts)
        machine = {name: report.machine[name] for name in ("cpu", "cores", "python", "date") if name in report.machine}
        bare = replace(report, machine=machine, configuration={}, extra={}, plots=(), tables=())
        return to_json(bare)
    machine = facts["machine_info"]
    return {
        "datetime": facts["datetime"],
        "commit": facts["commit_info"].get("id"),
        "machine": {name: machine[name] for name in MACHINE if name in machine}
        | {name: machine["cpu"][name] for name in CPU if name in machine.get("cpu", {})},
        "benchmarks": [
            {name: each[name] for name in ("group", "name", "extra_info")}
            | {"stats": {name: each["stats"][name] for name in STATS}}
            for each in facts["benchmarks"]
        ],
    }


def keep(files: Iterable[Path], folder: Path) -> None:
    """Write what is stripped of each file into *folder*, and drop the oldest runs beyond RUNS."""
    folder.mkdir(exist_ok=True)
    for file in files:
        facts = stripped(json.loads(file.read_text()))
        when = str(facts.get("datetime", ""))[:16].replace(":", "").replace("T", "-")
        name = facts["kind"].rpartition(" ")[2] if "kind" in facts else f"run-{when}"
        (folder / f"{name}.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    for old in sorted(folder.glob("run-*.json"))[:-RUNS]:
        old.unlink()


def lines_of(runs: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Return the figures of several runs; the values are medians of runs, or rounds if there is one run."""
    found: dict[str, Line] = {}
    for run in runs:
        subject = ""
        for each in run["benchmarks"]:
            for what, unit, values in _figures(each):
                subject = subject if what.startswith("the same") else what.partition(":")[0]
                line = found.setdefault(f"{subject}: {what}", Line(what, unit, [], each["group"]))
                line.values.extend([median(values)] if len(runs) > 1 else values)
    return list(found.values())


def _figures(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, str, list[float]]]:
    info, stats = benchmark["extra_info"], benchmark["stats"]
    if "count" in info:
        yield f"{info['what']}: CPU", "µs", [stats["median"] * 1e6 / info["count"]]
    yield from info.get("figures", ())


def table_of_report(report: Report, figures: Sequence[str] = ()) -> str:
    """Return the main rows as a table: a line for each subject, a column for each of the *figures*, or of all."""
    main = [row for row in report.rows if row.main]
    names = [name for name in dict.fromkeys(row.figure for row in main) if not figures or name in figures]
    subjects = dict.fromkeys(row.subject for row in main)
    head = f"{report.head}\n\n" if report.head else ""
    rows = ([subject, *(_cell(report, subject, name) for name in names)] for subject in subjects)
    return head + table(["", *names], rows)


def _cell(report: Report, subject: str, figure: str) -> str:
    row = report.row(subject, figure)
    if row is None or row.value is None:
        return UNKNOWN
    return f"{format_value(row.value, row.unit)}{f' ({row.note})' if row.note else ''}"


def write_tables(folder: Path, readme: Path, page: Path) -> None:
    """Write the tables of both pages from the files in *folder*."""
    runs = [json.loads(file.read_text()) for file in sorted(folder.glob("run-*.json"))]
    lines = lines_of(runs)
    found = {name: folder / f"{name}.json" for name in REPORTS}
    reports = {name: from_json(json.loads(file.read_text())) for name, file in found.items() if file.exists()}
    front = [table_of_report(report, FRONT[name]) for name, report in reports.items()]
    peers = ([each.what, each.measured] for each in lines if each.group == FRONT_GROUP)
    front.append(table(["compared", "measured"], peers))
    whole = [table_of_report(report) for report in reports.values()]
    whole.append(table(["benchmark", "measured"], ([each.what, each.measured] for each in lines)))
    for path, tables in ((readme, front), (page, whole)):
        path.write_text(page_with(path.read_text(), "\n".join(tables), VERB))


def main() -> None:
    """Keep the files that are the arguments, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    keep(parser.parse_args().files, FOLDER)
    write_tables(FOLDER, README, PAGE)


if __name__ == "__main__":
    main()
