"""The evaluation as people read it: engines side by side with intervals, and who has no list."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.support.command import failed, hotplate

FEW = ("--factors", "4", "--iterations", "2", "-k", "5")


def clicks(folder: Path) -> Path:
    """Write clicks of two kinds of users, some of whom come late."""
    rng = np.random.default_rng(1)
    user, item = np.nonzero(rng.random((80, 30)) < np.where(np.arange(30) % 2 == np.arange(80)[:, None] % 2, 0.6, 0.05))
    time = 1_700_000_000 + np.where(user < 70, rng.integers(0, 1000, len(user)), rng.integers(2000, 3000, len(user)))
    pl.DataFrame({"user": user, "item": item, "time": time}).write_csv(folder / "clicks.csv")
    return folder / "clicks.csv"


def test_engines_stand_side_by_side_and_users_without_a_list_as_they_are_served(tmp_path: Path) -> None:
    printed = hotplate("train", clicks(tmp_path), "--out", tmp_path / "model", "--split", "by-time", *FEW).stdout
    assert "by-time split: " in printed
    heading, ndcg = (next(line for line in printed.splitlines() if word in line) for word in (" popularity ", "ndcg "))
    assert heading.split() == ["model", "popularity", "neighbours"]
    assert ndcg.count("±") == 3
    assert "users have no list, and are served the popular one; as served:" in printed


def test_several_seeds_are_means_over_splits_and_no_choice_in_time(tmp_path: Path) -> None:
    data = clicks(tmp_path)
    options = ("--split", "held-out-users", "--seeds", "3", *FEW)
    facts = json.loads(hotplate("train", data, "--out", tmp_path / "model", "--json", *options).stdout)["evaluation"]
    assert (facts["runs"], facts["intervals_over"]) == (3, "runs")
    low, high = facts["intervals"]["ndcg"]
    assert low < facts["model"]["ndcg"] < high
    in_time = hotplate("train", data, "--out", tmp_path / "model", "--split", "leave-last", "--seeds", "2", *FEW)
    failed(in_time, "The split leave-last is the same for every seed", code=2)


def log_with(folder: Path, name: str, *, days_later: int = 0, repeats: int = 0) -> Path:
    """Write 40 days of clicks; new ones of the last 10 days may come later, and old ones may come again then."""
    rng = np.random.default_rng(3)
    likes = np.where(np.arange(30) % 3 == np.arange(60)[:, None] % 3, 0.7, 0.1)
    user, item = np.nonzero(rng.random((60, 30)) < likes)
    day = rng.permutation(len(user)) * 40 // len(user)
    rows = pl.DataFrame({"user": user, "item": item, "day": np.where(day >= 30, day + days_later, day)})
    old = rows.filter(pl.col("day") < 30)
    again = old.sample(fraction=0.3, seed=1).with_columns(day=pl.lit(40 + days_later, dtype=pl.Int64))
    log = pl.concat([rows, *[again] * repeats])
    log.select("user", "item", time=1_700_000_000 + pl.col("day") * 86_400).write_csv(folder / name)
    return folder / name


@pytest.mark.parametrize(("split", "weighting"), [("by-time", "log"), ("leave-last", "sum")])
def test_what_a_user_chooses_again_after_the_cut_changes_no_figure(split: str, weighting: str, tmp_path: Path) -> None:
    options = ("--split", split, "--weighting", weighting, "--json", *FEW)
    found = []
    for name, repeats in (("once.csv", 0), ("again.csv", 9)):
        log = log_with(tmp_path, name, repeats=repeats)
        found.append(json.loads(hotplate("train", log, "--out", tmp_path / "model", *options).stdout)["evaluation"])
    assert found[0]["model"] == found[1]["model"]
    assert found[0]["baselines"] == found[1]["baselines"]


def test_a_half_life_counts_from_the_cut_however_late_the_test_comes(tmp_path: Path) -> None:
    options = ("--split", "by-time", "--half-life", "7d", "--json", *FEW)
    found = []
    for name, days_later in (("soon.csv", 0), ("late.csv", 1000)):
        log = log_with(tmp_path, name, days_later=days_later)
        found.append(json.loads(hotplate("train", log, "--out", tmp_path / "model", *options).stdout)["evaluation"])
    assert found[0]["model"] == found[1]["model"]
    assert found[0]["model"]["ndcg"] > 0.1


def test_a_report_shows_a_random_draw_beside_the_split_by_time_and_says_that_it_flatters(tmp_path: Path) -> None:
    log, model, page = log_with(tmp_path, "log.csv"), tmp_path / "model", tmp_path / "report.html"
    options = ("--engine", "neighbours", "--no-tune", "-k", "5")
    by_time = json.loads(hotplate("train", log, "--out", model, "--json", *options).stdout)["evaluation"]
    drawn = ("train", log, "--out", tmp_path / "drawn", "--split", "by-item", "--json", *options)
    at_random = json.loads(hotplate(*drawn).stdout)["evaluation"]
    shown = hotplate("evaluate", "report", model, "--random", "--out", page)
    (line,) = (line for line in shown.stdout.splitlines() if line.startswith("neighbours "))
    both = [f"{each['as_served']['ndcg']:.4f}" for each in (by_time, at_random)]
    assert line.split() == ["neighbours", *both]
    assert "at random (flatters)" in shown.stdout
    written = page.read_text()
    assert all(text in written for text in ("at random: flatters", "which flatters it", *both))
    facts = json.loads(hotplate("evaluate", "report", model, "--json").stdout)
    assert facts["random"] is None, "it takes a fit, so it is made if it is wanted"
    failed(hotplate("evaluate", "report", tmp_path / "drawn", "--random"), "not evaluated on one", code=1)
