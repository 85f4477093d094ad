"""The columns of a file: which one holds the user, the item or the weight, and how to read ids, numbers or times."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

import polars as pl

from hotplate.offline.errors import DataError

# Longer ids are refused by the stores.
MAX_ID_BYTES = 256
# What tools write if a value is missing. NA is an id in too many data sets, such as Namibia's country code.
NULL_VALUES = ("NULL", "null", "NaN", "nan", "None")
# The one that reads the most values of a column is the column's, the first of equals.
_TIME_FORMATS = (
    *(f"%Y-%m-%d{joined}%H:%M:%S%.f{zone}" for zone in ("Z", "%#z", "") for joined in "T "),
    *("%Y-%m-%d %H:%M", "%Y-%m-%d"),
    *(
        f"{date}{time}"
        for date in ("%Y/%m/%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%y")
        for time in (" %H:%M:%S", " %H:%M", "")
    ),
)
# A format that reads an earlier time from a text does not fit: it takes a year of two digits for one of four.
_FIRST_TIME = datetime(1900, 1, 1)  # noqa: DTZ001 -- times are naive UTC throughout
# The formats of times that are numbers: the first, counted from 1970, unless most lie in the range of another.
NUMBER = "number"
DAYS = "days since 1970"
EXCEL_DAYS = "Excel's serial days"
DATES = "dates such as 20261120"
# From 1990 to 2050.
_NUMBER_RANGES = {DAYS: (7_305, 29_585), EXCEL_DAYS: (32_874, 55_154), DATES: (19_900_101, 20_501_231)}
_EXCEL_EPOCH_DAYS = 25_569
# In order of preference, without case, spaces and punctuation: `Customer ID` and `customer_id` are both `customerid`.
_COMMON_NAMES = {
    "user": (
        "user userid uid username customer customerid visitor visitorid member memberid client clientid "
        "account accountid reviewer reviewerid listener listenerid reader readerid"
    ),
    "item": (
        "item itemid iid movie movieid product productid stockcode sku asin parentasin track trackid article "
        "articleid song songid artist artistid book bookid isbn video videoid content contentid"
    ),
    "weight": "weight count plays playcount strength",
    "quantity": "quantity qty",
    "rating": "rating ratings stars score",
    "time": (
        "time timestamp ts date datetime invoicedate orderdate purchasedate eventtime eventdate createdat ratedat"
    ),
    "title": "title name description itemname itemtitle productname producttitle movietitle trackname",
    "segment": "segment",
    "score": "score prediction rating relevance similarity strength weight value",
    "other": (
        "other otheritem otheritemid otherid similar similaritem similaritemid similarid related relateditem "
        "relateditemid neighbour neighbouritem neighbor neighboritem recommended recommendeditem"
    ),
    "category": "category categoryid categoryname genre department group",
    "boost": "boost factor multiplier",
    "event": "event eventtype eventname action behavior behaviour type",
}
# Of columns that have no names.
_NUMBERED = "column_"
_DATE = re.compile(r"\d{4}-\d\d-\d\d|\d\d?/\d\d?/\d{4}")
# From 1990 to 2100: a smaller number of a column without a name is more likely something else.
_PLAUSIBLE_TIMES = (datetime(1990, 1, 1), datetime(2100, 1, 1))  # noqa: DTZ001 -- times are naive UTC throughout


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns to read, each None until it is named or guessed; lives as long as one reading."""

    user: str | None = None
    item: str | None = None
    weight: str | None = None
    time: str | None = None
    title: str | None = None
    segment: str | None = None
    event: str | None = None
    count: str | None = None
    quantity: str | None = None


def find_column(name: str, available: Sequence[str], role: str, source: str) -> str:
    """Return the column that *name* means: itself, the only one that differs in case, or the one of that number.

    Raises DataError, which lists the columns of *source* and the closest match, when there is none.
    """
    if name in available:
        return name
    same = [column for column in available if column.casefold() in (name.casefold(), f"{_NUMBERED}{name}")]
    if len(same) == 1:
        return same[0]
    close = get_close_matches(name.casefold(), [column.casefold() for column in available], n=1)
    hint = next((f" Did you mean {column!r}?" for column in available if close and column.casefold() == close[0]), "")
    raise DataError(f"{source} has no column {name!r} for the {role}.{hint} Its columns are: {_listed(available)}.")


def choose_columns(
    named: Mapping[str, str | None],
    available: Sequence[str],
    source: str,
    *,
    guessed: Iterable[str],
    required: Sequence[str],
) -> dict[str, str]:
    """Return the columns by role: those *named*, checked against *available*, and those *guessed*, if a name fits.

    *named* has each role that an option of the command line can name, with None if the option is not given. If the
    columns have no names of their own, the *required* roles get the free ones in order. Raises DataError if a named
    column is missing, if one column is named for both user and item, and if no column fits a *required* role.
    """
    chosen = {role: find_column(name, available, role, source) for role, name in named.items() if name is not None}
    if "user" in chosen and chosen["user"] == chosen.get("item"):
        raise DataError(f"The column {chosen['user']!r} of {source} is named for both the user and the item; name two.")
    if is_numbered(available):
        free = [column for column in numbered(len(available)) if column in available and column not in chosen.values()]
        chosen |= zip((role for role in required if role not in chosen), free, strict=False)
    for role in guessed:
        fitting = usual_column(role, [column for column in available if column not in chosen.values()])
        if role not in chosen and fitting is not None:
            chosen[role] = fitting
    if len(available) == 1 < len(required):
        raise DataError(
            f"{source} has a single column, {available[0][:200]!r}; it needs one each for {' and '.join(required)}. "
            "If they are split by another delimiter than , ; | :: or a tab, name it with --delimiter."
        )
    for role in required:
        if role not in chosen:
            option = f" or give --{role}-column" if role in named else ""
            raise DataError(
                f"No column of {source} looks like the {role}; name it {role!r}{option}. "
                f"Its columns are: {_listed(available)}."
            )
    return chosen


