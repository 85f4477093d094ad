"""What follows from a plan: the break-even of both stores, savings, warnings, and growth beyond a saved baseline."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hotplate.bench.planner.cosmos import CONTROL_RU
from hotplate.bench.planner.figures import PlanFigure, Range, format_value, two_digits
from hotplate.bench.planner.inputs import KNOWN, REPORT_FORMAT, Inputs, InputSource, PlanMisused, read_toml
from hotplate.bench.planner.plan import CapacityPlan
from hotplate.stores.cosmos.url import INITIAL_PARTITION_RU, MAX_RU, PARTITION_RU

# What an account may also cost, or save, and no figure holds.
NOT_PRICED = (
    "reserved capacity and its discount", "writes in several regions", "tiers of Azure Managed Redis but Balanced",
    "traffic between regions and to the internet", "backups", "private links", "free tiers",
)  # fmt: skip

# The rates at which both stores are compared, and how near to the break-even the search comes.
LEAST_RPS = 1.0
MOST_RPS = 100_000.0
POINTS_A_DECADE = 12
PRECISION = 1.005

# Of a list that is shown to a user.
SHOWN_LENGTH = 10
# USD a month, below which a saving is left out.
LEAST_SAVING = 0.01
# The cache that is suggested: a share of the users, and at most so many.
CACHED_SHARE = 0.1
CACHED_MOST = 100_000

# The figures that a baseline holds.
BASELINE_FIGURES = (
    "reads_ru", "serve_ru", "publish_ru_s", "together_ru", "partitions", "publish_hours", "stored_gb", "pods",
    "redis_gb", "manual_cost", "autoscale_cost", "serverless_cost", "redis_cost", "cosmos_total", "redis_total",
)  # fmt: skip
BOUND_PERCENT = 10.0
# The table of a baseline's file that holds its figures and their bound.
CHECK = "check"


@dataclass(frozen=True, slots=True)
class CostPoint:
    """Both stores at one rate, in USD a month and without pods, which cost the same with either."""

    rps: float
    cosmos: Range
    capacity: str
    redis: Range | None
    """None if no size is large enough."""

    @property
    def redis_wins(self) -> bool:
        """Whether Redis is the cheaper one, by the prices as they stand."""
        return self.redis is not None and self.redis.value < self.cosmos.value

    @property
    def sentence(self) -> str:
        """Which store is cheaper at this rate, or that nobody can tell."""
        cosmos = f"Cosmos DB by {self.capacity}", self.cosmos
        if self.redis is None:
            return f"{cosmos[0]}: {cosmos[1]} USD/month; no Redis with one endpoint is large enough"
        redis = "Redis", self.redis
        (cheaper, least), (other, more) = (redis, cosmos) if self.redis_wins else (cosmos, redis)
        if self.cosmos.overlaps(self.redis):
            return f"a tie: {cheaper} {least} and {other} {more} USD/month; prices are not known well enough to tell"
        return f"{cheaper} is cheaper: {least} USD/month; {other}: {more}"


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The cost curves, and the rates from which Redis is, may be and surely is cheaper; None for never or always."""

    points: tuple[CostPoint, ...]
    rps: float | None
    may_from: float | None
    surely_from: float | None

    @property
    def sentence(self) -> str:
        """The result in words."""
        low, high = self.points[0].rps, self.points[-1].rps
        if self.rps is None:
            winner = "Redis" if self.points[0].redis_wins else "Cosmos DB at its cheapest"
            ties = any(each.redis is not None and each.cosmos.overlaps(each.redis) for each in self.points)
            tie = "; at some of them it is a tie, because prices are not known better" if ties else ""
            return f"{winner} is cheaper at every rate from {low:,.0f} to {high:,.0f} requests/s{tie}"
        begin = f"from {two_digits(self.may_from)}" if self.may_from else "from the lowest rate"
        end = f"to {two_digits(self.surely_from)}" if self.surely_from else "to the highest rate"
        return (
            f"from about {two_digits(self.rps)} requests/s on, Redis is cheaper than Cosmos DB at its cheapest; "
            f"{begin} {end} it is a tie, because prices are not known better"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"sentence": self.sentence}


