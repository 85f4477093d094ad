"""The report of one model, as plain values: how good it is next to the baselines and what is live, and what it lists.

Its first line is the verdict, which names who ranks better than the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.candidate import LiveRelease
from hotplate.offline.evaluate.evaluation import evaluate
from hotplate.offline.evaluate.metrics import measure_lists
from hotplate.offline.evaluate.splits import IN_TIME, SplitOptions
from hotplate.offline.gates import protocol
from hotplate.offline.input.matrix import Floats, Indices, users_per_item
from hotplate.offline.measurement import common
from hotplate.offline.model import Model, describe, load
from hotplate.offline.train.popularity import PopularityParams, by_popularity

FORMAT = 1
# Of so many users lists are computed for the report; more would hardly change what it says of them.
_SAMPLED_USERS = 10_000
_SHOWN_USERS = 10
_SHOWN_HISTORY = 20
_POINTS = 120
_SPLITS = {
    "by-item": "Of each item's pairs of user and item, {test_share:.0%} were held back, drawn at random.",
    "by-user": "Of each user's items, {test_share:.0%} were held back, drawn at random.",
    "random": "Of all pairs of user and item, {test_share:.0%} were held back, drawn at random.",
    "by-time": "The last {test_share:.0%} of all pairs of user and item were held back. The model was learnt from what "
    "came up to one moment, and tested on what came after it, as a service meets it.",
    "by-user-time": "Of each user's items, the last {test_share:.0%} were held back.",
    "leave-last": "Of each user who has more, the last {last} were held back.",
    "held-out-users": "Of all users, {test_share:.0%} were not learnt from. A fifth of the items of each was held "
    "back, and their lists were made from the others.",
    "given": "What was learnt from and what was held back were given as files of their own.",
}
_AT_RANDOM = frozenset({"by-item", "by-user", "random"})
_FLATTERS = "Draws at random let a model learn from what came after its test, which flatters it."


Role = Literal["model", "baseline", "live"]
# Reads so many items of the lists of these users in the live release; None if nothing is live.
ReadLive = Callable[[Sequence[str], int], LiveRelease | None]


def gather(path: Path, read_live: ReadLive | None = None, *, at_random: bool = False) -> dict[str, Any]:
    """Return what the report of the model folder *path* says, as plain JSON values; the same for the same model.

    *read_live* is left out if there is no store to compare with. With *at_random* the model's parameters learn once
    more, from a random draw, whose figures stand next to those of the split in time. Raises DataError as `load` does,
    and for a model that was not evaluated on a split in time.
    """
    model, description = load(path), describe(path)
    record = model.metrics if model.metrics and "model" in model.metrics else None
    k = record["k"] if record else 10
    count = len(model.matrix.user_ids)
    by_activity = np.argsort(np.diff(model.matrix.user_items.indptr), kind="stable")
    shown = by_activity[_even(count, _SHOWN_USERS)].astype(np.int32)
    users = np.union1d(_even(count, _SAMPLED_USERS), shown).astype(np.int32)
    items, scores = model.ranker.recommend(model.matrix.user_items, users, k)
    live = None if read_live is None else read_live([model.matrix.user_ids[user] for user in users.tolist()], k)
    subjects = subjects_of(record)
    if record and live is not None:
        before = live_subject(record, live.id, live.about, description["data"].get("fingerprint"))
        subjects += [before] if before else []
    return {
        "format": FORMAT,
        "model": str(path),
        "k": k,
        "verdict": asdict(verdict_on(subjects, k)),
        "split": None if record is None else _split_in_words(record),
        "random": _at_random(model, record) if at_random else None,
        "subjects": [asdict(subject) for subject in subjects],
        "live": None if live is None else _overlap(model, live, users, items),
        "catalogue": _catalogue(model, items),
        "tuning": description.get("tuning"),
        "samples": [
            _sample(model, live, user, items[at], scores[at])
            for user, at in zip(shown.tolist(), np.searchsorted(users, shown).tolist(), strict=True)
        ],
        "description": {name: description[name] for name in sorted(description) if name not in _ELSEWHERE},
    }


def _at_random(model: Model, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the metrics of the model and of popularity as served, on its split in time and on a random draw."""
    split = {"kind": "given"} if record is None else record["split"]
    if record is None or split["kind"] not in IN_TIME:
        raise DataError("A random draw is compared with a split in time, and the model was not evaluated on one.")
    drawn = replace(SplitOptions(**split), kind="by-item", pieces=1, piece=0)
    found = evaluate(model.matrix, model.params, drawn, k=record["k"], baselines=(PopularityParams(),))
    if found is None:
        raise DataError("The model has too few pairs for a random draw.")
    other = found.to_json()
    in_time, at_random = ({each.name: each.as_served for each in subjects_of(of)} for of in (record, other))
    return {
        "split": _split_in_words(other),
        "metrics": {name: [in_time[name], at_random[name]] for name in at_random if name in in_time},
    }


