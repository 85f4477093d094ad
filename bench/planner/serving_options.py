"""What the ways to serve a load cost: Cosmos DB by capacity mode, Redis, and files in each pod.

Each step adds figures to *table*, which has the inputs, the prices, and what the load needs (`sizing`). `term` returns
a figure of the table as an expression: a number with its formula, here its name. *cost_unit* is the unit of a monthly
cost, as USD/month.
"""

from collections.abc import Iterator, Mapping
from math import log, sqrt
from statistics import fmean

from hotplate.bench.planner.formulas import (
    Expression,
    FigureTable,
    PlanFigure,
    as_expression,
    ceiling,
    largest,
    round_up,
)
from hotplate.bench.planner.inputs import CAPACITIES, Inputs, hourly_shares
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices, RedisSize
from hotplate.bench.planner.sizing import (
    CONTROL_RU,
    DOUBLY_CHARGED,
    GB,
    PARTITION_GB,
    PARTITIONS,
    SKEW,
    partition_skew,
)
from hotplate.stores.cosmos import url as cosmos

REDIS_BUCKETS = 256  # of each release, each in one shard
POLL_INTERVAL_S = 2.0  # between polls of the catalogue, 1 RU each
AUTOSCALE_FLOOR = 10  # autoscale bills at least a tenth of its maximum
OVERLAP_HOURS = 1  # of a publish, with both releases scaled
SERVERLESS = "https://learn.microsoft.com/azure/cosmos-db/serverless-performance, read 2026-11-22; no promise"
DYNAMIC = "https://learn.microsoft.com/azure/cosmos-db/autoscale-per-partition-region: accounts since 2023-11-15"
# Bytes of a row in LMDB besides key and value: node header, page fill and branch pages.
FILE_ROW_BYTES = 40
STORES = (*CAPACITIES, "redis", "files")


def add_costs(table: FigureTable, inputs: Inputs, prices: Prices) -> None:
    """Add to *table* the monthly costs of each way to serve the load: of the store alone (`_cost`), in all (`_total`).

    A way is Cosmos DB with one of its modes (manual, autoscale, serverless), Redis, or files in the pods. The costs of
    one that is not possible are texts that say why. The order is that of the formulas: a step calculates with figures
    of those before it, and raises KeyError without them.
    """
    cost_unit = f"{prices.currency}/month"
    _add_carried_load(table, inputs, cost_unit)
    _add_storage_cost(table, cost_unit)
    _add_polls(table, inputs)
    _add_manual_cost(table, cost_unit)
    _add_autoscale_ru(table, inputs)
    _add_autoscale_cost(table, cost_unit)
    _add_serverless(table, inputs, prices, cost_unit)
    _add_redis(table, inputs, prices)
    _add_files(table, prices, cost_unit)
    _add_totals(table, inputs, cost_unit)
    if inputs.have_ru is not None:
        _add_today(table, cost_unit)


def possible_costs(figures: Mapping[str, PlanFigure]) -> dict[str, float]:
    """Return the monthly cost of each possible capacity mode."""
    costs = {name: figures[f"{name}_cost"] for name in CAPACITIES}
    return {name: cost.number for name, cost in costs.items() if cost.is_number}


def _add_carried_load(table: FigureTable, inputs: Inputs, cost_unit: str) -> None:
    """Add to *table* the load that some RU/s carry, either reads/s or lists published/s, and their monthly cost.

    The RU/s are `have_ru`, those of today, or without them `serve_ru`, as planned. The fullest partition limits the
    reads: it gets `skew` times an even share.
    """
    term = table.expression
    ru = term("serve_ru")
    skew = term("skew")
    if inputs.have_ru is not None:
        ru = term("have_ru")
        skew = _add_todays_skew(table)
    ru = table.add_calculated("carried_ru", "RU/s", ru)

    source = "the highest rate without a 429, if nothing else is read or written"
    region_reads = ru / term("mean_read_ru") / skew
    region_reads = table.add_calculated("carried_region_reads", "reads/s", region_reads, source=source)
    all_reads = region_reads * term("regions")
    all_reads = table.add_calculated("carried_reads", "reads/s", all_reads, source="all regions together")
    source = "with room for peaks within the hour"
    table.add_calculated("carried_mean", "reads/s", all_reads * term("ru_utilisation"), source=source)

    lists = ru / (term("list_write_ru") + term("read_back_ru"))
    source = "each list is written once, for all regions, and read back"
    table.add_calculated("carried_lists", "lists/s", lists, source=source)
    source = "one container, manual, all regions, without storage"
    table.add_calculated("carried_cost", cost_unit, _monthly_cost_of(table, ru), source=source)


