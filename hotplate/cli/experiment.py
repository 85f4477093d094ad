"""What the verbs of the bench share: flags made of an experiment's options, errors, and printing its report."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from bench.options import HOW
from hotplate.cli.options import build, parameter, parameters_of, signed
from hotplate.cli.terminal import (
    FAILED,
    REFUSED,
    Json,
    err,
    interruptible_loop,
    option,
    out,
    print_json,
    require_folder,
    table,
)

if TYPE_CHECKING:
    from bench.progress import ProgressDisplay
    from bench.report.page import Runs
    from bench.report.report import Report

Options = TypeVar("Options")
Run = Callable[[Options, "ProgressDisplay"], "tuple[Report, Runs | None]"]
# What a script reads; beneath the examples of each verb.
EXIT_CODES = """
    Exit codes: 0 all was measured and is good; 1 it could not be measured, or not all of it, or it was stopped; 2 the
    options make no sense; 3 it was measured and is not good: more errors than --slo allows, a wrong list, or no rate
    inside --slo.
"""


def add_experiment(
    app: typer.Typer,
    options: type[Options],
    *,
    report: str,
    defaults: Options | None = None,
    log: bool = False,
    confirm: Callable[[Options], None] | None = None,
) -> Callable[[Run[Options]], Run[Options]]:
    """Make a verb of a function that takes *options*: each of their fields that has a Flag or an Argument is a flag.

    Defaults are those of the fields, or of *defaults*. The verb runs the function, writes and prints its report, and
    exits by that: its help names the codes. *report* is where it goes, unless --out says otherwise; *log* promises an
    HDR log.
    *confirm* may refuse to go on, before anything is measured.
    """
    endings = [".json", ".html", *([".hdr"] if log else [])]
    written = f"{', '.join(endings[:-1])} and {endings[-1]}"
    where = option("--out", f"Write the report to this name with {written}.", prefix="BENCH_", panel=HOW)

    def register(run: Run[Options]) -> Run[Options]:
        def verb(**given: Any) -> None:  # noqa: ANN401 -- typer converts each value to its field's type
            name, as_json = given.pop("out"), given.pop("as_json")
            preset = {} if defaults is None else {each.name: getattr(defaults, each.name) for each in fields(options)}  # type: ignore[arg-type]  # a dataclass
            require_folder(name)
            with bench_errors():
                from bench.progress import progress_display
                from bench.report.page import keep

                chosen = build(options, preset | given)
                if confirm is not None:
                    confirm(chosen)
                with interruptible_loop(), progress_display(err) as display:
                    made, runs = run(chosen, display)
            keep(made, runs, name)
            if as_json:
                print_json(made.brief())
            else:
                print_report(made)
                *some, last = (f"{name}{ending}" for ending in endings if runs is not None or ending != ".hdr")
                out.print(f"written to {', '.join(some)} and {last}")
            raise typer.Exit(0 if made.valid else REFUSED if made.measured else FAILED)

        verb.__doc__ = (run.__doc__ or "") + EXIT_CODES
        parameters = [
            *parameters_of(options, "BENCH_", defaults),
            parameter("out", Annotated[Path, where], Path(report)),
            parameter("as_json", Json, default=False),
        ]
        app.command(run.__name__)(signed(verb, parameters))
        return run

    return register


@contextmanager
def bench_errors() -> Iterator[None]:
    """Name the extra of the bench where numpy is missing, which is of two extras."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise ModuleNotFoundError(str(error), name="hdrh") from error


def print_report(report: "Report") -> None:
    """Print a report for a person: its comparison, or its runs, and what was found besides."""
    from bench.report.report import counted

    if compared := report.extra.get("comparison"):
        _print_comparison(compared)
    elif swept := report.extra.get("ru"):
        _print_sweep(swept)
    else:
        _print_runs(report)
    if checked := report.extra.get("checked"):
        wrong = f"{checked['wrong']} wrong, {checked['fallback']} fell back to the popular list"
        out.print(f"{checked['compared']} lists compared with the store's: {wrong}")
        for example in checked["examples"]:
            out.print(f"  {example}")
    for reason in (*(counted(report.invalid_reasons) if compared else ()), *report.failures):
        out.print(f"INVALID: {reason}")
    for reason in report.broken:
        out.print(f"NOT GOOD: {reason}")
    if report.interrupted:
        out.print("stopped before its end")


def _print_comparison(compared: Mapping[str, Any]) -> None:
    from bench.report.report import counted

    group, rows = "", list[tuple[str, ...]]()
    for line in compared["lines"]:
        if line["group"] != group:
            group = line["group"]
            rows.append((group, *("" for _ in compared["stores"]), ""))
        rows.append((f"  {line['name']}", *line["cells"], line["verdict"]))
    out.print(table(("", *compared["stores"], "verdict"), rows))
    sentences = counted(compared["left_out"])
    endings = (each["ending"] for each in compared["capacity"])
    for sentence in (*compared["notes"], *compared["verdicts"], *endings, *sentences):
        out.print(sentence)


def _print_sweep(swept: Mapping[str, Any]) -> None:
    from bench.ru.report import HEADINGS, notes, row

    if swept["label"]:
        out.print(swept["label"])
    out.print(table(HEADINGS, map(row, swept["found"])))
    for note in notes(swept["found"]):
        out.print(note)


def _print_runs(report: "Report") -> None:
    from bench.loadgen.capacity import highest_text
    from bench.loadgen.result import run_text
    from bench.report.text import format_latency

    for each in report.series:
        for one in each.rounds:
            out.print(run_text(one.facts))
        if len(each.rounds) > 1:
            rows = [(name, format_latency(found)) for name, found in each.summary.items() if name != "rate"]
            out.print(table(("latency", "mean of rounds, 95 % interval"), rows))
    for kind, headings in (("search", ("rate", "answers/s")), ("sweep", ("batch", "users/s"))):
        if found := report.extra.get(kind):
            rows_of_points = [_point(point) for point in found["points"]]
            out.print(table((*headings, "p50", "p99", "errors", "popular", ""), rows_of_points))
            out.print(f"highest: {highest_text(found)}" if kind == "search" else f"knee: {found['knee'] or 'none'}")


def _point(point: Mapping[str, Any]) -> tuple[str, ...]:
    from bench.loadgen.result import at_least
    from bench.report.text import format_us

    return (
        f"{point['at']:,.0f}",
        f"{at_least(point)}{point['per_s']:,.0f}",
        *(format_us(float(point[f"{name}_us"])) for name in ("p50", "p99")),
        f"{point['error_share']:.2%}",
        f"{point['popular']:.1%}",
        "; ".join([*point["invalid_reasons"], *point["broken"]]),
    )
