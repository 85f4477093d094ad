"""Interactions read from files: one weight per user and item, with everything left out counted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import polars as pl

from offline.errors import DataError, SettingError
from offline.input.columns import MAX_ID_BYTES, Columns, choose_columns, number_of, time_of
from offline.input.files import Table, data_errors, find_files, fingerprint, open_tables
from offline.input.filters import Filter, parse_filter
from offline.input.rows import Rows, Survey, TableShape, id_reasons, item_titles, text_column

Weighting = Literal["sum", "binary", "log"]


@dataclass(frozen=True, slots=True)
class Interactions:
    """
    What the files say, one row per user and item; lives until the matrix is built.

    pairs        [user: str, item: str, weight: f64 > 0, and time: datetime (naive UTC), if there is one], in no order
    titles       by item, as far as they are known
    segments     [segment, item, weight: f64, the number of users of the segment that have the item], or None
    rows         how many there were, those left out among them
    left_out     how many rows were left out, by reason, in the order in which the reasons are tried; zeros not listed
    fingerprint  a digest of all files that were read
    time_range   the first and last time of the rows kept, or None
    columns      the columns that were used, named or guessed
    """

    pairs: pl.DataFrame
    titles: dict[str, str]
    segments: pl.DataFrame | None
    rows: int
    left_out: dict[str, int]
    fingerprint: str
    time_range: tuple[datetime, datetime] | None
    columns: Columns


def read_interactions(
    path: Path,
    *,
    columns: Columns | None = None,
    delimiter: str | None = None,
    event_weights: Mapping[str, float] | None = None,
    where: Sequence[str] = (),
    titles: Path | None = None,
    weighting: Weighting = "sum",
) -> Interactions:
    """
    Read the file, or the folder of files of one kind, at *path*.

    A row weighs what its weight column says, or its event by *event_weights*, or else 1; the rows of a user and an item
    are added up. With `columns.count` their weight is the number of different values in that column instead. Then
    *weighting* makes it 1 (binary) or 1 + ln(weight) (log); binary reads no weight column unless one is named.

    Raises DataError when anything cannot be read or nothing is left, SettingError for a filter that makes no sense.
    """
    filters = [parse_filter(text) for text in where]
    named = columns or Columns()
    _check_roles(named, event_weights)
    tables = open_tables(path, delimiter)
    guessed = _guessed_roles(named, event_weights, titles, weighting)
    required = ("user", "item") if event_weights is None else ("user", "item", "event")
    schema = list(tables[0].schema)
    chosen = Columns(**choose_columns(asdict(named), schema, str(path), guessed=guessed, required=required))
    time_sample = _time_sample(tables, chosen)
    rows = Rows(tables, [_shape(table, chosen, filters, event_weights, time_sample) for table in tables])
    bounds = () if chosen.time is None else (pl.col("time").min().alias("first"), pl.col("time").max().alias("last"))
    survey = rows.survey(path, "weight", chosen.weight, *bounds, advice="loosen the filters or mend the rows")
    with data_errors(path):
        pairs = _pairs(rows.kept, chosen, weighting)
        segments = _segments(rows.kept, path) if chosen.segment else None
    _check_size(pairs, path)
    return Interactions(
        pairs,
        item_titles(rows.kept, path, titles, {"item": chosen.item, "title": named.title}, delimiter),
        segments,
        survey.rows,
        survey.left_out,
        fingerprint(find_files(path) + (find_files(titles) if titles is not None else [])),
        _time_range(survey, chosen, named, path),
        chosen,
    )


def _check_roles(named: Columns, event_weights: Mapping[str, float] | None) -> None:
    weights = {
        f"the weight column {named.weight!r}": named.weight,
        "event weights": event_weights,
        f"the count column {named.count!r}": named.count,
    }
    sources = [name for name, value in weights.items() if value is not None]
    if len(sources) > 1:
        raise SettingError(f"Both {sources[0]} and {sources[1]} are given as the weight; give one of them.")
    if named.event is not None and event_weights is None:
        raise SettingError(f"The event column {named.event!r} needs event weights, such as view=1,cart=3,buy=5.")


def _guessed_roles(
    named: Columns, event_weights: Mapping[str, float] | None, titles: Path | None, weighting: Weighting
) -> list[str]:
    roles = ["user", "item", "time", "segment"]
    if event_weights is not None:
        roles.append("event")
    elif named.count is None and weighting != "binary":
        roles.append("weight")
    if titles is None:
        roles.append("title")
    return roles


def _shape(
    table: Table,
    columns: Columns,
    filters: Sequence[Filter],
    event_weights: Mapping[str, float] | None,
    time_sample: str | None,
) -> TableShape:
    """Return how *table* is read: user, item, weight and, where there is such a column, the rest."""
    weight, no_weight, invalid = _weight(table, columns, event_weights)
    values = [weight.alias("weight")]
    for role in ("user", "item", "title", "segment", "count"):
        name = getattr(columns, role)
        if name is not None:
            values.append(text_column(table, name).alias(role))
    if columns.time is not None:
        time = time_of(columns.time, table.schema[columns.time], time_sample)
        values.append((pl.lit(None, dtype=pl.Datetime("us")) if time is None else time).alias("time"))
    return TableShape(values, _left_out(table, columns, filters) | no_weight, invalid)


def _left_out(table: Table, columns: Columns, filters: Sequence[Filter]) -> dict[str, pl.Expr]:
    """Return the reasons to leave a row out, in the order in which they are tried, each with its condition."""
    left_out = {f"where {each.text}": ~each.expression(table.schema, str(table.file)) for each in filters}
    left_out |= id_reasons({"user": text_column(table, columns.user), "item": text_column(table, columns.item)})
    if columns.count is not None:
        left_out[f"no {columns.count}"] = text_column(table, columns.count).is_null()
    return left_out


def _weight(
    table: Table, columns: Columns, event_weights: Mapping[str, float] | None
) -> tuple[pl.Expr, dict[str, pl.Expr], pl.Expr]:
    """Return what a row weighs, the reasons to leave it out for that, and when its weight is not a number."""
    never = pl.lit(value=False)
    if event_weights is not None:
        event = text_column(table, columns.event)
        value = event.replace_strict(event_weights, default=None, return_dtype=pl.Float64)
        return value, {"unknown event": value.is_null()}, never
    if columns.weight is None:
        return pl.lit(1.0), {}, never
    column, dtype = pl.col(columns.weight), table.schema[columns.weight]
    value = number_of(columns.weight, dtype)
    absent = column.is_null() | (column.str.strip_chars() == "") if dtype == pl.String else column.is_null()
    left_out = {"no weight": absent, "weight zero or less": (value <= 0) & value.is_finite()}
    return value, left_out, ~value.is_finite().fill_null(value=False)


def _time_sample(tables: Sequence[Table], columns: Columns) -> str | None:
    """Return the first text in the time column, which shows its format."""
    if columns.time is None or tables[0].schema[columns.time] != pl.String:
        return None
    for table in tables:
        column = pl.col(columns.time)
        with data_errors(table.file):
            first = table.frame.select(column).filter(column.str.strip_chars() != "").head(1).collect()
        if first.height:
            return str(first.item())
    return None


def _pairs(kept: pl.LazyFrame, columns: Columns, weighting: Weighting) -> pl.DataFrame:
    weight = pl.col("weight").sum() if columns.count is None else pl.col("count").n_unique().cast(pl.Float64)
    aggregates = [weight.alias("weight")]
    if columns.time is not None:
        aggregates.append(pl.col("time").min())
    pairs = kept.group_by("user", "item").agg(aggregates).collect(engine="streaming")
    if weighting == "binary":
        return pairs.with_columns(weight=pl.lit(1.0))
    if weighting == "log":
        # Weights below 1 (fractions of a rating, say) would turn to nothing and less.
        return pairs.with_columns(weight=1 + pl.col("weight").clip(lower_bound=1).log())
    return pairs


def _segments(kept: pl.LazyFrame, path: Path) -> pl.DataFrame:
    longest = kept.select(pl.col("segment").str.len_bytes().max()).collect(engine="streaming").item()
    if longest is not None and longest > MAX_ID_BYTES:
        raise DataError(f"The segment column of {path} holds a value of {longest:,} bytes; name one with short values.")
    users = pl.col("user").n_unique().cast(pl.Float64).alias("weight")
    present = kept.filter(pl.col("segment").is_not_null())
    return present.group_by("segment", "item").agg(users).sort("segment", "item").collect(engine="streaming")


def _check_size(pairs: pl.DataFrame, path: Path) -> None:
    for what in ("user", "item"):
        ids = pairs.get_column(what)
        if (ids == ids[0]).all():
            raise DataError(
                f"{path} has only one {what}, {ids[0]!r}, in the rows that are kept; recommending needs at least two; "
                f"see that the {what} column is the right one."
            )


def _time_range(survey: Survey, chosen: Columns, named: Columns, path: Path) -> tuple[datetime, datetime] | None:
    if chosen.time is None:
        return None
    first, last = survey.kept["first"], survey.kept["last"]
    if first is None and named.time is not None:
        raise DataError(
            f"The column {named.time!r} of {path} holds no times that can be read; "
            "write 2026-11-20T08:00:00Z, or seconds since 1970."
        )
    return None if first is None else (first, last)
