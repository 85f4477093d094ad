"""What Cosmos DB takes in RU/s, containers, physical partitions and storage, and what each way to pay for it costs."""

from dataclasses import dataclass
from math import ceil
from statistics import fmean

from bench.planner.demand import needed_ru, skew_factor, write_charge
from bench.planner.figures import Ledger, round_up
from bench.planner.inputs import CAPACITIES, Inputs, hourly_shares
from stores.cosmos.charges import Charges
from stores.cosmos.url import (
    AUTOSCALE_MIN,
    AUTOSCALE_STEP,
    INITIAL_PARTITION_RU,
    MANUAL_MIN,
    MANUAL_STEP,
    MAX_RU,
    PARTITION_RU,
    Throughput,
    minimum_ru,
)
from stores.prices import HOURS_A_MONTH, Prices

GB = 1000**3
PARTITION_GB = 50
# Of the container of the catalogue.
CONTROL_RU = MANUAL_MIN
# Consistency levels whose reads are charged twice.
DOUBLED = ("bounded", "strong")
CHARGES = "the file of charges, ours or that of --charges: a source for each coefficient"
LIMITS = "https://learn.microsoft.com/azure/cosmos-db/concepts-limits"
PARTITIONS = "https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices"

SERVERLESS_RU, SERVERLESS_PARTITIONS, SERVERLESS_MORE_RU = 5_000, 5, 1_000
SERVERLESS = "https://learn.microsoft.com/azure/cosmos-db/concepts-limits: RU/s of a serverless container; one region"
# An autoscale range begins at a tenth of its top, and that much is always paid for.
FLOOR = 10
# Hours of a publish in which the old and the new live release are both scaled to serve.
OVERLAP_HOURS = 1


@dataclass(frozen=True, slots=True)
class ServingContainer:
    """What the container that is read needs, were it of so many partitions; all but those in RU/s."""

    partitions: int
    partitions_made: int
    reads_ru: float
    highest_ru: int
    least_ru: int
    ru: int
    creation_ru: int


def derive_demand(ledger: Ledger, inputs: Inputs, charges: Charges) -> None:
    """Derive what is to be provisioned, whatever it costs, from the sizes and the workload in the ledger."""
    _charges(ledger, inputs, charges)
    _publishing(ledger, inputs)
    copies, formula = (1 + inputs.kept + 1, "1 + kept + 1") if inputs.publishing == "release" else (1, "1")
    gb = ledger.derive("release_gb", _release_bytes(ledger) / GB, "GB", f"rows * item_bytes / {GB}")
    ledger.derive("copies", copies, "releases", formula, source="live, kept and, while it is written, the next")
    ledger.derive("stored_gb", gb * copies, "GB", "release_gb * copies")
    _hot_key(ledger, _serving(ledger, inputs, gb))
    publishes = HOURS_A_MONTH / inputs.refresh_hours
    ledger.derive("publishes", publishes, "a month", f"{HOURS_A_MONTH} / refresh_hours")
    _together(ledger, inputs)


def _charges(ledger: Ledger, inputs: Inputs, charges: Charges) -> None:
    """Derive the charges of a mean read, those for users without a list included, and of a written list."""
    item_bytes = ledger.number("item_bytes")
    strong = inputs.consistency in DOUBLED
    if inputs.read_ru is not None:
        read = ledger.derive("point_read_ru", inputs.read_ru, "RU", "read_ru")
    else:
        read = charges.read(round(item_bytes), strong=strong)
        formula = f"charge of a point read of item_bytes{', doubled for its consistency' if strong else ''}"
        ledger.derive("point_read_ru", read, "RU", formula, source=CHARGES)
    missing = charges.not_found(strong=strong)
    ledger.derive(
        "missed_read_ru", missing, "RU", "charge of a read that finds nothing, by consistency", source=CHARGES
    )
    unknown = inputs.unknown_share
    formula = "(1 - unknown_share) * point_read_ru + unknown_share * missed_read_ru"
    ledger.derive("mean_read_ru", (1 - unknown) * read + unknown * missing, "RU", formula)
    terms = 0 if inputs.indexing == "none" else inputs.indexed_terms
    if inputs.write_ru is not None:
        ledger.derive("list_write_ru", inputs.write_ru, "RU", "write_ru")
    else:
        replaced = inputs.publishing == "in-place"
        what = "replacing" if replaced else "creating"
        indexed = "indexed_terms" if terms else "no terms, as indexing says"
        written = write_charge(charges, item_bytes, terms=terms, replaced=replaced)
        formula = f"charge of {what} an item of item_bytes with {indexed}, by publishing"
        ledger.derive("list_write_ru", written, "RU", formula, source=CHARGES)


