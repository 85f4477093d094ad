"""Levels of throughput: trials and their report.

Load exceeds the counted seconds at both ends, so a window of 10 s holds 10 seconds' budget.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from hotplate.bench.lists import MAX_POPULAR
from hotplate.bench.loadgen.result import P99_SAMPLES, SENT_BOUND, Result, lateness
from hotplate.bench.options import SweepOptions, describe_latency
from hotplate.bench.planner.inputs import PROVISIONED, READS
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.process import describe, is_emulated
from hotplate.bench.statistics import percentile
from hotplate.report import Column, Curve, Plot, Report, Row, format_value, rounded
from hotplate.stores.cosmos.url import AUTOSCALE_MIN, Throughput
from hotplate.stores.urls import redacted

# Load before and after the counted seconds.
LEAD_S = TAIL_S = 1
OVERLOAD, CALM = 1.1, 0.9
# Further points of the plot.
CURVE = (0.3, 0.6)
SERVICE_BUDGET_S = 0.05  # of `hotplate serve`, by default
TOO_FAR = (
    f"the service's deadline of {1000 * SERVICE_BUDGET_S:g} ms: the account is too far away. Measure from a machine in "
    "its region"
)
# Below this share of its reads, timeouts and not throughput limit a level.
FEW = 0.1
# Accepted deviation from RU/s ÷ charge.
NEAR = 0.02
# More than this share of provisioned RU/s is burst capacity.
BURST = 1.03
TRIES = 3
# Share of a level's reads that this machine must drive to measure it, as CALM is the load of its latencies.
REACHED = 0.93
COMPUTED, ASSUMED, AT_LEAST = "computed", "assumed", "at least"
ASSUMED_MARK, COMPUTED_MARK, AT_LEAST_MARK = "*", "=", "+"
SECONDS_A_MONTH = HOURS_A_MONTH * 3600
PUBLISHED, REFUSED = "lists published/s", "429s at 110 % load"
MANUAL, AUTOSCALE, BILLION = "USD/month manual", "USD/month autoscale", "USD per billion reads"
COLUMNS = (
    Column(READS, "reads\n/s", digits=5),
    Column(PUBLISHED, "lists\nwritten/s", digits=3),
    Column("p50", "p50\nms", "ms"),
    Column("p99", "p99\nms", "ms"),
    Column(REFUSED, "429s\n%", "%"),
    Column(MANUAL, "USD/month\nmanual", digits=3),
    Column(AUTOSCALE, "auto-\nscale", digits=3),
    Column(BILLION, "USD per\n10^9 reads"),
)


def from_store(status: int, body: bytes) -> str | None:
    """Accept only lists read from the store, as a `ResponseCheck`."""
    if status >= 400:
        return "status"
    return None if b'"source":"personal"' in body else "popular"


@dataclass(frozen=True)
class Trial:
    """A trial at a *share* of capacity; *result* has the counted seconds."""

    share: float
    rate: float
    result: Result
    throttled: int
    """429s received in the whole trial; 50 in a row open the service's breaker."""

    timeouts: int = 0
    """Reads of the whole trial that missed the service's deadline."""

    @cached_property
    def due(self) -> int:
        """Number of due requests."""
        return sum(second.due for second in self.result.seconds)

    @cached_property
    def accepted_s(self) -> float:
        """Lists read from the store per second."""
        return self.result.ok / max(1, len(self.result.seconds))

    @property
    def refused(self) -> float:
        """Share of due requests without a list from the store."""
        return max(0.0, 1 - self.result.ok / self.due) if self.due else 1.0

    @property
    def sent(self) -> bool:
        """Whether the generator kept up."""
        return sum(second.sent for second in self.result.seconds) >= SENT_BOUND * self.due

    @cached_property
    def late(self) -> str:
        """A sentence if the p99 is mostly the generator's lateness."""
        return "".join(lateness([self.result], P99_SAMPLES))


