"""Circuit breakers: the pauses between probes, and that a store that is well again is used again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.tiers.breaker import FAILURES, PROBE_PAUSES_S, Breaker
from hotplate.stores.errors import StoreUnavailable
from tests.support.clock import FakeClock

AWAY = StoreUnavailable("away")


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    return Breaker("redis", clock, min_jitter=1.0)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.allows()
        breaker.failed(AWAY)


def test_probe_pause_doubles_to_its_bound_and_resets_on_success(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, FAILURES)
    pauses = list[float]()
    for _ in range(8):
        started = clock.now
        while not breaker.allows():
            clock.now += 0.01
        pauses.append(round(clock.now - started, 1))
        breaker.failed(AWAY)
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
    breaker = Breaker("redis", clock)
    waiting = 0
    for event in events:
        if event == "wait":
            clock.now += 0.5
        elif event == "allow":
            waiting += breaker.allows()
        elif waiting:
            waiting -= 1
            if event == "ok":
                breaker.succeeded()
            else:
                breaker.failed(AWAY)
    for _ in range(waiting):
        breaker.failed(AWAY)
    clock.now += PROBE_PAUSES_S[1]
    assert breaker.allows()


def test_one_probe_is_sent_at_a_time_also_after_a_cancelled_one(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, FAILURES)
    clock.now += PROBE_PAUSES_S[0]
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.probe_cancelled()
    assert [breaker.allows(), breaker.allows()] == [True, False]


def test_probe_cancelled_after_another_read_succeeded_leaves_the_breaker_closed(
    breaker: Breaker, clock: FakeClock
) -> None:
    fail(breaker, FAILURES)
    clock.now += PROBE_PAUSES_S[0]
    assert breaker.allows()
    breaker.succeeded()  # of a read that was sent before the breaker opened
    breaker.probe_cancelled()
    assert not breaker.is_open
