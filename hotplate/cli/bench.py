"""`hotplate bench`: measure a service, compare stores, and compare two measurements."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hotplate.bench.options import HOW, HttpOptions, ReferenceOptions, StoresOptions, SweepOptions
from hotplate.cli.options import Verbs, signed
from hotplate.cli.terminal import (
    FAILED,
    Json,
    err,
    out,
    print_json,
    require_folder,
    table,
)
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from hotplate.bench.progress import ProgressDisplay
    from hotplate.report import Report

app = Verbs(
    no_args_is_help=True,
    prefix="BENCH_",
    help="Measure a service; the figures survive a review.\n\n"
    "Example: hotplate bench http http://127.0.0.1:8080 --users 1000 --find-max --slo p99=5ms",
)
RunExperiment = Callable[[Any, "ProgressDisplay"], "Report"]
# What a script reads; beneath the examples of each verb.
EXIT_CODES = """
    Exit codes: 0 all was measured and is good; 1 it could not be measured, or not all of it, or it was stopped: nothing
    answers, or a store is down from the start; 2 the options make no sense; 3 it was measured and is not good: more
    errors than --slo allows, popular lists instead of the users' own, a wrong list, or no rate inside --slo.
"""
Written = Annotated[Path, Flag("Write the report to this name with .json and .html.", HOW, name="out")]


def experiment(
    report: str, confirm: Callable[[Any], None] = lambda _: None
) -> Callable[[RunExperiment], RunExperiment]:
    """Make a verb of a function of options and a display: it writes and prints the report, and exits by that.

    *report* is where it goes, unless --out says otherwise. *confirm* may refuse to go on, before anything is measured.
    """

    def register(run: RunExperiment) -> RunExperiment:
        def verb(options: Any, written: Path, as_json: bool) -> None:  # noqa: ANN401 -- what *run* takes
            require_folder(written)
            with bench_errors():
                from hotplate import report_page  # before anything is measured: it needs an extra
                from hotplate.bench.progress import progress_display

                confirm(options)
                with progress_display(err) as display:
                    made = run(options, display)
            report_page.save(made, written)
            finish(made, written, as_json=as_json)

        own = inspect.signature(run).parameters["options"].annotation
        taken = {
            "options": (own, inspect.Parameter.empty),
            "written": (Written, Path(report)),
            "as_json": (Json, False),
        }
        keyword = inspect.Parameter.KEYWORD_ONLY
        app.command(run.__name__, help=(run.__doc__ or "") + EXIT_CODES)(
            signed(
                verb,
                [
                    inspect.Parameter(name, keyword, default=value, annotation=kind)
                    for name, (kind, value) in taken.items()
                ],
            )
        )
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


@experiment("hotplate-bench")
def http(options: HttpOptions, display: "ProgressDisplay") -> "Report":
    """Measure a service under a load that does not wait for it, and write a report.

    Example: hotplate bench http http://127.0.0.1:8080 --rate 2k --duration 30s --repeat 5 --store
    file:///var/lib/hotplate
    """
    from hotplate.bench.http import make_plan, measure

    return measure(make_plan(options), display)


@experiment("hotplate-stores")
def stores(options: StoresOptions, display: "ProgressDisplay") -> "Report":
    """Compare stores: the same lists, users and schedule, each behind a service.

    The table shows latencies, requests/s and core, CPU, and the cost of a billion reads. The stores take turns, round
    by round. A store that holds nothing is filled with the release of the others, and keeps it; stores with lists of
    different models are not compared.

    Example: hotplate bench stores

    Example: hotplate bench stores file:///var/lib/hotplate redis://cache:6379/0 --rate 5k --cpu-hour 0.04
    """
    from hotplate.bench.stores.report import compare_stores

    return compare_stores(options, display)


@experiment("hotplate-reference")
def reference(options: ReferenceOptions, display: "ProgressDisplay") -> "Report":
    """Repeat the load of Microsoft's reference architecture on Cosmos DB, beside the published 60 ms.

    200 users send 180 requests/s; the container has 11,000 RU/s. Without --account, Cosmos DB is emulated.

    Example: hotplate bench reference

    Example: hotplate bench reference --account cosmos://myaccount/mydatabase
    """
    from hotplate.bench.stores.reference import reproduce

    return reproduce(options, display)


def _confirm_cost(options: SweepOptions) -> None:
    """Print what measuring an account costs, and go on only if that is confirmed; an emulator of our own is free."""
    from hotplate.bench.planner.prices import load
    from hotplate.bench.ru.run import account_regions, cost, plan

    planned = plan(options)
    if options.account is None:
        return
    for line in cost(planned, account_regions(options.account), load(), time()):
        err.print(line)
    _confirm(yes=options.yes)


def _confirm(*, yes: bool) -> None:
    """Go on only if that is confirmed."""
    from hotplate.bench.errors import BenchMisused

    if yes:
        return
    try:
        wanted = typer.confirm("Create that, and spend it?", err=True)
    except typer.Abort:
        raise BenchMisused("the cost was not confirmed, so nothing was created; in scripts, give --yes") from None
    if not wanted:
        err.print("nothing was created")
        raise typer.Exit(FAILED)


@experiment("hotplate-ru", _confirm_cost)
def ru(options: SweepOptions, display: "ProgressDisplay") -> "Report":
    """Show what each level of RU/s carries: reads/s, p50, p99, 429s and what it costs.

    It starts an emulator of Cosmos DB and a service, whose cache is off. With --account it measures that account
    instead: it prints what that costs, asks, makes a database of its own, and drops it at the end, also after Ctrl-C.
    Levels that this machine cannot drive are marked COMPUTED.

    Example: hotplate bench ru

    Example: hotplate bench ru --account cosmos://myaccount/mydatabase --levels 400,4k
    """
    from hotplate.bench.ru.run import plan, sweep

    return sweep(plan(options), display)


@app.command()
def charges(
    store: Annotated[
        str,
        Flag("Measure this account, as cosmos://ACCOUNT/DATABASE.", metavar="URL", env=False),
    ],
    sizes: Annotated[str, Flag("The sizes of items to measure, in KB; by default those of our own.")] = "",
    written: Annotated[Path, Flag("Write the charges to this file.", name="out")] = Path("charges.toml"),
    dry_run: Annotated[bool, Flag("Create nothing; print what it would make and cost.")] = False,
    yes: Annotated[bool, Flag("Spend the money without asking first.", env=False)] = False,
    as_json: Json = False,
) -> None:
    """Measure what an account charges for each operation, and write it down for `plan` and the emulator.

    What it makes and costs is printed first. It makes a database of its own, and drops it at the end, also after
    Ctrl-C. What cannot be measured keeps our coefficient, and the file says so.

    Example: hotplate bench charges --store cosmos://myaccount/mydatabase --dry-run

    Example: hotplate plan --users 1000000 --peak-rps 500 --charges charges.toml
    """
    require_folder(written)
    with bench_errors():
        from hotplate.bench.planner.prices import load as load_prices
        from hotplate.bench.ru.charges import measure, plan
        from hotplate.bench.ru.run import account_regions
        from hotplate.stores.cosmos.charges import load as load_charges

        planned, ours = plan(store, sizes), load_charges()
        for line in planned.lines(ours, load_prices(), account_regions(planned.url), time()):
            err.print(line)
        if dry_run:
            return
        _confirm(yes=yes)
        with err.status("") as status:
            found = measure(planned, ours, status.update)
    written.write_text(found.to_toml())
    if as_json:
        print_json(found.to_json())
        return
    rows = [
        (one.operation, one.size_kb, f"{one.measured_ru:,.2f}", f"{one.ours_ru:,.2f}", f"{one.off:+.1%}")
        for one in found.by_size
    ]
    out.print(table(("operation", "KB", "RU", "by our coefficients", "off by"), rows))
    for name, value in found.small.items():
        out.print(f"{name}: {value:g}")
    out.print(f"measured on {found.subject}; written to {written}")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The report to compare with.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The report that may be worse.")],
    metric: Annotated[
        str,
        Flag("Decide by this figure: p50, p99, p99.9, or rate (good answers/s)."),
    ] = "p99",
    written: Annotated[
        Path | None, Flag("Also write the comparison to this name with .json and .html.", name="out")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether the difference between two measurements of `bench http` is real.

    Rounds are compared in pairs, so measure both with the same --repeat, 5 or more.

    Exit codes: 0 it is not a regression, as far as can be told; 1 a file cannot be read; 2 the two cannot be compared;
    3 it is a regression.

    Example: hotplate bench compare before.json after.json --metric p99
    """
    require_folder(written)
    with bench_errors():
        from hotplate.bench import compare as comparison

        made = comparison.compare(comparison.read(before), comparison.read(after), metric)
        if written is not None:
            from hotplate.report_page import save

            save(made, written)
    finish(made, written, as_json=as_json)
