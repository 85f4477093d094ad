"""Bounds that lists must meet before they go live.

    NAME                        minimum of a metric in the evaluation: `ndcg`, `as_served.ndcg`
    drop.NAME                   maximum relative loss of a metric against the live release
    coverage                    minimum share of the catalogue in at least one user's list
    users_with_lists            minimum share of users with a list
    shortest_list               minimum length of the lists
    overlap, overlap@N          minimum mean share of a user's first N items in common with the live release
    popular_share, …@N          maximum share of slots taken by the first N overall popular items
    KEPT                        minimum of what is kept of the live release, as in LEAST_KEPT

N defaults to 10. `model.NAME` is a metric with the name of a gate. `LIST:NAME` is a gate of one named list; others
are of each list. Without a bound, named lists and item attributes of the live release must be kept (`compare_names`).
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeGuard

from hotplate.offline.errors import DataError, SettingError, read_toml
from hotplate.offline.evaluate.records import EvaluationRecord, read_evaluation
from hotplate.offline.list_encoder import MAX_LENGTH, POPULAR_LENGTH
from hotplate.offline.measurement import COMPARED_USERS, SAMPLED_USERS, LiveLists, Measurement, overlap, read_live
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound, did_you_mean
from hotplate.stores.manifest import Manifest
from hotplate.stores.origin import GateVerdict, Origin
from hotplate.stores.store import Reader
from hotplate.stores.verification import load_manifest

_METRIC = "metric"
_DROP = "drop"
_COVERAGE = "coverage"
_USERS = "users_with_lists"
_SHORTEST = "shortest_list"
_OVERLAP = "overlap"
_POPULAR = "popular_share"
_OF_LISTS = (_COVERAGE, _USERS, _SHORTEST, _OVERLAP, _POPULAR)
# Compared items of a list by default: the number served by default.
DEPTH = 10

# Gates of every publish over a live release, against accidents; a bound of 0 only reports.
LEAST_KEPT = {
    "users_kept": 0.5,  # share of its users who still have a list, estimated from a sample
    "items_kept": 0.5,  # share of the items in its sampled and popular lists that are still known
    "length_kept": 0.5,  # mean length of users' lists by that of its lists, or by a shorter --list-length
    "similar_kept": 0.5,  # number of lists of similar items
    "segments_kept": 0.5,  # share of its segments that still have a popular list
    "popular_length_kept": 0.5,  # the length of the overall popular list
    "popular_kept": 0.0,  # share of its popular items that are still popular
}
# Shares of fewer users or items are not judged.
LEAST_COMPARED = 50
# Of a larger release, the sample may hardly meet live users, even if all are kept.
_LEAST_MET = 20

# What to do about a failed comparison with the live release, before it is forced.
_REMEDIES = {
    "lists_kept": "publish again with {lists} for each list that is missing",
    "attributes_kept": "publish again with {attributes} of a file that has the missing columns",
    "attribute_kinds": "mend these columns, or say how to read them with {kind}, and publish again",
    "similar_kept": "check that the data, or the file of similar items, are complete",
    "segments_kept": "check that the column, or the file, of segments is given and complete",
    **dict.fromkeys(
        ("users_kept", "items_kept", "length_kept", "popular_length_kept", "popular_kept"),
        "check that the data are complete; if they are meant to shrink, give a lower bound, as {gate}",
    ),
}
# Names of options in these sentences: of a command, and in a pipeline.
AS_FLAGS = {
    "lists": "--list NAME=SOURCE",
    "attributes": "--item-attributes",
    "kind": "--attribute NAME=number or NAME=text",
    "gate": "--gate {name}=0.1",
}
AS_KEYS = {
    "lists": "a table [lists.NAME]",
    "attributes": "item_attributes in [publish]",
    "kind": "attribute in [publish]",
    "gate": "{name} = 0.1 in [gates]",
}

_AT_A_DEPTH = re.compile(rf"({_OVERLAP}|{_POPULAR})(?:@(\d{{1,4}}))?")


@dataclass(frozen=True, slots=True)
class Gate:
    """One bound that lists must meet.

    name       without a list's, with N: `drop.ndcg`, `overlap@10`
    subject    what is measured: `metric`, `drop`, a property of lists (`coverage`, ...), or a name in LEAST_KEPT
    metric     the metric of the evaluation, for the subjects `metric` and `drop`
    depth      N, the number of first items, for the subjects `overlap` and `popular_share`
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
    def at_most(self) -> bool:
        """Whether the bound is a maximum."""
        return self.subject in (_DROP, _POPULAR)

    def verdict(self, measured: float | None, note: str = "", *, passed: bool = False) -> GateVerdict:
        """Judge *measured*; if None, *note* is the reason, and *passed* the verdict."""
        if measured is not None:
            passed = measured <= self.bound if self.at_most else measured >= self.bound
        return GateVerdict(
            gate=self.name, measured=measured, bound=self.bound, at_most=self.at_most, passed=passed, note=note
        )


