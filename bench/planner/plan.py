"""The plan: sizes, workload, Cosmos DB, Redis and pods for one set of inputs, and the figures that are shown."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from hotplate.bench.planner.cosmos import GB, derive_costs, derive_demand, possible_costs
from hotplate.bench.planner.demand import CacheHits, cache_hits, hottest_share
from hotplate.bench.planner.figures import Ledger, PlanFigure
from hotplate.bench.planner.inputs import KEY_BYTES, KNOWN, Inputs, SourcedInputs, hourly_shares
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices, Size
from hotplate.stores.cosmos.charges import Charges

ITEM_BYTES = len('{"id":"","score":0.1234}')
TITLE_BYTES = len(',"title":""')
SEPARATOR_BYTES = len(",\n")
# Quotes that an item of a list is written with, each of which takes a backslash inside of a JSON string.
QUOTES = 6
TITLE_QUOTES = 4
# An item of Cosmos DB without its id and its list.
SKELETON_BYTES = len('{"id":"user.","t":""}')
# As `hotplate.stores.redis.store` has them, which needs the extra `redis`; a test compares the two.
REDIS_ROW_BYTES = 80
REDIS_ALLOCATED = 1.08
REDIS_HEAD_BYTES = len("hotplate:{7f3a0c5e9d12.255}:")
# Below this a cluster cannot elect a primary: https://redis.io/docs/latest/operate/oss_and_stack/management/scaling/
LEAST_PRIMARIES = 3

# What a person is shown, in this order and under these words; the other figures are for those who ask why.
OUTLINE = {
    "Today": {
        "provisioned": "have_ru", "used by reads in the busiest hour": "today_use", "too many": "over_ru",
        "cost": "today_cost", "of it for nothing": "over_cost",
    },
    "Load": {
        "lists": "rows", "requests/s, busiest hour and region": "peak_region", "answered by a cache": "hits",
        "reads/s of the store": "reads_s", "a stored list": "stored_bytes",
    },
    "Cosmos DB: request units": {
        "an item": "item_bytes", "a read": "mean_read_ru", "a written list": "list_write_ru",
        "a list read back": "read_back_ru", "a publish": "publish_total_ru",
        "for reads, headroom included": "reads_ru", "provisioned for reads": "serve_ru",
        "for publishing": "publish_ru_s", "together, while a release is published": "together_ru",
        "a publish takes": "publish_hours",
    },
    "Cosmos DB: containers": {
        "containers while publishing": "containers", "partitions of a new release": "new_partitions",
        "top of autoscale": "autoscale_top_ru", "of it reached, as a mean": "autoscale_mean_ru",
        "partitions of the live one": "partitions", "the same in all regions": "partitions_all",
        "a partition's share": "partition_ru",
        "hottest user by it": "hot_key_load", "fullest partition by it": "hot_partition_load",
        "least RU/s of a kept release": "least_ru", "storage, all releases": "stored_gb",
    },
    "Redis": {
        "memory, all releases": "redis_gb", "Azure Managed Redis, balanced": "redis_size", "shards": "redis_shards",
        "nodes of an instance": "redis_nodes",
    },
    "Redis Cluster of your own": {
        "primaries by memory": "cluster_by_memory", "primaries by what a core answers": "cluster_by_core",
        "primaries": "cluster_primaries", "nodes, replicas included": "cluster_nodes",
        "users that a lost primary has": "cluster_lost_share",
    },
    "Pods": {
        "by Little's law": "pods_by_little", "by what a pod can answer": "pods_by_capacity", "at least": "min_pods",
        "in a region, the most of these": "pods_region", "in a zone": "pods_zone", "in all": "pods",
    },
    "Autoscaler of a region": {
        "target: CPU of a pod": "pod_utilisation", "target: requests of a pod": "hpa_pod_rps",
        "pods at most": "hpa_most_pods",
    },
    "Cost a month": {
        "Cosmos DB, manual": "manual_cost", "Cosmos DB, autoscale, as reached": "autoscale_cost",
        "the same, all month at its top": "autoscale_most_cost",
        "Cosmos DB, serverless": "serverless_cost", "Redis": "redis_cost", "Redis Cluster": "cluster_cost",
        "pods": "pods_cost",
        "Cosmos DB and pods": "cosmos_total", "Redis and pods": "redis_total",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """What a load will take, figure by figure; lives as long as its report."""

    sourced: SourcedInputs
    prices: Prices = field(repr=False)
    charges: Charges = field(repr=False)
    figures: Mapping[str, PlanFigure] = field(repr=False)

    @property
    def inputs(self) -> Inputs:
        """The inputs that it rests on."""
        return self.sourced.inputs

    def number(self, name: str) -> float:
        """Return the value of a figure; one that is not a number counts as 0."""
        value = self.figures[name].value
        return value if isinstance(value, int | float) else 0.0

    @property
    def cheapest(self) -> str:
        """The cheapest way to pay for RU/s."""
        costs = possible_costs(self.figures)
        return min(costs, key=lambda name: costs[name])

    def outline(self) -> Iterator[tuple[str, list[tuple[str, PlanFigure]]]]:
        """Yield the figures that a person is shown, group by group, each with its words; no group without figures."""
        for group, lines in OUTLINE.items():
            if shown := [(words, self.figures[name]) for words, name in lines.items() if name in self.figures]:
                yield group, shown

    def with_inputs(self, **changes: Any) -> "CapacityPlan":  # noqa: ANN401 -- inputs by name; `replace` refuses others
        """Return the plan calculated again with some inputs changed."""
        changed = SourcedInputs(replace(self.inputs, **changes), self.sourced.sources)
        return calculate(changed, self.prices, self.charges)

    def with_prices(self, direction: int) -> "CapacityPlan":
        """Return the plan calculated again with all prices as high (1), or as low (-1), as they may well be."""
        return calculate(self.sourced, self.prices.moved(direction), self.charges)


def calculate(sourced: SourcedInputs, prices: Prices, charges: Charges) -> CapacityPlan:
    """Calculate a plan; pure: the same inputs, prices and charges give the same figures."""
    ledger, inputs = Ledger(), sourced.inputs
    _enter_inputs(ledger, sourced, prices)
    _derive_sizes(ledger, inputs)
    _derive_workload(ledger, inputs)
    derive_demand(ledger, inputs, charges)
    _derive_pods(ledger, inputs)
    derive_costs(ledger, inputs)
    _derive_redis(ledger, inputs, prices)
    if inputs.redis_node_gb is not None:
        _derive_cluster(ledger)
    for total, cost in (("cosmos_total", f"{inputs.capacity}_cost"), ("redis_total", "redis_cost")):
        value = ledger.figures[cost].value
        if isinstance(value, str):
            ledger.input(total, value, "", cost)
        else:
            ledger.derive(total, "USD/month", f"{cost} + pods_cost")
    if inputs.have_ru is not None:
        _derive_today(ledger)
    return CapacityPlan(sourced, prices, charges, ledger.figures)


def _enter_inputs(ledger: Ledger, sourced: SourcedInputs, prices: Prices) -> None:
    """Enter all that the plan rests on: the inputs that have a value, and the prices."""
    for name, known in KNOWN.items():
        value = getattr(sourced.inputs, name)
        if value is not None:
            shown = _format_profile(value) if name == "profile" else value
            ledger.input(name, shown, known.metadata["unit"], sourced.source(name))
    for name, price in prices.by_name().items():
        ledger.input(f"usd_{name}", price.usd, f"a {price.per}", price.provenance)


def _format_profile(profile: str | tuple[float, ...]) -> str:
    """Write a profile with its numbers, as a name says nothing of how a day goes."""
    if isinstance(profile, str):
        return f"{profile}: {_format_profile(hourly_shares(profile))}"
    if len(set(profile)) == 1:
        return f"{profile[0]:g} in each hour"
    return ", ".join(f"{part:g}" for part in profile)


def _derive_sizes(ledger: Ledger, inputs: Inputs) -> None:
    """Derive how large a list is: as JSON, as stored, as an item of Cosmos DB, and as a row in Redis."""
    title = f" + {TITLE_BYTES} + title_chars" if inputs.title_chars > 0 else ""
    formula = f"list_length * ({ITEM_BYTES} + item_id_chars{title}) + {SEPARATOR_BYTES} * (list_length - 1)"
    ledger.derive("json_bytes", "bytes", formula)
    formula = "json_bytes * zstd_share" if inputs.encoding == "zstd" else "json_bytes"
    ledger.derive("stored_bytes", "bytes", formula if inputs.list_bytes is None else "list_bytes")
    if inputs.encoding == "zstd":
        formula, source = "ceil(stored_bytes / 3) * 4", "base64"
    else:
        quotes = QUOTES + (TITLE_QUOTES if inputs.title_chars > 0 else 0)
        formula = f"stored_bytes + {quotes} * list_length + list_length - 1"
        source = "JSON in JSON: a backslash for each quote and each end of line"
    ledger.derive("text_bytes", "bytes", formula, source=source)
    formula = f"{SKELETON_BYTES} + ceil(user_id_chars * 4 / 3) + text_bytes + system_bytes"
    source = 'an item {"id":"user.ID","t":"…"} with the id in base64url'
    ledger.derive("item_bytes", "bytes", formula, source=source)
    formula = f"stored_bytes + {KEY_BYTES} + user_id_chars + {REDIS_HEAD_BYTES} + {REDIS_ROW_BYTES}"
    source = "the key, its prefix and release, and what Redis 7 keeps with it: within -10 and +13 % of used_memory"
    ledger.derive("redis_row_bytes", "bytes", f"({formula}) * {REDIS_ALLOCATED}", source=source)


def _derive_workload(ledger: Ledger, inputs: Inputs) -> None:
    """Derive users, rows and rates as they will have grown, and what of them reaches the store."""
    ledger.derive("growth", "", "(1 + growth_percent / 100) ** months")
    users = ledger.derive("users_then", "users", "users * growth")
    ledger.derive("rows", "lists", "(users + items) * growth")
    ledger.derive("peak_then", "requests/s", "peak_rps * growth")
    ledger.derive("peak_region", "requests/s", "peak_then * region_share")
    mean = fmean(hourly_shares(inputs.profile))
    ledger.derive("mean_of_peak", "share", "the mean of profile by its busiest hour", mean)
    _derive_cache_hits(ledger, inputs, max(1, round(users)))
    ledger.derive("reads_s", "reads/s", "peak_region * (1 - hits)")


def _derive_cache_hits(ledger: Ledger, inputs: Inputs, users: int) -> None:
    """Derive the hit rate of the cache, and the hottest user's share of what misses."""
    exponent = inputs.zipf or 0.0
    if inputs.hit_rate is not None:
        cached = CacheHits(inputs.hit_rate, inputs.hit_rate)
        hits = ledger.derive("hits", "share", "hit_rate")
    else:
        cached = cache_hits(users, exponent, inputs.cache_entries)
        formula = f"Che's approximation: cache_entries of users_then, {'all alike' if inputs.zipf is None else 'zipf'}"
        source = "H. Che et al., Hierarchical Web caching systems, IEEE JSAC 20(7), 2002; one cache, never cleared"
        hits = ledger.derive("hits", "share", formula, cached.hit_rate, source=source)
    if inputs.hot_share is not None:
        hottest = ledger.derive("hot_user", "share", "hot_share")
    elif inputs.zipf is None:
        hottest = ledger.derive("hot_user", "share", "1 / max(1, round(users_then))")
    else:
        formula = "chance of the first of users_then, zipf"
        hottest = ledger.derive("hot_user", "share", formula, hottest_share(users, exponent))
    missed = hottest * (1 - cached.hottest_hit_rate) / (1 - hits) if hits < 1 else 0.0
    formula = "hot_user by the rest, if the cache answers the hottest as it does" if hits else "hot_user"
    ledger.derive("hot_read", "share", formula, missed)


