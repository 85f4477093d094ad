"""Interactions read from files; rows left out are counted by reason."""

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
    FAULT,
    ROW,
    Rows,
    Table,
    TableShape,
    id_reasons,
    open_tables,
    text_of,
    titles_of,
)
from hotplate.stores.event_log import SegmentReader

_EVENT_FIELDS: dict[str, pl.DataType] = {
    **dict.fromkeys(("id", "user", "type", "release", "role"), pl.String()),
    "items": pl.List(pl.String()),
    "time": pl.Float64(),
    "position": pl.Int64(),
}
_TEXTS = ("user", "item", "title", "segment", "count", "event")
_UNKNOWN_EVENT = "unknown event"
_NO_TIME = "time that cannot be read"
_NO_NUMBER = "weight that is not a number"
_FUTURE = "in the future"
# A column with more distinct values hardly holds types of events.
_MAX_EVENTS = 20
_HEAD_ROWS = 1000
# Thresholds of notes: share of rows without a time; a single user's share of the weight, number of rows, and multiple
# of the mean; number of users without a common item.
_TIMELESS_SHARE = 0.01
_USER_SHARE, _USER_ROWS = 0.02, 2_000
_TIMES_THE_MEAN = 20
_FEWEST_USERS = 10
_EPOCH, _FIRST_YEAR, _EARLIEST = (datetime(year, 1, 1) for year in (1970, 1900, 1971))  # noqa: DTZ001 -- naive UTC
# Rounds sums of quantities such as 0.1.
_DECIMALS = 6
# As fast as the default of polars, with less memory.
_ROWS_AT_ONCE = 20_000


class _Source(NamedTuple):
    table: Table
    columns: Columns
    event_weights: Mapping[str, float] | None
    filters: Sequence[Filter]


