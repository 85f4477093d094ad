"""Levels of throughput: their trials, and what the trials show.

Load exceeds the counted seconds at both ends, so a window of 10 s holds 10 seconds' budget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from hotplate.bench.loadgen.load import failure_by_status
from hotplate.bench.loadgen.result import P99_SAMPLES, ResponseSample, Result, lateness
from hotplate.bench.measure.search import TRIES, Trial
from hotplate.bench.options import MAX_POPULAR
from hotplate.bench.verdict import Gravity
from hotplate.stores.options import BUDGET_S

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
COMPUTED_MARK = "="
AT_LEAST_MARK = "+"


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
        return max(0.0, self.result.error_share)


def trial(share: float, result: Result, throttled: int, timeouts: int = 0) -> LevelTrial:
    """Return the trial of a run at a load, without its first LEAD_S and last TAIL_S seconds.

    A level is a setting of RU/s, its capacity the reads/s for which these RU/s suffice.

    share      offered share of the level's capacity
    throttled  429s of the whole run, as `timeouts` are those of the service's deadline
    """
    counted = result.only(range(LEAD_S, len(result.seconds) - TAIL_S))
    return LevelTrial(offered=share, result=counted, throttled=throttled, timeouts=timeouts)


class Outcome(NamedTuple):
    """What the trials of a level say of it.

    reason   why it was not simply measured; empty if it was
    mark     of its reads/s: AT_LEAST_MARK if this machine drove a little less than the level carries, COMPUTED_MARK if
             they are computed, as they could not be measured
    gravity  of the reason, if that is a finding: burst capacity, an account too far away, or errors at 90 % load
    """

    reason: str = ""
    mark: str = ""
    gravity: Gravity | None = None

    @property
    def is_unclear(self) -> bool:
        """Whether another trial may find something else."""
        return bool(self.reason) and self.gravity is not Gravity.UNMEASURED

    @property
    def is_computed(self) -> bool:
        """Whether nothing was measured."""
        return self.mark == COMPUTED_MARK

    @property
    def is_limited(self) -> bool:
        """Whether this machine is the reason."""
        return bool(self.mark) and self.gravity is None


MEASURED = Outcome()
COMPUTED_FOR = partial(Outcome, mark=COMPUTED_MARK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One setting of a container's throughput, a level, with its trials and what they say.

    ru          provisioned RU/s
    size_kb     size of the lists that are read
    charge_ru   request units of one read
    publish_ru  request units of one published list
    overload    the trial at 110 % of its capacity that got most reads through
    calm        the trial at 90 % that measured its latencies, if one did
    """

    ru: int
    size_kb: int
    charge_ru: float
    publish_ru: float
    overload: LevelTrial | None = None
    calm: LevelTrial | None = None
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
    def reads_per_s(self) -> float:
        """Reads per second, accepted or computed."""
        if self.is_computed or self.overload is None:
            return self.capacity_per_s
        return self.overload.accepted_per_s


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
    measured = replace(level, overload=_best(trials), outcome=outcome)
    if outcome.is_computed:
        return measured
    latency, calm_trials = _judge_load(CALM, attempt, partial(_judge_latency, emulated=emulated))
    if latency == MEASURED:
        return replace(measured, calm=calm_trials[-1])
    return replace(measured, outcome=latency)


def _judge_load(share: float, attempt: Attempt, judge: Judge) -> tuple[Outcome, list[LevelTrial]]:
    """Make trials at a share of capacity until they are clear, at most three; return the last outcome, and all trials.

    *judge* gets all trials made so far.
    """
    trials = list[LevelTrial]()
    for _ in range(TRIES):
        trials.append(attempt(share))
        outcome = judge(trials)
        if not outcome.is_unclear:
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
    if last.accepted_per_s > BURST * capacity_per_s:
        spent = last.accepted_per_s * level.charge_ru
        return COMPUTED_FOR(
            f"{spent:,.0f} RU/s were spent of {level.ru:,} provisioned: burst capacity, which idle partitions save for "
            "five minutes. The level was not measured; turn burst capacity off",
            gravity=Gravity.UNMEASURED,
        )
    if last.timeouts > last.throttled and last.accepted_per_s < FEW * capacity_per_s:
        reason = f"only {last.accepted_per_s:,.0f} of {capacity_per_s:,.0f} reads/s met {TOO_FAR}"
        return COMPUTED_FOR(reason, gravity=Gravity.UNMEASURED)

    best = _best(trials)
    is_reached = best.accepted_per_s >= (1 - NEAR) * capacity_per_s
    is_sent = best.result.sent >= SENT_BOUND * best.result.due
    is_accounts_limit = not emulated and best.throttled > 0 and is_sent
    if is_reached or is_accounts_limit:
        return MEASURED

    reason = f"this machine got {best.accepted_per_s:,.0f} of {capacity_per_s:,.0f} reads/s through"
    is_nearly_reached = best.accepted_per_s >= REACHED * capacity_per_s
    return Outcome(reason, AT_LEAST_MARK if is_nearly_reached else COMPUTED_MARK)


def _judge_latency(trials: Sequence[LevelTrial], *, emulated: bool) -> Outcome:
    """Require of the last trial, at 90 % load, that the generator was in time and nearly all lists came."""
    trial = trials[-1]
    late = lateness([trial.result], P99_SAMPLES)
    if late:
        return COMPUTED_FOR(late[0])
    if trial.refused <= MAX_POPULAR:
        return MEASURED
    reason = f"{100 * trial.refused:.1f} % of the requests got no list from the store at 90 % load"
    if emulated:
        return COMPUTED_FOR(f"on this machine {reason}")
    return Outcome(reason, gravity=Gravity.ERRORS)
