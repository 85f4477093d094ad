"""The report of a plan."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from hotplate.base.report import Column, Report, Row, TextTable, format_count, format_value, rounded
from hotplate.bench.planner import serving_options, sizing
from hotplate.bench.planner.formulas import explain
from hotplate.bench.planner.inputs import CAPACITIES, INPUT_FIELDS, POD_STORES
from hotplate.bench.planner.plan import CapacityPlan, break_even
from hotplate.bench.planner.saved_plan import Baseline, describe_growth
from hotplate.bench.planner.serving_options import (
    CARRIED,
    COSMOS_MODES,
    COSTS,
    FEES,
    NOT_PRICED,
    OPTION_NAMES,
    STORE_NAMES,
    TODAY,
    TRAFFIC,
    UNPRICED_BY_DEFAULT,
    Cost,
)
from hotplate.bench.verdict import Gravity, concluded, findings_of
from hotplate.stores.cosmos.url import AUTOSCALE_STEP, INITIAL_PARTITION_RU, MANUAL_STEP

OUTLINE = {**sizing.OUTLINE, **serving_options.OUTLINE}
COST_COLUMNS = tuple(
    Column(name, f"Cosmos DB\n{heading}" if name in CAPACITIES else heading, digits=3)
    for name, heading in OPTION_NAMES.items()
)
# Assumed inputs that the first sentences name.
NOTABLE_INPUTS = {"list_length": "lists of {} items", "hit_rate": "no cache"}
HOW_SURE = "How sure: ± of prices only."
NOTABLE_SKEW = 1.05
COSTLY_SKEW = 1.5
ABOUT_THE_SAME = 1.25
LITTLE = 0.005


class ContainerFigures(NamedTuple):
    """Figures of the live release's container, and of a publish into a new one."""

    ru: str
    skew: str
    partitions: str
    publish_ru: str
    publish_hours: str
    step: int
    """Of RU/s; more above what reads need are a limit of Azure."""

    limit: str = "Azure's least"


CONTAINERS = {
    "manual": ContainerFigures("serve_ru", "skew", "partitions", "publish_ru_s", "publish_hours", MANUAL_STEP),
    "autoscale": ContainerFigures(
        "autoscale_top_ru", "autoscale_skew", "autoscale_partitions", "publish_ru_s", "publish_hours", AUTOSCALE_STEP
    ),
    "serverless": ContainerFigures(
        "serverless_ceiling_ru",
        "serverless_skew",
        "partitions_by_gb",
        "serverless_ceiling_ru",
        "serverless_publish_hours",
        0,
        "Azure's most",
    ),
}


class PriceBounds(NamedTuple):
    """A plan with the lower and with the upper bounds of all prices."""

    low: CapacityPlan
    high: CapacityPlan


def report(plan: CapacityPlan, prices_file: str, baseline: Baseline | None = None) -> Report:
    """Return the report of a plan, or with *baseline*, an earlier plan, of the figures that have grown since.

    Without users, the report is of the load that `have_ru`, the RU/s of today, carries. *prices_file* is the name of
    the file that the plan's prices come from.
    """
    common = _common_report(plan)
    if baseline is not None:
        return _check_report(common, plan, baseline)

    bounds = PriceBounds(plan.with_prices(-1), plan.with_prices(1))
    figures = replace(common, rows=tuple(_figure_rows(plan, bounds)), method=tuple(_assumptions(plan, prices_file)))
    if plan.sourced.carries_only:
        return _concluded(plan, figures, _carried_load(plan, bounds), assumed=_notable_assumptions(plan))
    compared = replace(
        figures,
        rows=(*_cost_rows(plan), *figures.rows),
        columns=COST_COLUMNS,
        verdicts=dict(_reasons(plan)),
    )
    return _concluded(plan, compared, _recommendation(plan, bounds), assumed=_notable_assumptions(plan))


def _check_report(common: Report, plan: CapacityPlan, baseline: Baseline) -> Report:
    """Return the report of a check: the figures that have grown beyond their bound since *baseline* was saved."""
    grown = tuple(describe_growth(plan, baseline))
    counted = f"{len(baseline.check.agreed) - len(grown)} of {len(baseline.check.agreed)} figures"
    answer = f"{counted} are inside {baseline.check.bound_percent:g} % of {baseline.layer.source}."
    return _concluded(plan, common, answer, grown=grown)


