"""From a query's text to a statement; what is not in this small grammar is refused with a sentence that says so.

    SELECT [TOP n] (* | VALUE value | value [AS name], …) FROM name [WHERE condition]
    [ORDER BY path [ASC|DESC], …] [OFFSET n LIMIT n]

Conditions: AND, OR, NOT, parentheses, = != <> < <= > >=, IN, IS_DEFINED; values: paths, constants, @parameters,
COUNT(1).
"""

from collections.abc import Callable
from functools import lru_cache

from bench.cosmos_emulator.errors import Refused, bad
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
    Order,
    Parameter,
    Path,
    Record,
    Segment,
    Statement,
)
from bench.cosmos_emulator.sql.tokens import Token, tokens

COMPARISONS = ("=", "!=", "<>", "<=", ">=", "<", ">")
CONSTANTS = {"true": True, "false": False, "null": None}
MOST_DEPTH = 40
MOST_CHARS = 512 * 1024
"""The service takes queries of up to 512 KB."""


@lru_cache(256)
def parse(text: str) -> Statement:
    """Parse a query; the same text is parsed once."""
    if len(text) > MOST_CHARS:
        raise bad("a query has at most 512 KB")
    return _Parser(text).statement()


@lru_cache(256)
def parse_condition(text: str) -> Node:
    """Parse the condition of a patch: `FROM c WHERE …`."""
    parser = _Parser(text)
    parser.source()
    if not parser.takes("WHERE"):
        raise parser.unknown()
    condition = parser.condition()
    parser.finish()
    return condition


