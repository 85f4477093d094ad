"""The runs against one store: the reference's closed loop, the same rate in an open loop, and on up to the knee."""

import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.loadgen.capacity import PERCENTS, TRIES, Objective, disturbances, search
from bench.loadgen.histogram import Histogram
from bench.loadgen.keys import Keys, Uniform
from bench.loadgen.load import Gets, Load
from bench.loadgen.result import LAG_BOUND_US, Result
from bench.loadgen.schedule import constant
from bench.loadgen.workers import WorkerPool
from bench.progress import ProgressDisplay
from bench.reference.published import RATE, THINK_S, USERS
from bench.stores.setup import Contestant

PATH = "/v1/recommendations/{key}"
THINK_SPREAD = 0.5
PRECISION = 0.05
START_RATE = 1_000.0
TRIAL_S, WARM_S = 3.0, 1.0
POPULAR = 0.01
"""The share of popular lists from which on users with a list of their own no longer get it: outside the objective."""

LATE = 0.1
"""The share of the objective's tightest bound by which the generator may be late at p99."""

FULL = 0.8
"""The share of a core from which on it is called the limit: what is left of it, others use."""

NOBODYS = "no core was full"
"""A run that was outside for no reason to be seen is made again: the machine may have had other work."""

TIMES = re.compile("|".join(map(re.escape, PERCENTS)))
UNITS, THROTTLED = "hotplate_store_request_units_total", "hotplate_store_throttled_total"


@dataclass(frozen=True, slots=True)
class Metered:
    """What the lookups of a run were charged, and how often they were refused; None of a store that charges nothing."""

    ru: float
    throttled: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run through a store's service: its result, and what service, server and Cosmos DB spent on it."""

    result: Result = field(repr=False)
    service_share: float
    """Of a core, while it lasted."""

    service_cpu_us: float
    server_share: float | None
    metered: Metered | None

    @property
    def popular(self) -> float:
        """The share of answers that were the popular list instead of the user's own."""
        seen = self.result.seen["source"]
        return seen.get("popular", 0) / max(1, sum(seen.values()))

    @property
    def ru_s(self) -> float | None:
        """RU spent a second."""
        return None if self.metered is None else self.metered.ru / self.result.duration_s


@dataclass(frozen=True, slots=True)
class Reach:
    """One rate tried on the way to the knee; see `bench.capacity.Tried`."""

    rate: float
    run: Run
    invalid_reasons: tuple[str, ...]
    """Why the run says nothing of the service."""

    broken: tuple[str, ...]

    @property
    def stopped(self) -> bool:
        """Whether somebody ended it early."""
        return self.run.result.interrupted

    @property
    def inside(self) -> bool:
        """Whether it is valid and inside the objective."""
        return not self.invalid_reasons and not self.broken and not self.stopped

    @property
    def unclear(self) -> bool:
        """Whether the generator was disturbed in a run that broke nothing."""
        return bool(self.invalid_reasons) and not self.broken

    @property
    def own_rate(self) -> float:
        """Answers a second that were the users' own lists."""
        return self.run.result.ok_rate * (1 - self.run.popular)

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values, as `bench.report.plots.search` wants a point."""
        p50, p99 = Histogram.of(self.run.result.latencies_s).percentiles_us((50, 99))
        return {
            "at": self.rate,
            "own_rate": self.own_rate,
            "p50_us": p50,
            "p99_us": p99,
            "popular": self.run.popular,
            "throttled": None if self.run.metered is None else self.run.metered.throttled,
            "ru_s": self.run.ru_s,
            "service_share": self.run.service_share,
            "server_share": self.run.server_share,
            "invalid_reasons": list(self.invalid_reasons),
            "broken": list(self.broken),
        }


@dataclass(frozen=True, slots=True)
class Shown:
    """All runs against one store; what was not reached before Ctrl-C is None or empty."""

    contestant: Contestant
    closed: Run | None
    steady: Run | None
    reached: tuple[Reach, ...]

    @property
    def best(self) -> Reach | None:
        """The highest rate inside the objective."""
        return max((each for each in self.reached if each.inside), key=lambda each: each.rate, default=None)

    @property
    def first_outside(self) -> Reach | None:
        """The gentlest rate above it that was outside."""
        best = 0.0 if self.best is None else self.best.rate
        above = [each for each in self.reached if not each.inside and each.rate > best]
        return min(above, key=lambda each: each.rate, default=None)

    @property
    def limit(self) -> str:
        """Name what ended the climb, in few words."""
        ended = self.first_outside
        if ended is None or ended.stopped:
            return "it was stopped"
        if any(doubt.startswith(NOBODYS) for doubt in ended.invalid_reasons):
            return NOBODYS
        return "the load generator" if ended.unclear else limit_of(ended.run)

    @property
    def ending(self) -> str:
        """Tell how the climb ended; of an emulator without its latencies."""
        ended = self.first_outside
        if ended is None or ended.stopped:
            return f"{self.contestant.name}: it was stopped"
        run, said = ended.run, ended.invalid_reasons if ended.unclear else ended.broken
        if self.contestant.emulated:
            said = tuple("its latency" if _tells_a_time(each) else each for each in said)
        server = "" if run.server_share is None else f", the store's server {run.server_share:.0%}"
        refused = f", {run.metered.throttled:,.0f} reads refused with 429" if run.metered else ""
        spent = f"the service used {run.service_share:.0%} of its core{server}{refused}"
        return f"{self.contestant.name}: outside at {ended.rate:,.0f} requests/s by {' and '.join(said)}; {spent}"


def _tells_a_time(sentence: str) -> bool:
    """Tell a sentence about latencies of answers from others, those about the generator's lag included."""
    return TIMES.search(sentence) is not None and not sentence.startswith("the generator")


