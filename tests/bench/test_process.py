import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hotplate.bench.process import environment, free_port, raised_priority, serving

CLAIM = "import sys; from hotplate.bench.process import claim_port; print(claim_port(int(sys.argv[1])))"


def claimed_by_another(port: int) -> bool:
    """Have another process, which ends at once, claim a port; return whether it could."""
    done = subprocess.run([sys.executable, "-c", CLAIM, str(port)], capture_output=True, text=True, check=True)
    return done.stdout == "True\n"


def test_free_port_is_not_handed_out_twice_before_a_server_listens() -> None:
    assert not claimed_by_another(free_port())


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
    with raised_priority([sleeper.pid]):
        policy, niceness = priority(sleeper.pid)
        assert policy == os.SCHED_RR or niceness <= before[1]
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
    assert not {"HOTPLATE_FACTORS", "_RJEM_MALLOC_CONF"} & environment().keys()
    assert environment()["OTHER"] == "1"
