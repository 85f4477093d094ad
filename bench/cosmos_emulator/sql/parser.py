"""From a query's text to a statement; what is not in this small grammar is refused with a sentence that says so.

    SELECT [TOP n] (* | VALUE value | value [AS name], …) FROM name [WHERE condition]
    [ORDER BY path [ASC|DESC], …] [OFFSET n LIMIT n]

Conditions: AND, OR, NOT, parentheses, = != <> < <= > >=, IN, IS_DEFINED; values: paths, constants, @parameters,
COUNT(1).
"""

from functools import lru_cache

from bench.cosmos_emulator.errors import bad
from bench.cosmos_emulator.sql.cursor import Cursor
from bench.cosmos_emulator.sql.expressions import condition, value_of
from bench.cosmos_emulator.sql.nodes import Node, Order, Path, Record, Statement

MOST_CHARS = 512 * 1024
"""The service takes queries of up to 512 KB."""


@lru_cache(64)
def parse(text: str) -> Statement:
    """Parse a query; the same text is parsed once."""
    if len(text) > MOST_CHARS:
        raise bad("a query has at most 512 KB")
    return _statement(Cursor(text))


@lru_cache(256)
def parse_condition(text: str) -> Node:
    """Parse the condition of a patch: `FROM c WHERE …`."""
    cursor = Cursor(text)
    _source(cursor)
    if not cursor.takes("WHERE"):
        raise cursor.unknown()
    found = condition(cursor)
    cursor.finish()
    return found


def _source(cursor: Cursor) -> None:
    """Read FROM and a name, and perhaps another name for it."""
    cursor.must("FROM")
    cursor.take("word")
    if cursor.next.kind == "word" and cursor.next.text == cursor.alias:
        cursor.step()


def _statement(cursor: Cursor) -> Statement:
    """Read a whole query."""
    cursor.must("SELECT")
    top = _count(cursor) if cursor.takes("TOP") else None
    select, is_value, select_text = _selection(cursor)
    _source(cursor)
    where, where_text = None, "true"
    if cursor.takes("WHERE"):
        start = cursor.next.start
        where = condition(cursor)
        where_text = cursor.since(start)
    order = _order(cursor)
    offset, limit = 0, None
    if cursor.takes("OFFSET"):
        offset = _count(cursor)
        cursor.must("LIMIT")
        limit = _count(cursor)
    cursor.finish()
    if isinstance(select, Path) and select.segments == ():
        select_text = cursor.alias
    return Statement(select, is_value, select_text, where, where_text, order, top, offset, limit, cursor.alias)


def _count(cursor: Cursor) -> int:
    token = cursor.take("number")
    if not isinstance(token.value, int) or token.value >= 1 << 31:
        raise bad("TOP, OFFSET and LIMIT need whole numbers")
    return token.value


def _selection(cursor: Cursor) -> tuple[Node, bool, str]:
    if cursor.takes("*"):
        return Path(()), True, ""
    if cursor.takes("VALUE"):
        start = cursor.next.start
        value = value_of(cursor)
        return value, True, cursor.since(start)
    fields, texts = list[tuple[str, Node]](), list[str]()
    while True:
        start = cursor.next.start
        value = value_of(cursor)
        text = cursor.since(start)
        name = _field_name(cursor, value, len(fields) + 1)
        fields.append((name, value))
        texts.append(f'"{name}": {text}')
        if not cursor.takes(","):
            return Record(tuple(fields)), False, f"{{{', '.join(texts)}}}"


def _field_name(cursor: Cursor, value: Node, place: int) -> str:
    if cursor.takes("AS"):
        return cursor.take("word").text
    if isinstance(value, Path) and value.segments:
        return str(value.segments[-1])
    return cursor.alias if isinstance(value, Path) else f"${place}"


def _order(cursor: Cursor) -> tuple[Order, ...]:
    if not cursor.takes("ORDER"):
        return ()
    cursor.must("BY")
    orders = list[Order]()
    while True:
        start = cursor.next.start
        path = value_of(cursor)
        if not isinstance(path, Path):
            raise cursor.unknown()
        text = cursor.since(start)
        descending = cursor.takes("DESC")
        if not descending:
            cursor.takes("ASC")
        orders.append(Order(path, descending, text))
        if not cursor.takes(","):
            return tuple(orders)
