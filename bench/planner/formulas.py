"""Arithmetic that records formulas, and values with unit, source and operands.

An expression keeps the expressions that it was calculated from, so each figure of a plan can be explained (`explain`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from operator import add, gt, mul, sub, truediv
from typing import Any, Union

from hotplate.base.report import format_value

Number = Union["Expression", float]
SUM = 1
PRODUCT = 2
ATOM = 3
NOT_POSSIBLE = "not possible: "


class NotPossible(Exception):
    """A limit rules out a way to serve a load; the message has its name, a colon, and the numbers."""


@dataclass(frozen=True, slots=True)
class PlanFigure:
    """A named value of a plan: calculated by a *formula* from *operands*, or given by a *source*.

    Its value is a text if it is a choice, or names the *obstacle*, the limit that makes something impossible.
    """

    name: str
    value: float | str
    unit: str
    formula: str = ""
    source: str = ""
    operands: tuple["PlanFigure", ...] = field(default=(), repr=False)
    obstacle: str = ""

    @property
    def limit(self) -> str:
        """The name of the limit that makes it impossible, as "memory"; empty if it is possible."""
        return self.obstacle.partition(":")[0]

    @property
    def is_number(self) -> bool:
        """Whether the value is a number, and not a text."""
        return isinstance(self.value, int | float)

    @property
    def number(self) -> float:
        """The value. Raises TypeError for a text."""
        if isinstance(self.value, str):
            raise TypeError(f"{self.name} is {self.value!r}, and not a number")
        return self.value

    def __str__(self) -> str:
        return format_value(self.value, self.unit) if isinstance(self.value, int | float) else self.value

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        plain = {name: getattr(self, name) for name in ("name", "value", "unit", "formula", "source")}
        return plain | {"of": [operand.name for operand in self.operands]}


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A value, the formula that gives it, as text, and the expressions that it was calculated from.

    + - * / and > with numbers give expressions. A result is impossible if an operand is.
    """

    value: Any
    """A number, a condition, or the value of a choice; NotPossible if a limit rules it out."""

    formula: str
    rank: int = ATOM
    """SUM, PRODUCT or ATOM, by the operator of the formula that binds least."""

    arguments: tuple["Expression", ...] = ()
    figure: PlanFigure | None = None
    """The figure that the formula names."""

    @property
    def obstacle(self) -> str:
        """The limit that makes it impossible, and the numbers; empty if it is possible."""
        return str(self.value) if isinstance(self.value, NotPossible) else ""

    @property
    def operands(self) -> tuple[PlanFigure, ...]:
        """The figures that the formula reads, in order."""
        figures = dict[str, PlanFigure]()
        pending = list(reversed(self.arguments))
        while pending:
            argument = pending.pop()
            if argument.figure is None:
                pending += reversed(argument.arguments)
            else:
                figures[argument.figure.name] = argument.figure
        return tuple(figures.values())

    def decided_by(self, *others: "Expression") -> "Expression":
        """Return the same with the operands of *others*, which decided that this expression is used, or is possible."""
        return apply(lambda *values: values[-1], *others, self, formula=self.formula, rank=self.rank)

    def within(self, rank: int) -> str:
        """Return the formula, in parentheses if *rank* needs them."""
        return self.formula if self.rank >= rank else f"({self.formula})"

    def __add__(self, other: Number) -> "Expression":
        term = as_expression(other)
        return apply(add, self, term, formula=f"{self.formula} + {term.formula}", rank=SUM)

    def __sub__(self, other: Number) -> "Expression":
        term = as_expression(other)
        return apply(sub, self, term, formula=f"{self.formula} - {term.within(PRODUCT)}", rank=SUM)

    def __mul__(self, other: Number) -> "Expression":
        factor = as_expression(other)
        formula = f"{self.within(PRODUCT)} * {factor.within(PRODUCT)}"
        return apply(mul, self, factor, formula=formula, rank=PRODUCT)

    def __truediv__(self, other: Number) -> "Expression":
        divisor = as_expression(other)
        formula = f"{self.within(PRODUCT)} / {divisor.within(ATOM)}"
        return apply(truediv, self, divisor, formula=formula, rank=PRODUCT)

    def __gt__(self, other: Number) -> "Expression":
        bound = as_expression(other)
        return apply(gt, self, bound, formula=f"{self.formula} > {bound.formula}", rank=SUM)

    def __radd__(self, other: float) -> "Expression":
        return as_expression(other) + self

    def __rsub__(self, other: float) -> "Expression":
        return as_expression(other) - self

    def __rmul__(self, other: float) -> "Expression":
        return as_expression(other) * self

    def __rtruediv__(self, other: float) -> "Expression":
        return as_expression(other) / self


def as_expression(number: Number) -> Expression:
    """Return a number as an expression; the number is its formula."""
    return number if isinstance(number, Expression) else Expression(number, f"{number:.10g}")


