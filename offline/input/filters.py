"""Filters on rows, such as `quantity>0`."""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

import polars as pl

from hotplate.offline.errors import SettingError
from hotplate.offline.input.columns import find_column, number_in
from hotplate.offline.input.rows import RowFilter
from hotplate.offline.input.tables import Table
from hotplate.offline.options import Format

_FILTER_PATTERN = re.compile(r"\s*([^<>=!~]*[^<>=!~\s])\s*(>=|<=|==|!=|!~|=|~|>|<)(.*)", re.DOTALL)
_COMPARISONS = {
    "=": pl.Expr.eq_missing, "==": pl.Expr.eq_missing, "!=": pl.Expr.ne_missing,
    ">": pl.Expr.gt, ">=": pl.Expr.ge, "<": pl.Expr.lt, "<=": pl.Expr.le,
}  # fmt: skip
_MONTH_PATTERN = re.compile(r"\d{4}-\d\d")
# Numbers that Python does not read, or not as finite ones.
_NUMERIC_PATTERN = re.compile(r"[+-]?([\d_,.' ]+|0x[\da-f]+|nan|inf(inity)?|[\d.]+e[+-]?\d+)", re.IGNORECASE)
_QUOTED_PATTERN = re.compile(r"([\"']).*\1", re.DOTALL)
_TRUE_AND_FALSE = {"true": True, "1": True, "false": False, "0": False}
# Larger numbers are compared as floats.
_MAX_WHOLE = 2**126
_MAX_DECIMAL_DIGITS = 38


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on rows; *text* is its original spelling."""

    text: str
    column: str
    operator: str
    value: str

    def on(self, table: Table) -> RowFilter:
        """Return the filter for the rows of *table*; raises DataError and SettingError as `_condition`."""
        name = find_column(self.column, list(table.schema), f"filter {self.text!r}", str(table.file))
        return RowFilter(self._condition(table, name), name)

    def _condition(self, table: Table, name: str) -> pl.Expr:
        """Return the filter as a condition over the column *name* of *table*.

        `~`, `!~`    search the text with the value as a regular expression
        `<`, `>` …  compare numbers if the value is one, else times
        `=`, `!=`    compare texts in columns of texts, where a missing value is an empty text, else Booleans, numbers
                     or times; `true` and `false` have any case, also in columns of texts

        The condition is never null, also for a missing value. Raises DataError for a column of lists or bytes,
        SettingError for a value that cannot be compared with the column.
        """
        dtype = table.schema[name]
        text = table.text(name)

        if "~" in self.operator:
            matches = text.str.contains(self.value).fill_null(value=False)
            return matches if self.operator == "~" else ~matches

        if not self.value:
            return self._compare(text.fill_null(""), pl.lit(""))
        if dtype == pl.Boolean:
            return self._compare_booleans(table, name)

        # A column of texts may be of numbers in a file where all its values are missing.
        is_date = dtype == pl.Date or isinstance(dtype, pl.Datetime)
        is_order = self.operator[0] in "<>"
        time = _time_in(self.value)
        is_number = number_in(self.value) is not None
        is_numeric = is_number or time is not None or _NUMERIC_PATTERN.fullmatch(self.value) is not None
        if not is_order and not is_date and not (dtype.is_numeric() and is_numeric):
            return self._compare_texts(text.fill_null(""))

        if is_number and not is_date:
            return self._compare_numbers(table, name).fill_null(value=False)
        if time is not None:
            return self._compare_times(table, name, time).fill_null(value=False)
        raise self._type_error(
            f"the column {name!r} of {table.file} is of type {dtype}; write a date as 2026-01-31, a number as 1000 or "
            "2.5, or nothing for a missing value."
        )

    def _type_error(self, reason: str) -> SettingError:
        return SettingError(f"The filter {self.text!r} compares with {self.value!r}, but {reason}")

    def _compare_booleans(self, table: Table, name: str) -> pl.Expr:
        truth = _TRUE_AND_FALSE.get(self.value.lower())
        if truth is None or self.operator[0] in "<>":
            raise self._type_error(
                f"the column {name!r} of {table.file} holds true and false; compare it with one of them by = or !=."
            )
        return self._compare(pl.col(name), pl.lit(truth))

    def _compare_texts(self, column: pl.Expr) -> pl.Expr:
        # Programs write Booleans to text files as true, True or TRUE.
        lower = self.value.lower()
        if lower in ("true", "false"):
            return self._compare(column.str.to_lowercase(), pl.lit(lower))
        return self._compare(column, pl.lit(self.value))

    def _compare_times(self, table: Table, name: str, time: datetime) -> pl.Expr:
        """Compare the column *name* with *time*; null for values that are not times, if the operator is an order."""
        times = table.time(name)
        if table.form.time_format is not None:  # perhaps the format of another column
            times = pl.coalesce(times, replace(table, form=Format()).time(name))
        return self._compare(times, pl.lit(time, pl.Datetime("us")))

    def _compare_numbers(self, table: Table, name: str) -> pl.Expr:
        """Compare the column *name* with a number; null for values that are not numbers, if the operator is an order.

        Whole numbers and decimals are compared exactly, as floats beyond 2**53 do not hold every id, nor every amount.
        """
        dtype = table.schema[name]
        column = pl.col(name)
        number = Decimal(self.value)
        if dtype.is_float():
            # The nearest value of the column's type: a float32 is never equal to 0.1.
            return self._compare(column.fill_nan(None), pl.lit(float(number), dtype))

        floats = self._compare(table.number(name).fill_nan(None), pl.lit(float(number)))
        is_whole = abs(number) <= _MAX_WHOLE and number == number.to_integral_value()
        if isinstance(dtype, pl.Decimal):
            return self._compare(column, pl.lit(number)) if _fits_decimal(number) else floats
        if not is_whole:
            return floats

        whole_number = pl.lit(int(number), pl.Int128)
        if dtype.is_numeric():
            return self._compare(column.cast(pl.Int128), whole_number)
        whole_numbers = column.cast(pl.String).str.strip_chars().cast(pl.Int128, strict=False)
        return pl.coalesce(self._compare(whole_numbers, whole_number), floats)

    def _compare(self, column: pl.Expr, value: pl.Expr) -> pl.Expr:
        return _COMPARISONS[self.operator](column, value)


def _fits_decimal(number: Decimal) -> bool:
    """Return whether polars holds *number* as a decimal."""
    exponent = number.as_tuple().exponent
    before_point = max(1, number.adjusted() + 1)
    after_point = max(0, -exponent) if isinstance(exponent, int) else 0
    return before_point + after_point <= _MAX_DECIMAL_DIGITS


def _time_in(text: str) -> datetime | None:
    """Return a date, time or month in ISO 8601 as a naive time in UTC, or None."""
    if _MONTH_PATTERN.fullmatch(text):
        text += "-01"
    try:
        time = datetime.fromisoformat(text)
        return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):  # beyond the years 1 to 9999
        return None


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
