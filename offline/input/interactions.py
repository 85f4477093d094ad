"""Interactions read from files: one weight per user and item, with everything left out counted."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from math import inf
from typing import NamedTuple

import polars as pl

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import EPOCH, MAX_ID_BYTES, NO_TIMES, Columns, choose_columns, usual_column
from hotplate.offline.input.files import (
    DataFile,
    DataSource,
    Format,
    data_errors,
    fingerprint,
    input_files,
    named_paths,
)
from hotplate.offline.input.filters import Filter, parse_filter
from hotplate.offline.input.matrix import Weighing, Weighting
from hotplate.offline.input.tables import (
    ROW,
    Rows,
    Table,
    TableShape,
    id_reasons,
    note_of_bad_rows,
    note_of_whole_numbers,
    open_tables,
    text_of,
    titles_of,
    with_whole_numbers,
)
from hotplate.stores.event_log import SegmentReader

# What an event has; the release, its role and the position are there for filters.
_EVENT_FIELDS: dict[str, pl.DataType] = {
    **dict.fromkeys(("id", "user", "type", "release", "role"), pl.String()),
    "items": pl.List(pl.String()),
    "time": pl.Float64(),
    "position": pl.Int64(),
}
_UNKNOWN_EVENT = "unknown event"
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
_NO_TIME = "time that cannot be read"
_NO_NUMBER = "weight that is not a number"
_FUTURE = "in the future"
_EPOCH, _FIRST_YEAR = datetime(1970, 1, 1), datetime(1900, 1, 1)  # noqa: DTZ001 -- times are naive UTC throughout
# Sums of quantities such as 0.1 are exact to so many decimals.
_DECIMALS = 6
# Fewer than polars takes by default: as fast, and with less memory.
_ROWS_AT_ONCE = 20_000


class _Source(NamedTuple):
    """A table and how it is read: segments of events have other columns than the other files."""

    table: Table
    columns: Columns
    event_weights: Mapping[str, float] | None
    filters: Sequence[Filter]


@dataclass(frozen=True, slots=True)
class Interactions:
    """What the files say, one row per user, item and time; lives until the matrix is built.

    log          [user, item: categorical, weight: f64 > 0, and time: datetime (naive UTC), if any], in no order; and if
                 anything was cancelled, ended: when a row was, null if it was not
    weighing     how the rows of a user and an item become one weight
    titles       by item, as far as they are known
    segments     [segment, item, weight: f64, the number of users of the segment that have the item], or None
    rows         how many there were, those left out among them
    left_out     how many rows were left out, by reason, in the order in which the reasons are tried; zeros not listed
    fingerprint  a digest of all files that were read
    time_range   the first and last time of the rows kept, or None
    columns      the columns that were used, named or guessed
    notes        sentences about what was found and not used, or was read otherwise than it is written
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
    """Read the files, or the folders of files of one kind, at *paths*, all of the same columns; `-` is standard input.

    Data frames and URLs may be among them.

    A row weighs what its weight column says, or its event by *event_weights*, or else 1. With `columns.count` the
    different values in that column count 1 each, at the time of their first row. *weighting* and *half_life* say how
    the rows of a user and an item become one weight (see `Weighing`); binary reads no weight column unless one is
    named. Ratings are not weights unless they are named as such. Rows of a quantity below zero are cancellations: see
    `take_back`.

    Segments of events, among the files or alone, are weighed by *event_weights*; so are other files that have a column
    of events, and the rest as they are without.

    Raises DataError when anything cannot be read or nothing is left, SettingError for a filter that makes no sense.
    """
    filters, source = [parse_filter(text) for text in where], named_paths(paths)
    named, form = columns or Columns(), form or Format()
    title_paths = [] if titles is None else [titles]
    with (
        input_files(paths) as files,
        input_files(title_paths) as title_files,
        pl.Config(streaming_chunk_size=_ROWS_AT_ONCE),
        data_errors(source),
    ):
        others = [file for file in files if file.kind != "events"]
        events, said = _read_events(files, event_weights, form, source)
        tables = [events] if events and not others else open_tables(others, form, source)
        beside = events if others else None
        has_events = named.event is not None or usual_column("event", list(tables[0].schema)) is not None
        weights = event_weights if beside is None or has_events else None
        chosen = _choose(tables[0], source, named, _guessed_roles(named, weights, titles, weighting), weights)
        tables, whole = with_whole_numbers(tables, [str(chosen.user), str(chosen.item)])
        sources = [_Source(table, chosen, weights, filters) for table in tables]
        if beside is not None:
            own = Columns("user", "item", event="event", time=chosen.time and "time")
            known = [each for each in filters if each.column in beside.schema]
            sources.append(_Source(beside, own, event_weights, known))
        rows, log, facts = _read(sources, source, named, weighting, half_life)
        said += [*facts, note_of_whole_numbers(whole)]
        if weights is None and weighting != "binary" and chosen.weight is None and chosen.count is None:
            said += [_note_of_ratings(list(tables[0].schema)), _note_of_events(tables)]
        titled = rows.kept
        if titles is not None:
            title_columns = {"item": chosen.item, "title": named.title}
            titled = text_of(title_files, named_paths(title_paths), ("item", "title"), **title_columns).lazy()
        return Interactions(
            log,
            Weighing(weighting, half_life),
            titles_of(titled, source),
            _segments(rows.kept, source, log if _cancelled(rows) else None) if chosen.segment else None,
            rows.total,
            rows.left_out,
            fingerprint([*files, *title_files]),
            _time_range(rows),
            chosen,
            [note for note in said if note is not None],
        )


