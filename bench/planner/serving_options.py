"""What the ways to serve a load cost: Cosmos DB by capacity mode, Redis, and files in each pod.

Each step adds figures to *table*, which has the inputs, the prices, and what the load needs (`sizing`). A figure of
the table is an expression: a number with its formula, here its name. *cost_unit* is the unit of a monthly cost, as
USD/month. Costs of a way that is not possible are obstacles, which name the limit.
"""

from collections.abc import Sequence
from functools import reduce
from math import log, sqrt
from operator import add
from statistics import fmean
from typing import NamedTuple

from hotplate.base.report import rounded
from hotplate.bench.planner.formulas import (
    Expression,
    FigureTable,
    NotPossible,
    apply,
    at_most,
    ceiling,
    choose,
    largest,
)
from hotplate.bench.planner.inputs import CAPACITIES, POD_STORES, hourly_shares
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices, RedisSize
from hotplate.bench.planner.sizing import GB, PARTITIONS, SKEW, TOO_SLOW, partition_skew
from hotplate.stores.cosmos import url as cosmos
from hotplate.stores.redis.footprint import BUCKETS

AUTOSCALE_FLOOR = 10  # autoscale bills at least a tenth of its maximum
OVERLAP_HOURS = 1  # of a publish, with both releases scaled
SERVERLESS = "https://learn.microsoft.com/azure/cosmos-db/serverless-performance, read 2026-11-22; no promise"
DYNAMIC = "https://learn.microsoft.com/azure/cosmos-db/autoscale-per-partition-region: accounts since 2023-11-15"
# Bytes of a row in LMDB besides key and value: node header, page fill and branch pages.
FILE_ROW_BYTES = 40
STORES = (*CAPACITIES, "redis", "files")
STORE_NAMES = {"cosmos": "Cosmos DB", "redis": "Redis", "files": "files"}
# Headings of the options; Cosmos DB's modes in words.
OPTION_NAMES = {option: STORE_NAMES.get(option, option) for option in STORES}
COSMOS_MODES = {"manual": "with fixed RU/s", "autoscale": "with autoscale", "serverless": "as serverless"}
# Lines of the report: figures by their words.
TODAY = {
    "provisioned": "have_ru", "missing": "short_ru", "reads that get 429 in the busiest hour": "refused_reads",
    "used by reads in the busiest hour": "today_use", "more than needed": "over_ru",
    "cost of unneeded RU/s": "over_cost",
}  # fmt: skip
CARRIED = {
    "reads/s at most, in each region": "carried_region_reads", "reads/s at most, in all": "carried_reads",
    "reads/s with room for peaks, in all": "carried_mean", "or lists published/s": "carried_lists",
    "cost a month, manual, in all": "carried_cost",
}  # fmt: skip
OUTLINE = {
    "Redis": {
        "memory, all releases": "redis_gb", "Azure Managed Redis, balanced": "redis_size",
        "nodes of an instance": "redis_nodes",
    },
    "Cost a month": {
        "Cosmos DB, manual": "manual_cost", "Cosmos DB, autoscale": "autoscale_cost",
        "Cosmos DB, autoscale, always at its maximum": "autoscale_most_cost",
        "Cosmos DB, serverless": "serverless_cost", "Redis": "redis_cost", "files": "files_cost",
        "pods, Cosmos DB": "cosmos_pods_cost", "pods, Redis": "redis_pods_cost", "pods, files": "files_pods_cost",
        "training": "training_cost", "dedicated gateway": "gateway_month",
        "Kubernetes": "cluster_month", "Cosmos DB, pods and training": "cosmos_total",
        "Redis, pods and training": "redis_total", "files, pods and training": "files_total",
    },
}  # fmt: skip


class Cost(NamedTuple):
    """A kind of monthly cost: a part of the totals, and a line of the report's first table.

    figure   its name, in which `{option}` is the name of an option, and `{pods}` that of the store its pods read
    options  those that have this cost
    fee      what is not priced while the figure is 0, as by default; empty for a cost that is always priced
    """

    label: str
    figure: str
    options: Sequence[str] = STORES
    fee: str = ""

    def figure_of(self, option: str) -> str:
        """Return the name of the figure of an option."""
        return self.figure.format(option=option, pods=pod_store(option))


