"""Interactions: equal rows in every format give equal pairs, and left out rows are counted."""

import gzip
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import polars as pl
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.reports import read_truth
from hotplate.offline.input.columns import NULL_VALUES
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.input.rows import read_roles_of
from hotplate.offline.options import Columns, Format
from tests.support.interactions import ReadText, pairs_of, write
from tests.support.property import explored

ROWS = pl.DataFrame(
    {
        "user_id": ["007", "007", "ann", "ann", "ann"],
        "item_id": ["a b", "é/%", "a b", "a b", "é/%"],
        "plays": [1.0, 2.0, 3.0, 0.5, 4.0],
        "ts": [1_700_000_300, 1_700_000_100, 1_700_000_200, 1_700_000_000, 1_700_000_400],
        "title": ["Ay", "Ee", "Ay", "Ay, again", " Ee "],
        "segment": ["x", "x", "y", "y", "y"],
    }
)


def written(folder: Path, fmt: str) -> Path:
    path = folder / f"rows.{fmt}"
    separators = {"tsv": "\t", "txt": ";"}
    if fmt == "parquet":
        ROWS.write_parquet(path)
    elif fmt == "csv.zst":
        ROWS.write_csv(path, compression="zstd")
    elif fmt == "folder":
        path.mkdir()
        ROWS[:2].write_csv(path / "one.csv")
        path.joinpath("two.csv.gz").write_bytes(gzip.compress(ROWS[2:].write_csv().encode()))
        path.joinpath("_SUCCESS").touch()
    elif fmt == "crlf.csv":
        path.write_bytes(b"\xef\xbb\xbf" + ROWS.write_csv(line_terminator="\r\n").encode())
    elif fmt == "quoted.csv":
        ROWS.write_csv(path, quote_style="always")
    else:
        ROWS.write_csv(path, separator=separators.get(fmt, ","))
    return path


