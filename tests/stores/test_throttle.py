"""Pacing, backoff and retries."""

import time

import pytest

from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.throttle import MIN_PAUSE_S, Backoff, Pacer, Retrier


def test_pauses_keep_a_writer_to_its_share_of_the_time() -> None:
    pacer, latency_s = Pacer(0.25), 0.0004
    pauses_s = [pacer.pause_s(latency_s) for _ in range(1000)]
    assert sum(pauses_s) == pytest.approx(3 * latency_s * 1000, rel=0.01)
    assert all(pause_s == 0 or pause_s >= MIN_PAUSE_S for pause_s in pauses_s)


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
