"""Rows of input tables by a declared schema; rows left out are counted, bad ones shown.

A `RowSchema` declares which values the columns of a table become and which rows are left out, and `Rows` reads the
tables of one input by their schemas. A *bad row* cannot be read; few are tolerated (`Format.max_bad_rows`).
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import inf
from typing import NamedTuple

import polars as pl

from hotplate.base.report import format_count
from hotplate.offline.errors import DataError
from hotplate.offline.input.columns import (
    DECIMAL_COMMA,
    EARLIEST,
    MAX_BOOST,
    START_OF_1970,
    Kind,
    choose_columns,
    kind_of,
)
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import DataFile, DataSource, input_files, named_paths
from hotplate.offline.input.tables import EXTRA, ROW, Table, open_tables
from hotplate.offline.options import Format
from hotplate.stores.encoding import MAX_ID_BYTES

# Columns beside the values: the number of the table that a row is from, and the reason to leave it out, null if kept.
FILE = "\0file"
_REASON = "\0reason"
_MOST_ROWS_SHOWN = 5
# Texts of floats from 2**53 on, and what spreadsheets make of long numbers.
_ROUNDED_PATTERN = r"^-?(\d(\.\d+)?[eE]\+\d{2,}|(9\d{15}|\d{17,})\.0)$"
# In a column of floats, `Table.text` keeps the point of whole numbers that the type rounds.
_ROUNDED_FLOAT_PATTERN = r"\.0$|e\+|inf"
# Arrays and objects of JSON among texts.
_NESTED_PATTERN = r'(?s)^(\[(\]|(["\[{\d-]|null|true|false).*\]$)|\{["}])'
_UNREAD = datetime.min  # noqa: DTZ901 -- naive UTC
_USUAL_TIMES = "ISO 8601 or seconds since 1970; give --time-format, as %d/%m/%Y, or --time-column none"


_STOCK_WORDS = {
    **dict.fromkeys(("true", "yes", "in stock", "instock"), 1.0),
    **dict.fromkeys(("false", "no", "out of stock", "outofstock"), 0.0),
}


class Fault(NamedTuple):
    """What is wrong with a value, as the end of a sentence; *advice* follows the first value that is *advised*."""

    text: str
    advice: str = ""
    advised: str = ""


class Check(NamedTuple):
    """A reason to leave out the rows that meet a *condition* over their values.

    fault    makes them bad rows, of which few are tolerated: what is wrong with their values in the table's *column*
    example  the name of the value that explains the reason, if any
    """

    condition: pl.Expr
    fault: Fault = Fault("")
    column: str = ""
    example: str = ""


class _KindCheck(NamedTuple):
    """A check for roles of some *kinds*, by the value and the type of the column."""

    kinds: Sequence[Kind]
    reason: str
    condition: Callable[[pl.Expr, pl.DataType], pl.Expr]
    fault: Fault = Fault("")


def _is_missing(value: pl.Expr, _: pl.DataType) -> pl.Expr:
    return value.is_null()


def _is_rounded(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    return value.str.contains(_ROUNDED_FLOAT_PATTERN if dtype.is_float() else _ROUNDED_PATTERN)


def _is_in_future(time: pl.Expr, _: pl.DataType) -> pl.Expr:
    # Ages count from the newest row. A day allows for time zones.
    return time > datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)


def _is_out_of_bounds(boost: pl.Expr, _: pl.DataType) -> pl.Expr:
    return ~boost.is_between(0, MAX_BOOST, closed="right")


def _is_long(value: pl.Expr, _: pl.DataType) -> pl.Expr:
    return value.str.len_bytes() > MAX_ID_BYTES


_ROUNDED = Fault("is a rounded number", ", so different ids may have become one; write ids as whole numbers or texts")
_NESTED = Fault("is an array or an object; write one id, as a text or a number")
_NO_OBJECT = Fault("is not a JSON object", " (write null for NaN and Infinity)", r".*:\s*-?(NaN|Infinity)\b")
_NO_NUMBER = Fault("is not a finite number", " (write a decimal point)", DECIMAL_COMMA)
_NO_TIME = Fault("is not a time as {layout}")
_NO_STOCK = Fault("is neither a number nor true or false")
_NO_BOOST = Fault(f"is not a number above zero and at most {MAX_BOOST:,}")
_NUMBERS: Sequence[Kind] = ("number", "amount", "score")
# Why rows are left out, by the kind of a role, the first reason first. A rounded id, such as `1.23457E+15`, may stand
# for several users or items.
_CHECKS = (
    _KindCheck(("id",), "no {role}", _is_missing),
    _KindCheck(("id", "group"), f"{{role}} id over {MAX_ID_BYTES} bytes", _is_long),
    _KindCheck(("id", "group"), "{role} id that was rounded", _is_rounded, _ROUNDED),
    _KindCheck(("counted",), "no {column}", _is_missing),
    _KindCheck(("number",), "no {role}", _is_missing),
    _KindCheck(_NUMBERS, "{role} that is not a number", lambda value, _: value.is_infinite(), _NO_NUMBER),
    _KindCheck(("stock",), "{role} that cannot be read", lambda value, _: value.is_infinite(), _NO_STOCK),
    _KindCheck(("boost",), "{role} out of bounds", _is_out_of_bounds, _NO_BOOST),
    _KindCheck(("time",), "{role} that cannot be read", lambda value, _: value < EARLIEST, _NO_TIME),
    _KindCheck(("time",), "in the future", _is_in_future, Fault("lies in the future")),
)


def _value(table: Table, column: str, kind: Kind) -> pl.Expr:
    """Return how a column is read: texts, also of arrays; floats, infinite for other texts than numbers; and times.

    A missing amount is 1, and a missing score, boost or stock is infinite. Times that cannot be read become the year 1.
    Exports write a missing time as the start of 1970, so it is null.
    """
    if kind == "time":
        time = table.time(column)
        is_missing = table.is_absent(column) | (time == START_OF_1970).fill_null(value=False)
        return pl.when(~is_missing).then(time.fill_null(_UNREAD))
    if kind == "amount":
        number = table.number_or_inf(column)
        return pl.when(number != 0).then(number).otherwise(1.0)
    if kind in ("score", "boost"):
        # float32 by its shortest decimal form: 0.1 stays 0.1, not 0.10000000149.
        is_short = table.schema[column] == pl.Float32
        number = pl.col(column).cast(pl.String).cast(pl.Float64) if is_short else table.number(column)
        return number.fill_nan(None).fill_null(inf)
    if kind == "stock":
        word = table.text(column).str.strip_chars().str.to_lowercase()
        amount = word.replace_strict(_STOCK_WORDS, default=None, return_dtype=pl.Float64)
        return pl.coalesce(amount, table.number(column), inf)
    if kind == "texts":
        return table.texts(column)
    return table.number_or_inf(column) if kind == "number" else table.text(column)


@dataclass(slots=True)
class RowSchema:
    """Which values the rows of a *table* become, and why rows are left out.

    values   expressions over the table's columns, by name
    checks   by reason; the first one that a row meets counts
    counted  rows that the table leaves out already: their number by reason, and by the value that explains it
    """

    table: Table
    values: dict[str, pl.Expr] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    counted: dict[str, Mapping[str | None, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Malformed rows are bad."""
        self.values[EXTRA] = pl.col(EXTRA)
        fault = _NO_OBJECT if self.table.is_json else Fault("stands after the last field")
        self.checks["malformed row"] = Check(pl.col(EXTRA).is_not_null(), fault, EXTRA)

    @classmethod
    def of(cls, table: Table, columns: Mapping[str, str]) -> "RowSchema":
        """Return how to read *columns* of a table, by role."""
        schema = cls(table)
        schema.read(columns)
        return schema

    def keep(self, reason: str, condition: pl.Expr, column: str) -> None:
        """Leave out rows that do not meet a *condition* over the table's *column*, which explains the reason."""
        # Both are read with the values, because the table's columns are gone afterwards.
        self.values[f"\0{reason}"] = ~condition
        self.values[f"\0column of {reason}"] = self.table.text(column)
        self.checks[reason] = Check(pl.col(f"\0{reason}"), example=f"\0column of {reason}")

    def read(self, columns: Mapping[str, str]) -> None:
        """Read columns, by role, and leave out rows with values that its kind does not allow."""
        for role, column in columns.items():
            self.values[role] = _value(self.table, column, kind_of(role))

        # In a file that was joined from several, the other headers are rows with the columns' names as values.
        ids = {role: column for role, column in columns.items() if kind_of(role) == "id"}
        if len(ids) > 1:
            is_header = pl.all_horizontal(pl.col(role).eq_missing(column) for role, column in ids.items())
            self.checks["header again"] = Check(is_header)

        if {"item", "other"} <= columns.keys():
            self.checks["similar to itself"] = Check(pl.col("item") == pl.col("other"))

        for role, column in columns.items():
            if self.table.is_json and kind_of(role) in ("id", "group"):
                is_nested = pl.col(role).str.contains(_NESTED_PATTERN)
                self.checks[f"{role} id that is an array or an object"] = Check(is_nested, _NESTED, column)

        layout = self.table.form.time_format or _USUAL_TIMES
        for check in _CHECKS:
            for role, column in columns.items():
                if kind_of(role) in check.kinds:
                    reason = check.reason.format(role=role, column=column)
                    condition = check.condition(pl.col(role), self.table.schema[column])
                    fault = check.fault._replace(text=check.fault.text.format(layout=layout))
                    self.checks[reason] = Check(condition, fault, column if fault.text else "")


