"""What `hotplate train` makes of data as people have them: read, mentioned, or refused with a sentence."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import failed, hotplate

QUICK = ("--factors", "4", "--iterations", "2")


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def trained(folder: Path, *arguments: str | Path) -> dict[str, Any]:
    done = hotplate("train", *arguments, "--out", folder / "model", *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def refused(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return hotplate("train", *arguments, "--out", folder / "model", *QUICK)


def test_what_is_found_and_not_used_is_said_in_text_and_json(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "user,item,rating", "u.1,x,5", "U.1,y,3", "v,x,1", "v,NULL,1")
    done = hotplate("train", file, "--out", tmp_path / "model", *QUICK, "--split", "none")
    assert "note: the column 'rating' holds ratings" in done.stdout
    assert "such as 'U.1' and 'u.1'; they are kept apart" in done.stdout
    assert "1 left out: no item" in done.stdout
    report = trained(tmp_path, file, "--split", "none", "--null-values", "y,None")
    assert report["data"]["left_out"] == {"no item": 1}
    assert [note.split()[2] for note in report["data"]["notes"]] == ["'rating'"]


def test_a_user_who_has_every_item_gets_no_list_and_the_rest_theirs(tmp_path: Path) -> None:
    rows = [f"all,{item}" for item in "abcdef"] + [f"{user},{item}" for user in "uvw" for item in "abc"]
    report = trained(tmp_path, write(tmp_path / "a.csv", "user,item", *rows), "--split", "none")
    assert (report["users"], report["items"], report["pairs"]) == (4, 6, 15)
    store = f"file://{tmp_path}/store"
    assert hotplate("publish", tmp_path / "model", "--store", store).returncode == 0
    assert json.loads(hotplate("lookup", "all", "--json", "--store", store).stdout)["source"] == "popular"
    assert json.loads(hotplate("lookup", "u", "--json", "--store", store).stdout)["source"] == "personal"


def test_one_user_one_item_and_infinite_weights_are_refused(tmp_path: Path) -> None:
    failed(refused(tmp_path, write(tmp_path / "a.csv", "user,item", "u,i", "u,j")), "only one user, 'u'")
    failed(refused(tmp_path, write(tmp_path / "b.csv", "user,item", "u,i", "v,i")), "only one item, 'i'")
    rows = write(tmp_path / "c.csv", "user,item,weight", "u,i,1", "v,j,inf")
    failed(refused(tmp_path, rows), "c.csv, row 3, column 'weight': the weight 'inf' is not a finite number")
    assert not (tmp_path / "model").exists()


def test_constant_weights_are_as_good_as_none(tmp_path: Path) -> None:
    rows = [f"{user},{item},7" for user in "uvw" for item in "abcd" if user + item not in {"ua", "vb", "wc"}]
    report = trained(tmp_path, write(tmp_path / "a.csv", "user,item,weight", *rows), "--test-share", "0.3")
    assert report["pairs"] == 9
    assert report["evaluation"]["test_pairs"] > 0


def test_times_in_seconds_to_nanoseconds_and_iso_are_the_same_moments(tmp_path: Path) -> None:
    moment = 1_700_000_000
    rows = [f"u{at},{'ab'[at % 2]},{moment * 1000 ** (at % 4)}" for at in range(120)]
    numbers = write(tmp_path / "a.csv", "user,item,time", *rows, "v,a,2023-11-14T22:13:20Z")
    texts = write(tmp_path / "b.csv", "user,item,time", "v,a,2023-11-14T22:13:20Z", "v,b,2023-11-14 22:13:20")
    report = trained(tmp_path, numbers, texts, "--split", "none")
    assert report["data"]["time_range"] == ["2023-11-14T22:13:20"] * 2
    assert report["data"]["left_out"] == {"time in another format than most": 2}
    assert report["data"]["source"] == f"{numbers} and {texts}"


def test_titles_that_lack_items_are_used_for_the_others(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.csv", "user,item", "u,1", "v,2", "v,3")
    titles = write(tmp_path / "titles.csv", "item,title", "1,one", "9,nine", "2,")
    report = trained(tmp_path, rows, "--titles", titles, "--split", "none")
    assert (report["items"], report["titles"]) == (3, 1)


def test_standard_input_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1\t2\t3\t881250949\n2\t1\t3\t881250950\n")))
    report = trained(tmp_path, "-", "--split", "none")
    assert (report["users"], report["data"]["source"]) == (2, "standard input")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a,b\nc,d\n")))
    assert trained(tmp_path, "-", "--no-header", "--split", "none")["pairs"] == 2


def test_a_test_of_ones_own_is_what_is_measured_on(tmp_path: Path) -> None:
    rows = [f"{user},{item}" for user in "uvwxyz" for item in "abcdef" if (ord(user) + ord(item)) % 3]
    train = write(tmp_path / "train.csv", "user,item", *rows)
    test = write(tmp_path / "test.csv", "user,item", "u,c", "v,b", "nobody,a", "u,nothing", rows[0], ",a")
    report = trained(tmp_path, train, "--test", test, "-k", "3")
    assert report["evaluation"]["split"] == {"kind": "given"}
    assert report["evaluation"]["test_pairs"] == report["data"]["test"]["pairs"]
    assert report["data"]["test"]["pairs_left_out"] == {
        "unknown user": 1,
        "unknown item": 1,
        "pair that is learnt from": 6 - 3 - report["data"]["test"]["pairs"],
    }
    assert report["data"]["test"]["left_out"] == {"no user": 1}
    assert report["pairs"] == len(rows)
    done = hotplate("train", train, "--test", test, "--out", tmp_path / "model", *QUICK)
    assert "1 pairs left out: unknown item" in done.stdout
    assert "given test data" in done.stdout
    strangers = write(tmp_path / "strangers.csv", "user,item", "x1,a", "x2,b")
    assert "strangers.csv can be tested on, so there was no evaluation" in str(
        trained(tmp_path, train, "--test", strangers)["note"]
    )
    failed(refused(tmp_path, train, "--test", write(tmp_path / "c.csv", "who,item", "u,a")), "has no column 'user'")


def test_data_that_do_not_fit_are_refused_with_what_they_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offline.train.cost.room_bytes", lambda: 10.0)
    done = refused(tmp_path, write(tmp_path / "a.csv", "user,item", "u,i", "v,j"), "--split", "none")
    failed(done, "Learning takes about", "GB are left", "a Spark cluster")
