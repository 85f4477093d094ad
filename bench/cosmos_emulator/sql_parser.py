"""The SQL subset: its syntax tree, and the parser; anything else is refused with a message that says so.

    SELECT [TOP n] (* | VALUE value | value [AS name], …) FROM name [WHERE condition]
    [ORDER BY path [ASC|DESC], …] [OFFSET n LIMIT n]

Conditions: AND, OR, NOT, parentheses, = != <> < <= > >=, IN, IS_DEFINED; values: paths, constants, @parameters,
arrays, objects, COUNT(1).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import orjson

from bench.cosmos_emulator.errors import HttpError, bad_request

# The service takes queries of up to 512 KB.
MAX_CHARS = 512 * 1024
MAX_DEPTH = 40
NO_ALIAS = ("WHERE", "ORDER", "OFFSET", "AS", "JOIN")
COMPARISONS = ("=", "!=", "<>", "<=", ">=", "<", ">")
CONSTANTS = {"TRUE": True, "FALSE": False, "NULL": None}
TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    | (?P<parameter>@\w+)
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|!=|<>|[=<>()\[\]{}.,:*-])
    | (?P<end>$)
    )""",
    re.VERBOSE | re.DOTALL,
)

Segment = str | int
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant."""

    value: Any


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value that comes with the query, as `@name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Path:
    """A path into an item; without segments, the item itself."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One of = != < <= > >= between two values."""

    operator: str
    left: "Node"
    right: "Node"


@dataclass(frozen=True, slots=True)
class In:
    """`left IN (…)`."""

    left: "Node"
    options: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class And:
    """Conditions joined by AND."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    """Conditions joined by OR."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """NOT a condition."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class IsDefined:
    """`IS_DEFINED(value)`."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class Count:
    """`COUNT(…)` of a constant: the number of items."""


@dataclass(frozen=True, slots=True)
class ArrayOf:
    """An array that is made for each result."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class ObjectOf:
    """An object that is made for each result."""

    parts: "tuple[tuple[str, Node], ...]"


Node = Literal | Parameter | Path | Comparison | In | And | Or | Not | IsDefined | Count | ArrayOf | ObjectOf


@dataclass(frozen=True, slots=True)
class OrderBy:
    """One path that results are sorted by."""

    path: Path
    descending: bool
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """A whole query."""

    select: Node
    """`*` and `VALUE c` are the empty path, a list of fields an object."""

    is_value: bool
    select_text: str
    """The selection as an expression, for rewritten queries."""

    where: Node | None
    where_text: str
    order: tuple[OrderBy, ...]
    top: int | None
    offset: int
    limit: int | None
    alias: str

    @property
    def is_aggregate(self) -> bool:
        """Return whether there is one result for all items together."""
        return _has_count(self.select)

    @property
    def selects_items(self) -> bool:
        """Return whether the results are the items as they are stored."""
        return self.select == Path(())


def _has_count(node: Node) -> bool:
    if isinstance(node, ArrayOf):
        return any(map(_has_count, node.parts))
    if isinstance(node, ObjectOf):
        return any(_has_count(part) for _, part in node.parts)
    return isinstance(node, Count)


@lru_cache(64)
def parse(text: str) -> Query:
    """Parse a query; the same text is parsed once."""
    if len(text) > MAX_CHARS:
        raise bad_request("a query has at most 512 KB")
    return Parser(text).query()


@lru_cache(256)
def parse_condition(text: str) -> Node:
    """Parse the condition of a patch: `FROM c WHERE …`."""
    return Parser(text).patch_condition()


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a query; its kind is the name of its group in the pattern."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def value(self) -> Any:  # noqa: ANN401 -- a string or a number
        """Return the constant that a string or a number denotes."""
        if self.kind == "number":
            return float(self.text) if set(self.text) & set(".eE") else int(self.text)
        inner = self.text[1:-1]
        if self.text[0] == "'":
            inner = inner.replace("\\'", "'").replace('"', '\\"')
        try:
            return orjson.loads(f'"{inner}"')
        except orjson.JSONDecodeError:
            raise bad_request(f"the string at {self.start} of the query cannot be read") from None


