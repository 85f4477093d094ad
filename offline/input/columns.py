"""Column names by role, and formats of numbers, times, half-lives (`30d`) and event weights (`view=1,buy=5`)."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations, product
from typing import Literal, NamedTuple

import polars as pl

from hotplate.base.recommendations import ENTRY_TEXTS
from hotplate.offline.errors import DataError, SettingError

# Missing values in CSV, without NA, which is also a country code.
NULL_VALUES = ("NULL", "null", "NaN", "nan", "None")
DECIMAL_COMMA = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+$"
NO_TIMES = "none"  # as the time column
# Or milli-, micro- or nanoseconds, recognized by their size.
EPOCH = "seconds since 1970"
# Read by Python, as these forms are rare: an hour alone, weeks, days of the year, and 24:00.
_OTHER_ISO = "ISO-8601"
_DAY_OF_YEAR = re.compile(r"^\d{4}-\d{3}(?!\d)")
_END_OF_DAY = re.compile(r"(?<=[T ])24(?=(:?00){0,2}(\.0+)?([Z+-]|$))")
# BigQuery and PostgreSQL write " UTC".
_ZONES = ("Z", "%#z", "", " UTC")
_ISO_FORMATS = (
    *(f"%Y-%m-%d{joined}{clock}{zone}" for clock in ("%H:%M:%S%.f", "%H:%M") for zone in _ZONES for joined in "T "),
    "%Y-%m-%d",
    "%Y%m%d%H%M%S",
    "%Y%m%d",
    _OTHER_ISO,
)
# Other times are numbers in another format.
START_OF_1970, EARLIEST, _LATEST = (datetime(year, 1, 1) for year in (1970, 1971, 2100))  # noqa: DTZ001 -- naive UTC
# How the values of a column become ids, numbers or times, and which of them are refused: see `rows`.
Kind = Literal["id", "group", "text", "texts", "counted", "number", "amount", "score", "boost", "stock", "time"]
# Larger boosts could overflow float32 scores.
MAX_BOOST = 1_000_000


class Role(NamedTuple):
    """The meaning of a column.

    kind   how its values are read
    names  usual names, in order of preference, without case, spaces and punctuation; those of ids may end in `id`
    """

    kind: Kind
    names: str = ""


ROLES = {
    "user": Role("id", "user uid username customer visitor member client account reviewer listener reader"),
    "item": Role(
        "id", "item iid movie product stockcode sku asin parentasin track article song artist book isbn video content"
    ),
    "other": Role(
        "id",
        "other otheritem similar similaritem related relateditem neighbour neighbouritem neighbor neighboritem "
        "recommended recommendeditem",
    ),
    "segment": Role("group", "segment"),
    "title": Role("text", "title name description itemname itemtitle productname producttitle movietitle trackname"),
    "event": Role("text", "event eventtype eventname action behavior behaviour type"),
    "category": Role(
        "texts",
        "category categoryid categoryname categorynameid genre genreid department departmentid group groupid",
    ),
    "boost": Role("boost", "boost factor multiplier"),
    "stock": Role("stock", "stock instock quantity qty available availability inventory"),
    "count": Role("counted"),
    "weight": Role("number", "weight count plays playcount strength"),
    "rating": Role("number"),
    "quantity": Role("amount", "quantity qty"),
    "score": Role("score", "score prediction rating relevance similarity strength weight value"),
    "time": Role(
        "time",
        "time timestamp ts date datetime invoicedate orderdate purchasedate eventtime eventdate createdat ratedat",
    ),
}
# Other texts of items in imported lists have columns of the same name.
ROLES |= {name: Role("text", name) for name in ENTRY_TEXTS}
# For files without a header.
NUMBERED = "column_"


def kind_of(role: str) -> Kind:
    """Return how the values of a role are read; those of other columns are texts."""
    return ROLES[role].kind if role in ROLES else "text"


def find_column(name: str, available: Sequence[str], role: str, source: str) -> str:
    """Return the column called *name*, ignoring case, or of that number without a header; DataError if missing."""
    if name in available:
        return name
    same = [column for column in available if column.casefold() in (name.casefold(), f"{NUMBERED}{name}")]
    if len(same) != 1:
        raise DataError(f"{source} has no column {name!r} for the {role}. Its columns are: {_column_names(available)}.")
    return same[0]


def choose_columns(
    named: Mapping[str, str | None],
    available: Sequence[str],
    source: str,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
) -> dict[str, str]:
    """Return the name of a column for each role that has one; a role is a key of ROLES.

    named      columns that the caller names, by role; None for the others
    available  the columns of the file
    source     the file, for messages
    required   roles that need a column: one that is named, or else the first free one with a usual name such as
               "UserID"; without a header, those not named get the free columns in order
    optional   roles that get a column in the same way, if there is one; a time named `none` gets no column

    Raises DataError if a column that is named, or one of a required role, is missing, and SettingError if one column is
    named for two ids, such as user and item.
    """
    given = {role: name for role, name in named.items() if name is not None and (role, name) != ("time", NO_TIMES)}
    chosen = {role: find_column(name, available, role, source) for role, name in given.items()}
    for role, other in combinations([role for role in chosen if kind_of(role) == "id"], 2):
        if chosen[role] == chosen[other]:
            raise SettingError(f"The column {chosen[role]!r} is named for the {role} and the {other}.")

    # Without a header, the columns are called column_1, column_2 and so on.
    if available and available[0].startswith(NUMBERED):
        free = [column for column in available if column not in chosen.values()]
        chosen |= zip([role for role in required if role not in chosen], free, strict=False)

    wanted = [role for role in (*required, *optional) if role not in chosen and named.get(role) != NO_TIMES]
    for role in wanted:
        column = usual_column(role, [column for column in available if column not in chosen.values()])
        if column is not None:
            chosen[role] = column
        elif role in required:
            option = f" or give --{role}-column" if role in named else ""
            raise DataError(
                f"No column of {source} looks like the {role}; name it {role!r}{option}. Its columns are: "
                f"{_column_names(available)}. If these are data, give --no-header; if they are one column, --delimiter."
            )

    for role, column in chosen.items():
        if f"{column}_duplicated_0" in available:  # the name that polars gives to the second one
            raise DataError(f"{source} has the column {column!r} of the {role} twice; rename one of them.")
    return chosen


def usual_column(role: str, available: Sequence[str]) -> str | None:
    """Return the column of *available* that has the first usual name for *role*, or None; `User-ID` is a user."""
    column_by_name = {"".join(filter(str.isalnum, column.casefold())): column for column in reversed(available)}
    endings = ("", "id") if kind_of(role) == "id" else ("",)
    usual = (name + ending for name, ending in product(ROLES[role].names.split(), endings))
    return next((column_by_name[name] for name in usual if name in column_by_name), None)


class UsualTimes:
    """Reads texts or numbers as times: ISO 8601 or since 1970, first in the format of most values before."""

    def __init__(self) -> None:
        self._layouts = [EPOCH, *_ISO_FORMATS]

    def __call__(self, values: pl.Series) -> pl.Series:
        """Return the times; values that are meant in no format count as times since 1970, or are null."""
        times = pl.Series(values.name, [None], pl.Datetime("us")).new_from_index(0, len(values))
        unread = values.is_not_null().arg_true()
        for layout in self._layouts:
            if unread.is_empty():
                break
            read = _times_of(values.gather(unread), layout)
            are_meant = _are_meant(read, layout)
            if are_meant.sum() > len(values) / 2:
                self._layouts = [layout, *(other for other in self._layouts if other != layout)]
            times = times.scatter(unread.filter(are_meant), read.filter(are_meant))
            unread = unread.filter(~are_meant)
        return times.scatter(unread, _times_of(values.gather(unread), EPOCH))


def _times_of(values: pl.Series, layout: str) -> pl.Series:
    return values.to_frame().select(read_time(values.name, values.dtype, layout)).to_series()


def _are_meant(times: pl.Series, layout: str) -> pl.Series:
    """Return which *times* were written in the format *layout*, by which they were read.

    A number may be meant in another format unless its time is one of 1971 to 2100, or the start of 1970, which stands
    for a missing time.
    """
    if "-" in layout or "T" in layout:
        return times.is_not_null()
    return (times.is_between(EARLIEST, _LATEST) | (times == START_OF_1970)).fill_null(value=False)


def read_time(name: str, dtype: pl.DataType, layout: str) -> pl.Expr:
    """Return an expression that reads the column *name* as times in UTC, in µs and without a zone.

    *dtype* is the column's type. Dates and times are converted. Texts and numbers are read in the format *layout*:
    EPOCH (numbers of seconds since 1970), any of ISO 8601, or a format of strptime. Values in another format become
    null.
    """
    column = pl.col(name)
    if is_date(dtype):
        if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return column.cast(pl.Datetime("us"))

    if layout == EPOCH:
        number = column if dtype.is_numeric() else column.str.strip_chars()
        return _time_since_1970(number.cast(pl.Float64, strict=False))

    if dtype.is_float():
        column = column.cast(pl.Int64, strict=False)  # 20260101.0
    text = column.cast(pl.String).str.strip_chars()
    if layout == _OTHER_ISO:
        is_number = text.str.contains(r"^\d+$")
        return pl.when(~is_number).then(text).map_elements(iso_time, return_dtype=pl.Datetime("us"))
    time = text.str.to_datetime(layout, time_unit="us", strict=False)

    # With a zone in the format, polars converts to UTC and marks the type with it.
    return time.dt.replace_time_zone(None) if "%z" in layout or "%#z" in layout else time


def _date_of_day(day_of_year: re.Match[str]) -> str:
    """Return 2026-10-21 for 2026-294."""
    return datetime.strptime(day_of_year[0], "%Y-%j").date().isoformat()  # noqa: DTZ007 -- naive UTC


def iso_time(text: str) -> datetime | None:
    """Return a date or time in any form of ISO 8601 as a naive time in UTC, or None."""
    try:
        text, days = _END_OF_DAY.subn("00", text)
        text = _DAY_OF_YEAR.sub(_date_of_day, text)
        time = datetime.fromisoformat(text) + timedelta(days=days)
        return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):  # beyond the years 1 to 9999
        return None


def is_date(dtype: pl.DataType) -> bool:
    """Return whether values are dates or times of a day that is known."""
    return dtype == pl.Date or isinstance(dtype, pl.Datetime)


def number_in(text: str) -> float | None:
    """Return *text* as a finite number, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def _time_since_1970(number: pl.Expr) -> pl.Expr:
    """Return the time in µs for a *number* of seconds, milli-, micro- or nanoseconds since 1970.

    The unit is recognized by the size of the number. Null for numbers that are too large for any unit.
    """
    size = number.abs()
    # 1e11 s is the year 5138, and 1e11 ms is 1973, so a time of our days is plausible in one unit only.
    us_per_unit = pl.when(size < 1e11).then(1e6).when(size < 1e14).then(1e3).when(size < 1e17).then(1.0).otherwise(1e-3)

    # Larger numbers are beyond the year 8000; Python's times end in 9999.
    time_us = pl.when(size * us_per_unit < 2e17).then(number * us_per_unit)
    return time_us.cast(pl.Int64, strict=False).cast(pl.Datetime("us"))


