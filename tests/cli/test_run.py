"""`hotplate run`: from data to a live release, once for each state of the data, and resumed wherever it is cut off."""

import asyncio
import json
import random
import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.message import Message
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from hotplate.cli.run_work import read_job, read_pipeline
from hotplate.offline.input.sample import sample
from hotplate.offline.model import Description
from hotplate.offline.model_folder import describe
from hotplate.offline.run_folder import locked_folder
from hotplate.stores import lifecycle, publication
from hotplate.stores.catalogue import Catalogue, Release, ReleaseId
from hotplate.stores.connect import run_on
from hotplate.stores.errors import ReleaseConflict
from hotplate.stores.store import Store
from tests.support import patience
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.forked import Forked
from tests.support.http_server import http_server
from tests.support.service import until
from tests.support.soak import SEED, scaled
from tests.support.stores import lapse
from tests.support.throttled_store import open_url

if TYPE_CHECKING:
    from tests.support.redis_server import RedisServer


@pytest.fixture(params=["file", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/store"
    server: RedisServer = request.getfixturevalue("redis_server")
    request.getfixturevalue("patience")
    return server.url(prefix=secrets.token_hex(4))


@pytest.fixture
def folder_url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def write_data(folder: Path, seed: int = 42) -> None:
    sample(users=40, items=20, seed=seed).write_csv(folder / "clicks.csv")


def write_pipeline(folder: Path, url: str, more: str = "") -> Path:
    """Write a pipeline of few and small steps, and its data, unless they exist."""
    if not (folder / "clicks.csv").exists():
        write_data(folder)
    train = 'data = "clicks.csv"\nparams = {factors = 8, iterations = 2}\nsplit = "none"'
    text = f'[train]\n{train}\n\n[publish]\nstore = "{url}"\nlist_length = 5\n\n[run]\nwork = "work"\n{more}\n'
    (folder / "nightly.toml").write_text(text)
    return folder / "nightly.toml"


@pytest.fixture
def pipeline(tmp_path: Path, folder_url: str) -> Path:
    return write_pipeline(tmp_path, folder_url)


def summary_of(done: CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout.count("\n") == 1, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def run(pipeline: Path) -> dict[str, Any]:
    return summary_of(hotplate("run", pipeline))


def catalogue_of(url: str) -> Catalogue:
    return run_on(url, lambda store: store.catalogue())


def interrupted_run(pipeline: Path, point: str = "hotplate.cli.run_work.publish_source") -> CompletedProcess[str]:
    """Run a pipeline that is interrupted when it calls *point*, a function; by default it has trained its model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point, interrupt)
        return hotplate("run", pipeline)


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def trained(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in (folder / "work").glob("model-*/model.json")]


def test_a_run_publishes_once_for_each_state_of_its_data_and_options(url: str, tmp_path: Path) -> None:
    pipeline = write_pipeline(tmp_path, url)
    began = time.perf_counter()
    first = run(pipeline)
    elapsed_s = time.perf_counter() - began
    assert all(0 <= seconds <= elapsed_s for seconds in first["seconds"].values()), "no step takes longer than the run"
    assert (first["outcome"], catalogue_of(url).live) == ("published", first["release"])
    of_training = {"read", "matrix", "choose", "fit", "save", "train"}
    of_publishing = {"measure", "load", "lists", "gates", "activate", "publish"}
    assert set(first["seconds"]) == of_training | of_publishing | {"prune"}
    again = run(pipeline)
    assert (again["outcome"], again["release"]) == ("unchanged", first["release"])
    write_data(tmp_path, seed=7)
    second = run(pipeline)
    assert (second["outcome"], catalogue_of(url).live) == ("published", second["release"])
    assert second["release"] != first["release"]
    assert len(trained(tmp_path)) == 1
    write_pipeline(tmp_path, url, "[gates]\ncoverage = 0.1")
    gated = run(pipeline)
    assert (gated["gates"][0]["passed"], "gates" in gated["seconds"]) == (True, True)


class RunningCanary(NamedTuple):
    """A pipeline whose next run has new data, the live release of its store, and the canary."""

    pipeline: Path
    live: str
    canary: str


def with_canary(folder: Path, url: str) -> RunningCanary:
    pipeline = write_pipeline(folder, url)
    canary = run(pipeline)["release"]
    write_data(folder, seed=7)
    live = run(pipeline)["release"]
    succeeded("releases", "canary", canary, "--store", url)
    write_data(folder, seed=9)
    return RunningCanary(pipeline, live, canary)


def test_run_does_not_replace_a_running_canary_and_goes_live_after_it_ends(folder_url: str, tmp_path: Path) -> None:
    pipeline, live, canary = with_canary(tmp_path, folder_url)
    for _ in range(2):
        held = hotplate("run", pipeline)
        assert (held.returncode, summary_of(held)["outcome"]) == (3, "refused")
        assert f"release {canary} is the canary" in held.stderr
        catalogue = catalogue_of(folder_url)
        assert (catalogue.live, catalogue.canary and catalogue.canary.release) == (live, canary)
    succeeded("releases", "abort", "--store", folder_url)
    done = run(pipeline)
    assert (done["outcome"], catalogue_of(folder_url).live) == ("published", summary_of(held)["release"])
    assert run(pipeline)["outcome"] == "unchanged"


def start_experiment(folder: Path, url: str) -> None:
    """Import a release for arm B of an experiment, and start it."""
    release = json_of("import", folder / "clicks.csv", "--no-activate", "--store", url)["release"]["release"]
    succeeded("releases", "canary", release, "--days", "14", "--store", url)


def test_run_for_arm_b_renews_it_and_trains_nothing_without_an_experiment(folder_url: str, tmp_path: Path) -> None:
    live = summary_of(hotplate("run", write_pipeline(tmp_path, folder_url)))["release"]
    pipeline = tmp_path / "arm-b.toml"
    pipeline.write_text((tmp_path / "nightly.toml").read_text().replace("[run]", 'arm = "B"\n\n[run]'))
    refused = hotplate("run", pipeline)
    assert (refused.returncode, "model" in summary_of(refused)) == (3, False)
    assert "No experiment is running" in refused.stderr
    start_experiment(tmp_path, folder_url)
    done = run(pipeline)
    catalogue = catalogue_of(folder_url)
    assert (done["outcome"], catalogue.live, catalogue.canary and catalogue.canary.release) == (
        "published",
        live,
        done["release"],
    )


def with_option(pipeline: Path, option: str) -> Path:
    """Add a line to the table [publish] of a pipeline."""
    pipeline.write_text(pipeline.read_text().replace("[run]", f"{option}\n\n[run]"))
    return pipeline


async def withdraw(store: Store, live: str) -> None:
    """Withdraw the next release after *live* that is live, as services on probation do."""
    while (await store.catalogue()).live == live:
        await asyncio.sleep(0.01)
    await lifecycle.rollback(store, reason="probation: lists are missing")


def test_run_with_a_withdrawn_release_is_refused_until_it_is_activated(url: str, tmp_path: Path) -> None:
    live = summary_of(hotplate("run", write_pipeline(tmp_path, url)))["release"]
    write_data(tmp_path, seed=7)
    pipeline = with_option(tmp_path / "nightly.toml", 'probation_wait = "60s"')
    with ThreadPoolExecutor(1) as services:
        withdrawal = services.submit(run_on, url, partial(withdraw, live=live))
        first = hotplate("run", pipeline)
        withdrawal.result(60)
    withdrawn = summary_of(first)["release"]
    assert "probation: lists are missing" in first.stderr.splitlines()[-1]
    for done in (first, hotplate("run", pipeline), hotplate("run", pipeline)):
        summary = summary_of(done)
        assert (done.returncode, summary["outcome"], summary["release"]) == (3, "refused", withdrawn)
        assert summary["succeeded_at"] < summary["ended_at"] - summary["seconds"]["wait"]
        assert catalogue_of(url).live == live
    succeeded("releases", "activate", withdrawn, "--force", "--store", url)
    summary = run(pipeline)
    assert (summary["outcome"], summary["release"], "error" in summary) == ("unchanged", withdrawn, False)


# What a run says of a release that was withdrawn for a reason.
CAUSES = {"probation: lists are missing": "refused by probation: lists are missing", "": "withdrawn"}


@pytest.mark.parametrize("reason", CAUSES)
@pytest.mark.parametrize("point", ["hotplate.offline.run_folder.RunFolder.finish", None])
def test_release_withdrawn_after_its_run_is_not_called_published(
    pipeline: Path, point: str | None, reason: str, folder_url: str, tmp_path: Path
) -> None:
    live = run(pipeline)
    write_data(tmp_path, seed=7)
    ended = hotplate("run", pipeline) if point is None else interrupted_run(pipeline, point)
    withdrawn = summary_of(ended)["release"]
    assert catalogue_of(folder_url).live == withdrawn
    run_on(folder_url, partial(lifecycle.rollback, reason=reason))
    for _ in range(2):
        done = hotplate("run", pipeline)
        assert (done.returncode, summary_of(done)["outcome"]) == (3, "refused")
        assert f"release {withdrawn} was {CAUSES[reason]}" in done.stderr
        assert catalogue_of(folder_url).live == live["release"]


def test_interrupted_run_is_published_if_another_release_replaced_its_own(
    pipeline: Path, folder_url: str, tmp_path: Path
) -> None:
    superseded = summary_of(interrupted_run(pipeline, "hotplate.offline.run_folder.RunFolder.finish"))["release"]
    live = json_of("import", tmp_path / "clicks.csv", "--store", folder_url)["release"]["release"]
    done = run(pipeline)
    assert (done["outcome"], done["release"], catalogue_of(folder_url).live) == ("published", superseded, live)


def test_run_does_not_end_the_trial_of_its_own_release(folder_url: str, tmp_path: Path) -> None:
    pipeline, live, _ = with_canary(tmp_path, folder_url)
    ready = run(pipeline)["release"]
    succeeded("releases", "abort", "--store", folder_url)
    for command in (("canary", ready), ("abort",), ("prune",)):
        succeeded("releases", *command, "--store", folder_url)
        held = hotplate("run", pipeline)
        assert (held.returncode, summary_of(held)["outcome"], catalogue_of(folder_url).live) == (3, "refused", live)
        assert f"release {ready} " in held.stderr


def test_withdrawn_release_does_not_go_live_from_a_trial_or_a_new_catalogue(folder_url: str, tmp_path: Path) -> None:
    pipeline = with_option(write_pipeline(tmp_path, folder_url), "end_canary = true")
    live = run(pipeline)["release"]
    write_data(tmp_path, seed=7)
    withdrawn = run(pipeline)["release"]
    ended = (tmp_path / "work" / "state.json").read_bytes()
    run_on(folder_url, lifecycle.rollback)
    succeeded("releases", "canary", withdrawn, "--store", folder_url)
    on_trial = hotplate("run", pipeline)
    assert (on_trial.returncode, f"release {withdrawn} was withdrawn" in on_trial.stderr) == (3, True)
    (tmp_path / "work" / "state.json").write_bytes(ended)
    (tmp_path / "store" / "catalogue.json").unlink()
    succeeded("store", "rebuild", "--live", live, "--store", folder_url)
    rebuilt = hotplate("run", pipeline)
    assert (rebuilt.returncode, f"release {withdrawn} is not live any more" in rebuilt.stderr) == (3, True)
    assert catalogue_of(folder_url).live == live


def test_release_for_arm_b_is_refused_if_the_experiment_ends_before_its_activation(
    folder_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hotplate("run", write_pipeline(tmp_path, folder_url))
    start_experiment(tmp_path, folder_url)
    pipeline = with_option(write_pipeline(tmp_path, folder_url), 'arm = "B"')
    interrupted_run(pipeline, "hotplate.stores.publication.activate")

    def end_experiment(model: Path) -> Description:
        succeeded("releases", "abort", "--store", folder_url)
        return describe(model)

    monkeypatch.setattr("hotplate.offline.job.describe", end_experiment)
    refused = hotplate("run", pipeline)
    assert (refused.returncode, summary_of(refused)["outcome"]) == (3, "refused")
    assert "no experiment is running" in summary_of(refused)["error"]


def test_refused_release_that_was_forced_into_arm_b_is_published(folder_url: str, tmp_path: Path) -> None:
    hotplate("run", write_pipeline(tmp_path, folder_url))
    start_experiment(tmp_path, folder_url)
    pipeline = with_option(write_pipeline(tmp_path, folder_url, "[gates]\ncoverage = 1.0"), 'arm = "B"')
    refused = hotplate("run", pipeline)
    release = summary_of(refused)["release"]
    assert (refused.returncode, f"activate --force {release} --arm B" in refused.stderr) == (3, True)
    succeeded("releases", "activate", release, "--force", "--arm", "B", "--store", folder_url)
    assert run(pipeline)["outcome"] == "unchanged"


async def end_grace(store: Store) -> None:
    """Let the grace of releases that left service end now."""

    def aged(catalogue: Catalogue) -> Catalogue:
        entries = list[Release]()
        for entry in catalogue.releases:
            entries.append(entry if entry.superseded_at is None else replace(entry, superseded_at=0.0))
        return replace(catalogue, releases=tuple(entries))

    await lifecycle.update_catalogue(store, aged)


def test_summary_names_all_releases_that_the_run_pruned(pipeline: Path, folder_url: str, tmp_path: Path) -> None:
    summaries = list[dict[str, Any]]()
    for seed in range(4):
        write_data(tmp_path, seed=seed)
        summaries.append(run(pipeline))
        run_on(folder_url, end_grace)
    releases = [summary["release"] for summary in summaries]
    assert [summary["erased"] for summary in summaries] == [[], [], releases[:1], releases[1:2]]
    assert [entry.id for entry in catalogue_of(folder_url).releases] == releases[2:]


def test_release_after_which_nothing_was_pruned_is_published_with_a_warning(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hotplate.stores.file.store.open_url", open_url)
        done = hotplate("run", pipeline)
    assert done.returncode == 0, done.stderr
    summary = summary_of(done)
    release = summary["release"]
    assert (summary["outcome"], summary["erased"]) == ("published", [])
    not_pruned = f"release {release} is written, but pruning failed: it was changed too often"
    assert not_pruned in summary["warnings"]
    again = run(pipeline)
    assert (again["outcome"], again["release"]) == ("unchanged", release)
    assert "warnings" not in again


@pytest.mark.parametrize(
    "point",
    [
        "hotplate.cli.train_work.train",
        "hotplate.stores.publication.verify",
        "hotplate.stores.publication.activate",
        "hotplate.offline.run_folder.RunFolder.finish",
    ],
)
def test_interrupted_run_resumes_to_the_same_release_with_the_same_model(
    pipeline: Path, point: str, folder_url: str, tmp_path: Path
) -> None:
    cut_off = interrupted_run(pipeline, point)
    assert cut_off.returncode == 130
    left = summary_of(cut_off)
    assert left["outcome"] == "interrupted"
    models = trained(tmp_path)
    done = run(pipeline)
    assert (done["outcome"], done["release"], done["run"]) == ("published", left["release"], left["run"])
    catalogue = catalogue_of(folder_url)
    assert [(entry.id, entry.state) for entry in catalogue.releases] == [(left["release"], "live")]
    assert trained(tmp_path) == models or not models


def test_after_new_data_an_interrupted_run_is_not_resumed(pipeline: Path, folder_url: str, tmp_path: Path) -> None:
    left = summary_of(interrupted_run(pipeline))
    write_data(tmp_path, seed=7)
    done = run(pipeline)
    assert done["release"] != left["release"]
    assert catalogue_of(folder_url).live == done["release"]
    assert len(trained(tmp_path)) == 1


@pytest.mark.parametrize("point", ["hotplate.cli.run_work.publish_source", "hotplate.offline.job.begin"])
def test_run_whose_draft_has_other_lists_is_not_resumed(
    pipeline: Path, point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ReleaseConflict("the draft was begun with other lists")

    with monkeypatch.context() as patch:
        patch.setattr(point, refuse)
        left = run(pipeline)
    models = trained(tmp_path)
    done = run(pipeline)
    assert (left["outcome"], done["outcome"]) == ("failed", "published")
    assert done["run"] != left["run"]
    assert done["release"] != left["release"]
    assert ("train" in done["seconds"], trained(tmp_path)) == (False, models)


def test_changes_that_concern_publishing_keep_the_model(folder_url: str, tmp_path: Path) -> None:
    pipeline = write_pipeline(tmp_path, folder_url, "[gates]\ncoverage = 1.0")
    items = {line.split(",")[1] for line in (tmp_path / "clicks.csv").read_text().splitlines()[1:]}
    (tmp_path / "available.csv").write_text("item\n" + "\n".join(sorted(items)[:12]) + "\n")
    with_option(pipeline, 'available = "available.csv"')
    refused = run(pipeline)
    assert (refused["outcome"], "train" in refused["seconds"]) == ("refused", True)
    assert catalogue_of(folder_url).live is None
    models = trained(tmp_path)

    pipeline.write_text(pipeline.read_text().replace("coverage = 1.0", "coverage = 0.1"))
    done = run(pipeline)
    (tmp_path / "available.csv").write_text("item\n" + "\n".join(sorted(items)) + "\n")
    again = run(pipeline)
    assert len({refused["release"], done["release"], again["release"]}) == 3
    for summary in (done, again):
        assert (summary["outcome"], "train" in summary["seconds"]) == ("published", False)
    assert trained(tmp_path) == models
    assert run(pipeline)["outcome"] == "unchanged"

    pipeline.write_text(pipeline.read_text().replace("iterations = 2", "iterations = 3"))
    assert "train" in run(pipeline)["seconds"]
    assert trained(tmp_path) != models


@pytest.mark.parametrize("name", ["model.json", "users.parquet"])
def test_unreadable_model_of_an_interrupted_run_is_trained_again(pipeline: Path, name: str) -> None:
    left = summary_of(interrupted_run(pipeline))
    (Path(left["model"]) / name).write_text('{"format": 1}')
    done = run(pipeline)
    assert (done["outcome"], done["run"]) == ("published", left["run"])


def test_missing_data_fail_a_run_with_the_path(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").unlink()
    done = hotplate("run", pipeline)
    assert (done.returncode, summary_of(done)["error"]) == (1, f"{tmp_path}/clicks.csv does not exist.")


def test_model_that_fails_to_load_is_trained_again_by_the_next_attempt(pipeline: Path) -> None:
    left = summary_of(interrupted_run(pipeline))
    users = Path(left["model"]) / "users.parquet"
    users.write_bytes(bytes(users.stat().st_size))
    failing = hotplate("run", pipeline)
    assert (failing.returncode, "is incomplete or damaged" in failing.stderr) == (1, True)
    done = run(pipeline)
    assert (done["outcome"], "train" in done["seconds"]) == ("published", True)


def test_run_does_not_replace_a_release_that_its_gates_did_not_see(
    pipeline: Path, folder_url: str, tmp_path: Path
) -> None:
    compared = run(pipeline)["release"]
    write_data(tmp_path, seed=7)
    release = summary_of(interrupted_run(pipeline, "hotplate.stores.publication.activate"))["release"]
    live = json_of("import", tmp_path / "clicks.csv", "--force", "--store", folder_url)["release"]["release"]
    refused = hotplate("run", pipeline)
    assert (refused.returncode, summary_of(refused)["outcome"], catalogue_of(folder_url).live) == (3, "refused", live)
    assert f"compared release {release} with {compared}, but {live} is live now" in refused.stderr
    succeeded("releases", "rollback", "--store", folder_url)
    done = run(pipeline)
    assert (done["outcome"], catalogue_of(folder_url).live) == ("published", release)


def test_a_work_folder_has_one_run_at_a_time(pipeline: Path, tmp_path: Path) -> None:
    with locked_folder(tmp_path / "work"):
        refused = hotplate("run", pipeline)
    assert (refused.returncode, summary_of(refused)["outcome"]) == (1, "failed")
    assert "Another run is using " in refused.stderr
    assert "is not a folder" in hotplate("run", pipeline, HOTPLATE_RUN_WORK=str(pipeline)).stderr


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[run]", "[trian]\n[run]", "has trian, but may have the tables [train], [publish], [lists], "),
        ("[run]", "[[gates]]\ncoverage = 1\n[run]", "has gates, but may have the tables [train]"),
        ("[run]", "[gates]\ncoverage = 2\n[run]", "coverage is 2; it must lie between 0 and 1"),
        ("[run]", "[run]\nwiat = 3", "[run] has no key wiat; did you mean wait?"),
        ("[run]", '[run]\nwait = "long"', "[run]: wait: 'long' is not a time such as 50ms, 30s or 10m"),
        ("[run]", "[run", "is not TOML"),
        ("[train]", "[train]\nmin_per_usr = 3", "[train] has no key min_per_usr; did you mean min_per_user?"),
        ("[train]", "[train]\nmin-per-user = 0", "[train]: min_per_user: 0 is not a whole number of at least 1"),
        ('data = "clicks.csv"', "data = []", "[train] needs the key data"),
        ('data = "clicks.csv"', 'data = [""]', "[train]: data: an empty text names no file"),
        ('data = "clicks.csv"', 'data = "a\\u0000b"', r"[train]: data: 'a\x00b' has a NUL character"),
        ("[train]", "[train]\ntune = false", "[train]: tune = false is written no_tune = true."),
        ("[train]", "[train]\nout = 'model'", "[train] has no key out"),
        ("[train]", '[train]\nhalf_life = "often"', "The half-life 'often' cannot be read"),
        ("[train]", '[train]\nwhere = "quantity"', "'quantity'"),
        ("[train]", '[train]\nevent_weights = "view=much"', "'view=much'"),
        ("[train]", "[train]\nengine = 'popularity'", "the engine popularity has no factors, iterations"),
        ("[publish]", "[publish]\nmax_per_category = 2", "A cap needs both"),
        ("[publish]", '[publish]\ngate = "ndcg=0.1"', "these lists have no evaluation"),
    ],
)
def test_impossible_pipeline_is_refused_before_training(
    pipeline: Path, old: str, new: str, sentence: str, tmp_path: Path
) -> None:
    pipeline.write_text(pipeline.read_text().replace(old, new))
    failed(hotplate("run", pipeline), sentence, code=2)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("train", "code"), [("", 2), ("engine = 'ease'\nno_tune = true", 2), ("engine = 'als'", 0), ("no_tune = true", 0)]
)
def test_run_with_factors_trains_an_engine_with_factors(pipeline: Path, train: str, code: int, folder_url: str) -> None:
    publish = f'[publish]\nstore = "{folder_url}"\nfold_in = true'
    pipeline.write_text(f'[train]\ndata = "clicks.csv"\n{train}\n{publish}\n[run]\nwork = "work"\n')
    done = hotplate("run", pipeline, "--check")
    assert done.returncode == code, done.stderr
    assert ("fold_in needs item factors" in done.stderr) == bool(code)


def test_list_of_a_model_in_mlflow_is_refused(folder_url: str, tmp_path: Path) -> None:
    pipeline = write_pipeline(tmp_path, folder_url, '[lists.basket]\nmodel = "models:/shop@champion"\n')
    failed(hotplate("run", pipeline, "--check"), "[lists.basket]: a run reads models in folders", code=2)


def test_misspelt_variable_of_run_is_reported(folder_url: str, tmp_path: Path) -> None:
    done = hotplate("run", write_pipeline(tmp_path, folder_url), "--check", HOTPLATE_RUN_WIAT="3")
    assert (done.returncode, "did you mean HOTPLATE_RUN_WAIT?" in done.stderr) == (0, True), done.stderr


def test_new_password_of_the_store_is_no_other_option(tmp_path: Path) -> None:
    def options(url: str) -> str:
        return read_job(read_pipeline(write_pipeline(tmp_path, url, '[lists.basket]\nmodel = "model"\n'))).options

    first = options("redis://user:old@127.0.0.1:6379/0")
    assert options("redis://user:new@127.0.0.1:6379/0") == first
    others = (
        "redis://user:old@127.0.0.2:6379/0",
        "redis://user:old@127.0.0.1:6379/0?prefix=b",
        "redis://127.0.0.1:6379/0",
    )
    assert first not in map(options, others)


def test_order_of_lists_in_a_pipeline_is_no_option(folder_url: str, tmp_path: Path) -> None:
    def options(*names: str) -> str:
        tables = "".join(f'[lists.{name}]\nmodel = "{name}"\n' for name in names)
        return read_job(read_pipeline(write_pipeline(tmp_path, folder_url, tables))).options

    assert options("basket", "home") == options("home", "basket") != options("home")


def test_check_reads_options_of_all_kinds_and_runs_nothing(folder_url: str, tmp_path: Path) -> None:
    pipeline = write_pipeline(tmp_path, folder_url, "[gates]\nsimilar.hit_rate = 0.01")
    options = "[train]\nwhere = 'n>0'\nevent_weights = {view = 1, buy = 5}"
    pipeline.write_text(pipeline.read_text().replace("[train]", options).replace('split = "none"', ""))
    checked = succeeded("run", pipeline, "--check")
    assert str(tmp_path / "clicks.csv") in checked
    assert "similar.hit_rate ≥ 0.01" in checked
    assert not (tmp_path / "work").exists()
    pipeline.write_text(pipeline.read_text().replace("[publish]", 'split = "held-out-users"\n[publish]'))
    failed(hotplate("run", pipeline, "--check"), "There is no gate similar.hit_rate", code=2)


def test_metrics_are_written_and_pushed_and_a_down_gateway_fails_no_run(folder_url: str, tmp_path: Path) -> None:
    pushed = dict[str, bytes]()

    def receive(path: str, _: Message, sent: bytes) -> tuple[int, bytes]:
        pushed[path] = sent
        return 200, b""

    pipeline = write_pipeline(tmp_path, folder_url, 'textfile = "run.prom"')
    with http_server(receive) as gateway:
        done = hotplate("run", pipeline, HOTPLATE_RUN_PUSH=gateway)
    assert done.returncode == 0
    text = (tmp_path / "run.prom").read_text()
    assert 'hotplate_run_outcome{outcome="published",pipeline="nightly"} 1.0' in text
    assert 'hotplate_run_duration_seconds{pipeline="nightly",step="train"}' in text
    succeeded = [line for line in text.splitlines() if line.startswith("hotplate_run_last_success_timestamp_seconds{")]
    assert {path: body.decode() for path, body in pushed.items()} == {
        "/metrics/job/hotplate_run/pipeline/nightly": text
    }
    (tmp_path / "clicks.csv").write_text("user,item\nonly,one\n")
    away = hotplate("run", pipeline, HOTPLATE_RUN_PUSH=gateway)
    assert (away.returncode, f"the metrics could not be sent to {gateway}" in away.stderr) == (1, True)
    text = (tmp_path / "run.prom").read_text()
    assert 'hotplate_run_outcome{outcome="failed",pipeline="nightly"} 1.0' in text
    assert succeeded[0] in text.splitlines()


def stopped(pipeline: Path, after_s: float, number: signal.Signals) -> int:
    """Run a pipeline, send it a signal *after_s* from its first step, and return how it ended."""
    process = Forked("run", pipeline, output=pipeline.with_name("output"), before=patience.INSTALL)
    while process.poll() is None and not pipeline.with_name("work").exists():
        time.sleep(0.001)
    time.sleep(after_s)  # no condition can be waited for: it is any instant
    process.send_signal(number)
    return process.wait(60)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("url", "number", "times"),
    [("file", signal.SIGKILL, 20), ("redis", signal.SIGKILL, 5), ("file", signal.SIGTERM, 4)],
    indirect=["url"],
)
def test_runs_that_end_at_random_instants_resume_to_the_same_release(
    number: signal.Signals, times: int, url: str, tmp_path: Path
) -> None:
    draw = random.Random(SEED)
    for attempt in range(scaled(times)):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        own = f"file://{folder / 'store'}" if url.startswith("file:") else f"{url}{attempt}"
        pipeline = write_pipeline(folder, own)
        # It was done, or Python had not begun; or it ended as documented.
        assert stopped(pipeline, draw.uniform(0, 0.4), number) in (0, -number, 130 if number == signal.SIGTERM else 0)
        state = folder / "work" / "state.json"
        left = json.loads(state.read_text())["run"]["release"] if state.exists() else None
        models = trained(folder)
        done = hotplate("run", pipeline)
        assert done.returncode == 0, done.stderr
        release = summary_of(done)["release"]
        assert left in (None, release)
        assert [(entry.id, entry.state) for entry in catalogue_of(own).releases] == [(release, "live")]
        assert trained(folder) == models or not models


def test_unknown_rule_items_are_counted_and_catalogue_change_forces_new_run(
    pipeline: Path, folder_url: str, tmp_path: Path
) -> None:
    items = sorted({line.split(",")[1] for line in (tmp_path / "clicks.csv").read_text().splitlines()[1:]})
    (tmp_path / "catalogue.csv").write_text(
        "item,category\n" + "".join(f"{item},x\n" for item in [*items[:12], "gone"])
    )
    (tmp_path / "recalled.txt").write_text(f"{items[0]}\n")
    rules = (
        'available = "catalogue.csv"\nexclude = "recalled.txt"\ncategories = "catalogue.csv"\nmax_per_category = 3\n'
    )
    pipeline.write_text(pipeline.read_text().replace("list_length", f"{rules}list_length"))
    done = hotplate("run", pipeline)
    assert done.returncode == 0, done.stderr
    assert "  available: 13 items, 1 unknown\n  excluded: 1 items, 0 unknown\n  categories: 3 max, " in done.stderr
    with (tmp_path / "catalogue.csv").open("a") as catalogue:
        catalogue.write("new,y\n")
    again = run(pipeline)
    assert (again["outcome"], again["release"]) != ("unchanged", summary_of(done)["release"])
    output = json_of("lookup", "nobody", "--store", folder_url)
    assert len(output["items"]) == 3, "all that may be recommended are of one category"


def test_resume_reports_waiting_for_a_lease_and_continues_after_expiry(url: str, tmp_path: Path) -> None:
    draft = run_on(url, lambda store: publication.begin(store, ReleaseId("20261120T064200Z-7f3a")))
    (tmp_path / "lists.csv").write_text("user,item,score\nal,a,0.5\nbo,b,0.5\n")
    printed = tmp_path / "printed"
    options = ["--store", url, "--resume", draft.id, "--json"]
    no_stages = "from hotplate.cli import terminal; terminal.QUIET_S = float('inf')"
    resumed = Forked("import", tmp_path / "lists.csv", *options, output=printed, before=no_stages)
    until(lambda: resumed.poll() is not None or (printed.exists() and "\n" in printed.read_text()))
    waiting = f"hotplate: release {draft.id} has a writer; if that process is gone, its lease lapses in "
    assert printed.read_text().startswith(waiting)
    assert catalogue_of(url).find_draft(draft.id).writer == draft.writer
    run_on(url, lapse)
    assert resumed.wait(60) == 0
    _, _, rest = printed.read_text().partition("\n")
    assert json.loads(rest)["live"]
    assert catalogue_of(url).live == draft.id
