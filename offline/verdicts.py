"""Verdicts of gates: on new lists alone, and on what they keep of the live release."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from msgspec import UNSET

from hotplate.base.report import format_count
from hotplate.offline.errors import DataError
from hotplate.offline.evaluate.records import EvaluationRecord, read_evaluation
from hotplate.offline.gates import DEFAULTS, LEAST_KEPT, Gate, Subject, with_defaults
from hotplate.offline.list_encoder import MAX_LENGTH, POPULAR_LENGTH
from hotplate.offline.measurement import COMPARED_USERS, SAMPLED_USERS, LiveLists, Measurement, overlap, read_live
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound
from hotplate.stores.manifest import Manifest
from hotplate.stores.origin import GateVerdict, Origin
from hotplate.stores.store import Reader
from hotplate.stores.verification import load_manifest

# Shares of fewer users or items are not judged.
LEAST_COMPARED = 50
# Of a larger release, the sample may hardly meet live users, even if all are kept.
_LEAST_MET = 20


class NewList(NamedTuple):
    """A list that is to be published.

    name           its name; empty for the default list, unless that has one
    stored_name    the name in keys; empty for the default list
    gates          bounds that the list must meet to go live, such as a minimum of NDCG
    evaluation     of the list; None without one
    list_length    most items per user; None if unknown
    counts         of its items and users, filled while it is written
    similar_lists  items with a list of similar ones, known once all rows are written
    segments       segments (groups of users, such as a country) with a popular list, known once all rows are written
    """

    name: str
    stored_name: str
    gates: Sequence[Gate]
    evaluation: EvaluationRecord | None
    list_length: int | None
    counts: Measurement
    similar_lists: int = 0
    segments: Collection[str] = ()

    @property
    def is_default(self) -> bool:
        """Whether it is the default list."""
        return not self.stored_name


async def judge(new: NewList, reader: Reader, live: ReleaseRef | None) -> list[GateVerdict]:
    """Judge the gates of the list *new*, and return a verdict for each, in order.

    Gates on the list alone are judged by its evaluation and its counts. Others compare it with the list of the same
    name in the release *live*, read from *reader*. If nothing is live, these pass; else those in DEFAULTS are judged,
    too. If the live release is damaged, only those in DEFAULTS pass. A verdict has the name of its gate, with the name
    of the list before it (`basket:coverage`) unless it is the default list. Raises StoreError.
    """
    gates = new.gates if live is None else with_defaults(new.gates)
    compared = [gate for gate in gates if gate.subject in (Subject.DROP, Subject.OVERLAP, *LEAST_KEPT)]
    verdicts = {gate: _judge_alone(gate, new) for gate in gates if gate not in compared}

    if live is None:
        verdicts |= {gate: gate.verdict(None, "nothing is live yet", passed=True) for gate in compared}
    elif compared:
        try:
            verdicts |= await _compare_with_live(compared, new, reader, live)
        except (ReleaseCorrupt, ReleaseNotFound) as error:
            note = f"the live release {live.id} cannot be read ({error})"
            verdicts |= {gate: gate.verdict(None, note, passed=gate in DEFAULTS) for gate in compared}

    prefix = "" if new.is_default else f"{new.name}:"
    return [replace(verdicts[gate], gate=f"{prefix}{gate.name}") for gate in gates]


async def compare_names(
    list_names: Collection[str], columns: Mapping[str, str], reader: Reader, live: ReleaseRef
) -> list[GateVerdict]:
    """Check that a new release has the lists and item attributes of the release *live*, on which requests may rely.

    list_names  names of the new lists
    columns     the new item attributes (such as price, for filters): `number` or `text`, by name

    Returns a failed verdict if lists are missing, one if attributes are missing, and one if attributes have changed
    their kind. Nothing is returned for checks that pass, and if the live release cannot be read.
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


