"""Levels of throughput: their trials, and what the trials show.

Load exceeds the counted seconds at both ends, so a window of 10 s holds 10 seconds' budget.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import partial
from typing import NamedTuple

from hotplate.base.report import Column, Report, Row, format_value, rounded
from hotplate.bench.assumed_latency import ASSUMED, as_assumed, explain_mark
from hotplate.bench.experiment import Ending
from hotplate.bench.figure_names import AT_LEAST, EMULATOR, LEVEL_UNIT, P50, P99, PROVISIONED, READS
from hotplate.bench.loadgen.load import failure_by_status
from hotplate.bench.loadgen.result import P99_SAMPLES, ResponseSample, Result, lag_note, lateness
from hotplate.bench.options import MAX_POPULAR, SweepOptions, is_emulated
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.search import TRIES, Trial
from hotplate.bench.statistics import latency
from hotplate.bench.verdict import EMULATED_CHARGES, NOTHING_MEASURED, Finding, Gravity, concluded, findings_of
from hotplate.stores.cosmos.url import AUTOSCALE_MIN, Throughput
from hotplate.stores.options import BUDGET_S
from hotplate.stores.urls import redacted

# Load before and after the counted seconds.
LEAD_S = TAIL_S = 1
# Load of the trials that measure reads/s, and of those that measure latency, as shares of a level's capacity.
OVERLOAD = 1.1
CALM = 0.9
TOO_FAR = (
    f"the service's deadline of {1000 * BUDGET_S:g} ms: the account is too far away. Measure from a machine in its "
    "region"
)
# Below this share of its reads, timeouts and not throughput limit a level.
FEW = 0.1
# Accepted deviation from RU/s ÷ charge.
NEAR = 0.02
# More than this share of provisioned RU/s is burst capacity.
BURST = 1.03
# Share of a level's reads that this machine must drive to measure it, as CALM is the load of its latencies.
REACHED = 0.93
# Share of due requests that the load generator must send to have kept up.
SENT_BOUND = 0.99
INTERRUPTED = "it was interrupted"
COMPUTED = "computed"
COMPUTED_MARK = "="
AT_LEAST_MARK = "+"
SECONDS_A_MONTH = HOURS_A_MONTH * 3600
PUBLISHED = "lists published/s"
REFUSED = "429s at 110 % load"
MANUAL = "USD/month manual"
AUTOSCALE = "USD/month autoscale"
BILLION = "USD per billion reads"
COLUMNS = (
    Column(READS, "reads\n/s", digits=5),
    Column(PUBLISHED, "writes\n/s", digits=3),
    Column(P50, "p50\nms", "ms"),
    Column(P99, "p99\nms", "ms"),
    Column(REFUSED, "429s\n%", "%"),
    Column(MANUAL, "USD/month\nmanual", digits=3),
    Column(AUTOSCALE, "auto-\nscale", digits=3),
    Column(BILLION, "USD per\nbn reads"),
)


def from_store(response: ResponseSample) -> str | None:
    """Accept only lists read from the store, as a `ResponseCheck`."""
    kind = failure_by_status(response)
    if kind is not None:
        return kind
    return None if b'"source":"personal"' in response.body else "popular"


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelTrial(Trial):
    """A trial at a share of a level's capacity, `offered`.

    `result` has the counted seconds; its errors by kind, drops and statuses are those of the whole run.

    throttled  429s received in the whole trial; 50 in a row open the service's breaker
    timeouts   reads of the whole trial that missed the service's deadline
    """

    throttled: int
    timeouts: int = 0

    @property
    def accepted_per_s(self) -> float:
        """Lists read from the store per second."""
        return self.result.ok / max(1, len(self.result.seconds))

    @property
    def refused(self) -> float:
        """Share of due requests without a list from the store."""
        due = self.result.due
        return max(0.0, 1 - self.result.ok / due) if due else 1.0


def trial(share: float, result: Result, throttled: int, timeouts: int = 0) -> LevelTrial:
    """Return the trial of a run at a load, without its first LEAD_S and last TAIL_S seconds.

    A level is a setting of RU/s, its capacity the reads/s for which these RU/s suffice.

    share      offered share of the level's capacity
    throttled  429s of the whole run, as `timeouts` are those of the service's deadline
    """
    counted = result.only(range(LEAD_S, len(result.seconds) - TAIL_S))
    return LevelTrial(offered=share, result=counted, throttled=throttled, timeouts=timeouts)


class Standing(Enum):
    """What the trials of a level say of it."""

    MEASURED = auto()
    AT_LEAST = auto()
    """This machine drove a little less than the level carries."""

    COMPUTED = auto()
    """This machine could not drive the level, so its figures are computed."""

    FAILED = auto()
    """It could not be measured, because of burst capacity or an account that is too far away."""

    BROKEN = auto()
    """The account answered with errors at 90 % load."""


class Qualifier(NamedTuple):
    """How reads/s that were not simply measured are shown: mark and note in the table, words in the answer."""

    mark: str = ""
    note: str = ""
    words: str = ""


QUALIFIERS = {
    Standing.AT_LEAST: Qualifier(AT_LEAST_MARK, AT_LEAST, f"{AT_LEAST} "),
    Standing.COMPUTED: Qualifier(COMPUTED_MARK, COMPUTED, f"({COMPUTED}) "),
    Standing.FAILED: Qualifier(COMPUTED_MARK, COMPUTED, f"({COMPUTED}) "),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A standing, and the reason for it unless it is MEASURED."""

    standing: Standing = Standing.MEASURED
    reason: str = ""

    @property
    def is_unclear(self) -> bool:
        """Whether another trial may find something else."""
        return self.standing not in {Standing.MEASURED, Standing.FAILED}

    @property
    def is_computed(self) -> bool:
        """Whether nothing was measured."""
        return self.standing in {Standing.COMPUTED, Standing.FAILED}


