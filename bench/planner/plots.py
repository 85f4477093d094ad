"""The plots of a plan: cost over requests/s of both stores, and a day's RU/s beside what is paid for."""

from matplotlib import rc_context
from matplotlib.figure import Figure as Sheet
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from bench.planner.breakeven import BreakEven
from bench.planner.plan import Plan
from bench.planner.profiles import HOURS, shape
from bench.report.plots import BAD, HIGH, INK, LINES, STYLE, WIDE, legend, svg


def costs(found: BreakEven, planned_rps: float) -> str:
    """Draw what each store costs over the rate; the lines stand at where they cross, and at the plan's own rate."""
    rates = [each.rps for each in found.points]
    with rc_context(STYLE):
        sheet = Sheet(figsize=(WIDE, HIGH))
        axes = sheet.subplots()
        axes.plot(rates, [each.cosmos for each in found.points], color=LINES[0], label="Cosmos DB at its cheapest")
        axes.plot(rates, [each.redis for each in found.points], color=LINES[1], label="Redis")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.axvline(planned_rps, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="this plan")
        if found.rps is not None:
            axes.axvline(found.rps, color=LINES[3], linewidth=1)
            axes.annotate(
                f"{found.rps:,.0f}/s", (found.rps, 1), xycoords=("data", "axes fraction"),
                xytext=(4, -10), textcoords="offset points", color=LINES[3],
            )  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("requests/s in the busiest hour")
        axes.set_ylabel("USD a month, without pods")
        legend(axes)
        return svg(sheet)


def day(plan: Plan) -> str:
    """Draw the RU/s that reads need hour by hour, headroom included, under what manual and autoscale are paid for."""
    needed = [plan.number("reads_ru") * part for part in shape(plan.given.inputs.profile)]
    hours = range(HOURS)
    least = plan.number("autoscale_top_ru") / 10
    with rc_context(STYLE):
        sheet = Sheet(figsize=(WIDE, HIGH))
        axes = sheet.subplots()
        axes.bar(hours, needed, color=LINES[0], width=0.8, label="needed for reads")
        reached = [max(least, each) for each in needed]
        axes.step(hours, reached, where="mid", color=LINES[1], label="autoscale, at a higher price")
        name = "together_ru" if plan.given.inputs.publishing == "in-place" else "serve_ru"
        axes.axhline(plan.number(name), color=LINES[3], label="manual")
        if "have_ru" in plan.figures:
            axes.axhline(plan.number("have_ru"), color=BAD, label="provisioned today")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("hour of the day")
        axes.set_ylabel("RU/s")
        legend(axes)
        return svg(sheet)
