"""The measurement of a service over HTTP: its plan, and rounds at one rate, a search for it, or a sweep of batches."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.loadgen.generator import LoadWorker
from hotplate.bench.loadgen.load import (
    KEY,
    TLS,
    Gets,
    InTurn,
    KeyDraw,
    Load,
    Posts,
    RequestKeys,
    Uniform,
    Zipf,
)
from hotplate.bench.loadgen.result import ENOUGH_SAMPLES, Result
from hotplate.bench.measure.experiment import Ending, Runs, until_stopped
from hotplate.bench.measure.lists import CheckResult, first_users, popular_complaint
from hotplate.bench.measure.objective import Objective, parse_objective
from hotplate.bench.measure.progress import ProgressDisplay
from hotplate.bench.measure.search import (
    MOST_RUNS,
    STEP_DOWN,
    USUAL_RUNS,
    Trial,
    first_outside,
    highest,
    search,
)
from hotplate.bench.measure.statistics import PERCENTS, in_time, latency
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
from hotplate.bench.verdict import BOUNDS, NOT_LISTS, Finding, Gravity, findings_of, prefixed
from hotplate.stores.connect import run_on
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted

# Responses of a run to compare with the store.
COMPARED = 500
COMPARED_BATCHES = 64
SPARE_UNKNOWN = 1.25  # unknown users may exceed their share
HINT = "; give --store URL, so that its users are requested"
# Some seconds of a search may be left out.
SPARE = 1.6
PARALLEL = 20  # as from Stream Analytics
FEWER = 4  # after refused batches
REFUSED = (429, 503)
KEY_REFUSED = {401, 403}
# A sample of users, asked before anything is measured: half a second, and more than half of the lists are popular ones.
SAMPLE_RATE = 100.0
SAMPLE_S = 0.5
SAMPLE_POPULAR = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPlan:
    """Parsed options.

    With `find_max`, rounds run at the highest rate inside the objective. `batches` are POSTs of each size, of
    which the objective only bounds the errors. `keys` is None if the path names no user.
    """

    options: HttpOptions
    load: Load
    warmup_s: float
    objective: Objective
    batches: Sequence[Posts]
    keys: RequestKeys | None
    allowed_popular: float

    def popular_lists(self, results: Sequence[Result]) -> list[Finding]:
        """Return a finding if too many lists were popular ones."""
        complaint = popular_complaint(results, self.allowed_popular)
        if complaint is None:
            return []
        return [Finding(Gravity.POPULAR, complaint + ("" if self.options.store else HINT), NOT_LISTS)]


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
        allowed_popular += SPARE_UNKNOWN * keys.unknown

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

    *keys* has the users to request; None for a path without users. With a store, a sample of the responses is
    kept, to be compared with its lists.
    """
    samples = 0
    if options.store and keys is not None:
        samples = COMPARED_BATCHES if options.batch else COMPARED

    return Load(
        url=options.url,
        requests=Gets(options.path, keys),
        rate=parse_rate(options.rate),
        seed=1 if options.poisson else None,
        duration_s=parse_seconds(options.duration),
        connections=options.connections,
        headers=_parse_headers(options.headers),
        timeout_s=parse_seconds(options.timeout),
        samples=samples,
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
        text = path.read_text("utf-8-sig")
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


@dataclass(frozen=True)
class HttpRuns:
    """All runs of a plan, and what they show.

    checked  the comparison of sampled responses with a store, if one was given
    failure  what ended the runs early, such as a generator that died
    sample   a short run before all others, if most lists in it were popular ones: nothing more was measured then
    """

    plan: HttpPlan
    trials: tuple[Trial, ...]
    rounds: tuple[Result, ...]
    checked: CheckResult | None
    interrupted: bool
    failure: str = ""
    sample: Result | None = None

    @property
    def rate(self) -> float:
        """The rate of the rounds or, before them, the highest one inside the objective; 0 if there is none."""
        if self.rounds:
            return self.rounds[0].requested_rate or 0.0
        best = highest(self.trials)
        return best.offered if best else 0.0

    @cached_property
    def timed(self) -> Sequence[Result]:
        """The rounds without late ones or, after a search, without the seconds of pauses."""
        if self.plan.options.find_max:
            return self.plan.objective.without_pauses(self.rounds)
        return [self.rounds[place] for place in in_time([[result] for result in self.rounds])]

    @cached_property
    def outside(self) -> Trial | None:
        """A trial at the lowest rate outside, by which a complete search ended."""
        has_ended = self.trials and (self.rounds or not self.interrupted)
        return first_outside(self.trials, self.rate) if has_ended else None

    @cached_property
    def findings(self) -> Sequence[Finding]:
        """What ended the runs, what is wrong with the lists, and which bounds the service did not keep."""
        results = [trial.result for trial in self.trials] if self.plan.batches else self.rounds
        popular = self.plan.popular_lists(results)
        findings = [*findings_of(Gravity.UNMEASURED, filter(None, [self.failure])), *popular, *self.judged_rounds]
        if self.checked:
            findings += self.checked.findings
        if self.plan.batches:
            return [*findings, *self._findings_of_batches(is_popular=bool(popular))]
        if self.outside and not self.rate:
            reasons = " and ".join(self.outside.broken or self.outside.doubts)
            at_rate = f"at {self.outside.offered:,.4g} requests/s {reasons}"
            no_rate = f"no rate was inside the objective {self.plan.objective}: {at_rate}"
            findings.append(Finding(Gravity.OUTSIDE, no_rate))
        return findings

    @cached_property
    def judged_rounds(self) -> Sequence[Finding]:
        """What the objective says of rounds at one rate, and their validity.

        A percentile with too few answers is only named if no bound is broken, and of invalid rounds the first.
        """
        if not self.rounds:
            return []
        bounds_us = self.plan.objective.latency_us
        figures = {name: latency(self.timed, name) for name in bounds_us}
        known = {name: bound_us for name, bound_us in bounds_us.items() if figures[name].value is not None}
        objective = replace(self.plan.objective, latency_us=known)
        findings = [*objective.errors_beyond(self.rounds), *objective.judge_latency(self.timed)]
        if self.plan.options.find_max:
            findings = prefixed(findings, f"the rounds at {self.rate:,.4g} requests/s: ")

        reasons = [
            f"round {number}: {reason}"
            for number, result in enumerate(self.timed, 1)
            for reason in result.invalid_reasons
        ][:1]
        if not any(finding.gravity in BOUNDS for finding in findings):
            reasons += [self._too_few_answers(name, figures[name].note) for name in bounds_us if name not in known]
        return [*findings_of(Gravity.UNMEASURED, reasons), *findings]

    def _too_few_answers(self, name: str, note: str) -> str:
        """Return a sentence on a percentile that is not known, with the duration that gives enough answers."""
        slower_share = 1 - PERCENTS[name] / 100
        needed_s = math.ceil(SPARE * ENOUGH_SAMPLES / slower_share / self.rate / len(self.rounds))
        return f"{name} is not known at {self.rate:,.4g} requests/s ({note}); give --duration {needed_s}s"

    def _findings_of_batches(self, *, is_popular: bool) -> Iterator[Finding]:
        """Yield the reasons of trials to be broken or in doubt, with their sizes.

        A complaint on the popular lists of all sizes stands for those of single ones.
        """
        for trial in self.trials:
            for finding in prefixed(trial.findings, f"batch {trial.offered:,}: "):
                if finding.gravity is not Gravity.POPULAR:
                    yield finding
                elif not is_popular:
                    yield Finding(Gravity.ERRORS, finding.text)

    @property
    def is_outside(self) -> bool:
        """Whether the service did not keep a bound."""
        return any(finding.gravity in BOUNDS for finding in self.findings)

    @property
    def best(self) -> float | None:
        """The highest rate inside the objective, which the rounds confirm; None without a search, or without a rate."""
        return self.rate if self.trials and self.rate and not self.is_outside else None

    @property
    def limit(self) -> str:
        """Why the highest rate may be higher; empty if the service ended the search."""
        return self.outside.doubts[0] if self.best and self.outside and self.outside.is_unclear else ""


def measure(plan: HttpPlan, display: ProgressDisplay) -> HttpRuns:
    """Measure a service over HTTP as planned, and return all runs; Ctrl-C ends it with the runs until then.

    A first short run only shows whether the service answers, and the requested users have lists; if most get the
    popular one instead, nothing more is measured. Raises BenchFailed if the service does not answer, or refuses the API
    key, and KeyboardInterrupt before the first run.
    """
    with LoadWorker() as worker:
        runs = Runs(worker, display)
        sample = runs.run(replace(plan.load, rate=SAMPLE_RATE, duration_s=SAMPLE_S, samples=0))
        _require_answers(sample)
        if popular_complaint([sample], max(plan.allowed_popular, SAMPLE_POPULAR)):
            return HttpRuns(plan, (), (), None, interrupted=False, sample=sample)
        measurement = _HttpMeasurement(plan, runs, display)
        ending = until_stopped(measurement.run, measurement)
    return measurement.ended(ending)


def _require_answers(sample: Result) -> None:
    """Raise BenchFailed if a service answered no request of a sample, or refused the API key of all."""
    url = redacted(sample.url)
    if sample.statuses.keys() - KEY_REFUSED:
        return
    for status in sample.statuses:
        raise BenchFailed(
            f"{url} answers {status}, so nothing was measured; give a key that may read, as --header X-API-Key:KEY "
            "(`hotplate keys create` makes one)"
        )

    kind = max(sample.errors, key=sample.errors.__getitem__, default="timeout")
    if kind == "malformed":
        raise BenchFailed(
            f"{url} answers, but not as HTTP/1.1 with Content-Length or chunks: a 1xx response, and a body that ends "
            "with the connection, are not read"
        )
    if kind.startswith(TLS):
        raise BenchFailed(f"{url} has no valid {kind}")
    raise BenchFailed(f"nothing answers at {url} ({kind}); is the service running?")


class _HttpMeasurement:
    """The runs of one plan; `run` can be interrupted, and `ended` returns all runs until then."""

    def __init__(self, plan: HttpPlan, runs: Runs, display: ProgressDisplay) -> None:
        self._plan = plan
        self._runs = runs
        self._display = display
        self._trials = list[Trial]()
        self._rounds = list[Result]()

    def __len__(self) -> int:
        """Return the number of runs, without a warm-up."""
        return len(self._trials) + len(self._rounds)

    def run(self) -> None:
        """Make a warm-up, then a trial for each size of batches, or else rounds at one rate.

        With `--find-max` the rate is the highest inside the objective, and no round is made if there is none. Raises
        KeyboardInterrupt after a run that Ctrl-C ended, of which only a round is kept.
        """
        plan = self._plan
        load = plan.load
        if plan.warmup_s:
            self._runs.run(replace(load, duration_s=plan.warmup_s, samples=0), shown="warm-up")
        if plan.batches:
            self._sweep_batches()
        elif plan.options.find_max:
            self._search()
        else:
            self._run_rounds(load)

    def _search(self) -> None:
        """Search for the highest rate, and make rounds at it; if they refute it, make them at lower ones.

        No round is made if there is no rate inside.
        """
        load = self._plan.load
        repeat = self._plan.options.repeat
        about_s = (USUAL_RUNS + repeat) * load.duration_s
        self._display.say(f"about {about_s:.0f} s: some {USUAL_RUNS} trials of {load.duration_s:g} s, then the rounds")
        for trial in search(self._attempt, load.rate or 1.0):
            self._trials.append(trial)
        best = highest(self._trials)
        if best is not None:
            self._confirm(best.offered)

    def _confirm(self, rate: float) -> None:
        """Make rounds at a rate and, while they refute it and there is time, at lower ones."""
        repeat = self._plan.options.repeat
        step = STEP_DOWN
        while True:
            self._run_rounds(replace(self._plan.load, rate=rate))
            runs = HttpRuns(self._plan, (), tuple(self._rounds), None, interrupted=False)
            broken = [finding for finding in runs.judged_rounds if finding.gravity in BOUNDS]
            if not broken or len(self._trials) + repeat > MOST_RUNS + repeat // 2:
                return
            self._trials += [Trial(offered=rate, result=result, findings=broken) for result in self._rounds]
            self._rounds.clear()
            rate *= 1 - step
            step *= 2

    def _run_rounds(self, load: Load) -> None:
        repeat = self._plan.options.repeat
        for number in range(1, repeat + 1):
            self._runs.run(load, shown=f"round {number} of {repeat}", kept=self._rounds)

    def ended(self, ending: Ending) -> HttpRuns:
        """Compare the sampled responses with a store, if one was given, and return all runs."""
        store = self._plan.options.store
        checked = self._runs.check(store) if store else None
        return HttpRuns(self._plan, tuple(self._trials), tuple(self._rounds), checked, *ending)

    def _attempt(self, rate: float) -> Trial:
        """Load the service at *rate* requests/s, and judge the result."""
        return self._judged(rate, self._runs.run(replace(self._plan.load, rate=rate), shown=f"{rate:,.0f} requests/s"))

    def _judged(self, offered: float, result: Result) -> Trial:
        """Judge a result by the objective and its popular lists."""
        findings = [*self._plan.objective.judge(result), *self._plan.popular_lists([result])]
        return Trial(offered=offered, result=result, findings=findings)

    def _sweep_batches(self) -> None:
        """Request batches of each planned size for as long as a round, at full speed, and append a trial for each size.

        Batches are in flight at the same time, fewer from then on if the service refuses some. A trial is broken by
        errors, or by popular lists instead of the users' own.
        """
        plan = self._plan
        parallel = min(PARALLEL, plan.load.connections)
        for posts in plan.batches:
            load = replace(plan.load, requests=posts, rate=None, connections=parallel)
            result = self._run_batches(posts.batch, load)
            parallel = result.connections
            self._trials.append(self._judged(posts.batch, result))

    def _run_batches(self, size: int, load: Load) -> Result:
        """Run *load* with fewer batches at a time until the service refuses hardly any; return the last result.

        It is a closed loop: each connection sends a batch of *size* users, waits for the response, and sends the next.
        """
        while True:
            result = self._runs.run(load, shown=f"batch {size:,}, {load.connections} at a time")
            refused = sum(result.statuses.get(status, 0) for status in REFUSED)
            are_accepted = refused <= self._plan.objective.errors * result.due
            if load.connections == 1 or are_accepted:
                return result
            load = replace(load, connections=max(1, load.connections // FEWER))
