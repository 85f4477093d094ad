"""What all verbs share: options, text, tables, JSON, errors with exit codes, progress bars, and opening a store."""

import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from hotplate.offline.input.files import Format
    from hotplate.offline.training import OnStage
    from hotplate.stores.store import Observer, Store

T = TypeVar("T")
# What `--store` is read from if it is left out.
STORE_VARIABLE = "HOTPLATE_STORE"

# How often Ctrl-C is looked for, which not every system brings to the thread that waits; and how long work that was
# interrupted may clean up: the command has a second to end.
INTERRUPT_POLL_S = 0.1
CLEAN_UP_S = 0.5

# Off a terminal, stages that begin earlier than this are not reported.
QUIET_S = 5.0

# How many characters of a table's first column stand in one line, however narrow the terminal is.
WIDEST_ID = 24

# Exit codes: something failed, the command was misused, and a gate or a running canary said no.
FAILED = 1
MISUSED = 2
REFUSED = 3
# Which extra brings which module.
EXTRAS = {
    "fsspec": "events", "mlflow": "mlflow",
    "implicit": "offline", "numpy": "offline", "polars": "offline", "scipy": "offline", "threadpoolctl": "offline",
    "httptools": "bench", "hdrh": "bench", "matplotlib": "bench", "mmh3": "bench",
    "redis": "redis", "azure": "cosmos", "jwt": "oidc",
    "pyspark": "spark", "py4j": "spark", "pyarrow": "arrow",
    "aiohttp": "server", "lmdb": "server", "msgspec": "server", "prometheus_client": "server", "uvloop": "server",
}  # fmt: skip