COSTS = (
    Cost("store", "{option}_cost"),
    Cost("gateway", "gateway_month", CAPACITIES, fee="gateway"),
    Cost("pods", "{pods}_pods_cost"),
    Cost("Kubernetes", "cluster_month", fee="AKS's fee"),
    Cost("training", "training_cost"),
)
FEES = {cost.figure: cost.fee for cost in COSTS if cost.fee}
# Not priced unless they are given, by figure.
UNPRICED_BY_DEFAULT = {**FEES, "ru_factor": "zone redundancy"}
# Outside of all figures; the first line names traffic alone.
TRAFFIC = "traffic"
NOT_PRICED = (
    "reserved capacity and its discount", "writes in several regions", "tiers of Azure Managed Redis but Balanced",
    "unused share of nodes", "traffic between regions and to the internet", "backups", "private links", "free tiers",
)  # fmt: skip


def add_costs(table: FigureTable, prices: Prices) -> None:
    """Add to *table* the monthly costs of each way to serve the load: of the store alone (`_cost`), in all (`_total`).

    A way is Cosmos DB with one of its modes (manual, autoscale, serverless), Redis, or files in the pods. The costs of
    one that is not possible are texts that name the limit. The order is that of the formulas: a step calculates with
    figures of those before it, and raises KeyError without them.
    """
    cost_unit = f"{prices.currency}/month"
    _add_carried_load(table, cost_unit)
    _add_storage_cost(table, cost_unit)
    _add_manual_cost(table, cost_unit)
    _add_autoscale_ru(table)
    _add_autoscale_cost(table, cost_unit)
    _add_serverless(table, cost_unit)
    _add_redis(table, prices)
    _add_files(table, cost_unit)
    _add_totals(table, cost_unit)
    if "have_ru" in table:
        _add_today(table, cost_unit)


def _price(table: FigureTable, name: str) -> Expression:
    """Return a price; an obstacle if the prices file has none."""
    if f"price_{name}" in table:
        return table[f"price_{name}"]
    return Expression(NotPossible(f"price: the prices file has no {name}"), f"price_{name}")


