"""Interactions read from files; rows left out are counted by reason."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from math import inf
from typing import NamedTuple

import polars as pl

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import EARLIEST, NO_TIMES, NUMBERED, Columns, choose_columns, usual_column
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import (
    DataFile,
    DataSource,
    Format,
    fingerprint,
    input_files,
    named_paths,
)
from hotplate.offline.input.matrix import Weighing, Weighting
from hotplate.offline.input.tables import (
    EXTRA,
    ROW,
    Filter,
    Rows,
    Table,
    TableShape,
    bad_ids,
    id_reasons,
    open_tables,
    parse_filter,
    text_of,
    titles_of,
)
from hotplate.stores.errors import did_you_mean
from hotplate.stores.event_log import SegmentReader

_EVENT: dict[str, pl.DataType] = {
    **dict.fromkeys(("id", "user", "type", "release", "role"), pl.String()),
    "items": pl.List(pl.String()),
    "time": pl.Float64(),
    "position": pl.Int64(),
}
_TEXTS = ("user", "item", "title", "segment", "count", "event")
_UNKNOWN_EVENT = "unknown event"
_NO_TIME = "time that cannot be read"
_NO_NUMBER = "weight that is not a number"
_NO_QUANTITY = "quantity that is not a number"
_FUTURE = "in the future"
# Thresholds of notes: rows without a time; one user's share, rows, and multiple of the mean weight; disjoint users.
_TIMELESS_SHARE = 0.01
_USER_SHARE, _USER_ROWS, _TIMES_THE_MEAN = 0.02, 2_000, 20
_FEWEST_USERS = 10
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 -- naive UTC
# Users and items that exports write for a missing value, in lower case; `columns.NULL_VALUES` are no values at all.
_LIKE_MISSING = (
    *("n/a", "#n/a", "na", "null", "(null)", "<null>", "[null]", "nil", "none", "nan", "undefined", "unknown"),
    *("-", "--", "?", "\\n"),
)
# Rounds sums of quantities such as 0.1.
_DECIMALS = 6
# The service keeps their popular lists in memory.
_MAX_SEGMENTS = 1000
# As fast as the default of polars, with less memory.
_ROWS_AT_ONCE = 20_000


class _Request(NamedTuple):
    """How to read tables; *guessed* roles may be missing."""

    columns: Columns
    event_weights: Mapping[str, float] | None
    filters: Sequence[Filter]
    guessed: Sequence[str] = ()


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
    """Read files, folders, URLs and data frames with the same columns.

    A row's weight is its weight column, its event's weight in *event_weights*, or 1. With `columns.count`, a user and
    an item weigh the number of distinct values, each at its first time. Negative quantities are cancellations, see
    `take_back`. Raises DataError, and SettingError for contradictory options.
    """
    source, title_paths = named_paths(paths), [] if titles is None else [titles]
    given = columns or Columns()
    guessed = [*([] if title_paths else ["title"]), *([] if weighting == "binary" else ["weight"])]
    wanted = replace(given, title=None) if title_paths else given
    request = _Request(wanted, event_weights, [parse_filter(text) for text in where], guessed)
    with (
        input_files(paths) as files,
        input_files(title_paths) as title_files,
        pl.Config(streaming_chunk_size=_ROWS_AT_ONCE),
        data_errors(source, files),
    ):
        tables, notes = _tables(files, request, form or Format(), source)
        chosen, shapes = tables[0][1].columns, [_shape(*each) for each in tables]
        rows = Rows(shapes, source, *_facts(chosen), repeated=_TEXTS)
        first, last = rows.facts.get("first"), rows.facts.get("last")
        if first is None and half_life is not None:
            raise DataError(f"{source} has no times for the half-life; name their column with --time-column.")
        chosen = _with_few_segments(chosen, rows.facts.get("segments", 0), notes, is_named=given.segment is not None)
        any_cancelled = rows.facts.get("cancellations", 0) > 0
        log = _log(rows.kept, chosen, weighting, source, any_cancelled=any_cancelled)
        named = {"item": chosen.item, "title": given.title}
        titled = text_of(title_files, named_paths(title_paths), [*named], named).lazy() if title_files else rows.kept
        return Interactions(
            log,
            Weighing(weighting, half_life),
            titles_of(titled, source),
            _segments(rows.kept, log if any_cancelled else None) if chosen.segment else None,
            _user_segments(rows.kept) if chosen.segment else None,
            rows.total,
            rows.left_out,
            fingerprint([*files, *title_files]),
            None if first is None or last is None else (first, last),
            chosen,
            [
                *notes,
                *_notes_of_columns(tables[0][0], chosen),
                *_notes_of_rows(rows, chosen),
                *_notes_of_events(rows, event_weights),
                *_notes_of_ids(log, chosen),
                *_notes_of_users(log, chosen),
            ],
        )


def _tables(
    files: Sequence[DataFile], request: _Request, form: Format, source: str
) -> tuple[list[tuple[Table, _Request]], list[str]]:
    """Return the tables of logs, and one of the service's events, with notes on the events."""
    logs, segments = ([file for file in files if (file.kind == "events") is kind] for kind in (False, True))
    if segments and request.event_weights is None:
        raise SettingError(f"{source} holds events of several types; weigh them, as --event-weights click=1,buy=5.")
    tables, times = list[tuple[Table, _Request]](), request.columns.time != NO_TIMES
    if logs:
        opened = open_tables(logs, form)
        chosen = _of_logs(list(opened[0].schema), request, source, with_events=bool(segments))
        tables, times = [(table, chosen) for table in opened], chosen.columns.time is not None
    if not segments:
        return tables, []
    table, notes = _read_events(segments, form)
    # Filters of a log's own columns leave events alone.
    filters = [each for each in request.filters if not logs or each.column in table.schema]
    columns = Columns("user", "item", event="event", time="time" if times else None)
    return [*tables, (table, _Request(columns, request.event_weights, filters))], notes


