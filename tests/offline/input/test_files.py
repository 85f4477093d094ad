"""Kinds of input: files with and without a header, JSON lines, folders by key, and several at once."""

import gzip
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path

import fsspec
import polars as pl
import pytest
import zstandard
from aiohttp import ClientTimeout
from fsspec.implementations.http import HTTPFileSystem

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.files import digest_of_paths
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.model_folder import save
from hotplate.offline.options import Columns, Format
from tests.support.command import hotplate
from tests.support.http_server import handled_by
from tests.support.interactions import checkerboard_model, pairs_of, write

MOVIES = [(196, 242, 3, 881250949), (186, 302, 3, 891717742), (196, 377, 1, 878887116), (22, 242, 2, 880606923)]
TIMES = (datetime(1997, 11, 7, 7, 18, 36), datetime(1998, 4, 4, 19, 22, 22))  # noqa: DTZ001 -- naive UTC


def lines_of(separator: str) -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in MOVIES)


EXPECTED = sorted((str(user), str(item), 1.0) for user, item, _, _ in MOVIES)


@pytest.mark.parametrize(("name", "separator"), [("u.data", "\t"), ("b.txt", ";")])
def test_columns_of_files_without_a_header_are_named_by_number(name: str, separator: str, tmp_path: Path) -> None:
    columns = Columns(user="1", item="column_2", time="4")
    file = write(tmp_path / name, lines_of(separator))
    read = read_interactions(file, columns=columns, form=Format(header=False), where=["3>=1"])
    assert pairs_of(read) == EXPECTED
    assert read.rows == 4
    assert read.time_range == TIMES
    assert read.columns == Columns("column_1", "column_2", None, "column_4")


# A usual name for events that holds something else.
LINES = [
    {"user": 1, "item": "a", "weight": 2, "type": {"x": 1}},
    {"item": "b", "user": "x", "weight": 2.5},
    {"user": None, "item": "c", "weight": 1},
    {"user": "1", "item": "a", "late": True},
    {"user": "1", "item": "b", "weight": 1},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.txt"])
def test_json_lines_are_rows(name: str, tmp_path: Path) -> None:
    content = "\n".join(map(json.dumps, LINES)).encode()
    if name.endswith(".gz"):
        content = gzip.compress(content)
    if name.endswith(".zst"):
        content = zstandard.compress(content)
    read = read_interactions(write(tmp_path / name, content))
    assert pairs_of(read) == [("1", "a", 2.0), ("1", "b", 1.0), ("x", "b", 2.5)]
    assert read.left_out == {"no user": 1, "no weight": 1}


def test_blank_lines_before_the_first_row_are_skipped_and_counted(tmp_path: Path) -> None:
    lines = '\n \n{"user": "u", "item": "a"}\n{"user": "v", "item": "b"}\n'
    assert len(pairs_of(read_interactions(write(tmp_path / "a.jsonl", lines)))) == 2
    for start in ("\n\n", "\nsep=;\n"):
        path = write(tmp_path / "a.csv", f"{start}user;item;weight\nu;a;1\nv;b;x\n")
        with pytest.raises(DataError, match="row 5, column 'weight': 'x' is not"):
            read_interactions(path)


def test_malformed_json_lines_are_skipped_and_shown(tmp_path: Path) -> None:
    lines = [f'{{"user": {at % 99}, "item": {at % 7}}}\n' for at in range(3000)]
    bad = ['{"user": 1, "item"', "", "[1, 2]", '{"user": "a\\ud83d", "item": 1}']
    for row, line in zip((5, 6, 700, 2999), bad, strict=True):
        lines[row] = f"{line}\n"
    read = read_interactions(write(tmp_path / "a.jsonl", "".join(lines)), form=Format(max_bad_rows=0.002))
    assert (read.rows, read.left_out) == (2999, {"malformed row": 3}), "a blank line is no row"
    assert 'a.jsonl, row 6: \'{"user": 1, "item"\' is not a JSON object; ' in read.notes[0]
    marked = write(tmp_path / "b.jsonl", "\ufeff" + lines[0] + lines[1])
    assert read_interactions(marked).rows == 2, "a byte order mark is no fault"
    with pytest.raises(DataError, match=r"3 of the 2,999 rows of .*a\.jsonl are bad, and at most 0\.020%"):
        read_interactions(tmp_path / "a.jsonl", form=Format(max_bad_rows=0.0002))


@pytest.mark.parametrize("kind", [str, Path])
def test_urls_are_read_like_files_and_folders(kind: type, tmp_path: Path) -> None:
    write(tmp_path / "log" / "date=2026-01-01" / "a.csv", "user,item\nu,i\nv,j\n")
    write(tmp_path / "log" / "date=2026-01-02" / "b.csv", "user,item\nu,j\n")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "log"), f"/shop/{kind.__name__}", recursive=True)
    place = f"memory://shop/{kind.__name__}"
    read = read_interactions(kind(place))
    here = read_interactions(tmp_path / "log")
    assert pairs_of(read) == pairs_of(here) == [("u", "i", 1.0), ("u", "j", 1.0), ("v", "j", 1.0)]
    assert (read.time_range, read.fingerprint) == (here.time_range, here.fingerprint)
    alone = read_interactions(kind(f"{place}/date=2026-01-01/a.csv"))
    assert [(user, item) for user, item, _ in pairs_of(alone)] == [("u", "i"), ("v", "j")]
    before = digest_of_paths([Path(place)])
    memory.pipe_file(f"/shop/{kind.__name__}/date=2026-01-02/b.csv", b"user,item\nu,i,j\n")
    assert digest_of_paths([Path(place)]) != before
    with pytest.raises(DataError, match=f"{place}/date=2026-01-02/b.csv, row 2: 'j' stands after the last field"):
        read_interactions(kind(place))


