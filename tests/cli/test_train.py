"""`hotplate train`: the model, searched and given parameters, and the first line of output."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hotplate.offline.input.sample import sample
from hotplate.offline.model_folder import load
from tests.support.command import failed, hotplate, json_of, succeeded


def unwrapped(text: str) -> str:
    """Return a text with its paragraphs in one line each."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "clicks.csv"
    sample(80, 40).write_csv(path)
    return path


def test_parameters_are_searched_unless_any_is_named(clicks: Path, tmp_path: Path) -> None:
    done = hotplate("train", clicks, "--out", tmp_path / "model", "--engine", "neighbours", "--json")
    facts = json.loads(done.stdout)
    assert facts["engine"] == "neighbours"
    assert {trial["engine"] for trial in facts["tuning"]["trials"]} == {"neighbours"}
    assert set(facts["evaluation"]["baselines"]) == {"popularity", "recent popularity"}
    assert done.stderr.startswith("searching ")
    assert "--no-tune skips the search" in done.stderr
    popular = ["--params", "half_life=7d", "--engine", "popularity"]
    for named in (
        ["--no-tune", "--engine", "neighbours"],
        ["--engine", "neighbours", "--params", "neighbours=5"],
        popular,
    ):
        done = hotplate("train", clicks, "--out", tmp_path / "model", *named)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert "The parameters were not searched." in done.stdout


def test_first_lines_compare_lists_with_popularity(clicks: Path, tmp_path: Path) -> None:
    weak = ["--params", "factors=1,regularization=1000000,iterations=1"]
    done = hotplate("train", clicks, "--out", tmp_path / "model", *weak)
    assert re.match(
        r"The lists are (\d+ % worse|not proven better or worse) than popularity, the most popular items "
        r"\(95 %: [-+\d]+ to [-+\d]+ %\): nDCG@10 0\.\d{3} against 0\.\d{3}\. "
        r"(All users of the test are returning ones|For \d+ returning users .* with popularity)\. "
        r"Of [\d,]+ users, \d+ % chose an item of their list of 10 in the test \(\d+ % with popularity\)\. "
        r"Two users share \d+\.\d of 10 items, and half of all places go to \d+ items "
        r"\(with popularity, \d+\.\d and \d+\)\.\n\n",
        unwrapped(done.stdout),
    )
    assert "look out: these are popular lists in all but name" in unwrapped(done.stdout)
    assert "neighbours (weighting tfidf, neighbours 10) ranks better than this model" in unwrapped(done.stdout)
    popular = ["--engine", "popularity", "--params", "half_life=7d"]
    done = hotplate("train", clicks, "--out", tmp_path / "model", *popular)
    output = json_of("train", clicks, "--out", tmp_path / "model", *popular)
    assert re.fullmatch(
        r"Everybody gets what is popular now \(recent popularity\); these lists are .* than popularity, the most "
        r"popular items \(95 %: .*\): nDCG.*",
        output["verdict"],
    )
    assert unwrapped(done.stdout).startswith(output["verdict"])


def test_time_split_is_the_default_and_random_split_has_a_warning(clicks: Path, tmp_path: Path) -> None:
    plain: list[str | Path] = ["--out", tmp_path / "model", "--params", "factors=4"]
    done = hotplate("train", clicks, *plain)
    assert "test     by-time split" in done.stdout
    assert done.stderr == ""
    rows = pl.read_csv(clicks)
    rows.drop("time").write_csv(tmp_path / "timeless.csv")
    rows.with_columns(time=pl.lit("2026-01-01")).write_csv(tmp_path / "of-one-time.csv")
    for name, sentence in (
        ("timeless", "the data have no times, so the test is a random draw, which flatters"),
        ("of-one-time", "a cut in time leaves 0 users to test, so the test is a random draw"),
    ):
        done = hotplate("train", tmp_path / f"{name}.csv", *plain)
        assert "test     by-item split" in done.stdout
        assert done.stderr.startswith(sentence)
    failed(hotplate("train", tmp_path / "timeless.csv", *plain, "--split", "by-time"), "needs times, and the data have")
    done = hotplate("train", tmp_path / "of-one-time.csv", *plain, "--split", "by-time")
    assert "leaves none to learn from, or none to test on: no evaluation." in done.stdout
    assert hotplate("train", clicks, *plain, "--split", "by-item").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--no-tune", "--tune", "5"], "--tune and --no-tune contradict each other"),
        (["--tune", "5", "--params", "factors=8"], "--tune and --params contradict each other"),
        (["--engine", "als", "--params", "weighting=bm25,alpha=2"], "the engine als has no weighting"),
        (["--engine", "spark", "--tune", "5"], "--tune and --engine spark contradict each other"),
        (["--engine", "popularity", "--params", "recency=7d"], "the engine popularity has no recency"),
        (["--params", "gamma=0.5"], "the engine als has no gamma"),
        (["--params", "recency=soon"], "half-life"),
        (["--params", "factors=many"], "factors=many cannot be read"),
        (["--engine", "neighbours", "--params", "neighbours=1"], "neighbours is 1; it must be at least 2"),
    ],
)
def test_options_that_contradict_each_other_are_one_sentence(
    arguments: list[str], sentence: str, clicks: Path, tmp_path: Path
) -> None:
    failed(hotplate("train", clicks, "--out", tmp_path / "model", *arguments), sentence, code=2)
    assert not (tmp_path / "model").exists()