def _publishing(ledger: Ledger, inputs: Inputs) -> None:
    """Derive RU in all, RU/s reserved, and hours that one publish takes."""
    lists, write_ru = ledger.number("rows"), ledger.number("list_write_ru")
    total = ledger.derive("publish_total_ru", lists * write_ru, "RU", "rows * list_write_ru")
    if inputs.publish_ru is None:
        wanted, formula = total / inputs.window_hours / 3600, "publish_total_ru / (window_hours * 3600)"
    else:
        wanted, formula = float(inputs.publish_ru), "publish_ru"
    least = MANUAL_MIN if inputs.publishing == "release" else MANUAL_STEP
    reserve = min(MAX_RU, max(least, round_up(wanted, MANUAL_STEP)))
    ledger.derive("publish_ru_s", reserve, "RU/s", f"min({MAX_RU}, max({least}, round_up({formula}, {MANUAL_STEP})))")
    ledger.derive("publish_hours", total / reserve / 3600, "hours", "publish_total_ru / publish_ru_s / 3600")


def _serving(ledger: Ledger, inputs: Inputs, gb: float) -> ServingContainer:
    """Derive the RU/s and the physical partitions of the container that is read.

    What the fullest partition needs depends on how many there are, and how many there are on what it needs, so the
    number of partitions is raised until both agree.
    """
    by_gb = max(1, ceil(gb / PARTITION_GB))
    found = _serving_with(ledger, inputs, by_gb, gb)
    while found.partitions_made > found.partitions:
        found = _serving_with(ledger, inputs, found.partitions_made, gb)
    in_place = inputs.publishing == "in-place"
    wanted = f"reads_ru + publish_ru_s, {MANUAL_STEP}" if in_place else f"reads_ru, {MANUAL_STEP}"
    created = f"max(have_ru, round_up({wanted}))" if in_place and inputs.have_ru else f"round_up({wanted})"
    ledger.derive("partitions_by_gb", by_gb, "partitions", f"max(1, ceil(release_gb / {PARTITION_GB}))", source=LIMITS)
    ledger.input("partitions", found.partitions, "partitions", "as many as they come to, so that both agree")
    ledger.derive(
        "skew", skew_factor(ledger.number("hot_read"), found.partitions), "", "1 + hot_read * (partitions - 1)"
    )
    plain = ledger.number("reads_s") * ledger.number("mean_read_ru")
    ledger.derive("reads_plain_ru", plain, "RU/s", "reads_s * mean_read_ru")
    ledger.derive("reads_ru", found.reads_ru, "RU/s", "reads_plain_ru * skew / ru_utilisation")
    ledger.derive("highest_ru", found.highest_ru, "RU/s", created if in_place else f"max(publish_ru_s, {created})")
    least = f"round_up(max({MANUAL_MIN}, release_gb, highest_ru / 100), {MANUAL_STEP})"
    ledger.derive("least_ru", found.least_ru, "RU/s", least, source=LIMITS)
    ledger.derive("serve_ru", found.ru, "RU/s", f"max(round_up(reads_ru, {MANUAL_STEP}), least_ru)")
    ledger.derive(
        "creation_ru",
        found.creation_ru,
        "RU/s",
        f"min({MAX_RU}, max(highest_ru, serve_ru))",
        source="what a container is created with",
    )
    made = f"ceil(creation_ru / {INITIAL_PARTITION_RU})"
    ledger.derive(
        "new_partitions", Throughput(found.creation_ru).initial_partitions, "partitions", made, source=PARTITIONS
    )
    formula = f"max(new_partitions, partitions_by_gb, ceil(min({MAX_RU}, serve_ru) / {PARTITION_RU}))"
    ledger.derive(
        "partitions", found.partitions, "partitions", formula, source="they stay, whatever RU/s are taken away"
    )
    return found


