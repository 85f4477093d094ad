"""`hotplate events`: ship and count the events that a service collected."""

from functools import partial
from pathlib import Path
from typing import Annotated

from hotplate.cli.flags import Verbs
from hotplate.cli.terminal import Json, StoreUrl, format_count, out, print_json, progress_bars
from hotplate.stores.options import Argument, Flag
from hotplate.stores.urls import redacted

app = Verbs(
    no_args_is_help=True,
    help="Ship the events that a service collected, and report on them.\n\n"
    "Example: hotplate events report /var/lib/hotplate/events",
)


@app.command()
def ship(
    folder: Annotated[Path, Argument("The folder of `hotplate serve --events`.", "FOLDER")],
    to: Annotated[
        str, Flag("A folder or a URL of an installed fsspec file system, as abfs://…", metavar="URL", prefix="EVENTS_")
    ],
    as_json: Json = False,
) -> None:
    """Move closed segments to another place; each is removed here after a complete copy.

    A service closes a segment after five minutes at most; segments of killed workers are closed here. An interrupted
    command can be repeated.

    Example: hotplate events ship /var/lib/hotplate/events --to /backup/events
    """
    from hotplate.serve.events import ship as ship_segments

    with progress_bars() as on_progress:
        shipped = ship_segments(folder, to, partial(on_progress, "ship"))
    if as_json:
        print_json(shipped)
        return
    out.print(f"shipped {format_count(shipped.segments, 'segment')}, {shipped.bytes / 1e6:,.1f} MB, to {redacted(to)}")
    if shipped.recovered:
        out.print(f"{shipped.recovered} of them are of workers that were killed")


@app.command()
def report(
    source: Annotated[str, Argument("A folder of closed segments, or its URL.", "FOLDER|URL")],
    goal: Annotated[
        str | None, Flag("Compare an experiment's arms by a type of event, or its value: buy:value.", env=False)
    ] = None,
    min_effect: Annotated[float, Flag("The smallest change worth finding, in percent.", at_least=0.1)] = 5.0,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Report the click-through rate by release, role (live, canary or other) and position in the list.

    Duplicates by event id count once. Intervals (95 %) assume independent impressions, and are too narrow if a few
    users saw many items. With --goal, compare the arms of the store's running or last experiment instead, by user.

    Example: hotplate events report /var/lib/hotplate/events

    An experiment: hotplate events report /var/lib/hotplate/events --goal buy:value --min-effect 3
    """
    from hotplate.cli import event_reports

    event_reports.print_report(source, goal, min_effect=min_effect, store=store, as_json=as_json)
