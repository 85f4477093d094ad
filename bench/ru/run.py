"""A sweep of an account from its options to its result: its plan, its cost, its searches and their trials."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.loadgen.capacity import TOO_MANY_REQUESTS, Objective, disturbances, parse_objective, search
from hotplate.bench.loadgen.histogram import Histogram
from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.result import Result
from hotplate.bench.loadgen.workers import OnProgress, WorkerPool
from hotplate.bench.options import SweepOptions
from hotplate.bench.planner.prices import Prices
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.report.text import parse_rate, parse_seconds
from hotplate.bench.ru.report import LABEL, RU, Finding, SweepResult, Trial, highest
from hotplate.bench.ru.requests import CHARGE, KeyedRequests, builder, reads_in_turn
from hotplate.bench.ru.sandbox import AccountSandbox, Items, sandbox
from hotplate.bench.stores.setup import emulator_label
from hotplate.stores.cosmos.charges import KB
from hotplate.stores.cosmos.charges import load as load_charges
from hotplate.stores.cosmos.url import MANUAL_MIN, MANUAL_STEP, MAX_RU, Address, Throughput, parse
from hotplate.stores.urls import redacted

ITEMS = 500
PRECISION = 0.01
# Of the rate that is expected: where the search begins, so it takes few trials; its end does not depend on it.
BEGIN_AT = 0.6
# A generator that is later than this sends requests in other seconds than they were due in.
SHIFTED_US = 25_000.0
THROTTLED, OTHER = "throttled", "status"

# A search takes about so many trials, and the wait for the next second between two of them.
TRIALS = 8
BETWEEN_S = 1.0
HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """The options of a sweep, checked: levels in ascending order, where, and how each trial is made."""

    options: SweepOptions
    levels: tuple[int, ...]
    objective: Objective
    duration_s: float
    address: Address


def plan(options: SweepOptions) -> SweepPlan:
    """Check the options of a sweep. Raises BenchMisused or StoreMisused for what makes no sense."""
    levels = tuple(sorted({_parse_level(each) for each in options.levels.split(",")}))
    objective = parse_objective(options.slo)
    if objective.throttled is None:
        raise BenchMisused("the objective of a sweep bounds 429s, too: --slo p99=50ms,throttled=1%")
    duration_s = parse_seconds(options.duration)
    if duration_s < 1 or duration_s % 1:
        raise BenchMisused("--duration is whole seconds, as budgets are: 1s or more")
    if options.connections < 1:
        raise BenchMisused("--connections must be 1 or more")
    address = parse(options.account)
    builder(address)  # refuses an account without a key
    return SweepPlan(options, levels, objective, duration_s, address)


def _parse_level(text: str) -> int:
    ru = parse_rate(text)
    if ru % MANUAL_STEP or not MANUAL_MIN <= ru <= MAX_RU:
        raise BenchMisused(
            f"a level is {MANUAL_MIN} RU/s or more in steps of {MANUAL_STEP}, as 400,1k,11k, not {text!r}"
        )
    return int(ru)


def account_cost(planned: SweepPlan, prices: Prices) -> list[str]:
    """Read the account's regions, and say what a sweep makes and costs there. Raises BenchMisused, StoreError."""
    account = AccountSandbox(planned.address).account()
    if account.multiple_write_regions:
        raise BenchMisused(
            "the account has several regions that are written; a sweep's figures would not be those of one"
        )
    return cost(planned, len(account.regions), prices, time.time())


def cost(planned: SweepPlan, regions: int, prices: Prices, now: float) -> list[str]:
    """Say what a sweep makes, and what that costs if it begins *now*, in seconds since 1970."""
    took_s = len(planned.levels) * (planned.duration_s + BETWEEN_S) * TRIALS
    hours, ru = hours_touched(now, took_s), planned.levels[-1]
    usd = prices.ru_hours(ru * hours, regions=regions)
    made = f"a container of its own with {ru:,} RU/s in {regions} region(s), for some {ceil(took_s / 60)} minutes"
    return [
        f"{made}, then dropped; the rest of the account is left alone",
        f"{usd:.2f} USD: an hour of the clock is billed at its highest RU/s, and this touches {hours}",
        f"price: {prices.ru_hour.provenance}",
    ]


