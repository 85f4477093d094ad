"""Plans saved as TOML by `--save`, and their check by `--check`: which figures have grown since."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from hotplate.base.report import format_value
from hotplate.bench.planner.inputs import MOST, InputSource, PlanMisused, read_toml
from hotplate.bench.planner.plan import CapacityPlan

BASELINE_FIGURES = (
    "reads_ru", "serve_ru", "publish_ru_s", "together_ru", "partitions", "publish_hours", "stored_gb",
    "cosmos_pods", "redis_pods", "files_pods", "redis_gb", "manual_cost", "autoscale_cost", "serverless_cost",
    "redis_cost", "cosmos_total", "redis_total",
)  # fmt: skip
BOUND_PERCENT = 10.0
CHECK_TABLE = "check"  # table of a saved plan: figures and their bound


Amount = Annotated[float, msgspec.Meta(ge=0, le=MOST)]


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table of a saved plan for `--check`: figures, and by how many percent they may grow."""

    bound_percent: Amount = BOUND_PERCENT
    agreed: dict[Literal[BASELINE_FIGURES], Amount] = {}  # type: ignore[valid-type]  # the names are listed once


@dataclass(frozen=True, slots=True)
class Baseline:
    """A saved plan: inputs, figures, and their allowed growth."""

    layer: InputSource
    check: Check


def read_baseline(path: Path) -> Baseline:
    """Read a saved plan, a TOML file of inputs with a table [check]. Raises PlanMisused for an invalid one.

    Inputs are not checked.
    """
    saved_inputs = read_toml(path)
    try:
        check = msgspec.convert(saved_inputs.pop(CHECK_TABLE, {}), Check)
    except msgspec.ValidationError as error:
        raise PlanMisused(f"[{CHECK_TABLE}] in {path}: {error}") from error
    return Baseline(InputSource(path.name, saved_inputs, f"{{name!r}} in {path}"), check)


def describe_growth(plan: CapacityPlan, baseline: Baseline) -> Iterator[str]:
    """Yield figures above their bound, or no longer possible. Raises PlanMisused if *baseline* has no figures."""
    if not baseline.check.agreed:
        raise PlanMisused(
            f"{baseline.layer.source} has no figure to check; write one with: hotplate plan ... --save plan.toml"
        )
    for name, before in baseline.check.agreed.items():
        now = plan.figures[name]
        if not now.is_number:
            yield f"{name} was {before:,.6g} and is {now}"
        elif now.number > before * (1 + baseline.check.bound_percent / 100) + 1e-9:
            by = f" (+{now.number / before - 1:.0%})" if before else ""
            yield f"{name} grew from {format_value(before, now.unit)} to {now}{by}"


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
