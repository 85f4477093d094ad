"""The plan for one set of inputs: sizes, workload, Cosmos DB, Redis, pods, training and cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import log, sqrt
from statistics import fmean
from typing import Any

from hotplate.bench.planner.figures import FigureTable, PlanFigure, Term, ceiling, least, most, round_up, term
from hotplate.bench.planner.inputs import CAPACITIES, KEY_BYTES, KNOWN, Inputs, SourcedInputs, hourly_shares
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices, Size
from hotplate.stores.cosmos import url
from hotplate.stores.cosmos.charges import Charges, overhead_ru

ITEM_BYTES = len('{"id":"","score":0.1234}')
TITLE_BYTES = len(',"title":""')
SEPARATOR_BYTES = len(",\n")
# Quotes of an item and its title; each is escaped inside a JSON string.
QUOTES = 6
TITLE_QUOTES = 4
# A Cosmos DB item without its id and list.
SKELETON_BYTES = len('{"id":"user.","t":""}')
# Copied from `hotplate.stores.redis.examination`, which needs an extra; a test compares them.
REDIS_ROW_BYTES = 80
REDIS_ALLOCATED = 1.08
REDIS_HEAD_BYTES = len("hotplate:{7f3a0c5e9d12.255}:")
REDIS_BUCKETS = 256  # of each release, each in one shard
GB = 1000**3
PARTITION_GB = 50
CONTROL_RU = url.MANUAL_MIN  # of the catalogue's container
DOUBLED = ("bounded", "strong")  # levels that double the charge of reads
POLL_S = 2.0  # between polls of the catalogue, 1 RU each
FLOOR = 10  # autoscale bills at least a tenth of its maximum
OVERLAP_HOURS = 1  # of a publish, with both releases scaled
EXACT_RANKS = 1_000  # lower ranks of the Zipf law are integrated
BREAK_EVEN_STEPS = (-4, 13)  # half powers of ten: from 0.01 to 1,000,000 requests/s
BREAK_EVEN_PRECISION = 1.01
CHARGES = "the file of charges, ours or that of --charges: a source for each coefficient"
LIMITS = "https://learn.microsoft.com/azure/cosmos-db/concepts-limits"
SKEW = "the hottest user, and an even share of the others"
PARTITIONS = "https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices"
SERVERLESS = "https://learn.microsoft.com/azure/cosmos-db/serverless-performance, read 2026-11-22; no promise"
DYNAMIC = "https://learn.microsoft.com/azure/cosmos-db/autoscale-per-partition-region: accounts since 2023-11-15"


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """Requirements and cost of a load."""

    sourced: SourcedInputs
    prices: Prices = field(repr=False)
    charges: Charges = field(repr=False)
    figures: Mapping[str, PlanFigure] = field(repr=False)

    @property
    def inputs(self) -> Inputs:
        """The inputs."""
        return self.sourced.inputs

    def number(self, name: str) -> float:
        """Return a figure's value, 0 if it is not a number."""
        return self.figures[name].number

    @property
    def cheapest(self) -> str:
        """The cheapest capacity mode."""
        costs = possible_costs(self.figures)
        return min(costs, key=lambda name: costs[name])

    def with_inputs(self, **changes: Any) -> "CapacityPlan":  # noqa: ANN401 -- inputs by name
        """Recalculate with changed inputs."""
        changed = replace(self.sourced, inputs=replace(self.inputs, **changes))
        return calculate(changed, self.prices, self.charges)

    def with_prices(self, direction: int) -> "CapacityPlan":
        """Recalculate with upper (1) or lower (-1) bounds of all prices."""
        return calculate(self.sourced, self.prices.moved(direction), self.charges)