def _concluded(
    plan: CapacityPlan, report: Report, answer: str, *, grown: Iterable[str] = (), assumed: Iterable[str] = ()
) -> Report:
    """Return a report with its first sentences: the gravest shortage or growth, if there is one, and the answer.

    How sure its costs are, and what is *assumed*, end them.
    """
    findings = findings_of(Gravity.OUTSIDE, [*describe_shortage(plan), *grown])
    certainty = HOW_SURE if "±" in answer else ""
    return concluded(report, findings, answer, figures=answer, certainty=certainty, assumed=assumed)


def _notable_assumptions(plan: CapacityPlan) -> Iterator[str]:
    """Yield the notable assumed inputs, and the number of the others."""
    assumed = _assumed_inputs(plan)
    for name, words in NOTABLE_INPUTS.items():
        if name in assumed:
            yield words.format(getattr(plan.inputs, name))
    yield f"{len(assumed - NOTABLE_INPUTS.keys())} defaults (--all)"


def _assumed_inputs(plan: CapacityPlan) -> set[str]:
    """Return the names of the inputs by default that the answer is calculated from."""
    answers = ["carried_lists"]
    if not plan.sourced.carries_only:
        answers = [name for name in plan.figures if name.endswith("_total")]
    used_names = {figure.name for answer in answers for _, figure in explain(plan.figures, answer)}
    return used_names & plan.sourced.assumed


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
        notes=notes,
        tables=(_formulas(plan),),
        configuration={name: getattr(plan.inputs, name) for name in plan.sourced.sources},
        extra={
            "currency": plan.prices.currency,
            "inputs": [figure.to_json() for name, figure in plan.figures.items() if name in INPUT_FIELDS],
            "figures": [figure.to_json() for name, figure in plan.figures.items() if name not in INPUT_FIELDS],
        },
    )


def in_brief(planned: Report) -> Report:
    """Return the report with the first of its warnings, and the number of the others."""
    if len(planned.notes) < 2:
        return planned
    first, *others = planned.notes
    return replace(planned, notes=(f"{first}; {len(others)} more: --all",))


def in_full(planned: Report) -> Report:
    """Return the report with all figures and assumptions instead of the summary."""
    rows = planned.rows
    if planned.columns:  # without those of the main table
        rows = tuple(replace(row, main=True) for row in rows if not row.main)
    return replace(planned, rows=rows, columns=(), verdicts={}, notes=(*planned.notes, *planned.method), method=())


def _cost_rows(plan: CapacityPlan) -> Iterator[Row]:
    """Yield the main table: monthly costs of store, pods, training and fees, and their sum, for each option.

    An option is a way to serve the load, as "manual" or "redis". A row has the kind of cost, and the option as figure;
    if the option is not possible, the row has no value, and a note that says why. Fees of 0 are left out.
    """
    currency = plan.prices.currency
    obstacles = plan.obstacles
    for cost in (*COSTS, Cost(f"in all, {currency}/month", "{option}_total")):
        if cost.fee and not plan.number(cost.figure):
            continue
        for option in OPTION_NAMES:
            if option in obstacles:
                yield Row(cost.label, option, currency, note=obstacles[option])
            else:
                value = plan.number(cost.figure_of(option)) if option in cost.options else 0.0
                yield Row(cost.label, option, currency, value)