def _serving_with(ledger: Ledger, inputs: Inputs, partitions: int, gb: float) -> ServingContainer:
    """Calculate what serving takes with so many partitions, and how many a container that can give it has."""
    hot_share, reserve = ledger.number("hot_read"), ledger.number("publish_ru_s")
    reads_s, read_ru = ledger.number("reads_s"), ledger.number("mean_read_ru")
    needed = needed_ru(reads_s, read_ru, hot_share=hot_share, partitions=partitions)
    wanted = needed / inputs.ru_utilisation
    if inputs.publishing == "in-place":
        highest = max(inputs.have_ru or 0, round_up(wanted + reserve, MANUAL_STEP))
    else:
        highest = max(int(reserve), round_up(wanted, MANUAL_STEP))
    least = minimum_ru(highest, int(gb * GB), autoscale=False)
    serve = max(round_up(wanted, MANUAL_STEP), least)
    created = min(MAX_RU, max(highest, serve))
    made = max(Throughput(created).initial_partitions, Throughput(min(MAX_RU, serve)).partitions_needed)
    return ServingContainer(partitions, max(partitions, made), wanted, highest, least, serve, created)


def _hot_key(ledger: Ledger, serving: ServingContainer) -> None:
    """Compare the hottest key, and the partition that holds it, with a partition's share."""
    share = ledger.derive("partition_ru", serving.ru / serving.partitions, "RU/s", "serve_ru / partitions")
    reads_ru, hot_share = ledger.number("reads_s") * ledger.number("mean_read_ru"), ledger.number("hot_read")
    hot = ledger.derive("hot_key_ru", reads_ru * hot_share, "RU/s", "reads_s * hot_read * mean_read_ru")
    ledger.derive("hot_key_load", hot / share, "share", "hot_key_ru / partition_ru")
    others = reads_ru * (1 - hot_share) / serving.partitions
    formula = "(hot_key_ru + reads_s * (1 - hot_read) * mean_read_ru / partitions) / partition_ru"
    ledger.derive("hot_partition_load", (hot + others) / share, "share", formula)


def _together(ledger: Ledger, inputs: Inputs) -> None:
    """Derive what is provisioned in all while a release is published."""
    if inputs.publishing == "in-place":
        ledger.derive("containers", 1, "containers", "1")
        both = round_up(ledger.number("reads_ru") + ledger.number("publish_ru_s"), MANUAL_STEP)
        formula = f"max(serve_ru, round_up(reads_ru + publish_ru_s, {MANUAL_STEP}))"
        ledger.derive("together_ru", max(ledger.number("serve_ru"), both), "RU/s", formula)
        return
    source = "live, kept, the next one, and control"
    ledger.derive("containers", 1 + inputs.kept + 1 + 1, "containers", "1 + kept + 1 + 1", source=source)
    kept_ru = inputs.kept * ledger.number("least_ru")
    total = ledger.number("serve_ru") + kept_ru + ledger.number("creation_ru") + CONTROL_RU
    formula, source = f"serve_ru + kept * least_ru + creation_ru + {CONTROL_RU}", "in the hours of a publish"
    ledger.derive("together_ru", total, "RU/s", formula, source=f"live, kept, draft and control, {source}")


def _release_bytes(ledger: Ledger) -> float:
    return ledger.number("rows") * ledger.number("item_bytes")


def autoscale_top(wanted: float, highest: int, release_bytes: float) -> int:
    """Return the top of an autoscale range that carries *wanted* RU/s and may be set after *highest*."""
    return max(round_up(wanted, AUTOSCALE_STEP), AUTOSCALE_MIN, minimum_ru(highest, int(release_bytes), autoscale=True))


