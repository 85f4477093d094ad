"""The measurement of a service: rounds, a search for the highest rate, or a sweep of batches."""

from collections.abc import Sized
from dataclasses import replace

from hotplate.base.report import Report
from hotplate.bench.errors import BenchFailed
from hotplate.bench.experiment import Ending, interrupted_report, until_stopped
from hotplate.bench.http_plan import HttpPlan
from hotplate.bench.http_report import HttpRuns, judge_rounds, report, report_popular
from hotplate.bench.lists import check_answers, popular_complaint
from hotplate.bench.loadgen.generator import LoadWorker
from hotplate.bench.loadgen.load import Load, send_one
from hotplate.bench.loadgen.result import ResponseSample, Result
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.search import MOST_RUNS, STEP_DOWN, USUAL_RUNS, Trial, highest, search
from hotplate.bench.verdict import BOUNDS
from hotplate.stores.urls import redacted

PARALLEL = 20  # as from Stream Analytics
FEWER = 4  # after refused batches
REFUSED = (429, 503)
KEY_REFUSED = (401, 403)
# A sample of users, asked before anything is measured: half a second, and more than half of the lists are popular ones.
SAMPLE_RATE = 100.0
SAMPLE_S = 0.5
SAMPLE_POPULAR = 0.5


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
            sample = worker.run(replace(load, rate=SAMPLE_RATE, duration_s=SAMPLE_S, samples=0))
            if sample.interrupted:
                return interrupted_report("http")
            if popular_complaint([sample], max(plan.allowed_popular, SAMPLE_POPULAR)):
                return report_popular(plan, sample)
        measurement = _HttpMeasurement(plan, worker, display)
        ending = until_stopped(measurement.run, measurement.results)
    return measurement.report(ending)


class _HttpMeasurement:
    """The runs of one plan; `run` can be interrupted, and `report` tells of all runs until then."""

    def __init__(self, plan: HttpPlan, worker: LoadWorker, display: ProgressDisplay) -> None:
        self._plan = plan
        self._worker = worker
        self._display = display
        self._trials = list[Trial]()
        self._samples = list[ResponseSample]()
        self._answers = 0  # of which the samples were drawn
        self._rounds = list[Result]()

    @property
    def results(self) -> Sized:
        """The rounds or, with other loads before them or instead, the trials."""
        is_at_one_rate = not (self._plan.batches or self._plan.options.find_max)
        return self._rounds if is_at_one_rate else self._trials

    def run(self) -> None:
        """Make a warm-up, then a trial for each size of batches, or else rounds at one rate.

        With `--find-max` the rate is the highest inside the objective, and no round is made if there is none. Raises
        KeyboardInterrupt after a run that Ctrl-C ended, which is kept.
        """
        plan = self._plan
        load = plan.load
        if plan.warmup_s:
            warmup = self._run_load("warm-up", replace(load, duration_s=plan.warmup_s, samples=0))
            if warmup.interrupted:
                raise KeyboardInterrupt
        if plan.batches:
            self._sweep_batches()
            return

        if plan.options.find_max:
            self._search()
        else:
            self._run_rounds(load)

    def _search(self) -> None:
        """Search for the highest rate, and make rounds at it; if they refute it, make them at lower ones.

        No round is made if there is no rate inside. Raises KeyboardInterrupt as `run`.
        """
        load = self._plan.load
        repeat = self._plan.options.repeat
        about_s = (USUAL_RUNS + repeat) * load.duration_s
        self._display.say(f"about {about_s:.0f} s: some {USUAL_RUNS} trials of {load.duration_s:g} s, then the rounds")
        for trial in search(self._attempt, load.rate or 1.0):
            self._trials.append(trial)
            if trial.is_stopped:
                raise KeyboardInterrupt
        best = highest(self._trials)
        if best is not None:
            self._confirm(best.offered)

    def _confirm(self, rate: float) -> None:
        """Make rounds at a rate and, while they refute it and there is time, at lower ones."""
        repeat = self._plan.options.repeat
        step = STEP_DOWN
        while True:
            self._run_rounds(replace(self._plan.load, rate=rate))
            timed = self._plan.objective.without_pauses(self._rounds)
            findings = judge_rounds(self._plan, self._rounds, timed)
            broken = [finding for finding in findings if finding.gravity in BOUNDS]
            if not broken or len(self._trials) + repeat > MOST_RUNS + repeat // 2:
                return
            self._trials += [Trial(offered=rate, result=result, findings=broken) for result in self._rounds]
            self._rounds.clear()
            rate *= 1 - step
            step *= 2

    def _run_rounds(self, load: Load) -> None:
        repeat = self._plan.options.repeat
        for number in range(1, repeat + 1):
            result = self._run_load(f"round {number} of {repeat}", load)
            self._rounds.append(result)
            if result.interrupted:
                raise KeyboardInterrupt

    def report(self, ending: Ending) -> Report:
        store = self._plan.options.store
        checked = check_answers(store, self._samples, self._answers) if store else None
        return report(HttpRuns(self._plan, tuple(self._trials), tuple(self._rounds), checked, *ending))

    def _attempt(self, rate: float) -> Trial:
        """Load the service at *rate* requests/s, and judge the result by the objective and its popular lists."""
        result = self._run_load(f"{rate:,.0f} requests/s", replace(self._plan.load, rate=rate))
        findings = [*self._plan.objective.judge(result), *self._plan.popular_lists([result])]
        return Trial(offered=rate, result=result, findings=findings)

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

            findings = [*plan.objective.judge(result), *plan.popular_lists([result])]
            self._trials.append(Trial(offered=posts.batch, result=result, findings=findings))
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
        if load.samples:
            self._samples += result.samples
            self._answers += result.answers
        return result