def _reasons(plan: CapacityPlan) -> Iterator[tuple[str, str]]:
    """Yield a label and a sentence for each main figure: why it is as it is, and the name to pass to --why.

    The last ones say which options are not possible ("no"), and what is priced.
    """
    number = plan.number
    if plan.inputs.have_ru is not None:
        yield "today", _usage_today(plan)

    if plan.mode is not None:
        container = CONTAINERS[plan.mode]
        yield "reads", _reads_reason(plan, container)
        spent = f"{rounded(number('publish_total_ru'))} RU in {_format_hours(number(container.publish_hours))}"
        yield "publish", f"{plan.figures[container.publish_ru]}: {spent}  (--why {container.publish_ru})"
        yield "429s", _first_refused_rate(plan, container)  # too many requests: Cosmos DB refuses a read

    lists = f"{format_count(round(number('rows')), 'list')} of {number('stored_bytes'):,.0f} bytes"
    releases = format_count(round(number("copies")), "release")
    nodes = f", {_redis_nodes(plan)}" if plan.is_possible("redis_cost") else ""
    yield "memory", f"Redis {rounded(number('redis_gb'))} GB{nodes}: {releases} of {lists}"
    yield "pods", _describe_pods(plan)
    yield "Redis", _compare_redis(plan)

    if plan.obstacles:
        yield "no", "; ".join(_describe_obstacles(plan.obstacles))

    dates = sorted(price.date for price in plan.prices.named.values())
    unpriced = ", ".join((*_unpriced_fees(plan), TRAFFIC))
    yield "priced", f"by prices of {dates[0]} to {dates[-1]}; not {unpriced}  (--all)"


def _reads_reason(plan: CapacityPlan, container: ContainerFigures) -> str:
    """Say how the RU/s for reads are calculated, and whether a limit of Azure decides instead."""
    ru = plan.number(container.ru)
    skew = plan.number(container.skew)
    reads = f"{format_value(plan.number('reads_s'))}/s x {plan.figures['mean_read_ru']}"
    if skew > NOTABLE_SKEW:
        reads += f" x {skew:.2f} for the busiest user"
    needed_ru = plan.number("reads_plain_ru") * skew / plan.inputs.ru_utilisation
    limit = ""
    if ru >= needed_ru + container.step:
        limit = f", {container.limit}; {needed_ru:,.0f} are taken"
    return (
        f"{plan.figures[container.ru]}{limit}: {reads} / {plan.inputs.ru_utilisation:g} in use  (--why {container.ru})"
    )


def _describe_obstacles(obstacles: Mapping[str, str]) -> Iterator[str]:
    """Yield each limit once, with the options that it makes impossible: `manual, autoscale: RU/s of a partition`."""
    headings = dict[str, list[str]]()
    for option, obstacle in obstacles.items():
        headings.setdefault(obstacle, []).append(OPTION_NAMES[option])
    for obstacle, ruled_out in headings.items():
        yield f"{', '.join(ruled_out)}: {obstacle}"


def _unpriced_fees(plan: CapacityPlan) -> list[str]:
    return [words for name, words in UNPRICED_BY_DEFAULT.items() if name not in plan.sourced.sources]


def _format_hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{max(1, round(60 * hours))} min"


def _usage_today(plan: CapacityPlan) -> str:
    """Say what is provisioned today, what it costs, and how much of it is used."""
    today = f"{plan.figures['have_ru']} for {_rounded(plan, 'carried_cost')} {plan.prices.currency} a month"
    if plan.is_possible("today_use"):
        today += f", {plan.figures['today_use']} used in the busiest hour"
    if plan.possible("over_ru"):
        today += f"; {plan.number('over_ru'):,.0f} more than needed, {_rounded(plan, 'over_cost')} a month"
    return today


def _first_refused_rate(plan: CapacityPlan, container: ContainerFigures) -> str:
    """Say from which rate on reads get 429s."""
    ru = plan.number(container.ru)
    first = format_value(ru / plan.number("mean_read_ru") / plan.number(container.skew))
    if not plan.inputs.zipf and plan.inputs.hot_share is None:
        return f"from {first} reads/s on, if all users are equally busy (--zipf 0.9: some far busier)"
    hottest = plan.number("hot_key_ru") / ru * plan.number(container.partitions)
    return f"from {first} reads/s on; the busiest user takes {hottest:.1%} of a partition"


def _describe_pods(plan: CapacityPlan) -> str:
    """Return the pods by store, and the size of each."""
    counts = ", ".join(f"{name} {plan.number(f'{store}_pods'):,.0f}" for store, name in STORE_NAMES.items())
    return f"{counts}, of {plan.inputs.pod_cpus:g} vCPU  (--why cosmos_pods)"


