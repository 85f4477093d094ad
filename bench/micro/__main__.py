"""`python -m bench.micro`: measure the figures, print them, and write them down with the machine they are of."""

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

from bench.micro import (
    big_release,
    cosmos,
    events,
    fold_in,
    hot_path,
    http_peer,
    importing,
    overload,
    publishing,
    redis,
    redis_cluster,
    training,
)
from bench.micro.rounds import Effort, Figure, Outcome, Unmeasured, at_most
from bench.report import machine

Measure = Callable[[Effort], list[Outcome]]

SHORT = Effort(rounds=1, users=50_000, round_s=0.5)
# Benchmarks whose size is given by their data; --short leaves them out.
LONG = {"retail", "log", "catalogue", "cosmos_publishing"}
# Columns where there is no terminal that would set them.
PRINTED_WIDTH = 180
# How much longer a read of the embedded store may take than one of a dict.
GET_PER_DICT_GET = 3


def measure_in_process(effort: Effort) -> list[Outcome]:
    """Run the suite of pytest-benchmark, by CPU time; a figure's values are the quartiles over its rounds."""
    folder = Path(__file__).parent
    # A pytest around this one, with workers of its own, would turn the benchmarks off.
    settings = {name: value for name, value in machine.environment().items() if not name.startswith("PYTEST_")}
    settings["BENCH_USERS"] = str(effort.users)
    with tempfile.TemporaryDirectory() as made:
        written = Path(made) / "benchmarks.json"
        command = [sys.executable, "-m", "pytest", str(folder), "--benchmark-only", "-q", "-p", "no:cacheprovider"]
        command += ["--benchmark-timer=time.process_time", f"--benchmark-json={written}"]
        command += [f"--benchmark-max-time={effort.round_s / 2}", f"--benchmark-min-rounds={effort.rounds}"]
        done = subprocess.run(command, cwd=machine.ROOT, env=settings, capture_output=True, text=True, check=False)  # noqa: S603 -- our own suite
        if done.returncode:
            raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        results = {one["name"]: one for one in json.loads(written.read_text())["benchmarks"]}
    return [*map(benchmark_figure, results.values()), get_beside_dict(results)]


def benchmark_figure(result: dict[str, Any]) -> Figure:
    """Name one benchmark by its function and parameters; its time is that of one of the things that a round does."""
    extra = result["extra_info"]
    count, goal = extra.get("count", 1), at_most(extra["goal"]) if "goal" in extra else None
    name = result["name"].removeprefix("bench_").replace("_", " ")
    values = [result["stats"][key] * 1e6 / count for key in ("q1", "median", "q3")]
    return Figure(f"in process, {name}: CPU", f"µs/{extra.get('each', 'call')}", values, goal)


def get_beside_dict(results: dict[str, dict[str, Any]]) -> Figure:
    """Divide the time of a read of the embedded store by that of a dict's."""
    store, plain = (results[name]["stats"] for name in ("bench_get", "bench_get_of_a_dict"))
    values = [store[key] / plain["median"] for key in ("q1", "median", "q3")]
    return Figure("in process, get / get of a dict: CPU", "ratio", values, at_most(GET_PER_DICT_GET))


BENCHMARKS: dict[str, Measure] = {
    "in_process": measure_in_process,
    "http_peer": http_peer.measure,
    "hot_path": hot_path.measure,
    "fold_in": fold_in.measure,
    "events": events.measure,
    "files": publishing.measure_files,
    "redis_service": redis.measure_service,
    "redis_reads": redis.measure_reads,
    "redis_publishing": redis.measure_publishing,
    "redis_cluster": redis_cluster.measure_cluster,
    "import": importing.measure,
    "big_release": big_release.measure,
    "retail": training.measure_retail,
    "log": training.measure_log,
    "catalogue": training.measure_catalogue,
    "overload": overload.measure,
    "cosmos_reads": cosmos.measure_reads,
    "cosmos_service": cosmos.measure_service,
    "cosmos_publishing": cosmos.measure_publishing,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 however the figures came out, 1 when something failed, so that there is no figure."""
    options = parse(arguments)
    outcomes = list[Outcome]()
    console = Console(width=None if sys.stdout.isatty() else PRINTED_WIDTH)
    for name in options.only or [name for name in BENCHMARKS if not (options.short and name in LONG)]:
        with console.status(f"measuring: {name}"):
            outcomes += measured(name, effort_of(options))
    described = machine.describe()
    console.print(table(outcomes, f"{described['cpu']}, {described['cores']} cores, {described['date']}"))
    figures = [one.to_json() for one in outcomes]
    options.out.write_text(json.dumps({"machine": described, "figures": figures}, indent=1))
    console.print(f"written to {options.out}")
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
            numbers = (
                f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
                for value in (one.median, min(one.values), max(one.values))
            )
            met = {None: "", True: "yes", False: "NO"}[one.met]
            result.add_row(escape(one.name), one.unit, *numbers, str(len(one.values)), str(one.goal or ""), met)
        else:
            result.add_row(escape(f"{one.name}: {'FAILED' if one.failed else 'skipped'}, {one.reason}"))
    return result


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; SystemExit(2) for what makes no sense."""
    default = Effort()
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description="Measure the figures of hotplate.")
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
    options = parser.parse_args(arguments)
    effort = effort_of(options)
    if effort.rounds < 1 or effort.users < 1 or effort.round_s <= 0:
        parser.error("--rounds, --users and --seconds must be positive")
    return options


if __name__ == "__main__":
    sys.exit(main())
