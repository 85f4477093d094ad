"""`hotplate bench ru`: how many requests a second each level of RU/s sustains, on an emulator or on a real account."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from bench.options import SweepOptions
from hotplate.cli.terminal import FAILED, err, out, table

if TYPE_CHECKING:
    from bench.progress import ProgressDisplay
    from bench.report.page import Runs
    from bench.report.report import Report


def ru(options: SweepOptions, display: "ProgressDisplay") -> "tuple[Report, Runs | None]":
    """Find the best rate inside an objective for each level of RU/s, and what else has an effect on it.

    By default this is a model's self-check on a local emulator, which the report says everywhere. With --account it
    shows what it costs, asks, creates containers of its own, and drops them at the end, also after Ctrl-C.
    Exits 1 where a level could not truly be spent, or it was stopped.

    Example: hotplate bench ru --levels 400,1k --no-effects

    Example: hotplate bench ru --account cosmos://myaccount/mydatabase --levels 400,4k
    """
    from bench.ru.run import plan, sweep

    return sweep(plan(options), display).report, None


def confirm_cost(options: SweepOptions) -> None:
    """Print what a sweep of an account costs, and go on only where somebody says yes."""
    from bench.errors import BenchMisused
    from bench.ru.run import account_cost, plan
    from stores.prices import load

    planned = plan(options)
    if planned.address is None:
        return
    for line in account_cost(planned, load()).lines:
        err.print(line, markup=False)
    if options.yes:
        return
    try:
        wanted = typer.confirm("Create them, and spend that?", err=True)
    except typer.Abort:
        raise BenchMisused("nobody said yes, so nothing was made; in scripts, give --yes") from None
    if not wanted:
        err.print("nothing was made")
        raise typer.Exit(FAILED)


def print_sweep(swept: Mapping[str, Any]) -> None:
    """Print what a report holds of a sweep, for a person."""
    from bench.ru.report import EFFECT_HEADINGS, LEVEL_HEADINGS, effect_row, level_row, notes

    if swept["label"]:
        out.print(swept["label"], markup=False)
    out.print(table(LEVEL_HEADINGS, map(level_row, swept["levels"])))
    for note in notes(swept["levels"]):
        out.print(note, markup=False)
    if swept["effects"]:
        out.print(table(EFFECT_HEADINGS, map(effect_row, swept["effects"])))
