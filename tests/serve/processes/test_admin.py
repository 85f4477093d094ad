"""The admin listener: what operators read and change, and refusals."""

import secrets
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from hotplate.bench.process import free_port
from hotplate.serve.metrics import METHODS
from tests.support import throttled_store
from tests.support.forked import Forked
from tests.support.limited_service import samples
from tests.support.redis_server import RedisServer
from tests.support.service import (
    DEFAULTS,
    Service,
    a_list,
    published,
    refused_by,
    running,
    serving,
    until,
)

# Changes over HTTP get a short limit, in the processes that the command forks, too.
SHORT_CHANGES = "import hotplate.serve.processes.release_admin as release_admin; release_admin.CHANGE_S = 0.3"
# The limit leaves time for a swap on a slow disk.
SLOW_AFTER_SWAP = (
    "import asyncio, hotplate.stores.lifecycle as lifecycle\n"
    "lifecycle.prepare_served = lambda *_: asyncio.sleep(60)\n" + SHORT_CHANGES.replace("0.3", "5.0")
)
LEARNT_UNTIL = "2026-11-01T00:00:00+00:00"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("admin") / "store"


@pytest.fixture(scope="module")
def releases(store: Path) -> list[str]:
    """Two releases, the second of which is live."""
    about = {"learnt_until": LEARNT_UNTIL}
    return [published(store, {"user:42": a_list(mark, "b")}, about=about) for mark in "ab"]


@pytest.fixture(scope="module")
def service(store: Path, releases: list[str]) -> Iterator[Service]:
    assert len(releases) == 2
    with running(store, "--workers", "2", "--admin-store", f"file://{store}") as service:
        until(lambda: service.admin("/readyz").json["status"] == "ready")
        yield service


def metric(service: Service, name: str, **labels: str) -> dict[str, float]:
    """Return a metric's value by worker."""
    return {sample.labels["worker"]: sample.value for sample in samples(service, name, **labels)}


def test_operators_read_what_each_worker_serves(service: Service, releases: list[str]) -> None:
    ready = service.admin("/readyz")
    assert (ready.status, ready.json["status"], len(ready.json["workers"])) == (200, "ready", 2)
    for number, state in enumerate(ready.json["workers"]):
        assert (state["worker"], state["status"]) == (number, "ready")
        assert state["pid"] in service.workers()
        assert [tier["tier"] for tier in state["tiers"]] == ["file"]
    assert {state["release"] for state in ready.json["workers"]} <= set(releases)
    assert service.admin("/livez").json == {"status": "alive"}


def test_every_worker_is_seen_in_the_metrics(service: Service) -> None:
    both = {"0", "1"}
    for name in (
        "hotplate_release_info", "hotplate_release_age_seconds", "hotplate_breaker_open", "hotplate_degraded",
        "hotplate_catalogue_age_seconds", "hotplate_worker_loop_lag_seconds", "hotplate_worker_connections",
        "hotplate_worker_start_time_seconds",
    ):  # fmt: skip
        assert metric(service, name).keys() == both, name
    age_s = time.time() - datetime.fromisoformat(LEARNT_UNTIL).timestamp()
    assert metric(service, "hotplate_learnt_age_seconds") == dict.fromkeys(both, pytest.approx(age_s, abs=60))
    assert set(metric(service, "hotplate_worker_up").values()) == {1.0}
    assert all(0 < fds < 100 for fds in metric(service, "hotplate_worker_open_fds").values())
    assert all(limit >= 100 for limit in metric(service, "hotplate_worker_max_fds").values())
    assert metric(service, "hotplate_worker_major_page_faults_total").keys() == both
    with socket.create_connection(("127.0.0.1", service.port)):
        until(lambda: sum(metric(service, "hotplate_worker_connections").values()) >= 1)

    def counted(outcome: str) -> float:
        service.get("/v1/recommendations/42")  # again, as another release may just have gone live
        service.get("/v1/recommendations/nobody")
        return sum(metric(service, "hotplate_release_lookups_total", outcome=outcome).values())

    until(lambda: counted("hit") >= 20 and counted("miss") >= 20)