FORMATS = ["tsv", "txt", "csv.zst", "parquet", "folder", "crlf.csv", "quoted.csv"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_same_rows_in_every_format_give_the_same_interactions(fmt: str, tmp_path: Path) -> None:
    interactions = read_interactions(written(tmp_path, fmt))
    assert pairs_of(interactions) == [
        ("007", "a b", 1.0),
        ("007", "é/%", 2.0),
        ("ann", "a b", 3.5),
        ("ann", "é/%", 4.0),
    ]
    assert interactions.titles == {"a b": "Ay", "é/%": "Ee"}
    assert interactions.rows == 5
    assert interactions.left_out == {}
    assert interactions.time_range == (datetime(2023, 11, 14, 22, 13, 20), datetime(2023, 11, 14, 22, 20, 0))  # noqa: DTZ001 -- naive UTC
    assert interactions.log.filter(user="ann", item="a b").get_column("time").min() == interactions.time_range[0]
    assert interactions.segments is not None
    assert interactions.segments.rows() == [(at, item, 19675, 1.0) for at in "xy" for item in ("a b", "é/%")]
    assert len(interactions.fingerprint) == 32
    assert interactions.columns == Columns("user_id", "item_id", "plays", "ts", "title", "segment")
    assert interactions.notes == []


letters = st.characters(codec="utf-8", exclude_categories=["Cc"], include_characters="\n\t")
ODD_IDS = ['"', ",", '",', '"\n"', "a\nb", "0", "1.50", "12E4", "1e5", "9007199254740993", "123456789012345678", "7.5e"]
some_ids = (st.text(letters, min_size=1, max_size=6) | st.sampled_from(ODD_IDS)).filter(
    lambda text: text.strip() not in {"", *NULL_VALUES}
)


some_weights = st.dictionaries(st.tuples(some_ids, some_ids), st.integers(1, 99), min_size=2)


@explored(8, 100, weights=some_weights, separator=st.sampled_from(",;\t"))
def test_any_id_survives_any_delimiter(weights: dict[tuple[str, str], int], separator: str) -> None:
    assume(len({user for user, _ in weights}) > 1 and len({item for _, item in weights}) > 1)
    rows = [(user, item, float(weight)) for (user, item), weight in sorted(weights.items())]
    with TemporaryDirectory() as folder:
        path = Path(folder, "rows.csv")
        pl.DataFrame(rows, ["user", "item", "weight"], orient="row").write_csv(path, separator=separator)
        assert pairs_of(read_interactions(path)) == rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A file with the options that it is read with, and what is read of it."""

    text: str
    pairs: list[tuple[str, str, Any]]
    name: str = "a.csv"
    options: dict[str, object] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


RATINGS = "user,item,rating\nu,i,5\nv,j,1\nv,i,3\n"
PLAYS = "user,item,plays\nu,i,2\nu,i,3\nv,j,0.5\nv,i,0\n"
LONG_ID = "é" * 129
READINGS = {
    "an explicit delimiter wins over the guess": Reading(
        text="user,x^item\nu1,y^i1\nu2,y^i2\n",
        options={"columns": Columns(user="user,x", item="item"), "form": Format(delimiter="^")},
        pairs=[("u1,y", "i1", 1.0), ("u2,y", "i2", 1.0)],
    ),
    "bars are delimiters if no others occur": Reading(
        text="user|item\nu|i\nv|j\n",
        pairs=[("u", "i", 1.0), ("v", "j", 1.0)],
    ),
    "bars are text beside commas": Reading(
        text="user,item|or|more\nu,i\nv,j\n",
        options={"columns": Columns(item="item|or|more")},
        pairs=[("u", "i", 1.0), ("v", "j", 1.0)],
    ),
    "a header that is repeated is not a user": Reading(
        text="user,item\nu,i\nuser,item\nv,j\n",
        pairs=[("u", "i", 1.0), ("v", "j", 1.0)],
        left_out={"header again": 1},
    ),
    "missing values are not users, items or weights": Reading(
        text="user,item,weight\nu,i,1\nv,j,2\nNULL,i,1\nnan,i,1\n  ,i,1\nu,None,1\nu,NaN,1\nu,i,\nu,i,NaN\nu,NA,1\n",
        pairs=[("u", "NA", 1.0), ("u", "i", 1.0), ("v", "j", 2.0)],
        left_out={"no user": 3, "no item": 2, "no weight": 2},
    ),
    "rows that are left out are counted by their first reason": Reading(
        text=f"user,item,weight,country\nu,i,1,FR\nv,j,2,FR\n,i,1,FR\nu,,1,FR\n{LONG_ID},i,1,FR\nu,{LONG_ID},1,FR\n"
        "u,i,,FR\nu,i,0,FR\nu,i,-3,FR\n,,abc,DE\n",
        options={"where": ["country=FR"]},
        pairs=[("u", "i", 1.0), ("v", "j", 2.0)],
        left_out={
            "not country=FR": 1,
            "weight zero or less": 2,
            "no user": 1,
            "no item": 1,
            "user id over 256 bytes": 1,
            "item id over 256 bytes": 1,
            "no weight": 1,
        },
    ),
    "a rating is no weight": Reading(
        text=RATINGS,
        pairs=[("u", "i", 1.0), ("v", "i", 1.0), ("v", "j", 1.0)],
    ),
    "a rating that is named is a weight": Reading(
        text=RATINGS,
        options={"columns": Columns(weight="rating")},
        pairs=[("u", "i", 5.0), ("v", "i", 3.0), ("v", "j", 1.0)],
    ),
    "a count column counts distinct values": Reading(
        text="user,item,invoice,quantity\nu,i,1,9\nu,i,1,9\nu,i,2,9\nv,j,3,9\nv,j,,9\n",
        options={"columns": Columns(count="invoice")},
        pairs=[("u", "i", 2.0), ("v", "j", 1.0)],
        left_out={"no invoice": 1},
    ),
    "weighting is applied to the sum": Reading(
        text=PLAYS,
        options={"weighting": "log"},
        pairs=[("u", "i", pytest.approx(1 + math.log(5))), ("v", "j", 1.0)],
        left_out={"weight zero or less": 1},
    ),
    "binary weighting needs no weights": Reading(
        text=PLAYS,
        options={"weighting": "binary"},
        pairs=[("u", "i", 1.0), ("v", "i", 1.0), ("v", "j", 1.0)],
    ),
    "binary weighting of a named column leaves rows of weight 0 out": Reading(
        text=PLAYS,
        options={"weighting": "binary", "columns": Columns(weight="plays")},
        pairs=[("u", "i", 1.0), ("v", "j", 1.0)],
        left_out={"weight zero or less": 1},
    ),
    "rows without a time are as old as the oldest": Reading(
        text="user,item,ts\nu,i,1700000100\nv,j,1700000000\nu,j,\n",
        options={"half_life": timedelta(seconds=100)},
        pairs=[("u", "i", 1.5), ("u", "j", 0.75), ("v", "j", 0.75)],
    ),
    "ids in brackets are text in CSV": Reading(
        text="user,item\n[2],a\n[3],b\n",
        pairs=[("[2]", "a", 1.0), ("[3]", "b", 1.0)],
    ),
    "arrays in other columns of JSON are ignored": Reading(
        text='{"user": 1, "item": "a", "category": ["x", "y"]}\n{"user": 2, "item": "b", "category": 5}\n',
        name="a.jsonl",
        pairs=[("1", "a", 1.0), ("2", "b", 1.0)],
    ),
    **{
        f"the whole id {user} in JSON is kept": Reading(
            text=f'{{"user": {user}, "item": 1.0}}\n{{"user": 7, "item": 2.0}}\n',
            name="a.jsonl",
            pairs=sorted([(user, "1", 1.0), ("7", "2", 1.0)]),
        )
        for user in ("9007199254740993", "18446744073709551615", "123456789012345678901234567890")
    },
    "whole ids in JSON are kept beside floats": Reading(
        text='{"user": 9007199254740993, "item": "😀"}\n\n{"user": 1.5, "item": 2}\n{"user": 7.0, "item": 3}\n',
        name="a[1].jsonl",
        pairs=[("1.5", "2", 1.0), ("7", "3", 1.0), ("9007199254740993", "😀", 1.0)],
    ),
}


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
def test_a_file_is_read_with_its_options(reading: Reading, read_text: ReadText) -> None:
    interactions = read_text(reading.text, reading.name, **reading.options)
    assert pairs_of(interactions) == reading.pairs
    assert interactions.left_out == reading.left_out


def test_quotes_in_tsv_are_text_unless_they_enclose_fields(read_text: ReadText) -> None:
    rows = "user\titem\ttitle\nu\ta\t{}\nv\tb\t{}\nw\tc\t{}\n"
    dump = read_text(rows.format('"Best of', '"Heroes" live', 'Vinyl 12"'), "dump.tsv")
    assert dump.titles == {"a": '"Best of', "b": '"Heroes" live', "c": 'Vinyl 12"'}
    quoted = read_text(rows.format('"Best ""of"""', '"two\nlines"', '"a\ttab"'), "quoted.tsv")
    assert quoted.titles == {"a": 'Best "of"', "b": "two\nlines", "c": "a\ttab"}


def test_ids_are_unchanged_and_whole_floats_become_integers(read_text: ReadText) -> None:
    text = read_text("user,item\n 007 ,1.0\n7,NA\n1.5,1e3\n")
    assert pairs_of(text) == [(" 007 ", "1.0", 1), ("1.5", "1e3", 1), ("7", "NA", 1)]
    frame = pl.DataFrame({"user": [17850.0, None, 12.5, math.nan], "item": pl.Series([1, 2, 3, 4], dtype=pl.UInt16)})
    interactions = read_interactions(frame)
    assert pairs_of(interactions) == [("12.5", "3", 1.0), ("17850", "1", 1.0)]
    assert interactions.left_out == {"no user": 2}
    decimals = pl.DataFrame({"user": [Decimal("7.00"), Decimal("7.50")], "item": ["a", "b"]})
    assert pairs_of(read_interactions(decimals)) == [("7", "a", 1.0), ("7.50", "b", 1.0)]


def test_rows_in_the_future_are_bad_rows(read_text: ReadText) -> None:
    soon = datetime.now(UTC) + timedelta(hours=23)
    rows = f"user,item,time\nu,i,2999-01-01 00:00:00\nv,i,2026-01-03 00:00:00\nv,j,\nw,i,{soon:%Y-%m-%d %H:%M:%S}\n"
    rows += "w,j,9999-12-31 00:00:00\n"
    read = read_text(rows, form=Format(max_bad_rows=0.5))
    assert read.left_out == {"in the future": 2}
    assert read.time_range == (datetime(2026, 1, 3), soon.replace(tzinfo=None, microsecond=0))  # noqa: DTZ001 -- naive UTC
    with pytest.raises(
        DataError, match=r"2 of the 5 .*row 2, column 'time': '2999-01-01 00:00:00' lies in the future; "
    ):
        read_text(rows)


def test_invalid_weighting_is_refused_before_reading(tmp_path: Path) -> None:
    missing = tmp_path / "missing.csv"
    with pytest.raises(SettingError, match="weighting is 'Log'"):
        read_interactions(missing, weighting="Log")  # type: ignore[arg-type]  # as a caller without types
    with pytest.raises(SettingError, match="half_life is 0:00:00"):
        read_interactions(missing, half_life=timedelta(0))


def test_segment_with_too_many_values_is_ignored_unless_named(read_text: ReadText) -> None:
    text = "user,item,segment\n" + "".join(f"u{n},i,{n}\n" for n in range(1001))
    read = read_text(text)
    assert (read.segments, read.columns.segment) == (None, None)
    assert "the segment column 'segment' has 1,001 different values, and at most 1,000" in read.notes[0]
    with pytest.raises(DataError, match=r"1,001 different values.*name a column with fewer"):
        read_text(text, columns=Columns(segment="segment"))


def test_a_file_of_titles_has_its_own_names_for_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "user,movie,name\nu,1,ignored\nv,2,ignored\n")
    titles = write(tmp_path / "movies.csv", 'movie_id,name,genre\n1,"Heat, again",x\n2,Up,y\n3,Other,z\n')
    interactions = read_interactions(file, titles=titles)
    assert interactions.titles == {"1": "Heat, again", "2": "Up", "3": "Other"}
    assert interactions.fingerprint != read_interactions(file).fingerprint
    named = read_interactions(file, titles=titles, columns=Columns(title="genre"))
    assert named.titles == {"1": "x", "2": "y", "3": "z"}