def tokenize(text: str) -> list[Token]:
    """Split a query into tokens; the last one is the end."""
    tokens = list[Token]()
    position = 0
    while not tokens or tokens[-1].kind != "end":
        match = TOKEN.match(text, position)
        if match is None:
            raise bad_request(f"the query cannot be read at {position}: {text[position : position + 20].strip()!r}")
        kind = str(match.lastgroup)
        tokens.append(Token(kind, match[kind], match.start(kind), match.end(kind)))
        position = match.end()
    return tokens


class Parser:
    """A recursive-descent parser of one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(text)
        self._position = 0
        self._depth = 0
        self._alias = self._find_alias()

    def query(self) -> Query:
        """Parse a whole query."""
        self._expect("SELECT")
        top = self._count() if self._accept("TOP") else None
        select, is_value, select_text = self._selection()
        self._from()
        where, where_text = None, "true"
        if self._accept("WHERE"):
            start = self._next.start
            where = self._condition()
            where_text = self._text_from(start)
        order = self._order_by()
        offset, limit = 0, None
        if self._accept("OFFSET"):
            offset = self._count()
            self._expect("LIMIT")
            limit = self._count()
        self._expect_end()
        if select == Path(()):
            select_text = self._alias
        return Query(select, is_value, select_text, where, where_text, order, top, offset, limit, self._alias)

    def patch_condition(self) -> Node:
        """Parse `FROM c WHERE …`."""
        self._from()
        self._expect("WHERE")
        found = self._condition()
        self._expect_end()
        return found

    def _find_alias(self) -> str:
        for place, token in enumerate(self._tokens):
            if token.kind == "word" and token.text.upper() == "FROM":
                source, after = self._tokens[place + 1], self._tokens[min(place + 2, len(self._tokens) - 1)]
                is_renamed = after.kind == "word" and after.text.upper() not in NO_ALIAS
                return after.text if is_renamed else source.text
        return "c"

    @property
    def _next(self) -> Token:
        return self._tokens[self._position]

    def _text_from(self, start: int) -> str:
        return self._text[start : self._tokens[self._position - 1].end]

    def _error(self) -> HttpError:
        token = self._next
        return bad_request(
            f"this emulation does not understand the query at {token.start}: {self._text[token.start :][:30]!r}; "
            "it speaks only the simple queries that its documentation lists"
        )

    def _accept(self, word: str) -> bool:
        """Step over *word* where it comes next."""
        token = self._next
        if token.kind in ("word", "sign") and token.text.upper() == word:
            self._position += 1
            return True
        return False

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            raise self._error()

    def _take(self, kind: str) -> Token:
        """Step over a token of *kind*, and return it."""
        token = self._next
        if token.kind != kind:
            raise self._error()
        self._position += 1
        return token

    def _expect_end(self) -> None:
        if self._next.kind != "end":
            raise self._error()

    def _nested(self, parse: Callable[[], T]) -> T:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise bad_request(f"the query nests deeper than {MAX_DEPTH}")
        found = parse()
        self._depth -= 1
        return found

    def _from(self) -> None:
        self._expect("FROM")
        self._take("word")
        if self._next.kind == "word" and self._next.text == self._alias:
            self._position += 1

    def _count(self) -> int:
        token = self._take("number")
        if not isinstance(token.value, int) or token.value >= 1 << 31:
            raise bad_request("TOP, OFFSET and LIMIT need whole numbers")
        return token.value

    def _selection(self) -> tuple[Node, bool, str]:
        if self._accept("*"):
            return Path(()), True, ""
        if self._accept("VALUE"):
            start = self._next.start
            value = self._value()
            return value, True, self._text_from(start)
        fields, texts = list[tuple[str, Node]](), list[str]()
        while not fields or self._accept(","):
            start = self._next.start
            value = self._value()
            text = self._text_from(start)
            name = self._field_name(value, len(fields) + 1)
            fields.append((name, value))
            texts.append(f'"{name}": {text}')
        return ObjectOf(tuple(fields)), False, f"{{{', '.join(texts)}}}"

    def _field_name(self, value: Node, number: int) -> str:
        if self._accept("AS"):
            return self._take("word").text
        if isinstance(value, Path):
            return str(value.segments[-1]) if value.segments else self._alias
        return f"${number}"

    def _order_by(self) -> tuple[OrderBy, ...]:
        orders = list[OrderBy]()
        if not self._accept("ORDER"):
            return ()
        self._expect("BY")
        while not orders or self._accept(","):
            start = self._next.start
            path = self._value()
            if not isinstance(path, Path):
                raise self._error()
            text = self._text_from(start)
            descending = self._accept("DESC")
            if not descending:
                self._accept("ASC")
            orders.append(OrderBy(path, descending, text))
        return tuple(orders)

    def _condition(self) -> Node:
        parts = [self._conjunction()]
        while self._accept("OR"):
            parts.append(self._conjunction())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _conjunction(self) -> Node:
        parts = [self._negation()]
        while self._accept("AND"):
            parts.append(self._negation())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _negation(self) -> Node:
        if self._accept("NOT"):
            return Not(self._nested(self._negation))
        return self._comparison()

    def _comparison(self) -> Node:
        left = self._value()
        is_negated = self._accept("NOT")
        if self._accept("IN"):
            self._expect("(")
            found = In(left, self._list(")"))
            return Not(found) if is_negated else found
        if is_negated:
            raise self._error()
        for operator in COMPARISONS:
            if self._accept(operator):
                return Comparison("!=" if operator == "<>" else operator, left, self._value())
        return left

    def _list(self, closing: str) -> tuple[Node, ...]:
        parts = [self._nested(self._value)]
        while self._accept(","):
            parts.append(self._nested(self._value))
        self._expect(closing)
        return tuple(parts)

    def _value(self) -> Node:  # noqa: PLR0911 -- one line for each kind of value
        """Parse one value; a condition in parentheses is one."""
        token = self._next
        if token.kind in ("string", "number"):
            self._position += 1
            return Literal(token.value)
        if token.kind == "parameter":
            self._position += 1
            return Parameter(token.text)
        if token.kind == "word":
            return self._word(token)
        if self._accept("("):
            inner = self._nested(self._condition)
            self._expect(")")
            return inner
        if self._accept("["):
            return ArrayOf(self._list("]"))
        if self._accept("{"):
            return self._object()
        if self._accept("-"):
            return Literal(-self._take("number").value)
        raise self._error()

    def _word(self, token: Token) -> Node:
        """Parse a path, a constant or a function."""
        word = token.text.upper()
        if token.text == self._alias:
            self._position += 1
            return self._path()
        if word in CONSTANTS:
            self._position += 1
            return Literal(CONSTANTS[word])
        if word in ("COUNT", "IS_DEFINED"):
            self._position += 1
            self._expect("(")
            inner = self._nested(self._value)
            self._expect(")")
            if word == "IS_DEFINED":
                return IsDefined(inner)
            if isinstance(inner, Literal) or inner == Path(()):
                return Count()
        raise self._error()

    def _path(self) -> Path:
        segments = list[Segment]()
        while True:
            if self._accept("."):
                segments.append(self._take("word").text)
            elif self._accept("["):
                token = self._take("number" if self._next.kind == "number" else "string")
                if not isinstance(token.value, str | int):
                    raise self._error()
                segments.append(token.value)
                self._expect("]")
            else:
                return Path(tuple(segments))

    def _object(self) -> ObjectOf:
        parts = list[tuple[str, Node]]()
        while not parts or self._accept(","):
            name = self._take("string" if self._next.kind == "string" else "word")
            self._expect(":")
            parts.append((name.value if name.kind == "string" else name.text, self._nested(self._value)))
        self._expect("}")
        return ObjectOf(tuple(parts))
