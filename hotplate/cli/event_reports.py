"""The work of `hotplate events report`: the click-through rate, or the comparison of an experiment's arms.

An arm is one of the two releases of an experiment: A is the live one, B the canary. The horizon is its planned end.
"""

from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import partial

from hotplate.cli.terminal import format_count, out, print_json, progress_bars, run_on_store, table
from hotplate.serve.events import EventReport, PositionCounts
from hotplate.serve.events import report as count_events
from hotplate.serve.experiments import ArmEvents, ArmReport
from hotplate.stores.erasure_log import read_erased
from hotplate.stores.errors import ReleaseNotFound
from hotplate.stores.store import Store


def print_report(source: str, goal: str | None, *, min_effect: float, store: str | None, as_json: bool) -> None:
    """Print the counts of events by release and position, or with *goal* the comparison of an experiment's arms.

    source      the folder or URL of the events
    goal        the type of event to count for each user, as "buy"; the experiment is that of *store*
    min_effect  the difference of arms, in percent, for which the number of users needed is printed
    """
    arm_events = None if goal is None else run_on_store(store, partial(_arm_events, goal))
    with progress_bars() as on_progress:
        counts = count_events(source, partial(on_progress, "report"), arms=arm_events)
    comparison = None if arm_events is None else arm_events.report(min_effect / 100)
    if as_json:
        print_json(_report_json(counts, comparison))
        return

    _print_counts(counts)
    if comparison is None:
        headings = ("release", "role", "position", "shown", "clicked", "rate", "95 %")
        out.print(table(headings, map(_cells, counts.rows)))
    else:
        _print_arms(comparison, ("arm", "users", f"{goal} per user", f"users to find ±{min_effect:g} %"))


def _report_json(counts: EventReport, comparison: ArmReport | None) -> dict[str, object]:
    facts: dict[str, object] = {field.name: getattr(counts, field.name) for field in fields(counts)}
    facts["rows"] = [{**row._asdict(), "ctr": row.ctr, "interval": row.interval} for row in counts.rows]
    if comparison is not None:
        facts["arms"] = comparison
    return facts


def _print_arms(comparison: ArmReport, headings: Sequence[str]) -> None:
    """Print a table with users, mean and users needed of both arms of an experiment, then the verdict and its end.

    *headings* are those of the four columns.
    """
    means = [f"{mean:.4g}" for mean in comparison.means]
    users_needed = comparison.users_needed or ("", "")
    out.print(table(headings, zip(("A", "B"), comparison.users, means, users_needed, strict=True)))

    difference = ""
    if comparison.interval is not None:
        low, high = comparison.interval
        difference = f", B minus A {low:+.4g} to {high:+.4g} (95 %)"
    horizon = datetime.fromtimestamp(comparison.experiment.ends_at, UTC)
    out.print(f"{comparison.verdict}{difference}; horizon {horizon:%F %RZ}")


def _print_counts(counts: EventReport) -> None:
    types = ", ".join(f"{number:,} {name}" for name, number in sorted(counts.types.items()))
    read = f"{format_count(counts.events, 'event')} in {format_count(counts.segments, 'segment')}"
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
