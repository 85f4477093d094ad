"""The generator as it is, in virtual time, and what a search makes of servers that are formulas."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from rich.console import Console

from hotplate.base.report import Report, to_json
from hotplate.bench import http
from hotplate.bench.errors import BenchFailed
from hotplate.bench.figure_names import read_report
from hotplate.bench.http import HttpRuns, make_plan
from hotplate.bench.http_report import report
from hotplate.bench.loadgen.load import Gets, Load, failure_by_status
from hotplate.bench.loadgen.result import Result, lag_us, latency_us, percentile_us
from hotplate.bench.measure.objective import Objective, parse_objective
from hotplate.bench.measure.progress import ProgressDisplay
from hotplate.bench.measure.search import Trial, first_outside, highest, knee, search
from hotplate.bench.options import HttpOptions
from hotplate.bench.planner.inputs import from_report
from hotplate.bench.verdict import BOUNDS, Finding, Gravity
from tests.support.soak import in_soak
from tests.support.virtual import EndingWorker, VirtualLoop, delayed, simulate

URL = "http://simulated:80"
SERVICE_S = 0.001
LATE = Finding(Gravity.UNMEASURED, "the generator was late")
OUTSIDE = Finding(Gravity.OUTSIDE, "p99")
STALL_S = 0.1


def stalls_each_second(arrival_s: float) -> float:
    """Answer in 1 ms, but nothing in the first 100 ms of each second: whatever arrives then waits for its end."""
    second, into_s = divmod(arrival_s, 1.0)
    return max(arrival_s, second + STALL_S if into_s < STALL_S else arrival_s) + SERVICE_S


def stalled_percentile_us(percent: float) -> float:
    """By arithmetic: a tenth of all arrivals wait, evenly between nothing and the whole stall."""
    beyond = (100 - percent) / 100
    return (STALL_S * (1 - beyond / STALL_S) + SERVICE_S) * 1e6


@pytest.mark.parametrize(("seed", "duration_s"), [(None, 5), (7, 20)], ids=["evenly spaced", "Poisson"])
def test_an_open_loop_finds_the_percentiles_of_a_server_that_stalls(seed: int | None, duration_s: float) -> None:
    load = Load(url=URL, requests=Gets("/"), rate=1000, seed=seed, duration_s=duration_s, connections=200)
    result = simulate(load, stalls_each_second)
    assert latency_us([result], 99) == pytest.approx(stalled_percentile_us(99), rel=0.02)
    assert latency_us([result], 99.9) == pytest.approx(stalled_percentile_us(99.9), rel=0.02)
    assert latency_us([result], 50) == pytest.approx(SERVICE_S * 1e6, rel=0.02)


def test_a_closed_loop_on_the_same_server_does_not_see_the_stall() -> None:
    result = simulate(Load(url=URL, requests=Gets("/"), duration_s=10, connections=1), stalls_each_second)
    assert result.requested_rate is None
    assert latency_us([result], 99) < stalled_percentile_us(99) / 50


def starved(every_s: float) -> Result:
    def thief(loop: VirtualLoop) -> None:
        loop.advance(0.02)  # 20 ms in which the process did not run
        loop.call_later(every_s, thief, loop)

    load = Load(url=URL, requests=Gets("/"), rate=1000, duration_s=5)
    return simulate(load, lambda arrival_s: arrival_s + SERVICE_S, at_start=thief)


def test_generator_lateness_is_in_latencies_and_makes_a_run_invalid() -> None:
    """A p99 of 9 ms, of which 8 were the generator's delay, was that of the service."""
    robbed = starved(1.0)
    assert lag_us([robbed], 99) == pytest.approx(8_000, rel=0.1)
    assert latency_us([robbed], 99) > 2 * SERVICE_S * 1e6  # by the plan: the server's and the generator's
    (reason,) = robbed.invalid_reasons
    assert "the generator itself was" in reason