def _of_logs(names: Sequence[str], request: _Request, source: str, *, with_events: bool) -> _Request:
    """Return the request with the columns of logs; *with_events*, event weights may be for the events alone."""
    named, weights = request.columns, request.event_weights
    if with_events and named.event is None and usual_column("event", names) is None:
        weights = None
    if sum(given is not None for given in (named.weight, named.count, weights)) > 1:
        raise SettingError("A row's weight has several sources; give a weight column, a count column or event weights.")
    if named.event is not None and weights is None:
        raise SettingError(f"The event column {named.event!r} needs event weights, such as view=1,cart=3,buy=5.")
    wanted = replace(named, time=None) if named.time == NO_TIMES else named
    required = ("user", "item", *([] if weights is None else ["event"]))
    roles = [*required, "segment", *([] if named.time == NO_TIMES else ["time"])]
    roles += [role for role in request.guessed if role != "weight" or not (weights or named.count)]
    chosen = choose_columns(asdict(wanted), names, source, guessed=roles, required=required)
    columns = replace(Columns(**chosen), quantity=usual_column("quantity", names))
    return _Request(columns, weights, request.filters)


def _read_events(segments: Sequence[DataFile], form: Format) -> tuple[Table, list[str]]:
    frames, damaged = list[pl.DataFrame](), 0
    for file in segments:
        with data_errors(file):
            reader = SegmentReader(file.path.read_bytes())
            lines = b"\n".join(reader)
            damaged += reader.damaged
            frames.append(pl.read_ndjson(io.BytesIO(lines), schema=_EVENT) if lines else pl.DataFrame(schema=_EVENT))
    read = pl.concat(frames)
    events = read.unique("id", keep="first", maintain_order=True)
    notes = list[str]()
    if again := read.height - events.height:
        notes.append(f"{again:,} events were sent again under the same id and are left out")
    if damaged:
        notes.append(f"{damaged:,} events, or pieces of segments, are damaged and are left out")
    rows = events.explode("items").select("user", "time", "release", "role", "position", item="items", event="type")
    frame = rows.lazy().with_row_index(ROW).with_columns(pl.lit(None, pl.String).alias(EXTRA))
    return Table(segments[0], frame, dict(rows.schema), Format(max_bad_rows=form.max_bad_rows)), notes