DEFAULTS = (
    *(Gate(name=name, bound=bound, subject=name) for name, bound in LEAST_KEPT.items()),
    Gate(name=f"{_OVERLAP}@{DEPTH}", bound=0.0, subject=_OVERLAP, depth=DEPTH),
)


def read_gates(path: Path | None, texts: Sequence[str] = ()) -> tuple[Gate, ...]:
    """Return the gates in a TOML file, if there is one, and those in *texts*, as NAME=BOUND, which override them.

    Raises SettingError for a gate or bound that cannot be read.
    """
    gates = [] if path is None else list(parse_gates(read_toml(path), str(path)))
    for text in texts:
        name, _, bound = text.partition("=")
        if "<" in name or ">" in name:
            bound = ""  # the name sets the direction
        try:
            gates += parse_gates({name.strip(): float(bound)}, "--gate")
        except ValueError as error:
            raise SettingError(f"--gate: {text!r} is not NAME=BOUND, such as coverage=0.3.") from error
    return tuple({gate.full_name: gate for gate in gates}.values())


def parse_gates(table: Mapping[str, object], where: str) -> tuple[Gate, ...]:
    """Parse a (nested) table of bounds by name; *where* begins the message of a SettingError."""
    return tuple(_parse_gate(name, bound, where) for name, bound in _by_dotted_name(table))


def with_defaults(gates: Sequence[Gate]) -> tuple[Gate, ...]:
    """Return *gates*, and DEFAULTS for other subjects."""
    own = {gate.subject for gate in gates}
    return (*gates, *(gate for gate in DEFAULTS if gate.subject not in own))


def check(gates: Sequence[Gate], metrics: Collection[str], *, knows_catalogue: bool) -> None:
    """Raise SettingError for gates that cannot be judged, before any list is made.

    *metrics* are the names of those in the evaluation, none without one, such as `model.ndcg`, of which a gate may name
    one. The gate of coverage needs the number of all items: *knows_catalogue*.
    """
    for gate in gates:
        if gate.subject == _COVERAGE and not knows_catalogue:
            raise SettingError("Gate coverage: the number of items is unknown; list them all with --titles.")
        if gate.metric and gate.metric not in metrics and f"model.{gate.metric}" not in metrics:
            names = [*_OF_LISTS, *LEAST_KEPT, *(name.removeprefix("model.") for name in metrics)]
            hint = f"known are {', '.join(names)}, and {_DROP}. before a metric"
            lacking = "" if metrics else "; these lists have no evaluation, and other gates need its metrics"
            advice = did_you_mean(gate.metric, names) or f"{hint}{lacking}."
            raise SettingError(f"There is no gate {gate.full_name} ({gate.bound:g}); {advice}")


def check_names(gates: Sequence[Gate], names: Iterable[str]) -> None:
    """Raise SettingError for a gate of a list that is not among *names*."""
    known = {*names}
    for gate in gates:
        if gate.list_name is not None and gate.list_name not in known:
            raise SettingError(f"Gate {gate.full_name} is of the list {gate.list_name!r}, which is not published here.")


