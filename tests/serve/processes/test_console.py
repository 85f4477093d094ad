"""The console's routes: state, access and changes."""

import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hotplate.serve.access.keys import create
from hotplate.serve.api.openapi import PAGE_POLICY
from hotplate.serve.processes.console import FILES
from hotplate.serve.releases.follower import CANARY_S
from tests.support.command import json_of, succeeded
from tests.support.service import Service, a_list, published, running, until

LEARNT_UNTIL = "2026-11-01T00:00:00+00:00"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("console") / "store"


@pytest.fixture(scope="module")
def releases(folder: Path) -> list[str]:
    """Two releases, the second of which is live."""
    lists = [{"user:42": a_list(mark, "b"), "item:b": a_list("c")} for mark in "ab"]
    about = {"learnt_until": LEARNT_UNTIL, "rules": {"diversity": {"weight": 0.3}}}
    return [published(folder, rows, about=about) for rows in lists]


@pytest.fixture(scope="module")
def service(folder: Path, releases: list[str]) -> Iterator[Service]:
    assert len(releases) == 2
    keys = folder.parent / "keys.json"
    create(keys, "web", ["read"])
    events = str(folder.parent / "events")
    options = ("--admin-store", f"file://{folder}", "--keys", str(keys), "--anonymous", "--events", events)
    with running(folder, *options) as service:
        yield service


def test_the_page_and_its_files_are_served_under_a_strict_policy(service: Service) -> None:
    page = service.admin("/console")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for path in FILES.iterdir():
        answer = service.admin(f"/console/{path.name}")
        assert (answer.status, answer.headers["content-security-policy"]) == (200, PAGE_POLICY)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert service.admin(f"/console/{path.name}", If_None_Match=answer.headers["etag"]).status == 304
        for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style="):
            assert banned not in path.read_text(), path.name
    assert service.admin("/console/console.py").status == 404
    assert service.admin("/console", Host="evil.example").status == 421
    assert service.admin("/").body == page.body


def test_state_has_workers_tiers_and_latest_log_lines(service: Service, releases: list[str]) -> None:
    state = service.admin("/console/state").json
    (worker,) = state["workers"]
    (tier,) = worker["tiers"]
    assert (state["status"], worker["status"], worker["pid"]) == ("ready", "ready", service.workers()[0])
    assert worker["release"] == tier["release"] == releases[1]
    assert (tier["open"], "canary" in tier) == (False, False)
    assert tier["learnt_until"] == datetime.fromisoformat(LEARNT_UNTIL).timestamp()
    assert tier["rules"] == ["diversity"]
    assert time.time() - 600 < tier["written_at"] <= time.time()
    assert (state["url"], state["changes"], state["reads_take_a_key"]) == (service.url, True, False)
    (tier,) = service.admin("/v1/releases").json["tiers"]
    assert (tier["changeable"], tier["live"], tier["previous"]) == (True, releases[1], releases[0])
    assert any(f"{releases[1]} is live" in line["message"] for line in state["log"])
    latest = state["log"][-1]["at"]
    assert all(line["at"] > latest for line in service.admin(f"/console/state?after={latest}").json["log"])
    assert service.admin("/console/state?after=yesterday").status == 400


def test_a_release_that_was_restored_is_listed_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    backup = tmp_path / "backup"
    release = published(store, {"user:1": a_list("a")})
    succeeded("store", "backup", backup, "--store", f"file://{store}")
    succeeded("store", "restore", backup, "--over", "--store", f"file://{store}")
    with running(store, "--admin-store", f"file://{store}") as service:
        (tier,) = service.admin("/v1/releases").json["tiers"]
    assert [entry["release"] for entry in tier["releases"]] == [release]
    assert [entry["id"] for entry in json_of("releases", "list", "--store", f"file://{store}")["releases"]] == [release]


class Trial(NamedTuple):
    """A service whose canary lacks all lists, and the folder of its store."""

    service: Service
    store: Path
    live: str
    canary: str


LISTS = {f"user:{user}": a_list("a") for user in range(100)}


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    store = tmp_path / "store"
    options = ("--admin-store", f"file://{tmp_path}/store", "--events", f"{tmp_path}/events")
    live, canary = (published(store, rows, live=rows is LISTS) for rows in (LISTS, {}))
    with running(store, *options) as service:
        assert service.admin(f"/v1/releases/{canary}/canary?percent=50", "POST").status == 200
        until(lambda: "canary" in tier_of(service))
        yield Trial(service, store, live, canary)


def replace_canary(service: Service, release: str) -> None:
    assert service.admin("/v1/releases/canary/abort", "POST").status == 200
    assert service.admin(f"/v1/releases/{release}/canary?percent=50", "POST").status == 200


