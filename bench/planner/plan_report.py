"""The report of a plan."""

from collections.abc import Container, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from hotplate.bench.planner.formulas import explain
from hotplate.bench.planner.inputs import CAPACITIES, INPUT_FIELDS
from hotplate.bench.planner.plan import CapacityPlan, break_even_rps
from hotplate.bench.planner.saved_plan import Baseline, describe_growth
from hotplate.bench.planner.sizing import CONTROL_RU
from hotplate.report import Column, Report, Row, TextTable, format_count, format_value, rounded
from hotplate.stores.cosmos.url import MAX_RU

# Outside of all figures.
NOT_PRICED = (
    "reserved capacity and its discount", "writes in several regions", "tiers of Azure Managed Redis but Balanced",
    "unused share of nodes", "traffic between regions and to the internet", "backups", "private links", "free tiers",
)  # fmt: skip
# Not priced by default.
FEES = {"gateway_month": "a dedicated gateway", "ru_factor": "zone redundancy", "cluster_month": "the fee of AKS"}
# Labels and figures, in order.
TODAY = {
    "provisioned": "have_ru", "missing": "short_ru", "reads that get 429 in the busiest hour": "refused_reads",
    "used by reads in the busiest hour": "today_use", "more than needed": "over_ru", "cost a month": "today_cost",
    "cost of unneeded RU/s": "over_cost",
}  # fmt: skip
CARRIED = {
    "reads/s at most, in each region": "carried_region_reads", "reads/s at most, in all": "carried_reads",
    "reads/s with room for peaks, in all": "carried_mean", "or lists published/s": "carried_lists",
    "cost a month, manual, in all": "carried_cost",
}  # fmt: skip
UNITS = {
    "an item": "item_bytes", "a read": "mean_read_ru", "a written list": "list_write_ru",
    "a list read back": "read_back_ru",
}  # fmt: skip
OUTLINE = {
    "Load": {
        "lists": "rows", "requests/s, busiest hour and region": "peak_region", "answered by a cache": "hit_rate",
        "reads/s of the store": "reads_s", "a stored list": "stored_bytes",
    },
    "Cosmos DB: request units": {
        **UNITS, "a publish": "publish_total_ru", "for reads, with headroom": "reads_ru",
        "provisioned for reads": "serve_ru", "for publishing": "publish_ru_s",
        "together, while a release is published": "together_ru", "a publish takes": "publish_hours",
    },
    "Cosmos DB: containers": {
        "containers while publishing": "containers", "partitions of a new release": "new_partitions",
        "partitions of the live one": "partitions", "RU/s of a partition": "partition_ru",
        "busiest user's share of a partition": "hot_key_load", "load of the fullest partition": "hot_partition_load",
        "lowest RU/s of a kept release": "least_ru", "autoscale maximum": "autoscale_top_ru",
        "average autoscale RU/s": "autoscale_mean_ru", "storage, all releases": "stored_gb",
    },
    "Redis": {
        "memory, all releases": "redis_gb", "Azure Managed Redis, balanced": "redis_size", "shards": "redis_shards",
        "largest shard / average": "redis_fullest", "nodes of an instance": "redis_nodes",
    },
    "Pods": {
        "by Little's law": "pods_by_little", "by requests/s of a pod": "pods_by_capacity", "at least": "min_pods",
        "in a region, the largest of these": "pods_region", "in a zone": "pods_zone", "in all": "pods",
    },
    "Autoscaler of a region": {
        "target: CPU of a pod": "hpa_utilisation", "target: requests of a pod": "hpa_pod_rps",
        "pods at most": "hpa_most_pods",
    },
    "Cost a month": {
        "Cosmos DB, manual": "manual_cost", "Cosmos DB, autoscale": "autoscale_cost",
        "Cosmos DB, autoscale, always at its maximum": "autoscale_most_cost",
        "Cosmos DB, serverless": "serverless_cost", "Redis": "redis_cost", "files": "files_cost", "pods": "pods_cost",
        "training": "training_cost", "dedicated gateway": "gateway_month",
        "Kubernetes": "cluster_month", "Cosmos DB, pods and training": "cosmos_total",
        "Redis, pods and training": "redis_total",
    },
}  # fmt: skip
# Headings of the options; Cosmos DB's modes in words; the costs of the main table, with their figures: `{option}` is
# the name of an option.
OPTION_HEADINGS = {
    "manual": "manual",
    "autoscale": "autoscale",
    "serverless": "serverless",
    "redis": "Redis",
    "files": "files",
}
COST_COLUMNS = tuple(
    Column(name, f"Cosmos DB\n{heading}" if name in CAPACITIES else heading, digits=3)
    for name, heading in OPTION_HEADINGS.items()
)
COSMOS_MODES = {"manual": "with fixed RU/s", "autoscale": "with autoscale", "serverless": "as serverless"}
COSTS = {
    "store": "{option}_cost", "gateway": "gateway_month", "pods": "pods_cost", "Kubernetes": "cluster_month",
    "training": "training_cost",
}  # fmt: skip
NOTABLE_SKEW = 1.05