def _add_todays_skew(table: FigureTable) -> Expression:
    """Add to *table* the physical partitions of today's container, perhaps others than planned; return their skew.

    They follow from its RU/s, `have_ru`, and from its GB. The skew, `have_skew`, is the load of the fullest one, as a
    multiple of an even share.
    """
    term = table.expression
    partitions = largest(term("partitions_by_gb"), ceiling(term("have_ru") / cosmos.INITIAL_PARTITION_RU))
    partitions = table.add_calculated("have_partitions", "partitions", partitions, source=PARTITIONS)
    return table.add_calculated("have_skew", "", partition_skew(term("hot_user"), partitions), source=SKEW)


def _monthly_cost_of(table: FigureTable, ru: Expression) -> Expression:
    """Return the monthly cost of *ru* manually provisioned RU/s, in all regions."""
    term = table.expression
    return ru / 100 * term("price_ru_hour") * term("ru_factor") * HOURS_A_MONTH * term("regions")


def _add_storage_cost(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* the monthly cost of storage in Cosmos DB, which all its modes have."""
    term = table.expression
    storage_cost = term("stored_gb") * term("price_storage_gb_month") * term("regions")
    table.add_calculated("storage_cost", cost_unit, storage_cost)


def _add_polls(table: FigureTable, inputs: Inputs) -> None:
    """Add to *table* the RU/s for the catalogue, which each process of each pod polls."""
    term = table.expression
    poll_ru = 2 if inputs.consistency in DOUBLY_CHARGED else 1
    polls = term("pods") * ceiling(term("pod_cpus")) / POLL_INTERVAL_S * poll_ru
    table.add_calculated("polls_ru", "RU/s", polls, source="each process polls the catalogue")


def _add_manual_cost(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* the monthly cost of Cosmos DB with manual RU/s.

    Each release is a container: the live one has `serve_ru`, those kept for a rollback have the minimum, `least_ru`. A
    publish adds one with `creation_ru`. The catalogue, which pods poll, has a small container (control). Azure's price
    is that of 100 RU/s for an hour.
    """
    term = table.expression
    all_month = term("serve_ru") + term("kept") * term("least_ru") + CONTROL_RU
    a_publish = term("creation_ru") * term("publish_billed_hours") + term("serve_ru") * OVERLAP_HOURS
    ru_hours = all_month * HOURS_A_MONTH + term("publishes") * a_publish
    source = "live, kept and control all month; each publish its hours, and one in which two releases can serve"
    ru_hours = table.add_calculated("manual_ru_hours", "RU/s-hours", ru_hours, source=source)
    cost = ru_hours / 100 * term("price_ru_hour") * term("ru_factor") * term("regions")
    table.add_calculated("manual_cost", cost_unit, cost + term("storage_cost"))


def autoscale_maximum(wanted_ru: float, *, highest_ru: float, release_gb: float) -> int:
    """Return the RU/s up to which a container of *release_gb* must scale to reach *wanted_ru*.

    Azure has steps, and a least maximum, which depends on the size and on *highest_ru*, the highest maximum so far.
    """
    lowest = cosmos.minimum_ru(int(highest_ru), int(release_gb * GB), autoscale=True)
    return max(round_up(wanted_ru, cosmos.AUTOSCALE_STEP), cosmos.AUTOSCALE_MIN, lowest)


def hourly_billed_ru(inputs: Inputs, maximum_ru: float, busiest_ru: float) -> list[float]:
    """Return the RU/s that autoscale bills in each hour of a day, in which the busiest hour needs *busiest_ru*."""
    return [max(maximum_ru / AUTOSCALE_FLOOR, busiest_ru * share) for share in hourly_shares(inputs.profile)]


def _add_autoscale_ru(table: FigureTable, inputs: Inputs) -> None:
    """Add to *table* the RU/s of autoscale: its maximum ("top"), and the mean that it bills.

    An hour bills the highest RU/s that it reached, at least a tenth of the maximum. A container is created with a
    maximum for publishing, and cannot be set below a tenth of that later. Kept releases are idle: they bill a tenth of
    the lowest maximum that may be set. Reads spread evenly over regions.
    """
    term = table.expression
    reads_ru = term("reads_ru").value
    release_gb = term("release_gb").value
    creation_ru = max(reads_ru, term("publish_ru_s").value)
    created_maximum = autoscale_maximum(creation_ru, highest_ru=0, release_gb=0)
    maximum = autoscale_maximum(reads_ru, highest_ru=created_maximum, release_gb=release_gb)
    formula = (
        f"the least that holds reads_ru, in steps of {cosmos.AUTOSCALE_STEP}, and a tenth of publish_ru_s before it"
    )
    source = "in each region; at least a tenth of the highest top ever"
    table.add_calculated("autoscale_top_ru", "RU/s", maximum, formula, source)

    region_reads = term("peak_then") / term("regions") * (1 - term("hit_rate"))
    busiest_ru = region_reads * term("mean_read_ru") / term("ru_utilisation")
    source = "the peak of the busiest hour"
    busiest_ru = table.add_calculated("region_reads_ru", "RU/s", busiest_ru, source=source)

    billed = fmean(hourly_billed_ru(inputs, maximum, busiest_ru.value))
    formula = "the mean over the hours of profile of the larger of autoscale_top_ru / 10, and region_reads_ru then"
    table.add_calculated("autoscale_mean_ru", "RU/s", billed, formula, DYNAMIC)

    lowest_maximum = autoscale_maximum(0, highest_ru=created_maximum, release_gb=release_gb)
    formula = "a tenth of the lowest top that may be set after publish_ru_s"
    table.add_calculated("autoscale_idle_ru", "RU/s", lowest_maximum / AUTOSCALE_FLOOR, formula)


def _add_autoscale_cost(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* the costs of Cosmos DB with autoscale.

    They are those of the mean RU/s of the live release over a day, and those if it always has the maximum. Both include
    publishes, kept releases, the container of the catalogue (control), which is not scaled, and storage.
    """
    term = table.expression
    a_publish = term("publish_ru_s") * term("publish_billed_hours") + term("autoscale_mean_ru") * OVERLAP_HOURS
    other_ru = term("publishes") * a_publish / HOURS_A_MONTH + term("kept") * term("autoscale_idle_ru")
    source = "publishes, kept releases and hours with two of them, as a mean over the month"
    other_ru = table.add_calculated("autoscale_other_ru", "RU/s", other_ru, source=source)

    control_and_storage = _monthly_cost_of(table, as_expression(CONTROL_RU)) + term("storage_cost")
    monthly_price = term("price_ru_hour") * term("price_autoscale_factor") * HOURS_A_MONTH * term("regions")
    for name, live_ru in (("autoscale_cost", "autoscale_mean_ru"), ("autoscale_most_cost", "autoscale_top_ru")):
        cost = (term(live_ru) + other_ru) / 100 * monthly_price + control_and_storage
        table.add_calculated(name, cost_unit, cost)


def _add_serverless(table: FigureTable, inputs: Inputs, prices: Prices, cost_unit: str) -> None:
    """Add to *table* the highest RU/s of a serverless container, the request units (RU) of a month, and their cost.

    The RU/s have a ceiling, `SERVERLESS_RU` for each physical partition; a partition holds `PARTITION_GB`. The RU of a
    month are those of reads, polls and publishes. If it cannot serve the load, the cost is a text that says why.
    """
    term = table.expression
    partitions = largest(1, ceiling(term("release_gb") / PARTITION_GB))
    most_ru = cosmos.SERVERLESS_RU * partitions
    most_ru = table.add_calculated("serverless_ceiling_ru", "RU/s", most_ru, source=SERVERLESS)

    mean_ru = term("reads_plain_ru") * term("mean_of_peak") + term("polls_ru")
    used_ru = mean_ru * HOURS_A_MONTH * 3600 + term("publishes") * term("publish_total_ru")
    used_ru = table.add_calculated("serverless_used_ru", "RU/month", used_ru)

    obstacle = "; ".join(_serverless_obstacles(table, inputs, prices, most_ru.value))
    if obstacle:
        table.add_value("serverless_cost", f"not possible: {obstacle}", "", SERVERLESS)
        return
    cost = used_ru / 1_000_000 * term("price_serverless_million_ru") + term("storage_cost")
    table.add_calculated("serverless_cost", cost_unit, cost)


def _serverless_obstacles(table: FigureTable, inputs: Inputs, prices: Prices, most_ru: float) -> Iterator[str]:
    """Yield each reason for which a serverless container, with at most *most_ru* RU/s, cannot serve the load."""
    reads_ru = table["reads_ru"].number
    release_gb = table["release_gb"].number
    container_gb = cosmos.SERVERLESS_BYTES / GB
    publish_hours = table["publish_total_ru"].number / most_ru / 3600

    if inputs.regions > 1:
        yield f"{inputs.regions} regions, and serverless has one"
    if reads_ru > most_ru:
        yield f"{reads_ru:,.0f} RU/s for reads, above {most_ru:,}"
    if release_gb > container_gb:
        yield f"a release of {release_gb:,.0f} GB, and a container holds {container_gb:,.0f}"
    if publish_hours > inputs.refresh_hours:
        yield f"a publish takes {publish_hours:.1f} hours at {most_ru:,} RU/s"
    if prices.serverless_million_ru is None:
        yield "the prices file has no serverless_million_ru"


def _add_redis(table: FigureTable, inputs: Inputs, prices: Prices) -> None:
    """Add to *table* the memory of all releases in Redis, the cheapest instance for it, and its monthly cost.

    The sizes of instances, with GB, shards and the price of a node, are in the prices file. If no size is enough, the
    cost is a text that says why.
    """
    term = table.expression
    gb = term("rows") * term("redis_row_bytes") * term("copies") / GB
    gb = table.add_calculated("redis_gb", "GB", gb, source="live, kept and the next one")

    size = cheapest_redis_size(prices, gb.value, term("reads_s").value, inputs)
    if size is not None:
        _add_redis_size(table, size, prices.currency)
        return

    obstacle = "the prices file has no sizes of Redis"
    if prices.redis:
        largest_size = f"{prices.redis[-1].name}, the largest, holds"
        obstacle = f"{gb.value:,.0f} GB, uneven over its shards, or its reads/s are more than {largest_size}"
    table.add_value("redis_cost", f"not possible: {obstacle}", "", "one endpoint is used")


def _add_redis_size(table: FigureTable, size: RedisSize, currency: str) -> None:
    """Add to *table* a size of Redis and its monthly cost.

    Data is uneven over shards, so the fullest one must fit (`redis_fullest`, a multiple of an even share).
    """
    term = table.expression
    source = f"the cheapest that is enough: {size.gb:g} GB; {size.node_hour.provenance}"
    table.add_value("redis_size", size.name, "", source)
    table.add_value("redis_size_gb", size.gb, "GB", "prices file")
    source = "prices file: https://learn.microsoft.com/azure/redis/architecture"
    table.add_value("redis_shards", size.shards, "shards", source)

    fullest = fullest_shard_factor(size.shards, term("copies").value)
    formula = f"1 + sqrt(2 * log(redis_shards) * redis_shards / ({REDIS_BUCKETS} * copies))"
    source = "buckets of releases fall on shards at random: 5 to 16 % above the median of trials"
    table.add_calculated("redis_fullest", "", fullest, formula, source)

    node_hour = size.node_hour
    price = table.add_value("price_redis_node_hour", node_hour.amount, currency, node_hour.provenance)
    cost = term("redis_nodes") * price * HOURS_A_MONTH * term("regions")
    table.add_calculated("redis_cost", f"{currency}/month", cost)


def cheapest_redis_size(prices: Prices, gb: float, gets_per_s: float, inputs: Inputs) -> RedisSize | None:
    """Return the cheapest size of Redis for *gb* of data and *gets_per_s* reads/s; None if all are too small.

    Data is uneven over shards, so the size must hold a multiple of it. Of its memory, a share is reserved, and of its
    rate, a share may be used.
    """
    fitting = list[RedisSize]()
    for size in prices.redis:
        needed_gb = gb * fullest_shard_factor(size.shards, inputs.kept + 2)
        has_memory = needed_gb <= size.gb * (1 - inputs.redis_reserved)
        if has_memory and gets_per_s <= size.gets_per_s * inputs.redis_utilisation:
            fitting.append(size)
    return min(fitting, key=lambda size: size.node_hour.amount, default=None)


def fullest_shard_factor(shards: int, releases: float) -> float:
    """Return the data of the fullest shard as a multiple of an even share; a release has `REDIS_BUCKETS` buckets."""
    return 1 + sqrt(2 * log(shards) * shards / (REDIS_BUCKETS * releases))


def _add_totals(table: FigureTable, inputs: Inputs, cost_unit: str) -> None:
    """Add to *table* the total with each way to store the lists, by the costs of each store alone.

    `cheapest_cost` is that of Cosmos DB with its cheapest capacity mode, `cosmos_total` the total with the chosen mode.
    Only Cosmos DB has a gateway. The total of a store that is not possible is a text that says why.
    """
    term = table.expression
    _add_training_cost(table, inputs, cost_unit)

    cost_by_mode = possible_costs(table)
    cheapest = min(cost_by_mode, key=lambda mode: cost_by_mode[mode])
    formula = f"the least of {' and '.join(f'{mode}_cost' for mode in cost_by_mode)}: {cheapest}"
    table.add_calculated("cheapest_cost", cost_unit, cost_by_mode[cheapest], formula)

    pods_cost = term("pods") * term("pod_cpus") * term("price_cpu_hour") * HOURS_A_MONTH
    pods_cost = table.add_calculated("pods_cost", cost_unit, pods_cost)
    shared = pods_cost + term("cluster_month") + term("training_cost")
    for name in STORES:
        store = table[f"{name}_cost"]
        other_costs = shared
        if name in CAPACITIES:  # modes of Cosmos DB
            other_costs = shared + term("gateway_month")
        _add_if_possible(table, f"{name}_total", term(store.name) + other_costs, store, cost_unit)

    chosen = table[f"{inputs.capacity}_total"]
    _add_if_possible(table, "cosmos_total", term(chosen.name), chosen, cost_unit)


def _add_training_cost(table: FigureTable, inputs: Inputs, cost_unit: str) -> None:
    """Add to *table* the monthly cost of training before each publish."""
    term = table.expression
    node_price = term("train_cpus") * term("price_cpu_hour")
    if inputs.train_node_hour is not None:
        node_price = term("train_node_hour")
    node_price = table.add_calculated("train_price", "a node and hour", node_price)
    training = term("train_nodes") * term("train_hours") * node_price * term("publishes")
    table.add_calculated("training_cost", cost_unit, training)


def _add_if_possible(table: FigureTable, name: str, cost: Expression, basis: PlanFigure, cost_unit: str) -> None:
    """Add *cost* to *table* as the figure *name*; or, if its *basis* is not a number, the text that says why."""
    if basis.is_number:
        table.add_calculated(name, cost_unit, cost)
    else:
        table.add_value(name, basis.value, "", basis.name)


def _add_files(table: FigureTable, prices: Prices, cost_unit: str) -> None:
    """Add to *table* the monthly cost of files in each pod: a disk for all releases, and memory for the live one.

    The price of a vCPU includes `cpu_memory_gb`; more memory is paid by the price of the vCPUs that bring it. If the
    prices file has no price of disks, the cost is a text that says so. The releases are equally large, `copies` of
    them: the live one, kept ones and the next one.
    """
    term = table.expression
    row_bytes = term("stored_bytes") + term("user_id_chars") + FILE_ROW_BYTES
    files_gb = term("rows") * row_bytes * term("copies") / GB
    source = "key, value and LMDB's pages; live, kept and the next one"
    files_gb = table.add_calculated("files_gb", "GB", files_gb, source=source)
    if prices.disk_gb_month is None:
        table.add_value("files_cost", "not possible: the prices file has no disk_gb_month", "", "prices file")
        return

    memory_gb = largest(0, files_gb / term("copies") - term("pod_cpus") * term("cpu_memory_gb"))
    source = "the live release stays in memory; what a pod's vCPUs bring is paid for"
    memory_gb = table.add_calculated("files_memory_gb", "GB a pod", memory_gb, source=source)
    memory_cost = memory_gb / term("cpu_memory_gb") * term("price_cpu_hour") * HOURS_A_MONTH
    cost = term("pods") * (files_gb * term("price_disk_gb_month") + memory_cost)
    source = "a disk for each pod, and memory beyond that of its vCPUs"
    table.add_calculated("files_cost", cost_unit, cost, source=source)


def _add_today(table: FigureTable, cost_unit: str) -> None:
    """Add to *table* by how much `have_ru`, the RU/s provisioned today, are too few or too many, and what they cost.

    Also adds the share of the busiest hour's reads that get 429 (too many requests), because they exceed the RU/s of
    their partition; the fullest one gets `have_skew` times an even share of the reads.
    """
    term = table.expression
    have_ru = term("have_ru")
    reads_ru = term("reads_plain_ru")
    table.add_calculated("short_ru", "RU/s", largest(0, term("serve_ru") - have_ru))
    refused = refused_share(
        have_ru.value,
        reads_ru.value,
        skew=term("have_skew").value,
        partitions=int(term("have_partitions").value),
    )
    formula = "reads of the busiest hour above the share of have_ru of have_partitions, by reads_plain_ru; have_skew"
    source = "reads alone, without headroom; retries make it worse"
    table.add_calculated("refused_reads", "share", refused, formula, source)

    table.add_calculated("today_use", "share", reads_ru / have_ru, source="reads in the busiest hour")
    unneeded_ru = table.add_calculated("over_ru", "RU/s", largest(0, have_ru - term("serve_ru")))
    table.add_calculated("today_cost", cost_unit, _monthly_cost_of(table, have_ru))
    table.add_calculated("over_cost", cost_unit, _monthly_cost_of(table, unneeded_ru))


def refused_share(have_ru: float, reads_ru: float, skew: float, partitions: int) -> float:
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
