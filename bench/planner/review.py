"""The report of a plan, and the check of a saved plan."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from hotplate.bench.planner.figures import explain, two_digits
from hotplate.bench.planner.inputs import HOURS, KNOWN, InputSource, PlanMisused, hourly_shares, read_toml
from hotplate.bench.planner.plan import CONTROL_RU, CapacityPlan, new_partition_ru, reached_ru
from hotplate.report import Curve, Plot, Report, Row, TextTable, format_value
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
    "used by reads in the busiest hour": "today_use", "too many": "over_ru", "cost a month": "today_cost",
    "of it for nothing": "over_cost",
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
        **UNITS, "a publish": "publish_total_ru", "for reads, headroom included": "reads_ru",
        "provisioned for reads": "serve_ru", "for publishing": "publish_ru_s",
        "together, while a release is published": "together_ru", "a publish takes": "publish_hours",
    },
    "Cosmos DB: containers": {
        "containers while publishing": "containers", "partitions of a new release": "new_partitions",
        "partitions of the live one": "partitions", "a partition's share": "partition_ru",
        "hottest user by it": "hot_key_load", "fullest partition by it": "hot_partition_load",
        "least RU/s of a kept release": "least_ru", "top of autoscale": "autoscale_top_ru",
        "of it reached, as a mean": "autoscale_mean_ru", "storage, all releases": "stored_gb",
    },
    "Redis": {
        "memory, all releases": "redis_gb", "Azure Managed Redis, balanced": "redis_size", "shards": "redis_shards",
        "fullest by an even one": "redis_fullest", "nodes of an instance": "redis_nodes",
    },
    "Pods": {
        "by Little's law": "pods_by_little", "by what a pod can answer": "pods_by_capacity", "at least": "min_pods",
        "in a region, the most of these": "pods_region", "in a zone": "pods_zone", "in all": "pods",
    },
    "Autoscaler of a region": {
        "target: CPU of a pod": "hpa_utilisation", "target: requests of a pod": "hpa_pod_rps",
        "pods at most": "hpa_most_pods",
    },
    "Cost a month": {
        "Cosmos DB, manual": "manual_cost", "Cosmos DB, autoscale, as reached": "autoscale_cost",
        "the same, all month at its top": "autoscale_most_cost", "Cosmos DB, serverless": "serverless_cost",
        "Redis": "redis_cost", "pods": "pods_cost", "training": "training_cost", "dedicated gateway": "gateway_month",
        "Kubernetes": "cluster_month", "Cosmos DB, pods and training": "cosmos_total",
        "Redis, pods and training": "redis_total",
    },
}  # fmt: skip
BASELINE_FIGURES = (
    "reads_ru", "serve_ru", "publish_ru_s", "together_ru", "partitions", "publish_hours", "stored_gb", "pods",
    "redis_gb", "manual_cost", "autoscale_cost", "serverless_cost", "redis_cost", "cosmos_total", "redis_total",
)  # fmt: skip
BOUND_PERCENT = 10.0
CHECK = "check"  # table of a saved plan: figures and their bound
PLOTTED_RATES = tuple(10 ** (step / 4) for step in range(-8, 9))  # multiples of the plan's rate


@dataclass(frozen=True, slots=True)
class Baseline:
    """A saved plan: inputs, figures, and their allowed growth."""

    layer: InputSource
    figures: Mapping[str, float]
    bound_percent: float


def report(plan: CapacityPlan, prices_file: str, baseline: Baseline | None = None) -> Report:
    """Report a plan or, with *baseline*, the comparison, without rows."""
    short, figures, only = [*shortage(plan)], plan.figures, plan.sourced.carries_only
    grown = [*growth(plan, baseline)] if baseline else []
    notes = [] if only else [f"look out: {each}" for each in warnings(plan)]
    if baseline:
        kept = f"{len(baseline.figures) - len(grown)} of {len(baseline.figures)} figures"
        sentence = f"{kept} are inside {baseline.bound_percent:g} % of {baseline.layer.source}"
    else:
        sentence = _carries(plan) if only else _answer(plan)
        notes = [*([] if only else [_carries(plan), _cheaper(plan)]), *notes, *_origins(plan, prices_file)]
    return Report(
        kind="plan",
        sentence=(*short, sentence)[0],
        rows=() if baseline else tuple(_rows(plan)),
        listed=True,
        notes=(*[sentence] * len(short), *notes),
        broken=(*short, *grown),
        plots=() if only else (_cost_plot(plan), _day_plot(plan)),
        tables=(_formulas(plan),),
        configuration={name: getattr(plan.inputs, name) for name in plan.sourced.sources},
        machine={"date": datetime.now(UTC).isoformat(timespec="seconds")},
        extra={
            "currency": plan.prices.currency,
            "inputs": [figure.to_json() for name, figure in figures.items() if name in KNOWN],
            "figures": [figure.to_json() for name, figure in figures.items() if name not in KNOWN],
        },
    )


def shortage(plan: CapacityPlan) -> Iterator[str]:
    """Yield a sentence if `have_ru` is too little for the load."""
    if plan.sourced.carries_only or "short_ru" not in plan.figures:
        return
    short, refused = plan.number("short_ru"), round(plan.number("refused_reads"), 6)
    lost = f"{100 * refused:.0f} of 100" if refused >= 0.005 else f"{1e6 * refused:,.0f} of 1,000,000"
    if short and refused:
        yield f"short by {short:,.0f} RU/s: {lost} reads get 429"
    elif short:
        yield f"short by {short:,.0f} RU/s: the busiest hour fits as a mean, its peaks get 429"
    elif refused:
        have, partitions = plan.number("have_ru"), plan.number("have_partitions")
        yield f"{have:,.0f} RU/s are split over {partitions:,.0f} partitions: {lost} reads get 429"


def _answer(plan: CapacityPlan) -> str:
    serve, publish, pods = (plan.number(name) for name in ("serve_ru", "publish_ru_s", "pods"))
    costs = [
        f"{_money(plan, name)} with {words}" if plan.figures[name].unit else f"{words} {plan.figures[name].value}"
        for name, words in (("cosmos_total", f"Cosmos DB ({plan.inputs.capacity})"), ("redis_total", "Redis"))
    ]
    return f"{serve:,.0f} RU/s to serve, {publish:,.0f} to publish, {pods:,.0f} pods: {', '.join(costs)}"


def _carries(plan: CapacityPlan) -> str:
    ru, reads, mean, lists = (plan.number(f"carried_{name}") for name in ("ru", "reads", "mean", "lists"))
    regions = plan.inputs.regions
    where = f" in each of {regions} regions" if regions > 1 else ""
    return (
        f"{ru:,.0f} RU/s{where} carry {format_value(reads)} reads/s{' in all' if where else ''}, "
        f"{format_value(mean)} with room for peaks, or {format_value(lists)} lists published/s"
    )


def _cheaper(plan: CapacityPlan) -> str:
    cosmos = f"{plan.cheapest}_cost"
    ours = f"Cosmos DB by {plan.cheapest}"
    if not plan.figures["redis_cost"].unit:
        return f"{ours}: {_money(plan, cosmos)}; Redis is {plan.figures['redis_cost'].value}"
    costs = {ours: _money(plan, cosmos), "Redis": _money(plan, "redis_cost")}
    (low, high), (redis_low, redis_high) = _between(plan, cosmos), _between(plan, "redis_cost")
    if low <= redis_high and redis_low <= high:
        return f"a tie, as prices are not known better: {ours}: {costs[ours]}; Redis: {costs['Redis']}"
    first, second = ("Redis", ours) if redis_high < low else (ours, "Redis")
    return f"{first} is cheaper: {costs[first]}; {second}: {costs[second]}"


def _between(plan: CapacityPlan, name: str) -> tuple[float, float]:
    return plan.with_prices(-1).number(name), plan.with_prices(1).number(name)


def _money(plan: CapacityPlan, name: str) -> str:
    low, high = _between(plan, name)
    figure = plan.figures[name]
    return f"{two_digits(figure.number)} ({two_digits(low)} to {two_digits(high)}) {figure.unit}"


def _rows(plan: CapacityPlan) -> Iterator[Row]:
    figures, month = plan.figures, f"{plan.prices.currency}/month"
    low, high = plan.with_prices(-1), plan.with_prices(1)
    carried = {f"What {plan.number('carried_ru'):,.0f} RU/s carry": CARRIED}
    outline: dict[str, dict[str, str]] = {"Today": TODAY, **carried, **OUTLINE}
    if plan.sourced.carries_only:
        outline = {**carried, "Cosmos DB: request units": UNITS}
    for group, lines in outline.items():
        for words, name in lines.items():
            figure = figures.get(name)
            if figure is None or (not figure.value and (name in FEES or lines is TODAY)):
                continue
            if isinstance(figure.value, str):
                yield Row(group, words, note=f"{figure.value}, {name}")
            elif figure.unit == month or name in FEES:
                ends = low.number(name), high.number(name)
                yield Row(group, words, plan.prices.currency, figure.value, (), *ends, name)
            else:
                yield Row(group, words, figure.unit, figure.value, note=name)


def _origins(plan: CapacityPlan, prices_file: str) -> Iterator[str]:
    used, today = plan.prices.by_name(), datetime.now(UTC).date()
    oldest = min(used.values(), key=lambda each: each.date)
    doubtful = ", ".join(name for name, each in used.items() if each.basis != "listed")
    unchecked = f"; quoted or assumed, not checked: {doubtful}" if doubtful else ""
    age = f"the oldest of {oldest.date}, {oldest.age(today)}"
    yield f"prices in {plan.prices.currency} from {prices_file}, {age}{unchecked}"
    fees = [words for name, words in FEES.items() if name not in plan.sourced.sources]
    yield f"not priced: {', '.join((*fees, *NOT_PRICED))}"
    figures = plan.figures
    known = {each.name for _, each in explain(figures, "carried_lists")} if plan.sourced.carries_only else figures
    assumed = [
        f"{name} {each}" for name, each in figures.items() if name in known and each.source.startswith("assumed")
    ]
    yield f"assumed: {', '.join(assumed)}"
    yield "why: add --why NAME of a figure, or --out NAME for a page with all formulas"


def _formulas(plan: CapacityPlan) -> TextTable:
    lines = (
        (name, str(each), each.formula, ", ".join(f"{of.name} {of}" for of in each.operands), each.source)
        for name, each in plan.figures.items()
    )
    return TextTable("Formulas and sources", ("figure", "value", "formula", "of", "source"), tuple(lines))


def _cost_plot(plan: CapacityPlan) -> Plot:
    rates = tuple(plan.inputs.peak_rps * factor for factor in PLOTTED_RATES)
    plans = [plan.with_inputs(peak_rps=rate) for rate in rates]
    cosmos = tuple(each.number("cheapest_cost") for each in plans)
    redis = tuple(each.number("redis_cost") if each.figures["redis_cost"].unit else None for each in plans)
    return Plot(
        title="Cost over the rate",
        x="requests/s in the busiest hour",
        y=f"{plan.prices.currency} a month, without pods",
        curves=(Curve("Cosmos DB at its cheapest", rates, cosmos), Curve("Redis", rates, redis)),
        log_x=True,
        log_y=True,
        marks={plan.inputs.peak_rps: "this plan"},
    )


def _day_plot(plan: CapacityPlan) -> Plot:
    hours = tuple(float(hour) for hour in range(HOURS))
    needed = tuple(plan.number("reads_ru") * share for share in hourly_shares(plan.inputs.profile))
    reached = tuple(reached_ru(plan.inputs, plan.number("autoscale_top_ru"), plan.number("region_reads_ru")))
    curves = [Curve("needed for reads", hours, needed), Curve("autoscale, as reached by a region", hours, reached)]
    for words, name in (("manual", "serve_ru"), ("provisioned today", "have_ru")):
        if name in plan.figures:
            curves.append(Curve(words, hours, (plan.number(name),) * HOURS))
    return Plot(title="A day", x="hour of the day", y="RU/s", curves=tuple(curves))


def warnings(plan: CapacityPlan) -> Iterator[str]:
    """Yield the plan's warnings."""
    inputs = plan.inputs
    hot, skew, partitions = (plan.number(name) for name in ("hot_key_ru", "skew", "partitions"))
    if hot > new_partition_ru(inputs) * inputs.ru_utilisation or skew >= 2:
        yield (
            f"the hottest user alone takes {hot:,.0f} RU/s; as each of {partitions:,.0f} partitions gets as "
            f"many as the fullest, that is {skew:,.1f} times an even load: answer that user from a cache"
        )
    if max(plan.number("serve_ru"), plan.number("publish_ru_s")) >= MAX_RU:
        yield f"{MAX_RU:,} RU/s and more for a container need a support ticket"
    if (polls := plan.number("polls_ru")) > CONTROL_RU:
        yield f"the pods poll the catalogue with {polls:,.0f} RU/s, and its container has {CONTROL_RU}: give it more"
    hours = plan.number("publish_hours")
    if hours > inputs.window_hours + 1e-9:
        yield f"a publish takes {hours:,.1f} hours, more than the {inputs.window_hours:g} it may"
    if hours > inputs.refresh_hours:
        yield f"a publish takes {hours:,.1f} hours, and the next begins after {inputs.refresh_hours:g}"
    yield from _partition_warnings(plan)
    if inputs.p99_ms is not None and inputs.pod_rps is None:
        yield f"nothing shows that a p99 of {inputs.p99_ms:g} ms is kept; give --from-report of bench http --find-max"
    if inputs.zipf is None and inputs.hot_share is None:
        yield "all users are taken as equally busy; --zipf 0.9 shows a hot one's effect on its partition"