MEASURED = Outcome()


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One setting of a container's throughput, a level, with its trials and what they say.

    ru          provisioned RU/s
    size_kb     size of the lists that are read
    charge_ru   request units of one read
    publish_ru  request units of one published list
    """

    ru: int
    size_kb: int
    charge_ru: float
    publish_ru: float
    trials: tuple[LevelTrial, ...] = ()
    outcome: Outcome = MEASURED

    @property
    def capacity_per_s(self) -> float:
        """Reads per second: RU/s ÷ charge."""
        return self.ru / self.charge_ru

    @property
    def is_computed(self) -> bool:
        """Whether its figures are computed."""
        return self.outcome.is_computed

    @property
    def qualifier(self) -> Qualifier:
        """How its reads per second are shown."""
        return QUALIFIERS.get(self.outcome.standing, Qualifier())

    @property
    def is_stopped(self) -> bool:
        """Whether the user interrupted one of its trials."""
        return any(trial.is_stopped for trial in self.trials)

    @property
    def reads_per_s(self) -> float:
        """Reads per second, accepted or computed."""
        return self.capacity_per_s if self.is_computed else self.at(OVERLOAD).accepted_per_s

    def at(self, share: float) -> LevelTrial:
        """Return the trial at a share that got most reads through, below OVERLOAD the last one. Raises KeyError."""
        trials = [trial for trial in self.trials if trial.offered == share]
        if not trials:
            raise KeyError(share)
        return _best(trials) if share == OVERLOAD else trials[-1]

    @property
    def calm(self) -> LevelTrial | None:
        """The trial that measured its latencies; None without one that did."""
        has_latency = not self.is_computed and self.outcome.standing is not Standing.BROKEN
        return self.at(CALM) if has_latency and self.trials[-1].offered == CALM else None


def _best(trials: Sequence[LevelTrial]) -> LevelTrial:
    return max(trials, key=lambda trial: trial.accepted_per_s)


# Runs a trial at a share of capacity.
Attempt = Callable[[float], LevelTrial]
# Judges trials at one share.
Judge = Callable[[Sequence[LevelTrial]], Outcome]


def measure_level(level: Level, attempt: Attempt, *, emulated: bool) -> Level:
    """Return a level, one setting of RU/s, with its trials and what they say.

    The throughput is measured at 110 % of the computed capacity (OVERLOAD), then the latency at 90 % (CALM). *attempt*
    runs a trial at a share of capacity.
    """
    outcome, trials = _judge_load(OVERLOAD, attempt, partial(_judge_throughput, level, emulated=emulated))
    if not outcome.is_computed:
        latency, calm_trials = _judge_load(CALM, attempt, partial(_judge_latency, emulated=emulated))
        trials += calm_trials
        if latency != MEASURED:
            outcome = latency
    return replace(level, trials=tuple(trials), outcome=outcome)


def _judge_load(share: float, attempt: Attempt, judge: Judge) -> tuple[Outcome, list[LevelTrial]]:
    """Make trials at a share of capacity until they are clear, at most three; return the last outcome, and all trials.

    *judge* gets all trials made so far. A trial is not repeated after Ctrl-C.
    """
    trials = list[LevelTrial]()
    for _ in range(TRIES):
        trials.append(attempt(share))
        outcome = judge(trials)
        if not outcome.is_unclear or trials[-1].is_stopped:
            break
    return outcome, trials


def _judge_throughput(level: Level, trials: Sequence[LevelTrial], *, emulated: bool) -> Outcome:
    """Return whether trials at 110 % of a level's capacity measured it, by the lists they read from the store.

    Too many lists show burst capacity (RU/s saved while idle), very few a distant account: both fail. A real account
    that answers with 429s is at its limit, though below the computed capacity. Otherwise this machine is the limit.
    """
    capacity_per_s = level.capacity_per_s

    # A failure ends the trials of a level, so only the last one can be a failure.
    last = trials[-1]
    if last.is_stopped:
        return Outcome(Standing.COMPUTED, INTERRUPTED)
    if last.accepted_per_s > BURST * capacity_per_s:
        spent = last.accepted_per_s * level.charge_ru
        return Outcome(
            Standing.FAILED,
            f"{spent:,.0f} RU/s were spent of {level.ru:,} provisioned: burst capacity, which idle partitions save for "
            "five minutes. The level was not measured; turn burst capacity off",
        )
    if last.timeouts > last.throttled and last.accepted_per_s < FEW * capacity_per_s:
        reason = f"only {last.accepted_per_s:,.0f} of {capacity_per_s:,.0f} reads/s met {TOO_FAR}"
        return Outcome(Standing.FAILED, reason)

    best = _best(trials)
    is_reached = best.accepted_per_s >= (1 - NEAR) * capacity_per_s
    is_sent = best.result.sent >= SENT_BOUND * best.result.due
    is_accounts_limit = not emulated and best.throttled > 0 and is_sent
    if is_reached or is_accounts_limit:
        return MEASURED

    reason = f"this machine got {best.accepted_per_s:,.0f} of {capacity_per_s:,.0f} reads/s through"
    is_nearly_reached = best.accepted_per_s >= REACHED * capacity_per_s
    return Outcome(Standing.AT_LEAST if is_nearly_reached else Standing.COMPUTED, reason)


def _judge_latency(trials: Sequence[LevelTrial], *, emulated: bool) -> Outcome:
    """Require of the last trial, at 90 % load, that the generator was in time and nearly all lists came."""
    trial = trials[-1]
    if trial.is_stopped:
        return MEASURED
    late = lateness([trial.result], P99_SAMPLES)
    if late:
        return Outcome(Standing.COMPUTED, late[0])
    if trial.refused <= MAX_POPULAR:
        return MEASURED
    reason = f"{100 * trial.refused:.1f} % of the requests got no list from the store at 90 % load"
    if emulated:
        return Outcome(Standing.COMPUTED, f"on this machine {reason}")
    return Outcome(Standing.BROKEN, reason)


@dataclass(slots=True, kw_only=True)
class Sweep:
    """`bench ru`, which measures several levels (settings of RU/s) in turn.

    planned  the levels to measure, as RU/s and KB
    levels   those that were measured
    regions  of the account; the first one is read
    """

    options: SweepOptions
    planned: Sequence[tuple[int, int]]
    levels: list[Level] = field(default_factory=list)
    regions: tuple[str, ...] = ("",)

    @property
    def emulated(self) -> bool:
        """Whether an emulator was measured, by default or at the account's address."""
        return self.options.account is None or is_emulated(self.options.account)

    def subject(self, ru: int, size_kb: int) -> str:
        """Return a level's name, with the size of lists if there are several."""
        name = f"{ru:,}{LEVEL_UNIT}"
        if self.options.autoscale:
            name += ", autoscale"
        if len({size_kb for _, size_kb in self.planned}) > 1:
            name += f", {size_kb} KB"
        return name

    @property
    def missing(self) -> list[str]:
        """The names of levels that were not measured."""
        measured = {(level.ru, level.size_kb) for level in self.levels}
        return [self.subject(*level) for level in self.planned if level not in measured]


