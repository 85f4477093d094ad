"""The generator as it is, in virtual time: what it says of servers whose latencies are known by arithmetic."""

import pytest

from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.loadgen.result import Result
from tests.support.virtual import VirtualLoop, simulate

URL = "http://simulated:80"
SERVICE_S = 0.001
STALL_S = 0.1


def stalls_each_second(arrival_s: float) -> float:
    """Answer in 1 ms, but nothing in the first 100 ms of each second: whatever arrives then waits for its end."""
    second, into_s = divmod(arrival_s, 1.0)
    return max(arrival_s, second + STALL_S if into_s < STALL_S else arrival_s) + SERVICE_S


def stalled_percentile_us(percent: float) -> float:
    """By arithmetic: a tenth of all arrivals wait, evenly between nothing and the whole stall."""
    beyond = (100 - percent) / 100
    return (STALL_S * (1 - beyond / STALL_S) + SERVICE_S) * 1e6


@pytest.mark.parametrize("seed", [None, 7], ids=["evenly spaced", "Poisson"])
def test_an_open_loop_finds_the_percentiles_of_a_server_that_stalls(seed: int | None) -> None:
    load = Load(url=URL, requests=Gets("/"), rate=1000, seed=seed, duration_s=40, connections=200)
    latency = simulate(load, stalls_each_second).latency
    assert latency.percentile_us(99) == pytest.approx(stalled_percentile_us(99), rel=0.02)
    assert latency.percentile_us(99.9) == pytest.approx(stalled_percentile_us(99.9), rel=0.02)
    assert latency.percentile_us(50) == pytest.approx(SERVICE_S * 1e6, rel=0.02)


def test_a_closed_loop_on_the_same_server_does_not_see_the_stall() -> None:
    result = simulate(Load(url=URL, requests=Gets("/"), duration_s=40, connections=1), stalls_each_second)
    assert result.requested_rate is None
    assert result.latency.percentile_us(99) < stalled_percentile_us(99) / 50


def starved(every_s: float) -> Result:
    def thief(loop: VirtualLoop) -> None:
        loop.advance(0.02)  # 20 ms in which the process did not run
        loop.call_later(every_s, thief, loop)

    load = Load(url=URL, requests=Gets("/"), rate=1000, duration_s=10)
    return simulate(load, lambda arrival_s: arrival_s + SERVICE_S, at_start=thief)


def test_the_lateness_of_the_generator_is_part_of_latencies_and_is_known() -> None:
    robbed = starved(1.0)
    assert not robbed.invalid_reasons
    assert robbed.lag.percentile_us(99) > 1_000
    assert robbed.latency.percentile_us(99) > 2 * SERVICE_S * 1e6  # by the plan: the server's and the generator's


def test_a_generator_that_hardly_ever_has_its_core_reports_an_invalid_run() -> None:
    hopeless = starved(0.002)
    assert hopeless.invalid_reasons
    assert "the generator itself was" in hopeless.invalid_reasons[0]
