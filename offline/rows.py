"""The rows of all files in one shape: user, item, weight and the rest, and why a row is left out, if it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from offline.columns import Columns
from offline.files import reading
from offline.filters import Filter
from offline.tables import Table
from offline.values import MAX_ID_BYTES, number_of, text_of, time_of


@dataclass(frozen=True, slots=True)
class Rows:
    """
    The rows to be scanned, as often as needed.

    *frame* has `file` (its place among the tables), `row` (from 0, header aside), `why` (0: kept; else the place in
    *reasons*, from 1), `bad` (kept, but its weight is no number), user, item, weight, and, where there is such a
    column, time, title, segment and count.
    """

    frame: pl.LazyFrame
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class _Weight:
    """What a row weighs, why it might be left out for it, and when it is no number."""

    value: pl.Expr
    left_out: dict[str, pl.Expr]
    bad: pl.Expr


def to_rows(
    tables: Sequence[Table], columns: Columns, filters: Sequence[Filter], event_weights: Mapping[str, float] | None
) -> Rows:
    """Give *tables* one shape by *columns*; raises DataError when a filter or a column does not fit a table."""
    sample = _time_sample(tables, columns)
    frames = []
    reasons: list[str] = []
    for number, table in enumerate(tables):
        weight = _weight(table, columns, event_weights)
        left_out = _left_out(table, columns, filters) | weight.left_out
        reasons = list(left_out)
        numbered = [pl.when(condition).then(pl.lit(at)) for at, condition in enumerate(left_out.values(), start=1)]
        why = pl.coalesce(*numbered, pl.lit(0)).cast(pl.UInt8)
        frames.append(
            table.frame.with_row_index("row").select(
                pl.lit(number).alias("file"),
                pl.col("row"),
                why.alias("why"),
                (weight.bad & (why == 0)).alias("bad"),
                weight.value.alias("weight"),
                *_values(table, columns, sample),
            )
        )
    return Rows(pl.concat(frames), reasons)


def _text(table: Table, name: str | None) -> pl.Expr:
    return pl.lit(None, dtype=pl.String) if name is None else text_of(name, table.schema[name], str(table.file))


def _left_out(table: Table, columns: Columns, filters: Sequence[Filter]) -> dict[str, pl.Expr]:
    """Return the reasons to leave a row out, in the order in which they are tried, each with its condition."""
    user, item = _text(table, columns.user), _text(table, columns.item)
    left_out = {f"where {each.text}": ~each.expression(table.schema, str(table.file)) for each in filters}
    left_out |= {
        "no user": user.is_null(),
        "no item": item.is_null(),
        f"user id over {MAX_ID_BYTES} bytes": user.str.len_bytes() > MAX_ID_BYTES,
        f"item id over {MAX_ID_BYTES} bytes": item.str.len_bytes() > MAX_ID_BYTES,
    }
    if columns.count is not None:
        left_out[f"no {columns.count}"] = _text(table, columns.count).is_null()
    return left_out


def _weight(table: Table, columns: Columns, event_weights: Mapping[str, float] | None) -> _Weight:
    never = pl.lit(value=False)
    if event_weights is not None:
        event = _text(table, columns.event)
        value = event.replace_strict(event_weights, default=None, return_dtype=pl.Float64)
        return _Weight(value, {"unknown event": value.is_null()}, never)
    if columns.weight is None:
        return _Weight(pl.lit(1.0), {}, never)
    column, dtype = pl.col(columns.weight), table.schema[columns.weight]
    value = number_of(columns.weight, dtype)
    absent = column.is_null() | (column.str.strip_chars() == "") if dtype == pl.String else column.is_null()
    return _Weight(
        value,
        {"no weight": absent, "weight zero or less": (value <= 0) & value.is_finite()},
        ~value.is_finite().fill_null(value=False),
    )


def _values(table: Table, columns: Columns, time_sample: str | None) -> list[pl.Expr]:
    roles = ("user", "item", "title", "segment", "count")
    values = [_text(table, getattr(columns, role)).alias(role) for role in roles if getattr(columns, role) is not None]
    if columns.time is not None:
        time = time_of(columns.time, table.schema[columns.time], time_sample)
        values.append((pl.lit(None, dtype=pl.Datetime("us")) if time is None else time).alias("time"))
    return values


def _time_sample(tables: Sequence[Table], columns: Columns) -> str | None:
    """Return the first text in the time column, by which its format is told."""
    if columns.time is None or tables[0].schema[columns.time] != pl.String:
        return None
    for table in tables:
        column = pl.col(columns.time)
        with reading(table.file):
            found = table.frame.select(column).filter(column.str.strip_chars() != "").head(1).collect()
        if found.height:
            return str(found.item())
    return None