@dataclass(frozen=True, slots=True)
class Interactions:
    """The rows that count, grouped.

    log          [user, item: categorical, weight: f64 > 0, perhaps time: datetime (naive UTC)], one row per user, item
                 and time, in no order; if anything was cancelled also ended: time of the cancellation, or null
    titles       by item, as far as known
    segments     [segment, item, weight: f64, the number of the segment's users with the item], or None
    rows         number of rows read
    left_out     number of rows left out by reason, without zeros
    fingerprint  digest of all files
    time_range   first and last time of the rows kept
    notes        sentences about unused columns and doubtful data
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
    """Read files, folders, URLs, data frames and `-` (standard input), all with the same columns.

    A row weighs its weight column, its event by *event_weights*, or 1. With `columns.count` each distinct value counts
    once, at its first time. Negative quantities are cancellations, see `take_back`. Raises DataError for unreadable
    data and if nothing is left, SettingError for contradictory options.
    """
    source, named, form = named_paths(paths), columns or Columns(), form or Format()
    filters, title_paths = [parse_filter(text) for text in where], [] if titles is None else [titles]
    with (
        input_files(paths) as files,
        input_files(title_paths) as title_files,
        pl.Config(streaming_chunk_size=_ROWS_AT_ONCE),
        data_errors(source),
    ):
        tables, beside, notes = _open(files, source, form, event_weights)
        guessed = [*([] if titles else ["title"]), *([] if weighting == "binary" else ["weight"])]
        sources = _sources(tables, beside, source, named, guessed=guessed, event_weights=event_weights, filters=filters)
        chosen, weights = sources[0].columns, sources[0].event_weights
        rows, layouts = _rows(sources, source)
        time_range = _time_range(rows, chosen, named, source, half_life)
        any_cancelled = rows.facts.get("cancellations", 0) > 0
        log = _log(rows.kept, chosen, weighting, source, any_cancelled=any_cancelled)
        notes += _notes(rows, log, chosen, layouts)
        if not (weights or chosen.weight or chosen.count or weighting == "binary"):
            notes += _notes_of_unused(tables)
        titled, title_source = rows.kept, named_paths(title_paths)
        if title_files:
            titled = text_of(title_files, title_source, ("item", "title"), item=chosen.item, title=named.title).lazy()
        return Interactions(
            log,
            Weighing(weighting, half_life),
            titles_of(titled, source),
            _segments(rows.kept, source, log if any_cancelled else None) if chosen.segment else None,
            rows.total,
            rows.left_out,
            fingerprint([*files, *title_files]),
            time_range,
            chosen,
            notes,
        )


def _open(
    files: Sequence[DataFile], source: str, form: Format, event_weights: Mapping[str, float] | None
) -> tuple[list[Table], list[Table], list[str]]:
    segments, others = ([file for file in files if (file.kind == "events") is kind] for kind in (True, False))
    if not segments:
        return open_tables(others, form), [], []
    if event_weights is None:
        raise SettingError(
            f"{source} holds events of several types, and an impression is not a choice; say what each type "
            "weighs, as --event-weights click=1,buy=5."
        )
    table, notes = _read_events(segments, form)
    return (open_tables(others, form), [table], notes) if others else ([table], [], notes)


def _sources(
    tables: Sequence[Table],
    beside: Sequence[Table],
    source: str,
    named: Columns,
    *,
    guessed: Sequence[str],
    event_weights: Mapping[str, float] | None,
    filters: Sequence[Filter],
) -> list[_Source]:
    has_events = named.event is not None or usual_column("event", list(tables[0].schema)) is not None
    weights = event_weights if has_events or not beside else None
    chosen = _choose(tables[0], source, named, guessed, weights)
    sources = [_Source(table, chosen, weights, filters) for table in tables]
    for table in beside:
        columns = Columns("user", "item", event="event", time=chosen.time and "time")
        known = [each for each in filters if each.column in table.schema]
        sources.append(_Source(table, columns, event_weights, known))
    return sources


def _read_events(segments: Sequence[DataFile], form: Format) -> tuple[Table, list[str]]:
    frames, damaged = list[pl.DataFrame](), 0
    for file in segments:
        with data_errors(file):
            reader = SegmentReader(file.path.read_bytes())
            lines = b"\n".join(reader)
            damaged += reader.damaged
            schema = _EVENT_FIELDS
            frames.append(pl.read_ndjson(io.BytesIO(lines), schema=schema) if lines else pl.DataFrame(schema=schema))
    read = pl.concat(frames)
    events = read.unique("id", keep="first", maintain_order=True)
    notes = list[str]()
    if again := read.height - events.height:
        notes.append(f"{again:,} events were sent again under the same id and are left out")
    if damaged:
        notes.append(f"{damaged:,} events, or pieces of segments, are damaged and are left out")
    rows = events.explode("items").select("user", "time", "release", "role", "position", item="items", event="type")
    frame = rows.lazy().with_row_index(ROW).with_columns(pl.lit(None, pl.String).alias(FAULT))
    return Table(segments[0], frame, dict(rows.schema), Format(null_values=(), max_bad_rows=form.max_bad_rows)), notes


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
    wanted = replace(named, time=None) if named.time == NO_TIMES else named
    required = ("user", "item", *([] if event_weights is None else ["event"]))
    roles = [*required, "segment", *([] if named.time == NO_TIMES else ["time"])]
    roles += [role for role in guessed if role != "weight" or not (event_weights or named.count)]
    chosen = choose_columns(asdict(wanted), list(table.schema), source, guessed=roles, required=required)
    flat = [name for name, dtype in table.schema.items() if not dtype.is_nested()]
    return replace(Columns(**chosen), quantity=usual_column("quantity", flat))


def _rows(sources: Sequence[_Source], source: str) -> tuple[Rows, list[str]]:
    layouts = [each.table.time_format(name) if (name := each.columns.time) else "" for each in sources]
    facts, time, columns = list[pl.Expr](), pl.col("time"), sources[0].columns
    if columns.time is not None:
        facts += [time.min().alias("first"), time.max().alias("last"), time.null_count().alias("timeless")]
    if columns.quantity is not None:
        facts.append((pl.col("quantity") < 0).sum().alias("cancellations"))
    shapes = [_shape(each, layout) for each, layout in zip(sources, layouts, strict=True)]
    return Rows(shapes, source, *facts, advice="loosen the filters or mend the rows", repeated=_TEXTS), layouts


def _shape(source: _Source, layout: str) -> TableShape:
    table, columns, _, filters = source
    met = {f"where {each.text}": each.expression(table) for each in filters}
    values = [condition.alias(reason) for reason, condition in met.items()]
    values += [table.text(name).alias(role) for role in _TEXTS if (name := getattr(columns, role)) is not None]
    again = (pl.col("user") == str(columns.user)) & (pl.col("item") == str(columns.item))
    left_out = {reason: ~pl.col(reason) for reason in met} | id_reasons({"user": "user", "item": "item"})
    left_out["header again"] = again.fill_null(value=False)
    if columns.count is not None:
        left_out[f"no {columns.count}"] = pl.col("count").is_null()
    weight, weightless = _weight(source)
    if columns.quantity is not None:
        number = table.number(columns.quantity)
        # An unknown quantity is 1; a cancellation has no weight.
        values.append(pl.when(number.is_finite() & (number != 0)).then(number).otherwise(1.0).alias("quantity"))
        weight = pl.when(number < 0).then(1.0).otherwise(weight)
    values.append(weight.alias("weight"))
    left_out |= weightless
    bad, derived = dict[str, tuple[str, str]](), list[pl.Expr]()
    if columns.time is not None:
        values += [table.time(columns.time, layout).alias("time"), table.is_absent(columns.time).alias("timeless")]
        time, is_epoch = pl.col("time"), (pl.col("time") == _EPOCH).fill_null(value=False)
        # %Y reads two digits as a year of the first century.
        derived = [pl.when(~is_epoch & (time >= _FIRST_YEAR)).then(time), pl.col("timeless") | is_epoch]
        left_out[_NO_TIME] = time.is_null() & ~pl.col("timeless")
        how = table.form.time_format or "ISO 8601 or seconds since 1970; give --time-format, or --time-column none"
        bad[_NO_TIME] = columns.time, f"is not a time as {how}"
        # Ages count from the newest row, so a future one would make all others old. A day allows for time zones.
        left_out[_FUTURE] = time > datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
    if columns.weight is not None:
        bad[_NO_NUMBER] = columns.weight, "is not a finite number"
        left_out[_NO_NUMBER] = pl.col("weight").is_infinite()
    return TableShape(table, values, left_out, bad, derived)


def _weight(source: _Source) -> tuple[pl.Expr, dict[str, pl.Expr]]:
    """Return the weight, infinite if invalid, and reasons to leave a row out."""
    table, columns, event_weights, _ = source
    weight = pl.col("weight")
    if event_weights is not None:
        value = table.text(columns.event).replace_strict(event_weights, default=None, return_dtype=pl.Float64)
        return value, {_UNKNOWN_EVENT: weight.is_null()}
    if columns.weight is None:
        return pl.lit(1.0), {}
    number = table.number(columns.weight).fill_null(inf).fill_nan(None)
    value = pl.when(~table.is_absent(columns.weight)).then(number)
    return value, {"no weight": weight.is_null(), "weight zero or less": (weight <= 0) & weight.is_finite()}


def _time_range(
    rows: Rows, columns: Columns, named: Columns, source: str, half_life: timedelta | None
) -> tuple[datetime, datetime] | None:
    future = rows.left_out.get(_FUTURE, 0)
    if columns.time is not None and future > rows.total / 2:
        shown = "; ".join(f"{place}: {value}" for place, value in rows.cells(_FUTURE, columns.time))
        raise DataError(
            f"Most times in the column {columns.time!r} of {source} are in the future: {future:,} of {rows.total:,} "
            f"rows ({shown}). Mend them, or name another column with --time-column."
        )
    first, last = rows.facts.get("first"), rows.facts.get("last")
    if first is not None and last is not None:
        return first, last
    if half_life is not None:
        raise DataError(
            f"{source} has no times, and a half-life needs them; name their column with --time-column, or leave "
            "the half-life out."
        )
    if columns.time is not None and columns.time == named.time:
        raise DataError(f"The column {named.time!r} of {source} holds no times; name another with --time-column.")
    return None


def _log(
    kept: pl.LazyFrame, columns: Columns, weighting: Weighting, source: str, *, any_cancelled: bool
) -> pl.DataFrame:
    key = ["user", "item"] + (["time"] if columns.time is not None else [])
    quantity = [pl.col("quantity").sum()] if any_cancelled else []
    if any_cancelled:
        kept = kept.with_columns(pl.col("quantity").fill_null(1.0))  # events have none
    bought = kept.filter(pl.col("quantity") > 0) if any_cancelled else kept
    if columns.count is not None:
        first, at_first = [pl.col("time").min()] if columns.time is not None else [], quantity
        if any_cancelled and columns.time is not None:
            # Later rows with the same value were not bought at the time of the first.
            at_first = [pl.col("quantity").filter(pl.col("time").eq_missing(pl.col("time").min())).sum()]
        values = bought.group_by("user", "item", "count").agg(*first, *at_first)
        grouped = values.group_by(key).agg(pl.len().cast(pl.Float64).alias("weight"), *quantity)
    elif weighting == "binary" and not any_cancelled:  # faster than adding up weights that become 1
        grouped = bought.select(key).unique().with_columns(weight=pl.lit(1.0))
    else:
        grouped = bought.group_by(key).agg(pl.col("weight").sum(), *quantity)
    log = grouped.collect(engine="streaming")
    if not any_cancelled:
        return log
    cancelled = kept.filter(pl.col("quantity") < 0).group_by(key).agg(quantity).collect(engine="streaming")
    left = take_back(pl.concat([log, cancelled], how="diagonal"))
    if left.is_empty():
        raise DataError(f"Nothing is left of {source}: all that was bought was cancelled.")
    return left


def take_back(log: pl.DataFrame) -> pl.DataFrame:
    """Return the purchases of *log* [user, item, weight, quantity, perhaps time] without cancelled parts.

    A negative quantity is taken back from the user's latest purchases of the item up to its time. Rows without a time
    come first; without times all are simultaneous.

    Returns [user, item, weight, and with times: time, ended]. Weights are reduced in proportion; the part taken back is
    a separate row that *ended* at the cancellation.
    """
    pair, moment = ["user", "item"], ["time"] if "time" in log.columns else []
    cancelled = log.filter(pl.col("quantity") < 0).select(pair).unique()
    # At equal times purchases precede cancellations.
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
            if times[bought] != times[row]:
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


def _notes(rows: Rows, log: pl.DataFrame, columns: Columns, layouts: Sequence[str]) -> list[str]:
    facts, bad = rows.facts, rows.note_of_bad_rows()
    notes = [] if bad is None else [bad]
    if columns.time is not None and facts["timeless"] >= _TIMELESS_SHARE * facts["rows"]:
        notes.append(
            f"{facts['timeless']:,} of {facts['rows']:,} rows have no time, or 0, in {columns.time!r}; they count as "
            "the oldest"
        )
    if EPOCH in layouts and facts["last"] is not None and facts["last"] < _EARLIEST:
        notes.append(
            f"the times in {columns.time!r} are read as {EPOCH}, and all lie before 1971; if that is wrong, give "
            "their format, as --time-format %Y%m%d, or --time-column none"
        )
    if _UNKNOWN_EVENT in rows.left_out:
        found = rows.values(_UNKNOWN_EVENT, "event")
        events = ", ".join(
            "none" if value is None else f"{value!r}"[:80] for value in found.get_column("value").head(5)
        )
        more = f" and {found.height - 5:,} others" if found.height > 5 else ""
        notes.append(f"the events without a weight are {events}{more}; weigh those that count with --event-weights")
    if cancelled := facts.get("cancellations", 0):
        notes.append(
            f"{cancelled:,} rows have a {columns.quantity!r} below zero and are read as cancellations: each takes back "
            f"as much of what the same user bought of the same item before it; --where '{columns.quantity}>0' leaves "
            "them out"
        )
    return notes + _notes_of_users(log)


def _notes_of_users(log: pl.DataFrame) -> list[str]:
    counted, notes = log.group_by("user").agg(pl.col("weight").sum(), rows=pl.len()), list[str]()
    share, rows = pl.col("weight") / pl.col("weight").sum(), pl.col("rows")
    is_large = (share >= _USER_SHARE) & (share >= _TIMES_THE_MEAN / counted.height)
    is_large |= (rows >= _USER_ROWS) & (rows >= _TIMES_THE_MEAN * rows.mean())
    many = counted.with_columns(share=share).filter(is_large).sort("share", descending=True).head(3)
    if not many.is_empty():
        users = ", ".join(f"{user!r} ({part:.1%})" for user, part in many.select("user", "share").iter_rows())
        notes.append(
            f"single users have many rows: {users}; if they are robots or stand for unknown visitors, "
            "leave them out, as --where 'user!=ID'"
        )
    user = pl.col("user").to_physical()
    if counted.height >= _FEWEST_USERS:
        shared = log.group_by("item").agg(shared=user.min() != user.max()).get_column("shared")
        if not shared.any():
            notes.append(
                "no two users have an item in common, so nothing can be learnt from one for another; is the item "
                "column right?"
            )
    return notes


def _notes_of_unused(tables: Sequence[Table]) -> list[str]:
    schema, notes = tables[0].schema, list[str]()
    if rating := usual_column("rating", list(schema)):
        notes.append(
            f"the column {rating!r} holds ratings, which tell how much an item was liked, not how certain it is that "
            f"it was chosen, and is not used as the weight; --weight-column {rating} would use it"
        )
    name = usual_column("event", [name for name, dtype in schema.items() if not dtype.is_nested()])
    if name is None or tables[0].frame.select(name).head(_HEAD_ROWS).collect().n_unique() > _MAX_EVENTS:
        return notes
    values = pl.concat(table.frame.select(event=table.text(name)) for table in tables).drop_nulls()
    counted = values.group_by("event").len().sort("len", "event", descending=[True, False]).collect(engine="streaming")
    if 2 <= counted.height <= _MAX_EVENTS:
        events = ", ".join(f"{event} ({count:,})" for event, count in counted.iter_rows())
        weights = ",".join(f"{event}={number}" for number, event in enumerate(counted.get_column("event"), start=1))
        notes.append(
            f"the column {name!r} holds events that weigh the same: {events}; weigh them by --event-weights {weights}"
        )
    return notes