class Rows:
    """The rows of several tables.

    total     number of rows
    kept_rows number of rows kept
    left_out  number of rows left out by reason, without zeros
    notes     a sentence with the first bad rows, if any
    """

    def __init__(
        self,
        schemas: Sequence[RowSchema],
        source: str,
        *,
        repeated: Sequence[str] = (),
        may_be_empty: bool = False,
    ) -> None:
        """Read the tables of *schemas*, and count their rows by the reason to leave them out.

        *source* names the data in messages. *repeated* are names of texts that become categories, to save memory; if
        there are any, all rows are kept in memory, else they are read again for each use. Raises DataError if too many
        rows are bad, and if no row is kept, unless the tables *may_be_empty* and have none.
        """
        self._schemas = schemas
        self._checks = {reason: check for schema in schemas for reason, check in schema.checks.items()}
        self._reasons = pl.Enum(list(self._checks))
        marked = [self._mark_rows(schema, file, repeated) for file, schema in enumerate(schemas)]
        self._with_values_of_checks = pl.concat(marked, how="diagonal")
        of_checks = {name for schema in schemas for name in schema.values if name.startswith("\0")}
        self._all = self._with_values_of_checks.drop(of_checks)

        with data_errors(source, [schema.table.file for schema in schemas]):
            if repeated:
                self._all = self._all.collect(engine="streaming").lazy()
            counted = self._all.group_by(_REASON).len().collect(engine="streaming")

        row_counts = Counter[str | None](dict(counted.iter_rows()))
        for schema in schemas:
            for reason, rows_by_value in schema.counted.items():
                row_counts[reason] += sum(rows_by_value.values())
        self.total = row_counts.total()
        self.kept_rows = row_counts[None]
        self.left_out = {reason: row_counts[reason] for reason in self._checks if row_counts[reason]}

        bad_rows = self._check_bad_rows(source)
        self.notes = [f"bad rows are left out: {'; '.join(bad_rows)}"] if bad_rows else []
        if not self.kept_rows and (self.total or not may_be_empty):
            raise self._nothing_left_error(source)

    @property
    def kept(self) -> pl.LazyFrame:
        """The values, FILE and ROW of the rows kept."""
        return self._all.filter(pl.col(_REASON).is_null()).drop(_REASON)

    def values(self, reason: str) -> list[str | None]:
        """Return the values that explain why rows were left out for *reason*, most frequent first.

        Examples are the event of an unknown event, and the column of a filter, for which the tables are read again.
        """
        counts = Counter[str | None]()
        for schema in self._schemas:
            counts.update(schema.counted.get(reason, {}))
        example = self._checks[reason].example
        if example:
            rows = self._with_values_of_checks if example.startswith("\0") else self._all
            values = rows.filter(self._has(reason)).group_by(pl.col(example).cast(pl.String)).len()
            counts.update(dict(values.collect(engine="streaming").iter_rows()))
        return sorted(counts, key=lambda value: (-counts[value], value is not None, value or ""))

    def _nothing_left_error(self, source: str) -> DataError:
        """Return the error for an input (*source*) that has no rows, or only rows that were left out.

        The message gives the number of rows for each reason, and values that explain it, such as `10 no user, 5 unknown
        event (most often 'buy', 'view')`.
        """
        if not self.total:
            return DataError(f"{source} has no rows, or a header alone.")

        counts = list[str]()
        for reason, count in self.left_out.items():
            values = self.values(reason)[:_MOST_ROWS_SHOWN]
            examples = ", ".join("no value" if value is None else f"{value!r:.80}" for value in values)
            counts.append(f"{count:,} {reason} (most often {examples})" if examples else f"{count:,} {reason}")
        return DataError(f"Nothing is left of the {format_count(self.total, 'row')} of {source}: {', '.join(counts)}.")

    def _check_bad_rows(self, source: str) -> list[str]:
        """Return sentences on the first bad rows of each reason; DataError if bad rows are too large a share of all.

        A bad row is one that cannot be read. Of the reasons to leave rows out (the keys of `left_out`, with their
        numbers of rows), those of bad rows have a fault. *source* names the input in the error.
        """
        sentences = list[str]()
        bad_rows = 0
        for reason, count in self.left_out.items():
            if self._checks[reason].fault.text:
                bad_rows += count
                sentences += self._describe_bad_rows(reason)

        allowed_share = self._schemas[0].table.form.max_bad_rows
        if bad_rows > allowed_share * self.total:
            are = "is" if bad_rows == 1 else "are"
            way_out = ", or raise --max-bad-rows" if allowed_share else ""
            raise DataError(
                f"{bad_rows:,} of the {self.total:,} rows of {source} {are} bad, and at most {allowed_share:.3%} may "
                f"be; mend them{way_out}: {'; '.join(sentences[:_MOST_ROWS_SHOWN])}."
            )
        return sentences

    def _describe_bad_rows(self, reason: str) -> list[str]:
        """Return a sentence on some rows left out for *reason*: file, row number, value and fault.

        The first row of each table comes before further ones, as each table may have its own cause. Each table has its
        own fault: its columns may have other names, and malformed rows have too many fields in CSV, or are not JSON
        objects.
        """
        sentences = list[str]()
        left_out = self._all.filter(self._has(reason)).select(FILE, ROW).sort(FILE, ROW)
        first = left_out.sort(pl.int_range(pl.len()).over(FILE), FILE).head(_MOST_ROWS_SHOWN)

        # FILE is the number of the table in `_schemas`, and ROW the index of the row in it.
        advice = ""
        for file, row in first.sort(FILE, ROW).collect().iter_rows():
            schema = self._schemas[file]
            check = schema.checks[reason]
            text, value = schema.table.describe(row, check.column)
            sentences.append(f"{text} {check.fault.text}")
            if not advice and re.match(check.fault.advised, value):
                advice = check.fault.advice
                sentences[-1] += advice
        return sentences

    def _has(self, reason: str) -> pl.Expr:
        return pl.col(_REASON) == pl.lit(reason, self._reasons)

    def _mark_rows(self, schema: RowSchema, file: int, repeated: Sequence[str]) -> pl.LazyFrame:
        """Return the table of *schema* as a frame [ROW, its values, FILE, _REASON], one row for each of the table's.

        *file* is the number of the table. _REASON is the first reason to leave the row out, null if it is kept.
        *repeated* are names of texts that become categories, to save memory.
        """
        rows = schema.table.frame.select(ROW, **schema.values)

        # Conditions over the values are a separate step, as polars would compute the values again for each of them.
        reasons = [
            pl.when(check.condition).then(pl.lit(reason, self._reasons)) for reason, check in schema.checks.items()
        ]

        # The conditions are in the order in which they apply, so the first reason that is not null counts.
        marked = rows.with_columns(pl.lit(file, pl.UInt32).alias(FILE), pl.coalesce(reasons).alias(_REASON))

        categories = [pl.col(name).cast(pl.Categorical) for name in repeated if name in schema.values]
        return marked.with_columns(categories)


