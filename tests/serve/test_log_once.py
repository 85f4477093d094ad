"""When a condition that lasts is logged."""

from hotplate.serve.log_once import LogOnce
from tests.support.clock import FakeClock


def test_condition_is_due_when_it_begins_or_changes() -> None:
    once = LogOnce()
    assert [once.met(kind) for kind in ("a", "a", "b", "b", "a")] == [1, 0, 2, 0, 2]


def test_condition_that_lasts_is_due_again_with_its_number(clock: FakeClock) -> None:
    once = LogOnce(again_s=60, clock=clock)
    assert [once.met(), once.met(), once.met()] == [1, 0, 0]
    clock.now += 60
    assert [once.met(), once.met()] == [3, 0]


def test_condition_is_due_at_once_after_its_end() -> None:
    once = LogOnce()
    assert not once.end()
    once.met()
    once.met()
    assert once.end()
    assert not once.end()
    assert once.met() == 1
