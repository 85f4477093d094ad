"""Values and conditions of a query: constants, paths, parameters, comparisons, and what joins them."""

from bench.cosmos_emulator.sql.cursor import Cursor
from bench.cosmos_emulator.sql.nodes import (
    Among,
    Array,
    Compare,
    Counted,
    Defined,
    Either,
    Every,
    Literal,
    Negated,
    Node,
    Parameter,
    Path,
    Record,
    Segment,
)
from bench.cosmos_emulator.sql.tokens import Token

COMPARISONS = ("=", "!=", "<>", "<=", ">=", "<", ">")
CONSTANTS = {"true": True, "false": False, "null": None}


def condition(cursor: Cursor) -> Node:
    """Read conditions joined by OR."""
    parts = [_every(cursor)]
    while cursor.takes("OR"):
        parts.append(_every(cursor))
    return parts[0] if len(parts) == 1 else Either(tuple(parts))


def _every(cursor: Cursor) -> Node:
    parts = [_negated(cursor)]
    while cursor.takes("AND"):
        parts.append(_negated(cursor))
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _negated(cursor: Cursor) -> Node:
    if cursor.takes("NOT"):
        return Negated(cursor.nested(_negated))
    return _comparison(cursor)


def _comparison(cursor: Cursor) -> Node:
    left = value_of(cursor)
    negated = cursor.next.text.upper() == "NOT"
    if negated:
        cursor.step()
    if cursor.takes("IN"):
        cursor.must("(")
        found: Node = Among(left, _list(cursor, ")"))
        return Negated(found) if negated else found
    if negated:
        raise cursor.unknown()
    for operator in COMPARISONS:
        if cursor.takes(operator):
            return Compare("!=" if operator == "<>" else operator, left, value_of(cursor))
    return left


def _list(cursor: Cursor, closing: str) -> tuple[Node, ...]:
    parts = [cursor.nested(value_of)]
    while cursor.takes(","):
        parts.append(cursor.nested(value_of))
    cursor.must(closing)
    return tuple(parts)


def value_of(cursor: Cursor) -> Node:  # noqa: PLR0911 -- one line for each kind of value
    """Read one value; a condition in parentheses is one."""
    token = cursor.next
    if token.kind in ("string", "number"):
        cursor.step()
        return Literal(token.value)
    if token.kind == "parameter":
        cursor.step()
        return Parameter(token.text)
    if token.kind == "word":
        return _named(cursor, token)
    if cursor.takes("("):
        inner = cursor.nested(condition)
        cursor.must(")")
        return inner
    if cursor.takes("["):
        return Array(_list(cursor, "]"))
    if cursor.takes("{"):
        return _record(cursor)
    if cursor.takes("-"):
        return Literal(-cursor.take("number").value)
    raise cursor.unknown()


def _named(cursor: Cursor, token: Token) -> Node:
    word = token.text.upper()
    if token.text == cursor.alias:
        cursor.step()
        return _path(cursor)
    if word.lower() in CONSTANTS:
        cursor.step()
        return Literal(CONSTANTS[word.lower()])
    if word in ("COUNT", "IS_DEFINED"):
        cursor.step()
        cursor.must("(")
        inner = cursor.nested(value_of)
        cursor.must(")")
        if word == "IS_DEFINED":
            return Defined(inner)
        if isinstance(inner, Literal) or inner == Path(()):
            return Counted()
    raise cursor.unknown()


def _path(cursor: Cursor) -> Path:
    segments = list[Segment]()
    while True:
        if cursor.takes("."):
            segments.append(cursor.take("word").text)
        elif cursor.takes("["):
            token = cursor.take("number" if cursor.next.kind == "number" else "string")
            if not isinstance(token.value, str | int):
                raise cursor.unknown()
            segments.append(token.value)
            cursor.must("]")
        else:
            return Path(tuple(segments))


def _record(cursor: Cursor) -> Record:
    parts = list[tuple[str, Node]]()
    while True:
        name = cursor.take("string" if cursor.next.kind == "string" else "word")
        cursor.must(":")
        value = cursor.nested(value_of)
        parts.append((name.value if name.kind == "string" else name.text, value))
        if not cursor.takes(","):
            cursor.must("}")
            return Record(tuple(parts))