WITH_SECONDS = (
    "1700000000",
    "1700000000000000",
    "2023-11-14T22:13:20Z",
    "2023-11-14T23:13:20+01:00",
    "2023-11-14T22:13:20.000",
    "2023-11-14 22:13:20 UTC",
    "2023-11-14 22:13:20.000000 UTC",
    "2023-11-14T22:13:20+00",
    "20231114T221320Z",
    "20231114T231320+0100",
    "20231114T221320",
    "20231114221320",
    "2023-W46-2T22:13:20Z",
    "2023W462T221320Z",
    "2023-318T22:13:20Z",
)
WITHOUT_SECONDS = ("2023-11-14T22:13Z", "2023-11-14T23:13+01:00", "2023-11-14 22:13 UTC", "20231114T2213Z")


@pytest.mark.parametrize(
    ("text", "second"), [*((text, 20) for text in WITH_SECONDS), *((text, 0) for text in WITHOUT_SECONDS)]
)
def test_times_are_read_in_many_ways(text: str, second: int, read_text: ReadText) -> None:
    moment = datetime(2023, 11, 14, 22, 13, second)  # noqa: DTZ001 -- naive UTC
    assert read_text(f"user,item,time\nu,i,{text}\nv,j,\n").time_range == (moment, moment)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2023-11-14T22Z", datetime(2023, 11, 14, 22)),  # noqa: DTZ001 -- naive UTC
        ("20231114T23+01", datetime(2023, 11, 14, 22)),  # noqa: DTZ001 -- naive UTC
        ("2023-12-31T24:00:00Z", datetime(2024, 1, 1)),  # noqa: DTZ001 -- naive UTC
        ("20231231T24Z", datetime(2024, 1, 1)),  # noqa: DTZ001 -- naive UTC
        ("2023-12-31 24:00", datetime(2024, 1, 1)),  # noqa: DTZ001 -- naive UTC
        ("2023-W46-2", datetime(2023, 11, 14)),  # noqa: DTZ001 -- naive UTC
        ("2023-318", datetime(2023, 11, 14)),  # noqa: DTZ001 -- naive UTC
        ("2024-366", datetime(2024, 12, 31)),  # noqa: DTZ001 -- naive UTC
    ],
)
def test_rare_forms_of_iso_8601_are_read_in_columns_and_filters(
    text: str, moment: datetime, read_text: ReadText
) -> None:
    rows = f"user,item,time\nu,i,{text}\nv,j,1999-01-01\n"
    read = read_text(rows, where=[f"time={text}"])
    assert (read.rows, read.time_range) == (2, (moment, moment))
    assert len(read_text(rows, where=[f"time<{text}"]).log) == 1


