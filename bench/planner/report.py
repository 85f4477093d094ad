"""A plan with all that is told beside it: break-even, advice and cautions, as values."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.planner.advice import Advice, advise
from bench.planner.breakeven import BreakEven, compare
from bench.planner.cautions import cautions
from bench.planner.inputs import KNOWN
from bench.planner.plan import Plan

FORMAT = 1


@dataclass(frozen=True, slots=True)
class PlanReport:
    """All that is told of a plan; lives as long as it takes to print or to write it."""

    plan: Plan
    break_even: BreakEven
    advice: tuple[Advice, ...]
    cautions: tuple[str, ...]
    prices_file: str
    date: str

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        figures = self.plan.figures
        return {
            "format": FORMAT,
            "kind": "plan",
            "date": self.date,
            "prices_file": self.prices_file,
            "cheapest": self.plan.cheapest,
            "cautions": list(self.cautions),
            "break_even": self.break_even.to_json(),
            "advice": [each.to_json() for each in self.advice],
            "inputs": [figures[name].to_json() for name in KNOWN if name in figures],
            "figures": [each.to_json() for name, each in figures.items() if name not in KNOWN],
        }


def report_of(plan: Plan, prices_file: Path) -> PlanReport:
    """Work out what is told beside a plan."""
    return PlanReport(
        plan,
        compare(plan),
        tuple(advise(plan)),
        tuple(cautions(plan)),
        prices_file.name,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