@dataclass(frozen=True, slots=True)
class Saving:
    """One change, its drawback, and what it saves, in USD a month; below zero if it costs."""

    change: str
    drawback: str
    cosmos_saves: float
    redis_saves: float


@dataclass(frozen=True, slots=True)
class Baseline:
    """A saved plan: its inputs, its figures, and by how much these may be exceeded."""

    layer: InputSource
    figures: Mapping[str, float]
    bound_percent: float


@dataclass(frozen=True, slots=True)
class Growth:
    """One figure that grew by more than the bound; `now` is a text if it is no longer possible."""

    name: str
    unit: str
    before: float
    now: float | str | None

    @property
    def sentence(self) -> str:
        """The growth in words."""
        if not isinstance(self.now, int | float):
            return f"{self.name} was {format_value(self.before, self.unit)} and is {self.now}"
        by = f" (+{self.now / self.before - 1:.0%})" if self.before else ""
        return (
            f"{self.name} grew from {format_value(self.before, self.unit)} to {format_value(self.now, self.unit)}{by}"
        )


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A plan and what follows from it; lives as long as it takes to print or to write it."""

    plan: CapacityPlan
    costs: Mapping[str, Range]
    """Each sum of money by its name, and what it is with all prices as low, and as high, as they may well be."""

    here: CostPoint
    """Both stores at the plan's own rate."""

    break_even: BreakEven
    savings: tuple[Saving, ...]
    warnings: tuple[str, ...]
    prices_file: str
    date: datetime

    def shown(self, figure: PlanFigure) -> str:
        """Format a figure; a sum of money with its range."""
        cost = self.costs.get(figure.name)
        return str(figure) if cost is None else f"{cost} {figure.unit}"

    def advice(self) -> list[tuple[str, str, str, str]]:
        """Return change, what it saves with Cosmos DB and with Redis, and drawback of each saving."""
        return [
            (each.change, two_digits(each.cosmos_saves), two_digits(each.redis_saves), each.drawback)
            for each in self.savings
        ]

    def prices(self) -> list[tuple[str, str, str, str]]:
        """Return name, USD, basis and age of each price that the plan rests on."""
        plan, today = self.plan, self.date.date()
        used = plan.prices.by_name()
        for size in plan.prices.redis:
            if size.name == plan.figures["redis_size"].value:
                used["redis_node_hour"] = size.hour
        return [(f"usd_{name}", f"{each.usd:g}", each.basis, each.age(today)) for name, each in used.items()]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        figures = self.plan.figures
        return {
            "format": REPORT_FORMAT,
            "kind": "plan",
            "date": self.date.isoformat(timespec="seconds"),
            "prices_file": self.prices_file,
            "prices": [dict(zip(("name", "usd", "basis", "age"), each, strict=True)) for each in self.prices()],
            "not_priced": list(NOT_PRICED),
            "cheapest": self.plan.cheapest,
            "verdict": self.here.sentence,
            "cautions": list(self.warnings),
            "break_even": self.break_even.to_json(),
            "advice": [asdict(each) for each in self.savings],
            "inputs": [figures[name].to_json() for name in KNOWN if name in figures],
            "figures": [each.to_json() for name, each in figures.items() if name not in KNOWN],
            "ranges": {name: [cost.low, cost.high] for name, cost in self.costs.items()},
        }


def review(plan: CapacityPlan, prices_file: Path) -> PlanReport:
    """Derive what follows from a plan."""
    return PlanReport(
        plan,
        ranges(plan),
        cost_at(plan, plan.inputs.peak_rps),
        find_break_even(plan),
        tuple(find_savings(plan)),
        tuple(warnings(plan)),
        prices_file.name,
        datetime.now(UTC),
    )