@pytest.mark.parametrize(("service_s", "is_broken"), [(0.0045, False), (0.0055, True)])
def test_an_objective_that_only_the_generators_delay_breaks_is_a_doubt(service_s: float, *, is_broken: bool) -> None:
    """The service was blamed unless more than half of the latency was the generator's delay."""

    def thief(loop: VirtualLoop) -> None:
        loop.advance(0.003)
        loop.call_later(0.05, thief, loop)

    load = Load(url=URL, requests=Gets("/"), rate=500, duration_s=5)
    late = simulate(load, lambda arrival_s: arrival_s + service_s, at_start=thief)
    (finding,) = Objective({"p99": 5_000.0}).judge(late)
    assert latency_us([late], 99) > 5_000
    assert finding.gravity is (Gravity.OUTSIDE if is_broken else Gravity.UNMEASURED)
    assert ("the generator itself was" in finding.text) is not is_broken


def test_a_rate_with_too_few_answers_for_its_objective_is_no_highest_rate() -> None:
    """It was reported with a p99 that is "not known", and exit code 0."""
    few = serve_at(500, 1000)
    found = find_max_report(Trial(offered=500, result=few), rounds=(few,))
    assert found.exit_code == 1
    assert found.sentence == (
        "There is no verdict: p99 is not known at 500 requests/s (fewer than 10 answers beyond it); give --duration 4s."
    )


def test_seconds_of_a_run_end_in_time() -> None:
    """They ended up to 20 ms late, and 2 seconds of a container of 400 RU/s had 409 reads each."""

    def pause_once(loop: VirtualLoop) -> None:
        loop.call_later(0.51, loop.advance, 0.013)

    load = Load(url=URL, requests=Gets("/"), rate=1000, duration_s=4, connections=200)
    result = simulate(load, lambda arrival_s: arrival_s + SERVICE_S, at_start=pause_once)
    assert [second.due for second in result.seconds] == [1000] * 4
    assert [len(second.latencies_s) for second in result.seconds] == pytest.approx([1000] * 4, abs=2)


def test_generator_without_cpu_reports_an_invalid_run() -> None:
    hopeless = starved(0.002)
    assert hopeless.invalid_reasons
    assert "the generator itself was" in hopeless.invalid_reasons[0]


def test_a_percentile_is_that_of_all_times_together() -> None:
    fast = np.full(10, 0.001, dtype=np.float32)
    slow = np.full(30, 0.002, dtype=np.float32)
    both = [percentile_us([fast, slow], percent) for percent in (0, 25, 30, 100)]
    assert both == pytest.approx([1000, 1000, 2000, 2000])
    assert percentile_us([], 50) == percentile_us([fast[:0]], 50) == 0


OBJECTIVE = Objective({"p99": 20_000.0})


def one_by_one(capacity: float) -> Callable[[float], float]:
    """Return a service that answers *capacity* requests/s, one after the other."""
    free_s = 0.0

    def answered(arrival_s: float) -> float:
        nonlocal free_s
        free_s = max(free_s, arrival_s) + 1 / capacity
        return free_s

    return answered


@cache
def serve_at(rate: float, capacity: float) -> Result:
    load = Load(url="http://h", requests=Gets("/"), rate=rate, duration_s=1, connections=200)
    return simulate(load, one_by_one(capacity))


def trials(measure: Callable[[float], Result]) -> list[Trial]:
    def attempt(rate: float) -> Trial:
        result = measure(rate)
        return Trial(offered=rate, result=result, findings=OBJECTIVE.judge(result))

    return list(search(attempt, 100))


def test_the_search_finds_the_highest_rate_inside_the_objective() -> None:
    tried = trials(lambda rate: serve_at(rate, 1000))
    best = highest(tried)
    assert best is not None
    assert 950 <= best.offered <= 1060
    assert len(tried) <= 20  # with the repeated ones
    assert all(trial.is_inside is (trial.offered <= best.offered) for trial in tried)
    assert "p99" in next(trial for trial in tried if not trial.is_inside).broken[0]