def test_a_column_may_mix_layouts_of_times(read_text: ReadText) -> None:
    texts = ["2023-11-14T22:13:00Z"] * 1500  # more than the sample that the first layout is chosen by
    texts += ["2023-11-14T22:13", "2023-11-14 23:13:00.5+01:00", "2023-11-14", "20231114T2213Z", "1700000000000", "0"]
    rows = "".join(f"u{number},i,{text}\n" for number, text in enumerate(texts))
    read = read_text(f"user,item,time\n{rows}", form=Format(max_bad_rows=0))
    minute = datetime(2023, 11, 14, 22, 13)  # noqa: DTZ001 -- naive UTC
    last = read.log.filter(pl.col("user").cast(pl.String).is_in([f"u{number}" for number in range(1500, 1506)]))
    assert last.sort(pl.col("user").cast(pl.String)).get_column("time").to_list() == [
        minute,
        minute + timedelta(milliseconds=500),
        datetime(2023, 11, 14),  # noqa: DTZ001 -- naive UTC
        minute,
        minute + timedelta(seconds=20),
        None,
    ]


@pytest.mark.parametrize("first", ["0", "1767225600"])
def test_days_as_eight_digits_are_read_after_times_since_1970(first: str, read_text: ReadText) -> None:
    texts = [first] * 1500  # more than the sample that the first layout is chosen by
    rows = "".join(f"u{number},i,{text}\n" for number, text in enumerate([*texts, "20260102", "20260103101500"]))
    read = read_text(f"user,item,time\n{rows}", form=Format(max_bad_rows=0))
    assert read.time_range is not None
    assert read.time_range[1] == datetime(2026, 1, 3, 10, 15)  # noqa: DTZ001 -- naive UTC
    assert datetime(2026, 1, 2) in read.log.get_column("time")  # noqa: DTZ001 -- naive UTC


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Float64, pl.String])
def test_days_as_eight_digits_are_read(dtype: pl.DataType) -> None:
    frame = pl.DataFrame({"user": ["u", "v"], "item": ["i", "j"], "date": pl.Series([20260102, 20260103]).cast(dtype)})
    first, last = datetime(2026, 1, 2), datetime(2026, 1, 3)  # noqa: DTZ001 -- naive UTC
    assert read_interactions(frame).time_range == (first, last)


