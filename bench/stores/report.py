"""The comparison of stores by latency, CPU and cost."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from hotplate.base.report import Column, Report, Row, format_value
from hotplate.bench.cosmos_emulator.faults import parse_latency
from hotplate.bench.errors import BenchMisused
from hotplate.bench.figure_names import BY_SDK
from hotplate.bench.loadgen.load import Uniform, Zipf
from hotplate.bench.loadgen.result import lag_note
from hotplate.bench.measure.assumed_latency import explain_mark
from hotplate.bench.measure.experiment import left_out, report_of
from hotplate.bench.measure.progress import ProgressDisplay
from hotplate.bench.measure.statistics import PERCENTILES, TOO_FEW_ANSWERS, plots_by_round
from hotplate.bench.options import StoresOptions, parse_rate, parse_seconds, require_positive
from hotplate.bench.planner.prices import Prices
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.stores.comparison import AT_RATE_MARK, COST, Comparison, figures
from hotplate.bench.stores.rounds import (
    FULL_CONNECTIONS,
    FULL_S,
    MEASURING_S,
    PATIENCE_S,
    SDK_RATE,
    Measured,
    RoundSettings,
    Setup,
    StoreRuns,
    measure_rounds,
    own_stores,
    prepared_stores,
)
from hotplate.bench.verdict import EMULATED_CHARGES, concluded, how_sure, spread_over
from hotplate.stores.urls import redacted

METHOD = (
    "Open loop: latency counts from a request's due time. Percentiles are of all rounds together. CPU is that of the "
    f"service, one process without cache, at full load ({FULL_CONNECTIONS} connections in a closed loop). Intervals of "
    "95 % are by the jackknife over rounds."
)
COST_NOTE = (
    "Cost of a billion reads, at {rate:g} requests/s around the clock: CPU of the service; for Cosmos DB also manual "
    "RU/s in one region at 70 % use; for Redis also two nodes of the cheapest Azure Managed Redis for the rate and "
    "three releases, which could serve far more. List prices, without memory, storage and idle pods. The rates at "
    "which Redis costs less are the planner's, for daily publishing: hotplate plan."
)
PATIENT = (
    f"The services wait {PATIENCE_S:g} s for a read, not 50 ms, so that slow reads count as slow. At an assumed "
    f"latency, {FULL_CONNECTIONS} connections may not fill a core: that CPU a request is an upper bound."
)
ELSE_DECIDES = "regions, failover and replica lag decide, too: docs/stores.md"


def compare_stores(options: StoresOptions, display: ProgressDisplay) -> Report:
    """Compare the latencies and costs of stores in rounds, and report them; Ctrl-C gives a partial report.

    Without URLs, the stores are started on this machine: files, Redis, and an emulator of Cosmos DB. Raises
    BenchMisused for invalid options, BenchFailed, StoreError, and KeyboardInterrupt before the first round.
    """
    settings = parse_settings(options)
    count = len(options.urls)
    extent = f"{MEASURING_S:.0f} s of measuring"
    if options.repeat is not None:
        extent = format_value(options.repeat, "rounds")
    display.say(f"comparing {format_value(count, 'stores') if count else 'files, Redis and Cosmos DB'}: {extent}")
    with ExitStack() as stack:
        urls: Sequence[str] = options.urls
        notes = list[str]()
        if not urls:
            display.start("starting a folder, a Redis and an emulator of Cosmos DB")
            urls, notes = stack.enter_context(own_stores(options.latency))
        setup = stack.enter_context(prepared_stores(urls, options.users, display))
        measured = measure_rounds(setup, settings, display)
    return report(options, setup, measured, notes)


def parse_settings(options: StoresOptions) -> RoundSettings:
    """Return the settings of the rounds of a comparison: rate in requests/s, times in seconds, and their number.

    Raises BenchMisused for invalid options.
    """
    if len(set(options.urls)) < len(options.urls):
        raise BenchMisused("the same store is given twice")
    parse_latency(options.latency)
    rate = parse_rate(options.rate)
    duration_s = parse_seconds(options.duration)
    require_positive({"--rate": rate, "--duration": duration_s, "--cpu-hour": options.cpu_hour})
    require_positive({"--repeat": options.repeat, "--users": options.users})
    draw = Uniform() if options.zipf is None else Zipf(options.zipf)
    return RoundSettings(
        rate=rate,
        duration_s=duration_s,
        warmup_s=parse_seconds(options.warmup),
        draw=draw,
        rounds=options.repeat,
        full_s=FULL_S,
    )


def report(options: StoresOptions, setup: Setup, measured: Measured, notes: Sequence[str] = ()) -> Report:
    """Report a comparison of stores: a line of figures for each, and what differs between them.

    Verdicts are given only if all stores were measured and served what they should. *notes* come before those on too
    few answers.
    """
    rate = parse_rate(options.rate)
    prices = _prices(options)
    stores = measured.stores
    figures_of_stores = report_of("stores", figures(rate, prices), {store.candidate.name: store for store in stores})
    checks = [f"{store.candidate.name}: {note}" for store in stores for note in store.checked.notes]
    compared = replace(
        _described(figures_of_stores, options, measured, prices),
        notes=(*notes, *_too_few_answers(stores, figures_of_stores.rows), *_late(stores)),
        method=(*setup.notes, METHOD, PATIENT, COST_NOTE.format(rate=rate), *checks),
    )
    if not all(store.sound for store in stores):
        return concluded(compared, measured.findings)
    comparison = Comparison(stores, {(row.subject, row.figure): row for row in compared.rows}, rate, prices)
    return concluded(
        replace(compared, verdicts=comparison.verdicts),
        measured.findings,
        comparison.answer,
        certainty=how_sure(comparison.decisive, spread_over(measured.rounds)),
        assumed=_assumed(options, compared, prices),
    )


def _described(report: Report, options: StoresOptions, measured: Measured, prices: Prices) -> Report:
    """Return a report of the figures of stores with what explains them: marks, origins and plots."""
    stores = measured.stores
    return replace(
        report,
        emulated=tuple(store.candidate.name for store in stores if store.candidate.emulated),
        columns=(*report.columns, Column(COST, "paid for", noted=True)),
        marks={
            **explain_mark(options.latency, is_known=not options.urls),
            AT_RATE_MARK: "at the rate of the rounds, which takes more CPU a read than full load",
        },
        origins=_origins(options, measured, prices),
        plots=tuple(plots_by_round(report.rows)),
        interrupted=measured.interrupted,
        configuration=options.to_json()
        | {
            "stores": [redacted(store.candidate.url) for store in stores],
            "releases": [store.candidate.manifest.release for store in stores],
        },
    )


def _assumed(options: StoresOptions, compared: Report, prices: Prices) -> Iterator[str]:
    """Yield what the answer depends on, and was not measured: an emulator's latency, and the price of a vCPU."""
    if compared.emulated:
        yield "Cosmos DB's latency"
    if options.cpu_hour is None:
        yield f"{prices['cpu_hour'].amount:g} {prices.currency} a vCPU hour"


