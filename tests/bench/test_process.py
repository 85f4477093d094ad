"""Servers of a measurement, their ports and environment, and how progress is shown."""

import io
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from hotplate.bench.process import environment, free_port, serving
from hotplate.bench.progress import progress_display

CLAIM = "import sys; from hotplate.bench.process import claim_port; print(claim_port(int(sys.argv[1])))"


def claimed_by_another(port: int) -> bool:
    """Have another process, which ends at once, claim a port; return whether it could."""
    done = subprocess.run([sys.executable, "-c", CLAIM, str(port)], capture_output=True, text=True, check=True)
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