# Of the model's description what is shown elsewhere, and what only reading it needs.
_ELSEWHERE = frozenset({"metrics", "tuning", "files", "format"})


def _split_in_words(record: Mapping[str, Any]) -> str:
    split, model = record["split"], record["model"]
    words = _SPLITS.get(split["kind"], f"The split was {split['kind']}.").format(**split)
    counts = (
        f"The model was learnt from {record['train_pairs']:,} pairs and tested on {record['test_pairs']:,} of "
        f"{model['users']:,} users; {model['users_with_lists']:,} of them had a list."
    )
    runs = record.get("runs") or record.get("seeds", 1)  # as it was called before
    if runs > 1:
        counts += f" That was done {runs} times: figures are means, and intervals are over those times."
    return " ".join([words, counts, _FLATTERS] if split["kind"] in _AT_RANDOM else [words, counts])


def _even(count: int, most: int) -> Indices:
    """Return *most* of so many rows, or all, at even distances, the first and the last among them."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(np.int32)


def _overlap(model: Model, live: LiveRelease, users: Indices, items: Indices) -> dict[str, Any]:
    """Return how many items the lists have in common with those that are live: of the longer of a user's two lists."""
    ids, shares = model.matrix.item_ids, list[float]()
    for user, row in zip(users.tolist(), items, strict=True):
        now = [ids[item] for item in row[row >= 0].tolist()]
        if now and (before := live.lists.get(model.matrix.user_ids[user])):
            shares.append(common(now, before))
    overlap = float(np.mean(shares)) if shares else None
    return {"release": live.id, "users": len(shares), "overlap": overlap}


def _catalogue(model: Model, items: Indices) -> dict[str, Any]:
    """Return what of the catalogue the lists *items* [users, k] hold, from the most popular item to the rarest."""
    train = model.matrix.user_items
    history = users_per_item(train)
    listed = np.bincount(items[items >= 0], minlength=train.shape[1])
    order = by_popularity(history)
    ranks = np.unique(np.geomspace(1, len(order), _POINTS).round().astype(np.int64))
    shares = (np.cumsum(counts[order])[ranks - 1] / max(1, int(counts.sum())) for counts in (history, listed))
    reached = [len(np.unique(items[:, :depth][items[:, :depth] >= 0])) for depth in range(1, items.shape[1] + 1)]
    return {
        "users": len(items),
        "users_without_list": int((items < 0).all(axis=1).sum()),
        "items": len(order),
        "metrics": asdict(measure_lists(items, train)),
        "ranks": ranks.tolist(),
        "history": next(shares).tolist(),
        "lists": next(shares).tolist(),
        "reached": reached,
    }


def _sample(model: Model, live: LiveRelease | None, user: int, items: Indices, scores: Floats) -> dict[str, Any]:
    """Return the history of one user, the latest or the heaviest first, and the list."""
    matrix = model.matrix
    begin, end = matrix.user_items.indptr[user : user + 2].tolist()
    by = matrix.user_items.data if matrix.times is None else matrix.times
    latest = begin + np.argsort(-by[begin:end].astype(np.float64), kind="stable")[:_SHOWN_HISTORY]
    identifier = matrix.user_ids[user]

    def named(item: str) -> dict[str, Any]:
        return {"id": item, "title": model.titles.get(item)}

    return {
        "user": identifier,
        "activity": end - begin,
        "history": [named(matrix.item_ids[item]) for item in matrix.user_items.indices[latest].tolist()],
        "list": [
            named(matrix.item_ids[item]) | {"score": float(score)}
            for item, score in zip(items.tolist(), scores.tolist(), strict=True)
            if item >= 0
        ],
        "live": None if live is None else [named(item) for item in live.lists.get(identifier, ())],
    }


@dataclass(frozen=True, slots=True)
class Subject:
    """Who was measured, as an evaluation recorded it.

    metrics     by name, of its own lists
    as_served   the same, if users without a list get the popular one
    intervals   of 95 %, by the names of the first; those of the others are *served_intervals*
    lead        of the model's nDCG over this one's: the interval, user by user; None if it is not known
    note        what limits the comparison with the others
    published   nDCG of the lists as they are published, if they are other lists than those of the training
    """

    name: str
    role: Role
    metrics: Mapping[str, float]
    as_served: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]
    served_intervals: Mapping[str, Sequence[float]]
    lead: Sequence[float] | None = None
    note: str = ""
    published: float | None = None


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """One sentence, whether the model is the best of all, and what else has to be known of that."""

    sentence: str
    good: bool
    remarks: tuple[str, ...]