def report(plan: CapacityPlan, prices_file: str, baseline: Baseline | None = None) -> Report:
    """Return the report of a plan, or with *baseline*, an earlier plan, of the figures that have grown since.

    Without users, the report is of the load that `have_ru`, the RU/s of today, carries. *prices_file* is the name of
    the file that the plan's prices come from.
    """
    common = _common_report(plan)
    if baseline is not None:
        return _check_report(common, plan, baseline)

    figures = replace(common, rows=tuple(_figure_rows(plan)), method=tuple(_assumptions(plan, prices_file)))
    if plan.sourced.carries_only:
        return replace(figures, sentence=_sentence(common.broken, _carried_load(plan)))
    return replace(
        figures,
        sentence=_sentence(common.broken, _recommendation(plan)),
        rows=(*_cost_rows(plan), *figures.rows),
        columns=COST_COLUMNS,
        verdicts=dict(_reasons(plan)),
    )


def _check_report(common: Report, plan: CapacityPlan, baseline: Baseline) -> Report:
    """Return the report of a check: the figures that have grown beyond their bound since *baseline* was saved."""
    grown = tuple(describe_growth(plan, baseline))
    counted = f"{len(baseline.figures) - len(grown)} of {len(baseline.figures)} figures"
    answer = f"{counted} are inside {baseline.bound_percent:g} % of {baseline.layer.source}"
    return replace(common, sentence=_sentence(common.broken, answer), broken=(*common.broken, *grown))


def _sentence(shortages: tuple[str, ...], answer: str) -> str:
    """Return the first line of a report: the gravest shortage, if there is one, and the answer."""
    return ". ".join((*shortages[:1], answer))


def _common_report(plan: CapacityPlan) -> Report:
    """Return what each report of a plan has: shortages, warnings, formulas and inputs, but no answer or rows.

    With `carries_only`, there are no users, but only the RU/s of today: nothing to warn of.
    """
    notes = tuple[str, ...]()
    if not plan.sourced.carries_only:
        notes = tuple(f"look out: {warning}" for warning in warnings(plan))

    return Report(
        kind="plan",
        sentence="",
        listed=True,
        notes=notes,
        tables=(_formulas(plan),),
        broken=tuple(describe_shortage(plan)),
        configuration={name: getattr(plan.inputs, name) for name in plan.sourced.sources},
        machine={"date": datetime.now(UTC).isoformat(timespec="seconds")},
        extra={
            "currency": plan.prices.currency,
            "inputs": [figure.to_json() for name, figure in plan.figures.items() if name in INPUT_FIELDS],
            "figures": [figure.to_json() for name, figure in plan.figures.items() if name not in INPUT_FIELDS],
        },
    )


