"""A plan as one HTML file that loads nothing else: figures and their formulas, curves, savings, assumptions."""

from matplotlib.ticker import MaxNLocator, NullFormatter

from hotplate.bench.planner.figures import rounded
from hotplate.bench.planner.inputs import HOURS, KNOWN, hourly_shares
from hotplate.bench.planner.plan import CapacityPlan
from hotplate.bench.planner.review import NOT_PRICED, BreakEven, PlanReport
from hotplate.bench.report import text
from hotplate.bench.report.plots import BAD, INK, LINES, Frames, count_scale, mark, plot
from hotplate.bench.report.text import Cell, html_paragraphs, paragraphs, section, table

PRICE = "usd_"
TILES = (
    ("cheapest_cost", "Cosmos DB at its cheapest"), ("redis_cost", "Redis"), ("serve_ru", "Cosmos DB, to serve"),
    ("publish_ru_s", "Cosmos DB, to publish"), ("pods", "in all regions"),
)  # fmt: skip
METHOD = """
A plan is arithmetic: nothing was measured for it but what an input's source says was measured. RU charges are the
documented ones, by size; what an account really charges stands in each answer's header.

Throughput of a container is split evenly over its physical partitions. The fullest is taken to hold the hottest user
and an even share of the others, or, with a Zipf law, what it holds as a mean over where users may lie.

Whatever happens within an hour is left to the headroom of ru_utilisation. A sum of money has two digits, and a range:
what it is if each price is as low, or as high, as it may well be.
"""


def page(report: PlanReport) -> str:
    """Lay out the whole file."""
    plan = report.plan
    inputs = plan.inputs
    parts = [
        text.caution("Look out:", report.warnings) if report.warnings else "",
        text.tiles(
            (plan.figures[name], f"{words}, {report.costs[name].between}" if name in report.costs else words)
            for name, words in TILES
        ),
        section(
            "Which store, at which rate",
            cost_plot(report.break_even, inputs.peak_rps),
            f"At this plan's rate: {report.here.sentence}. Over the rates: {report.break_even.sentence}.",
        ),
        section("A day", day_plot(plan), f"For Cosmos DB, {plan.cheapest} is the cheapest."),
        _figures(report),
    ]
    if report.savings:
        headings = ["with one thing changed", "Cosmos DB saves", "Redis saves", "drawback"]
        advice = table(headings, report.advice(), (1, 2))
        parts.append(section("What would save money", advice, "USD a month, pods included."))
    parts += [_inputs(report), _prices(report), _formulas(report)]
    parts.append(section("What this is, and what it is not", html_paragraphs(paragraphs(METHOD))))
    title = f"hotplate plan: {inputs.users:,} users, {inputs.peak_rps:,g} requests/s"
    return text.whole_page(title, f"{report.date:%Y-%m-%d} · prices of {report.prices_file}", parts)


def _figures(report: PlanReport) -> str:
    rows = list[tuple[str, ...]]()
    for group, lines in report.plan.outline():
        rows += [(group,), *((words, report.shown(figure), figure.name) for words, figure in lines)]
    return section("What it will take", table(("", "", ""), rows, (1,), "grouped"))


def _inputs(report: PlanReport) -> str:
    figures = report.plan.figures
    rows = [
        (name, (str(figures[name]), known.metadata["description"]), figures[name].source)
        for name, known in KNOWN.items()
        if name in figures
    ]
    lead = "What is assumed can be replaced: by a flag, by --set NAME=VALUE, in a file for --from, or by a measurement."
    return section("What it rests on", table(["input", "value", "where from"], rows), lead)


def _prices(report: PlanReport) -> str:
    figures = report.plan.figures
    rows = [
        [name, usd, figures[name].unit if name in figures else "", age, figures[name].source if name in figures else ""]
        for name, usd, _, age in report.prices()
    ]
    unlisted = sum(basis != "listed" for _, _, basis, _ in report.prices())
    lead = f"{unlisted} of {len(rows)} are not list prices that somebody looked up at the source. " if unlisted else ""
    lead += f"Not priced: {', '.join(NOT_PRICED)}."
    return section("Prices", table(["price", "USD", "", "age", "where from"], rows, (1,)), lead)


def _formulas(report: PlanReport) -> str:
    """Show each figure with its formula, its operands and its source."""
    rows = list[tuple[Cell, ...]]()
    for name, figure in report.plan.figures.items():
        if name not in KNOWN and not name.startswith(PRICE):
            operands = ", ".join(f"{each.name} {each}" for each in figure.operands)
            source = f"({figure.source})" if figure.source and operands else figure.source
            rows.append((name, str(figure), (figure.formula, f"{operands} {source}".strip())))
    return section("Why", table(("figure", "value", "formula"), rows), "Every figure, its formula and its inputs.")


@plot()
def cost_plot(frames: Frames, found: BreakEven, planned_rps: float) -> None:
    """Draw what each store costs over the rate, with its range, where they cross, and the plan's own rate."""
    (axes,) = frames
    redis = [each for each in found.points if each.redis is not None]
    lines = (
        ("Cosmos DB at its cheapest", [(each.rps, each.cosmos) for each in found.points]),
        ("Redis", [(each.rps, each.redis) for each in redis if each.redis is not None]),
    )
    for (label, costs), color in zip(lines, LINES, strict=False):
        rates = [rps for rps, _ in costs]
        axes.plot(rates, [cost.value for _, cost in costs], color=color, label=label)
        low, high = [cost.low for _, cost in costs], [cost.high for _, cost in costs]
        axes.fill_between(rates, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axvline(planned_rps, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="this plan")
    if found.rps is not None:
        mark(axes, rounded(found.rps))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("requests/s in the busiest hour")
    axes.set_ylabel("USD a month, without pods")


@plot()
def day_plot(frames: Frames, plan: CapacityPlan) -> None:
    """Draw the RU/s that reads need hour by hour, headroom included, under what manual and autoscale are paid for."""
    (axes,) = frames
    needed = [plan.number("reads_ru") * share for share in hourly_shares(plan.inputs.profile)]
    hours = range(HOURS)
    least = plan.number("autoscale_top_ru") / 10
    axes.bar(hours, needed, color=LINES[0], width=0.8, label="needed for reads")
    now = plan.number("region_reads_ru")
    reached = [max(least, now * share) for share in hourly_shares(plan.inputs.profile)]
    axes.step(hours, reached, where="mid", color=LINES[1], label="autoscale, as reached by a region")
    axes.axhline(plan.number("serve_ru"), color=LINES[3], label="manual")
    if "have_ru" in plan.figures:
        axes.axhline(plan.number("have_ru"), color=BAD, label="provisioned today")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("hour of the day")
    count_scale(axes)
    axes.set_ylabel("RU/s")
