"""The work of `hotplate events report`: the click-through rate, or the comparison of an experiment's arms.

An arm is one of the two releases of an experiment: A is the live one, B the canary. The horizon is its planned end.
"""

from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import partial

from hotplate.cli.terminal import counted, out, print_json, progress_bars, table, with_store
from hotplate.serve.events import EventReport, PositionCounts
from hotplate.serve.events import report as count
from hotplate.serve.experiments import ArmEvents, ArmReport
from hotplate.stores.erasure_log import read_erased
from hotplate.stores.errors import ReleaseNotFound
from hotplate.stores.store import Store


def print_report(source: str, goal: str | None, *, min_effect: float, store: str | None, as_json: bool) -> None:
    """Count the events of *source*, with *goal* by arm of an experiment of the store."""
    arms = None if goal is None else with_store(store, partial(_arm_events, goal))
    with progress_bars() as on_progress:
        counts = count(source, partial(on_progress, "report"), arms=arms)
    compared = None if arms is None else arms.report(min_effect / 100)
    if as_json:
        print_json(_report_json(counts, compared))
        return
    _print_counts(counts)
    if compared is None:
        out.print(table(("release", "role", "position", "shown", "clicked", "rate", "95 %"), map(_cells, counts.rows)))
    else:
        headings = ("arm", "users", f"{goal} per user", f"users to find ±{min_effect:g} %")
        _print_arms(compared, headings)


def _report_json(counts: EventReport, compared: ArmReport | None) -> dict[str, object]:
    facts: dict[str, object] = {field.name: getattr(counts, field.name) for field in fields(counts)}
    facts["rows"] = [{**row._asdict(), "ctr": row.ctr, "interval": row.interval} for row in counts.rows]
    if compared is not None:
        facts["arms"] = compared
    return facts


def _print_arms(compared: ArmReport, headings: Sequence[str]) -> None:
    """Print users, mean and users needed of both arms of an experiment, the verdict, and when it ends."""
    means = [f"{mean:.4g}" for mean in compared.means]
    arm_a, arm_b = zip(compared.users, means, compared.users_needed or ("", ""), strict=True)
    out.print(table(headings, (("A", *arm_a), ("B", *arm_b))))
    change = ""
    if compared.interval is not None:
        low, high = compared.interval
        change = f", B minus A {low:+.4g} to {high:+.4g} (95 %)"
    out.print(f"{compared.verdict}{change}; horizon {datetime.fromtimestamp(compared.experiment.ends_at, UTC):%F %RZ}")


def _print_counts(counts: EventReport) -> None:
    types = ", ".join(f"{number:,} {name}" for name, number in sorted(counts.types.items()))
    read = f"{counted(counts.events, 'event')} in {counted(counts.segments, 'segment')}"
    out.print(f"{read}: {types}" if types else read)
    left_out = (
        (counts.open_segments, "open segments left out: still written, or of a killed service"),
        (counts.duplicates, "events left out: sent again under the same id"),
        (counts.damaged, "lines left out: damaged"),
    )
    for number, reason in left_out:
        if number:
            out.print(f"  {number:,} {reason}")


async def _arm_events(goal: str, store: Store) -> ArmEvents:
    """Return what counts events of the store's experiment by arm; ReleaseNotFound without an experiment."""
    catalogue = await store.catalogue()
    if catalogue.experiment is None:
        raise ReleaseNotFound("no experiment was started in this store; `hotplate releases canary --days` starts one")
    return ArmEvents(catalogue.experiment, goal, catalogue.now, await read_erased(store, catalogue))


def _cells(row: PositionCounts) -> tuple[str, ...]:
    rate = "" if row.ctr is None else f"{row.ctr:.2%}"
    interval = "" if row.interval is None else f"{row.interval[0]:.2%} to {row.interval[1]:.2%}"
    return (
        row.release or "none named",
        row.role,
        row.position,
        f"{row.impressions:,}",
        f"{row.clicks:,}",
        rate,
        interval,
    )
