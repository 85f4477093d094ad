"""The health listener: it reports the state of all workers, while they hang, die, or hold connections."""

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from hotplate.serve.access.keys import create
from hotplate.serve.processes.health import LOOK_S, START_S, Child, Health
from hotplate.serve.processes.readiness import Status
from hotplate.serve.processes.states import ProcessState, SharedStates
from tests.support.clock import FakeClock
from tests.support.limited_service import counted
from tests.support.redis_server import certify
from tests.support.service import LAUNCHER, Service, a_list, published, running, status_of, until

PATHS = ("/livez", "/readyz", "/health/live", "/health/ready")


def probe(service: Service, path: str, method: str = "GET") -> int:
    """Return the status that a probe is answered with; 0 for no answer."""
    return status_of(service.health_port, path, method)


# A parent that replaces no silent worker.
PATIENT = """
import hotplate.serve.processes.supervisor as supervisor
supervisor.STUCK_S = supervisor.STUCK_BESIDE_OTHERS_S = 3600.0
"""


def test_hanging_worker_is_reported_and_one_of_two_does_not_stop_the_service(folder: Path) -> None:
    with running(folder, "--workers", "2", before=PATIENT) as service:
        until(lambda: len(service.workers()) == 2, "there are no two workers")
        until(lambda: probe(service, "/readyz") == 200, "it is not ready")
        workers = service.workers()
        try:
            os.kill(workers[0], signal.SIGSTOP)
            assert probe(service, "/livez") == probe(service, "/readyz") == 200
            os.kill(workers[1], signal.SIGSTOP)
            until(lambda: probe(service, "/livez") == 503, "nothing says that no worker lives")
            assert probe(service, "/readyz") == 503
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
        until(lambda: probe(service, "/livez") == probe(service, "/readyz") == 200, "it is not alive again")

        def is_shown() -> bool:
            ready = service.admin("/readyz").json
            statuses = [ready["status"], *(state["status"] for state in ready["workers"])]
            return (
                statuses == ["degraded", "silent", "ready"]
                and counted(service, "hotplate_worker_up") == counted(service, "hotplate_degraded") == 1
            )

        os.kill(workers[0], signal.SIGSTOP)
        until(is_shown, "it can hide")
        os.kill(workers[0], signal.SIGCONT)


def test_probes_use_plain_http_without_a_key_and_survive_admin_process_death(folder: Path, tmp_path: Path) -> None:
    certify(tmp_path)
    create(tmp_path / "keys.json", "web", ["read"])
    options = ("--keys", str(tmp_path / "keys.json"), "--tls-cert", str(tmp_path / "server.pem"))
    with running(folder, *options, "--tls-key", str(tmp_path / "server.key")) as service:
        until(lambda: probe(service, "/readyz") == 200, "it is not ready")
        assert [probe(service, f"{path}?verbose", method) for path in PATHS for method in ("GET", "HEAD")] == [200] * 8
        with socket.create_connection(("127.0.0.1", service.health_port)) as connection:
            connection.sendall(b"HEAD /livez HTTP/1.1\r\n\r\n")
            assert connection.makefile("rb").read().endswith(b"Connection: close\r\n\r\n"), "it has a body"
        assert probe(service, "/livez", "POST") == 405
        assert probe(service, "/metrics") == probe(service, "/v1/popular") == 404
        (admin,) = set(service.processes()) - set(service.workers())
        os.kill(admin, signal.SIGKILL)
        until(lambda: "admin process ended" in service.log.read_text(), "the death is not noticed")
        assert [probe(service, path) for path in PATHS] == [200] * 4