def gates_of(gates: Sequence[Gate], name: str) -> list[Gate]:
    """Return the gates of the list *name*, without it: its own, and those of each list that have other names."""
    own = [replace(gate, list_name=None) for gate in gates if gate.list_name == name]
    known = {gate.name for gate in own}
    return [*own, *(gate for gate in gates if gate.list_name is None and gate.name not in known)]


async def judge(
    gates: Sequence[Gate],
    origin: Origin,
    lists: Measurement,
    reader: Reader,
    live: ReleaseRef | None,
    *,
    name: str = "",
    is_default: bool = True,
) -> list[GateVerdict]:
    """Judge the gates of the list *name*, and return a verdict for each, in order.

    The name of a verdict is that of its gate, after the list's name and a colon if the list is not the default one.
    Gates on the list alone are judged by its evaluation, in *origin*, and by *lists*, the counts of its items. Others
    compare it with the list of the same name in the release *live*, read from *reader*. They pass if nothing is live.
    If the live release is damaged, only DEFAULTS of these pass. Raises StoreError.
    """
    compared = [gate for gate in gates if gate.subject in (_DROP, _OVERLAP, *LEAST_KEPT)]
    evaluation = evaluation_of(origin)
    verdicts = {gate: _judge_alone(gate, evaluation, lists) for gate in gates if gate not in compared}
    if live is None:
        verdicts |= {gate: gate.verdict(None, "nothing is live yet", passed=True) for gate in compared}
    elif compared:
        try:
            verdicts |= await _compare_with_live(
                compared, origin, lists, reader, live, name=name, is_default=is_default
            )
        except (ReleaseCorrupt, ReleaseNotFound) as error:
            note = f"the live release {live.id} cannot be read ({error})"
            verdicts |= {gate: gate.verdict(None, note, passed=gate in DEFAULTS) for gate in compared}
    prefix = "" if is_default else f"{name}:"
    return [replace(verdicts[gate], gate=f"{prefix}{gate.name}") for gate in gates]


async def compare_names(
    list_names: Collection[str], columns: Mapping[str, str], reader: Reader, live: ReleaseRef
) -> list[GateVerdict]:
    """Compare names with those of the release *live*; return failed verdicts alone, none if it cannot be read.

    A verdict fails for lists and for item attributes that are missing now, and for attributes whose kind (`number`
    or `text`) changed. *columns* are the kinds of the new release's attributes by name.
    """
    try:
        manifest = await load_manifest(reader, live)
    except (ReleaseCorrupt, ReleaseNotFound):
        return []
    live_lists = {*filter(None, [manifest.default_list]), *manifest.named}
    live_columns = manifest.origin.item_attributes.columns
    common = live_columns.keys() & columns.keys()
    changed = {name for name in common if columns[name] != live_columns[name]}
    listed = ", ".join(f"{name} is {columns[name]}" for name in sorted(changed))
    previous = ", ".join(dict.fromkeys(live_columns[name] for name in sorted(changed)))
    return [
        *_lost_verdict("lists_kept", live_lists, live_lists - {*list_names}, live),
        *_lost_verdict("attributes_kept", live_columns, live_columns.keys() - columns.keys(), live),
        *_failed_verdict(
            "attribute_kinds",
            of=common,
            failed=changed,
            note=f"{listed}, and {previous} in {live.id}",
        ),
    ]


def depth_of(gates: Sequence[Gate]) -> int:
    """Return the compared items per list."""
    return max((gate.depth for gate in gates if gate.subject == _OVERLAP), default=0)


def remedies(verdicts: Sequence[GateVerdict], options: Mapping[str, str]) -> str:
    """Return sentences on how to mend the failed *verdicts*, each with a semicolon; empty if no remedy is known.

    *options* are the names of options in them, as flags of the command (AS_FLAGS) or keys of a file (AS_KEYS).
    """
    sentences = dict[str, None]()  # in order, without repeats
    for verdict in verdicts:
        remedy = _REMEDIES.get(_ListedName.of(verdict.gate).name)
        if verdict.passed or remedy is None:
            continue
        option_names = {option: text.format(name=verdict.gate) for option, text in options.items()}
        sentences[remedy.format(**option_names)] = None
    return "".join(f"{sentence}; " for sentence in sentences)