def _compare_redis(plan: CapacityPlan) -> str:
    """Return at which rates Redis costs less than Cosmos DB, with the limits that end them."""
    ranges = break_even(plan)
    if not ranges:
        return "costs less than Cosmos DB at no rate at which both are possible"
    described = list[str]()
    for rates in ranges:
        limit = f"; above, {rates.limit}" if rates.limit else ""
        described.append(f"{rates.describe('requests/s in the busiest hour')}{limit}")
    return f"costs less than Cosmos DB {', and '.join(described)}"


def describe_shortage(plan: CapacityPlan) -> Iterator[str]:
    """Yield a sentence if `have_ru` is too little for the load."""
    if plan.sourced.carries_only or "short_ru" not in plan.figures:
        return
    limit = plan.figures["short_ru"].limit
    short = plan.possible("short_ru")
    refused = round(plan.possible("refused_reads") or 0.0, 6)
    if limit:
        shortage = f"RU/s are not possible for this load ({limit})"
    elif short:
        shortage = f"short by {plan.figures['short_ru']}"
    else:
        shortage = f"{plan.figures['have_ru']} are split over {plan.figures['have_partitions']}"

    if refused:
        yield f"{shortage}: {format_value(refused, 'share')} of reads get 429"
    elif short:
        yield f"{shortage}: the busiest hour fits as a mean, its peaks get 429"
    elif limit:
        yield shortage


def _recommendation(plan: CapacityPlan, bounds: PriceBounds) -> str:
    """Return the sentences that say which store costs least for the load, and what to provision.

    That is for Cosmos DB with the mode that the input `capacity` asks for, or the cheapest one if that is not possible,
    and the cheapest mode if it is another one. If no mode is possible, it is for Redis, else for files.
    """
    users = f"{format_count(round(plan.number('users_then')), 'user')}"
    when = f" in {format_count(plan.inputs.months, 'month')}" if plan.number("growth") != 1 else ""
    load = f"{users}, up to {format_value(plan.number('peak_then'))} requests/s{when}"
    pods = {store: format_count(round(plan.number(f"{store}_pods")), "pod") for store in POD_STORES}
    provision = ""
    if plan.mode is not None:
        provision = f" Cosmos DB needs {_throughput(plan, plan.mode)}, and {pods['cosmos']}."
    elif plan.is_possible("redis_total"):
        provision = f" Redis needs {_redis_nodes(plan)}{_in_each_region(plan)} and {pods['redis']}."
    elif plan.is_possible("files_total"):
        provision = f" Files need {pods['files']}."
    return f"Cheapest for {load}: {_compare_costs(plan, bounds)}.{provision}"


def _redis_nodes(plan: CapacityPlan) -> str:
    return f"{plan.inputs.redis_nodes} x {plan.figures['redis_size']}"


def _in_each_region(plan: CapacityPlan) -> str:
    return f" in each of {plan.inputs.regions} regions" if plan.inputs.regions > 1 else ""


def _throughput(plan: CapacityPlan, mode: str) -> str:
    """Return the RU/s to provision with a mode of Cosmos DB, and with the cheapest one."""
    modes = list(dict.fromkeys((mode, plan.cheapest or mode)))
    provisioned = {name: plan.figures[CONTAINERS[name].ru] for name in modes}
    words = {"manual": "{}", "autoscale": "autoscale up to {}", "serverless": "a serverless account"}
    throughput = " or ".join(words[name].format(ru) for name, ru in provisioned.items()) + _in_each_region(plan)
    if plan.possible("over_ru"):
        throughput += f" (today {plan.inputs.have_ru:,})"

    publish_ru = plan.number("publish_ru_s")
    if any(publish_ru > ru.number for name, ru in provisioned.items() if name != "serverless"):
        throughput += f", {publish_ru:,.0f} more to publish"
    return throughput


def _carried_load(plan: CapacityPlan, bounds: PriceBounds) -> str:
    """Return the sentence that says which load `have_ru`, the RU/s of today, carries."""
    if obstacle := plan.figures["carried_reads"].obstacle:
        return f"{plan.figures['carried_ru']} carry nothing: reads are not possible ({obstacle})."
    reads = format_value(plan.number("carried_reads"))
    mean = format_value(plan.number("carried_mean"))
    lists = format_value(plan.number("carried_lists"))
    where = _in_each_region(plan)
    return (
        f"{plan.figures['carried_ru']}{where} carry {reads} reads/s{' in all' if where else ''}, "
        f"{mean} with room for peaks, or {lists} lists published/s, for {_amount(plan, bounds, 'carried')} "
        f"{plan.prices.currency} a month."
    )