def calculate(sourced: SourcedInputs, prices: Prices, charges: Charges) -> CapacityPlan:
    """Calculate a plan."""
    table, inputs, month = FigureTable(), sourced.inputs, f"{prices.currency}/month"
    _enter_inputs(table, sourced, prices)
    _sizes(table, inputs)
    _workload(table, inputs)
    _charges(table, inputs, charges)
    _publishing(table, inputs, charges)
    _serving(table, inputs)
    _shares(table)
    _carried(table, inputs, month)
    _pods(table, inputs, month)
    _manual_cost(table, inputs, month)
    _autoscale(table, inputs, month)
    _serverless(table, inputs, prices, month)
    _redis(table, inputs, prices, month)
    _totals(table, inputs, month)
    if inputs.have_ru is not None:
        _today(table, month)
    return CapacityPlan(sourced, prices, charges, table)


def possible_costs(figures: Mapping[str, PlanFigure]) -> dict[str, float]:
    """Return the monthly cost of each possible capacity mode."""
    costs = {name: figures[f"{name}_cost"].value for name in CAPACITIES}
    return {name: cost for name, cost in costs.items() if isinstance(cost, int | float)}


def _enter_inputs(table: FigureTable, sourced: SourcedInputs, prices: Prices) -> None:
    for name, known in KNOWN.items():
        value = getattr(sourced.inputs, name)
        if value is not None:
            shown = _format_profile(value) if name == "profile" else value
            table.enter(name, shown, known.metadata["unit"], sourced.source(name))
    for name, price in prices.by_name().items():
        unit = "" if name == "autoscale_factor" else prices.currency
        table.enter(f"price_{name}", price.amount, f"{unit} a {price.per}".strip(), price.provenance)


def _format_profile(profile: str | tuple[float, ...]) -> str:
    if isinstance(profile, str):
        return f"{profile}: {_format_profile(hourly_shares(profile))}"
    if len(set(profile)) == 1:
        return f"{profile[0]:g} in each hour"
    return ", ".join(f"{part:g}" for part in profile)


def _sizes(t: FigureTable, inputs: Inputs) -> None:
    n, titled = t.term, inputs.title_chars > 0
    item = term(ITEM_BYTES) + n("item_id_chars")
    item = item + TITLE_BYTES + n("title_chars") if titled else item
    size = t.derive("json_bytes", "bytes", n("list_length") * item + term(SEPARATOR_BYTES) * (n("list_length") - 1))
    if inputs.encoding == "zstd":
        size = size * n("zstd_share")
    stored = t.derive("stored_bytes", "bytes", size if inputs.list_bytes is None else n("list_bytes"))
    if inputs.encoding == "zstd":
        text = t.derive("text_bytes", "bytes", ceiling(stored / 3) * 4, source="base64")
    else:
        source = "JSON in JSON: a backslash for each quote and each end of line"
        quoted = stored + term(QUOTES + TITLE_QUOTES * titled) * n("list_length") + n("list_length") - 1
        text = t.derive("text_bytes", "bytes", quoted, source=source)
    whole = term(SKELETON_BYTES) + ceiling(n("user_id_chars") * 4 / 3) + text + n("system_bytes")
    t.derive("item_bytes", "bytes", whole, source='an item {"id":"user.ID","t":"…"} with the id in base64url')
    row = (stored + KEY_BYTES + n("user_id_chars") + REDIS_HEAD_BYTES + REDIS_ROW_BYTES) * REDIS_ALLOCATED
    source = "key, prefix, release and Redis 7's overhead: within -10 and +13 % of used_memory"
    t.derive("redis_row_bytes", "bytes", row, source=source)


def _workload(t: FigureTable, inputs: Inputs) -> None:
    n = t.term
    growth = (1 + inputs.growth_percent / 100) ** inputs.months
    t.derive("growth", "", growth, "(1 + growth_percent / 100) ** months")
    users = t.derive("users_then", "users", n("users") * n("growth"))
    t.derive("rows", "lists", (n("users") + n("items")) * n("growth"))
    t.derive("peak_then", "requests/s", n("peak_rps") * n("growth"))
    t.derive("peak_region", "requests/s", n("peak_then") * n("region_share"))
    mean = fmean(hourly_shares(inputs.profile))
    t.derive("mean_of_peak", "share", mean, "the mean of profile by its busiest hour")
    keys = max(1, round(users.value))
    if inputs.hot_share is not None:
        t.derive("hot_user", "share", n("hot_share"))
    elif inputs.zipf is None:
        t.derive("hot_user", "share", 1 / keys, "1 / max(1, round(users_then))")
    else:
        t.derive("hot_user", "share", hottest_share(keys, inputs.zipf), "chance of the first of users_then, zipf")
    t.derive("reads_s", "reads/s", n("peak_region") * (term(1) - n("hit_rate")))


