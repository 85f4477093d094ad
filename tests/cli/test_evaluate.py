"""`hotplate evaluate`: any lists against a truth, two against each other, and a model's report."""

import json
from pathlib import Path

import pytest

from tests.support.command import failed, hotplate
from tests.support.evaluated import evaluated_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "truth.csv").write_text("user,item\n" + "".join(f"u{n},i{n % 3}\n" for n in range(30)))
    (tmp_path / "train.csv").write_text("user,item\n" + "".join(f"u{n},i{(n + 1) % 3}\n" for n in range(30)))
    for name, shift in (("good", 0), ("bad", 1)):
        rows = "".join(f"u{n},i{(n + shift) % 3},1\n" for n in range(29))
        (tmp_path / f"{name}.csv").write_text(f"user,item,score\n{rows}")
    return tmp_path


def test_lists_are_measured_and_the_name_of_the_verb_may_be_left_out(folder: Path) -> None:
    arguments = (folder / "good.csv", folder / "truth.csv", "--train", folder / "train.csv", "-k", "1")
    done = hotplate("evaluate", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == hotplate("evaluate", "lists", *arguments).stdout
    assert "30 pairs of 30 users, measured at 1" in done.stdout
    assert "1 of 30 users have no list of their own" in done.stdout
    found = json.loads(hotplate("evaluate", *arguments, "--json").stdout)
    assert found["ranking"]["ndcg"] == pytest.approx(29 / 30)
    assert found["popularity"]["users"] == 30
    assert found["rating"] is None


def test_of_two_the_worse_exits_1(folder: Path) -> None:
    truth = ("--truth", folder / "truth.csv")
    worse = hotplate("evaluate", "compare", folder / "good.csv", folder / "bad.csv", *truth)
    assert worse.returncode == 3
    assert "bad.csv is worse than" in worse.stdout
    better = hotplate("evaluate", "compare", folder / "bad.csv", folder / "good.csv", *truth, "--json")
    assert better.returncode == 0
    assert json.loads(better.stdout)["verdict"] == "better"


def test_a_model_and_its_release_are_lists_and_have_a_report(folder: Path) -> None:
    model, store, page = evaluated_model(folder), f"file://{folder / 'store'}", folder / "report.html"
    (folder / "choices.csv").write_text("user,item\n" + "".join(f"n{n:02},in{n:02}\n" for n in range(20)))
    assert hotplate("publish", model, "--store", store).returncode == 0
    release = json.loads(hotplate("releases", "list", "--store", store, "--json").stdout)["live"]
    for origin in (str(model), store, f"{store}#{release}"):
        found = json.loads(hotplate("evaluate", origin, folder / "choices.csv", "-k", "2", "--json").stdout)
        assert found["ranking"]["hit_rate"] == 1
    compared = hotplate("evaluate", "compare", model, model, "--truth", folder / "choices.csv")
    assert compared.returncode == 0
    assert "cannot tell" in compared.stdout
    done = hotplate("evaluate", "report", model, "--out", page, "--store", store)
    assert done.returncode == 0, done.stderr
    assert "This neighbours model ranks better than" in done.stdout
    assert release in page.read_text()
    failed(hotplate("evaluate", f"{store}#other", folder / "choices.csv"), "other is not in this store")


def test_what_cannot_be_measured_is_one_sentence(folder: Path) -> None:
    other = folder / "other.csv"
    other.write_text("user,item\nstranger,i1\n")
    failed(hotplate("evaluate", folder / "good.csv", other), "Of 1 users in the truth, none has a list")
    failed(hotplate("evaluate", folder / "none.csv", other), "does not exist")
    failed(hotplate("evaluate", "report", folder / "a", "--out", folder / "no" / "x.html"), "no folder", code=2)


def test_files_of_the_paper_on_lightgcn_are_learnt_from_and_tested_on_as_typed(tmp_path: Path) -> None:
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("0 1 2\n1 1 3\n2 1 2\n3\n")
    test.write_text("0 3 9\n2 3\n7 1\n")
    arguments = ("evaluate", "lightgcn", train, test, "--engine", "popularity")
    done = hotplate(*arguments)
    assert done.returncode == 0, done.stderr
    assert "popularity: Recall@20 0.5000, nDCG@20 0.5377" in done.stdout
    found = json.loads(hotplate(*arguments, "--json").stdout)
    assert (found["engine"], found["ranking"]["users"], found["pairs"]) == ("popularity", 3, 4)
    test.write_text("0\n")
    failed(hotplate(*arguments), "has no pair; each of its lines is to be: user item item")