def derive_costs(ledger: Ledger, inputs: Inputs, prices: Prices) -> dict[str, float | None]:
    """Derive the cost of each way to pay for RU/s, storage included, in USD a month; None where it is not possible."""
    storage = ledger.number("stored_gb") * prices.storage_gb_month.usd * inputs.regions
    ledger.derive("storage_cost", storage, "USD/month", "stored_gb * usd_storage_gb_month * regions")
    costs: dict[str, float | None] = {
        "manual": _manual(ledger, inputs, prices) + storage,
        "autoscale": _autoscale(ledger, inputs, prices) + storage,
    }
    for name, cost in costs.items():
        ledger.derive(f"{name}_cost", cost or 0.0, "USD/month", f"{name}_ru_cost + storage_cost")
    costs["serverless"] = _serverless(ledger, inputs, prices)
    possible = {name: cost for name, cost in costs.items() if cost is not None}
    cheapest = min(possible, key=lambda name: possible[name])
    names = " and ".join(f"{name}_cost" for name in CAPACITIES if name in possible)
    ledger.derive("cheapest_cost", possible[cheapest], "USD/month", f"the least of {names}: {cheapest}")
    return costs


def _manual(ledger: Ledger, inputs: Inputs, prices: Prices) -> float:
    """Derive the cost of manual throughput: each hour that was begun is billed at its highest RU/s."""
    if inputs.publishing == "in-place":
        hours = float(ledger.number("together_ru") * HOURS_A_MONTH)
        ledger.derive("manual_ru_hours", hours, "RU/s-hours", f"together_ru * {HOURS_A_MONTH}")
    else:
        serve_ru = ledger.number("serve_ru")
        lasting = serve_ru + inputs.kept * ledger.number("least_ru") + CONTROL_RU
        per_publish = ledger.number("creation_ru") * ceil(ledger.number("publish_hours")) + serve_ru * OVERLAP_HOURS
        hours = lasting * HOURS_A_MONTH + ledger.number("publishes") * per_publish
        ledger.derive(
            "manual_ru_hours", hours, "RU/s-hours",
            f"(serve_ru + kept * least_ru + {CONTROL_RU}) * {HOURS_A_MONTH} + publishes * (creation_ru"
            f" * ceil(publish_hours) + serve_ru * {OVERLAP_HOURS})",
            source="live, kept and control all month; each publish its hours, and one in which two releases can serve",
        )  # fmt: skip
    formula = "manual_ru_hours / 100 * usd_ru_hour * regions"
    return ledger.derive("manual_ru_cost", prices.ru_hours(hours, regions=inputs.regions), "USD/month", formula)


def _autoscale(ledger: Ledger, inputs: Inputs, prices: Prices) -> float:
    """Derive the cost of autoscale: each hour is billed at what it reached, at least a tenth of the top."""
    in_place = inputs.publishing == "in-place"
    reads_ru, publish_ru, release_bytes = (
        ledger.number("reads_ru"),
        ledger.number("publish_ru_s"),
        _release_bytes(ledger),
    )
    publish_top = autoscale_top(publish_ru, 0, 0)
    if not in_place:
        partitions = Throughput(publish_top, autoscale=True).initial_partitions
        formula = f"ceil(round_up(max({AUTOSCALE_MIN}, publish_ru_s), {AUTOSCALE_STEP}) / {PARTITION_RU})"
        ledger.derive("autoscale_new_partitions", partitions, "partitions", formula, source=PARTITIONS)
    wanted = reads_ru + (publish_ru if in_place else 0)
    highest = max(0 if in_place else publish_top, autoscale_top(wanted, 0, 0))
    top = autoscale_top(wanted, highest, release_bytes)
    adding = " + publish_ru_s" if in_place else ""
    ledger.derive(
        "autoscale_top_ru", top, "RU/s",
        f"the least that holds reads_ru{adding}, in steps of {AUTOSCALE_STEP}, and a tenth of publish_ru_s before it",
        source="a tenth of the highest top ever is the lowest that may be set",
    )  # fmt: skip
    reached = fmean([max(top / FLOOR, reads_ru * share) for share in hourly_shares(inputs.profile)])
    ledger.derive(
        "autoscale_mean_ru", reached, "RU/s",
        f"the mean over the hours of profile of the larger of autoscale_top_ru / {FLOOR} and reads_ru in that hour",
    )  # fmt: skip
    hours, formula = _autoscale_hours(ledger, inputs, reached, highest)
    ledger.derive("autoscale_ru_hours", hours, "RU/s-hours", formula)
    cost = prices.ru_hours(hours, autoscale=True, regions=inputs.regions)
    formula = "autoscale_ru_hours / 100 * usd_ru_hour * usd_autoscale_factor * regions"
    return ledger.derive("autoscale_ru_cost", cost, "USD/month", formula)