def _lost_verdict(gate: str, names: Collection[str], lost: Collection[str], live: ReleaseRef) -> list[GateVerdict]:
    """Return a failed verdict if some *names* of the live release are *lost*."""
    return _failed_verdict(gate, of=names, failed=lost, note=f"without {', '.join(sorted(lost))} of {live.id}")


def _failed_verdict(gate: str, *, of: Collection[str], failed: Collection[str], note: str) -> list[GateVerdict]:
    """Return a failed verdict if some names have *failed*."""
    if not failed:
        return []
    return [GateVerdict(gate, 1 - len(failed) / len(of), 1.0, at_most=False, passed=False, note=note)]


def evaluation_of(origin: Origin) -> EvaluationRecord | None:
    """Return the evaluation of lists; None without one, or if another program wrote it."""
    try:
        return read_evaluation(origin.metrics)
    except DataError:
        return None


def _judge_alone(gate: Gate, evaluation: EvaluationRecord | None, lists: Measurement) -> GateVerdict:
    """Judge a gate that needs no live release: by the *evaluation*, or by the new *lists*."""
    if gate.subject == _METRIC:
        measured = None if evaluation is None else evaluation.metric(gate.metric)
        as_trained = None if evaluation is None else evaluation.as_trained
        trained = None if as_trained is None else as_trained.metric(gate.metric)
        note = "" if trained is None else f"as published; {trained:.4g} in training"
        return gate.verdict(measured, note)
    if lists.shortest is None:
        return gate.verdict(None, "no user has a list")
    if gate.subject == _POPULAR:
        return gate.verdict(lists.popular_share(gate.depth))
    figures = {_COVERAGE: lists.coverage, _USERS: lists.users_with_lists / lists.users, _SHORTEST: lists.shortest}
    return gate.verdict(figures[gate.subject])


async def _compare_with_live(
    gates: Sequence[Gate],
    origin: Origin,
    lists: Measurement,
    reader: Reader,
    live: ReleaseRef,
    *,
    name: str,
    is_default: bool,
) -> dict[Gate, GateVerdict]:
    """Judge gates that compare the new *lists* with those of the release *live*: all pass if it has no such list.

    The default list is compared with the live default list if the live release has none of its *name*. Raises
    ReleaseCorrupt, ReleaseNotFound and StoreError.
    """
    manifest = await load_manifest(reader, live)
    stored = manifest.stored_name(name)  # the list's name in keys: empty for the default list, None if there is none
    if stored is None and is_default:
        stored = ""
    if stored is None:
        note = f"the live release {live.id} has no list {name}"
        return {gate: gate.verdict(None, note, passed=True) for gate in gates}

    verdicts = dict[Gate, GateVerdict]()
    gates_on_lists = list[Gate]()
    for gate in gates:
        if gate.subject == _DROP:
            verdicts[gate] = _judge_metric_loss(gate, evaluation_of(origin), manifest, stored)
        else:
            gates_on_lists.append(gate)
    if not gates_on_lists:
        return verdicts

    # A bound on the overlap needs a more precise estimate than a report of it.
    is_overlap_bound = any(gate.subject == _OVERLAP and gate.bound for gate in gates_on_lists)
    sampled_lists = lists.sample(SAMPLED_USERS if is_overlap_bound else COMPARED_USERS)
    live_lists = await read_live(reader, live, manifest, sampled_lists, stored)
    kept_shares = _kept_share_by_subject(lists, len(sampled_lists), live_lists, origin.list_length or MAX_LENGTH)
    for gate in gates_on_lists:
        if gate.subject == _OVERLAP:
            verdicts[gate] = _judge_overlap(gate, sampled_lists, live_lists, live)
        else:
            verdicts[gate] = kept_shares[gate.subject].verdict(gate)
    return verdicts


