"""Circuit breakers: the pauses between probes, and that a store that is well again is used again."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.tiers.breaker import FAILURES, FAILURES_OF_PARTS, PROBE_PAUSES_S, Breaker
from hotplate.stores.errors import PartUnavailable, StoreUnavailable
from tests.support.clock import FakeClock

AWAY = StoreUnavailable("away")


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    return Breaker("redis", clock, min_jitter=1.0)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed(breaker.begin(), AWAY)


def begun(breaker: Breaker) -> int | None:
    """Begin a read; None if the circuit is open."""
    with suppress(StoreUnavailable):
        return breaker.begin()
    return None


def test_probe_pause_doubles_to_its_bound_and_resets_on_success(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, FAILURES)
    pauses = list[float]()
    for _ in range(8):
        started = clock.now
        while (probe := begun(breaker)) is None:
            clock.now += 0.01
        pauses.append(round(clock.now - started, 1))
        breaker.failed(probe, AWAY)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]
    clock.now += PROBE_PAUSES_S[1]
    breaker.succeeded(breaker.begin())
    fail(breaker, FAILURES)
    clock.now += PROBE_PAUSES_S[0]
    breaker.begin()


@given(st.lists(st.sampled_from(["begin", "ok", "fail", "cancel", "wait"]), max_size=200))
def test_recovered_store_is_used_after_any_history(events: list[str]) -> None:
    clock = FakeClock()
    breaker = Breaker("redis", clock)
    reads = list[int]()
    for event in events:
        read = begun(breaker) if event == "begin" else None
        if event == "wait":
            clock.now += 0.5
        elif read is not None:
            reads.append(read)
        elif event == "ok" and reads:
            breaker.succeeded(reads.pop(0))
        elif event == "fail" and reads:
            breaker.failed(reads.pop(0), AWAY)
        elif event == "cancel" and reads:
            breaker.cancelled(reads.pop(0))
    for read in reads:
        breaker.failed(read, AWAY)
    clock.now += PROBE_PAUSES_S[1]
    breaker.succeeded(breaker.begin())
    assert not breaker.is_open


def test_one_probe_is_sent_at_a_time_also_after_a_cancelled_one(breaker: Breaker, clock: FakeClock) -> None:
    fail(breaker, FAILURES)
    clock.now += PROBE_PAUSES_S[0]
    probe = breaker.begin()
    assert begun(breaker) is None
    breaker.cancelled(probe)
    breaker.begin()
    assert begun(breaker) is None


@pytest.mark.parametrize("outcome", ["failed", "succeeded", "cancelled"])
def test_a_read_from_before_the_opening_does_not_end_the_probe(
    breaker: Breaker, clock: FakeClock, outcome: str
) -> None:
    early = breaker.begin()
    fail(breaker, FAILURES)
    clock.now += PROBE_PAUSES_S[0]
    probe = breaker.begin()
    if outcome == "failed":
        breaker.failed(early, AWAY)
    elif outcome == "succeeded":
        breaker.succeeded(early)
    else:
        breaker.cancelled(early)
    clock.now += PROBE_PAUSES_S[1]
    assert begun(breaker) is None
    breaker.succeeded(probe)
    assert not breaker.is_open


def test_a_late_read_counts_for_one_part_until_the_circuit_closes(breaker: Breaker, clock: FakeClock) -> None:
    breaker.failed(breaker.begin(), PartUnavailable("one shard"))
    for _ in range(FAILURES_OF_PARTS - 1):
        breaker.timed_out(breaker.begin(), 0.05)
    assert begun(breaker) is None
    clock.now += PROBE_PAUSES_S[0]
    breaker.succeeded(breaker.begin())
    for _ in range(FAILURES):
        breaker.timed_out(breaker.begin(), 0.05)
    assert begun(breaker) is None


def test_failures_of_parts_do_not_count_as_those_of_the_store(breaker: Breaker) -> None:
    """49 failures of one shard and a late read opened the circuit of all shards."""
    for _ in range(FAILURES_OF_PARTS - 1):
        breaker.failed(breaker.begin(), PartUnavailable("one shard"))
    fail(breaker, FAILURES - 1)
    assert not breaker.is_open
    fail(breaker, 1)
    assert breaker.is_open
