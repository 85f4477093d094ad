"""The highest rate inside an objective, and the best size of a batch, of servers that are formulas."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hotplate.bench.http import search
from hotplate.bench.http_report import Objective, Trial, first_outside, highest, knee
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.loadgen.result import Result
from tests.support.virtual import simulate

OBJECTIVE = Objective({"p99": 20_000.0})


def serve_at(rate: float, capacity: float) -> Result:
    free_s = 0.0

    def one_by_one(arrival_s: float) -> float:
        nonlocal free_s
        free_s = max(free_s, arrival_s) + 1 / capacity
        return free_s

    return simulate(Load(url="http://h", requests=Gets("/"), rate=rate, duration_s=4, connections=500), one_by_one)


def trials(measure: Callable[[float], Result]) -> list[Trial]:
    def attempt(rate: float) -> Trial:
        result = measure(rate)
        broken, doubts = OBJECTIVE.judge(result)
        return Trial(at=rate, result=result, broken=broken, doubts=doubts)

    return list(search(attempt, 100))


def test_the_search_finds_the_highest_rate_inside_the_objective() -> None:
    tried = trials(lambda rate: serve_at(rate, 1000))
    best = highest(tried)
    assert best is not None
    assert 950 <= best.at <= 1060
    assert len(tried) < 15
    assert all(each.inside is (each.at <= best.at) for each in tried)
    assert "p99" in next(each for each in tried if not each.inside).broken[0]


def test_a_late_generator_is_no_limit_of_the_service() -> None:
    def on_a_busy_machine(rate: float) -> Result:
        found = serve_at(rate, 1000)
        if rate <= 500:
            return found
        seconds = tuple(replace(each, latencies_s=each.latencies_s + np.float32(0.03)) for each in found.seconds)
        return replace(found, seconds=seconds, lags_s=found.lags_s + np.float32(0.03))

    tried = trials(on_a_busy_machine)
    best, ended = highest(tried), first_outside(tried)
    assert best is not None
    assert best.at <= 500
    assert ended is not None
    assert ended.unclear
    assert any("the generator" in doubt for doubt in ended.doubts)


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(Load(url="http://h", requests=Gets("/"), rate=100, duration_s=1), lambda at: at + 0.001)


def test_the_knee_is_the_smallest_batch_that_gives_nearly_all(result: Result) -> None:
    def of(size: float, users_s: float, broken: tuple[str, ...] = ()) -> Trial:
        return Trial(at=size, result=replace(result, duration_s=result.ok * size / users_s), broken=broken)

    tried = [of(1, 10), of(50, 200), of(200, 290), of(500, 300), of(1000, 310), of(2000, 900, ("errors",))]
    found = knee(tried)
    assert found is not None
    assert found.at == 200
    assert knee([]) is None