def _column_names(available: Sequence[str]) -> str:
    """Return the first columns' names for a message."""
    return repr(", ".join(available[:40]))[1:-1]  # a binary file may have control characters


def parse_half_life(text: str) -> timedelta:
    """Parse `30d`, `12h` or `8w`; raises SettingError otherwise."""
    units = {"h": "hours", "d": "days", "w": "weeks"}
    number = number_in(text[:-1])
    if number is None or not 0 < number < 1e6 or text[-1:] not in units:
        raise SettingError(f"The half-life {text!r} cannot be read; write 30d, 12h or 8w.")
    return timedelta(**{units[text[-1]]: number})


class NamedValue(NamedTuple):
    """A pair NAME=VALUE; the value is empty without an equals sign."""

    name: str
    value: str


def named_values(text: str) -> Iterator[NamedValue]:
    """Yield the pairs of `NAME=VALUE,NAME=VALUE`, stripped, also empty ones."""
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        yield NamedValue(name.strip(), value.strip())


def parse_event_weights(text: str) -> dict[str, float]:
    """Parse `view=1,cart=3,buy=5`; raises SettingError unless each event has one positive weight."""
    weights: dict[str, float] = {}
    for name, value in named_values(text):
        weight = number_in(value)
        if not name or name in weights or weight is None or weight <= 0:
            written = f"{name}={value}" if value else name
            raise SettingError(
                f"The event weight {written!r} cannot be used; write each name once, with a weight above "
                "zero: view=1,buy=5."
            )
        weights[name] = weight
    return weights
