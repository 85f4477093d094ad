"""Evaluations and searches as a model folder and a manifest keep them.

Lists *as served* are those that users get: the popular list replaces a missing one.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.metrics import ListMetrics, MetricInterval, RankingMetrics, Values, interval_of_mean
from hotplate.offline.evaluate.similar_hits import SimilarResult
from hotplate.offline.evaluate.splits import SplitOptions
from hotplate.offline.train.repeats import RepeatParams

# The split in JSON if the test data were given.
_GIVEN = {"kind": "given"}


@dataclass(frozen=True, slots=True)
class Lead:
    """The model's nDCG minus a baseline's, both as served, with the interval over users."""

    ndcg: float
    interval: MetricInterval | None

    @classmethod
    def of(cls, differences: Values) -> "Lead":
        """Return the lead with these *differences* [users]."""
        return cls(float(np.mean(differences)), interval_of_mean(differences))

    @property
    def verdict(self) -> Literal["better", "worse", "equal", "cannot tell"]:
        """How the model compares with the baseline: it is better or worse if the interval is known and excludes 0.

        It is equal if no user's nDCG differs.
        """
        low, high = self.interval or (-math.inf, math.inf)
        if low == high == 0:
            return "equal"
        if low <= 0 <= high:
            return "cannot tell"
        return "better" if low > 0 else "worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRecord(ListMetrics):
    """A baseline: its metrics, also as served, and the model's lead."""

    params: dict[str, Any]
    as_served: RankingMetrics
    model_leads_by: Lead

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, without metrics that were not measured."""
        record = _measured_to_json(self)
        return {"params": record.pop("params"), **record}


class EvaluationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of a model's lists on a test, and baselines by name.

    split             None if the test data were given
    cold_pairs        test pairs of items not in train
    users_drawn_from  number of testable users, if sampled
    new_days          within which an item's first interaction makes it new; None if variety was not measured
    coverage_of       the items that coverage is a share of; UNSET for all items of the data, as in earlier versions
    model             metrics of personal lists; their intervals are in *intervals*
    as_trained        the evaluation in training, without baselines, if rules changed the lists
    """

    split: SplitOptions | None
    k: int
    train_pairs: int
    test_pairs: int
    cold_pairs: int
    users_drawn_from: int | None = None
    new_days: int | None = None
    coverage_of: str | UnsetType = UNSET
    engine: str
    params: dict[str, Any]
    model: ListMetrics
    as_served: RankingMetrics
    intervals: dict[str, MetricInterval]
    similar: SimilarResult | None = None
    baselines: dict[str, BaselineRecord] = msgspec.field(default_factory=dict[str, BaselineRecord])
    as_trained: "EvaluationRecord | None" = None

    @property
    def split_json(self) -> dict[str, Any]:
        """The split as JSON values."""
        return _GIVEN if self.split is None else asdict(self.split)

    @property
    def metrics(self) -> dict[str, float]:
        """The finite metrics and counts by dotted name, such as `as_served.ndcg`."""
        metrics = dict[str, float]()
        tables = {"model": self.model, "as_served": self.as_served, "similar": self.similar}
        for table, record in tables.items():
            for field in () if record is None else fields(record):
                value = getattr(record, field.name)
                if isinstance(value, int | float) and math.isfinite(value):
                    metrics[f"{table}.{field.name}"] = float(value)
        return metrics

    def metric(self, name: str) -> float | None:
        """Return one of `metrics` by name, None if it is missing.

        Without a prefix, it is that of the lists as served, or of personal lists if it is of these alone.
        """
        metrics = self.metrics
        names = (name, f"as_served.{name}", f"model.{name}")
        return next((metrics[known] for known in names if known in metrics), None)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, without metrics that were not measured."""
        model = _measured_to_json(self.model)
        del model["intervals"]
        record: dict[str, Any] = json_values(self)
        record |= {"split": self.split_json, "model": model}
        record["baselines"] = {engine: baseline.to_json() for engine, baseline in self.baselines.items()}
        del record["as_trained"]
        if self.as_trained is not None:
            record["as_trained"] = self.as_trained.to_json()
        return record


class CellRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An engine with its parameters."""

    engine: str
    params: dict[str, Any]


class TrialRecord(CellRecord, frozen=True, kw_only=True):
    """A trial of a search: its nDCG as served with the standard error, its seconds, and figures as of `Spread`.

    Only ALS has *iterations*; earlier versions wrote no figures of the spread.
    """

    iterations: int | None
    ndcg: float
    se: float
    seconds: float
    shared_items: float | UnsetType = UNSET
    half_places: float | UnsetType = UNSET
    effective_items: float | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class RepeatSearch:
    """The *share* of repeats among held-back pairs, and nDCG@*k* of three kinds of lists on all of them.

    without  lists without items that the user has
    alone    lists that may hold them, by the scores of the engine alone
    blended  lists that may hold them, by scores to which the user's own choices are added with *params*
    """

    share: float
    k: int
    without: float
    alone: float
    blended: float
    params: RepeatParams


class SearchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A search for parameters.

    users_searched  number of users sampled, None for all
    left_out        cells beyond the budget or the free memory
    best            the index of the recommended trial
    repeats         None if they were not searched
    """

    objective: str
    split: SplitOptions
    users_searched: int | None
    trials: list[TrialRecord]
    left_out: list[CellRecord]
    best: int
    repeats: RepeatSearch | None = None


def json_values(record: object) -> Any:  # noqa: ANN401 -- any JSON
    """Return a record as it is read back from JSON: tables are dicts, and tuples lists."""
    return msgspec.json.decode(msgspec.json.encode(record))


def metric_names(*, has_similar: bool) -> list[str]:
    """Return the names of all metrics that an evaluation may measure, as in `EvaluationRecord.metrics`."""
    names = list[str]()
    for table, metrics in (("model", ListMetrics), ("as_served", RankingMetrics)):
        names += [f"{table}.{field.name}" for field in fields(metrics) if field.name != "intervals"]
    return [*names, "similar.hit_rate"] if has_similar else names


def read_evaluation(metrics: Mapping[str, Any] | None) -> EvaluationRecord | None:
    """Decode `EvaluationRecord.to_json`; None for no evaluation, or one of another program. Raises DataError."""
    if not metrics or "model" not in metrics:
        return None
    split = None if metrics.get("split") == _GIVEN else metrics.get("split")
    try:
        return msgspec.convert({**metrics, "split": split}, EvaluationRecord)
    except msgspec.ValidationError as error:
        raise DataError(f"The metrics of the model cannot be read ({error}); train it again.") from error


def _measured_to_json(metrics: ListMetrics) -> dict[str, Any]:
    """Return JSON values without None."""
    record: dict[str, Any] = json_values(metrics)
    return {name: value for name, value in record.items() if value is not None}
