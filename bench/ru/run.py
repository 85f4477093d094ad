"""A sweep of an account from its options to its report: its plan, its cost, its searches and their trials."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Protocol

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.loadgen import capacity
from hotplate.bench.loadgen.histogram import Histogram
from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.result import LAG_BOUND_US, Result
from hotplate.bench.loadgen.workers import OnLoadProgress, WorkerPool
from hotplate.bench.options import SweepOptions
from hotplate.bench.planner.prices import Prices
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.quantities import parse_rate, parse_seconds
from hotplate.bench.report.report import Report
from hotplate.bench.report.text import Cell, Footnotes, Summary, paragraphs
from hotplate.bench.ru.sandbox import (
    CHARGE,
    AccountSandbox,
    SandboxItems,
    SignedRequests,
    builder,
    reads_in_turn,
    sandbox,
)
from hotplate.bench.search import search
from hotplate.bench.stores.setup import EMULATOR, emulator_label
from hotplate.stores.cosmos.charges import KB
from hotplate.stores.cosmos.charges import load as load_charges
from hotplate.stores.cosmos.url import MANUAL_MIN, MANUAL_STEP, MAX_RU, Address, Throughput, parse
from hotplate.stores.urls import redacted

# What ends a search that found what it looked for.
RU = "RU/s"
# A level was spent if so much of it was.
SPENT = 0.95

METHOD = """
Open loop, evenly spaced, one attempt a request: a 429 is counted, never retried. Retries would hide throttling in the
latencies' tail and leave the throughput as it is.

Each trial begins with a second of the clock and lasts whole ones, as budgets are kept by the second. The best rate is
the highest one inside the objective, to 2 %.

Items of 1 KB are read by id, one after the other. They lie evenly over the partitions of a container that was created
with the highest level, so nothing splits on the way. Charges are those of the responses' headers.
"""
EMULATED = (
    "Requests went to an emulator, which charges by the same coefficients as the planner. That they agree shows "
    "nothing of Azure, and the latencies are not Azure's."
)
TOP = "accepted", "predicted", "cost of a read"

ITEMS = 500
PRECISION = 0.01
# Of the rate that is expected: where the search begins, so it takes few trials; its end does not depend on it.
BEGIN_AT = 0.6
# A generator that is later than this sends requests in other seconds than they were due in.
SHIFTED_US = 25_000.0

# A search takes about so many trials, and the wait for the next second between two of them.
TRIALS = 8
BETWEEN_S = 1.0
HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """The options of a sweep, checked: levels in ascending order, where, and how each trial is made."""

    options: SweepOptions
    levels: tuple[int, ...]
    objective: capacity.Objective
    duration_s: float
    address: Address


def plan(options: SweepOptions) -> SweepPlan:
    """Check the options of a sweep. Raises BenchMisused or StoreMisused for what makes no sense."""
    levels = tuple(sorted({_parse_level(each) for each in options.levels.split(",")}))
    objective = capacity.parse_objective(options.slo)
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
    return container_cost(planned.levels[-1], regions, prices, now, took_s)


def container_cost(ru: int, regions: int, prices: Prices, now: float, took_s: float) -> list[str]:
    """Say what a container is that is there from *now* on, in seconds since 1970, for *took_s*, and what it costs."""
    hours = int((now + took_s) // HOUR_S - now // HOUR_S) + 1
    usd = prices.ru_hours(ru * hours, regions=regions)
    made = f"a container of its own with {ru:,} RU/s in {regions} region(s), for some {ceil(took_s / 60)} minutes"
    return [
        f"{made}, then dropped; the rest of the account is left alone",
        f"{usd:,.2f} USD: an hour of the clock is billed at its highest RU/s, and this touches {hours}",
        f"price: {prices.ru_hour.provenance}",
    ]


@dataclass(frozen=True, slots=True)
class RateTrial:
    """One rate of requests a second that was tried, with what the account charged and refused."""

    point: capacity.Point
    spent_ru: float
    """A second."""

    charge_ru: float
    """Of one good answer, by its header."""

    throttled: float
    lag_p99_us: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `late` if the generator was too late for the latencies to mean anything."""
        own = {name: getattr(self, name) for name in ("spent_ru", "charge_ru", "throttled", "lag_p99_us")}
        return self.point.to_json() | own | {"late": self.lag_p99_us > LAG_BOUND_US}


