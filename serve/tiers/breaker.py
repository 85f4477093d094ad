"""The circuit breaker of a store: after failures in a row, only probes are sent to it."""

import logging
from collections.abc import Callable

from hotplate.base.timing import Backoff
from hotplate.serve.errors import StoreDefect
from hotplate.stores.errors import PartUnavailable, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

# Consecutive failures that open a breaker.
FAILURES = 5
# The same for failures of parts of a store: if half of them fail, five in a row happen six times a second at 200
# requests/s.
FAILURES_OF_PARTS = 50
# First and longest pause before a probe.
PROBE_PAUSES_S = (0.1, 1.0)


class Breaker:
    """The circuit breaker of one store, which logs when it opens and closes.

    While it `is_open`, ask `allows` before each read. Report the outcome of each read that is sent by one call of
    `succeeded` (needed after `failures` only), `failed` or `timed_out`, or of `probe_cancelled`.
    """

    def __init__(self, store: str, clock: Callable[[], float], *, min_jitter: float = 0.5) -> None:
        """*store* is its name in the log. *clock* returns seconds.

        The pause before a probe doubles after each one that fails, with jitter from *min_jitter* to 1.
        """
        self.open_because = ""
        """A sentence on the failure that opened the breaker last."""

        self._store = store
        self._clock = clock
        self.is_open = False
        """Whether no reads are sent but probes: one at a time, after a pause."""

        self.failures = 0
        """Since the last success."""

        self._is_probing = False
        """Whether the outcome of a probe is awaited."""

        self._pauses = Backoff(*PROBE_PAUSES_S, min_jitter=min_jitter)
        self._probe_at = 0.0
        """While open, the end of the pause."""

        self._fails_by_part = False
        """Whether a part of the store has failed by itself, as one shard or one partition does."""

    def allows(self) -> bool:
        """Return whether to send a read now; if the breaker is open, it is the probe."""
        if not self.is_open:
            return True
        if self._is_probing or self._clock() < self._probe_at:
            return False
        self._is_probing = True
        return True

    def succeeded(self) -> None:
        """Close the breaker."""
        if self.is_open:
            log.warning("%s: circuit closed, the store answers", self._store)
        self.is_open = False
        self._is_probing = False
        self.failures = 0
        self._pauses.reset()

    def failed(self, error: StoreError) -> None:
        """Open the breaker if the read was a probe, or if there were too many failures in a row."""
        by_part = isinstance(error, PartUnavailable)
        self._fails_by_part = self._fails_by_part or by_part
        self.failures += 1
        if self.is_open and not self._is_probing:
            return  # the read was sent before
        if not self.is_open:
            if self.failures < (FAILURES_OF_PARTS if by_part else FAILURES):
                return
            self.open_because = f"circuit open after repeated failures: {error}"
            cause = error.__cause__ if isinstance(error, StoreDefect) else None
            log.warning("%s: %s", self._store, self.open_because, exc_info=cause)
        self.is_open = True
        self._is_probing = False
        self._probe_at = self._clock() + self._pauses.next_s()

    def timed_out(self, timeout_s: float) -> StoreUnavailable:
        """Count a read that did not end in time as failed; return its error.

        A store whose parts fail by themselves may be late because of one part.
        """
        kind = PartUnavailable if self._fails_by_part else StoreUnavailable
        late = kind(f"{self._store} did not answer in {timeout_s * 1000:.0f} ms")
        self.failed(late)
        return late

    def probe_cancelled(self) -> None:
        """Allow another probe at once, after one that was cancelled or raised an unexpected exception."""
        self._is_probing = False
