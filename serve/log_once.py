"""Keeps recurring conditions from filling the log."""

import time
from collections.abc import Callable
from math import inf

# Minimum between two logs of a condition that lasts.
LOG_EVERY_S = 60.0


class LogOnce:
    """Decides when to log a recurring condition, such as an unreachable server: when it begins, and when it changes.

    While it lasts, it is logged again every *again_s* seconds, by default never.
    """

    def __init__(self, *, again_s: float = inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._again_s = again_s
        self._clock = clock
        self._is_met = False
        self._kind: object = None
        self._due_at = -inf
        self._unlogged = 0

    def met(self, kind: object = None) -> int:
        """Count an occurrence; return how many there were since the last log if it is time to log, otherwise 0.

        The condition has changed if *kind* differs from that of the last occurrence.
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
        """End the condition, so that its next occurrence is logged at once; return whether there was one."""
        was_met = self._is_met
        self._is_met = False
        self._unlogged = 0
        return was_met
