"""Interactions read from files; rows left out are counted by reason.

A row of input says that a user chose an item. `log` groups the rows that count by user, item and time. Columns are
found by their role: `user`, `item`, `weight`, `time`, `title`, `segment` (a group of users, such as a country), `event`
(the kind of interaction, such as `buy`), `count` and `quantity`, of which negative ones are cancellations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

import polars as pl

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import NO_TIMES, choose_columns, usual_column
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import DataFile, DataSource, fingerprint, input_files, named_paths
from hotplate.offline.input.filters import Filter, parse_filter
from hotplate.offline.input.grouping import count_users_by_segment, group_log
from hotplate.offline.input.history import Weighing, Weighting
from hotplate.offline.input.notes import (
    MAX_SEGMENTS,
    UNKNOWN_EVENT,
    describe_segments,
    notes_of_columns,
    notes_of_events,
    notes_of_log,
    notes_of_rows,
    read_facts,
)
from hotplate.offline.input.recorded_events import read_events
from hotplate.offline.input.rows import Check, Rows, RowSchema, read_titles
from hotplate.offline.input.tables import Table, open_tables
from hotplate.offline.options import Columns, Format

# As fast as the default of polars, with less memory.
_ROWS_AT_ONCE = 20_000
# Roles whose values are texts.
_TEXT_ROLES = ("user", "item", "title", "segment", "count", "event")


@dataclass(frozen=True, slots=True)
class Interactions:
    """The rows that count, grouped.

    log          [user, item: categorical, weight: f64 > 0, perhaps time: datetime (naive UTC)], one row per user, item
                 and time, in no order; after cancellations also ended: their time, or null
    titles       by item, as far as known
    segments     [segment, item, day: i64 since 1970 or null, weight: f64, the number of the segment's users who first
                 had the item that day], or None
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
        inputs = _open_inputs(
            files,
            source,
            form or Format(),
            named=named if titles is None else replace(named, title=None),
            event_weights=event_weights,
            filters=filters,
            optional=optional,
        )
        rows = Rows(inputs.schemas, source, repeated=_TEXT_ROLES)
        facts = read_facts(rows.kept)
        if facts.first is None and half_life is not None:
            raise DataError(f"{source} has no times for the half-life; name their column with --time-column.")

        chosen = inputs.columns
        if facts.segments > MAX_SEGMENTS:
            if named.segment is not None:
                raise DataError(f"{describe_segments(chosen, facts.segments)}; name a column with fewer.")
            chosen = replace(chosen, segment=None)

        has_cancellations = facts.cancellations > 0
        log = group_log(rows.kept, chosen, weighting, source, has_cancellations=has_cancellations)

        segments = None
        if chosen.segment is not None:
            segments = count_users_by_segment(rows.kept, log if has_cancellations else None)

        columns_of_titles = {"item": chosen.item, "title": named.title}
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
            titles=read_titles(title_files, named_paths(title_paths), columns_of_titles, rows.kept),
            segments=segments,
            rows=rows.total,
            left_out=rows.left_out,
            fingerprint=fingerprint([*files, *title_files]),
            time_range=facts.time_range,
            columns=chosen,
            notes=notes,
        )


class _Inputs(NamedTuple):
    """How to read the rows of all tables, the *columns* of the first one, and sentences on faults of events."""

    schemas: Sequence[RowSchema]
    columns: Columns
    notes: Sequence[str]