@pytest.mark.soak
def test_late_generator_is_not_a_limit_of_the_service() -> None:
    def on_a_busy_machine(rate: float) -> Result:
        served = serve_at(rate, 1000)
        return served if rate <= 500 else delayed(served)

    tried = trials(on_a_busy_machine)
    best = highest(tried)
    ended = first_outside(tried)
    assert best is not None
    assert best.offered <= 500
    assert ended is not None
    assert ended.is_unclear
    assert any("the generator" in doubt for doubt in ended.doubts)


def find_max_report(*trials: Trial, rounds: tuple[Result, ...] = (), interrupted: bool = False) -> Report:
    plan = make_plan(HttpOptions(url=URL, users=9, find_max=True, slo="p99=20ms"))
    return report(HttpRuns(plan, trials, rounds, None, interrupted=interrupted))


def test_a_repeated_trial_that_is_broken_ends_a_search_by_the_service() -> None:
    """The first attempt at a rate was judged, and the highest rate called a lower bound."""
    inside = serve_at(500, 1000)
    outside = serve_at(1500, 1000)
    tried = (
        Trial(offered=500, result=inside),
        Trial(offered=1500, result=outside, findings=[LATE]),
        Trial(offered=1500, result=outside, findings=[OUTSIDE]),
    )
    assert first_outside(tried) is tried[2]
    found = find_max_report(*tried, rounds=(inside, inside))
    assert found.extra["search"]["at_least"] == ""
    assert "is 500 requests/s" in found.sentence
    assert not found.notes


def test_a_plan_reads_the_rate_that_a_search_found(tmp_path: Path) -> None:
    inside = serve_at(500, 1000)
    outside = Trial(offered=1500, result=serve_at(1500, 1000), findings=[LATE])
    options = HttpOptions(url=URL, users=9, find_max=True, slo="p99=20ms", store="redis://cache/0")
    trials_of_search = (Trial(offered=500, result=inside), outside)
    found = report(HttpRuns(make_plan(options), trials_of_search, (inside,) * 3, None, interrupted=False))
    path = tmp_path / "pod.json"
    path.write_text(json.dumps(to_json(found)))
    measured = from_report(read_report(path), path)
    assert measured.values == {"redis_pod_rps": 500}
    assert measured.source.startswith("measured: at least pod.json, ")


def test_an_interrupted_search_does_not_say_that_no_rate_is_inside() -> None:
    inside = Trial(offered=500, result=serve_at(500, 1000))
    found = find_max_report(inside, interrupted=True)
    assert found.exit_code == 1
    assert "500 requests/s" in found.sentence
    assert found.extra["search"]["highest"] == 500
    assert "No rate is inside" not in find_max_report(interrupted=True).sentence


def test_an_interrupted_search_does_not_break_the_objective() -> None:
    """Its sentence said that it was stopped before a rate was inside, and its complaint that no rate was."""
    outside = Trial(offered=1500, result=serve_at(1500, 1000), findings=[OUTSIDE])
    found = find_max_report(outside, interrupted=True)
    assert found.sentence.startswith("The search was stopped before a rate was inside")
    assert not found.broken
    assert found.exit_code == 1


def test_an_interrupted_search_does_not_say_that_the_generator_ended_it() -> None:
    inside = Trial(offered=500, result=serve_at(500, 1000))
    unclear = Trial(offered=1500, result=serve_at(1500, 1000), findings=[LATE])
    found = find_max_report(inside, unclear, interrupted=True)
    assert found.sentence.startswith("The search was stopped: 500 requests/s are inside")
    assert not found.notes
    in_its_rounds = find_max_report(inside, unclear, rounds=(inside.result,), interrupted=True)
    assert in_its_rounds.extra["search"]["at_least"] == "the generator was late"


