"""A plan from a few inputs, by our own prices and charges."""

from functools import cache

from hotplate.bench.planner.inputs import InputSource, merge
from hotplate.bench.planner.plan import CapacityPlan, calculate
from hotplate.bench.planner.prices import Prices
from hotplate.bench.planner.prices import load as load_prices
from hotplate.stores.cosmos.charges import Charges
from hotplate.stores.cosmos.charges import load as load_charges

# Bytes of a list with an item under 1 KB: a read costs 1 RU and a new item 5.
SMALL = 700
LEAST: dict[str, object] = {
    "users": 1_000, "peak_rps": 70, "encoding": "json", "list_bytes": SMALL, "list_length": 1, "hot_share": 0
}  # fmt: skip


@cache
def our_prices() -> Prices:
    return load_prices()


@cache
def our_charges() -> Charges:
    return load_charges()


def a_plan(**inputs: object) -> CapacityPlan:
    """Plan with these inputs over LEAST; None takes one of those away."""
    stated = {name: value for name, value in (LEAST | inputs).items() if value is not None}
    return calculate(merge([InputSource("test", stated, "--{flag}")]), our_prices(), our_charges())
