"""Arithmetic that records formulas, and values with unit, source and operands."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Union

from hotplate.report import format_value

NAME = re.compile(r"[a-z][a-z0-9_]*")
Value = float | str
Number = Union["Expression", float]
SUM = 1
PRODUCT = 2
ATOM = 3


@dataclass(frozen=True, slots=True)
class Expression:
    """A number, and the formula that gives it, as text: `users * growth`; + - * / with numbers give expressions."""

    value: float
    formula: str
    rank: int = ATOM
    """SUM, PRODUCT or ATOM, by the operator of the formula that binds least."""

    def __add__(self, other: Number) -> "Expression":
        term = as_expression(other)
        return Expression(self.value + term.value, f"{self.formula} + {term.formula}", SUM)

    def __sub__(self, other: Number) -> "Expression":
        term = as_expression(other)
        return Expression(self.value - term.value, f"{self.formula} - {term.within(PRODUCT)}", SUM)

    def __mul__(self, other: Number) -> "Expression":
        factor = as_expression(other)
        formula = f"{self.within(PRODUCT)} * {factor.within(PRODUCT)}"
        return Expression(self.value * factor.value, formula, PRODUCT)

    def __truediv__(self, other: Number) -> "Expression":
        divisor = as_expression(other)
        formula = f"{self.within(PRODUCT)} / {divisor.within(ATOM)}"
        return Expression(self.value / divisor.value, formula, PRODUCT)

    def __radd__(self, other: float) -> "Expression":
        return as_expression(other) + self

    def __rsub__(self, other: float) -> "Expression":
        return as_expression(other) - self

    def __rmul__(self, other: float) -> "Expression":
        return as_expression(other) * self

    def __rtruediv__(self, other: float) -> "Expression":
        return as_expression(other) / self

    def within(self, rank: int) -> str:
        """Return the formula, in parentheses if *rank* needs them."""
        return self.formula if self.rank >= rank else f"({self.formula})"


def as_expression(number: Number) -> Expression:
    """Return a number as an expression, whose formula is the number itself."""
    return number if isinstance(number, Expression) else Expression(number, f"{number:.10g}")


def ceiling(number: Number, multiple_of: int = 1) -> Expression:
    """Round up to a multiple of a number."""
    exact = as_expression(number)
    formula = f"round_up({exact.formula}, {multiple_of})"
    if multiple_of == 1:
        formula = f"ceil({exact.formula})"
    return Expression(round_up(exact.value, multiple_of), formula)


def largest(*numbers: Number) -> Expression:
    """Return the largest."""
    return _extreme(max, numbers)


def smallest(*numbers: Number) -> Expression:
    """Return the smallest."""
    return _extreme(min, numbers)


def _extreme(function: Callable[[Iterable[float]], float], numbers: Iterable[Number]) -> Expression:
    """Return the result of `min` or `max` with its formula, as max(a, b)."""
    terms = list(map(as_expression, numbers))
    operands = ", ".join(number.formula for number in terms)
    return Expression(function(number.value for number in terms), f"{function.__name__}({operands})")


def round_up(value: float, step: float) -> int:
    """Round up to whole steps, tolerating floating-point error."""
    return ceil(round(value / step, 9)) * round(step)


@dataclass(frozen=True, slots=True)
class PlanFigure:
    """A named value of a plan: calculated by a *formula* from *operands*, or given by a *source*.

    Its value is a text if it is a choice, or says why something is not possible.
    """

    name: str
    value: Value
    unit: str
    formula: str = ""
    source: str = ""
    operands: tuple["PlanFigure", ...] = field(default=(), repr=False)

    @property
    def is_number(self) -> bool:
        """Whether the value is a number, and not a text."""
        return isinstance(self.value, int | float)

    @property
    def number(self) -> float:
        """The value, or 0 if it is not a number."""
        return self.value if isinstance(self.value, int | float) else 0.0

    def __str__(self) -> str:
        return format_value(self.number, self.unit) if self.is_number else str(self.value)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        plain = {name: getattr(self, name) for name in ("name", "value", "unit", "formula", "source")}
        return plain | {"of": [operand.name for operand in self.operands]}


class FigureTable(dict[str, PlanFigure]):
    """The figures of one plan by name, in the order in which they are added."""

    def add_value(self, name: str, value: Value, unit: str, source: str) -> Expression:
        """Add a figure that is not calculated: an input, a price, or a text; return it as `expression` does."""
        self[name] = PlanFigure(name, value, unit, source=source)
        return self.expression(name)

    def add_calculated(self, name: str, unit: str, result: Number, formula: str = "", source: str = "") -> Expression:
        """Add a figure with the value of *result*, and return it as an expression, for formulas of other figures.

        result   an expression such as `users * growth`, or a plain number, which needs a *formula* to explain it
        formula  text that is shown instead of the expression's own
        source   where the figure comes from, or what it means

        The figure's operands are those figures of this table that the formula names.
        """
        expression = as_expression(result)
        shown_formula = formula or expression.formula
        names = dict.fromkeys(NAME.findall(shown_formula))
        operands = tuple(self[operand] for operand in names if operand in self)
        self[name] = PlanFigure(name, expression.value, unit, shown_formula, source, operands)
        return self.expression(name)

    def expression(self, name: str) -> Expression:
        """Return a figure for use in formulas: its number, 0 for a text, with its name as the formula."""
        return Expression(self[name].number, name)


def explain(figures: Mapping[str, PlanFigure], name: str) -> Iterator[tuple[int, PlanFigure]]:
    """Yield the figure *name* and those that it is calculated from, down to the inputs, each with its depth.

    The figure *name* has depth 0, its operands have 1, and so on, each before its own operands. A figure that occurs
    again is yielded without its operands.
    """
    explained = set[str]()
    pending = [(0, figures[name])]
    while pending:
        depth, figure = pending.pop()
        yield depth, figure
        if figure.name not in explained:
            explained.add(figure.name)
            pending += [(depth + 1, operand) for operand in reversed(figure.operands)]