def test_service_without_a_release_is_live_but_not_ready_until_one_exists(tmp_path: Path) -> None:
    with running(tmp_path / "store", "--workers", "2") as service:
        for _ in range(10):
            assert (probe(service, "/livez"), probe(service, "/readyz")) == (200, 503)
        answer = service.get("/v1/recommendations/42")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "hotplate publish" in answer.json["detail"]
        assert (service.get("/livez").status, service.get("/readyz").status) == (200, 503)
        published(tmp_path / "store", {"user:42": a_list("a")})
        until(lambda: probe(service, "/readyz") == 200, "it is not ready")
        until(service.is_ready)
        assert service.get("/v1/recommendations/42").json["source"] == "personal"


# Tests that run under nohup would have the service ignore SIGHUP, too.
WITH_SIGHUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_draining_service_is_live_but_not_ready_for_either_signal(folder: Path, number: signal.Signals) -> None:
    with running(folder, "--workers", "2", "--drain-delay", "600", before=WITH_SIGHUP) as service:
        service.until_states("ready", 2)
        service.process.send_signal(number)
        service.until_states("draining", 2)
        until(lambda: probe(service, "/readyz") != 200, "probes do not say so")
        assert (probe(service, "/livez"), probe(service, "/readyz")) == (200, 503), service.process.poll()
        for _ in range(20):
            ready = service.get("/readyz")
            assert (ready.status, ready.json) == (503, {"status": "draining"})
            answer = service.get("/v1/recommendations/42")
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert (service.get("/livez").status, service.admin("/readyz").status) == (200, 503)
        service.process.send_signal(signal.SIGINT)
        service.process.wait(60)


def test_service_under_nohup_survives_its_terminal(folder: Path) -> None:
    with running(folder, launcher=("nohup", *LAUNCHER)) as service:
        for pid in (service.process.pid, *service.processes()):
            os.kill(pid, signal.SIGHUP)
        workers = service.workers()
        for _ in range(10):
            assert service.get("/v1/recommendations/42").status == 200
        assert service.workers() == workers
        assert service.stop() == 0


# A parent that has little patience with the processes named in a file, and much with others, which may stand still; and
# workers that loop for ever after SIGUSR1.
IMPATIENT = """
import signal
import hotplate.serve.processes.supervisor as supervisor
import hotplate.serve.processes.worker as worker
supervisor.STUCK_S = 5.0
class Impatient(supervisor._Supervisor):
    def _patience_s(self, child):
        return super()._patience_s(child) if str(child.pid) in stuck.read_text().split() else 3600.0
supervisor._Supervisor = Impatient
def endless_loop(*_):
    while True:
        pass
work = worker.run_worker
def catching(*arguments, **more):
    signal.signal(signal.SIGUSR1, endless_loop)
    return work(*arguments, **more)
supervisor.run_worker = catching
"""


