"""Rows of all files in one shape, checked, and counted by the reason to leave them out; and the titles of items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from offline.errors import DataError
from offline.input.columns import MAX_ID_BYTES, choose_columns, is_numbered
from offline.input.files import Format, data_errors, find_files
from offline.input.tables import Table, open_tables, with_whole_numbers


@dataclass(frozen=True, slots=True)
class TableShape:
    """
    How the rows of one table are read.

    values    what a row becomes: expressions over the columns of the table, each with an alias
    left_out  why a row is left out: conditions over the values, in the order in which they are tried
    invalid   when the number of a row is invalid: a condition over the values
    """

    values: Sequence[pl.Expr]
    left_out: Mapping[str, pl.Expr]
    invalid: pl.Expr


@dataclass(frozen=True, slots=True)
class Survey:
    """How many rows there are, how many of them are left out by reason (zeros not listed), and what is kept."""

    rows: int
    left_out: dict[str, int]
    kept: dict[str, Any]


class Rows:
    """The rows of all tables, to be scanned as often as needed."""

    def __init__(self, tables: Sequence[Table], shapes: Sequence[TableShape]) -> None:
        """Take tables with their shapes, one each; what one has no value of is null in its rows."""
        self._tables = tables
        reasons = dict.fromkeys(reason for shape in shapes for reason in shape.left_out)
        self._reasons = {reason: number for number, reason in enumerate(reasons, start=1)}
        frames = [self._shaped(number, table, shapes[number]) for number, table in enumerate(tables)]
        self._all = pl.concat(frames, how="diagonal")

    @property
    def kept(self) -> pl.LazyFrame:
        """The rows that are not left out: their values, and `row`, their number within their file from 0."""
        return self._all.filter(pl.col("reason") == 0).drop("file", "reason", "invalid")

    def survey(self, source: str, role: str, column: str | None, *aggregates: pl.Expr, advice: str) -> Survey:
        """
        Read all rows once and count them; *aggregates* are computed over the rows that are kept.

        Raises DataError for the first row whose number, the *role* in *column*, is invalid, and, with *advice*, when no
        row is kept.
        """
        with data_errors(source):
            counts = pl.len().alias("rows"), pl.col("invalid").sum()
            groups = self._all.group_by("reason").agg(*counts, *aggregates).collect(engine="streaming")
        if column is not None and groups.get_column("invalid").sum():
            raise self._invalid_number(role, column)
        by_reason = {group["reason"]: group for group in groups.iter_rows(named=True)}
        total = int(groups.get_column("rows").sum())
        left_out = {
            reason: by_reason[number]["rows"] for reason, number in self._reasons.items() if number in by_reason
        }
        if 0 not in by_reason:
            counted = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
            raise DataError(f"Nothing is left of the {total:,} rows of {source}: {counted}; {advice}.")
        return Survey(total, left_out, by_reason[0])

    def _shaped(self, number: int, table: Table, shape: TableShape) -> pl.LazyFrame:
        # In two steps, so that what a value is made of is not computed again for each condition.
        rows = table.frame.with_row_index("row").select("row", *shape.values)
        tried = [pl.when(found).then(pl.lit(self._reasons[reason])) for reason, found in shape.left_out.items()]
        reason = pl.coalesce(*tried, pl.lit(0)).cast(pl.UInt8)
        rows = rows.with_columns(file=pl.lit(number), reason=reason)
        return rows.with_columns(invalid=shape.invalid & (pl.col("reason") == 0))

    def examples(self, reason: str, column: str, count: int) -> list[str]:
        """Return the places and values in *column* of the first *count* rows that are left out for a *reason*."""
        of_reason = self._all.filter(pl.col("reason") == self._reasons[reason])
        found = of_reason.select("file", "row").head(count).collect()
        return [f"{self._place(file, row)}: {self._value(file, row, column)!r}" for file, row in found.iter_rows()]

    def _place(self, file: int, row: int) -> str:
        table = self._tables[file]
        return f"{table.file}, row {row + table.first_row}"

    def _value(self, file: int, row: int, column: str) -> object:
        return self._tables[file].frame.slice(row, 1).select(column).collect().item()

    def _invalid_number(self, role: str, column: str) -> DataError:
        file, row = self._all.filter("invalid").select("file", "row").head(1).collect().row(0)
        return DataError(
            f"{self._place(file, row)}, column {column!r}: the {role} {self._value(file, row, column)!r} is not a "
            f"finite number; mend the row, remove it, or name another {role} column."
        )


def id_reasons(ids: Mapping[str, str]) -> dict[str, pl.Expr]:
    """Return the reasons to leave a row out for its *ids*, values by role; one without a segment counts for all."""
    absent = {f"no {role}": pl.col(value).is_null() for role, value in ids.items() if role != "segment"}
    sizes = {f"{role} id over {MAX_ID_BYTES} bytes": pl.col(value).str.len_bytes() for role, value in ids.items()}
    return absent | {reason: size > MAX_ID_BYTES for reason, size in sizes.items()}


def read_titles(path: Path, named: Mapping[str, str | None], form: Format) -> dict[str, str]:
    """
    Return titles by item as the file, or folder, at *path* says, of several as `item_titles` does.

    *named* are its columns by role: that of the item need not be there, and is guessed then, as both are where no name
    is given. Raises DataError when either is missing or the file cannot be read.
    """
    source = str(path)
    tables = open_tables(find_files(path), form, source)
    schema = tables[0].schema
    item = named.get("item") if named.get("item") in schema and not is_numbered(list(schema)) else None
    roles = {"item": item, "title": named.get("title")}
    columns = choose_columns(roles, list(schema), source, guessed=roles, required=list(roles))
    tables, _ = with_whole_numbers(tables, [columns["item"]])
    texts = (table.frame.select(**{role: table.text(columns[role]) for role in roles}) for table in tables)
    return item_titles(pl.concat(texts).drop_nulls(), source)


def item_titles(rows: pl.LazyFrame, source: str) -> dict[str, str]:
    """
    Return titles by item, of *rows* [item, and perhaps title].

    Of several titles the most frequent counts, the first by alphabet among equals. Raises DataError when a file cannot
    be read.
    """
    if "title" not in rows.collect_schema():
        return {}
    title = pl.col("title").str.strip_chars()
    with data_errors(source):
        titled = rows.select("item", title=title).filter(pl.col("title") != "")
        counted = titled.group_by("item", "title").len().collect(engine="streaming")
    best = counted.sort("len", "title", descending=[True, False]).unique("item", keep="first", maintain_order=True)
    return dict(zip(best.get_column("item"), best.get_column("title"), strict=True))
