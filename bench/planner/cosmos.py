"""What Cosmos DB takes in RU/s, containers, physical partitions and storage, and what each way to pay for it costs."""

from collections.abc import Mapping
from statistics import fmean

from hotplate.bench.planner.demand import fullest_zipf_share
from hotplate.bench.planner.figures import Ledger, PlanFigure, round_up
from hotplate.bench.planner.inputs import CAPACITIES, Inputs, hourly_shares
from hotplate.bench.planner.prices import HOURS_A_MONTH
from hotplate.stores.cosmos import url
from hotplate.stores.cosmos.charges import Charges, even_rows, publish_ru

GB = 1000**3
PARTITION_GB = 50
# Of the container of the catalogue.
CONTROL_RU = url.MANUAL_MIN
# Consistency levels whose reads are charged twice.
DOUBLED = ("bounded", "strong")
CHARGES = "the file of charges, ours or that of --charges: a source for each coefficient"
LIMITS = "https://learn.microsoft.com/azure/cosmos-db/concepts-limits"
PARTITIONS = "https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices"

SERVERLESS = "https://learn.microsoft.com/azure/cosmos-db/serverless-performance, read 2026-11-22; no promise"
DYNAMIC = "https://learn.microsoft.com/azure/cosmos-db/autoscale-per-partition-region: accounts since 2023-11-15"
# A poll of the catalogue, as the store makes it: a read of about 1 KB.
POLL_S = 2.0
CATALOGUE_RU = 1.0
# An autoscale range begins at a tenth of its top, and that much is always paid for.
FLOOR = 10
# Hours of a publish in which the old and the new live release are both scaled to serve.
OVERLAP_HOURS = 1


def derive_demand(ledger: Ledger, inputs: Inputs, charges: Charges) -> None:
    """Derive what is to be provisioned, whatever it costs, from the sizes and the workload in the ledger."""
    _charges(ledger, inputs, charges)
    _publishing(ledger, inputs, charges)
    ledger.derive("release_gb", "GB", f"rows * item_bytes / {GB}")
    ledger.derive("copies", "releases", "1 + kept + 1", source="live, kept and, while it is written, the next")
    ledger.derive("stored_gb", "GB", "release_gb * copies")
    _serving(ledger, inputs)
    ledger.derive("partitions_all", "partitions", "partitions * regions")
    _hot_key(ledger)
    ledger.derive("publishes", "a month", f"{HOURS_A_MONTH} / refresh_hours")
    _together(ledger)


def _charges(ledger: Ledger, inputs: Inputs, charges: Charges) -> None:
    """Derive the charges of a mean read, those for users without a list included, and of a written list."""
    item_bytes = ledger.number("item_bytes")
    strong = inputs.consistency in DOUBLED
    if inputs.read_ru is not None:
        ledger.derive("point_read_ru", "RU", "read_ru")
    else:
        formula = f"charge of a point read of item_bytes{', doubled for its consistency' if strong else ''}"
        ledger.derive("point_read_ru", "RU", formula, charges.read(round(item_bytes), strong=strong), source=CHARGES)
    formula = "charge of a read that finds nothing, by consistency"
    ledger.derive("missed_read_ru", "RU", formula, charges.not_found(strong=strong), source=CHARGES)
    formula = "(1 - unknown_share) * point_read_ru + unknown_share * missed_read_ru"
    ledger.derive("mean_read_ru", "RU", formula)
    if inputs.write_ru is not None:
        ledger.derive("list_write_ru", "RU", "write_ru")
        return
    formula = "charge of creating an item of item_bytes without an index"
    ledger.derive("list_write_ru", "RU", formula, charges.create(round(item_bytes), 0), source=CHARGES)


