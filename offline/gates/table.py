"""The table of all gates, `KINDS`, with what each measures; a new gate is a function and a row in it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from statistics import fmean
from typing import NamedTuple

from msgspec import UNSET

from hotplate.base.report import format_count
from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.records import EvaluationRecord, read_evaluation
from hotplate.offline.list_encoder import MAX_LENGTH, POPULAR_LENGTH
from hotplate.offline.measurement import LiveList, Measurement
from hotplate.stores.origin import AttributesRecord, GateVerdict, Origin

# Compared items of a list by default: the number served by default.
DEPTH = 10
# Shares of fewer users or items are not judged.
LEAST_COMPARED = 50
# Of a larger release, the sample may hardly meet live users, even if all are kept.
_LEAST_MET = 20


class Need(Enum):
    """What must be known for a gate.

    EVALUATION       the evaluation of the new list
    LISTS            counts of the new users' lists
    CATALOGUE        the same, and the number of all items
    LIVE_EVALUATION  the evaluations of the new list and of the live one
    LIVE_LISTS       the new users' lists, and the live ones of a sample of users
    LIVE_NAMES       the names of lists and item attributes in both releases
    """

    EVALUATION = auto()
    LISTS = auto()
    CATALOGUE = auto()
    LIVE_EVALUATION = auto()
    LIVE_LISTS = auto()
    LIVE_NAMES = auto()


@dataclass(frozen=True, slots=True)
class Gate:
    """One bound that lists must meet.

    name       without a list's, with N: `drop.ndcg`, `overlap@10`
    subject    the name of its kind in KINDS: `metric`, `drop`, `coverage`, ...
    metric     the metric of the evaluation, for the kinds `metric` and `drop`
    depth      N, for the kinds that have one, such as `overlap`
    list_name  the list that must meet it; None for each list
    """

    name: str
    bound: float
    subject: str
    metric: str = ""
    depth: int = 0
    list_name: str | None = None

    @property
    def full_name(self) -> str:
        """The name with that of the list, as it is given: `basket:coverage`."""
        return self.name if self.list_name is None else f"{self.list_name}:{self.name}"

    @property
    def kind(self) -> "GateKind":
        """What is measured, and how it is judged."""
        return KINDS[self.subject]

    @property
    def only_reports(self) -> bool:
        """Whether no figure fails it."""
        return not self.bound and not self.kind.at_most

    def verdict(self, measured: float | None, note: str = "", *, passed: bool = False) -> GateVerdict:
        """Judge *measured*; if None, *note* is the reason, and *passed* the verdict."""
        at_most = self.kind.at_most
        if measured is not None:
            passed = measured <= self.bound if at_most else measured >= self.bound
        return GateVerdict(
            gate=self.name, measured=measured, bound=self.bound, at_most=at_most, passed=passed, note=note
        )


@dataclass(frozen=True, slots=True)
class GateKind:
    """A kind of gate: one row of KINDS.

    name       as a user writes it, before `.METRIC` or `@N`
    needs      what must be known
    judge      measures a list and compares it with the bound
    at_most    whether the bound is a maximum
    range      the least and the highest bound; None for any number
    depth      N by default; 0 if the name has no N
    default    the bound over a live release if the user gives none; None for no gate then, 0 only reports
    remedy     what to do if it fails, before the release is forced, with {roles} of options (`judgement.AS_FLAGS`)
    """

    name: str
    needs: Need
    judge: "Callable[[Gate, NewList], GateVerdict]"
    at_most: bool = False
    range: tuple[float, float] | None = (0, 1)
    depth: int = 0
    default: float | None = None
    remedy: str = ""

    @property
    def is_of_lists(self) -> bool:
        """Whether users' lists must be known."""
        return self.needs in (Need.LISTS, Need.CATALOGUE, Need.LIVE_LISTS)

    @property
    def is_compared(self) -> bool:
        """Whether the new release is compared with the live one."""
        return self.needs in (Need.LIVE_EVALUATION, Need.LIVE_LISTS, Need.LIVE_NAMES)

    def gate(self, bound: float, depth: int) -> Gate:
        """Return a gate of this kind, which is not of a metric; *depth* is N, 0 without one."""
        name = f"{self.name}@{depth}" if depth else self.name
        return Gate(name=name, bound=bound, subject=self.name, depth=depth)


