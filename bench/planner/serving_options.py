"""What the ways to serve a load cost: Cosmos DB by capacity mode, Redis, and files in each pod.

Each function enters figures in *table*; `figure` returns an entered one as a term, a number that knows its formula, and
*month* is the unit of a cost, as USD/month.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import log, sqrt
from statistics import fmean

from hotplate.bench.planner.formulas import FigureTable, PlanFigure, Term, ceiling, most, round_up, term
from hotplate.bench.planner.inputs import CAPACITIES, Inputs, hourly_shares
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices, Size
from hotplate.bench.planner.sizing import CONTROL_RU, DOUBLED, GB, PARTITION_GB, PARTITIONS, SKEW, skew_of
from hotplate.stores.cosmos import url

REDIS_BUCKETS = 256  # of each release, each in one shard
POLL_S = 2.0  # between polls of the catalogue, 1 RU each
FLOOR = 10  # autoscale bills at least a tenth of its maximum
OVERLAP_HOURS = 1  # of a publish, with both releases scaled
SERVERLESS = "https://learn.microsoft.com/azure/cosmos-db/serverless-performance, read 2026-11-22; no promise"
DYNAMIC = "https://learn.microsoft.com/azure/cosmos-db/autoscale-per-partition-region: accounts since 2023-11-15"
# Bytes of a row in LMDB besides key and value: node header, page fill and branch pages.
FILE_ROW_BYTES = 40
STORES = (*CAPACITIES, "redis", "files")


@dataclass(frozen=True, slots=True)
class Option:
    """One way to serve the load: monthly costs of the store and in all, or why it is not possible."""

    name: str
    store: float
    total: float
    obstacle: str = ""

    @property
    def possible(self) -> bool:
        """Whether it can serve the load."""
        return not self.obstacle


def price(table: FigureTable, inputs: Inputs, prices: Prices) -> tuple[Option, ...]:
    """Enter what each way to serve the load costs, and return them in the order of STORES."""
    month = f"{prices.currency}/month"
    _carried(table, inputs, month)
    _manual_cost(table, inputs, month)
    _autoscale(table, inputs, month)
    _serverless(table, inputs, prices, month)
    _redis(table, inputs, prices, month)
    _files(table, prices, month)
    _totals(table, inputs, month)
    if inputs.have_ru is not None:
        _today(table, month)
    return tuple(_option(table, name) for name in STORES)


def _option(table: Mapping[str, PlanFigure], name: str) -> Option:
    store = table[f"{name}_cost"]
    total = table[f"{name}_total"]
    if isinstance(store.value, str):
        return Option(name, 0.0, 0.0, store.value)
    return Option(name, store.number, total.number)


def possible_costs(figures: Mapping[str, PlanFigure]) -> dict[str, float]:
    """Return the monthly cost of each possible capacity mode."""
    costs = {name: figures[f"{name}_cost"].value for name in CAPACITIES}
    return {name: cost for name, cost in costs.items() if isinstance(cost, int | float)}


def _carried(table: FigureTable, inputs: Inputs, month: str) -> None:
    """Enter the reads/s and lists published/s that some RU/s can serve, and what these RU/s cost a month.

    They are `have_ru`, those that are provisioned today, else `serve_ru`, those that the plan provisions. The fullest
    partition limits the reads: it gets `skew` times an even share of them. Today's container may have other partitions
    than the plan's, so that its skew is another.
    """
    figure = table.term
    ru = table.term("serve_ru")
    skew = table.term("skew")
    if inputs.have_ru is not None:
        ru = figure("have_ru")
        partitions = most(figure("partitions_by_gb"), ceiling(ru / url.INITIAL_PARTITION_RU))
        partitions = table.derive("have_partitions", "partitions", partitions, source=PARTITIONS)
        skew = table.derive("have_skew", "", skew_of(table, partitions), source=SKEW)
    ru = table.derive("carried_ru", "RU/s", ru)
    source = "the highest rate without a 429, if nothing else is read or written"
    reads = table.derive("carried_region_reads", "reads/s", ru / figure("mean_read_ru") / skew, source=source)
    reads = table.derive("carried_reads", "reads/s", reads * figure("regions"), source="all regions together")
    table.derive(
        "carried_mean", "reads/s", reads * figure("ru_utilisation"), source="with room for peaks within the hour"
    )
    lists = ru / (figure("list_write_ru") + figure("read_back_ru"))
    table.derive("carried_lists", "lists/s", lists, source="each list is written once, for all regions, and read back")
    table.derive(
        "carried_cost", month, _manual(table, ru), source="one container, manual, all regions, without storage"
    )


def _manual(table: FigureTable, ru: Term) -> Term:
    """Return the cost of *ru* manual RU/s for a month in all regions."""
    figure = table.term
    return ru / 100 * figure("price_ru_hour") * figure("ru_factor") * HOURS_A_MONTH * figure("regions")


def _manual_cost(table: FigureTable, inputs: Inputs, month: str) -> None:
    """Enter the monthly cost of Cosmos DB with manual RU/s, of its storage, and the RU/s of polls of the catalogue.

    Each release is a container: the live one has `serve_ru`, kept ones have the minimum, `least_ru`, and the catalogue
    has a small one, control. A publish adds a container with `creation_ru`. RU/s are priced by 100 and hour.
    """
    figure = table.term
    table.derive("storage_cost", month, figure("stored_gb") * figure("price_storage_gb_month") * figure("regions"))
    polls = figure("pods") * ceiling(figure("pod_cpus")) / POLL_S * (2 if inputs.consistency in DOUBLED else 1)
    source = "each process polls the catalogue"
    table.derive("polls_ru", "RU/s", polls, source=source)

    hours = (figure("serve_ru") + figure("kept") * figure("least_ru") + CONTROL_RU) * HOURS_A_MONTH
    hours += figure("publishes") * (
        figure("creation_ru") * figure("publish_billed_hours") + figure("serve_ru") * OVERLAP_HOURS
    )
    source = "live, kept and control all month; each publish its hours, and one in which two releases can serve"
    hours = table.derive("manual_ru_hours", "RU/s-hours", hours, source=source)
    cost = hours / 100 * figure("price_ru_hour") * figure("ru_factor") * figure("regions")
    table.derive("manual_cost", month, cost + figure("storage_cost"))


def autoscale_top(wanted: float, highest: float, release_gb: float) -> int:
    """Return the autoscale maximum for *wanted* RU/s, after a maximum of *highest*."""
    lowest = url.minimum_ru(int(highest), int(release_gb * GB), autoscale=True)
    return max(round_up(wanted, url.AUTOSCALE_STEP), url.AUTOSCALE_MIN, lowest)


def reached_ru(inputs: Inputs, top: float, busiest: float) -> list[float]:
    """Return the billed RU/s of each hour, with an autoscale maximum of *top*."""
    return [max(top / FLOOR, busiest * share) for share in hourly_shares(inputs.profile)]


def _autoscale(table: FigureTable, inputs: Inputs, month: str) -> None:
    """Enter the RU/s of Cosmos DB with autoscale: its maximum ("top"), and what it bills on average.

    An hour bills the highest RU/s that it reached, at least a tenth of the maximum. The maximum cannot be set below a
    tenth of the highest one that the container ever had, which is that for publishing or for reads. Reads spread evenly
    over regions. Kept releases are idle: they bill a tenth of the lowest maximum.
    """
    figure = table.term
    reads = table["reads_ru"].number
    gb = table["release_gb"].number
    highest = autoscale_top(max(reads, table["publish_ru_s"].number), 0, 0)
    formula = f"the least that holds reads_ru, in steps of {url.AUTOSCALE_STEP}, and a tenth of publish_ru_s before it"
    source = "in each region; at least a tenth of the highest top ever"
    top = table.derive("autoscale_top_ru", "RU/s", autoscale_top(reads, highest, gb), formula, source)

    busiest = figure("peak_then") / figure("regions") * (term(1) - figure("hit_rate")) * figure("mean_read_ru")
    busiest = table.derive(
        "region_reads_ru", "RU/s", busiest / figure("ru_utilisation"), source="the peak of the busiest hour"
    )
    formula = "the mean over the hours of profile of the larger of autoscale_top_ru / 10, and region_reads_ru then"
    billed = fmean(reached_ru(inputs, top.value, busiest.value))
    mean = table.derive("autoscale_mean_ru", "RU/s", billed, formula, DYNAMIC)

    formula = "a tenth of the lowest top that may be set after publish_ru_s"
    table.derive("autoscale_idle_ru", "RU/s", autoscale_top(0, highest, gb) / FLOOR, formula)
    _autoscale_costs(table, mean, top, month)


def _autoscale_costs(table: FigureTable, mean: Term, top: Term, month: str) -> None:
    """Enter the monthly cost of autoscale if it bills *mean* RU/s, its average over a day, and if always *top*.

    Both include the RU/s of publishes and of kept releases, the catalogue's container (control), and storage.
    """
    figure = table.term
    other = (
        figure("publishes")
        * (figure("publish_ru_s") * figure("publish_billed_hours") + mean * OVERLAP_HOURS)
        / HOURS_A_MONTH
    )
    source = "publishes, kept releases and hours with two of them, as a mean over the month"
    table.derive("autoscale_other_ru", "RU/s", other + figure("kept") * figure("autoscale_idle_ru"), source=source)
    fixed = _manual(table, term(CONTROL_RU)) + figure("storage_cost")
    factor = figure("price_ru_hour") * figure("price_autoscale_factor") * HOURS_A_MONTH * figure("regions")
    for name, live in (("autoscale_cost", mean), ("autoscale_most_cost", top)):
        table.derive(name, month, (live + figure("autoscale_other_ru")) / 100 * factor + fixed)


def _serverless(table: FigureTable, inputs: Inputs, prices: Prices, month: str) -> None:
    """Enter the monthly cost of a serverless container, which is paid by RU used, or why it cannot serve the load.

    Its RU/s end at a ceiling by its physical partitions, each of `PARTITION_GB`.
    """
    figure = table.term
    ceiling_ru = term(url.SERVERLESS_RU) * most(1, ceiling(figure("release_gb") / PARTITION_GB))
    at_most = table.derive("serverless_ceiling_ru", "RU/s", ceiling_ru, source=SERVERLESS).value
    mean = figure("reads_plain_ru") * figure("mean_of_peak") + figure("polls_ru")
    used = mean * HOURS_A_MONTH * 3600 + figure("publishes") * figure("publish_total_ru")
    table.derive("serverless_used_ru", "RU/month", used)
    if obstacles := "; ".join(_serverless_obstacles(table, inputs, prices, at_most)):
        table.enter("serverless_cost", f"not possible: {obstacles}", "", SERVERLESS)
        return
    million = figure("serverless_used_ru") / 1_000_000 * figure("price_serverless_million_ru")
    table.derive("serverless_cost", month, million + figure("storage_cost"))


def _serverless_obstacles(table: FigureTable, inputs: Inputs, prices: Prices, most_ru: float) -> Iterator[str]:
    """Yield why a serverless container, of at most *most_ru* RU/s, cannot serve the load."""
    reads_ru = table["reads_ru"].number
    release_gb = table["release_gb"].number
    container_gb = url.SERVERLESS_BYTES / GB
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


def _redis(table: FigureTable, inputs: Inputs, prices: Prices, month: str) -> None:
    """Enter the memory of all releases in Redis, the cheapest size for it and its monthly cost, or why none will do.

    A size is an instance of Azure with GB, shards and a price by node. Data is uneven over shards, so the fullest one
    (`redis_fullest`, as a multiple of an even share) must fit.
    """
    figure = table.term
    gb = figure("rows") * figure("redis_row_bytes") * figure("copies") / GB
    gb_value = table.derive("redis_gb", "GB", gb, source="live, kept and the next one").value
    size = choose_size(prices, gb_value, table["reads_s"].number, inputs)
    if size is None:
        table.enter("redis_cost", f"not possible: {_redis_obstacle(prices, gb_value)}", "", "one endpoint is used")
        return
    table.enter("redis_size", size.name, "", f"the cheapest that is enough: {size.gb:g} GB; {size.hour.provenance}")
    table.enter("redis_size_gb", size.gb, "GB", "prices file")
    table.enter(
        "redis_shards", size.shards, "shards", "prices file: https://learn.microsoft.com/azure/redis/architecture"
    )
    formula = f"1 + sqrt(2 * log(redis_shards) * redis_shards / ({REDIS_BUCKETS} * copies))"
    source = "buckets of releases fall on shards at random: 5 to 16 % above the median of trials"
    table.derive("redis_fullest", "", fullest_shard(size.shards, table["copies"].number), formula, source)
    table.enter("price_redis_node_hour", size.hour.amount, prices.currency, size.hour.provenance)
    table.derive(
        "redis_cost", month, figure("redis_nodes") * figure("price_redis_node_hour") * HOURS_A_MONTH * figure("regions")
    )


def _redis_obstacle(prices: Prices, gb: float) -> str:
    if not prices.redis:
        return "the prices file has no sizes of Redis"
    largest = f"{prices.redis[-1].name}, the largest, holds"
    return f"{gb:,.0f} GB, uneven over its shards, or its reads/s are more than {largest}"


def choose_size(prices: Prices, gb: float, gets_per_s: float, inputs: Inputs) -> Size | None:
    """Choose the cheapest size for *gb* of data and *gets_per_s*; None if all are too small."""
    fitting = [
        size
        for size in prices.redis
        if gb * fullest_shard(size.shards, inputs.kept + 2) <= size.gb * (1 - inputs.redis_reserved)
        and gets_per_s <= size.gets_per_s * inputs.redis_utilisation
    ]
    return min(fitting, key=lambda size: size.hour.amount, default=None)


def fullest_shard(shards: int, releases: float) -> float:
    """Return the data of the fullest shard as a multiple of an even share."""
    return 1 + sqrt(2 * log(shards) * shards / (REDIS_BUCKETS * releases))


def _totals(table: FigureTable, inputs: Inputs, month: str) -> None:
    """Enter the monthly cost of training and of pods, and the total with each store, or why it is not possible.

    `cheapest_cost` is that of the cheapest capacity mode of Cosmos DB, `cosmos_total` the total with the chosen one.
    Only Cosmos DB has a gateway.
    """
    figure = table.term
    price = figure("train_cpus") * figure("price_cpu_hour")
    if inputs.train_node_hour is not None:
        price = figure("train_node_hour")
    price = table.derive("train_price", "a node and hour", price)
    table.derive("training_cost", month, figure("train_nodes") * figure("train_hours") * price * figure("publishes"))
    costs = possible_costs(table)
    cheapest = min(costs, key=lambda name: costs[name])
    formula = f"the least of {' and '.join(f'{name}_cost' for name in costs)}: {cheapest}"
    table.derive("cheapest_cost", month, costs[cheapest], formula)
    table.derive("pods_cost", month, figure("pods") * figure("pod_cpus") * figure("price_cpu_hour") * HOURS_A_MONTH)
    shared = figure("pods_cost") + figure("cluster_month") + figure("training_cost")
    with_gateway = shared + figure("gateway_month")
    for name in STORES:
        _total(table, name, with_gateway if name in CAPACITIES else shared, month)
    chosen = f"{inputs.capacity}_total"
    if isinstance(impossible := table[chosen].value, str):
        table.enter("cosmos_total", impossible, "", chosen)
    else:
        table.derive("cosmos_total", month, figure(chosen))


def _total(table: FigureTable, name: str, shared: Term, month: str) -> None:
    """Enter the total of a store with what all stores share, or why it is not possible."""
    store = table[f"{name}_cost"]
    if isinstance(store.value, str):
        table.enter(f"{name}_total", store.value, "", store.name)
    else:
        table.derive(f"{name}_total", month, table.term(store.name) + shared)


def _files(table: FigureTable, prices: Prices, month: str) -> None:
    """Enter the monthly cost of files in each pod: a disk for all releases, and memory for the live one.

    A vCPU comes with `cpu_memory_gb`; only memory beyond that is paid, by the price of the vCPUs that bring it. Without
    a price of disks, enters why the cost is unknown.
    """
    figure = table.term
    row = figure("stored_bytes") + figure("user_id_chars") + FILE_ROW_BYTES
    source = "key, value and LMDB's pages; live, kept and the next one"
    table.derive("files_gb", "GB", figure("rows") * row * figure("copies") / GB, source=source)
    if prices.disk_gb_month is None:
        table.enter("files_cost", "not possible: the prices file has no disk_gb_month", "", "prices file")
        return
    source = "the live release stays in memory; what a pod's vCPUs bring is paid for"
    memory = most(0, figure("files_gb") / figure("copies") - figure("pod_cpus") * figure("cpu_memory_gb"))
    memory = table.derive("files_memory_gb", "GB a pod", memory, source=source)
    cpu_hour = figure("price_cpu_hour")
    memory_cost = memory / figure("cpu_memory_gb") * cpu_hour * HOURS_A_MONTH
    cost = figure("pods") * (figure("files_gb") * figure("price_disk_gb_month") + memory_cost)
    table.derive("files_cost", month, cost, source="a disk for each pod, and memory beyond that of its vCPUs")


def _today(table: FigureTable, month: str) -> None:
    """Enter by how much `have_ru`, the RU/s provisioned today, are too few or too many, and their monthly cost.

    Also the share of the busiest hour's reads that get 429 (too many requests), because they exceed what one of today's
    partitions has; the fullest gets `have_skew` times an even share.
    """
    figure = table.term
    table.derive("short_ru", "RU/s", most(0, figure("serve_ru") - figure("have_ru")))
    formula = "reads of the busiest hour above the share of have_ru of have_partitions, by reads_plain_ru; have_skew"
    refused = refused_share(
        table["have_ru"].number,
        table["reads_plain_ru"].number,
        skew=table["have_skew"].number,
        partitions=int(table["have_partitions"].number),
    )
    table.derive("refused_reads", "share", refused, formula, "reads alone, without headroom; retries make it worse")
    table.derive("today_use", "share", figure("reads_plain_ru") / figure("have_ru"), source="reads in the busiest hour")
    over = table.derive("over_ru", "RU/s", most(0, figure("have_ru") - figure("serve_ru")))
    table.derive("today_cost", month, _manual(table, figure("have_ru")))
    table.derive("over_cost", month, _manual(table, over))


def refused_share(have_ru: float, reads_ru: float, skew: float, partitions: int) -> float:
    """Return the share of 429s if *reads_ru* RU/s are needed and *have_ru* provisioned.

    The fullest partition gets *skew* times an even share.
    """
    if reads_ru <= 0:
        return 0.0
    allowed = have_ru / reads_ru / partitions
    fullest = min(1.0, skew / partitions)
    return max(0.0, fullest - allowed) + max(0.0, 1 - fullest - allowed * (partitions - 1))