def read_roles(
    tables: Sequence[Table],
    source: str,
    named: Mapping[str, str | None],
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    may_be_empty: bool = False,
) -> Rows:
    """Read columns of *tables* by role, as `choose_columns` finds them; *source* names the tables in messages."""
    columns = choose_columns(named, list(tables[0].schema), source, required=required, optional=optional)
    return Rows([RowSchema.of(table, columns) for table in tables], source, may_be_empty=may_be_empty)


def read_roles_of(
    path: DataSource, roles: Sequence[str], named: Mapping[str, str | None] | None = None, *, may_be_empty: bool = False
) -> pl.DataFrame:
    """Return columns of a small file or folder of items as `values_by_role`."""
    with input_files([path]) as files:
        return values_by_role(files, named_paths([path]), roles, named or {}, may_be_empty=may_be_empty)


def with_found_header(form: Format, files: Sequence[DataFile], named: Mapping[str, str | None]) -> Format:
    """Return the format of *files* that are read beside lists of the format *form*.

    They have a header if the lists have one, or if the first line of the first file names the columns of all roles in
    *named*: by the name there, or a usual one for None. A column that is named by its number is in no header.
    """
    if form.header or any(name is not None and name.isdecimal() for name in named.values()):
        return form
    with_header = replace(form, header=True)
    first_line = list(open_tables(files[:1], with_header)[0].schema)
    with suppress(DataError):
        choose_columns(named, first_line, "", required=list(named))
        return with_header
    return form