class NewList(NamedTuple):
    """A list that is to be published.

    name           its name; empty for the default list, unless that has one
    stored_name    the name in keys; empty for the default list
    gates          bounds that the list must meet to go live, such as a minimum of NDCG
    evaluation     of the list; None without one
    list_length    most items per user; None if unknown
    counts         of its items and users, filled while it is written
    siblings       names of all lists of the release
    attributes     the release's item attributes, such as price, for filters and in answers
    similar_lists  items with a list of similar ones, known once all rows are written
    segments       segments (groups of users, such as a country) with a popular list, known once all rows are written
    live           the live list that it is compared with, for kinds that are compared
    """

    name: str
    stored_name: str
    gates: Sequence[Gate]
    evaluation: EvaluationRecord | None
    list_length: int | None
    counts: Measurement
    siblings: Collection[str]
    attributes: AttributesRecord
    similar_lists: int = 0
    segments: Collection[str] = ()
    live: LiveList = LiveList()

    @property
    def is_default(self) -> bool:
        """Whether it is the default list."""
        return not self.stored_name


def evaluation_of(origin: Origin) -> EvaluationRecord | None:
    """Return the evaluation of lists; None without one, or if another program wrote it."""
    try:
        return read_evaluation(origin.metrics)
    except DataError:
        return None


# Metrics of the evaluation.


def _metric(gate: Gate, new: NewList) -> GateVerdict:
    """Judge a metric; if the list was evaluated again as published, with rules, its value in training is noted."""
    as_trained = None if new.evaluation is None else new.evaluation.as_trained
    trained = _figure(as_trained, gate)
    note = "" if trained is None else f"as published; {trained:.4g} in training"
    return gate.verdict(_figure(new.evaluation, gate), note)


def _drop(gate: Gate, new: NewList) -> GateVerdict:
    """Judge how much of a metric is lost against the live release, as a share: 0.15 after 0.2 is a loss of 0.25.

    The verdict fails if either release lacks the metric, or they were evaluated differently.
    """
    evaluation = new.evaluation
    live = new.live
    live_evaluation = evaluation_of(live.origin)
    if live_evaluation is None and live.origin.metrics:
        return gate.verdict(None, f"the evaluation of the live release {live.release} cannot be read")

    now = _figure(evaluation, gate)
    before = _figure(live_evaluation, gate)
    if evaluation is None or live_evaluation is None or now is None or before is None:
        return gate.verdict(None, f"the live release {live.release} was published without {gate.metric}")

    live_protocol = _protocol_of(live_evaluation, gate.metric)
    for name, setting in _protocol_of(evaluation, gate.metric).items():
        if setting != live_protocol[name]:
            difference = f"{name} was {live_protocol[name]!r} and is {setting!r}"
            return gate.verdict(None, f"the live release {live.release} was evaluated differently: {difference}")

    # After a metric of 0, any lower value counts as a loss of everything.
    loss = (before - now) / abs(before) if before else float(now < before)
    return gate.verdict(loss, f"{now:.4g} after {before:.4g} in {live.release}")


def _figure(evaluation: EvaluationRecord | None, gate: Gate) -> float | None:
    return None if evaluation is None else evaluation.metric(gate.metric)


def _protocol_of(evaluation: EvaluationRecord, metric: str) -> dict[str, object]:
    """Return the settings of an evaluation, such as its split and list length k, by which a *metric* is comparable."""
    split = {name: value for name, value in evaluation.split_json.items() if name != "seed"}
    protocol: dict[str, object] = {"split": split, "k": evaluation.k}
    if metric.removeprefix("model.") == "coverage":
        protocol["coverage_of"] = "all items" if evaluation.coverage_of is UNSET else evaluation.coverage_of
    return protocol


# The new lists alone.


def _coverage(gate: Gate, new: NewList) -> GateVerdict:
    return _of_counts(gate, new, new.counts.coverage)


def _users_with_lists(gate: Gate, new: NewList) -> GateVerdict:
    return _of_counts(gate, new, new.counts.users_with_lists / (new.counts.users or 1))


def _shortest_list(gate: Gate, new: NewList) -> GateVerdict:
    return _of_counts(gate, new, new.counts.shortest)


def _popular_share(gate: Gate, new: NewList) -> GateVerdict:
    return _of_counts(gate, new, new.counts.popular_share(gate.depth))


def _of_counts(gate: Gate, new: NewList, figure: float | None) -> GateVerdict:
    """Judge a *figure* of users' lists, if there is any list."""
    if not new.counts.users_with_lists:
        return gate.verdict(None, "no user has a list")
    return gate.verdict(figure)


# Users' lists in both releases.