def in_full(planned: Report) -> Report:
    """Return the report with all figures and assumptions instead of the summary."""
    rows = tuple(replace(row, main=True) for row in planned.rows if row.figure not in OPTION_HEADINGS)
    return replace(planned, rows=rows, columns=(), verdicts={}, notes=(*planned.notes, *planned.method), method=())


def _cost_rows(plan: CapacityPlan) -> Iterator[Row]:
    """Yield the main table: monthly costs of store, pods, training and fees, and their sum, for each option.

    An option is a way to serve the load, as "manual" or "redis". A row has the kind of cost, and the option as figure;
    if the option is not possible, the row has no value, and a note that says why. Fees of 0 are left out.
    """
    currency = plan.prices.currency
    obstacles = plan.obstacles
    figure_by_cost = {**COSTS, f"in all, {currency}/month": "{option}_total"}
    for cost, figure in figure_by_cost.items():
        if figure in FEES and not plan.number(figure):
            continue
        for option in OPTION_HEADINGS:
            value: float | None = plan.number(figure.format(option=option))
            if figure == "gateway_month" and option not in CAPACITIES:
                value = 0.0
            if option in obstacles:
                value = None
            yield Row(cost, option, currency, value, note=obstacles.get(option, ""))


def _reasons(plan: CapacityPlan) -> Iterator[tuple[str, str]]:
    """Yield a label and a sentence for each main figure: why it is as it is, and the name to pass to --why.

    The last ones say which options are not possible ("no"), what is assumed, and what is not priced ("besides").
    """
    number = plan.number
    if plan.inputs.have_ru is not None:
        yield "today", _usage_today(plan)

    reads = f"{format_value(number('reads_s'))}/s x {plan.figures['mean_read_ru']}"
    if number("skew") > NOTABLE_SKEW:
        reads += f" x {number('skew'):.2f} for the busiest user"
    in_use = f"{plan.inputs.ru_utilisation:g} in use"
    yield "reads", f"{number('serve_ru'):,.0f} RU/s: {reads} / {in_use}  (--why serve_ru)"

    spent = f"{rounded(number('publish_total_ru'))} RU in {_format_hours(number('publish_hours'))}"
    yield "publish", f"{number('publish_ru_s'):,.0f} RU/s: {spent}  (--why publish_ru_s)"
    yield "429s", _first_refused_rate(plan)  # too many requests: Cosmos DB refuses a read

    lists = f"{number('rows'):,.0f} lists of {number('stored_bytes'):,.0f} bytes"
    releases = f"{number('copies'):,.0f} releases"
    yield "memory", f"Redis {rounded(number('redis_gb'))} GB, {_redis_nodes(plan)}: {releases} of {lists}"
    yield "pods", f"{number('pods'):,.0f} of {plan.inputs.pod_cpus:g} vCPU  (--why pods)"
    yield "Redis", _compare_redis(plan)

    obstacles = [f"{OPTION_HEADINGS[option]}: {obstacle}" for option, obstacle in plan.obstacles.items()]
    if obstacles:
        yield "no", "; ".join(obstacles).replace("not possible: ", "")

    assumed = sum(figure.source.startswith("assumed") for figure in plan.figures.values())
    dates = sorted(price.date for price in plan.prices.by_name().values())
    yield "assumed", f"{assumed} inputs; prices of {dates[0]} to {dates[-1]}  (--all)"
    yield "besides", f"not priced: {', '.join(_unpriced_fees(plan))}, traffic  (--all)"


def _unpriced_fees(plan: CapacityPlan) -> list[str]:
    return [words for name, words in FEES.items() if name not in plan.sourced.sources]


def _format_hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{max(1, round(60 * hours))} min"


def _usage_today(plan: CapacityPlan) -> str:
    """Say what is provisioned today, what it costs, and how much of it is used."""
    today = f"{plan.number('have_ru'):,.0f} RU/s for {_rounded(plan, 'today_cost')} {plan.prices.currency} a month"
    used = f"{plan.number('today_use'):.1%} used by reads in the busiest hour"
    if plan.number("today_use") > 1:
        used = f"of {plan.number('reads_plain_ru'):,.0f} that reads need in the busiest hour"
    if over := plan.number("over_ru"):
        used += f"; {over:,.0f} more than needed, {_rounded(plan, 'over_cost')} a month"
    return f"{today}, {used}"