def hottest_share(keys: int, exponent: float) -> float:
    """Return the hottest key's share of requests by a Zipf law."""
    near = range(1, min(keys, EXACT_RANKS) + 1)
    low, high, power = EXACT_RANKS + 0.5, keys + 0.5, 1 - exponent
    far = log(high / low) if abs(power) < 1e-9 else (high**power - low**power) / power
    return 1.0 / float(sum(rank**-exponent for rank in near) + (far if keys > EXACT_RANKS else 0))


def _charges(t: FigureTable, inputs: Inputs, charges: Charges) -> None:
    n, size, strong = t.term, round(t["item_bytes"].number), inputs.consistency in DOUBLED
    formula = f"charge of a point read of item_bytes{', doubled for its consistency' if strong else ''}"
    t.derive("point_read_ru", "RU", charges.read(size, strong=strong), formula, CHARGES)
    formula = "charge of a read that finds nothing, by consistency"
    t.derive("missed_read_ru", "RU", charges.not_found(strong=strong), formula, CHARGES)
    known = (term(1) - n("unknown_share")) * n("point_read_ru")
    t.derive("mean_read_ru", "RU", known + n("unknown_share") * n("missed_read_ru"))
    formula = "charge of creating an item of item_bytes without an index"
    t.derive("list_write_ru", "RU", charges.create(size, 0), formula, CHARGES)
    t.derive("read_back_ru", "RU", charges.read(size), "charge of a point read of item_bytes", CHARGES)


def _publishing(t: FigureTable, inputs: Inputs, charges: Charges) -> None:
    n, size, rows = t.term, round(t["item_bytes"].number), round(t["rows"].number)
    rest = overhead_ru(charges, rows, size)
    formula = "lists of the keys of rows, the catalogue, the state, containers, and a check before it is served"
    t.derive("publish_rest_ru", "RU", rest, formula, CHARGES)
    lists = n("rows") * (n("list_write_ru") + n("read_back_ru"))
    total = t.derive("publish_total_ru", "RU", lists + n("publish_rest_ru"))
    wanted = n("publish_ru") if inputs.publish_ru is not None else total / (n("window_hours") * 3600)
    reserved = least(url.MAX_RU, most(url.MANUAL_MIN, ceiling(wanted, url.MANUAL_STEP)))
    reserved = t.derive("publish_ru_s", "RU/s", reserved)
    hours = t.derive("publish_hours", "hours", total / reserved / 3600)
    source = "hours of the clock that it touches, as a mean over its starts; each is billed at its highest RU/s"
    t.derive("publish_billed_hours", "hours", hours + 1, source=source)
    t.derive("publishes", "a month", term(HOURS_A_MONTH) / n("refresh_hours"))
    t.derive("release_gb", "GB", n("rows") * n("item_bytes") / GB)
    source = "live, kept and, while it is written, the next"
    t.derive("copies", "releases", n("kept") + 2, source=source)
    t.derive("stored_gb", "GB", n("release_gb") * n("copies"))


def new_partition_ru(inputs: Inputs) -> int:
    """Return the RU/s for which a new container gets one physical partition."""
    return url.PARTITION_RU if inputs.capacity == "autoscale" else url.INITIAL_PARTITION_RU