@dataclass(frozen=True, slots=True)
class LevelResult:
    """One level of RU/s with the reads a second that the planner predicts, its trials, and what ended the search."""

    ru: int
    predicted: float
    trials: tuple[RateTrial, ...]
    limit: str

    @property
    def best(self) -> RateTrial | None:
        """The trial of the highest rate inside the objective; None if there was not one."""
        return max((each for each in self.trials if each.point.inside), key=lambda each: each.point.at, default=None)

    @property
    def spent(self) -> bool:
        """Whether the RU/s ended the search, and the best rate spends them."""
        return self.limit == RU and self.best is not None and self.best.spent_ru >= SPENT * self.ru

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        best = self.best
        return {
            "ru": self.ru,
            "predicted": self.predicted,
            "best": best and best.to_json(),
            "off": best and best.point.per_s / self.predicted - 1,
            "limit": self.limit,
            "spent": self.spent,
            "trials": [each.to_json() for each in self.trials],
        }


class LoadRunner(Protocol):
    """Whatever makes a run of a load: processes of the load generator, or a simulation."""

    def run(self, load: Load, on_progress: OnLoadProgress | None = None, *, on_the_second: bool = False) -> Result:
        """See `hotplate.bench.loadgen.workers.WorkerPool`."""


def classify(status: int, body: bytes) -> str | None:
    """Tell 429s from other refusals; see `hotplate.bench.loadgen.load.ResponseCheck`."""
    del body
    return None if status < 400 else "throttled" if status == capacity.TOO_MANY_REQUESTS else "status"


def assess(rate: float, result: Result, objective: capacity.Objective) -> RateTrial:
    """Sum up a run of *rate* requests/s."""
    made = capacity.point(rate, result)
    if not made.stopped:
        invalid_reasons = (*capacity.disturbances(result, SHIFTED_US), *objective.invalid_reasons(result))
        made = replace(made, invalid_reasons=invalid_reasons, broken=tuple(objective.broken(result)))
    good_ru = sum(ru for status, ru in result.tallied.items() if status < 400)
    return RateTrial(
        point=made,
        spent_ru=sum(result.tallied.values()) / result.duration_s if result.duration_s else 0.0,
        charge_ru=good_ru / max(1, result.ok),
        throttled=result.statuses.get(capacity.TOO_MANY_REQUESTS, 0) / max(1, result.due),
        lag_p99_us=Histogram.of(result.lags_s).percentiles_us((99,))[0],
    )


def limit(trials: Sequence[RateTrial], objective: capacity.Objective) -> str:
    """Return what ended the search, by the lowest rate that failed: the RU/s, or what of the machine."""
    ended = capacity.first_outside([each.point for each in trials])
    if ended is None or any(each.point.stopped for each in trials):
        return "it was stopped"
    throttled = next(each.throttled for each in trials if each.point is ended)
    if objective.throttled is not None and throttled > objective.throttled:
        return RU
    return "; ".join((*ended.broken, *ended.invalid_reasons))


def sweep(planned: SweepPlan, display: ProgressDisplay) -> Report:
    """Make the sweep; Ctrl-C ends it with what there is. Raises BenchFailed and StoreError if it fails."""
    with WorkerPool() as generator:
        running = Sweep(planned, generator, display)
        try:
            with sandbox(planned.address) as account:
                running.measure(account)
        except KeyboardInterrupt:  # between two trials; within one the generator handles it, and ends the trial
            running.interrupted = True
    return running.report