@pytest.mark.parametrize("form", ["file://{}", "file:{}", "simplecache::file://{}"])
def test_url_of_a_local_file_is_read_as_its_path(form: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "user,item\nu,i\nv,j\n")
    for url in (form.format(file), Path(form.format(file))):
        assert pairs_of(read_interactions(url)) == [("u", "i", 1.0), ("v", "j", 1.0)]


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("a.csv", "a.parquet", "a.csv and .*a.parquet may hold the same rows; keep one kind of file in the folder"),
        ("a.csv", "b.jsonl", "may hold the same rows"),
        ("a.csv", "a.csv.zst", "may hold the same rows"),
        ("date=2026-01-01/a.csv", "date=2026-01-02/a.parquet", "may hold the same rows"),
        ("a.csv", "b.events", "may hold the same rows"),
        ("a.csv", "old/b.csv", "The files in .*old would be left out, as folders of data are named like date="),
        ("a.csv", "date=2026-01-01/old/deep/b.csv", "The files in .*date=2026-01-01/old/deep would be left out"),
    ],
)
def test_folder_that_would_be_half_read_is_refused(
    first: str, second: str, message: str, *, remote: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    write(folder / first, "user,item\nu,i\nv,j\n")
    write(folder / second, "user,item\nu,i\n")
    source: Path | str = folder
    if remote:
        source = f"memory://half-read/{tmp_path.name}"
        fsspec.filesystem("memory").put(str(folder), f"/half-read/{tmp_path.name}", recursive=True)
    with pytest.raises(DataError, match=message):
        read_interactions(source)
    (folder / second).unlink()
    assert read_interactions(folder).rows == 2


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_blanks_around_values_are_left_out_if_the_header_has_them(separator: str, tmp_path: Path) -> None:
    text = "user, item , date\nu 1, i, 2026-01-01\nv, j ,2026-01-02\n w,i, 2026-01-03\n".replace(",", separator)
    read = read_interactions(write(tmp_path / "a.csv", text), columns=Columns(item="item"), where=["date<2026-01-03"])
    assert pairs_of(read) == [("u 1", "i", 1.0), ("v", "j", 1.0)]
    assert (read.columns.item, read.time_range) == ("item", (datetime(2026, 1, 1), datetime(2026, 1, 2)))  # noqa: DTZ001 -- naive UTC
    plain = read_interactions(write(tmp_path / "b.csv", "user,item\nu, i\nv,i\n"))
    assert pairs_of(plain) == [("u", " i", 1.0), ("v", "i", 1.0)]


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_hidden_files_do_not_change_the_digest_of_a_folder(*, remote: bool, tmp_path: Path) -> None:
    folder = Path("memory://hidden/log") if remote else tmp_path / "log"

    def add(name: str) -> None:
        if remote:
            fsspec.filesystem("memory").pipe_file(f"/hidden/log/{name}", b"user,item\nu,i\n")
        else:
            write(folder / name, "user,item\nu,i\n")

    add("date=2026-01-01/a.csv")
    before = digest_of_paths([folder])
    # An open segment of the event log, and Spark's markers, checksums and temporary files.
    for name in (".a.events.zst", "_SUCCESS", "date=2026-01-01/.a.csv.crc", "_temporary/0/a.csv", ".open/a.csv"):
        add(name)
    assert digest_of_paths([folder]) == before
    add("date=2026-01-01/b.csv")
    assert digest_of_paths([folder]) != before


def test_links_to_folders_are_read_as_folders(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    write(folder / "date=2026-01-01" / "a.csv", "user,item\nu,i\n")
    write(tmp_path / "elsewhere" / "a.csv", "user,item\nv,j\n")
    before = digest_of_paths([folder])
    (folder / "date=2026-01-02").symlink_to(tmp_path / "elsewhere")
    assert read_interactions(folder).rows == 2
    assert digest_of_paths([folder]) != before


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Serve `tmp_path/web` over HTTP, whatever the query."""
    (tmp_path / "web").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "web")
    with handled_by(handler) as origin:
        yield origin


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of fsspec's own loop
def test_a_signed_url_is_read_and_its_headers_tell_whether_it_changed(web: str, tmp_path: Path) -> None:
    write(tmp_path / "web" / "a.csv", "user,item\nu,i\nv,j\n")
    url = f"{web}/a.csv?sig=secret%2Fvalue"
    assert read_interactions(url).rows == 2
    before = digest_of_paths([Path(url)])
    assert digest_of_paths([Path(url)]) == before
    write(tmp_path / "web" / "a.csv", "user,item\nu,i\nv,k\nw,k\n")
    assert digest_of_paths([Path(url)]) != before


class _SlowBody(BaseHTTPRequestHandler):
    """Sends a file with a pause in its middle."""

    def do_GET(self) -> None:
        body = b"user,item\nu,i\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:9])
        self.wfile.flush()
        time.sleep(0.5)
        self.wfile.write(body[9:])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
def test_a_download_may_take_longer_than_the_default_of_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp.client.DEFAULT_TIMEOUT", ClientTimeout(total=0.1))
    HTTPFileSystem.clear_instance_cache()  # with sessions of other tests
    with handled_by(_SlowBody) as origin:
        assert read_interactions(f"{origin}/a.csv").rows == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
def test_no_message_about_a_small_file_has_the_password_of_its_url(web: str, tmp_path: Path) -> None:
    write(tmp_path / "web" / "a.csv", "a,b\nu,i\n")
    url = web.replace("//", "//bob:secret@") + "/a.csv"
    store = f"file://{tmp_path}/store"
    save(checkerboard_model(), tmp_path / "model")
    for arguments in (
        ("import", "--similar", url), ("import", "--popular", url),
        ("publish", tmp_path / "model", "--boost", url), ("publish", tmp_path / "model", "--available", url),
    ):  # fmt: skip
        done = hotplate(*arguments, "--store", store)
        assert done.returncode != 0
        assert "a.csv" in done.stderr
        assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("memory://shop/nothing.csv", DataError, "memory://shop/nothing.csv cannot be read"),
        ("memory://shop/date=2026-02-01", DataError, "The folder memory://shop/date=2026-02-01 holds no files"),
        ("nonsense://a/b.csv", SettingError, "nonsense://a/b.csv cannot be read"),
        ("abfs://user:secret@account/b.csv", SettingError, "abfs://"),
    ],
)
def test_urls_that_cannot_be_read_are_a_sentence_without_secrets(
    url: str, error: type[Exception], message: str
) -> None:
    fsspec.filesystem("memory").makedirs("/shop/date=2026-02-01", exist_ok=True)
    with pytest.raises(error, match=message) as raised:
        read_interactions(url)
    assert "secret" not in str(raised.value)


def test_folders_named_by_key_and_value_are_columns(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["u", "v"], "item": ["i", "j"]})
    for day in ("date=2026-01-01", "date=2026-01-02", "date=__HIVE_DEFAULT_PARTITION__"):
        for country in ("country=C%C3%B4te", "country=FR"):
            folder = tmp_path / "log" / day / country
            folder.mkdir(parents=True)
            frame.write_parquet(folder / "part-0000.parquet")
            write(folder / ".part-0000.parquet.crc", b"crc")
    write(tmp_path / "log" / "_SUCCESS", b"")
    write(tmp_path / "log" / "part.crc", b"crc")
    read = read_interactions(tmp_path / "log", columns=Columns(segment="country"))
    assert read.rows == 12
    assert read.time_range == (datetime(2026, 1, 1), datetime(2026, 1, 2))  # noqa: DTZ001 -- naive UTC
    assert read.segments is not None
    assert set(read.segments.get_column("segment")) == {"Côte", "FR"}
    assert read_interactions(tmp_path / "log", where=["date=2026-01-02"]).left_out == {"not date=2026-01-02": 8}


def test_several_files_of_several_kinds_are_read_as_one(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", "user,item\nu,i\nv,j\n")
    second = write(tmp_path / "b.jsonl", '{"item": "j", "user": "u"}\n')
    pl.DataFrame({"item": ["i"], "user": ["v"]}).write_parquet(tmp_path / "c.parquet")
    read = read_interactions(first, second, tmp_path / "c.parquet")
    assert [(user, item) for user, item, _ in pairs_of(read)] == [("u", "i"), ("u", "j"), ("v", "i"), ("v", "j")]
    with pytest.raises(
        DataError, match=r"b.tsv has the columns user, thing, but .*a.csv has user, item; files that are"
    ):
        read_interactions(first, write(tmp_path / "b.tsv", "user\tthing\nu\ti\n"))
    with pytest.raises(DataError, match=r"Nothing is left of the 4 rows of .*a.csv and 2 others"):
        read_interactions(first, second, tmp_path / "c.parquet", where=["user=x"])


def test_times_may_be_missing_in_a_whole_parquet_file(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["u", "v"], "item": ["i", "j"], "time": ["2026-01-01", "2026-01-02"]})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.with_columns(user=pl.lit("w"), time=pl.lit(None)).write_parquet(tmp_path / "b.parquet")
    read = read_interactions(tmp_path)
    assert (read.rows, read.left_out) == (4, {})
    assert read.time_range == (datetime(2026, 1, 1), datetime(2026, 1, 2))  # noqa: DTZ001 -- naive UTC
    dated = read_interactions(tmp_path, where=["time>=2026-01-02"])
    assert dated.left_out == {"not time>=2026-01-02": 3}


def test_non_text_json_ids_are_refused_and_nul_is_distinct(tmp_path: Path) -> None:
    texts = ["a", "a\\u0000", "a\\ud83d\\ude00", "\\\\ud83d"]
    lines = [f'{{"user": "{text}", "item": "x"}}' for text in texts]
    path = tmp_path / "clicks.jsonl"
    path.write_text("\n".join(lines))
    assert set(read_interactions(path).log.get_column("user")) == {"a", "a\0", "a😀", "\\ud83d"}
    for half in ("\\ud83d", "\\uDE00"):
        path.write_text("\n".join([*lines, f'{{"user": "a{half}", "item": "x"}}']))
        with pytest.raises(DataError, match=r"clicks\.jsonl, row 5: .* is not a JSON object"):
            read_interactions(path)


@pytest.mark.parametrize(
    ("role", "values", "kind"),
    [
        ("time", pl.Series([True, False]), "point in time"),
        ("time", pl.Series([1, 2]).cast(pl.Duration("ms")), "point in time"),
        ("time", pl.Series([1, 2]).cast(pl.Time), "point in time"),
        ("weight", pl.Series([[1], [2]]), "number"),
        ("weight", pl.Series([1, 2]).cast(pl.Duration("ms")), "number"),
        ("item", pl.Series([1, 2]).cast(pl.Duration("ms")), "text"),
    ],
)
def test_columns_of_a_type_without_a_meaning_are_refused_by_name(role: str, values: pl.Series, kind: str) -> None:
    frame = pl.DataFrame({"user": ["u", "v"], "item": ["a", "b"], role: values})
    with pytest.raises(
        DataError, match=rf"The column '{role}' of the data frame holds .*, which is not a {kind}; name"
    ):
        read_interactions(frame)


@pytest.mark.parametrize("dtype", [pl.Categorical(), pl.Enum(["2026-01-01", "2026-01-02"])])
def test_times_in_columns_of_categories_are_read(dtype: pl.DataType) -> None:
    times = pl.Series(["2026-01-01", "2026-01-02", "2026-01-02"], dtype=dtype)
    frame = pl.DataFrame({"user": ["u", "v", "v"], "item": ["a", "a", "b"], "time": times})
    read = read_interactions(frame, where=["time>=2026-01-02"], columns=Columns(user="item", item="user", time="time"))
    assert read.time_range == (datetime(2026, 1, 2), datetime(2026, 1, 2))  # noqa: DTZ001 -- naive UTC


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"clicks\.csv is a pipe or a device"):
        read_interactions(path)