def usual_column(role: str, available: Sequence[str]) -> str | None:
    """Return the column of *available* whose name is the most usual for the *role*, None if no name fits."""
    plain = {_plain(column): column for column in reversed(available)}
    return next((plain[name] for name in _COMMON_NAMES[role].split() if name in plain), None)


def numbered(count: int) -> list[str]:
    """Return the names of *count* columns that have none of their own."""
    return [f"{_NUMBERED}{number}" for number in range(1, count + 1)]


def is_numbered(available: Sequence[str]) -> bool:
    """Return whether the columns have no names of their own."""
    return numbered(1)[0] in available


def is_data(fields: Sequence[str]) -> bool:
    """Return whether a first row with these *fields* is data: one is a number or a date, none a column's usual name."""
    usual = {name for names in _COMMON_NAMES.values() for name in names.split()}
    values = [field for field in fields if number_in(field) is not None or _DATE.match(field.strip())]
    return bool(values) and not any(_plain(field) in usual for field in fields)


def time_layouts(values: pl.Series) -> list[str]:
    """Return the formats that read any of *values*, texts or numbers; one of them for those of numbers."""
    layouts = list[str]()
    if values.dtype == pl.String:
        text = values.str.strip_chars()
        values = text.cast(pl.Float64, strict=False).drop_nulls()
        layouts = [
            each for each in _TIME_FORMATS if pl.select(_from_text(pl.lit(text), each).is_not_null().any()).item()
        ]
    if values.is_empty():
        return layouts
    found = {layout: values.is_between(*bounds).sum() for layout, bounds in _NUMBER_RANGES.items()}
    return [next((layout for layout, count in found.items() if 2 * count > len(values)), NUMBER), *layouts]


def time_of(name: str, dtype: pl.DataType, layout: str | None) -> pl.Expr | None:
    """Return the column as a naive UTC time in microseconds, null if it cannot be read; None if it is not a time.

    *layout* is the format of a column of texts or numbers. NUMBER counts from 1970 in seconds, milli-, micro- or
    nanoseconds, recognized by their size.
    """
    column = pl.col(name)
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return column.cast(pl.Datetime("us"))
    if dtype.is_numeric():
        return _from_number(column.cast(pl.Float64), layout)
    if dtype != pl.String or layout is None:
        return None
    text = column.str.strip_chars()
    if layout == NUMBER or layout in _NUMBER_RANGES:
        return _from_number(text.cast(pl.Float64, strict=False), layout)
    return _from_text(text, layout)


def is_time(text: str) -> bool:
    """Return whether *text* is a time of our days, so a column without a name may be one of times."""
    layouts = time_layouts(pl.Series([text]))
    time = time_of("text", pl.String(), layouts[0]) if layouts and layouts[0] not in _NUMBER_RANGES else None
    if time is None:
        return False
    moment = pl.DataFrame({"text": [text]}).select(time).item()
    return moment is not None and _PLAUSIBLE_TIMES[0] < moment < _PLAUSIBLE_TIMES[1]


def number_in(text: str) -> float | None:
    """Return the finite number that *text* is, for polars as well, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _listed(available: Sequence[str]) -> str:
    shown = ", ".join(available[:40])
    return shown if len(available) <= 40 else f"{shown} and {len(available) - 40} more"


def _from_text(text: pl.Expr, layout: str) -> pl.Expr:
    time = text.str.to_datetime(layout, time_unit="us", strict=False)
    if layout.endswith("%#z"):
        time = time.dt.replace_time_zone(None)
    return pl.when(time >= _FIRST_TIME).then(time)


def _from_number(number: pl.Expr, layout: str | None) -> pl.Expr:
    if layout == DATES:
        return (
            number.cast(pl.Int64, strict=False).cast(pl.String).str.to_datetime("%Y%m%d", time_unit="us", strict=False)
        )
    if layout in {DAYS, EXCEL_DAYS}:
        number = (number - (_EXCEL_EPOCH_DAYS if layout == EXCEL_DAYS else 0)) * 86_400
    size = number.abs()
    scale = pl.when(size < 1e11).then(1e6).when(size < 1e14).then(1e3).when(size < 1e17).then(1.0).otherwise(1e-3)
    # Later than the year 8000 there are no times that Python can hold; such numbers are something else.
    time_us = pl.when(size * scale < 2e17).then(number * scale)
    return time_us.cast(pl.Int64, strict=False).cast(pl.Datetime("us"))
