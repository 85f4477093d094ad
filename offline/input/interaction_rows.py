"""How the rows of a log become the values of interactions: user, item, weight, time and others, by role."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import polars as pl

from hotplate.offline.errors import SettingError
from hotplate.offline.input.columns import NO_TIMES, choose_columns, usual_column
from hotplate.offline.input.files import DataFile
from hotplate.offline.input.filters import Filter
from hotplate.offline.input.notes import UNKNOWN_EVENT
from hotplate.offline.input.recorded_events import read_events
from hotplate.offline.input.rows import Check, RowSchema
from hotplate.offline.input.tables import Table, open_tables
from hotplate.offline.options import Columns, Format

# Roles whose values are texts.
TEXT_ROLES = ("user", "item", "title", "segment", "count", "event")


class Inputs(NamedTuple):
    """How to read the rows of all tables, the *columns* of the first one, and sentences on faults of events."""

    schemas: Sequence[RowSchema]
    columns: Columns
    notes: Sequence[str]


def open_inputs(
    files: Sequence[DataFile],
    source: str,
    form: Format,
    *,
    named: Columns,
    event_weights: Mapping[str, float] | None,
    filters: Sequence[Filter],
    optional: Sequence[str],
) -> Inputs:
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
    return Inputs(schemas, columns, notes)


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

    named = {role: name for role, name in asdict(columns).items() if name is not None}
    schema.read({role: name for role, name in named.items() if role in TEXT_ROLES})
    if event_weights is not None:
        weight = table.text(named["event"]).replace_strict(event_weights, default=None, return_dtype=pl.Float64)
        schema.values["weight"] = weight
        schema.checks[UNKNOWN_EVENT] = Check(pl.col("weight").is_null(), example="event")
    elif columns.weight is not None:
        schema.read({"weight": columns.weight})
        schema.checks["weight zero or less"] = Check(pl.col("weight") <= 0)
    else:
        schema.values["weight"] = pl.lit(1.0)

    schema.read({role: name for role, name in named.items() if role in ("quantity", "time")})
    if columns.quantity is not None:
        # A cancellation needs no weight.
        is_cancellation = table.number(columns.quantity) < 0
        schema.values["weight"] = pl.when(is_cancellation).then(1.0).otherwise(schema.values["weight"])
    return schema
