"""The throttle of a writer, and back-off, on a clock that the test holds."""

import time

import pytest

from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.throttle import MIN_SHARE, AdaptiveThrottle, Backoff, Retrier
from tests.support.clock import FakeClock

SIZE = 600_000


class Publisher:
    """Writes batch after batch to a server of a given latency, in simulated time."""

    def __init__(self, max_share: float = 1.0) -> None:
        self.clock = FakeClock()
        self.throttle = AdaptiveThrottle(self.clock, max_share=max_share)

    def batches_in(self, seconds: float, latency_s: float, size: int = SIZE) -> int:
        until, batches = self.clock.now + seconds, 0
        while self.clock.now < until:
            self.clock.now += latency_s
            self.clock.now += self.throttle.pause_s(latency_s, size)
            batches += 1
        return batches


def test_an_even_latency_is_no_reason_to_pause() -> None:
    assert Publisher().batches_in(10, 0.004) >= 10 / 0.004 - 1


def test_rate_is_halved_within_a_second_of_rising_latency_and_recovers() -> None:
    publisher = Publisher()
    usual = publisher.batches_in(5, 0.004)
    publisher.batches_in(1, 0.012)
    assert publisher.throttle.share <= 1 / 2
    # A third of the rate would be the latency alone: the throttle takes off its half on top.
    assert publisher.batches_in(5, 0.012) < usual / 3 / 2
    publisher.batches_in(1, 0.004)
    assert publisher.batches_in(5, 0.004) > 0.9 * usual


def test_noise_of_a_few_milliseconds_changes_nothing() -> None:
    publisher = Publisher()
    for latency_s in (0.003, 0.004, 0.002, 0.006) * 50:
        publisher.batches_in(0.001, latency_s)
        assert publisher.throttle.share == 1.0


def test_writer_never_stops_and_lasting_latency_becomes_the_baseline() -> None:
    publisher = Publisher()
    publisher.batches_in(5, 0.004)
    publisher.batches_in(3, 0.1)
    assert publisher.throttle.share == MIN_SHARE
    publisher.batches_in(60, 0.1)
    assert publisher.throttle.share == 1.0


def test_larger_batches_are_not_held_against_smaller_ones() -> None:
    publisher = Publisher()
    publisher.batches_in(1, 0.0005, size=1000)
    publisher.batches_in(1, 0.02, size=SIZE)
    assert publisher.throttle.share == 1.0


def test_the_share_of_time_stays_under_its_bound() -> None:
    assert Publisher(max_share=0.5).batches_in(10, 0.001) <= 10 / 0.002 + 1


def test_backoff_doubles_up_to_its_limit_with_jitter_and_resets_on_success() -> None:
    backoff = Backoff(0.05, 2.0)
    for expected_s in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0):
        assert expected_s / 2 <= backoff.next_s() <= expected_s
    backoff.reset()
    assert backoff.next_s() <= 0.05


async def test_step_is_retried_while_its_store_is_down_but_not_if_the_error_is_permanent() -> None:
    lost = StoreUnavailable("rows are gone")
    lost.permanent = True
    failures, taken = [StoreUnavailable("down"), lost], list[str]()

    async def step() -> None:
        taken.append("step")
        raise failures.pop(0)

    with pytest.raises(StoreUnavailable, match="rows are gone"):
        await Retrier(time.monotonic, for_s=30.0).call(step)
    assert len(taken) == 2
    failures += [StoreUnavailable("down"), StoreUnavailable("not tried again")]
    with pytest.raises(StoreUnavailable, match="down"):
        await Retrier(time.monotonic, for_s=0.0).call(step)
