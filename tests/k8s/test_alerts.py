"""Alerts that no drill moves: each is made to fire by what a real service says while that really happens to it."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from serve.access.keys import create
from stores.file.store import LmdbStore
from tests.support.cosmos_account import Account
from tests.support.event_log import body
from tests.support.page_cache import page_out
from tests.support.redis_server import certify
from tests.support.replay import Scrape, assert_fire, run_pipeline, scrape, write_pipeline
from tests.support.service import (
    LAUNCHER,
    Service,
    a_list,
    publish_lists,
    publish_through,
    publish_to,
    running,
    serving,
)

pytestmark = pytest.mark.k8s

DAY_S = 86_400.0
LISTS = {"user:1": a_list("a", "b"), "item:a": a_list("b")}


def of(found: Scrape, name: str, *labels: str) -> list[float]:
    """Return the values of the series of a name that have all of these labels, as `outcome="miss"`."""
    values = found.values().items()
    return [
        value for series, value in values if series.startswith(f"{name}{{") and all(map(series.__contains__, labels))
    ]


def over(name: str, *labels: str, than: float = 0.0) -> Callable[[Scrape], bool]:
    """Return whether the sum of these series is over *than*, for `scrape`."""
    return lambda found: sum(of(found, name, *labels)) > than


def request(service: Service, user: str = "1", times: int = 10) -> None:
    for _ in range(times):
        service.get(f"/v1/recommendations/{user}")


def scrape_well(service: Service) -> list[Scrape]:
    """Scrape a service twice, with requests of a user who has a list in between."""
    first = scrape(service, over("hotplate_worker_up"))
    request(service)
    return [first, scrape(service, over("hotplate_release_lookups_total", '"hit"', than=9))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store, whose release has a user's list."""
    asyncio.run(publish_lists(tmp_path / "store", LISTS))
    return tmp_path


def test_without_a_release(folder: Path) -> None:
    (folder / "empty").mkdir()
    with running(folder / "store") as service:
        before = scrape_well(service)
    with running(folder / "empty") as service:
        request(service)
        count = "hotplate_http_request_duration_seconds_count"
        after = scrape(service, over(count, '"503"', '"/v1/recommendations/{user}"', than=9))
    assert_fire(folder, {"HotplateAvailabilityBurnsFast", "HotplateNoRelease"}, before, [after])


@pytest.mark.alone  # the answers before must not be late
def test_an_answer_that_is_late_and_popular(folder: Path, cosmos_http: Account) -> None:
    url = cosmos_http.url("late")
    asyncio.run(publish_to(url, LISTS))
    with serving(folder, "--store", url) as service:
        before = scrape_well(service)
        cosmos_http.misbehave({"kind": "slow", "delay_ms": 500})
        request(service)
        cosmos_http.misbehave()
        after = scrape(service, over("hotplate_lookups_total", '"error"', than=9))
    assert_fire(folder, {"HotplateLatencyBurnsFast", "HotplatePersonalBurnsFast"}, before, [after])


@pytest.mark.parametrize("kind", ["unauthorized", "forbidden"])
def test_a_store_that_refuses_access(kind: str, folder: Path, cosmos_http: Account) -> None:
    url = cosmos_http.url("refusing")
    asyncio.run(publish_to(url, LISTS))
    with serving(folder, "--store", url) as service:
        before = scrape_well(service)
        cosmos_http.misbehave({"kind": kind})
        request(service)
        cosmos_http.misbehave()
        after = scrape(service, over("hotplate_store_failures_total", f'"{kind}"'))
    assert_fire(folder, {"HotplateStoreRefusesAccess"}, before, [after])


def test_a_worker_that_hangs_and_one_that_dies_time_and_again(folder: Path) -> None:
    with running(folder / "store") as service:
        before = scrape_well(service)
        [worker] = service.workers()
        os.kill(worker, signal.SIGSTOP)
        silent = scrape(service, lambda found: of(found, "hotplate_worker_up") == [0])
        os.kill(worker, signal.SIGCONT)
        late = scrape(service, over("hotplate_worker_loop_lag_seconds", than=0.1))
        assert_fire(folder, {"HotplateWorkerSilent"}, before, [silent])
        assert_fire(folder, {"HotplateLoopLate"}, before, [late])
        started, restarts = "hotplate_worker_start_time_seconds", [late]
        for _ in range(3):
            [worker] = service.workers()
            os.kill(worker, signal.SIGKILL)
            restarts.append(scrape(service, over(started, than=sum(of(restarts[-1], started)))))
        assert_fire(folder, {"HotplateWorkerRestarts"}, before, restarts)


def test_a_certificate_that_is_about_to_expire(folder: Path) -> None:
    certify(folder)  # for a day
    with running(folder / "store") as service:
        before = scrape_well(service)
    with running(
        folder / "store", "--tls-cert", f"{folder}/server.pem", "--tls-key", f"{folder}/server.key"
    ) as service:
        after = scrape(service, over("hotplate_certificate_expiry_timestamp_seconds"))
    assert_fire(folder, {"HotplateCertificateNotRenewed", "HotplateCertificateExpires"}, before, [after])