def hours_touched(now: float, took_s: float) -> int:
    """Return how many hours of the clock are billed for what begins *now* and takes so many seconds."""
    return int((now + took_s) // HOUR_S - now // HOUR_S) + 1


class Generator(Protocol):
    """Whatever makes a run of a load: processes of the load generator, or a simulation."""

    def run(self, load: Load, on_progress: OnProgress | None = None, *, on_the_second: bool = False) -> Result:
        """See `hotplate.bench.loadgen.workers.WorkerPool`."""


def classify(status: int, body: bytes) -> str | None:
    """Tell 429s from other refusals; see `hotplate.bench.loadgen.load.Check`."""
    del body
    return None if status < 400 else THROTTLED if status == TOO_MANY_REQUESTS else OTHER


def assess(rate: float, result: Result, objective: Objective) -> Trial:
    """Sum up a run of *rate* requests/s."""
    p50_us, p99_us = Histogram.of(result.latencies_s).percentiles_us((50, 99))
    lag_p99_us = Histogram.of(result.lags_s).percentiles_us((99,))[0]
    good_ru = sum(ru for status, ru in result.tallied.items() if status < 400)
    throttled = result.statuses.get(TOO_MANY_REQUESTS, 0) / max(1, result.due)
    return Trial(
        rate=rate,
        ok_rate=result.ok_rate,
        spent_ru=sum(result.tallied.values()) / result.duration_s if result.duration_s else 0.0,
        charge_ru=good_ru / max(1, result.ok),
        throttled=throttled,
        failed=result.error_share - throttled,
        p50_us=p50_us,
        p99_us=p99_us,
        lag_p99_us=lag_p99_us,
        invalid_reasons=(*disturbances(result, SHIFTED_US), *objective.invalid_reasons(result)),
        violations=tuple(objective.broken(result)),
        stopped=result.interrupted,
    )


def limit(trials: Sequence[Trial], objective: Objective) -> str:
    """Return what ended the search, by the lowest rate that failed: the RU/s, or what of the machine."""
    best = highest(trials)
    above = [each for each in trials if not each.inside and (best is None or each.rate > best.rate)]
    if not above or any(each.stopped for each in trials):
        return "it was stopped"
    first = min(above, key=lambda each: each.rate)
    if objective.throttled is not None and first.throttled > objective.throttled:
        return RU
    return "; ".join((*first.violations, *first.invalid_reasons))


def sweep(planned: SweepPlan, display: ProgressDisplay) -> SweepResult:
    """Make the sweep; Ctrl-C ends it with what there is. Raises BenchFailed and StoreError if it fails."""
    with WorkerPool() as generator:
        running = Sweep(planned, generator, display)
        try:
            with sandbox(planned.address) as account:
                running.measure(account)
        except KeyboardInterrupt:  # between two trials; within one the generator handles it, and ends the trial
            running.interrupted = True
    return running.result


class Sweep:
    """A sweep while it is made; `interrupted` if somebody ended it early."""

    def __init__(self, planned: SweepPlan, generator: Generator, display: ProgressDisplay) -> None:
        self._planned = planned
        self._generator = generator
        self._display = display
        self._found = list[Finding]()
        self.interrupted = False

    @property
    def result(self) -> SweepResult:
        """What was measured until now."""
        options = self._planned.options
        configuration = options.to_json() | {"objective": str(self._planned.objective)}
        subject = redacted(options.account) if emulator_label(options.account) is None else LABEL
        return SweepResult(configuration, subject, tuple(self._found), self.interrupted)

    def measure(self, account: AccountSandbox) -> None:
        """Measure all levels in one container, which is created with the highest."""
        planned = self._planned
        top = Throughput(planned.levels[-1])
        self._display.start("creating a container, and filling it", 1.0)
        container = account.create(top)
        items = Items(1, ITEMS, top.initial_partitions)
        account.fill(container, items)
        require_answer(account, reads_in_turn(builder(account.address), container, items))
        read_ru = load_charges().read(KB)
        for ru in planned.levels:
            if self.interrupted:
                return
            account.scale(container, Throughput(ru))
            requests = reads_in_turn(builder(account.address), container, items)
            self._found.append(self._search(account, ru, ru / read_ru, requests))

    def _search(self, account: AccountSandbox, ru: int, predicted: float, requests: KeyedRequests) -> Finding:
        """Search for the highest rate inside the objective; the prediction only says where to begin."""
        trials = tuple(search(lambda rate: self._try(ru, account, rate, requests), predicted * BEGIN_AT, PRECISION))
        return Finding(ru, predicted, trials, limit(trials, self._planned.objective))

    def _try(self, ru: int, account: AccountSandbox, rate: float, requests: KeyedRequests) -> Trial:
        """Try one rate, from the beginning of a second on."""
        load = Load(
            url=account.url,
            requests=requests,
            rate=rate,
            duration_s=self._planned.duration_s,
            connections=self._planned.options.connections,
            check=classify,
            tally=CHARGE,
            ca=account.ca,
        )
        self._display.start(f"{ru:,} RU/s, {rate:,.0f} requests/s", load.duration_s)
        result = self._generator.run(load, self._display.update, on_the_second=True)
        self.interrupted = self.interrupted or result.interrupted
        return assess(rate, result, self._planned.objective)


def require_answer(account: AccountSandbox, requests: KeyedRequests) -> None:
    """Send one request; BenchFailed, with what was answered, if that is a refusal and no 429."""
    answer = account.send(next(requests.rendered("", {})))
    if answer.status >= 400 and answer.status != TOO_MANY_REQUESTS:
        sentence = answer.body.decode(errors="replace")[:300].partition("\n")[0]
        raise BenchFailed(f"refused with {answer.status}: {sentence}")
