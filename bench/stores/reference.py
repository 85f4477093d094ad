"""Microsoft's reference load on Cosmos DB, compared with its published figures."""

from contextlib import ExitStack
from dataclasses import replace

from hotplate.base.report import Report, Row, format_count, format_value
from hotplate.bench.cosmos_emulator.faults import parse_latency
from hotplate.bench.errors import BenchMisused
from hotplate.bench.figure_names import P50
from hotplate.bench.loadgen.load import Uniform
from hotplate.bench.options import ReferenceOptions, StoresOptions, parse_seconds, require_positive
from hotplate.bench.planner.prices import Prices
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.stores import report as stores_report
from hotplate.bench.stores.comparison import needed_ru, percentile_of
from hotplate.bench.stores.rounds import Measured, RoundSettings, Setup, measure_rounds, own_cosmos, prepared_stores
from hotplate.bench.verdict import concluded, how_sure
from hotplate.stores.connect import COSMOS
from hotplate.stores.urls import redacted, scheme_of

SOURCE = "https://learn.microsoft.com/azure/architecture/ai-ml/architecture/real-time-recommendation"
PUBLISHED = "published, 2018"
USERS = 200
RATE = 180.0
RU = 11_000
MEDIAN_US = 60_000.0

ROUND_S = 5.0  # long enough for the blocks of a percentile's interval
WARMUP_S = 3.0
LISTS = 5_000
OTHER_SERVICE = "published figures are of another service in Azure: no gain"
METHOD = (
    f"{RATE:g} requests/s, at random times, by {USERS} connections. The published figures are Microsoft's, measured in "
    f"Azure with another service ({SOURCE}); the difference shows no gain."
)


def reproduce(options: ReferenceOptions, display: ProgressDisplay) -> Report:
    """Repeat a published measurement of Cosmos DB, at its rate and number of users, and report both side by side.

    It reads through a service from an account or, without one, an emulator, in rounds of at most ROUND_S seconds.
    Ctrl-C gives a partial report. Raises BenchMisused for invalid options, BenchFailed, StoreError, and
    KeyboardInterrupt before the first round.
    """
    settings = _parse_settings(options)
    display.say(f"{RATE:g} requests/s of {USERS} users for {options.duration}")
    with ExitStack() as stack:
        url = options.account
        if url is None:
            display.start("starting an emulator of Cosmos DB")
            url = stack.enter_context(own_cosmos(options.latency, RU))
        setup = stack.enter_context(prepared_stores([url], LISTS, display, may_generate=options.account is None))
        return report(options, setup, measure_rounds(setup, settings, display))


def _parse_settings(options: ReferenceOptions) -> RoundSettings:
    """Return the settings of the rounds: the published rate and users, and rounds of at most ROUND_S seconds.

    Raises BenchMisused for invalid options.
    """
    duration_s = parse_seconds(options.duration)
    require_positive({"--duration": duration_s})
    if options.account is not None and scheme_of(options.account) not in COSMOS:
        raise BenchMisused(
            f"--account takes a Cosmos DB, as cosmos://ACCOUNT/DATABASE, not {redacted(options.account)}"
        )
    parse_latency(options.latency)
    return RoundSettings(
        rate=RATE,
        duration_s=_round_s(options),
        warmup_s=min(WARMUP_S, duration_s),
        draw=Uniform(),
        rounds=max(1, round(duration_s / ROUND_S)),
        poisson=True,
        connections=USERS,
    )


def _round_s(options: ReferenceOptions) -> float:
    return min(ROUND_S, parse_seconds(options.duration))


def report(options: ReferenceOptions, setup: Setup, measured: Measured) -> Report:
    """Report the measured store, as `bench stores` does, and the published median.

    The answer is only given if the store answered as it should.
    """
    (store,) = measured.stores
    prices = load_prices()
    stores_options = StoresOptions(
        urls=(options.account,) if options.account else (),
        rate=f"{RATE:g}",
        duration=f"{_round_s(options):g}s",
        latency=options.latency,
    )
    compared = stores_report.report(stores_options, setup, measured)
    answer = ""
    if store.sound:
        ru = needed_ru(store.candidate.charge_ru or 0.0, RATE)
        answer = _answer(percentile_of(P50, store).value, ru, prices, is_emulated=store.candidate.emulated)

    assumed = f"{'latencies; ' if store.candidate.emulated else ''}{OTHER_SERVICE}"
    reported = replace(
        compared,
        kind="reference",
        rows=(Row(PUBLISHED, P50, "us", MEDIAN_US), *compared.rows),
        origins={**compared.origins, "assumed": assumed},
        method=(METHOD, *compared.method),
        configuration=options.to_json(),
    )
    p50 = {row.figure: row for row in compared.rows if row.figure == P50}
    certainty = how_sure(p50, format_count(measured.rounds, "round"))
    return concluded(reported, measured.findings, answer, certainty=certainty)


def _answer(p50_us: float | None, needed: int, prices: Prices, *, is_emulated: bool) -> str:
    """Return the RU/s that the rate needs, and the median beside the published one."""
    published = f"the published median of {MEDIAN_US / 1000:g} ms"
    by_emulator = ""
    latency = f"Too few answers for a median, to set beside {published}"
    if p50_us is not None:
        latency = f"P50 {format_value(p50_us, 'us')}, beside {published} of another service"
    if is_emulated:
        by_emulator = " by an emulator's charges"
        if p50_us is not None:
            latency = f"Faster than {published}? Unknown: our p50 of {format_value(p50_us, 'us')} is assumed"
    return (
        f"{RATE:g} requests/s need {needed:,} RU/s ({prices.ru_month(needed):,.0f} {prices.currency} a month)"
        f"{by_emulator}, not the reference's {RU:,} ({prices.ru_month(RU):,.0f}). {latency}."
    )
