"""Shared memory as a service declares it."""

from hotplate.serve.consumed.table import Consumed
from hotplate.serve.processes.context import regions
from hotplate.serve.processes.shared_table import SharedTable
from hotplate.serve.processes.states import SharedStates


def table(workers: int = 1, tiers: int = 1) -> SharedTable:
    return SharedTable(regions(workers, [f"tier-{number}" for number in range(tiers)]))


def shared_states(workers: int, tiers: int = 1) -> SharedStates:
    return SharedStates(table(workers, tiers).records("states"))


def consumed_items(*hours: str) -> Consumed:
    shared = table()
    return Consumed(
        hours,
        users=shared.numbers("consumed users"),
        tags=shared.numbers("consumed tags"),
        times=shared.numbers("consumed times"),
    )
