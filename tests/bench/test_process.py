"""Servers of a measurement, their ports and environment, and how progress is shown."""

import io
import os
import signal
import sys

import pytest
from rich.console import Console

from hotplate.bench.errors import BenchFailed
from hotplate.bench.measure.progress import progress_display
from hotplate.bench.process import Server, environment, fetch, free_port, serving, store_counts
from tests.support.processes import run_process
from tests.support.service import is_alive, until

CLAIM = "import sys; from hotplate.bench.process import claim_port; print(claim_port(int(sys.argv[1])))"


def claimed_by_another(port: int) -> bool:
    """Have another process, which ends at once, claim a port; return whether it could."""
    done = run_process(sys.executable, "-c", CLAIM, port)
    return done.stdout == "True\n"


def test_free_port_is_not_handed_out_twice_before_a_server_listens() -> None:
    assert not claimed_by_another(free_port())


def test_failed_server_start_shows_its_output() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such store')"]
    with pytest.raises(RuntimeError, match="no such store"), serving(command, free_port(), "/"):
        pass


def test_measured_processes_get_no_hotplate_or_polars_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTPLATE_FACTORS", "2")
    monkeypatch.setenv("_RJEM_MALLOC_CONF", "dirty_decay_ms:500")  # polars sets it on import
    monkeypatch.setenv("OTHER", "1")
    assert not {"HOTPLATE_FACTORS", "_RJEM_MALLOC_CONF"} & environment().keys()
    assert environment()["OTHER"] == "1"


def test_sigterm_acts_as_ctrl_c_during_a_measurement() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), progress_display(Console(file=io.StringIO())):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


# A server with a child that uses CPU for a while, and ends only if it is told to.
PARENT = '''\
import http.server, subprocess, sys, time
BUSY = """
import sys, time
while time.process_time() < 0.1:
    pass
print(flush=True)
sys.stdin.readline() or time.sleep(600)
"""
child = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/end":
            child.communicate(b"end\\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
'''


def test_cpu_of_a_replaced_process_still_counts() -> None:
    """It vanished, and the CPU of a run in which a worker ended was negative."""
    port = free_port()
    with serving([sys.executable, "-c", PARENT, str(port)], port, "/") as server:
        assert len(list(server.pids())) == 2
        before_s = server.cpu_s()
        assert before_s > 0.1
        fetch(f"{server.url}/end")
        assert len(list(server.pids())) == 1
        assert server.cpu_s() > before_s - 0.05  # it is counted in 10 ms then


def test_processes_of_a_server_end_with_it_even_if_it_died_first() -> None:
    """Its children kept running, because only the leader of their group was stopped."""
    port = free_port()
    with serving([sys.executable, "-c", PARENT, str(port)], port, "/") as server:
        (child,) = set(server.pids()) - {server.group}
        os.kill(server.group, signal.SIGKILL)
    until(lambda: not is_alive(child))


def test_a_service_that_ended_is_a_failed_measurement() -> None:
    """It was a connection error, which is not caught where measured levels are kept."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(BenchFailed, match="did the server end"):
        store_counts(Server(nowhere, os.getpgrp(), nowhere))
