"""Notes: sentences on what looks wrong with the interactions that were read, and the aggregates behind them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

import polars as pl

from hotplate.base.report import format_count
from hotplate.offline.input.columns import NUMBERED, usual_column
from hotplate.offline.input.rows import Rows
from hotplate.offline.input.tables import Table
from hotplate.offline.options import Columns
from hotplate.stores.errors import did_you_mean

UNKNOWN_EVENT = "unknown event"
# Thresholds of notes: rows without a time; one user's share, rows, and multiple of the mean weight; disjoint users.
_TIMELESS_SHARE = 0.01
_USER_SHARE = 0.02
_USER_ROWS = 2_000
_TIMES_THE_MEAN = 20
_FEWEST_USERS = 10
# Users and items that exports write for a missing value, in lower case; `columns.NULL_VALUES` are no values at all.
_LIKE_MISSING = (
    *("n/a", "#n/a", "na", "null", "(null)", "<null>", "[null]", "nil", "none", "nan", "undefined", "unknown"),
    *("-", "--", "?", "\\n"),
)
# The service keeps their popular lists in memory.
MAX_SEGMENTS = 1000


@dataclass(frozen=True, slots=True)
class Facts:
    """Aggregates over the rows kept, None or 0 without their column.

    first, last    times
    timeless       rows without a time
    cancellations  rows with a negative quantity
    segments       different segments
    """

    rows: int
    first: datetime | None = None
    last: datetime | None = None
    timeless: int = 0
    cancellations: int = 0
    segments: int = 0

    @property
    def time_range(self) -> tuple[datetime, datetime] | None:
        """The first and the last time, None without times."""
        return None if self.first is None or self.last is None else (self.first, self.last)


# By the name in `Facts`, with the role that they need.
_AGGREGATES = {
    "first": ("time", pl.Expr.min),
    "last": ("time", pl.Expr.max),
    "timeless": ("time", pl.Expr.null_count),
    "cancellations": ("quantity", lambda quantity: (quantity < 0).sum()),
    "segments": ("segment", lambda segment: segment.drop_nulls().n_unique()),
}


def read_facts(kept: pl.LazyFrame) -> Facts:
    """Aggregate the rows *kept*."""
    roles = kept.collect_schema()
    aggregates = {name: read(pl.col(role)) for name, (role, read) in _AGGREGATES.items() if role in roles}
    return Facts(**kept.select(rows=pl.len(), **aggregates).collect(engine="streaming").row(0, named=True))


def notes_of_rows(rows: Rows, facts: Facts, columns: Columns) -> Iterator[str]:
    """Yield sentences on bad rows, rows without a time, events without a weight, and cancellations."""
    yield from rows.notes

    if columns.time is not None and facts.timeless >= _TIMELESS_SHARE * facts.rows:
        yield f"{facts.timeless:,} of {facts.rows:,} rows have no time, or 0, in {columns.time!r}, and are oldest"

    if UNKNOWN_EVENT in rows.left_out:
        frequent = rows.values(UNKNOWN_EVENT)[:5]
        events = ", ".join("none" if event is None else f"{event!r:.80}" for event in frequent)
        yield f"the most frequent events without a weight are {events}; weigh those that count with --event-weights"

    if facts.cancellations:
        yield (
            f"{format_count(facts.cancellations, 'row')} with a {columns.quantity!r} below zero: earlier purchases of "
            f"the same user and item are cancelled; --where '{columns.quantity}>0' leaves them out"
        )


def describe_segments(columns: Columns, count: int) -> str:
    """Return the start of a sentence: a segment column has too many different values (*count*)."""
    limit = f"at most {MAX_SEGMENTS:,} can have a list each"
    return f"the segment column {columns.segment!r} has {count:,} different values, and {limit}"


def notes_of_columns(table: Table, columns: Columns, facts: Facts) -> Iterator[str]:
    """Yield sentences on a segment column of too many values, and unused columns: of events, or without a header."""
    if facts.segments > MAX_SEGMENTS:
        yield f"{describe_segments(columns, facts.segments)}; it is left out"

    unused = [name for name in table.schema if name not in asdict(columns).values()]
    event = usual_column("event", unused)
    if columns.event is None and event is not None:
        yield f"the column {event!r} is not used; if it holds kinds of events, weigh them with --event-weights"

    numbers = [name.removeprefix(NUMBERED) for name in unused if name.startswith(NUMBERED)]
    if numbers:
        named = f"column {numbers[0]} is" if len(numbers) == 1 else f"columns {numbers[0]} to {numbers[-1]} are"
        yield (
            f"{named} not used; --time-column, --weight-column and --title-column name them by number. If each line is "
            "a user and all items, write one line for each pair: "
            "awk '{for (n = 2; n <= NF; n++) print $1, $n}' FILE > pairs.txt"
        )


def notes_of_events(rows: Rows, event_weights: Mapping[str, float]) -> Iterator[str]:
    """Yield a sentence for each kind of event in *event_weights* that no row kept has.

    If rows were left out whose kind of event has a similar name and no weight, the sentence suggests that name.
    """
    if not event_weights:
        return
    events_of_rows = set(rows.kept.select(pl.col("event").cast(pl.String)).unique().collect().to_series())
    unweighted_events = rows.values(UNKNOWN_EVENT)
    for event in event_weights.keys() - events_of_rows:
        suggestion = did_you_mean(event, filter(None, unweighted_events))
        yield f"no row kept has the event {event!r} of --event-weights; {suggestion}".rstrip("; ")


def notes_of_log(log: pl.DataFrame, columns: Columns) -> Iterator[str]:
    """Yield sentences on doubtful data in *log* [user, item, weight].

    These are ids such as `null` that stand for a missing value, users with too many rows for a person, and items of
    which no two share a user.
    """
    shares = {role: _shares(log, role) for role in ("user", "item")}
    for role, ids in shares.items():
        missing = ids.filter("is_missing").sort(role)
        for value, share in missing.select(role, "share").iter_rows():
            yield (
                f"the {role} {value!r} looks like a missing value, and counts as one {role} with {share:.1%} of the "
                f"weight; leave it out: --where '{getattr(columns, role)}!={value}'"
            )

    # Too many for a person.
    has_many = (pl.col("share") >= _USER_SHARE) | (pl.col("rows") >= _USER_ROWS)
    is_large = has_many & (pl.col("weight") >= _TIMES_THE_MEAN * pl.col("weight").mean()) & ~pl.col("is_missing")
    large = shares["user"].filter(is_large).sort("share", descending=True).head(3)
    if not large.is_empty():
        users = ", ".join(f"{user!r} ({share:.1%})" for user, share in large.select("user", "share").iter_rows())
        yield (
            f"single users have many rows: {users}; if they are robots or stand for unknown visitors, "
            f"leave them out, as --where '{columns.user}!=ID'"
        )

    # Users of the category type are compared by their codes: an item with two different users is shared.
    user = pl.col("user").to_physical()
    is_shared = log.group_by("item").agg(shared=user.min() != user.max()).get_column("shared")
    if shares["user"].height >= _FEWEST_USERS and not is_shared.any():
        yield "no two users have an item in common, so nothing can be learnt; is the item column right?"


def _shares(log: pl.DataFrame, role: str) -> pl.DataFrame:
    """Return the users or items of *log* [user or item, weight, rows, share of the weight, is_missing].

    `is_missing` tells whether the id is a text that exports write for a missing value.
    """
    weight = pl.col("weight")
    name = pl.col(role).cast(pl.String)
    return (
        log.group_by(role)
        .agg(weight.sum(), rows=pl.len())
        .with_columns(name, share=weight / weight.sum(), is_missing=name.str.to_lowercase().is_in(_LIKE_MISSING))
    )
