"""What Redis takes: memory for the live, the kept and the drafted release, a size of instance, shards and money."""

from dataclasses import dataclass
from math import ceil

from bench.planner.figures import Book
from bench.planner.inputs import Inputs
from bench.planner.load import Load
from stores.prices import HOURS_A_MONTH, Prices, Size

GB = 1000**3


@dataclass(frozen=True, slots=True)
class Instance:
    """A size of instance, and how many of it one region needs."""

    size: Size
    count: int


def choose(prices: Prices, gb: float, gets_s: float, inputs: Inputs) -> Instance:
    """Choose the cheapest that holds so many GB and answers so many GETs/s: one, or several of the largest."""

    def enough(size: Size) -> int:
        by_memory = ceil(gb / (size.gb * (1 - inputs.redis_reserved)))
        return max(1, by_memory, ceil(gets_s / (size.gets_s * inputs.redis_utilisation)))

    fitting = [size for size in prices.redis if enough(size) == 1] or [prices.redis[-1]]
    size = min(fitting, key=lambda each: each.hour.usd)
    return Instance(size, enough(size))


def work_out_redis(book: Book, inputs: Inputs, load: Load, prices: Prices) -> float:
    """Work out memory, size and cost; returns USD a month."""
    row_bytes = float(book.figures()["redis_row_bytes"].value or 0)
    copies = 1 + inputs.kept + 1
    formula = f"rows * redis_row_bytes * (1 + kept + 1) / {GB}"
    gb = book.work("redis_gb", load.rows * row_bytes * copies / GB, "GB", formula, source="live, kept and the next one")
    gets_s = load.peak * (1 - load.hit_rate)
    chosen = choose(prices, gb, gets_s, inputs)
    size = chosen.size
    book.give(
        "redis_size", f"{chosen.count} of {size.name}", "", f"{size.gb:g} GB, {size.vcpus} vCPUs; {size.hour.told}"
    )
    book.give("redis_size_gb", size.gb, "GB", "prices file")
    book.give("redis_size_gets_s", size.gets_s, "GETs/s", "prices file")
    formula = (
        "max(1, ceil(redis_gb / (redis_size_gb * (1 - redis_reserved))),"
        " ceil(reads_s / (redis_size_gets_s * redis_utilisation)))"
    )
    book.work("redis_instances", chosen.count, "a region", formula, source="the cheapest size that is enough")
    book.give(
        "redis_shards_each", size.shards, "shards", "prices file: https://learn.microsoft.com/azure/redis/architecture"
    )
    book.work("redis_shards", size.shards * chosen.count, "shards", "redis_shards_each * redis_instances")
    book.give("usd_redis_node_hour", size.hour.usd, "USD", size.hour.told)
    cost = chosen.count * inputs.redis_nodes * size.hour.usd * HOURS_A_MONTH * inputs.regions
    formula = f"redis_instances * redis_nodes * usd_redis_node_hour * {HOURS_A_MONTH} * regions"
    return book.work("redis_cost", cost, "USD/month", formula)