def _derive_pods(ledger: Ledger, inputs: Inputs) -> None:
    """Derive pods, by Little's law and by what a pod can answer, and their cost."""
    formula = "ceil(peak_region * request_ms / 1000 / pod_utilisation / pod_concurrency)"
    ledger.derive("pods_by_little", "pods", formula, source="Little's law: requests in a pod = rate * time")
    formula = "1000000 * pod_cpus / request_cpu_us" if inputs.pod_rps is None else "pod_rps"
    ledger.derive("pod_capacity", "requests/s", formula)
    ledger.derive("pods_by_capacity", "pods", "ceil(peak_region / pod_capacity / pod_utilisation)")
    ledger.derive("pods_region", "pods", "max(pods_by_little, pods_by_capacity, min_pods)")
    formula = "pod_utilisation * min(pod_capacity, pod_concurrency * 1000 / request_ms)"
    ledger.derive("hpa_pod_rps", "requests/s", formula, source="the less by both of these; pods are added above it")
    source = "room for twice the load of the busiest hour, and for one pod that is lost"
    ledger.derive("hpa_most_pods", "pods", "max(min_pods, ceil(2 * peak_region / hpa_pod_rps) + 1)", source=source)
    if inputs.zones > 1:
        source = "the other zones carry what one may lose"
        ledger.derive("pods_zone", "pods", "ceil(pods_region / (zones - 1))", source=source)
        ledger.derive("pods", "pods", "pods_zone * zones * regions")
    else:
        ledger.derive("pods", "pods", "pods_region * regions")
    ledger.derive("pods_cost", "USD/month", f"pods * pod_cpus * usd_cpu_hour * {HOURS_A_MONTH}")