def find_break_even(plan: CapacityPlan) -> BreakEven:
    """Calculate both costs at rates from 1 to 100,000 requests/s, or wider if the plan's own lies near the edge."""
    low = min(LEAST_RPS, plan.inputs.peak_rps / 10)
    high = max(MOST_RPS, plan.inputs.peak_rps * 10)
    points = [cost_at(plan, low)]
    step = 10 ** (1 / POINTS_A_DECADE)
    while points[-1].rps < high:
        points.append(cost_at(plan, min(high, points[-1].rps * step)))

    def crossing(wins: Callable[[Range, Range], bool]) -> float | None:
        """Return the rate from which Redis wins over Cosmos DB; None if it always does, or never."""

        def holds(point: CostPoint) -> bool:
            return point.redis is not None and wins(point.redis, point.cosmos)

        crossed = next((place for place, each in enumerate(points) if holds(each)), 0)
        if not crossed:
            return None
        below, above = points[crossed - 1].rps, points[crossed].rps
        while above / below > PRECISION:
            middle = (below * above) ** 0.5
            below, above = (below, middle) if holds(cost_at(plan, middle)) else (middle, above)
        return above

    return BreakEven(
        tuple(points),
        crossing(lambda redis, cosmos: redis.value < cosmos.value),
        crossing(lambda redis, cosmos: redis.low <= cosmos.high),
        crossing(lambda redis, cosmos: redis.high < cosmos.low),
    )


def cost_at(plan: CapacityPlan, rps: float) -> CostPoint:
    """Return both costs at a rate."""
    there = plan.with_inputs(peak_rps=rps)
    costs = ranges(there)
    return CostPoint(rps, costs[f"{there.cheapest}_cost"], there.cheapest, costs.get("redis_cost"))


def ranges(plan: CapacityPlan) -> dict[str, Range]:
    """Return each sum of money with what it is if all prices are as low, or as high, as they may well be."""
    plans = plan.with_prices(-1), plan, plan.with_prices(1)
    sums = [name for name, figure in plan.figures.items() if figure.unit == "USD/month"]
    return {name: Range(*(each.number(name) for each in plans)) for name in sums}


def find_savings(plan: CapacityPlan) -> list[Saving]:
    """Try each change by itself and return those that save something, the most first."""
    found = list[Saving]()
    for change, drawback, inputs in (*_list_changes(plan.inputs), *_container_changes(plan.inputs)):
        changed = plan.with_inputs(**inputs)
        cosmos, redis = (_saved(plan, changed, name) for name in ("cosmos_total", "redis_total"))
        if max(cosmos, redis) >= LEAST_SAVING:
            found.append(Saving(change, drawback, round(cosmos, 2), round(redis, 2)))
    return sorted(found, key=lambda each: max(each.cosmos_saves, each.redis_saves), reverse=True)


def _saved(plan: CapacityPlan, changed: CapacityPlan, name: str) -> float:
    before, after = plan.figures[name].value, changed.figures[name].value
    return before - after if isinstance(before, float) and isinstance(after, float) else 0.0


