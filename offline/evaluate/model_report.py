"""How good a model is: the answer, one table and the split, for `hotplate train` and `hotplate evaluate report`."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from hotplate.offline.input.matrix import Indices
from hotplate.offline.model import Model, describe, load
from hotplate.offline.train.engine import described, name_of
from hotplate.report import Column, Report, Row, TextTable

_SHOWN_USERS = 10
_SHOWN_HISTORY = 20
_LONGEST = 80
_AT_RANDOM = frozenset({"by-item", "by-user", "random"})
_FLATTERS = "A random split trains on interactions from after the test, which flatters a model."
_METHOD = (
    "Metrics are means over users with held-back items, as served: a user without a list gets the popular one. "
    "Personal lists only: such a user counts with zeros. Intervals (95 %, Student's t over users) hold for the users "
    "drawn, not for another split, month or catalogue."
)
_SAMPLES = "From the least to the most active user; histories begin with the latest or the heaviest interaction."
_UNKNOWN = "It is not known how good this model is: it was trained without an evaluation."
THESE_LISTS = "these lists"
# Metrics in the table's order, with their headings; shares are shown in %.
METRICS = {
    "ndcg": "nDCG", "recall": "recall", "precision": "precision", "map": "MAP", "mrr": "MRR", "hit_rate": "hit rate",
    "recall_at_k": "recall, of k at most", "coverage": "coverage", "list_similarity": "similarity within a list",
    "new_items": "new items",
}  # fmt: skip
SHOWN = ("ndcg", "recall", "precision", "map", "mrr", "hit_rate", "coverage")
SHARES = frozenset({"hit_rate", "coverage", "new_items"})
# Of personal lists: there is no figure as served.
PERSONAL = ("coverage", "list_similarity", "new_items")
PERSONAL_ONLY = ", personal lists only"
# Facts of a model that are shown elsewhere, or only about files.
_ELSEWHERE = frozenset({"metrics", "tuning", "files", "format", "data"})

# An evaluation as JSON, as the model folder keeps it.
Record = Mapping[str, Any]


def answer(record: Record) -> str:
    """Return how good the lists are against what is popular now, both as served, and how many users chose of them."""
    k = record["k"]
    served = record["as_served"]
    popular = record["baselines"].get("popularity")
    hits = f"In the test data, unseen in training, {_percent(served)} of users chose an item of their list of {k}"
    ndcg = f"nDCG@{k} {served['ndcg']:.3f}"
    if popular is None:
        name = name_of(record["engine"], record["params"])
        return f"Everybody gets {_in_words(name)} ({name}), {ndcg}. {hits}."
    name = name_of("popularity", popular["params"])
    others = popular["as_served"]
    standing = _standing(popular["model_leads_by"], others["ndcg"])
    versus = f"{ndcg} against {others['ndcg']:.3f}"
    hits += f" (of the popular list: {_percent(others)})"
    return f"The lists are {standing} {_in_words(name)} ({name}), {versus}. {hits}."


def _percent(metrics: Record) -> str:
    return f"{100 * metrics['hit_rate']:.0f} %"


def _in_words(name: str) -> str:
    return "what is popular now" if name == "recent popularity" else "the most popular items"


def _standing(lead: Record, popular: float) -> str:
    """Return how lists with this lead compare with popular ones of nDCG *popular*."""
    interval = lead["interval"]
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "not proven better than"
    size = f"{100 * abs(lead['ndcg']) / popular:.0f} % " if popular else ""
    return f"{size}{'better' if lead['ndcg'] > 0 else 'worse'} than"


def columns(record: Record) -> tuple[Column, ...]:
    """Return the columns of the table."""
    headings = {name: METRICS[name] for name in SHOWN} | {"ndcg": f"nDCG\n@{record['k']}"}
    return tuple(
        Column(_figure(name, record), f"{headings[name]}\n%", "%") if name in SHARES
        else Column(_figure(name, record), headings[name], digits=3)
        for name in SHOWN
    )  # fmt: skip


def rows(record: Record) -> Iterator[Row]:
    """Yield the metrics of the lists and of each baseline, with intervals."""
    model = record["model"] | {"as_served": record["as_served"], "intervals": record["intervals"]}
    for subject, metrics in {THESE_LISTS: model, **dict(_baselines(record))}.items():
        personal = {name: metrics[name] for name in PERSONAL if name in metrics}
        yield from _rows(subject, metrics["as_served"] | personal, record)
        yield from _rows(subject, metrics, record, PERSONAL_ONLY)


def _rows(subject: str, metrics: Record, record: Record, suffix: str = "") -> Iterator[Row]:
    for name, heading in METRICS.items():
        value = metrics.get(name)
        if not isinstance(value, float) or (suffix and name in PERSONAL):
            continue
        low, high = metrics["intervals"].get(name, (None, None))
        unit = "share" if name in SHARES else ""
        is_main = name in SHOWN and not suffix
        yield Row(subject, f"{heading}@{record['k']}{suffix}", unit, value, low=low, high=high, main=is_main)


def _figure(name: str, record: Record) -> str:
    return f"{METRICS[name]}@{record['k']}"


def certainty(record: Record) -> str:
    """Return the interval of the lists' nDCG, and their differences from each baseline."""
    low, high = record["as_served"]["intervals"]["ndcg"]
    parts = [f"{low:.4f} to {high:.4f} (95 %, over users)"]
    parts += [_difference(name, baseline["model_leads_by"]) for name, baseline in _baselines(record)]
    return "; ".join(parts)


