"""The processes of a service: replaced when they die, graceful when they stop, and the memory that its files are in."""

import http.client
import os
import signal
import socket
import statistics
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hotplate.serve.connections.listeners import reserve
from hotplate.serve.connections.server import IDLE_GRACE_S
from tests.support.balancer import balanced
from tests.support.limited_service import samples, sockets
from tests.support.page_cache import absent_pages, evict
from tests.support.service import LAUNCHER, Service, a_list, ids, is_alive, published, running, serving, until
from tests.support.soak import in_soak

# System calls of the parent fail while a file exists; each failure appends a byte to it.
FAILING = """
import errno, os, selectors
parent = os.getpid()
owner = {"fork": os, "waitpid": os, "select": selectors.PollSelector}[call]
succeed = getattr(owner, call)
def fail(*arguments):
    if os.getpid() == parent and marker.exists():
        is_first = marker.stat().st_size == 0
        with marker.open("a") as calls:
            calls.write("x")
        number = errno.EAGAIN if is_first else errno.ENOMEM
        raise OSError(number, os.strerror(number))
    return succeed(*arguments)
setattr(owner, call, fail)
"""


@pytest.mark.parametrize("call", ["fork", "waitpid", "select"])
def test_failing_system_call_of_the_parent_ends_nothing(folder: Path, call: str) -> None:
    marker = folder.parent / "failing"
    before = f"import pathlib; marker = pathlib.Path({str(marker)!r}); call = {call!r}\n{FAILING}"
    with running(folder, "--workers", "2", before=before) as service:
        service.until_states("ready", 2)
        killed, kept = service.workers()
        marker.touch()
        os.kill(killed, signal.SIGKILL)
        until(lambda: "Resource temporarily unavailable" in service.log.read_text(), "it is not logged")
        until(lambda: "Cannot allocate memory" in service.log.read_text(), "another failure is not logged")
        assert service.process.poll() is None
        assert is_alive(kept)
        marker.unlink()
        service.until_states("ready", 2)
        assert kept in service.workers()
        assert service.stop() == 0


# The first worker raises an exception before it listens.
FAILING_ONCE = """
from hotplate.serve.lists.reader import TieredReader
wait = TieredReader.wait_until_attempted
async def fail_once(*arguments):
    if not marker.exists():
        marker.touch()
        raise RuntimeError("a defect")
    await wait(*arguments)
TieredReader.wait_until_attempted = fail_once
"""


def test_worker_that_fails_before_it_listens_is_replaced_and_the_service_announced(folder: Path) -> None:
    marker = folder.parent / "failed"
    before = f"import pathlib; marker = pathlib.Path({str(marker)!r})\n{FAILING_ONCE}"
    with running(folder, before=before) as service:
        log = service.log.read_text()
        assert "worker 0 ended with 1;" in log
        assert "RuntimeError: a defect" in log
        (worker,) = service.workers()
        os.kill(worker, signal.SIGKILL)
        until(lambda: service.workers() not in ([worker], []))
        until(service.is_ready)
        assert service.log.read_text().count("for operators on") == 1


def connections_by_worker(service: Service) -> list[float]:
    return [sample.value for sample in samples(service, "hotplate_worker_connections")]


# Workers that leave connections to one that gets no CPU for 25 s, and not for 0.25 s.
YIELDING = "import hotplate.serve.connections.listeners as listeners; listeners.YIELD_S = 0.1"