class KneeServer:
    """A `LoadWorker` for a server with a known capacity, which answers one request after the other.

    Its clock goes on from run to run. It stops for *pause_s* once in 7 s.
    """

    def __init__(self, capacity: float, *, pause_s: float = 0.0, phase_s: float = 0.0) -> None:
        self.capacity = capacity
        self.pause_s = pause_s
        self.now_s = phase_s
        self.measured_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was started."""

    def run(self, load: Load) -> Result:
        free_s = 0.0

        def answered(arrival_s: float) -> float:
            nonlocal free_s
            begin_s = max(free_s, arrival_s)
            into_s = (self.now_s + begin_s) % 7
            free_s = begin_s + max(0.0, self.pause_s - into_s) + 1 / self.capacity
            return free_s

        result = simulate(replace(load, requests=Gets("/"), check=failure_by_status), answered)
        self.now_s += load.duration_s + 0.2
        self.measured_s += load.duration_s
        return result


def find_knee(server: KneeServer, duration: str, monkeypatch: pytest.MonkeyPatch) -> Report:
    monkeypatch.setattr(http, "LoadWorker", lambda: server)
    options = HttpOptions(
        url=URL, path="/", find_max=True, slo="p99=20ms", rate="100", duration=duration, repeat=3, warmup="0s"
    )
    return report(http.measure(make_plan(options), ProgressDisplay(Console(file=io.StringIO()))))


@pytest.mark.parametrize(
    ("pause_s", "phases", "duration"),
    [
        (0.0, 1, "1s"),
        (0.06, 2, "1s"),
        in_soak(0.0, 20, "1s"),
        in_soak(0.06, 20, "1s"),
        in_soak(0.06, 20, "5s"),
        pytest.param(0.06, 20, "10s", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_a_search_finds_a_known_knee_in_spite_of_pauses(
    pause_s: float, phases: int, duration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial with a pause of 60 ms ended the climb, and 31,000/s were found of 50,000."""
    found = list[float]()
    for phase in range(phases):
        server = KneeServer(800 + 7 * phase, pause_s=pause_s, phase_s=7 * phase / phases)
        report_of_search = find_knee(server, duration, monkeypatch)
        assert report_of_search.exit_code == 0, report_of_search.sentence
        highest_rate = report_of_search.extra["search"]["highest"]
        assert f"is {highest_rate:,.0f} requests/s (" in report_of_search.sentence
        found.append(highest_rate / server.capacity)
        announced_runs = 16 + 3
        assert server.measured_s <= 1.5 * announced_runs * float(duration.rstrip("s"))
    assert all(0.9 <= ratio <= 1.1 for ratio in found), found
    assert sum(0.95 <= ratio <= 1.05 for ratio in found) >= 0.95 * phases, found


# With a capacity of 828 requests/s, the queue after a pause in second 9 falls at 800/s, and grows at 835/s.
@pytest.mark.parametrize(("rate", "is_inside"), [(800, True), (835, False)])
def test_a_queue_at_the_end_of_a_trial_is_a_pause_if_it_falls(rate: float, *, is_inside: bool) -> None:
    server = KneeServer(828, pause_s=0.06, phase_s=6.1)
    result = server.run(Load(url=URL, requests=Gets("/"), rate=rate, duration_s=10, connections=400))
    last_s = result.seconds[-1].latencies_s
    assert last_s.min() > 0.02
    assert (not parse_objective("p99=20ms").judge(result)) is is_inside


def test_pauses_that_are_left_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    report_of_search = find_knee(KneeServer(400, pause_s=0.06, phase_s=1), "4s", monkeypatch)
    assert report_of_search.exit_code == 0, report_of_search.sentence
    assert any("seconds are left out of the latencies, as pauses" in note for note in report_of_search.notes)


