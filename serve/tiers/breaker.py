"""The circuit breaker of a store: after failures in a row, only probes are sent to it."""

import logging
from collections.abc import Callable
from enum import Enum, auto

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


class Circuit(Enum):
    """The state of a breaker.

    CLOSED   all reads are sent; failures in a row open it
    OPEN     no read is sent until a pause is over; the next one is the probe
    PROBING  no read is sent until the outcome of the probe is known: it closes the circuit, or opens it again
    """

    CLOSED = auto()
    OPEN = auto()
    PROBING = auto()


class Breaker:
    """The circuit breaker of one store, which logs when it opens and closes.

    Call `begin` before each read, and report its outcome by one call of `succeeded`, `failed`, `timed_out` or
    `cancelled`, with the number from `begin`. Outcomes of reads that began before the circuit opened do not count.
    """

    def __init__(self, store: str, clock: Callable[[], float], *, min_jitter: float = 0.5) -> None:
        """*store* is its name in the log. *clock* returns seconds.

        The pause before a probe doubles after each one that fails, with jitter from *min_jitter* to 1.
        """
        self.open_because = ""
        """A sentence on the failure that opened the breaker last."""

        self._store = store
        self._clock = clock
        self._circuit = Circuit.CLOSED
        self._openings = 0
        """How often the circuit opened, also after a probe."""

        self._failures = 0
        self._failures_of_parts = 0
        """Both since the last success."""

        self._fails_by_part = False
        """Whether a part of the store has failed by itself since the circuit closed, as one shard does."""

        self._pauses = Backoff(*PROBE_PAUSES_S, min_jitter=min_jitter)
        self._probe_at = 0.0
        """While open, the end of the pause."""

    @property
    def is_open(self) -> bool:
        """Whether no reads are sent but probes: one at a time, after a pause."""
        return self._circuit is not Circuit.CLOSED

    def begin(self) -> int:
        """Return the number of openings before a read that is to be sent now; StoreUnavailable if none may be."""
        if self._circuit is not Circuit.CLOSED:
            if self._circuit is Circuit.PROBING or self._clock() < self._probe_at:
                raise StoreUnavailable(f"the circuit of {self._store} is open")
            self._circuit = Circuit.PROBING
        return self._openings

    def succeeded(self, openings: int) -> None:
        """Close the circuit if the read was the probe."""
        if openings != self._openings:
            return
        self._failures = 0
        self._failures_of_parts = 0
        if self._circuit is Circuit.PROBING:
            log.warning("%s: circuit closed, the store answers", self._store)
            self._circuit = Circuit.CLOSED
            self._fails_by_part = False
            self._pauses.reset()

    def failed(self, openings: int, error: StoreError) -> None:
        """Open the circuit if the read was the probe, or if there were too many failures in a row."""
        if openings != self._openings:
            return
        by_part = isinstance(error, PartUnavailable)
        self._fails_by_part = self._fails_by_part or by_part
        if by_part:
            self._failures_of_parts += 1
        else:
            self._failures += 1
        if self._circuit is Circuit.CLOSED:
            if self._failures < FAILURES and self._failures_of_parts < FAILURES_OF_PARTS:
                return
            self.open_because = f"circuit open after repeated failures: {error}"
            cause = error.__cause__ if isinstance(error, StoreDefect) else None
            log.warning("%s: %s", self._store, self.open_because, exc_info=cause)
        self._circuit = Circuit.OPEN
        self._openings += 1
        self._probe_at = self._clock() + self._pauses.next_s()

    def timed_out(self, openings: int, timeout_s: float) -> StoreUnavailable:
        """Count a read that did not end in time as failed; return its error.

        A store whose parts fail by themselves may be late because of one part.
        """
        kind = PartUnavailable if self._fails_by_part else StoreUnavailable
        late = kind(f"{self._store} did not answer in {timeout_s * 1000:.0f} ms")
        self.failed(openings, late)
        return late

    def cancelled(self, openings: int) -> None:
        """Allow another probe at once if the read was the probe; it was cancelled, or met an unexpected exception."""
        if openings == self._openings and self._circuit is Circuit.PROBING:
            self._circuit = Circuit.OPEN
