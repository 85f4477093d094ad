"""`hotplate events`: ship and count the events that a service collected.

An arm is one of the two releases of an experiment: A is the live one. The horizon is its planned end.
"""

from dataclasses import fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hotplate.base.report import format_count
from hotplate.cli.flags import FolderOrUrl, Verbs
from hotplate.cli.terminal import (
    StoreUrl,
    out,
    print_json,
    progress_bars,
    run_on_store,
    table,
)
from hotplate.stores.options import Argument, Flag
from hotplate.stores.urls import redacted

if TYPE_CHECKING:
    from hotplate.serve.events.experiments import ArmEvents, ArmReport
    from hotplate.serve.events.report import EventReport, PositionCounts
    from hotplate.stores.store import Store

app = Verbs(
    help="Ship the events that a service collected, and report on them.\n\n"
    "Example: hotplate events report /var/lib/hotplate/events",
)


@app.command()
def ship(
    folder: Annotated[Path, Argument("The folder of `hotplate serve --events`.", "FOLDER")],
    to: Annotated[
        str, Flag("A folder or a URL of an installed fsspec file system, as abfs://…", metavar="URL", prefix="EVENTS_")
    ],
) -> None:
    """Move closed segments to another place; each is removed here after a complete copy.

    A service closes a segment after five minutes at most; segments of killed workers are closed here. An interrupted
    command can be repeated.

    Example: hotplate events ship /var/lib/hotplate/events --to /backup/events
    """
    from hotplate.serve.events.shipment import ship as ship_segments

    with progress_bars() as on_progress:
        shipped = ship_segments(folder, to, partial(on_progress, "ship"))
    print_json(shipped)
    out.print(f"shipped {format_count(shipped.segments, 'segment')}, {shipped.bytes / 1e6:,.1f} MB, to {redacted(to)}")
    if shipped.recovered:
        out.print(f"{shipped.recovered} of them are of workers that were killed")


@app.command()
def report(
    source: Annotated[FolderOrUrl, Argument("A folder of closed segments, or its URL.", "FOLDER|URL")],
    goal: Annotated[
        str | None,
        Flag(
            "Compare an experiment's arms by a type of event, or its value, as buy:value.",
            env=False,
            metavar="TYPE[:value]",
        ),
    ] = None,
    min_effect: Annotated[
        float, Flag("The smallest change worth finding, in percent.", at_least=0.1, metavar="PERCENT")
    ] = 5.0,
    store: StoreUrl = None,
) -> None:
    """Report the click-through rate by release, role (live, canary or other) and position in the list.

    Duplicates by event id count once. Intervals (95 %) assume independent impressions, and are too narrow if a few
    users saw many items. There is no rate if more items were clicked than shown. With --goal, compare the arms of the
    store's running or last experiment instead, by user.

    Example: hotplate events report /var/lib/hotplate/events

    An experiment: hotplate events report /var/lib/hotplate/events --goal buy:value --min-effect 3
    """
    from hotplate.serve.events.report import report as count_events

    arm_events = None if goal is None else run_on_store(store, partial(_arm_events, goal))
    with progress_bars() as on_progress:
        counts = count_events(source, partial(on_progress, "report"), arms=arm_events)
    comparison = None if arm_events is None else arm_events.report(min_effect / 100)

    print_json(_report_json(counts, comparison))
    _print_counts(counts)
    if comparison is None:
        _print_rates(counts)
    else:
        _print_arms(comparison, f"{goal} per user", f"users to find ±{min_effect:g} %")


def _report_json(counts: "EventReport", comparison: "ArmReport | None") -> dict[str, object]:
    """Return what `--json` prints: the fields of *counts*, its rows with click-through rates, and the comparison.

    *comparison* is that of the arms of an experiment, groups of users with different releases; None without one.
    """
    facts: dict[str, object] = {field.name: getattr(counts, field.name) for field in fields(counts)}
    facts["rows"] = [{**row._asdict(), "ctr": row.ctr, "interval": row.interval} for row in counts.rows]
    if comparison is not None:
        facts["arms"] = comparison
    return facts


def _print_arms(comparison: "ArmReport", mean_heading: str, users_heading: str) -> None:
    """Print a table of an experiment's arms A and B, two groups of users with different releases, and the verdict.

    Its columns are the users of an arm, the mean of the goal per user, and the users that would show a difference. The
    last line has the interval of the difference, and the end of the experiment (horizon).
    """
    means = [f"{mean:.4g}" for mean in comparison.means]
    users_needed = comparison.users_needed or ("", "")
    headings = ("arm", "users", mean_heading, users_heading)
    out.print(table(headings, zip(("A", "B"), comparison.users, means, users_needed, strict=True)))

    difference = ""
    if comparison.interval is not None:
        low, high = comparison.interval
        difference = f", B minus A {low:+.4g} to {high:+.4g} (95 %)"
    horizon = datetime.fromtimestamp(comparison.experiment.ends_at, UTC)
    out.print(f"{comparison.verdict}{difference}; horizon {horizon:%F %RZ}")


def _print_counts(counts: "EventReport") -> None:
    """Print how many events of each type were read, and what was left out."""
    types = ", ".join(f"{number:,} {name}" for name, number in sorted(counts.types.items()))
    read = f"{format_count(counts.events, 'event')} in {format_count(counts.segments, 'segment')}"
    out.print(f"{read}: {types}" if types else read)
    left_out = (
        (counts.open_segments, "open segment", "still written, or of a killed service"),
        (counts.duplicates, "event", "sent again under the same id"),
        (counts.damaged, "line", "damaged"),
    )
    for number, noun, reason in left_out:
        if number:
            out.print(f"  {format_count(number, noun)} left out: {reason}")


def _print_rates(counts: "EventReport") -> None:
    """Print a table of the click-through rate by release, role and position."""
    headings = ("release", "role", "position", "shown", "clicked", "rate", "95 %")
    out.print(table(headings, map(_cells, counts.rows)))


async def _arm_events(goal: str, store: "Store") -> "ArmEvents":
    """Return what counts events of the store's experiment by arm; ReleaseNotFound without an experiment."""
    from hotplate.serve.events.experiments import ArmEvents
    from hotplate.stores.erasure_log import read_erased
    from hotplate.stores.errors import ReleaseNotFound

    catalogue = await store.catalogue()
    if catalogue.experiment is None:
        raise ReleaseNotFound("no experiment was started in this store; `hotplate releases canary --days` starts one")
    return ArmEvents(catalogue.experiment, goal, catalogue.now, await read_erased(store, catalogue))


def _cells(row: "PositionCounts") -> tuple[str, ...]:
    """Return a line of the table of click-through rates by release, role and position."""
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