QUICK = ("--params", "factors=4,iterations=2")


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def trained(folder: Path, *arguments: str | Path) -> dict[str, Any]:
    report: dict[str, Any] = json_of("train", *arguments, "--out", folder / "model", *QUICK)
    return report


def test_unused_search_results_are_reported_in_text_and_json(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "user,item,time", "u.1,x,", "U.1,y,", "v,x,2026-01-02", "v,NULL,2026-01-02")
    done = hotplate("train", file, "--out", tmp_path / "model", *QUICK, "--split", "none")
    assert "columns  user=user, item=item, time=time\n" in done.stdout
    assert "\n2 of 3 rows have no time" in done.stdout
    assert "1 left out: no item" in done.stdout
    report = trained(tmp_path, file, "--split", "none")
    assert report["data"]["left_out"] == {"no item": 1}
    assert len(report["data"]["notes"]) == 1


def test_without_a_terminal_slow_stages_print_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"u{at % 12},i{at * at % 17}" for at in range(200)]
    data = write(tmp_path / "data.csv", "user,item", *rows)
    arguments = ("train", data, "--engine", "popularity", "--no-tune", "--out", tmp_path / "model")
    assert "hotplate: " not in hotplate(*arguments).stderr
    monkeypatch.setattr("hotplate.cli.terminal.QUIET_S", 0.0)
    stages = [line for line in hotplate(*arguments).stderr.splitlines() if line.startswith("hotplate: ")]
    assert [line.split()[1] for line in stages] == ["read", "matrix", "choose", "evaluate", "fit", "save"]


def test_prefer_takes_one_of_the_choices_that_are_printed(tmp_path: Path) -> None:
    """Users like items of their group, so that lists differ, and some items are popular with everybody."""
    rng = np.random.default_rng(7)
    weights = 1 / np.arange(1, 61)
    rows = []
    for user in range(150):
        own = weights * np.where(np.arange(60) % 3 == user % 3, 3, 1)
        items = rng.choice(60, 12, replace=False, p=own / own.sum()).tolist()
        rows += [(f"u{user}", f"i{item}", 1_700_000_000 + int(rng.integers(100 * 86_400))) for item in items]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(tmp_path / "log.csv")

    effective = dict[str, float]()
    for prefer in ("accuracy", "balance", "variety"):
        done = succeeded("train", tmp_path / "log.csv", "--out", tmp_path / "model", "--prefer", prefer)
        assert f"{prefer}, chosen" in done
        tuning = load(tmp_path / "model").search
        assert tuning is not None
        chosen = tuning.trials[tuning.best]
        assert chosen.ndcg >= 0.95 * max(trial.ndcg for trial in tuning.trials)
        assert isinstance(chosen.effective_items, float)
        effective[prefer] = chosen.effective_items
    assert effective["accuracy"] <= effective["balance"] <= effective["variety"]
    assert effective["accuracy"] < effective["variety"]
    failed(
        hotplate("train", tmp_path / "log.csv", "--out", tmp_path / "model", "--no-tune", "--prefer", "variety"),
        "--prefer and --no-tune contradict each other",
        code=2,
    )