def _overlap(gate: Gate, new: NewList) -> GateVerdict:
    """Judge the mean share of a user's first items that both lists have in common, of the longer one."""

    def share(items: Sequence[str], live_items: Sequence[str]) -> float:
        return _common(items, live_items, gate.depth) / min(max(len(items), len(live_items)), gate.depth)

    return _mean(gate, new.live, share)


def _replaced_lists(gate: Gate, new: NewList) -> GateVerdict:
    """Judge the share of users who keep fewer than N of their first 10 items, or not all of a shorter list."""
    first = max(gate.depth, DEPTH)

    def is_replaced(items: Sequence[str], live_items: Sequence[str]) -> float:
        return _common(items, live_items, first) < min(gate.depth, len(live_items))

    return _mean(gate, new.live, is_replaced)


def _common(items: Sequence[str], live_items: Sequence[str], first: int) -> int:
    """Return the number of items that two lists have in common among the *first* ones of each."""
    return len({*items[:first]} & {*live_items[:first]})


def _mean(gate: Gate, live: LiveList, figure: Callable[[Sequence[str], Sequence[str]], float]) -> GateVerdict:
    """Judge the mean over users of a *figure* of their new and live lists.

    Without a live list of any of them, the gate passes if it only reports.
    """
    if not live.by_user:
        sampled = format_count(len(live.sampled), "user")
        note = f"none of {sampled} with a list has one in the live release {live.release}"
        return gate.verdict(None, note, passed=gate.only_reports)

    figures = [figure(live.sampled[user], live_items) for user, live_items in live.by_user.items()]
    return gate.verdict(fmean(figures), f"of {format_count(len(figures), 'user')}, with {live.release}")


# How much of an amount of the live release is kept: of users, items or lists, or a length.


def _kept(gate: Gate, *, kept: float, before: float, compared: int, note: str) -> GateVerdict:
    """Judge the share of *before* that is *kept*; if *compared* is less than LEAST_COMPARED, it passes.

    *compared* is the number of users or items that the share is measured on.
    """
    if not before or compared < LEAST_COMPARED:
        return gate.verdict(None, f"too little to judge: {note}", passed=True)
    return gate.verdict(kept / before, note)


def _users_kept(gate: Gate, new: NewList) -> GateVerdict:
    """Judge the estimated share of users with a list in the live release who still have one.

    The share of the sampled users with a new list that have a live one is taken for the share of all of them.
    """
    counts = new.counts
    live = new.live
    sampled = len(new.live.sampled)
    share_with_live_list = len(live.by_user) / max(sampled, 1)
    kept = min(live.users_with_lists, round(share_with_live_list * counts.users_with_lists))

    # If all live users were kept, the sample would have `sampled / users_with_lists` of them. Of a much smaller live
    # release, that may be too few to judge.
    is_sample_enough = sampled * live.users_with_lists >= _LEAST_MET * counts.users_with_lists
    return _kept(
        gate,
        kept=kept,
        before=live.users_with_lists,
        compared=live.users_with_lists if is_sample_enough else 0,
        note=f"about {kept:,} of {format_count(live.users_with_lists, 'user')} with a list",
    )


def _items_kept(gate: Gate, new: NewList) -> GateVerdict:
    """Judge the share of the items in sampled and popular live lists that are in the new catalogue, or in any list."""
    return _members_kept(gate, new, before=new.live.items, now=new.counts.item_ids, noun="item", place=" in live lists")


def _length_kept(gate: Gate, new: NewList) -> GateVerdict:
    """Judge the mean length of users' lists by that of the live ones; a lower --list-length is no loss."""
    new_length = new.counts.mean_length
    live_lengths = [len(items) for items in new.live.by_user.values()]
    before = min(fmean(live_lengths or [0]), new.list_length or MAX_LENGTH)
    return _kept(
        gate,
        kept=new_length,
        before=before,
        compared=len(live_lengths),
        note=f"{new_length:.1f} items in a list after {before:.1f}",
    )


def _similar_kept(gate: Gate, new: NewList) -> GateVerdict:
    """Judge the number of lists of similar items."""
    new_lists = new.similar_lists
    live_lists = new.live.similar_lists
    return _kept(
        gate,
        kept=min(new_lists, live_lists),
        before=live_lists,
        compared=live_lists,
        note=f"{new_lists:,} lists of similar items after {live_lists:,}",
    )


def _segments_kept(gate: Gate, new: NewList) -> GateVerdict:
    """Judge the share of the live segments that still have a popular list."""
    return _members_kept(gate, new, before=new.live.segments, now=new.segments, noun="segment")


