"""Which figures a person is shown, in which order and under which words; the others are for those who ask why."""

from collections.abc import Iterator

from bench.planner.figures import Figure
from bench.planner.plan import Plan

GROUPS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Today",
        (
            ("provisioned", "have_ru"), ("used by reads in the busiest hour", "today_use"), ("too many", "over_ru"),
            ("cost", "today_cost"), ("of it for nothing", "over_cost"),
        ),
    ),
    (
        "Load",
        (
            ("lists", "rows"), ("requests/s, busiest hour and region", "peak_region"), ("answered by a cache", "hits"),
            ("reads/s of the store", "reads_s"), ("a stored list", "stored_bytes"),
        ),
    ),
    (
        "Cosmos DB: request units",
        (
            ("an item", "item_bytes"), ("a read", "mean_read_ru"), ("a written list", "list_write_ru"),
            ("for reads, headroom included", "reads_ru"), ("provisioned for reads", "serve_ru"),
            ("for publishing", "publish_ru_s"), ("together, while a release is published", "together_ru"),
            ("a publish takes", "publish_hours"),
        ),
    ),
    (
        "Cosmos DB: containers",
        (
            ("containers while publishing", "containers"), ("partitions of a new release", "partitions_born"),
            ("partitions of the live one", "partitions"), ("a partition's share", "partition_ru"),
            ("hottest user by it", "hot_key_load"), ("fullest partition by it", "hot_partition_load"),
            ("least RU/s of a kept release", "least_ru"), ("storage, all releases", "stored_gb"),
        ),
    ),
    (
        "Redis",
        (
            ("memory, all releases", "redis_gb"), ("Azure Managed Redis, balanced", "redis_size"),
            ("shards", "redis_shards"), ("nodes of an instance", "redis_nodes"),
        ),
    ),
    (
        "Pods",
        (
            ("by Little's law", "pods_by_little"), ("by what a pod bears", "pods_by_capacity"),
            ("at least", "min_pods"), ("in a region, the most of these", "pods_region"), ("in all", "pods"),
        ),
    ),
    (
        "Cost a month",
        (
            ("Cosmos DB, manual", "manual_cost"), ("Cosmos DB, autoscale", "autoscale_cost"),
            ("Cosmos DB, serverless", "serverless_cost"), ("Redis", "redis_cost"), ("pods", "pods_cost"),
            ("Cosmos DB and pods", "cosmos_total"), ("Redis and pods", "redis_total"),
        ),
    ),
)  # fmt: skip


def outline(plan: Plan) -> Iterator[tuple[str, list[tuple[str, Figure]]]]:
    """Give the figures group by group, each with its words; a group without figures is left out."""
    for group, lines in GROUPS:
        shown = [(words, plan.figures[name]) for words, name in lines if name in plan.figures]
        if shown and (group != "Today" or "have_ru" in plan.figures):
            yield group, shown


def cheapest(plan: Plan) -> str:
    """Say which way to pay for RU/s is the cheapest."""
    costs = sorted(plan.capacities.items(), key=lambda each: each[1])
    others = ", ".join(f"{name} {cost:,.2f}" for name, cost in costs[1:])
    return f"{costs[0][0]} is the cheapest for Cosmos DB: {costs[0][1]:,.2f} USD/month ({others})"