def _add_carried_load(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* the load that some RU/s carry, either reads/s or lists published/s, and their monthly cost.

    The RU/s are `have_ru`, those of today, or without them `serve_ru`, as planned. The fullest partition limits the
    reads: it gets `skew` times an even share.
    """
    ru = table.add_calculated("carried_ru", "RU/s", table.given_or("have_ru", table["serve_ru"]))
    skew = _add_todays_skew(table).decided_by(table["have_ru"]) if "have_ru" in table else table["skew"]

    region_reads = table.add_calculated(
        "carried_region_reads",
        "reads/s",
        ru / table["mean_read_ru"] / skew,
        source="the highest rate without a 429, if nothing else is read or written",
    )
    all_reads = table.add_calculated(
        "carried_reads", "reads/s", region_reads * table["regions"], source="all regions together"
    )
    table.add_calculated(
        "carried_mean", "reads/s", all_reads * table["ru_utilisation"], source="with room for peaks within the hour"
    )

    table.add_calculated(
        "carried_lists",
        "lists/s",
        ru / (table["list_write_ru"] + table["read_back_ru"]),
        source="each list is written once, for all regions, and read back",
    )
    table.add_calculated(
        "carried_cost",
        cost_unit,
        _monthly_cost_of(table, ru),
        source="one container, manual, all regions, without storage",
    )


def _add_todays_skew(table: FigureTable) -> Expression:
    """Add to *table* the physical partitions of today's container, perhaps others than planned; return their skew.

    They follow from its RU/s, `have_ru`, and from its GB. The skew, `have_skew`, is the load of the fullest one, as a
    multiple of an even share.
    """
    partitions = table.add_calculated(
        "have_partitions",
        "partitions",
        largest(table["partitions_by_gb"], ceiling(table["have_ru"] / cosmos.INITIAL_PARTITION_RU)),
        source=PARTITIONS,
    )
    return table.add_calculated("have_skew", "", partition_skew(table["hot_user"], partitions), source=SKEW)


def _monthly_cost_of(table: FigureTable, ru: Expression) -> Expression:
    """Return the monthly cost of *ru* manually provisioned RU/s, in all regions."""
    return ru / 100 * table["price_ru_hour"] * table["ru_factor"] * HOURS_A_MONTH * table["regions"]


def _add_storage_cost(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* the monthly cost of storage in Cosmos DB, which all its modes have."""
    table.add_calculated(
        "storage_cost", cost_unit, table["stored_gb"] * table["price_storage_gb_month"] * table["regions"]
    )


def _add_manual_cost(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* the monthly cost of Cosmos DB with manual RU/s.

    Each release is a container: the live one has `serve_ru`, those kept for a rollback have the minimum, `least_ru`. A
    publish adds one with `creation_ru`, and spends all of these unless `publish_ru` is given. The catalogue, which pods
    poll, has a small container (control). Azure's price is that of 100 RU/s for an hour.
    """
    hours = table.add_calculated(
        "manual_billed_hours",
        "hours",
        _billed_hours(table, table["creation_ru"]),
        source="hours of the clock that a publish touches if it spends creation_ru, or publish_ru if that is given",
    )

    all_month = table["serve_ru"] + table["kept"] * table["least_ru"] + table["control_ru"]
    a_publish = table["creation_ru"] * hours + table["serve_ru"] * OVERLAP_HOURS
    ru_hours = table.add_calculated(
        "manual_ru_hours",
        "RU/s-hours",
        all_month * HOURS_A_MONTH + table["publishes"] * a_publish,
        source="live, kept and control all month; each publish its hours, and one in which two releases can serve",
    )
    cost = ru_hours / 100 * table["price_ru_hour"] * table["ru_factor"] * table["regions"]
    table.add_calculated("manual_cost", cost_unit, cost + table["storage_cost"])


def _billed_hours(table: FigureTable, spent_ru: Expression) -> Expression:
    """Return the hours of the clock that a publish touches if it spends *spent_ru* RU/s, or `publish_ru` if given."""
    hours = choose(
        table.is_given("publish_ru"),
        table["publish_billed_hours"],
        table["publish_total_ru"] / spent_ru / 3600 + 1,
    )
    return hours.decided_by(table["publish_billed_hours"])


def hourly_billed_ru(profile: str | Sequence[float], maximum_ru: float, busiest_ru: float) -> list[float]:
    """Return the RU/s that autoscale bills in each hour of a day, in which the busiest hour needs *busiest_ru*."""
    return [max(maximum_ru / AUTOSCALE_FLOOR, busiest_ru * share) for share in hourly_shares(profile)]


def _add_autoscale_ru(table: FigureTable) -> None:
    """Add to *table* the mean RU/s that autoscale bills.

    An hour bills the highest RU/s that it reached, at least a tenth of the maximum. Kept releases are idle: they bill a
    tenth of the lowest maximum that may be set. Reads spread evenly over regions.
    """
    region_reads = table["peak_then"] / table["regions"] * (1 - table["hit_rate"])
    busiest_ru = table.add_calculated(
        "region_reads_ru",
        "RU/s",
        region_reads * table["mean_read_ru"] / table["ru_utilisation"],
        source="the peak of the busiest hour",
    )

    billed = apply(
        lambda profile, maximum, busiest: fmean(hourly_billed_ru(profile, maximum, busiest)),
        table["profile"],
        table["autoscale_top_ru"],
        busiest_ru,
        text="the mean over the hours of profile of the larger of autoscale_top_ru / 10, and region_reads_ru then",
    )
    table.add_calculated("autoscale_mean_ru", "RU/s", billed, DYNAMIC)
    table.add_calculated(
        "autoscale_idle_ru",
        "RU/s",
        table["autoscale_least_ru"] / AUTOSCALE_FLOOR,
        "a tenth of the lowest top that may be set",
    )


def _add_autoscale_cost(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* the costs of Cosmos DB with autoscale.

    They are those of the mean RU/s of the live release over a day, and those if it always has the maximum. Both include
    publishes, kept releases, the container of the catalogue (control), which is not scaled, and storage.
    """
    spent = choose(
        table.is_given("publish_ru"),
        table["publish_ru_s"],
        largest(table["publish_ru_s"], table["autoscale_top_ru"]),
    )
    spent = table.add_calculated(
        "autoscale_publish_ru",
        "RU/s",
        spent,
        source="RU/s that a publish spends: all of its container, or publish_ru if that is given",
    )

    control_and_storage = _monthly_cost_of(table, table["control_ru"]) + table["storage_cost"]
    monthly_price = table["price_ru_hour"] * table["price_autoscale_factor"] * HOURS_A_MONTH * table["regions"]
    a_publish = spent * _billed_hours(table, spent) + table["autoscale_mean_ru"] * OVERLAP_HOURS
    other_ru = table.add_calculated(
        "autoscale_other_ru",
        "RU/s",
        table["publishes"] * a_publish / HOURS_A_MONTH + table["kept"] * table["autoscale_idle_ru"],
        source="publishes, kept releases and hours with two of them, as a mean over the month",
    )
    for name, live_ru in (("autoscale_cost", "autoscale_mean_ru"), ("autoscale_most_cost", "autoscale_top_ru")):
        cost = (table[live_ru] + other_ru) / 100 * monthly_price + control_and_storage
        table.add_calculated(name, cost_unit, cost)


def _add_serverless(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* the highest RU/s of a serverless container, the request units (RU) of a month, and their cost.

    The RU/s have a ceiling, `SERVERLESS_RU` for each physical partition; a partition holds `PARTITION_GB`. The RU of a
    month are those of reads, polls and publishes.
    """
    partitions = table["partitions_by_gb"]
    most_ru = table.add_calculated(
        "serverless_ceiling_ru", "RU/s", cosmos.SERVERLESS_RU * partitions, source=SERVERLESS
    )
    skew = table.add_calculated("serverless_skew", "", partition_skew(table["hot_user"], partitions), source=SKEW)
    reads_ru = table.add_calculated(
        "serverless_reads_ru", "RU/s", table["reads_plain_ru"] * skew / table["ru_utilisation"]
    )
    publish_hours = table.add_calculated(
        "serverless_publish_hours", "hours", table["publish_total_ru"] / most_ru / 3600
    )

    mean_ru = table["reads_plain_ru"] * table["mean_of_peak"] + table["polls_ru"]
    used_ru = table.add_calculated(
        "serverless_used_ru",
        "RU/month",
        mean_ru * HOURS_A_MONTH * 3600 + table["publishes"] * table["publish_total_ru"],
    )

    container_gb = cosmos.SERVERLESS_BYTES / GB
    limits = (
        at_most(table["regions"], 1, "regions: {:.0f}, and serverless has one"),
        at_most(
            table["release_gb"],
            container_gb,
            "storage: {:,.0f} GB a release, and a serverless container holds {:,.0f}",
        ),
        at_most(reads_ru, most_ru, "RU/s: {:,.0f} for reads, above {:,.0f} of its container"),
        at_most(publish_hours, table["refresh_hours"], TOO_SLOW),
    )
    cost = used_ru.decided_by(*limits) / 1_000_000 * _price(table, "serverless_million_ru") + table["storage_cost"]
    table.add_calculated("serverless_cost", cost_unit, cost, source=SERVERLESS)


def _add_redis(table: FigureTable, prices: Prices) -> None:
    """Add to *table* the memory of all releases in Redis, the cheapest instance for it, and its monthly cost.

    The sizes of instances, with GB, shards and the price of a node, are in the prices file.
    """
    size = _add_redis_size(table, prices.redis)
    price = table.add_calculated(
        "price_redis_node_hour",
        prices.currency,
        apply(lambda size: size.node_hour.amount, size, text="price of a node of redis_size"),
        source="prices file",
    )
    table.add_calculated(
        "redis_cost", f"{prices.currency}/month", table["redis_nodes"] * price * HOURS_A_MONTH * table["regions"]
    )


def _add_redis_size(table: FigureTable, sizes: Sequence[RedisSize]) -> Expression:
    """Add to *table* the GB of all releases in Redis, and the cheapest of *sizes* for them; return that size."""
    gb = table.add_calculated(
        "redis_gb",
        "GB",
        table["rows"] * table["redis_row_bytes"] * table["copies"] / GB,
        source="live, kept and the next one",
    )
    reads = (table["reads_s"], table["hot_user"])
    needs = (gb, *reads, table["copies"], table["redis_reserved"], table["redis_utilisation"])
    size = apply(
        lambda *numbers: cheapest_redis_size(sizes, RedisNeeds(*numbers)),
        *needs,
        text="the cheapest of the prices file for redis_gb and reads_s, uneven over its shards (hot_user)",
    )
    if size.obstacle:
        return table.add_calculated("redis_size", "", size)
    source = f"the cheapest that is enough: {size.result.gb:g} GB; {size.result.node_hour.provenance}"
    return table.add_calculated("redis_size", "", size, source, shown=size.result.name)


class RedisNeeds(NamedTuple):
    """GB of data of some *releases*, and reads/s, a share of them of the busiest user (*hot_user*).

    A share of memory is *reserved*, that of reads/s is *utilisation*.
    """

    gb: float
    reads_per_s: float
    hot_user: float
    releases: float
    reserved: float
    utilisation: float


def cheapest_redis_size(sizes: Sequence[RedisSize], needs: RedisNeeds) -> RedisSize:
    """Return the cheapest size of Redis for what a load needs.

    Data and reads are uneven over shards, so the fullest ones must have room. Raises NotPossible, with the limit, if
    all are too small.
    """
    if not sizes:
        raise NotPossible("price: the prices file has no sizes of Redis")
    held_gb = dict[str, float]()
    for size in sizes:
        held_gb[size.name] = size.gb * (1 - needs.reserved) / fullest_shard_factor(size.shards, needs.releases)
    roomy = [size for size in sizes if needs.gb <= held_gb[size.name]]
    if not roomy:
        name = max(held_gb, key=lambda name: held_gb[name])
        raise NotPossible(
            f"memory: {rounded(needs.gb, 3)} GB, above the {rounded(held_gb[name], 3)} that {name}, the largest, holds"
        )

    rates = {size.name: needs.utilisation * _highest_rate(size, sizes, needs.hot_user) for size in roomy}
    fitting = [size for size in roomy if needs.reads_per_s <= rates[size.name]]
    if not fitting:
        most_rate = max(rates.values())
        raise NotPossible(
            f"reads/s: {needs.reads_per_s:,.0f}, above {most_rate:,.0f} of an instance at {needs.utilisation:.0%}"
        )
    return min(fitting, key=lambda size: size.node_hour.amount)


def _highest_rate(size: RedisSize, sizes: Sequence[RedisSize], hot_user: float) -> float:
    """Return the GETs/s that an instance can answer, limited by the shard that has the busiest user.

    It also has an even share of the others' reads. The GETs/s of large *sizes* are lower bounds, so a shard's are the
    most of any size with no more CPU for each shard.
    """
    cpus = size.vcpus / size.shards
    shard_rate = max(other.gets_s / other.shards for other in sizes if other.vcpus / other.shards <= cpus)
    return min(size.gets_s, shard_rate / (hot_user + (1 - hot_user) / size.shards))


def fullest_shard_factor(shards: float, releases: float) -> float:
    """Return the data of the fullest shard as a multiple of an even share; a release has `BUCKETS` buckets."""
    return 1 + sqrt(2 * log(shards) * shards / (BUCKETS * releases))


def _add_totals(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* the total with each way to store the lists, by the costs of each store alone.

    `cosmos_total` is that of Cosmos DB with the chosen capacity mode. The total of a store that is not possible is
    an obstacle.
    """
    _add_training_cost(table, cost_unit)
    for store in POD_STORES:
        pods_cost = table[f"{store}_pods"] * table["pod_cpus"] * table["price_cpu_hour"] * HOURS_A_MONTH
        table.add_calculated(f"{store}_pods_cost", cost_unit, pods_cost)

    for option in STORES:
        costs = [table[cost.figure_of(option)] for cost in COSTS if option in cost.options]
        table.add_calculated(f"{option}_total", cost_unit, reduce(add, costs))

    capacity = table["capacity"]
    table.add_calculated("cosmos_total", cost_unit, table[f"{capacity.result}_total"].decided_by(capacity))


def pod_store(option: str) -> str:
    """Return the store, of POD_STORES, that pods read with an option of STORES."""
    return "cosmos" if option in CAPACITIES else option


def _add_training_cost(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* the monthly cost of training before each publish."""
    node_price = table.add_calculated(
        "train_price",
        "a node and hour",
        table.given_or("train_node_hour", table["train_cpus"] * table["price_cpu_hour"]),
    )
    table.add_calculated(
        "training_cost", cost_unit, table["train_nodes"] * table["train_hours"] * node_price * table["publishes"]
    )


def _add_files(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* the monthly cost of files in each pod: a disk for all releases, and memory for the live one.

    The price of a vCPU includes `cpu_memory_gb`; more memory is paid by the price of the vCPUs that bring it. The
    releases are equally large, `copies` of them: the live one, kept ones and the next one.
    """
    row_bytes = table["stored_bytes"] + table["user_id_chars"] + FILE_ROW_BYTES
    files_gb = table.add_calculated(
        "files_gb",
        "GB",
        table["rows"] * row_bytes * table["copies"] / GB,
        source="key, value and LMDB's pages; live, kept and the next one",
    )

    memory_gb = table.add_calculated(
        "files_memory_gb",
        "GB a pod",
        largest(0, files_gb / table["copies"] - table["pod_cpus"] * table["cpu_memory_gb"]),
        source="the live release stays in memory; what a pod's vCPUs bring is paid for",
    )
    memory_cost = memory_gb / table["cpu_memory_gb"] * table["price_cpu_hour"] * HOURS_A_MONTH
    table.add_calculated(
        "files_cost",
        cost_unit,
        table["files_pods"] * (files_gb * _price(table, "disk_gb_month") + memory_cost),
        source="a disk for each pod, and memory beyond that of its vCPUs",
    )


def _add_today(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* by how much `have_ru`, the RU/s provisioned today, are too few or too many, and what they cost.

    Also adds the share of the busiest hour's reads that get 429 (too many requests), because they exceed the RU/s of
    their partition; the fullest one gets `have_skew` times an even share of the reads.
    """
    have_ru = table["have_ru"]
    reads_ru = table["reads_plain_ru"]
    table.add_calculated("short_ru", "RU/s", largest(0, table["serve_ru"] - have_ru))
    refused = apply(
        refused_share,
        have_ru,
        reads_ru,
        table["have_skew"],
        table["have_partitions"],
        text="reads of the busiest hour above the share of have_ru of have_partitions, by reads_plain_ru; have_skew",
    )
    table.add_calculated("refused_reads", "share", refused, "reads alone, without headroom; retries make it worse")

    table.add_calculated("today_use", "share", reads_ru / have_ru, source="reads in the busiest hour")
    unneeded_ru = table.add_calculated("over_ru", "RU/s", largest(0, have_ru - table["serve_ru"]))
    table.add_calculated("over_cost", cost_unit, _monthly_cost_of(table, unneeded_ru))


def refused_share(have_ru: float, reads_ru: float, skew: float, partitions: float) -> float:
    """Return the share of 429s if *reads_ru* RU/s are needed and *have_ru* provisioned.

    The fullest partition gets *skew* times an even share.
    """
    if reads_ru <= 0:
        return 0.0
    # All are shares of the reads.
    a_partition_serves = have_ru / reads_ru / partitions
    for_fullest = min(1.0, skew / partitions)
    for_others = 1 - for_fullest
    served = min(for_fullest, a_partition_serves) + min(for_others, a_partition_serves * (partitions - 1))
    return 1 - served
