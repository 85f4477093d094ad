"""Microsoft's reference load on Cosmos DB, compared with its published figures."""

from contextlib import ExitStack
from dataclasses import replace

from hotplate.base.report import Report, Row, format_value
from hotplate.bench.errors import BenchMisused
from hotplate.bench.figure_names import P50
from hotplate.bench.measure.assumed_latency import explain_mark
from hotplate.bench.measure.progress import ProgressDisplay
from hotplate.bench.options import ReferenceOptions, StoresOptions, parse_seconds
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.stores.comparison import CHARGE, needed_ru
from hotplate.bench.stores.report import compare_stores
from hotplate.bench.stores.rounds import own_cosmos
from hotplate.bench.verdict import concluded, how_sure, spread_over
from hotplate.stores.connect import COSMOS
from hotplate.stores.urls import redacted, scheme_of

SOURCE = "https://learn.microsoft.com/azure/architecture/ai-ml/architecture/real-time-recommendation"
PUBLISHED = "published, 2018"
USERS = 200
RATE = 180.0
RU = 11_000
MEDIAN_US = 60_000.0

ROUND_S = 5.0  # long enough for the blocks of a percentile's interval
OTHER_SERVICE = "published figures are of another service in Azure: no gain"
METHOD = (
    f"{RATE:g} requests/s of {USERS} users. The published figures are Microsoft's, measured in Azure with another "
    f"service ({SOURCE}); the difference shows no gain."
)


def reproduce(options: ReferenceOptions, display: ProgressDisplay) -> Report:
    """Repeat a published measurement of Cosmos DB, at its rate and number of users, and report both side by side.

    It is a comparison of one store, an account or an emulator, in rounds of at most ROUND_S seconds. Ctrl-C gives a
    partial report. Raises BenchMisused for invalid options, BenchFailed, StoreError, and KeyboardInterrupt before the
    first round.
    """
    if options.account is not None and scheme_of(options.account) not in COSMOS:
        raise BenchMisused(
            f"--account takes a Cosmos DB, as cosmos://ACCOUNT/DATABASE, not {redacted(options.account)}"
        )
    duration_s = parse_seconds(options.duration)
    with ExitStack() as stack:
        url = options.account
        if url is None:
            display.start("starting an emulator of Cosmos DB")
            url = stack.enter_context(own_cosmos(options.latency, RU))
        load = StoresOptions(
            urls=(url,),
            rate=f"{RATE:g}",
            duration=f"{min(ROUND_S, duration_s):g}s",
            users=USERS,
            repeat=max(1, round(duration_s / ROUND_S)),
        )
        return report(options, compare_stores(load, display))


def report(options: ReferenceOptions, compared: Report) -> Report:
    """Report the store that was *compared* beside the published median; its sentence stays if it failed its checks."""
    store = compared.rows[0].subject
    is_emulated = store in compared.emulated
    reported = replace(
        compared,
        kind="reference",
        rows=(Row(PUBLISHED, P50, "us", MEDIAN_US), *compared.rows),
        marks=explain_mark(options.latency, is_known=options.account is None),
        origins={**compared.origins, "assumed": f"{'latencies; ' if is_emulated else ''}{OTHER_SERVICE}"},
        method=(METHOD, *compared.method),
        configuration=options.to_json(),
    )
    charge = compared.row(store, CHARGE)
    p50 = compared.row(store, P50)
    if compared.failures or compared.broken or not (charge and charge.value and p50):
        return reported
    answer = _answer(p50.value, needed_ru(charge.value, RATE), is_emulated=is_emulated)
    certainty = how_sure({f"{P50} {{}}": p50}, spread_over(len(p50.values)))
    return concluded(reported, [], answer, certainty=certainty)


def _answer(p50_us: float | None, needed: int, *, is_emulated: bool) -> str:
    """Return the RU/s that the rate needs, and the median beside the published one."""
    prices = load_prices()
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