def _judge_alone(gate: Gate, new: NewList) -> GateVerdict:
    """Judge a gate (a bound for lists) that needs no live release: by the list's evaluation, or by its counts.

    A gate on a metric notes its value in training, too, if the list was evaluated again as published, with rules.
    """
    if gate.subject == Subject.METRIC:
        evaluation = new.evaluation
        measured = None if evaluation is None else evaluation.metric(gate.metric)
        as_trained = None if evaluation is None else evaluation.as_trained
        trained = None if as_trained is None else as_trained.metric(gate.metric)
        note = "" if trained is None else f"as published; {trained:.4g} in training"
        return gate.verdict(measured, note)

    counts = new.counts
    if counts.shortest is None:
        return gate.verdict(None, "no user has a list")
    if gate.subject == Subject.POPULAR_SHARE:
        return gate.verdict(counts.popular_share(gate.depth))
    figures: dict[str, float] = {
        Subject.COVERAGE: counts.coverage,
        Subject.USERS_WITH_LISTS: counts.users_with_lists / counts.users,
        Subject.SHORTEST_LIST: counts.shortest,
    }
    return gate.verdict(figures[gate.subject])


async def _compare_with_live(
    gates: Sequence[Gate], new: NewList, reader: Reader, live: ReleaseRef
) -> dict[Gate, GateVerdict]:
    """Judge gates (bounds for lists) that compare a list with that of the release *live*; return verdicts by gate.

    The list of the same name is compared, or for the default list the live default list. If there is none, all gates
    pass. Raises ReleaseCorrupt, ReleaseNotFound and StoreError.
    """
    manifest = await load_manifest(reader, live)

    # The name of the live list in its keys: empty for the default list, None if there is none.
    stored_name = manifest.stored_name(new.name)
    if stored_name is None and new.is_default:
        stored_name = ""
    if stored_name is None:
        note = f"the live release {live.id} has no list {new.name}"
        return {gate: gate.verdict(None, note, passed=True) for gate in gates}

    verdicts = dict[Gate, GateVerdict]()
    gates_on_lists = list[Gate]()
    for gate in gates:
        if gate.subject == Subject.DROP:
            verdicts[gate] = _judge_metric_loss(gate, new.evaluation, manifest, stored_name)
        else:
            gates_on_lists.append(gate)

    # The live lists need not be read for metrics, which are in the manifest.
    if not gates_on_lists:
        return verdicts

    # A bound on the overlap needs a more precise estimate than a report of it.
    is_overlap_bound = any(gate.subject == Subject.OVERLAP and gate.bound for gate in gates_on_lists)
    sampled_lists = new.counts.sample(SAMPLED_USERS if is_overlap_bound else COMPARED_USERS)
    live_lists = await read_live(reader, live, manifest, sampled_lists, stored_name)

    kept_shares = _kept_share_by_subject(new, len(sampled_lists), live_lists)
    for gate in gates_on_lists:
        if gate.subject == Subject.OVERLAP:
            verdicts[gate] = _judge_overlap(gate, sampled_lists, live_lists, live)
        else:
            verdicts[gate] = kept_shares[gate.subject].verdict(gate)
    return verdicts


def _judge_overlap(
    gate: Gate, sample: Mapping[str, Sequence[str]], live_lists: LiveLists, live: ReleaseRef
) -> GateVerdict:
    """Judge the mean share of items that the lists of the *sample* have in common with those of the live release.

    *sample* are the new lists of sampled users, as item ids by user. Without a live list of any of them, the gate
    passes only if its bound is 0.
    """
    users = live_lists.by_user
    if not users:
        note = f"none of {format_count(len(sample), 'user')} with a list has one in the live release {live.id}"
        return gate.verdict(None, note, passed=not gate.bound)
    return gate.verdict(overlap(sample, users, gate.depth), f"of {format_count(len(users), 'user')}, with {live.id}")


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


