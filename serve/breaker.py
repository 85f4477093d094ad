"""A circuit breaker: a store that keeps failing is spared, and tried again with one request at a time."""

import random
from collections.abc import Callable

FAILURES = 5
"""How many failures in a row open a breaker."""

FAILURES_OF_PARTS = 50
"""The same where each may be of one part of the store only, and say nothing of the others: rather than five, which
happen six times a second at 200 requests/s where half of the parts are sick, so many that chance does not make them."""

PAUSE_S = (0.1, 2.0)
"""The first and the longest time that an open breaker waits before it lets one request try."""


class Breaker:
    """Closed, open, or half open with one probe on its way; one instance a tier, as long as the service lives.

    *clock* gives seconds. The pause doubles from probe to probe, and is jittered so that many processes do not all
    probe at once.
    """

    def __init__(self, clock: Callable[[], float], draw: Callable[[float, float], float] = random.uniform) -> None:
        self._clock = clock
        self._draw = draw
        self._failures = 0
        self._pause_s = PAUSE_S[0]
        self._retry_at: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether the store is being spared."""
        return self._retry_at is not None

    def allows(self) -> bool:
        """Tell whether a request may go out; whoever is told yes must report `succeeded` or `failed`."""
        if self._retry_at is None:
            return True
        if self._probing or self._clock() < self._retry_at:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """Close the breaker."""
        if self._failures == 0:
            return  # the ordinary case, on every request's way
        self._failures = 0
        self._pause_s = PAUSE_S[0]
        self._retry_at = None
        self._probing = False

    def failed(self, enough: int = FAILURES) -> None:
        """Count a failure; open the breaker where *enough* came in a row, or the probe failed."""
        self._failures += 1
        if self._retry_at is not None and not self._probing:
            return  # sent before the breaker opened
        if self._probing or self._failures >= enough:
            self._retry_at = self._clock() + self._draw(self._pause_s / 2, self._pause_s)
            self._pause_s = min(self._pause_s * 2, PAUSE_S[1])
            self._probing = False
