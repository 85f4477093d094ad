"""The SQL subset, parsed and evaluated; anything else is refused with a message that says so.

    SELECT [TOP n] (* | VALUE value | value [AS name], …) FROM name [WHERE condition]
    [ORDER BY path [ASC|DESC], …] [OFFSET n LIMIT n]

Conditions: AND, OR, NOT, parentheses, = != <> < <= > >=, IN, IS_DEFINED, ARRAY_CONTAINS; values: paths, constants,
@parameters, arrays, objects, COUNT(1). A missing value is undefined and never fulfils; values of different types are
not compared: https://learn.microsoft.com/azure/cosmos-db/nosql/query/equality-comparison-operators
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple, TypeVar

import orjson

from hotplate.bench.cosmos_emulator.http import HttpError, bad_request
from hotplate.bench.cosmos_emulator.partitions import UNDEFINED

# The service takes queries of up to 512 KB.
MAX_CHARS = 512 * 1024
MAX_DEPTH = 40
NO_ALIAS = ("WHERE", "ORDER", "OFFSET", "AS", "JOIN")
CONSTANTS = {"TRUE": True, "FALSE": False, "NULL": None}
# A longer sign comes before the one that it begins with.
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
RANKS: dict[type, int] = {type(None): 1, bool: 2, int: 3, float: 3, str: 4, list: 5, dict: 6}
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

Parameters = Mapping[str, Any]
T = TypeVar("T")


class Node(NamedTuple):
    """A value or a condition."""

    kind: str
    """path, constant, parameter, array, object, count, a function, in, not, and, or, or the sign of a comparison."""

    parts: tuple["Node", ...] = ()
    value: Any = None
    """The segments of a path, the constant, the parameter's name, or the names of an object's properties."""


ITEM = Node("path", value=())
ALWAYS = Node("constant", value=True)


@dataclass(frozen=True, slots=True)
class OrderBy:
    """One path that results are sorted by."""

    path: Node
    descending: bool
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """A whole query."""

    select: Node
    """`*` and `VALUE c` are the item itself, a list of fields an object."""

    is_value: bool
    select_text: str
    """The selection as an expression, for rewritten queries."""

    where: Node
    where_text: str
    order: Sequence[OrderBy]
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
        return self.select == ITEM


def _has_count(node: Node) -> bool:
    return node.kind == "count" or (node.kind in ("array", "object") and any(map(_has_count, node.parts)))


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


def tokens_of(text: str) -> Iterator[re.Match[str]]:
    """Yield the tokens of a text; the kind of each is the name of its group in the pattern."""
    position, kind = 0, None
    while kind != "end":
        token = TOKEN.match(text, position)
        if token is None:
            raise bad_request(f"the query cannot be read at {position}: {text[position : position + 20].strip()!r}")
        yield token
        position, kind = token.end(), token.lastgroup


class Parser:
    """A recursive-descent parser of one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(tokens_of(text))
        self._position = 0
        self._depth = 0
        words = [token["word"] for token in self._tokens] + [None, None]
        source = next((place for place, word in enumerate(words) if word and word.upper() == "FROM"), None)
        self._alias = "c"
        if source is not None:
            name, alias = words[source + 1 : source + 3]
            self._alias = alias if alias and alias.upper() not in NO_ALIAS else name or ""

    def query(self) -> Query:
        """Parse a whole query."""
        self._expect("SELECT")
        top = self._count() if self._accept("TOP") else None
        is_item = self._accept("*")
        is_value = is_item or self._accept("VALUE")
        select, select_text = (ITEM, "") if is_item else self._with_text(self._value) if is_value else self._fields()
        self._from()
        where, where_text = self._with_text(self._condition) if self._accept("WHERE") else (ALWAYS, "true")
        order = list[OrderBy]()
        if self._accept("ORDER"):
            self._expect("BY")
            order = self._list(self._order_by)
        offset, limit = 0, None
        if self._accept("OFFSET"):
            offset = self._count()
            self._expect("LIMIT")
            limit = self._count()
        self._take("end")
        select_text = self._alias if select == ITEM else select_text
        return Query(select, is_value, select_text, where, where_text, order, top, offset, limit, self._alias)

    def patch_condition(self) -> Node:
        """Parse `FROM c WHERE …`."""
        self._from()
        self._expect("WHERE")
        condition = self._condition()
        self._take("end")
        return condition

    @property
    def _kind(self) -> str | None:
        return self._tokens[self._position].lastgroup

    def _error(self) -> HttpError:
        token = self._tokens[self._position]
        start = token.start(token.lastgroup or 0)
        return bad_request(
            f"this emulation does not understand the query at {start}: {self._text[start:][:30]!r}; "
            "it speaks only the simple queries that its documentation lists"
        )

    def _accept(self, word: str) -> bool:
        """Step over *word* if it comes next."""
        token = self._tokens[self._position]
        if (token["word"] or token["sign"] or "").upper() != word:
            return False
        self._position += 1
        return True

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            raise self._error()

    def _take(self, *kinds: str) -> Any:  # noqa: ANN401 -- the constant of a string or a number, the text of another token
        """Step over a token of one of *kinds*, and return its value."""
        token = self._tokens[self._position]
        if self._kind not in kinds:
            raise self._error()
        self._position += 1
        if number := token["number"]:
            return float(number) if set(number) & set(".eE") else int(number)
        if not (quoted := token["string"]):
            return token[token.lastgroup or 0]
        inner = quoted[1:-1]
        if quoted[0] == "'":
            inner = inner.replace("\\'", "'").replace('"', '\\"')
        try:
            return orjson.loads(f'"{inner}"')
        except orjson.JSONDecodeError:
            raise bad_request(f"the string at {token.start('string')} of the query cannot be read") from None

    def _with_text(self, parse: Callable[[], Node]) -> tuple[Node, str]:
        """Parse, and return the text that was parsed, too."""
        token = self._tokens[self._position]
        node = parse()
        return node, self._text[token.start(token.lastgroup or 0) : self._tokens[self._position - 1].end()]

    def _list(self, parse: Callable[[], T], separator: str = ",") -> list[T]:
        """Parse one or more."""
        parts = [parse()]
        while self._accept(separator):
            parts.append(parse())
        return parts

    def _values(self, closing: str) -> tuple[Node, ...]:
        values = self._list(self._value)
        self._expect(closing)
        return tuple(values)

    def _nested(self, parse: Callable[[], T]) -> T:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise bad_request(f"the query nests deeper than {MAX_DEPTH}")
        parsed = parse()
        self._depth -= 1
        return parsed

    def _from(self) -> None:
        self._expect("FROM")
        self._take("word")
        if self._tokens[self._position]["word"] == self._alias:
            self._position += 1

    def _count(self) -> int:
        count = self._take("number")
        if not isinstance(count, int) or count >= 1 << 31:
            raise bad_request("TOP, OFFSET and LIMIT need whole numbers")
        return count

    def _fields(self) -> tuple[Node, str]:
        numbers = count(1)
        names, values, texts = zip(*self._list(lambda: self._field(next(numbers))), strict=True)
        return Node("object", values, names), f"{{{', '.join(texts)}}}"

    def _field(self, number: int) -> tuple[str, Node, str]:
        value, text = self._with_text(self._value)
        if self._accept("AS"):
            name = self._take("word")
        elif value.kind == "path":
            name = str(value.value[-1]) if value.value else self._alias
        else:
            name = f"${number}"
        return name, value, f'"{name}": {text}'

    def _order_by(self) -> OrderBy:
        path, text = self._with_text(self._value)
        if path.kind != "path":
            raise self._error()
        descending = self._accept("DESC")
        if not descending:
            self._accept("ASC")
        return OrderBy(path, descending, text)

    def _condition(self) -> Node:
        return self._joined("OR", lambda: self._joined("AND", self._negation))

    def _joined(self, word: str, parse: Callable[[], Node]) -> Node:
        parts = self._list(parse, word)
        return parts[0] if len(parts) == 1 else Node(word.lower(), tuple(parts))

    def _negation(self) -> Node:
        if self._accept("NOT"):
            return Node("not", (self._nested(self._negation),))
        left = self._value()
        is_negated = self._accept("NOT")
        if self._accept("IN"):
            self._expect("(")
            contained = Node("in", (left, *self._values(")")))
            return Node("not", (contained,)) if is_negated else contained
        if is_negated:
            raise self._error()
        sign = next(filter(self._accept, COMPARISONS), None)
        return left if sign is None else Node(sign, (left, self._value()))

    def _value(self) -> Node:
        """Parse one value; a condition in parentheses is one."""
        return self._nested(self._unnested_value)

    def _unnested_value(self) -> Node:  # noqa: PLR0911 -- one line for each kind of value
        if self._kind in ("string", "number"):
            return Node("constant", value=self._take("string", "number"))
        if self._kind == "parameter":
            return Node("parameter", value=self._take("parameter"))
        if self._kind == "word":
            return self._word()
        if self._accept("("):
            inner = self._condition()
            self._expect(")")
            return inner
        if self._accept("["):
            return Node("array", self._values("]"))
        if self._accept("{"):
            names, values = zip(*self._list(self._property), strict=True)
            self._expect("}")
            return Node("object", values, names)
        self._expect("-")
        return Node("constant", value=-self._take("number"))

    def _word(self) -> Node:
        """Parse a path, a constant or a function."""
        text = self._tokens[self._position]["word"]
        word = text.upper()
        if text == self._alias:
            self._position += 1
            return self._path()
        if word in CONSTANTS:
            self._position += 1
            return Node("constant", value=CONSTANTS[word])
        if word == "ARRAY_CONTAINS":
            self._position += 1
            self._expect("(")
            arguments = self._values(")")
            if len(arguments) in (2, 3):
                return Node("array_contains", arguments)
        if word in ("COUNT", "IS_DEFINED"):
            self._position += 1
            self._expect("(")
            inner = self._value()
            self._expect(")")
            if word == "IS_DEFINED":
                return Node("is_defined", (inner,))
            if inner.kind == "constant" or inner == ITEM:
                return Node("count")
        raise self._error()

    def _path(self) -> Node:
        segments = list[str | int]()
        while True:
            if self._accept("."):
                segments.append(self._take("word"))
            elif self._accept("["):
                segment = self._take("number", "string")
                if isinstance(segment, float):
                    raise self._error()
                segments.append(segment)
                self._expect("]")
            else:
                return Node("path", value=tuple(segments))

    def _property(self) -> tuple[str, Node]:
        name = self._take("string", "word")
        self._expect(":")
        return name, self._value()


