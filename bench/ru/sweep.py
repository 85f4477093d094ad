"""A sweep over levels of throughput, and its report: a line for each level, with prices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

from hotplate.base.report import Report, Row, format_value, rounded
from hotplate.bench.figure_names import AT_LEAST, EMULATOR, LEVEL_UNIT, P50, P99, PROVISIONED, READS
from hotplate.bench.loadgen.result import lag_note
from hotplate.bench.measure.assumed_latency import ASSUMED, as_assumed, explain_mark
from hotplate.bench.measure.experiment import Ending, Figure, latencies, report_of
from hotplate.bench.measure.statistics import latency, mean
from hotplate.bench.options import SweepOptions, is_emulated
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.ru.levels import AT_LEAST_MARK, COMPUTED_MARK, OVERLOAD, Level
from hotplate.bench.verdict import EMULATED_CHARGES, TOO_FEW_SECONDS, Finding, Gravity, concluded, findings_of, how_sure
from hotplate.stores.cosmos.url import AUTOSCALE_MIN, Throughput
from hotplate.stores.urls import redacted

COMPUTED = "computed"
# How reads/s with a mark are called, and in the answer.
NOTES = {AT_LEAST_MARK: AT_LEAST, COMPUTED_MARK: COMPUTED}
WORDS = {AT_LEAST_MARK: f"{AT_LEAST} ", COMPUTED_MARK: "by calculation "}
HOW_COMPUTED = "RU/s divided by the measured charge"
SECONDS_A_MONTH = HOURS_A_MONTH * 3600


@dataclass(slots=True)
class Sweep:
    """`bench ru`, which measures several levels (settings of RU/s) in turn.

    levels    the planned RU/s, ascending, as the sizes of lists are
    measured  the levels that were measured
    regions   of the account; the first one is read
    """

    options: SweepOptions
    levels: tuple[int, ...]
    sizes_kb: tuple[int, ...]
    duration_s: int
    measured: list[Level] = field(default_factory=list)
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
        if len(self.sizes_kb) > 1:
            name += f", {size_kb} KB"
        return name

    @property
    def top(self) -> Level:
        """The highest measured level of lists of the first size."""
        size_kb = self.measured[0].size_kb
        return max((level for level in self.measured if level.size_kb == size_kb), key=lambda level: level.ru)

    @property
    def missing(self) -> list[str]:
        """The names of levels that were not measured."""
        measured = {(level.ru, level.size_kb) for level in self.measured}
        planned = product(self.sizes_kb, self.levels)  # in the order of the measurement
        return [self.subject(ru, size_kb) for size_kb, ru in planned if (ru, size_kb) not in measured]


def report(sweep: Sweep, ending: Ending, prices: Prices) -> Report:
    """Return the report of a sweep over levels, settings of RU/s, by its *ending*: a line for each level.

    Marks are signs beside figures that were not simply measured, and are explained below the table.
    """
    account = sweep.options.account
    levels = {sweep.subject(level.ru, level.size_kb): level for level in sweep.measured}
    top = sweep.top
    answer = _answer(sweep, prices)
    measured = replace(
        report_of("ru", figures(sweep, prices), levels),
        emulated=tuple(levels) if sweep.emulated else (),
        marks={
            **explain_mark(sweep.options.latency, is_known=account is None),
            AT_LEAST_MARK: "at least: this machine drives no more",
            COMPUTED_MARK: f"{COMPUTED}: {HOW_COMPUTED}",
        },
        origins=_origins(sweep, prices),
        notes=tuple(_notes(sweep)),
        interrupted=ending.interrupted,
        configuration=sweep.options.to_json(),
        extra={"subject": EMULATOR if account is None else redacted(account)},
    )
    decisive = {
        f"{{}} reads/s at {top.ru:,} RU/s": _reads(top),
        f"{P99} {{}}": replace(_latency(sweep, P99, top), unit="us"),
    }
    certainty = how_sure(decisive, f"the {sweep.duration_s} seconds of a trial", TOO_FEW_SECONDS)
    if top.is_computed:
        certainty = f"How sure: {_measured_range(sweep)}; further reads/s are the {HOW_COMPUTED}."
    return concluded(
        measured, _findings(sweep, ending), answer, figures=answer, certainty=certainty, assumed=_assumed(sweep)
    )


def _measured_range(sweep: Sweep) -> str:
    """Return up to which RU/s reads were measured, with lists of the first size."""
    measured = [level.ru for level in sweep.measured if level.size_kb == sweep.top.size_kb and not level.is_computed]
    return f"no level above {max(measured):,} RU/s was measured" if measured else "no level was measured"


def _assumed(sweep: Sweep) -> Iterator[str]:
    """Yield what the answer depends on, and was not measured: what is the emulator's, and the use of the RU/s."""
    if sweep.emulated:
        yield "Cosmos DB's latency"
        yield "charges as Azure documents them"
    yield "RU/s in full use"