def _read(
    sources: Sequence[_Source], source: str, named: Columns, weighting: Weighting, half_life: timedelta | None
) -> tuple[Rows, pl.DataFrame, list[str | None]]:
    """Return all rows, the log that they make, and sentences about them."""
    chosen, time = sources[0].columns, pl.col("time")
    layouts = [each.table.time_format(name) if (name := each.columns.time) else "" for each in sources]
    shapes = [_shape(each, layout) for each, layout in zip(sources, layouts, strict=True)]
    facts = []
    if chosen.time is not None:
        facts += [time.min().alias("first"), time.max().alias("last"), time.null_count().alias("timeless")]
    if chosen.quantity is not None:
        facts.append((pl.col("quantity") < 0).sum().alias("cancellations"))
    texts = ("user", "item", "title", "segment", "count", "event")
    rows = Rows(shapes, source, *facts, advice="loosen the filters or mend the rows", repeated=texts)
    _check_times(rows, chosen, named, source, half_life)
    log = _log(rows.kept, chosen, weighting, any_cancelled=_cancelled(rows) > 0)
    if log.is_empty():
        raise DataError(f"Nothing is left of {source}: all that was bought was cancelled.")
    return (
        rows,
        log,
        [
            note_of_bad_rows(rows),
            *(_note_of_times(chosen.time, layouts, rows) if chosen.time is not None else []),
            _note_of_unknown_events(rows),
            _note_of_cancellations(str(chosen.quantity), _cancelled(rows)),
            _note_of_users(log),
            _note_of_disjoint(log),
        ],
    )


def _cancelled(rows: Rows) -> int:
    return int(rows.facts.get("cancellations", 0))


def _time_range(rows: Rows) -> tuple[datetime, datetime] | None:
    first, last = rows.facts.get("first"), rows.facts.get("last")
    return None if first is None or last is None else (first, last)


def _read_events(
    files: Sequence[DataFile], event_weights: Mapping[str, float] | None, form: Format, source: str
) -> tuple[Table | None, list[str | None]]:
    """Return the events of the segments among *files* as one table, None if there are none, and say what was left out.

    It has a row for each event and item. Of the events with the same id the first counts.
    """
    segments = [file for file in files if file.kind == "events"]
    if not segments:
        return None, []
    if event_weights is None:
        raise SettingError(
            f"{source} holds events of several types, and to be shown an item is not to choose it; say what each type "
            "weighs, as --event-weights click=1,buy=5."
        )
    frames, damaged, said = list[pl.DataFrame](), 0, list[str | None]()
    for file in segments:
        with data_errors(file):
            reader = SegmentReader(file.path.read_bytes())
            lines = b"\n".join(reader)
            damaged += reader.damaged
            schema = _EVENT_FIELDS
            frames.append(pl.read_ndjson(io.BytesIO(lines), schema=schema) if lines else pl.DataFrame(schema=schema))
    read = pl.concat(frames)
    events = read.unique("id", keep="first", maintain_order=True)
    if again := read.height - events.height:
        said.append(f"{again:,} events were sent again under the same id and are left out")
    if damaged:
        said.append(f"{damaged:,} events, or pieces of segments, are damaged and are left out")
    rows = events.explode("items").select("user", "time", "release", "role", "position", item="items", event="type")
    # The file's own form is for the other files: a null value would be one of an event's.
    own = Format(null_values=(), max_bad_rows=form.max_bad_rows)
    return Table(segments[0], rows.lazy().with_row_index(ROW), dict(rows.schema), own), said


