"""Interactions read from files; rows left out are counted by reason.

A row of input says that a user chose an item. `log` groups the rows that count by user, item and time. Columns are
found by their role: `user`, `item`, `weight`, `time`, `title`, `segment` (a group of users, such as a country), `event`
(the kind of interaction, such as `buy`), `count` and `quantity`, of which negative ones are cancellations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
import polars as pl

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.cancellations import split_cancelled_purchases
from hotplate.offline.input.columns import EARLIEST, NO_TIMES, choose_columns, usual_column
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import (
    DataFile,
    DataSource,
    fingerprint,
    input_files,
    named_paths,
)
from hotplate.offline.input.matrix import Weighing, Weighting
from hotplate.offline.input.notes import (
    MAX_SEGMENTS,
    UNKNOWN_EVENT,
    Facts,
    describe_segments,
    fact_aggregates,
    notes_of_columns,
    notes_of_events,
    notes_of_log,
    notes_of_rows,
    notes_of_segments,
)
from hotplate.offline.input.tables import (
    EXTRA,
    NOT_FINITE,
    ROW,
    Fault,
    Filter,
    Rows,
    RowSchema,
    Table,
    most_frequent_titles,
    open_tables,
    parse_filter,
    read_segment,
    texts_by_role,
)
from hotplate.offline.options import Columns, Format

_EVENT_SCHEMA: dict[str, pl.DataType] = {
    **dict.fromkeys(("id", "user", "type", "release", "role"), pl.String()),
    "items": pl.List(pl.String()),
    "time": pl.Float64(),
    "position": pl.Int64(),
}
# Roles whose values are texts, and those of ids.
_TEXT_ROLES = ("user", "item", "title", "segment", "count", "event")
_ID_ROLES = ("user", "item", "segment")
_BAD_TIME = "time that cannot be read"
_BAD_WEIGHT = "weight that is not a number"
_BAD_QUANTITY = "quantity that is not a number"
_FUTURE_TIME = "in the future"
_USUAL_TIMES = "ISO 8601 or seconds since 1970; give --time-format, as %d/%m/%Y, or --time-column none"
_START_OF_1970 = datetime(1970, 1, 1)  # noqa: DTZ001 -- naive UTC
# As fast as the default of polars, with less memory.
_ROWS_AT_ONCE = 20_000


class _InputOptions(NamedTuple):
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


class _Input(NamedTuple):
    """A table, how to read it, and sentences on what is wrong with it."""

    table: Table
    options: _InputOptions
    notes: Sequence[str] = ()


class _Events(NamedTuple):
    """A row for each item of each recorded event, and sentences on events that are left out."""

    table: Table
    notes: Sequence[str]


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
    contradictory options.
    """
    source = named_paths(paths)
    title_paths = [] if titles is None else [titles]
    named = columns or Columns()
    options = _InputOptions(
        columns=named if titles is None else replace(named, title=None),
        event_weights=event_weights,
        filters=[parse_filter(text) for text in where],
        guesses_title=titles is None,
        guesses_weight=weighting != "binary",
    )
    with (
        input_files(paths) as files,
        input_files(title_paths) as title_files,
        pl.Config(streaming_chunk_size=_ROWS_AT_ONCE),
        data_errors(source, files),
    ):
        inputs = _open_inputs(files, options, form or Format(), source)
        rows = _read_rows(inputs, source)
        facts = msgspec.convert(rows.facts, Facts)
        if facts.first is None and half_life is not None:
            raise DataError(f"{source} has no times for the half-life; name their column with --time-column.")

        columns_read = inputs[0].options.columns
        chosen = _with_few_segments(columns_read, facts.segments, is_named=named.segment is not None)
        has_cancellations = facts.cancellations > 0
        log = _group_log(rows.kept, chosen, weighting, source, has_cancellations=has_cancellations)
        segments = None
        user_segments = None
        if chosen.segment is not None:
            segments = _users_by_segment(rows.kept, log if has_cancellations else None)
            user_segments = _most_frequent_segments(rows.kept)

        title_rows = rows.kept
        if titles is not None:
            title_columns = {"item": chosen.item, "title": named.title}
            title_rows = texts_by_role(title_files, named_paths(title_paths), [*title_columns], title_columns).lazy()

        notes = [note for table_input in inputs for note in table_input.notes]
        notes += notes_of_segments(columns_read, facts)
        notes += notes_of_columns(inputs[0].table, chosen)
        notes += notes_of_rows(rows, facts, chosen)
        notes += notes_of_events(rows, event_weights)
        notes += notes_of_log(log, chosen)
        return Interactions(
            log=log,
            weighing=Weighing(weighting, half_life),
            titles=most_frequent_titles(title_rows, source),
            segments=segments,
            user_segments=user_segments,
            rows=rows.total,
            left_out=rows.left_out,
            fingerprint=fingerprint([*files, *title_files]),
            time_range=facts.time_range,
            columns=chosen,
            notes=notes,
        )


