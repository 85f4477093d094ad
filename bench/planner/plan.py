"""The plan: all figures for one set of inputs, and the few that a person looks at first."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from bench.planner.cosmos import work_out_cosmos
from bench.planner.cosmos_cost import work_out_cost
from bench.planner.figures import Book, Figure
from bench.planner.inputs import KNOWN, Given, Inputs
from bench.planner.load import work_out_load
from bench.planner.pods import work_out_pods
from bench.planner.profiles import shape
from bench.planner.redis import work_out_redis
from bench.planner.sizes import work_out_sizes
from stores.cosmos.charges import Charges
from stores.prices import HOURS_A_MONTH, Price, Prices

BY_HAND = "what is provisioned by hand today, less what is needed"


@dataclass(frozen=True, slots=True)
class Plan:
    """What it will take, figure by figure; lives as long as its report."""

    given: Given
    prices: Prices = field(repr=False)
    charges: Charges = field(repr=False)
    figures: Mapping[str, Figure] = field(repr=False)

    def number(self, name: str) -> float:
        """Give a figure that is a number; one that is none counts as 0."""
        value = self.figures[name].value
        return value if isinstance(value, int | float) else 0.0

    @property
    def capacities(self) -> dict[str, float]:
        """What each way to pay for RU/s costs in a month, of those that are possible."""
        named = {name: self.figures[f"{name}_cost"].value for name in ("manual", "autoscale", "serverless")}
        return {name: value for name, value in named.items() if isinstance(value, int | float)}

    @property
    def cheapest(self) -> str:
        """The cheapest way to pay for RU/s."""
        costs = self.capacities
        return min(costs, key=lambda name: costs[name])


def work_out(given: Given, prices: Prices, charges: Charges) -> Plan:
    """Work out a plan; pure: the same inputs, prices and charges give the same figures."""
    book, inputs = Book(), given.inputs
    _give(book, given, prices)
    work_out_sizes(book, inputs)
    load = work_out_load(book, inputs)
    need = work_out_cosmos(book, inputs, load, charges)
    costs = work_out_cost(book, inputs, load, need, prices)
    pods = work_out_pods(book, inputs, load, prices)
    redis = work_out_redis(book, inputs, load, prices)
    chosen = costs[inputs.capacity]
    if chosen is None:
        book.give("cosmos_total", book.figures()["serverless_cost"].value, "", "capacity")
    else:
        book.work("cosmos_total", chosen + pods, "USD/month", f"{inputs.capacity}_cost + pods_cost")
    book.work("redis_total", redis + pods, "USD/month", "redis_cost + pods_cost")
    _today(book, inputs, prices)
    return Plan(given, prices, charges, book.figures())


def again(plan: Plan, **changes: Any) -> Plan:  # noqa: ANN401 -- inputs by name; `replace` refuses what is none
    """Work the plan out with some inputs changed."""
    return work_out(Given(replace(plan.given.inputs, **changes), plan.given.sources), plan.prices, plan.charges)


def _give(book: Book, given: Given, prices: Prices) -> None:
    """Write down all that the plan rests on: the inputs that are there, and the prices."""
    for name, known in KNOWN.items():
        value = getattr(given.inputs, name)
        if value is not None:
            shown = _spelt(value) if name == "profile" else value
            book.give(name, shown, known.metadata["unit"], given.source(name))
    for each in fields(prices):
        price = getattr(prices, each.name)
        if isinstance(price, Price):
            book.give(f"usd_{each.name}", price.usd, f"a {price.per}", price.told)


def _spelt(profile: str | tuple[float, ...]) -> str:
    """Write a profile with its numbers, for a name says nothing of how a day goes."""
    if isinstance(profile, str):
        return f"{profile}: {_spelt(shape(profile))}"
    if len(set(profile)) == 1:
        return f"{profile[0]:g} in each hour"
    return ", ".join(f"{part:g}" for part in profile)


def _today(book: Book, inputs: Inputs, prices: Prices) -> None:
    """Hold what is provisioned by hand today against what its container needs."""
    if inputs.have_ru is None:
        return
    name = "together_ru" if inputs.publishing == "in-place" else "serve_ru"
    needed = float(book.figures()[name].value or 0)
    over = book.work("over_ru", inputs.have_ru - needed, "RU/s", f"have_ru - {name}", source=BY_HAND)
    today = prices.ru_hours(inputs.have_ru * HOURS_A_MONTH, regions=inputs.regions)
    book.work("today_cost", today, "USD/month", f"have_ru / 100 * usd_ru_hour * {HOURS_A_MONTH} * regions")
    saved = prices.ru_hours(over * HOURS_A_MONTH, regions=inputs.regions)
    book.work("over_cost", saved, "USD/month", f"over_ru / 100 * usd_ru_hour * {HOURS_A_MONTH} * regions")
    plain = float(book.figures()["reads_plain_ru"].value or 0)
    book.work(
        "today_use", plain / inputs.have_ru, "share", "reads_plain_ru / have_ru", source="reads in the busiest hour"
    )
