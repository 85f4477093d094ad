"""Back-off: pauses that double from one failure to the next, jittered so that many processes do not retry in step."""

import random


class Backoff:
    """Exponential back-off with jitter, so that many clients do not come back at once; lives as long as its retries."""

    def __init__(self, first_s: float, max_s: float, *, min_jitter: float = 0.5) -> None:
        """Take the first and the longest pause; each is drawn between *min_jitter* of itself and all of it."""
        self._first_s = self._pause_s = first_s
        self._max_s = max_s
        self._min_jitter = min_jitter

    def next_s(self) -> float:
        """Return how long to wait before the next attempt; the one after waits for twice as long."""
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, self._max_s)
        return pause_s * random.uniform(self._min_jitter, 1.0)  # noqa: S311 -- spreads clients, guards nothing

    def reset(self) -> None:
        """Begin with the first pause again: an attempt has succeeded."""
        self._pause_s = self._first_s
