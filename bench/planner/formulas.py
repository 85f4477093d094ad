"""Arithmetic that records formulas, and values with unit, source and operands."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Union

from hotplate.report import format_value

NAME = re.compile(r"[a-z][a-z0-9_]*")
Value = float | str | None
Number = Union["Term", float]
SUM, PRODUCT, ATOM = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Term:
    """A number with its formula; + - * / give terms."""

    value: float
    formula: str
    rank: int = ATOM

    def __add__(self, other: Number) -> "Term":
        return Term(self.value + term(other).value, f"{self.formula} + {term(other).formula}", SUM)

    def __sub__(self, other: Number) -> "Term":
        return Term(self.value - term(other).value, f"{self.formula} - {term(other).within(PRODUCT)}", SUM)

    def __mul__(self, other: Number) -> "Term":
        formula = f"{self.within(PRODUCT)} * {term(other).within(PRODUCT)}"
        return Term(self.value * term(other).value, formula, PRODUCT)

    def __truediv__(self, other: Number) -> "Term":
        formula = f"{self.within(PRODUCT)} / {term(other).within(ATOM)}"
        return Term(self.value / term(other).value, formula, PRODUCT)

    def within(self, rank: int) -> str:
        """Return the formula, in parentheses if *rank* needs them."""
        return self.formula if self.rank >= rank else f"({self.formula})"


def term(number: Number) -> Term:
    """Convert a number to a term."""
    return number if isinstance(number, Term) else Term(number, f"{number:.10g}")


def ceiling(number: Number, step: int = 1) -> Term:
    """Round up to whole steps."""
    exact = term(number)
    formula = f"ceil({exact.formula})" if step == 1 else f"round_up({exact.formula}, {step})"
    return Term(round_up(exact.value, step), formula)


def most(*numbers: Number) -> Term:
    """Return the largest."""
    return _extreme(max, numbers)


def least(*numbers: Number) -> Term:
    """Return the smallest."""
    return _extreme(min, numbers)


def _extreme(function: Callable[[Iterable[float]], float], numbers: Iterable[Number]) -> Term:
    terms = list(map(term, numbers))
    operands = ", ".join(number.formula for number in terms)
    return Term(function(number.value for number in terms), f"{function.__name__}({operands})")


def round_up(value: float, step: float) -> int:
    """Round up to whole steps, tolerating floating-point error."""
    return ceil(round(value / step, 9)) * round(step)


@dataclass(frozen=True, slots=True)
class PlanFigure:
    """A value of a plan: by `formula` from `operands`, or an input with its `source`."""

    name: str
    value: Value
    unit: str
    formula: str = ""
    source: str = ""
    operands: tuple["PlanFigure", ...] = field(default=(), repr=False)

    @property
    def number(self) -> float:
        """The value, or 0 if it is not a number."""
        return self.value if isinstance(self.value, int | float) else 0.0

    def __str__(self) -> str:
        if isinstance(self.value, int | float):
            return format_value(self.value, self.unit)
        return self.value or "none"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        plain = {name: getattr(self, name) for name in ("name", "value", "unit", "formula", "source")}
        return plain | {"of": [operand.name for operand in self.operands]}


class FigureTable(dict[str, PlanFigure]):
    """The figures of one plan by name."""

    def enter(self, name: str, value: Value, unit: str, source: str) -> None:
        """Enter an input with its source."""
        self[name] = PlanFigure(name, value, unit, source=source)

    def derive(self, name: str, unit: str, result: Number, formula: str = "", source: str = "") -> Term:
        """Enter a calculated figure, and return it as a term, a number with its formula, for further formulas.

        result   a term, or a plain number, which needs a *formula* to explain it
        formula  text that is shown instead of the term's own, as "users * growth"
        source   where the figure comes from, or what it means

        Its operands are the figures of this table that the formula names.
        """
        shown_formula = formula or term(result).formula
        names = dict.fromkeys(NAME.findall(shown_formula))
        operands = tuple(self[operand] for operand in names if operand in self)
        self[name] = PlanFigure(name, term(result).value, unit, shown_formula, source, operands)
        return self.term(name)

    def term(self, name: str) -> Term:
        """Return a figure as a term."""
        return Term(self[name].number, name)


def explain(figures: Mapping[str, PlanFigure], name: str) -> Iterator[tuple[int, PlanFigure]]:
    """Yield a figure and the figures that it is calculated from, down to the inputs, each with its depth.

    The figure *name* has depth 0, its operands have 1, and so on. A figure that occurs again is yielded without its
    operands.
    """
    seen = set[str]()

    def walk(figure: PlanFigure, depth: int) -> Iterator[tuple[int, PlanFigure]]:
        yield depth, figure
        if figure.name not in seen:
            seen.add(figure.name)
            for operand in figure.operands:
                yield from walk(operand, depth + 1)

    yield from walk(figures[name], 0)