Json = Annotated[bool, Flag("Print one JSON object instead of text.", name="json", prefix="")]
StoreUrl = Annotated[
    str | None, Flag("file:///…, redis://…, cosmos://…; else in your data folder.", name="store", metavar="URL")
]
Delimiter = Annotated[str | None, Flag("What splits CSV fields; else it is detected.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFormat:
    """How files are read if they do not say it themselves."""

    delimiter: Delimiter = None
    header: Annotated[bool, Flag("CSV: the first row names the columns; else they are 1, 2, ….")] = True
    null_values: Annotated[str, Flag("Missing values, as blanks are.", metavar="A,B")] = "NULL,null,NaN,nan,None"
    time_format: Annotated[str | None, Flag("Of times, as %d/%m/%Y %H:%M; else ISO 8601 or since 1970.")] = None
    max_bad_rows: Annotated[float, Flag("The share of rows that may be bad, and are left out.", at_least=0)] = 0.001

    def to_format(self) -> "Format":
        """Return what files are read by."""
        from hotplate.offline.input.files import Format

        null_values = self.null_values.split(",")
        return Format(self.delimiter, self.header, null_values, self.time_format, self.max_bad_rows)


Master = Annotated[str | None, Flag("Spark: local[2], spark://HOST:7077, yarn, submitted.", metavar="URL")]

out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON object on standard output."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
    sys.stdout.write(orjson.dumps(value, option=options, default=_to_plain).decode() + "\n")


def print_result(fields: object, *text: object, as_json: bool) -> None:
    """Print what a verb came to: one JSON object, or sentences and tables for people."""
    if as_json:
        print_json(fields)
        return
    for each in text:
        out.print(each)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Make a plain table, in which ids of the first column are not broken: people copy them."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    for place, heading in enumerate(headings):
        longest = max((len(row[0]) for row in cells), default=0)
        grid.add_column(heading, overflow="fold", no_wrap=place == 0 and longest <= WIDEST_ID)
    for row in cells:
        grid.add_row(*row)
    return grid


def counted(count: int, what: str) -> str:
    """Return a number with its noun: `1 row`, `2,000 rows`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def print_rows_read(source: str, rows: int, left_out: "Mapping[str, int]", notes: Sequence[str] = ()) -> None:
    """Print how many rows of an input were read, how many of them were left out, by reason, and what else was seen."""
    out.print(f"read {counted(rows, 'row')} of {source}")
    for reason, count in left_out.items():
        out.print(f"  {count:,} left out: {reason}")
    for note in notes:
        out.print(f"  note: {note}")


def print_error(error: BaseException, *, as_json: bool) -> int:
    """Print an error as one sentence on standard error and return its exit code."""
    sentence, code = _sentence(error)
    first = sentence.partition(" ")[0]
    given = {each.rpartition("=")[2] for each in sys.argv[2:]}
    if first.isalpha() and first not in given:  # a path, a URL or a name stays as it is
        sentence = sentence[:1].upper() + sentence[1:]
    if not sentence.endswith("?"):
        sentence = sentence.rstrip(".") + "."
    if as_json:
        sys.stderr.write(orjson.dumps({"error": sentence, "kind": type(error).__name__}).decode() + "\n")
    else:
        err.print("hotplate: ", sentence, sep="")
    return code


@contextmanager
def text_on_stderr() -> Iterator[None]:
    """Print text on standard error until the block ends: standard output is for something else."""
    out.stderr = True
    try:
        yield
    finally:
        out.stderr = False


@contextmanager
def progress_bars(status: Callable[[], str] = str) -> "Iterator[OnStage]":
    """Yield a function that reports progress: each stage gets a bar on a terminal, and a line elsewhere.

    *status* is a text that is shown next to every stage. Bars vanish at the end. Lines are of stages that begin late:
    short work has none.
    """
    if not err.is_terminal:
        yield _stage_lines()
        return
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        _TextColumn(lambda task: f"{task.speed:,.0f}/s" if task.speed and task.speed >= 1 else ""),
        TimeRemainingColumn(),
        _TextColumn(lambda _: status()),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        tasks = dict[str, TaskID]()

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:  # a stage of one step has no share to show
                tasks[stage] = progress.add_task(stage, total=None if total == 1 else total)
            if total == 1 and done == 1:
                steps = next(task.total for task in progress.tasks if task.id == tasks[stage]) or 1
                progress.update(tasks[stage], completed=steps, total=steps)
            elif total > 1:
                progress.update(tasks[stage], completed=done, total=total)

        yield report


def _stage_lines() -> "OnStage":
    start, begun = perf_counter(), set[str]()

    def report(stage: str, done: int, total: int) -> None:
        elapsed = perf_counter() - start
        if stage not in begun and done < total and elapsed >= QUIET_S:
            err.print(f"hotplate: {stage} begins after {elapsed:,.0f} s")
        begun.add(stage)

    return report


def require_folder(report: Path | None) -> None:
    """Raise BenchMisused for a *report* that has no folder to go to."""
    from hotplate.bench.errors import BenchMisused

    if report is not None and not report.parent.is_dir():
        raise BenchMisused(f"there is no folder {report.parent} to write the report to")


def chosen_store(url: str | None) -> str:
    """Return the URL that was given, or that of the default store; StoreMisused for an empty one, in a script say.

    An empty variable is as much a mistake as an empty option, but typer ignores it.
    """
    from hotplate.stores.connect import default_url
    from hotplate.stores.errors import StoreMisused

    if url == "" or (url is None and os.environ.get(STORE_VARIABLE) == ""):
        raise StoreMisused(
            f"the URL of the store is empty; give one with --store or {STORE_VARIABLE}, or leave both out for the "
            f"store in your own data folder, {default_url()}"
        )
    return url or default_url()


def shown_store(url: str | None, *, as_json: bool = False) -> str:
    """Return the store that `chosen_store` returns, without secrets; text says so if none was given."""
    from hotplate.stores.urls import redacted

    shown = redacted(chosen_store(url))
    return shown if url or as_json else f"{shown} (the default, as no --store was given)"


def with_store(
    url: str | None,
    act: "Callable[[Store], Awaitable[T]]",
    observer: "Observer | None" = None,
    *,
    may_be_new: bool = False,
) -> T:
    """Run *act* on the store at *url*, by default the one in the user's own data folder, and close it at the end.

    Raises ReleaseNotFound, which names the store, if nothing was ever published to it, unless it *may_be_new*.
    """
    from hotplate.stores.connect import run_on

    return run_on(chosen_store(url), act, observer, must_exist=not may_be_new)


def with_stores(
    source: str, target: str, act: "Callable[[Store, Store], Awaitable[T]]", observer: "Observer | None" = None
) -> T:
    """Run *act* on two stores, as `run_between` does."""
    from hotplate.stores.connect import run_between

    return run_between(chosen_store(source), chosen_store(target), act, observer)


def interruptible(work: Callable[[], T]) -> T:
    """Do *work* in a thread and return its result, so Ctrl-C is heard while it is in a long call of C.

    Interrupted, it ends at its next line of Python and cleans up; if that takes too long, it is left to end with the
    process. The next run has to remove what it has written.
    """
    from hotplate.offline.threads import DaemonThreads

    if threading.current_thread() is not threading.main_thread():
        return work()
    threads = DaemonThreads()
    try:
        working = threads.submit(work)
        while not wait([working], INTERRUPT_POLL_S).done:
            pass  # a signal that came to another thread is handled now
        return working.result()
    except BaseException:
        threads.interrupt(CLEAN_UP_S)
        raise


class _TextColumn(ProgressColumn):
    """A text that is computed again each time a line is drawn."""

    def __init__(self, text: Callable[[Task], str]) -> None:
        super().__init__()
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(task))


def _sentence(error: BaseException) -> tuple[str, int]:
    """Return the sentence and exit code of an expected error; anything else is a defect, and raised."""
    from hotplate.bench.errors import BenchFailed, BenchMisused
    from hotplate.offline.errors import DataError, GateFailed, SettingError
    from hotplate.serve.errors import EventsFailed, ServiceMisused
    from hotplate.stores.errors import HeldBack, StoreError, StoreMisused
    from hotplate.stores.extras import install_command

    if isinstance(error, typer.TyperException):
        return error.format_message() or "say what to do; the help has been printed", error.exit_code
    if isinstance(error, StoreMisused | ServiceMisused | SettingError | BenchMisused):
        return str(error), MISUSED
    if isinstance(error, GateFailed | HeldBack):
        return str(error), REFUSED
    if isinstance(error, StoreError | DataError | BenchFailed | EventsFailed):
        return str(error), FAILED
    if isinstance(error, ModuleNotFoundError) and (missing := (error.name or "").partition(".")[0]) in EXTRAS:
        extra = EXTRAS[missing]
        return f"the extra {extra!r} ({missing}) is not installed; install it with: {install_command(extra)}", FAILED
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", FAILED
    raise error


def _to_plain(value: object) -> Any:  # noqa: ANN401 -- what orjson wants of its default hook
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