def _read_rows(inputs: Sequence[_Input], source: str) -> Rows:
    """Read the rows of all tables, and compute the aggregates of `Facts`; *source* names the data in errors."""
    columns = inputs[0].options.columns
    schemas = [_interaction_schema(table_input) for table_input in inputs]
    return Rows(schemas, source, *fact_aggregates(columns), repeated=_TEXT_ROLES)


def _open_inputs(files: Sequence[DataFile], options: _InputOptions, form: Format, source: str) -> list[_Input]:
    """Open *files*: a table for each log, then one for all events, each with its columns, weights and filters.

    Logs are files of the user's, with the columns of the first. Events are files that the service recorded. *source*
    names the files in messages. Raises DataError, and SettingError for events without weights.
    """
    logs = [file for file in files if file.kind != "events"]
    event_files = [file for file in files if file.kind == "events"]
    if event_files and options.event_weights is None:
        raise SettingError(f"{source} holds events of several types; weigh them, as --event-weights click=1,buy=5.")

    inputs = list[_Input]()
    reads_times = options.columns.time != NO_TIMES
    if logs:
        tables = open_tables(logs, form)
        log_options = _options_for_logs(list(tables[0].schema), options, source, with_events=bool(event_files))
        inputs += [_Input(table, log_options) for table in tables]
        # If the logs have no times, those of the events are not read either.
        reads_times = log_options.columns.time is not None

    if event_files:
        events = _read_events(event_files, form)
        columns = Columns(user="user", item="item", event="event", time="time" if reads_times else None)
        filters = list(options.filters)
        if logs:
            # A filter on a column that only the logs have does not apply to events. Without logs, it is an error.
            filters = [row_filter for row_filter in filters if row_filter.column in events.table.schema]
        inputs.append(_Input(events.table, options._replace(columns=columns, filters=filters), events.notes))
    return inputs


def _options_for_logs(names: Sequence[str], options: _InputOptions, source: str, *, with_events: bool) -> _InputOptions:
    """Return *options* with the columns of a log: those that the caller named, and else those with usual names.

    *names* are the columns that the log has. `guessed` roles are found by usual names, if the log has them; `required`
    ones must exist. With event weights, it needs a column of events, such as `click` and `buy`. But if the input has
    recorded events, too (*with_events*), a log without that column is read without event weights. Raises DataError for
    a missing column, SettingError for contradictory weights.
    """
    named = options.columns
    event_weights = options.event_weights
    has_events = named.event is not None or usual_column("event", names) is not None
    if with_events and not has_events:
        event_weights = None
    _check_weights(named, event_weights)

    required = ["user", "item"]
    if event_weights is not None:
        required.append("event")

    guessed = [*required, "segment"]
    if named.time == NO_TIMES:
        named = replace(named, time=None)
    else:
        guessed.append("time")
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


def _read_events(files: Sequence[DataFile], form: Format) -> _Events:
    """Read *files* in which the service recorded events.

    An event that a client sent again has the same id, and counts once.
    """
    frames = [pl.DataFrame(schema=_EVENT_SCHEMA)]
    damaged = 0
    for file in files:
        segment = read_segment(file, _EVENT_SCHEMA)
        frames.append(segment.events)
        damaged += segment.damaged

    all_events = pl.concat(frames)
    events = all_events.unique("id", keep="first", maintain_order=True)
    repeated = all_events.height - events.height
    notes = list[str]()
    if repeated:
        notes.append(f"{repeated:,} events were sent again under the same id and are left out")
    if damaged:
        notes.append(f"{damaged:,} events, or pieces of segments, are damaged and are left out")

    rows = events.explode("items").select("user", "time", "release", "role", "position", item="items", event="type")
    frame = rows.lazy().with_row_index(ROW).with_columns(pl.lit(None, pl.String).alias(EXTRA))
    table = Table(file=files[0], frame=frame, schema=dict(rows.schema), form=Format(max_bad_rows=form.max_bad_rows))
    return _Events(table, notes)


