"""A circuit breaker: a store that keeps failing gets no requests for a while, and is then tried with one at a time."""

from collections.abc import Callable

from hotplate.stores.throttle import Backoff

# How many failures in a row open a breaker.
FAILURES = 5
# The same where each may be of one part of the store only, and says nothing of the others: rather than five, which
# happen six times a second at 200 requests/s where half of the parts fail, so many that chance does not make them.
FAILURES_OF_PARTS = 50
# The first and the longest time that an open breaker waits before it lets one request probe the store: where another
# server takes over from one that died, it is used within a second.
PAUSE_S = (0.1, 1.0)


class Breaker:
    """Closed, open, or half open with one probe on its way; one instance a tier, as long as the service lives.

    *clock* gives seconds. The pause doubles from probe to probe, and is drawn between *min_jitter* of it and all of it.
    """

    def __init__(self, clock: Callable[[], float], *, min_jitter: float = 0.5) -> None:
        self._clock = clock
        self._backoff = Backoff(*PAUSE_S, min_jitter=min_jitter)
        self._failures = 0
        self._retry_at: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether requests are kept from the store."""
        return self._retry_at is not None

    def allows(self) -> bool:
        """Return whether a request may go out; it is the probe if the breaker is open.

        A caller that gets True must report `succeeded` or `failed`, or for a probe `undecided`.
        """
        if self._retry_at is None:
            return True
        if self._probing or self._clock() < self._retry_at:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """Close the breaker."""
        if self._failures == 0:
            return  # the ordinary case, in the path of every request
        self._failures = 0
        self._backoff.reset()
        self._retry_at = None
        self._probing = False

    def undecided(self) -> None:
        """Let another request probe the store, because the probe ended without an outcome."""
        self._probing = False

    def failed(self, threshold: int = FAILURES) -> None:
        """Count a failure; open the breaker where *threshold* came in a row, or the probe failed."""
        self._failures += 1
        if self._retry_at is not None and not self._probing:
            return  # sent before the breaker opened
        if self._probing or self._failures >= threshold:
            self._retry_at = self._clock() + self._backoff.next_s()
            self._probing = False
