"""Notes: what was found in the input and not used, or may be wrong, in a sentence each."""

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from hotplate.offline.input.columns import EPOCH, usual_column
from hotplate.offline.input.tables import Rows, Table

UNKNOWN_EVENT = "unknown event"
# Of a column with more values the values are hardly kinds of events.
_MAX_EVENTS = 20
_HEAD_ROWS = 1000
# Seconds since 1970 that all lie before this are hardly seconds: they are counts of something else.
_EARLIEST = datetime(1971, 1, 1)  # noqa: DTZ001 -- times are naive UTC throughout
# From these shares on it is said that rows have no time, and that a user has many rows.
_TIMELESS_SHARE = 0.01
_USER_SHARE = 0.02
# A user with many rows has also this many times the mean of all.
_TIMES_THE_MEAN = 20
# Of fewer users it is no wonder that they have no item in common.
_FEWEST_USERS = 10


def of_bad_rows(rows: Rows) -> str | None:
    """Say which the first bad rows are that are left out."""
    return f"bad rows are left out: {'; '.join(rows.bad)}" if rows.bad else None


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


def of_cancellations(column: str, rows: int) -> str | None:
    """Say how rows of a quantity below zero are read."""
    if not rows:
        return None
    return (
        f"{rows:,} rows have a {column!r} below zero and are read as cancellations: each takes back as much of what "
        f"the same user bought of the same item before it; --where '{column}>0' leaves them out"
    )


def of_times(column: str, layouts: Sequence[str], rows: Rows) -> list[str]:
    """Say how many rows have no time, and that counts since 1970 are all too small."""
    said, last = [], rows.facts.get("last")
    if rows.facts["timeless"] >= _TIMELESS_SHARE * rows.facts["rows"]:
        said.append(
            f"{rows.facts['timeless']:,} of {rows.facts['rows']:,} rows have no time, or 0, in {column!r}; they count "
            "as the oldest"
        )
    if EPOCH in layouts and last is not None and last < _EARLIEST:
        said.append(
            f"the times in {column!r} are read as {EPOCH}, and all lie before 1971; if that is wrong, say how they are "
            "written, as --time-format %Y%m%d, or give --time-column none"
        )
    return said


def of_unknown_events(rows: Rows) -> str | None:
    """Say which events have no weight, with their rows."""
    if UNKNOWN_EVENT not in rows.left_out:
        return None
    counted = rows.values(UNKNOWN_EVENT, "event")
    events = ", ".join("none" if value is None else f"{value!r}"[:80] for value in counted.get_column("value").head(5))
    more = f" and {counted.height - 5:,} others" if counted.height > 5 else ""
    return f"the events without a weight are {events}{more}; give those that count a weight with --event-weights"


def of_events(tables: Sequence[Table]) -> str | None:
    """Say which kinds of events there are, with their rows, if each row weighs the same."""
    name = usual_column("event", [name for name, dtype in tables[0].schema.items() if not dtype.is_nested()])
    if name is None or tables[0].frame.select(name).head(_HEAD_ROWS).collect().n_unique() > _MAX_EVENTS:
        return None
    rows = pl.concat(table.frame.select(event=table.text(name)) for table in tables).drop_nulls()
    counted = rows.group_by("event").len().sort("len", "event", descending=[True, False]).collect(engine="streaming")
    if not 2 <= counted.height <= _MAX_EVENTS:
        return None
    events = ", ".join(f"{event} ({count:,})" for event, count in counted.iter_rows())
    weights = ",".join(f"{event}={number}" for number, event in enumerate(counted.get_column("event"), start=1))
    return f"the column {name!r} holds events that weigh the same: {events}; weigh them by --event-weights {weights}"


def of_users(log: pl.DataFrame) -> str | None:
    """Say which users have far more weight than all others; a row without a weight has 1."""
    counted = log.group_by("user").agg(len=pl.col("weight").sum())
    total = float(counted.select(pl.col("len").sum()).item())
    least = max(_USER_SHARE * total, _TIMES_THE_MEAN * total / counted.height)
    many = counted.filter(pl.col("len") >= least).sort("len", descending=True).head(3)
    if many.is_empty():
        return None
    users = ", ".join(f"{user!r} ({count / total:.0%})" for user, count in many.iter_rows())
    return (
        f"single users have a large share of the rows: {users}; if these are robots or stand for visitors who are not "
        "known, leave them out, as --where 'user!=ID'"
    )


def of_disjoint(log: pl.DataFrame) -> str | None:
    """Say that no two users have an item in common."""
    if log.get_column("user").n_unique() < _FEWEST_USERS:
        return None
    user = pl.col("user").to_physical()
    if log.group_by("item").agg(shared=user.min() != user.max()).get_column("shared").any():
        return None
    return (
        "no two users have an item in common, so nothing can be learnt from one for another; is the item column right?"
    )
