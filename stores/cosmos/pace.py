"""How fast request units are spent: evenly, at the rate asked for, and not at all while the service says 429."""

from collections.abc import Callable

SLICE_S = 0.1
"""What was not spent in time may be caught up with later, up to this much time's worth; never more at once."""


class Pace:
    """Says when the next request may go out; pure, on an injected clock (seconds), and lives as long as its store.

    A request is taken at what it will probably cost, before it is sent, and corrected when its charge is known: so
    requests in flight never spend more than the rate. After a 429 nothing goes out until the time that it named. That
    alone finds a container's throughput, whatever the rate: what it admits in a second is spent, and the refusals are
    those few that were in flight when it was used up.
    """

    def __init__(self, clock: Callable[[], float], rate_ru: float | None) -> None:
        """Take RU/s; None where only the service limits."""
        self._clock = clock
        self._rate_ru = rate_ru
        self._paid_at = clock()

    def wait_s(self) -> float:
        """Return how long nothing may go out; 0 where the next request may go now."""
        return max(0.0, self._paid_at - self._clock())

    def take(self, charge_ru: float) -> None:
        """Count a request in that goes out now; the next waits until this one is paid for."""
        if self._rate_ru is not None:
            self._paid_at = max(self._paid_at, self._clock() - SLICE_S) + charge_ru / self._rate_ru

    def correct(self, more_ru: float) -> None:
        """Learn that a request cost so much more than it was taken for, or less."""
        if self._rate_ru is not None:
            self._paid_at += more_ru / self._rate_ru

    def hold(self, seconds: float) -> None:
        """Let nothing out for so long: the service asked for it."""
        self._paid_at = max(self._paid_at, self._clock() + seconds)  # and nothing is saved up meanwhile