def _choose(
    table: Table, source: str, named: Columns, guessed: Sequence[str], event_weights: Mapping[str, float] | None
) -> Columns:
    weights = {
        f"the weight column {named.weight!r}": named.weight,
        "event weights": event_weights,
        f"the count column {named.count!r}": named.count,
    }
    given = [name for name, value in weights.items() if value is not None]
    if len(given) > 1:
        raise SettingError(f"Both {given[0]} and {given[1]} are given as the weight; give one of them.")
    if named.event is not None and event_weights is None:
        raise SettingError(f"The event column {named.event!r} needs event weights, such as view=1,cart=3,buy=5.")
    required = ("user", "item") if event_weights is None else ("user", "item", "event")
    wanted = replace(named, time=None) if named.time == NO_TIMES else named
    chosen = choose_columns(asdict(wanted), list(table.schema), source, guessed=guessed, required=required)
    # It may be the weight, too.
    flat = [name for name, dtype in table.schema.items() if not dtype.is_nested()]
    return replace(Columns(**chosen), quantity=usual_column("quantity", flat))


def _guessed_roles(
    named: Columns, event_weights: Mapping[str, float] | None, titles: DataSource | None, weighting: Weighting
) -> list[str]:
    roles = ["user", "item", "segment", *(["title"] if titles is None else [])]
    roles += [] if named.time == NO_TIMES else ["time"]
    if event_weights is not None:
        return [*roles, "event"]
    return roles if named.count is not None or weighting == "binary" else [*roles, "weight"]


def _shape(source: _Source, layout: str) -> TableShape:
    """Return how a table is read: user, item, weight and, if there are such columns, the rest."""
    table, columns, event_weights, filters = source
    weight, left_out = _weight(table, columns, event_weights)
    values, bad, derived = [], dict[str, tuple[str, str]](), list[pl.Expr]()
    if columns.quantity is not None:
        number = table.number(columns.quantity)
        # A purchase of an unknown quantity is one of 1; a cancellation is not a purchase, and has no weight of its own.
        values.append(pl.when(number.is_finite() & (number != 0)).then(number).otherwise(1.0).alias("quantity"))
        weight = pl.when(number < 0).then(1.0).otherwise(weight)
    met = {f"where {each.text}": each.expression(table) for each in filters}
    values += [weight.alias("weight"), *(condition.alias(reason) for reason, condition in met.items())]
    roles = ("user", "item", "title", "segment", "count", "event")
    values += [table.text(name).alias(role) for role in roles if (name := getattr(columns, role)) is not None]
    again = (pl.col("user") == str(columns.user)) & (pl.col("item") == str(columns.item))
    first = {reason: ~pl.col(reason) for reason in met} | id_reasons({"user": "user", "item": "item"})
    first["header again"] = again.fill_null(value=False)
    if columns.count is not None:
        first[f"no {columns.count}"] = pl.col("count").is_null()
    if columns.time is not None:
        values += [table.time(columns.time, layout).alias("time"), table.is_absent(columns.time).alias("timeless")]
        time, is_epoch = pl.col("time"), (pl.col("time") == _EPOCH).fill_null(value=False)
        # %Y takes a year of two digits for one of the first century.
        derived = [pl.when(~is_epoch & (time >= _FIRST_YEAR)).then(time), pl.col("timeless") | is_epoch]
        left_out[_NO_TIME] = pl.col("time").is_null() & ~pl.col("timeless")
        how = table.form.time_format or "ISO 8601 or seconds since 1970; give --time-format, or --time-column none"
        bad[_NO_TIME] = columns.time, f"is not a time as {how}"
        # Ages count from the newest row: one with 9999-12-31 would make all others old. A day covers time zones.
        left_out[_FUTURE] = pl.col("time") > datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
    if columns.weight is not None:
        bad[_NO_NUMBER] = columns.weight, "is not a finite number"
        left_out[_NO_NUMBER] = pl.col("weight").is_infinite()
    return TableShape(table, values, first | left_out, bad, derived)


