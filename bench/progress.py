"""What a person sees while a measurement runs: the name of each phase, once it begins."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.status import Status

TO_STOP = "Ctrl-C ends it with a report"


class ProgressDisplay:
    """Names the phases of one measurement on *console*: each in a line, or on a terminal one after the other."""

    def __init__(self, console: Console, status: Status | None = None) -> None:
        self._console = console
        self._status = status
        self._name = ""

    def start(self, name: str) -> None:
        """Name the phase that begins, at once: nothing else may be known until it ends."""
        self._name = name
        if self._status is None:
            self.say(name)
        else:
            self._status.update(f"{name}   {TO_STOP}")

    def say(self, sentence: str) -> None:
        """Print a sentence that stays."""
        self._console.print(sentence)

    def step(self, done: int, total: int) -> None:
        """Show on a terminal how far the phase is."""
        if self._status is not None:
            self._status.update(f"{self._name}  {done:,} of {total:,}   {TO_STOP}")


@contextmanager
def progress_display(console: Console) -> Iterator[ProgressDisplay]:
    """Show progress on *console* while the block runs, in which SIGTERM is Ctrl-C."""
    with handling({signal.SIGTERM: _interrupt}):
        if not console.is_terminal:
            yield ProgressDisplay(console)
            return
        with console.status("") as status:
            yield ProgressDisplay(console, status)


@contextmanager
def handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Handle signals otherwise while the block runs; not in a thread other than the main one, which gets none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