def test_a_server_that_stalls_each_second_is_not_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    server = KneeServer(400)
    monkeypatch.setattr(
        server,
        "run",
        lambda load: simulate(replace(load, requests=Gets("/"), check=failure_by_status), stalls_each_second),
    )
    report_of_search = find_knee(server, "2s", monkeypatch)
    assert report_of_search.exit_code == 3
    assert report_of_search.sentence.startswith("No rate is inside p99 ≤ 20 ms, errors ≤ 0.1 %")
    assert report_of_search.extra["search"]["highest"] is None


def test_rounds_that_refute_each_rate_say_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search ended with "outside", and neither with a rate nor with what would help."""
    server = KneeServer(400)
    run = server.run

    def run_slower(load: Load) -> Result:
        if server.measured_s > 12:
            server.capacity = 100
        return run(load)

    monkeypatch.setattr(server, "run", run_slower)
    report_of_search = find_knee(server, "1s", monkeypatch)
    assert report_of_search.exit_code == 3
    assert report_of_search.sentence.startswith("No rate was confirmed inside p99 ≤ 20 ms")
    assert "Give --duration 3s" in report_of_search.sentence
    assert report_of_search.extra["search"]["highest"] is None


def test_rounds_that_refute_a_rate_step_down_to_one_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search ended without a rate, although a slightly lower one was inside."""
    server = KneeServer(400)
    run = server.run

    def run_warm(load: Load) -> Result:
        """A server that is slower after the trials of the search, as a processor that was throttled."""
        if server.measured_s > 12:
            server.capacity = 375
        return run(load)

    monkeypatch.setattr(server, "run", run_warm)
    report_of_search = find_knee(server, "1s", monkeypatch)
    assert report_of_search.exit_code == 0, report_of_search.sentence
    search_of_report = report_of_search.extra["search"]
    assert 0.9 * 375 <= search_of_report["highest"] <= 1.02 * 375
    assert search_of_report["outside"] <= 1.1 * 400