def _serving(t: FigureTable, inputs: Inputs) -> None:
    """Skew and the number of partitions depend on each other: a fixed point."""
    source = f"of a new container, {inputs.capacity}: {PARTITIONS}"
    t.enter("new_partition_ru", new_partition_ru(inputs), "RU/s", source)
    by_gb = most(1, ceiling(t.term("release_gb") / PARTITION_GB))
    needed = t.derive("partitions_by_gb", "partitions", by_gb, source=LIMITS).value
    partitions = 0.0
    while needed > partitions:
        partitions = needed
        needed = _serving_with(t, int(partitions))


def _serving_with(t: FigureTable, partitions: int) -> float:
    n = t.term
    t.enter("partitions", partitions, "partitions", "as many as follow from it: both agree")
    t.derive("skew", "", _skew(t, n("partitions")), source=SKEW)
    t.derive("reads_plain_ru", "RU/s", n("reads_s") * n("mean_read_ru"))
    t.derive("reads_ru", "RU/s", n("reads_plain_ru") * n("skew") / n("ru_utilisation"))
    rounded = ceiling(n("reads_ru"), url.MANUAL_STEP)
    highest = t.derive("highest_ru", "RU/s", most(n("publish_ru_s"), rounded))
    lowest = ceiling(most(url.MANUAL_MIN, n("release_gb"), highest / 100), url.MANUAL_STEP)
    lowest = t.derive("least_ru", "RU/s", lowest, source=LIMITS)
    serve = t.derive("serve_ru", "RU/s", most(rounded, lowest))
    creation = least(url.MAX_RU, most(highest, serve))
    creation = t.derive("creation_ru", "RU/s", creation, source="what a container is created with")
    new = t.derive("new_partitions", "partitions", ceiling(creation / n("new_partition_ru")), source=PARTITIONS)
    found = most(new, n("partitions_by_gb"), ceiling(least(url.MAX_RU, serve) / url.PARTITION_RU))
    return t.derive("partitions", "partitions", found, source="they stay, whatever RU/s are taken away").value


def _skew(t: FigureTable, partitions: Term) -> Term:
    return t.term("hot_user") * (partitions - 1) + 1


def _shares(t: FigureTable) -> None:
    n = t.term
    share = t.derive("partition_ru", "RU/s", n("serve_ru") / n("partitions"))
    hot = t.derive("hot_key_ru", "RU/s", n("reads_s") * n("hot_user") * n("mean_read_ru"))
    t.derive("hot_key_load", "share", hot / share)
    t.derive("hot_partition_load", "share", n("reads_plain_ru") * n("skew") / n("partitions") / share)
    t.derive("containers", "containers", n("kept") + 3, source="live, kept, the next one, and control")
    together = n("serve_ru") + n("kept") * n("least_ru") + n("creation_ru") + CONTROL_RU
    source = "live, kept, draft and control, in the hours of a publish"
    t.derive("together_ru", "RU/s", together, source=source)


def _carried(t: FigureTable, inputs: Inputs, month: str) -> None:
    n, ru, skew = t.term, t.term("serve_ru"), t.term("skew")
    if inputs.have_ru is not None:
        ru = n("have_ru")
        found = most(n("partitions_by_gb"), ceiling(ru / url.INITIAL_PARTITION_RU))
        found = t.derive("have_partitions", "partitions", found, source=PARTITIONS)
        skew = t.derive("have_skew", "", _skew(t, found), source=SKEW)
    ru = t.derive("carried_ru", "RU/s", ru)
    source = "the highest rate without a 429, if nothing else is read or written"
    reads = t.derive("carried_region_reads", "reads/s", ru / n("mean_read_ru") / skew, source=source)
    reads = t.derive("carried_reads", "reads/s", reads * n("regions"), source="all regions together")
    t.derive("carried_mean", "reads/s", reads * n("ru_utilisation"), source="with room for peaks within the hour")
    lists = ru / (n("list_write_ru") + n("read_back_ru"))
    t.derive("carried_lists", "lists/s", lists, source="each list is written once, for all regions, and read back")
    t.derive("carried_cost", month, _manual(t, ru), source="one container, manual, all regions, without storage")