def _publishing(ledger: Ledger, inputs: Inputs, charges: Charges) -> None:
    """Derive RU in all, RU/s reserved, and hours that one publish takes."""
    size, rows = round(ledger.number("item_bytes")), round(ledger.number("rows"))
    ledger.derive("read_back_ru", "RU", "charge of a point read of item_bytes", charges.read(size), source=CHARGES)
    lists_ru = rows * (charges.create(size, 0) + charges.read(size))
    rest = sum(publish_ru(charges, even_rows(rows, size)).values()) - lists_ru
    formula = "lists of the keys of rows, the catalogue, the state, containers, and a check before it is served"
    ledger.derive("publish_rest_ru", "RU", formula, rest, source=f"{CHARGES}; as --dry-run of publish has it")
    ledger.derive("publish_total_ru", "RU", "rows * (list_write_ru + read_back_ru) + publish_rest_ru")
    wanted = "publish_total_ru / (window_hours * 3600)" if inputs.publish_ru is None else "publish_ru"
    reserved = f"min({url.MAX_RU}, max({url.MANUAL_MIN}, round_up({wanted}, {url.MANUAL_STEP})))"
    ledger.derive("publish_ru_s", "RU/s", reserved)
    ledger.derive("publish_hours", "hours", "publish_total_ru / publish_ru_s / 3600")


def _serving(ledger: Ledger, inputs: Inputs) -> None:
    """Derive the RU/s and the physical partitions of the container that is read.

    What the fullest partition needs depends on how many there are, and how many there are on what it needs, so the
    number of partitions is raised until both agree.
    """
    formula = f"max(1, ceil(release_gb / {PARTITION_GB}))"
    needed = ledger.derive("partitions_by_gb", "partitions", formula, source=LIMITS)
    partitions = 0.0
    while needed > partitions:
        partitions = needed
        needed = _serving_with(ledger, inputs, int(partitions))


def _serving_with(ledger: Ledger, inputs: Inputs, partitions: int) -> float:
    """Derive what serving takes with so many partitions; return how many a container that can give it has."""
    ledger.input("partitions", partitions, "partitions", "as many as follow from it: both agree")
    _skew(ledger, inputs, partitions)
    ledger.derive("reads_plain_ru", "RU/s", "reads_s * mean_read_ru")
    ledger.derive("reads_ru", "RU/s", "reads_plain_ru * skew / ru_utilisation")
    ledger.derive("highest_ru", "RU/s", f"max(publish_ru_s, round_up(reads_ru, {url.MANUAL_STEP}))")
    least = f"round_up(max({url.MANUAL_MIN}, release_gb, highest_ru / 100), {url.MANUAL_STEP})"
    ledger.derive("least_ru", "RU/s", least, source=LIMITS)
    ledger.derive("serve_ru", "RU/s", f"max(round_up(reads_ru, {url.MANUAL_STEP}), least_ru)")
    source = "what a container is created with"
    ledger.derive("creation_ru", "RU/s", f"min({url.MAX_RU}, max(highest_ru, serve_ru))", source=source)
    ledger.derive("new_partitions", "partitions", f"ceil(creation_ru / {url.INITIAL_PARTITION_RU})", source=PARTITIONS)
    formula = f"max(new_partitions, partitions_by_gb, ceil(min({url.MAX_RU}, serve_ru) / {url.PARTITION_RU}))"
    return ledger.derive("partitions", "partitions", formula, source="they stay, whatever RU/s are taken away")


def _skew(ledger: Ledger, inputs: Inputs, partitions: int) -> None:
    """Derive by how much the fullest partition exceeds an even share: by the Zipf law, or by the hottest."""
    if inputs.zipf is not None and inputs.hot_share is None and inputs.hit_rate is None:
        users = max(1, round(ledger.number("users_then")))
        fullest = fullest_zipf_share(users, inputs.zipf, partitions, inputs.cache_entries)
        formula = "partitions * the share that the fullest has of users_then by zipf, mean over where they may lie"
        ledger.derive("skew", "", formula, partitions * fullest)
    else:
        ledger.derive("skew", "", "1 + hot_read * (partitions - 1)")


