"""`make figures`: keeps results without names of hosts and paths, and writes the docs' tables and the README's outputs.

Arguments are a file of `make bench`, and a JSON report each of `bench stores` and `bench ru`.
"""

import argparse
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from hotplate.base.report import (
    Report,
    Row,
    format_value,
    from_json,
    markdown_page,
    markdown_table,
    print_report,
    to_json,
)
from hotplate.bench.process import ROOT

FOLDER = ROOT / "tools" / "figures"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "measuring.md"
VERB = "figures"
RUN = "run"
MACHINE = ("cpu", "cores", "python", "date", "commit")
REPORTS = ("stores", "ru")
CPU_TIMER = "process_time"
SAME = "the same"  # begins the label of another figure of the last subject
WIDTH = 80  # of a terminal, in the README
# The README has reports and peers, docs/measuring.md the others.
PEERS = "peers"


def read(file: Path) -> Report:
    """Return a report of `hotplate bench`, or the results of pytest-benchmark as a report, without what is private."""
    facts = json.loads(file.read_text())
    report = from_json(facts) if "kind" in facts else _run_report(facts)
    machine = {name: report.machine[name] for name in MACHINE if name in report.machine}
    return replace(report, machine=machine, configuration={}, extra={}, plots=(), tables=())


def _run_report(facts: Mapping[str, Any]) -> Report:
    """Return the results of a run of pytest-benchmark as a report.

    A row has a figure of a subject, such as "a GET", by its label, with the value of each round; its note is the group
    of the benchmark.
    """
    rows = list[Row]()
    subject = ""
    for benchmark in facts["benchmarks"]:
        for label, unit, values in _figures_of(benchmark):
            # "the same: CPU" is a figure of the last subject; "the same GET" and "the same by …" are subjects.
            named = label.partition(":")[0]
            subject = subject if named == SAME else named
            rows.append(Row(subject, label, unit, median(values), tuple(values), note=benchmark["group"]))

    cpu = facts["machine_info"].get("cpu", {})
    machine = {
        "cpu": cpu.get("brand_raw"),
        "cores": cpu.get("count"),
        "python": facts["machine_info"]["python_version"],
        "date": str(facts["datetime"]),
        "commit": facts["commit_info"].get("id"),
    }
    return Report(kind=RUN, sentence="", rows=tuple(rows), machine=machine)


def _figures_of(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, str, list[float]]]:
    info = benchmark["extra_info"]
    if "count" in info:
        measure = "CPU" if benchmark["options"]["timer"] == CPU_TIMER else "wall time"
        yield f"{info['what']}: {measure}", "µs", [benchmark["stats"]["median"] * 1e6 / info["count"]]
    yield from info.get("figures", ())


def keep(files: Iterable[Path], folder: Path) -> None:
    """Copy JSON files of benchmark results and reports to *folder*, without names of hosts and users.

    It replaces the one of its kind, as `stores.json`, and the last of several runs counts.
    """
    folder.mkdir(exist_ok=True)
    for file in files:
        report = read(file)
        text = json.dumps(to_json(report), indent=1, ensure_ascii=False)
        (folder / f"{report.kind}.json").write_text(f"{text}\n")


def _described(row: Row) -> str:
    """Return a figure's median, with the range if values differ."""
    low = min(row.values)
    high = max(row.values)
    span = f" ({format_value(low)} to {format_value(high)})" if low < high else ""
    return f"{format_value(row.value or 0.0)} {row.unit}{span}"


def printed(report: Report) -> str:
    """Return what the command printed, in a fence."""
    out = io.StringIO()
    print_report(report, Console(file=out, width=WIDTH))
    return f"```\n{out.getvalue().strip()}\n```\n"


def write_tables(folder: Path, readme: Path, page: Path) -> None:
    """Replace the generated parts of two Markdown pages, which lie between marks, by the results stored in *folder*.

    *readme* gets the comparisons with peers (other servers and libraries) and the printed reports, *page* the table of
    all other benchmarks.
    """
    rows = read(folder / f"{RUN}.json").rows
    text = readme.read_text()
    for name in REPORTS:
        file = folder / f"{name}.json"
        if file.exists():
            text = markdown_page(text, printed(read(file)), f"{VERB}: {name}")
    peers = _table("compared", [row for row in rows if row.note == PEERS])
    readme.write_text(markdown_page(text, peers, VERB))
    own = _table("benchmark", [row for row in rows if row.note != PEERS])
    page.write_text(markdown_page(page.read_text(), own, VERB))


def _table(heading: str, rows: Sequence[Row]) -> str:
    return markdown_table([heading, "measured"], [[row.figure, _described(row)] for row in rows])


def main() -> None:
    """Keep files, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    keep(parser.parse_args().files, FOLDER)
    write_tables(FOLDER, README, PAGE)


if __name__ == "__main__":
    main()
