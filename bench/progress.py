"""What a person sees while a measurement runs: how far it is, and how the last half second went."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hotplate.bench.loadgen.result import LAG_BOUND_US, LoadProgress
from hotplate.report import format_value

TO_STOP = "Ctrl-C ends it with a report"

# What the progress of several processes adds up, and of what it is the longest.
SUMMED = ("sent", "ok", "failed", "dropped", "in_flight", "waiting")
LONGEST = ("elapsed_s", "p50_us", "p99_us", "lag_p99_us")


class ProgressDisplay:
    """Draws the progress of one measurement; without a terminal each phase is one line on *console*."""

    def __init__(self, live: Live | None, console: Console | None = None) -> None:
        self._live = live
        self._console = live.console if live is not None else console
        self._name = ""
        self._duration_s = 1.0
        self._before: LoadProgress | None = None

    def start(self, name: str, duration_s: float) -> None:
        """A phase begins: it is named at once, also if nothing is known of it until it ends."""
        self._name, self._duration_s, self._before = name, duration_s, None
        if self._live is not None:
            self._live.update(Text(f"{name}   {TO_STOP}"), refresh=True)
        else:
            self.say(name)

    def say(self, sentence: str) -> None:
        """Print a sentence that stays."""
        if self._console is not None:
            self._console.print(sentence)

    def step(self, done: int, total: int) -> None:
        """Draw how far a phase is that is not a run."""
        if self._live is not None:
            bar = Table.grid()
            bar.add_row(ProgressBar(total=total, completed=done, width=40))
            self._live.update(Group(Text(f"{self._name}  {done:,} of {total:,}   {TO_STOP}"), bar))

    def update(self, parts: Sequence[LoadProgress]) -> None:
        """Draw how the run goes, by the newest progress of each process."""
        if self._live is None:
            return
        now = together(parts)
        self._live.update(self._drawn(now))
        self._before = now

    def _drawn(self, now: LoadProgress) -> Group:
        before = self._before
        since_s = now.elapsed_s - before.elapsed_s if before else now.elapsed_s
        rate = (now.ok - (before.ok if before else 0)) / max(since_s, 1e-9)
        grid = Table.grid(padding=(0, 2))
        p50, p99 = format_value(now.p50_us, "us"), format_value(now.p99_us, "us")
        late = Text(format_value(now.lag_p99_us, "us"), style="red" if now.lag_p99_us > LAG_BOUND_US else "")
        grid.add_row("good answers/s", f"{rate:,.0f}", "p50", p50, "in flight", f"{now.in_flight:,}")
        grid.add_row("errors", f"{now.failed:,}", "p99", p99, "waiting", f"{now.waiting:,}")
        grid.add_row("dropped", f"{now.dropped:,}", "", "", "lag p99", late)
        bar = Table.grid()  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=self._duration_s, completed=min(now.elapsed_s, self._duration_s), width=40))
        head = Text(f"{self._name}  {now.elapsed_s:.0f} of {self._duration_s:.0f} s   {TO_STOP}")
        return Group(head, bar, grid)


@contextmanager
def progress_display(console: Console) -> Iterator[ProgressDisplay]:
    """Show progress on *console* while the block runs, in which SIGTERM is Ctrl-C; a drawing goes when it ends."""
    with sigterm_interrupts():
        if not console.is_terminal:
            yield ProgressDisplay(None, console)
            return
        with Live(console=console, transient=True, refresh_per_second=4) as live:
            yield ProgressDisplay(live)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM while the block runs, so that what was started is ended and reported."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def together(parts: Sequence[LoadProgress]) -> LoadProgress:
    """Add up the progress of the processes; of times take the longest, which errs on the safe side."""
    sums = {name: sum(getattr(part, name) for part in parts) for name in SUMMED}
    return LoadProgress(**sums, **{name: max(getattr(part, name) for part in parts) for name in LONGEST})
