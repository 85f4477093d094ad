"""One measurement of a service over HTTP, from its options to the report: rounds, a search, or a sweep."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from bench.answers import Checked, check
from bench.errors import BenchFailed, BenchMisused
from bench.loadgen.capacity import Objective, Point, batch_point, find_max, highest, knee, parse_objective
from bench.loadgen.keys import Draw, HotSet, InTurn, Keys, Uniform, Zipf
from bench.loadgen.load import PLACE, Gets, Load, Paths, Posts
from bench.loadgen.recorder import Progress, Sample
from bench.loadgen.result import Result
from bench.loadgen.schedule import Arrivals, constant, ramp, steps
from bench.loadgen.workers import WorkerPool
from bench.report.report import Report, Series, series
from bench.report.text import parse_rate, parse_seconds, parse_share
from stores.connect import connect
from stores.http1 import ConnectionPool, RequestFailed
from stores.keys import USER
from stores.urls import redacted

PARALLEL = 20  # requests at a time in a sweep of batches


class ProgressDisplay(Protocol):
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
    def valid(self) -> bool:
        """Whether it came to its end, is valid, found the rate that it looked for, and no wrong answer."""
        report = self.report
        found = report.extra.get("search", {"highest": True})["highest"]
        wrong = report.extra.get("checked", {}).get("wrong", 0)
        return bool(self.runs and found) and not (report.interrupted or report.invalid_reasons or wrong)


def measure(question: Question, watch: ProgressDisplay) -> Measured:
    """Measure; Ctrl-C ends it with what there is by then. Raises BenchFailed where nothing answers."""
    _must_answer(question.load)
    with WorkerPool(question.processes) as crew:
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

    def __init__(self, question: Question, crew: WorkerPool, watch: ProgressDisplay) -> None:
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
        best = highest(self._searched)
        told = {"objective": str(self._question.objective), "highest": best and best.at}
        return told | {"points": [each.to_json() for each in self._searched]} if self._searched else None

    def sweep(self) -> dict[str, Any] | None:
        """Tell of the sizes of batch, where they were tried."""
        best = knee(self._swept)
        told = {"parallel": PARALLEL, "knee": best and best.at}
        return told | {"points": [each.to_json() for each in self._swept]} if self._swept else None

    def _find_max(self, load: Load, objective: Objective) -> Point | None:
        if load.plan is None:
            raise BenchMisused("a search needs an open loop: a closed one sends no more than is answered")

        def attempt(rate: float) -> Result:
            return self._run(f"{rate:,.0f} requests/s", replace(load, rate=None, arrivals=at_rate(load, rate)))

        self._searched += find_max(attempt, objective, load.plan.rate)
        return highest(self._searched)

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
            self._swept.append(batch_point(size, result))

    def _keep(self, name: str, load: Load) -> Result:
        started_at = time.time()
        result = self._run(name, load)
        self.runs.append((started_at, result))
        return result

    def _run(self, name: str, load: Load) -> Result:
        self._watch.start(name, load.duration_s)
        result = self._crew.run(load, self._watch.update)
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


USUAL_RATE = "1k"
COMPARED = 500  # answers a round that are compared with the store
OBSERVED = ("source", "tier", "release")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command was told, as it was told; None where it was told nothing."""

    url: str
    rate: str | None = None
    ramp: str | None = None
    steps: str | None = None
    poisson: bool = False
    closed: bool = False
    think: str = "0s"
    duration: str = "10s"
    users: int | None = None
    keys_file: Path | None = None
    store: str | None = None
    zipf: float | None = None
    hot: str | None = None
    unknown: str = "0%"
    path: str = "/v1/recommendations/{key}"
    headers: Sequence[str] = ()
    batch: str | None = None
    find_max: bool = False
    slo: str = "p99=5ms"
    repeat: int = 1
    warmup: str = "0s"
    connections: int = 64
    timeout: str = "5s"
    backlog: int = 10_000
    processes: int = 1
    spin: bool = False
    seed: int = 1

    @property
    def configuration(self) -> dict[str, Any]:
        """Give what was told as plain values; of headers only the names, of the store no password."""
        told = {name: value for name, value in asdict(self).items() if value not in (None, (), [], False)}
        told["headers"] = [header.partition(":")[0] for header in self.headers]
        if self.store:
            told["store"] = redacted(self.store)
        return {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}