def test_unknown_methods_add_no_metric_series(service: Service) -> None:
    refused = {"PURGE": 405, "PROPFIND": 405, "M-SEARCH": 405, "BREW": 400, "x" * 500: 400}
    for method, status in refused.items():
        assert service.request(method, "/v1/popular").status == status
    text = service.admin("/metrics").body.decode()
    assert {sample.labels["method"] for sample in samples(service) if "method" in sample.labels} <= {*METHODS}
    assert '"42"' not in text
    assert 'code="405",method="other",route="/v1/popular"' in text
    assert 'code="400",method="other",route="other"' in text


def test_operators_activate_and_roll_back_and_see_it_in_the_catalogue(service: Service, releases: list[str]) -> None:
    first, second = releases
    assert service.admin(f"/v1/releases/{first}/activate", "POST").json == {"release": first}
    (tier,) = service.admin("/v1/releases").json["tiers"]
    assert (tier["tier"], tier["live"]) == ("file", first)
    assert {entry["release"]: entry["state"] for entry in tier["releases"]} == {first: "live", second: "superseded"}
    until(lambda: {state["release"] for state in service.states()} == {first})
    back = service.admin(f"/v1/releases/rollback?if_live={first}", "POST")
    assert (back.status, back.json) == (200, {"release": second})
    until(lambda: {state["release"] for state in service.states()} == {second})
    assert f"an operator activated, release {first}" in service.log.read_text()
    again = service.admin(f"/v1/releases/rollback?if_live={first}", "POST")
    assert again.problem == (409, "conflict")
    misspelt = service.admin(f"/v1/releases/rollback?live={first}", "POST")
    assert misspelt.problem == (400, "bad-parameter")


def test_operators_give_a_reason_that_the_log_keeps(service: Service, releases: list[str]) -> None:
    first, second = releases
    service.admin(f"/v1/releases/{second}/activate", "POST")
    assert service.admin(f"/v1/releases/{first}/activate?reason=the%20sale%20is%20over", "POST").status == 200
    assert service.admin("/v1/releases/rollback?reason=" + "x" * 400, "POST").status == 200
    (tier,) = service.admin("/v1/releases").json["tiers"]
    rolled_back, activated = tier["log"][:2]
    assert (rolled_back["live"], rolled_back["by"], len(rolled_back["reason"])) == (second, "an operator", 300)
    assert (activated["live"], activated["reason"]) == (first, "the sale is over")


def test_operators_start_promote_and_abort_a_canary(service: Service, releases: list[str]) -> None:
    first, second = releases
    service.admin(f"/v1/releases/{second}/activate", "POST")
    shown = service.admin(f"/v1/releases/{first}/canary?percent=2.5", "POST")
    assert (shown.status, shown.json) == (200, {"release": first})
    (tier,) = service.admin("/v1/releases").json["tiers"]
    assert (tier["live"], tier["canary"]) == (second, {"release": first, "percent": 2.5})
    until(lambda: set(metric(service, "hotplate_release_info", release=first, role="canary")) == {"0", "1"})
    assert set(metric(service, "hotplate_release_info", release=second, role="live")) == {"0", "1"}
    assert service.admin("/v1/releases/canary/abort", "POST").json == {"release": first}
    until(lambda: not metric(service, "hotplate_release_info", role="canary"))
    assert service.admin("/v1/releases/canary/promote", "POST").status == 404


def test_change_with_an_unconfirmed_throughput_is_answered_with_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    first, _ = [published(folder, {"user:42": a_list(mark)}) for mark in "ab"]
    with running(folder, "--admin-store", f"file://{folder}", before=throttled_store.INSTALL) as service:
        done = service.admin("/v1/releases/rollback", "POST")
        assert (done.status, done.json["release"]) == (200, first)
        assert done.json["warnings"] == [
            f"release {first} is live; its throughput is not confirmed: it was changed too often"
        ]
        assert done.json["warnings"][0] in service.log.read_text()


