"""`hotplate train`: what is searched, what is named, and what the first line says."""

import json
from pathlib import Path

import pytest

from offline.input.sample import sample
from tests.support.command import failed, hotplate

GRID = """
[[cell]]
engine = "als"
factors = 8
iterations = 2

[[cell]]
engine = "neighbours"
neighbours = 20
weighting = "bm25"
"""


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
    assert set(facts["evaluation"]["baselines"]) == {"popularity"}
    assert done.stderr.startswith("searching ")
    assert "--no-tune skips it" in done.stderr
    for named in (["--no-tune", "--engine", "neighbours"], ["--neighbours", "5"], ["--engine", "popularity"]):
        done = hotplate("train", clicks, "--out", tmp_path / "model", *named)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert "The parameters were not searched, as they were named or --no-tune was given." in done.stdout


def test_a_grid_of_ones_own_is_searched_and_gone_on_from(clicks: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    arguments: list[str | Path] = [
        "train",
        clicks,
        "--out",
        tmp_path / "model",
        "--grid",
        tmp_path / "grid.toml",
        "--tune",
        "1",
    ]
    done = hotplate(*arguments, "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert "on the inner split; " in done.stdout
    assert " 3 trials, " in done.stdout
    trials = json.loads((tmp_path / "model" / "model.json").read_text())["tuning"]["trials"]
    assert trials[0]["params"] == {"factors": 8, "regularization": 30.0, "alpha": 4.0, "iterations": 2, "seed": 3}
    assert trials[1]["params"] == {"weighting": "bm25", "neighbours": 20}


def test_the_first_line_says_which_baseline_ranks_better(clicks: Path, tmp_path: Path) -> None:
    weak = ["--factors", "1", "--regularization", "1000000", "--iterations", "1"]
    done = hotplate("train", clicks, "--out", tmp_path / "model", *weak)
    assert " ranks better than this model on the test: nDCG@10 0." in done.stdout.partition("\n")[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--no-tune", "--tune", "5"], "Both --no-tune and --tune or --grid are given"),
        (["--tune", "5", "--factors", "8"], "--factors cannot be given where parameters are searched"),
        (["--neighbours", "5", "--alpha", "2"], "--alpha is no parameter of the engine neighbours"),
        (
            ["--engine", "als", "--neighbour-weighting", "bm25"],
            "--neighbour-weighting is no parameter of the engine als",
        ),
        (["--engine", "popularity", "--tune", "5"], "Popularity has no parameters to search"),
        (["--neighbours", "1"], "Neighbours is 1; it must be at least 2"),
        (["--grid", "absent.toml"], "The grid absent.toml cannot be read"),
    ],
)
def test_options_that_contradict_each_other_are_one_sentence(
    arguments: list[str], sentence: str, clicks: Path, tmp_path: Path
) -> None:
    code = 1 if "--grid" in arguments else 2
    failed(hotplate("train", clicks, "--out", tmp_path / "model", *arguments), sentence, code=code)
    assert not (tmp_path / "model").exists()
