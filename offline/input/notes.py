"""Notes: what was found in the input and not used, or read otherwise than it is written, in a sentence each."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import polars as pl

from hotplate.offline.input.columns import DATES, DAYS, EXCEL_DAYS, NUMBER, is_numbered, usual_column
from hotplate.offline.input.files import data_errors
from hotplate.offline.input.tables import Table

# Of a column with more values the values are hardly kinds of events.
_MAX_EVENTS = 20
_HEAD_ROWS = 1000
# Seconds since 1970 that all lie before this are hardly seconds: they are counts of something else.
_EARLIEST = datetime(1971, 1, 1)  # noqa: DTZ001 -- times are naive UTC throughout


def of_header(tables: Sequence[Table], roles: Mapping[str, str | None]) -> str | None:
    """Say which columns are taken for what, by role, if they have no names."""
    available = list(tables[0].schema)
    if not is_numbered(available):
        return None
    taken = ", ".join(f"{name} as the {role}" for role, name in roles.items() if name is not None)
    left = [name for name in available if name not in roles.values()]
    unused = f", and {', '.join(left)} {'are' if len(left) > 1 else 'is'} not used" if left else ""
    return (
        f"{tables[0].file} has no header: {taken}{unused}; name others by number, as in --user-column 2, or give a "
        "file with a header"
    )


def of_whole_numbers(columns: Sequence[str]) -> str | None:
    """Say of which columns the ids are read without the .0 that they are written with."""
    if not columns:
        return None
    return f"the ids in {' and '.join(columns)} are whole numbers that are written as 17850.0; they are read as 17850"


def of_ratings(available: Sequence[str]) -> str | None:
    """Say that a column of ratings is not used."""
    name = usual_column("rating", available)
    if name is None:
        return None
    return (
        f"the column {name!r} holds ratings, which say how much an item was liked, not how sure it is that it was "
        f"chosen, and is not used as the weight; --weight-column {name} would use it"
    )


def of_cancellations(column: str, rows: int) -> str:
    """Say how rows of a quantity below zero are read."""
    return (
        f"{rows:,} rows have a {column!r} below zero and are read as cancellations: each takes back as much of what "
        f"the same user bought of the same item before it; --where '{column}>0' leaves them out"
    )


def of_times(column: str, layouts: Sequence[str | None], time_range: tuple[datetime, datetime] | None) -> list[str]:
    """Say how numbers and years of two digits were read, and seconds that are all too long ago to be right."""
    if time_range is None:
        return []
    known = (DAYS, EXCEL_DAYS, DATES) if time_range[1] >= _EARLIEST else (NUMBER, DAYS, EXCEL_DAYS, DATES)
    read_as = {layout: "seconds since 1970" if layout == NUMBER else layout for layout in known}
    for layout in layouts:
        if layout is not None and "%y" in layout:
            read_as[layout] = layout.split()[0].replace("%d", "DD").replace("%m", "MM").replace("%y", "YY")
    return [
        f"the times in {column!r} are read as {read_as[layout]}: they are from "
        f"{time_range[0]:%Y-%m-%d %H:%M} to {time_range[1]:%Y-%m-%d %H:%M}; if that is wrong, write them as "
        "2026-11-20T08:00:00Z"
        for layout in dict.fromkeys(layouts)
        if layout in read_as
    ]


def of_events(tables: Sequence[Table]) -> str | None:
    """Say which kinds of events there are, with their rows, if each row weighs the same."""
    name = usual_column("event", [name for name, dtype in tables[0].schema.items() if not dtype.is_nested()])
    if name is None or tables[0].frame.select(name).head(_HEAD_ROWS).collect().n_unique() > _MAX_EVENTS:
        return None
    rows = pl.concat(table.frame.select(event=table.text(name)) for table in tables).drop_nulls()
    with data_errors(tables[0].file):
        counted = rows.group_by("event").len().sort("len", "event", descending=[True, False]).collect()
    if not 2 <= counted.height <= _MAX_EVENTS:
        return None
    events = ", ".join(f"{event} ({count:,})" for event, count in counted.iter_rows())
    weights = ",".join(f"{event}={number}" for number, event in enumerate(counted.get_column("event"), start=1))
    return f"the column {name!r} holds events that weigh the same: {events}; weigh them by --event-weights {weights}"


def of_similar_ids(role: str, ids: pl.Series) -> str | None:
    """Say how many of *ids*, with repetitions, differ from another in nothing but case or white space around them."""
    distinct = ids.unique().cast(pl.String)
    frame = pl.DataFrame({"id": distinct, "plain": distinct.str.strip_chars().str.to_lowercase()})
    if frame.get_column("plain").n_unique() == frame.height:
        return None
    similar = frame.filter(pl.len().over("plain") > 1).sort("plain", "id")
    first, second = similar.get_column("id").head(2)
    return (
        f"{similar.height:,} {role} ids differ from another in case or in white space around them only, such as "
        f"{first!r} and {second!r}; they are kept apart"
    )
