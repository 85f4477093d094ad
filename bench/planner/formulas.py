"""Arithmetic that records formulas, and values with unit, source and operands.

An expression keeps the expressions that it was calculated from, so each figure of a plan can be explained (`explain`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from operator import add, gt, mul, sub, truediv
from typing import Any, Union

from hotplate.base.report import format_value

Number = Union["Expression", float]
SUM = 1
PRODUCT = 2
ATOM = 3
NOT_POSSIBLE = "not possible: "

_Method = Callable[["Expression", Number], "Expression"]


class NotPossible(Exception):
    """A limit rules out a way to serve a load; the message has its name, a colon, and the numbers."""


def _operator(function: Callable[[Any, Any], Any], sign: str, rank: int, rank_of_right: int) -> tuple[_Method, _Method]:
    """Return the methods of an operator, for an expression at its left and at its right, whose text has the *sign*.

    Operands are in parentheses if their rank is below *rank*, or *rank_of_right*.
    """

    def operate(first: Number, second: Number) -> "Expression":
        left = as_expression(first)
        right = as_expression(second)
        text = f"{left.within(rank)} {sign} {right.within(rank_of_right)}"
        return apply(function, left, right, text=text, rank=rank)

    return operate, lambda second, first: operate(first, second)


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A result, the text that gives it, and the expressions that it was calculated from.

    + - * / and > with numbers give expressions. A result is impossible if an operand is.
    """

    result: Any
    """A number, a condition, or the value of a choice; NotPossible if a limit rules it out."""

    text: str
    rank: int = ATOM
    """SUM, PRODUCT or ATOM, by the operator of the text that binds least."""

    arguments: tuple["Expression", ...] = ()

    @property
    def obstacle(self) -> str:
        """The limit that makes it impossible, and the numbers; empty if it is possible."""
        return str(self.result) if isinstance(self.result, NotPossible) else ""

    @property
    def operands(self) -> tuple["PlanFigure", ...]:
        """The figures that the text reads, in order."""
        figures = dict[str, PlanFigure]()
        pending = list(reversed(self.arguments))
        while pending:
            argument = pending.pop()
            if isinstance(argument, PlanFigure):
                figures[argument.text] = argument
            else:
                pending += reversed(argument.arguments)
        return tuple(figures.values())

    def decided_by(self, *others: "Expression") -> "Expression":
        """Return the same with the operands of *others*, which decided that this expression is used, or is possible."""
        return apply(lambda *values: values[-1], *others, self, text=self.text, rank=self.rank)

    def within(self, rank: int) -> str:
        """Return the text, in parentheses if *rank* needs them."""
        return self.text if self.rank >= rank else f"({self.text})"

    __add__, __radd__ = _operator(add, "+", SUM, SUM)
    __sub__, __rsub__ = _operator(sub, "-", SUM, PRODUCT)
    __mul__, __rmul__ = _operator(mul, "*", PRODUCT, PRODUCT)
    __truediv__, __rtruediv__ = _operator(truediv, "/", PRODUCT, ATOM)
    __gt__ = _operator(gt, ">", SUM, SUM)[0]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PlanFigure(Expression):
    """A named result of a plan, which others read by its name: calculated by a formula, or given by a source.

    shown  the value in reports, if the result is neither a number nor a text
    """

    unit: str
    source: str = ""
    shown: str | None = None

    @property
    def name(self) -> str:
        """The name."""
        return self.text

    @property
    def formula(self) -> str:
        """The text of the expression that gives it; empty for an input or a price."""
        return self.arguments[0].text if self.arguments else ""

    @property
    def value(self) -> float | str:
        """A number, or a text if it is a choice, or not possible."""
        if self.obstacle:
            return NOT_POSSIBLE + self.obstacle
        value: float | str = self.shown or self.result
        return value

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
        return format_value(self.number, self.unit) if self.is_number else str(self.value)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        plain = {name: getattr(self, name) for name in ("name", "value", "unit", "formula", "source")}
        return plain | {"of": [operand.name for operand in self.operands]}


