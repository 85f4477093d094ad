"""Filters of a request: `exclude`, and `where`, conditions on the item attributes of a release.

    where        condition, condition …        all must hold
    condition    COLUMN OPERATOR VALUE         : !: < <= > >=
                 COLUMN : VALUE|VALUE …        one of the values; !: none of them

A value with a comma, bar or quote is written as a JSON string. An item without a value meets no condition on it. Of a
list, one text must be among the values, or with !: none.
"""

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from math import inf, isfinite
from time import time
from typing import Any, NamedTuple, Self

import msgspec

from hotplate.serve.lists.deny_list import NO_OVERRIDES, Overrides
from hotplate.serve.lists.options import EXAMPLE, MAX_WHERE_CHARS, PER_PATTERN
from hotplate.stores.attributes import EXPIRES, Column, ItemAttributes, Value
from hotplate.stores.encoding import NO_OFFSET, IdTest, cut_without
from hotplate.stores.errors import StoreMisused

MAX_VALUES = 100
# Remembered for each release: conditions and popular lists under them; which items fail each, and the times at which
# items leave (some 15 MB in all).
MAX_CONDITIONS = 32
MAX_ITEMS = 2048
MAX_EXPIRIES = 16_384
MAX_POPULAR = 1000  # items of a list

_STRING = r'"(?:[^"\\]|\\.)*+"'
_CONDITION = re.compile(
    rf"""\s*(?P<column>[\w.-]{{1,64}})\s*(?P<operator>!?:|[<>]=?)(?P<values>(?:[^",]|{_STRING})++)(?P<separator>,|\Z)""",
    re.DOTALL,
)
_VALUE = re.compile(rf'(?:[^"|]|{_STRING})++', re.DOTALL)
_PER = re.compile(PER_PATTERN)


class Condition(NamedTuple):
    """One condition."""

    column: str
    operator: str
    values: tuple[str, ...]


def parse_where(text: str) -> tuple[Condition, ...]:
    """Parse the conditions of a filter, separated by commas, such as `price<20,brand:acme|"x,y"`.

    A condition has a column of the item attributes, an operator, and values separated by |; values in quotation marks
    may contain separators. The example has the conditions `price < 20`, and `brand : acme` or `x,y`. Raises
    StoreMisused if the text cannot be parsed or is too long.
    """
    too_large = StoreMisused(f"where has at most {MAX_WHERE_CHARS} characters and {MAX_VALUES} values; this is more")
    if len(text) > MAX_WHERE_CHARS:
        raise too_large

    conditions = list[Condition]()
    position = 0
    separator = ","  # after the last condition; empty at the end of the text
    while separator:
        match = _CONDITION.match(text, position)
        values = [] if match is None else _VALUE.findall(match["values"])
        if match is None or "|".join(values) != match["values"]:
            raise StoreMisused(f"where cannot be read at {text[position : position + 20]!r}; write it as in {EXAMPLE}")

        conditions.append(Condition(match["column"], match["operator"], tuple(map(_unquoted, values))))
        position = match.end()
        separator = match["separator"]

    if sum(len(condition.values) for condition in conditions) > MAX_VALUES:
        raise too_large
    return tuple(conditions)


def _unquoted(value: str) -> str:
    """Return a value, decoded if it is a JSON string; raises StoreMisused for an empty or malformed one."""
    value = value.strip()
    if value and '"' not in value:
        return value
    try:
        return msgspec.json.decode(value, type=str)
    except msgspec.MsgspecError:
        raise StoreMisused(f"where has the value {value[:40]}, which is not a JSON string; see {EXAMPLE}") from None


class _Attribute(NamedTuple):
    """An attribute of a release's items."""

    column: Column
    overrides: Mapping[bytes, str]
    """Values by item, which count instead of the release's."""

    def value(self, row: int, identifier: bytes) -> Value:
        """Return the value of an item, which is in *row* of the table; NaN or None for a missing one."""
        if self.overrides and (override := self.overrides.get(identifier)) is not None:
            return self.column.parse(override)
        return self.column.value(row)

    def shown(self, row: int, identifier: bytes) -> Value:
        """Return the value of an item as JSON has it."""
        return self.column.shown(self.value(row, identifier))


