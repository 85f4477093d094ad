"""Microsoft's reference load on Cosmos DB, compared with its published figures."""

from collections.abc import Sequence
from contextlib import ExitStack

from hotplate.bench.cosmos_emulator.faults import parse_latency
from hotplate.bench.errors import BenchMisused
from hotplate.bench.loadgen.load import Uniform
from hotplate.bench.options import ReferenceOptions, parse_seconds, require_positive
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.process import describe
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.statistics import Figure
from hotplate.bench.stores.report import DECISIVE, EMULATED, needs, read_ru, summarise
from hotplate.bench.stores.rounds import Measured, Rounds, RoundSettings, own_cosmos, prepared_stores
from hotplate.report import Report, Row, format_value
from hotplate.stores.connect import COSMOS
from hotplate.stores.urls import redacted, scheme_of

SOURCE = "https://learn.microsoft.com/azure/architecture/ai-ml/architecture/real-time-recommendation"
PUBLISHED = "published, 2018"
USERS, RATE, RU, MEDIAN_US = 200, 180.0, 11_000, 60_000.0

ROUND_S = 5.0  # long enough for the blocks of a percentile's interval
WARMUP_S = 3.0
LISTS = 5_000
METHOD = (
    f"{RATE:g} requests/s, at random as from {USERS} users. The published figures are Microsoft's, measured in Azure "
    f"with another service ({SOURCE}); the difference shows no gain."
)


def reproduce(options: ReferenceOptions, display: ProgressDisplay) -> Report:
    """Measure. Raises BenchMisused for invalid options, BenchFailed and StoreError."""
    duration_s = parse_seconds(options.duration)
    require_positive({"--duration": duration_s})
    if options.account is not None and scheme_of(options.account) not in COSMOS:
        raise BenchMisused(
            f"--account takes a Cosmos DB, as cosmos://ACCOUNT/DATABASE, not {redacted(options.account)}"
        )
    parse_latency(options.latency)
    settings = RoundSettings(
        rate=RATE,
        duration_s=min(ROUND_S, duration_s),
        warmup_s=min(WARMUP_S, duration_s),
        draw=Uniform(),
        rounds=max(1, round(duration_s / ROUND_S)),
        poisson=True,
        connections=USERS,
    )
    display.say(f"{RATE:g} requests/s of {USERS} users for {options.duration}")
    try:
        with ExitStack() as stack:
            url = options.account
            if url is None:
                display.start("starting an emulator of Cosmos DB")
                url = stack.enter_context(own_cosmos(options.latency, RU))
            setup = stack.enter_context(prepared_stores([url], LISTS, display, make_up=options.account is None))
            return report(options, Rounds(setup, settings, display).run(), setup.notes)
    except KeyboardInterrupt:
        return Report(kind="reference", sentence="Nothing was measured.", interrupted=True, machine=describe())


def report(options: ReferenceOptions, measured: Measured, notes: Sequence[str] = ()) -> Report:
    """Make the report."""
    (store,) = measured.stores
    prices = load_prices()
    found = summarise(store, RATE, prices)
    rows = [Row(PUBLISHED, "p50", "us", MEDIAN_US), Row(PUBLISHED, "requests/s", "", RATE)]
    rows.append(Row(PUBLISHED, "RU/s provisioned", "", float(RU)))
    rows += [figure.row(found.name, name, "us") for name, figure in found.latencies.items()]
    if store.runs:
        results = store.results
        rate = sum(each.ok for each in results) / sum(each.duration_s for each in results)
        rows.append(Row(found.name, "requests/s", "", rate))
    rows.append(found.cpu.row(found.name, "CPU a request", "us"))
    sentence = _sentence(found.name, found.latencies, emulated=store.candidate.emulated)
    if (charge := read_ru(store)) is not None and store.sound:
        needed = needs(charge, RATE, prices)
        rows.append(Row(found.name, "RU/s used", "", needed.used_ru))
        sentence += (
            f" The load uses {needed.used_ru:,.0f} RU/s, so {needed.needed_ru:,} are enough: {needed.month:,.0f} "
            f"{prices.currency} a month in one region instead of {prices.ru_hours(RU * 730):,.0f} for {RU:,}."
        )
    return Report(
        kind="reference",
        sentence=sentence if store.sound else "There is no verdict: see below.",
        rows=tuple(rows),
        head=EMULATED.format(latency=f"the latency {options.latency}") if store.candidate.emulated else "",
        notes=(*notes, METHOD),
        broken=tuple(store.complaints),
        failures=tuple(store.failures) if store.runs or measured.interrupted else ("no round was made",),
        interrupted=measured.interrupted,
        configuration=options.to_json(),
        machine=describe(),
    )


def _sentence(name: str, latencies: dict[str, Figure], *, emulated: bool) -> str:
    p50, p99 = (latencies[each].value for each in ("p50", DECISIVE))
    if p50 is None:
        return f"{name} gave too few answers."
    tail = "" if p99 is None else f", p99 {format_value(p99, 'us')}"
    return (
        f"{name}: p50 {format_value(p50, 'us')}{tail}{', of an assumed latency' if emulated else ''}; published "
        f"median {MEDIAN_US / 1000:g} ms."
    )