def _facts(columns: Columns) -> Iterator[pl.Expr]:
    time = pl.col("time")
    if columns.time is not None:
        yield from (time.min().alias("first"), time.max().alias("last"), time.null_count().alias("timeless"))
    if columns.quantity is not None:
        yield (pl.col("quantity") < 0).sum().alias("cancellations")
    if columns.segment is not None:
        yield pl.col("segment").drop_nulls().n_unique().alias("segments")


def _shape(table: Table, request: _Request) -> TableShape:
    columns, event_weights = request.columns, request.event_weights
    met = {f"where {each.text}": each.expression(table) for each in request.filters}
    values = [condition.alias(reason) for reason, condition in met.items()]
    values += [table.text(name).alias(role) for role in _TEXTS if (name := getattr(columns, role)) is not None]
    ids = ("user", "item", *([] if columns.segment is None else ["segment"]))
    left_out = {reason: ~pl.col(reason) for reason in met} | id_reasons({role: role for role in ids})
    again = (pl.col("user") == str(columns.user)) & (pl.col("item") == str(columns.item))
    left_out["header again"] = again.fill_null(value=False)
    bad = bad_ids({role: str(getattr(columns, role)) for role in ids})
    value = pl.lit(1.0)
    weight = pl.col("weight")
    explained = dict[str, str]()
    if columns.count is not None:
        left_out[f"no {columns.count}"] = pl.col("count").is_null()
    if event_weights is not None:
        value = table.text(columns.event).replace_strict(event_weights, default=None, return_dtype=pl.Float64)
        left_out[_UNKNOWN_EVENT] = weight.is_null()
        explained[_UNKNOWN_EVENT] = "event"
    elif columns.weight is not None:
        number = table.number(columns.weight).fill_null(inf).fill_nan(inf)
        value = pl.when(~table.is_absent(columns.weight)).then(number)
        left_out |= {
            "no weight": weight.is_null(),
            _NO_NUMBER: weight.is_infinite(),
            "weight zero or less": weight <= 0,
        }
        bad[_NO_NUMBER] = columns.weight, "is not a finite number"
    if columns.quantity is not None:
        number = pl.when(~table.is_absent(columns.quantity)).then(table.number(columns.quantity).fill_null(inf))
        # A missing quantity, or 0, is 1; a cancellation has no weight.
        values.append(pl.when(number != 0).then(number).otherwise(1.0).alias("quantity"))
        left_out[_NO_QUANTITY] = ~pl.col("quantity").is_finite()
        bad[_NO_QUANTITY] = columns.quantity, "is not a finite number"
        value = pl.when(number < 0).then(1.0).otherwise(value)
    values.append(value.alias("weight"))
    if columns.time is not None:
        time = table.time(columns.time)
        absent = table.is_absent(columns.time) | (time == _EPOCH).fill_null(value=False)
        values += [pl.when(time >= EARLIEST).then(time).alias("time"), absent.alias("timeless")]
        left_out[_NO_TIME] = pl.col("time").is_null() & ~pl.col("timeless")
        how = (
            table.form.time_format
            or "ISO 8601 or seconds since 1970; give --time-format, as %d/%m/%Y, or --time-column none"
        )
        bad[_NO_TIME] = columns.time, f"is not a time as {how}"
        # Ages count from the newest row. A day allows for time zones.
        left_out[_FUTURE] = pl.col("time") > datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
        bad[_FUTURE] = columns.time, "lies in the future"
    return TableShape(table, values, left_out, bad, explained)


