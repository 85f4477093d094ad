"""Bad input gets one sentence that says what and where, and what to do."""

import gzip
import io
import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import Columns
from hotplate.offline.input.files import Format, find_files
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.input.tables import open_tables
from tests.support.interactions import pairs_of, write

GOOD = "user,item,weight\n" + "".join(f"u{at % 7},i{at % 11},{at + 1}\n" for at in range(500))
UNKNOWN = random.Random(1).randbytes(5000)
MISNAMED = "custmer,product,plays\na,b,1\nc,d,1\n"
SEGMENTS = f"user,item,when,segment\na,b,soon,{'s' * 300}\nc,d,later,t\n"


def error_of(path: Path, **settings: object) -> str:
    with pytest.raises(DataError) as raised:
        read_interactions(path, **settings)  # type: ignore[arg-type]  # each test passes what the signature asks for
    message = str(raised.value)
    assert "Traceback" not in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


def parquet(frame: pl.DataFrame) -> bytes:
    stream = io.BytesIO()
    frame.write_parquet(stream)
    return stream.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damaged(content: bytes) -> bytes:
    """Change one byte in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


FILES: list[tuple[str, str | bytes, str]] = [
    ("a.csv", b"", "a.csv is empty"),
    ("a.parquet", b"", "a.parquet is empty"),
    ("a.csv.gz", b"", "a.csv.gz is empty"),
    ("a.csv.gz", gzip.compress(b""), "a.csv.gz is empty"),
    ("a.csv", "user,item\n", "a.csv has a header but no rows; give a file with rows"),
    ("a.parquet", parquet(pl.DataFrame({"user": ["a"], "item": ["b"]}).clear()), "a.parquet has a header but no rows"),
    ("c.parquet", half(parquet(pl.read_csv(GOOD.encode()))), "c.parquet is cut in the middle"),
    ("a.csv", "user,item,weight\na,b,1\na,c,1,4\nb,c,1\n", "a.csv, row 3: too many fields, as '4' after the last"),
    ("a.csv", '"us\ner",item\na,b\na,c,4\nb,c\n', "a.csv, row 3: too many fields, as '4' after the last"),
    (
        "a.csv",
        'user,item,weight\na,b,1\na,"b,1\na,c,1\n',
        "a.csv has a quote that is not closed or stands inside",
    ),
    ("a.csv.gz", damaged(gzip.compress(GOOD.encode())), "a.csv.gz is damaged"),
    ("b.csv", "user,item\ra,b\rb,c\r", "b.csv has lines that end with CR alone; convert it: tr '\\r' '\\n'"),
    ("a.csv", "a,b\nc,d\n", "If these are data, give --no-header."),
    ("a.csv", UNKNOWN, "a.csv is neither UTF-8 text nor gzip or zstd data"),
    ("b.csv", "user,item\na,b\n".encode("utf-16"), "or convert it: iconv -f UTF-16 -t UTF-8"),
    ("a.xlsx", b"PK", "a.xlsx is not of a known kind"),
    ("a.parquet.gz", b"PAR1", "a.parquet.gz is not of a known kind"),
    ("b.parquet", GOOD, "b.parquet is cut in the middle or is not a Parquet file"),
    ("a.csv", b"user,item\nu,caf\xc3\xa9\nu,caf\xe9\nv,x\n", "a.csv is not UTF-8 text"),
    ("a.csv", MISNAMED, "looks like the user; name it 'user' or give --user-column."),
    ("a.csv", MISNAMED, "Its columns are: custmer, product, plays."),
    ("a.csv", "user\na\n", "a.csv has a single column, 'user'"),
    ("b.csv", "user,item,item\na,b,c\n", "b.csv has two columns named 'item' in its header (row 1)"),
    ("c.csv", "\nuser,item\na,b\n", "c.csv begins with an empty line"),
    ("a.parquet", parquet(pl.DataFrame({"user": [["a"], ["b"]], "item": ["c", "d"]})), "The column 'user' of"),
    ("a.csv", SEGMENTS, "holds a value of 300 bytes"),
    *(
        (
            "a.csv",
            f'user,item,weight\na,b,1\nc,d,"{weight}"\ne,f,2\n',
            f"a.csv, row 3, column 'weight': {weight!r} is not a finite number",
        )
        for weight in ("abc", "inf", "-inf", "1,5", "0x10", "1e400")
    ),
]


@pytest.mark.parametrize(("name", "content", "sentence"), FILES, ids=[f"{name}-{said}" for name, _, said in FILES])
def test_a_file_that_cannot_be_used_is_one_sentence(
    name: str, content: str | bytes, sentence: str, tmp_path: Path
) -> None:
    assert sentence in error_of(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("content", "settings", "sentence"),
    [
        (MISNAMED, {"columns": Columns(user="customer")}, "no column 'customer' for the user. Did you mean 'custmer'?"),
        (MISNAMED, {"columns": Columns(user="custmer"), "event_weights": {"view": 1.0}}, "looks like the event"),
        (MISNAMED, {"columns": Columns(user="plays", item="plays")}, "named for both the user and the item"),
        (MISNAMED, {"columns": Columns(user="custmer"), "where": ["x>1"]}, "has no column 'x' for the filter 'x>1'"),
        ("user,item\na,b\n", {"form": Format(";")}, "a.csv has no ';' in it"),
        ("user,item\na,b\n", {"form": Format("é")}, "The delimiter 'é' cannot be used"),
        ("user,item,weight\n,b,1\na,b,0\nc,d,5\n", {"where": ["weight<5"]}, "Nothing is left of the 3 rows of"),
        (
            "user,item,weight\n,b,1\na,b,0\nc,d,5\n",
            {"where": ["weight<5"]},
            ": 1 where weight<5, 1 no user, 1 weight zero or less;",
        ),
        (
            "user,item,when\na,b,soon\nc,d,x\n",
            {"columns": Columns(time="when")},
            "a.csv, row 2, column 'when': 'soon' is not a time",
        ),
        ("user,item,when\na,b,\nc,d,\n", {"columns": Columns(time="when")}, "The column 'when' of"),
        (GOOD, {"titles": Path("gone.csv")}, "gone.csv does not exist"),
    ],
)
def test_settings_that_do_not_fit_a_file_are_one_sentence(
    content: str, settings: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    assert sentence in error_of(write(tmp_path / "a.csv", content), **settings)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.zst", "a.tsv.ZSTD"])
def test_what_is_not_compressed_though_its_name_says_so(tmp_path: Path, name: str) -> None:
    for content in (UNKNOWN, b"\x01\x02\x03", b"PK\x03\x04" + bytes(300), "user,item\na,b\n".encode("utf-16")):
        assert f"{name} is neither UTF-8 text nor gzip or zstd data" in error_of(write(tmp_path / name, content))
    latin = "user,item\na,café\n".encode("latin-1")
    assert f"{name} is not UTF-8 text" in error_of(write(tmp_path / name, latin))


def test_text_that_was_decompressed_on_the_way_is_read_whatever_its_name(tmp_path: Path) -> None:
    for name in ("a.csv.gz", "a.csv.zst"):
        file = write(tmp_path / name, "user,item\na,ü\n" * 600)
        assert len(open_tables(find_files(file), Format())) == 1


@pytest.mark.parametrize(("name", "compress"), [("a.csv.gz", gzip.compress), ("a.csv.zst", zstandard.compress)])
def test_compressed_data_that_are_cut_anywhere_or_damaged(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(GOOD.encode())
    for size in (1, 2, 3, 4, 5, 9, 20, len(whole) // 2, len(whole) - 1):
        assert f"{name} is cut in the middle" in error_of(write(tmp_path / name, whole[:size])), size
    for size in (4, 6):
        assert f"{name} is damaged" in error_of(write(tmp_path / name, whole[:size] + b"\xff" * 900)), size


def test_folders_that_cannot_be_read_as_one(tmp_path: Path) -> None:
    assert "holds no files" in error_of(tmp_path)
    write(tmp_path / "a.csv", GOOD)
    write(tmp_path / "b.parquet", b"PAR1")
    assert "holds files of several kinds (b.parquet, a.csv)" in error_of(tmp_path)
    (tmp_path / "b.parquet").unlink()
    write(tmp_path / "b.csv", "user,product\na,b\n")
    message = error_of(tmp_path)
    assert f"b.csv has the columns user, product, but {tmp_path / 'a.csv'} has user, item, weight" in message


def test_a_bad_weight_names_its_own_file_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", GOOD)
    weights = pl.DataFrame({"user": ["a", "b"], "item": ["c", "d"], "weight": [1.0, float("inf")]})
    alone = write(tmp_path / "b.pq", parquet(weights))
    assert "b.pq, row 2, column 'weight': inf" in error_of(alone)
    alone.unlink()
    write(tmp_path / "b.csv", "user,item,weight\na,b,many\n")
    assert "b.csv, row 2, column 'weight': 'many'" in error_of(tmp_path)


def test_a_file_of_titles_without_titles(tmp_path: Path) -> None:
    titles = write(tmp_path / "titles.csv", "item,genre\n1,x\n")
    message = error_of(write(tmp_path / "a.csv", GOOD), titles=titles)
    assert "titles.csv looks like the title" in message
    assert "Its columns are: item, genre" in message


def test_a_few_bad_rows_are_left_out_counted_and_shown(tmp_path: Path) -> None:
    bad = {4: "u,i,1,1", 9: "u,i,many", 12: 'u,"i",1,"x"', 20: "u,i,nil,1", 31: "u,i,inf"}
    lines = GOOD.splitlines()
    for row, text in bad.items():
        lines.insert(row - 1, text)
    file = write(tmp_path / "a.csv", "\n".join(lines))
    message = error_of(file)
    assert "a.csv, row 4: too many fields, as '1' after the last; " in message
    assert "5 of the 505 rows of" in message
    read = read_interactions(file, form=Format(max_bad_rows=0.02))
    assert read.left_out == {"incomplete": 3, "weight that is not a number": 2}
    assert read.rows == 505
    (note,) = read.notes
    assert note.startswith("bad rows are left out: ")
    for row in (4, 12, 20):
        assert f"row {row}: too many fields" in note
    assert "row 9, column 'weight': 'many' is not a finite number" in note
    assert sorted(pairs_of(read)) == sorted(pairs_of(read_interactions(write(tmp_path / "b.csv", GOOD))))


def test_rows_with_too_few_fields_are_bad_rows_and_empty_fields_are_not(tmp_path: Path) -> None:
    rows = ["u,i,", "v,j,one", "v,k,", '"w,w",k,']
    content = "\n".join(["user,item,title", *rows * 5, "u,i", "", '"w,w",k', "w"])
    file = write(tmp_path / "a.csv", content)
    assert "a.csv, row 22: too few fields; " in error_of(file)
    assert "3 of the 23 rows of" in error_of(file)
    read = read_interactions(file, form=Format(max_bad_rows=0.2))
    assert (read.rows, read.left_out, read.titles) == (23, {"incomplete": 3}, {"j": "one"})
    assert {user for user, _, _ in pairs_of(read)} == {"u", "v", "w,w"}


def test_separators_between_quotes_inside_of_fields_are_counted(tmp_path: Path) -> None:
    content = 'user\titem\tname\ttitle\nu\ti\t5" x\t6" y\nu\tj\t\t\nv\ti\tx\t"a\tb"\n'
    read = read_interactions(write(tmp_path / "a.tsv", content))
    assert (read.rows, read.left_out) == (3, {})


@pytest.mark.parametrize("layout", ["soon", "%Q", "%d/%m", "%", "ISO"])
def test_a_format_that_reads_no_times_is_refused_before_the_data_are_read(layout: str) -> None:
    with pytest.raises(SettingError, match=f"The time format '{layout}' cannot be used"):
        Format(time_format=layout)


@pytest.mark.parametrize("share", [-0.1, 1, 5])
def test_a_share_of_bad_rows_that_makes_no_sense_is_refused(share: float) -> None:
    with pytest.raises(SettingError, match="a share from 0 to 1"):
        Format(max_bad_rows=share)
