"""One level of RU/s: an overloaded trial proves what it accepts, and a calm one shows how long reads take.

Only whole seconds count, of a load that was there before and is there afterwards: a window of 10 s then holds what 10
seconds of the account's budget admit, however its seconds lie to ours.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from hotplate.bench.lists import MAX_POPULAR
from hotplate.bench.loadgen.result import SENT_BOUND, Result

# Before and after the seconds that count.
LEAD_S = TAIL_S = 1
OVERLOAD, CALM = 1.1, 0.9
# Further points of the curves, if there is time.
CURVE = (0.3, 0.6)
# How far from RU/s ÷ charge a proven level may be.
NEAR = 0.02
# A second in which this much of the provisioned RU/s was spent had burst capacity.
BURST = 1.03
TRIES = 2


def from_store(status: int, body: bytes) -> str | None:
    """Accept a list that was read from the store only; see `hotplate.bench.loadgen.load.ResponseCheck`."""
    if status >= 400:
        return "status"
    return None if b'"source":"personal"' in body else "popular"


@dataclass(frozen=True)
class Trial:
    """A rate of requests that was tried, as a *share* of what the level should accept; *result* is of whole seconds."""

    share: float
    rate: float
    result: Result
    throttled: int
    """429s that the service saw, over the whole trial; after 50 in a row its breaker keeps requests from the store."""

    @cached_property
    def due(self) -> int:
        """Requests that were due."""
        return sum(second.due for second in self.result.seconds)

    @cached_property
    def accepted(self) -> int:
        """Lists that were read from the store."""
        return sum(len(second.latencies_s) for second in self.result.seconds)

    @property
    def accepted_s(self) -> float:
        """The same a second."""
        return self.accepted / max(1, len(self.result.seconds))

    @property
    def refused(self) -> float:
        """The share of due requests that got no list of the store."""
        return max(0.0, 1 - self.accepted / self.due) if self.due else 1.0

    @property
    def sent(self) -> bool:
        """Whether the generator sent what was due."""
        return sum(second.sent for second in self.result.seconds) >= SENT_BOUND * self.due


def trial(share: float, rate: float, result: Result, throttled: int) -> Trial:
    """Keep the whole seconds of a run that count."""
    seconds = result.seconds[LEAD_S : len(result.seconds) - TAIL_S]
    return Trial(share, rate, replace(result, seconds=seconds), throttled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level: what it accepts by the measured charge, its trials, and why it was not measured, if so."""

    ru: int
    size_kb: int
    charge_ru: float
    trials: tuple[Trial, ...] = ()
    unproven: str = ""
    """Why this machine could not drive it; it is computed then."""

    burst: str = ""
    """Why its trial was refused: it spent more than is provisioned."""

    broken: str = ""
    """What was wrong with the reads at 90 % load, of an account."""

    @property
    def capacity_s(self) -> float:
        """Reads a second: RU/s by the charge of one."""
        return self.ru / self.charge_ru

    @property
    def computed(self) -> bool:
        """Whether its figures are computed."""
        return bool(self.unproven or self.burst)

    @property
    def reads_s(self) -> float:
        """Reads a second that were accepted, or are computed."""
        return self.capacity_s if self.computed else self.at(OVERLOAD).accepted_s

    def at(self, share: float) -> Trial:
        """Return its newest trial at a share of the capacity; KeyError if there is none."""
        return {each.share: each for each in self.trials}[share]


# Tries a share of a level's capacity.
Attempt = Callable[[float], Trial]


def measure_level(level: Level, attempt: Attempt, *, emulated: bool, time_left: Callable[[], bool]) -> Level:
    """Prove a level by an overloaded trial, then try it at less; a trial that was stopped ends that.

    *time_left* says whether there is time for a trial that could be left out.
    """
    for share, judge in ((OVERLOAD, _judged), (CALM, _judged_calm)):
        for number in range(TRIES):
            if number == 0 or time_left():
                level = judge(replace(level, trials=(*level.trials, attempt(share))), emulated=emulated)
            if level.trials[-1].result.interrupted or not (level.unproven or level.broken):
                break
        if level.computed or level.trials[-1].result.interrupted:
            return level
    for share in CURVE:
        if time_left() and not level.trials[-1].result.interrupted:
            level = replace(level, trials=(*level.trials, attempt(share)))
    return level


def _judged(level: Level, *, emulated: bool) -> Level:
    """Say of the newest overloaded trial whether it proves the level."""
    made, capacity_s = level.trials[-1], level.capacity_s
    if made.result.interrupted:
        return replace(level, unproven="it was stopped")
    if made.accepted_s > BURST * capacity_s:
        spent = made.accepted_s * level.charge_ru
        return replace(
            level,
            unproven="",
            burst=f"{spent:,.0f} RU/s were spent of {level.ru:,} provisioned: burst capacity, what idle partitions "
            "save up for five minutes. The level was not measured; turn burst capacity off for that",
        )
    missed = made.accepted_s < (1 - NEAR) * capacity_s
    if missed and (emulated or not made.throttled or not made.sent):
        return replace(level, unproven=f"this machine got {made.accepted_s:,.0f} of {capacity_s:,.0f} reads/s through")
    return replace(level, unproven="")


def _judged_calm(level: Level, *, emulated: bool) -> Level:
    """Say of the newest calm trial whether its reads came from the store."""
    made = level.trials[-1]
    if made.result.interrupted or made.refused <= MAX_POPULAR:
        return replace(level, unproven="", broken="")
    sentence = f"{100 * made.refused:.1f} % of the requests got no list of the store at 90 % load"
    return replace(level, unproven=f"on this machine {sentence}") if emulated else replace(level, broken=sentence)
