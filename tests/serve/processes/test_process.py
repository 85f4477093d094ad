"""The processes of a service: replaced when they die, graceful when they stop, silent about other people's ports."""

import asyncio
import errno
import http.client
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from hotplate.cli.terminal import print_error
from hotplate.serve.connections.listeners import CannotListen, _why_not, reserve
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.processes.states import SharedStates, WorkerState
from hotplate.serve.processes.supervisor import serve
from hotplate.serve.processes.worker import _prepared
from hotplate.serve.reader import NotReady, TieredReader
from hotplate.serve.settings import Settings
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.file.store import LmdbStore
from tests.support.service import Service, a_list, publish_lists, running, serving
from tests.support.virtual import VirtualLoop, in_virtual_time


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    asyncio.run(publish_lists(tmp_path / "store", {"user:42": a_list("a", "b")}))
    return tmp_path / "store"


def replace(path: Path, content: bytes) -> None:
    """Change a file as a whole, so that no reader sees a part of it."""
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").rename(path)


def wait_until_it_answers(service: Service) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            assert service.get("/readyz").status == 200
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_worker_that_dies_is_replaced_and_the_metrics_stay(folder: Path) -> None:
    with running(folder, "--workers", "2") as service:
        for _ in range(10):
            service.get("/v1/recommendations/42")
        before = service.workers()
        assert len(before) == 2
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until_it_answers(service)
        deadline = time.monotonic() + 60
        while len(set(service.workers()) - set(before)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        text = service.admin("/metrics").body.decode()
        assert 'hotplate_lookups_total{outcome="hit",source="personal"} 10.0' in text
        assert "ended with -9" in service.log.read_text()
        assert service.stop() == 0


def test_pinned_workers_have_a_cpu_each_also_those_that_replace_others(folder: Path) -> None:
    usable = sorted(os.sched_getaffinity(0))
    count = min(2, len(usable))

    def wait_until_pinned(service: Service, *, without: int = 0) -> list[int]:
        deadline = time.monotonic() + 60
        while True:
            with suppress(ProcessLookupError):  # of one that ended just now
                cpus = {pid: os.sched_getaffinity(pid) for pid in service.workers()}
                if without not in cpus and sorted(cpus.values(), key=min) == [{cpu} for cpu in usable[:count]]:
                    return list(cpus)
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with running(folder, "--workers", str(count), "--pin-workers") as service:
        killed = wait_until_pinned(service)[0]
        os.kill(killed, signal.SIGKILL)
        wait_until_pinned(service, without=killed)
        (admin,) = set(service.processes()) - set(service.workers())
        assert os.sched_getaffinity(admin) == set(usable)
    with running(folder) as service:
        assert os.sched_getaffinity(service.workers()[0]) == set(usable)


def test_more_pinned_workers_than_cpus_are_refused_with_what_to_do(folder: Path) -> None:
    usable = len(os.sched_getaffinity(0))
    settings = Settings((f"file://{folder}",), workers=usable + 1, pin_workers=True)
    with pytest.raises(ServiceMisused, match=f"at most --workers {usable}"):
        serve(settings, lambda _addresses: None)


def test_a_worker_that_replaces_another_answers_nothing_before_it_has_a_release(folder: Path) -> None:
    with running(folder, "--workers", "2") as service:
        wait_until_it_answers(service)
        for _ in range(4):
            before = set(service.workers())
            os.kill(min(before), signal.SIGKILL)
            deadline = time.monotonic() + 60
            replaced = 0
            while replaced < 20:  # requests more, once it is there
                assert time.monotonic() < deadline
                replaced += len(set(service.workers()) - before) > 0
                with suppress(OSError, http.client.HTTPException):  # the dead one's
                    assert service.get("/v1/recommendations/42").status == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stopping_service_finishes_what_it_accepted(folder: Path, workers: str) -> None:
    body = b'{"users": ["42"]}'
    with running(folder, "--workers", workers) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
            head = b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body[:5])
            time.sleep(0.2)
            service.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", service.port), timeout=60)
            connection.sendall(body[5:])
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close" in received
        assert b'"source":"personal"' in received
        assert service.process.wait(timeout=60) == 0


