"""The evaluation as people read it: engines side by side with intervals, and who has no list."""

import json
from pathlib import Path

import numpy as np
import polars as pl

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
    assert (facts["seeds"], facts["intervals_over"]) == (3, "seeds")
    low, high = facts["intervals"]["ndcg"]
    assert low < facts["model"]["ndcg"] < high
    in_time = hotplate("train", data, "--out", tmp_path / "model", "--split", "leave-last", "--seeds", "2", *FEW)
    failed(in_time, "The split leave-last is the same for every seed", code=2)