def _judge_overlap(
    gate: Gate, sample: Mapping[str, Sequence[str]], live_lists: LiveLists, live: ReleaseRef
) -> GateVerdict:
    """Judge how many items the sampled lists have in common with those of the live release."""
    users = live_lists.by_user
    if not users:
        note = f"none of {len(sample):,} users with a list has one in the live release {live.id}"
        return gate.verdict(None, note, passed=not gate.bound)
    return gate.verdict(overlap(sample, users, gate.depth), f"of {len(users):,} users, with {live.id}")


class _KeptShare(NamedTuple):
    """How much of an amount *before*, in the live release, is *kept* in the new lists.

    Amounts are numbers of users, items or lists, or a length. *compared* is the number of users or items that the share
    is measured on.
    """

    kept: float
    before: float
    compared: int
    note: str

    def verdict(self, gate: Gate) -> GateVerdict:
        """Judge the share; if it is measured on fewer than LEAST_COMPARED, it passes."""
        if not self.before or self.compared < LEAST_COMPARED:
            return gate.verdict(None, f"too little to judge: {self.note}", passed=True)
        return gate.verdict(self.kept / self.before, self.note)


def _kept_share_by_subject(
    lists: Measurement, sampled: int, live: LiveLists, list_length: int
) -> dict[str, _KeptShare]:
    """Return how much of the *live* release the new *lists* keep: a share for each name in LEAST_KEPT.

    sampled      number of users with a new list who were looked up; `live.by_user` has the live lists of some of them
    list_length  most items of a new list; where it is lower than before, shorter lists are no loss
    """
    live_lengths = [len(items) for items in live.by_user.values()]
    live_mean_length = sum(live_lengths) / max(len(live_lengths), 1)
    length_before = min(live_mean_length, list_length)

    live_items = set(live.popular).union(*live.by_user.values())
    items_kept = len(lists.known(live_items))
    segments_kept = len(live.segments & lists.segments)
    popular_kept = len(set(lists.popular).intersection(live.popular))
    return {
        "users_kept": _kept_users(lists, sampled, live),
        "items_kept": _KeptShare(
            kept=items_kept,
            before=len(live_items),
            compared=len(live_items),
            note=f"{items_kept:,} of {len(live_items):,} items in live lists",
        ),
        "length_kept": _KeptShare(
            kept=lists.mean_length,
            before=length_before,
            compared=len(live_lengths),
            note=f"{lists.mean_length:.1f} items in a list after {length_before:.1f}",
        ),
        "similar_kept": _KeptShare(
            kept=min(lists.similar_lists, live.similar_lists),
            before=live.similar_lists,
            compared=live.similar_lists,
            note=f"{lists.similar_lists:,} lists of similar items after {live.similar_lists:,}",
        ),
        # The next three are not judged if the live release is small, which its number of items tells.
        "segments_kept": _KeptShare(
            kept=segments_kept,
            before=len(live.segments),
            compared=len(live_items),
            note=f"{segments_kept:,} of {len(live.segments):,} segments",
        ),
        "popular_length_kept": _KeptShare(
            kept=len(lists.popular),
            before=min(len(live.popular), max(list_length, POPULAR_LENGTH)),
            compared=len(live_items),
            note=f"{len(lists.popular)} popular items after {len(live.popular)}",
        ),
        "popular_kept": _KeptShare(
            kept=popular_kept,
            before=len(live.popular),
            compared=len(live_items),
            note=f"{popular_kept} of {len(live.popular)} items",
        ),
    }


def _kept_users(lists: Measurement, sampled: int, live: LiveLists) -> _KeptShare:
    """Estimate how many users of the *live* release still have a list.

    All users with a new list are taken to have had a live list as often as the *sampled* ones.
    """
    share_with_live_list = len(live.by_user) / max(sampled, 1)
    kept = min(live.users_with_lists, round(share_with_live_list * lists.users_with_lists))

    # If all live users are kept, the sample has `sampled / users_with_lists` of them.
    is_sample_enough = sampled * live.users_with_lists >= _LEAST_MET * lists.users_with_lists
    return _KeptShare(
        kept=kept,
        before=live.users_with_lists,
        compared=live.users_with_lists if is_sample_enough else 0,
        note=f"about {kept:,} of {live.users_with_lists:,} users with a list",
    )