@pytest.mark.soak
def test_connections_opened_at_once_are_spread_over_workers(folder: Path) -> None:
    with running(folder, "--workers", "2", before=YIELDING) as service:
        service.until_states("ready", 2)
        with sockets(service, 64) as opened:
            for connection in opened:
                connection.sendall(b"GET /v1/recommendations/42 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert all(connection.recv(65_536).startswith(b"HTTP/1.1 200") for connection in opened)
            until(lambda: sum(connections_by_worker(service)) >= len(opened))
            counts = connections_by_worker(service)
            assert min(counts) >= 26, counts


# A parent that replaces no silent worker.
PATIENT = "import hotplate.serve.processes.supervisor as parent; parent.STUCK_S = parent.STUCK_BESIDE_OTHERS_S = 3600.0"


@pytest.mark.soak
def test_suspended_worker_blocks_no_connection(folder: Path) -> None:
    with running(folder, "--workers", "2", before=PATIENT) as service:
        service.until_states("ready", 2)
        stopped, _ = service.workers()
        os.kill(stopped, signal.SIGSTOP)
        durations_s = list[float]()
        for _ in range(500):  # an answer of the suspended worker would not come
            sent = time.monotonic()
            assert service.get("/v1/recommendations/42").status == 200
            durations_s.append(time.monotonic() - sent)
        assert statistics.median(durations_s) < 1
        assert stopped in service.workers()
        os.kill(stopped, signal.SIGCONT)


# Each worker that starts after a file was made fails, and the parent has little patience.
FAILING_STARTS = """
import hotplate.serve.processes.health as health
import hotplate.serve.processes.supervisor as supervisor
supervisor.STUCK_S = supervisor.STUCK_BESIDE_OTHERS_S = 3.0
health.RESTART_S = (0.1, 1.0)
work = supervisor.run_worker
async def fail(*arguments):
    if marker.exists():
        raise RuntimeError("a defect")
    await work(*arguments)
supervisor.run_worker = fail
"""


def test_suspended_worker_is_replaced_while_another_one_fails_to_start(folder: Path) -> None:
    marker = folder.parent / "failing"
    before = f"import pathlib; marker = pathlib.Path({str(marker)!r})\n{FAILING_STARTS}"
    with running(folder, "--workers", "2", before=before) as service:
        service.until_states("ready", 2)
        suspended, killed = service.workers()
        marker.touch()
        os.kill(killed, signal.SIGKILL)
        os.kill(suspended, signal.SIGSTOP)
        until(lambda: suspended not in service.processes(), "the suspended worker stays")
        marker.unlink()
        service.until_states("ready", 2)


def test_replacement_worker_serves_only_after_loading_and_metrics_stay(folder: Path) -> None:
    with running(folder, "--workers", "2") as service:
        until(service.is_ready)
        for _ in range(10):
            service.get("/v1/popular")
        for _ in range(2):
            before = set(service.workers())
            os.kill(min(before), signal.SIGKILL)
            deadline = time.monotonic() + 60
            replaced = 0
            while replaced < 20:  # requests more, once it is there
                assert time.monotonic() < deadline
                replaced += len(set(service.workers()) - before) > 0
                with suppress(OSError, http.client.HTTPException):  # the dead one's
                    assert service.get("/v1/recommendations/42").status == 200
        counted = 'hotplate_lookups_total{outcome="hit",source="popular"} 10.0'
        assert counted in service.admin("/metrics").body.decode()
        assert "ended with -9" in service.log.read_text()
        assert service.stop() == 0


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # the kernel resets a handshake during which the last copy of the socket is closed
        return False
    return False


def test_a_stopping_service_finishes_what_it_accepted(folder: Path) -> None:
    body = b'{"users": ["42"]}'
    with running(folder, "--workers", "2", "--drain", "60") as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
            head = b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body[:5])
            time.sleep(0.2)
            service.process.send_signal(signal.SIGTERM)
            until(lambda: is_refused(service.port), "it goes on listening")
            time.sleep(2 * IDLE_GRACE_S)  # idle clients have less time
            connection.sendall(body[5:])
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close" in received
        assert b'"source":"personal"' in received
        assert service.process.wait(timeout=60) == 0


def test_stalled_request_delays_a_stop_by_the_drain_at_most(folder: Path) -> None:
    with running(folder, "--drain", "0") as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
            connection.sendall(b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            time.sleep(0.2)
            assert service.stop() == 0
        assert "worker 0 ended with 0" in service.log.read_text()  # it exited, and was not killed


def test_second_signal_ends_a_stopping_service_at_once(folder: Path) -> None:
    with running(folder, "--workers", "2", "--drain-delay", "3600", launcher=LAUNCHER) as service:
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.health("/readyz").status == 503)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=60) == 0
        assert "Exception ignored" not in service.log.read_text()


