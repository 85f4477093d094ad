import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hotplate.bench import machine
from hotplate.bench.process import Server, free_port, raised_priority, serving

CLAIM = "import sys; from hotplate.bench.process import claim_port; print(claim_port(int(sys.argv[1])))"

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
        [sys.executable, "-c", "from hotplate.bench.process import free_port; print(free_port())"],
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


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def priority(pid: int) -> tuple[int, int]:
    return os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)


def test_a_priority_is_raised_as_far_as_allowed_and_taken_back(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    before = priority(sleeper.pid)
    with raised_priority([sleeper.pid]) as got:
        policy, niceness = priority(sleeper.pid)
        assert (policy == os.SCHED_RR) is (got == "real-time priority")
        assert got or (policy, niceness) == before
    assert priority(sleeper.pid) == before
    with pytest.raises(KeyboardInterrupt), raised_priority([sleeper.pid]):
        raise KeyboardInterrupt
    assert priority(sleeper.pid) == before


def test_a_server_that_does_not_start_is_an_error_with_its_own_words() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such store')"]
    with pytest.raises(RuntimeError, match="no such store"), serving(command, free_port(), "/"):
        pass


def test_settings_of_hotplate_and_polars_do_not_reach_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTPLATE_FACTORS", "2")
    monkeypatch.setenv("_RJEM_MALLOC_CONF", "dirty_decay_ms:500")  # polars sets it where it is loaded, as here
    monkeypatch.setenv("OTHER", "1")
    assert not {"HOTPLATE_FACTORS", "_RJEM_MALLOC_CONF"} & machine.environment().keys()
    assert machine.environment()["OTHER"] == "1"