def limit_of(run: Run) -> str:
    """Name what a run was up against."""
    if run.metered is not None and run.metered.throttled:
        return "the container's RU/s"
    if run.service_share >= FULL:
        return "the service's core"
    if run.server_share is not None and run.server_share >= FULL:
        return "the store's server"
    return NOBODYS


class Runs:
    """Makes the runs; lives as long as the measurement."""

    def __init__(
        self, crew: WorkerPool, watch: ProgressDisplay, users: tuple[str, ...], closed_s: float, objective: Objective
    ) -> None:
        self._crew = crew
        self._watch = watch
        self._users = users
        self._closed_s = closed_s
        self._objective = objective
        self._late_us = max(LAG_BOUND_US, min(objective.latency_us.values(), default=0.0) * LATE)
        self._trial_s = min(TRIAL_S, closed_s)
        self.interrupted = False

    def all_of(self, one: Contestant) -> Shown:
        """Make all runs against one store, or those until Ctrl-C."""
        self._run(f"{one.name}, warm-up", one, self._climb(one, START_RATE, WARM_S))
        closed = None if self.interrupted else self._valid(f"{USERS} users", one, self._closed(one))
        steady = None if self.interrupted else self._valid(f"{RATE:g} requests/s", one, self._steady(one))
        reached = list[Reach]()
        if not self.interrupted:
            reached += search(lambda rate: self._reach(one, rate), START_RATE, PRECISION)
        return Shown(one, closed, steady, tuple(reached))

    def _closed(self, one: Contestant) -> Load:
        return Load(
            url=one.service.url,
            requests=self._lists(2),
            duration_s=self._closed_s,
            think_s=THINK_S,
            think_spread=THINK_SPREAD,
            connections=USERS,
            observe=("source",),
        )

    def _steady(self, one: Contestant) -> Load:
        arrivals = constant(RATE, self._closed_s, seed=1)
        return Load(
            url=one.service.url,
            requests=self._lists(3),
            arrivals=arrivals,
            duration_s=self._closed_s,
            observe=("source",),
        )

    def _climb(self, one: Contestant, rate: float, duration_s: float) -> Load:
        requests = self._lists(round(rate))
        return Load(url=one.service.url, requests=requests, rate=rate, duration_s=duration_s, observe=("source",))

    def _lists(self, seed: int) -> Gets:
        return Gets(PATH, Keys(self._users, Uniform(), seed=seed))

    def _reach(self, one: Contestant, rate: float) -> Reach:
        run = self._run(f"{one.name}, {rate:,.0f} requests/s", one, self._climb(one, rate, self._trial_s))
        invalid_reasons = tuple(disturbances(run.result, self._late_us))
        broken = self._objective.broken(run.result)
        if invalid_reasons and not replace(self._objective, latency_us={}).broken(run.result):
            broken = []  # a late generator spoils latencies, and nothing else
        if run.popular > POPULAR:
            broken = [*broken, f"{run.popular:.1%} got the popular list instead of their own, bound {POPULAR:.0%}"]
        if broken and limit_of(run) == NOBODYS:
            invalid_reasons, broken = (*invalid_reasons, f"{NOBODYS}, and yet {' and '.join(broken)}"), []
        return Reach(rate, run, invalid_reasons, tuple(broken))

    def _valid(self, name: str, one: Contestant, load: Load) -> Run:
        """Make a run, and another where the generator was disturbed in it; the last one counts, whatever it is."""
        for _ in range(TRIES):
            run = self._run(f"{one.name}, {name}", one, load)
            if run.result.valid or run.result.interrupted:
                break
        return run

    def _run(self, name: str, one: Contestant, load: Load) -> Run:
        self._watch.start(name, load.duration_s)
        before, service_s, server_s = metered(one.service.url), one.service.cpu_s(), one.behind.cpu_s()
        result = self._crew.run(load, self._watch.update)
        server_after_s, service_after_s = one.behind.cpu_s(), one.service.cpu_s()
        after = metered(one.service.url)
        self.interrupted = self.interrupted or result.interrupted
        per_s = 1 / max(result.duration_s, 1e-9)
        spent = None
        if before is not None and after is not None:
            spent = Metered(after.ru - before.ru, after.throttled - before.throttled)
        return Run(
            result,
            service_share=(service_after_s - service_s) * per_s,
            service_cpu_us=(service_after_s - service_s) * 1e6 / max(1, result.ok),
            server_share=None if server_s is None or server_after_s is None else (server_after_s - server_s) * per_s,
            metered=spent,
        )


def metered(url: str) -> Metered | None:
    """Ask a service what its lookups were charged so far; None where its store charges nothing."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310 -- a service that was started here
        lines = answer.read().decode().splitlines()
    if not any(line.startswith(UNITS) for line in lines):
        return None
    return Metered(_summed(lines, UNITS), _summed(lines, THROTTLED))


def _summed(lines: Sequence[str], name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))
