"""A figure and its why: every value knows the formula that it came from, and the figures that went into it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

NAME = re.compile(r"[a-z][a-z0-9_]*")
Value = float | str | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One value of a plan: worked out by `formula` from `of`, or given, and then `source` says by whom.

    A formula is arithmetic over names of figures wherever that can say it; `up(x, step)` rounds up to whole steps.
    """

    name: str
    value: Value
    unit: str
    formula: str = ""
    source: str = ""
    of: tuple["Figure", ...] = field(default=(), repr=False)

    @property
    def told(self) -> str:
        """Say value and unit."""
        return told(self.value, self.unit)

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values; what went into it by name."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "formula": self.formula,
            "source": self.source,
            "of": [each.name for each in self.of],
        }


class Book:
    """The figures of one plan in the order in which they were worked out; lives as long as that takes."""

    def __init__(self) -> None:
        self._figures: dict[str, Figure] = {}

    def give(self, name: str, value: Value, unit: str, source: str) -> None:
        """Write down a value that was given, with its source."""
        self._figures[name] = Figure(name, value, unit, source=source)

    def work(self, name: str, value: float, unit: str, formula: str, *, source: str = "") -> float:
        """Write down a value that was worked out; what went into it is what its formula names. Returns the value."""
        names = dict.fromkeys(NAME.findall(formula))
        of = tuple(self._figures[each] for each in names if each in self._figures)
        self._figures[name] = Figure(name, value, unit, formula, source, of)
        return value

    def figures(self) -> dict[str, Figure]:
        """Give all figures by name."""
        return dict(self._figures)


def up(value: float, step: float) -> int:
    """Round up to whole steps; what is a hair above one for the sake of floating point counts as on it."""
    return ceil(round(value / step, 9)) * round(step)


def why(figures: Mapping[str, Figure], name: str) -> Iterator[tuple[int, Figure]]:
    """Walk from a figure down to what was given, each with its depth; what came before is not walked again."""
    seen = set[str]()

    def walk(figure: Figure, depth: int) -> Iterator[tuple[int, Figure]]:
        yield depth, figure
        if figure.name not in seen:
            seen.add(figure.name)
            for each in figure.of:
                yield from walk(each, depth + 1)

    yield from walk(figures[name], 0)


def told(value: Value, unit: str) -> str:
    """Write a value with its unit, as briefly as its size allows."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if unit == "USD":
        return f"{value:,.2f} USD"
    if unit == "USD/month":
        return f"{value:,.2f} USD/month"
    if unit == "share":
        return f"{value:.1%}"
    whole = float(value).is_integer() or abs(value) >= 10_000
    number = f"{value:,.0f}" if whole else _short(value)
    if number == "1" and unit.endswith("s") and "/" not in unit:
        unit = unit[:-1]
    return f"{number} {unit}".strip()


def _short(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