def _first_refused_rate(plan: CapacityPlan) -> str:
    """Say from which rate on reads get 429s."""
    first = format_value(plan.number("serve_ru") / plan.number("mean_read_ru") / plan.number("skew"))
    if plan.inputs.zipf is None and plan.inputs.hot_share is None:
        return f"from {first} reads/s on, if all users are equally busy; try --zipf 0.9"
    hottest = plan.number("hot_key_load")
    return f"from {first} reads/s on; the busiest user takes {hottest:.1%} of a partition"


def _redis_nodes(plan: CapacityPlan) -> str:
    size = plan.figures.get("redis_size")
    return "more than the largest size" if size is None else f"{plan.inputs.redis_nodes} x {size}"


def _compare_redis(plan: CapacityPlan) -> str:
    """Return at which rates Redis costs more or less than Cosmos DB."""
    from_rps = break_even_rps(plan)
    if from_rps is None:
        return "costs more than Cosmos DB at any rate"
    if not from_rps:
        return "costs less than Cosmos DB at any rate"
    return f"costs less than Cosmos DB from {rounded(from_rps)} requests/s on, in the busiest hour"


def describe_shortage(plan: CapacityPlan) -> Iterator[str]:
    """Yield a sentence if `have_ru` is too little for the load."""
    if plan.sourced.carries_only or "short_ru" not in plan.figures:
        return
    short = plan.number("short_ru")
    refused = round(plan.number("refused_reads"), 6)
    lost = f"{100 * refused:.0f} of 100" if refused >= 0.005 else f"{1e6 * refused:,.0f} of 1,000,000"
    if short and refused:
        yield f"short by {short:,.0f} RU/s: {lost} reads get 429"
    elif short:
        yield f"short by {short:,.0f} RU/s: the busiest hour fits as a mean, its peaks get 429"
    elif refused:
        have = plan.number("have_ru")
        partitions = plan.number("have_partitions")
        yield f"{have:,.0f} RU/s are split over {partitions:,.0f} partitions: {lost} reads get 429"


def _recommendation(plan: CapacityPlan) -> str:
    """Return the sentence that says how many RU/s and pods to provision, and which store costs less.

    It names the mode of Cosmos DB that the input `capacity` asks for, or manual if that is not possible, and the
    cheapest mode if it is another one.
    """
    capacity = plan.inputs.capacity
    mode = capacity if plan.figures[f"{capacity}_cost"].is_number else "manual"
    throughput_by_mode = {
        "manual": f"{plan.number('serve_ru'):,.0f} RU/s",
        "autoscale": f"autoscale up to {plan.number('autoscale_top_ru'):,.0f} RU/s",
        "serverless": "serverless",
    }
    modes = dict.fromkeys((mode, plan.cheapest))
    throughput = " or ".join(throughput_by_mode[name] for name in modes)
    if plan.inputs.regions > 1:
        throughput += f" in each of {plan.inputs.regions} regions"
    if plan.inputs.have_ru is not None and plan.number("over_ru"):
        throughput += f" (today {plan.inputs.have_ru:,})"

    publish_ru = plan.number("publish_ru_s")
    if publish_ru > plan.number("serve_ru") and list(modes) != ["serverless"]:
        throughput += f", {publish_ru:,.0f} RU/s while publishing"
    return f"Provision {throughput}, and {format_count(round(plan.number('pods')), 'pod')}. {_compare_costs(plan)}."


