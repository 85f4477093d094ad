"""`python -m hotplate.bench.micro`: measure the figures, print them with their goals, and keep them in the history."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hotplate.bench.micro import commands, history, publishing, remote, serving
from hotplate.bench.micro.harness import Effort, Figure, Outcome, Unmeasured, at_most
from hotplate.bench.report import machine

SHORT = Effort(rounds=1, users=50_000, round_s=0.5)
# Columns without a terminal that would set them.
PRINTED_WIDTH = 180
IN_PROCESS = "in_process"


def measure_in_process(effort: Effort) -> list[Outcome]:
    """Run the suite of pytest-benchmark, by CPU time; a figure's values are the quartiles over its rounds."""
    # A pytest around this one, with workers of its own, would turn the benchmarks off.
    settings = {name: value for name, value in machine.environment().items() if not name.startswith("PYTEST_")}
    settings["BENCH_USERS"] = str(effort.users)
    with tempfile.TemporaryDirectory() as made:
        written = Path(made) / "benchmarks.json"
        command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), "--benchmark-only", "-q"]
        command += ["-p", "no:cacheprovider", "--benchmark-timer=time.process_time", f"--benchmark-json={written}"]
        command += [f"--benchmark-max-time={effort.round_s / 2}", f"--benchmark-min-rounds={effort.rounds}"]
        done = subprocess.run(command, cwd=machine.ROOT, env=settings, capture_output=True, text=True, check=False)  # noqa: S603 -- our own suite
        if done.returncode:
            raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        results = {one["name"]: one for one in json.loads(written.read_text())["benchmarks"]}
    store, plain = (results[name]["stats"] for name in ("bench_get", "bench_get_of_a_dict"))
    ratios = [store[key] / plain["median"] for key in ("q1", "median", "q3")]
    beside_dict = Figure(f"{IN_PROCESS}: get / get of a dict: CPU", "ratio", ratios, at_most(3))
    return [*map(benchmark_figure, results.values()), beside_dict]


def benchmark_figure(result: dict[str, Any]) -> Figure:
    """Name one benchmark by its function and parameters; its time is that of one of the things that a round does."""
    extra = result["extra_info"]
    goal = at_most(extra["goal"]) if "goal" in extra else None
    name = result["name"].removeprefix("bench_").replace("_", " ")
    values = [result["stats"][key] * 1e6 / extra.get("count", 1) for key in ("q1", "median", "q3")]
    return Figure(f"{IN_PROCESS}: {name}: CPU", "µs", values, goal)


CASES = {case.name: case for case in (*serving.CASES, *remote.CASES, *publishing.CASES, *commands.CASES)}
BENCHMARKS: dict[str, Callable[[Effort], list[Outcome]]] = {
    IN_PROCESS: measure_in_process,
    **{name: case.measure for name, case in CASES.items()},
}
# Figures of docs/figures.md, and those that README has, too.
ROWS = {
    f"{IN_PROCESS}: get / get of a dict: CPU": "a warm read from a file of 1,000,000 users, compared with a dict: CPU",
    f"{IN_PROCESS}: get: CPU": "the same: CPU",
    f"{IN_PROCESS}: batch[json-application/json]: CPU": "a user of a batch of 1,000, 10 items each, from files: CPU",
    f"{IN_PROCESS}: score[json-records]: CPU": "the same as Azure ML scores it: CPU",
    **{f"{name}: {figure}": what for name, case in CASES.items() for figure, what in case.rows.items()},
}
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
    described, effort, outcomes = machine.describe(), effort_of(options), list[Outcome]()
    console = Console(width=None if sys.stdout.isatty() else PRINTED_WIDTH)
    left_out = {name for name, case in CASES.items() if options.short and case.rounds}
    for name in options.only or [name for name in BENCHMARKS if name not in left_out]:
        with console.status(f"measuring: {name}"):
            outcomes += measured(name, effort)
    console.print(table(outcomes, f"{described['cpu']}, {described['cores']} cores, {described['date']}"))
    figures = [one.to_json() for one in outcomes]
    options.out.write_text(json.dumps({"machine": described, "figures": figures}, indent=1))
    console.print(f"written to {options.out}")
    if effort == Effort():
        history.append(options.history, described, [one for one in outcomes if isinstance(one, Figure)])
        console.print(f"added to {options.history}; make figures writes its tables")
    return int(any(isinstance(one, Unmeasured) and one.failed for one in outcomes))


def effort_of(options: argparse.Namespace) -> Effort:
    """Return how much to measure: what was given, else the default, or with --short a little of everything."""
    given = {"rounds": options.rounds, "users": options.users, "round_s": options.seconds}
    known = {name: value for name, value in given.items() if value is not None}
    return replace(SHORT if options.short else Effort(), **known)


def measured(name: str, effort: Effort) -> list[Outcome]:
    """Run one benchmark; a failure is an outcome, too."""
    try:
        return BENCHMARKS[name](effort)
    except Exception as error:  # noqa: BLE001 -- whatever it is, the figures of the others are worth having
        return [Unmeasured(name, str(error) or repr(error), failed=True)]


def table(outcomes: Sequence[Outcome], title: str) -> Table:
    """Lay the figures out for a terminal, and for each without a number the reason."""
    result = Table("figure", "unit", title=title)
    for column in ("median", "min", "max", "n"):
        result.add_column(column, justify="right")
    result.add_column("goal")
    result.add_column("met")
    for one in outcomes:
        if isinstance(one, Figure):
            numbers = (history.number(value) for value in one.span)
            met = {None: "", True: "yes", False: "NO"}[one.met]
            result.add_row(escape(one.name), one.unit, *numbers, str(len(one.values)), str(one.goal or ""), met)
        else:
            result.add_row(escape(f"{one.name}: {'FAILED' if one.failed else 'skipped'}, {one.reason}"))
    return result


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; SystemExit(2) for what makes no sense."""
    default = Effort()
    parser = argparse.ArgumentParser(
        prog="python -m hotplate.bench.micro", description="Measure the figures of hotplate."
    )
    parser.add_argument("--only", choices=list(BENCHMARKS), action="append", help="run this one; may be repeated")
    parser.add_argument("--short", action="store_true", help="take about 3 minutes; goals are for the usual form")
    parser.add_argument("--rounds", type=int, help=f"rounds per figure ({default.rounds}; with --short {SHORT.rounds})")
    parser.add_argument(
        "--users", type=int, help=f"users of a release ({default.users:,}; with --short {SHORT.users:,})"
    )
    parser.add_argument(
        "--seconds", type=float, help=f"of load per round ({default.round_s:g}; with --short {SHORT.round_s:g})"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results.json"), help="where to write the results")
    parser.add_argument(
        "--history", type=Path, default=history.HISTORY, help="what a run of the usual form is added to"
    )
    parser.add_argument("--tables", action="store_true", help="measure nothing: write the tables of README and docs")
    options = parser.parse_args(arguments)
    effort = effort_of(options)
    if effort.rounds < 1 or effort.users < 1 or effort.round_s <= 0:
        parser.error("--rounds, --users and --seconds must be positive")
    return options


if __name__ == "__main__":
    sys.exit(main())