def subjects_of(record: Mapping[str, Any] | None) -> list[Subject]:
    """Return the model and its baselines as the *record* of an evaluation has them; none without one."""
    if record is None:
        return []
    baselines = [_subject(name, "baseline", found, found) for name, found in record["baselines"].items()]
    return [_subject(record["engine"], "model", record, record["model"]), *baselines]


def live_subject(record: Mapping[str, Any], live: str, about: Mapping[str, Any], fingerprint: str) -> Subject | None:
    """Return the live release as its manifest has it; None if it was measured in another way than *record*."""
    published = about.get("metrics") or {}
    before = published.get("as_trained", published)  # like the model, without the rules of a release
    if "model" not in before or protocol(before) != protocol(record):
        return None
    same = about.get("data") == fingerprint and before.get("split") == record["split"]
    found = _subject(live, "live", before, before["model"], "" if same else "of another draw or other data")
    return found if published is before else replace(found, published=published["model"]["ndcg"])


def _subject(name: str, role: Role, record: Mapping[str, Any], metrics: Mapping[str, Any], note: str = "") -> Subject:
    served = record.get("as_served", {})
    return Subject(
        name=name,
        role=role,
        metrics=_floats(metrics),
        as_served=_floats(served),
        intervals=record.get("intervals", {}),
        served_intervals=served.get("intervals", {}),
        lead=record.get("model_leads_by", {}).get("interval"),
        note=note,
    )


def verdict_on(subjects: Sequence[Subject], k: int) -> ModelVerdict:
    """Say whether the model ranks better than all others, by nDCG, plain and as served; who is ahead is named."""
    if not subjects:
        return ModelVerdict("It is not known how good this model is: it was trained without an evaluation", False, ())
    model, *others = subjects
    live = [each for each in others if each.role == "live"]
    baselines = sorted((each for each in others if each.role == "baseline"), key=_plain, reverse=True)
    ahead = [each for each in baselines if _is_ahead(each, model)]
    equal = [each for each in baselines if _plain(each) == _plain(model)]
    if not baselines:
        sentence = f"This {model.name} model has nDCG@{k} {_plain(model):.4f}, and was compared with no baseline"
    elif ahead:
        served = all(_plain(each) <= _plain(model) for each in ahead)
        who, verb = _listed(ahead).capitalize(), "ranks" if len(ahead) == 1 else "rank"
        better = f"{verb} better, as served, than" if served else f"{verb} better than"
        sentence = f"{who} {better} this {model.name} model: {_figures(model, baselines, k, served=served)}"
    else:
        better = f"no better than {_listed(equal)}" if equal else f"better than {_listed(baselines)}"
        sentence = f"This {model.name} model ranks {better}: {_figures(model, baselines, k)}"
    remarks = [_chance(each, model, k) for each in baselines if each.lead] + [
        _beside_live(each, model, k) for each in live
    ]
    beaten = ahead or equal or any(_is_ahead(each, model) for each in live if not each.note)
    return ModelVerdict(sentence, bool(baselines) and not beaten, tuple(remarks))


def _figures(model: Subject, baselines: Sequence[Subject], k: int, *, served: bool = False) -> str:
    of = _served if served else _plain
    others = ", ".join(f"{of(each):.4f} ({each.name})" for each in baselines)
    return f"nDCG@{k}{' as served' if served else ''} {of(model):.4f} against {others}"


def _plain(subject: Subject) -> float:
    return subject.metrics["ndcg"]


def _served(subject: Subject) -> float:
    return subject.as_served.get("ndcg", 0.0)


def _is_ahead(other: Subject, model: Subject) -> bool:
    return _plain(other) > _plain(model) or _served(other) > _served(model)


def _chance(other: Subject, model: Subject, k: int) -> str:
    low, high = other.lead or (0, 0)
    sure = "" if low > 0 or high < 0 else "; chance may be all of that"
    lead = f"nDCG@{k} {_plain(model) - _plain(other):+.4f} (95 %: {low:+.4f} to {high:+.4f})"
    return f"The model compared with {other.name}: {lead}{sure}."


def _beside_live(live: Subject, model: Subject, k: int) -> str:
    before, now = _plain(live), _plain(model)
    change = "better than" if now > before else "worse than" if now < before else "as good as"
    limits = "kind of split, by another draw or of other data" if live.note else "split of the same data"
    figures = f"nDCG@{k} {now:.4f} after {before:.4f}"
    sentence = f"The model is {change} the live release {live.name}: {figures}, on the same {limits}."
    if live.published is None:
        return sentence
    return f"{sentence} Both are figures of training: as published, {live.name} has nDCG@{k} {live.published:.4f}."


def _listed(baselines: Sequence[Subject]) -> str:
    *first, last = (each.name for each in baselines)
    return f"{', '.join(first)} and {last}" if first else last


def _floats(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in found.items() if isinstance(value, float)}
