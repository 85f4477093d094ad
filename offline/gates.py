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
from enum import StrEnum
from pathlib import Path

from hotplate.offline.errors import SettingError, read_toml, require_between
from hotplate.offline.input.columns import number_in
from hotplate.offline.list_encoder import MAX_LENGTH
from hotplate.stores.errors import did_you_mean
from hotplate.stores.origin import GateVerdict


class Subject(StrEnum):
    """What a gate measures; the names in LEAST_KEPT are subjects, too."""

    METRIC = "metric"
    DROP = "drop"
    COVERAGE = "coverage"
    USERS_WITH_LISTS = "users_with_lists"
    SHORTEST_LIST = "shortest_list"
    OVERLAP = "overlap"
    POPULAR_SHARE = "popular_share"


_OF_LISTS = (
    Subject.COVERAGE,
    Subject.USERS_WITH_LISTS,
    Subject.SHORTEST_LIST,
    Subject.OVERLAP,
    Subject.POPULAR_SHARE,
)

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
_AT_A_DEPTH = re.compile(rf"({Subject.OVERLAP}|{Subject.POPULAR_SHARE})(?:@(\d{{1,4}}))?")


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
        return self.subject in (Subject.DROP, Subject.POPULAR_SHARE)

    def verdict(self, measured: float | None, note: str = "", *, passed: bool = False) -> GateVerdict:
        """Judge *measured*; if None, *note* is the reason, and *passed* the verdict."""
        if measured is not None:
            passed = measured <= self.bound if self.at_most else measured >= self.bound
        return GateVerdict(
            gate=self.name, measured=measured, bound=self.bound, at_most=self.at_most, passed=passed, note=note
        )


DEFAULTS = (
    *(Gate(name=name, bound=bound, subject=name) for name, bound in LEAST_KEPT.items()),
    Gate(name=f"{Subject.OVERLAP}@{DEPTH}", bound=0.0, subject=Subject.OVERLAP, depth=DEPTH),
)


def read_gates(path: Path | None, texts: Sequence[str] = ()) -> tuple[Gate, ...]:
    """Return the gates (bounds for lists) in a TOML file, if there is one, and those in *texts*, such as `ndcg=0.1`.

    Of two gates with the same name, the one in *texts* counts. Raises SettingError for a gate or bound that cannot be
    read.
    """
    gates = [] if path is None else list(parse_gates(read_toml(path), str(path)))
    for text in texts:
        name, _, written_bound = text.partition("=")
        bound = number_in(written_bound)
        # The name says whether the bound is a minimum.
        if bound is None or not name.strip() or "<" in name or ">" in name:
            raise SettingError(f"--gate: {text!r} is not NAME=BOUND, such as coverage=0.3.")
        gates += parse_gates({name.strip(): bound}, "--gate")
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

    *metrics* are the names of the evaluation's metrics, such as `model.ndcg`; a gate on a metric must name one of them.
    Without an evaluation, there are none. The gate of coverage needs the number of all items: *knows_catalogue*.
    """
    for gate in gates:
        if gate.subject == Subject.COVERAGE and not knows_catalogue:
            raise SettingError("Gate coverage: the number of items is unknown; list them all with --titles.")

        # Any name that is not that of another gate was taken for a metric, so it may be a misspelt gate.
        needs_metric = gate.subject in (Subject.METRIC, Subject.DROP)
        if needs_metric and gate.metric not in metrics and f"model.{gate.metric}" not in metrics:
            names = [*_OF_LISTS, *LEAST_KEPT, *(name.removeprefix("model.") for name in metrics)]
            hint = f"known are {', '.join(names)}, and {Subject.DROP}. before a metric"
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


def remedies(verdicts: Sequence[GateVerdict], options: Mapping[str, str]) -> str:
    """Return sentences on how to mend the failed *verdicts*, each with a semicolon; empty if no remedy is known.

    *options* are the names of options in them, as flags of the command (AS_FLAGS) or keys of a file (AS_KEYS).
    """
    sentences = dict[str, None]()  # in order, without repeats
    for verdict in verdicts:
        _, _, name = verdict.gate.rpartition(":")  # a verdict on a named list has the gate `basket:coverage`
        remedy = _REMEDIES.get(name)
        if verdict.passed or remedy is None:
            continue

        # A remedy names options by their role, such as {gate}.
        option_names = {option: text.format(name=verdict.gate) for option, text in options.items()}
        sentences[remedy.format(**option_names)] = None
    return "".join(f"{sentence}; " for sentence in sentences)


def _parse_gate(full_name: str, bound: object, where: str) -> Gate:
    """Return the gate (a bound for lists) *full_name*, such as `ndcg` or, of the list `basket`, `basket:ndcg`.

    Raises SettingError, which begins with *where*, for a bound that is not a number or out of range.
    """
    list_name, colon, name = full_name.rpartition(":")
    if not isinstance(bound, int | float) or isinstance(bound, bool) or not math.isfinite(bound):
        raise SettingError(f"{where}: the bound of {name} is {bound!r}; it must be a number.")

    gate = _gate_named(name, bound, where)

    # Metrics may have any value, lengths are numbers of items, all others are shares.
    low, high = (1, MAX_LENGTH) if gate.subject == Subject.SHORTEST_LIST else (0, 1)
    if gate.subject != Subject.METRIC:
        require_between(f"{where}: the bound of {name}", bound, low, high)
    return replace(gate, list_name=list_name if colon else None)


def _gate_named(name: str, bound: float, where: str) -> Gate:
    """Return the gate of this *name*, without the name of a list: `drop.ndcg`, `overlap@10`, `coverage` or `ndcg`.

    Any other name is taken for a metric. Raises SettingError, which begins with *where*, for an N out of range.
    """
    first, _, metric = name.partition(".")
    if first == Subject.DROP and metric:
        return Gate(name=name, bound=bound, subject=Subject.DROP, metric=metric)

    # `overlap` and `popular_share`, perhaps with @N: of the first N items.
    if at_a_depth := _AT_A_DEPTH.fullmatch(name):
        subject = at_a_depth[1]
        depth = int(at_a_depth[2] or DEPTH)
        if not 1 <= depth <= MAX_LENGTH:
            raise SettingError(f"{where}: {name} is of {depth} items; it must be of 1 to {MAX_LENGTH}.")
        return Gate(name=f"{subject}@{depth}", bound=bound, subject=subject, depth=depth)

    if name in (*_OF_LISTS, *LEAST_KEPT):
        return Gate(name=name, bound=bound, subject=name)
    return Gate(name=name, bound=bound, subject=Subject.METRIC, metric=name)


def _by_dotted_name(table: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of nested tables by dotted name, such as `as_served.ndcg`, after *before*."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _by_dotted_name(value, f"{before}{name}.")
        else:
            yield before + name, value