def question(asked: Asked) -> Question:
    """Make the question. Raises BenchMisused for words that make no sense, StoreError where no users can be read."""
    _only_one({"--rate": asked.rate, "--ramp": asked.ramp, "--steps": asked.steps, "--closed": asked.closed or None})
    _only_one({"--keys-file": asked.keys_file, "--users": asked.users})
    _only_one({"--find-max": asked.find_max or None, "--batch": asked.batch, "--closed": asked.closed or None})
    if asked.repeat < 1 or asked.processes < 1 or asked.backlog < 1:
        raise BenchMisused("--repeat, --processes and --backlog must be 1 or more")
    plan = arrivals(asked)
    keys = keys_of(asked) if asked.batch or PLACE in asked.path else None
    load = Load(
        url=asked.url,
        requests=Paths([asked.path]) if keys is None else Gets(asked.path, keys),
        arrivals=plan,
        duration_s=parse_seconds(asked.duration),
        think_s=parse_seconds(asked.think),
        connections=asked.connections,
        headers=_headers(asked.headers),
        spin=asked.spin,
        timeout_s=parse_seconds(asked.timeout),
        backlog=asked.backlog,
        observe=OBSERVED,
    )
    if asked.store and keys is not None:
        load = replace(load, sample_every=_sample_every(load, asked.batch is not None))
    load.share(asked.processes - 1, asked.processes)  # refuses more processes than connections
    return Question(
        load=load,
        rounds=asked.repeat,
        warmup_s=parse_seconds(asked.warmup),
        processes=asked.processes,
        objective=parse_objective(asked.slo) if asked.find_max else None,
        batches=_sizes(asked.batch) if asked.batch else (),
        keys=keys,
        store=asked.store,
        configuration=asked.configuration,
    )


def arrivals(asked: Asked) -> Arrivals | None:
    """Read when requests fall due; None for a closed loop."""
    duration_s, seed = parse_seconds(asked.duration), asked.seed if asked.poisson else None
    if asked.closed:
        return None
    if asked.ramp is not None:
        first, colon, last = asked.ramp.partition(":")
        if not colon:
            raise BenchMisused(f"a ramp is written FROM:TO, as 100:5k, not {asked.ramp!r}")
        return ramp(parse_rate(first), parse_rate(last), duration_s, seed)
    if asked.steps is not None:
        return steps([parse_rate(each) for each in asked.steps.split(",")], duration_s, seed)
    return constant(parse_rate(asked.rate or USUAL_RATE), duration_s, seed)


def keys_of(asked: Asked) -> Keys:
    """Find out whose lists to ask for."""
    if asked.keys_file is not None:
        ids: Sequence[str] = [line for line in asked.keys_file.read_text().splitlines() if line]
    elif asked.users is not None:
        ids = [str(number) for number in range(asked.users)]
    elif asked.store is not None:
        ids = asyncio.run(_users_in(asked.store))
    else:
        raise BenchMisused("say whose lists to ask for: --users N, --keys-file FILE or --store URL")
    return Keys(tuple(ids), _draw(asked), parse_share(asked.unknown), asked.seed)


async def _users_in(url: str) -> list[str]:
    store = connect(url)
    try:
        live = (await store.catalogue()).live
        if live is None:
            raise BenchMisused(f"nothing is live in {redacted(url)}, so there are no users to ask for")
        return [key.removeprefix(USER) async for key, _ in store.scan(live) if key.startswith(USER)]
    finally:
        await store.close()


def _draw(asked: Asked) -> Draw:
    _only_one({"--zipf": asked.zipf, "--hot": asked.hot})
    if asked.zipf is not None:
        return Zipf(asked.zipf)
    if asked.hot is not None:
        requests, colon, keys = asked.hot.partition(":")
        if not colon:
            raise BenchMisused(f"a hot set is written REQUESTS:USERS, as 80%:20%, not {asked.hot!r}")
        return HotSet(parse_share(requests), parse_share(keys))
    return InTurn() if asked.keys_file is not None else Uniform()


def _headers(given: Sequence[str]) -> Mapping[str, str]:
    pairs = [header.partition(":") for header in given]
    if any(not colon for _, colon, _ in pairs):
        raise BenchMisused("a header is written NAME:VALUE")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(each) for each in text.split(",")]
    except ValueError:
        raise BenchMisused(f"sizes of batch are whole numbers, as 1,50,200, not {text!r}") from None
    if min(sizes) < 1:
        raise BenchMisused("a batch has one user or more")
    return sizes


def _sample_every(load: Load, many: bool) -> int:  # noqa: FBT001 -- private, and called once
    """Keep about COMPARED answers a round, by a number that no cycle of keys is likely to share."""
    if many:
        return 41
    expected = load.plan.rate * load.duration_s if load.plan else 100 * COMPARED
    return max(1, int(expected / COMPARED)) | 1


def _only_one(given: Mapping[str, object]) -> None:
    told = [name for name, value in given.items() if value is not None]
    if len(told) > 1:
        raise BenchMisused(f"{' and '.join(told)} cannot be told together")
