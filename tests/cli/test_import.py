"""Import, copy and diff: each verb end to end, and each mistake with its sentence and exit code."""

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import polars as pl
import pytest

from hotplate.stores.catalogue import DraftRef, State
from hotplate.stores.connect import run_on
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Row
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.service import ids
from tests.support.stores import lapse


def lines(*rows: str) -> str:
    return "\n".join(("user,item,score", *rows)) + "\n"


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    path = tmp_path / "lists.csv"
    path.write_text(lines("bo,b,0.5", "al,a,0.25", "bo,a,0.75", ",a,1", "al,a,0.5"))
    return path


def test_imported_lists_are_served_and_copied_to_another_store(lists: Path, tmp_path: Path) -> None:
    first, second = (f"file://{tmp_path}/{name}" for name in ("first", "second"))
    printed = hotplate("import", lists, "--store", first, TMPDIR=str(tmp_path)).stdout
    assert "read 5 rows" in printed
    assert "1 left out: no user" in printed
    assert "1 left out: named twice" in printed
    assert not list(tmp_path.glob("hotplate-import-*"))
    answer = json_of("lookup", "bo", "--store", first)
    assert ids(answer) == ["a", "b"]
    copy = ("releases", "copy", "--from", first, "--to", second, "--json")
    copied = json.loads(hotplate(*copy).stdout)
    assert (copied["rows_written"], copied["rows_there"], copied["live"]) == (3, 0, True)
    again = hotplate("releases", "copy", answer["release"], "--from", first, "--to", second).stdout
    assert again == f"0 rows written, 3 had been written before; {answer['release']} is live in {second}\n"
    assert "is complete: 3 rows" in hotplate("releases", "verify", "--store", second).stdout


def test_import_reads_files_as_one(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("7,A,0.5\n8,b,0.25\nNULL,b,1\n")
    (tmp_path / "two.csv").write_text("9,a,0.75\n")
    columns = ["--user-column", "1", "--item-column", "2", "--score-column", "3"]
    arguments = ["--no-header", *columns, "--store", f"file://{tmp_path}/store"]
    done = succeeded("import", tmp_path / "one.csv", tmp_path / "two.csv", *arguments)
    assert f"read 4 rows of {tmp_path / 'one.csv'} and {tmp_path / 'two.csv'}\n  1 left out: no user\n" in done
    answer = json_of("lookup", "9", "--store", f"file://{tmp_path}/store")
    assert ids(answer) == ["a"]


def test_import_supports_encodings_and_ready_releases(lists: Path, tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    facts = json_of("import", lists, "--store", store)
    assert (facts["release"]["encoding"], facts["live"], facts["rows_written_before"]) == ("json", True, 0)
    facts = json.loads(
        hotplate("import", lists, "--store", store, "--encoding", "zstd", "--no-activate", "--json").stdout
    )
    assert (facts["release"]["encoding"], facts["live"]) == ("zstd", False)
    listed = json_of("releases", "list", "--store", store)["releases"]
    assert [entry["state"] for entry in listed] == ["live", "ready"]


def test_bad_lists_are_one_sentence_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(lines("a,b,1", "b,c,many"))
    (tmp_path / "scratch").mkdir()
    done = hotplate(
        "import", tmp_path / "bad.csv", "--store", f"file://{tmp_path}/store", TMPDIR=str(tmp_path / "scratch")
    )
    failed(done, "bad.csv", "row 3, column 'score': 'many' is not a finite number")
    (tmp_path / "bad.csv").write_text(lines("a,b,1", "b,c,nan"))
    done = hotplate("import", tmp_path / "bad.csv", "--store", f"file://{tmp_path}/store")
    failed(done, "row 3, column 'score': a missing value (empty or, in CSV, NULL, null, NaN, nan, None)")
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "store").exists()


def test_import_interrupted_by_a_lost_store_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"file://{tmp_path}/store"
    users = 1_000
    frame = pl.DataFrame({"user": [f"{n:06}" for n in range(users)], "item": "i", "score": 1.0})
    frame.write_parquet(tmp_path / "lists.parquet")
    arguments = ("import", tmp_path / "lists.parquet", "--store", store)
    put = LmdbStore.put
    calls = count(1)

    async def fail_or_put(self: LmdbStore, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        if next(calls) == 2:
            raise StoreUnavailable("the disk went away")
        await put(self, draft, rows, part)

    monkeypatch.setattr("hotplate.offline.list_encoder.LISTS_AT_ONCE", 100)
    monkeypatch.setattr(LmdbStore, "put", fail_or_put)
    failed(hotplate(*arguments), "The disk went away", "--resume 2")
    (entry,) = json_of("releases", "list", "--store", store)["releases"]
    assert entry["state"] == State.DRAFT
    run_on(store, lapse)  # as a minute without the writer does
    done = json_of(*arguments, "--resume", entry["id"])["release"]
    assert (done["release"], done["counts"]) == (entry["id"], {"popular": 1, "user": users})
    succeeded("releases", "verify", "--store", store)