def _findings(sweep: Sweep, ending: Ending) -> list[Finding]:
    """Return what ended the sweep, and the levels that could not be measured, or answered with errors."""
    findings = findings_of(Gravity.UNMEASURED, filter(None, [ending.failure]))
    for level in sweep.measured:
        text = f"{sweep.subject(level.ru, level.size_kb)}: {level.outcome.reason}"
        gravity = level.outcome.gravity
        if gravity is not None:
            findings.append(Finding(gravity, text, f"{text}." if gravity is Gravity.UNMEASURED else ""))
    return findings


def _origins(sweep: Sweep, prices: Prices) -> dict[str, str]:
    """Return a text each on how the figures were obtained, by "measured", "exact" and "priced".

    Exact figures are charges in request units (RU), of reads and of lists that are published.
    """
    measured = "reads/s and 429s at 110 % of the RU/s, p50 and p99 at 90 %; no cache"
    regions = ""
    if len(sweep.regions) > 1:
        measured += f"; reads of one region, {sweep.regions[0]}"
        regions = f", all {len(sweep.regions)} regions"
    lines = {"measured": measured}

    of_sizes = {level.size_kb: level for level in sweep.measured}
    charges = ", ".join(
        f"{level.charge_ru:.2f} RU a read of {size_kb} KB, {level.publish_ru:.2f} a list written and read back"
        for size_kb, level in of_sizes.items()
    )
    lines["exact"] = f"{EMULATED_CHARGES}{charges}" if sweep.emulated else charges

    price = prices["ru_hour"]
    lines["priced"] = (
        f"RU/s {price.date}, {price.region}{regions}, fully used; autoscale at its maximum, of 1,000 or more"
    )
    return lines


def figures(sweep: Sweep, prices: Prices) -> Sequence[Figure[Level]]:
    """Return the figures of a level, one setting of RU/s: the reads/s that it carries, latencies, prices and charges.

    Prices are in USD, for all regions: a month of manual throughput, then of autoscale in full use, of which the lowest
    maximum that Azure offers counts. A billion reads are priced as the level was provisioned.
    """
    regions = len(sweep.regions)

    def autoscale_usd(level: Level) -> float:
        autoscale = Throughput(level.ru, autoscale=True).rounded_up(max(level.ru, AUTOSCALE_MIN))
        return prices.ru_month(autoscale.ru, autoscale=True, regions=regions)

    def billion_usd(level: Level) -> Row:
        if not level.reads_per_s:
            return Row()
        return Row(value=_month_usd(sweep, level, prices) / (level.reads_per_s * SECONDS_A_MONTH) * 1e9)

    return (
        Figure(READS, "", _reads, "reads\n/s", digits=5),
        Figure("lists published/s", "", lambda level: level.ru / level.publish_ru, "writes\n/s", digits=3),
        *latencies(partial(_latency, sweep), (P50, P99)),
        Figure("429s at 110 % load", "share", _refused, "429s\n%", "%"),
        Figure(
            "USD/month manual",
            "",
            lambda level: prices.ru_month(level.ru, regions=regions),
            "USD/month\nmanual",
            digits=3,
        ),
        Figure("USD/month autoscale", "", autoscale_usd, "auto-\nscale", digits=3),
        Figure("USD per billion reads", "", billion_usd, "USD per\nbn reads"),
        Figure(PROVISIONED, "", lambda level: level.ru, main=False),
        Figure("charge of a read", "RU", lambda level: level.charge_ru, main=False),
        Figure("charge of a published list", "RU", lambda level: level.publish_ru, main=False),
    )


