"""Figures and the ledger that they are entered in: every value knows its formula and what it was made of."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from math import ceil, floor, log10
from types import CodeType
from typing import Any

NAME = re.compile(r"[a-z][a-z0-9_]*")
Value = float | str | None


@dataclass(frozen=True, slots=True)
class PlanFigure:
    """One value of a plan: derived by `formula` from `operands`, or an input that came from `source`.

    A formula is arithmetic over names of figures wherever that can express it; `round_up(x, step)` rounds up to whole
    steps.
    """

    name: str
    value: Value
    unit: str
    formula: str = ""
    source: str = ""
    operands: tuple["PlanFigure", ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        """Format value and unit."""
        return format_value(self.value, self.unit)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the operands by name."""
        plain = {name: getattr(self, name) for name in ("name", "value", "unit", "formula", "source")}
        return plain | {"of": [operand.name for operand in self.operands]}


class Ledger:
    """The figures of one plan in the order in which they were entered; lives as long as the calculation."""

    def __init__(self) -> None:
        self.figures: dict[str, PlanFigure] = {}

    def input(self, name: str, value: Value, unit: str, source: str) -> None:
        """Enter a value that comes from outside, with its source."""
        self.figures[name] = PlanFigure(name, value, unit, source=source)

    def derive(self, name: str, unit: str, formula: str, value: float | None = None, *, source: str = "") -> float:
        """Enter what *formula* comes to, and return it; the operands are the figures that it names.

        A *value* is given if the formula is words, or another module has the arithmetic.
        """
        names, code = _compiled(formula)
        operands = {each: self.figures[each] for each in names if each in self.figures}
        if value is None:
            values = {each: operand.value for each, operand in operands.items()}
            value = eval(code or formula, FUNCTIONS, values)  # noqa: S307 -- formulas are constants of ours
        self.figures[name] = PlanFigure(name, value, unit, formula, source, tuple(operands.values()))
        return value

    def number(self, name: str) -> float:
        """Return the value of a figure; one that is not a number counts as 0."""
        value = self.figures[name].value
        return value if isinstance(value, int | float) else 0


def round_up(value: float, step: float) -> int:
    """Round up to whole steps; a value that floating point puts a hair above one counts as on it."""
    return ceil(round(value / step, 9)) * round(step)


# What a formula may call; a hair above a whole number counts as on it.
FUNCTIONS: dict[str, Any] = {
    "__builtins__": {}, "ceil": partial(round_up, step=1), "max": max, "min": min, "round": round, "round_up": round_up,
}  # fmt: skip


@cache
def _compiled(formula: str) -> tuple[tuple[str, ...], CodeType | None]:
    """Parse a formula, as a break-even calculates a hundred plans: its names, and its code if it is not words."""
    names = tuple(dict.fromkeys(NAME.findall(formula)))
    try:
        return names, compile(formula, "formula", "eval")
    except SyntaxError:
        return names, None


def explain(figures: Mapping[str, PlanFigure], name: str) -> Iterator[tuple[int, PlanFigure]]:
    """Walk from a figure down to the inputs, yielding each with its depth; no figure is expanded twice."""
    seen = set[str]()

    def walk(figure: PlanFigure, depth: int) -> Iterator[tuple[int, PlanFigure]]:
        yield depth, figure
        if figure.name not in seen:
            seen.add(figure.name)
            for operand in figure.operands:
                yield from walk(operand, depth + 1)

    yield from walk(figures[name], 0)


@dataclass(frozen=True, slots=True)
class Range:
    """A sum of money by its prices, and what it is if each of them is as low, or as high, as it may well be."""

    low: float
    value: float
    high: float

    def overlaps(self, other: "Range") -> bool:
        """Return whether either may be the smaller one."""
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        """Format it with two digits, which is more than its prices are known to."""
        return f"{two_digits(self.value)} ({self.between})"

    @property
    def between(self) -> str:
        """The least and the most."""
        return f"{two_digits(self.low)} - {two_digits(self.high)}"


def rounded(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.1e}")


def two_digits(value: float) -> str:
    """Format a number with two significant digits, as 1,800, 23 or 0.73."""
    value = rounded(value)
    places = max(0, 1 - floor(log10(abs(value)))) if value else 0
    return f"{value:,.{places}f}"


def format_value(value: Value, unit: str) -> str:
    """Format a value with its unit, as briefly as its size allows."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if unit == "USD/month":
        return f"{two_digits(value)} {unit}"
    if unit == "share":
        return f"{value:.1%}"
    if float(value).is_integer() or abs(value) >= 10_000:
        number = f"{value:,.0f}"
    else:
        number = f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
    if number == "1" and unit.endswith("s") and "/" not in unit:
        unit = f"{unit[:-3]}y" if unit.endswith("ies") else unit[:-1]
    return f"{number} {unit}".strip()