def _judge_metric_loss(gate: Gate, evaluation: EvaluationRecord | None, live: Manifest, stored: str) -> GateVerdict:
    """Judge how much of a metric is lost, as a share of that of the live release; 0.1 is a tenth less.

    *evaluation* is that of the new list, and *live* the manifest of the live release, in which the list has the name
    *stored*. Fails if either lacks the metric, or they were evaluated differently.
    """
    live_evaluation = evaluation_of(live.origin_of(stored))
    now = None if evaluation is None else evaluation.metric(gate.metric)
    before = None if live_evaluation is None else live_evaluation.metric(gate.metric)
    if evaluation is None or live_evaluation is None or now is None or before is None:
        return gate.verdict(None, f"the live release {live.release} was published without {gate.metric}")
    live_protocol = _protocol_of(live_evaluation)
    for name, setting in _protocol_of(evaluation).items():
        if setting != live_protocol[name]:
            difference = f"{name} was {live_protocol[name]!r} and is {setting!r}"
            return gate.verdict(None, f"the live release {live.release} was evaluated differently: {difference}")
    loss = (before - now) / abs(before) if before else float(now < before)
    return gate.verdict(loss, f"{now:.4g} after {before:.4g} in {live.release}")


class _ListedName(NamedTuple):
    """The name of a gate, split into that of its list, None if it has none, and its own."""

    list_name: str | None
    name: str

    @classmethod
    def of(cls, text: str) -> "_ListedName":
        list_name, colon, name = text.rpartition(":")
        return cls(list_name if colon else None, name)


def _parse_gate(name: str, bound: object, where: str) -> Gate:
    """Return the gate *name*, such as `ndcg` or, of the list `basket`, `basket:ndcg`.

    Raises SettingError, which begins with *where*, for a bound that is no number or out of range.
    """
    listed = _ListedName.of(name)
    if not _is_number(bound):
        raise SettingError(f"{where}: the bound of {listed.name} is {bound!r}; it must be a number.")
    gate = _gate_named(listed.name, bound, where)

    # Metrics may have any value, lengths are numbers of items, all others are shares.
    low, high = (1, MAX_LENGTH) if gate.subject == _SHORTEST else (0, 1)
    if gate.subject != _METRIC and not low <= bound <= high:
        raise SettingError(f"{where}: the bound of {listed.name} is {bound}; it must lie between {low} and {high}.")
    return replace(gate, list_name=listed.list_name)


def _gate_named(name: str, bound: float, where: str) -> Gate:
    """Return the gate of this *name*, without the name of a list: `drop.ndcg`, `overlap@10`, `coverage` or `ndcg`.

    Any other name is taken for a metric. Raises SettingError, which begins with *where*, for an N out of range.
    """
    first, _, metric = name.partition(".")
    if first == _DROP and metric:
        return Gate(name=name, bound=bound, subject=_DROP, metric=metric)
    if at_a_depth := _AT_A_DEPTH.fullmatch(name):
        subject = at_a_depth[1]
        depth = int(at_a_depth[2] or DEPTH)
        if not 1 <= depth <= MAX_LENGTH:
            raise SettingError(f"{where}: {name} is of {depth} items; it must be of 1 to {MAX_LENGTH}.")
        return Gate(name=f"{subject}@{depth}", bound=bound, subject=subject, depth=depth)
    if name in (*_OF_LISTS, *LEAST_KEPT):
        return Gate(name=name, bound=bound, subject=name)
    return Gate(name=name, bound=bound, subject=_METRIC, metric=name)


def _by_dotted_name(table: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of nested tables by dotted name, such as `as_served.ndcg`, after *before*."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _by_dotted_name(value, f"{before}{name}.")
        else:
            yield before + name, value


def _protocol_of(evaluation: EvaluationRecord) -> dict[str, object]:
    """Return the settings of an evaluation, its split and list length k, that metrics must share to be comparable."""
    split = {name: value for name, value in evaluation.split_json.items() if name != "seed"}
    return {"split": split, "k": evaluation.k}


def _is_number(value: object) -> TypeGuard[float]:
    """Return whether *value* is a finite number and no Boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