def _compare_costs(plan: CapacityPlan, bounds: PriceBounds) -> str:
    """Return the costs in all of Redis, of Cosmos DB with its cheapest mode, and of files, in ascending order.

    Prices are known within bounds. A store is only said to cost less than the next one if it does at any prices within
    them, else probably; if they also differ little, they are too close to call.
    """
    names = {
        "files": "files",
        plan.cheapest or "manual": f"Cosmos DB {COSMOS_MODES.get(str(plan.cheapest), '')}".rstrip(),
        "redis": "Redis",
    }
    totals = {option: plan.possible(f"{option}_total") or 0.0 for option in names if option not in plan.obstacles}
    ascending = sorted(totals, key=lambda option: totals[option])
    costs = {option: f"{names[option]}, {_amount(plan, bounds, option)}" for option in ascending}
    ranking = f"{costs[ascending[0]]} {plan.prices.currency}/month in all" if ascending else "nothing"
    for cheaper, dearer in pairwise(ascending):
        if _is_surely_cheaper(bounds, cheaper, dearer):
            ranking += f"; then {costs[dearer]}"
        elif totals[dearer] <= ABOUT_THE_SAME * totals[cheaper]:
            ranking += f", or {costs[dearer]} (too close to call)"
        else:
            ranking += f"; then probably {costs[dearer]}"
    limits = [
        f"{name} ({plan.figures[f'{option}_total'].limit})" for option, name in names.items() if option not in totals
    ]
    return f"{ranking}; not possible: {', '.join(limits)}" if limits else ranking


def _amount(plan: CapacityPlan, bounds: PriceBounds, option: str) -> str:
    """Return the total of an option, and by how much the prices of its store may change it, unless that is little.

    The total of "carried" is the cost of the RU/s of today.
    """
    cost = f"{option}_cost"
    total = plan.possible(f"{option}_total") or plan.number(cost)
    spread = max(abs(at.number(cost) - plan.number(cost)) for at in bounds)
    within = f" ± {rounded(spread)}" if spread >= LITTLE * total else ""
    return f"{rounded(total, 3)}{within}"


def _is_surely_cheaper(bounds: PriceBounds, option: str, other: str) -> bool:
    """Return whether an option costs less than another one at any prices within their bounds.

    The price of a vCPU is the same for both, whatever it is.
    """

    def beyond_store(at: CapacityPlan, name: str) -> float:
        return at.number(f"{name}_total") - at.number(f"{name}_cost")

    most = bounds.high.number(f"{option}_cost")
    least = bounds.low.number(f"{other}_cost")
    return all(most + beyond_store(at, option) < least + beyond_store(at, other) for at in bounds)


def _rounded(plan: CapacityPlan, name: str) -> str:
    return rounded(plan.number(name), 3)


def _figure_rows(plan: CapacityPlan, bounds: PriceBounds) -> Iterator[Row]:
    """Yield a row for each figure of a plan, by groups such as "Today".

    A row has the group, the figure in words, unit and value; its note is the figure's name, for `--why`. Costs have an
    interval by the *bounds* of all prices. Fees and figures of today are left out if they are 0.
    """
    cost_unit = f"{plan.prices.currency}/month"
    is_main_table = plan.sourced.carries_only  # otherwise that of the costs is
    for group, names in _figure_groups(plan).items():
        for words, name in names.items():
            figure = plan.figures.get(name)
            if figure is None or (not figure.value and (name in FEES or names is TODAY)):
                continue
            row = Row(group, words, note=name, main=is_main_table)
            if not figure.is_number:
                row = replace(row, note=f"{figure.value}, {name}")
            elif figure.unit == cost_unit or name in FEES:
                low = bounds.low.number(name)
                high = bounds.high.number(name)
                row = replace(row, unit=plan.prices.currency, value=figure.number, low=low, high=high)
            else:
                row = replace(row, unit=figure.unit, value=figure.number)
            yield row


