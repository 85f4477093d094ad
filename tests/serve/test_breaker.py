"""Circuit breakers: the pauses between probes, and that a store that is well again is used again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.breaker import FAILURES, PROBE_PAUSES_S, Breaker
from tests.support.clock import FakeClock


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    return Breaker(clock, min_jitter=1.0)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.allows()
        breaker.failed()


def test_probe_pause_doubles_to_its_bound_and_resets_on_success(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, FAILURES)
    pauses = list[float]()
    for _ in range(8):
        started = clock.now
        while not breaker.allows():
            clock.now += 0.01
        pauses.append(round(clock.now - started, 1))
        breaker.failed()
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]
    clock.now += PROBE_PAUSES_S[1]
    assert breaker.allows()
    breaker.succeeded()
    fail(breaker, FAILURES)
    clock.now += PROBE_PAUSES_S[0]
    assert breaker.allows()


@given(st.lists(st.sampled_from(["allow", "ok", "fail", "wait"]), max_size=200))
def test_recovered_store_is_used_after_any_history(events: list[str]) -> None:
    clock = FakeClock()
    breaker = Breaker(clock)
    waiting = 0
    for event in events:
        if event == "wait":
            clock.now += 0.5
        elif event == "allow":
            waiting += breaker.allows()
        elif waiting:
            waiting -= 1
            (breaker.succeeded if event == "ok" else breaker.failed)()
    for _ in range(waiting):
        breaker.failed()
    clock.now += PROBE_PAUSES_S[1]
    assert breaker.allows()
