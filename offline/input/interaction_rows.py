"""How the rows of a log become the values of interactions: user, item, weight, time and others, by role."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple

import polars as pl

from hotplate.offline.errors import SettingError
from hotplate.offline.input.columns import EARLIEST, NO_TIMES, START_OF_1970, choose_columns, usual_column
from hotplate.offline.input.files import DataFile
from hotplate.offline.input.filters import Filter
from hotplate.offline.input.notes import UNKNOWN_EVENT
from hotplate.offline.input.recorded_events import read_events
from hotplate.offline.input.rows import Fault, RowSchema, number_fault
from hotplate.offline.input.tables import Table, open_tables
from hotplate.offline.options import Columns, Format

# Roles whose values are texts, and those of ids.
TEXT_ROLES = ("user", "item", "title", "segment", "count", "event")
_ID_ROLES = ("user", "item", "segment")
_BAD_TIME = "time that cannot be read"
_BAD_WEIGHT = "weight that is not a number"
_BAD_QUANTITY = "quantity that is not a number"
_FUTURE_TIME = "in the future"
_USUAL_TIMES = "ISO 8601 or seconds since 1970; give --time-format, as %d/%m/%Y, or --time-column none"


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

    # Roles that get a column with a usual name unless the caller named one.
    guessed = [*required, "segment", "time"]
    if options.guesses_title:
        guessed.append("title")
    if options.guesses_weight and event_weights is None and named.count is None:
        guessed.append("weight")

    chosen = choose_columns(asdict(named), names, source, guessed=guessed, required=required)
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
    schema = RowSchema(table)

    for row_filter in options.filters:
        schema.filters[f"not {row_filter.text}"] = row_filter.on(table)

    # A row counts for the first reason to leave it out, in the order in which they are added here.
    _add_texts(schema, options.columns)
    _add_weight(schema, options)
    if table_input.unweighted:
        schema.counted[UNKNOWN_EVENT] = table_input.unweighted
    if options.columns.quantity is not None:
        _add_quantity(schema, options.columns.quantity)
    if options.columns.time is not None:
        add_time(schema, options.columns.time)
    return schema


def _add_texts(schema: RowSchema, columns: Columns) -> None:
    """Add user, item and other texts to the values of *schema*, by role (the meaning of a column).

    *columns* have the names of columns by role, None for those not read. Rows without a user or item, rows with an
    unusable id, and header lines within the data are left out.
    """
    names = {role: name for role, name in asdict(columns).items() if role in TEXT_ROLES and name is not None}
    for role, name in names.items():
        schema.values[role] = schema.table.text(name)

    schema.leave_out_bad_ids({role: names[role] for role in _ID_ROLES if role in names})

    # In a file that was joined from several, the other headers are rows with the columns' names as values.
    is_header = (pl.col("user") == names["user"]) & (pl.col("item") == names["item"])
    schema.left_out["header again"] = is_header.fill_null(value=False)


def _add_weight(schema: RowSchema, options: InputOptions) -> None:
    """Add the weight of a row to the values of *schema*: the weight of its kind of event, its number, or 1.

    Rows without a weight, or with one of zero or less, are left out. A weight that is not a number makes a bad row. If
    *options* name a column to count, such as orders, rows without a value in it are left out, too. In the conditions
    of `left_out`, `pl.col` names a value of the schema, not a column of the file.
    """
    columns = options.columns
    if columns.count is not None:
        schema.left_out[f"no {columns.count}"] = pl.col("count").is_null()

    if options.event_weights is not None:
        event = schema.table.text(columns.event)
        weight = event.replace_strict(options.event_weights, default=None, return_dtype=pl.Float64)
        schema.values["weight"] = weight
        schema.left_out[UNKNOWN_EVENT] = pl.col("weight").is_null()
        schema.examples[UNKNOWN_EVENT] = "event"  # an error lists the most frequent of these events
    elif columns.weight is not None:
        schema.add_number("weight", columns.weight, missing="no weight", invalid=_BAD_WEIGHT)
        schema.left_out["weight zero or less"] = pl.col("weight") <= 0
    else:
        schema.values["weight"] = pl.lit(1.0)


def _add_quantity(schema: RowSchema, column: str) -> None:
    """Add the quantity of a row to the values of *schema*, from *column*: 1 if it is missing or 0.

    A quantity that is not a number makes a bad row. A row with a quantity below 0 cancels earlier purchases, and needs
    no weight: its weight becomes 1, so that it is not left out for a missing one. The schema has the weight already.
    """
    quantity = schema.table.number_or_inf(column)
    schema.values["quantity"] = pl.when(quantity != 0).then(quantity).otherwise(1.0)

    # Here `pl.col` names a value of the schema, which is infinite for other texts than numbers.
    is_no_number = ~pl.col("quantity").is_finite()
    schema.leave_out_bad(_BAD_QUANTITY, is_no_number, number_fault(column))

    schema.values["weight"] = pl.when(quantity < 0).then(1.0).otherwise(schema.values["weight"])


def add_time(schema: RowSchema, column: str) -> None:
    """Add two values to *schema*: `time`, null if missing or unreadable, and `timeless`, whether it is missing.

    Times are read from *column*. Exports write a missing time as the start of 1970, so it counts as missing, and the
    row is kept. A time that cannot be read, one before 1971, and one in the future make a bad row, which is left out.
    """
    time = schema.table.time(column)
    schema.values["time"] = pl.when(time >= EARLIEST).then(time)
    schema.values["timeless"] = schema.table.is_absent(column) | (time == START_OF_1970).fill_null(value=False)

    # In conditions, `pl.col` names a value of the schema: here the two from above.
    layout = schema.table.form.time_format or _USUAL_TIMES
    is_unread = pl.col("time").is_null() & ~pl.col("timeless")
    schema.leave_out_bad(_BAD_TIME, is_unread, Fault(column, f"is not a time as {layout}"))

    # Ages count from the newest row. A day allows for time zones.
    latest = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
    schema.leave_out_bad(_FUTURE_TIME, pl.col("time") > latest, Fault(column, "lies in the future"))
