"""What the verbs of the bench have in common: how their options look, and how they refuse."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from verbs.terminal import FAILED, MISUSED, err

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
def misuse_told(*, as_json: bool) -> Iterator[None]:
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


def must_be_writable(report: Path) -> None:
    """Refuse a report that has no folder to go to, before anything is measured."""
    from bench.errors import BenchMisused

    if not report.parent.is_dir():
        raise BenchMisused(f"there is no folder {report.parent} to write the report to")
