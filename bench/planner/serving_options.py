"""What the ways to serve a load cost: Cosmos DB by capacity mode, Redis, and files in each pod.

In these functions *t* is the table that they enter figures in, `n` returns a figure as a term for a formula, and
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


def _carried(t: FigureTable, inputs: Inputs, month: str) -> None:
    """Enter what `have_ru` carries, or what the plan provisions, if that is not given."""
    n = t.term
    ru = t.term("serve_ru")
    skew = t.term("skew")
    if inputs.have_ru is not None:
        ru = n("have_ru")
        partitions = most(n("partitions_by_gb"), ceiling(ru / url.INITIAL_PARTITION_RU))
        partitions = t.derive("have_partitions", "partitions", partitions, source=PARTITIONS)
        skew = t.derive("have_skew", "", skew_of(t, partitions), source=SKEW)
    ru = t.derive("carried_ru", "RU/s", ru)
    source = "the highest rate without a 429, if nothing else is read or written"
    reads = t.derive("carried_region_reads", "reads/s", ru / n("mean_read_ru") / skew, source=source)
    reads = t.derive("carried_reads", "reads/s", reads * n("regions"), source="all regions together")
    t.derive("carried_mean", "reads/s", reads * n("ru_utilisation"), source="with room for peaks within the hour")
    lists = ru / (n("list_write_ru") + n("read_back_ru"))
    t.derive("carried_lists", "lists/s", lists, source="each list is written once, for all regions, and read back")
    t.derive("carried_cost", month, _manual(t, ru), source="one container, manual, all regions, without storage")


def _manual(t: FigureTable, ru: Term) -> Term:
    """Return the cost of *ru* manual RU/s for a month in all regions."""
    n = t.term
    return ru / 100 * n("price_ru_hour") * n("ru_factor") * HOURS_A_MONTH * n("regions")


def _manual_cost(t: FigureTable, inputs: Inputs, month: str) -> None:
    """Enter the cost of manual RU/s, of storage, and of the polls of the catalogue."""
    n = t.term
    t.derive("storage_cost", month, n("stored_gb") * n("price_storage_gb_month") * n("regions"))
    polls = n("pods") * ceiling(n("pod_cpus")) / POLL_S * (2 if inputs.consistency in DOUBLED else 1)
    source = "each process polls the catalogue"
    t.derive("polls_ru", "RU/s", polls, source=source)
    hours = (n("serve_ru") + n("kept") * n("least_ru") + CONTROL_RU) * HOURS_A_MONTH
    hours += n("publishes") * (n("creation_ru") * n("publish_billed_hours") + n("serve_ru") * OVERLAP_HOURS)
    source = "live, kept and control all month; each publish its hours, and one in which two releases can serve"
    hours = t.derive("manual_ru_hours", "RU/s-hours", hours, source=source)
    cost = hours / 100 * n("price_ru_hour") * n("ru_factor") * n("regions")
    t.derive("manual_cost", month, cost + n("storage_cost"))


def autoscale_top(wanted: float, highest: float, release_gb: float) -> int:
    """Return the autoscale maximum for *wanted* RU/s, after a maximum of *highest*."""
    lowest = url.minimum_ru(int(highest), int(release_gb * GB), autoscale=True)
    return max(round_up(wanted, url.AUTOSCALE_STEP), url.AUTOSCALE_MIN, lowest)


def reached_ru(inputs: Inputs, top: float, busiest: float) -> list[float]:
    """Return the billed RU/s of each hour, with an autoscale maximum of *top*."""
    return [max(top / FLOOR, busiest * share) for share in hourly_shares(inputs.profile)]


def _autoscale(t: FigureTable, inputs: Inputs, month: str) -> None:
    """Reads spread evenly over regions; an hour bills its highest RU/s, at least a tenth of the maximum."""
    n = t.term
    reads = t["reads_ru"].number
    gb = t["release_gb"].number
    highest = autoscale_top(max(reads, t["publish_ru_s"].number), 0, 0)
    formula = f"the least that holds reads_ru, in steps of {url.AUTOSCALE_STEP}, and a tenth of publish_ru_s before it"
    source = "in each region; at least a tenth of the highest top ever"
    top = t.derive("autoscale_top_ru", "RU/s", autoscale_top(reads, highest, gb), formula, source)
    now = n("peak_then") / n("regions") * (term(1) - n("hit_rate")) * n("mean_read_ru")
    now = t.derive("region_reads_ru", "RU/s", now / n("ru_utilisation"), source="the peak of the busiest hour")
    formula = "the mean over the hours of profile of the larger of autoscale_top_ru / 10, and region_reads_ru then"
    mean = t.derive("autoscale_mean_ru", "RU/s", fmean(reached_ru(inputs, top.value, now.value)), formula, DYNAMIC)
    formula = "a tenth of the lowest top that may be set after publish_ru_s"
    t.derive("autoscale_idle_ru", "RU/s", autoscale_top(0, highest, gb) / FLOOR, formula)
    _autoscale_costs(t, mean, top, month)


def _autoscale_costs(t: FigureTable, mean: Term, top: Term, month: str) -> None:
    """Enter the cost of autoscale at its *mean* over the hours of a day, and always at its maximum, *top*."""
    n = t.term
    other = n("publishes") * (n("publish_ru_s") * n("publish_billed_hours") + mean * OVERLAP_HOURS) / HOURS_A_MONTH
    source = "publishes, kept releases and hours with two of them, as a mean over the month"
    t.derive("autoscale_other_ru", "RU/s", other + n("kept") * n("autoscale_idle_ru"), source=source)
    fixed = _manual(t, term(CONTROL_RU)) + n("storage_cost")
    factor = n("price_ru_hour") * n("price_autoscale_factor") * HOURS_A_MONTH * n("regions")
    for name, live in (("autoscale_cost", mean), ("autoscale_most_cost", top)):
        t.derive(name, month, (live + n("autoscale_other_ru")) / 100 * factor + fixed)


def _serverless(t: FigureTable, inputs: Inputs, prices: Prices, month: str) -> None:
    """Enter the cost of serverless, or why it is not possible."""
    n = t.term
    ceiling_ru = term(url.SERVERLESS_RU) * most(1, ceiling(n("release_gb") / PARTITION_GB))
    at_most = t.derive("serverless_ceiling_ru", "RU/s", ceiling_ru, source=SERVERLESS).value
    mean = n("reads_plain_ru") * n("mean_of_peak") + n("polls_ru")
    used = mean * HOURS_A_MONTH * 3600 + n("publishes") * n("publish_total_ru")
    t.derive("serverless_used_ru", "RU/month", used)
    if obstacles := "; ".join(_serverless_obstacles(t, inputs, prices, at_most)):
        t.enter("serverless_cost", f"not possible: {obstacles}", "", SERVERLESS)
        return
    million = n("serverless_used_ru") / 1_000_000 * n("price_serverless_million_ru")
    t.derive("serverless_cost", month, million + n("storage_cost"))


def _serverless_obstacles(t: FigureTable, inputs: Inputs, prices: Prices, most_ru: float) -> Iterator[str]:
    """Yield why a serverless container, of at most *most_ru* RU/s, cannot serve the load."""
    reads_ru = t["reads_ru"].number
    release_gb = t["release_gb"].number
    container_gb = url.SERVERLESS_BYTES / GB
    publish_hours = t["publish_total_ru"].number / most_ru / 3600
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


def _redis(t: FigureTable, inputs: Inputs, prices: Prices, month: str) -> None:
    """Enter the memory of all releases, the cheapest size that holds them, and its cost, or why none does."""
    n = t.term
    gb = n("rows") * n("redis_row_bytes") * n("copies") / GB
    gb_value = t.derive("redis_gb", "GB", gb, source="live, kept and the next one").value
    size = choose_size(prices, gb_value, t["reads_s"].number, inputs)
    if size is None:
        t.enter("redis_cost", f"not possible: {_redis_obstacle(prices, gb_value)}", "", "one endpoint is used")
        return
    t.enter("redis_size", size.name, "", f"the cheapest that is enough: {size.gb:g} GB; {size.hour.provenance}")
    t.enter("redis_size_gb", size.gb, "GB", "prices file")
    t.enter("redis_shards", size.shards, "shards", "prices file: https://learn.microsoft.com/azure/redis/architecture")
    formula = f"1 + sqrt(2 * log(redis_shards) * redis_shards / ({REDIS_BUCKETS} * copies))"
    source = "buckets of releases fall on shards at random: 5 to 16 % above the median of trials"
    t.derive("redis_fullest", "", fullest_shard(size.shards, t["copies"].number), formula, source)
    t.enter("price_redis_node_hour", size.hour.amount, prices.currency, size.hour.provenance)
    t.derive("redis_cost", month, n("redis_nodes") * n("price_redis_node_hour") * HOURS_A_MONTH * n("regions"))


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


def _totals(t: FigureTable, inputs: Inputs, month: str) -> None:
    """Enter the cost of training and of pods, and the total with each store."""
    n = t.term
    price = n("train_cpus") * n("price_cpu_hour")
    if inputs.train_node_hour is not None:
        price = n("train_node_hour")
    price = t.derive("train_price", "a node and hour", price)
    t.derive("training_cost", month, n("train_nodes") * n("train_hours") * price * n("publishes"))
    costs = possible_costs(t)
    cheapest = min(costs, key=lambda name: costs[name])
    formula = f"the least of {' and '.join(f'{name}_cost' for name in costs)}: {cheapest}"
    t.derive("cheapest_cost", month, costs[cheapest], formula)
    t.derive("pods_cost", month, n("pods") * n("pod_cpus") * n("price_cpu_hour") * HOURS_A_MONTH)
    shared = n("pods_cost") + n("cluster_month") + n("training_cost")
    for name in STORES:
        _total(t, name, shared + n("gateway_month") if name in CAPACITIES else shared, month)
    chosen = f"{inputs.capacity}_total"
    if isinstance(impossible := t[chosen].value, str):
        t.enter("cosmos_total", impossible, "", chosen)
    else:
        t.derive("cosmos_total", month, n(chosen))


def _total(t: FigureTable, name: str, shared: Term, month: str) -> None:
    """Enter the total of a store with what all stores share, or why it is not possible."""
    store = t[f"{name}_cost"]
    if isinstance(store.value, str):
        t.enter(f"{name}_total", store.value, "", store.name)
    else:
        t.derive(f"{name}_total", month, t.term(store.name) + shared)


def _files(t: FigureTable, prices: Prices, month: str) -> None:
    """Each pod has a copy of the releases on its disk, and of the live one in memory."""
    n = t.term
    row = n("stored_bytes") + n("user_id_chars") + FILE_ROW_BYTES
    source = "key, value and LMDB's pages; live, kept and the next one"
    t.derive("files_gb", "GB", n("rows") * row * n("copies") / GB, source=source)
    if prices.disk_gb_month is None:
        t.enter("files_cost", "not possible: the prices file has no disk_gb_month", "", "prices file")
        return
    source = "the live release stays in memory; what a pod's vCPUs bring is paid for"
    memory = most(0, n("files_gb") / n("copies") - n("pod_cpus") * n("cpu_memory_gb"))
    memory = t.derive("files_memory_gb", "GB a pod", memory, source=source)
    cpu_hour = n("price_cpu_hour")
    memory_cost = memory / n("cpu_memory_gb") * cpu_hour * HOURS_A_MONTH
    cost = n("pods") * (n("files_gb") * n("price_disk_gb_month") + memory_cost)
    t.derive("files_cost", month, cost, source="a disk for each pod, and memory beyond that of its vCPUs")


def _today(t: FigureTable, month: str) -> None:
    """Enter what `have_ru` lacks or has too much, and the share of reads that get 429."""
    n = t.term
    t.derive("short_ru", "RU/s", most(0, n("serve_ru") - n("have_ru")))
    formula = "reads of the busiest hour above the share of have_ru of have_partitions, by reads_plain_ru; have_skew"
    refused = refused_share(
        t["have_ru"].number,
        t["reads_plain_ru"].number,
        skew=t["have_skew"].number,
        partitions=int(t["have_partitions"].number),
    )
    t.derive("refused_reads", "share", refused, formula, "reads alone, without headroom; retries make it worse")
    t.derive("today_use", "share", n("reads_plain_ru") / n("have_ru"), source="reads in the busiest hour")
    over = t.derive("over_ru", "RU/s", most(0, n("have_ru") - n("serve_ru")))
    t.derive("today_cost", month, _manual(t, n("have_ru")))
    t.derive("over_cost", month, _manual(t, over))


def refused_share(have_ru: float, reads_ru: float, skew: float, partitions: int) -> float:
    """Return the share of 429s if *reads_ru* RU/s are needed and *have_ru* provisioned.

    The fullest partition gets *skew* times an even share.
    """
    if reads_ru <= 0:
        return 0.0
    allowed = have_ru / reads_ru / partitions
    fullest = min(1.0, skew / partitions)
    return max(0.0, fullest - allowed) + max(0.0, 1 - fullest - allowed * (partitions - 1))
