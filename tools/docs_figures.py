"""`make figures`: keeps results without names of hosts and paths, and writes the docs' tables and the README's outputs.

Arguments are files of `make bench` (the latest RUNS are kept), and a JSON report each of `bench stores` and `bench ru`.
"""

import argparse
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console

from hotplate.base.report import Report, format_value, from_json, markdown_page, markdown_table, print_report, to_json
from hotplate.bench.process import ROOT

FOLDER = ROOT / "tools" / "figures"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "measuring.md"
VERB = "figures"
# Runs of a published median.
RUNS = 3
MACHINE = ("processor", "machine", "python_version", "system")
CPU = ("brand_raw", "count")
REPORT_MACHINE = ("cpu", "cores", "python", "date")
STATS = ("min", "max", "mean", "stddev", "median", "iqr", "rounds", "iterations")
REPORTS = ("stores", "ru")
CPU_TIMER = "process_time"
SAME = "the same"  # begins the label of another figure of the last subject
WIDTH = 80  # of a terminal, in the README
# The README has reports and peers, docs/measuring.md the others.
PEERS = "peers"


class Line(NamedTuple):
    """A figure of a subject, such as "a GET", with a value for each run, or each round of one."""

    subject: str
    label: str
    unit: str
    values: list[float]
    group: str

    @property
    def measured(self) -> str:
        """The median, with the range if values differ."""
        low = min(self.values)
        high = max(self.values)
        span = f" ({format_value(low)} to {format_value(high)})" if low < high else ""
        return f"{format_value(median(self.values))} {self.unit}{span}"


def stripped(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's JSON without names of hosts, users, branches and paths.

    *facts* are a result of pytest-benchmark, or a report of `hotplate bench`, which has no "benchmarks".
    """
    if "benchmarks" not in facts:
        report = from_json(facts)
        machine = _selected(report.machine, REPORT_MACHINE)
        return to_json(replace(report, machine=machine, configuration={}, extra={}, plots=(), tables=()))

    machine = facts["machine_info"]
    return {
        "datetime": facts["datetime"],
        "commit": facts["commit_info"].get("id"),
        "machine": _selected(machine, MACHINE) | _selected(machine.get("cpu", {}), CPU),
        "benchmarks": list(map(_stripped_benchmark, facts["benchmarks"])),
    }


def _selected(facts: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return those of the named facts that are known."""
    return {name: facts[name] for name in names if name in facts}


def _stripped_benchmark(benchmark: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: benchmark[name] for name in ("group", "name", "extra_info")}
    stats = {name: benchmark["stats"][name] for name in STATS}
    return {**named, "options": {"timer": benchmark["options"]["timer"]}, "stats": stats}


def keep(files: Iterable[Path], folder: Path) -> None:
    """Copy JSON files of benchmark results and reports to *folder*, without names of hosts and users.

    A report replaces that of its kind, as `stores.json`. Results of pytest-benchmark are named by their time, as
    `run-2026-11-05-0600.json`, and only the latest RUNS are kept.
    """
    folder.mkdir(exist_ok=True)
    for file in files:
        facts = stripped(json.loads(file.read_text()))
        if "kind" in facts:
            name = facts["kind"]
        else:
            minute = str(facts["datetime"])[:16].replace(":", "").replace("T", "-")
            name = f"run-{minute}"
        (folder / f"{name}.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    for old in sorted(folder.glob("run-*.json"))[:-RUNS]:
        old.unlink()


def kept_runs(folder: Path) -> list[Mapping[str, Any]]:
    """Return the results of pytest-benchmark in *folder*, the latest last."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("run-*.json"))]


def of_one_cpu(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the runs on the CPU of the last one: figures of different CPUs have no common median."""
    return [run for run in runs if run["machine"].get("brand_raw") == runs[-1]["machine"].get("brand_raw")]


def lines_of(runs: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Return a line of the tables for each figure in stored results of pytest-benchmark.

    A line has the figure's median in each run that has the benchmark or, if only one run has it, the values of all
    its rounds.
    """
    lines: dict[tuple[str, str], Line] = {}  # by subject and label
    run_counts = Counter(benchmark["name"] for run in runs for benchmark in run["benchmarks"])
    for run in runs:
        subject = ""
        for benchmark in run["benchmarks"]:
            for label, unit, values in _benchmark_figures(benchmark):
                # "the same: CPU" is a figure of the last subject; "the same GET" and "the same by …" are subjects.
                named = label.partition(":")[0]
                subject = subject if named == SAME else named
                new = Line(subject, label, unit=unit, values=[], group=benchmark["group"])
                line = lines.setdefault((subject, label), new)

                if run_counts[benchmark["name"]] > 1:
                    line.values.append(median(values))
                else:
                    line.values.extend(values)
    return list(lines.values())


def _benchmark_figures(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, str, list[float]]]:
    info = benchmark["extra_info"]
    stats = benchmark["stats"]
    if "count" in info:
        measure = "CPU" if benchmark["options"]["timer"] == CPU_TIMER else "wall time"
        yield f"{info['what']}: {measure}", "µs", [stats["median"] * 1e6 / info["count"]]
    yield from info.get("figures", ())


def printed(report: Report) -> str:
    """Return what the command printed, in a fence."""
    out = io.StringIO()
    print_report(report, Console(file=out, width=WIDTH))
    return f"```\n{out.getvalue().strip()}\n```\n"


def write_tables(folder: Path, readme: Path, page: Path) -> None:
    """Replace the generated parts of two Markdown pages, which lie between marks, by the results stored in *folder*.

    *readme* gets the comparisons with peers (other servers and libraries) and the printed reports, *page* the table of
    all other benchmarks. Only results from the same CPU as the last one are used.
    """
    lines = lines_of(of_one_cpu(kept_runs(folder)))
    peers = [[line.label, line.measured] for line in lines if line.group == PEERS]
    own = [[line.label, line.measured] for line in lines if line.group != PEERS]

    readme_text = readme.read_text()
    for name in REPORTS:
        file = folder / f"{name}.json"
        if file.exists():
            report = from_json(json.loads(file.read_text()))
            readme_text = markdown_page(readme_text, printed(report), f"{VERB}: {name}")
    readme.write_text(markdown_page(readme_text, markdown_table(["compared", "measured"], peers), VERB))
    page.write_text(markdown_page(page.read_text(), markdown_table(["benchmark", "measured"], own), VERB))


def main() -> None:
    """Keep files, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    keep(parser.parse_args().files, FOLDER)
    write_tables(FOLDER, README, PAGE)


if __name__ == "__main__":
    main()