def values_by_role(
    files: Sequence[DataFile],
    source: str,
    roles: Sequence[str],
    named: Mapping[str, str | None],
    form: Format | None = None,
    *,
    may_be_empty: bool = False,
) -> pl.DataFrame:
    """Read columns of *files* under the names of their roles, such as `item`, the first one, and `title`.

    *roles* are required: their columns are those of *named*, by role, and else those with usual names. *source* names
    the files in messages. Rows without an item are left out. Raises DataError for a missing role, a bad row, and no
    rows, unless the files *may_be_empty*.
    """
    form = with_found_header(form or Format(), files, {role: named.get(role) for role in roles})
    tables = open_tables(files, replace(form, max_bad_rows=0))
    # The name for the item may be that of the interactions' files, and these files may call it otherwise.
    if named.get("item") not in tables[0].schema:
        named = {**named, "item": None}
    with data_errors(source, files):
        rows = read_roles(tables, source, named, required=roles, may_be_empty=may_be_empty)
        return rows.kept.select("item", pl.exclude("item", FILE, ROW)).collect(engine="streaming")


def read_titles(
    files: Sequence[DataFile],
    source: str,
    named: Mapping[str, str | None],
    rows: pl.LazyFrame,
    form: Format | None = None,
) -> dict[str, str]:
    """Return the most frequent title of each item in *files* of titles or, without any, in *rows* [item, title].

    Of equally frequent ones, it is the first in the alphabet. *source*, *named* and *form* are those of
    `values_by_role`.
    """
    if files:
        rows = values_by_role(files, source, ["item", "title"], named, form).lazy()
    if "title" not in rows.collect_schema():
        return {}
    # Titles are stripped of few rows: of each different one of an item.
    counts = rows.group_by("item", "title").agg(rows=pl.len()).collect(engine="streaming")
    title = pl.col("title").cast(pl.String).str.strip_chars()
    titles = counts.select(pl.col("item").cast(pl.String), title, "rows").filter(pl.col("title") != "")
    # Different titles may be the same when stripped.
    sums = titles.group_by("item", "title").sum()
    most_frequent_first = sums.sort("item", "rows", "title", descending=[False, True, False])
    return dict(most_frequent_first.unique("item", keep="first", maintain_order=True).drop("rows").iter_rows())
