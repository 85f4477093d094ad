"""`hotplate events`: what clients reported as shown and clicked: ship it, and report on it."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.options import Verbs
from hotplate.cli.terminal import Json, counted, out, print_json, progress_bars, table
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from hotplate.serve.events.segments import ListedItems

app = Verbs(
    no_args_is_help=True,
    help="Ship the events that a service took, and report on them.\n\n"
    "Example: hotplate events report /var/lib/hotplate/events",
)


@app.command()
def ship(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of `hotplate serve --events`.")],
    to: Annotated[
        str,
        Flag(
            "Copy them to this folder, or any URL that fsspec knows, as abfs://container/events; other schemes than "
            "file:// and memory:// take a package of their own.",
            metavar="URL",
            prefix="EVENTS_",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Copy closed segments to another place, and remove each one here once it is there whole.

    A service closes a segment after five minutes at most. Whatever ends the command, nothing is lost, and the next one
    goes on. It closes what killed workers left, too.

    Example: hotplate events ship /var/lib/hotplate/events --to /backup/events
    """
    from hotplate.serve.events.segments import ship as ship_segments
    from hotplate.stores.urls import redacted

    with progress_bars() as on_progress:
        shipped = ship_segments(folder, to, partial(on_progress, "ship"))
    if as_json:
        print_json(shipped)
        return
    out.print(f"shipped {counted(shipped.segments, 'segment')}, {shipped.bytes / 1e6:,.1f} MB, to {redacted(to)}")
    if shipped.recovered:
        out.print(f"{shipped.recovered} of them are of workers that were killed")


@app.command()
def report(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER|URL", help="A folder of closed segments, or any URL that fsspec knows.")
    ],
    as_json: Json = False,
) -> None:
    """Report the click-through rate by release, role (live, canary or other) and place in the list.

    An event counts once, however often it was sent under its id. Intervals (95 %) take each item that was shown for
    independent of all others, which makes them too narrow where few users saw many.

    Example: hotplate events report /var/lib/hotplate/events
    """
    from hotplate.serve.events.segments import report as count

    with progress_bars() as on_progress:
        found = count(source, partial(on_progress, "report"))
    if as_json:
        rows = {"releases": found.releases, "by_position": found.by_position}
        about = {
            name: getattr(found, name)
            for name in ("segments", "open_segments", "events", "duplicates", "damaged", "types")
        }
        print_json(about | {name: [_plain(row) for row in each] for name, each in rows.items()})
        return
    types = ", ".join(f"{number:,} {name}" for name, number in sorted(found.types.items()))
    out.print(
        f"{counted(found.events, 'event')} in {counted(found.segments, 'segment')}{f': {types}' if types else ''}"
    )
    if found.open_segments:
        out.print(
            f"  {counted(found.open_segments, 'open segment')} left out: still written, or left by a killed service"
        )
    if found.duplicates:
        out.print(f"  {found.duplicates:,} left out: sent again under the same id")
    if found.damaged:
        out.print(f"  {found.damaged:,} left out: damaged")
    out.print(table(("release", "role", "shown", "clicked", "rate", "95 %"), map(_cells, found.releases)))
    positions = [(row.release or "none named", row.role, row.position, *_cells(row)[2:]) for row in found.by_position]
    out.print(table(("release", "role", "position", "shown", "clicked", "rate", "95 %"), positions))


def _cells(row: "ListedItems") -> tuple[str, ...]:
    rate = "" if row.ctr is None else f"{row.ctr:.2%}"
    interval = "" if row.interval is None else f"{row.interval[0]:.2%} to {row.interval[1]:.2%}"
    return row.release or "none named", row.role, f"{row.impressions:,}", f"{row.clicks:,}", rate, interval


def _plain(row: "ListedItems") -> dict[str, object]:
    return {**row._asdict(), "ctr": row.ctr, "interval": row.interval}
