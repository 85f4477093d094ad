"""The plan for one set of inputs: inputs, then what they need, then what each option costs."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from math import sqrt
from typing import Any

from hotplate.base.report import rounded
from hotplate.bench.planner.formulas import FigureTable
from hotplate.bench.planner.inputs import CAPACITIES, INPUT_FIELDS, Inputs, SourcedInputs, hourly_shares
from hotplate.bench.planner.prices import Prices
from hotplate.bench.planner.serving_options import STORES, add_costs
from hotplate.bench.planner.sizing import add_requirements
from hotplate.stores.cosmos.charges import Charges

# Rates at which stores are compared: from 0.01 to 10,000,000 requests/s.
RATES_A_DECADE = 4
RATE_STEPS = (-2 * RATES_A_DECADE, 7 * RATES_A_DECADE + 1)
BREAK_EVEN_PRECISION = 1.01


@dataclass(frozen=True, slots=True, eq=False)
class CapacityPlan:
    """Requirements of a load, and costs of the options to serve it."""

    sourced: SourcedInputs
    prices: Prices = field(repr=False)
    charges: Charges = field(repr=False)
    figures: FigureTable = field(repr=False)

    @property
    def inputs(self) -> Inputs:
        """The inputs."""
        return self.sourced.inputs

    def number(self, name: str) -> float:
        """Return a figure's value. Raises TypeError if it is not a number."""
        return self.figures[name].number

    def possible(self, name: str) -> float | None:
        """Return a figure's number; None if the plan has none, or a limit rules it out."""
        figure = self.figures.get(name)
        return figure.number if figure is not None and figure.is_number else None

    def is_possible(self, *names: str) -> bool:
        """Whether figures are numbers, and nothing rules them out."""
        return all(self.figures[name].is_number for name in names)

    @property
    def obstacles(self) -> dict[str, str]:
        """The limits that make options impossible, by their names in STORES."""
        totals = {name: self.figures[f"{name}_total"] for name in STORES}
        return {name: total.obstacle for name, total in totals.items() if total.obstacle}

    @property
    def cheapest(self) -> str | None:
        """The cheapest capacity mode of Cosmos DB; None if none is possible."""
        possible = [mode for mode in CAPACITIES if self.is_possible(f"{mode}_total")]
        return min(possible, key=lambda mode: self.number(f"{mode}_total"), default=None)

    @property
    def mode(self) -> str | None:
        """The capacity mode that was asked for; if that is not possible, the cheapest one."""
        capacity = self.inputs.capacity
        return capacity if self.is_possible(f"{capacity}_total") else self.cheapest

    @property
    def is_redis_cheaper(self) -> bool:
        """Whether both are possible, and Redis costs less in all than Cosmos DB with its cheapest mode."""
        redis = self.possible("redis_total")
        cosmos = self.possible(f"{self.cheapest}_total")
        return redis is not None and cosmos is not None and redis < cosmos

    @property
    def limit(self) -> str:
        """The limit that rules out Redis, or Cosmos DB with each mode; empty if both are possible."""
        if limit := self.figures["redis_total"].limit:
            return f"Redis is not possible ({limit})"
        if self.cheapest is None:
            return f"Cosmos DB is not possible ({self.figures['manual_total'].limit})"
        return ""

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
    add_requirements(table, charges)
    add_costs(table, prices)
    return CapacityPlan(sourced, prices, charges, table)


def _add_inputs(table: FigureTable, sourced: SourcedInputs, prices: Prices) -> None:
    """Add each input and price to *table* with its unit and source; inputs of None are calculated from others later."""
    for name, declared in INPUT_FIELDS.items():
        value = getattr(sourced.inputs, name)
        if value is None:
            continue
        shown = _format_profile(value) if name == "profile" else None
        table.add_value(name, value, declared.metadata["unit"], sourced.source(name), shown)

    for name, price in prices.named.items():
        unit = f"{prices.currency} a {price.per}"
        if name == "autoscale_factor":
            unit = f"a {price.per}"
        table.add_value(f"price_{name}", price.amount, unit, price.provenance)


def _format_profile(profile: str | tuple[float, ...]) -> str:
    """Return the shares of the hours of a day as text, after the name of the profile if it has one."""
    if isinstance(profile, str):
        return f"{profile}: {_format_profile(hourly_shares(profile))}"
    return ", ".join(f"{part:g}" for part in profile)


@dataclass(frozen=True, slots=True)
class RateRange:
    """Requests/s of the busiest hour: from *low*, 0 for any rate, to *high*, None without an end.

    *limit* rules out a store above *high*; it is empty if Redis is possible there, and costs more.
    """

    low: float
    high: float | None = None
    limit: str = ""

    def describe(self, unit: str) -> str:
        """Return the range in words, as "only from 34 to 297,000 reads/s"; *unit* is that of the rates."""
        if self.high is None:
            return f"only from {rounded(self.low)} {unit} on" if self.low else "at any rate"
        start = f"from {rounded(self.low)} to" if self.low else "up to"
        return f"only {start} {rounded(self.high, 3)} {unit}"


@lru_cache(maxsize=1)  # the report and the plot need that of one plan
def break_even(plan: CapacityPlan) -> list[RateRange]:
    """Return at which requests/s Redis costs less in all than Cosmos DB with its cheapest mode, both being possible.

    Costs are calculated for rates from 0.01 to 10,000,000 requests/s. Ends of a range are exact to 1 %.
    """
    plans = [plan.with_inputs(peak_rps=10 ** (step / RATES_A_DECADE)) for step in range(*RATE_STEPS)]
    ranges = list[RateRange]()
    low = 0.0 if plans[0].is_redis_cheaper else None
    for before, after in pairwise(plans):
        if before.is_redis_cheaper == after.is_redis_cheaper:
            continue
        below, above = _bisect(before, after)
        if low is None:
            low = above.inputs.peak_rps
        else:
            ranges.append(RateRange(low, below.inputs.peak_rps, above.limit))
            low = None
    return ranges if low is None else [*ranges, RateRange(low)]


def _bisect(before: CapacityPlan, after: CapacityPlan) -> tuple[CapacityPlan, CapacityPlan]:
    """Return the plans of two close rates, between which the cheaper store changes as between *before* and *after*."""
    while after.inputs.peak_rps / before.inputs.peak_rps > BREAK_EVEN_PRECISION:
        middle = before.with_inputs(peak_rps=sqrt(before.inputs.peak_rps * after.inputs.peak_rps))
        if middle.is_redis_cheaper == before.is_redis_cheaper:
            before = middle
        else:
            after = middle
    return before, after