@pytest.mark.parametrize("fmt", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("times", "layout", "moment"),
    [
        (["26/05/26 12:29", "01/03/26 00:00"], "%d/%m/%y %H:%M", datetime(2026, 3, 1)),  # noqa: DTZ001 -- naive UTC
        ([20_231_115, 20_231_114], "%Y%m%d", datetime(2023, 11, 14)),  # noqa: DTZ001 -- naive UTC
        (["2026-01-02T00:00:00 +0100", "2026-01-01T01:00:00 +0100"], "%FT%T %z", datetime(2026, 1, 1)),  # noqa: DTZ001 -- naive UTC
    ],
)
def test_times_of_a_named_format_are_read(
    fmt: str, times: list[object], layout: str, moment: datetime, tmp_path: Path
) -> None:
    frame = pl.DataFrame({"user": ["u", "v"], "item": ["i", "j"], "date": times})
    frame.write_csv(tmp_path / "a.csv")
    frame.write_parquet(tmp_path / "a.parquet")
    read = read_interactions(tmp_path / f"a.{fmt}", form=Format(time_format=layout))
    assert read.time_range is not None
    assert read.time_range[0] == moment
    assert read.notes == []


@pytest.mark.parametrize(
    "text",
    [
        "soon",
        "3-Feb-2026",
        "46000,5",
        "0026-05-26",
        "20261301",
        "2026-W54-1",
        "2026-400",
        "2026-01-01T24:30",
        "2026-01-01T25Z",
    ],
)
def test_unreadable_times_are_rejected_with_their_row_and_a_remedy(text: str, read_text: ReadText) -> None:
    rows = f'user,item,date\nu,i,\nv,j,"{text}"\n'
    with pytest.raises(DataError, match=re.escape(f"a.csv, row 3, column 'date': {text!r} is not a time as ISO 8601")):
        read_text(rows)
    read = read_text(rows, columns=Columns(time="none"))
    assert (read.time_range, read.columns.time, "time" in read.log.columns) == (None, None, False)