class _Parser:
    """Reads tokens one after the other; lives as long as one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokens(text)
        self._place = 0
        self._depth = 0
        self._alias = self._find_alias()

    def _find_alias(self) -> str:
        for place, token in enumerate(self._tokens):
            if token.kind == "word" and token.text.upper() == "FROM":
                source, after = self._tokens[place + 1], self._tokens[min(place + 2, len(self._tokens) - 1)]
                renamed = after.kind == "word" and after.text.upper() not in ("WHERE", "ORDER", "OFFSET", "AS", "JOIN")
                return after.text if renamed else source.text
        return "c"

    @property
    def _next(self) -> Token:
        return self._tokens[self._place]

    def unknown(self) -> Refused:
        """Refuse what stands next."""
        token = self._next
        return bad(
            f"this emulation does not understand the query at {token.start}: {self._text[token.start :][:30]!r}; "
            "it speaks only the simple queries that its documentation lists"
        )

    def takes(self, word: str) -> bool:
        """Step over *word* where it stands next."""
        token = self._next
        if token.kind in ("word", "sign") and token.text.upper() == word:
            self._place += 1
            return True
        return False

    def _must(self, word: str) -> None:
        if not self.takes(word):
            raise self.unknown()

    def _take(self, kind: str) -> Token:
        token = self._next
        if token.kind != kind:
            raise self.unknown()
        self._place += 1
        return token

    def finish(self) -> None:
        """Refuse anything that is left."""
        if self._next.kind != "end":
            raise self.unknown()

    def source(self) -> None:
        """Read FROM and a name, and perhaps another name for it."""
        self._must("FROM")
        self._take("word")
        if self._next.kind == "word" and self._next.text == self._alias:
            self._place += 1

    def statement(self) -> Statement:
        """Read a whole query."""
        self._must("SELECT")
        top = self._count() if self.takes("TOP") else None
        select, is_value, select_text = self._selection()
        self.source()
        where, where_text = None, "true"
        if self.takes("WHERE"):
            start = self._next.start
            where = self.condition()
            where_text = self._text[start : self._tokens[self._place - 1].end]
        order = self._order()
        offset, limit = 0, None
        if self.takes("OFFSET"):
            offset = self._count()
            self._must("LIMIT")
            limit = self._count()
        self.finish()
        if isinstance(select, Path) and select.segments == ():
            select_text = self._alias
        return Statement(select, is_value, select_text, where, where_text, order, top, offset, limit, self._alias)

    def _count(self) -> int:
        token = self._take("number")
        if not isinstance(token.value, int) or token.value >= 1 << 31:
            raise bad("TOP, OFFSET and LIMIT need whole numbers")
        return token.value

    def _selection(self) -> tuple[Node, bool, str]:
        if self.takes("*"):
            return Path(()), True, ""
        if self.takes("VALUE"):
            start = self._next.start
            value = self._value()
            return value, True, self._text[start : self._tokens[self._place - 1].end]
        fields, texts = list[tuple[str, Node]](), list[str]()
        while True:
            start = self._next.start
            value = self._value()
            text = self._text[start : self._tokens[self._place - 1].end]
            name = self._field_name(value, len(fields) + 1)
            fields.append((name, value))
            texts.append(f'"{name}": {text}')
            if not self.takes(","):
                return Record(tuple(fields)), False, f"{{{', '.join(texts)}}}"

    def _field_name(self, value: Node, place: int) -> str:
        if self.takes("AS"):
            return self._take("word").text
        if isinstance(value, Path) and value.segments:
            return str(value.segments[-1])
        return self._alias if isinstance(value, Path) else f"${place}"

    def _order(self) -> tuple[Order, ...]:
        if not self.takes("ORDER"):
            return ()
        self._must("BY")
        orders = list[Order]()
        while True:
            start = self._next.start
            path = self._value()
            if not isinstance(path, Path):
                raise self.unknown()
            text = self._text[start : self._tokens[self._place - 1].end]
            descending = self.takes("DESC")
            if not descending:
                self.takes("ASC")
            orders.append(Order(path, descending, text))
            if not self.takes(","):
                return tuple(orders)

    def condition(self) -> Node:
        """Read conditions joined by OR."""
        parts = [self._every()]
        while self.takes("OR"):
            parts.append(self._every())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _every(self) -> Node:
        parts = [self._negated()]
        while self.takes("AND"):
            parts.append(self._negated())
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _negated(self) -> Node:
        if self.takes("NOT"):
            return Negated(self._nested(self._negated))
        return self._comparison()

    def _nested(self, read: Callable[[], Node]) -> Node:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise bad(f"the query nests deeper than {MOST_DEPTH}")
        found = read()
        self._depth -= 1
        return found

    def _comparison(self) -> Node:
        left = self._value()
        negated = self._next.text.upper() == "NOT"
        self._place += negated
        if self.takes("IN"):
            self._must("(")
            found: Node = Among(left, self._list(")"))
            return Negated(found) if negated else found
        if negated:
            raise self.unknown()
        for operator in COMPARISONS:
            if self.takes(operator):
                return Compare("!=" if operator == "<>" else operator, left, self._value())
        return left

    def _list(self, closing: str) -> tuple[Node, ...]:
        parts = [self._nested(self._value)]
        while self.takes(","):
            parts.append(self._nested(self._value))
        self._must(closing)
        return tuple(parts)

    def _value(self) -> Node:  # noqa: PLR0911 -- one line for each kind of value
        token = self._next
        if token.kind in ("string", "number"):
            self._place += 1
            return Literal(token.value)
        if token.kind == "parameter":
            self._place += 1
            return Parameter(token.text)
        if token.kind == "word":
            return self._named(token)
        if self.takes("("):
            inner = self._nested(self.condition)
            self._must(")")
            return inner
        if self.takes("["):
            return Array(self._list("]"))
        if self.takes("{"):
            return self._record()
        if self.takes("-"):
            return Literal(-self._take("number").value)
        raise self.unknown()

    def _named(self, token: Token) -> Node:
        word = token.text.upper()
        if token.text == self._alias:
            self._place += 1
            return self._path()
        if word.lower() in CONSTANTS:
            self._place += 1
            return Literal(CONSTANTS[word.lower()])
        if word in ("COUNT", "IS_DEFINED"):
            self._place += 1
            self._must("(")
            inner = self._nested(self._value)
            self._must(")")
            if word == "IS_DEFINED":
                return Defined(inner)
            if isinstance(inner, Literal) or inner == Path(()):
                return Counted()
        raise self.unknown()

    def _path(self) -> Path:
        segments = list[Segment]()
        while True:
            if self.takes("."):
                segments.append(self._take("word").text)
            elif self.takes("["):
                token = self._take("number" if self._next.kind == "number" else "string")
                if not isinstance(token.value, str | int):
                    raise self.unknown()
                segments.append(token.value)
                self._must("]")
            else:
                return Path(tuple(segments))

    def _record(self) -> Record:
        parts = list[tuple[str, Node]]()
        while True:
            name = self._take("string" if self._next.kind == "string" else "word")
            self._must(":")
            value = self._nested(self._value)
            parts.append((name.value if name.kind == "string" else name.text, value))
            if not self.takes(","):
                self._must("}")
                return Record(tuple(parts))