def _manual(t: FigureTable, ru: Term) -> Term:
    n = t.term
    return ru / 100 * n("price_ru_hour") * n("ru_factor") * HOURS_A_MONTH * n("regions")


def _pods(t: FigureTable, inputs: Inputs, month: str) -> None:
    n = t.term
    held = n("peak_region") * n("request_ms") / 1000
    little = ceiling(held / n("pod_utilisation") / n("pod_concurrency"))
    t.derive("pods_by_little", "pods", little, source="Little's law: requests in a pod = rate * time")
    answered = n("pod_rps") if inputs.pod_rps is not None else term(1_000_000) * n("pod_cpus") / n("request_cpu_us")
    answered = t.derive("pod_capacity", "requests/s", answered)
    t.derive("pods_by_capacity", "pods", ceiling(n("peak_region") / answered / n("pod_utilisation")))
    t.derive("pods_region", "pods", most(n("pods_by_little"), n("pods_by_capacity"), n("min_pods")))
    used, source = n("pod_utilisation"), ""
    if inputs.zones > 1:
        used, source = used * (n("zones") - 1) / n("zones"), "room for the load of a lost zone"
    used = t.derive("hpa_utilisation", "share", used, source=source)
    target = used * least(answered, n("pod_concurrency") * 1000 / n("request_ms"))
    target = t.derive("hpa_pod_rps", "requests/s", target, source="the less by both; pods are added above it")
    source = "room for twice the busiest hour, and for one lost pod"
    t.derive("hpa_most_pods", "pods", most(n("min_pods"), ceiling(n("peak_region") * 2 / target) + 1), source=source)
    pods = n("pods_region")
    if inputs.zones > 1:
        source = "the other zones carry what one may lose"
        pods = t.derive("pods_zone", "pods", ceiling(pods / (n("zones") - 1)), source=source) * n("zones")
    t.derive("pods", "pods", pods * n("regions"))
    t.derive("pods_cost", month, n("pods") * n("pod_cpus") * n("price_cpu_hour") * HOURS_A_MONTH)


def _manual_cost(t: FigureTable, inputs: Inputs, month: str) -> None:
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
    reads, publish, gb = (t[name].number for name in ("reads_ru", "publish_ru_s", "release_gb"))
    highest = autoscale_top(max(reads, publish), 0, 0)
    formula = f"the least that holds reads_ru, in steps of {url.AUTOSCALE_STEP}, and a tenth of publish_ru_s before it"
    source = "in each region; at least a tenth of the highest top ever"
    top = t.derive("autoscale_top_ru", "RU/s", autoscale_top(reads, highest, gb), formula, source)
    now = n("peak_then") / n("regions") * (term(1) - n("hit_rate")) * n("mean_read_ru")
    now = t.derive("region_reads_ru", "RU/s", now / n("ru_utilisation"), source="the peak of the busiest hour")
    formula = "the mean over the hours of profile of the larger of autoscale_top_ru / 10, and region_reads_ru then"
    mean = t.derive("autoscale_mean_ru", "RU/s", fmean(reached_ru(inputs, top.value, now.value)), formula, DYNAMIC)
    formula = "a tenth of the lowest top that may be set after publish_ru_s"
    t.derive("autoscale_idle_ru", "RU/s", autoscale_top(0, highest, gb) / FLOOR, formula)
    other = n("publishes") * (n("publish_ru_s") * n("publish_billed_hours") + mean * OVERLAP_HOURS) / HOURS_A_MONTH
    source = "publishes, kept releases and hours with two of them, as a mean over the month"
    t.derive("autoscale_other_ru", "RU/s", other + n("kept") * n("autoscale_idle_ru"), source=source)
    fixed = _manual(t, term(CONTROL_RU)) + n("storage_cost")
    factor = n("price_ru_hour") * n("price_autoscale_factor") * HOURS_A_MONTH * n("regions")
    for name, live in (("autoscale_cost", mean), ("autoscale_most_cost", top)):
        t.derive(name, month, (live + n("autoscale_other_ru")) / 100 * factor + fixed)


