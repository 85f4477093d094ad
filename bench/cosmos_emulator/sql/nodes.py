"""What a query is made of, once it was parsed; all values, never changed."""

from dataclasses import dataclass
from typing import Any

Segment = str | int


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
    """A place in an item; no segments, the item itself."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """One of = != < <= > >= between two values."""

    operator: str
    left: "Node"
    right: "Node"


@dataclass(frozen=True, slots=True)
class Among:
    """`left IN (…)`."""

    left: "Node"
    options: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Every:
    """Conditions joined by AND."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Either:
    """Conditions joined by OR."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Negated:
    """NOT a condition."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class Defined:
    """`IS_DEFINED(value)`."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class Counted:
    """`COUNT(…)` of a constant: how many items there are."""


@dataclass(frozen=True, slots=True)
class Array:
    """A list that is made for each result."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Record:
    """An object that is made for each result."""

    parts: "tuple[tuple[str, Node], ...]"


Node = Literal | Parameter | Path | Compare | Among | Every | Either | Negated | Defined | Counted | Array | Record


@dataclass(frozen=True, slots=True)
class Order:
    """One path that results are sorted by."""

    path: Path
    descending: bool
    text: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A whole query."""

    select: Node
    """`*` and `VALUE c` are the empty path, a list of fields a Record."""

    is_value: bool
    select_text: str
    """What rewritten queries put in the place of the selection: an expression."""

    where: Node | None
    where_text: str
    order: tuple[Order, ...]
    top: int | None
    offset: int
    limit: int | None
    alias: str

    @property
    def counts(self) -> bool:
        """Tell whether the answer is about all items together."""
        return has_count(self.select)

    @property
    def is_whole(self) -> bool:
        """Tell whether results are the items as they are stored."""
        return self.select == Path(())


def has_count(node: Node) -> bool:
    """Tell whether a selection counts."""
    if isinstance(node, Counted):
        return True
    if isinstance(node, Array):
        return any(map(has_count, node.parts))
    if isinstance(node, Record):
        return any(has_count(part) for _, part in node.parts)
    return False
