"""The work of `hotplate evaluate`: lists of files, models and releases against the choices of users."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from hotplate.cli.options import ListFlags
from hotplate.cli.terminal import print_rows_read, run_interruptibly, show_report
from hotplate.evaluation import EvaluateSettings, read_lists
from hotplate.offline.input.files import named_paths


def measure(origin: str, truth: Path, flags: ListFlags, *, train: Path | None, rating: str | None) -> None:
    """Measure the lists of a store's release, a model folder or files by the choices of users, and print the report.

    The parameters are those of `hotplate.evaluate`; *rating* is the name of a column of *truth*.
    """
    reading = partial(read_lists, truth, [origin], _settings(flags, rating=rating), history=train)
    evaluator, (candidate,) = run_interruptibly(reading)

    report = run_interruptibly(lambda: evaluator.evaluate(candidate))
    show_report(report)
    print_rows_read(named_paths([truth]), evaluator.truth.rows, evaluator.truth.left_out)


def compare(first: str, second: str, truth: Path, flags: ListFlags) -> int:
    """Compare two origins of lists, as those of `measure`, print the report, and return its exit code."""
    evaluator, (before, after) = run_interruptibly(partial(read_lists, truth, [first, second], _settings(flags)))
    report = run_interruptibly(lambda: evaluator.compare(before, after))
    show_report(report)
    return report.exit_code


def _settings(flags: ListFlags, rating: str | None = None) -> EvaluateSettings:
    columns = {**asdict(flags.columns), "time": flags.time, "rating": rating}
    return EvaluateSettings(k=flags.k, columns=columns, form=flags.text)
