"""`hotplate bench ru`: how many requests a second each level of RU/s sustains, on an emulator or on a real account."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.measuring import HOW, misuse_told, must_be_writable, option, tell
from hotplate.cli.options import Flag, command_with, values_of
from hotplate.cli.terminal import FAILED, Json, err, out, table

if TYPE_CHECKING:
    from bench.report.report import Report
    from bench.ru.run import SweepPlan


def sweep_flags() -> Iterator[Flag]:
    """Yield the flags of the options of a sweep."""
    from dataclasses import fields
    from typing import get_type_hints

    from bench.ru.options import SweepOptions

    kinds = get_type_hints(SweepOptions)
    for each in fields(SweepOptions):
        declared = each.metadata
        envvar = f"HOTPLATE_BENCH_{each.name.upper()}" if declared["env"] else None
        yield Flag(each.name, kinds[each.name], each.default, declared["help"], declared["panel"], envvar)


SweepCommand = command_with(sweep_flags)


def ru(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="With --account: spend the money without asking first.")] = False,
    report: Annotated[Path, option("out", "Write the report to this name with .json and .html.", HOW)] = Path(
        "hotplate-ru"
    ),
    as_json: Json = False,
) -> None:
    """Find the best rate inside an objective for each level of RU/s, and what else has an effect on it.

    By default this is a model's self-check on a local emulator, which the report says everywhere. With --account it
    shows what it costs, asks, creates containers of its own, and drops them at the end, also after Ctrl-C.
    Exits 1 where a level could not truly be spent, or it was stopped.

    Example: hotplate bench ru --levels 400,1k --no-effects

    Example: hotplate bench ru --account cosmos://myaccount/mydatabase --levels 400,4k
    """
    with misuse_told(as_json=as_json):
        from bench.live import viewing
        from bench.report.files import keep
        from bench.ru.options import SweepOptions
        from bench.ru.run import plan, sweep

        must_be_writable(report)
        planned = plan(SweepOptions(**values_of(context)))
        if planned.address is not None:
            _confirm(planned, yes=yes)
        with viewing(err) as view:
            swept = sweep(planned, view)
    made = swept.report
    keep(made, None, report)
    tell(made, report, lambda: _print(made), believable=swept.valid, as_json=as_json)


def _confirm(planned: "SweepPlan", *, yes: bool) -> None:
    """Print what it costs, and go on only where somebody says yes."""
    from bench.errors import BenchMisused
    from bench.ru.run import account_cost
    from stores.prices import load

    for line in account_cost(planned, load()).lines:
        err.print(line, markup=False)
    if yes:
        return
    try:
        wanted = typer.confirm("Create them, and spend that?", err=True)
    except typer.Abort:
        raise BenchMisused("nobody said yes, so nothing was made; in scripts, give --yes") from None
    if not wanted:
        err.print("nothing was made")
        raise typer.Exit(FAILED)


def _print(report: "Report") -> None:
    """Print a sweep for a person."""
    from bench.ru.report import EFFECT_HEADINGS, LEVEL_HEADINGS, effect_row, level_row, notes

    found = report.extra["ru"]
    if found["label"]:
        out.print(found["label"], markup=False)
    out.print(table(LEVEL_HEADINGS, map(level_row, found["levels"])))
    for note in notes(found["levels"]):
        out.print(note, markup=False)
    if found["effects"]:
        out.print(table(EFFECT_HEADINGS, map(effect_row, found["effects"])))
    if report.interrupted:
        out.print("stopped before its end", markup=False)
