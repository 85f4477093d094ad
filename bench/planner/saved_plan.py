"""Plans saved as TOML by `--save`, and their check by `--check`: which figures have grown since."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from hotplate.bench.planner.inputs import InputSource, PlanMisused, read_toml
from hotplate.bench.planner.plan import CapacityPlan

BASELINE_FIGURES = (
    "reads_ru", "serve_ru", "publish_ru_s", "together_ru", "partitions", "publish_hours", "stored_gb",
    "cosmos_pods", "redis_pods", "files_pods", "redis_gb", "manual_cost", "autoscale_cost", "serverless_cost",
    "redis_cost", "cosmos_total", "redis_total",
)  # fmt: skip
BOUND_PERCENT = 10.0
CHECK_TABLE = "check"  # table of a saved plan: figures and their bound


@dataclass(frozen=True, slots=True)
class Baseline:
    """A saved plan: inputs, figures, and their allowed growth."""

    layer: InputSource
    figures: Mapping[str, float]
    bound_percent: float


def read_baseline(path: Path) -> Baseline:
    """Read a saved plan, a TOML file of inputs with a table [check]: figures, and by how many percent they may grow.

    Raises PlanMisused for unknown keys in [check], and for figures that are not numbers from 0. Inputs are not checked.
    """
    saved_inputs = read_toml(path)
    check = saved_inputs.pop(CHECK_TABLE, {})
    if not isinstance(check, dict) or check.keys() - {"bound_percent", "agreed"}:
        raise PlanMisused(f"[{CHECK_TABLE}] in {path} takes bound_percent and agreed, and nothing else")

    figures = check.get("agreed", {})
    bound = check.get("bound_percent", BOUND_PERCENT)
    if not isinstance(figures, dict):
        raise PlanMisused(f"[{CHECK_TABLE}.agreed] in {path} must be a table of figures")
    if unknown := ", ".join(figures.keys() - {*BASELINE_FIGURES}):
        raise PlanMisused(f"{unknown} in {path} is not one of {', '.join(BASELINE_FIGURES)}")
    for name, value in {**figures, "bound_percent": bound}.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < inf:  # nor NaN
            raise PlanMisused(f"{name} in {path} is {value!r}, and must be a number, 0 or more")
    return Baseline(InputSource(path.name, saved_inputs, f"{{name!r}} in {path}"), figures, bound)


def describe_growth(plan: CapacityPlan, baseline: Baseline) -> Iterator[str]:
    """Yield figures above their bound, or no longer possible. Raises PlanMisused if *baseline* has no figures."""
    if not baseline.figures:
        raise PlanMisused(
            f"{baseline.layer.source} has no figure to check; write one with: hotplate plan ... --save plan.toml"
        )
    for name, before in baseline.figures.items():
        now = plan.figures.get(name)
        if now is None or not now.is_number:
            yield f"{name} was {before:,.6g} and is {now or 'no figure of this plan'}"
        elif now.number > before * (1 + baseline.bound_percent / 100) + 1e-9:
            by = f" (+{now.number / before - 1:.0%})" if before else ""
            yield f"{name} grew from {replace(now, value=before)} to {now}{by}"


def to_toml(plan: CapacityPlan, bound_percent: float = BOUND_PERCENT) -> str:
    """Return a plan as TOML for `--check`: inputs, with their sources as comments, and the figures to check.

    *bound_percent* is the growth of a figure that a check allows.
    """
    lines = list[str]()
    for name, source in plan.sourced.sources.items():
        value = json.dumps(getattr(plan.inputs, name))  # is TOML, too
        comment = "".join(character if character.isprintable() else " " for character in source)
        lines.append(f"{name} = {value}  # {comment}")
    lines += ["", f"[{CHECK_TABLE}]", f"bound_percent = {bound_percent:g}", "", f"[{CHECK_TABLE}.agreed]"]
    for name in BASELINE_FIGURES:
        figure = plan.figures[name]
        if figure.is_number:
            lines.append(f"{name} = {figure.number:.6g}  # {figure.unit}")
    return "\n".join(lines) + "\n"