def _list_changes(inputs: Inputs) -> Iterator[tuple[str, str, dict[str, Any]]]:
    def with_size(factor: float, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 -- inputs by name
        return changes if inputs.list_bytes is None else changes | {"list_bytes": inputs.list_bytes * factor}

    if inputs.list_length > SHOWN_LENGTH:
        change = f"lists of {SHOWN_LENGTH} items, not {inputs.list_length}"
        shorter = with_size(SHOWN_LENGTH / inputs.list_length, list_length=SHOWN_LENGTH)
        yield change, "fewer to fall back on after a filter", shorter
    if inputs.encoding == "json":
        yield "encoding zstd, not json", "0.8 µs of CPU a read", with_size(inputs.zstd_share, encoding="zstd")
    if inputs.title_chars > 0 and inputs.list_bytes is None:
        yield "no titles in the lists", "the caller looks them up", {"title_chars": 0.0}
    if inputs.cache_entries == 0 and inputs.hit_rate is None and inputs.zipf:
        entries = min(CACHED_MOST, max(1, int(inputs.users * CACHED_SHARE)))
        drawback = "memory in each pod: --cache-mb of hotplate serve"
        yield f"an in-process cache of {entries:,} lists", drawback, {"cache_entries": entries}


def _container_changes(inputs: Inputs) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if inputs.consistency in ("bounded", "strong"):
        drawback = "a read may be older, but a release never changes"
        yield f"eventual consistency, not {inputs.consistency}", drawback, {"consistency": "eventual"}
    for capacity, drawback in (
        ("manual", "a peak above the plan is throttled"),
        ("autoscale", "a peak above its top is throttled"),
        ("serverless", "no latency guarantee"),
    ):
        if capacity != inputs.capacity:
            yield f"{capacity}, not {inputs.capacity}", drawback, {"capacity": capacity}


def warnings(plan: CapacityPlan) -> Iterator[str]:
    """Yield what to look out for: limits, partitions, and what the plan leaves open."""
    inputs = plan.inputs
    hot = plan.number("hot_key_ru")
    if hot > PARTITION_RU:
        yield (
            f"the hottest user alone takes {hot:,.0f} RU/s, and a key has one partition of at most {PARTITION_RU:,}: "
            f"no RU/s help; answer it from a cache"
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
        yield f"nothing shows that a p99 of {inputs.p99_ms:g} ms is kept; give a measurement with --from-report"
    if inputs.zipf is None and inputs.hot_share is None:
        yield "all users are taken as equally busy; --zipf 0.9, say, shows what a hot one does to its partition"


def _partition_warnings(plan: CapacityPlan) -> Iterator[str]:
    created = plan.number("new_partitions")
    needed = max(plan.number("partitions_by_gb"), -(-plan.number("serve_ru") // INITIAL_PARTITION_RU))
    if created <= needed:
        return
    yield (
        f"a container created with {plan.number('creation_ru'):,.0f} RU/s has {created:,.0f} partitions for life, and "
        f"{needed:,.0f} would do: of {plan.number('serve_ru'):,.0f} RU/s each then holds "
        f"{plan.number('partition_ru'):,.0f}, which is all that a hot user has; publish more slowly to have fewer"
    )


def read_baseline(path: Path) -> Baseline:
    """Read a file of inputs and, if it has them, the figures to check. PlanMisused for one that makes no sense."""
    facts = read_toml(path)
    check = facts.pop(CHECK, {})
    if not isinstance(check, dict) or check.keys() - {"bound_percent", "agreed"}:
        raise PlanMisused(f"[{CHECK}] in {path} takes bound_percent and agreed, and nothing else")
    figures, bound = check.get("agreed", {}), check.get("bound_percent", BOUND_PERCENT)
    if not isinstance(figures, dict):
        raise PlanMisused(f"[{CHECK}.agreed] in {path} must be a table of figures")
    if not _is_number(bound) or bound < 0:
        raise PlanMisused(f"bound_percent in {path} is {bound!r}, and must be a number, 0 or more")
    for name, value in figures.items():
        if name not in BASELINE_FIGURES:
            raise PlanMisused(
                f"{name} in {path} is not a figure of a baseline; there are {', '.join(BASELINE_FIGURES)}"
            )
        if not _is_number(value):
            raise PlanMisused(f"{name} in {path} is {value!r}, and must be a number")
    return Baseline(InputSource(path.name, facts, f"{{name!r}} in {path}"), figures, bound)


def growth(plan: CapacityPlan, baseline: Baseline) -> list[Growth]:
    """Return the figures above the bound or no longer possible. PlanMisused for a baseline without figures."""
    if not baseline.figures:
        raise PlanMisused(
            f"{baseline.layer.source} has no figure to check; write one with: hotplate plan ... --save plan.toml"
        )
    found = list[Growth]()
    for name, before in baseline.figures.items():
        figure = plan.figures[name]
        bound = before * (1 + baseline.bound_percent / 100) + 1e-9
        if not isinstance(figure.value, int | float) or figure.value > bound:
            found.append(Growth(name, figure.unit or "USD/month", before, figure.value))
    return found


def to_toml(plan: CapacityPlan, bound_percent: float = BOUND_PERCENT) -> str:
    """Write a plan as a baseline: the inputs that are not defaults, each with its source, and the figures to check."""
    lines = list[str]()
    for name, source in plan.sourced.sources.items():
        given = json.dumps(getattr(plan.inputs, name))  # JSON of these is TOML, too
        lines.append(f"{name} = {given}  # {''.join(each if each.isprintable() else ' ' for each in source)}")
    lines += ["", f"[{CHECK}]", f"bound_percent = {bound_percent:g}", "", f"[{CHECK}.agreed]"]
    for name in BASELINE_FIGURES:
        value = plan.figures[name].value
        if isinstance(value, int | float):
            lines.append(f"{name} = {value:.6g}  # {plan.figures[name].unit}")
    return "\n".join(lines) + "\n"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