def test_signals_during_the_exit_do_not_change_its_status(folder: Path) -> None:
    with running(folder, launcher=LAUNCHER) as service:
        service.process.send_signal(signal.SIGTERM)
        until(lambda: "admin process ended" in service.log.read_text(), "it does not stop")
        while service.process.poll() is None:
            service.process.send_signal(signal.SIGTERM)
        assert service.process.wait() == 0


def test_idle_client_request_during_stop_gets_connection_close(folder: Path) -> None:
    request = b"GET /v1/recommendations/42 HTTP/1.1\r\nHost: x\r\n\r\n"
    more_grace = "import hotplate.serve.connections.server as server; server.IDLE_GRACE_S = 60.0"
    with (
        running(folder, "--drain", "60", before=more_grace) as service,
        socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection,
    ):
        connection.sendall(request)
        assert b"Connection: close" not in connection.recv(65536)
        service.process.send_signal(signal.SIGTERM)
        received = b""
        while b"Connection: close" not in received:  # it may not know of the stop yet
            connection.sendall(request)
            received = connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 OK")
        assert connection.recv(65536) == b""


def test_service_restarts_after_parent_is_killed_and_old_workers_exit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotplate.serve.connections.listeners.PORT_WAIT_S", 60.0)
    with running(folder, "--workers", "2") as service:
        orphans = service.workers()
        connected = socket.create_connection(("127.0.0.1", service.port), timeout=60)  # an orphan has a client still
        assert len(orphans) == 2
        service.process.kill()
        with reserve("127.0.0.1", service.port) as again:
            again.listen()
            socket.create_connection(("127.0.0.1", service.port), timeout=60).close()
        reserve("127.0.0.1", service.admin_port).close()
        until(lambda: not any(is_alive(pid) for pid in orphans))
        connected.close()
        service.process.wait()


def cut(store: Path) -> Path:
    """Cut the one release of a store to half, in place, as a careless copy does; return its file."""
    (path,) = store.glob("releases/*.mdb")
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)
    return path


def until_answered(service: Service, path: str, **wanted: str) -> None:
    """Request a path until its answer has the fields *wanted*; the request may kill a worker."""

    def is_so() -> bool:
        with suppress(OSError, http.client.HTTPException):
            return bool(wanted.items() <= service.get(path).json.items())
        return False

    until(is_so, f"{path} is not answered with {wanted}")


USERS = 2000
MANY = {f"user:{n:04}": a_list(*(f"item-{m}-{n}" for m in range(20))) for n in range(USERS)}


@pytest.mark.parametrize("workers", ["1", in_soak("2")])
def test_truncated_file_is_rejected_and_the_next_tier_serves(tmp_path: Path, workers: str) -> None:
    first = tmp_path / "first"
    second = tmp_path / "second"
    published(first, MANY)
    published(second, MANY)
    stores = ("--store", f"file://{first}", "--store", f"file://{second}")
    with serving(tmp_path, *stores, "--workers", workers) as service:
        until_answered(service, "/v1/recommendations/0001", tier="file", source="personal")
        cut(first)
        for n in range(0, USERS, 10):
            until_answered(service, f"/v1/recommendations/{n:04}", source="personal")

        def have_rejected() -> bool:
            """Request a list of the cut part, and return whether all workers say that the file was cut."""
            with suppress(OSError, http.client.HTTPException):
                service.get(f"/v1/recommendations/{USERS - 1:04}")
            return all("was cut" in str(state) for state in service.states())

        until(have_rejected, "a worker keeps the file")
        until_answered(service, f"/v1/recommendations/{USERS - 1:04}", tier="file-2", source="personal")
        until_answered(service, "/readyz", status="degraded")
        dead = service.log.read_text().count("ended with -7")
        for n in range(0, USERS, 7):
            service.get(f"/v1/recommendations/{n:04}")
        log = service.log.read_text()
        assert log.count("ended with -7") == dead <= int(workers)
        assert service.stop() == 0