def is_fulfilled(condition: object, item: Mapping[str, Any]) -> bool:
    """Return whether an item fulfils the condition of a patch."""
    if not isinstance(condition, str):
        raise bad_request("condition must be a string, as: from c where c.stock > 0")
    return evaluate(parse_condition(condition), item, {}) is True


def evaluate(node: Node, item: Any, parameters: Parameters) -> Any:  # noqa: ANN401, C901, PLR0911, PLR0912 -- JSON in and out; one case for each kind of node
    """Return the value of *node* for *item*, UNDEFINED if it has none."""
    kind, parts, value = node
    match kind:
        case "path":
            return _resolve(item, value)
        case "constant":
            return value
        case "parameter":
            if value not in parameters:
                raise bad_request(f"the query names {value}, and no parameter has that name")
            return parameters[value]
        case "and":
            return all(evaluate(part, item, parameters) is True for part in parts)
        case "or":
            return any(evaluate(part, item, parameters) is True for part in parts)
        case "count":
            return item
    values = [evaluate(part, item, parameters) for part in parts]
    match kind:
        case "in":
            return any(_compare("=", values[0], option) is True for option in values[1:])
        case "not":
            return not values[0] if isinstance(values[0], bool) else UNDEFINED
        case "is_defined":
            return values[0] is not UNDEFINED
        case "array_contains":
            return _array_contains(*values)
        case "array":
            return [one for one in values if one is not UNDEFINED]
        case "object":
            return {name: one for name, one in zip(value, values, strict=True) if one is not UNDEFINED}
    return _compare(kind, *values)