def test_impossible_canaries_are_refused(service: Service, releases: list[str]) -> None:
    first, second = releases
    service.admin(f"/v1/releases/{second}/activate", "POST")
    for percent in ("", "?percent=0", "?percent=100", "?percent=nan", "?percent=-1", "?percent=x", "?share=5"):
        refused = service.admin(f"/v1/releases/{first}/canary{percent}", "POST")
        assert refused.problem == (400, "bad-parameter")
    assert service.admin(f"/v1/releases/{second}/canary?percent=5", "POST").status == 409  # it is live


def test_decision_about_a_canary_names_the_canary(service: Service, releases: list[str]) -> None:
    first, second = releases
    service.admin(f"/v1/releases/{second}/activate", "POST")
    service.admin(f"/v1/releases/{first}/canary?percent=50", "POST")
    for verb in ("promote", "abort"):  # in a dialog about a former canary
        refused = service.admin(f"/v1/releases/canary/{verb}?if_canary={second}", "POST")
        assert (refused.status, refused.json.get("type")) == (409, "urn:hotplate:problem:conflict")
    (tier,) = service.admin("/v1/releases").json["tiers"]
    assert (tier["live"], tier["canary"]) == (second, {"release": first, "percent": 50})
    assert service.admin(f"/v1/releases/canary/promote?if_canary={first}", "POST").json == {"release": first}
    (tier,) = service.admin("/v1/releases").json["tiers"]
    assert (tier["live"], tier["canary"]) == (first, None)


def test_release_refused_by_gates_is_shown_and_goes_live_only_if_forced(tmp_path: Path) -> None:
    published(tmp_path, {"user:42": a_list("a")})
    bad = published(tmp_path, {"user:42": a_list("z")}, live=False, about=refused_by("ndcg"))
    with running(tmp_path, "--admin-store", f"file://{tmp_path}") as service:
        (tier,) = service.admin("/v1/releases").json["tiers"]
        assert [entry["refused_by"] for entry in tier["releases"]] == [[], ["ndcg"]]
        paths = (f"{bad}/canary?percent=5&force=", "canary/promote?force=", f"{bad}/activate?force=")
        for path, status in zip(paths, (409, 404, 409), strict=True):
            assert service.admin(f"/v1/releases/{path}false", "POST").status == status
        assert "refused by ndcg" in service.admin(f"/v1/releases/{bad}/activate", "POST").json["detail"]
        assert service.admin(f"/v1/releases/{bad}/activate?force=yes", "POST").status == 400
        for path in paths[:2]:
            assert service.admin(f"/v1/releases/{path}true", "POST").status == 200
        (tier,) = service.admin("/v1/releases").json["tiers"]
        assert tier["live"] == bad


def test_change_that_the_store_denies_is_not_to_be_repeated(tmp_path: Path, redis_server: RedisServer) -> None:
    user = secrets.token_hex(4)
    redis_server.execute_command("ACL", "SETUSER", user, "on", ">open", "~*", "&*", "+@all")
    url = redis_server.url(prefix=user, user=f"{user}:open@")
    first, _ = [published(url, {"user:42": a_list(mark)}) for mark in "ab"]
    with serving(tmp_path, "--store", url, "--admin-store", url) as service:
        redis_server.execute_command("ACL", "SETUSER", user, "-eval")
        refused = service.admin("/v1/releases/rollback", "POST")
        assert refused.problem == (409, "conflict")
        assert "lacks a permission" in refused.json["detail"]
        assert "retry-after" not in refused.headers
        redis_server.execute_command("ACL", "SETUSER", user, "+eval")
        assert service.admin("/v1/releases/rollback", "POST").json == {"release": first}


