"""Progress of a measurement by phase."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.status import Status

TO_STOP = "Ctrl-C ends it with a report"


class ProgressDisplay:
    """Prints each phase as a line, or on a terminal as a status."""

    def __init__(self, console: Console, status: Status | None = None) -> None:
        self._console = console
        self._status = status
        self._name = ""

    def start(self, name: str) -> None:
        """Show a phase."""
        self._name = name
        if self._status is None:
            self.say(name)
        else:
            self._status.update(f"{name}   {TO_STOP}")

    def say(self, sentence: str) -> None:
        """Print a line."""
        self._console.print(sentence)

    def step(self, done: int, total: int) -> None:
        """Show progress on a terminal."""
        if self._status is not None:
            self._status.update(f"{self._name}  {done:,} of {total:,}   {TO_STOP}")


@contextmanager
def progress_display(console: Console) -> Iterator[ProgressDisplay]:
    """Show progress on *console*, with SIGTERM as Ctrl-C, until the block ends."""
    with handling({signal.SIGTERM: signal.default_int_handler}):
        if not console.is_terminal:
            yield ProgressDisplay(console)
            return
        with console.status("") as status:
            yield ProgressDisplay(console, status)


@contextmanager
def handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Replace signal handlers until the block ends, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