@pytest.mark.soak
def test_stuck_processes_are_replaced_one_at_a_time_with_their_stack_logged(folder: Path, tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    stuck.touch()
    before = f"import pathlib; stuck = pathlib.Path({str(stuck)!r})\n{IMPATIENT}"
    with running(folder, "--workers", "2", before=before) as service:
        service.until_states("ready", 2)
        workers = service.workers()
        (admin,) = set(service.processes()) - set(workers)
        os.kill(admin, signal.SIGSTOP)
        stuck.write_text(str(admin))
        until(lambda: admin not in service.processes(), "the stuck admin process stays")
        until(lambda: len(service.processes()) == 3, "it is not replaced")
        until(lambda: service.admin("/readyz").json["status"] == "ready", "the new one says nothing else")
        assert service.workers() == workers
        stopped, looping = workers
        os.kill(stopped, signal.SIGSTOP)
        os.kill(looping, signal.SIGUSR1)
        stuck.write_text(f"{stopped} {looping}")
        until(lambda: not {stopped, looping} & set(service.workers()), "stuck workers stay")
        service.until_states("ready", 2)
        for _ in range(20):
            assert service.get("/v1/recommendations/42").status == 200
        log = service.log.read_text()
        assert "in endless_loop" in log
        told = [line for line in log.splitlines() if "has said nothing for" in line or "ended with -" in line]
        lines = [line for line in told if "admin" not in line]
        assert ["said nothing" in line for line in lines] == [True, False, True, False], lines


def test_silence_counts_only_while_the_parent_listens(clock: FakeClock) -> None:
    states = SharedStates(2, tiers=1)
    first, second, admin = (Child(number, "a process") for number in range(3))
    health = Health(states, [first, second], admin, clock)

    def is_any_alive() -> bool:
        return health.live()[0] == 200

    def report(worker: int) -> None:
        states.write(worker, ProcessState(1, Status.READY, 0.0, clock.now, 0.0, [], {}))

    def passes(seconds: int, *, of: int | None = None) -> None:
        for _ in range(seconds):
            clock.now += 1
            if of is not None:
                report(of)
            health.look()

    passes(int(START_S))
    assert is_any_alive()
    assert not first.reported_at
    passes(1)
    assert not is_any_alive(), "it has never said anything"
    passes(20, of=0)
    assert (first.silent_s, second.silent_s) == (0.0, START_S + 21)
    assert is_any_alive()
    clock.now += 3600  # the parent stood still, and perhaps all
    health.look()
    assert first.silent_s == LOOK_S
    assert is_any_alive()
    passes(10)
    assert first.silent_s == LOOK_S + 10
    assert not is_any_alive()
    second.begin(1)
    assert second.silent_s == 0.0


@pytest.mark.parametrize("start_s", [1, 20])
def test_silence_does_not_grow_while_another_worker_starts(clock: FakeClock, start_s: int) -> None:
    states = SharedStates(3, tiers=1)
    failing, stuck, slow, admin = (Child(number, "a process") for number in range(4))
    health = Health(states, [failing, stuck, slow], admin, clock)

    def report(worker: Child) -> None:
        states.write(worker.number, ProcessState(1, Status.READY, 0.0, clock.now, 0.0, [], {}))

    for worker in (stuck, slow):
        worker.begin(1)
        report(worker)
    health.look()
    for _ in range(20):
        failing.begin(1)
        for _ in range(start_s):  # both are held up
            clock.now += 1
            health.look()
        failing.pid = 0
        states.clear(failing.number)
        for _ in range(3):
            clock.now += 1
            report(slow)
            health.look()
            assert slow.silent_s == 0.0
    assert stuck.silent_s == 60.0

    failing.begin(1)  # and hangs
    for _ in range(int(START_S)):
        clock.now += 1
        health.look()
    assert slow.silent_s == 0.0
    clock.now += 2
    health.look()
    clock.now += 1
    health.look()
    assert slow.silent_s == 1.0


def test_every_input_gets_one_answer_and_oldest_connection_is_dropped(folder: Path) -> None:
    with running(folder) as service, ExitStack() as stack:

        def connected(sent: bytes) -> socket.socket:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.health_port), timeout=60))
            connection.sendall(sent)
            return connection

        for sent, status in (
            (b"GET /livez HTTP/1.0\r\n\r\n", 200),
            (b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", 200),
            (b"GET http://x/livez HTTP/1.1\r\n\r\n", 404),
            (b"DELETE /livez HTTP/1.1\r\n\r\n", 405),
            (b"\xff\xfe\r\n\r\n", 400),
            (b"GET /livez SPDY/3\r\n\r\n", 400),
            (b"GET /livez HTTP/1.1\r\nX: " + b"y" * 10_000, 400),
        ):
            received = connected(sent).recv(65_536)
            assert received.startswith(b"HTTP/1.1 %d " % status)
            assert b"Connection: close" in received
        split = connected(b"GET /li")
        assert probe(service, "/livez") == 200  # it is there by now
        split.sendall(b"vez HTTP/1.1\r\n\r\n")
        assert split.recv(65_536).startswith(b"HTTP/1.1 200 ")
        held = [connected(b"") for _ in range(17)]
        assert held[0].recv(1) == b""
