"""How every verb speaks: text for people, JSON with --json, errors as one sentence with a proper exit code."""

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

FAILED, MISUSED = 1, 2

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.", envvar="HOTPLATE_JSON")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        envvar="HOTPLATE_STORE",
        help="The store: file:///FOLDER, redis://HOST:PORT/DB, rediss://…, unix:///SOCKET, cosmos://ACCOUNT/DATABASE. "
        "By default a folder in your own data directory.",
        show_default=False,
    ),
]

EXTRAS = {
    "implicit": "offline", "numpy": "offline", "polars": "offline", "scipy": "offline", "threadpoolctl": "offline",
    "httptools": "bench", "hdrh": "bench", "matplotlib": "bench",
    "redis": "redis", "azure": "cosmos", "pyspark": "spark",
}  # fmt: skip
"""Which extra brings which module."""

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=_plain).decode() + "\n")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Make a plain table; cells are shown as they are, never as markup."""
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    for row in rows:
        grid.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return grid


def fail(error: BaseException, *, as_json: bool) -> int:
    """Print an error as one sentence on standard error and return the exit code that it deserves."""
    sentence, code = _sentence(error)
    if sentence.partition(" ")[0].isalpha():  # a path, a URL or a name stays as it is
        sentence = sentence[:1].upper() + sentence[1:]
    sentence = sentence.rstrip(".") + "."
    if as_json:
        sys.stderr.write(orjson.dumps({"error": sentence, "kind": type(error).__name__}).decode() + "\n")
    else:
        err.print("hotplate: ", sentence, sep="", markup=False)
    return code


def _sentence(error: BaseException) -> tuple[str, int]:
    """Return the sentence and exit code of an expected error; anything else is a defect, and raised."""
    from offline.errors import DataError, SettingError
    from stores.errors import StoreError, StoreMisused

    if isinstance(error, StoreError):
        return str(error), MISUSED if isinstance(error, StoreMisused) else FAILED
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        if missing in EXTRAS:
            extra = EXTRAS[missing]
            return f"{missing} is not installed; install it with: pip install 'hotplate[{extra}]'", FAILED
    if isinstance(error, DataError):
        return str(error), MISUSED if isinstance(error, SettingError) else FAILED
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", FAILED
    raise error


def _plain(value: object) -> Any:  # noqa: ANN401 -- what orjson wants of its default hook
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
