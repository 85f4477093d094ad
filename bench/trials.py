"""Trials: single runs at one load, which are repeated while it is unclear what limited them."""

from dataclasses import dataclass

from hotplate.bench.loadgen.result import Result

# Attempts at a trial that a disturbed load generator leaves unclear.
TRIES = 3


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