def test_rows_without_a_time_or_with_0_are_reported_once_they_are_many(read_text: ReadText) -> None:
    rows = "".join(f"u{at % 9},i{at % 4},{('', '0', '1970-01-01')[at % 3]}\n" for at in range(30))
    dated = "".join(f"u{at % 9},i{at % 5},2026-01-0{1 + at % 9}\n" for at in range(60))
    for text, zeros in ((rows + dated, "1970-01-01"), (rows.replace("1970-01-01", "0"), "0")):
        wanted = text.replace(",0\n", ",1970-01-01\n") if zeros != "0" else text + "u,i,1700000000\n" * 60
        read = read_text("user,item,time\n" + wanted)
        assert read.notes == ["30 of 90 rows have no time, or 0, in 'time', and are oldest"]
        assert read.log.get_column("time").null_count() > 0


def test_users_with_a_large_share_of_the_rows_are_named(read_text: ReadText) -> None:
    rows = "".join(f"u{at % 400},i{at % 37}\n" for at in range(2000)) + "anonymous,i1\n" * 800 + "bot,i2\n" * 400
    (note,) = read_text("user,item\n" + rows).notes
    assert "many rows: 'anonymous' (25.0%), 'bot' (12.5%)" in note


def test_users_without_an_item_in_common_are_reported(read_text: ReadText) -> None:
    rows = "".join(f"u{at},i{at}\nu{at},j{at}\n" for at in range(20))
    (note,) = read_text("user,item\n" + rows).notes
    assert note.startswith("no two users have an item in common")


