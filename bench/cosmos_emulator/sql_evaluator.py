"""Evaluates the conditions and values of a query on one item; what is not there is undefined and never fulfils.

https://learn.microsoft.com/azure/cosmos-db/nosql/query/equality-comparison-operators: values of different types are not
compared.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

from bench.cosmos_emulator.errors import bad_request
from bench.cosmos_emulator.partition_keys import UNDEFINED
from bench.cosmos_emulator.sql_parser import (
    And,
    ArrayOf,
    Comparison,
    Count,
    In,
    IsDefined,
    Literal,
    Node,
    Not,
    ObjectOf,
    Or,
    Parameter,
    Path,
    Segment,
    parse_condition,
)

Parameters = Mapping[str, Any]
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
ALWAYS = Literal(True)
RANKS: dict[type, int] = {type(None): 1, bool: 2, int: 3, float: 3, str: 4, list: 5, dict: 6}


def is_fulfilled(condition: object, item: Mapping[str, Any]) -> bool:
    """Return whether an item fulfils the condition of a patch."""
    if not isinstance(condition, str):
        raise bad_request("condition must be a string, as: from c where c.stock > 0")
    return evaluate(parse_condition(condition), item, {}) is True


def evaluate(node: Node, item: Any, parameters: Parameters) -> Any:  # noqa: ANN401, C901, PLR0911, PLR0912 -- JSON in and out; one case for each kind of node
    """Return the value of *node* for *item*, UNDEFINED where there is none."""
    match node:
        case Path():
            return _resolve(item, node)
        case Literal():
            return node.value
        case Parameter():
            if node.name not in parameters:
                raise bad_request(f"the query names {node.name}, and no parameter has that name")
            return parameters[node.name]
        case Comparison():
            return _compare(
                node.operator, evaluate(node.left, item, parameters), evaluate(node.right, item, parameters)
            )
        case In():
            left = evaluate(node.left, item, parameters)
            return any(_equal(left, evaluate(option, item, parameters)) for option in node.options)
        case And():
            return all(evaluate(part, item, parameters) is True for part in node.parts)
        case Or():
            return any(evaluate(part, item, parameters) is True for part in node.parts)
        case Not():
            value = evaluate(node.part, item, parameters)
            return not value if isinstance(value, bool) else UNDEFINED
        case IsDefined():
            return evaluate(node.part, item, parameters) is not UNDEFINED
        case ArrayOf():
            made = (evaluate(part, item, parameters) for part in node.parts)
            return [value for value in made if value is not UNDEFINED]
        case ObjectOf():
            pairs = ((name, evaluate(part, item, parameters)) for name, part in node.parts)
            return {name: value for name, value in pairs if value is not UNDEFINED}
        case Count():
            return item


def _resolve(item: Any, path: Path) -> Any:  # noqa: ANN401 -- any JSON value
    value: Any = item
    for segment in path.segments:
        try:
            value = _child(value, segment)
        except (IndexError, KeyError):
            return UNDEFINED
    return value


def _child(value: Any, segment: Segment) -> Any:  # noqa: ANN401 -- any JSON values
    if isinstance(segment, int):
        return value[segment] if isinstance(value, list) else UNDEFINED
    return value[segment] if isinstance(value, dict) else UNDEFINED


def rank(value: object) -> int:
    """Return where values of this type stand among those of others: undefined, null, booleans, numbers, strings …"""
    return RANKS.get(type(value), 0)


def _equal(left: object, right: object) -> bool:
    return left is not UNDEFINED and rank(left) == rank(right) and left == right


def _compare(sign: str, left: Any, right: Any) -> Any:  # noqa: ANN401 -- any JSON values; True, False or UNDEFINED
    if left is UNDEFINED or right is UNDEFINED:
        return UNDEFINED
    same = rank(left) == rank(right)
    if sign == "=":
        return same and left == right
    if sign == "!=":
        return not (same and left == right)
    if not same or isinstance(left, list | dict):
        return UNDEFINED
    return left is None and sign in ("<=", ">=") if left is None else OPERATORS[sign](left, right)


def conditions_by_id(node: Node, parameters: Parameters) -> dict[str, Node] | None:
    """Return what is left of a condition for each id that can fulfil it; None where it does not name ids.

    SDKs read many items as one condition of up to 1,000 parts, each with its id: without this, each item would be held
    against all of them.
    """
    match node:
        case Comparison("=", Path(("id",)), Literal() | Parameter() as right):
            return dict.fromkeys(_strings([evaluate(right, None, parameters)]), ALWAYS)
        case In(Path(("id",)), options) if all(isinstance(one, Literal | Parameter) for one in options):
            return dict.fromkeys(_strings([evaluate(one, None, parameters) for one in options]), ALWAYS)
        case And(parts):
            for part in parts:
                if (named := conditions_by_id(part, parameters)) is not None:
                    return dict.fromkeys(named, node)
        case Or(parts):
            return _merged([conditions_by_id(part, parameters) for part in parts])
    return None


def _merged(branches: list[dict[str, Node] | None]) -> dict[str, Node] | None:
    merged = dict[str, list[Node]]()
    for branch in branches:
        if branch is None:
            return None
        for name, node in branch.items():
            merged.setdefault(name, []).append(node)
    return {name: nodes[0] if len(nodes) == 1 else Or(tuple(nodes)) for name, nodes in merged.items()}


def _strings(values: list[Any]) -> set[str]:
    return {value for value in values if isinstance(value, str)}
