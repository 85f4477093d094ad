"""The work of `hotplate evaluate`: lists of files, models and releases against the choices of users."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import polars as pl

from hotplate.cli.options import ListFlags
from hotplate.cli.terminal import print_rows_read, run_interruptibly, run_on_store, show_report
from hotplate.offline.evaluate.reports import (
    Candidate,
    Evaluator,
    candidate_from_files,
    candidate_from_model,
    candidate_from_release,
    read_history,
    read_truth,
)
from hotplate.offline.input.files import named_paths
from hotplate.offline.model import is_model, load
from hotplate.releases import find_release
from hotplate.stores.connect import is_store_url
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted


def measure(origin: str, truth: Path, flags: ListFlags, *, train: Path | None, rating: str | None) -> None:
    """Measure the lists of a store's release, a model folder or files by the choices of users, and print the report.

    origin  the URL or path of the lists
    truth   a file, or a folder, of users and the items that they chose
    train   earlier interactions, to measure popularity and coverage by
    rating  a column of *truth* that scores of the lists are measured against, as predictions
    """
    reading = partial(_read_lists, truth, [origin], flags, train=train, rating=rating)
    evaluator, (candidate,) = run_interruptibly(reading)

    report = run_interruptibly(lambda: evaluator.evaluate(candidate))
    show_report(report, as_json=flags.as_json)
    if not flags.as_json:
        print_rows_read(named_paths([truth]), evaluator.truth.rows, evaluator.truth.left_out)


def compare(first: str, second: str, truth: Path, flags: ListFlags) -> int:
    """Compare two origins of lists, as those of `measure`, print the report, and return its exit code."""
    evaluator, (before, after) = run_interruptibly(partial(_read_lists, truth, [first, second], flags))
    report = run_interruptibly(lambda: evaluator.compare(before, after))
    show_report(report, as_json=flags.as_json)
    return report.exit_code


def _read_lists(
    truth: Path, origins: Sequence[str], flags: ListFlags, *, train: Path | None = None, rating: str | None = None
) -> tuple[Evaluator, list[Candidate]]:
    """Read the choices of users and the lists of each origin; return an evaluator of these lists, and the lists.

    The parameters are those of `measure`. Without *train*, the earlier interactions are those of the first origin that
    has any, as a model folder does. Lists without a record that tells what they have learnt of the truth are taken to
    have learnt *train*.
    """
    columns = {"user": flags.columns.user, "item": flags.columns.item, "time": flags.time}
    choices = read_truth(truth, columns | {"rating": rating}, flags.text)
    candidates = [_read_candidate(origin, choices.pairs, flags) for origin in origins]
    history = next((candidate.learnt for candidate in candidates if candidate.learnt is not None), None)
    if train is not None:
        past = read_history(train, columns, flags.text)
        has_times = "time" in choices.pairs.columns
        if history is None and not (has_times and candidates[0].learnt_until_s is not None):
            candidates = [replace(candidates[0], learnt=past, learnt_until_s=past.learnt_until_s)]
        history = past
    return Evaluator(choices, candidates, flags.k, history), candidates


def _read_candidate(origin: str, pairs: pl.DataFrame, flags: ListFlags) -> Candidate:
    """Read the lists to measure from a store (URL#RELEASE, or URL for the live one), a model folder, or files.

    Only lists of users in *pairs*, with the columns user and item, are read.
    """
    if is_store_url(origin):
        url, _, release_id = origin.partition("#")

        async def read(store: Store) -> Candidate:
            release = await find_release(store, release_id or None)
            return await candidate_from_release(store, release, f"{redacted(url)}#{release.id}", pairs)

        return run_on_store(url, read)
    if is_model(Path(origin)):
        return candidate_from_model(load(origin), origin, pairs, flags.k)
    return candidate_from_files(origin, pairs, asdict(flags.columns), flags.text)