def test_change_of_a_silent_store_is_given_up(store: Path, releases: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and answers nothing
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with running(store, "--admin-store", url, before=SHORT_CHANGES) as service:
            answer = service.admin(f"/v1/releases/{releases[0]}/activate", "POST")
            assert answer.problem == (504, "change-timed-out")
            assert "GET /v1/releases shows whether it took place" in answer.json["detail"]
            assert service.admin("/livez").status == 200


def test_given_up_change_that_took_place_is_logged(tmp_path: Path) -> None:
    first, _ = [published(tmp_path / "store", {"user:42": a_list(mark)}) for mark in "ab"]
    options = ("--admin-store", f"file://{tmp_path}/store")
    with running(tmp_path / "store", *options, before=SLOW_AFTER_SWAP) as service:
        assert service.admin("/v1/releases/rollback", "POST").status == 504
        (tier,) = service.admin("/v1/releases").json["tiers"]
        assert tier["live"] == first
        assert "an operator sent POST /v1/releases/rollback over HTTP; it was given up" in service.log.read_text()


def test_impossible_changes_are_problems(service: Service) -> None:
    for method, path, status, name in (
        ("POST", "/v1/releases/20990101T000000Z-0000/activate", 404, "no-such-release"),
        ("POST", "/v1/releases/%00%ff/activate", 404, "no-such-release"),
        ("POST", "/v1/releases/20990101T000000Z-0000/canary?percent=5", 404, "no-such-release"),
        ("GET", "/v1/releases/rollback", 405, "no-such-method"),
        ("GET", "/v1/recommendations/42", 404, "no-such-route"),
    ):
        answer = service.admin(path, method)
        assert (answer.status, answer.json["type"]) == (status, f"urn:hotplate:problem:{name}")
        assert answer.headers["content-type"] == "application/problem+json"


def test_foreign_host_name_is_refused(service: Service) -> None:
    for host in ("evil.example", "evil.example:8090", "127.0.0.1.evil.example", "", "[", "10.0.0.1"):
        for method, path in (("GET", "/metrics"), ("POST", "/v1/releases/rollback")):
            answer = service.admin(path, method, Host=host)
            assert answer.problem == (421, "wrong-host")
    for own in ("localhost", "localhost:1", "127.0.0.1:8090", "[::1]:8090"):
        assert service.admin("/livez", Host=own).status == 200


def test_cross_site_page_changes_nothing(service: Service, releases: list[str]) -> None:
    before = service.admin("/v1/releases").json
    for origin in ("https://evil.example", "null", "http://localhost", "http://127.0.0.1:1", ""):
        answer = service.admin(f"/v1/releases/{releases[0]}/activate", "POST", Origin=origin)
        assert answer.problem == (403, "wrong-origin")
    assert service.admin("/v1/releases").json == before
    own = service.admin(f"/v1/releases/{releases[1]}/activate", "POST", Origin=service.admin_url)
    assert own.status == 200


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--port", "{taken}"), "Address already in use; choose another with --port or HOTPLATE_PORT"),
        (("--host", "a..b", "--anonymous"), "cannot be resolved"),
        (
            ("--port", "{free}", "--admin-port", "{free}"),
            "{free} cannot be listened on: Address already in use; choose another with --port",
        ),
        (("--port", "{free}", "--health-port", "{free}", "--health-host", "0.0.0.0"), "choose another with --port"),
        (
            ("--admin-port", "{free}", "--health-port", "{free}"),
            "choose another with --health-port or HOTPLATE_HEALTH_PORT",
        ),
        (("--admin-host", "0.0.0.0"), "--admin-host an address of loopback"),
        (("--admin-host", "192.0.2.1"), "give --admin-host an address of this machine"),
        (("--admin-store", "nosuch://x"), "nosuch"),
        (("--deny-list", "{folder}/catalogue.json"), "line 1 is not an entry"),
        (("--tls-cert", "server.pem"), "both --tls-cert"),
    ],
)
def test_failed_start_is_explained_in_one_sentence(
    folder: Path, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    output = tmp_path / "output"
    free = str(free_port())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = [option.format(taken=port, free=free, folder=folder) for option in options]
        started = Forked("serve", *DEFAULTS, "--store", f"file://{folder}", *arguments, output=output)
        assert started.wait(timeout=60) in {1, 2}
    assert sentence.format(free=free) in " ".join(output.read_text().split())
    assert "Traceback" not in output.read_text()
