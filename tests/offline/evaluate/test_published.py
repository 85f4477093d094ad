"""Lists are measured as they are published: with the same rules, the same length, and what users have if it is kept."""

import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotplate.offline.evaluate.splits import SplitOptions
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.model_folder import load
from hotplate.offline.options import Columns
from hotplate.offline.rules import Rules
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.engine import Params
from hotplate.offline.train.item_based import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams
from hotplate.offline.training import TrainSettings, train

START = datetime(2026, 1, 1, tzinfo=UTC)
Row = tuple[str, str, int]


def log(seed: int = 3) -> list[Row]:
    """Users, items and hours: users like items of the same parity, and choose them repeatedly."""
    rng = np.random.default_rng(seed)
    rows = []
    for hour in range(1500):
        user = int(rng.integers(0, 40))
        rows.append((f"u{user:02}", f"i{2 * int(rng.integers(0, 12)) + user % 2:02}", hour))
    return rows


def written(path: Path, rows: list[Row]) -> Path:
    lines = [f"{user},{item},{(START + timedelta(hours=hour)).isoformat()}" for user, item, hour in rows]
    path.write_text("\n".join(["user,item,time", *lines]) + "\n")
    return path


def trained(folder: Path, params: Params, rows: list[Row] | None = None, **settings: Any) -> dict[str, Any]:  # noqa: ANN401 -- as TrainSettings
    """Train, and return what the folder says."""
    path = written(folder / "log.csv", log() if rows is None else rows)
    train_settings = TrainSettings(
        path, columns=Columns(user="user", item="item", time="time"), params=params, **settings
    )
    report = train(train_settings, folder / "model")
    assert report.model.evaluation is not None
    metrics: dict[str, Any] = json.loads(json.dumps(report.model.evaluation.to_json()))
    return metrics


def published(folder: Path, **settings: Any) -> dict[str, Any]:  # noqa: ANN401 -- as ListSettings
    about = ModelLists.of(load(folder / "model"), ListSettings(**settings)).measure().about()
    metrics: dict[str, Any] = json.loads(json.dumps(about))["metrics"]
    return metrics


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"half_life": timedelta(days=20)},
        {"weighting": "log", "min_per_user": 8},
        {"split": SplitOptions("by-item")},
        {"split": SplitOptions("held-out-users")},
    ],
    ids=str,
)
def test_rules_that_change_nothing_change_no_figure(tmp_path: Path, settings: dict[str, Any]) -> None:
    before = trained(tmp_path, ALSParams(factors=4, iterations=3), **settings)
    after = published(tmp_path, length=20, rules=Rules(excluded=frozenset({"never"})))
    assert after["model"] == pytest.approx(before["model"])
    assert after["as_served"]["ndcg"] == pytest.approx(before["as_served"]["ndcg"])
    assert after["as_trained"]["model"] == before["model"]
    assert (after["split"], after["train_pairs"]) == (before["split"], before["train_pairs"])


def test_unchanged_lists_are_not_measured_again(tmp_path: Path) -> None:
    before = trained(tmp_path, NeighbourParams())
    assert published(tmp_path, length=20) == before
    assert published(tmp_path, length=9)["as_trained"]["k"] == 10, "shorter than k"


def test_metrics_reflect_rules_lengths_and_the_filtered_popular_list(tmp_path: Path) -> None:
    rows = [(user, f"i{hour % 3}" if user == "u00" else item, hour) for user, item, hour in log()]
    before = trained(tmp_path, PopularityParams(), rows)
    few = frozenset({"i22", "i23"})
    after = published(tmp_path, length=20, rules=Rules(available=few), force=True)
    assert after["model"]["ndcg"] < before["model"]["ndcg"] / 2
    assert after["model"]["coverage"] <= 2 / 24
    nobody = published(tmp_path, length=20, rules=Rules(min_history=10**6))
    assert (nobody["model"]["ndcg"], nobody["model"]["users_with_lists"]) == (0, 0)
    assert nobody["as_served"]["ndcg"] > 0, "everybody is served the popular list"


def gain_of(ranks: Iterable[int]) -> float:
    """Return the discounted gain of hits at these ranks, from 0."""
    return sum(1 / math.log2(rank + 2) for rank in ranks)


def test_keep_seen_metrics_count_next_choices_including_repeat_purchases(tmp_path: Path) -> None:
    rows = log()
    before = trained(tmp_path, PopularityParams(), rows)
    after = published(tmp_path, length=20, keep_seen=True)
    model = load(tmp_path / "model")

    first = dict[tuple[str, str], int]()
    for user, item, hour in rows:
        first.setdefault((user, item), hour)
    cut = sorted(first.values())[round(0.75 * len(first)) - 1]
    past = {pair for pair, hour in first.items() if hour <= cut}
    known_users = {user for user, _ in past}
    counts = {item: sum(other == item for _, other in past) for item in model.matrix.item_ids}
    hours = dict[tuple[str, str], list[int]]()
    for user, item, hour in rows:
        if hour <= cut:
            hours.setdefault((user, item), []).append(hour)
    newest = max(map(max, hours.values()))

    def score(user: str, item: str) -> float:
        ages = [newest - hour for hour in hours.get((user, item), ())]
        return float(counts[item] / max(counts.values()) + 0.5 * sum(0.5 ** (age / (240 * 24)) for age in ages))

    values = []
    for user in sorted({user for user, _, hour in rows if hour > cut}):
        wanted = {item for other, item, hour in rows if other == user and hour > cut}
        if user in known_users:
            scores = {item: score(user, item) for item in model.matrix.item_ids}
        else:
            scores = {item: float(count) for item, count in counts.items()}
        ranked = sorted(scores, key=lambda item: (-scores[item], item))[:10]
        gain = gain_of(rank for rank, item in enumerate(ranked) if item in wanted)
        values.append(gain / gain_of(range(min(10, len(wanted)))))
    assert after["as_served"]["ndcg"] == pytest.approx(np.mean(values))
    assert after["split"] == before["split"] | {"repeats": True}
    assert after["test_pairs"] == len({(user, item) for user, item, hour in rows if hour > cut})