def _interaction_schema(table_input: _Input) -> RowSchema:
    """Declare how the rows of a table become values by role (user, item, weight), and which rows are left out."""
    table = table_input.table
    options = table_input.options
    schema = RowSchema(table)
    for row_filter in options.filters:
        schema.filters[f"where {row_filter.text}"] = row_filter.condition(table)

    _add_texts(schema, options.columns)
    _add_weight(schema, options)
    if options.columns.quantity is not None:
        _add_quantity(schema, options.columns.quantity)
    if options.columns.time is not None:
        _add_time(schema, options.columns.time)
    return schema


def _add_texts(schema: RowSchema, columns: Columns) -> None:
    """Add user, item and other texts to the values of *schema*, by role: those that *columns* name.

    Rows without a user or item, with unusable ids, and header lines within the data are left out.
    """
    names = {role: name for role, name in asdict(columns).items() if role in _TEXT_ROLES and name is not None}
    for role, name in names.items():
        schema.values[role] = schema.table.text(name)
    schema.leave_out_bad_ids({role: names[role] for role in _ID_ROLES if role in names})
    is_header = (pl.col("user") == names["user"]) & (pl.col("item") == names["item"])
    schema.left_out["header again"] = is_header.fill_null(value=False)


def _add_weight(schema: RowSchema, options: _InputOptions) -> None:
    """Add the weight of a row to the values of *schema*: that of its event, its column of weights, or 1.

    `left_out` are conditions over the values, in which `pl.col` names a value: rows without a weight, or with one of
    zero or less, are left out, and with a count column, rows without a value to count. A weight that is not a number
    makes a bad row.
    """
    columns = options.columns
    if columns.count is not None:
        schema.left_out[f"no {columns.count}"] = pl.col("count").is_null()
    if options.event_weights is not None:
        event = schema.table.text(columns.event)
        weight = event.replace_strict(options.event_weights, default=None, return_dtype=pl.Float64)
        schema.values["weight"] = weight
        schema.left_out[UNKNOWN_EVENT] = pl.col("weight").is_null()
        schema.examples[UNKNOWN_EVENT] = "event"
    elif columns.weight is not None:
        schema.add_number("weight", columns.weight, missing="no weight", invalid=_BAD_WEIGHT)
        schema.left_out["weight zero or less"] = pl.col("weight") <= 0
    else:
        schema.values["weight"] = pl.lit(1.0)


def _add_quantity(schema: RowSchema, column: str) -> None:
    """Add the quantity of a row to the values of *schema*, from *column*: 1 if it is missing or 0.

    A quantity that is not a number makes a bad row. A quantity below 0 cancels purchases, and its row needs no weight:
    the weight, which is already among the values, becomes 1 in such rows, so they are not left out for it.
    """
    quantity = schema.table.number_or_inf(column)
    schema.values["quantity"] = pl.when(quantity != 0).then(quantity).otherwise(1.0)
    is_no_number = ~pl.col("quantity").is_finite()
    schema.leave_out_bad(_BAD_QUANTITY, is_no_number, Fault(column, NOT_FINITE))
    schema.values["weight"] = pl.when(quantity < 0).then(1.0).otherwise(schema.values["weight"])


def _add_time(schema: RowSchema, column: str) -> None:
    """Add the time of a row, null if it is missing, and whether it is missing (`timeless`) to the values of *schema*.

    *column* is that of the times. Exports write a missing time as 1970, so the start of 1970 is no time. An unreadable
    time, one before 1971, and one in the future make a bad row; in these conditions, `pl.col` names a value.
    """
    time = schema.table.time(column)
    schema.values["time"] = pl.when(time >= EARLIEST).then(time)
    schema.values["timeless"] = schema.table.is_absent(column) | (time == _START_OF_1970).fill_null(value=False)
    layout = schema.table.form.time_format or _USUAL_TIMES
    is_unread = pl.col("time").is_null() & ~pl.col("timeless")
    schema.leave_out_bad(_BAD_TIME, is_unread, Fault(column, f"is not a time as {layout}"))
    # Ages count from the newest row. A day allows for time zones.
    latest = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
    schema.leave_out_bad(_FUTURE_TIME, pl.col("time") > latest, Fault(column, "lies in the future"))


