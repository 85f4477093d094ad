"""The measurement of a service over HTTP: rounds at one rate, with the search for it, or a sweep of batches."""

from dataclasses import replace

from hotplate.base.report import Report
from hotplate.bench.errors import BenchFailed
from hotplate.bench.experiment import Ending, Runs, until_stopped
from hotplate.bench.http_plan import HttpPlan
from hotplate.bench.http_report import HttpRuns, report
from hotplate.bench.lists import popular_complaint
from hotplate.bench.loadgen.generator import LoadWorker
from hotplate.bench.loadgen.load import TLS, Load
from hotplate.bench.loadgen.result import Result
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.search import (
    MOST_RUNS,
    STEP_DOWN,
    USUAL_RUNS,
    Trial,
    highest,
    search,
)
from hotplate.bench.verdict import BOUNDS, concluded
from hotplate.stores.urls import redacted

PARALLEL = 20  # as from Stream Analytics
FEWER = 4  # after refused batches
REFUSED = (429, 503)
KEY_REFUSED = {401, 403}
# A sample of users, asked before anything is measured: half a second, and more than half of the lists are popular ones.
SAMPLE_RATE = 100.0
SAMPLE_S = 0.5
SAMPLE_POPULAR = 0.5


def measure(plan: HttpPlan, display: ProgressDisplay) -> Report:
    """Measure a service over HTTP as planned, and report it; Ctrl-C ends it with a report of the runs until then.

    A first short run only shows whether the service answers, and the requested users have lists; if most get the
    popular one instead, nothing more is measured. Raises BenchFailed if the service does not answer, or refuses the API
    key, and KeyboardInterrupt before the first run.
    """
    with LoadWorker() as worker:
        runs = Runs(worker, display)
        sample = runs.run(replace(plan.load, rate=SAMPLE_RATE, duration_s=SAMPLE_S, samples=0))
        _require_answers(sample)
        if popular_complaint([sample], max(plan.allowed_popular, SAMPLE_POPULAR)):
            unmeasured = Report(kind="http", sentence="", configuration=plan.options.to_json())
            return concluded(unmeasured, plan.popular_lists([sample]))
        measurement = _HttpMeasurement(plan, runs, display)
        ending = until_stopped(measurement.run, measurement)
    return measurement.report(ending)


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
    """The runs of one plan; `run` can be interrupted, and `report` tells of all runs until then."""

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

    def report(self, ending: Ending) -> Report:
        store = self._plan.options.store
        checked = self._runs.check(store) if store else None
        return report(HttpRuns(self._plan, tuple(self._trials), tuple(self._rounds), checked, *ending))

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
