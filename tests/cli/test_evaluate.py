"""`hotplate evaluate`: metrics, and reports as text and as a page."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

import hotplate as hotplate_library
from hotplate.base.recommendations import Item
from hotplate.base.report import to_json
from hotplate.stores.encoding import OFFSET_BYTES, encode
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.service import published

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
    assert "than popularity, the most popular items (95 %: " in printed.replace("\n", " ")
    assert "0.6333 better than popularity (" in printed.replace("\n", " ")
    assert "30 of 60 pairs, of 30 users; 1 of 30 users have no list" in printed.replace("\n", " ")
    output = json_of("evaluate", *arguments)
    assert output["model"]["ndcg"] == pytest.approx(29 / 30)
    assert output["baselines"]["popularity"]["users"] == 30
    assert output["rating"] is None
    with (folder / "truth.csv").open("a") as truth:
        truth.write("u1,i1,more fields than the header\n")
    alone = succeeded("evaluate", folder / "good.csv", folder / "truth.csv", "-k", "1", "--max-bad-rows", "0.1")
    assert " have nDCG@1 0.967. " in alone.splitlines()[0]


def test_comparison_of_a_worse_model_exits_with_3(folder: Path) -> None:
    truth = ("--truth", folder / "truth.csv")
    worse = hotplate("evaluate", "compare", folder / "good.csv", folder / "bad.csv", *truth)
    assert worse.returncode == 3
    assert re.search(r"bad\.csv is 0\.\d{4} worse than \S+good\.csv \(95 %: ", worse.stdout.replace("\n", " "))
    better = succeeded("evaluate", "compare", folder / "bad.csv", folder / "good.csv", *truth, "--json")
    assert json.loads(better)["verdict"] == "better"


def test_release_compares_equal_to_the_model_it_was_published_from(tmp_path: Path) -> None:
    users = [f"u{number:03}" for number in range(60)]
    bought = [(user, f"p{number % 7}") for number, user in enumerate(users)]
    bought += [(user, "rare") for user in users[:20]]
    pl.DataFrame(bought, ["user", "item"], orient="row").write_csv(tmp_path / "clicks.csv")
    choices = tmp_path / "choices.csv"
    choices.write_text("user,item\n" + "".join(f"{user},p{number % 7}\n" for number, user in enumerate(users, 1)))
    model = tmp_path / "model"
    settings = ("--engine", "popularity", "--no-tune", "--split", "none")
    succeeded("train", tmp_path / "clicks.csv", *settings, "--out", model)
    store = f"file://{tmp_path}/store"
    succeeded("publish", model, "--store", store, "--list-length", "2")
    printed = succeeded("evaluate", "compare", model, store, "--truth", choices, "-k", "2")
    assert "users have no list in file://" not in printed  # lists that equal the popular one are stored, too
    assert "is as good as" in printed
    assert "Each user's two lists are the same." in printed.replace("\n", " ")
    notes = json_of("evaluate", "compare", store, store, "--truth", choices)["notes"]
    assert len(notes) == len({*notes})


def test_lists_without_scores_are_measured(tmp_path: Path) -> None:
    """It ended with a traceback."""
    lists = {f"user:u{number}": encode([Item(id=f"i{number % 3}")])[OFFSET_BYTES:] for number in range(10)}
    published(tmp_path / "store", lists | {"popular:": encode([Item(id="i0")])[OFFSET_BYTES:]})
    truth = tmp_path / "truth.csv"
    truth.write_text("user,item\n" + "".join(f"u{number},i{number % 3}\n" for number in range(10)))
    report = json_of("evaluate", f"file://{tmp_path}/store", truth, "-k", "1")
    assert report["model"]["ndcg"] == 1.0


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of ten days in day.N.csv, and the model early of its first five days, late of all; both also as stores."""
    folder = tmp_path_factory.mktemp("shop")
    for day in range(1, 11):
        rows = [(f"u{user}", f"i{(user + day) % 19}", f"2026-01-{day:02}") for user in range(20)]
        pl.DataFrame(rows, ["user", "item", "date"], orient="row").write_csv(folder / f"day.{day}.csv")
    for name, days in (("early", range(1, 6)), ("late", range(1, 11))):
        data = [folder / f"day.{day}.csv" for day in days]
        settings = ("--engine", "popularity", "--no-tune", "--split", "none")
        succeeded("train", *data, *settings, "--out", folder / name)
        succeeded("publish", folder / name, "--store", f"file://{folder / name}-store")
    return folder


def origins_of(folder: Path, name: str) -> tuple[str, str]:
    return str(folder / name), f"file://{folder / name}-store"


def truth_of(folder: Path, *days: int) -> tuple[str, Path]:
    """Write the rows of some days as a truth, and return the option that names it."""
    rows = pl.concat([pl.read_csv(folder / f"day.{day}.csv") for day in days])
    rows.write_csv(folder / "truth.csv")
    return "--truth", folder / "truth.csv"


def test_models_and_releases_are_not_compared_by_rows_they_have_learnt(shop: Path) -> None:
    truth = truth_of(shop, 7, 8)
    for early, late in zip(origins_of(shop, "early"), origins_of(shop, "late"), strict=True):
        succeeded("evaluate", "compare", early, early, *truth)
        for compared in ((early, late), (late, early), (late, late)):
            refused = hotplate("evaluate", "compare", *compared, *truth)
            learnt = f"{late}.* learnt 40 of 40 pairs of the truth. At most 1% may be: give a later log"
            assert (refused.returncode, bool(re.search(learnt, refused.stderr))) == (2, True), refused.stderr
        failed(hotplate("evaluate", late, *truth[1:]), "learnt 40 of 40 pairs of the truth", code=2)


