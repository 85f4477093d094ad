"""Has the need grown? A plan that was agreed on, as a TOML file, and the same worked out anew."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.planner.errors import PlanMisused
from bench.planner.figures import told
from bench.planner.inputs import Layer
from bench.planner.plan import Plan

AGREED = (
    "reads_ru", "serve_ru", "publish_ru_s", "together_ru", "partitions", "publish_hours", "stored_gb", "pods",
    "redis_gb",    "manual_cost", "autoscale_cost", "serverless_cost", "redis_cost", "cosmos_total", "redis_total",
)  # fmt: skip
"""The figures that are agreed on."""

BOUND_PERCENT = 10.0
CHECK = "check"


@dataclass(frozen=True, slots=True)
class Agreed:
    """A plan's file: its inputs, what was agreed on, and by how much that may be exceeded."""

    layer: Layer
    figures: Mapping[str, float]
    bound_percent: float


@dataclass(frozen=True, slots=True)
class Growth:
    """One figure that grew by more than the bound; `now` is a text where it can no longer be worked out."""

    name: str
    unit: str
    before: float
    now: float | str | None

    @property
    def sentence(self) -> str:
        """Say it."""
        if not isinstance(self.now, int | float):
            return f"{self.name} was {told(self.before, self.unit)} and is {self.now}"
        by = f" (+{self.now / self.before - 1:.0%})" if self.before else ""
        return f"{self.name} grew from {told(self.before, self.unit)} to {told(self.now, self.unit)}{by}"

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        return asdict(self)


def read(path: Path) -> Agreed:
    """Read a file of inputs, and what was agreed on. Raises PlanMisused for one that makes no sense."""
    try:
        facts = tomllib.loads(path.read_text())
    except OSError as error:
        raise PlanMisused(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanMisused(f"{path} is no TOML: {error}") from error
    check = facts.pop(CHECK, {})
    if not isinstance(check, dict) or check.keys() - {"bound_percent", "agreed"}:
        raise PlanMisused(f"[{CHECK}] in {path} takes bound_percent and agreed, and nothing else")
    agreed, bound = check.get("agreed", {}), check.get("bound_percent", BOUND_PERCENT)
    if not isinstance(agreed, dict):
        raise PlanMisused(f"[{CHECK}.agreed] in {path} must be a table of figures")
    if not _is_number(bound) or bound < 0:
        raise PlanMisused(f"bound_percent in {path} is {bound!r}, and must be a number, 0 or more")
    for name, value in agreed.items():
        if name not in AGREED:
            raise PlanMisused(f"{name} in {path} is no figure that is agreed on; there are {', '.join(AGREED)}")
        if not _is_number(value):
            raise PlanMisused(f"{name} in {path} is {value!r}, and must be a number")
    return Agreed(Layer(path.name, facts, f"{{name}} in {path}"), agreed, bound)


def grown(plan: Plan, agreed: Agreed) -> list[Growth]:
    """Say which figures grew by more than the bound, or are no longer possible. PlanMisused where nothing is agreed."""
    if not agreed.figures:
        raise PlanMisused(
            f"{agreed.layer.source} agrees on no figure; write one with: hotplate plan ... --save plan.toml"
        )
    found = list[Growth]()
    for name, before in agreed.figures.items():
        figure = plan.figures[name]
        bound = before * (1 + agreed.bound_percent / 100) + 1e-9
        if not isinstance(figure.value, int | float) or figure.value > bound:
            found.append(Growth(name, figure.unit or "USD/month", before, figure.value))
    return found


def to_toml(plan: Plan, bound_percent: float = BOUND_PERCENT) -> str:
    """Write a plan down: the inputs that are no defaults, each with its source, and the figures to be agreed on."""
    lines = [f"{name} = {_written(getattr(plan.given.inputs, name))}  # {_plain(source)}"
             for name, source in plan.given.sources.items()]  # fmt: skip
    lines += ["", f"[{CHECK}]", f"bound_percent = {bound_percent:g}", "", f"[{CHECK}.agreed]"]
    for name in AGREED:
        value = plan.figures[name].value
        if isinstance(value, int | float):
            lines.append(f"{name} = {value:.6g}  # {plan.figures[name].unit}")
    return "\n".join(lines) + "\n"


def _written(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)  # what JSON is of these, TOML is, too


def _plain(source: str) -> str:
    return "".join(each if each.isprintable() else " " for each in source)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
