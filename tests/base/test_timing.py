"""Pacing."""

import pytest

from hotplate.base.timing import MIN_PAUSE_S, Pacer


def test_pauses_keep_a_writer_to_its_share_of_the_time() -> None:
    pacer = Pacer(0.25)
    latency_s = 0.0004
    pauses_s = [pacer.pause_s(latency_s) for _ in range(1000)]
    assert sum(pauses_s) == pytest.approx(3 * latency_s * 1000, rel=0.01)
    assert all(pause_s == 0 or pause_s >= MIN_PAUSE_S for pause_s in pauses_s)
