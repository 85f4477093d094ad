"""`hotplate evaluate`: metrics, and reports as text and as a page."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from tests.support.command import failed, hotplate, json_of, succeeded

HOSTILE = "</td><script>alert(1)</script>\x1b[31m\u202e" + "long " * 50


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "truth.csv").write_text("user,item\n" + "".join(f"u{n},i{n % 3}\n" for n in range(30)))
    (tmp_path / "train.csv").write_text("user,item\n" + "".join(f"u{n},i{(n + 1) % 3}\n" for n in range(30)))
    for name, shift in (("good", 0), ("bad", 1)):
        rows = "".join(f"u{n},i{(n + shift) % 3},1\n" for n in range(29))
        (tmp_path / f"{name}.csv").write_text(f"user,item,score\n{rows}")
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which each user lacks one item of the same parity, with hostile titles."""
    folder = tmp_path_factory.mktemp("evaluated")
    rows = [
        (f"n{user:02}", f"in{item:02}", f"{item} {HOSTILE}")
        for user in range(20)
        for item in range(user % 2, 20, 2)
        if user != item
    ]
    pl.DataFrame(rows, ["user", "item", "title"], orient="row").write_csv(folder / "<b>data.csv")
    arguments = ("--engine", "neighbours", "--no-tune", "--split", "by-user", "-k", "5")
    succeeded("train", folder / "<b>data.csv", *arguments, "--out", folder / "model")
    return folder / "model"


def test_evaluate_measures_lists_with_or_without_its_subcommand(folder: Path) -> None:
    arguments = (folder / "good.csv", folder / "truth.csv", "--train", folder / "train.csv", "-k", "1")
    printed = succeeded("evaluate", *arguments)
    assert printed == hotplate("evaluate", "lists", *arguments).stdout
    assert printed.startswith(f"The lists of {folder}/good.csv are ")
    assert "better than the most popular items (popularity), nDCG@1 0.967 against " in printed
    assert re.search(r"nDCG +0\.6333 better than popularity \(", printed)
    assert "30 pairs of 30 users, measured at 1" in printed
    assert "1 of 30 users have no list" in printed
    output = json_of("evaluate", *arguments)
    assert output["ranking"]["ndcg"] == pytest.approx(29 / 30)
    assert output["popularity"]["users"] == 30
    assert output["rating"] is None
    with (folder / "truth.csv").open("a") as truth:
        truth.write("u1,i1,more fields than the header\n")
    alone = succeeded("evaluate", folder / "good.csv", folder / "truth.csv", "-k", "1", "--max-bad-rows", "0.1")
    assert " have nDCG@1 0.967 (" in alone.splitlines()[0]


def test_comparison_of_a_worse_model_exits_with_3(folder: Path) -> None:
    truth = ("--truth", folder / "truth.csv")
    worse = hotplate("evaluate", "compare", folder / "good.csv", folder / "bad.csv", *truth)
    assert worse.returncode == 3
    assert "bad.csv is worse than" in worse.stdout
    better = succeeded("evaluate", "compare", folder / "bad.csv", folder / "good.csv", *truth, "--json")
    assert json.loads(better)["verdict"] == "better"


def test_a_model_and_its_release_are_lists(folder: Path, model: Path) -> None:
    store = f"file://{folder / 'store'}"
    choices = folder / "choices.csv"
    choices.write_text("user,item\n" + "".join(f"n{n:02},in{n:02}\n" for n in range(20)))
    assert hotplate("publish", model, "--store", store).returncode == 0
    release = json_of("releases", "list", "--store", store)["live"]
    for origin in (str(model), store, f"{store}#{release}"):
        assert json_of("evaluate", origin, choices, "-k", "2")["ranking"]["hit_rate"] == 1
    assert "cannot tell" in succeeded("evaluate", "compare", model, model, "--truth", choices)
    failed(hotplate("evaluate", f"{store}#other", choices), "other is not in this store")


def test_release_compares_equal_to_the_model_it_was_published_from(tmp_path: Path) -> None:
    users = [f"u{number:03}" for number in range(60)]
    bought = [(user, f"p{number % 7}") for number, user in enumerate(users)]
    bought += [(user, "rare") for user in users[:20]]
    pl.DataFrame(bought, ["user", "item"], orient="row").write_csv(tmp_path / "clicks.csv")
    choices = tmp_path / "choices.csv"
    choices.write_text("user,item\n" + "".join(f"{user},p{number % 5}\n" for number, user in enumerate(users, 2)))
    model = tmp_path / "model"
    settings = ("--engine", "popularity", "--no-tune", "--split", "none")
    succeeded("train", tmp_path / "clicks.csv", *settings, "--out", model)
    store = f"file://{tmp_path / 'store'}"
    succeeded("publish", model, "--store", store, "--list-length", "2")
    printed = succeeded("evaluate", "compare", model, store, "--truth", choices, "-k", "2")
    assert "users have no list in file://" in printed  # lists that equal the popular one are not stored
    assert printed.startswith("cannot tell")
    assert "nDCG@2 +0.0000" in printed.replace("\n", " ")


def test_truth_used_for_training_is_refused(folder: Path, model: Path) -> None:
    truth = folder / "learnt.csv"
    truth.write_text("user,item\n" + "".join(f"n{n:02},in{n + 2:02}\n" for n in range(18)))
    failed(hotplate("evaluate", model, truth), "All 18 pairs of the truth are in the training data")


def test_unmeasurable_input_is_explained_in_one_sentence(folder: Path) -> None:
    other = folder / "other.csv"
    other.write_text("user,item\nstranger,i1\n")
    failed(hotplate("evaluate", folder / "good.csv", other), "Of 1 user in the truth, none has a list")
    failed(hotplate("evaluate", folder / "none.csv", other), "does not exist")
    failed(hotplate("evaluate", "report", folder / "a", "--out", folder / "no" / "x.html"), "no folder", code=2)
    failed(hotplate("evaluate", "report", folder / "a", "--out", "."), ". is a folder", code=2)
    failed(hotplate("evaluate", "report", folder / "a", "--out", folder), "is a folder; name a file in it", code=2)


def test_a_report_is_a_page_that_loads_nothing_and_titles_are_text(model: Path, tmp_path: Path) -> None:
    printed = succeeded("evaluate", "report", model, "--out", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    answer = printed.partition("\n\n")[0].replace("\n", " ")
    assert answer.startswith("The lists are ")
    assert f"<h1>{answer}</h1>" in text
    addresses = re.findall(r'\b(?:src|href|action)="([^"]*)"', text)
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not set(re.findall(r"<(\w+)", text)) & {"script", "iframe", "object", "embed", "form"}
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;data.csv" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert HOSTILE[-60:] not in text
    assert "default-src 'none'" in text
