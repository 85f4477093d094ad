"""The report of a sweep: a line for each level of RU/s, with what it costs, and curves over the offered load."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hotplate.bench.options import SweepOptions
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.bench.process import describe, is_emulated
from hotplate.bench.ru.level import CALM, OVERLOAD, Level
from hotplate.bench.statistics import percentile
from hotplate.report import Curve, Plot, Report, Row, format_value
from hotplate.stores.cosmos.url import Throughput
from hotplate.stores.urls import redacted

COMPUTED, ASSUMED = "COMPUTED", "assumed"
SECONDS_A_MONTH = HOURS_A_MONTH * 3600
SENTENCE = "What each level of RU/s carries: lists read one by one through hotplate serve, its cache off"


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found; `publish_ru` is the charge of publishing a list, by its size in KB."""

    options: SweepOptions
    levels: tuple[Level, ...]
    publish_ru: Mapping[int, float]
    regions: int
    interrupted: bool

    @property
    def emulated(self) -> bool:
        """Whether it is of an emulator."""
        return self.options.account is None or is_emulated(self.options.account)

    def subject(self, level: Level) -> str:
        """Name a level, with the size of its lists if there are several."""
        return f"{level.ru:,} RU/s" + (f", {level.size_kb} KB" if len(self.publish_ru) > 1 else "")


def report(sweep: Sweep, prices: Prices) -> Report:
    """Sum a sweep up."""
    levels = sweep.levels
    rows = [row for level in levels for row in (*_rows(sweep, level, prices), *_details(sweep, level))]
    head, notes = "", [each for each in (_answer(sweep, prices), *_notes(sweep)) if each]
    if sweep.emulated:
        given = f"latencies are an assumption, {sweep.options.latency}" if sweep.options.account is None else (
            "latencies are not Azure's"
        )  # fmt: skip
        head = f"EMULATED: charges, throughput and 429s are exact; {given}, and what this machine adds"
    return Report(
        kind="ru",
        sentence=SENTENCE,
        head=head,
        rows=tuple(rows),
        plots=tuple(_plots(sweep)),
        notes=tuple(notes),
        broken=tuple(f"{sweep.subject(level)}: {level.broken}" for level in levels if level.broken),
        failures=tuple(f"{sweep.subject(level)}: {level.burst}" for level in levels if level.burst),
        interrupted=sweep.interrupted,
        configuration=sweep.options.to_json(),
        machine=describe(),
        extra={"subject": "emulator" if sweep.options.account is None else redacted(sweep.options.account)},
    )


def _rows(sweep: Sweep, level: Level, prices: Prices) -> Iterator[Row]:
    subject, note = sweep.subject(level), COMPUTED if level.computed else ""
    month_usd = _month_usd(level, prices, sweep.regions)
    autoscale = Throughput(level.ru, autoscale=True).rounded_up(level.ru).ru
    autoscale_usd = prices.ru_hours(autoscale * HOURS_A_MONTH, autoscale=True, regions=sweep.regions)
    refused = 1 - 1 / OVERLOAD if level.computed else level.at(OVERLOAD).refused
    yield Row(subject, "reads/s", "", level.reads_s, note=note)
    yield Row(subject, "reads/s per 100 RU/s", "", level.reads_s / level.ru * 100)
    yield Row(subject, "lists published/s", "", level.ru / sweep.publish_ru[level.size_kb])
    for percent in (50, 99):
        yield _latency(sweep, level, percent)
    yield Row(subject, "429s at 110 % load", "share", refused)
    yield Row(subject, "USD/month manual", "", month_usd)
    yield Row(subject, "USD/month autoscale", "", autoscale_usd, note="" if autoscale == level.ru else "of 1,000 RU/s")
    yield Row(subject, "USD per billion reads", "", _billion_usd(level, month_usd))


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


def _billion_usd(level: Level, month_usd: float) -> float | None:
    return month_usd / (level.reads_s * SECONDS_A_MONTH) * 1e9 if level.reads_s else None


def _answer(sweep: Sweep, prices: Prices) -> str:
    """Say what the highest level that was measured carries, how fast, and for how much."""
    measured = [(level, _latency(sweep, level, 99)) for level in sweep.levels if not level.computed]
    known = [(level, row.value) for level, row in measured if row.value is not None]
    if not known:
        return ""
    level, p99_us = max(known, key=lambda each: each[0].reads_s)
    reads_s, usd = level.at(CALM).accepted_s, _month_usd(level, prices, sweep.regions)
    return (
        f"{reads_s:,.0f} reads/s of {level.size_kb} KB within p99 {format_value(p99_us, 'us')} take {level.ru:,} RU/s: "
        f"{usd:,.0f} USD a month (prices of {prices.ru_hour.date}, {prices.ru_hour.region})."
    )


def _notes(sweep: Sweep) -> Iterator[str]:
    yield "p50 and p99 are those of 90 % load; the costs are those of full use."
    reasons = dict.fromkeys(level.unproven for level in sweep.levels if level.unproven)
    named = (", ".join(sweep.subject(level) for level in sweep.levels if level.unproven == each) for each in reasons)
    if reasons:
        why = "; ".join(f"{names}: {reason}" for names, reason in zip(named, reasons, strict=True))
        yield f"{COMPUTED} is RU/s ÷ the measured charge. {why}."


def _plots(sweep: Sweep) -> Iterator[Plot]:
    throughput, p99 = list[Curve](), list[Curve]()
    for level in sweep.levels:
        name = sweep.subject(level)
        if level.computed:
            offered = tuple(share * level.capacity_s for share in (0.3, 1.0, OVERLOAD))
            accepted = tuple(min(each, level.capacity_s) for each in offered)
            throughput.append(Curve(f"{name}, {COMPUTED}", offered, accepted))
            continue
        trials = sorted({each.share: each for each in level.trials}.values(), key=lambda each: each.share)
        offered = tuple(each.rate for each in trials)
        throughput.append(Curve(name, offered, tuple(each.accepted_s for each in trials)))
        p99.append(Curve(name, offered, tuple(percentile([each.result], 99).value for each in trials)))
    x, note = "offered reads/s", f", {ASSUMED}" if sweep.emulated else ""
    if throughput:
        yield Plot("Throughput", x, "lists of the store/s", tuple(throughput), log_x=True, log_y=True, points=True)
    if p99:
        yield Plot(f"p99{note}", x, "p99", tuple(p99), y_unit="us", log_x=True, points=True)