def releases_in_console(service: Service) -> set[str]:
    """Return the releases of which the console shows lists to 20 users."""
    return {service.admin(f"/console/user?id={user}").json["release"] for user in range(20)}


def test_canary_counts_are_shown_beside_the_live_release(trial: Trial) -> None:
    service = trial.service
    for user in range(20):
        service.get(f"/v1/recommendations/{user}")
    shown = {"type": "impression", "user": "1", "items": ["a"], "release": trial.live}
    events = {"events": [shown] * 4 + [shown | {"type": "click"}]}
    assert service.post("/v1/events", events, Content_Type="application/json").status == 200
    until(lambda: tier_of(service)["canary"]["live"]["clicks"])
    state = tier_of(service)["canary"]
    assert (state["release"], state["live"]["shown"], state["live"]["clicks"]) == (trial.canary, 4, 1)
    assert state["live"]["lookups"] + state["canary"]["lookups"] == 20
    low, high = state["live"]["interval"]
    assert 0 == low < 0.25 < high
    assert state["canary"]["interval"] is None


def test_console_stops_and_starts_canaries_as_the_workers_do(trial: Trial) -> None:
    service, store, live, canary = trial
    for user in [*range(100)] * 3:
        service.get(f"/v1/recommendations/{user}")
    until(lambda: "not used any more" in str(tier_of(service)))
    assert releases_in_console(service) == {live}
    loads = service.log.read_text().count("is the canary, of")
    time.sleep(2 * CANARY_S)  # in which it could be loaded again
    assert releases_in_console(service) == {live}
    assert service.log.read_text().count("is the canary, of") == loads, "the console loaded the canary again"

    replace_canary(service, canary)
    until(lambda: canary in releases_in_console(service))

    good = published(store, LISTS, live=False)
    replace_canary(service, good)
    until(lambda: releases_in_console(service) == {live, good})


def tier_of(service: Service) -> Any:  # noqa: ANN401 -- JSON is whatever it is
    ((tier,),) = (worker["tiers"] for worker in service.admin("/console/state").json["workers"])
    return tier


def client_of(service: Service, name: str) -> dict[str, Any] | None:
    clients = service.admin("/console/keys").json["clients"]
    return next((client for client in clients if client["name"] == name), None)


def test_console_creates_lists_and_revokes_a_key(service: Service, folder: Path) -> None:
    created = service.admin("/console/keys?name=shop&scope=events", "POST").json
    assert (created["client"], created["kind"]) == ("shop", "primary")
    (web, shop) = (client_of(service, name) for name in ("web", "shop"))
    shown = service.admin("/console/keys").body
    assert (web is not None and web["scopes"], shop is not None and shop["scopes"]) == (["read"], ["events"])
    digests = json.loads((folder.parent / "keys.json").read_bytes())["clients"]
    for secret in (created["key"], *(client["primary"]["sha256"] for client in digests)):
        assert secret.encode() not in shown

    def answer() -> int:
        return service.post("/v1/events", b'{"events": []}', X_API_Key=created["key"]).status

    until(lambda: answer() not in (401, 403))
    assert created["key"] not in json.dumps(service.admin("/console/state").json["log"])
    assert service.admin("/console/keys/revoke?name=shop", "POST").status == 200
    assert client_of(service, "shop") is None
    until(lambda: answer() == 401)
    assert service.admin("/console/keys/revoke?name=shop", "POST").status == 409


def test_console_creates_no_admin_key(service: Service, folder: Path) -> None:
    create(folder.parent / "keys.json", "operator", ["admin"])
    assert service.admin("/console/keys?name=me&scope=admin", "POST").status == 400
    assert service.admin("/console/keys?name=operator", "POST").status == 409
    invalid = service.admin("/console/keys?name=not/plain", "POST")
    assert invalid.problem == (400, "bad-parameter")
    assert "a client's name is" in invalid.json["detail"]
    origin = {"Origin": "http://evil.example"}
    assert service.admin("/console/keys?name=me", "POST", **origin).status == 403


def test_operators_only_read_without_keys_or_admin_store(folder: Path, releases: list[str]) -> None:
    with running(folder) as service:
        workers = service.workers()
        (admin,) = set(service.processes()) - set(workers)
        os.kill(admin, signal.SIGKILL)
        until(lambda: set(service.processes()) - {admin} > set(workers))
        messages = [line["message"] for line in service.admin("/console/state").json["log"]]
        assert any("admin process ended with -9" in message for message in messages)
        assert service.workers() == workers
        assert service.admin("/console/keys").json == {"clients": None}
        assert service.admin("/console/keys?name=web", "POST").status == 403
        (tier,) = service.admin("/v1/releases").json["tiers"]
        assert tier["live"] == releases[1]
        refused = service.admin(f"/v1/releases/{releases[0]}/activate", "POST")
        assert refused.problem == (403, "no-admin-store")
