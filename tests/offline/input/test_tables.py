"""Filters and event weights: a filter keeps exactly the rows that meet it, and nonsense is refused by name."""

import re
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import strategies as st

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import parse_event_weights, parse_half_life
from hotplate.offline.input.files import DataFile
from hotplate.offline.input.filters import parse_filter
from hotplate.offline.input.rows import read_roles_of
from hotplate.offline.input.tables import Table
from hotplate.offline.options import Format
from tests.support.property import explored

FRAME = pl.DataFrame(
    {
        "text": ["10", "9.5", "abc", "", "2011-05-01"],
        "number": [10.0, 9.5, None, -1.0, 2.5],
        "price": [float("nan"), 1.0, None, 2.0, 0.0],
        "id": [2**53, 2**53 + 1, None, 5, -1],
        "day": pl.Series(["2011-01-01", "2011-06-01", None, "2012-01-01", "2010-01-01"]).str.to_date(),
    }
)


def kept(*texts: str, frame: pl.DataFrame = FRAME, form: Format | None = None) -> list[int]:
    table = Table(DataFile(Path("a.csv")), frame.lazy(), form or Format(), dict(frame.schema))
    conditions = [parse_filter(text).condition(table) for text in texts]
    return frame.with_row_index("row").filter(*conditions).get_column("row").to_list()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("text>9.6", [0]),
        ("text < 10", [1]),
        ("text=abc", [2]),
        ("text!=abc", [0, 1, 3, 4]),
        (r"text~^\d", [0, 1, 4]),
        (r"text!~^\d", [2, 3]),
        ("text>2011-01-01", [4]),
        ("number!=2.5", [0, 1, 2, 3]),
        ("number<=-1", [3]),
        ("number~5$", [1, 4]),
        ("price>0", [1, 3]),
        ("id!=9007199254740993", [0, 2, 3, 4]),
        ("id=5.0", [3]),
        ("day>=2011-01-01", [0, 1, 3]),
        ("DAY=2011-06-01", [1]),
        ("day<20110102", [0, 4]),
        ("price!=", [1, 3, 4]),
    ],
)
def test_a_filter_keeps_the_rows_that_meet_it(text: str, rows: list[int]) -> None:
    assert kept(text) == rows


LITERALS = pl.DataFrame(
    {
        "text": ["999", "1000.0", "NAN", "+20000"],
        "id": ["9007199254740992", "9007199254740993", "1e3", None],
        "float32": pl.Series([0.1, 0.7, float("nan"), None], dtype=pl.Float32),
        "decimal": pl.Series(["9007199254740993", "1", "2", None]).cast(pl.Decimal(38, 0)),
        "amount": pl.Series(["90071992547409.93", "90071992547409.92", "0.10", None]).cast(pl.Decimal(38, 2)),
        "flag": [True, False, None, True],
        "written": ["True", "FALSE", None, "true"],
        "time": ["2026-01-01T10:00:00+02:00", "2026-01-01 09:30", "1767225600", "2026-01-01T10:00:00"],
        "moment": pl.Series(["2026-01-01 00:00", "2026-01-01 10:00", None, "2026-01-02 00:00"]).str.to_datetime(),
        "seconds": [1767225600, 1767225601, None, 0],
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("text>=1e3", [1, 3]),
        ("text>+1000", [3]),
        ("text<=.1e4", [0, 1]),
        ("id>9007199254740992", [1]),
        ("id<12345678901234567890123456789012345678", [0, 1, 2]),
        ("id>=1000", [0, 1, 2]),
        ("float32=0.1", [0]),
        ("float32>=0.7", [1]),
        ("decimal=9007199254740993", [0]),
        ("decimal<9007199254740993", [1, 2]),
        ("amount=90071992547409.93", [0]),
        ("amount<90071992547409.93", [1, 2]),
        ("amount<=0.1", [2]),
        ("amount>0.105", [0, 1]),
        (f"amount>0.1{'0' * 40}1", [0, 1]),
        ("flag=1", [0, 3]),
        ("flag=TRUE", [0, 3]),
        ("flag!=True", [1, 2]),
        ("flag!=", [0, 1, 3]),
        ("flag>0", [0, 3]),
        ("written=True", [0, 3]),
        ("written!=false", [0, 2, 3]),
        ("time>=2026-01-01T09:30", [1, 3]),
        ("time<2026-01-01 10:00+02:00", [2]),
        ("time>2025-12", [0, 1, 2, 3]),
        ("moment=2026-01-01", [0]),
        ("seconds>2026-01-01", [1]),
    ],
)
def test_a_filter_compares_numbers_and_times_by_value(text: str, rows: list[int]) -> None:
    assert kept(text, frame=LITERALS) == rows


