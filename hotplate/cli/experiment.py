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
    Json,
    err,
    interruptible_loop,
    option,
    out,
    print_json,
    require_folder,
)

if TYPE_CHECKING:
    from hotplate.bench.progress import ProgressDisplay
    from hotplate.report import Report

Options = TypeVar("Options")
RunExperiment = Callable[[Options, "ProgressDisplay"], "Report"]
# What a script reads; beneath the examples of each verb.
EXIT_CODES = """
    Exit codes: 0 all was measured and is good; 1 it could not be measured, or not all of it, or it was stopped: nothing
    answers, or a store is down from the start; 2 the options make no sense; 3 it was measured and is not good: more
    errors than --slo allows, popular lists instead of the users' own, a wrong list, or no rate inside --slo.
"""


def add_experiment(
    app: typer.Typer,
    options: type[Options],
    *,
    report: str,
    defaults: Options | None = None,
    confirm: Callable[[Options], None] | None = None,
) -> Callable[[RunExperiment[Options]], RunExperiment[Options]]:
    """Make a verb of a function that takes *options*: each of their fields that has a Flag or an Argument is a flag.

    Defaults are those of the fields, or of *defaults*. The verb runs the function, writes and prints its report, and
    exits by that: its help names the codes. *report* is where it goes, unless --out says otherwise. *confirm* may
    refuse to go on, before anything is measured.
    """
    where = option("--out", "Write the report to this name with .json and .html.", prefix="BENCH_", panel=HOW)

    def register(run: RunExperiment[Options]) -> RunExperiment[Options]:
        def verb(**given: Any) -> None:  # noqa: ANN401 -- typer converts each value to its field's type
            name, as_json = given.pop("out"), given.pop("as_json")
            preset = {} if defaults is None else {each.name: getattr(defaults, each.name) for each in fields(options)}  # type: ignore[arg-type]  # a dataclass
            require_folder(name)
            with bench_errors():
                from hotplate import report_page  # before anything is measured: it needs an extra
                from hotplate.bench.progress import progress_display

                chosen = build(options, preset | given)
                if confirm is not None:
                    confirm(chosen)
                with interruptible_loop(), progress_display(err) as display:
                    made = run(chosen, display)
            report_page.save(made, name)
            finish(made, name, as_json=as_json)

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