def test_half_of_the_truth_learnt_is_refused_and_a_hundredth_is_counted_first(shop: Path) -> None:
    early, late = str(shop / "early"), str(shop / "late")
    half = truth_of(shop, 5, 6)
    failed(hotplate("evaluate", "compare", early, early, *half), f"{early} has learnt 20 of 40 pairs", code=2)
    truth_of(shop, 6, 7, 8, 9, 10)
    later = pl.read_csv(shop / "truth.csv")
    strangers = pl.DataFrame([("x", f"i{n}", "2026-02-01") for n in range(20)], later.columns, orient="row")
    learnt = pl.read_csv(shop / "day.1.csv").head(1)
    pl.concat([later, strangers, learnt]).write_csv(shop / "truth.csv")
    printed = succeeded("evaluate", "compare", early, early, *half).partition("precision")[0]
    assert f"{early} has learnt 1 of 121 pairs of the truth." in printed.replace("\n", " ")
    output = json_of("evaluate", early, *half[1:])
    assert output["sentence"].endswith(f"{early} has learnt 1 of 121 pairs of the truth.")
    failed(hotplate("evaluate", "compare", early, late, *half), f"{late} has learnt 101 of 121 pairs", code=2)


def test_what_lists_of_a_file_have_learnt_is_unknown_without_train(shop: Path) -> None:
    days = shop / "day.3.csv", shop / "day.4.csv"
    lists = shop / "lists.csv"
    pl.read_csv(days[0]).select("user", "item", score=1.0).write_csv(lists)
    arguments = (lists, days[1])
    unknown = f"Whether {lists} has learnt any pair of the truth is unknown."
    assert json_of("evaluate", *arguments)["sentence"].endswith(unknown)
    assert "learnt" not in json_of("evaluate", *arguments, "--train", days[0])["sentence"]
    failed(hotplate("evaluate", *arguments, "--train", days[1]), f"{lists} has learnt 20 of 20 pairs", code=2)
    compared = json_of("evaluate", "compare", lists, lists, "--truth", days[1])["sentence"]
    assert compared.endswith(f"are the same. {unknown}")
    release = f"file://{shop}/late-store", days[1], "--time-column", "none"
    assert json_of("evaluate", *release)["sentence"].endswith("has learnt any pair of the truth is unknown.")
    failed(hotplate("evaluate", *release, "--train", days[1]), "has learnt 20 of 20 pairs", code=2)
    model = hotplate("evaluate", shop / "late", *arguments[1:], "--train", days[0])
    failed(model, "late has learnt 20 of 20 pairs", code=2)


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


def test_library_measures_and_compares_as_the_command_does(folder: Path, model: Path) -> None:
    store = f"file://{folder / 'store'}"
    succeeded("publish", model, "--store", store)
    truth = folder / "choices.csv"
    truth.write_text("user,item\n" + "".join(f"n{n:02},in{n:02}\n" for n in range(20)))
    settings = hotplate_library.EvaluateSettings(k=2)
    chosen = pl.read_csv(truth)
    release = json_of("releases", "list", "--store", store)["live"]
    for origin in (str(model), store, f"{store}#{release}"):
        expected = json_of("evaluate", origin, truth, "-k", "2")["model"]
        for choices in (truth, chosen):
            measured = hotplate_library.evaluate(origin, choices, settings=settings)
            assert json.loads(json.dumps(to_json(measured)))["model"] == expected
    loaded = hotplate_library.load_model(model)
    assert hotplate_library.evaluate(loaded, chosen, settings=settings).row("these lists", "nDCG@2") is not None
    assert "is as good as" in hotplate_library.compare(loaded, store, chosen, settings=settings).sentence

    lists = pl.read_csv(folder / "good.csv")
    truth_frame, history = pl.read_csv(folder / "truth.csv"), pl.read_csv(folder / "train.csv")
    report = hotplate_library.evaluate(lists, truth_frame, history=history)
    assert "than popularity, the most popular items" in report.sentence
    assert hotplate_library.compare(lists, folder / "bad.csv", truth_frame).exit_code == 3
    with pytest.raises(hotplate_library.DataError, match="user"):
        hotplate_library.evaluate(lists.rename({"user": "x"}), truth_frame)
    with pytest.raises(hotplate_library.ReleaseNotFound):
        hotplate_library.evaluate(f"{store}#other", truth_frame)


def test_library_names_frames_apart_and_refuses_unknown_roles(folder: Path) -> None:
    """Two data frames had one name, and a misspelt role ended with a sentence on the user's column."""
    lists = pl.read_csv(folder / "good.csv")
    truth = pl.read_csv(folder / "truth.csv")
    compared = hotplate_library.compare(lists, lists.head(20), truth)
    assert "the data frame (second)" in compared.sentence
    assert "the data frame (first)" in compared.sentence
    assert "--" not in hotplate_library.evaluate(lists, truth).sentence
    with pytest.raises(hotplate_library.SettingError, match="no role 'users'; there are user, item, score, time"):
        hotplate_library.EvaluateSettings(columns={"users": "user"})