def _hot_key(ledger: Ledger) -> None:
    """Compare the hottest key, and the fullest partition, with a partition's share."""
    ledger.derive("partition_ru", "RU/s", "serve_ru / partitions")
    ledger.derive("hot_key_ru", "RU/s", "reads_s * hot_read * mean_read_ru")
    ledger.derive("hot_key_load", "share", "hot_key_ru / partition_ru")
    ledger.derive("hot_partition_load", "share", "reads_plain_ru * skew / partitions / partition_ru")


def _together(ledger: Ledger) -> None:
    """Derive what is provisioned in all while a release is published."""
    ledger.derive("containers", "containers", "1 + kept + 1 + 1", source="live, kept, the next one, and control")
    source = "live, kept, draft and control, in the hours of a publish"
    ledger.derive("together_ru", "RU/s", f"serve_ru + kept * least_ru + creation_ru + {CONTROL_RU}", source=source)


def autoscale_top(wanted: float, highest: float, release_gb: float) -> int:
    """Return the top of an autoscale range that carries *wanted* RU/s and may be set after *highest*."""
    least = url.minimum_ru(int(highest), int(release_gb * GB), autoscale=True)
    return max(round_up(wanted, url.AUTOSCALE_STEP), url.AUTOSCALE_MIN, least)


def derive_costs(ledger: Ledger, inputs: Inputs) -> None:
    """Derive the cost of each way to pay for RU/s, storage included, in USD a month; a text if it is impossible."""
    ledger.derive("storage_cost", "USD/month", "stored_gb * usd_storage_gb_month * regions")
    formula = f"pods * ceil(pod_cpus) * {CATALOGUE_RU:g} / {POLL_S:g}{' * 2' * (inputs.consistency in DOUBLED)}"
    ledger.derive("polls_ru", "RU/s", formula, source="each process of a pod polls the catalogue for a new release")
    _manual(ledger)
    _autoscale(ledger, inputs)
    _serverless(ledger, inputs)
    costs = possible_costs(ledger.figures)
    cheapest = min(costs, key=lambda name: costs[name])
    formula = f"the least of {' and '.join(f'{name}_cost' for name in costs)}: {cheapest}"
    ledger.derive("cheapest_cost", "USD/month", formula, costs[cheapest])


def possible_costs(figures: Mapping[str, PlanFigure]) -> dict[str, float]:
    """Return what each way to pay for RU/s costs in a month, of those that are possible."""
    costs = {name: figures[f"{name}_cost"].value for name in CAPACITIES}
    return {name: cost for name, cost in costs.items() if isinstance(cost, int | float)}


def _manual(ledger: Ledger) -> None:
    """Derive the cost of manual throughput: each hour that was begun is billed at its highest RU/s."""
    formula = f"(serve_ru + kept * least_ru + {CONTROL_RU}) * {HOURS_A_MONTH}"
    formula += f" + publishes * (creation_ru * ceil(publish_hours) + serve_ru * {OVERLAP_HOURS})"
    source = "live, kept and control all month; each publish its hours, and one in which two releases can serve"
    ledger.derive("manual_ru_hours", "RU/s-hours", formula, source=source)
    ledger.derive("manual_cost", "USD/month", "manual_ru_hours / 100 * usd_ru_hour * regions + storage_cost")