def test_unknown_events_are_named_with_the_most_frequent_first(read_text: ReadText) -> None:
    rows = "user,item,event\nu,i,View\nv,i,View\nu,j,cart\nu,i,view\nv,i,view\nv,j,\n"
    read = read_text(rows, event_weights={"view": 1})
    assert read.left_out == {"unknown event": 4}
    assert "events without a weight are 'View', none, 'cart'; weigh those that count" in read.notes[0]


@pytest.mark.parametrize(
    ("weighting", "weights"),
    [("sum", [0.5, 0.25, 3 / 4 + 0.5 / 16, 4.0]), ("binary", [0.5, 1 / 8, 1 / 4, 1.0])],
)
def test_weight_is_halved_per_half_life_relative_to_the_newest_row(
    weighting: Literal["sum", "binary"], weights: list[float], tmp_path: Path
) -> None:
    half_life = timedelta(seconds=100)
    interactions = read_interactions(written(tmp_path, "csv"), weighting=weighting, half_life=half_life)
    plain = [weight for _, _, weight in pairs_of(read_interactions(tmp_path / "rows.csv", weighting=weighting))]
    scale = sum(plain) / sum(weights)  # the mean does not depend on the half-life
    assert [weight for _, _, weight in pairs_of(interactions)] == pytest.approx([scale * weight for weight in weights])
    aged = read_interactions(tmp_path / "rows.csv", weighting=weighting, half_life=timedelta(seconds=1))
    assert min(weight for _, _, weight in pairs_of(aged)) > 0, "what is old is still an interaction"


@pytest.mark.parametrize("missing", ["N/A", "undefined", "(null)", "-", r"\N", "NA"])
def test_an_id_that_looks_like_a_missing_value_is_named(missing: str, read_text: ReadText) -> None:
    rows = "user_id,item\n" + "".join(f"u{at % 40},i{at % 9}\n" for at in range(90)) + f"{missing},i1\n" * 10
    (note,) = read_text(rows).notes
    assert note.startswith(f"the user {missing!r} looks like a missing value, and counts as one user with 10.0%")
    assert f"--where 'user_id!={missing}'" in note
    left = read_text(rows, where=[f"user_id!={missing}"])
    assert (left.notes, left.left_out) == ([], {f"not user_id!={missing}": 10})


def test_columns_that_are_not_used_are_named_without_a_header(read_text: ReadText) -> None:
    read = read_text("1 2 4 7 9\n2 4 5 7\n3 2 9\n", "train.txt", form=Format(delimiter=" ", header=False))
    assert read.notes[0].startswith("columns 3 to 5 are not used; ")
    assert "write one line for each pair: awk " in read.notes[0]
    columns = Columns(time="4", weight="3")
    rated = "1\t2\t5\t881250949\n2\t3\t4\t881250950\n"
    notes = read_text(rated, "u.data", columns=columns, form=Format(header=False)).notes
    assert not any("not used" in note for note in notes)


def test_column_of_events_that_is_not_used_is_named(read_text: ReadText) -> None:
    rows = "user,item,event\nu,i,view\nv,i,buy\n"
    (note,) = read_text(rows).notes
    assert note == "the column 'event' is not used; if it holds kinds of events, weigh them with --event-weights"
    assert read_text(rows, event_weights={"view": 1, "buy": 5}).notes == []


def test_a_misspelt_event_is_named_with_the_events_of_the_data(read_text: ReadText) -> None:
    rows = "user,item,event\nu,i,view\nv,i,view\nu,j,cart\nv,j,buy\nu,i,buy\n"
    notes = read_text(rows, event_weights={"veiw": 1, "buy": 5}).notes
    assert "no row kept has the event 'veiw' of --event-weights; did you mean view?" in notes
    assert not any("'buy'" in note for note in notes)