def _popular_kept(gate: Gate, new: NewList) -> GateVerdict:
    """Judge the share of the live popular items that are still popular."""
    return _members_kept(gate, new, before=new.live.popular, now=new.counts.popular, noun="item")


def _popular_length_kept(gate: Gate, new: NewList) -> GateVerdict:
    """Judge the length of the overall popular list."""
    live = new.live
    popular = new.counts.popular
    list_length = new.list_length or MAX_LENGTH
    return _kept(
        gate,
        kept=len(popular),
        before=min(len(live.popular), max(list_length, POPULAR_LENGTH)),
        compared=len(live.items),
        note=f"{len(popular)} popular items after {len(live.popular)}",
    )


def _members_kept(
    gate: Gate, new: NewList, *, before: Collection[str], now: Collection[str], noun: str, place: str = ""
) -> GateVerdict:
    """Judge the share of ids or names; a small live release, which its number of items tells, is not judged."""
    kept = len({*before}.intersection(now))
    return _kept(
        gate,
        kept=kept,
        before=len(before),
        compared=len(new.live.items),
        note=f"{kept:,} of {format_count(len(before), noun)}{place}",
    )


# Names on which requests may rely.


def _names_kept(gate: Gate, new: NewList) -> GateVerdict:
    """Judge the share of names of the live release that are in the new one.

    Texts may become dates: the dates of releases before 0.3 were texts, and conditions on them hold as before.
    """
    live = new.live
    before = _names_of(live.siblings, live.attributes)
    now = _names_of(new.siblings, new.attributes)
    now |= {f"{name} (text)" for name, kind in new.attributes.columns.items() if kind == "date"}
    lost = sorted(before - now)
    return gate.verdict(1 - len(lost) / max(len(before), 1), f"without {', '.join(lost)} of {live.release}")


def _names_of(lists: Collection[str], attributes: AttributesRecord) -> set[str]:
    """Return the names of *lists*, those of item attributes with their kind, and of those that answers may have."""
    return {
        *(f"{name} (list of users)" for name in lists),
        *(f"{name} ({kind})" for name, kind in attributes.columns.items()),
        *(f"{name} (in answers)" for name in attributes.shown),
    }


_CHECK_DATA = "check that the data are complete; if they are meant to shrink, give a lower bound, as {gate}"

# Any name that is not that of another gate is taken for a metric's. Verdicts are in the order of the user's gates, then
# of those with a default.
METRIC = GateKind("metric", Need.EVALUATION, _metric, range=None)
DROP = GateKind("drop", Need.LIVE_EVALUATION, _drop, at_most=True)
KINDS = {
    kind.name: kind
    for kind in (
        METRIC,
        DROP,
        GateKind("coverage", Need.CATALOGUE, _coverage),
        GateKind("users_with_lists", Need.LISTS, _users_with_lists),
        GateKind("shortest_list", Need.LISTS, _shortest_list, range=(1, MAX_LENGTH)),
        GateKind("popular_share", Need.LISTS, _popular_share, at_most=True, depth=DEPTH),
        GateKind("replaced_lists", Need.LIVE_LISTS, _replaced_lists, at_most=True, depth=3),
        GateKind("users_kept", Need.LIVE_LISTS, _users_kept, default=0.5, remedy=_CHECK_DATA),
        GateKind("items_kept", Need.LIVE_LISTS, _items_kept, default=0.5, remedy=_CHECK_DATA),
        GateKind("length_kept", Need.LIVE_LISTS, _length_kept, default=0.5, remedy=_CHECK_DATA),
        GateKind(
            "similar_kept",
            Need.LIVE_LISTS,
            _similar_kept,
            default=0.5,
            remedy="check that the data, or the file of similar items, are complete",
        ),
        GateKind(
            "segments_kept",
            Need.LIVE_LISTS,
            _segments_kept,
            default=0.5,
            remedy="check that the column, or the file, of segments is given and complete",
        ),
        GateKind("popular_length_kept", Need.LIVE_LISTS, _popular_length_kept, default=0.5, remedy=_CHECK_DATA),
        GateKind("popular_kept", Need.LIVE_LISTS, _popular_kept, default=0.0, remedy=_CHECK_DATA),
        GateKind("overlap", Need.LIVE_LISTS, _overlap, depth=DEPTH, default=0.0),
        GateKind(
            "names_kept",
            Need.LIVE_NAMES,
            _names_kept,
            default=1.0,
            remedy="publish again with {lists} for each list that is missing, and for attributes with {attributes} of "
            "a file that has these columns, {kind} for those of another kind, {show} with those that were in answers",
        ),
    )
}