def _derive_redis(ledger: Ledger, inputs: Inputs, prices: Prices) -> None:
    """Derive memory for the live, the kept and the next release, the instance's size, and cost."""
    formula = f"rows * redis_row_bytes * (1 + kept + 1) / {GB}"
    gb = ledger.derive("redis_gb", "GB", formula, source="live, kept and the next one")
    size = choose_size(prices, gb, ledger.number("reads_s"), inputs)
    if size is None:
        largest = prices.redis[-1]
        obstacle = f"not possible: {gb:,.0f} GB or its reads/s are more than {largest.name}, the largest, holds"
        ledger.input("redis_size", "none", "", "prices file")
        ledger.input("redis_cost", f"{obstacle}; plan a Redis Cluster: --redis-node-gb", "", "one endpoint is used")
        return
    described = f"{size.gb:g} GB, {size.vcpus} vCPUs; {size.hour.provenance}"
    ledger.input("redis_size", size.name, "", f"the cheapest that is enough: {described}")
    ledger.input("redis_size_gb", size.gb, "GB", "prices file")
    ledger.input("redis_size_gets_s", size.gets_s, "GETs/s", "prices file")
    source = "prices file: https://learn.microsoft.com/azure/redis/architecture"
    ledger.input("redis_shards", size.shards, "shards", source)
    ledger.input("usd_redis_node_hour", size.hour.usd, "USD", size.hour.provenance)
    formula = f"redis_nodes * usd_redis_node_hour * {HOURS_A_MONTH} * regions"
    ledger.derive("redis_cost", "USD/month", formula)