def test_an_idle_client_that_comes_once_more_during_a_stop_is_answered_with_connection_close(folder: Path) -> None:
    request = b"GET /v1/recommendations/42 HTTP/1.1\r\nHost: x\r\n\r\n"
    with running(folder) as service, socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(request)
        assert b"Connection: close" not in connection.recv(65536)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close" in received


def test_workers_do_not_outlive_a_killed_parent(folder: Path) -> None:
    with running(folder, "--workers", "2") as service:
        orphans = service.workers()
        service.process.kill()
        service.process.wait()
        deadline = time.monotonic() + 60
        while any(is_alive(pid) for pid in orphans):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_service_whose_parent_was_killed_can_be_started_again_at_once(folder: Path) -> None:
    with running(folder, "--workers", "2") as service:
        orphans = service.workers()
        connected = socket.create_connection(("127.0.0.1", service.port), timeout=60)  # an orphan has a client still
        assert len(orphans) == 2
        service.process.kill()
        with reserve("127.0.0.1", service.port) as again:
            again.listen()
            socket.create_connection(("127.0.0.1", service.port), timeout=60).close()
        reserve("127.0.0.1", service.admin_port, shared=False).close()
        connected.close()
        service.process.wait()


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ("a..b", "cannot be resolved"),
        ("192.0.2.1", "Cannot assign requested address; give --host an address of this machine"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_told_what_is_so(host: str, sentence: str) -> None:
    with pytest.raises(CannotListen, match=sentence) as caught:
        reserve(host, 8080)
    assert "--port" not in str(caught.value)


def test_a_port_that_takes_a_right_is_told_so() -> None:
    refused = OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert "grant the right" in _why_not(refused, "127.0.0.1", 80)


def test_a_port_in_use_is_one_sentence_even_where_it_could_be_shared(capsys: pytest.CaptureFixture[str]) -> None:
    with reserve("127.0.0.1", 0) as held:
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(CannotListen) as caught:
            reserve("127.0.0.1", port)
    assert print_error(caught.value, as_json=False) == 1
    printed = capsys.readouterr().err
    sentence = f"127.0.0.1 port {port} cannot be listened on: Address already in use"
    assert " ".join(printed.split()) == f"hotplate: {sentence}; choose another with --port or HOTPLATE_PORT."


def test_a_service_on_an_empty_store_is_not_ready_until_something_is_published(tmp_path: Path) -> None:
    with running(tmp_path / "store") as service:
        answer = service.get("/v1/recommendations/42")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "hotplate publish" in answer.json["detail"]
        assert service.get("/readyz").status == 503
        assert service.get("/livez").status == 200
        asyncio.run(publish_lists(tmp_path / "store", {"user:42": a_list("a")}))
        deadline = time.monotonic() + 60
        while service.get("/readyz").status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert service.get("/v1/recommendations/42").json["source"] == "personal"


def test_a_store_whose_catalogue_breaks_is_degraded_and_goes_on_serving(folder: Path) -> None:
    with running(folder) as service:
        record = folder / "catalogue.json"
        good = record.read_bytes()
        replace(record, b"{")
        deadline = time.monotonic() + 60
        while (ready := service.get("/readyz")).json["status"] != "degraded":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert ready.status == 200
        assert service.get("/v1/recommendations/42").json["source"] == "personal"
        while b'hotplate_degraded{worker="0"} 1.0' not in service.admin("/metrics").body:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        replace(record, good)
        while service.get("/readyz").json["status"] != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert service.log.read_text().count('"level":"warning"') == 1


def cut(store: Path, release: str) -> Path:
    """Cut the file of a release to half, in place, as a careless copy does."""
    path = store / "releases" / f"{incarnation_of(store, release)}.mdb"
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)
    return path


def incarnation_of(store: Path, release: str) -> str:
    async def read() -> str:
        opened = LmdbStore(store)
        found = (await opened.catalogue()).find(ReleaseId(release)).ref.incarnation
        await opened.close()
        return found

    return asyncio.run(read())


