"""The work of `hotplate evaluate`: lists of files, models and releases against the choices of users."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import polars as pl

from hotplate.cli.options import ListFlags
from hotplate.cli.terminal import interruptible, print_rows_read, show_report, with_store
from hotplate.offline.evaluate.reports import (
    Candidate,
    Evaluator,
    Truth,
    from_files,
    from_model,
    from_release,
    read_history,
    read_truth,
)
from hotplate.offline.input.files import named_paths
from hotplate.offline.model import is_model, load
from hotplate.offline.options import Format
from hotplate.releases import find_release
from hotplate.report import Report
from hotplate.stores.connect import is_store_url
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted


def measure(origin: str, truth: Path, flags: ListFlags, *, train: Path | None, rating: str | None) -> None:
    """Measure lists, and print the report."""

    def work() -> tuple[Truth, Report]:
        evaluator, (candidate,) = _read(truth, [origin], flags, train=train, rating=rating)
        return evaluator.truth, evaluator.evaluate(candidate)

    choices, report = interruptible(work)
    if not flags.as_json:
        print_rows_read(named_paths([truth]), choices.rows, choices.left_out)
    show_report(report, as_json=flags.as_json)


def compare(first: str, second: str, truth: Path, flags: ListFlags) -> int:
    """Compare lists, print the report, and return its exit code."""

    def work() -> Report:
        evaluator, (before, after) = _read(truth, [first, second], flags)
        return evaluator.compare(before, after)

    report = interruptible(work)
    show_report(report, as_json=flags.as_json)
    return report.exit_code


def _read(
    truth: Path, origins: Sequence[str], flags: ListFlags, *, train: Path | None = None, rating: str | None = None
) -> tuple[Evaluator, list[Candidate]]:
    """Return the measurement of *origins*, and their lists.

    *rating* is a column of *truth*, *train* a file of earlier interactions; without it, those of the first model are
    taken that has any.
    """
    columns = {"user": flags.columns.user, "item": flags.columns.item}
    choices = read_truth(truth, columns | {"rating": rating}, flags.delimiter)
    candidates = [_candidate(origin, choices.pairs, flags) for origin in origins]
    history = next((candidate.history for candidate in candidates if candidate.history is not None), None)
    if train is not None:
        history = read_history(train, columns, flags.delimiter)
    return Evaluator(choices, candidates, flags.k, history), candidates


def _candidate(origin: str, pairs: pl.DataFrame, flags: ListFlags) -> Candidate:
    """Return the lists of a store's release, a model folder or files, of the users in *pairs* (user, item)."""
    if is_store_url(origin):
        url, _, release_id = origin.partition("#")

        async def read(store: Store) -> Candidate:
            release = await find_release(store, release_id or None)
            return await from_release(store, release, f"{redacted(url)}#{release.id}", pairs, flags.k)

        return with_store(url, read)
    if is_model(Path(origin)):
        return from_model(load(origin), origin, pairs, flags.k)
    return from_files(origin, pairs, flags.k, asdict(flags.columns), Format(flags.delimiter))
