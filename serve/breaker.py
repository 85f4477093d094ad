"""The circuit breaker of a store: after failures in a row, only probes are sent to it."""

from collections.abc import Callable

from hotplate.stores.timing import Backoff

# Consecutive failures that open a breaker.
FAILURES = 5
# The same for failures of parts of a store: if half of them fail, five in a row happen six times a second at 200
# requests/s.
FAILURES_OF_PARTS = 50
# First and longest pause before a probe.
PROBE_PAUSES_S = (0.1, 1.0)


class Breaker:
    """A circuit breaker: closed, open, or half open with one probe.

    *clock* returns seconds. The pause doubles after each probe, with jitter from *min_jitter* to 1.
    """

    def __init__(self, clock: Callable[[], float], *, min_jitter: float = 0.5) -> None:
        self._clock = clock
        self._backoff = Backoff(*PROBE_PAUSES_S, min_jitter=min_jitter)
        self._failures = 0
        self._retry_at: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether only probes are sent."""
        return self._retry_at is not None

    def allows(self) -> bool:
        """Return whether to send a request, or a probe; then call `succeeded`, `failed`, or for a probe `undecided`."""
        if self._retry_at is None:
            return True
        if self._probing or self._clock() < self._retry_at:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """Close the breaker."""
        if self._failures == 0:
            return  # fast path
        self._failures = 0
        self._backoff.reset()
        self._retry_at = None
        self._probing = False

    def undecided(self) -> None:
        """Allow another probe after one without an outcome."""
        self._probing = False

    def failed(self, threshold: int = FAILURES) -> None:
        """Count a failure; open after *threshold* in a row, or after a failed probe."""
        self._failures += 1
        if self._retry_at is not None and not self._probing:
            return  # sent before the breaker opened
        if self._probing or self._failures >= threshold:
            self._retry_at = self._clock() + self._backoff.next_s()
            self._probing = False
