"""Gates as people meet them: exit code 3, the table, the dry run, and what is live afterwards."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from hotplate.offline.input.sample import sample
from hotplate.offline.model import load, save
from hotplate.offline.train.als import Factors
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.paths import ROOT

GATES = ROOT / "docs" / "examples" / "gates.toml"


def models(folder: Path) -> tuple[Path, Path]:
    """Train a model on sample data, and spoil another: what was learnt of one item is used for another."""
    good, spoilt = folder / "good", folder / "spoilt"
    sample(users=300, items=150).write_csv(folder / "clicks.csv")
    succeeded("train", folder / "clicks.csv", "--out", good, "--params", "factors=16,iterations=5")
    model = load(good)
    assert isinstance(model.ranker, Factors)
    shuffled = np.random.default_rng(0).permutation(model.ranker.item_factors)
    save(replace(model, ranker=replace(model.ranker, item_factors=shuffled)), spoilt)
    return good, spoilt


def live_in(store: str) -> str:
    return str(json_of("releases", "list", "--store", store)["live"])


def test_bad_model_exits_with_3_and_is_not_live_unless_forced(tmp_path: Path) -> None:
    good, spoilt = models(tmp_path)
    store = f"file://{tmp_path}/store"
    first = hotplate("publish", good, "--store", store, "--gates", GATES).stdout
    assert "nothing is live yet" in first
    live = live_in(store)
    publish = ("publish", spoilt, "--store", store, "--gates", GATES)
    dry = hotplate(*publish, "--dry-run")
    failed(dry, "Gate overlap@10: ", " is below 0.2 (of 300 users, with ", "this is a dry run", code=3)
    assert "nothing is written" in dry.stdout
    assert json_of(*publish, "--dry-run", code=3)["gates"][4]["passed"] is False
    done = hotplate(*publish, "--json")
    failed(done, '"kind":"GateFailed"', f"{live} still is", "hotplate releases activate ", code=3)
    facts = json.loads(done.stdout)
    assert facts["live"] is False
    found = {each["gate"]: (each["bound"], each["passed"]) for each in facts["gates"]}
    assert found == {
        "drop.ndcg": (0.1, True),
        "coverage": (0.1, True),
        "users_with_lists": (0.95, True),
        "shortest_list": (5, True),
        "overlap@10": (0.2, False),
        "popular_share@10": (0.7, True),
    }
    assert all(isinstance(each["measured"], float | int) for each in facts["gates"])
    assert live_in(store) == live
    refused = facts["release"]["release"]
    listed = hotplate("releases", "list", "--store", store).stdout
    assert [line.split("  ")[1].strip() for line in listed.splitlines()[1:]] == ["live", "refused by overlap@10"]
    shown = hotplate("releases", "show", refused, "--store", store).stdout
    assert len(shown.splitlines()) < 40
    for line in (
        "state *refused by overlap@10",
        r"ndcg *0\.\d{4}",
        r"overlap@10 *0\.\d+ *≥ 0.2 *failed",
    ):
        assert re.search(line, shown), shown
    assert json_of("releases", "show", refused, "--store", store)["refused_by"]
    failed(hotplate("releases", "activate", refused, "--store", store), "refused by overlap@10", "--force", code=3)
    assert live_in(store) == live
    activate = ("releases", "activate", refused, "--store", store, "--force")
    assert [hotplate(*activate).stdout for _ in range(2)] == [
        f"{refused} is live in {store}\n",
        f"{refused} was live already, and nothing was changed, in {store}\n",
    ]
    assert hotplate("releases", "rollback", "--store", store).returncode == 0
    forced = succeeded(*publish, "--force")
    assert "is live" in forced
    assert " forced " in forced
    assert live_in(store) not in (live, facts["release"]["release"])


def test_imported_lists_pass_gates_too_and_have_no_metrics(tmp_path: Path) -> None:
    lists, store = tmp_path / "lists.csv", f"file://{tmp_path}/store"
    lists.write_text("user,item,score\nal,a,2\nal,b,1\nbo,a,1\n")
    assert hotplate("import", lists, "--store", store, "--gate", "overlap=0.5").returncode == 0
    live = live_in(store)
    lists.write_text("user,item,score\nal,c,2\nal,b,1\nbo,d,1\n")
    refused = hotplate("import", lists, "--store", store, "--gate", "overlap=0.5", "--gate", "shortest_list=2")
    failed(refused, "Gate overlap@10: 0.25 is below 0.5", "; gate shortest_list: 1 is below 2; release", code=3)
    assert "is ready" in refused.stdout
    assert live_in(store) == live
    failed(hotplate("import", lists, "--store", store, "--gate", "ndcg=0.1"), "have no evaluation", code=2)
    failed(hotplate("import", lists, "--store", store, "--gate", "coverage=0.1"), "--titles", code=2)
    failed(hotplate("import", lists, "--store", store, "--gate", "overlap=2"), "between 0 and 1", code=2)


def test_gate_rejects_release_degraded_by_rules_and_reports_model_metric(tmp_path: Path) -> None:
    model, store = tmp_path / "model", f"file://{tmp_path}/store"
    rows = sample(users=300, items=150)
    rows.write_csv(tmp_path / "clicks.csv")
    trained = hotplate(
        "train", tmp_path / "clicks.csv", "--out", model, "--engine", "neighbours", "--no-tune", "--json"
    )
    ndcg = json.loads(trained.stdout)["evaluation"]["model"]["ndcg"]
    frequent = rows.group_by("item").len().sort("len", "item").get_column("item")[20:].to_list()
    (tmp_path / "frequent.txt").write_text("\n".join(frequent) + "\n")
    excluded = ("--exclude", tmp_path / "frequent.txt")
    publish = ("publish", model, "--store", store, "--gate", f"ndcg={0.9 * ndcg}", *excluded)
    assert hotplate(*publish[:6]).returncode == 0, "without rules it passes"
    live = live_in(store)
    refused = hotplate(*publish)
    failed(refused, "Gate ndcg: ", f"(as published; {ndcg:.4g} in training)", code=3)
    assert live_in(store) == live
    assert "as published, nDCG@10 is " in refused.stdout
    failed(hotplate(*publish, "--dry-run"), "this is a dry run", code=3)
    facts = json_of(*publish, code=3)
    assert facts["release"]["about"]["metrics"]["model"]["ndcg"] == facts["gates"][0]["measured"] < 0.9 * ndcg