def _reads(level: Level) -> Row:
    """Return the reads/s of a level, with an interval by the seconds of its trial unless they are computed."""
    mark = level.outcome.mark
    if level.is_computed or level.overload is None:
        return Row(value=level.reads_per_s, note=COMPUTED, mark=COMPUTED_MARK)
    seconds = level.overload.result.seconds
    return replace(mean([len(second.latencies_s) for second in seconds]), note=NOTES.get(mark, ""), mark=mark)


def _refused(level: Level) -> Row:
    """Return the share of 429s at 110 % load; it is computed unless the level was measured."""
    if level.outcome.mark or level.overload is None:  # what exceeds the capacity, of 110 % of it
        return Row(value=(OVERLOAD - 1) / OVERLOAD, mark=COMPUTED_MARK)
    return Row(value=level.overload.refused)


def _month_usd(sweep: Sweep, level: Level, prices: Prices) -> float:
    """Return the price a month of a level as it was provisioned, manual or autoscale in full use, for all regions."""
    return prices.ru_month(level.ru, autoscale=sweep.options.autoscale, regions=len(sweep.regions))


def _latency(sweep: Sweep, name: str, level: Level) -> Row:
    """Return a percentile of latency in µs, as "p99", from the trial at 90 % of a level's capacity (CALM).

    Its value is None without such a trial, if the level was only computed, or if its trials failed. An emulator's
    latencies are assumed, which a mark shows.
    """
    if level.calm is None:
        return Row(note=COMPUTED if level.is_computed else "not measured")

    return as_assumed(latency([level.calm.result], name), emulated=sweep.emulated)


def _answer(sweep: Sweep, prices: Prices) -> str:
    """Return a sentence on what 100 RU/s carry and cost, and on the highest level, for lists of the first size.

    A level is a setting of RU/s.
    """
    first = sweep.measured[0]
    hundred_reads = 100 / first.charge_ru
    hundred_usd = _month_usd(sweep, first, prices) / first.ru * 100

    top = sweep.top
    top_usd = _month_usd(sweep, top, prices)
    p99_us = _latency(sweep, P99, top).value
    p99 = ""
    if p99_us is not None:
        p99 = f", p99 {format_value(p99_us, 'us')}"
        if sweep.emulated:
            p99 += f" {ASSUMED}"

    each = "On an emulator, each" if sweep.emulated else "Each"
    kind = " by autoscale" if sweep.options.autoscale else ""
    reads = f"{WORDS.get(top.outcome.mark, '')}{top.reads_per_s:,.0f}"
    return (
        f"{each} 100 RU/s carry {rounded(hundred_reads, 3)} reads/s of {first.size_kb} KB for "
        f"{rounded(hundred_usd, 3)} USD a month{kind}; {top.ru:,} RU/s carry {reads} for {top_usd:,.0f} USD{p99}."
    )


def _notes(sweep: Sweep) -> Iterator[str]:
    """Yield why levels were not driven or have no latency, those of one reason together; then those not measured."""
    subjects = dict[str, list[str]]()
    for level in sweep.measured:
        for reason in _limits(sweep, level):
            subjects.setdefault(reason, []).append(sweep.subject(level.ru, level.size_kb))
    for reason, names in subjects.items():
        yield f"{', '.join(names)}: {reason}."
    if sweep.missing:
        yield f"{', '.join(sweep.missing)}: not measured."


def _limits(sweep: Sweep, level: Level) -> Iterator[str]:
    """Yield why this machine did not drive all of a level, or why a percentile of its latency is not known."""
    if level.outcome.is_limited:
        yield level.outcome.reason
    if level.calm is not None:
        rows = {name: _latency(sweep, name, level) for name in (P50, P99)}
        yield from (f"{name} is not known, {row.note}" for name, row in rows.items() if row.value is None)
        yield from filter(None, [lag_note([level.calm.result])])