def _prices(options: StoresOptions) -> Prices:
    """Return our prices, with that of a vCPU of `--cpu-hour` if it was given."""
    prices = load_prices()
    if options.cpu_hour is None:
        return prices
    return replace(prices, named={**prices.named, "cpu_hour": replace(prices["cpu_hour"], amount=options.cpu_hour)})


def _origins(options: StoresOptions, measured: Measured, prices: Prices) -> dict[str, str]:
    """Return where the figures come from, in a sentence each for those that are measured, exact and priced.

    The last sentence names what else decides between stores.
    """
    rounds = f"{format_value(measured.rounds, 'rounds')} of {options.duration} at {options.rate}/s"
    candidates = [store.candidate for store in measured.stores]
    if any(candidate.client == BY_SDK for candidate in candidates):
        rounds += f" (by SDK {SDK_RATE:g}/s)"
    if measured.disturbed:
        made = measured.rounds + measured.disturbed
        rounds += f", {left_out(measured.disturbed, made, 'round')} as disturbed"
    if not options.urls:
        rounds += "; one machine: no network, TLS or replica"
    origins = {"measured": rounds}

    charges = sorted({f"{candidate.charge_ru:.2f}" for candidate in candidates if candidate.charge_ru is not None})
    if charges:
        by_emulator = EMULATED_CHARGES if any(candidate.emulated for candidate in candidates) else ""
        origins["exact"] = f"{by_emulator}{' and '.join(charges)} RU a read"

    basis = "given" if options.cpu_hour else prices["cpu_hour"].basis
    vcpu = f"an hour of a vCPU {prices['cpu_hour'].amount:g} {prices.currency}, {basis}"
    dates = f"RU/s {prices['ru_hour'].date}, Redis {prices.redis[0].node_hour.date}"
    return {**origins, "priced": f"{dates}, list prices; {vcpu}", "besides": ELSE_DECIDES}


def _too_few_answers(stores: Sequence[StoreRuns], rows: Sequence[Row]) -> Iterator[str]:
    """Yield a note on percentiles with too few answers; azure-cosmos is read slowly, so it never has a p99.9."""
    usual = {store.candidate.name for store in stores if store.candidate.client != BY_SDK}
    names = {row.figure for row in rows if row.note == TOO_FEW_ANSWERS and row.subject in usual}
    few = [name for name in PERCENTILES if name in names]
    if few:
        yield f"{' and '.join(few)}: too few answers; more rounds (--repeat) give more."


def _late(stores: Sequence[StoreRuns]) -> Iterator[str]:
    """Yield a note on stores of which a part of the p99 is the load generator's delay."""
    for store in stores:
        late = lag_note(store.results)
        if late and store.sound and not store.candidate.emulated:
            yield f"{store.candidate.name}: {late}."
