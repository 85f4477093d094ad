"""The processes of a service: replaced when they die, graceful when they stop, silent about other people's ports."""

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from hotplate.cli.terminal import print_error
from serve.process import PortInUse, reserve
from tests.support.service import Service, a_list, publish_lists, running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    asyncio.run(publish_lists(tmp_path / "store", {"user:42": a_list("a", "b")}))
    return tmp_path / "store"


def workers_of(service: Service) -> list[int]:
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def replace(path: Path, content: bytes) -> None:
    """Change a file as a whole, so that no reader sees a part of it."""
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").rename(path)


def wait_until_it_answers(service: Service) -> None:
    deadline = time.monotonic() + 20
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
        before = workers_of(service)
        assert len(before) == 2
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until_it_answers(service)
        deadline = time.monotonic() + 20
        while len(set(workers_of(service)) - set(before)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        text = service.get("/metrics").body.decode()
        assert 'hotplate_lookups_total{outcome="hit",source="personal"} 10.0' in text
        assert "ended with -9" in service.log.read_text()
        assert service.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stopping_service_finishes_what_it_accepted(folder: Path, workers: str) -> None:
    body = b'{"users": ["42"]}'
    with running(folder, "--workers", workers) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
            head = b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body[:5])
            time.sleep(0.2)
            service.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", service.port), timeout=5)
            connection.sendall(body[5:])
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close" in received
        assert b'"source":"personal"' in received
        assert service.process.wait(timeout=20) == 0


def test_an_idle_client_that_comes_once_more_during_a_stop_is_answered_and_told_to_close(folder: Path) -> None:
    request = b"GET /v1/recommendations/42 HTTP/1.1\r\nHost: x\r\n\r\n"
    with running(folder) as service, socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
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
        orphans = workers_of(service)
        service.process.kill()
        service.process.wait()
        deadline = time.monotonic() + 20
        while any(is_alive(pid) for pid in orphans):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_port_in_use_is_one_sentence_even_where_it_could_be_shared(capsys: pytest.CaptureFixture[str]) -> None:
    with reserve("127.0.0.1", 0) as held:
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            reserve("127.0.0.1", port)
    assert print_error(caught.value, as_json=False) == 1
    printed = capsys.readouterr().err
    sentence = f"127.0.0.1 port {port} cannot be listened on: Address already in use; choose another with --port."
    assert " ".join(printed.split()) == f"hotplate: {sentence}"


def test_a_service_on_an_empty_store_is_not_ready_until_something_is_published(tmp_path: Path) -> None:
    with running(tmp_path / "store") as service:
        answer = service.get("/v1/recommendations/42")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "hotplate publish" in answer.json["detail"]
        assert service.get("/readyz").status == 503
        assert service.get("/livez").status == 200
        asyncio.run(publish_lists(tmp_path / "store", {"user:42": a_list("a")}))
        deadline = time.monotonic() + 20
        while service.get("/readyz").status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert service.get("/v1/recommendations/42").json["source"] == "personal"


def test_a_store_whose_catalogue_breaks_is_degraded_and_goes_on_serving(folder: Path) -> None:
    with running(folder) as service:
        record = folder / "catalogue.json"
        good = record.read_bytes()
        replace(record, b"{")
        deadline = time.monotonic() + 20
        while (ready := service.get("/readyz")).json["status"] != "degraded":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert ready.status == 200
        assert service.get("/v1/recommendations/42").json["source"] == "personal"
        assert b"hotplate_degraded 1.0" in service.get("/metrics").body
        replace(record, good)
        while service.get("/readyz").json["status"] != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert service.log.read_text().count('"level":"warning"') == 1