def _autoscale_hours(ledger: Ledger, inputs: Inputs, reached: float, highest: int) -> tuple[float, str]:
    """Calculate RU/s-hours of a month in which serving *reached* so many on average; returns them and the formula."""
    publishes, publish_ru = ledger.number("publishes"), ledger.number("publish_ru_s")
    publish_hours = ceil(ledger.number("publish_hours"))
    if inputs.publishing == "in-place":
        hours = reached * HOURS_A_MONTH + publishes * publish_ru * publish_hours
        return hours, f"autoscale_mean_ru * {HOURS_A_MONTH} + publishes * publish_ru_s * ceil(publish_hours)"
    idle = autoscale_top(0, highest, _release_bytes(ledger)) / FLOOR
    ledger.derive("autoscale_idle_ru", idle, "RU/s", "a tenth of the lowest top that may be set after publish_ru_s")
    lasting = reached + inputs.kept * idle + AUTOSCALE_MIN / FLOOR
    hours = lasting * HOURS_A_MONTH + publishes * (publish_ru * publish_hours + reached * OVERLAP_HOURS)
    return hours, (
        f"(autoscale_mean_ru + kept * autoscale_idle_ru + {AUTOSCALE_MIN} / {FLOOR}) * {HOURS_A_MONTH} + publishes"
        f" * (publish_ru_s * ceil(publish_hours) + autoscale_mean_ru * {OVERLAP_HOURS})"
    )


def _serverless(ledger: Ledger, inputs: Inputs, prices: Prices) -> float | None:
    """Derive the cost of serverless, which bills RU used; None where regions, RU/s or the time to publish forbid it."""
    partitions = max(0, ceil(_release_bytes(ledger) / GB / PARTITION_GB) - SERVERLESS_PARTITIONS)
    ceiling = SERVERLESS_RU + SERVERLESS_MORE_RU * partitions
    formula = (
        f"{SERVERLESS_RU} + {SERVERLESS_MORE_RU} * max(0, ceil(release_gb / {PARTITION_GB}) - {SERVERLESS_PARTITIONS})"
    )
    ledger.derive("serverless_ceiling_ru", ceiling, "RU/s", formula, source=SERVERLESS)
    publish_ru, reads_ru = ledger.number("publish_total_ru"), ledger.number("reads_ru")
    formula = "publish_total_ru / serverless_ceiling_ru / 3600"
    hours = ledger.derive("serverless_publish_hours", publish_ru / ceiling / 3600, "hours", formula)
    mean_ru = ledger.number("reads_plain_ru") * ledger.number("mean_of_peak")
    used = mean_ru * HOURS_A_MONTH * 3600 + ledger.number("publishes") * publish_ru
    formula = f"reads_plain_ru * mean_of_peak * {HOURS_A_MONTH} * 3600 + publishes * publish_total_ru"
    ledger.derive("serverless_used_ru", used, "RU/month", formula)
    obstacles = list[str]()
    if inputs.regions > 1:
        obstacles.append(f"{inputs.regions} regions, and serverless has one")
    if reads_ru > ceiling:
        obstacles.append(f"{reads_ru:,.0f} RU/s for reads, above {ceiling:,}")
    if hours > inputs.refresh_hours:
        obstacles.append(f"a publish takes {hours:.1f} hours at {ceiling:,} RU/s")
    if obstacles:
        ledger.input("serverless_cost", f"not possible: {'; '.join(obstacles)}", "", SERVERLESS)
        return None
    cost = prices.serverless_ru(used) + ledger.number("stored_gb") * prices.storage_gb_month.usd
    formula = "serverless_used_ru / 1000000 * usd_serverless_million_ru + storage_cost"
    return ledger.derive("serverless_cost", cost, "USD/month", formula)