def _carried_load(plan: CapacityPlan) -> str:
    """Return the sentence that says which load `have_ru`, the RU/s of today, carries."""
    reads = format_value(plan.number("carried_reads"))
    mean = format_value(plan.number("carried_mean"))
    lists = format_value(plan.number("carried_lists"))
    regions = plan.inputs.regions
    where = f" in each of {regions} regions" if regions > 1 else ""
    return (
        f"{plan.number('carried_ru'):,.0f} RU/s{where} carry {reads} reads/s{' in all' if where else ''}, "
        f"{mean} with room for peaks, or {lists} lists published/s, for {_rounded(plan, 'carried_cost')} "
        f"{plan.prices.currency} a month"
    )


def _compare_costs(plan: CapacityPlan) -> str:
    """Return a sentence that compares the costs of Redis and of Cosmos DB with its cheapest mode, and those of files.

    Prices are known within bounds. One store is only said to cost less if its highest cost is below the lowest one of
    the other.
    """
    currency = plan.prices.currency
    cosmos = f"Cosmos DB {COSMOS_MODES[plan.cheapest]}"
    cosmos_total = f"{_rounded(plan, f'{plan.cheapest}_total')} {currency}"
    month = "a month with its pods"
    files = ""
    if plan.figures["files_total"].is_number:
        files = f"; files in the pods cost {_rounded(plan, 'files_total')} {currency}"
    if not plan.figures["redis_cost"].is_number:
        return f"{cosmos} costs {cosmos_total} {month}; Redis is {plan.figures['redis_cost'].value}"

    redis_total = f"{_rounded(plan, 'redis_total')} {currency}"
    at_low_prices = plan.with_prices(-1)
    at_high_prices = plan.with_prices(1)
    cosmos_cost = f"{plan.cheapest}_cost"
    if at_high_prices.number("redis_cost") < at_low_prices.number(cosmos_cost):
        return f"Redis costs less ({redis_total} {month}) than {cosmos} ({cosmos_total}){files}"
    if at_high_prices.number(cosmos_cost) < at_low_prices.number("redis_cost"):
        return f"{cosmos} costs less ({cosmos_total} {month}) than Redis ({redis_total}){files}"
    return f"{cosmos} ({cosmos_total} {month}) and Redis ({redis_total}) cost about the same{files}"


def _rounded(plan: CapacityPlan, name: str) -> str:
    return rounded(plan.number(name), 3)


def _figure_rows(plan: CapacityPlan) -> Iterator[Row]:
    """Yield a row for each figure of a plan, by groups such as "Today".

    A row has the group, the figure in words, unit and value; its note is the figure's name, for `--why`. Costs have an
    interval from the lower and upper bounds of all prices. Fees and figures of today are left out if they are 0.
    """
    cost_unit = f"{plan.prices.currency}/month"
    at_low_prices = plan.with_prices(-1)
    at_high_prices = plan.with_prices(1)
    is_main_table = plan.sourced.carries_only  # otherwise that of the costs is
    for group, names in _figure_groups(plan).items():
        for words, name in names.items():
            figure = plan.figures.get(name)
            if figure is None or (not figure.value and (name in FEES or names is TODAY)):
                continue
            if not figure.is_number:
                yield Row(group, words, note=f"{figure.value}, {name}", main=is_main_table)
                continue

            row = Row(group, words, figure.unit, figure.number, note=name, main=is_main_table)
            if figure.unit == cost_unit or name in FEES:
                low = at_low_prices.number(name)
                high = at_high_prices.number(name)
                row = replace(row, unit=plan.prices.currency, low=low, high=high)
            yield row


def _figure_groups(plan: CapacityPlan) -> dict[str, dict[str, str]]:
    """Return the names of the figures to show, by their words, for each group; without users, only what RU/s carry."""
    carried = {f"What {plan.number('carried_ru'):,.0f} RU/s carry": CARRIED}
    if plan.sourced.carries_only:
        return {**carried, "Cosmos DB: request units": UNITS}
    return {"Today": TODAY, **carried, **OUTLINE}