def _group_log(
    kept: pl.LazyFrame, columns: Columns, weighting: Weighting, source: str, *, has_cancellations: bool
) -> pl.DataFrame:
    """Group the rows *kept* by user, item and, if there are times, time: [user, item, weight, perhaps time].

    For weights, see `_group_weights`. Cancellations are rows with a quantity below 0. What they cancel is in separate
    rows, with the time of the cancellation as `ended`. *source* names the data in the DataError that is raised if all
    purchases were cancelled.
    """
    key = ["user", "item"]
    if columns.time is not None:
        key.append("time")
    if not has_cancellations:
        return _group_weights(kept, key, columns, weighting).collect(engine="streaming")

    kept = kept.with_columns(pl.col("quantity").fill_null(1.0))  # events have none
    purchases = kept.filter(pl.col("quantity") > 0)
    bought = _group_weights(purchases, key, columns, weighting, with_quantity=True)
    cancelled = kept.filter(pl.col("quantity") < 0).group_by(key).agg(pl.col("quantity").sum())
    frames = [frame.collect(engine="streaming") for frame in (bought, cancelled)]
    log = split_cancelled_purchases(pl.concat(frames, how="diagonal"))
    if log.is_empty():
        raise DataError(f"Nothing is left of {source}: all that was bought was cancelled.")
    return log


def _group_weights(
    rows: pl.LazyFrame, key: Sequence[str], columns: Columns, weighting: Weighting, *, with_quantity: bool = False
) -> pl.LazyFrame:
    """Group *rows* by the columns *key* (user, item, perhaps time): their weight and, *with_quantity*, its sum.

    The weight is the sum of the rows' weights. With a column of *columns* to count, such as orders, it is the number of
    different values in that column instead. A value that a user and an item have at several times counts once, at the
    first of them.
    """
    quantity = [pl.col("quantity").sum()] if with_quantity else []
    if columns.count is not None:
        first_time = [pl.col("time").min()] if "time" in key else []
        counted_values = rows.group_by("user", "item", "count").agg(*first_time, *quantity)
        number = pl.len().cast(pl.Float64)
        return counted_values.group_by(key).agg(number.alias("weight"), *quantity)

    if weighting == "binary" and not with_quantity:
        # The weight becomes 1 later, and this is faster than a sum.
        return rows.select(key).unique().with_columns(weight=pl.lit(1.0))
    return rows.group_by(key).agg(pl.col("weight").sum(), *quantity)


def _with_few_segments(columns: Columns, count: int, *, is_named: bool) -> Columns:
    """Leave out a segment column of too many values (*count*); DataError if it *is_named*."""
    if count <= MAX_SEGMENTS:
        return columns
    if is_named:
        raise DataError(f"{describe_segments(columns, count)}; name a column with fewer.")
    return replace(columns, segment=None)


def _users_by_segment(kept: pl.LazyFrame, log: pl.DataFrame | None) -> pl.DataFrame:
    """Count the users of each segment (a group, such as a country) who first had an item on a day.

    *kept* are the rows of the input [user, item, segment, perhaps time and quantity]. *log* is their grouped log if
    there were cancellations, else None. With it, users count only for items of which a purchase was not cancelled: its
    `ended` is null. Returns [segment, item, day since 1970 or null, weight: the number of users].
    """
    if log is not None:
        uncancelled = log.filter(pl.col("ended").is_null()) if "ended" in log.columns else log
        pairs = uncancelled.select("user", "item").unique().lazy()
        kept = kept.filter(pl.col("quantity").fill_null(1.0) > 0).join(pairs, on=["user", "item"], how="semi")

    first_day = pl.lit(None)
    if "time" in kept.collect_schema():
        first_day = pl.col("time").min().dt.epoch("d")
    in_segment = kept.filter(pl.col("segment").is_not_null())
    users = in_segment.group_by("segment", "item", "user").agg(first_day.cast(pl.Int64).alias("day"))
    counts = users.group_by("segment", "item", "day").agg(pl.len().cast(pl.Float64).alias("weight"))
    counts = counts.with_columns(pl.col("segment", "item").cast(pl.String))
    return counts.sort("segment", "item", "day").collect(engine="streaming")


def _most_frequent_segments(kept: pl.LazyFrame) -> pl.DataFrame:
    """Return the segment of each user [user, segment]: the one of most of their rows, ties by alphabet."""
    in_segment = kept.filter(pl.col("segment").is_not_null())
    rows = in_segment.group_by("user", "segment").agg(pl.len().alias("rows"))
    counts = rows.with_columns(pl.col("user", "segment").cast(pl.String)).collect(engine="streaming")
    best_first = counts.sort("user", "rows", "segment", descending=[False, True, False])
    return best_first.unique("user", keep="first", maintain_order=True).select("user", "segment")
