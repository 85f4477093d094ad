"""Interactions read from files: one weight per user and item, with everything left out counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import polars as pl

from offline.columns import Columns, choose_columns
from offline.errors import DataError, SettingError
from offline.files import find_files, fingerprint, reading
from offline.filters import parse_filters
from offline.rows import Rows, to_rows
from offline.tables import Table, open_tables
from offline.titles import most_frequent, read_titles
from offline.values import MAX_ID_BYTES

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
    filters = parse_filters(where)
    named = columns or Columns()
    _check_roles(named, event_weights)
    tables = open_tables(path, delimiter)
    guess = _guessed_roles(named, event_weights, titles, weighting)
    chosen = choose_columns(named, list(tables[0].schema), guess, str(path))
    rows = to_rows(tables, chosen, filters, event_weights)
    survey = _survey(rows, path)
    _check_weights(rows, survey, tables, chosen)
    left_out = _left_out(rows, survey, path)
    kept = rows.frame.filter(pl.col("why") == 0)
    with reading(path):
        pairs = _pairs(kept, chosen, weighting)
        segments = _segments(kept, path) if chosen.segment else None
    _check_size(pairs, path)
    if titles is not None:
        named_items = read_titles(titles, str(chosen.item), named.title, delimiter)
    else:
        named_items = most_frequent(kept.select("item", "title"), path) if chosen.title else {}
    files = find_files(path) + (find_files(titles) if titles is not None else [])
    return Interactions(
        pairs,
        named_items,
        segments,
        int(survey.get_column("rows").sum()),
        left_out,
        fingerprint(files),
        _time_range(survey, chosen, named, path),
        chosen,
    )


def _check_roles(named: Columns, event_weights: Mapping[str, float] | None) -> None:
    sources = [
        name
        for name, given in (
            (f"the weight column {named.weight!r}", named.weight is not None),
            ("event weights", event_weights is not None),
            (f"the count column {named.count!r}", named.count is not None),
        )
        if given
    ]
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


def _survey(rows: Rows, path: Path) -> pl.DataFrame:
    """Return, for each `why` that occurs, the number of rows and of bad ones, and the range of their times."""
    aggregates = [pl.len().alias("rows"), pl.col("bad").sum()]
    if "time" in rows.frame.collect_schema():
        aggregates += [pl.col("time").min().alias("first"), pl.col("time").max().alias("last")]
    with reading(path):
        return rows.frame.group_by("why").agg(aggregates).collect(engine="streaming")


def _left_out(rows: Rows, survey: pl.DataFrame, path: Path) -> dict[str, int]:
    """Return how many rows are left out by reason; raises DataError when that is all of them."""
    total = survey.get_column("rows").sum()
    by_reason = dict(survey.select("why", "rows").iter_rows())
    left_out = {reason: by_reason[at] for at, reason in enumerate(rows.reasons, start=1) if at in by_reason}
    if sum(left_out.values()) == total:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        raise DataError(
            f"Nothing is left of the {total:,} rows of {path}: {counts}; loosen the filters or mend the rows."
        )
    return left_out


def _check_weights(rows: Rows, survey: pl.DataFrame, tables: Sequence[Table], columns: Columns) -> None:
    if not survey.get_column("bad").sum():
        return
    number, row = rows.frame.filter("bad").select("file", "row").head(1).collect().row(0)
    table = tables[number]
    value = table.frame.slice(row, 1).select(str(columns.weight)).collect().item()
    raise DataError(
        f"{table.file}, row {row + 2}, column {columns.weight!r}: the weight {value!r} is not a finite number; "
        "mend the row, filter it out, or name another weight column."
    )


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


def _time_range(survey: pl.DataFrame, chosen: Columns, named: Columns, path: Path) -> tuple[datetime, datetime] | None:
    if chosen.time is None:
        return None
    first, last = survey.filter(pl.col("why") == 0).select("first", "last").row(0)
    if first is None or last is None:
        if named.time is not None:
            raise DataError(
                f"The column {named.time!r} of {path} holds no times that can be read; "
                "write 2026-11-20T08:00:00Z, or seconds since 1970."
            )
        return None
    return first, last
