"""The plan for one set of inputs: inputs, then what they need, then what each option costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

from hotplate.bench.planner.formulas import FigureTable, PlanFigure
from hotplate.bench.planner.inputs import INPUT_FIELDS, Inputs, SourcedInputs, hourly_shares
from hotplate.bench.planner.prices import Prices
from hotplate.bench.planner.serving_options import STORES, add_costs, possible_costs
from hotplate.bench.planner.sizing import add_requirements
from hotplate.stores.cosmos.charges import Charges

BREAK_EVEN_STEPS = (-4, 13)  # half powers of ten: from 0.01 to 1,000,000 requests/s
BREAK_EVEN_PRECISION = 1.01


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """Requirements of a load, and costs of the options to serve it."""

    sourced: SourcedInputs
    prices: Prices = field(repr=False)
    charges: Charges = field(repr=False)
    figures: Mapping[str, PlanFigure] = field(repr=False)

    @property
    def inputs(self) -> Inputs:
        """The inputs."""
        return self.sourced.inputs

    def number(self, name: str) -> float:
        """Return a figure's value, 0 if it is not a number."""
        return self.figures[name].number

    @property
    def obstacles(self) -> dict[str, str]:
        """Why options are not possible, by their names in STORES."""
        costs = {name: self.figures[f"{name}_cost"] for name in STORES}
        return {name: str(cost.value) for name, cost in costs.items() if not cost.is_number}

    @property
    def cheapest(self) -> str:
        """The cheapest capacity mode."""
        costs = possible_costs(self.figures)
        return min(costs, key=lambda name: costs[name])

    def with_inputs(self, **changes: Any) -> "CapacityPlan":  # noqa: ANN401 -- inputs by name
        """Recalculate with changed inputs."""
        changed = replace(self.sourced, inputs=replace(self.inputs, **changes))
        return calculate(changed, self.prices, self.charges)

    def with_prices(self, direction: int) -> "CapacityPlan":
        """Recalculate with upper (1) or lower (-1) bounds of all prices."""
        return calculate(self.sourced, self.prices.moved(direction), self.charges)


def calculate(sourced: SourcedInputs, prices: Prices, charges: Charges) -> CapacityPlan:
    """Calculate a plan."""
    table = FigureTable()
    _add_inputs(table, sourced, prices)
    add_requirements(table, sourced.inputs, charges)
    add_costs(table, sourced.inputs, prices)
    return CapacityPlan(sourced, prices, charges, table)


def _add_inputs(table: FigureTable, sourced: SourcedInputs, prices: Prices) -> None:
    """Add each input and price to *table* with its unit and source; inputs of None are calculated from others later."""
    for name, declared in INPUT_FIELDS.items():
        value = getattr(sourced.inputs, name)
        if name == "profile":
            value = _format_profile(value)
        if value is not None:
            table.add_value(name, value, declared.metadata["unit"], sourced.source(name))

    for name, price in prices.by_name().items():
        unit = f"{prices.currency} a {price.per}"
        if name == "autoscale_factor":
            unit = f"a {price.per}"
        table.add_value(f"price_{name}", price.amount, unit, price.provenance)


def _format_profile(profile: str | tuple[float, ...]) -> str:
    """Return the shares of the hours of a day as text, after the name of the profile if it has one."""
    if isinstance(profile, str):
        return f"{profile}: {_format_profile(hourly_shares(profile))}"
    if len(set(profile)) == 1:
        return f"{profile[0]:g} in each hour"
    return ", ".join(f"{part:g}" for part in profile)


def usable_gb(plan: CapacityPlan) -> float:
    """Return the GB of releases that the chosen size of Redis holds; KeyError if no size is large enough."""
    return plan.number("redis_size_gb") * (1 - plan.inputs.redis_reserved) / plan.number("redis_fullest")


def break_even_rps(plan: CapacityPlan) -> float | None:
    """Return the requests/s of the busiest hour from which on Redis costs less than Cosmos DB with its cheapest mode.

    The result is 0 if Redis always costs less, None if it never does, and is exact to 1 %. Costs are calculated again
    for other rates, with the other inputs of *plan*.
    """
    rates = [10 ** (step / 2) for step in range(*BREAK_EVEN_STEPS)]
    high = next((rate for rate in rates if _redis_is_cheaper(plan, rate)), None)
    if high is None:
        return None
    if high == rates[0]:
        return 0.0

    # Bisect between the last rate at which Redis is not cheaper, and the first at which it is.
    low = rates[rates.index(high) - 1]
    while high / low > BREAK_EVEN_PRECISION:
        middle = sqrt(low * high)
        if _redis_is_cheaper(plan, middle):
            high = middle
        else:
            low = middle
    return high


def _redis_is_cheaper(plan: CapacityPlan, rate: float) -> bool:
    """Return whether Redis is possible at *rate*, and costs less than Cosmos DB."""
    figures = plan.with_inputs(peak_rps=rate).figures
    redis = figures["redis_cost"]
    return redis.is_number and redis.number < figures["cheapest_cost"].number
