"""Logs conditions that are met again and again once, and once more when they change."""

import time
from collections.abc import Callable
from math import inf

# Minimum between two logs of a condition that lasts.
LOG_EVERY_S = 60.0


class LogOnce:
    """Decides when to log one condition, as that a server cannot be reached: when it begins or changes.

    One that lasts is logged again after *again_s* seconds, if that is given.
    """

    def __init__(self, *, again_s: float = inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._again_s = again_s
        self._clock = clock
        self._is_met = False
        self._kind: object = None
        self._due_at = -inf
        self._unlogged = 0

    def met(self, kind: object = None) -> int:
        """Note that the condition is met; return how often since its last log if it is to be logged now, else 0.

        It has changed if *kind* is another one than before.
        """
        self._unlogged += 1
        now = self._clock()
        if self._is_met and kind == self._kind and now < self._due_at:
            return 0
        self._is_met = True
        self._kind = kind
        self._due_at = now + self._again_s
        number = self._unlogged
        self._unlogged = 0
        return number

    def end(self) -> bool:
        """Note that the condition is over: the next one is logged at once. Return whether it was met."""
        was_met = self._is_met
        self._is_met = False
        self._unlogged = 0
        return was_met
