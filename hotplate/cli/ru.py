"""`hotplate bench ru`: how many requests a second each level of RU/s bears, on an emulator or on a real account."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.experiment import HOW, WHAT, bench_errors, finish, option, require_folder
from hotplate.cli.terminal import FAILED, Json, err, out, table

if TYPE_CHECKING:
    from bench.report.report import Report
    from bench.ru.sweep import Course


def ru(
    levels: Annotated[str, option("levels", "RU/s to walk through.", WHAT)] = "400,1k,2k,4k,8k,11k",
    account: Annotated[
        str | None,
        typer.Option(  # never from the environment: nobody's account is measured by accident
            "--account",
            help="A real account, as cosmos://ACCOUNT/DATABASE, in which containers are made and dropped; without it, "
            "an emulator is started here.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    effects: Annotated[
        bool,
        option(
            "effects",
            "Also measure what else decides: sizes, consistency, skew, cache, publishing, autoscale, burst.",
            WHAT,
            "--effects/--no-effects",
        ),
    ] = True,
    slo: Annotated[str, option("slo", "The objective; on an emulator its latencies are of loopback.", HOW)] = (
        "p99=50ms,throttled=1%"
    ),
    duration: Annotated[
        str | None, option("duration", "Of one trial; 2s on an emulator, 10s on an account.", HOW)
    ] = None,
    connections: Annotated[int, option("connections", "The most requests in flight.", HOW)] = 128,
    yes: Annotated[bool, typer.Option("--yes", help="With --account: do not ask before spending money.")] = False,
    report: Annotated[Path, option("out", "The report: this name with .json and .html.", HOW)] = Path("hotplate-ru"),
    as_json: Json = False,
) -> None:
    """Find the best rate inside an objective for each level of RU/s, and what else decides it.

    By default this is a model's self-check on a local emulator, which the report says everywhere. With --account it
    shows what it costs, asks, makes containers of its own, and drops them at the end, also after Ctrl-C.
    Exits 1 where a level could not truly be spent, or it was stopped.

    Example: hotplate bench ru --levels 400,1k --no-effects

    Example: hotplate bench ru --account cosmos://myaccount/mydatabase --levels 400,4k
    """
    with bench_errors(as_json=as_json):
        from bench.progress import progress_display
        from bench.report.page import keep
        from bench.ru.sweep import Asked, course, sweep

        require_folder(report)
        asked = Asked(
            levels=levels, slo=slo, duration=duration, connections=connections, effects=effects, account=account
        )
        way = course(asked)
        if way.address is not None:
            _must_be_wanted(way, yes=yes)
        with progress_display(err) as display:
            swept = sweep(asked, way, display)
    keep(swept.report, None, report)
    finish(swept.report, report, lambda: _show(swept.report), valid=swept.believable, as_json=as_json)


def _must_be_wanted(way: "Course", *, yes: bool) -> None:
    """Tell what it costs, and go on only where somebody says yes."""
    from bench.errors import BenchMisused
    from bench.ru.cost import cost_of
    from stores.prices import load

    for line in cost_of(way, load()).told:
        err.print(line, markup=False)
    if yes:
        return
    try:
        wanted = typer.confirm("Make them, and spend that?", err=True)
    except typer.Abort:
        raise BenchMisused("nobody said yes, so nothing was made; scripts say --yes") from None
    if not wanted:
        err.print("nothing was made")
        raise typer.Exit(FAILED)


def _show(report: "Report") -> None:
    """Print a sweep for a person."""
    from bench.ru.lines import EFFECT_HEADINGS, LEVEL_HEADINGS, effect_rows, level_rows, notes

    found = report.extra["ru"]
    if found["label"]:
        out.print(found["label"], markup=False)
    out.print(table(LEVEL_HEADINGS, level_rows(found["levels"])))
    for note in notes(found["levels"]):
        out.print(note, markup=False)
    if found["effects"]:
        out.print(table(EFFECT_HEADINGS, effect_rows(found["effects"])))
    if report.interrupted:
        out.print("stopped before its end", markup=False)
