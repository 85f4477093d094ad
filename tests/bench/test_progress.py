import io
import signal

import pytest
from rich.console import Console

from hotplate.bench.progress import progress_display


def test_each_phase_is_one_line_at_once_without_a_terminal() -> None:
    written = io.StringIO()
    with progress_display(Console(file=written)) as display:
        display.start("warm-up")
        assert written.getvalue() == "warm-up\n"
        display.start("round 1 of 5")
        display.step(1, 2)
        assert written.getvalue() == "warm-up\nround 1 of 5\n"


def test_sigterm_is_ctrl_c_while_something_is_measured() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), progress_display(Console(file=io.StringIO())):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