def choose_size(prices: Prices, gb: float, gets_s: float, inputs: Inputs) -> Size | None:
    """Choose the cheapest size that holds *gb* and answers *gets_s*; None if the largest does not."""
    fitting = [
        size
        for size in prices.redis
        if gb <= size.gb * (1 - inputs.redis_reserved) and gets_s <= size.gets_s * inputs.redis_utilisation
    ]
    return min(fitting, key=lambda each: each.hour.usd, default=None)


def _derive_cluster(ledger: Ledger) -> None:
    """Derive primaries, nodes and cost of a Redis Cluster of one's own, by memory and by what a core answers."""
    by_memory = "ceil(redis_gb / (redis_node_gb * (1 - redis_reserved)))"
    by_core = "ceil(reads_s * redis_read_us / 1000000 / redis_utilisation)"
    ledger.derive("cluster_by_memory", "primaries", by_memory)
    ledger.derive("cluster_by_core", "primaries", by_core, source="one thread of redis-server answers lookups")
    formula = f"max({LEAST_PRIMARIES}, cluster_by_memory, cluster_by_core)"
    ledger.derive("cluster_primaries", "primaries", formula)
    ledger.derive("cluster_nodes", "nodes", "cluster_primaries * redis_nodes * regions")
    ledger.derive("cluster_lost_share", "share", "1 / cluster_primaries", source="users whose primary is lost")
    formula = f"cluster_nodes * redis_node_gb * usd_redis_gb_hour * {HOURS_A_MONTH}"
    ledger.derive("cluster_cost", "USD/month", formula)


def _derive_today(ledger: Ledger) -> None:
    """Compare what is provisioned by hand today with what its container needs."""
    source = "what is provisioned by hand today, less what is needed"
    ledger.derive("over_ru", "RU/s", "have_ru - serve_ru", source=source)
    for cost, ru in (("today_cost", "have_ru"), ("over_cost", "over_ru")):
        ledger.derive(cost, "USD/month", f"{ru} / 100 * usd_ru_hour * {HOURS_A_MONTH} * regions")
    ledger.derive("today_use", "share", "reads_plain_ru / have_ru", source="reads in the busiest hour")
