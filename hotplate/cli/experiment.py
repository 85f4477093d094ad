"""What the verbs of the bench have in common: how their options look, and how they refuse."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from hotplate.cli.terminal import FAILED, MISUSED, err, out, print_json

if TYPE_CHECKING:
    from bench.report.report import Report

OF_THE_EXTRA = {"hdrh", "httptools", "matplotlib", "numpy"}
WHEN, WHAT, HOW = "When requests fall due", "What is asked for", "How it is measured"


def option(name: str, text: str, panel: str, flag: str | None = None) -> typer.models.OptionInfo:
    """Make an option that is also read from the environment, as HOTPLATE_BENCH_NAME."""
    made: typer.models.OptionInfo = typer.Option(
        flag or f"--{name}",
        envvar=f"HOTPLATE_BENCH_{name.replace('-', '_').upper()}",
        help=text,
        rich_help_panel=panel,
    )
    return made


@contextmanager
def bench_errors(*, as_json: bool) -> Iterator[None]:
    """Turn what the bench refuses, or cannot do, into one sentence and an exit code."""
    from bench.errors import BenchFailed, BenchMisused

    try:
        yield
    except (BenchMisused, BenchFailed) as error:
        sentence = str(error)[:1].upper() + str(error)[1:].rstrip(".") + "."
        if as_json:
            err.print_json(data={"error": sentence, "kind": type(error).__name__}, indent=None)
        else:
            err.print("hotplate: ", sentence, sep="", markup=False)
        raise typer.Exit(MISUSED if isinstance(error, BenchMisused) else FAILED) from None
    except ModuleNotFoundError as error:
        if error.name not in OF_THE_EXTRA:
            raise
        raise ModuleNotFoundError(str(error), name="httptools") from error  # numpy is of two extras; this one is ours


def require_folder(report: Path) -> None:
    """Refuse a report that has no folder to go to, before anything is measured."""
    from bench.errors import BenchMisused

    if not report.parent.is_dir():
        raise BenchMisused(f"there is no folder {report.parent} to write the report to")


def finish(
    report: "Report", name: Path, show: Callable[[], None], *, valid: bool, as_json: bool, log: bool = False
) -> NoReturn:
    """Print what was measured, and where it was written to, and exit 1 where it cannot be believed.

    *log* says that there is an HDR log beside the report.
    """
    if as_json:
        print_json(report.brief())
    else:
        show()
        *some, last = (f"{name}.{ending}" for ending in ("json", "html", *(("hdr",) if log else ())))
        out.print(f"written to {', '.join(some)} and {last}", markup=False)
    raise typer.Exit(0 if valid else FAILED)