@pytest.mark.parametrize("options", [{}, {"find_max": True}, {"batch": "1,5"}])
@pytest.mark.parametrize("stopped", [1, 2], ids=["sample", "warm-up"])
def test_ctrl_c_before_the_first_round_ends_a_measurement(
    options: dict[str, Any], stopped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was ignored, and all rounds followed."""

    def run(load: Load) -> Result:
        return simulate(replace(load, duration_s=0.1), lambda arrival_s: arrival_s + 0.001)

    worker = EndingWorker(stopped, run)
    monkeypatch.setattr(http, "LoadWorker", lambda: worker)
    display = ProgressDisplay(Console(file=io.StringIO()))
    with pytest.raises(KeyboardInterrupt):
        http.measure(make_plan(HttpOptions(url=URL, users=9, **options)), display)
    assert worker.runs == stopped


def test_ctrl_c_during_a_trial_leaves_a_report_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(load: Load) -> Result:
        return simulate(replace(load, requests=Gets("/"), check=failure_by_status), lambda arrival_s: arrival_s + 0.001)

    monkeypatch.setattr(http, "LoadWorker", lambda: EndingWorker(4, run))
    options = HttpOptions(url=URL, path="/", find_max=True, slo="p50=5ms", rate="100", duration="0.5s", warmup="0s")
    stopped = report(http.measure(make_plan(options), ProgressDisplay(Console(file=io.StringIO()))))
    assert stopped.interrupted
    assert stopped.sentence.startswith("The search was stopped: 200 requests/s are inside")
    assert [point["at"] for point in stopped.extra["search"]["points"]] == [100, 200]


def test_a_generator_that_dies_leaves_a_report_of_the_rounds_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rounds were lost with it."""

    def run(load: Load) -> Result:
        return simulate(replace(load, requests=Gets("/"), check=failure_by_status), lambda arrival_s: arrival_s + 0.001)

    for last, rounds in ((5, 2), (3, 0)):  # after a sample and a warm-up
        worker = EndingWorker(last, run, BenchFailed("the process of the load generator died"))
        monkeypatch.setattr(http, "LoadWorker", lambda worker=worker: worker)
        plan = make_plan(HttpOptions(url=URL, path="/", duration="0.1s", repeat=5))
        if not rounds:
            with pytest.raises(BenchFailed, match="died"):
                http.measure(plan, ProgressDisplay(Console(file=io.StringIO())))
            continue
        report_of_rounds = report(http.measure(plan, ProgressDisplay(Console(file=io.StringIO()))))
        assert len(report_of_rounds.extra["rounds"]) == rounds
        assert report_of_rounds.failures == ("the process of the load generator died",)


@pytest.mark.parametrize(("rate", "late_s", "code"), [(900, 0.0, 0), (1_100, 0.0, 3), (900, 0.005, 1)])
def test_a_rate_is_the_highest_only_if_its_rounds_are_inside(rate: float, late_s: float, code: int) -> None:
    plan = make_plan(HttpOptions(url=URL, users=9, find_max=True, slo="p99=2ms"))
    best = Trial(offered=900, result=serve_at(900, 1000))
    rounds = best.result, delayed(serve_at(rate, 1000), late_s)
    search_report = report(HttpRuns(plan, (best,), rounds, None, interrupted=False))
    assert search_report.exit_code == code
    assert ("The highest rate inside" in search_report.sentence) is (code == 0)
    assert (search_report.row(URL, "highest rate") is None) is (code == 3)


def overloaded(capacity: float = 100) -> Result:
    """Return a run in which a service serves a fifth of the rate, so that many due requests are never sent."""
    load = Load(url=URL, requests=Gets("/"), rate=5 * capacity, duration_s=8, connections=8, timeout_s=2, backlog=300)
    return simulate(load, one_by_one(capacity))


def test_an_overloaded_service_breaks_the_objective() -> None:
    """It was called a failure of the load generator, with exit code 1."""
    plan = make_plan(HttpOptions(url=URL, users=9, slo="p99=5ms,errors=1%"))
    result = overloaded()
    assert result.sent < 0.5 * result.due
    overload_report = report(HttpRuns(plan, (), (result,), None, interrupted=False))
    assert overload_report.exit_code == 3
    assert overload_report.sentence.startswith("Outside the objective: p99 ")
    assert any("got no good answer" in reason for reason in overload_report.broken)
    assert all(finding.gravity in BOUNDS for finding in plan.objective.judge(result))


def test_an_overloaded_generator_does_not_blame_the_service() -> None:
    plan = make_plan(HttpOptions(url=URL, users=9, slo="p99=5ms,errors=1%"))
    result = replace(overloaded(), cpu_share=0.99)
    overload_report = report(HttpRuns(plan, (), (result,), None, interrupted=False))
    assert overload_report.exit_code == 1
    assert "no CPU to spare" in overload_report.sentence


def test_a_service_without_any_answer_breaks_the_objective() -> None:
    """Its unknown p99 was called a failure to measure it."""
    load = Load(url=URL, requests=Gets("/"), rate=100, duration_s=2, timeout_s=0.5)
    plan = make_plan(HttpOptions(url=URL, users=9, slo="p99=5ms"))
    silent = simulate(load, lambda arrival_s: arrival_s + 3)
    silent_report = report(HttpRuns(plan, (), (silent,), None, interrupted=False))
    assert silent_report.exit_code == 3
    assert silent_report.sentence.startswith("Outside the objective")


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(Load(url="http://h", requests=Gets("/"), rate=100, duration_s=1), lambda at: at + 0.001)


def test_knee_is_the_smallest_batch_near_the_maximum(result: Result) -> None:
    def of(size: float, users_per_s: float, findings: tuple[Finding, ...] = ()) -> Trial:
        return Trial(offered=size, result=replace(result, duration_s=result.ok * size / users_per_s), findings=findings)

    tried = [of(1, 10), of(50, 200), of(200, 290), of(500, 300), of(1000, 310), of(2000, 900, (OUTSIDE,))]
    smallest = knee(tried)
    assert smallest is not None
    assert smallest.offered == 200
    assert knee([]) is None