def apply(function: Callable[..., Any], *arguments: Expression, formula: str, rank: int = ATOM) -> Expression:
    """Return the result of *function* for the values of *arguments*, explained by *formula*, often in words.

    It is impossible if an argument is, or if the function raises NotPossible.
    """
    value = next((term.value for term in arguments if term.obstacle), None)
    if value is None:
        try:
            value = function(*[term.value for term in arguments])
        except NotPossible as error:
            value = error.with_traceback(None)
    return Expression(value, formula, rank, arguments)


def choose(condition: Expression, when_true: Number, otherwise: Number) -> Expression:
    """Return one of two expressions; the figures of the condition are among its operands."""
    return as_expression(when_true if condition.value else otherwise).decided_by(condition)


def least_possible(terms: Mapping[str, Expression]) -> Expression:
    """Return the least of the *terms*, by name, that are possible; the obstacles of all, if none is."""
    possible = [term for term in terms.values() if not term.obstacle]
    if possible:
        least = possible[0] if len(possible) == 1 else smallest(*possible)
        return replace(least, rank=ATOM, arguments=tuple(terms.values()), figure=None)
    obstacles = "; ".join(f"{name}: {term.obstacle}" for name, term in terms.items())
    formula = f"min({', '.join(term.formula for term in terms.values())})"
    return Expression(NotPossible(obstacles), formula, arguments=tuple(terms.values()))


def ceiling(number: Number, multiple_of: int = 1) -> Expression:
    """Round up to a multiple of a number."""
    exact = as_expression(number)
    formula = f"round_up({exact.formula}, {multiple_of})"
    if multiple_of == 1:
        formula = f"ceil({exact.formula})"
    return apply(lambda value: round_up(value, multiple_of), exact, formula=formula)


def largest(*numbers: Number) -> Expression:
    """Return the largest."""
    return _extreme(max, numbers)


def smallest(*numbers: Number) -> Expression:
    """Return the smallest."""
    return _extreme(min, numbers)


def _extreme(function: Callable[[Iterable[float]], float], numbers: Iterable[Number]) -> Expression:
    """Return the result of `min` or `max` with its formula, as max(a, b)."""
    terms = list(map(as_expression, numbers))
    formula = f"{function.__name__}({', '.join(term.formula for term in terms)})"
    return apply(lambda *values: function(values), *terms, formula=formula)


def round_up(value: float, step: float) -> int:
    """Round up to whole steps, tolerating floating-point error."""
    return ceil(round(value / step, 9)) * round(step)


class FigureTable(Mapping[str, PlanFigure]):
    """The figures of one plan by name, in the order in which they are added, each once."""

    def __init__(self) -> None:
        self._figures = dict[str, PlanFigure]()
        self._terms = dict[str, Expression]()

    def __getitem__(self, name: str) -> PlanFigure:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def add_value(self, name: str, value: float | str, unit: str, source: str, choice: object = None) -> None:
        """Add a figure that is not calculated: an input or a price; *choice* is what `choice` returns instead of it."""
        figure = PlanFigure(name, value, unit, source=source)
        self._add(figure, Expression(value if choice is None else choice, name))

    def add_calculated(
        self,
        name: str,
        unit: str,
        result: Number,
        source: str = "",
        shown: Callable[[Any], float | str] = lambda value: value,
    ) -> Expression:
        """Add a figure with the value of *result*, and return it as an expression, for formulas of other figures.

        Its operands are the figures that were read for *result*. *source* says where it comes from, or what it means.
        *shown* returns the figure's value for that of *result*, if that is neither a number nor a text.
        """
        term = as_expression(result)
        if term.obstacle:
            value: float | str = NOT_POSSIBLE + term.obstacle
            unit = ""
        else:
            value = shown(term.value)
        return self._add(PlanFigure(name, value, unit, term.formula, source, term.operands, term.obstacle), term)

    def _add(self, figure: PlanFigure, term: Expression) -> Expression:
        if figure.name in self._figures:
            raise ValueError(f"{figure.name} is a figure of this plan already")
        self._figures[figure.name] = figure
        named = Expression(term.value, figure.name, ATOM, term.arguments, figure)
        self._terms[figure.name] = named
        return named

    def expression(self, name: str) -> Expression:
        """Return a figure, perhaps a choice such as an encoding, for use in formulas, with its name as the formula."""
        return self._terms[name]

    def is_choice(self, name: str, *values: str) -> Expression:
        """Return whether a choice is one of *values*, as the condition of `choose`."""
        return apply(lambda value: value in values, self.expression(name), formula=name)

    def given_or(self, name: str, fallback: Number) -> Expression:
        """Return an optional input if it was given, else *fallback*."""
        return choose(self.is_given(name), self._terms.get(name, fallback), fallback)

    def is_given(self, name: str) -> Expression:
        """Return whether an optional input was given, as the condition of `choose`."""
        arguments = (self._terms[name],) if name in self else ()
        return Expression(name in self, name, arguments=arguments)


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
