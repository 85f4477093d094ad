"""The work of `hotplate bench ru` and `charges`, which spend money in an account once that is confirmed."""

from time import time

import click
from click.exceptions import Exit

from hotplate.base.exit_codes import FAILED
from hotplate.bench.errors import BenchMisused
from hotplate.bench.options import SweepOptions
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.ru import measured_charges
from hotplate.bench.ru.measured_charges import ChargesPlan, MeasuredCharges
from hotplate.bench.ru.run import account_regions, cost
from hotplate.bench.ru.run import plan as plan_sweep
from hotplate.bench.ru.sweep import Sweep
from hotplate.cli.terminal import err
from hotplate.stores.cosmos.charges import load as load_charges


def confirmed_sweep(options: SweepOptions) -> Sweep:
    """Return the plan of a sweep, once its cost in an account is confirmed."""
    plan = plan_sweep(options)
    if options.account is not None:
        for line in cost(plan, account_regions(options.account), load_prices(), time()):
            err.print(line)
        _confirm(yes=options.yes)
    return plan


def _confirm(*, yes: bool) -> None:
    """Ask whether the cost that was printed may be spent, unless *yes*; raises Exit if not."""
    if yes:
        return
    try:
        is_wanted = click.confirm("Create that, and spend it?", err=True)
    except click.Abort:
        raise BenchMisused("the cost was not confirmed, so nothing was created; in scripts, give --yes") from None
    if not is_wanted:
        err.print("nothing was created")
        raise Exit(FAILED)


def confirmed_charges(store: str, sizes: str, *, dry_run: bool, yes: bool) -> ChargesPlan | None:
    """Print the cost of measuring charges, and return the plan once it is confirmed; None for a dry run."""
    plan = measured_charges.plan(store, sizes)
    for line in plan.lines(load_charges(), load_prices(), account_regions(plan.url), time()):
        err.print(line)
    if dry_run:
        return None
    _confirm(yes=yes)
    return plan


def measure_charges(plan: ChargesPlan) -> MeasuredCharges:
    """Measure, and show what is being measured."""
    with err.status("") as status:
        return measured_charges.measure(plan, load_charges(), status.update)
