"""The report of a model: its first line names whoever is ahead, and it is the same for the same model."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.offline.evaluate.metrics import RANKING
from hotplate.offline.evaluate.model_report import model_report, verdict_on
from hotplate.offline.evaluate.splits import SplitKind, SplitOptions
from hotplate.offline.input.sample import sample
from hotplate.offline.train.neighbours import NeighbourParams
from hotplate.offline.training import TrainSettings, train
from tests.support.evaluated import evaluated_model

SHARES = st.sampled_from([0.1, 0.2, 0.3])
BASELINES = ("popularity", "neighbours", "ease")


def record(model: float, served: float, baselines: dict[str, tuple[float, float]], **more: float) -> dict[str, Any]:
    """What an evaluation records of engines whose metrics are all the same, plain and as served."""

    def metrics(value: float) -> dict[str, Any]:
        return dict.fromkeys(RANKING, value)

    return {
        "split": {"kind": "random"},
        "k": 10,
        "engine": "als",
        "params": {},
        "model": metrics(model) | more,
        "as_served": metrics(served),
        "baselines": {
            name: metrics(plain) | {"params": {}, "as_served": metrics(as_served)}
            for name, (plain, as_served) in baselines.items()
        },
    }


@given(SHARES, SHARES, st.dictionaries(st.sampled_from(BASELINES), st.tuples(SHARES, SHARES)))
def test_no_baseline_is_ahead_without_being_named_in_the_first_line(
    model: float, served: float, baselines: dict[str, tuple[float, float]]
) -> None:
    sentence, good, _ = verdict_on(record(model, served, baselines))
    ahead = {name for name, (plain, as_served) in baselines.items() if plain > model or as_served > served}
    equal = {name for name, (plain, _) in baselines.items() if plain == model}
    assert good == (bool(baselines) and not ahead and not equal)
    if ahead:
        named = sentence.partition(" better")[0].lower()
        assert {name for name in baselines if name in named} == ahead
    elif equal:
        assert "ranks no better than" in sentence


def test_a_lead_that_may_be_chance_is_said_to_be() -> None:
    found = record(0.5, 0.5, {"popularity": (0.2, 0.2)})
    sentence, good, _ = verdict_on(found)
    assert good
    assert sentence == "This als model ranks better than popularity: nDCG@10 0.5000 against 0.2000 (popularity)"
    found["baselines"]["popularity"]["model_leads_by"] = {"ndcg": 0.3, "interval": [-0.01, 0.6]}
    assert "nDCG@10 +0.3000 (95 %: -0.0100 to +0.6000); chance" in verdict_on(found)[2][0]


def test_nothing_is_said_of_a_model_without_an_evaluation() -> None:
    assert not verdict_on(None)[1]


def test_the_split_is_said_in_words_and_a_random_draw_is_said_to_flatter(tmp_path: Path) -> None:
    sample(60, 30).write_csv(tmp_path / "sample.csv")
    words = {}
    kinds: tuple[SplitKind, ...] = ("by-time", "by-item")
    for kind in kinds:
        settings = TrainSettings(
            tmp_path / "sample.csv", split=SplitOptions(kind), params=NeighbourParams(neighbours=5)
        )
        train(settings, tmp_path / "model")
        words[kind] = " ".join(model_report(tmp_path / "model").notes)
    assert "Split by-time (test share 0.25" in words["by-time"]
    assert "flatters" not in words["by-time"]
    assert "which flatters a model" in words["by-item"]


def test_a_report_is_the_same_each_time_and_shows_lists_of_users(tmp_path: Path) -> None:
    path = evaluated_model(tmp_path)
    found = model_report(path)
    assert found == model_report(path)
    assert found.sentence.startswith("This neighbours model ranks better than")
    assert {row.subject for row in found.rows} == {
        "neighbours (this model)",
        "popularity (baseline)",
        "lists of 20 users",
    }
    assert any("Split by-user (test share 0.3" in note for note in found.notes)
    samples = [table for table in found.tables if table.title.startswith("User ")]
    assert len(samples) == 10
    for shown in samples:
        assert shown.headings == ("history, of 9", "list")
        history, listed = ({line[column] for line in shown.lines} - {""} for column in (0, 1))
        assert len(history) == 9
        assert listed
        assert not history & listed
    tail = next(plot for plot in found.plots if plot.title == "The long tail")
    assert [curve.y[-1] for curve in tail.curves] == pytest.approx([1, 1])


def test_the_users_that_are_shown_go_from_the_least_to_the_most_active(tmp_path: Path) -> None:
    found = model_report(evaluated_model(tmp_path, uneven=True))
    samples = [table for table in found.tables if table.title.startswith("User ")]
    activity = [int(table.headings[0].removeprefix("history, of ")) for table in samples]
    assert activity == sorted(activity)
    assert (activity[0], activity[-1]) == (1, 8)
    assert len({table.title for table in samples}) == 10
