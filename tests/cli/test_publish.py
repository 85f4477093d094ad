"""`--dry-run`, `--max-ru` and gates: exit codes, tables, and the live release afterwards."""

import json
import re
import secrets
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hotplate.offline.input.sample import sample
from hotplate.offline.model_folder import load, save
from hotplate.offline.train.als import Factors
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.cosmos_account import Account
from tests.support.paths import ROOT
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few lists: 60 users, 20 items each."""
    path = tmp_path_factory.mktemp("lists") / "lists.csv"
    rows = [f"u{user},p{(user * 7 + item) % 90},{1 - item / 100}" for user in range(60) for item in range(20)]
    path.write_text("\n".join(["user,item,score", *rows]))
    return path


@pytest.fixture
def cosmos(cosmos_http: Account) -> str:
    return cosmos_http.url(secrets.token_hex(4), ru="2000")


def writes(account: Account) -> float:
    """Return how many requests have changed anything, by the emulator's own count."""
    changing = ("create", "upsert", "replace", "delete", "patch", "batch")
    requests = account.metric("hotplate_cosmos_emulator_requests_total")
    return sum(number for (operation, _), number in requests.items() if operation.startswith(changing))


def spent(*arguments: str | Path) -> dict[str, float]:
    charges: dict[str, float] = json_of(*arguments)["spent"]
    return charges


def test_dry_run_writes_nothing_and_a_publish_reports_what_it_spent(
    model: Path, lists: Path, cosmos_http: Account, cosmos: str
) -> None:
    before = writes(cosmos_http)
    rehearsed = json_of("publish", model, "--store", cosmos, "--max-ru", "1000", "--dry-run")
    assert writes(cosmos_http) == before
    assert rehearsed["dry_run"] is True
    done = spent("publish", model, "--store", cosmos, "--max-ru", "1000")
    assert done["request_units"] > 6 * rehearsed["rows"]  # written for 5, read back for 1
    assert done["throttled"] == 0
    text = succeeded("import", lists, "--store", cosmos, "--force")  # of other users
    assert "is live" in text
    assert "read back once; 0 refused (429)" in text


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["publish", "dry run"])
def test_store_out_of_reach_is_reported_before_anything_is_read(options: list[str], tmp_path: Path) -> None:
    store = "redis://127.0.0.1:9/0"
    for verb in ("publish", "import"):
        failed(hotplate(verb, tmp_path / "absent", "--store", store, *options), store)