def _attribute(attributes: ItemAttributes, name: str, overrides: Overrides) -> _Attribute:
    """Return an attribute by its name; raises StoreMisused if the release has none of this name."""
    column = attributes.columns.get(name)
    if column is None:
        raise StoreMisused(
            f"items have no attribute {name!r} in this release; they have {', '.join(attributes.columns)}"
        )
    return _Attribute(column, overrides.get(name, {}))


def rejected_by(attributes: ItemAttributes, where: str, overrides: Overrides = NO_OVERRIDES) -> IdTest:
    """Return a function that tells, in 0.7 µs, whether an item, with overrides of its attributes, fails conditions.

    Raises StoreMisused for an invalid condition, an unknown column, or a value of another kind.
    """
    tests = list[tuple[_Attribute, Callable[[Any], bool]]]()
    for condition in parse_where(where):
        attribute = _attribute(attributes, condition.column, overrides)
        tests.append((attribute, _accepted(condition, attribute.column)))

    def is_rejected(identifier: bytes) -> bool:
        row = attributes.row_of(identifier)
        return not all(accept(attribute.value(row, identifier)) for attribute, accept in tests)

    return is_rejected


def _accepted(condition: Condition, column: Column) -> Callable[[Any], bool]:
    """Return a function that takes an item's value in *column* and says whether it meets *condition*.

    A column is an attribute of items. Without a value, an item has None or NaN, which meets no condition. `:` means
    equal to any of the condition's values, `!:` to none; `<`, `<=`, `>` and `>=` take one number or date. Raises
    StoreMisused for an operator or value of another kind than the column's.
    """
    subject = f"{condition.column}{condition.operator}"
    if condition.operator[0] in "<>" and (column.texts or len(condition.values) > 1):
        raise StoreMisused(f"{subject} takes an attribute of numbers or dates, and one value")
    if column.kind == "list":
        return _accepted_list(condition)
    values: frozenset[Any] = frozenset(map(column.parse, condition.values))
    if not column.texts and not all(map(isfinite, values)):
        kind, value = ("a date", "2026-12-01") if column.kind == "date" else ("a number, without leading zeros", "50")
        raise StoreMisused(f"{condition.column} is {kind}; write a condition such as {subject}{value}")

    if condition.operator == ":":
        return values.__contains__
    if condition.operator == "!:":
        return lambda value: value is not None and value == value and value not in values  # noqa: PLR0124 -- not NaN

    (bound,) = values
    # The bound comes first, so `value < bound` is written as `bound > value`. All are false for NaN.
    operators = {"<": operator.gt, "<=": operator.ge, ">": operator.lt, ">=": operator.le}
    return partial(operators[condition.operator], bound)


def _accepted_list(condition: Condition) -> Callable[[tuple[str, ...] | None], bool]:
    """Return a function like `_accepted` for a column of lists."""
    wanted = frozenset(condition.values)
    if condition.operator == ":":
        return lambda texts: texts is not None and not wanted.isdisjoint(texts)
    return lambda texts: texts is not None and wanted.isdisjoint(texts)


def _encoded_values(attributes: ItemAttributes | None, shown: Mapping[str, _Attribute], identifier: bytes) -> bytes:
    """Return the values of an item in *shown* to follow its other fields, as `,"price":19.5`, without missing ones."""
    row = -1 if attributes is None else attributes.row_of(identifier)
    values = {name: attribute.shown(row, identifier) for name, attribute in shown.items()}
    present = {name: value for name, value in values.items() if value is not None}
    return b"," + msgspec.json.encode(present)[1:-1] if present else b""


def _expiry(attributes: ItemAttributes, attribute: _Attribute, identifier: bytes) -> float:
    """Return the Unix time at which an item leaves all lists; inf if it stays."""
    expires = attribute.value(attributes.row_of(identifier), identifier)
    return expires if isinstance(expires, float) and isfinite(expires) else inf


