"""How the rows of a log become the values of interactions: user, item, weight, time and others, by role."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
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


class InputOptions(NamedTuple):
    """How to read tables.

    columns         as named by the caller or, once a table is open, those found in it
    event_weights   by kind of event, None if rows are not weighed by event
    guesses_title   whether a column with a usual name may be the title, unless one is named
    guesses_weight  the same for the weight
    """

    columns: Columns
    event_weights: Mapping[str, float] | None
    filters: Sequence[Filter]
    guesses_title: bool
    guesses_weight: bool


class Input(NamedTuple):
    """A table, how to read it, sentences on what is wrong with it, and the number of rows without a weight by event."""

    table: Table
    options: InputOptions
    notes: Sequence[str] = ()
    unweighted: Mapping[str | None, int] = MappingProxyType({})


def open_inputs(files: Sequence[DataFile], options: InputOptions, form: Format, source: str) -> list[Input]:
    """Open *files*: a table for each log, then one for all events, each with its columns, weights and filters.

    A log is a file of the caller's; all have the columns of the first. Events are files that the service recorded, with
    columns of known names. *options* are those of the caller. *source* names the files in messages. Raises DataError,
    and SettingError for events without weights.
    """
    logs = [file for file in files if file.kind != "events"]
    event_files = [file for file in files if file.kind == "events"]

    inputs = list[Input]()
    reads_times = options.columns.time != NO_TIMES
    if logs:
        tables = open_tables(logs, form)
        log_options = _options_for_logs(list(tables[0].schema), options, source, with_events=bool(event_files))
        inputs += [Input(table, log_options) for table in tables]
        # If the logs have no times, those of the events are not read either.
        reads_times = log_options.columns.time is not None

    if event_files:
        if options.event_weights is None:
            raise SettingError(f"{source} holds events of several types; weigh them, as --event-weights click=1,buy=5.")
        events = read_events(event_files, form, options.event_weights)
        columns = Columns(user="user", item="item", event="event", time="time" if reads_times else None)

        filters = list(options.filters)
        if logs:
            # A filter on a column that only the logs have does not apply to events. Without logs, it is an error.
            known = {name.casefold() for name in events.table.schema}
            filters = [row_filter for row_filter in filters if row_filter.column.casefold() in known]

        event_options = options._replace(columns=columns, filters=filters)
        inputs.append(Input(events.table, event_options, events.notes, events.unweighted))
    return inputs


def _options_for_logs(names: Sequence[str], options: InputOptions, source: str, *, with_events: bool) -> InputOptions:
    """Return *options* with the columns of a log by role, their meaning: those that the caller named, else usual names.

    User and time are roles; *names* are the columns that the log has. With event weights, it needs a column of events,
    such as `click` and `buy`. But if the input also has events that the service recorded (*with_events*), a log without
    that column is read without event weights. Raises DataError for a missing column, SettingError for contradictory
    weights.
    """
    named = options.columns

    # The weights may be meant for the recorded events alone.
    event_weights = options.event_weights
    has_events = named.event is not None or usual_column("event", names) is not None
    if with_events and not has_events:
        event_weights = None
    _check_weights(named, event_weights)

    required = ["user", "item"]
    if event_weights is not None:
        required.append("event")

    optional = ["segment", "time"]
    if options.guesses_title:
        optional.append("title")
    if options.guesses_weight and event_weights is None and named.count is None:
        optional.append("weight")

    chosen = choose_columns(asdict(named), names, source, required=required, optional=optional)
    columns = replace(Columns(**chosen), quantity=usual_column("quantity", names))
    return options._replace(columns=columns, event_weights=event_weights)


def _check_weights(columns: Columns, event_weights: Mapping[str, float] | None) -> None:
    """Raise SettingError if a row's weight is defined twice, or by an event that has no weights."""
    sources = (columns.weight, columns.count, event_weights)
    if sum(source is not None for source in sources) > 1:
        raise SettingError("A row's weight has several sources; give a weight column, a count column or event weights.")
    if columns.event is not None and event_weights is None:
        raise SettingError(f"The event column {columns.event!r} needs event weights, such as view=1,cart=3,buy=5.")


def interaction_schema(table_input: Input) -> RowSchema:
    """Declare how the rows of a table become values by role (user, item, weight), and which rows are left out."""
    table = table_input.table
    options = table_input.options
    columns = options.columns
    named = {role: name for role, name in asdict(columns).items() if name is not None}
    schema = RowSchema(table)
    for row_filter in options.filters:
        schema.keep(f"not {row_filter.text}", row_filter.condition(table), row_filter.column_in(table))
    schema.read({role: name for role, name in named.items() if role in TEXT_ROLES})

    if options.event_weights is not None:
        event = table.text(columns.event)
        schema.values["weight"] = event.replace_strict(options.event_weights, default=None, return_dtype=pl.Float64)
        schema.checks.append(Check(UNKNOWN_EVENT, pl.col("weight").is_null(), example="event"))
        schema.counted[UNKNOWN_EVENT] = table_input.unweighted
    elif columns.weight is not None:
        schema.read({"weight": columns.weight})
        schema.checks.append(Check("weight zero or less", pl.col("weight") <= 0))
    else:
        schema.values["weight"] = pl.lit(1.0)

    schema.read({role: name for role, name in named.items() if role in ("quantity", "time")})
    if columns.quantity is not None:
        # A cancellation needs no weight.
        is_cancellation = table.number(columns.quantity) < 0
        schema.values["weight"] = pl.when(is_cancellation).then(1.0).otherwise(schema.values["weight"])
    return schema