def report(sweep: Sweep, ending: Ending, prices: Prices) -> Report:
    """Return the report of a sweep over levels, settings of RU/s, by its *ending*: a line for each level.

    Marks are signs beside figures that were not simply measured, and are explained below the table.
    """
    account = sweep.options.account
    rows = {sweep.subject(level.ru, level.size_kb): list(_rows(sweep, level, prices)) for level in sweep.levels}
    answer = _answer(sweep, prices)
    measured = Report(
        kind="ru",
        sentence="",
        emulated=tuple(rows) if sweep.emulated else (),
        rows=tuple(row for rows_of_level in rows.values() for row in rows_of_level),
        columns=COLUMNS,
        marks={
            **explain_mark(sweep.options.latency, is_known=account is None),
            AT_LEAST_MARK: "at least: this machine drives no more",
            COMPUTED_MARK: "computed: RU/s divided by the measured charge",
        },
        origins=_origins(sweep, prices),
        notes=tuple(_notes(sweep)),
        # An error on dropping the database may have replaced Ctrl-C.
        interrupted=ending.interrupted or any(level.is_stopped for level in sweep.levels),
        configuration=sweep.options.to_json(),
        extra={"subject": EMULATOR if account is None else redacted(account)},
    )
    return concluded(measured, _findings(sweep, ending), answer, figures=answer)


