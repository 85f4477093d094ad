"""`hotplate evaluate`, and the evaluation of `hotplate train`: what is measured, and reports as text and as a page."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hotplate.offline.evaluate.reports import model_report
from hotplate.report_page import page
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.evaluated import HOSTILE, evaluated_model
from tests.support.page import Outline


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
    printed = succeeded("evaluate", *arguments)
    assert printed == hotplate("evaluate", "lists", *arguments).stdout
    assert "30 pairs of 30 users, measured at 1" in printed
    assert "1 of 30 users have no list" in printed
    found = json_of("evaluate", *arguments)
    assert found["ranking"]["ndcg"] == pytest.approx(29 / 30)
    assert found["popularity"]["users"] == 30
    assert found["rating"] is None


def test_of_two_the_worse_exits_1(folder: Path) -> None:
    truth = ("--truth", folder / "truth.csv")
    worse = hotplate("evaluate", "compare", folder / "good.csv", folder / "bad.csv", *truth)
    assert worse.returncode == 3
    assert "bad.csv is worse than" in worse.stdout
    better = succeeded("evaluate", "compare", folder / "bad.csv", folder / "good.csv", *truth, "--json")
    assert json.loads(better)["verdict"] == "better"


def test_a_model_and_its_release_are_lists_and_have_a_report(folder: Path) -> None:
    model, store, page = evaluated_model(folder), f"file://{folder / 'store'}", folder / "report.html"
    (folder / "choices.csv").write_text("user,item\n" + "".join(f"n{n:02},in{n:02}\n" for n in range(20)))
    assert hotplate("publish", model, "--store", store).returncode == 0
    release = json_of("releases", "list", "--store", store)["live"]
    for origin in (str(model), store, f"{store}#{release}"):
        found = json_of("evaluate", origin, folder / "choices.csv", "-k", "2")
        assert found["ranking"]["hit_rate"] == 1
    compared = succeeded("evaluate", "compare", model, model, "--truth", folder / "choices.csv")
    assert "cannot tell" in compared
    printed = succeeded("evaluate", "report", model, "--out", page)
    assert "This neighbours model has nDCG@" in printed
    assert "This neighbours model has nDCG@" in page.read_text()
    failed(hotplate("evaluate", f"{store}#other", folder / "choices.csv"), "other is not in this store")


def test_a_truth_that_the_model_learnt_from_is_refused(folder: Path) -> None:
    truth = folder / "learnt.csv"
    truth.write_text("user,item\n" + "".join(f"n{n:02},in{n + 2:02}\n" for n in range(18)))
    failed(hotplate("evaluate", evaluated_model(folder), truth), "All 18 pairs of the truth are in the training data")


def test_what_cannot_be_measured_is_one_sentence(folder: Path) -> None:
    other = folder / "other.csv"
    other.write_text("user,item\nstranger,i1\n")
    failed(hotplate("evaluate", folder / "good.csv", other), "Of 1 users in the truth, none has a list")
    failed(hotplate("evaluate", folder / "none.csv", other), "does not exist")
    failed(hotplate("evaluate", "report", folder / "a", "--out", folder / "no" / "x.html"), "no folder", code=2)


FEW = ("--params", "factors=4,iterations=2", "-k", "5")


def clicks(folder: Path) -> Path:
    """Write clicks of two kinds of users, some of whom come late."""
    rng = np.random.default_rng(1)
    user, item = np.nonzero(rng.random((80, 30)) < np.where(np.arange(30) % 2 == np.arange(80)[:, None] % 2, 0.6, 0.05))
    time = 1_700_000_000 + np.where(user < 70, rng.integers(0, 1000, len(user)), rng.integers(2000, 3000, len(user)))
    pl.DataFrame({"user": user, "item": item, "time": time}).write_csv(folder / "clicks.csv")
    return folder / "clicks.csv"


def test_engines_are_compared_and_users_without_lists_count_as_served(tmp_path: Path) -> None:
    printed = hotplate("train", clicks(tmp_path), "--out", tmp_path / "model", "--split", "by-time", *FEW).stdout
    assert "by-time split: " in printed
    heading, ndcg = (next(line for line in printed.splitlines() if word in line) for word in (" popularity ", "ndcg "))
    assert heading.split() == ["model", "popularity", "neighbours"]
    assert ndcg.count("±") == 3
    assert "users have no list, and are served the popular one; as served:" in printed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated_model(tmp_path_factory.mktemp("evaluated"))


def test_the_page_holds_all_that_it_needs_and_titles_are_text(model: Path) -> None:
    text = page(model_report(model))
    outline = Outline()
    outline.feed(text)
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert not outline.tags & {"script", "iframe", "object", "embed", "form", "b>data"}
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;data&lt;/b&gt;.csv" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert HOSTILE[-60:] not in text
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in text
