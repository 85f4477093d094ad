"""One measurement of a service over HTTP, from the first request to the report: rounds, a search, or a sweep."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from bench import capacity
from bench.capacity import Point
from bench.errors import BenchFailed, BenchMisused
from bench.expected import Checked, check
from bench.loadgen.crew import Crew
from bench.loadgen.keys import Keys
from bench.loadgen.objective import Objective
from bench.loadgen.recorder import Progress, Sample
from bench.loadgen.requests import Posts
from bench.loadgen.result import Result
from bench.loadgen.schedule import Arrivals, constant
from bench.loadgen.traffic import Load
from bench.report.report import Report, Series, series
from stores.connect import connect
from stores.http1 import ConnectionPool, RequestFailed

PARALLEL = 20  # requests at a time in a sweep of batches


class Watch(Protocol):
    """Whoever is told how a measurement goes."""

    def stage(self, name: str, duration_s: float) -> None:
        """A run begins."""

    def tell(self, parts: Sequence[Progress]) -> None:
        """A run goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be measured: `load`, `rounds` times, after a warm-up that is thrown away.

    With an `objective` the highest rate inside it is looked for first, from the load's own rate on, and the rounds are
    made at that. With `batches`, POSTs for so many of the `keys` each are made instead, 20 at a time. With a `store`
    the answers that the load keeps as samples are compared with what that holds.
    """

    load: Load
    rounds: int = 1
    warmup_s: float = 0.0
    processes: int = 1
    objective: Objective | None = None
    batches: Sequence[int] = ()
    keys: Keys | None = None
    n: int = 10
    store: str | None = None
    configuration: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """A report, and the runs behind its series, each with the epoch second of its start."""

    report: Report
    runs: tuple[tuple[float, Result], ...]

    @property
    def believable(self) -> bool:
        """Whether it came to its end, is valid, found the rate that it looked for, and no wrong answer."""
        report = self.report
        found = report.extra.get("search", {"highest": True})["highest"]
        wrong = report.extra.get("checked", {}).get("wrong", 0)
        return bool(self.runs and found) and not (report.interrupted or report.doubts or wrong)


def measure(question: Question, watch: Watch) -> Measured:
    """Measure; Ctrl-C ends it with what there is by then. Raises BenchFailed where nothing answers."""
    _must_answer(question.load)
    with Crew(question.processes) as crew:
        made = _Measurement(question, crew, watch)
        made.make()
    checked = asyncio.run(_checked(made.samples, question.store)) if question.store else None
    extra = {"search": made.search(), "sweep": made.sweep(), "checked": checked and asdict(checked)}
    report = Report(
        kind="http",
        configuration=question.configuration,
        series=made.series(),
        interrupted=made.interrupted,
        extra={name: found for name, found in extra.items() if found is not None},
    )
    return Measured(report, tuple(made.runs))


class _Measurement:
    """A question while it is being answered."""

    def __init__(self, question: Question, crew: Crew, watch: Watch) -> None:
        self._question = question
        self._crew = crew
        self._watch = watch
        self._searched = list[Point]()
        self._swept = list[Point]()
        self.runs = list[tuple[float, Result]]()
        self.samples = list[Sample]()
        self.interrupted = False

    def make(self) -> None:
        """Make all runs, or those until Ctrl-C."""
        question = self._question
        load = question.load
        try:
            if question.warmup_s:
                self._run("warm-up", for_seconds(load, question.warmup_s))
            if question.batches:
                self._sweep_batches()
                return
            if question.objective:
                found = self._find_max(load, question.objective)
                if found is None:
                    return
                load = replace(load, arrivals=at_rate(load, found.at))
            for number in range(1, question.rounds + 1):
                if not self.interrupted:
                    self._keep(f"round {number} of {question.rounds}", load)
        except KeyboardInterrupt:  # between two runs; within one the crew hears it, and ends the run
            self.interrupted = True

    def series(self) -> tuple[Series, ...]:
        """Give a series of all rounds, or one for each size of batch."""
        results = [result for _, result in self.runs]
        if self._question.batches:
            return tuple(
                series(f"batch {found.at:g}", [result]) for found, result in zip(self._swept, results, strict=True)
            )
        return (series(self._question.load.url, results),)

    def search(self) -> dict[str, Any] | None:
        """Tell of the search for the highest rate, where one was made."""
        best = capacity.highest(self._searched)
        told = {"objective": str(self._question.objective), "highest": best and best.at}
        return told | {"points": [each.to_json() for each in self._searched]} if self._searched else None

    def sweep(self) -> dict[str, Any] | None:
        """Tell of the sizes of batch, where they were tried."""
        best = capacity.knee(self._swept)
        told = {"parallel": PARALLEL, "knee": best and best.at}
        return told | {"points": [each.to_json() for each in self._swept]} if self._swept else None

    def _find_max(self, load: Load, objective: Objective) -> Point | None:
        if load.plan is None:
            raise BenchMisused("a search needs an open loop: a closed one sends no more than is answered")

        def attempt(rate: float) -> Result:
            return self._run(f"{rate:,.0f} requests/s", replace(load, rate=None, arrivals=at_rate(load, rate)))

        self._searched += capacity.find_max(attempt, objective, load.plan.rate)
        return capacity.highest(self._searched)

    def _sweep_batches(self) -> None:
        question = self._question
        if question.keys is None:
            raise BenchMisused("a sweep of batches needs users to ask for")
        for size in question.batches:
            if self.interrupted:
                return
            requests = Posts(question.keys, size, question.n)
            load = replace(question.load, requests=requests, rate=None, arrivals=None, connections=PARALLEL)
            result = self._keep(f"batch {size}", load)
            self._swept.append(capacity.batch_point(size, result))

    def _keep(self, name: str, load: Load) -> Result:
        started_at = time.time()
        result = self._run(name, load)
        self.runs.append((started_at, result))
        return result

    def _run(self, name: str, load: Load) -> Result:
        self._watch.stage(name, load.duration_s)
        result = self._crew.run(load, self._watch.tell)
        self.samples += result.samples
        self.interrupted = self.interrupted or result.interrupted
        return result


def at_rate(load: Load, rate: float) -> Arrivals:
    """Give arrivals at another, constant rate, spaced as those of *load* are."""
    plan = load.plan
    return constant(rate, load.duration_s, None if plan is None else plan.seed)


def for_seconds(load: Load, duration_s: float) -> Load:
    """Shorten a load, at its mean rate, and keep nothing of its answers."""
    plan = load.plan
    arrivals = None if plan is None else constant(plan.rate, duration_s, plan.seed)
    return replace(load, rate=None, arrivals=arrivals, duration_s=duration_s, sample_every=0)


def _must_answer(load: Load) -> None:
    """Ask once; BenchFailed where no answer comes, whatever its status."""
    host = load.url.partition("://")[2].rstrip("/")

    async def ask() -> None:
        pool = ConnectionPool(load.host, load.port, size=1, tls=load.tls())
        try:
            await pool.request(next(load.asked.rendered(host, load.headers)), load.timeout_s)
        finally:
            await pool.close()

    try:
        asyncio.run(ask())
    except RequestFailed as error:
        raise BenchFailed(f"nothing answers at {load.url} ({error.kind}); is the service running?") from error


async def _checked(samples: Sequence[Sample], url: str) -> Checked:
    store = connect(url)
    try:
        return await check(samples, store)
    finally:
        await store.close()