def trial(share: float, rate: float, result: Result, throttled: int, timeouts: int = 0) -> Trial:
    """Return a trial with a run's counted seconds."""
    seconds = result.seconds[LEAD_S : len(result.seconds) - TAIL_S]
    first = sum(second.due for second in result.seconds[:LEAD_S])
    lags_s = result.lags_s[first : first + sum(second.due for second in seconds)]
    return Trial(share, rate, replace(result, seconds=seconds, lags_s=lags_s), throttled, timeouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of throughput and its trials."""

    ru: int
    size_kb: int
    charge_ru: float
    trials: tuple[Trial, ...] = ()
    unproven: str = ""
    """Why this machine could not drive it."""

    limited: str = ""
    """What this machine drove, if that is a little less."""

    failed: str = ""
    """Why it could not be measured: burst capacity, or an account that is too far away."""

    broken: str = ""
    """An account's error at 90 % load."""

    @property
    def capacity_s(self) -> float:
        """Reads per second: RU/s ÷ charge."""
        return self.ru / self.charge_ru

    @property
    def computed(self) -> bool:
        """Whether its figures are computed."""
        return bool(self.unproven or self.failed)

    @property
    def reads_s(self) -> float:
        """Reads per second, accepted or computed."""
        return self.capacity_s if self.computed else self.at(OVERLOAD).accepted_s

    def at(self, share: float) -> Trial:
        """Return the trial at a share that got most reads through. Raises KeyError."""
        trials = [each for each in self.trials if each.share == share]
        if not trials:
            raise KeyError(share)
        return max(trials, key=lambda each: each.accepted_s) if share == OVERLOAD else trials[-1]


# Runs a trial at a share of capacity.
Attempt = Callable[[float], Trial]


def measure_level(level: Level, attempt: Attempt, *, emulated: bool, time_left: Callable[[], bool]) -> Level:
    """Measure a level: overload, then lower loads; *time_left* allows optional trials."""
    for share, judge in ((OVERLOAD, _judged), (CALM, _judged_calm)):
        for number in range(TRIES):
            if number == 0 or time_left():
                level = judge(replace(level, trials=(*level.trials, attempt(share))), emulated=emulated)
            if level.trials[-1].result.interrupted or not (level.unproven or level.limited or level.broken):
                break
            if share == CALM and not (level.unproven or level.broken):
                break
        if level.computed or level.trials[-1].result.interrupted:
            return level
    for share in CURVE:
        if time_left() and not level.trials[-1].result.interrupted:
            level = replace(level, trials=(*level.trials, attempt(share)))
    return level


def _judged(level: Level, *, emulated: bool) -> Level:
    last = level.trials[-1]
    best = level.at(OVERLOAD)
    level = replace(level, unproven="", limited="")
    if last.result.interrupted:
        return replace(level, unproven="it was interrupted")
    if last.accepted_s > BURST * level.capacity_s:
        return replace(level, failed=_burst(level, last))
    if last.timeouts > last.throttled and last.accepted_s < FEW * level.capacity_s:
        return replace(level, failed=_too_far(level, last))
    missed = best.accepted_s < (1 - NEAR) * level.capacity_s
    if not missed or not (emulated or not best.throttled or not best.sent):
        return level
    sentence = f"this machine got {best.accepted_s:,.0f} of {level.capacity_s:,.0f} reads/s through"
    if best.accepted_s >= REACHED * level.capacity_s:
        return replace(level, limited=sentence)
    return replace(level, unproven=sentence)


def _burst(level: Level, trial: Trial) -> str:
    spent = trial.accepted_s * level.charge_ru
    return (
        f"{spent:,.0f} RU/s were spent of {level.ru:,} provisioned: burst capacity, which idle partitions save for "
        "five minutes. The level was not measured; turn burst capacity off"
    )


def _too_far(level: Level, trial: Trial) -> str:
    return f"only {trial.accepted_s:,.0f} of {level.capacity_s:,.0f} reads/s met {TOO_FAR}"


def _judged_calm(level: Level, *, emulated: bool) -> Level:
    made = level.trials[-1]
    if made.result.interrupted or made.late or made.refused <= MAX_POPULAR:
        return replace(level, unproven="" if made.result.interrupted else made.late, broken="")
    sentence = f"{100 * made.refused:.1f} % of the requests got no list from the store at 90 % load"
    return replace(level, unproven=f"on this machine {sentence}") if emulated else replace(level, broken=sentence)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Results of a sweep; `publish_ru` is the charge of publishing a list by KB."""

    options: SweepOptions
    levels: tuple[Level, ...]
    publish_ru: Mapping[int, float]
    regions: int
    interrupted: bool
    region: str = ""
    """The region that was read, if there are several."""

    @property
    def emulated(self) -> bool:
        """Whether an emulator was measured."""
        return self.options.account is None or is_emulated(self.options.account)

    def subject(self, level: Level) -> str:
        """Return a level's name, with the size of lists if there are several."""
        kind = ", autoscale" * self.options.autoscale
        return f"{level.ru:,} RU/s{kind}" + (f", {level.size_kb} KB" if len(self.publish_ru) > 1 else "")


def report(sweep: Sweep, prices: Prices) -> Report:
    """Return the report of a sweep."""
    levels = sweep.levels
    account = sweep.options.account
    return Report(
        kind="ru",
        sentence=_answer(sweep, prices),
        rows=tuple(row for level in levels for row in (*_rows(sweep, level, prices), *_details(sweep, level))),
        columns=COLUMNS,
        marks={
            ASSUMED_MARK: f"assumed: {describe_latency(sweep.options.latency)}; this machine adds the rest",
            AT_LEAST_MARK: "at least: this machine drives no more",
            COMPUTED_MARK: "computed: RU/s divided by the measured charge",
        },
        origins=_origins(sweep, prices),
        plots=(_plot(sweep),) if levels else (),
        plot_first=True,
        notes=tuple(_notes(sweep)),
        broken=tuple(f"{sweep.subject(level)}: {level.broken}" for level in levels if level.broken),
        failures=tuple(f"{sweep.subject(level)}: {level.failed}" for level in levels if level.failed),
        interrupted=sweep.interrupted,
        configuration=sweep.options.to_json(),
        machine=describe(),
        extra={"subject": "emulator" if account is None else redacted(account)},
    )


def _origins(sweep: Sweep, prices: Prices) -> dict[str, str]:
    measured = "reads/s and 429s at 110 % of the RU/s, p50 and p99 at 90 %; no cache"
    if sweep.regions > 1:
        measured += f"; reads of one region, {sweep.region}"
    lines = {"measured": measured}
    if charges := {level.size_kb: level.charge_ru for level in sweep.levels}:
        what = ", ".join(
            f"{charge:.2f} RU a read of {size} KB, {sweep.publish_ru[size]:.2f} a list written and read back"
            for size, charge in charges.items()
        )
        lines["exact"] = f"by an emulator of Azure's charges: {what}" if sweep.emulated else what
    regions = f", all {sweep.regions} regions" if sweep.regions > 1 else ""
    price = prices.ru_hour
    lines["priced"] = (
        f"RU/s {price.date}, {price.region}{regions}, fully used; autoscale at its maximum, of 1,000 or more"
    )
    return lines


def _rows(sweep: Sweep, level: Level, prices: Prices) -> Iterator[Row]:
    subject = sweep.subject(level)
    note, mark = _standing(level)
    month_usd = _month_usd(level, prices, sweep.regions)
    autoscale_usd = _autoscale_usd(level, prices, sweep.regions)
    refused = 1 - 1 / OVERLOAD
    is_measured = not level.computed and not level.limited
    if is_measured:
        refused = level.at(OVERLOAD).refused
    billion_usd = month_usd / (level.reads_s * SECONDS_A_MONTH) * 1e9 if level.reads_s else None
    yield Row(subject, READS, "", level.reads_s, note=note, mark=mark)
    yield Row(subject, "reads/s per 100 RU/s", "", level.reads_s / level.ru * 100, main=False)
    yield Row(subject, PUBLISHED, "", level.ru / sweep.publish_ru[level.size_kb])
    yield from (_latency(sweep, level, percent) for percent in (50, 99))
    yield Row(subject, REFUSED, "share", refused, mark="" if is_measured else COMPUTED_MARK)
    yield Row(subject, MANUAL, "", month_usd)
    yield Row(subject, AUTOSCALE, "", autoscale_usd)
    yield Row(subject, BILLION, "", billion_usd)


def _standing(level: Level) -> tuple[str, str]:
    if level.computed:
        return COMPUTED, COMPUTED_MARK
    return (AT_LEAST, AT_LEAST_MARK) if level.limited else ("", "")


def _autoscale_usd(level: Level, prices: Prices, regions: int) -> float:
    autoscale = Throughput(level.ru, autoscale=True).rounded_up(max(level.ru, AUTOSCALE_MIN)).ru
    return prices.ru_hours(autoscale * HOURS_A_MONTH, autoscale=True, regions=regions)


def _latency(sweep: Sweep, level: Level, percent: float) -> Row:
    figure = f"p{percent:g}"
    if level.computed or level.broken or CALM not in {each.share for each in level.trials}:
        return Row(sweep.subject(level), figure, "us", None, note=COMPUTED if level.computed else "not measured")
    found = percentile([level.at(CALM).result], percent)
    is_assumed = sweep.emulated and found.value is not None
    note, mark = (ASSUMED, ASSUMED_MARK) if is_assumed else (found.note, "")
    return Row(sweep.subject(level), figure, "us", found.value, note=note, mark=mark)


def _details(sweep: Sweep, level: Level) -> Iterator[Row]:
    subject = sweep.subject(level)
    yield Row(subject, PROVISIONED, "", level.ru, main=False)
    yield Row(subject, "charge of a read", "RU", level.charge_ru, main=False)
    yield Row(subject, "charge of a published list", "RU", sweep.publish_ru[level.size_kb], main=False)
    yield Row(subject, "RU/s ÷ charge", "/s", level.capacity_s, main=False)
    for each in level.trials:
        load = f"at {each.share:.0%}"
        yield Row(subject, f"{load}: offered", "/s", each.due / max(1, len(each.result.seconds)), main=False)
        yield Row(subject, f"{load}: lists of the store", "/s", each.accepted_s, main=False)
        yield Row(subject, f"{load}: 429s that the service saw", "", each.throttled, main=False)


def _month_usd(level: Level, prices: Prices, regions: int) -> float:
    return prices.ru_hours(level.ru * HOURS_A_MONTH, regions=regions)


def _answer(sweep: Sweep, prices: Prices) -> str:
    """Say what 100 RU/s carry and cost, and what the highest level does."""
    if not sweep.levels:
        return "Nothing was measured."
    level = sweep.levels[0]
    hundred = 100 / level.charge_ru
    usd = _month_usd(level, prices, sweep.regions) / level.ru * 100
    top = max(sweep.levels, key=lambda each: (each.size_kb == level.size_kb, each.ru))
    p99_us = _latency(sweep, top, 99).value
    tail = "" if p99_us is None else f", p99 {format_value(p99_us, 'us')}{' assumed' * sweep.emulated}"
    top_usd = _month_usd(top, prices, sweep.regions)
    standing = {"": "", AT_LEAST: "at least ", COMPUTED: "(computed) "}[_standing(top)[0]]
    return (
        f"100 RU/s carry {rounded(hundred, 3)} reads/s of {level.size_kb} KB for {rounded(usd, 3)} USD a month; "
        f"{top.ru:,} RU/s carry {standing}{top.reads_s:,.0f} for {top_usd:,.0f} USD{tail}."
    )


def _notes(sweep: Sweep) -> Iterator[str]:
    reasons = dict[str, list[str]]()
    for level in sweep.levels:
        if reason := level.unproven or level.limited:
            reasons.setdefault(reason, []).append(sweep.subject(level))
    for reason, names in reasons.items():
        yield f"{', '.join(names)}: {reason}."


def _plot(sweep: Sweep) -> Plot:
    throughput = list[Curve]()
    p99 = list[Curve]()
    for level in sweep.levels:
        name = sweep.subject(level) + f", {COMPUTED}" * level.computed
        trials = sorted({each.share: each for each in level.trials}.values(), key=lambda each: each.share)
        offered = tuple(each.rate for each in trials)
        accepted = tuple(each.accepted_s for each in trials)
        latencies_us = tuple(None if each.late else percentile([each.result], 99).value for each in trials)
        if level.broken:  # the table has no latency either
            latencies_us = (None,) * len(offered)
        if level.computed:
            offered = tuple(share * level.capacity_s for share in (*CURVE, 1.0, OVERLOAD))
            accepted = tuple(min(each, level.capacity_s) for each in offered)
            latencies_us = (None,) * len(offered)
        throughput.append(Curve(name, offered, accepted))
        p99.append(Curve(name, offered, latencies_us))
    x = "offered reads/s"
    p99_label = "p99" + f", {ASSUMED}" * sweep.emulated
    below = Plot(p99_label, x, p99_label, tuple(p99), y_unit="us", log_x=True, points=True)
    title = "Throughput and p99 over the offered load"
    return Plot(title, x, READS, tuple(throughput), log_x=True, log_y=True, points=True, below=below)