def _weight(
    table: Table, columns: Columns, event_weights: Mapping[str, float] | None
) -> tuple[pl.Expr, dict[str, pl.Expr]]:
    """Return what a row weighs, infinite if that is not a number, and the reasons to leave it out because of that."""
    if event_weights is not None:
        value = table.text(columns.event).replace_strict(event_weights, default=None, return_dtype=pl.Float64)
        return value, {_UNKNOWN_EVENT: pl.col("weight").is_null()}
    if columns.weight is None:
        return pl.lit(1.0), {}
    number = table.number(columns.weight).fill_null(inf)
    value = pl.when(~table.is_absent(columns.weight)).then(number.fill_nan(None))
    weight = pl.col("weight")
    return value, {"no weight": weight.is_null(), "weight zero or less": (weight <= 0) & weight.is_finite()}


def _check_times(rows: Rows, columns: Columns, named: Columns, source: str, half_life: timedelta | None) -> None:
    """Raise DataError if most times are in the future, and if there is none though one is needed."""
    future = rows.left_out.get(_FUTURE, 0)
    if columns.time is not None and future > rows.total / 2:
        shown = "; ".join(f"{place}: {value}" for place, value in rows.cells(_FUTURE, columns.time))
        raise DataError(
            f"Most times in the column {columns.time!r} of {source} are in the future: {future:,} of {rows.total:,} "
            f"rows ({shown}). Mend them, or name another column with --time-column."
        )
    if _time_range(rows) is None and half_life is not None:
        raise DataError(
            f"{source} has no times, and a half-life needs them; name their column with --time-column, or leave "
            "the half-life out."
        )
    if _time_range(rows) is None and columns.time is not None and columns.time == named.time:
        raise DataError(f"The column {named.time!r} of {source} holds no times; name another with --time-column.")


def _log(kept: pl.LazyFrame, columns: Columns, weighting: Weighting, *, any_cancelled: bool) -> pl.DataFrame:
    """Return the rows that make weights: one for each user, item and moment; of a count one for each value."""
    # Numbers for texts take far less memory.
    ids = kept.with_columns(pl.col("user", "item").cast(pl.Categorical))
    if any_cancelled:
        ids = ids.with_columns(pl.col("quantity").fill_null(1.0))  # of events, which have none
    bought = ids.filter(pl.col("quantity") > 0) if any_cancelled else ids
    key = ["user", "item"] + (["time"] if columns.time is not None else [])
    quantity = [pl.col("quantity").sum()] if any_cancelled else []
    if columns.count is not None:
        at_first = quantity
        if any_cancelled and columns.time is not None:
            # What a value names again later, it has not bought yet.
            at_first = [pl.col("quantity").filter(pl.col("time").eq_missing(pl.col("time").min())).sum()]
        first = [pl.col("time").min()] if columns.time is not None else []
        values = bought.group_by("user", "item", "count").agg(*first, *at_first)
        grouped = values.group_by(key).agg(pl.len().cast(pl.Float64).alias("weight"), *quantity)
    elif weighting == "binary" and not any_cancelled:  # to add up what will be 1 takes more than all else
        grouped = bought.select(key).unique().with_columns(weight=pl.lit(1.0))
    else:
        grouped = bought.group_by(key).agg(pl.col("weight").sum(), *quantity)
    log = grouped.collect(engine="streaming")
    if not any_cancelled:
        return log
    cancelled = ids.filter(pl.col("quantity") < 0).group_by(key).agg(quantity).collect(engine="streaming")
    return take_back(pl.concat([log, cancelled], how="diagonal"))


