"""Bounds of gates, as users write them: `coverage=0.3`, `drop.ndcg = 0.1`, `overlap@20`, `basket:ndcg`.

NAME           a row of `table.KINDS`, or any other name, which is a metric of the evaluation: `ndcg`, `as_served.ndcg`
drop.NAME      a kind of gate of a metric
overlap@N      of the first N items of lists, for a kind that has an N by default
LIST:NAME      a gate of one named list; others are of each list

`model.NAME` is a metric with the name of a gate.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hotplate.offline.errors import SettingError, read_toml, require_between
from hotplate.offline.gates.table import DROP, KINDS, METRIC, Gate, Need
from hotplate.offline.input.columns import number_in
from hotplate.offline.list_encoder import MAX_LENGTH
from hotplate.offline.options import PublishSettings
from hotplate.stores.errors import did_you_mean

# Kinds of gates of lists that a user can give a bound, by name.
_OF_LISTS = {name: kind for name, kind in KINDS.items() if kind.is_of_lists}


def bounds_of(settings: PublishSettings) -> Sequence[Gate]:
    """Return the gates; raises SettingError."""
    return parse_gates(settings.gates, "gates") if isinstance(settings.gates, Mapping) else settings.gates


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
    return last_of_each(gates)


def last_of_each(gates: Iterable[Gate]) -> tuple[Gate, ...]:
    """Return the last of the gates with the same name."""
    return tuple({gate.full_name: gate for gate in gates}.values())


def parse_gates(table: Mapping[str, object], where: str) -> tuple[Gate, ...]:
    """Parse a (nested) table of bounds by name; *where* begins the message of a SettingError."""
    return tuple(_parse_gate(name, bound, where) for name, bound in _by_dotted_name(table))


def check(gates: Sequence[Gate], metrics: Collection[str], *, knows_catalogue: bool) -> None:
    """Raise SettingError for gates that cannot be judged, before any list is made.

    *metrics* are the names of the evaluation's metrics, such as `model.ndcg`; a gate on a metric must name one of them.
    Without an evaluation, there are none. *knows_catalogue* is whether the number of all items is known.
    """
    for gate in gates:
        if gate.kind.needs is Need.CATALOGUE and not knows_catalogue:
            raise SettingError(f"Gate {gate.name}: the number of items is unknown; list them all with --titles.")

        # Any name that is not that of another gate was taken for a metric, so it may be a misspelt gate.
        if not gate.kind.is_of_lists and gate.metric not in metrics and f"model.{gate.metric}" not in metrics:
            names = [*_OF_LISTS, *(name.removeprefix("model.") for name in metrics)]
            hint = f"known are {', '.join(names)}, and drop. before a metric"
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


def _parse_gate(full_name: str, bound: object, where: str) -> Gate:
    """Return the gate (a bound for lists) *full_name*, such as `ndcg` or, of the list `basket`, `basket:ndcg`.

    Raises SettingError, which begins with *where*, for a bound that is not a number or out of range.
    """
    list_name, colon, name = full_name.rpartition(":")
    if not isinstance(bound, int | float) or isinstance(bound, bool) or not math.isfinite(bound):
        raise SettingError(f"{where}: the bound of {name} is {bound!r}; it must be a number.")

    gate = _gate_named(name, bound, where)
    if gate.kind.range is not None:
        require_between(f"{where}: the bound of {name}", bound, *gate.kind.range)
    return replace(gate, list_name=list_name if colon else None)


def _gate_named(name: str, bound: float, where: str) -> Gate:
    """Return the gate of this *name*, without the name of a list: `drop.ndcg`, `overlap@10`, `coverage` or `ndcg`.

    Any other name is taken for a metric. Raises SettingError, which begins with *where*, for an N out of range.
    """
    prefix, _, metric = name.partition(".")
    if prefix == DROP.name and metric:
        return Gate(name=name, bound=bound, subject=prefix, metric=metric)

    kind_name, at, written_depth = name.partition("@")
    kind = _OF_LISTS.get(kind_name)
    if kind is None or (at and not (kind.depth and written_depth.isdecimal())):
        return Gate(name=name, bound=bound, subject=METRIC.name, metric=name)

    depth = int(written_depth or kind.depth)
    if at and not 1 <= depth <= MAX_LENGTH:
        raise SettingError(f"{where}: {name} is of {depth} items; it must be of 1 to {MAX_LENGTH}.")
    return kind.gate(bound, depth)


def _by_dotted_name(table: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of nested tables by dotted name, such as `as_served.ndcg`, after *before*."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _by_dotted_name(value, f"{before}{name}.")
        else:
            yield before + name, value
