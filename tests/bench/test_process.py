import subprocess
import sys

import pytest

from bench.process import Server, free_port, serving
from bench.report import machine

CLAIM = "import sys; from bench.process import claim_port; print(claim_port(int(sys.argv[1])))"

# Three processes that share 64 MB, which the first has written and the others only inherit.
SHARED = """
import os, sys
shared = b"x" * 64_000_000
os.fork() and os.fork()
os.write(1, b"%d\\n" % os.getpid())  # at once, as three write to one pipe
sys.stdin.read()
"""


def claimed_by_another(port: int) -> bool:
    """Have another process, which ends at once, claim a port; return whether it could."""
    done = subprocess.run([sys.executable, "-c", CLAIM, str(port)], capture_output=True, text=True, check=True)
    return done.stdout == "True\n"


def test_a_port_that_was_found_is_given_to_no_other_process_even_before_a_server_listens() -> None:
    assert not claimed_by_another(free_port())


def test_a_claim_ends_with_its_process() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "from bench.process import free_port; print(free_port())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert claimed_by_another(int(found.stdout))


def test_a_page_that_forked_processes_share_is_counted_once() -> None:
    command = [sys.executable, "-c", SHARED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0, text=True) as first:
        assert first.stdout is not None
        running = {int(first.stdout.readline()) for _ in range(3)}
        taken = Server("", first.pid).memory_bytes()
        first.communicate()
    assert len(running) == 3
    assert 64_000_000 < taken < 120_000_000
    assert Server("", first.pid).memory_bytes() == 0


def test_a_server_that_does_not_start_is_an_error_with_its_own_words() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such store')"]
    with pytest.raises(RuntimeError, match="no such store"), serving(command, free_port(), "/"):
        pass


def test_the_machine_is_described() -> None:
    described = machine.describe()
    assert described["python"].startswith("3.")
    assert "aiohttp" in described["versions"]
    assert all(described[name] for name in ("date", "cpu", "cores"))


def test_hotplates_own_settings_do_not_reach_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTPLATE_FACTORS", "2")
    monkeypatch.setenv("OTHER", "1")
    assert "HOTPLATE_FACTORS" not in machine.environment()
    assert machine.environment()["OTHER"] == "1"