def as_expression(number: Number) -> Expression:
    """Return a number as an expression; the number is its text."""
    return number if isinstance(number, Expression) else Expression(number, f"{number:.10g}")


def apply(function: Callable[..., Any], *arguments: Expression, text: str, rank: int = ATOM) -> Expression:
    """Return the result of *function* for the values of *arguments*, explained by *text*, often in words.

    It is impossible if an argument is, or if the function raises NotPossible.
    """
    value = next((term.result for term in arguments if term.obstacle), None)
    if value is None:
        try:
            value = function(*[term.result for term in arguments])
        except NotPossible as error:
            value = error.with_traceback(None)
    return Expression(value, text, rank, arguments)


def choose(condition: Expression, when_true: Number, otherwise: Number) -> Expression:
    """Return one of two expressions; the figures of the condition are among its operands."""
    return as_expression(when_true if condition.result else otherwise).decided_by(condition)


def at_most(value: Expression, bound: Number, limit: str) -> Expression:
    """Return *value*, which is not possible above the *bound*.

    *limit* is the obstacle as a format of both, as "regions: {:.0f}, and serverless has one".
    """

    def check(number: float, most: float) -> float:
        if number > most:
            raise NotPossible(limit.format(number, most))
        return number

    return apply(check, value, as_expression(bound), text=value.text, rank=value.rank)


def ceiling(number: Number, multiple_of: int = 1) -> Expression:
    """Round up to a multiple of a number."""
    exact = as_expression(number)
    text = f"round_up({exact.text}, {multiple_of})"
    if multiple_of == 1:
        text = f"ceil({exact.text})"
    return apply(lambda value: round_up(value, multiple_of), exact, text=text)


def _extreme(function: Callable[[Iterable[float]], float], *numbers: Number) -> Expression:
    """Return the result of `min` or `max` with its text, as max(a, b)."""
    terms = list(map(as_expression, numbers))
    text = f"{function.__name__}({', '.join(term.text for term in terms)})"
    return apply(lambda *values: function(values), *terms, text=text)


largest = partial(_extreme, max)
smallest = partial(_extreme, min)


def round_up(value: float, step: float) -> int:
    """Round up to whole steps, tolerating floating-point error."""
    return ceil(round(value / step, 9)) * round(step)


class FigureTable(dict[str, PlanFigure]):
    """The figures of one plan by name, in the order in which they are added, each once."""

    def add_value(self, name: str, value: object, unit: str, source: str, shown: str | None = None) -> None:
        """Add a figure that is not calculated: an input or a price."""
        self._add(PlanFigure(value, name, unit=unit, source=source, shown=shown))

    def add_calculated(
        self, name: str, unit: str, result: Number, source: str = "", shown: str | None = None
    ) -> PlanFigure:
        """Add a figure with the value of *result*, and return it, for formulas of other figures.

        Its operands are the figures that were read for *result*. *source* says where it comes from, or what it means.
        """
        term = as_expression(result)
        unit = "" if term.obstacle else unit
        return self._add(PlanFigure(term.result, name, arguments=(term,), unit=unit, source=source, shown=shown))

    def _add(self, figure: PlanFigure) -> PlanFigure:
        if figure.name in self:
            raise ValueError(f"{figure.name} is a figure of this plan already")
        self[figure.name] = figure
        return figure

    def is_choice(self, name: str, *values: str) -> Expression:
        """Return whether a choice is one of *values*, as the condition of `choose`."""
        return apply(lambda value: value in values, self[name], text=name)

    def given_or(self, name: str, fallback: Number) -> Expression:
        """Return an optional input if it was given, else *fallback*."""
        return choose(self.is_given(name), self.get(name, fallback), fallback)

    def is_given(self, name: str) -> Expression:
        """Return whether an optional input was given, as the condition of `choose`."""
        arguments = (self[name],) if name in self else ()
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
