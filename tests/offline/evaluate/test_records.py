"""Records of models, evaluations and gates that earlier versions of hotplate wrote."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.model_report import model_report
from hotplate.offline.evaluate.records import read_evaluation, read_repeats
from hotplate.offline.model import load
from hotplate.offline.train.item_based import NeighbourParams
from hotplate.offline.train.popularity import Recency
from hotplate.offline.train.repeats import RepeatParams
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.manifest import Tally, describe
from hotplate.stores.origin import GateVerdict
from hotplate.stores.store import Row

# Written by hotplate 0.2.0 from six users and nine items.
MODEL = Path(__file__).parents[1] / "formats" / "model-3.tar.xz"
TUNING = {
    "best": 0,
    "repeats": {
        "share": 0.25,
        "k": 10,
        "without": 0.1,
        "alone": 0.2,
        "blended": 0.3,
        "params": {
            "half_life_days": 120.0,
            "weight": 3.0,
            "recency": {"half_life_days": 8.0, "gamma": 0.25},
        },
    },
}


def test_model_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    subprocess.run(["tar", "-x", "-f", MODEL, "-C", tmp_path / "model"], check=True)
    model = load(tmp_path / "model")
    assert model.id == "59dbacebe2f2bedf"
    assert model.params == NeighbourParams(neighbours=3, recency=Recency(20.0, 0.5))
    assert model.learnt_until == "2024-02-11T22:13:25+00:00"
    users = np.arange(6, dtype=np.int32)
    items, _ = model.ranker.recommend(model.matrix.user_items, users, 4, keep_seen=True)
    assert items.tolist() == [[3, 5, 1, last] for last in (0, 2, 4, 0, 2, 4)]
    report = model_report(tmp_path / "model")
    assert report.broken == ("recent popularity ranks better than these lists: nDCG@10 1.0000 against 0.0000",)
    assert report.origins["test"] == "by-time split (test share 0.25): 6 of 24 pairs, of 6 users"
    assert len(report.rows) == 32


def test_malformed_evaluation_is_reported() -> None:
    assert read_evaluation(None) is None
    assert read_evaluation({"k": 10}) is None
    with pytest.raises(DataError, match="train it again"):
        read_evaluation({"k": 10, "model": {}})


def test_repeats_of_an_earlier_search_are_read() -> None:
    repeats = read_repeats(TUNING)
    assert repeats is not None
    assert repeats.params == RepeatParams(120.0, 3.0, Recency(8.0, 0.25))
    assert read_repeats(TUNING | {"repeats": None}) is None
    assert read_repeats(None) is None


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