def _difference(name: str, lead: Record) -> str:
    low, high = lead["interval"] or (-inf, inf)
    if low <= 0 <= high:
        return f"no difference proven from {name} ({low:+.4f} to {high:+.4f})"
    ends = sorted((abs(low), abs(high)))
    comparison = "better" if low > 0 else "worse"
    return f"{abs(lead['ndcg']):.4f} {comparison} than {name} ({ends[0]:.4f} to {ends[1]:.4f})"


def losses(record: Record) -> Iterator[str]:
    """Yield a sentence for each baseline that ranks better than the lists."""
    if not record["baselines"]:
        yield "no baseline was beaten"
    for name, baseline in _baselines(record):
        lead = baseline["model_leads_by"]
        if lead["ndcg"] < 0:
            doubt = ", too little to be certain" if lead["interval"] is None or lead["interval"][1] >= 0 else ""
            figures = f"{baseline['as_served']['ndcg']:.4f} against {record['as_served']['ndcg']:.4f}"
            yield f"{name} ranks better than these lists: nDCG@{record['k']} {figures}{doubt}"


def split_in_words(record: Record) -> str:
    """Return how the test was split off, and on how many users."""
    split = record["split"]
    model = record["model"]
    share = f" (test share {split['test_share']:g})" if "test_share" in split else ""
    pairs = record["train_pairs"] + record["test_pairs"]
    held_back = f"{record['test_pairs']:,} of {pairs:,} pairs, of {model['users']:,} users"
    parts = [f"{split['kind']} split{share}: {held_back}"]
    if record["users_drawn_from"]:
        parts.append(f"drawn at random from {record['users_drawn_from']:,} users")
    if missing := model["users"] - model["users_with_lists"]:
        parts.append(f"{missing:,} users have no list and get the popular one")
    if record["cold_pairs"]:
        parts.append(f"{record['cold_pairs']:,} pairs of items that were new")
    if split["kind"] in _AT_RANDOM:
        parts.append(f"{_FLATTERS[:1].lower()}{_FLATTERS[1:].rstrip('.')}")
    return "; ".join(parts)


def variety_in_words(record: Record) -> str:
    """Return how much the lists vary, empty if that was not measured."""
    model = record["model"]
    parts = []
    if "list_similarity" in model:
        parts.append(f"similarity of two items of a list {model['list_similarity']:.2f}")
    if "new_items" in model:
        parts.append(f"{100 * model['new_items']:.1f} % of places have items of the last {record['new_days']} days")
    return "; ".join(parts)


def repeats_in_words(tuning: Record | None) -> str:
    """Return what a search found about repeats, empty without one."""
    repeats = (tuning or {}).get("repeats")
    if repeats is None:
        return ""
    share = f"{100 * repeats['share']:.0f} % of test interactions are repeats"
    if repeats["blended"] <= repeats["without"]:
        return f"{share}; allowing them does not help"
    gain = f"nDCG@{repeats['k']} from {repeats['without']:.4f} to {repeats['blended']:.4f}"
    return f"{share}; allowing them (publish --keep-seen) raises {gain}"


def _baselines(record: Record) -> Iterator[tuple[str, Record]]:
    for engine, baseline in record["baselines"].items():
        yield name_of(engine, baseline["params"]), baseline


def model_report(path: Path) -> Report:
    """Return the report of the model folder *path*; deterministic. Raises DataError as `load`."""
    model = load(path)
    description = describe(path)
    record = model.metrics if model.metrics and "model" in model.metrics else None
    origins = {"model": described(model.params)}
    if record:
        origins |= {"nDCG": certainty(record), "test": split_in_words(record)}
        origins |= {"variety": variety} if (variety := variety_in_words(record)) else {}
    if repeats := repeats_in_words(model.tuning):
        origins["repeats"] = repeats
    by_activity = np.argsort(np.diff(model.matrix.user_items.indptr), kind="stable")
    places = np.linspace(0, len(by_activity) - 1, min(_SHOWN_USERS, len(by_activity))).round().astype(np.int32)
    users = by_activity[places].astype(np.int32)
    items, _ = model.ranker.recommend(model.matrix.user_items, users, record["k"] if record else 10)
    return Report(
        kind=f"evaluate report {path}",
        sentence=answer(record) if record else _UNKNOWN,
        rows=tuple(rows(record)) if record else (),
        columns=columns(record) if record else (),
        origins=origins,
        tables=tuple(_sample(model, user, row) for user, row in zip(users.tolist(), items, strict=True)),
        method=(_METHOD,),
        broken=tuple(losses(record)) if record else ("no baseline was beaten",),
        configuration={name: value for name, value in description.items() if name not in _ELSEWHERE},
        machine={"date": description["created_at"], **description["data"]},
    )


def _sample(model: Model, user: int, items: Indices) -> TextTable:
    matrix = model.matrix
    begin, end = matrix.user_items.indptr[user : user + 2].tolist()
    by = matrix.user_items.data if matrix.times is None else matrix.times
    latest = begin + np.argsort(-by[begin:end].astype(np.float64), kind="stable")[:_SHOWN_HISTORY]
    history = matrix.user_items.indices[latest].tolist()
    listed = items[items >= 0].tolist()
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