def take_back(log: pl.DataFrame) -> pl.DataFrame:
    """Return the purchases of *log*, less what was cancelled.

    *log* is [user, item, weight, quantity, and perhaps time]; a quantity below zero is a cancellation. It takes its
    quantity back from the latest purchase of the same user and item up to its time, then from the one before that.
    A rest without a purchase is ignored. Rows without a time come before all others; without times all are of one
    moment.

    Returned is [user, item, weight, and if there are times: time, ended]. A purchase weighs in proportion to what is
    left of it. The part that was taken back is a row of its own, which *ended* at the time of the cancellation; null
    if it was not cancelled.
    """
    pair, moment = ["user", "item"], ["time"] if "time" in log.columns else []
    cancelled = log.filter(pl.col("quantity") < 0).select(pair).unique()
    # Within a moment, purchases come before cancellations.
    descending = [False] * len(pair + moment) + [True]
    touched = log.join(cancelled, on=pair, how="semi").sort(*pair, *moment, "quantity", descending=descending)
    times = touched.get_column("time").to_list() if moment else [None] * touched.height
    quantities = touched.get_column("quantity").to_list()
    pieces = list[tuple[int, float, object]]()
    standing = list[tuple[int, float]]()
    begins = touched.select(pl.struct(pair).rle_id()).to_series().diff().fill_null(1).to_list()
    for row, (begin, quantity) in enumerate(zip(begins, quantities, strict=True)):
        if begin:
            pieces += [(bought, left, None) for bought, left in standing]
            standing = []
        if quantity > 0:
            standing.append((row, quantity))
        wanted = -quantity
        while wanted > 0 and standing:
            bought, left = standing.pop()
            taken = min(left, wanted)
            if times[bought] != times[row]:  # else it never stood
                pieces.append((bought, taken, times[row]))
            wanted, left = round(wanted - taken, _DECIMALS), round(left - taken, _DECIMALS)
            if left > 0:
                standing.append((bought, left))
    pieces += [(bought, left, None) for bought, left in standing]
    rows, parts, ended = zip(*pieces, strict=True) if pieces else ((), (), ())
    found = touched[list(rows)].with_columns(
        pl.col("weight") * pl.Series(parts, dtype=pl.Float64) / pl.col("quantity"),
        *(pl.Series("ended", ended, dtype=log.schema["time"]) for _ in moment),
    )
    others = log.join(cancelled, on=pair, how="anti")
    return pl.concat([others, found], how="diagonal").drop("quantity")


def _segments(kept: pl.LazyFrame, source: str, log: pl.DataFrame | None) -> pl.DataFrame:
    """Return the segments of `Interactions`; raises DataError for a segment that is too long.

    With a *log*, only users and items count whose purchases were not cancelled entirely.
    """
    if log is not None:
        left = log.filter(pl.col("ended").is_null()) if "ended" in log.columns else log
        pairs = left.select("user", "item").unique().lazy()
        kept = kept.filter(pl.col("quantity").fill_null(1.0) > 0).join(pairs, on=["user", "item"], how="semi")
    present = kept.filter(pl.col("segment").is_not_null())
    users = pl.col("user").n_unique().cast(pl.Float64).alias("weight")
    found = present.group_by("segment", "item").agg(users).with_columns(pl.col("segment", "item").cast(pl.String))
    counted = found.sort("segment", "item").collect(engine="streaming")
    longest = counted.get_column("segment").str.len_bytes().max()
    if isinstance(longest, int) and longest > MAX_ID_BYTES:
        raise DataError(
            f"The segment column of {source} holds a value of {longest:,} bytes; name one with short values."
        )
    return counted


def _note_of_ratings(available: Sequence[str]) -> str | None:
    """Say that a column of ratings is not used."""
    name = usual_column("rating", available)
    if name is None:
        return None
    return (
        f"the column {name!r} holds ratings, which say how much an item was liked, not how sure it is that it was "
        f"chosen, and is not used as the weight; --weight-column {name} would use it"
    )


def _note_of_cancellations(column: str, rows: int) -> str | None:
    """Say how rows of a quantity below zero are read."""
    if not rows:
        return None
    return (
        f"{rows:,} rows have a {column!r} below zero and are read as cancellations: each takes back as much of what "
        f"the same user bought of the same item before it; --where '{column}>0' leaves them out"
    )


def _note_of_times(column: str, layouts: Sequence[str], rows: Rows) -> list[str]:
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


def _note_of_unknown_events(rows: Rows) -> str | None:
    """Say which events have no weight, with their rows."""
    if _UNKNOWN_EVENT not in rows.left_out:
        return None
    counted = rows.values(_UNKNOWN_EVENT, "event")
    events = ", ".join("none" if value is None else f"{value!r}"[:80] for value in counted.get_column("value").head(5))
    more = f" and {counted.height - 5:,} others" if counted.height > 5 else ""
    return f"the events without a weight are {events}{more}; give those that count a weight with --event-weights"


def _note_of_events(tables: Sequence[Table]) -> str | None:
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


def _note_of_users(log: pl.DataFrame) -> str | None:
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


def _note_of_disjoint(log: pl.DataFrame) -> str | None:
    """Say that no two users have an item in common."""
    if log.get_column("user").n_unique() < _FEWEST_USERS:
        return None
    user = pl.col("user").to_physical()
    if log.group_by("item").agg(shared=user.min() != user.max()).get_column("shared").any():
        return None
    return (
        "no two users have an item in common, so nothing can be learnt from one for another; is the item column right?"
    )