def _partition_warnings(plan: CapacityPlan) -> Iterator[str]:
    created, serve = plan.number("new_partitions"), plan.number("serve_ru")
    needed = max(plan.number("partitions_by_gb"), -(-serve // new_partition_ru(plan.inputs)))
    if created > needed:
        yield (
            f"a container created with {plan.number('creation_ru'):,.0f} RU/s has {created:,.0f} partitions for life, "
            f"and {needed:,.0f} would do: a hot user has {plan.number('partition_ru'):,.0f} of {serve:,.0f} RU/s; "
            f"publish more slowly"
        )


def read_baseline(path: Path) -> Baseline:
    """Read inputs and any figures to check. Raises PlanMisused."""
    facts = read_toml(path)
    check = facts.pop(CHECK, {})
    if not isinstance(check, dict) or check.keys() - {"bound_percent", "agreed"}:
        raise PlanMisused(f"[{CHECK}] in {path} takes bound_percent and agreed, and nothing else")
    figures, bound = check.get("agreed", {}), check.get("bound_percent", BOUND_PERCENT)
    if not isinstance(figures, dict):
        raise PlanMisused(f"[{CHECK}.agreed] in {path} must be a table of figures")
    if unknown := ", ".join(figures.keys() - {*BASELINE_FIGURES}):
        raise PlanMisused(f"{unknown} in {path} is not one of {', '.join(BASELINE_FIGURES)}")
    for name, value in {**figures, "bound_percent": bound}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise PlanMisused(f"{name} in {path} is {value!r}, and must be a number, 0 or more")
    return Baseline(InputSource(path.name, facts, f"{{name!r}} in {path}"), figures, bound)


def growth(plan: CapacityPlan, baseline: Baseline) -> Iterator[str]:
    """Yield figures above the bound or no longer possible. Raises PlanMisused without figures."""
    if not baseline.figures:
        raise PlanMisused(
            f"{baseline.layer.source} has no figure to check; write one with: hotplate plan ... --save plan.toml"
        )
    for name, before in baseline.figures.items():
        now = plan.figures.get(name)
        if now is None or not isinstance(now.value, int | float):
            yield f"{name} was {before:,.6g} and is {now or 'not possible'}"
        elif now.value > before * (1 + baseline.bound_percent / 100) + 1e-9:
            by = f" (+{now.value / before - 1:.0%})" if before else ""
            yield f"{name} grew from {replace(now, value=before)} to {now}{by}"


def to_toml(plan: CapacityPlan, bound_percent: float = BOUND_PERCENT) -> str:
    """Format a baseline: inputs with sources, and the figures to check."""
    lines = list[str]()
    for name, source in plan.sourced.sources.items():
        given = json.dumps(getattr(plan.inputs, name))  # also TOML
        lines.append(f"{name} = {given}  # {''.join(each if each.isprintable() else ' ' for each in source)}")
    lines += ["", f"[{CHECK}]", f"bound_percent = {bound_percent:g}", "", f"[{CHECK}.agreed]"]
    for name in BASELINE_FIGURES:
        figure = plan.figures[name]
        if isinstance(figure.value, int | float):
            lines.append(f"{name} = {figure.value:.6g}  # {figure.unit}")
    return "\n".join(lines) + "\n"
