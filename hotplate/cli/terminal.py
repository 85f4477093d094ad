"""What all verbs share: options, text, tables, JSON, errors with exit codes, progress bars, and opening a store."""

import asyncio
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from stores.store import Observer, Store

T = TypeVar("T")
# Reports (stage, done, total) of long work.
StageProgress = Callable[[str, int, int], None]

# Exit codes: something failed, and the command was misused.
FAILED, MISUSED = 1, 2
# Which extra brings which module.
EXTRAS = {
    "implicit": "offline", "numpy": "offline", "polars": "offline", "scipy": "offline", "threadpoolctl": "offline",
    "httptools": "bench", "hdrh": "bench", "matplotlib": "bench",
    "redis": "redis", "azure": "cosmos",
}  # fmt: skip


def option(
    flag: str,
    description: str,
    *,
    metavar: str | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:  # noqa: ANN401 -- typer's own
    """Make an option that is read from the environment, too: `--list-length` from HOTPLATE_LIST_LENGTH."""
    variable = "HOTPLATE_" + flag.partition("/")[0].strip("-").replace("-", "_").upper()
    return typer.Option(flag, metavar=metavar, envvar=variable, help=description, min=at_least, max=at_most)


def column_option(role: str, description: str = "by default it is guessed from common names") -> Any:  # noqa: ANN401 -- as above
    """Make the option that names the column of a role."""
    return option(f"--{role}-column", f"The name of the {role} column; {description}.", metavar="NAME")


Json = Annotated[bool, option("--json", "Print one JSON object instead of text.")]
StoreUrl = Annotated[
    str | None,
    option(
        "--store",
        "The URL of the store: file:///FOLDER, redis://HOST:PORT/DB, rediss://…, unix:///SOCKET or "
        "cosmos://ACCOUNT/DATABASE. By default it is a folder in your own data directory.",
        metavar="URL",
    ),
]
Delimiter = Annotated[
    str | None, option("--delimiter", "The character between the fields of a CSV file; by default it is detected.")
]
Titles = Annotated[Path | None, option("--titles", "A file of item and title, where the data have no titles.")]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=_to_plain).decode() + "\n")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Make a plain table; cells are shown as they are, never as markup."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    for row in rows:
        grid.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return grid


def print_rows_read(rows: int, path: Path | str, left_out: dict[str, int]) -> None:
    """Print how many rows of an input were read, and how many of them were left out, by reason."""
    out.print(f"read {rows:,} rows of {path}", markup=False)
    for reason, count in left_out.items():
        out.print(f"  {count:,} left out: {reason}", markup=False)


def print_error(error: BaseException, *, as_json: bool) -> int:
    """Print an error as one sentence on standard error and return its exit code."""
    sentence, code = _sentence(error)
    if sentence.partition(" ")[0].isalpha():  # a path, a URL or a name stays as it is
        sentence = sentence[:1].upper() + sentence[1:]
    sentence = sentence.rstrip(".") + "."
    if as_json:
        sys.stderr.write(orjson.dumps({"error": sentence, "kind": type(error).__name__}).decode() + "\n")
    else:
        err.print("hotplate: ", sentence, sep="", markup=False)
    return code


@contextmanager
def progress_bars(status: Callable[[], str] = str) -> Iterator[StageProgress]:
    """
    Yield a function that reports progress: each stage gets a line on a terminal, and nothing is printed elsewhere.

    *status* is a text that is shown beside every stage. The lines vanish at the end.
    """
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        _TextColumn(lambda task: f"{task.speed:,.0f}/s" if task.speed and task.speed >= 1 else ""),
        TimeRemainingColumn(),
        _TextColumn(lambda _: status()),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
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


def with_store(url: str | None, act: "Callable[[Store], Awaitable[T]]", observer: "Observer | None" = None) -> T:
    """Run *act* on the store at *url*, by default the one in the user's own data folder, and close it at the end."""
    from stores.connect import connect, default_url

    async def run() -> T:
        store = connect(url or default_url(), observer)
        try:
            return await act(store)
        finally:
            await store.close()

    return asyncio.run(run())


def with_stores(
    source: str, target: str, act: "Callable[[Store, Store], Awaitable[T]]", observer: "Observer | None" = None
) -> T:
    """Run *act* on two stores, *observer* counting at the target; StoreMisused where they are one and the same."""
    from stores.connect import connect, redacted
    from stores.errors import StoreMisused

    if source == target:
        raise StoreMisused(f"{redacted(source)} is given as both stores; name two")

    async def run() -> T:
        first = connect(source)
        try:
            second = connect(target, observer)
            try:
                return await act(first, second)
            finally:
                await second.close()
        finally:
            await first.close()

    return asyncio.run(run())


class _TextColumn(ProgressColumn):
    """A text that is computed anew each time a line is drawn."""

    def __init__(self, text: Callable[[Task], str]) -> None:
        super().__init__()
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(task))


def _sentence(error: BaseException) -> tuple[str, int]:
    """Return the sentence and exit code of an expected error; anything else is a defect, and raised."""
    from bench.errors import BenchFailed, BenchMisused
    from offline.errors import DataError, SettingError
    from stores.errors import StoreError, StoreMisused

    if isinstance(error, StoreError):
        return str(error), MISUSED if isinstance(error, StoreMisused) else FAILED
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        if missing in EXTRAS:
            extra = EXTRAS[missing]
            return f"{missing} is not installed; install it with: pip install 'hotplate[{extra}]'", FAILED
    if isinstance(error, BenchMisused | BenchFailed):
        return str(error), MISUSED if isinstance(error, BenchMisused) else FAILED
    if isinstance(error, DataError):
        return str(error), MISUSED if isinstance(error, SettingError) else FAILED
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", FAILED
    raise error


def _to_plain(value: object) -> Any:  # noqa: ANN401 -- what orjson wants of its default hook
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
