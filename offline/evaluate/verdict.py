"""The verdict on a model beside its baselines and what is live, in the words of the first line of its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from offline.gates import protocol

Role = Literal["model", "baseline", "live"]


@dataclass(frozen=True, slots=True)
class Subject:
    """
    Who was measured, as an evaluation recorded it.

    metrics     by name, of its own lists
    as_served   likewise, where users without a list get the popular one
    intervals   of 95 %, by the names of the first; those of the others are *served_intervals*
    lead        of the model's nDCG over this one's: the interval, user by user; None where it is not known
    note        what limits the comparison with the others
    """

    name: str
    role: Role
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    as_served: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]
    served_intervals: Mapping[str, Sequence[float]]
    lead: Sequence[float] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence, whether the model is the best of all, and what else has to be known of that."""

    sentence: str
    good: bool
    remarks: tuple[str, ...]


def subjects_of(record: Mapping[str, Any] | None) -> list[Subject]:
    """Return the model and its baselines as the *record* of an evaluation has them; nobody without one."""
    if record is None:
        return []
    baselines = [_subject(name, "baseline", found, found) for name, found in record["baselines"].items()]
    return [_subject(record["engine"], "model", record, record["model"]), *baselines]


def live_subject(record: Mapping[str, Any], live: str, about: Mapping[str, Any], fingerprint: str) -> Subject | None:
    """Return the live release as its manifest has it; None where it was measured in another way than *record*."""
    before = about.get("metrics") or {}
    before = before.get("as_trained", before)  # like the model, without the rules of a release
    if "model" not in before or protocol(before) != protocol(record):
        return None
    same = about.get("data") == fingerprint and before.get("split") == record["split"]
    return _subject(live, "live", before, before["model"], "" if same else "of another draw or other data")


def _subject(name: str, role: Role, record: Mapping[str, Any], metrics: Mapping[str, Any], note: str = "") -> Subject:
    served = record.get("as_served", {})
    return Subject(
        name=name,
        role=role,
        params=record.get("params", {}),
        metrics=_floats(metrics),
        as_served=_floats(served),
        intervals=record.get("intervals", {}),
        served_intervals=served.get("intervals", {}),
        lead=record.get("model_leads_by", {}).get("interval"),
        note=note,
    )


def verdict_on(subjects: Sequence[Subject], k: int) -> Verdict:
    """Say whether the model ranks better than all others, by nDCG, plain and as served; who is ahead is named."""
    if not subjects:
        return Verdict("Nobody knows how good this model is: it was trained without an evaluation", False, ())
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
    return Verdict(sentence, bool(baselines) and not beaten, tuple(remarks))


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
    """Say how sure the difference is."""
    low, high = other.lead or (0, 0)
    sure = "" if low > 0 or high < 0 else "; chance may be all of that"
    lead = f"nDCG@{k} {_plain(model) - _plain(other):+.4f} (95 %: {low:+.4f} to {high:+.4f})"
    return f"The model beside {other.name}: {lead}{sure}."


def _beside_live(live: Subject, model: Subject, k: int) -> str:
    before, now = _plain(live), _plain(model)
    change = "better than" if now > before else "worse than" if now < before else "as good as"
    limits = "kind of split, by another draw or of other data" if live.note else "split of the same data"
    figures = f"nDCG@{k} {now:.4f} after {before:.4f}"
    return f"The model is {change} the live release {live.name}: {figures}, on the same {limits}."


def _listed(baselines: Sequence[Subject]) -> str:
    *first, last = (each.name for each in baselines)
    return f"{', '.join(first)} and {last}" if first else last


def _floats(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in found.items() if isinstance(value, float)}