def _findings(sweep: Sweep, ending: Ending) -> list[Finding]:
    """Return what ended the sweep, and the levels that could not be measured, or answered with errors."""
    findings = findings_of(Gravity.UNMEASURED, filter(None, [ending.failure]))
    for level in sweep.levels:
        text = f"{sweep.subject(level.ru, level.size_kb)}: {level.outcome.reason}"
        if level.outcome.standing is Standing.FAILED:
            findings.append(Finding(Gravity.UNMEASURED, text, f"{text}."))
        if level.outcome.standing is Standing.BROKEN:
            findings.append(Finding(Gravity.ERRORS, text))
    return findings


def _origins(sweep: Sweep, prices: Prices) -> dict[str, str]:
    """Return a text each on how the figures were obtained, by "measured", "exact" and "priced".

    Exact figures are charges in request units (RU), of reads and of lists that are published; none without levels.
    """
    measured = "reads/s and 429s at 110 % of the RU/s, p50 and p99 at 90 %; no cache"
    regions = ""
    if len(sweep.regions) > 1:
        measured += f"; reads of one region, {sweep.regions[0]}"
        regions = f", all {len(sweep.regions)} regions"
    lines = {"measured": measured}

    of_sizes = {level.size_kb: level for level in sweep.levels}
    if of_sizes:
        charges = ", ".join(
            f"{level.charge_ru:.2f} RU a read of {size_kb} KB, {level.publish_ru:.2f} a list written and read back"
            for size_kb, level in of_sizes.items()
        )
        lines["exact"] = f"{EMULATED_CHARGES}{charges}" if sweep.emulated else charges

    price = prices.ru_hour
    lines["priced"] = (
        f"RU/s {price.date}, {price.region}{regions}, fully used; autoscale at its maximum, of 1,000 or more"
    )
    return lines


def _rows(sweep: Sweep, level: Level, prices: Prices) -> Iterator[Row]:
    """Yield the figures of a level, one setting of RU/s: the reads/s that it carries, latencies, prices and charges.

    Prices are in USD, for all regions: a month of manual throughput, then of autoscale in full use, of which the lowest
    maximum that Azure offers counts. A billion reads are priced as the level was provisioned.
    """
    subject = sweep.subject(level.ru, level.size_kb)
    reads_per_s = level.reads_per_s
    autoscale = Throughput(level.ru, autoscale=True).rounded_up(max(level.ru, AUTOSCALE_MIN))
    billion_usd = None
    if reads_per_s:
        billion_usd = _month_usd(sweep, level, prices) / (reads_per_s * SECONDS_A_MONTH) * 1e9

    yield Row(subject, READS, "", reads_per_s, note=level.qualifier.note, mark=level.qualifier.mark)
    yield Row(subject, PUBLISHED, "", level.ru / level.publish_ru)
    yield from (_latency(sweep, level, figure) for figure in (P50, P99))
    if level.qualifier.mark:  # what exceeds the capacity, of 110 % of it
        yield Row(subject, REFUSED, "share", (OVERLOAD - 1) / OVERLOAD, mark=COMPUTED_MARK)
    else:
        yield Row(subject, REFUSED, "share", level.at(OVERLOAD).refused)
    yield Row(subject, MANUAL, "", prices.ru_month(level.ru, regions=len(sweep.regions)))
    yield Row(subject, AUTOSCALE, "", prices.ru_month(autoscale.ru, autoscale=True, regions=len(sweep.regions)))
    yield Row(subject, BILLION, "", billion_usd)
    yield Row(subject, PROVISIONED, "", level.ru, main=False)
    yield Row(subject, "charge of a read", "RU", level.charge_ru, main=False)
    yield Row(subject, "charge of a published list", "RU", level.publish_ru, main=False)


