"""Measuring lists by what users chose later: of files, models, releases and data frames, from Python programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from hotplate.base.report import Report
from hotplate.offline.errors import SettingError
from hotplate.offline.evaluate.reports import (
    Candidate,
    Evaluator,
    candidate_from_files,
    candidate_from_model,
    candidate_from_release,
    read_history,
    read_truth,
)
from hotplate.offline.input.files import DataSource
from hotplate.offline.model import Model
from hotplate.offline.model_folder import is_model, load
from hotplate.offline.options import Format
from hotplate.releases import find_release
from hotplate.stores.connect import is_store_url, run_on
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted

ListsToEvaluate = DataSource | Model
COLUMN_ROLES = ("user", "item", "score", "time", "rating")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """How lists are measured.

    k        the first items of each list that count
    columns  names of columns by role: user, item, score, time and rating, found by usual names; the time `none` reads
             no times, and only a named rating is read: scores are then measured as predictions of it, too
    form     of text files
    """

    k: int = 10
    columns: Mapping[str, str | None] = field(default_factory=dict)
    form: Format = field(default_factory=Format)

    def __post_init__(self) -> None:
        """Check the roles of columns. Raises SettingError."""
        for role in self.columns:
            if role not in COLUMN_ROLES:
                raise SettingError(f"columns has no role {role!r}; there are {', '.join(COLUMN_ROLES)}.")


def evaluate(
    lists: ListsToEvaluate,
    truth: DataSource,
    *,
    history: DataSource | None = None,
    settings: EvaluateSettings | None = None,
) -> Report:
    """Measure lists by the choices of users, and return a report: a sentence, and a row for each metric.

    lists    files or a data frame of user, item and score, a Model or its folder, or the URL of a store (URL#RELEASE
             for a release that is not live)
    truth    files or a data frame of users and the items that they chose
    history  earlier interactions, to measure popularity and coverage by; by default those of a model

    Raises DataError, SettingError and StoreError, also if the model has learnt more than 1 % of the truth.
    """
    evaluator, (candidate,) = read_lists(truth, [lists], settings or EvaluateSettings(), history=history)
    return evaluator.evaluate(candidate)


def compare(
    first: ListsToEvaluate, second: ListsToEvaluate, truth: DataSource, *, settings: EvaluateSettings | None = None
) -> Report:
    """Compare two kinds of lists by the choices of users: the report says whether the second is better.

    The parameters and errors are those of `evaluate`.
    """
    evaluator, (before, after) = read_lists(truth, [first, second], settings or EvaluateSettings())
    if before.origin == after.origin:  # as of two data frames
        before = replace(before, origin=f"{before.origin} (first)")
        after = replace(after, origin=f"{after.origin} (second)")
    return evaluator.compare(before, after)


def read_lists(
    truth: DataSource,
    origins: Sequence[ListsToEvaluate],
    settings: EvaluateSettings,
    *,
    history: DataSource | None = None,
) -> tuple[Evaluator, list[Candidate]]:
    """Read the choices of users and the lists of each origin; return an evaluator of these lists, and the lists.

    Without *history*, the earlier interactions are those of the first origin that has any, as a model. Lists without a
    record that tells what they have learnt of the truth are taken to have learnt *history*.
    """
    choices = read_truth(truth, settings.columns, settings.form)
    candidates = [_read_candidate(origin, choices.pairs, settings) for origin in origins]
    learnt = next((candidate.learnt for candidate in candidates if candidate.learnt is not None), None)
    if history is None:
        return Evaluator(choices, candidates, settings.k, learnt), candidates

    past = read_history(history, {**settings.columns, "rating": None}, settings.form)
    has_times = "time" in choices.pairs.columns
    if learnt is None and not (has_times and candidates[0].learnt_until_s is not None):
        candidates = [replace(candidates[0], learnt=past, learnt_until_s=past.learnt_until_s)]
    return Evaluator(choices, candidates, settings.k, past), candidates


def _read_candidate(origin: ListsToEvaluate, pairs: pl.DataFrame, settings: EvaluateSettings) -> Candidate:
    """Read the lists to measure: those of users in *pairs*, with the columns user and item."""
    if isinstance(origin, Model):
        return candidate_from_model(origin, "the model", pairs, settings.k)
    if isinstance(origin, str) and is_store_url(origin):
        url, _, release_id = origin.partition("#")

        async def read(store: Store) -> Candidate:
            release = await find_release(store, release_id or None)
            return await candidate_from_release(store, release, f"{redacted(url)}#{release.id}", pairs)

        return run_on(url, read, must_exist=True)
    if isinstance(origin, str | Path) and is_model(Path(origin)):
        return candidate_from_model(load(origin), str(origin), pairs, settings.k)
    named = {role: settings.columns.get(role) for role in ("user", "item", "score")}
    return candidate_from_files(origin, pairs, named, settings.form)
