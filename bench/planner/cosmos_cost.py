"""What Cosmos DB costs in a month: manual, autoscale and serverless over a day's profile."""

from math import ceil

from bench.planner.cosmos import CONTROL_RU, GB, PARTITION_GB, PARTITIONS, Need, autoscale_top
from bench.planner.figures import Book
from bench.planner.inputs import CAPACITIES, Inputs
from bench.planner.load import Load
from stores.cosmos.throughput import AUTOSCALE_MIN, AUTOSCALE_STEP, PARTITION_RU, Throughput
from stores.prices import HOURS_A_MONTH, Prices

SERVERLESS_RU, SERVERLESS_PARTITIONS, SERVERLESS_MORE_RU = 5_000, 5, 1_000
SERVERLESS = "https://learn.microsoft.com/azure/cosmos-db/concepts-limits: RU/s of a serverless container; one region"
FLOOR = 10  # an autoscale range begins at its top by ten, and that much is always paid for
FLIP_HOURS = 1  # of a publish, in which the release that goes and the one that comes are both ready to serve


def work_out_cost(book: Book, inputs: Inputs, load: Load, need: Need, prices: Prices) -> dict[str, float | None]:
    """Work out the cost of each way to pay for RU/s, storage included, in USD a month; None where it cannot be."""
    storage = need.stored_gb * prices.storage_gb_month.usd * inputs.regions
    book.work("storage_cost", storage, "USD/month", "stored_gb * usd_storage_gb_month * regions")
    costs: dict[str, float | None] = {
        "manual": _manual(book, inputs, need, prices) + storage,
        "autoscale": _autoscale(book, inputs, load, need, prices) + storage,
    }
    for name, cost in costs.items():
        book.work(f"{name}_cost", cost or 0.0, "USD/month", f"{name}_ru_cost + storage_cost")
    costs["serverless"] = _serverless(book, inputs, load, need, prices)
    possible = {name: cost for name, cost in costs.items() if cost is not None}
    cheapest = min(possible, key=lambda name: possible[name])
    names = " and ".join(f"{name}_cost" for name in CAPACITIES if name in possible)
    book.work("cheapest_cost", possible[cheapest], "USD/month", f"the least of {names}: {cheapest}")
    return costs


def _manual(book: Book, inputs: Inputs, need: Need, prices: Prices) -> float:
    """Work out RU/s by hand: what is provisioned is paid for, each hour that was begun at its highest."""
    if inputs.publishing == "in-place":
        hours = float(need.in_place_ru * HOURS_A_MONTH)
        book.work("manual_ru_hours", hours, "RU/s-hours", f"together_ru * {HOURS_A_MONTH}")
    else:
        lasting = need.serve_ru + inputs.kept * need.kept_ru + CONTROL_RU
        per_publish = need.born_ru * ceil(need.publish_hours) + need.serve_ru * FLIP_HOURS
        hours = lasting * HOURS_A_MONTH + need.publishes * per_publish
        book.work(
            "manual_ru_hours", hours, "RU/s-hours",
            f"(serve_ru + kept * least_ru + {CONTROL_RU}) * {HOURS_A_MONTH} + publishes * (born_ru"
            f" * ceil(publish_hours) + serve_ru * {FLIP_HOURS})",
            source="live, kept and control all month; each publish its hours, and one in which two releases can serve",
        )  # fmt: skip
    formula = "manual_ru_hours / 100 * usd_ru_hour * regions"
    return book.work("manual_ru_cost", prices.ru_hours(hours, regions=inputs.regions), "USD/month", formula)