def _resolve(value: Any, segments: tuple[Any, ...]) -> Any:  # noqa: ANN401 -- any JSON value
    for segment in segments:
        if not isinstance(value, list if isinstance(segment, int) else dict):
            return UNDEFINED
        try:
            value = value[segment]
        except (IndexError, KeyError):
            return UNDEFINED
    return value


def rank(value: object) -> int:
    """Return where values of this type stand among those of others: undefined, null, booleans, numbers, strings …"""
    return RANKS.get(type(value), 0)


def _compare(sign: str, left: Any, right: Any) -> Any:  # noqa: ANN401 -- any JSON values; True, False or UNDEFINED
    if left is UNDEFINED or right is UNDEFINED:
        return UNDEFINED
    is_ordering = sign[0] in "<>" and sign != "<>"
    if rank(left) != rank(right) or (is_ordering and isinstance(left, list | dict)):
        return UNDEFINED if is_ordering else sign != "="
    if left is None:
        return "=" in sign and sign != "!="
    return COMPARISONS[sign](left, right)


def _array_contains(array: Any, value: Any, partial: Any = False) -> Any:  # noqa: ANN401, FBT002 -- any JSON values; as the function has them
    """Return whether an array has a value; with *partial*, an object that has all properties of *value*."""
    if not isinstance(array, list) or value is UNDEFINED or not isinstance(partial, bool):
        return UNDEFINED
    if partial and isinstance(value, dict):
        return any(isinstance(one, dict) and _has_properties(one, value) for one in array)
    return any(_compare("=", one, value) is True for one in array)


def _has_properties(one: Mapping[str, Any], properties: Mapping[str, Any]) -> bool:
    return all(name in one and _compare("=", one[name], value) is True for name, value in properties.items())


def conditions_by_id(node: Node, parameters: Parameters) -> dict[str, Node] | None:
    """Return what is left of a condition for each id that can fulfil it; None if it does not name ids.

    SDKs read many items as one condition of up to 1,000 parts, each with its id: without this, each item would be held
    against all of them.
    """
    match node:
        case Node("=" | "in", (Node("path", value=("id",)), *options)):
            if all(option.kind in ("constant", "parameter") for option in options):
                values = (evaluate(option, None, parameters) for option in options)
                return dict.fromkeys([value for value in values if isinstance(value, str)], ALWAYS)
        case Node("and", parts):
            for part in parts:
                if (named := conditions_by_id(part, parameters)) is not None:
                    return dict.fromkeys(named, node)
        case Node("or", parts):
            merged = dict[str, list[Node]]()
            for part in parts:
                if (named := conditions_by_id(part, parameters)) is None:
                    return None
                for name, condition in named.items():
                    merged.setdefault(name, []).append(condition)
            return {name: nodes[0] if len(nodes) == 1 else Node("or", tuple(nodes)) for name, nodes in merged.items()}
    return None
