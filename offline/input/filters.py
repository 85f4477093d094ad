"""Filters on rows, such as `quantity>0`."""

import re
from dataclasses import dataclass, replace
from datetime import datetime

import polars as pl

from hotplate.offline.errors import SettingError
from hotplate.offline.input.columns import find_column, is_date, iso_time, number_in
from hotplate.offline.input.tables import Table
from hotplate.offline.options import Format

_FILTER_PATTERN = re.compile(r"\s*([^<>=!~]*[^<>=!~\s])\s*(>=|<=|==|!=|!~|=|~|>|<)(.*)", re.DOTALL)
_ORDERS = {">": pl.Expr.gt, ">=": pl.Expr.ge, "<": pl.Expr.lt, "<=": pl.Expr.le}
# The values that a column of Booleans is compared with; the empty one is a missing value.
_BOOLEANS = ("true", "false", "1", "0", "")
_MONTH_PATTERN = re.compile(r"\d{4}-\d\d")
_QUOTED_PATTERN = re.compile(r"([\"']).*\1", re.DOTALL)
# Ids such as 007, and hashes such as 0e46.
_LEADING_ZERO_PATTERN = re.compile(r"[+-]?0[^.]")
# Texts that write a number: 5, +5.00 or 5.0e+00, but not the ids 05 and 5E0.
_NUMBER_PATTERN = r"^\s*[+-]?(0?|[1-9]\d*)(\.\d*)?([eE][+-]\d+)?\s*$"
_EXACT = pl.Decimal(38, 18)


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on rows; *text* is its original spelling."""

    text: str
    column: str
    operator: str
    value: str

    def column_in(self, table: Table) -> str:
        """Return the name of the column in *table*; raises DataError."""
        return find_column(self.column, list(table.schema), f"filter {self.text!r}", str(table.file))

    def condition(self, table: Table) -> pl.Expr:
        """Return the filter as a condition over its column of *table*.

        `~`, `!~`    search the text with the value as a regular expression
        `<`, `>` …  compare numbers if the value is one, else times
        `=`, `!=`    compare texts, where a missing value is an empty text, and numbers and times also by value

        The condition is never null, also for a missing value. Raises DataError for a missing column and one of lists or
        bytes, SettingError for a value that cannot be compared with the column.
        """
        name = self.column_in(table)
        if "~" in self.operator:
            matches = table.text(name).str.contains(self.value).fill_null(value=False)
            return matches if self.operator == "~" else ~matches

        if table.schema[name] == pl.Boolean and self.value.lower() not in _BOOLEANS:
            raise self._type_error(table, name)
        if self.operator in _ORDERS:
            return self._is_in_order(table, name).fill_null(value=False)
        is_equal = self._is_equal(table, name)
        return ~is_equal if self.operator == "!=" else is_equal

    def _is_equal(self, table: Table, name: str) -> pl.Expr:
        """Return whether the column *name* equals the value, in all kinds of files alike; never null.

        Texts are equal if they write the same number, whatever its size, or the same time: 5 and 5.00, but not 05,
        which is an id. `true` and `false` have any case.
        """
        dtype = table.schema[name]
        text = table.text(name).fill_null("")
        value = self.value
        if value.lower() in ("true", "false"):
            return text.str.to_lowercase() == value.lower()

        is_equal = text == value
        time = _time_in(value)
        if number_in(value) is not None and not is_date(dtype):
            number = pl.col(name).cast(pl.Int8) if dtype == pl.Boolean else pl.col(name)
            is_number = number.cast(pl.String).str.contains(_NUMBER_PATTERN)
            is_same = is_number & (_exact(number) == _exact(pl.lit(value)))
            return is_equal if _LEADING_ZERO_PATTERN.match(value) else is_equal | is_same.fill_null(value=False)
        if time is not None and not isinstance(dtype, pl.Time):
            return is_equal | self._times(table, name).eq_missing(pl.lit(time, pl.Datetime("us")))
        if value and (is_date(dtype) or dtype.is_numeric()):
            raise self._type_error(table, name)
        return is_equal

    def _is_in_order(self, table: Table, name: str) -> pl.Expr:
        """Return whether the column *name* is less or more than the value; null for what cannot be compared with it."""
        compare = _ORDERS[self.operator]
        time = _time_in(self.value)
        dtype = table.schema[name]
        if number_in(self.value) is not None and not is_date(dtype):
            if dtype.is_float():
                # The nearest value of the column's type: no float32 equals 0.1.
                return compare(pl.col(name).fill_nan(None), pl.lit(float(self.value), dtype))
            # Floats beyond 2**53 do not hold every id, nor every amount.
            exact = pl.col(name).cast(_EXACT, strict=False) if dtype.is_numeric() else _exact(pl.col(name))
            is_in_order = compare(table.number(name), float(self.value))
            return pl.coalesce(compare(exact, _exact(pl.lit(self.value))), is_in_order)
        if time is None:
            raise self._type_error(table, name)
        return compare(self._times(table, name), pl.lit(time, pl.Datetime("us")))

    def _type_error(self, table: Table, name: str) -> SettingError:
        """Return the error for a value that cannot be compared with the column *name*."""
        return SettingError(
            f"The filter {self.text!r} compares with {self.value!r}, but the column {name!r} of {table.file} is of "
            f"type {table.schema[name]}; write a date as 2026-01-31, a number as 1000 or 2.5, a Boolean as true or "
            "false, or nothing for a missing value."
        )

    def _times(self, table: Table, name: str) -> pl.Expr:
        """Return the column *name* as times, null for values that are not times."""
        times = table.time(name)
        if table.form.time_format is not None:  # perhaps the format of another column
            times = pl.coalesce(times, replace(table, form=Format()).time(name))
        return times


def _exact(number: pl.Expr) -> pl.Expr:
    """Return numbers or their texts as decimals, null for other texts, and for numbers from 1e20 on."""
    return number.cast(pl.String).str.strip_chars().cast(_EXACT, strict=False)


def _time_in(text: str) -> datetime | None:
    """Return a date, time or month in ISO 8601 as a naive time in UTC, or None."""
    return iso_time(f"{text}-01" if _MONTH_PATTERN.fullmatch(text) else text)


def parse_filter(text: str) -> Filter:
    """Parse a filter such as `quantity>0`: a column, one of `= != > >= < <= ~ !~`, and a value.

    Raises SettingError if there is no operator, if `<`, `>` and the like compare with neither a number nor a date, if
    the value is in quotes, and if `~` has an invalid regular expression.
    """
    parts = _FILTER_PATTERN.fullmatch(text)
    if parts is None:
        raise SettingError(
            f"The filter {text!r} cannot be read; write a column, one of = != > >= < <= ~ !~, and a value: quantity>0."
        )
    operator = parts[2]
    value = parts[3].strip()

    if operator[0] in "<>" and number_in(value) is None and _time_in(value) is None:
        raise SettingError(
            f"The filter {text!r} compares with {value!r}, which is neither a number nor a date; write 1000, 2.5 or "
            "2026-01-31."
        )
    if "~" not in operator and _QUOTED_PATTERN.fullmatch(value):
        raise SettingError(
            f"The filter {text!r} compares with a value in quotes; write {value[1:-1]!r} without them, or a regular "
            "expression (~) if they belong to it."
        )
    if "~" in operator:
        # polars compiles the expression.
        try:
            pl.select(pl.lit("").str.contains(value))
        except pl.exceptions.ComputeError as error:
            raise SettingError(f"The filter {text!r} has a regular expression that cannot be read.") from error

    return Filter(text=text, column=parts[1], operator=operator, value=value)