def _serverless(t: FigureTable, inputs: Inputs, prices: Prices, month: str) -> None:
    n = t.term
    ceiling_ru = term(url.SERVERLESS_RU) * most(1, ceiling(n("release_gb") / PARTITION_GB))
    at_most = t.derive("serverless_ceiling_ru", "RU/s", ceiling_ru, source=SERVERLESS).value
    mean = n("reads_plain_ru") * n("mean_of_peak") + n("polls_ru")
    used = mean * HOURS_A_MONTH * 3600 + n("publishes") * n("publish_total_ru")
    t.derive("serverless_used_ru", "RU/month", used)
    obstacles = list[str]()
    if inputs.regions > 1:
        obstacles.append(f"{inputs.regions} regions, and serverless has one")
    if (reads_ru := t["reads_ru"].number) > at_most:
        obstacles.append(f"{reads_ru:,.0f} RU/s for reads, above {at_most:,}")
    if (gb := t["release_gb"].number) > url.SERVERLESS_BYTES / GB:
        obstacles.append(f"a release of {gb:,.0f} GB, and a container holds {url.SERVERLESS_BYTES / GB:,.0f}")
    if (hours := t["publish_total_ru"].number / at_most / 3600) > inputs.refresh_hours:
        obstacles.append(f"a publish takes {hours:.1f} hours at {at_most:,} RU/s")
    if prices.serverless_million_ru is None:
        obstacles.append("the prices file has no serverless_million_ru")
    if obstacles:
        t.enter("serverless_cost", f"not possible: {'; '.join(obstacles)}", "", SERVERLESS)
        return
    million = n("serverless_used_ru") / 1_000_000 * n("price_serverless_million_ru")
    t.derive("serverless_cost", month, million + n("storage_cost"))


def _redis(t: FigureTable, inputs: Inputs, prices: Prices, month: str) -> None:
    n = t.term
    gb = n("rows") * n("redis_row_bytes") * n("copies") / GB
    gb_value = t.derive("redis_gb", "GB", gb, source="live, kept and the next one").value
    size = choose_size(prices, gb_value, t["reads_s"].number, inputs)
    if size is None:
        obstacle = "the prices file has no sizes of Redis"
        if prices.redis:
            largest = f"{prices.redis[-1].name}, the largest, holds"
            obstacle = f"{gb_value:,.0f} GB, uneven over its shards, or its reads/s are more than {largest}"
        t.enter("redis_cost", f"not possible: {obstacle}", "", "one endpoint is used")
        return
    t.enter("redis_size", size.name, "", f"the cheapest that is enough: {size.gb:g} GB; {size.hour.provenance}")
    t.enter("redis_size_gb", size.gb, "GB", "prices file")
    t.enter("redis_shards", size.shards, "shards", "prices file: https://learn.microsoft.com/azure/redis/architecture")
    formula = f"1 + sqrt(2 * log(redis_shards) * redis_shards / ({REDIS_BUCKETS} * copies))"
    source = "buckets of releases fall on shards at random: 5 to 16 % above the median of trials"
    t.derive("redis_fullest", "", fullest_shard(size.shards, t["copies"].number), formula, source)
    t.enter("price_redis_node_hour", size.hour.amount, prices.currency, size.hour.provenance)
    t.derive("redis_cost", month, n("redis_nodes") * n("price_redis_node_hour") * HOURS_A_MONTH * n("regions"))


def choose_size(prices: Prices, gb: float, gets_s: float, inputs: Inputs) -> Size | None:
    """Choose the cheapest size for *gb* of data and *gets_s* GETs/s; None if all are too small."""
    fitting = [
        size
        for size in prices.redis
        if gb * fullest_shard(size.shards, inputs.kept + 2) <= size.gb * (1 - inputs.redis_reserved)
        and gets_s <= size.gets_s * inputs.redis_utilisation
    ]
    return min(fitting, key=lambda each: each.hour.amount, default=None)


