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
