"""Shared by all verbs: options, text, tables, JSON, errors with exit codes, progress bars, and stores."""

import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, TypeVar

import click
import orjson
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hotplate.base.exit_codes import FAILED, MISUSED, REFUSED
from hotplate.base.extras import extra_of_verb, install_hint
from hotplate.base.report import GAP, Report, blocks, format_count, print_report, to_json
from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.offline.errors import DataError, GateFailed, SettingError
from hotplate.offline.threads import DaemonThreads
from hotplate.serve.errors import EventsFailed, ServiceMisused
from hotplate.stores.errors import HeldBack, StoreError, StoreMisused
from hotplate.stores.options import RARE, Flag
from hotplate.stores.urls import default_url, redacted

if TYPE_CHECKING:
    from hotplate.offline.training import OnStage
    from hotplate.stores.store import Observer, Store

T = TypeVar("T")
STORE_VARIABLE = "HOTPLATE_STORE"

# Interval for noticing Ctrl-C, which may arrive on another thread; and the time for interrupted work to clean up: the
# command should end within a second.
INTERRUPT_POLL_S = 0.1
CLEAN_UP_S = 0.5

# Of a terminal whose size is unknown, which some programs report as COLUMNS=0; None for the terminal's own.
WIDTH = 80 if os.environ.get("COLUMNS") == "0" else None

# Off a terminal, earlier stages are not reported.
QUIET_S = 5.0

StoreUrl = Annotated[
    str | None,
    Flag(
        "The store: file:///…, redis://… or cosmos://…; by default files in your data folder.",
        name="store",
        metavar="URL",
    ),
]
Master = Annotated[
    str | None, Flag("The master of Spark: local[2], spark://HOST:7077, yarn, or submitted.", RARE, metavar="URL")
]


class _Console(Console):
    """A standard stream. If its reader ends, such as `head`, later text is dropped, and the verb goes on.

    With `--json`, standard output is `quiet`: `print` prints nothing, and `print_json` does.
    """

    def on_broken_pipe(self) -> None:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self.file.fileno())
        os.close(devnull)

    def print_line(self, text: str) -> None:
        """Print a line as it is, such as JSON; faster than `print`."""
        may_have_styles = self.color_system is not None and not self.no_color  # by TERM and NO_COLOR
        try:
            click.echo(text, err=self.stderr, color=None if may_have_styles else False)  # also without a stream
        except BrokenPipeError:
            self.on_broken_pipe()


