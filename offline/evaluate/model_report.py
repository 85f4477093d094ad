"""The report of one model: metrics next to its baselines, sample lists, and the search for its parameters."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from hotplate.offline.evaluate.metrics import measure_lists
from hotplate.offline.input.matrix import Indices, users_per_item
from hotplate.offline.model import Model, describe, load
from hotplate.offline.train.popularity import by_popularity
from hotplate.report import Curve, Plot, Report, Row, TextTable

_SAMPLED_USERS = 10_000
_SHOWN_USERS = 10
_SHOWN_HISTORY = 20
_POINTS = 120
_LONGEST = 80
_AT_RANDOM = frozenset({"by-item", "by-user", "random"})
_FLATTERS = "A random split trains on interactions from after the test, which flatters a model."
_METHOD = (
    "Metrics are means over users with held-back items; a user without a list counts with zeros. As served, a user "
    "without a list gets the popular one. Intervals (95 %, Student's t over users) hold for the users drawn, not for "
    "another split, month or catalogue."
)
_LONG_TAIL = "The share of all interactions, and of all places in lists, that belongs to the most popular items."
_SAMPLES = "From the least to the most active user; histories begin with the latest or the heaviest interaction."
NAMES = {"ndcg": "nDCG", "map": "MAP", "recall_at_k": "recall, of k at most", "mrr": "MRR", "hit_rate": "hit rate"}
MAIN = ("ndcg", "recall", "precision", "map", "mrr", "hit_rate")
# Keys of the model's description that are shown elsewhere, or only describe the files.
_ELSEWHERE = frozenset({"metrics", "tuning", "files", "format", "data"})

Record = Mapping[str, Any]


def model_report(path: Path) -> Report:
    """Return the report of the model folder *path*; deterministic. Raises DataError as `load` does."""
    model, description = load(path), describe(path)
    record = model.metrics if model.metrics and "model" in model.metrics else None
    sentence, good, remarks = verdict_on(record)
    by_activity = np.argsort(np.diff(model.matrix.user_items.indptr), kind="stable")
    shown = by_activity[_even(len(by_activity), _SHOWN_USERS)].astype(np.int32)
    users = np.union1d(_even(len(by_activity), _SAMPLED_USERS), shown).astype(np.int32)
    items, _ = model.ranker.recommend(model.matrix.user_items, users, record["k"] if record else 10)
    tuning = description.get("tuning") or {}
    own = zip(shown.tolist(), items[np.searchsorted(users, shown)], strict=True)
    return Report(
        kind=f"evaluate report {path}",
        sentence=f"{sentence}.",
        rows=(*_metrics(record), *_lists(model, items)),
        plots=(*_tail_plots(model, items), *_search_plot(tuning)),
        tables=(*_search_table(tuning), *(_sample(model, user, row) for user, row in own)),
        notes=(*(remarks if good else ()), *([_split_in_words(record)] if record else ()), _METHOD),
        broken=() if good else remarks or ("no baseline was beaten",),
        configuration={name: value for name, value in description.items() if name not in _ELSEWHERE},
        machine={"date": description["created_at"], **description["data"]},
    )


def verdict_on(record: Record | None) -> tuple[str, bool, tuple[str, ...]]:
    """Compare the nDCG, plain and as served, of a model and its baselines.

    Returns a sentence that names every baseline ahead of the model, whether there is none, and a remark on each lead.
    """
    if record is None:
        return "It is not known how good this model is: it was trained without an evaluation", False, ()
    k, engine, model = record["k"], record["engine"], (record["model"]["ndcg"], record["as_served"]["ndcg"])
    found = {name: (each["ndcg"], each["as_served"]["ndcg"]) for name, each in record["baselines"].items()}
    ranked = sorted(found, key=lambda name: -found[name][0])
    ahead = [name for name in ranked if found[name][0] > model[0] or found[name][1] > model[1]]
    equal = [name for name in ranked if found[name][0] == model[0]]
    served = bool(ahead) and all(found[name][0] <= model[0] for name in ahead)
    figures = ", ".join(f"{found[name][served]:.4f} ({name})" for name in ranked)
    against = f"nDCG@{k}{' as served' if served else ''} {model[served]:.4f} against {figures}"
    if not found:
        sentence = f"This {engine} model has nDCG@{k} {model[0]:.4f}, and was compared with no baseline"
    elif ahead:
        better = f"{'ranks' if len(ahead) == 1 else 'rank'} better{', as served,' if served else ''} than"
        sentence = f"{_listed(ahead).capitalize()} {better} this {engine} model: {against}"
    else:
        better = f"no better than {_listed(equal)}" if equal else f"better than {_listed(ranked)}"
        sentence = f"This {engine} model ranks {better}: {against}"
    leads = ((name, (record["baselines"][name].get("model_leads_by") or {}).get("interval")) for name in ranked)
    remarks = (_chance(name, model[0] - found[name][0], lead, k) for name, lead in leads if lead)
    return sentence, bool(found) and not ahead and not equal, tuple(remarks)


def _chance(name: str, lead: float, interval: Sequence[float], k: int) -> str:
    low, high = interval
    sure = "" if low > 0 or high < 0 else "; chance may be all of that"
    return f"The model compared with {name}: nDCG@{k} {lead:+.4f} (95 %: {low:+.4f} to {high:+.4f}){sure}."


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _split_in_words(record: Record) -> str:
    split, model = record["split"], record["model"]
    share = f" (test share {split['test_share']:g})" if "test_share" in split else ""
    words = (
        f"Split {split['kind']}{share}: trained on {record['train_pairs']:,} pairs, tested on {record['test_pairs']:,} "
        f"of {model['users']:,} users, {model['users_with_lists']:,} of them with a list."
    )
    return f"{words} {_FLATTERS}" if split["kind"] in _AT_RANDOM else words


def _metrics(record: Record | None) -> Iterator[Row]:
    if record is None:
        return
    model = record["model"] | {"as_served": record["as_served"], "intervals": record["intervals"]}
    baselines = {f"{name} (baseline)": found for name, found in record["baselines"].items()}
    for name, found in ({f"{record['engine']} (this model)": model} | baselines).items():
        for values, suffix in ((found, ""), (found["as_served"], ", as served")):
            for metric, value in values.items():
                if isinstance(value, float):
                    low, high = values["intervals"].get(metric, (None, None))
                    figure = f"{NAMES.get(metric, metric.replace('_', ' '))}@{record['k']}{suffix}"
                    yield Row(name, figure, "", value, low=low, high=high, main=metric in MAIN and not suffix)


def _even(count: int, most: int) -> Indices:
    return np.linspace(0, count - 1, min(most, count)).round().astype(np.int32)


def _lists(model: Model, items: Indices) -> Iterator[Row]:
    subject, found = f"lists of {len(items):,} users", measure_lists(items, model.matrix.user_items)
    yield Row(subject, "users without a list", "", float((items < 0).all(axis=1).sum()), main=False)
    for name in ("coverage", "diversity", "novelty"):
        yield Row(subject, name, "", getattr(found, name), main=False)


def _tail_plots(model: Model, items: Indices) -> Iterator[Plot]:
    history = users_per_item(model.matrix.user_items)
    listed, order = np.bincount(items[items >= 0], minlength=len(history)), by_popularity(history)
    ranks = np.unique(np.geomspace(1, len(order), _POINTS).round().astype(np.int64))
    curves = tuple(
        Curve(name, tuple(ranks.tolist()), tuple((np.cumsum(counts[order])[ranks - 1] / max(1, counts.sum())).tolist()))
        for name, counts in (("of all interactions", history), ("of all places in lists", listed))
    )
    most = f"the most popular of {len(order):,} items"
    yield Plot("The long tail", most, "share", curves, y_unit="share", log_x=True, caption=_LONG_TAIL)
    depths = range(1, items.shape[1] + 1)
    reached = tuple(float(len(np.unique(items[:, :depth][items[:, :depth] >= 0]))) for depth in depths)
    curve = (Curve("items", tuple(map(float, depths)), reached),)
    yield Plot("Coverage", "first places of each list", "different items", curve, points=True)


def _search_plot(tuning: Record) -> Iterator[Plot]:
    trials, curves = tuning.get("trials", ()), list[Curve]()
    for engine in dict.fromkeys(each["engine"] for each in trials):
        found = {float(number): each["ndcg"] for number, each in enumerate(trials, 1) if each["engine"] == engine}
        curves.append(Curve(engine, tuple(found), tuple(found.values())))
    if curves:
        yield Plot("The search for parameters", "trial", "nDCG", tuple(curves), points=True)


def _search_table(tuning: Record) -> Iterator[TextTable]:
    lines = [
        (
            each["engine"],
            _plain(each["params"]),
            str(each["iterations"]),
            f"{each['ndcg']:.4f} ± {each['se']:.4f}",
            f"{each['seconds']:.1f} s",
        )
        for each in sorted(tuning.get("trials", ()), key=lambda each: -each["ndcg"])
    ]
    if lines:
        left_out = "; ".join(f"{each['engine']} {_plain(each['params'])}" for each in tuning.get("left_out", ()))
        headings = ("engine", "parameters", "iterations", "nDCG, one standard error", "took")
        caption = f"Left out, as they cost too much: {left_out}." if left_out else ""
        yield TextTable("Trials", headings, tuple(lines), caption)


def _plain(params: Record) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items())


def _sample(model: Model, user: int, items: Indices) -> TextTable:
    matrix = model.matrix
    begin, end = matrix.user_items.indptr[user : user + 2].tolist()
    by = matrix.user_items.data if matrix.times is None else matrix.times
    latest = begin + np.argsort(-by[begin:end].astype(np.float64), kind="stable")[:_SHOWN_HISTORY]
    history, listed = matrix.user_items.indices[latest].tolist(), items[items >= 0].tolist()
    lines = zip_longest(*([_item(model, item) for item in each] for each in (history, listed)), fillvalue="")
    headings = (f"history, of {end - begin:,}", "list")
    return TextTable(f"User {_clean(matrix.user_ids[user])}", headings, tuple(lines), _SAMPLES)


def _item(model: Model, item: int) -> str:
    identifier = model.matrix.item_ids[item]
    title = model.titles.get(identifier)
    return f"{_clean(title)} ({_clean(identifier, 40)})" if title else _clean(identifier, 40)


def _clean(value: str, longest: int = _LONGEST) -> str:
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in value)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