def _kept_share_by_subject(new: NewList, sampled: int, live: LiveLists) -> dict[str, _KeptShare]:
    """Return how much of the *live* release the list *new* keeps: a share for each name in LEAST_KEPT.

    *sampled* is the number of users with a new list who were looked up; `live.by_user` has the live lists of some of
    them.
    """
    lists = new.counts

    # A lower --list-length is no loss.
    list_length = new.list_length or MAX_LENGTH
    live_lengths = [len(items) for items in live.by_user.values()]
    live_mean_length = sum(live_lengths) / max(len(live_lengths), 1)
    length_before = min(live_mean_length, list_length)

    live_items = set(live.popular).union(*live.by_user.values())
    items_kept = len(lists.known(live_items))
    segments_kept = len(live.segments.intersection(new.segments))
    popular_kept = len(set(lists.popular).intersection(live.popular))
    return {
        "users_kept": _kept_users(lists, sampled, live),
        "items_kept": _KeptShare(
            kept=items_kept,
            before=len(live_items),
            compared=len(live_items),
            note=f"{items_kept:,} of {format_count(len(live_items), 'item')} in live lists",
        ),
        "length_kept": _KeptShare(
            kept=lists.mean_length,
            before=length_before,
            compared=len(live_lengths),
            note=f"{lists.mean_length:.1f} items in a list after {length_before:.1f}",
        ),
        "similar_kept": _KeptShare(
            kept=min(new.similar_lists, live.similar_lists),
            before=live.similar_lists,
            compared=live.similar_lists,
            note=f"{new.similar_lists:,} lists of similar items after {live.similar_lists:,}",
        ),
        # The next three are not judged if the live release is small, which its number of items tells.
        "segments_kept": _KeptShare(
            kept=segments_kept,
            before=len(live.segments),
            compared=len(live_items),
            note=f"{segments_kept:,} of {format_count(len(live.segments), 'segment')}",
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
            note=f"{popular_kept} of {format_count(len(live.popular), 'item')}",
        ),
    }


def _kept_users(lists: Measurement, sampled: int, live: LiveLists) -> _KeptShare:
    """Estimate how many users with a list in the *live* release still have one.

    *sampled* is the number of users with a new list who were looked up in the live release; `live.by_user` has those
    found. The share of them that were found is taken for the share of all users with a new list (`users_with_lists`).
    """
    share_with_live_list = len(live.by_user) / max(sampled, 1)
    kept = min(live.users_with_lists, round(share_with_live_list * lists.users_with_lists))

    # If all live users were kept, the sample would have `sampled / users_with_lists` of them. Of a much smaller live
    # release, that may be too few to judge.
    is_sample_enough = sampled * live.users_with_lists >= _LEAST_MET * lists.users_with_lists
    return _KeptShare(
        kept=kept,
        before=live.users_with_lists,
        compared=live.users_with_lists if is_sample_enough else 0,
        note=f"about {kept:,} of {format_count(live.users_with_lists, 'user')} with a list",
    )


def _judge_metric_loss(gate: Gate, evaluation: EvaluationRecord | None, live: Manifest, stored: str) -> GateVerdict:
    """Judge how much of a metric is lost against the live release, as a share: 0.15 after 0.2 is a loss of 0.25.

    *evaluation* is that of the new list. *live* is the manifest of the live release, in which the list has the name
    *stored* (empty for the default list). The verdict fails if either lacks the metric, or they were evaluated
    differently.
    """
    live_origin = live.origin_of(stored)
    live_evaluation = evaluation_of(live_origin)
    if live_evaluation is None and live_origin.metrics:
        return gate.verdict(None, f"the evaluation of the live release {live.release} cannot be read")

    now = None if evaluation is None else evaluation.metric(gate.metric)
    before = None if live_evaluation is None else live_evaluation.metric(gate.metric)
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


def _protocol_of(evaluation: EvaluationRecord, metric: str) -> dict[str, object]:
    """Return the settings of an evaluation, such as its split and list length k, by which a *metric* is comparable."""
    split = {name: value for name, value in evaluation.split_json.items() if name != "seed"}
    protocol: dict[str, object] = {"split": split, "k": evaluation.k}
    if metric.removeprefix("model.") == "coverage":
        protocol["coverage_of"] = "all items" if evaluation.coverage_of is UNSET else evaluation.coverage_of
    return protocol