SPELLINGS = pl.DataFrame(
    {
        "price": ["5.00", "05", "+5", " 5 ", "5e+00", "5E0", "5.000000000000000001", ".50", None],
        "id": ["007", "7", "7.0", "9007199254740992.0", "9007199254740993", f"{10**40}", f"{10**40 + 1}", "0e46", "0"],
        "day": ["2026-01-01", "2026-01-01T00:00Z", "2026-01-01 01:00+01:00", "1767225600", "", "x", "-", "5", None],
        "small": pl.Series([1e-05, 0.1, 0.0, -0.0, float("nan"), float("inf"), None, 1e16, 2.5]),
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("price=5", [0, 2, 3, 4]),
        ("price=5.000", [0, 2, 3, 4]),
        ("price=5e0", [0, 2, 3, 4]),
        ("price=05", [1]),
        ("price=5E0", [0, 2, 3, 4, 5]),
        ("price=0.5", [7]),
        ("id=7", [1, 2]),
        ("id=007", [0]),
        ("id=9007199254740992", [3]),
        ("id=9007199254740993.0", [4]),
        (f"id={10**40}", [5]),
        ("id=0", [8]),
        ("id=0e46", [7]),
        ("id=1e-999999999", [8]),
        ("day=2026-01-01", [0, 1, 2, 3]),
        ("day=5.0", [7]),
        ("small=0.00001", [0]),
        ("small=1e-5", [0]),
        ("small=-0", [2, 3]),
        ("small=1e16", [7]),
    ],
)
def test_equal_numbers_and_times_are_kept_as_any_text(text: str, rows: list[int]) -> None:
    assert kept(text, frame=SPELLINGS) == rows
    assert kept(text.replace("=", "!=", 1), frame=SPELLINGS) == [row for row in range(9) if row not in rows]


DIGITS = st.text("0159", min_size=1, max_size=3)
NUMBERS = st.builds("{}{}{}".format, st.sampled_from(["", "-", "+"]), DIGITS, st.just("") | DIGITS.map(".{}".format))


@explored(200, 5000, cell=NUMBERS, value=NUMBERS)
def test_texts_are_equal_if_their_numbers_are_and_none_has_a_leading_zero(cell: str, value: str) -> None:
    are_numbers = not any(re.match(r"[+-]?0\d", text) for text in (cell, value))
    is_equal = cell == value or (are_numbers and Decimal(cell) == Decimal(value))
    assert kept(f"x={value}", frame=pl.DataFrame({"x": [cell]})) == [0] * is_equal


@pytest.mark.parametrize("layout", [None, "%d/%m/%Y"])
def test_a_filter_reads_dates_of_any_age_whatever_the_format_of_times(layout: str | None) -> None:
    frame = pl.DataFrame({"day": ["02/01/2026", "31/12/2025"], "born": ["1950-05-05", "1960-02-03"]})
    assert kept("born<1955-01-01", frame=frame, form=Format(time_format=layout)) == [0]
    assert kept("day>=2026-01-01", frame=frame, form=Format(time_format="%d/%m/%Y")) == [0]


@pytest.mark.parametrize(
    "text",
    [
        *("float32!=NaN", "decimal=1_000", "decimal=85123A", "float32=-inf", "moment>5", "moment=soon"),
        *("flag=yes", "flag=2", "flag!=2", "flag!=-1", "flag=1.0", "flag=2026-01-01", "flag<2", "flag>2026-01-01"),
    ],
)
def test_a_filter_with_a_value_of_another_type_names_the_column(text: str) -> None:
    with pytest.raises(SettingError, match=r"The filter .* but the column '\w+' of a\.csv is of type "):
        kept(text, frame=LITERALS)


@pytest.mark.parametrize(
    "text",
    [
        *("", "quantity", ">5", " =5", "~x", "quantity>", "quantity>many", "code!~[z-a]"),
        *("price>=1_000", "price<1,000", "price>0x10", "price<1e400", "price>nan", "date>31/12/2025", "city='Bern'"),
        *("date<9999-12-31T23:00-05:00", "date>0001-01-01T00:00+05:00"),
    ],
)
def test_invalid_filter_is_refused_by_name(text: str) -> None:
    with pytest.raises(SettingError, match="The filter ") as raised:
        parse_filter(text)
    assert repr(text) in str(raised.value)


def test_filter_on_a_missing_column_names_the_columns() -> None:
    with pytest.raises(DataError, match=r"a\.csv has no column 'nmber' for the filter .* Its columns are: text, num"):
        kept("nmber>1")


def test_a_filter_on_a_column_of_lists_is_an_error() -> None:
    for text, kind in (("tags>1", "number"), ("tags=1", "text")):
        with pytest.raises(DataError, match=f"The column 'tags' of .* is not a {kind}"):
            kept(text, frame=pl.DataFrame({"tags": [["a"], ["b"]]}))


def test_event_weights_are_parsed_and_invalid_ones_refused() -> None:
    assert parse_event_weights("view=1, cart = 3,buy=5.5") == {"view": 1.0, "cart": 3.0, "buy": 5.5}
    for text in ("", "view", "view=", "=1", "view=x", "view=-1", "view=nan", "a=1,,b=2", "a=1,a=2"):
        with pytest.raises(SettingError, match="cannot be used"):
            parse_event_weights(text)


def test_a_half_life_is_a_number_of_hours_days_or_weeks() -> None:
    wanted = [timedelta(days=30), timedelta(hours=1.5), timedelta(weeks=8)]
    assert [parse_half_life(text) for text in ("30d", "1.5h", "8w")] == wanted
    for text in ("", "30", "d", "0d", "-1d", "nand", "30 y", "1e9w"):
        with pytest.raises(SettingError, match="write 30d, 12h or 8w"):
            parse_half_life(text)


def test_columns_called_file_and_reason_are_read_like_others(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item,file,reason\na,f,r\n,f,r\n")
    rows = read_roles_of(path, ["item"], {"file": "file", "reason": "reason"})
    assert rows.rows() == [("a", "f", "r")]
