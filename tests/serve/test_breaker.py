"""The breaker on a clock that the test holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.breaker import FAILURES, FAILURES_OF_PARTS, PAUSE_S, Breaker
from tests.support.clock import FakeClock


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    return Breaker(clock, min_jitter=1.0)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.allows()
        breaker.failed()


def test_it_opens_after_so_many_failures_in_a_row_and_a_success_starts_the_count_anew(breaker: Breaker) -> None:
    fail(breaker, FAILURES - 1)
    breaker.succeeded()
    fail(breaker, FAILURES - 1)
    before = breaker.is_open
    fail(breaker, 1)
    assert (before, breaker.is_open, breaker.allows()) == (False, True, False)


def test_an_open_breaker_lets_one_probe_out_after_its_pause(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, FAILURES)
    clock.now += PAUSE_S[0]
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert not breaker.is_open
    assert all(breaker.allows() for _ in range(3))


def test_the_pause_doubles_to_its_bound_and_is_short_again_after_a_success(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, FAILURES)
    pauses = list[float]()
    for _ in range(8):
        started = clock.now
        while not breaker.allows():
            clock.now += 0.01
        pauses.append(round(clock.now - started, 1))
        breaker.failed()
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]
    clock.now += PAUSE_S[1]
    assert breaker.allows()
    breaker.succeeded()
    fail(breaker, FAILURES)
    clock.now += PAUSE_S[0]
    assert breaker.allows()


def test_a_probe_that_fails_is_enough_whatever_the_failure(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, FAILURES)
    clock.now += PAUSE_S[0]
    assert breaker.allows()
    breaker.failed(FAILURES_OF_PARTS)
    assert not breaker.allows()


def test_failures_of_requests_sent_before_it_opened_do_not_lengthen_the_pause(
    breaker: Breaker, clock: FakeClock
) -> None:
    for _ in range(FAILURES + 20):
        breaker.failed()
    clock.now += PAUSE_S[0]
    assert breaker.allows()


@given(st.lists(st.sampled_from(["allow", "ok", "fail", "wait"]), max_size=200))
def test_whatever_happens_a_store_that_is_well_again_is_used_again(events: list[str]) -> None:
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
    clock.now += PAUSE_S[1]
    assert breaker.allows()
