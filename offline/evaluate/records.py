"""Evaluations as read from a model folder or a manifest.

Lists *as served* are those that users get: the popular list replaces a missing one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.metrics import ListMetrics, MetricInterval
from hotplate.offline.train.repeats import RepeatSearch
from hotplate.offline.train.similar import SimilarResult


@dataclass(frozen=True, slots=True)
class Lead:
    """The model's nDCG minus a baseline's, both as served, with the interval over users."""

    ndcg: float
    interval: MetricInterval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRecord(ListMetrics):
    """A baseline: its metrics, also as served, and the model's lead."""

    params: dict[str, Any]
    as_served: ListMetrics
    model_leads_by: Lead


class SplitRecord(msgspec.Struct, frozen=True):
    """Those of `SplitOptions` that reports show; the kind `given` has no share."""

    kind: str
    test_share: float | None = None


class EvaluationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of `Evaluation.to_json`; *model* are metrics of personal lists, without their *intervals*."""

    engine: str
    params: dict[str, Any]
    split: SplitRecord
    k: int
    train_pairs: int
    test_pairs: int
    cold_pairs: int
    users_drawn_from: int | None = None
    model: ListMetrics
    intervals: dict[str, MetricInterval]
    as_served: ListMetrics
    baselines: dict[str, BaselineRecord]
    new_days: int | None = None
    similar: SimilarResult | None = None


class TuningRecord(msgspec.Struct, frozen=True):
    """Those fields of the search (`Model.tuning`) that reports show; *repeats* is None if they were not searched."""

    repeats: RepeatSearch | None = None


def read_evaluation(metrics: Mapping[str, Any] | None) -> EvaluationRecord | None:
    """Decode the metrics of a model; None if it was not evaluated. Raises DataError."""
    if not metrics or "model" not in metrics:
        return None
    try:
        return msgspec.convert(metrics, EvaluationRecord)
    except msgspec.ValidationError as error:
        raise DataError(f"The metrics of the model cannot be read ({error}); train it again.") from error


def read_repeats(tuning: Mapping[str, Any] | None) -> RepeatSearch | None:
    """Decode what a search found about repeats; None without one."""
    return None if tuning is None else msgspec.convert(tuning, TuningRecord).repeats
