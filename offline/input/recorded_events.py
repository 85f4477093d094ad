"""Events that the service recorded, as input."""

from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import NamedTuple

import polars as pl

from hotplate.base.report import format_count
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import DataFile
from hotplate.offline.input.tables import EXTRA, ROW, Table
from hotplate.offline.options import Format
from hotplate.stores.event_log import SegmentReader

_EVENT_SCHEMA: dict[str, pl.DataType] = {
    **dict.fromkeys(("id", "user", "type", "release", "role"), pl.String()),
    "items": pl.List(pl.String()),
    "time": pl.Float64(),
    "position": pl.Int64(),
}


class Segment(NamedTuple):
    """The *events* of one file of the event log, and the number of *damaged* ones, or damaged pieces of the file."""

    events: pl.DataFrame
    damaged: int


def read_segment(file: DataFile, schema: Mapping[str, pl.DataType]) -> Segment:
    """Read fields of the events of one file that the service wrote; raises DataError."""
    with data_errors(file):
        reader = SegmentReader(file.path.read_bytes())
        lines = b"\n".join(reader)
        events = pl.read_ndjson(BytesIO(lines), schema=schema) if lines else pl.DataFrame(schema=schema)
    return Segment(events, reader.damaged)


class RecordedEvents(NamedTuple):
    """A row for each item of each recorded event with a weight, and sentences on events that are left out.

    *unweighted* is the number of the other rows, by type of event.
    """

    table: Table
    notes: Sequence[str]
    unweighted: Mapping[str | None, int]


def read_events(files: Sequence[DataFile], form: Format, event_weights: Mapping[str, float]) -> RecordedEvents:
    """Read *files* in which the service recorded events, such as clicks, as one table.

    The table has a row for each item of an event [user, item, event: its type, time, release, role, position]. An event
    that a client sent again has the same id, and counts once. Impressions are most of the events, and mostly have no
    weight: events without one in *event_weights* are only counted, so that the others fit into the memory. *form* has
    the tolerated share of bad rows.
    """
    frames = [pl.DataFrame(schema=_EVENT_SCHEMA)]
    unweighted = Counter[str | None]()
    damaged = 0
    for file in files:
        segment = read_segment(file, _EVENT_SCHEMA)
        is_weighted = pl.col("type").is_in(list(event_weights)).fill_null(value=False)
        frames.append(segment.events.filter(is_weighted))
        unweighted.update(_rows_by_type(segment.events.filter(~is_weighted)))
        damaged += segment.damaged

    weighted_events = pl.concat(frames)
    events = weighted_events.unique("id", keep="first", maintain_order=True)
    repeated = weighted_events.height - events.height
    notes = list[str]()
    if repeated:
        notes.append(f"{format_count(repeated, 'event')} left out: sent again under the same id")
    if damaged:
        notes.append(f"{format_count(damaged, 'damaged event')} left out, or pieces of segments")

    # As in tables of files, ROW numbers the rows, and EXTRA is null unless a row is malformed.
    rows = events.explode("items").select("user", "time", "release", "role", "position", item="items", event="type")
    frame = rows.lazy().with_row_index(ROW).with_columns(pl.lit(None, pl.String).alias(EXTRA))
    table = Table(files[0], frame, Format(max_bad_rows=form.max_bad_rows), dict(rows.schema))
    return RecordedEvents(table, notes, unweighted)


def _rows_by_type(events: pl.DataFrame) -> dict[str | None, int]:
    """Return the number of items of *events*, by type."""
    return dict(events.group_by("type").agg(pl.col("items").list.len().sum()).iter_rows())