def limited_by(attributes: ItemAttributes, per: str, overrides: Overrides) -> IdTest:
    """Return a function that tells whether an item's group, the items with the same value of an attribute, is full.

    The function counts the item, if it is not: call it once for each item that is shown. Items without a value are in
    no group, and those with a list in one for each text. *per* has the attribute and the number of items, as `brand:1`;
    raises StoreMisused for another text.
    """
    match = _PER.fullmatch(per)
    if match is None:
        raise StoreMisused(f"per is {per[:40]!r}; write it as brand:1, for at most 1 item of each brand")
    attribute = _attribute(attributes, match["column"], overrides)
    most = int(match["most"])
    shown = Counter[object]()

    def is_full(identifier: bytes) -> bool:
        value = attribute.shown(attributes.row_of(identifier), identifier)
        if value is None:
            return False
        groups = value if isinstance(value, tuple) else (value,)
        if any(shown[group] >= most for group in groups):
            return True
        shown.update(groups)
        return False

    return is_full


class ReleaseFilters:
    """Filters of one release under overrides, and its popular lists under them, which are remembered."""

    def __init__(self, attributes: ItemAttributes | None, overrides: Overrides = NO_OVERRIDES) -> None:
        self._attributes = attributes
        self._column = None if attributes is None else attributes.columns.get(EXPIRES)
        self.has_expiries = self._column is not None and self._column.kind == "date"
        """Whether items leave lists with time."""

        self._begin(overrides)

    def _begin(self, overrides: Overrides) -> None:
        """Forget what was remembered."""
        self._overrides = overrides
        self.rejected = lru_cache(MAX_CONDITIONS)(self._rejected_by)
        """Returns what a `where` leaves out; StoreMisused if it is invalid, or the release has no attributes."""

        self.shown = lru_cache(MAX_CONDITIONS)(self._shown_of)
        """Returns the values of attributes, by their names, for answers: a function of an item, which encodes them.

        They are empty for a release without attributes, or whose attributes could not be read.
        """

        self.popular = lru_cache(MAX_CONDITIONS)(self._filtered)
        """Returns an opened popular list under a `where`; as `rejected`."""

        self.expiry: Callable[[bytes], float] | None = None
        """Returns the Unix time at which an item leaves all lists, by its id; None for a release whose items stay."""

        if self._attributes is not None and self.has_expiries:
            attribute = _attribute(self._attributes, EXPIRES, overrides)
            self.expiry = lru_cache(MAX_EXPIRIES)(partial(_expiry, self._attributes, attribute))

    def under(self, overrides: Overrides) -> Self:
        """Return the filters under these overrides."""
        if overrides is not self._overrides:
            self._begin(overrides)
        return self

    def expired(self) -> IdTest | None:
        """Return a function that tells whether an item has left all lists by now; None if the release's items stay."""
        expiry = self.expiry
        if expiry is None:
            return None
        now = time()
        return lambda identifier: expiry(identifier) <= now

    def all_stay(self, identifiers: Iterable[bytes], within_s: float) -> bool:
        """Return whether none of the items has left all lists, or will *within_s* seconds."""
        if self.expiry is None:
            return True
        return min(map(self.expiry, identifiers), default=inf) > time() + within_s

    def limited(self, per: str) -> IdTest:
        """Return a function that tells whether the group of an item is full (`limited_by`); raises as `rejected`."""
        return limited_by(self._required("per"), per, self._overrides)

    def _rejected_by(self, where: str) -> IdTest:
        is_rejected = rejected_by(self._required("where"), where, self._overrides)
        return lru_cache(MAX_ITEMS)(is_rejected)

    def _filtered(self, body: bytes, where: str) -> bytes:
        return NO_OFFSET + cut_without(body, MAX_POPULAR, self.rejected(where))

    def _shown_of(self, names: tuple[str, ...]) -> Callable[[bytes], bytes]:
        attributes = self._attributes
        shown = dict[str, _Attribute]()
        if attributes is not None:
            shown = {name: _attribute(attributes, name, self._overrides) for name in names}
        return lru_cache(MAX_ITEMS)(partial(_encoded_values, attributes, shown))

    def _required(self, option: str) -> ItemAttributes:
        if self._attributes is None:
            raise StoreMisused(f"this release has no item attributes for {option}; publish it with --item-attributes")
        return self._attributes


NO_FILTERS = ReleaseFilters(None)
