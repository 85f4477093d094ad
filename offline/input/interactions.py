"""Interactions read from files; rows left out are counted by reason.

A row of input says that a user chose an item. `log` groups the rows that count by user, item and time. Columns are
found by their role: `user`, `item`, `weight`, `time`, `title`, `segment` (a group of users, such as a country), `event`
(the kind of interaction, such as `buy`), `count` and `quantity`, of which negative ones are cancellations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import polars as pl

from hotplate.offline.errors import DataError
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import DataSource, fingerprint, input_files, named_paths
from hotplate.offline.input.filters import parse_filter
from hotplate.offline.input.grouping import count_users_by_segment, group_log
from hotplate.offline.input.history import Weighing, Weighting
from hotplate.offline.input.interaction_rows import TEXT_ROLES, open_inputs
from hotplate.offline.input.notes import (
    MAX_SEGMENTS,
    describe_segments,
    notes_of_columns,
    notes_of_events,
    notes_of_log,
    notes_of_rows,
    read_facts,
)
from hotplate.offline.input.rows import Rows, most_frequent, most_frequent_titles, texts_by_role
from hotplate.offline.options import Columns, Format

# As fast as the default of polars, with less memory.
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class Interactions:
    """The rows that count, grouped.

    log          [user, item: categorical, weight: f64 > 0, perhaps time: datetime (naive UTC)], one row per user, item
                 and time, in no order; after cancellations also ended: their time, or null
    titles       by item, as far as known
    segments     [segment, item, day: i64 since 1970 or null, weight: f64, the number of the segment's users who first
                 had the item that day], or None
    user_segments  [user, segment], the most frequent one of each user with any, or None
    rows         number of rows read
    left_out     number of rows left out by reason, without zeros
    fingerprint  digest of all files
    time_range   first and last time of the rows kept
    notes        sentences about doubtful data
    """

    log: pl.DataFrame
    weighing: Weighing
    titles: dict[str, str]
    segments: pl.DataFrame | None
    user_segments: pl.DataFrame | None
    rows: int
    left_out: dict[str, int]
    fingerprint: str
    time_range: tuple[datetime, datetime] | None
    columns: Columns
    notes: list[str]


def read_interactions(
    *paths: DataSource,
    columns: Columns | None = None,
    form: Format | None = None,
    event_weights: Mapping[str, float] | None = None,
    where: Sequence[str] = (),
    titles: DataSource | None = None,
    weighting: Weighting = "sum",
    half_life: timedelta | None = None,
) -> Interactions:
    """Read the interactions of users with items from files, folders, URLs and data frames with the same columns.

    columns        names of columns by role, such as user and time; the others are found by usual names
    form           how text files are written
    event_weights  weight of a row by the kind of its event; without, it is the weight column, or 1
    where          filters such as `quantity>0`; rows that fail one are left out
    titles         a file of item and title; by default titles are a column of the data
    weighting      how rows become the weight of a user and an item; with `columns.count`, this is their number of
                   distinct values, each at its first time
    half_life      of weights, before the newest row; it needs times

    A negative quantity cancels earlier purchases of the same user and item. Raises DataError, and SettingError for
    invalid or contradictory options.
    """
    weighing = Weighing(weighting, half_life)
    source = named_paths(paths)
    title_paths = [] if titles is None else [titles]

    named = columns or Columns()
    filters = [parse_filter(text) for text in where]
    optional = ["segment", "time"]
    if titles is None:
        optional.append("title")
    if weighting != "binary":
        optional.append("weight")

    with (
        input_files(paths) as files,
        input_files(title_paths) as title_files,
        pl.Config(streaming_chunk_size=_ROWS_AT_ONCE),
        data_errors(source, files),
    ):
        inputs = open_inputs(
            files,
            source,
            form or Format(),
            named=named if titles is None else replace(named, title=None),
            event_weights=event_weights,
            filters=filters,
            optional=optional,
        )
        rows = Rows(inputs.schemas, source, repeated=TEXT_ROLES)
        facts = read_facts(rows.kept)
        if facts.first is None and half_life is not None:
            raise DataError(f"{source} has no times for the half-life; name their column with --time-column.")

        chosen = _with_few_segments(inputs.columns, facts.segments, is_named=named.segment is not None)
        has_cancellations = facts.cancellations > 0
        log = group_log(rows.kept, chosen, weighting, source, has_cancellations=has_cancellations)

        segments = None
        user_segments = None
        if chosen.segment is not None:
            segments = count_users_by_segment(rows.kept, log if has_cancellations else None)
            user_segments = most_frequent(rows.kept, "user", "segment", pl.col("segment").cast(pl.String))

        title_rows = rows.kept
        if titles is not None:
            columns_of_titles = {"item": chosen.item, "title": named.title}
            title_source = named_paths(title_paths)
            title_rows = texts_by_role(title_files, title_source, ["item", "title"], columns_of_titles).lazy()

        notes = [
            *inputs.notes,
            *notes_of_columns(inputs.schemas[0].table, inputs.columns, facts),
            *notes_of_rows(rows, facts, chosen),
            *notes_of_events(rows, event_weights or {}),
            *notes_of_log(log, chosen),
        ]
        return Interactions(
            log=log,
            weighing=weighing,
            titles=most_frequent_titles(title_rows),
            segments=segments,
            user_segments=user_segments,
            rows=rows.total,
            left_out=rows.left_out,
            fingerprint=fingerprint([*files, *title_files]),
            time_range=facts.time_range,
            columns=chosen,
            notes=notes,
        )


def _with_few_segments(columns: Columns, count: int, *, is_named: bool) -> Columns:
    """Leave out a segment column of too many values (*count*); DataError if it *is_named*."""
    if count <= MAX_SEGMENTS:
        return columns
    if is_named:
        raise DataError(f"{describe_segments(columns, count)}; name a column with fewer.")
    return replace(columns, segment=None)