def _log(
    kept: pl.LazyFrame, columns: Columns, weighting: Weighting, source: str, *, any_cancelled: bool
) -> pl.DataFrame:
    key = ["user", "item"] + (["time"] if columns.time is not None else [])
    quantity = [pl.col("quantity").sum()] if any_cancelled else []
    if any_cancelled:
        kept = kept.with_columns(pl.col("quantity").fill_null(1.0))  # events have none
    bought = kept.filter(pl.col("quantity") > 0) if any_cancelled else kept
    if columns.count is not None:
        first = [pl.col("time").min()] if columns.time is not None else []
        values = bought.group_by("user", "item", "count").agg(*first, *quantity)
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

    A negative quantity cancels the user's latest purchases of the item up to its time; rows without a time come first.
    Returns [user, item, weight, and with times: time, ended]: a cancelled part is a separate row with its share of the
    weight, *ended* at the cancellation.
    """
    pair, moment = ["user", "item"], ["time"] if "time" in log.columns else []
    cancelled = log.filter(pl.col("quantity") < 0).select(pair).unique()
    # At equal times purchases precede cancellations.
    descending = [False] * len(pair + moment) + [True]
    touched = log.join(cancelled, on=pair, how="semi").sort(*pair, *moment, "quantity", descending=descending)
    times = touched.get_column("time").to_list() if moment else [None] * touched.height
    quantities = touched.get_column("quantity").to_list()
    pieces, left, bought = list[tuple[int, float, object]](), list(quantities), list[int]()
    begins = touched.select(pl.struct(pair).rle_id()).to_series().diff().fill_null(1).to_list()
    for row, (begin, quantity) in enumerate(zip(begins, quantities, strict=True)):
        bought = [] if begin else bought
        if quantity > 0:
            bought.append(row)
        wanted = -quantity
        while wanted > 0 and bought:
            last = bought[-1]
            taken = min(left[last], wanted)
            if times[last] != times[row]:
                pieces.append((last, taken, times[row]))
            wanted, left[last] = round(wanted - taken, _DECIMALS), round(left[last] - taken, _DECIMALS)
            if left[last] <= 0:
                bought.pop()
    pieces += [(row, part, None) for row, part in enumerate(left) if part > 0]
    rows, parts, ended = zip(*pieces, strict=True) if pieces else ((), (), ())
    found = touched[list(rows)].with_columns(
        pl.col("weight") * pl.Series(parts, dtype=pl.Float64) / pl.col("quantity"),
        *(pl.Series("ended", ended, dtype=log.schema["time"]) for _ in moment),
    )
    others = log.join(cancelled, on=pair, how="anti")
    return pl.concat([others, found], how="diagonal").drop("quantity")


def _with_few_segments(columns: Columns, count: int, notes: list[str], *, is_named: bool) -> Columns:
    """Leave out a segment column of too many values (*count*), with a note; DataError if it *is_named*."""
    if count <= _MAX_SEGMENTS:
        return columns
    many = f"the segment column {columns.segment!r} has {count:,} different values, and at most {_MAX_SEGMENTS:,} "
    if is_named:
        raise DataError(f"{many}can have a list each; name a column with fewer.")
    notes.append(f"{many}can have a list each; it is left out")
    return replace(columns, segment=None)


def _segments(kept: pl.LazyFrame, log: pl.DataFrame | None) -> pl.DataFrame:
    if log is not None:
        left = log.filter(pl.col("ended").is_null()) if "ended" in log.columns else log
        pairs = left.select("user", "item").unique().lazy()
        kept = kept.filter(pl.col("quantity").fill_null(1.0) > 0).join(pairs, on=["user", "item"], how="semi")
    present = kept.filter(pl.col("segment").is_not_null())
    began = pl.col("time").min().dt.epoch("d") if "time" in kept.collect_schema() else pl.lit(None)
    users = present.group_by("segment", "item", "user").agg(began.cast(pl.Int64).alias("day"))
    days = users.group_by("segment", "item", "day").agg(pl.len().cast(pl.Float64).alias("weight"))
    found = days.with_columns(pl.col("segment", "item").cast(pl.String))
    return found.sort("segment", "item", "day").collect(engine="streaming")


def _user_segments(kept: pl.LazyFrame) -> pl.DataFrame:
    rows = kept.filter(pl.col("segment").is_not_null()).group_by("user", "segment").agg(pl.len().alias("rows"))
    counts = rows.with_columns(pl.col("user", "segment").cast(pl.String)).collect(engine="streaming")
    counts = counts.sort("user", "rows", "segment", descending=[False, True, False])
    return counts.unique("user", keep="first", maintain_order=True).select("user", "segment")


def _notes_of_rows(rows: Rows, columns: Columns) -> Iterator[str]:
    facts = rows.facts
    yield from rows.notes
    if columns.time is not None and facts["timeless"] >= _TIMELESS_SHARE * facts["rows"]:
        yield f"{facts['timeless']:,} of {facts['rows']:,} rows have no time, or 0, in {columns.time!r}, and are oldest"
    if _UNKNOWN_EVENT in rows.left_out:
        found = rows.values(_UNKNOWN_EVENT, "event").head(5)
        events = ", ".join("none" if value is None else f"{value!r:.80}" for value in found)
        yield f"the most frequent events without a weight are {events}; weigh those that count with --event-weights"
    if cancelled := facts.get("cancellations", 0):
        yield (
            f"{cancelled:,} rows have a {columns.quantity!r} below zero, and cancel earlier purchases of the same user "
            f"and item; --where '{columns.quantity}>0' leaves them out"
        )


def _notes_of_columns(table: Table, columns: Columns) -> Iterator[str]:
    """Name the columns of a file without a header that are not used."""
    used = set(asdict(columns).values())
    unused = [name.removeprefix(NUMBERED) for name in table.schema if name.startswith(NUMBERED) and name not in used]
    if unused:
        named = f"column {unused[0]} is" if len(unused) == 1 else f"columns {unused[0]} to {unused[-1]} are"
        yield (
            f"{named} not used; --time-column, --weight-column and --title-column name them by number. If each line is "
            "a user and all items, write one line for each pair: "
            "awk '{for (n = 2; n <= NF; n++) print $1, $n}' FILE > pairs.txt"
        )


def _notes_of_events(rows: Rows, event_weights: Mapping[str, float] | None) -> Iterator[str]:
    if event_weights is None:
        return
    weighed = set(rows.kept.select(pl.col("event").cast(pl.String)).unique().collect().to_series())
    others: Sequence[str] = []
    if _UNKNOWN_EVENT in rows.left_out:
        others = rows.values(_UNKNOWN_EVENT, "event").drop_nulls().to_list()
    for event in event_weights.keys() - weighed:
        yield f"no row kept has the event {event!r} of --event-weights; {did_you_mean(event, others)}".rstrip("; ")


def _notes_of_ids(log: pl.DataFrame, columns: Columns) -> Iterator[str]:
    """Name ids that stand for a missing value."""
    for role, name in (("user", columns.user), ("item", columns.item)):
        weights = log.group_by(role).agg(pl.col("weight").sum())
        shares = weights.with_columns(pl.col(role).cast(pl.String), share=pl.col("weight") / pl.col("weight").sum())
        is_like_missing = pl.col(role).str.to_lowercase().is_in(_LIKE_MISSING)
        for value, share in shares.filter(is_like_missing).sort(role).select(role, "share").iter_rows():
            yield (
                f"the {role} {value!r} looks like a missing value, and counts as one {role} with {share:.1%} of the "
                f"weight; leave it out: --where '{name}!={value}'"
            )


def _notes_of_users(log: pl.DataFrame, columns: Columns) -> Iterator[str]:
    counted = log.group_by("user").agg(pl.col("weight").sum(), rows=pl.len())
    weight, share = pl.col("weight"), pl.col("weight") / pl.col("weight").sum()
    is_large = (weight >= _TIMES_THE_MEAN * weight.mean()) & ((share >= _USER_SHARE) | (pl.col("rows") >= _USER_ROWS))
    is_known = ~pl.col("user").cast(pl.String).str.to_lowercase().is_in(_LIKE_MISSING)
    many = counted.with_columns(share=share).filter(is_large & is_known).sort("share", descending=True).head(3)
    if not many.is_empty():
        users = ", ".join(f"{user!r} ({part:.1%})" for user, part in many.select("user", "share").iter_rows())
        yield (
            f"single users have many rows: {users}; if they are robots or stand for unknown visitors, "
            f"leave them out, as --where '{columns.user}!=ID'"
        )
    user = pl.col("user").to_physical()
    shared = log.group_by("item").agg(shared=user.min() != user.max()).get_column("shared")
    if counted.height >= _FEWEST_USERS and not shared.any():
        yield "no two users have an item in common, so nothing can be learnt; is the item column right?"
