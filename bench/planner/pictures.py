"""The pictures of a plan: cost over the rate, a day's load, and measured throughput over RU/s."""

from collections.abc import Iterator

from hotplate.base.report import Curve, Plot, Report, Row, rounded
from hotplate.bench.figure_names import LEVEL_UNIT, P99, PROVISIONED, READS
from hotplate.bench.planner.inputs import HOURS, hourly_shares
from hotplate.bench.planner.plan import CapacityPlan, break_even
from hotplate.bench.planner.serving_options import hourly_billed_ru

PLOTTED_RATES = tuple(10 ** (step / 4) for step in range(-8, 9))  # multiples of the plan's rate
THIS_PLAN = "this plan"


def pictures(plan: CapacityPlan, sweep: Report | None = None) -> tuple[Plot, ...]:
    """Return the plots of a plan, and that of *sweep*, a report of `hotplate bench ru`."""
    plots = [_plot_cost(plan), _plot_day(plan)]
    if sweep is not None:
        plots += _plots_of_sweep(plan, sweep)
    return tuple(plots)


def _plot_cost(plan: CapacityPlan) -> Plot:
    """Plot the monthly totals of Cosmos DB and of Redis over requests/s, around the rate of *plan*.

    Curves have gaps where a store is not possible. Marks are the plan's rate, and rates from which on Redis costs less
    (break-even).
    """
    rates = tuple(plan.inputs.peak_rps * factor for factor in PLOTTED_RATES)
    plans = [plan.with_inputs(peak_rps=rate) for rate in rates]

    marks = {plan.inputs.peak_rps: THIS_PLAN}
    for cheaper in break_even(plan):
        if rates[0] < cheaper.low < rates[-1]:
            marks[cheaper.low] = f"break-even: {rounded(cheaper.low)}/s"

    return Plot(
        title="What the store costs, by rate",
        x="requests/s in the busiest hour",
        y=f"{plan.prices.currency} a month",
        curves=(
            Curve("Cosmos DB at its cheapest", rates, tuple(at.possible(f"{at.cheapest}_total") for at in plans)),
            Curve("Redis", rates, tuple(at.possible("redis_total") for at in plans)),
        ),
        log_x=True,
        log_y=True,
        marks=marks,
        caption="With pods and training. A gap: the store is not possible.",
    )


def _plot_day(plan: CapacityPlan) -> Plot:
    """Plot, by hour of the day, the RU/s that reads need, that autoscale bills, and that are provisioned manually.

    Manual RU/s are those of the plan and, if they are an input, those of today. Reads need a share of the busiest
    hour's RU/s in each hour.
    """
    hours = tuple(float(hour) for hour in range(HOURS))
    curves = list[Curve]()
    if plan.is_possible("reads_ru"):
        needed = tuple(plan.number("reads_ru") * share for share in hourly_shares(plan.inputs.profile))
        curves.append(Curve("needed for reads", hours, needed))
    if plan.is_possible("autoscale_top_ru"):
        maximum = plan.number("autoscale_top_ru")
        billed = tuple(hourly_billed_ru(plan.inputs.profile, maximum, plan.number("region_reads_ru")))
        curves.append(Curve("autoscale, as reached by a region", hours, billed))
    for label, name in (("manual", "serve_ru"), ("provisioned today", "have_ru")):
        ru = plan.possible(name)
        if ru is not None:
            curves.append(Curve(label, hours, (ru,) * HOURS))
    return Plot(title="A day's load, and the RU/s for it", x="hour of the day", y="RU/s", curves=tuple(curves))


def _plots_of_sweep(plan: CapacityPlan, sweep: Report) -> Iterator[Plot]:
    """Plot reads/s and p99 over RU/s, as *sweep*, a report of `bench ru`, measured them for sizes of lists.

    Marks are the RU/s of this plan, and those of today if they are an input.
    """
    marks = {plan.number("serve_ru"): THIS_PLAN} if plan.is_possible("serve_ru") else {}
    if "have_ru" in plan.figures:
        marks[plan.number("have_ru")] = "today"

    # An emulator's latencies are assumed, which a mark shows.
    assumed = any(row.figure == P99 and row.mark for row in sweep.rows)
    p99_label = f"{P99}, assumed" if assumed else P99
    date = str(sweep.machine.get("date", ""))[:10]
    for figure, label, unit in ((READS, READS, ""), (P99, p99_label, "us")):
        yield Plot(
            title=f"By RU/s: {label}",
            x=PROVISIONED,
            y=label,
            y_unit=unit,
            curves=tuple(_curves_by_size(sweep, figure)),
            log_x=True,
            log_y=True,
            points=True,
            marks=marks,
            caption=f"hotplate bench ru, {date}: {sweep.sentence}",
        )


def _curves_by_size(sweep: Report, figure: str) -> Iterator[Curve]:
    """Yield a curve of *figure*, as "p99", over the provisioned RU/s for each size of lists in a report of `bench ru`.

    A subject of the report is RU/s and a size, as "400 RU/s, 2 KB", whose size, "2 KB", names the curve. With a single
    size, the subject is "400 RU/s", and the curve is "measured".
    """
    provisioned_ru = {row.subject: row.value or 0.0 for row in sweep.rows if row.figure == PROVISIONED}
    rows_by_size = dict[str, list[Row]]()
    for row in sweep.rows:
        if row.figure == figure:
            size = row.subject.partition(LEVEL_UNIT)[2].lstrip(", ") or "measured"
            rows_by_size.setdefault(size, []).append(row)

    for size, rows in rows_by_size.items():
        rows.sort(key=lambda row: provisioned_ru[row.subject])
        ru = tuple(provisioned_ru[row.subject] for row in rows)
        yield Curve(size, ru, tuple(row.value for row in rows))
