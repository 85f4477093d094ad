"""Filters on rows, such as `quantity>0`."""

import re
from dataclasses import dataclass
from decimal import Decimal

import polars as pl

from hotplate.offline.errors import SettingError
from hotplate.offline.input.columns import find_column, number_in
from hotplate.offline.input.tables import Table

_FILTER_PATTERN = re.compile(r"\s*([^<>=!~]*[^<>=!~\s])\s*(>=|<=|==|!=|!~|=|~|>|<)(.*)", re.DOTALL)
_COMPARISONS = {
    "=": pl.Expr.eq_missing, "==": pl.Expr.eq_missing, "!=": pl.Expr.ne_missing,
    ">": pl.Expr.gt, ">=": pl.Expr.ge, "<": pl.Expr.lt, "<=": pl.Expr.le,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on rows; *text* is its original spelling."""

    text: str
    column: str
    operator: str
    value: str

    def condition(self, table: Table) -> pl.Expr:
        """Return the filter (`column`, `operator` and `value`) as a condition over the columns of *table*.

        `~`, `!~`    search the text with the value as a regular expression
        `<`, `>=` …  compare numbers if the value is one, else texts that begin with a digit (dates)
        `=`, `!=`    compare numbers in columns of floats, else texts, where a missing value is an empty text

        The condition is never null, also for a missing value. Raises DataError for a missing column.
        """
        name = find_column(self.column, list(table.schema), f"filter {self.text!r}", str(table.file))
        text = table.text(name)

        if "~" in self.operator:
            matches = text.str.contains(self.value).fill_null(value=False)
            return matches if self.operator == "~" else ~matches

        compare = _COMPARISONS[self.operator]
        number = number_in(self.value)
        dtype = table.schema[name]

        if self.operator[0] in "<>":
            if number is not None:
                is_met = compare(table.number(name), pl.lit(number))
            else:
                dates = pl.when(text.str.contains(r"^\d")).then(text)
                is_met = compare(dates, pl.lit(self.value))
            return is_met.fill_null(value=False)

        if number is None or not dtype.is_numeric():
            return compare(text.fill_null(""), pl.lit(self.value))
        if dtype.is_integer():
            # As texts: floats beyond 2**53 do not hold every id.
            return compare(text.fill_null(""), pl.lit(f"{Decimal(self.value).normalize():f}"))
        return compare(table.number(name), pl.lit(number))  # 2.5 equals 2.50


def parse_filter(text: str) -> Filter:
    """Parse a filter such as `quantity>0`: a column, one of `= != > >= < <= ~ !~`, and a value.

    Raises SettingError if there is no operator, if `<`, `>` and the like compare with neither a number nor a date (a
    text that begins with a digit), and if `~` has an invalid regular expression.
    """
    parts = _FILTER_PATTERN.fullmatch(text)
    if parts is None:
        raise SettingError(
            f"The filter {text!r} cannot be read; write a column, one of = != > >= < <= ~ !~, and a value: quantity>0."
        )
    operator = parts[2]
    value = parts[3].strip()

    if operator[0] in "<>" and number_in(value) is None and not value[:1].isdigit():
        raise SettingError(f"The filter {text!r} compares with {value!r}, which is neither a number nor a date.")
    if "~" in operator:
        # polars compiles the expression.
        try:
            pl.select(pl.lit("").str.contains(value))
        except pl.exceptions.ComputeError as error:
            raise SettingError(f"The filter {text!r} has a regular expression that cannot be read.") from error

    return Filter(text=text, column=parts[1], operator=operator, value=value)
