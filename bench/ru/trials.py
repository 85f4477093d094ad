"""One rate tried against a container, and the search for the best one inside the objective."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from bench.loadgen.capacity import TOO_MANY_REQUESTS, TRIES, Objective, disturbances, search
from bench.loadgen.histogram import Histogram
from bench.loadgen.load import Load, Requests
from bench.loadgen.result import LAG_BOUND_US, Result
from bench.loadgen.workers import WorkerPool
from bench.progress import ProgressDisplay
from bench.report.text import format_us

CHARGE = "x-ms-request-charge"
PRECISION = 0.02
BEGIN_AT = 0.6
"""Of the rate that is expected: where the search begins, so that it takes few trials; where it ends does not follow."""

SHIFTED_US = 25_000.0
"""A generator that is later than this sends requests in other seconds than they were due in."""

THROTTLED, OTHER = "throttled", "status"


def judge(status: int, body: bytes) -> str | None:
    """Tell 429s from other refusals; see `bench.loadgen.traffic.Check`."""
    del body
    return None if status < 400 else THROTTLED if status == TOO_MANY_REQUESTS else OTHER


@dataclass(frozen=True, slots=True)
class Offered:
    """What goes over the wire for a rate of users' requests: these requests, so many a second."""

    requests: Requests
    wire_rate: float


class Target(Protocol):
    """Whatever is measured."""

    url: str
    ca: str | None

    def saturated_s(self) -> float | None:
        """For how long an emulator was itself the limit; None for what does not tell."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured: seconds of one trial, connections, and the objective."""

    duration_s: float
    connections: int
    objective: Objective


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate, and what became of it; `rate` is of users, and of them `ok_rate` a second were answered well."""

    rate: float
    ok_rate: float
    spent_ru: float
    """A second."""

    charge_ru: float
    """Of one good answer, as answers told."""

    throttled: float
    failed: float
    p50_us: float
    p99_us: float
    lag_p99_us: float
    doubts: tuple[str, ...]
    broken: tuple[str, ...]
    stopped: bool
    result: Result = field(repr=False)

    @property
    def inside(self) -> bool:
        """See `bench.capacity.Tried`."""
        return not self.unclear and not self.broken and not self.stopped

    @property
    def unclear(self) -> bool:
        """See `bench.capacity.Tried`."""
        return bool(self.doubts) and not self.broken

    @property
    def late(self) -> bool:
        """Whether the generator was too late for the latencies to mean anything; rates may still be believed."""
        return self.lag_p99_us > LAG_BOUND_US

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        told = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "result"}
        return told | {"inside": self.inside, "late": self.late}


class Trials:
    """Makes trials; lives as long as a sweep."""

    def __init__(self, crew: WorkerPool, extent: Extent, watch: ProgressDisplay) -> None:
        self._crew = crew
        self._extent = extent
        self._watch = watch
        self.interrupted = False

    def best(
        self,
        name: str,
        target: Target,
        offer: Callable[[float], Offered],
        expected: float,
        duration_s: float | None = None,
    ) -> Iterator[Trial]:
        """Look for the best rate inside the objective; yield every trial. *expected* only says where to begin."""

        def attempt(rate: float) -> Trial:
            return self.once(name, target, rate, offer(rate), duration_s)

        return search(attempt, expected * BEGIN_AT, PRECISION)

    def once(self, name: str, target: Target, rate: float, offered: Offered, duration_s: float | None = None) -> Trial:
        """Try one rate of users' requests, from the beginning of a second on."""
        extent = self._extent
        load = Load(
            url=target.url,
            requests=offered.requests,
            rate=offered.wire_rate,
            duration_s=duration_s or extent.duration_s,
            connections=extent.connections,
            check=judge,
            tally=CHARGE,
            ca=target.ca,
        )
        self._watch.start(f"{name}, {rate:,.0f} requests/s", load.duration_s)
        before_s = target.saturated_s()
        result = self._crew.run(load, self._watch.update, on_the_second=True)
        self.interrupted = self.interrupted or result.interrupted
        full_s = (target.saturated_s() or 0.0) - (before_s or 0.0)
        return weigh(rate, offered.wire_rate, result, extent.objective, full_s)


def weigh(rate: float, wire_rate: float, result: Result, objective: Objective, saturated_s: float) -> Trial:
    """Sum up a run of *rate* users' requests, of which *wire_rate* went over the wire."""
    p50_us, p99_us = Histogram.of(result.latencies_s).percentiles_us((50, 99))
    lag_p99_us = Histogram.of(result.lags_s).percentiles_us((99,))[0]
    good_ru = sum(ru for status, ru in result.tallied.items() if status < 400)
    throttled = result.statuses.get(TOO_MANY_REQUESTS, 0) / max(1, result.due)
    doubts, broken = list(_doubts(result, saturated_s)), objective.broken(result)
    if broken and lag_p99_us > LAG_BOUND_US and not replace(objective, latency_us={}).broken(result):
        doubts, broken = [*doubts, f"the generator was late (p99 {format_us(lag_p99_us)}), and latencies with it"], []
    return Trial(
        rate=rate,
        ok_rate=result.ok_rate * rate / wire_rate,
        spent_ru=sum(result.tallied.values()) / result.duration_s if result.duration_s else 0.0,
        charge_ru=good_ru / max(1, result.ok),
        throttled=throttled,
        failed=result.error_share - throttled,
        p50_us=p50_us,
        p99_us=p99_us,
        lag_p99_us=lag_p99_us,
        doubts=tuple(doubts),
        broken=tuple(broken),
        stopped=result.interrupted,
        result=result,
    )


def _doubts(result: Result, saturated_s: float) -> Iterator[str]:
    """Say why a run does not measure the container; a lag that only spoils latencies is no reason."""
    yield from disturbances(result, SHIFTED_US)
    if saturated_s:
        yield f"the emulator had no CPU to spare for {saturated_s:.0f} s"


def highest(trials: Sequence[Trial]) -> Trial | None:
    """Pick the best trial inside the objective; None where none was."""
    return max((each for each in trials if each.inside), key=lambda each: each.rate, default=None)


def limit(trials: Sequence[Trial], objective: Objective) -> str:
    """Say what ended the search: the RU/s, or what of the machine; the gentlest trial outside tells."""
    best = highest(trials)
    above = [each for each in trials if not each.inside and (best is None or each.rate > best.rate)]
    if not above or any(each.stopped for each in trials):
        return "it was stopped"
    first = min(above, key=lambda each: each.rate)
    return RU if _throttled(first, objective) else "; ".join((*first.broken, *first.doubts))


def hopeless(trials: Sequence[Trial], arithmetic: float, objective: Objective) -> bool:
    """Tell whether the newest trial shows that the machine, not the RU/s, ends the search below the *arithmetic*."""
    newest = trials[-1]
    if newest.inside or newest.stopped or _throttled(newest, objective) or newest.rate >= arithmetic:
        return False
    return not newest.unclear or sum(each.unclear and each.rate == newest.rate for each in trials) >= TRIES


def _throttled(trial: Trial, objective: Objective) -> bool:
    return objective.throttled is not None and trial.throttled > objective.throttled


RU = "RU/s"
"""What ends a search that found what it looked for."""