def test_a_file_of_keys_that_cannot_be_read(folder: Path) -> None:
    keys = folder / "keys.json"
    create(keys, "web", ["read"])
    with running(folder / "store", "--keys", str(keys), "--anonymous") as service:
        before = scrape_well(service)
        keys.write_text("{")
        after = scrape(service, over("hotplate_worker_unusable_files"))
    assert_fire(folder, {"HotplateFileUnusable"}, before, [after])


def test_users_who_are_missing(folder: Path) -> None:
    with running(folder / "store") as service:
        before = scrape_well(service)
        request(service, "nobody")
        after = scrape(service, over("hotplate_release_lookups_total", '"miss"', than=9))
    assert_fire(folder, {"HotplateMoreUnknownUsers"}, before, [after])


def test_a_canary_without_lists(folder: Path) -> None:
    users = [str(user) for user in range(400)]
    asyncio.run(publish_lists(folder / "store", {f"user:{user}": a_list("a", "b") for user in users}))
    canary = asyncio.run(publish_lists(folder / "store", LISTS, live=False))
    with running(folder / "store", "--admin-store", f"file://{folder}/store") as service:
        before = scrape_well(service)
        service.admin(f"/v1/releases/{canary}/canary?percent=50", "POST")
        scrape(service, over("hotplate_release_info", '"canary"'))
        body = json.dumps({"users": users, "n": 1}).encode()
        assert service.request("POST", "/v1/recommendations", body).status == 200
        after = scrape(service, over("hotplate_canary_stopped"))
    assert_fire(folder, {"HotplateCanaryWorse"}, before, [after])


def test_more_connections_than_a_worker_takes(folder: Path) -> None:
    options = ("--max-connections", "8", "--trusted-proxy", "127.0.0.0/8")
    with running(folder / "store", *options) as service, ExitStack() as held:
        before = scrape_well(service)
        for _ in range(20):
            held.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        after = scrape(service, over("hotplate_shed_total", '"connections"'))
    assert_fire(folder, {"HotplateShedding"}, before, [after])


def test_a_folder_that_takes_no_events(folder: Path) -> None:
    with running(folder / "store", "--events", str(folder / "log")) as service:
        before = scrape_well(service)
        (folder / "log").rmdir()
        service.request("POST", "/v1/events", body(*map(str, range(10))), Content_Type="application/json")
        after = scrape(service, over("hotplate_events_total", '"disk_failed"', than=9))
    assert_fire(folder, {"HotplateEventsRefused"}, before, [after])


def test_more_connections_than_the_system_allows(folder: Path) -> None:
    launcher = ("prlimit", "--nofile=1000:1000", *LAUNCHER)
    with running(folder / "store", "--trusted-proxy", "127.0.0.0/8", launcher=launcher) as service, ExitStack() as held:
        before = scrape_well(service)
        for _ in range(1000):
            held.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        after = scrape(service, over("hotplate_worker_open_fds", than=800))
    assert_fire(folder, {"HotplateDescriptorsRunOut"}, before, [after])


def test_a_release_that_does_not_fit_in_memory(tmp_path: Path) -> None:
    lists = {f"user:{user}": a_list("a", "b") for user in range(200)}
    asyncio.run(publish_lists(tmp_path / "store", LISTS | lists))
    with running(tmp_path / "store") as service:
        before = scrape_well(service)
        [data] = (tmp_path / "store/releases").glob("*.mdb")
        [worker] = service.workers()
        faults = "hotplate_worker_major_page_faults_total"
        are_enough = over(faults, than=sum(of(before[-1], faults)) + 60)

        def read_more(found: Scrape) -> bool:
            for user in range(200):  # of what is taken away, the kernel may still have some when it is read
                page_out(worker, data)
                service.get(f"/v1/recommendations/{user}")
            return are_enough(found)

        after = scrape(service, read_more)
    assert_fire(tmp_path, {"HotplatePageFaults"}, before, [after])


def test_a_tier_that_nobody_publishes_to(folder: Path) -> None:
    """The release of the one store is of three days ago, by the clock with which it was written."""

    async def publish_then() -> None:
        store = LmdbStore(folder / "old", lambda: time.time() - 3 * DAY_S)
        await publish_through(store, LISTS)

    asyncio.run(publish_then())
    with running(folder / "store", "--store", f"file://{folder}/old") as service:
        seen = scrape(service, lambda found: len(of(found, "hotplate_release_age_seconds")) == 2)
    with running(folder / "old") as service:
        old = scrape(service, over("hotplate_release_age_seconds"))
    with running(folder / "store") as service:
        before = scrape_well(service)
    assert_fire(folder, {"HotplateTierBehind"}, before, [seen])
    assert_fire(folder, {"HotplateReleaseTooOld"}, before, [old])


def test_a_run_that_fails_and_one_that_a_gate_refuses(folder: Path) -> None:
    pipeline = write_pipeline(folder)
    data, gates = folder / "clicks.csv", folder / "gates.toml"
    clicks = data.read_text()
    before = [run_pipeline(pipeline)] * 2
    data.write_text("user,item\n")
    assert_fire(folder, {"HotplateRunFailed"}, before, [run_pipeline(pipeline, 1)])
    gates.write_text("ndcg = 1.0\n")
    data.write_text(clicks)
    assert_fire(folder, {"HotplateRunRefused"}, before, [run_pipeline(pipeline, 3)])