@pytest.mark.parametrize(("dtype", "limit"), [(pl.Float16, 2**11), (pl.Float32, 2**24), (pl.Float64, 2**53)])
def test_float_ids_are_read_as_far_as_their_type_holds_every_integer(
    dtype: pl.DataType, limit: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"user": ["u", "v"], "item": pl.Series([limit - 1, 1 - limit], dtype=dtype)}).write_parquet(path)
    assert {item for _, item, _ in pairs_of(read_interactions(path))} == {str(limit - 1), str(1 - limit)}
    pl.DataFrame({"user": ["u", "v"], "item": pl.Series([limit, limit + 1], dtype=dtype)}).write_parquet(path)
    with pytest.raises(DataError, match=rf"row 1, column 'item': {limit}\.0 is a rounded number"):
        read_interactions(path)
    with pytest.raises(DataError, match=rf"row 1, column 'item': {limit}\.0 is a rounded number"):
        read_roles_of(path, ["item"])
    pl.DataFrame({"user": ["u", "v"], "item": pl.Series([math.inf, 1], dtype=dtype)}).write_parquet(path)
    with pytest.raises(DataError, match="row 1, column 'item': inf is a rounded number"):
        read_interactions(path)


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        frame.write_csv(path)
    elif path.suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_parquet(path)


# The users whose rows meet a filter.
KEPT = {
    "price=5": "u",
    "price!=5": "vwx",
    "price=0.1": "v",
    "price!=-1.5": "uvw",
    "price=-1.50": "x",
    "price=": "w",
    "paid=True": "ux",
    "paid!=TRUE": "vw",
    "paid!=": "uwx",
}


@pytest.mark.parametrize("fmt", ["csv", "jsonl", "parquet"])
def test_filters_keep_the_same_rows_of_every_format(fmt: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{fmt}"
    prices = pl.Series([Decimal("5.00"), Decimal("0.10"), None, Decimal("-1.50")]).cast(pl.Decimal(38, 2))
    columns = {"user": list("uvwx"), "item": list("aabb"), "paid": [True, None, False, True]}
    for price in (prices, prices.cast(pl.Float64)):
        write_frame(pl.DataFrame({**columns, "price": price}), path)
        for text, users in KEPT.items():
            log = read_interactions(path, where=[text]).log
            assert sorted(log.get_column("user").cast(pl.String)) == [*users], text


NESTED_IDS = {
    "[2]": '{"user": 1, "item": "a"}\n{"user": [2], "item": "b"}\n',
    '["v", "w"]': '{"user": "u", "item": "a"}\n{"user": ["v", "w"], "item": "b"}\n',
    "[]": '{"user": "[x", "item": "a"}\n{"user": [], "item": "b"}\n',
    "[true]": '{"user": null, "item": "a"}\n{"user": [true], "item": "b"}\n{"user": "u", "item": "a"}\n',
    '{"id": 2}': '{"user": "{3F2504E0}", "item": "a"}\n{"user": {"id": 2}, "item": "b"}\n',
}


@pytest.mark.parametrize("value", NESTED_IDS)
def test_an_id_that_is_an_array_or_an_object_is_a_bad_row(value: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", NESTED_IDS[value])
    message = f"a.jsonl, row 2, column 'user': {value!r} is an array or an object; write one id, as a text or a number"
    with pytest.raises(DataError, match=re.escape(message)):
        read_interactions(path)
    with pytest.raises(DataError, match=re.escape(message)):
        read_truth(path, {})


@pytest.mark.parametrize("role", ["title", "category", "boost"])
def test_an_item_that_is_an_array_is_refused_in_each_file_of_items(role: str, tmp_path: Path) -> None:
    rows = f'{{"item": "a", "{role}": 1}}\n{{"item": ["b"], "{role}": 2}}\n'
    with pytest.raises(DataError, match=r"""row 2, column 'item': '\["b"\]' is an array or an object"""):
        read_roles_of(write(tmp_path / "items.jsonl", rows), ["item", role])
