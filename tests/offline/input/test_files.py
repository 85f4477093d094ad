"""Bad input gets one sentence that says what and where, and what to do."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard

from hotplate.offline.errors import DataError
from hotplate.offline.input.columns import Columns
from hotplate.offline.input.files import Format, find_files
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.input.tables import open_tables

GOOD = "user,item,weight\n" + "".join(f"u{at % 7},i{at % 11},{at + 1}\n" for at in range(500))


def error_of(path: Path, **settings: object) -> str:
    with pytest.raises(DataError) as raised:
        read_interactions(path, **settings)  # type: ignore[arg-type]  # each test passes what the signature asks for
    message = str(raised.value)
    assert "Traceback" not in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert "nowhere.csv does not exist" in error_of(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.csv.gz"])
def test_an_empty_file(name: str, tmp_path: Path) -> None:
    assert f"{name} is empty" in error_of(write(tmp_path / name, b""))


def test_a_compressed_file_of_nothing(tmp_path: Path) -> None:
    assert "a.csv.gz is empty" in error_of(write(tmp_path / "a.csv.gz", gzip.compress(b"")))


def test_a_header_without_rows(tmp_path: Path) -> None:
    assert "a.csv has a header but no rows" in error_of(write(tmp_path / "a.csv", "user,item\n"))
    pl.DataFrame({"user": ["a"], "item": ["b"]}).clear().write_parquet(tmp_path / "a.parquet")
    assert "a.parquet has a header but no rows" in error_of(tmp_path / "a.parquet")


def test_a_file_cut_in_the_middle(tmp_path: Path) -> None:
    packed = gzip.compress(GOOD.encode())
    assert "a.csv.gz is cut in the middle" in error_of(write(tmp_path / "a.csv.gz", packed[: len(packed) // 2]))
    frame = pl.read_csv(GOOD.encode())
    for name in ("b.csv.zst", "c.parquet"):
        if name.endswith("parquet"):
            frame.write_parquet(tmp_path / name)
        else:
            frame.write_csv(tmp_path / name, compression="zstd")
        whole = (tmp_path / name).read_bytes()
        assert f"{name} is cut in the middle" in error_of(write(tmp_path / name, whole[: len(whole) // 2]))
    message = error_of(write(tmp_path / "d.csv", GOOD[: GOOD.rindex(",")]))
    assert "d.csv, row 501: too few fields, 2 where the first row has 3" in message


def test_rows_with_too_many_or_too_few_fields(tmp_path: Path) -> None:
    message = error_of(write(tmp_path / "a.csv", "user,item,weight\na,b,1\na,c,1,4\nb,c,1\n"))
    assert "a.csv, row 3: too many fields, 4 where the first row has 3" in message
    message = error_of(write(tmp_path / "b.csv", 'user,item,weight\n"a",b,1\n"a,c",1\nb,c,1\n'))
    assert "b.csv, row 3: too few fields, 2 where the first row has 3" in message
    message = error_of(write(tmp_path / "c.csv", 'user,item,title\nu,i,"two\nlines"\nv,j\n'))
    assert "c.csv, row 4: too few fields, 2 where the first row has 3" in message


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    message = error_of(write(tmp_path / "a.csv", 'user,item,weight\na,b,1\na,"b,1\na,c,1\n'))
    assert "a.csv, row 3: a quote is opened and not closed" in message


def test_damage_within_a_file(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(GOOD.encode()))
    packed[len(packed) // 2] ^= 255
    assert "a.csv.gz is damaged" in error_of(write(tmp_path / "a.csv.gz", bytes(packed)))
    assert "b.csv holds the control character 0x01" in error_of(write(tmp_path / "b.csv", "user,item\na,\x01\nb,c\n"))
    assert "c.csv holds the control character 0x01" in error_of(write(tmp_path / "c.csv", "us\x01er,item\na,b\nb,c\n"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (random.Random(1).randbytes(5000), "data of an unknown kind"),
        (b"\x01\x02\x03", "data of an unknown kind"),
        (b"PK\x03\x04" + bytes(300), "a ZIP archive"),
        (b"PAR1" + bytes(300), "a Parquet file"),
        ("user,item\na,b\n".encode("utf-16"), "UTF-16 text"),
        ("user,item\na,café\n".encode("latin-1"), "text in another encoding than UTF-8"),
    ],
)
def test_what_is_not_compressed_though_its_name_says_so(tmp_path: Path, content: bytes, found: str) -> None:
    for name, kind in (("a.csv.gz", "gzip data"), ("a.csv.zst", "zstd data"), ("a.tsv.ZSTD", "zstd data")):
        message = error_of(write(tmp_path / name, content))
        assert f"{name} is not {kind}, as its name says, but {found}" in message


def test_what_is_no_text_though_its_name_says_so(tmp_path: Path) -> None:
    message = error_of(write(tmp_path / "a.csv", random.Random(1).randbytes(5000)))
    assert "a.csv is not UTF-8 text, as its name says, but data of an unknown kind" in message
    assert "but UTF-16 text" in error_of(write(tmp_path / "b.csv", "user,item\na,b\n".encode("utf-16")))


def test_text_that_was_decompressed_on_the_way_is_read_whatever_its_name(tmp_path: Path) -> None:
    for name in ("a.csv.gz", "a.csv.zst"):
        file = write(tmp_path / name, "user,item\na,ü\n" * 600)
        assert len(open_tables(find_files(file), Format(), name)) == 1


@pytest.mark.parametrize(("name", "compress"), [("a.csv.gz", gzip.compress), ("a.csv.zst", zstandard.compress)])
def test_compressed_data_that_are_cut_anywhere_or_damaged(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(GOOD.encode())
    for size in (1, 2, 3, 4, 5, 9, 20, len(whole) // 2, len(whole) - 1):
        assert f"{name} is cut in the middle" in error_of(write(tmp_path / name, whole[:size])), size
    for size in (4, 6):
        assert f"{name} is damaged" in error_of(write(tmp_path / name, whole[:size] + b"\xff" * 900)), size


def test_a_kind_that_is_not_known(tmp_path: Path) -> None:
    assert "a.xlsx is not of a known kind" in error_of(write(tmp_path / "a.xlsx", b"PK"))
    assert "a.parquet.gz is not of a known kind" in error_of(write(tmp_path / "a.parquet.gz", b"PAR1"))
    assert "b.parquet is cut in the middle or is not a Parquet file" in error_of(write(tmp_path / "b.parquet", GOOD))


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    message = error_of(write(tmp_path / "a.csv", b"user,item\nu,caf\xc3\xa9\nu,caf\xe9\nv,x\n"))
    assert "a.csv, row 3: not UTF-8 text" in message


def test_folders_that_cannot_be_read_as_one(tmp_path: Path) -> None:
    assert "holds no files" in error_of(tmp_path)
    write(tmp_path / "a.csv", GOOD)
    write(tmp_path / "b.parquet", b"PAR1")
    assert "holds files of several kinds (b.parquet, a.csv)" in error_of(tmp_path)
    (tmp_path / "b.parquet").unlink()
    write(tmp_path / "b.csv", "user,product\na,b\n")
    message = error_of(tmp_path)
    assert f"b.csv has the columns user, product, but {tmp_path / 'a.csv'} has user, item, weight" in message


def test_a_column_that_is_missing_or_misnamed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "custmer,product,plays\na,b,1\nc,d,1\n")
    message = error_of(file)
    assert "No column of" in message
    assert "looks like the user; name it 'user' or give --user-column." in message
    assert "Its columns are: custmer, product, plays." in message
    message = error_of(file, columns=Columns(user="customer"))
    assert "a.csv has no column 'customer' for the user. Did you mean 'custmer'?" in message
    assert "looks like the event" in error_of(file, columns=Columns(user="custmer"), event_weights={"view": 1.0})
    assert "named for both the user and the item" in error_of(file, columns=Columns(user="plays", item="plays"))
    assert "has no column 'x' for the filter 'x>1'" in error_of(file, columns=Columns(user="custmer"), where=["x>1"])


def test_a_file_of_one_column_or_with_a_name_twice(tmp_path: Path) -> None:
    assert "a.csv has a single column, 'user'" in error_of(write(tmp_path / "a.csv", "user\na\n"))
    message = error_of(write(tmp_path / "b.csv", "user,item,item\na,b,c\n"))
    assert "b.csv has two columns named 'item' in its header (row 1)" in message
    assert "c.csv begins with an empty line" in error_of(write(tmp_path / "c.csv", "\nuser,item\na,b\n"))
    message = error_of(write(tmp_path / "d.csv", "user,item\na,b\n"), form=Format(";"))
    assert "The first row of" in message
    assert "d.csv has no ';' in it" in message
    assert "The delimiter 'é' cannot be used" in error_of(tmp_path / "d.csv", form=Format("é"))


@pytest.mark.parametrize("weight", ["abc", "inf", "-inf", "1,5", "0x10", "1e400"])
def test_a_weight_that_is_no_finite_number(weight: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", f'user,item,weight\na,b,1\nc,d,"{weight}"\ne,f,2\n')
    assert f"a.csv, row 3, column 'weight': the weight {weight!r} is not a finite number" in error_of(file)


def test_a_bad_weight_names_its_own_file_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", GOOD)
    pl.DataFrame({"user": ["a", "b"], "item": ["c", "d"], "weight": [1.0, float("inf")]}).write_parquet(
        tmp_path / "b.pq"
    )
    assert "b.pq, row 2, column 'weight': the weight inf" in error_of(tmp_path / "b.pq")
    (tmp_path / "b.pq").unlink()
    write(tmp_path / "b.csv", "user,item,weight\na,b,many\n")
    assert "b.csv, row 2, column 'weight': the weight 'many'" in error_of(tmp_path)


def test_nothing_left_reports_where_it_went(tmp_path: Path) -> None:
    message = error_of(write(tmp_path / "a.csv", "user,item,weight\n,b,1\na,b,0\nc,d,5\n"), where=["weight<5"])
    assert "Nothing is left of the 3 rows of" in message
    assert ": 1 where weight<5, 1 no user, 1 weight zero or less;" in message


def test_columns_that_cannot_be_ids_or_times_or_segments(tmp_path: Path) -> None:
    pl.DataFrame({"user": [["a"], ["b"]], "item": ["c", "d"]}).write_parquet(tmp_path / "a.parquet")
    assert "The column 'user' of" in error_of(tmp_path / "a.parquet")
    file = write(tmp_path / "a.csv", f"user,item,when,segment\na,b,soon,{'s' * 300}\nc,d,later,t\n")
    assert "holds a value of 300 bytes" in error_of(file)
    assert "The column 'when' of" in error_of(
        write(file, "user,item,when\na,b,soon\nc,d,x\n"), columns=Columns(time="when")
    )


def test_a_file_of_titles_that_does_not_fit(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", GOOD)
    assert "gone.csv does not exist" in error_of(file, titles=tmp_path / "gone.csv")
    titles = write(tmp_path / "titles.csv", "item,genre\n1,x\n")
    message = error_of(file, titles=titles)
    assert "titles.csv looks like the title" in message
    assert "Its columns are: item, genre" in message
