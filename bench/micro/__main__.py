"""`python -m hotplate.bench.micro`: measure the figures, print them with their goals, and keep them in the history."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hotplate.bench import machine
from hotplate.bench.micro import commands, history, in_process, remote, serving
from hotplate.bench.micro.harness import BenchmarkSize, MeasuredFigure, Outcome, Unmeasured

SHORT = BenchmarkSize(rounds=1, users=50_000, round_s=0.5)
# Columns without a terminal that would set them.
PRINTED_WIDTH = 180
CASES = {case.name: case for case in (*in_process.CASES, *serving.CASES, *remote.CASES, *commands.CASES)}
# Figures of docs/figures.md, and those that README has, too.
ROWS = {f"{case.name}: {figure}": row.what for case in CASES.values() for figure, row in case.rows.items()}
IN_README = [
    "http_peer: hotplate / aiohttp: rate",
    "hot_path: hotplate / nginx: rate",
    "webdis: hotplate / webdis: rate",
    "files: 20 items: CPU",
    "big_release: many / few: CPU",
    "retail: train, publish / bare: CPU time",
    "log: train, publish / bare: CPU time",
    "log: train, publish / bare: peak memory",
]


def pages() -> dict[Path, str]:
    """Return README and docs/figures.md with the tables that the history gives."""
    runs = history.read(history.HISTORY)
    few = {name: ROWS[name] for name in IN_README}
    tables = {machine.ROOT / "README.md": few, machine.ROOT / "docs" / "figures.md": ROWS}
    return {
        page: history.page_with(page.read_text(), history.table(runs, rows), "figures") for page, rows in tables.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 however the figures came out, 1 if something failed and has no figure."""
    options = parse(arguments)
    if options.tables:
        for page, text in pages().items():
            page.write_text(text)
        return 0
    described, size, outcomes = machine.describe(), SHORT if options.short else BenchmarkSize(), list[Outcome]()
    console = Console(width=None if sys.stdout.isatty() else PRINTED_WIDTH)
    for name in options.only or [name for name, case in CASES.items() if not (options.short and case.rounds)]:
        with console.status(f"measuring: {name}"):
            try:
                outcomes += CASES[name].measure(size)
            except Exception as error:  # noqa: BLE001 -- whatever it is, the figures of the others are worth having
                outcomes.append(Unmeasured(name, str(error) or repr(error), failed=True))
    console.print(table(outcomes, f"{described['cpu']}, {described['cores']} cores, {described['date']}"))
    figures = [one.to_json() for one in outcomes]
    options.out.write_text(json.dumps({"machine": described, "figures": figures}, indent=1))
    console.print(f"written to {options.out}")
    if not options.short:
        history.append(history.HISTORY, described, [one for one in outcomes if isinstance(one, MeasuredFigure)])
        console.print(f"added to {history.HISTORY}; make figures writes its tables")
    return int(any(isinstance(one, Unmeasured) and one.failed for one in outcomes))


def table(outcomes: Sequence[Outcome], title: str) -> Table:
    """Lay the figures out for a terminal, and for each without a number the reason."""
    result = Table("figure", "unit", title=title)
    for column in ("median", "min", "max", "n"):
        result.add_column(column, justify="right")
    result.add_column("goal")
    result.add_column("met")
    for one in outcomes:
        if isinstance(one, MeasuredFigure):
            numbers = (history.number(value) for value in one.span)
            met = {None: "", True: "yes", False: "NO"}[one.met]
            result.add_row(escape(one.name), one.unit, *numbers, str(len(one.values)), str(one.goal or ""), met)
        else:
            result.add_row(escape(f"{one.name}: {'FAILED' if one.failed else 'skipped'}, {one.reason}"))
    return result


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; SystemExit(2) for what makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m hotplate.bench.micro", description="Measure the figures of hotplate."
    )
    parser.add_argument("--only", choices=list(CASES), action="append", help="run this one; may be repeated")
    parser.add_argument(
        "--short", action="store_true", help="take about 3 minutes and add nothing; goals are for the usual form"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results.json"), help="where to write the results")
    parser.add_argument("--tables", action="store_true", help="measure nothing: write the tables of README and docs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
