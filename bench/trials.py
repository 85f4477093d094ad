"""Trials: single runs at one load, which are repeated while it is unclear what limited them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from hotplate.bench.loadgen.result import Result

# Attempts at a trial that a disturbed load generator leaves unclear.
TRIES = 3
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run at one load.

    offered  the load: requests/s, users in a batch, or a share of a level's capacity
    broken   bounds that the service did not keep
    doubts   reasons to blame the load generator instead of the service
    """

    offered: float
    result: Result
    broken: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def is_inside(self) -> bool:
        """Whether the run is valid and inside all bounds."""
        return not self.doubts and not self.broken

    @property
    def is_unclear(self) -> bool:
        """Whether another attempt may be clearer: only the generator is to blame."""
        return bool(self.doubts) and not self.broken

    @property
    def is_stopped(self) -> bool:
        """Whether the user interrupted the run."""
        return self.result.interrupted


def attempts(
    attempt: Callable[[], T], is_unclear: Callable[[T], bool], may_repeat: Callable[[], bool] = lambda: True
) -> Iterator[T]:
    """Call *attempt* up to TRIES times, until its result is clear; yield each result.

    *may_repeat* is asked before each repetition, such as whether time is left for it.
    """
    for number in range(TRIES):
        if number and not may_repeat():
            return
        outcome = attempt()
        yield outcome
        if not is_unclear(outcome):
            return
