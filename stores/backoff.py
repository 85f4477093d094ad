"""Back-off: pauses that double from one failure to the next, jittered so that many processes do not retry in step."""

import random
from collections.abc import Callable


class Backoff:
    """Gives the pause before each retry, *first_s* at first and *longest_s* at most; lives as long as what retries."""

    def __init__(
        self, first_s: float, longest_s: float, draw: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._first_s = self._next_s = first_s
        self._longest_s = longest_s
        self._draw = draw

    def pause_s(self) -> float:
        """Return the next pause: between a half of its length and the whole."""
        pause_s = self._next_s
        self._next_s = min(pause_s * 2, self._longest_s)
        return self._draw(pause_s / 2, pause_s)

    def reset(self) -> None:
        """Start over with the first pause, after a success."""
        self._next_s = self._first_s