class Sweep:
    """A sweep while it is made; `interrupted` if somebody ended it early."""

    def __init__(self, planned: SweepPlan, generator: LoadRunner, display: ProgressDisplay) -> None:
        self._planned = planned
        self._generator = generator
        self._display = display
        self._found = list[LevelResult]()
        self.interrupted = False

    @property
    def report(self) -> Report:
        """What was measured until now, summed up."""
        options = self._planned.options
        configuration = options.to_json() | {"objective": str(self._planned.objective)}
        subject = emulator_label(options.account) or redacted(options.account)
        return report(configuration, subject, self._found, interrupted=self.interrupted)

    def measure(self, account: AccountSandbox) -> None:
        """Measure all levels in one container, which is created with the highest."""
        planned = self._planned
        top = Throughput(planned.levels[-1])
        self._display.start("creating a container, and filling it", 1.0)
        container = account.create(top)
        items = SandboxItems(1, ITEMS, top.initial_partitions)
        account.fill(container, items)
        require_answer(account, reads_in_turn(builder(account.address), container, items))
        read_ru = load_charges().read(KB)
        for ru in planned.levels:
            if self.interrupted:
                return
            account.scale(container, Throughput(ru))
            requests = reads_in_turn(builder(account.address), container, items)
            self._found.append(self._search(account, ru, ru / read_ru, requests))

    def _search(self, account: AccountSandbox, ru: int, predicted: float, requests: SignedRequests) -> LevelResult:
        """Search for the highest rate inside the objective; the prediction only says where to begin."""
        trials = list[RateTrial]()

        def attempt(rate: float) -> capacity.Point:
            trials.append(self._try(ru, account, rate, requests))
            return trials[-1].point

        for _ in search(attempt, predicted * BEGIN_AT, PRECISION):
            pass  # the trials are kept with what the account charged
        return LevelResult(ru, predicted, tuple(trials), limit(trials, self._planned.objective))

    def _try(self, ru: int, account: AccountSandbox, rate: float, requests: SignedRequests) -> RateTrial:
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


def require_answer(account: AccountSandbox, requests: SignedRequests) -> None:
    """Send one request; BenchFailed, with what was answered, if that is a refusal and no 429."""
    answer = account.send(next(requests.rendered("", {})))
    if answer.status >= 400 and answer.status != capacity.TOO_MANY_REQUESTS:
        sentence = answer.body.decode(errors="replace")[:300].partition("\n")[0]
        raise BenchFailed(f"refused with {answer.status}: {sentence}")


def report(
    configuration: Mapping[str, Any], subject: str, results: Sequence[LevelResult], *, interrupted: bool
) -> Report:
    """Sum a sweep up; *subject* is the account without what may be secret, or EMULATOR if it is emulated."""
    emulated = subject == EMULATOR
    found = [each.to_json() for each in results]
    return Report(
        kind="ru",
        configuration=configuration,
        series=(),
        interrupted=interrupted,
        failures=tuple(_not_spent(each) for each in found if not each["spent"]),
        extra={
            "subject": subject,
            "method": [*([EMULATED] if emulated else []), *paragraphs(METHOD)],
            "ru": {"label": EMULATOR if emulated else None, "found": found},
        },
        summary=_summary(subject, found),
    )


def _summary(subject: str, found: Sequence[Mapping[str, Any]]) -> Summary:
    """Say what the highest level accepted, and three figures of each search."""
    footnotes, rows = Footnotes(), list[tuple[Cell, ...]]()
    for each in found:
        best, predicted = each["best"], f"{each['predicted']:,.1f}/s"
        name = f"{each['ru']:,} RU/s"
        if best is None:
            rows.append((name, footnotes.dash(_not_spent(each)), predicted, footnotes.dash(_not_spent(each))))
        else:
            accepted = f"{best['per_s']:,.1f}/s", "" if each["spent"] else "at least"
            rows.append((name, accepted, (predicted, f"off by {each['off']:+.1%}"), f"{best['charge_ru']:.2f} RU"))
    spent = max((each for each in found if each["spent"]), key=lambda each: float(each["ru"]), default=None)
    sentence = "No RU/s were used up, so it is not known what they accept."
    if spent is not None:
        where = f"a {subject}" if subject == EMULATOR else subject
        than = f"{abs(spent['off']):.1%} {'less' if spent['off'] < 0 else 'more'} than predicted"
        accepted_s = f"{spent['best']['per_s']:,.0f} reads/s"
        sentence = f"{spent['ru']:,} RU/s accept {accepted_s} on {where}, {than}."
    return Summary(sentence, TOP, tuple(rows), footnotes.lines)


def _not_spent(one: Mapping[str, Any]) -> str:
    return f"{one['ru']:,} RU/s were not spent, because the search was ended by: {one['limit']}"
