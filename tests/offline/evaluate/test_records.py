"""Records of models, evaluations and gates that earlier versions of hotplate wrote."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hotplate.offline import model_folder as models
from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.model_report import model_report
from hotplate.offline.evaluate.records import read_evaluation
from hotplate.offline.train.als import ALSParams, SparkParams
from hotplate.offline.train.engine import Params
from hotplate.offline.train.item_based import EASEParams, NeighbourParams
from hotplate.offline.train.popularity import PopularityParams, Recency
from hotplate.offline.train.ranking import RankOptions
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.manifest import Tally, describe
from hotplate.stores.origin import GateVerdict
from hotplate.stores.store import Row
from tests.support.interactions import evaluated

# Written by hotplate 0.2.0 from six users and nine items.
MODEL = Path(__file__).parents[1] / "formats" / "model-3.tar.xz"
# Small models, each in a folder with the name of its engine.
ENGINES = MODEL.with_name("model-3-engines.tar.xz")


def test_model_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    subprocess.run(["tar", "-x", "-f", MODEL, "-C", tmp_path / "model"], check=True)
    model = models.load(tmp_path / "model")
    assert model.id == "59dbacebe2f2bedf"
    assert model.params == NeighbourParams(neighbours=3, recency=Recency(20.0, 0.5))
    assert model.learnt_until == "2024-02-11T22:13:25+00:00"
    users = np.arange(6, dtype=np.int32)
    items, _ = model.ranker.recommend(model.matrix.user_items, users, 4, RankOptions(keep_seen=True))
    assert items.tolist() == [[3, 5, 1, last] for last in (0, 2, 4, 0, 2, 4)]
    report = model_report(tmp_path / "model")
    better = "popularity (half_life 0.5d) ranks better than this model on the test: nDCG@10 1.0000 against 0.0000"
    assert report.broken == (f"{better}; train with --engine popularity --params half_life=0.5d",)
    assert (
        report.origins["test"] == "by-time split (test share 0.25): 6 of 24 pairs held back from training, of 6 users"
    )
    assert len(report.rows) == 32


@pytest.mark.parametrize(
    ("engine", "params", "identity", "lists"),
    [
        (
            "als",
            ALSParams(factors=3, regularization=0.5, alpha=2.0, iterations=4, recency=Recency(2.0, 0.5)),
            "98061d0dfd6bdc6d",
            [[2, 0, 5], [5, 3, 1], [4, 2, 6], [2, 5, 0], [4, 6, 2], [2, 0, 5]],
        ),
        (
            "ease",
            EASEParams(2.0),
            "e7dc8097878d9245",
            [[2, 0, 5], [5, 3, 1], [4, 6, 2], [2, 0, 5], [4, 6, 2], [2, 0, 5]],
        ),
        ("popularity", PopularityParams(2.0), "357b0e45080129e3", [[2, 4, 5]] * 6),
        (
            "spark",
            SparkParams(factors=3, reg_param=0.5, alpha=2.0, iterations=4),
            "c26439e95e1c7325",
            [[2, 0, 5], [3, 5, 1], [4, 6, 2], [2, 5, 0], [6, 4, 2], [0, 2, 5]],
        ),
    ],
)
def test_model_of_each_engine_that_the_last_version_wrote_is_read(
    engine: str, params: Params, identity: str, lists: list[list[int]], tmp_path: Path
) -> None:
    subprocess.run(["tar", "-x", "-f", ENGINES, "-C", tmp_path], check=True)
    model = models.load(tmp_path / engine)
    assert (model.id, model.params) == (identity, params)
    users = np.arange(len(lists), dtype=np.int32)
    items, _ = model.ranker.recommend(model.matrix.user_items, users, 3, RankOptions(keep_seen=True))
    assert items.tolist() == lists


def test_description_of_an_earlier_version_is_written_as_it_was_read(tmp_path: Path) -> None:
    subprocess.run(["tar", "-x", "-f", MODEL, "-C", tmp_path], check=True)
    text = (tmp_path / "model.json").read_text()
    description = models.describe(tmp_path)
    assert json.dumps(description.to_json(), indent=2) + "\n" == text
    assert description.evaluation is not None
    assert json.dumps(description.evaluation.to_json()) == json.dumps(json.loads(text)["metrics"])


def test_evaluation_on_given_data_is_read() -> None:
    facts = evaluated().to_json() | {"split": {"kind": "given"}}
    evaluation = read_evaluation(facts)
    assert evaluation is not None
    assert evaluation.split is None
    assert evaluation.to_json() == facts


def test_malformed_evaluation_is_reported() -> None:
    assert read_evaluation(None) is None
    assert read_evaluation({"k": 10}) is None
    with pytest.raises(DataError, match="train it again"):
        read_evaluation({"k": 10, "model": {}})


def test_gates_of_an_earlier_manifest_are_read() -> None:
    text = """{"model": "59dbacebe2f2bedf", "gates": {"forced": true, "against": "r0", "verdicts": [
        {"gate": "ndcg", "measured": 0.5, "bound": 0.6, "at_most": false, "passed": false, "note": ""},
        {"gate": "drop.map", "measured": null, "bound": 0, "at_most": true, "passed": true, "note": "nothing is live"}
    ]}}"""
    manifest = describe(ReleaseId("r1"), tally(), created_at=1.5, encoding="json", about=json.loads(text))
    gates = manifest.origin.gates
    assert gates.forced
    assert list(gates.verdicts) == [
        GateVerdict("ndcg", 0.5, 0.6, at_most=False, passed=False),
        GateVerdict("drop.map", None, 0, at_most=True, passed=True, note="nothing is live"),
    ]
    assert replace(manifest, about={}).origin.gates.verdicts == ()


def tally() -> Tally:
    """Return the tally of a release with an overall popular list alone."""
    rows = Tally()
    rows.add([Row("popular:", b"{}")])
    return rows