def until_answered(service: Service, path: str, **wanted: str) -> None:
    """Request a path until its answer has the fields *wanted*; a worker may die of the request meanwhile."""
    deadline = time.monotonic() + 60
    answer: object = None
    while True:
        try:
            answer = service.get(path).json
        except (OSError, http.client.HTTPException) as error:
            answer = error
        if isinstance(answer, dict) and wanted.items() <= answer.items():
            return
        assert time.monotonic() < deadline, answer
        time.sleep(0.02)


USERS = 2000
MANY = {f"user:{n:04}": a_list(*(f"item-{m}-{n}" for m in range(20))) for n in range(USERS)}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_is_cut_under_its_readers_is_refused_and_the_next_tier_serves(tmp_path: Path, workers: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    release = asyncio.run(publish_lists(first, MANY))
    asyncio.run(publish_lists(second, MANY))
    stores = ("--store", f"file://{first}", "--store", f"file://{second}")
    with serving(tmp_path, *stores, "--workers", workers) as service:
        until_answered(service, "/v1/recommendations/0001", tier="file", source="personal")
        path = cut(first, release)
        for n in range(0, USERS, 10):
            until_answered(service, f"/v1/recommendations/{n:04}", source="personal")
        until_answered(service, f"/v1/recommendations/{USERS - 1:04}", tier="file-2", source="personal")
        until_answered(service, "/readyz", status="degraded")
        dead = service.log.read_text().count("ended with -7")
        for n in range(USERS):
            service.get(f"/v1/recommendations/{n:04}")
        log = service.log.read_text()
        assert log.count("ended with -7") == dead <= int(workers)
        assert log.count(f"{path} is not whole any more") == 1
        assert service.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_is_cut_in_the_only_store_leaves_its_popular_lists_until_another_release(
    tmp_path: Path, workers: str
) -> None:
    store = tmp_path / "store"
    release = asyncio.run(publish_lists(store, MANY | {"popular:vip": a_list("v1", "v2")}))
    with running(store, "--workers", workers) as service:
        until_answered(service, "/v1/recommendations/0001", source="personal")
        cut(store, release)
        for worker in service.workers():
            os.kill(worker, signal.SIGKILL)  # as their next read of the file would
        deadline = time.monotonic() + 60
        wait_until_it_answers(service)
        for _ in range(20):
            popular = service.get("/v1/popular?segment=vip")
            assert (popular.status, popular.json.get("release")) == (200, release)
            assert [item["id"] for item in popular.json["items"]] == ["v1", "v2"]
            personal = service.get("/v1/recommendations/0001").json
            assert (personal["source"], [item["id"] for item in personal["items"]]) == ("popular", ["p1", "p2", "p3"])
        many = service.request("POST", "/v1/recommendations", b'{"users": ["0001", "0002"]}').json["results"]
        assert [one["source"] for one in many] == ["popular"] * 2
        assert service.request("POST", "/score", b'{"data": [["0001", "1"]]}').status == 503
        ready = service.get("/readyz")
        assert (ready.status, ready.json["status"]) == (200, "degraded")
        while "was cut" not in str(service.states()):  # the worker has just begun
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while len(standing := service.workers()) < int(workers):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        second = asyncio.run(publish_lists(store, MANY))
        for _ in standing:
            until_answered(service, "/v1/recommendations/0001", source="personal", release=second)
        assert service.workers() == standing


class NeverReady:
    """A reader whose stores have no release."""

    async def wait_until_attempted(self) -> None:
        pass

    async def wait_until_ready(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)
        raise NotReady("there is no release")


@pytest.mark.parametrize(("other", "waits"), [("ready", True), ("degraded", True), ("starting", False), ("", False)])
def test_a_worker_without_a_release_waits_only_while_another_answers(other: str, *, waits: bool) -> None:
    states = SharedStates(2, 1)

    async def waited_s(loop: VirtualLoop) -> float:
        if other:
            states.write(0, WorkerState(1, other, 0.0, time.monotonic() + 1000, 0.0, 0, [], [], {}))
        started = loop.time()
        await _prepared(cast("TieredReader", NeverReady()), states, 1)
        return loop.time() - started

    assert in_virtual_time(waited_s) == pytest.approx(10.0 if waits else 0.0, abs=0.2)