def _autoscale(book: Book, inputs: Inputs, load: Load, need: Need, prices: Prices) -> float:
    """Work out autoscale: each hour costs what it reached, at least a tenth of the top, at a higher price."""
    in_place = inputs.publishing == "in-place"
    publish_top = autoscale_top(need.publish_ru, 0, 0)
    if not in_place:
        born = Throughput(publish_top, autoscale=True).partitions_at_birth
        formula = f"ceil(up(max({AUTOSCALE_MIN}, publish_ru_s), {AUTOSCALE_STEP}) / {PARTITION_RU})"
        book.work("autoscale_partitions_born", born, "partitions", formula, source=PARTITIONS)
    wanted = need.reads_ru + (need.publish_ru if in_place else 0)
    highest = max(0 if in_place else publish_top, autoscale_top(wanted, 0, 0))
    top = autoscale_top(wanted, highest, need.release_bytes)
    adding = " + publish_ru_s" if in_place else ""
    book.work(
        "autoscale_top_ru", top, "RU/s",
        f"the least that holds reads_ru{adding}, in steps of {AUTOSCALE_STEP}, and a tenth of publish_ru_s before it",
        source="a tenth of the highest top ever is the lowest that may be set",
    )  # fmt: skip
    reached = sum(max(top / FLOOR, need.reads_ru * part) for part in load.hours) / len(load.hours)
    book.work(
        "autoscale_mean_ru", reached, "RU/s",
        f"the mean over the hours of profile of the larger of autoscale_top_ru / {FLOOR} and reads_ru in that hour",
    )  # fmt: skip
    hours_of_publish = ceil(need.publish_hours)
    if in_place:
        hours = reached * HOURS_A_MONTH + need.publishes * need.publish_ru * hours_of_publish
        formula = f"autoscale_mean_ru * {HOURS_A_MONTH} + publishes * publish_ru_s * ceil(publish_hours)"
    else:
        idle = autoscale_top(0, highest, need.release_bytes) / FLOOR
        book.work("autoscale_idle_ru", idle, "RU/s", "a tenth of the lowest top that may be set after publish_ru_s")
        lasting = reached + inputs.kept * idle + AUTOSCALE_MIN / FLOOR
        per_publish = need.publish_ru * hours_of_publish + reached * FLIP_HOURS
        hours = lasting * HOURS_A_MONTH + need.publishes * per_publish
        formula = (
            f"(autoscale_mean_ru + kept * autoscale_idle_ru + {AUTOSCALE_MIN} / {FLOOR}) * {HOURS_A_MONTH} + publishes"
            f" * (publish_ru_s * ceil(publish_hours) + autoscale_mean_ru * {FLIP_HOURS})"
        )
    book.work("autoscale_ru_hours", hours, "RU/s-hours", formula)
    cost = prices.ru_hours(hours, autoscale=True, regions=inputs.regions)
    formula = "autoscale_ru_hours / 100 * usd_ru_hour * usd_autoscale_factor * regions"
    return book.work("autoscale_ru_cost", cost, "USD/month", formula)


def _serverless(book: Book, inputs: Inputs, load: Load, need: Need, prices: Prices) -> float | None:
    """Work out serverless: what is used is paid for; None where a region, RU/s or the time to publish forbid it."""
    more = max(0, ceil(need.release_bytes / GB / PARTITION_GB) - SERVERLESS_PARTITIONS)
    ceiling = SERVERLESS_RU + SERVERLESS_MORE_RU * more
    formula = (
        f"{SERVERLESS_RU} + {SERVERLESS_MORE_RU} * max(0, ceil(release_gb / {PARTITION_GB}) - {SERVERLESS_PARTITIONS})"
    )
    book.work("serverless_ceiling_ru", ceiling, "RU/s", formula, source=SERVERLESS)
    hours = book.work(
        "serverless_publish_hours", need.publish_total_ru / ceiling / 3600, "hours",
        "publish_total_ru / serverless_ceiling_ru / 3600",
    )  # fmt: skip
    plain = load.peak * (1 - load.hit_rate) * need.read_ru * sum(load.hours) / len(load.hours)
    used = plain * HOURS_A_MONTH * 3600 + need.publishes * need.publish_total_ru
    formula = f"reads_plain_ru * mean_of_peak * {HOURS_A_MONTH} * 3600 + publishes * publish_total_ru"
    book.work("serverless_used_ru", used, "RU/month", formula)
    forbidden = [
        said
        for said, true in (
            (f"{inputs.regions} regions, and serverless has one", inputs.regions > 1),
            (f"{need.reads_ru:,.0f} RU/s for reads, above {ceiling:,}", need.reads_ru > ceiling),
            (f"a publish takes {hours:.1f} hours at {ceiling:,} RU/s", hours > inputs.refresh_hours),
        )
        if true
    ]
    if forbidden:
        book.give("serverless_cost", f"not possible: {'; '.join(forbidden)}", "", SERVERLESS)
        return None
    cost = prices.serverless_ru(used) + need.stored_gb * prices.storage_gb_month.usd
    formula = "serverless_used_ru / 1000000 * usd_serverless_million_ru + storage_cost"
    return book.work("serverless_cost", cost, "USD/month", formula)