@pytest.mark.parametrize("workers", [in_soak("1"), "2"])
def test_truncated_only_store_serves_popular_lists_until_the_next_release(tmp_path: Path, workers: str) -> None:
    store = tmp_path / "store"
    release = published(store, MANY | {"popular:vip": a_list("v1", "v2")})
    with running(store, "--workers", workers) as service:
        until_answered(service, "/v1/recommendations/0001", source="personal")
        cut(store)
        for worker in service.workers():
            os.kill(worker, signal.SIGKILL)  # as their next read of the file would
        until(service.is_ready)
        for _ in range(20):
            popular = service.get("/v1/popular?segment=vip")
            assert (popular.status, popular.json.get("release")) == (200, release)
            assert ids(popular) == ["v1", "v2"]
            personal = service.get("/v1/recommendations/0001").json
            assert (personal["source"], ids(personal)) == ("popular", ["p1", "p2", "p3"])
        many = service.post("/v1/recommendations", b'{"users": ["0001", "0002"]}').json["results"]
        assert [answer["source"] for answer in many] == ["popular"] * 2
        assert service.post("/score", b'{"data": [["0001", "1"]]}').status == 503
        ready = service.get("/readyz")
        assert (ready.status, ready.json["status"]) == (200, "degraded")
        until(lambda: "was cut" in str(service.states()))  # the worker has just begun
        until(lambda: len(service.workers()) == int(workers))
        standing = service.workers()
        second = published(store, MANY)
        for _ in standing:
            until_answered(service, "/v1/recommendations/0001", source="personal", release=second)
        assert service.workers() == standing


def end_drain_delay(service: Service) -> None:
    """Let the workers of a service that drains finish their requests and end."""
    for worker in service.workers():
        os.kill(worker, signal.SIGINT)


@pytest.mark.soak
def test_a_rolling_restart_behind_a_load_balancer_refuses_no_request(folder: Path) -> None:
    options = ("--workers", "2", "--drain-delay", "600")  # it ends once the balancer has noticed the drain
    with (
        running(folder, *options) as first,
        running(folder, *options) as second,
        balanced(first.port, second.port, path="/v1/recommendations/42") as balancer,
    ):
        until(lambda: balancer.outcomes["200"] >= 100)
        first.process.send_signal(signal.SIGTERM)
        with running(folder, "--workers", "2") as third:
            balancer.ports.append(third.port)
            balancer.until_only(second.port, third.port)
            end_drain_delay(first)
            assert first.process.wait(timeout=60) == 0
            second.process.send_signal(signal.SIGTERM)
            balancer.until_only(third.port)
            end_drain_delay(second)
            assert second.process.wait(timeout=60) == 0
            balancer.stop()
    assert set(balancer.outcomes) == {"200"}, balancer.outcomes


ADOPTING = """
import ctypes, os
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
if (orphan := os.fork()) == 0:
    # A process between this one and its own child ends at once, so that the child is this one's to bury.
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "0.5"])
    os._exit(0)
"""


def test_parent_reaps_adopted_children_and_keeps_serving(folder: Path) -> None:
    with running(folder, "--workers", "2", before=ADOPTING) as service:
        before = service.workers()
        until(lambda: len(service.processes()) <= 3)  # the workers and the admin process; zombies count, too
        assert service.get("/v1/recommendations/42").status == 200
        assert service.workers() == before
        assert service.stop() == 0


LISTS = {f"user:{n:06}": b'[{"id":"%s"}]' % (b"x" * 400) for n in range(5000)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Publish a release and drop its pages from memory, as after a reboot."""
    folder = tmp_path / "store"
    published(folder, LISTS)
    evict(file_of(folder))
    return folder


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("releases/*.mdb")
    return path


def test_release_is_in_memory_before_readiness_after_a_reboot(store: Path) -> None:
    assert absent_pages(file_of(store)) > 100
    evict(file_of(store))
    with running(store, "--workers", "2") as service:
        assert service.get("/readyz").status == 200
        assert absent_pages(file_of(store)) == 0
        assert service.get("/v1/recommendations/004711").json["source"] == "personal"
