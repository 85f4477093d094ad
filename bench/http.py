"""The measurement of a service: rounds, a search for the highest rate, or a sweep of batches."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.http_report import (
    HttpPlan,
    HttpRuns,
    Objective,
    highest,
    parse_objective,
    report,
    report_popular,
)
from hotplate.bench.lists import check_answers, first_users, popular_complaint
from hotplate.bench.loadgen.generator import LoadWorker
from hotplate.bench.loadgen.load import KEY, Gets, InTurn, KeyDraw, Load, Posts, RequestKeys, Uniform, Zipf, send_one
from hotplate.bench.loadgen.result import ResponseSample, Result
from hotplate.bench.options import (
    FIND_MAX_OBJECTIVE,
    MAX_POPULAR,
    MAX_USERS,
    HttpOptions,
    parse_rate,
    parse_seconds,
    parse_share,
    require_positive,
)
from hotplate.bench.outcome import interrupted_report
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.trials import TRIES, Trial
from hotplate.report import Report
from hotplate.stores.connect import run_on
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted

COMPARED = 500  # responses of a round to compare with the store
BATCH_SAMPLE = 41  # one of 41 batches is compared; a prime, to avoid cycles
SPARE = 1.25  # unknown users may exceed their share
PARALLEL = 20  # as from Stream Analytics
FEWER = 4  # after refused batches
REFUSED = (429, 503)
KEY_REFUSED = (401, 403)
PRECISION = 0.05  # relative gap between good and bad rates
FLOOR = 0.01  # lowest rate, relative to the first
# A sample of users, asked before anything is measured: half a second, and more than half of the lists are popular ones.
SAMPLE_RATE = 100.0
SAMPLE_S = 0.5
SAMPLE_POPULAR = 0.5


def make_plan(options: HttpOptions) -> HttpPlan:
    """Parse the options of a measurement over HTTP.

    The share of popular lists (the fallback for users without own ones) that is allowed grows with that of unknown
    users. Raises BenchMisused for invalid options, StoreError if the users cannot be read from a store.
    """
    _require_at_most_one({"--keys-file": options.keys_file, "--users": options.users})
    _require_at_most_one({"--find-max": options.find_max or None, "--batch": options.batch})
    if options.score and not options.batch:
        raise BenchMisused("--score needs the sizes of batches, as --batch 50,200,1000,2000")
    require_positive({"--repeat": options.repeat})

    keys = parse_keys(options) if options.batch or KEY in options.path else None
    allowed_popular = MAX_POPULAR if options.allow_popular is None else parse_share(options.allow_popular)
    if keys is not None:
        allowed_popular += SPARE * keys.unknown

    return HttpPlan(
        options=options,
        load=_load(options, keys),
        warmup_s=parse_seconds(options.warmup),
        objective=_objective(options),
        batches=_batches(options, keys),
        keys=keys,
        allowed_popular=min(1.0, allowed_popular),
    )


def _load(options: HttpOptions, keys: RequestKeys | None) -> Load:
    """Return the requests of a round, and their rate in requests/s.

    *keys* has the users to request; None for a path without users. With a store, one of `sample_every` responses is
    kept, to be compared with its lists.
    """
    rate = parse_rate(options.rate)
    duration_s = parse_seconds(options.duration)
    sample_every = 0
    if options.store and keys is not None:
        # Odd, as BATCH_SAMPLE is, so that users in turn are not always sampled at the same positions.
        sample_every = BATCH_SAMPLE if options.batch else max(1, int(rate * duration_s / COMPARED)) | 1

    requests = Gets(options.path, keys)
    return Load(
        url=options.url,
        requests=requests,
        rate=rate,
        seed=1 if options.poisson else None,
        duration_s=duration_s,
        connections=options.connections,
        headers=_parse_headers(options.headers),
        timeout_s=parse_seconds(options.timeout),
        check=requests.failure,
        observe=("source",),
        sample_every=sample_every,
    )


def _objective(options: HttpOptions) -> Objective:
    if options.slo is not None:
        return parse_objective(options.slo)
    return parse_objective(FIND_MAX_OBJECTIVE) if options.find_max else Objective({})


def _batches(options: HttpOptions, keys: RequestKeys | None) -> list[Posts]:
    """Return the POSTs of a sweep, one for each size of batches; none without `--batch`."""
    if not options.batch or keys is None:
        return []
    return [Posts(keys, size, score=options.score) for size in _parse_batch_sizes(options.batch)]


def parse_keys(options: HttpOptions) -> RequestKeys:
    """Return the ids of the users to request, and how they are drawn.

    The ids are the lines of a file, drawn in turn, or the numbers from 0 on, or the users of a store's live release,
    both drawn at random. `--zipf` draws some more often than others. Raises BenchMisused if no option names users, or
    the file cannot be read, StoreError if the store cannot be read.
    """
    default_draw: KeyDraw = Uniform()
    if options.keys_file is not None:
        ids: Sequence[str] = _read_ids(options.keys_file)
        default_draw = InTurn()
    elif options.users is not None:
        ids = [str(number) for number in range(options.users)]
    elif options.store is not None:
        ids = run_on(options.store, partial(_users_in, options.store))
    else:
        raise BenchMisused("give the users to request: --users N, --keys-file FILE or --store URL")

    draw = default_draw if options.zipf is None else Zipf(options.zipf)
    return RequestKeys(tuple(ids), draw, parse_share(options.unknown))


def _read_ids(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise BenchMisused(f"--keys-file: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BenchMisused(f"--keys-file: {path} is not UTF-8: {error}") from error
    return [line for line in text.splitlines() if line]


async def _users_in(url: str, store: Store) -> list[str]:
    """Return the first MAX_USERS users of the release that is live in the store at *url*."""
    live = (await store.catalogue()).live_ref
    if live is None:
        raise BenchMisused(f"nothing is live in {redacted(url)}, so it has no users to request lists for")
    return await first_users(store, live, MAX_USERS)


def _parse_headers(texts: Sequence[str]) -> Mapping[str, str]:
    """Return HTTP headers by name, each from a text as NAME:VALUE; raises BenchMisused."""
    pairs = [header.partition(":") for header in texts]
    if any(not colon for _, colon, _ in pairs):
        raise BenchMisused("a header is written NAME:VALUE")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _parse_batch_sizes(text: str) -> list[int]:
    """Return numbers of users in a batch, from a text such as 1,50,200; raises BenchMisused."""
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        raise BenchMisused(f"sizes of batch are whole numbers, as 1,50,200, not {text!r}") from None
    if min(sizes) < 1:
        raise BenchMisused("a batch has one user or more")
    return sizes


def _require_at_most_one(flags: Mapping[str, object]) -> None:
    names = [name for name, value in flags.items() if value is not None]
    if len(names) > 1:
        raise BenchMisused(f"{' and '.join(names)} exclude each other")


def search(attempt: Callable[[float], Trial], start: float, precision: float = PRECISION) -> Iterator[Trial]:
    """Search for the highest rate (requests/s) inside the objective; yield all trials.

    The rate doubles from *start* until a trial is outside, then the interval between inside and outside is halved
    until its ends differ by less than *precision*, as a share. *attempt* makes a trial at a rate. If it is unclear,
    as the load generator was late, it is repeated twice at most, then counts as outside. Ctrl-C ends the search.
    """
    low = 0.0  # the highest rate inside
    high = math.inf  # the lowest rate outside
    rate = start
    # Without any rate inside, it ends far below the start.
    while high / max(low, start * FLOOR) > 1 + precision:
        for _ in range(TRIES):
            trial = attempt(rate)
            yield trial
            if trial.is_stopped:
                return
            if not trial.is_unclear:
                break

        if trial.is_inside:
            low = rate
        else:
            high = rate
        rate = low * 2 if math.isinf(high) else (low + high) / 2


def measure(plan: HttpPlan, display: ProgressDisplay) -> Report:
    """Measure a service over HTTP as planned, and report it; Ctrl-C ends it with a report of the runs until then.

    A first short run only shows whether the requested users have lists; if most get the popular one instead, nothing
    more is measured. Raises BenchFailed if the service does not answer, or refuses the API key.
    """
    load = plan.load
    response = send_one(load.url, next(load.rendered()), load.timeout_s)
    if response.status in KEY_REFUSED:
        raise BenchFailed(
            f"{redacted(load.url)} answers {response.status}, so nothing was measured; give a key that may read, as "
            "--header X-API-Key:KEY (`hotplate keys create` makes one)"
        )

    with LoadWorker() as worker:
        if plan.keys is not None:
            sample = worker.run(replace(load, rate=SAMPLE_RATE, duration_s=SAMPLE_S, sample_every=0))
            if sample.interrupted:
                return interrupted_report("http")
            if popular_complaint([sample], max(plan.allowed_popular, SAMPLE_POPULAR)):
                return report_popular(plan, sample)
        measurement = _HttpMeasurement(plan, worker, display)
        is_interrupted = False
        try:
            measurement.run()
        except KeyboardInterrupt:
            is_interrupted = True
    return measurement.report(is_interrupted=is_interrupted)


class _HttpMeasurement:
    """The runs of one plan; `run` can be interrupted, and `report` tells of all runs until then."""

    def __init__(self, plan: HttpPlan, worker: LoadWorker, display: ProgressDisplay) -> None:
        self._plan = plan
        self._worker = worker
        self._display = display
        self._trials = list[Trial]()
        self._samples = list[ResponseSample]()
        self._rounds = list[Result]()

    def run(self) -> None:
        """Make a warm-up, then a trial for each size of batches, or else rounds at one rate.

        With `--find-max` the rate is the highest inside the objective, and no round is made if there is none. Raises
        KeyboardInterrupt after a run that Ctrl-C ended, which is kept.
        """
        plan = self._plan
        load = plan.load
        if plan.warmup_s:
            warmup = self._run_load("warm-up", replace(load, duration_s=plan.warmup_s, sample_every=0))
            if warmup.interrupted:
                raise KeyboardInterrupt
        if plan.batches:
            self._sweep_batches()
            return

        if plan.options.find_max:
            for trial in search(self._attempt, load.rate or 1.0):
                self._trials.append(trial)
                if trial.is_stopped:
                    raise KeyboardInterrupt
            best = highest(self._trials)
            if best is None:
                return
            load = replace(load, rate=best.offered)

        for number in range(1, plan.options.repeat + 1):
            result = self._run_load(f"round {number} of {plan.options.repeat}", load)
            self._rounds.append(result)
            if result.interrupted:
                raise KeyboardInterrupt

    def report(self, *, is_interrupted: bool) -> Report:
        store = self._plan.options.store
        checked = check_answers(store, self._samples) if store else None
        return report(HttpRuns(self._plan, tuple(self._trials), tuple(self._rounds), checked, is_interrupted))

    def _attempt(self, rate: float) -> Trial:
        """Load the service at *rate* requests/s, and judge the result by the objective and its popular lists."""
        result = self._run_load(f"{rate:,.0f} requests/s", replace(self._plan.load, rate=rate))
        judgement = self._plan.objective.judge(result)
        broken = (*judgement.broken, *self._plan.popular_complaint([result]))
        return Trial(offered=rate, result=result, broken=broken, doubts=judgement.doubts)

    def _sweep_batches(self) -> None:
        """Request batches of each planned size for as long as a round, at full speed, and append a trial for each size.

        Batches are in flight at the same time, fewer from then on if the service refuses some. A trial is broken by
        errors, or by popular lists instead of the users' own. Raises KeyboardInterrupt after a run that Ctrl-C ended.
        """
        plan = self._plan
        parallel = min(PARALLEL, plan.load.connections)
        for posts in plan.batches:
            load = replace(plan.load, requests=posts, check=posts.failure, rate=None, connections=parallel)
            result = self._run_batches(posts.batch, load)
            parallel = result.connections

            broken = (*plan.objective.errors_beyond([result]), *plan.popular_complaint([result]))
            doubts = tuple(result.invalid_reasons)
            self._trials.append(Trial(offered=posts.batch, result=result, broken=broken, doubts=doubts))
            if result.interrupted:
                raise KeyboardInterrupt

    def _run_batches(self, size: int, load: Load) -> Result:
        """Run *load* with fewer batches at a time until the service refuses hardly any; return the last result.

        It is a closed loop: each connection sends a batch of *size* users, waits for the response, and sends the next.
        """
        while True:
            result = self._run_load(f"batch {size:,}, {load.connections} at a time", load)
            refused = sum(result.statuses.get(status, 0) for status in REFUSED)
            are_accepted = refused <= self._plan.objective.errors * result.due
            if load.connections == 1 or result.interrupted or are_accepted:
                return result
            load = replace(load, connections=max(1, load.connections // FEWER))

    def _run_load(self, name: str, load: Load) -> Result:
        """Run a load, shown as *name*, and keep its sampled responses."""
        self._display.start(name)
        result = self._worker.run(load)
        self._samples += result.samples
        return result
