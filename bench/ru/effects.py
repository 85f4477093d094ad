"""Scenarios, measured: the best rate of each, and the RU/s that the planner foretells for that very rate."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.ru.scenarios import Scenario
from bench.ru.trials import Trial, highest


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect: `rate` is the best one of users' requests, None where none was inside the objective."""

    name: str
    inputs: str
    ru: float
    """What there was to spend in a second."""

    rate: float | None
    foretold_ru: float | None
    limit: str
    stopped: bool = False

    @property
    def off(self) -> float | None:
        """By how much the planner's figure differs from what there was."""
        return None if self.foretold_ru is None else self.foretold_ru / self.ru - 1

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        return asdict(self) | {"off": self.off}


def effect(scenario: Scenario, trials: Sequence[Trial], ended_by: str) -> Effect:
    """Sum a scenario's search up."""
    best = highest(trials)
    return Effect(
        scenario.name,
        scenario.inputs,
        scenario.ru,
        rate=None if best is None else best.rate,
        foretold_ru=None if best is None else scenario.foretell(best.rate),
        limit=ended_by,
        stopped=any(each.stopped for each in trials),
    )


def unmeasured(name: str, why: str) -> Effect:
    """Give an effect that could not be measured, and why."""
    return Effect(name, "", 0.0, None, None, why)
