"""The expressions that turn a column, whatever its type, into ids, numbers and times."""

import polars as pl

from offline.errors import DataError

MAX_ID_BYTES = 256

_TIME_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.fZ",
    "%Y-%m-%d %H:%M:%S%.fZ",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
)


def text_of(name: str, dtype: pl.DataType, place: str) -> pl.Expr:
    """
    Return the column as text: text as it is, whole numbers without a decimal point, empty text as null.

    Floats that are whole numbers become whole too: a nullable integer often comes as 17850.0, and means 17850.
    Raises DataError for columns of lists, structs or bytes.
    """
    column = pl.col(name)
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        raise DataError(f"The column {name!r} of {place} holds {dtype}, which cannot be an id or a text; name another.")
    if dtype.is_float():
        # Beyond 2**53 a float no longer holds every whole number, so it is no id; its own text is kept.
        whole = column.is_finite() & (column == column.floor()) & (column.abs() < 2**53)
        text = (
            pl.when(whole).then(column.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(column.cast(pl.String))
        )
        return pl.when(column.is_not_nan()).then(text)
    text = column.cast(pl.String)
    return pl.when(text != "").then(text)


def number_of(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return the column as a float; null where it is no number."""
    column = pl.col(name)
    if dtype == pl.String:
        return column.str.strip_chars().cast(pl.Float64, strict=False)
    if dtype.is_numeric() or dtype == pl.Boolean:
        return column.cast(pl.Float64)
    return column.cast(pl.String, strict=False).cast(pl.Float64, strict=False)


def time_of(name: str, dtype: pl.DataType, sample: str | None) -> pl.Expr | None:
    """
    Return the column as a naive UTC time in microseconds, null where it cannot be read; None when it is no time at all.

    Numbers count from 1970 in seconds, milli-, micro- or nanoseconds, told apart by their size. *sample* is a text of
    the column: the first of the known formats that reads it is the format of the column.
    """
    column = pl.col(name)
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return column.cast(pl.Datetime("us"))
    if dtype.is_numeric():
        return _from_epoch(column.cast(pl.Float64))
    if dtype != pl.String or sample is None:
        return None
    text = column.str.strip_chars()
    if pl.Series([sample.strip()]).cast(pl.Float64, strict=False)[0] is not None:
        return _from_epoch(text.cast(pl.Float64, strict=False))
    for layout in _TIME_FORMATS:
        if pl.Series([sample.strip()]).str.to_datetime(layout, strict=False)[0] is not None:
            time = text.str.to_datetime(layout, time_unit="us", strict=False)
            return time.dt.replace_time_zone(None) if layout.endswith("%#z") else time
    return None


def _from_epoch(number: pl.Expr) -> pl.Expr:
    size = number.abs()
    scale = pl.when(size < 1e11).then(1e6).when(size < 1e14).then(1e3).when(size < 1e17).then(1.0).otherwise(1e-3)
    # Later than the year 8000 there are no times that Python can hold; such numbers are something else.
    time_us = pl.when(size * scale < 2e17).then(number * scale)
    return time_us.cast(pl.Int64, strict=False).cast(pl.Datetime("us"))
