"""Parsers of row filters (`quantity>0`), event weights (`view=1,buy=5`) and half-lives (`30d`)."""

import re
from dataclasses import dataclass
from datetime import timedelta

import polars as pl

from hotplate.offline.errors import SettingError
from hotplate.offline.input.columns import find_column, number_in
from hotplate.offline.input.tables import Table

_FILTER = re.compile(
    r"\s*(?P<column>[^<>=!~]*[^<>=!~\s])\s*(?P<operator>>=|<=|==|!=|!~|=|~|>|<)(?P<value>.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on rows; *text* is its original spelling."""

    text: str
    column: str
    operator: str
    value: str

    def expression(self, table: Table) -> pl.Expr:
        """Return the condition over the columns of *table*, never null.

        A missing value counts as an empty text, and meets no comparison of size. Raises DataError for a missing column.
        """
        name = find_column(self.column, list(table.schema), f"filter {self.text!r}", str(table.file))
        text, own_number, number = table.text(name), table.number(name), number_in(self.value)
        if self.operator in {"~", "!~"}:
            matches = text.str.contains(self.value).fill_null(value=False)
            return matches if self.operator == "~" else ~matches
        if self.operator in {"=", "!="}:
            # As numbers, 2.5 equals 2.50.
            as_number = number is not None and table.schema[name].is_numeric()
            same = own_number.eq_missing(number) if as_number else text.fill_null("") == self.value
            return same if self.operator == "=" else ~same
        if number is not None:
            side, bound = own_number, pl.lit(number)
        else:
            side, bound = pl.when(text.str.contains(r"^\d")).then(text), pl.lit(self.value)
        compared = {">": side > bound, ">=": side >= bound, "<": side < bound, "<=": side <= bound}[self.operator]
        return compared.fill_null(value=False)


def parse_filter(text: str) -> Filter:
    """Parse a column, one of `= != > >= < <= ~ !~`, and a value.

    `~` searches with a regular expression; comparisons of size need a number, or a text that begins with a digit
    (dates). Raises SettingError for anything else.
    """
    parts = _FILTER.fullmatch(text)
    if parts is None:
        raise SettingError(
            f"The filter {text!r} cannot be read; write a column, one of = != > >= < <= ~ !~, and a value: quantity>0."
        )
    operator = "=" if parts["operator"] == "==" else parts["operator"]
    value = parts["value"].strip()
    if operator in {"~", "!~"}:
        try:
            pl.select(pl.lit("").str.contains(value))
        except pl.exceptions.ComputeError as error:
            raise SettingError(f"The filter {text!r} has a regular expression that cannot be read.") from error
    elif operator not in {"=", "!="} and number_in(value) is None and not value[:1].isdigit():
        raise SettingError(f"The filter {text!r} compares with {value!r}, which is neither a number nor a date.")
    return Filter(text, parts["column"], operator, value)


def parse_half_life(text: str) -> timedelta:
    """Parse `30d`, `12h` or `8w`; raises SettingError otherwise."""
    units = {"h": "hours", "d": "days", "w": "weeks"}
    number = number_in(text[:-1])
    if number is None or not 0 < number < 1e6 or text[-1:] not in units:
        raise SettingError(f"The half-life {text!r} cannot be read; write 30d, 12h or 8w.")
    return timedelta(**{units[text[-1]]: number})


def parse_event_weights(text: str) -> dict[str, float]:
    """Parse `view=1,cart=3,buy=5`; raises SettingError unless each event has a positive weight."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        weight = number_in(value)
        if not name or not equals or weight is None or weight <= 0:
            raise SettingError(
                f"The event weight {part.strip()!r} cannot be read; write names and weights above zero: view=1,buy=5."
            )
        if name in weights:
            raise SettingError(f"The event {name!r} has two weights in {text!r}; give it one.")
        weights[name] = weight
    return weights
