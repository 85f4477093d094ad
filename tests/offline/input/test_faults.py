"""Bad input gets one sentence that names the file, and the row and column if they are known."""

import bz2
import gzip
import io
import lzma
import random
import uuid
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.options import Columns, Format
from tests.support.interactions import ReadText, pairs_of, write

GOOD = "user,item,weight\n" + "".join(f"u{at % 7},i{at % 11},{at + 1}\n" for at in range(500))
UNKNOWN = random.Random(1).randbytes(5000)
MISNAMED = "custmer,product,plays\na,b,1\nc,d,1\n"
WEIGHED_TWICE = "user,item,weight,event\nu,i,1,view\nv,j,1,view\n"
FEW = "user,item,weight\n,b,1\na,b,0\nc,d,5\n"


def error_of(path: Path, **settings: object) -> str:
    with pytest.raises((DataError, SettingError)) as raised:
        read_interactions(path, **settings)  # type: ignore[arg-type]  # each test passes what the signature asks for
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def parquet(table: pl.DataFrame | pa.Table) -> bytes:
    stream = io.BytesIO()
    if isinstance(table, pl.DataFrame):
        table.write_parquet(stream)
    else:
        pq.write_table(table, stream)
    return stream.getvalue()


FILES: list[tuple[str, str | bytes, str]] = [
    ("a.csv", b"", "a.csv is empty."),
    ("a.csv", "\ufeff", "a.csv is empty."),
    ("a.jsonl", "\n\n", "a.jsonl is empty."),
    ("a.csv.zst", zstandard.compress(GOOD.encode())[:-9], "a.csv.zst is empty or cut; copy it again."),
    ("a.csv", "user,item\n", "a.csv has no rows, or a header alone."),
    ("c.parquet", parquet(pl.read_csv(GOOD.encode()))[:-100], "c.parquet is cut or damaged; copy it again"),
    ("c.parquet", "user,item\na,b\n", "c.parquet is not Parquet, but begins with b'user'"),
    (
        "c.parquet",
        parquet(pa.table([["a"], ["b"], ["c"]], names=["user", "item", "item"])),
        "c.parquet has the column 'item' more than once; rename all but one.",
    ),
    (
        "c.parquet",
        parquet(pa.table({"user": ["a"], "item": ["b"], "weight": pa.array([Decimal(1)], pa.decimal256(50, 2))})),
        "c.parquet has decimals of 50 digits, and at most 38 can be read; write them as float64",
    ),
    ("a.csv", "user,item,weight\na,b,1\na,c,1,4\nb,c,1\n", "a.csv, row 3: '4' stands after the last field"),
    ("a.csv", 'user,item\na,"b\na,c\n', """a.csv, line 2: 'a,"b' has a quote (") that is not closed; remove it"""),
    ("a.csv", 'user,item\na,b\nu"5,c\n' + "a,c\n" * 99, "a.csv, line 3: "),
    ("a.csv", 'user,item\na,"b\nc"\nd,"e\nf,g\nh,"i"\n', "a.csv, line 4: "),
    ("b.csv", "user,item\ra,b\rb,c\r", r"b.csv ends its lines with CR alone; convert it: tr '\r' '\n' < b.csv"),
    ("a.csv", "a,b\nc,d\n", "If these are data, give --no-header"),
    ("a.csv", UNKNOWN, "is not UTF-8; convert the file: iconv -f WINDOWS-1252"),
    ("b.csv", "user,item\na,b\n".encode("utf-16"), "b.csv is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8"),
    ("b.csv", "user,item\na,b\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 b.csv"),
    ("b.csv", "user,item\na,b\n".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8 b.csv"),
    ("a.csv", b"user,item\nu,caf\xc3\xa9\nu,caf\xe9\nv,x\n", r"a.csv, line 3: b'u,caf\xe9\n' is not UTF-8"),
    ("a.csv", "<!DOCTYPE html>\n<p>Not found</p>\n", "a.csv is HTML or XML, perhaps the page of an error"),
    ("a.csv", b"PK\x03\x04 workbook", "a.csv is an Excel workbook or a ZIP archive; save it as CSV"),
    ("a.csv", parquet(pl.read_csv(GOOD.encode())), "a.csv is Parquet; let its name end in .parquet"),
    ("a.json", '[{"user": 1, "item": 2}]', "a.json is a JSON array; write one object a line: jq -c '.[]' a.json"),
    ("a.json", '[\n {"user": 1, "item": 2}\n]\n', "a.json is a JSON array; write one object a line"),
    (
        "b.csv.gz",
        gzip.compress("user,item\na,b\n".encode("utf-16")),
        "b.csv.gz is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 b.csv > utf8-b.csv; decompress it first.",
    ),
    (
        "b.csv.gz",
        gzip.compress(b"user,item\nu,caf\xe9\n"),
        "iconv -f WINDOWS-1252 -t UTF-8 b.csv > utf8-b.csv; decompress it first.",
    ),
    ("b.csv.zst", zstandard.compress(b"user,item\nu,caf\xe9\n"), "-t UTF-8 b.csv > utf8-b.csv; decompress it first."),
    ("a.csv", 'user,item,weight\na,b,1\nc,d,"1.234,5"\n', "'1.234,5' is not a finite number (write a decimal point)"),
    ("a.json", '{\n "user": 1,\n "item": 2\n}\n', "a.json is JSON with objects over several lines; write one a line"),
    ("a.json", '{"data": [{"user": 1, "item": 2}]}', "with the rows in 'data'; write one row a line: jq -c '.data[]'"),
    ("a.parquet", b"", "a.parquet is empty."),
    ("a.xlsx", b"PK", "a.xlsx is not of a known kind"),
    ("a.csv", bz2.compress(GOOD.encode()), "a.csv is of bzip2 or xz, or compressed twice; compress it once by gzip"),
    ("a.csv", lzma.compress(GOOD.encode()), "a.csv is of bzip2 or xz, or compressed twice"),
    ("a.csv.gz", gzip.compress(gzip.compress(GOOD.encode())), "a.csv.gz is of bzip2 or xz, or compressed twice"),
    ("a.csv", b"%PDF-1.7\n%\xe2\xe3\n", "a.csv is a PDF or an image; export the table as CSV"),
    ("a.csv", MISNAMED, "looks like the user; name it 'user' or give --user-column."),
    ("a.csv", MISNAMED, "Its columns are: custmer, product, plays."),
    ("a.csv", "user\na\n", "looks like the item"),
    ("a.csv", "user,item,user\na,b,c\n", "a.csv has the column 'user' of the user twice; rename one of them."),
    ("a.parquet", parquet(pl.DataFrame({"user": [["a"], ["b"]], "item": ["c", "d"]})), "The column 'user' of"),
    ("a.jsonl", '{"user": 1, "item": 2}\n[1, 2]\n', "a.jsonl, row 2: '[1, 2]' is not a JSON object"),
    ("a.jsonl", '{"user": 1, "item": 2}\n5\n', "a.jsonl, row 2: '5' is not a JSON object."),
    ("a.jsonl", '{"user": 1, "item": 2}\nnull\n', "a.jsonl, row 2: 'null' is not a JSON object."),
    (
        "a.jsonl",
        '{"user": 1, "item": 2}\n{"user": 1, "item": NaN}\n',
        "is not a JSON object (write null for NaN and Infinity).",
    ),
    ("a.jsonl", "{'user': 1, 'item': 2}\n", "a.jsonl has no columns, and no JSON object such as"),
    ("a.jsonl", '{"user": [1], "item": 2}\n{"user": [2], "item": 3}\n', "The column 'user' of"),
    ("a.jsonl", '{"user": 1, "item": 2, "weight": "x"}\n{"user": 1, "item": 2}\n', "a.jsonl, row 1, column 'weight'"),
    ("a.jsonl", '{"user": 1, "item": 2}\n{"user": 1, "item": 1e400}\n', "a.jsonl, row 2: "),
    (
        "a.jsonl",
        '{"user": 9007199254740993.0, "item": 4}\n{"user": 1e17, "item": 5}\n',
        "'9007199254740992.0' is a rounded number",
    ),
    ("a.jsonl", '{"user": 9007199254740993.0, "item": 4}\n{"user": 1e17, "item": 5}\n', "'1e+17' is a rounded number"),
    (
        "c.csv",
        "user,item\n1.2346E+11,a\n1.2347E+11,b\n",
        "'1.2346E+11' is a rounded number, so different ids may have become one",
    ),
    ("a.tsv", '"user"\t"item"\n"u"\t"a"\n"v"\t"b"c"\n', "a.tsv, line 3: "),
    ("a.tsv", '"user"\t"item"\n"u"\t"a"\n"v"\t"b"c"\n', " is not closed"),
    *(
        ("a.csv", f'user,item,weight\na,b,1\nc,d,"{weight}"\n', f"row 3, column 'weight': {weight!r} is not a finite")
        for weight in ("abc", "inf", "1,5", "1e400")
    ),
]


@pytest.mark.parametrize(
    ("row", "advice"),
    [('a,b,"1,5"', "write a decimal point"), ("1.23457E+15,b,1", "write ids as whole numbers or texts")],
)
def test_error_of_bad_rows_begins_with_their_number_and_advises_once(row: str, advice: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user,item,weight\n" + f"{row}\n" * 9)
    error = error_of(path)
    assert error.startswith("9 of the 9 rows of ")
    assert error.count(advice) == 1
    assert "row 6, " in error


def test_advice_on_a_number_is_given_once_for_several_files_with_its_row(tmp_path: Path) -> None:
    for name, row in (("a", "a,b,abc"), ("b", 'a,b,"1,5"'), ("c", 'a,b,"2,5"')):
        write(tmp_path / f"{name}.csv", f"user,item,weight\n{row}\n")
    error = error_of(tmp_path)
    assert "'1,5' is not a finite number (write a decimal point); " in error
    assert error.count("write a decimal point") == 1


def test_bad_rows_of_each_file_are_shown(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.csv", "user,item,weight\n" + f"u,i,{name}\n" * 9)
    error = error_of(tmp_path)
    for name, rows in (("a", (2, 3)), ("b", (2, 3)), ("c", (2,))):
        for row in rows:
            assert f"{name}.csv, row {row}, column 'weight': '{name}' is not a finite number" in error
    assert error.count("is not a finite number") == 5


@pytest.mark.parametrize(("name", "content", "sentence"), FILES, ids=[f"{name}-{said}" for name, _, said in FILES])
def test_unusable_file_is_one_sentence(name: str, content: str | bytes, sentence: str, tmp_path: Path) -> None:
    assert sentence in error_of(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("content", "settings", "sentence"),
    [
        (
            MISNAMED,
            {"columns": Columns(user="customer")},
            "no column 'customer' for the user. Its columns are: custmer",
        ),
        (MISNAMED, {"columns": Columns(user="custmer"), "event_weights": {"view": 1.0}}, "looks like the event"),
        (MISNAMED, {"columns": Columns(user="custmer"), "where": ["x>1"]}, "has no column 'x' for the filter 'x>1'"),
        ("user,item\na,b\n", {"form": Format(";")}, "Its columns are: user,item"),
        ("user,item\na,b\n", {"form": Format("é")}, "The delimiter 'é' cannot be used"),
        (GOOD, {"columns": Columns(user="ITEM", item="item")}, "'item' is named for the user and the item."),
        (FEW, {"where": ["weight<5"]}, "Nothing is left of the 3 rows of"),
        (FEW, {"where": ["weight<5"]}, ": 1 not weight<5 (most often '5'), 1 weight zero or less, 1 no user."),
        (
            "user,item,country,plays\nu,i,FR,1\nv,j,FR,2\nw,j,DE,2\nx,j,,2\n",
            {"where": ["country=FR", "plays>2"]},
            ": 2 not country=FR (most often no value, 'DE'), 2 not plays>2 (most often '1', '2').",
        ),
        (
            "user,item,event\nu,i,view\nv,i,view\nu,j,cart\nv,j,buy\nu,i,buy\n",
            {"event_weights": {"veiw": 1}},
            "5 unknown event (most often 'buy', 'view', 'cart')",
        ),
        (
            WEIGHED_TWICE,
            {"columns": Columns(weight="weight"), "event_weights": {"view": 1}},
            "A row's weight has several sources",
        ),
        (WEIGHED_TWICE, {"columns": Columns(event="event")}, "The event column 'event' needs event weights"),
        (
            "user,item\nu,i\nv,j\n",
            {"half_life": timedelta(days=1)},
            "has no times for the half-life; name their column with --time",
        ),
        ("user,item,when\na,b,soon\nc,d,x\n", {"columns": Columns(time="when")}, "row 2, column 'when': 'soon' is not"),
        ("user,item,date\na,b,2026-01-02\n", {"form": Format(time_format="%Q")}, "is not a time as %Q"),
        (GOOD, {"titles": Path("gone.csv")}, "gone.csv does not exist"),
    ],
)
def test_settings_that_contradict_a_file_are_one_sentence(
    content: str, settings: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    assert sentence in error_of(write(tmp_path / "a.csv", content), **settings)


@pytest.mark.parametrize(("name", "compress"), [("a.csv.gz", gzip.compress), ("a.csv.zst", zstandard.compress)])
def test_truncated_or_damaged_compressed_data_are_refused(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(GOOD.encode())
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    cut = [whole[:size] for size in (1, 2, 3, 4, 9, 20, middle, len(whole) - 1)]
    for content in (*cut, changed, whole[:6] + b"\xff" * 900, UNKNOWN):
        assert name in error_of(write(tmp_path / name, content))


def test_mixed_folders_are_refused(tmp_path: Path) -> None:
    assert "holds no files" in error_of(tmp_path)
    file = write(tmp_path / "a.csv", GOOD)
    write(tmp_path / "b.csv", "user,product\na,b\n")
    assert f"b.csv has the columns user, product, but {file} has user, item, weight" in error_of(tmp_path)
    write(tmp_path / "b.csv", "user,item,weight\na,b,many\n")
    assert "b.csv, row 2, column 'weight': 'many'" in error_of(tmp_path)
    titles = write(tmp_path / "titles.txt", "item,genre\n1,x\n")
    assert "titles.txt looks like the title" in error_of(file, titles=titles)


def test_a_few_bad_rows_are_left_out_counted_and_shown(tmp_path: Path) -> None:
    bad = {4: "u,i,1,1", 9: "u,i,many", 12: 'u,"i",1,"x"', 31: "u,i,inf"}
    lines = GOOD.splitlines()
    for row, text in bad.items():
        lines.insert(row - 1, text)
    file = write(tmp_path / "a.csv", "\n".join(lines))
    message = error_of(file)
    assert "a.csv, row 4: '1' stands after the last field; " in message
    assert "4 of the 504 rows of" in message
    read = read_interactions(file, form=Format(max_bad_rows=0.02))
    assert (read.rows, read.left_out) == (504, {"malformed row": 2, "weight that is not a number": 2})
    (note,) = read.notes
    assert note.startswith("bad rows are left out: ")
    assert "row 12: 'x' stands after the last field" in note
    assert "row 9, column 'weight': 'many' is not a finite number" in note
    assert sorted(pairs_of(read)) == sorted(pairs_of(read_interactions(write(tmp_path / "b.csv", GOOD))))


def test_missing_fields_at_the_end_of_a_row_are_missing_values(read_text: ReadText) -> None:
    read = read_text('user,item,title\nu,i\nv,j,one\n"w,w",k,\nw\n\n')
    assert (read.rows, read.left_out, read.titles) == (5, {"no user": 1, "no item": 1}, {"j": "one"})
    assert {user for user, _, _ in pairs_of(read)} == {"u", "v", "w,w"}


@pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\r\n', "\ufeffsep=;\n"])
def test_separator_declaration_line_is_not_a_row(first: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", f"{first}user;item;weight\nu;i;1\nv;k;2\nv;j;x\n")
    assert "a.csv, row 5, column 'weight': 'x' is not" in error_of(file)
    read = read_interactions(file, form=Format(max_bad_rows=1))
    assert pairs_of(read) == [("u", "i", 1.0), ("v", "k", 2.0)]


def test_parquet_uuids_and_binary_texts_are_read_as_text(tmp_path: Path) -> None:
    users = [uuid.UUID(int=number * 0x123456789ABCDEF0123456789AB) for number in (1, 2, 3)]
    frame = pl.DataFrame({"user": [user.bytes for user in users], "item": [b"a", b"b", "caf\u00e9".encode()]})
    frame.write_parquet(tmp_path / "a.parquet")
    read = read_interactions(tmp_path / "a.parquet")
    assert {user for user, _, _ in pairs_of(read)} == set(map(str, users))
    assert {item for _, item, _ in pairs_of(read)} == {"a", "b", "caf\u00e9"}
    pl.DataFrame({"user": [b"\xff\x00", b"\xfe"], "item": ["a", "b"]}).write_parquet(tmp_path / "b.parquet")
    assert "The column 'user' of" in error_of(tmp_path / "b.parquet")