def _month_usd(sweep: Sweep, level: Level, prices: Prices) -> float:
    """Return the price a month of a level as it was provisioned, manual or autoscale in full use, for all regions."""
    return prices.ru_month(level.ru, autoscale=sweep.options.autoscale, regions=len(sweep.regions))


def _latency(sweep: Sweep, level: Level, name: str) -> Row:
    """Return the row of a percentile of latency in µs, as "p99", from the trial at 90 % of a level's capacity (CALM).

    Its value is None without such a trial, if the level was only computed, or if its trials failed. An emulator's
    latencies are assumed, which a mark shows.
    """
    subject = sweep.subject(level.ru, level.size_kb)
    if level.calm is None:
        return Row(subject, name, "us", None, note=COMPUTED if level.is_computed else "not measured")

    figure = latency([level.calm.result], name)
    if level.is_stopped and figure.value is None:
        figure = replace(figure, note=INTERRUPTED)
    row = Row(subject, name, "us", figure.value, note=figure.note)
    return as_assumed(row) if sweep.emulated and figure.value is not None else row


def _answer(sweep: Sweep, prices: Prices) -> str:
    """Return a sentence on what 100 RU/s carry and cost, and on the highest level, for lists of the first size.

    A level is a setting of RU/s.
    """
    if not sweep.levels:
        return NOTHING_MEASURED

    first = sweep.levels[0]
    hundred_reads = 100 / first.charge_ru
    hundred_usd = _month_usd(sweep, first, prices) / first.ru * 100

    top = max((level for level in sweep.levels if level.size_kb == first.size_kb), key=lambda level: level.ru)
    top_usd = _month_usd(sweep, top, prices)
    p99_us = _latency(sweep, top, P99).value
    p99 = ""
    if p99_us is not None:
        p99 = f", p99 {format_value(p99_us, 'us')}"
        if sweep.emulated:
            p99 += f" {ASSUMED}"

    emulated = "On an emulator, " if sweep.emulated else ""
    kind = " by autoscale" if sweep.options.autoscale else ""
    reads = f"{top.qualifier.words}{top.reads_per_s:,.0f}"
    return (
        f"{emulated}100 RU/s carry {rounded(hundred_reads, 3)} reads/s of {first.size_kb} KB for "
        f"{rounded(hundred_usd, 3)} USD a month{kind}; {top.ru:,} RU/s carry {reads} for {top_usd:,.0f} USD{p99}."
    )


def _notes(sweep: Sweep) -> Iterator[str]:
    """Yield why levels were not driven or have no latency, those of one reason together; then those not measured."""
    subjects = dict[str, list[str]]()
    for level in sweep.levels:
        for reason in _limits(sweep, level):
            subjects.setdefault(reason, []).append(sweep.subject(level.ru, level.size_kb))
    for reason, names in subjects.items():
        yield f"{', '.join(names)}: {reason}."
    if sweep.missing:
        yield f"{', '.join(sweep.missing)}: not measured."


def _limits(sweep: Sweep, level: Level) -> Iterator[str]:
    """Yield why this machine did not drive all of a level, or why a percentile of its latency is not known."""
    if level.outcome.standing in {Standing.AT_LEAST, Standing.COMPUTED}:
        yield level.outcome.reason
    if level.calm is not None:
        rows = [_latency(sweep, level, figure) for figure in (P50, P99)]
        yield from (f"{row.figure} is not known, {row.note}" for row in rows if row.value is None)
        yield from filter(None, [lag_note([level.calm.result])])