def _autoscale(ledger: Ledger, inputs: Inputs) -> None:
    """Derive the cost of autoscale: what is provisioned for the worst hour, and what each region reaches in others.

    Regions and partitions scale by themselves. Each hour is billed at what it reached, at least a tenth of the top:
    reads as they fall due, spread evenly over the regions, without headroom and without what is kept for a failover.
    """
    reads_ru, publish_ru, gb = (ledger.number(name) for name in ("reads_ru", "publish_ru_s", "release_gb"))
    formula = f"ceil(round_up(max({url.AUTOSCALE_MIN}, publish_ru_s), {url.AUTOSCALE_STEP}) / {url.PARTITION_RU})"
    ledger.derive("autoscale_new_partitions", "partitions", formula, source=PARTITIONS)
    highest = autoscale_top(max(reads_ru, publish_ru), 0, 0)
    top = autoscale_top(reads_ru, highest, gb)
    formula = f"the least that holds reads_ru, in steps of {url.AUTOSCALE_STEP}, and a tenth of publish_ru_s before it"
    source = "provisioned in each region; a tenth of the highest top ever is the lowest that may be set"
    ledger.derive("autoscale_top_ru", "RU/s", formula, top, source=source)
    now = ledger.derive("region_reads_ru", "RU/s", "peak_then / regions * (1 - hits) * mean_read_ru")
    larger = f"the larger of autoscale_top_ru / {FLOOR} and region_reads_ru in that hour"
    reached = fmean([max(top / FLOOR, now * share) for share in hourly_shares(inputs.profile)])
    formula = f"the mean over the hours of profile of {larger}"
    ledger.derive("autoscale_mean_ru", "RU/s", formula, reached, source=DYNAMIC)
    formula = "a tenth of the lowest top that may be set after publish_ru_s"
    ledger.derive("autoscale_idle_ru", "RU/s", formula, autoscale_top(0, highest, gb) / FLOOR)
    other = f"publishes * (publish_ru_s * ceil(publish_hours) + {OVERLAP_HOURS} * autoscale_mean_ru) / {HOURS_A_MONTH}"
    other += " + kept * autoscale_idle_ru"
    control = f"{CONTROL_RU} * {HOURS_A_MONTH} / 100 * usd_ru_hour * regions"
    source = "publishes, what is kept, and hours in which two releases can serve, as a mean over the month"
    ledger.derive("autoscale_other_ru", "RU/s", other, source=source)
    usd = f"{HOURS_A_MONTH} / 100 * usd_ru_hour * usd_autoscale_factor * regions"
    for name, live in (("autoscale_cost", "autoscale_mean_ru"), ("autoscale_most_cost", "autoscale_top_ru")):
        ledger.derive(name, "USD/month", f"({live} + autoscale_other_ru) * {usd} + {control} + storage_cost")


def _serverless(ledger: Ledger, inputs: Inputs) -> None:
    """Derive the cost of serverless, which bills RU used; a text if regions, RU/s or time to publish forbid it."""
    formula = f"{url.SERVERLESS_RU} * max(1, ceil(release_gb / {PARTITION_GB}))"
    ceiling = ledger.derive("serverless_ceiling_ru", "RU/s", formula, source=SERVERLESS)
    formula = "publish_total_ru / serverless_ceiling_ru / 3600"
    hours = ledger.derive("serverless_publish_hours", "hours", formula)
    used = "(reads_plain_ru * mean_of_peak + polls_ru)"
    formula = f"{used} * {HOURS_A_MONTH} * 3600 + publishes * publish_total_ru"
    ledger.derive("serverless_used_ru", "RU/month", formula)
    obstacles = list[str]()
    if inputs.regions > 1:
        obstacles.append(f"{inputs.regions} regions, and serverless has one")
    if (reads_ru := ledger.number("reads_ru")) > ceiling:
        obstacles.append(f"{reads_ru:,.0f} RU/s for reads, above {ceiling:,}")
    if (gb := ledger.number("release_gb")) > url.SERVERLESS_BYTES / GB:
        obstacles.append(f"a release of {gb:,.0f} GB, and a container holds {url.SERVERLESS_BYTES / GB:,.0f}")
    if hours > inputs.refresh_hours:
        obstacles.append(f"a publish takes {hours:.1f} hours at {ceiling:,} RU/s")
    if obstacles:
        ledger.input("serverless_cost", f"not possible: {'; '.join(obstacles)}", "", SERVERLESS)
    else:
        formula = "serverless_used_ru / 1000000 * usd_serverless_million_ru + storage_cost"
        ledger.derive("serverless_cost", "USD/month", formula)
