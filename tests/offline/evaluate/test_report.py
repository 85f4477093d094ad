"""The report as values: its first line names whoever is ahead, and it is the same for the same model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.offline.evaluate.candidate import read_live
from hotplate.offline.evaluate.metrics import RANKING
from hotplate.offline.evaluate.report import gather, live_subject, subjects_of, verdict_on
from hotplate.offline.evaluate.splits import SplitKind, SplitOptions
from hotplate.offline.input.sample import sample
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.model import load
from hotplate.offline.publish import publish
from hotplate.offline.train.neighbours import NeighbourParams
from hotplate.offline.training import TrainSettings, train
from tests.support.clock import FakeClock
from tests.support.evaluated import evaluated_model
from tests.support.memory_store import MemoryStore

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
    verdict = verdict_on(subjects_of(record(model, served, baselines)), 10)
    ahead = {name for name, (plain, as_served) in baselines.items() if plain > model or as_served > served}
    equal = {name for name, (plain, _) in baselines.items() if plain == model}
    assert verdict.good == (bool(baselines) and not ahead and not equal)
    if ahead:
        named = verdict.sentence.partition(" better")[0].lower()
        assert {name for name in baselines if name in named} == ahead
    elif equal:
        assert "ranks no better than" in verdict.sentence


def test_a_lead_that_may_be_chance_is_said_to_be() -> None:
    found = record(0.5, 0.5, {"popularity": (0.2, 0.2)})
    verdict = verdict_on(subjects_of(found), 10)
    assert verdict.good
    assert verdict.sentence == "This als model ranks better than popularity: nDCG@10 0.5000 against 0.2000 (popularity)"
    found["baselines"]["popularity"]["model_leads_by"] = {"ndcg": 0.3, "interval": [-0.01, 0.6]}
    assert "nDCG@10 +0.3000 (95 %: -0.0100 to +0.6000); chance" in verdict_on(subjects_of(found), 10).remarks[0]


def test_the_live_release_counts_where_it_was_measured_alike() -> None:
    found, before = record(0.2, 0.2, {"popularity": (0.1, 0.1)}), record(0.3, 0.3, {})
    live = live_subject(found, "r1", {"metrics": before, "data": "abc"}, "abc")
    assert live is not None
    verdict = verdict_on([*subjects_of(found), live], 10)
    assert not verdict.good
    assert "worse than the live release r1: nDCG@10 0.2000 after 0.3000" in verdict.remarks[-1]
    assert verdict_on([*subjects_of(found), replace(live, note="of other data")], 10).good
    assert live_subject(found, "r1", {"metrics": before | {"k": 20}, "data": "abc"}, "abc") is None
    assert live_subject(found, "r1", {"engine": "import"}, "abc") is None


def test_a_live_release_that_was_measured_as_published_is_compared_by_training_and_says_so() -> None:
    found = record(0.3, 0.3, {})
    published = record(0.1, 0.1, {}) | {"as_trained": record(0.3, 0.3, {})}
    live = live_subject(found, "r1", {"metrics": published, "data": "abc"}, "abc")
    assert live is not None
    remark = verdict_on([*subjects_of(found), live], 10).remarks[-1]
    assert remark.startswith("The model is as good as the live release r1: nDCG@10 0.3000 after 0.3000")
    assert remark.endswith("Both are figures of training: as published, r1 has nDCG@10 0.1000.")


def test_nothing_is_said_of_a_model_without_an_evaluation() -> None:
    assert not verdict_on(subjects_of(None), 10).good


def test_the_split_is_said_in_words_and_a_random_draw_is_said_to_flatter(tmp_path: Path) -> None:
    sample(60, 30).write_csv(tmp_path / "sample.csv")
    words = {}
    kinds: tuple[tuple[SplitKind, int], ...] = (("by-time", 1), ("by-item", 2))
    for kind, seeds in kinds:
        settings = TrainSettings(
            tmp_path / "sample.csv", split=SplitOptions(kind), seeds=seeds, params=NeighbourParams(neighbours=5)
        )
        train(settings, tmp_path / "model")
        words[kind] = gather(tmp_path / "model")["split"]
    assert "learnt from what came up to one moment, and tested on what came after it" in words["by-time"]
    assert "flatters" not in words["by-time"]
    assert "That was done 2 times" in words["by-item"]
    assert "which flatters it" in words["by-item"]


async def test_a_report_is_plain_values_and_the_same_each_time(tmp_path: Path) -> None:
    path = evaluated_model(tmp_path)
    store = MemoryStore(FakeClock())
    users = load(path).matrix.user_ids
    assert await read_live(store, users, 5) is None
    await publish(ModelLists(load(path), ListSettings(5)), store)
    live = await read_live(store, users, 5)
    facts = gather(path, lambda _users, _k: live)
    assert json.dumps(facts) == json.dumps(gather(path, lambda _users, _k: live))
    assert facts["verdict"]["sentence"].startswith("This neighbours model ranks better than")
    assert facts["live"] == {"release": live.id if live else None, "users": 20, "overlap": 1.0}
    assert [each["role"] for each in facts["subjects"]] == ["model", "baseline", "live"]
    assert "Of each user's items, 30% were held back" in facts["split"]
    assert len(facts["samples"]) == 10
    for shown in facts["samples"]:
        assert len(shown["history"]) == shown["activity"] == 9
        assert [one["id"] for one in shown["list"]] == [one["id"] for one in shown["live"]]
        assert not {one["id"] for one in shown["list"]} & {one["id"] for one in shown["history"]}
    catalogue = facts["catalogue"]
    assert (catalogue["users"], catalogue["items"], catalogue["users_without_list"]) == (20, 20, 0)
    assert catalogue["history"][-1] == catalogue["lists"][-1] == pytest.approx(1)


def test_the_users_that_are_shown_go_from_the_least_to_the_most_active(tmp_path: Path) -> None:
    facts = gather(evaluated_model(tmp_path, uneven=True))
    activity = [each["activity"] for each in facts["samples"]]
    assert activity == sorted(activity)
    assert (activity[0], activity[-1]) == (1, 8)
    assert len({each["user"] for each in facts["samples"]}) == 10
    assert facts["live"] is None
