"""`hotplate drill`: does a service hold what the runbook promises while its stores fail?"""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.experiment import bench_errors
from hotplate.cli.terminal import REFUSED, Json, err, interruptible_loop, out, print_json
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from hotplate.bench.drills.run import DrillVerdict

PREFIX = "DRILL_"


def drill(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="The drills to make: latency, errors, throttling, disconnects, corruption, lost-tier, old-snapshot. "
            "By default all, one after the other.",
            show_default=False,
        ),
    ] = None,
    tiers: Annotated[
        str | None,
        Flag(
            "The stores of the test instance, of redis, cosmos (its emulator) and file; the first is disturbed. By "
            "default the one that a drill is made for, and file.",
            metavar="KIND,…",
            prefix=PREFIX,
        ),
    ] = None,
    duration: Annotated[
        str, Flag("For how long a fault lasts at least; longer until operators see it.", prefix=PREFIX)
    ] = "3s",
    p99: Annotated[str, Flag("What 99 % of the answers during a fault may take.", prefix=PREFIX)] = "250ms",
    recover: Annotated[
        str, Flag("Within what time all must be as before once a fault is over.", prefix=PREFIX)
    ] = "30s",
    as_json: Json = False,
) -> None:
    """Prove what the runbook promises: faults under load, on a test instance that is made for it.

    Each drill starts stores and a service of its own on this machine, which are gone at the end; no store of yours is
    touched. Exit codes: 0 every promise was kept; 1 a drill could not be made; 2 the options make no sense; 3 a promise
    was broken.

    Example: hotplate drill

    Example: hotplate drill lost-tier throttling --tiers cosmos,file --duration 10s
    """
    with bench_errors():
        from hotplate.bench.drills.drills import DRILLS, choose
        from hotplate.bench.drills.run import DrillOptions, run_drills
        from hotplate.bench.quantities import parse_seconds

        kinds = tuple(tiers.split(",")) if tiers else ()
        chosen = choose(names or (), kinds)
        left_out = [] if names else [drill.name for drill in DRILLS if drill not in chosen]
        options = DrillOptions(
            tiers=kinds,
            duration_s=parse_seconds(duration),
            p99_s=parse_seconds(p99),
            recover_s=parse_seconds(recover),
        )
        with interruptible_loop(), err.status("") as status:

            def show(verdict: "DrillVerdict") -> None:
                status.stop()  # it takes over standard output
                _print_verdict(verdict)
                status.start()

            on_verdict = (lambda _: None) if as_json else show
            verdicts = asyncio.run(run_drills(chosen, options, status.update, on_verdict))
    broken = sum(not verdict.kept for verdict in verdicts)
    if as_json:
        from hotplate.bench.machine import describe

        made = [verdict.to_json() for verdict in verdicts]
        print_json({"kept": not broken, "machine": describe(), "drills": made, "left_out": left_out})
    else:
        if left_out:
            out.print(f"left out, as they are for other stores than {kinds[0]}: {', '.join(left_out)}")
        out.print(f"{len(verdicts) - broken} kept, {broken} broken; times are of this machine, on loopback")
    raise typer.Exit(REFUSED if broken else 0)


def _print_verdict(verdict: "DrillVerdict") -> None:
    out.print(verdict.sentence)
    for check in verdict.checks:
        if not check.kept:
            out.print(f"  broken: {check.promise}")
