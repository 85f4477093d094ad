"""Levels of throughput: trials and their report.

Load exceeds the counted seconds at both ends, so a window of 10 s holds 10 seconds' budget.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from hotplate.bench.lists import MAX_POPULAR
from hotplate.bench.loadgen.result import P99_SAMPLES, SENT_BOUND, Result, lateness
from hotplate.bench.options import SweepOptions
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.process import describe, is_emulated
from hotplate.bench.statistics import percentile
from hotplate.report import Curve, Plot, Report, Row, format_value
from hotplate.stores.cosmos.url import Throughput
from hotplate.stores.urls import redacted

# Load before and after the counted seconds.
LEAD_S = TAIL_S = 1
OVERLOAD, CALM = 1.1, 0.9
# Further points of the plot.
CURVE = (0.3, 0.6)
# Accepted deviation from RU/s ÷ charge.
NEAR = 0.02
# More than this share of provisioned RU/s is burst capacity.
BURST = 1.03
TRIES = 2
COMPUTED, ASSUMED = "COMPUTED", "assumed"
SECONDS_A_MONTH = HOURS_A_MONTH * 3600
SENTENCE = "Throughput by level of RU/s: single lists through hotplate serve without a cache"


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


def trial(share: float, rate: float, result: Result, throttled: int) -> Trial:
    """Return a trial with a run's counted seconds."""
    seconds = result.seconds[LEAD_S : len(result.seconds) - TAIL_S]
    first = sum(second.due for second in result.seconds[:LEAD_S])
    lags_s = result.lags_s[first : first + sum(second.due for second in seconds)]
    return Trial(share, rate, replace(result, seconds=seconds, lags_s=lags_s), throttled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of throughput and its trials."""

    ru: int
    size_kb: int
    charge_ru: float
    trials: tuple[Trial, ...] = ()
    unproven: str = ""
    """Why this machine could not drive it."""

    burst: str = ""
    """Why it is computed: a trial exceeded the provisioned RU/s."""

    broken: str = ""
    """An account's error at 90 % load."""

    @property
    def capacity_s(self) -> float:
        """Reads per second: RU/s ÷ charge."""
        return self.ru / self.charge_ru

    @property
    def computed(self) -> bool:
        """Whether its figures are computed."""
        return bool(self.unproven or self.burst)

    @property
    def reads_s(self) -> float:
        """Reads per second, accepted or computed."""
        return self.capacity_s if self.computed else self.at(OVERLOAD).accepted_s

    def at(self, share: float) -> Trial:
        """Return the last trial at a share. Raises KeyError."""
        return {each.share: each for each in self.trials}[share]


# Runs a trial at a share of capacity.
Attempt = Callable[[float], Trial]


def measure_level(level: Level, attempt: Attempt, *, emulated: bool, time_left: Callable[[], bool]) -> Level:
    """Measure a level: overload, then lower loads; *time_left* allows optional trials."""
    for share, judge in ((OVERLOAD, _judged), (CALM, _judged_calm)):
        for number in range(TRIES):
            if number == 0 or time_left():
                level = judge(replace(level, trials=(*level.trials, attempt(share))), emulated=emulated)
            if level.trials[-1].result.interrupted or not (level.unproven or level.broken):
                break
        if level.computed or level.trials[-1].result.interrupted:
            return level
    for share in CURVE:
        if time_left() and not level.trials[-1].result.interrupted:
            level = replace(level, trials=(*level.trials, attempt(share)))
    return level


def _judged(level: Level, *, emulated: bool) -> Level:
    made, capacity_s = level.trials[-1], level.capacity_s
    if made.result.interrupted:
        return replace(level, unproven="it was interrupted")
    if made.accepted_s > BURST * capacity_s:
        spent = made.accepted_s * level.charge_ru
        burst = (
            f"{spent:,.0f} RU/s were spent of {level.ru:,} provisioned: burst capacity, which idle partitions save for "
            "five minutes. The level was not measured; turn burst capacity off"
        )
        return replace(level, unproven="", burst=burst)
    missed = made.accepted_s < (1 - NEAR) * capacity_s
    if missed and (emulated or not made.throttled or not made.sent):
        return replace(level, unproven=f"this machine got {made.accepted_s:,.0f} of {capacity_s:,.0f} reads/s through")
    return replace(level, unproven="")


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

    @property
    def emulated(self) -> bool:
        """Whether an emulator was measured."""
        return self.options.account is None or is_emulated(self.options.account)

    def subject(self, level: Level) -> str:
        """Return a level's name, with the size of lists if there are several."""
        return f"{level.ru:,} RU/s" + (f", {level.size_kb} KB" if len(self.publish_ru) > 1 else "")


def report(sweep: Sweep, prices: Prices) -> Report:
    """Return the report of a sweep."""
    levels, account, head = sweep.levels, sweep.options.account, ""
    if sweep.emulated:
        given = "are not Azure's" if account else f"are an assumption, {sweep.options.latency}"
        head = f"EMULATED: charges, throughput and 429s are exact; latencies {given}, and what this machine adds"
    return Report(
        kind="ru",
        sentence=SENTENCE,
        head=head,
        rows=tuple(row for level in levels for row in (*_rows(sweep, level, prices), *_details(sweep, level))),
        plots=(_plot(sweep),) if levels else (),
        notes=(*_answer(sweep, prices), *_notes(sweep)),
        broken=tuple(f"{sweep.subject(level)}: {level.broken}" for level in levels if level.broken),
        failures=tuple(f"{sweep.subject(level)}: {level.burst}" for level in levels if level.burst),
        interrupted=sweep.interrupted,
        configuration=sweep.options.to_json(),
        machine=describe(),
        extra={"subject": "emulator" if account is None else redacted(account)},
    )


def _rows(sweep: Sweep, level: Level, prices: Prices) -> Iterator[Row]:
    subject, note = sweep.subject(level), COMPUTED if level.computed else ""
    month_usd = _month_usd(level, prices, sweep.regions)
    autoscale = Throughput(level.ru, autoscale=True).rounded_up(level.ru).ru
    autoscale_usd = prices.ru_hours(autoscale * HOURS_A_MONTH, autoscale=True, regions=sweep.regions)
    refused = 1 - 1 / OVERLOAD if level.computed else level.at(OVERLOAD).refused
    billion_usd = month_usd / (level.reads_s * SECONDS_A_MONTH) * 1e9 if level.reads_s else None
    yield Row(subject, "reads/s", "", level.reads_s, note=note)
    yield Row(subject, "reads/s per 100 RU/s", "", level.reads_s / level.ru * 100)
    yield Row(subject, "lists published/s", "", level.ru / sweep.publish_ru[level.size_kb])
    yield from (_latency(sweep, level, percent) for percent in (50, 99))
    yield Row(subject, "429s at 110 % load", "share", refused)
    yield Row(subject, "USD/month manual", "", month_usd)
    yield Row(subject, "USD/month autoscale", "", autoscale_usd, note="" if autoscale == level.ru else "of 1,000 RU/s")
    yield Row(subject, "USD per billion reads", "", billion_usd)


def _latency(sweep: Sweep, level: Level, percent: float) -> Row:
    figure = f"p{percent:g}"
    if level.computed or level.broken or CALM not in {each.share for each in level.trials}:
        return Row(sweep.subject(level), figure, "us", None, note=COMPUTED if level.computed else "not measured")
    found = percentile([level.at(CALM).result], percent)
    note = ASSUMED if sweep.emulated and found.value is not None else found.note
    return Row(sweep.subject(level), figure, "us", found.value, note=note)


def _details(sweep: Sweep, level: Level) -> Iterator[Row]:
    subject = sweep.subject(level)
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


def _answer(sweep: Sweep, prices: Prices) -> Iterator[str]:
    measured = [(level, _latency(sweep, level, 99).value) for level in sweep.levels if not level.computed]
    known = [(level, p99_us) for level, p99_us in measured if p99_us is not None]
    if known:
        level, p99_us = max(known, key=lambda each: each[0].reads_s)
        reads_s, usd = level.at(CALM).accepted_s, _month_usd(level, prices, sweep.regions)
        yield (
            f"{reads_s:,.0f} reads/s of {level.size_kb} KB within p99 {format_value(p99_us, 'us')} take "
            f"{level.ru:,} RU/s: {usd:,.0f} USD a month (prices of {prices.ru_hour.date}, {prices.ru_hour.region})."
        )


def _notes(sweep: Sweep) -> Iterator[str]:
    yield "p50 and p99 are those of 90 % load; the costs are those of full use."
    reasons = dict[str, list[str]]()
    for level in sweep.levels:
        if level.unproven:
            reasons.setdefault(level.unproven, []).append(sweep.subject(level))
    if reasons:
        why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        yield f"{COMPUTED} is RU/s ÷ the measured charge. {why}."


def _plot(sweep: Sweep) -> Plot:
    throughput, p99 = list[Curve](), list[Curve]()
    for level in sweep.levels:
        name = sweep.subject(level) + f", {COMPUTED}" * level.computed
        trials = sorted({each.share: each for each in level.trials}.values(), key=lambda each: each.share)
        offered = tuple(each.rate for each in trials)
        accepted = tuple(each.accepted_s for each in trials)
        latencies_us = tuple(None if each.late else percentile([each.result], 99).value for each in trials)
        if level.computed:
            offered = tuple(share * level.capacity_s for share in (*CURVE, 1.0, OVERLOAD))
            accepted, latencies_us = tuple(min(each, level.capacity_s) for each in offered), (None,) * len(offered)
        throughput.append(Curve(name, offered, accepted))
        p99.append(Curve(name, offered, latencies_us))
    x, p99_label = "offered reads/s", "p99" + f", {ASSUMED}" * sweep.emulated
    below = Plot(p99_label, x, p99_label, tuple(p99), y_unit="us", log_x=True, points=True)
    title = "Throughput and p99 over the offered load"
    return Plot(title, x, "lists of the store/s", tuple(throughput), log_x=True, log_y=True, points=True, below=below)
