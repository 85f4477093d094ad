"""Events that a service took, out of its segments: a row for each event and item, whatever was sent twice left out."""

import io
from collections.abc import Sequence

import polars as pl

from offline.input.columns import Columns
from offline.input.files import DataFile, data_errors
from offline.input.tables import Table
from stores.event_log import SegmentReader

# What a row has; the release, its role and the position are there for filters.
EVENT_COLUMNS = Columns(user="user", item="item", event="event", time="time")
_FIELDS: dict[str, pl.DataType] = {
    "id": pl.String(),
    "user": pl.String(),
    "items": pl.List(pl.String()),
    "type": pl.String(),
    "time": pl.Float64(),
    "release": pl.String(),
    "role": pl.String(),
    "position": pl.Int64(),
}


def read_events(files: Sequence[DataFile]) -> tuple[Table, list[str | None]]:
    """
    Return the events of segments as one table, in memory, and in sentences what was left out of it.

    Of the events with the same id the first counts. Raises DataError for what cannot be read.
    """
    frames, damaged = list[pl.DataFrame](), 0
    for file in files:
        with data_errors(file):
            reader = SegmentReader(file.path.read_bytes())
            lines = b"\n".join(reader)
            damaged += reader.damaged
            frames.append(pl.read_ndjson(io.BytesIO(lines), schema=_FIELDS) if lines else pl.DataFrame(schema=_FIELDS))
    read = pl.concat(frames)
    events = read.unique("id", keep="first", maintain_order=True)
    again, notes = read.height - events.height, list[str | None]()
    if again:
        notes.append(f"{again:,} events were sent again under the same id and are left out")
    if damaged:
        notes.append(f"{damaged:,} events, or pieces of segments, are damaged and are left out")
    rows = events.explode("items").select("user", "time", "release", "role", "position", item="items", event="type")
    return Table(files[0], rows.lazy(), dict(rows.schema), 1, ()), notes