def fullest_shard(shards: int, releases: float) -> float:
    """Return the data of the fullest shard as a multiple of an even share."""
    return 1 + sqrt(2 * log(shards) * shards / (REDIS_BUCKETS * releases))


def _totals(t: FigureTable, inputs: Inputs, month: str) -> None:
    n = t.term
    given = inputs.train_node_hour is not None
    price = n("train_node_hour") if given else n("train_cpus") * n("price_cpu_hour")
    price = t.derive("train_price", "a node and hour", price)
    t.derive("training_cost", month, n("train_nodes") * n("train_hours") * price * n("publishes"))
    costs = possible_costs(t)
    cheapest = min(costs, key=lambda name: costs[name])
    formula = f"the least of {' and '.join(f'{name}_cost' for name in costs)}: {cheapest}"
    t.derive("cheapest_cost", month, costs[cheapest], formula)
    shared = n("pods_cost") + n("cluster_month") + n("training_cost")
    for total, store in (("cosmos_total", f"{inputs.capacity}_cost"), ("redis_total", "redis_cost")):
        if isinstance(impossible := t[store].value, str):
            t.enter(total, impossible, "", store)
        else:
            t.derive(total, month, n(store) + (n("gateway_month") + shared if total == "cosmos_total" else shared))


def _today(t: FigureTable, month: str) -> None:
    n = t.term
    t.derive("short_ru", "RU/s", most(0, n("serve_ru") - n("have_ru")))
    names = ("have_ru", "reads_plain_ru", "have_skew", "have_partitions")
    have, reads, skew, partitions = (t[name].number for name in names)
    formula = "reads of the busiest hour above the share of have_ru of have_partitions, by reads_plain_ru; have_skew"
    refused = refused_share(have, reads, skew, int(partitions))
    t.derive("refused_reads", "share", refused, formula, "reads alone, without headroom; retries make it worse")
    t.derive("today_use", "share", n("reads_plain_ru") / n("have_ru"), source="reads in the busiest hour")
    over = t.derive("over_ru", "RU/s", most(0, n("have_ru") - n("serve_ru")))
    t.derive("today_cost", month, _manual(t, n("have_ru")))
    t.derive("over_cost", month, _manual(t, over))


def usable_gb(plan: CapacityPlan) -> float:
    """Return the GB of releases that the chosen size of Redis holds."""
    size_gb, fullest = plan.number("redis_size_gb"), plan.number("redis_fullest")
    return size_gb * (1 - plan.inputs.redis_reserved) / fullest if fullest else 0.0


def break_even_rps(plan: CapacityPlan) -> float | None:
    """Return the rate of the busiest hour from which on Redis costs less than the cheapest capacity of Cosmos DB.

    0 if it always does, None if it never does.
    """
    rates = [10 ** (step / 2) for step in range(*BREAK_EVEN_STEPS)]
    cheaper = [rate for rate in rates if _redis_is_cheaper(plan, rate)]
    if not cheaper:
        return None
    if cheaper[0] == rates[0]:
        return 0.0
    low, high = rates[rates.index(cheaper[0]) - 1], cheaper[0]
    while high / low > BREAK_EVEN_PRECISION:
        middle = sqrt(low * high)
        low, high = (low, middle) if _redis_is_cheaper(plan, middle) else (middle, high)
    return high


def _redis_is_cheaper(plan: CapacityPlan, rate: float) -> bool:
    figures = plan.with_inputs(peak_rps=rate).figures
    return bool(figures["redis_cost"].unit) and figures["redis_cost"].number < figures["cheapest_cost"].number


def refused_share(have_ru: float, reads_ru: float, skew: float, partitions: int) -> float:
    """Return the share of 429s if *reads_ru* RU/s are needed and *have_ru* provisioned.

    The fullest partition gets *skew* times an even share.
    """
    if reads_ru <= 0:
        return 0.0
    allowed, fullest = have_ru / reads_ru / partitions, min(1.0, skew / partitions)
    return max(0.0, fullest - allowed) + max(0.0, 1 - fullest - allowed * (partitions - 1))
