"""What the verbs of the bench share: flags made of an experiment's options, errors, and printing its report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from hotplate.bench.options import HOW
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
    from hotplate.bench.progress import ProgressDisplay
    from hotplate.bench.report.report import Report as OldReport
    from hotplate.report import Report

Options = TypeVar("Options")
Made = TypeVar("Made", bound="Report | OldReport")
RunExperiment = Callable[[Options, "ProgressDisplay"], Made]
# What a script reads; beneath the examples of each verb.
EXIT_CODES = """
    Exit codes: 0 all was measured and is good; 1 it could not be measured, or not all of it, or it was stopped; 2 the
    options make no sense; 3 it was measured and is not good: more errors than --slo allows, popular lists instead of
    the users' own, a wrong list, or no rate inside --slo.
"""


def add_experiment(
    app: typer.Typer,
    options: type[Options],
    *,
    report: str,
    defaults: Options | None = None,
    confirm: Callable[[Options], None] | None = None,
) -> Callable[[RunExperiment[Options, Made]], RunExperiment[Options, Made]]:
    """Make a verb of a function that takes *options*: each of their fields that has a Flag or an Argument is a flag.

    Defaults are those of the fields, or of *defaults*. The verb runs the function, writes and prints its report, and
    exits by that: its help names the codes. *report* is where it goes, unless --out says otherwise. *confirm* may
    refuse to go on, before anything is measured.
    """
    where = option("--out", "Write the report to this name with .json and .html.", prefix="BENCH_", panel=HOW)

    def register(run: RunExperiment[Options, Made]) -> RunExperiment[Options, Made]:
        def verb(**given: Any) -> None:  # noqa: ANN401 -- typer converts each value to its field's type
            name, as_json = given.pop("out"), given.pop("as_json")
            preset = {} if defaults is None else {each.name: getattr(defaults, each.name) for each in fields(options)}  # type: ignore[arg-type]  # a dataclass
            require_folder(name)
            with bench_errors():
                from hotplate import report_page  # before anything is measured: it needs an extra
                from hotplate.bench.progress import progress_display
                from hotplate.bench.report.page import page
                from hotplate.bench.report.text import write_report
                from hotplate.report import Report

                chosen = build(options, preset | given)
                if confirm is not None:
                    confirm(chosen)
                with interruptible_loop(), progress_display(err) as display:
                    made = run(chosen, display)
            if isinstance(made, Report):
                report_page.save(made, name)
                finish(made, name, as_json=as_json)
            write_report(name, made.to_json(), page(made))
            if as_json:
                print_json(made.brief())
            else:
                _print_old(made)
                out.print(f"The rest is in {name}.json and {name}.html.")
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
    """Name the extra of the bench where numpy or scipy is missing, which are of two extras."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"numpy", "scipy"}:
            raise
        raise ModuleNotFoundError(str(error), name="hdrh") from error


def finish(report: "Report", name: Path | None, *, as_json: bool) -> NoReturn:
    """Print a report that was written to *name*, and exit by it."""
    from hotplate.report import print_report, to_json

    if as_json:
        print_json(to_json(report))
    else:
        print_report(report, out)
        if name is not None:
            out.print(f"The rest is in {name}.json and {name}.html.")
    raise typer.Exit(report.exit_code)


def _print_old(report: "OldReport") -> None:
    """Print a report for a person: its sentence, three figures of each subject, and what there is to look out for."""
    from hotplate.bench.report.text import joined

    top = report.summary
    out.print(top.sentence)
    if top.rows:
        out.print(table(("", *top.headings), [[joined(cell) for cell in row] for row in top.rows]))
    for note in top.notes:
        out.print(note)
    if checked := report.extra.get("checked"):
        wrong = f"{checked['wrong']} wrong, {checked['fallback']} fell back to the popular list"
        out.print(f"{checked['compared']} lists compared with the store's: {wrong}")
        for example in checked["examples"]:
            out.print(f"  {example}")
    for reason in report.complaints:
        out.print(f"{'NOT GOOD' if reason in report.broken else 'INVALID'}: {reason}")
