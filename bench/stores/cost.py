"""What reads cost: the CPU of the service, and what the store that answers them is paid for."""

from typing import NamedTuple

from hotplate.bench.planner.figures import round_up
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.stores.setup import Candidate
from hotplate.stores.connect import REDIS
from hotplate.stores.cosmos.url import MANUAL_MIN, MANUAL_STEP
from hotplate.stores.urls import scheme_of

# The share of its RU/s that a container may use in an hour's mean, and of its GETs/s a cache, as the planner assumes.
UTILISATION = 0.7

# A cache with a replica is two nodes, and holds the live release and two others.
NODES = 2
RELEASES = 3
BILLION = 1e9

COST_NOTE = (
    "Cost of a billion reads, at {rate:g} requests/s around the clock: CPU of the service; of Cosmos DB also the "
    "RU/s that the rate needs at 70 % use, provisioned manually; of Redis also two nodes of the smallest Azure Managed "
    "Redis that serves the rate and holds three releases, which could serve far more. List prices, and no bill: "
    "memory, storage and idle pods are not in it."
)


class Cost(NamedTuple):
    """The cost of a billion reads, and what of it is not CPU."""

    amount: float
    note: str = ""


class Needs(NamedTuple):
    """The RU/s that a rate of reads needs, and what they cost for a month."""

    used_ru: float
    needed_ru: int
    month: float


def needs(read_ru: float, rate: float, prices: Prices) -> Needs:
    """Work out what *rate* reads a second of *read_ru* each need of Cosmos DB."""
    needed = max(MANUAL_MIN, round_up(rate * read_ru / UTILISATION, MANUAL_STEP))
    return Needs(rate * read_ru, needed, prices.ru_hours(needed * HOURS_A_MONTH))


def cost_of(one: Candidate, rate: float, read_ru: float | None, cpu_us: float, prices: Prices) -> Cost:
    """Return what a billion reads of one store cost at *rate* requests/s."""
    cpu = cpu_us * BILLION / 1e6 / 3600 * prices.cpu_hour.amount
    if one.metered and read_ru is not None:
        found = needs(read_ru, rate, prices)
        return Cost(cpu + found.month / (rate * HOURS_A_MONTH * 3600) * BILLION, f"{found.needed_ru:,} RU/s")
    if scheme_of(one.url) in REDIS:
        gb = RELEASES * one.manifest.bytes / 1e9
        fitting = [each for each in prices.redis if each.gets_s * UTILISATION >= rate and each.gb >= gb]
        size = (fitting or prices.redis[-1:])[0]
        return Cost(cpu + NODES * size.hour.amount / (rate * 3600) * BILLION, f"{NODES} nodes {size.name}")
    return Cost(cpu, "CPU")