out = _Console(width=WIDTH, highlight=False, markup=False, emoji=False, soft_wrap=True)
err = _Console(width=WIDTH, stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON value if `--json` was given."""
    if out.quiet:
        out.print_line(json_text(value))


def json_text(value: object) -> str:
    """Return what `print_json` prints."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(value, option=options, default=str).decode()


def print_result(fields: object, *texts: object) -> None:
    """Print *fields* as JSON, or else *texts*."""
    print_json(fields)
    for text in texts:
        out.print(text)


def show_report(report: Report) -> None:
    """Print a report as JSON, or as text."""
    print_json(to_json(report))
    print_report(report, out)


@dataclass(frozen=True, slots=True)
class _Tables:
    """A table that is printed as several, with the first column in each, if the terminal is too narrow for one."""

    columns: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, *others = self.columns
        first_width = max(map(cell_len, first))
        room = options.max_width - first_width
        for block in blocks([_least_width(column) for column in others], room):
            if block.start:
                yield Text()
            widths = [first_width, *_widths(others[block], room)]
            # A word that is wider than the terminal makes the table wider.
            width = sum(widths) + GAP * len(widths)
            yield from console.render(_grid([first, *others[block]], widths), options.update(max_width=width))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> RenderableType:
    """Return a table of *rows* without borders; None is an empty cell.

    No word is broken, so that ids can be copied, and cells of the first column have one line.
    """
    lines = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return _Tables([[heading, *(line[place] for line in lines)] for place, heading in enumerate(headings)])


def _least_width(column: Sequence[str]) -> int:
    """Return the width of the longest word."""
    return max(cell_len(word) for text in column for word in text.split() or [""])


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return widths with which *columns* fill at most *room*: of the longest words, and equal shares of the rest."""
    widths = [_least_width(column) for column in columns]
    left = max(0, room - sum(widths) - GAP * len(columns))
    wanted = [max(map(cell_len, column)) - width for column, width in zip(columns, widths, strict=True)]
    places = sorted(range(len(columns)), key=wanted.__getitem__)
    for done, place in enumerate(places):
        share = min(wanted[place], left // (len(places) - done))
        widths[place] += share
        left -= share
    return widths


def _grid(columns: Sequence[Sequence[str]], widths: Sequence[int]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for (heading, *_), width in zip(columns, widths, strict=True):
        grid.add_column(Text(heading), width=width, overflow="fold")
    for cells in zip(*(cells for _, *cells in columns), strict=True):
        grid.add_row(*map(Text, cells))
    return grid


def format_time(seconds: float | None) -> str | None:
    """Return a time as `2026-11-20 06:42:00Z`, None for none."""
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}Z"


def print_rows_read(source: str, rows: int, left_out: Mapping[str, int], notes: Sequence[str] = ()) -> None:
    """Print the rows read, those left out by reason, and notes."""
    out.print(f"read {format_count(rows, 'row')} of {source}")
    for reason, count in left_out.items():
        out.print(f"  {count:,} left out: {reason}")
    for note in notes:
        out.print(f"  note: {note}")


def print_error(error: BaseException, *, as_json: bool) -> int:
    """Print an expected error as a sentence, as text or JSON, and return the exit code; raise an unexpected one again.

    The sentence begins with a capital letter, unless its first word is not a word but a path, a URL, or a name that the
    user has given.
    """
    sentence, code = _sentence_and_exit_code(error)
    first_word = sentence.partition(" ")[0]
    arguments = {argument.rpartition("=")[2] for argument in sys.argv[2:]}
    if first_word.isalpha() and first_word not in arguments:  # neither a path, a URL nor a name of the user's
        sentence = sentence[:1].upper() + sentence[1:]
    if not sentence.endswith("?"):
        sentence = sentence.rstrip(".") + "."

    if as_json:
        encodable = sentence.encode(errors="backslashreplace").decode()  # a path may have bytes that are not UTF-8
        err.print_line(orjson.dumps({"error": encodable, "kind": type(error).__name__}).decode())
    else:
        err.print("hotplate: ", sentence, sep="")
    return code


@contextmanager
def text_on_stderr() -> Iterator[None]:
    """Print text on standard error in the block."""
    out.stderr = True
    try:
        yield
    finally:
        out.stderr = False


@contextmanager
def progress_bars(status: Callable[[], str] = str) -> "Iterator[OnStage]":
    """Yield a function that shows the progress of a stage, by its name, the steps done, and the steps in all.

    On a terminal, each stage has a bar, which vanishes at the end, with the text that *status* returns beside it. Else
    a line is printed for each stage that begins after `QUIET_S`.
    """
    if not err.is_terminal:
        yield _stage_lines()
        return

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        tasks = dict[str, TaskID]()

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, status="")
            shown_total = total if total > 1 or done else None  # a stage with one step has no percentage
            progress.update(tasks[stage], completed=done, total=shown_total, status=status())

        yield report


def _stage_lines() -> "OnStage":
    """Return a function that prints a line when a stage begins, once the command has taken `QUIET_S`."""
    start = perf_counter()
    begun = set[str]()

    def report(stage: str, done: int, total: int) -> None:
        elapsed = perf_counter() - start
        if stage not in begun and done < total and elapsed >= QUIET_S:
            err.print(f"hotplate: {stage} begins after {elapsed:,.0f} s")
        begun.add(stage)

    return report


def require_folder(report: Path | None) -> None:
    """Raise BenchMisused if *report*, a path to write to, names no file, or its folder does not exist."""
    if report is None:
        return
    if report.name in ("", ".."):
        raise BenchMisused(f"{report} is a folder; name a file in it to write to")
    if not report.parent.is_dir():
        raise BenchMisused(f"there is no folder {report.parent} to write the report to")


def require_file_path(file: Path | None) -> None:
    """Raise BenchMisused if *file* cannot be written, because it is a folder, or its folder does not exist."""
    require_folder(file)
    if file is not None and file.is_dir():
        raise BenchMisused(f"{file} is a folder; name a file in it to write to")


def store_url_or_default(url: str | None) -> str:
    """Return *url*, or the default; StoreMisused for an empty option or variable."""
    if url == "" or (url is None and os.environ.get(STORE_VARIABLE) == ""):
        raise StoreMisused(
            f"the URL of the store is empty; give one with --store or {STORE_VARIABLE}, or leave both out for "
            f"{default_url()}"
        )
    return url or default_url()


def shown_store_url(url: str | None) -> str:
    """Return the URL of `store_url_or_default` without secrets, in text marked if it is the default."""
    shown = redacted(store_url_or_default(url))
    return shown if url or out.quiet else f"{shown} (the default, as no --store was given)"


def run_on_store(
    url: str | None,
    act: Callable[["Store"], Awaitable[T]],
    observer: "Observer | None" = None,
    *,
    may_be_new: bool = False,
) -> T:
    """Run *act* on the store at *url*, or the default one, and close it.

    Raises ReleaseNotFound if nothing was ever published to it, unless it *may_be_new*.
    """
    from hotplate.stores.connect import run_on

    return run_on(store_url_or_default(url), act, observer, must_exist=not may_be_new)


def run_interruptibly(work: Callable[[], T]) -> T:
    """Run *work* in a thread, so that Ctrl-C works during a long C call.

    Interrupted work ends at its next line of Python; after `CLEAN_UP_S` it is abandoned, and the next run removes its
    files.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    threads = DaemonThreads()
    try:
        working = threads.submit(work)
        while not wait([working], INTERRUPT_POLL_S).done:
            pass  # signals of other threads are handled here
        return working.result()
    except BaseException:
        threads.interrupt(CLEAN_UP_S)
        raise


def _sentence_and_exit_code(error: BaseException) -> tuple[str, int]:
    """Return the sentence and the exit code of an error that a user can cause; raise any other error again.

    A module that is not installed is such an error if an extra of hotplate installs it.
    """
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, StoreMisused | ServiceMisused | SettingError | BenchMisused):
        return str(error), MISUSED
    if isinstance(error, GateFailed | HeldBack):
        return str(error), REFUSED
    if isinstance(error, StoreError | DataError | BenchFailed | EventsFailed):
        return str(error), FAILED
    if isinstance(error, ModuleNotFoundError):
        hint = install_hint(error, extra_of_verb(sys.argv[1:]))
        if hint is not None:
            return hint, MISUSED
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{reason}: {error.filename}" if error.filename else reason, FAILED
    raise error
