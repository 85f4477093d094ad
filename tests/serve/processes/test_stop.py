"""A stop that nobody notices: no request is refused while others learn of it, no connection reset at the end."""

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.balancer import balanced
from tests.support.service import a_list, publish_lists, running

PATH = "/v1/recommendations/42"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    asyncio.run(publish_lists(tmp_path / "store", {"user:42": a_list("a", "b")}))
    return tmp_path / "store"


def test_a_rolling_restart_behind_a_load_balancer_refuses_no_request(folder: Path) -> None:
    options = ("--workers", "2", "--drain-delay", "5")  # so long does the balancer have to see that an instance drains
    with (
        running(folder, *options) as first,
        running(folder, *options) as second,
        balanced(first.port, second.port, path=PATH) as balancer,
    ):
        time.sleep(0.3)
        first.process.send_signal(signal.SIGTERM)
        with running(folder, *options) as third:
            balancer.ports.append(third.port)
            assert first.process.wait(timeout=30) == 0
            second.process.send_signal(signal.SIGTERM)
            assert second.process.wait(timeout=30) == 0
            deadline = time.monotonic() + 20
            while balancer.ready != [third.port]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            balancer.over.set()
    assert set(balancer.outcomes) == {"200"}, balancer.outcomes


def test_a_draining_service_says_so_and_goes_on_answering_until_an_interrupt(folder: Path) -> None:
    with running(folder, "--workers", "2", "--drain-delay", "600") as service:
        deadline = time.monotonic() + 20
        for status in ("ready", "draining"):
            while {state["status"] for state in service.states()} != {status}:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            if status == "ready":
                service.process.send_signal(signal.SIGTERM)
        for _ in range(20):
            ready = service.get("/readyz")
            assert (ready.status, ready.json) == (503, {"status": "draining"})
            answer = service.get(PATH)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert (service.get("/livez").status, service.admin("/readyz").status) == (200, 503)
        service.process.kill()  # its workers end with it; the delay is not theirs to wait for
        service.process.wait()


def test_an_interrupt_stops_a_service_without_the_delay(folder: Path) -> None:
    with running(folder, "--workers", "2", "--drain-delay", "600") as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(timeout=30) == 0


ADOPTING = """
import ctypes, os, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
if (orphan := os.fork()) == 0:
    # A process between this one and its own child ends at once, so that the child is this one's to bury.
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "0.5"])
    os._exit(0)
os.execv(sys.executable, [sys.executable, "-m", "hotplate", "serve", *sys.argv[1:]])
"""


def test_a_parent_that_is_given_children_it_did_not_start_buries_them_and_serves_on(folder: Path) -> None:
    with running(folder, "--workers", "2", launcher=(sys.executable, "-c", ADOPTING)) as service:
        deadline = time.monotonic() + 20
        while len(before := service.workers()) < 2:  # the first has answered; the second may have no name yet
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while len(service.processes()) > 3:  # the workers and the admin process; zombies count, too
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert service.get(PATH).status == 200
        assert service.workers() == before
        assert service.stop() == 0