def test_dry_run_prints_rows_and_bytes_for_files_and_redis(
    lists: Path, model: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    for url in (f"file://{tmp_path}/store", redis_server.url("redis", secrets.token_hex(4))):
        estimate = json_of("import", lists, "--store", url, "--dry-run")
        assert estimate["rows"] in (62, 63)  # a manifest, and with compression a dictionary
        rehearsed = hotplate("publish", model, "--store", url, "--dry-run", "--probation-wait", "5s")
        assert "nothing is written" in rehearsed.stdout
        assert "waiting" not in rehearsed.stderr  # no service reads a rehearsal
        listed = hotplate("releases", "list", "--store", url)
        assert (listed.returncode, "Nothing was ever published to " in listed.stderr) == (1, True)
    assert not (tmp_path / "store").exists()


def test_impossible_dry_run_or_limit_is_one_sentence(lists: Path, model: Path, tmp_path: Path) -> None:
    file = f"file://{tmp_path}/store"
    for command in (
        ("publish", model, "--store", file, "--max-ru", "1000"),
        ("import", lists, "--store", file, "--max-ru", "1000"),
        ("releases", "copy", "--from", "redis://localhost:1/0", "--to", file, "--max-ru", "1000"),
        ("publish", model, "--store", "redis://user:secret@localhost:1/0", "--max-ru", "1000", "--dry-run"),
    ):
        done = hotplate(*command)
        failed(done, "--max-ru is for Cosmos DB", code=2)
        assert "secret" not in done.stderr
    failed(hotplate("publish", model, "--store", file, HOTPLATE_MAX_RU="9"), "--max-ru is for Cosmos DB", code=2)
    resumed = hotplate("publish", model, "--store", file, "--dry-run", "--resume", "20261120T064200Z-7f3a")
    failed(resumed, "leave out --resume", code=2)


def test_max_ru_option_overrides_the_url_and_slows_a_publish(lists: Path, cosmos: str) -> None:
    done = spent("import", lists, "--store", f"{cosmos}&max_ru=5", "--max-ru", "150")
    assert 60 * 6 / 150 <= done["seconds"] < 60 * 6 / 5


GATES = ROOT / "docs" / "examples" / "gates.toml"


def models(folder: Path) -> tuple[Path, Path]:
    """Train a model on sample data, and save a second one with shuffled item factors."""
    good = folder / "good"
    spoilt = folder / "spoilt"
    sample(users=300, items=150).write_csv(folder / "clicks.csv")
    succeeded("train", folder / "clicks.csv", "--out", good, "--params", "factors=16,iterations=5")
    model = load(good)
    assert isinstance(model.ranker, Factors)
    shuffled = np.random.default_rng(0).permutation(model.ranker.item_factors)
    save(replace(model, ranker=replace(model.ranker, item_factors=shuffled)), spoilt)
    return good, spoilt


def live_in(store: str) -> str:
    return str(json_of("releases", "list", "--store", store)["live"])


# The gates of `GATES` and those that every publish has, with their bounds.
BOUNDS = {
    "drop.ndcg": 0.1,
    "coverage": 0.1,
    "users_with_lists": 0.95,
    "shortest_list": 5,
    "overlap@10": 0.2,
    "popular_share@10": 0.7,
    "users_kept": 0.5,
    "items_kept": 0.5,
    "length_kept": 0.5,
    "similar_kept": 0.5,
    "segments_kept": 0.5,
    "popular_length_kept": 0.5,
    "popular_kept": 0.0,
}


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
    assert re.search(r"overlap@10 .* failed ", dry.stdout)
    assert re.search(r"overlap@10 .* forced ", succeeded(*publish, "--dry-run", "--force"))
    assert json_of(*publish, "--dry-run", code=3)["gates"][4]["passed"] is False

    done = hotplate(*publish, "--json")
    failed(done, '"kind":"GateFailed"', f"{live} stayed live", "hotplate releases activate ", code=3)
    facts = json.loads(done.stdout)
    assert facts["live"] is False
    verdicts = {gate["gate"]: (gate["bound"], gate["passed"]) for gate in facts["gates"]}
    assert verdicts == {name: (bound, name != "overlap@10") for name, bound in BOUNDS.items()}
    assert all(isinstance(gate["measured"], float | int) for gate in facts["gates"])
    assert live_in(store) == live

    refused = facts["release"]["release"]
    check_listing_of_refused(store, live, refused)
    check_activation_of_refused(store, live, refused)
    forced = succeeded(*publish, "--force")
    assert "is live" in forced
    assert " forced " in forced
    assert live_in(store) not in (live, refused)


def check_listing_of_refused(store: str, live: str, refused: str) -> None:
    """Check that the list and the details of releases name the gate that refused one."""
    listed = hotplate("releases", "list", "--store", store).stdout
    answer, _, *lines = listed.splitlines()
    assert answer == f"release {live} is live in {store}, of 2 releases"
    assert [line.split("  ")[1].strip() for line in lines] == ["live", "refused by overlap@10"]
    shown = hotplate("releases", "show", refused, "--store", store).stdout
    assert len(shown.splitlines()) < 45
    for line in (
        "state *refused by overlap@10",
        r"ndcg *0\.\d{4}",
        r"overlap@10 *0\.\d+ *≥ 0.2 *failed",
    ):
        assert re.search(line, shown), shown
    assert json_of("releases", "show", refused, "--store", store)["refused_by"]


def check_activation_of_refused(store: str, live: str, refused: str) -> None:
    """Check that a refused release goes live only by --force, and that a rollback makes *live* live again."""
    failed(hotplate("releases", "activate", refused, "--store", store), "refused by overlap@10", "--force", code=3)
    assert live_in(store) == live
    activate = ("releases", "activate", refused, "--store", store, "--force")
    assert [hotplate(*activate).stdout for _ in range(2)] == [
        f"{refused} is live in {store}\n",
        f"{refused} was live already, and nothing was changed, in {store}\n",
    ]
    succeeded("releases", "rollback", "--store", store)


def test_imported_lists_pass_gates_too_and_have_no_metrics(tmp_path: Path) -> None:
    lists = tmp_path / "lists.csv"
    store = f"file://{tmp_path}/store"
    lists.write_text("user,item,score\nal,a,2\nal,b,1\nbo,a,1\n")
    succeeded("import", lists, "--store", store, "--gate", "overlap=0.5")
    live = live_in(store)
    lists.write_text("user,item,score\nal,c,2\nal,b,1\nbo,d,1\n")
    refused = hotplate("import", lists, "--store", store, "--gate", "overlap=0.5", "--gate", "shortest_list=2")
    failed(refused, "Gate overlap@10: 0.25 is below 0.5", "; gate shortest_list: 1 is below 2; release", code=3)
    assert "is ready" in refused.stdout
    assert live_in(store) == live
    failed(hotplate("import", lists, "--store", store, "--gate", "ndcg=0.1"), "have no evaluation", code=2)
    failed(hotplate("import", lists, "--store", store, "--gate", "coverage=0.1"), "--titles", code=2)
    failed(hotplate("import", lists, "--store", store, "--gate", "overlap=2"), "between 0 and 1", code=2)


def test_lost_items_are_refused_without_any_gate(tmp_path: Path) -> None:
    lists = tmp_path / "lists.csv"
    store = f"file://{tmp_path}/store"
    publish = ("import", lists, "--store", store)

    def rows(items: int) -> str:
        lines = (f"u{user},i{(user * 8 + place) % items},{9 - place}" for user in range(100) for place in range(8))
        return "\n".join(["user,item,score", *lines]) + "\n"

    lists.write_text(rows(800))
    assert "kept" not in succeeded(*publish), "nothing is live to compare with"
    live = live_in(store)
    lists.write_text(rows(2))
    refused = hotplate(*publish)
    failed(refused, "Gate items_kept: 0.0025 is below 0.5 (2 of 800 items in live lists)", "--force", code=3)
    assert re.search(r"users_kept +1 +≥ 0.5 +passed +about 100 of 100 users with a list", refused.stdout)
    assert live_in(store) == live
    succeeded(*publish, "--force")


def test_gate_rejects_release_degraded_by_rules_and_reports_model_metric(tmp_path: Path) -> None:
    model = tmp_path / "model"
    store = f"file://{tmp_path}/store"
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
    succeeded(*publish[:6])
    live = live_in(store)
    refused = hotplate(*publish)
    failed(refused, "Gate ndcg: ", f"(as published; {ndcg:.4g} in training)", code=3)
    assert live_in(store) == live
    assert "as published, nDCG@10 is " in refused.stdout
    failed(hotplate(*publish, "--dry-run"), "this is a dry run", code=3)
    facts = json_of(*publish, code=3)
    assert facts["release"]["about"]["metrics"]["model"]["ndcg"] == facts["gates"][0]["measured"] < 0.9 * ndcg


def test_misspelt_gate_suggests_the_nearest(model: Path, tmp_path: Path) -> None:
    store = ("--store", f"file://{tmp_path}/store")
    failed(
        hotplate("publish", model, *store, "--gate", "ndgc=0.1"),
        "There is no gate ndgc (0.1); did you mean ndcg?",
        code=2,
    )
    failed(hotplate("publish", model, *store, "--gate", "quality=0.1"), "known are coverage", code=2)