def _assumptions(plan: CapacityPlan, prices_file: str) -> Iterator[str]:
    """Yield three sentences: the source and age of the prices, what is not priced, and which inputs are assumed."""
    prices = plan.prices.by_name()
    today = datetime.now(UTC).date()
    oldest = min(prices.values(), key=lambda price: price.date)
    doubtful = ", ".join(name for name, price in prices.items() if price.basis != "listed")
    unchecked = f"; quoted or assumed, not checked: {doubtful}" if doubtful else ""
    age = f"the oldest of {oldest.date}, {oldest.age(today)}"
    yield f"prices in {plan.prices.currency} from {prices_file}, {age}{unchecked}"
    yield f"not priced: {', '.join((*_unpriced_fees(plan), *NOT_PRICED))}"

    used_names: Container[str] = plan.figures
    if plan.sourced.carries_only:  # without users, other figures are of a placeholder load
        used_names = {figure.name for _, figure in explain(plan.figures, "carried_lists")}
    assumed = [
        f"{name} {figure}"
        for name, figure in plan.figures.items()
        if name in used_names and figure.source.startswith("assumed")
    ]
    yield f"assumed: {', '.join(assumed)}"


def _formulas(plan: CapacityPlan) -> TextTable:
    """Return a table of all figures: name, value, formula, the figures in the formula (operands), and source."""
    lines = list[tuple[str, ...]]()
    for name, figure in plan.figures.items():
        operands = ", ".join(f"{operand.name} {operand}" for operand in figure.operands)
        lines.append((name, str(figure), figure.formula, operands, figure.source))
    return TextTable("Formulas and sources", ("figure", "value", "formula", "of", "source"), tuple(lines))


def warnings(plan: CapacityPlan) -> Iterator[str]:
    """Yield a sentence for each risk of a plan: hot users, Azure's limits, slow publishes, missing prices.

    The skew is what the fullest partition needs, as a multiple of an even share.
    """
    inputs = plan.inputs
    hot = plan.number("hot_key_ru")
    skew = plan.number("skew")
    if hot > plan.number("new_partition_ru") * inputs.ru_utilisation or skew >= 2:
        yield (
            f"the hottest user alone takes {hot:,.0f} RU/s; as each of {plan.number('partitions'):,.0f} partitions "
            f"gets as many as the fullest, that is {skew:,.1f} times an even load: answer that user from a cache"
        )

    if max(plan.number("serve_ru"), plan.number("publish_ru_s")) >= MAX_RU:
        yield f"{MAX_RU:,} RU/s and more for a container need a support ticket"
    polls = plan.number("polls_ru")
    if polls > CONTROL_RU:
        yield f"the pods poll the catalogue with {polls:,.0f} RU/s, and its container has {CONTROL_RU}: give it more"

    hours = plan.number("publish_hours")
    if hours > inputs.window_hours + 1e-9:
        yield f"a publish takes {hours:,.1f} hours, more than the {inputs.window_hours:g} it may"
    if hours > inputs.refresh_hours:
        yield f"a publish takes {hours:,.1f} hours, and the next begins after {inputs.refresh_hours:g}"
    yield from _partition_warnings(plan)
    if inputs.gateway_hit_rate and not inputs.gateway_month:
        yield "the hours of the dedicated gateway are not priced; give --gateway-month"
    if inputs.p99_ms is not None and inputs.pod_rps is None:
        yield f"nothing shows that a p99 of {inputs.p99_ms:g} ms is kept; give --from-report of bench http --find-max"


def _partition_warnings(plan: CapacityPlan) -> Iterator[str]:
    """Warn of partitions that only the RU/s of publishing need: they stay, and divide the RU/s for reads."""
    created = plan.number("new_partitions")
    serve = plan.number("serve_ru")
    needed = max(plan.number("partitions_by_gb"), -(-serve // plan.number("new_partition_ru")))
    if created > needed:
        yield (
            f"a container created with {plan.number('creation_ru'):,.0f} RU/s has {created:,.0f} partitions for life, "
            f"and {needed:,.0f} would do: a hot user has {plan.number('partition_ru'):,.0f} of {serve:,.0f} RU/s; "
            f"publish more slowly"
        )