def _open_inputs(
    files: Sequence[DataFile],
    source: str,
    form: Format,
    *,
    named: Columns,
    event_weights: Mapping[str, float] | None,
    filters: Sequence[Filter],
    optional: Sequence[str],
) -> _Inputs:
    """Open *files*: a table for each log, then one for all events, each with its columns, weights and filters.

    A log is a file of the caller's; all have the columns of the first. Events are files that the service recorded, with
    columns of known names. *source* names the files in messages. *named* are the columns that the caller names, and
    *optional* other roles that are found by usual names. Raises DataError, and SettingError for contradictory weights.
    """
    logs = [file for file in files if file.kind != "events"]
    event_files = [file for file in files if file.kind == "events"]
    if event_files and event_weights is None:
        raise SettingError(f"{source} holds events of several types; weigh them, as --event-weights click=1,buy=5.")

    schemas = list[RowSchema]()
    columns = Columns(user="user", item="item", event="event", time="time")
    if named.time == NO_TIMES:
        columns = replace(columns, time=None)
    event_columns = columns
    if logs:
        tables = open_tables(logs, form)
        names = list(tables[0].schema)
        # The weights may be meant for the recorded events alone.
        has_events = named.event is not None or usual_column("event", names) is not None
        log_weights = event_weights if has_events or not event_files else None
        columns = _columns_of_logs(names, named, log_weights, optional, source)
        schemas += [_interaction_schema(table, columns, log_weights, filters) for table in tables]
        # If the logs have no times, those of the events are not read either.
        event_columns = replace(event_columns, time=columns.time and event_columns.time)

    notes = list[str]()
    if event_files and event_weights is not None:
        events = read_events(event_files, form, event_weights)
        notes += events.notes
        if logs:
            # A filter on a column that only the logs have does not apply to events. Without logs, it is an error.
            known = {name.casefold() for name in events.table.schema}
            filters = [row_filter for row_filter in filters if row_filter.column.casefold() in known]
        schema = _interaction_schema(events.table, event_columns, event_weights, filters)
        schema.counted[UNKNOWN_EVENT] = events.unweighted
        schemas.append(schema)
    return _Inputs(schemas, columns, notes)


def _columns_of_logs(
    names: Sequence[str],
    named: Columns,
    event_weights: Mapping[str, float] | None,
    optional: Sequence[str],
    source: str,
) -> Columns:
    """Return the columns of a log by role: those that the caller *named*, else usual ones among *names*.

    With event weights, it needs a column of events, such as `click` and `buy`. Raises DataError for a missing column,
    SettingError if a row's weight is defined twice, or by an event that has no weights.
    """
    if sum(weights is not None for weights in (named.weight, named.count, event_weights)) > 1:
        raise SettingError("A row's weight has several sources; give a weight column, a count column or event weights.")
    if named.event is not None and event_weights is None:
        raise SettingError(f"The event column {named.event!r} needs event weights, such as view=1,cart=3,buy=5.")

    required = ["user", "item"]
    if event_weights is not None:
        required.append("event")
    if event_weights is not None or named.count is not None:
        optional = [role for role in optional if role != "weight"]
    chosen = choose_columns(asdict(named), names, source, required=required, optional=optional)
    return replace(Columns(**chosen), quantity=usual_column("quantity", names))


def _interaction_schema(
    table: Table, columns: Columns, event_weights: Mapping[str, float] | None, filters: Sequence[Filter]
) -> RowSchema:
    """Declare how the rows of a table become values by role (user, item, weight), and which rows are left out."""
    schema = RowSchema(table)
    for row_filter in filters:
        schema.keep(f"not {row_filter.text}", row_filter.condition(table), row_filter.column_in(table))

    if event_weights is not None:
        schema.checks[UNKNOWN_EVENT] = Check(pl.col("weight").is_null(), example="event")
    elif columns.weight is not None:
        schema.checks["weight zero or less"] = Check(pl.col("weight") <= 0)
    named = {role: name for role, name in asdict(columns).items() if name is not None}
    schema.read(named)
    schema.values.setdefault("weight", pl.lit(1.0))
    if event_weights is not None:
        weight = table.text(named["event"]).replace_strict(event_weights, default=None, return_dtype=pl.Float64)
        schema.values["weight"] = weight

    if columns.quantity is not None:
        # A cancellation needs no weight.
        is_cancellation = table.number(columns.quantity) < 0
        schema.values["weight"] = pl.when(is_cancellation).then(1.0).otherwise(schema.values["weight"])
    return schema