def _figure_groups(plan: CapacityPlan) -> dict[str, dict[str, str]]:
    """Return the names of the figures to show, by their words, for each group; without users, only what RU/s carry."""
    carried = {f"What {plan.figures['carried_ru']} carry": CARRIED} if plan.is_possible("carried_ru") else {}
    if plan.sourced.carries_only:
        return {**carried, "Cosmos DB: request units": sizing.UNITS}
    return {"Today": TODAY, **carried, **OUTLINE}


def _assumptions(plan: CapacityPlan, prices_file: str) -> Iterator[str]:
    """Yield three sentences: the source and date of the prices, what is not priced, and which inputs are assumed."""
    prices = plan.prices.named
    oldest = min(price.date for price in prices.values())
    doubtful = ", ".join(name for name, price in prices.items() if price.basis != "listed")
    unchecked = f"; quoted or assumed, not checked: {doubtful}" if doubtful else ""
    yield f"prices in {plan.prices.currency} from {prices_file}, the oldest of {oldest}{unchecked}"
    yield f"not priced: {', '.join((*_unpriced_fees(plan), *NOT_PRICED))}"

    assumed = _assumed_inputs(plan)
    yield f"assumed: {', '.join(f'{name} {figure}' for name, figure in plan.figures.items() if name in assumed)}"


def _formulas(plan: CapacityPlan) -> TextTable:
    """Return a table of all figures: name, value, formula, the figures in the formula (operands), and source."""
    lines = list[tuple[str, ...]]()
    for name, figure in plan.figures.items():
        operands = ", ".join(f"{operand.name} {operand}" for operand in figure.operands)
        lines.append((name, str(figure), figure.formula, operands, figure.source))
    return TextTable("Formulas and sources", ("figure", "value", "formula", "of", "source"), tuple(lines))


def warnings(plan: CapacityPlan) -> Iterator[str]:
    """Yield a sentence for each risk of Cosmos DB as planned: hot users, slow publishes, missing prices."""
    inputs = plan.inputs
    if plan.mode is None:
        return
    container = CONTAINERS[plan.mode]
    skew = plan.number(container.skew)  # what the fullest partition needs, as a multiple of an even share
    if plan.number("hot_key_ru") > INITIAL_PARTITION_RU * inputs.ru_utilisation or skew >= COSTLY_SKEW:
        yield (
            f"the busiest user takes {plan.figures['hot_key_ru']}, and each of {plan.figures[container.partitions]} "
            f"gets as many as the fullest, {skew:,.1f} times an even load: use a cache"
        )
    if plan.is_possible("serve_ru") and "manual" in (plan.mode, plan.cheapest):
        yield from _partition_warnings(plan)

    hours = plan.number(container.publish_hours)
    if hours > inputs.window_hours + 1e-9:
        yield f"a publish takes {hours:,.1f} hours, more than the {inputs.window_hours:g} it may"
    if inputs.gateway_hit_rate and not inputs.gateway_month:
        yield "the hours of the dedicated gateway are not priced; give --gateway-month"
    if plan.mode != inputs.capacity:
        obstacle = plan.figures[f"{inputs.capacity}_total"].obstacle
        yield f"--capacity {inputs.capacity} is not possible ({obstacle}); the plan is {COSMOS_MODES[plan.mode]}"


def _partition_warnings(plan: CapacityPlan) -> Iterator[str]:
    """Warn of partitions that only the manual RU/s at creation need: they stay, and divide the RU/s."""
    serve = plan.number("serve_ru")
    partitions = plan.number("partitions")
    created = plan.number("new_partitions")
    for_serving = max(plan.number("partitions_by_gb"), -(-serve // INITIAL_PARTITION_RU))
    needed = plan.number("reads_even_ru") * (1 + plan.number("hot_user") * (created - 1))
    if created > for_serving or (created > partitions and needed > NOTABLE_SKEW * serve):
        fewest = min(partitions, for_serving)
        container = (
            f"a container created with {plan.figures['creation_ru']} has {plan.figures['new_partitions']} for life"
        )
        yield (
            f"{container}, and {fewest:,.0f} would do: create it with at most {INITIAL_PARTITION_RU * fewest:,.0f} "
            f"RU/s, and scale it to {serve:,.0f} when it goes live"
        )
