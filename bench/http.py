"""The measurement of a service: rounds, a search for the highest rate, or a sweep of batches."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.http_report import (
    HttpPlan,
    HttpRuns,
    Objective,
    Trial,
    highest,
    parse_objective,
    report,
    report_popular,
)
from hotplate.bench.lists import MAX_POPULAR, check_samples, popular_complaint
from hotplate.bench.loadgen.generator import LoadWorker
from hotplate.bench.loadgen.load import KEY, Gets, InTurn, KeyDraw, Load, Posts, RequestKeys, Uniform, Zipf, send_one
from hotplate.bench.loadgen.result import ResponseSample, Result
from hotplate.bench.options import HttpOptions, parse_rate, parse_seconds, parse_share, require_positive
from hotplate.bench.progress import ProgressDisplay
from hotplate.report import Report
from hotplate.stores.connect import run_on
from hotplate.stores.encoding import USER
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted

COMPARED = 500  # responses of a round to compare with the store
EACH_BATCH = 41  # of 41 batches; a prime, to avoid cycles
SPARE = 1.25  # unknown users may exceed their share
PARALLEL = 20  # as from Stream Analytics
FEWER = 4  # after refused batches
REFUSED = (429, 503)
KEY_REFUSED = (401, 403)
PRECISION = 0.05  # relative gap between good and bad rates
FLOOR = 0.01  # lowest rate, relative to the first
TRIES = 3  # with a disturbed generator
FIND_MAX_OBJECTIVE = "p99=5ms,errors=0.1%"
# A sample of users, asked before anything is measured: half a second, and more than half of the lists are popular ones.
SAMPLE_RATE = 100.0
SAMPLE_S = 0.5
SAMPLE_POPULAR = 0.5


def make_plan(options: HttpOptions) -> HttpPlan:
    """Parse options. Raises BenchMisused if invalid, StoreError if users cannot be read."""
    _only_one({"--keys-file": options.keys_file, "--users": options.users})
    _only_one({"--find-max": options.find_max or None, "--batch": options.batch})
    if options.score and not options.batch:
        raise BenchMisused("--score needs the sizes of batches, as --batch 50,200,1000,2000")
    require_positive({"--repeat": options.repeat})
    keys = parse_keys(options) if options.batch or KEY in options.path else None
    load = Load(
        url=options.url,
        requests=Gets(options.path, keys),
        rate=parse_rate(options.rate),
        seed=1 if options.poisson else None,
        duration_s=parse_seconds(options.duration),
        connections=options.connections,
        headers=_headers(options.headers),
        timeout_s=parse_seconds(options.timeout),
        observe=("source",),
    )
    if options.store and keys is not None:
        expected = int(parse_rate(options.rate) * load.duration_s / COMPARED)
        load = replace(load, sample_every=EACH_BATCH if options.batch else max(1, expected) | 1)
    allowed = MAX_POPULAR if options.allow_popular is None else parse_share(options.allow_popular)
    return HttpPlan(
        options=options,
        load=load,
        warmup_s=parse_seconds(options.warmup),
        objective=_objective(options),
        batches=_sizes(options.batch) if options.batch else (),
        keys=keys,
        allowed_popular=min(1.0, allowed + (SPARE * keys.unknown if keys else 0.0)),
    )


def _objective(options: HttpOptions) -> Objective:
    if options.slo is not None:
        return parse_objective(options.slo)
    return parse_objective(FIND_MAX_OBJECTIVE) if options.find_max else Objective({})


def parse_keys(options: HttpOptions) -> RequestKeys:
    """Return the users to request."""
    if options.keys_file is not None:
        ids: Sequence[str] = [line for line in options.keys_file.read_text().splitlines() if line]
    elif options.users is not None:
        ids = [str(number) for number in range(options.users)]
    elif options.store is not None:
        ids = run_on(options.store, partial(_users_in, options.store))
    else:
        raise BenchMisused("give the users to request: --users N, --keys-file FILE or --store URL")
    in_turn_or_uniform = InTurn() if options.keys_file is not None else Uniform()
    draw: KeyDraw = in_turn_or_uniform if options.zipf is None else Zipf(options.zipf)
    return RequestKeys(tuple(ids), draw, parse_share(options.unknown))


async def _users_in(url: str, store: Store) -> list[str]:
    live = (await store.catalogue()).live_ref
    if live is None:
        raise BenchMisused(f"nothing is live in {redacted(url)}, so it has no users whose lists could be requested")
    return [key.removeprefix(USER) async for key, _ in store.scan(live) if key.startswith(USER)]


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


def _only_one(given: Mapping[str, object]) -> None:
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise BenchMisused(f"{' and '.join(names)} exclude each other")


def search(attempt: Callable[[float], Trial], start: float, precision: float = PRECISION) -> Iterator[Trial]:
    """Double the rate from *start* until outside the objective, then bisect to *precision*; yield attempts.

    An unclear attempt is repeated twice at most, then counts as outside. A stopped one ends the search.
    """
    low = 0.0
    high = math.inf
    rate = start
    while high / max(low, start * FLOOR) > 1 + precision:
        for _ in range(TRIES):
            found = attempt(rate)
            yield found
            if found.stopped:
                return
            if not found.unclear:
                break
        if found.inside:
            low = rate
        else:
            high = rate
        rate = low * 2 if math.isinf(high) else (low + high) / 2


def measure(plan: HttpPlan, display: ProgressDisplay) -> Report:
    """Measure; Ctrl-C ends it with a report. Raises BenchFailed without answers, or if the key is refused."""
    load = plan.load
    first = send_one(load.url, next(load.rendered()), load.timeout_s)
    if first.status in KEY_REFUSED:
        raise BenchFailed(
            f"{redacted(load.url)} answers {first.status}, so nothing was measured; give a key that may read, as "
            "--header X-API-Key:KEY (`hotplate keys create` makes one)"
        )
    with LoadWorker() as pool:
        if plan.keys is not None:
            sample = pool.run(replace(load, rate=SAMPLE_RATE, duration_s=SAMPLE_S, sample_every=0))
            if popular_complaint([sample], max(plan.allowed_popular, SAMPLE_POPULAR)):
                return report_popular(plan, sample)
        made = _HttpMeasurement(plan, pool, display)
        try:
            made.run()
        except KeyboardInterrupt:  # between two runs
            made.interrupted = True
    return made.report()


class _HttpMeasurement:
    def __init__(self, plan: HttpPlan, pool: LoadWorker, display: ProgressDisplay) -> None:
        self._plan = plan
        self._pool = pool
        self._display = display
        self._trials = list[Trial]()
        self._samples = list[ResponseSample]()
        self._rounds = list[Result]()
        self.interrupted = False

    def run(self) -> None:
        plan = self._plan
        load = self._plan.load
        if plan.warmup_s:
            self._run("warm-up", replace(load, duration_s=plan.warmup_s, sample_every=0))
        if plan.batches:
            self._sweep_batches()
            return
        if plan.options.find_max:
            self._trials += search(self._attempt, load.rate or 1.0)
            if (found := highest(self._trials)) is None:
                return
            load = replace(load, rate=found.at)
        for number in range(1, plan.options.repeat + 1):
            if not self.interrupted:
                self._rounds.append(self._run(f"round {number} of {plan.options.repeat}", load))

    def report(self) -> Report:
        store = self._plan.options.store
        checked = run_on(store, partial(check_samples, samples=self._samples)) if store else None
        return report(HttpRuns(self._plan, tuple(self._trials), tuple(self._rounds), checked, self.interrupted))

    def _attempt(self, rate: float) -> Trial:
        result = self._run(f"{rate:,.0f} requests/s", replace(self._plan.load, rate=rate))
        broken, doubts = self._plan.objective.judge(result)
        return Trial(at=rate, result=result, broken=(*broken, *self._plan.popular_complaint([result])), doubts=doubts)

    def _sweep_batches(self) -> None:
        plan = self._plan
        parallel = min(PARALLEL, self._plan.load.connections)
        if plan.keys is None:
            raise BenchMisused("a sweep of batches needs users whose lists to request")
        for size in plan.batches:
            if self.interrupted:
                return
            requests = Posts(plan.keys, size, score=plan.options.score)
            load = replace(plan.load, requests=requests, rate=None)
            while True:
                result = self._run(f"batch {size:,}, {parallel} at a time", replace(load, connections=parallel))
                refused = sum(result.statuses.get(status, 0) for status in REFUSED)
                if parallel == 1 or self.interrupted or refused <= plan.objective.errors * result.due:
                    break
                parallel = max(1, parallel // FEWER)
            broken = (*plan.objective.errors_beyond(result.error_share), *plan.popular_complaint([result]))
            self._trials.append(Trial(at=size, result=result, broken=broken, doubts=tuple(result.invalid_reasons)))

    def _run(self, name: str, load: Load) -> Result:
        self._display.start(name)
        result = self._pool.run(load)
        self._samples += result.samples
        self.interrupted = self.interrupted or result.interrupted
        return result
